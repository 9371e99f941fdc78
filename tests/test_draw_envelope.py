"""``tools/draw_envelope.py``: the picture of ``docs/envelope.md``."""

import pytest


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_values_and_proximal_operators_are_drawn_in_one_and_two_dimensions(load_tool):
    figure = load_tool("draw_envelope").draw()
    assert len(figure.axes) == 6
    assert all(place.has_data() for place in figure.axes)
    assert [place.get_xlabel() for place in figure.axes] == ["$t_1$"] * 3 + ["$t_1$ before"] + ["$t_1$"] * 2
