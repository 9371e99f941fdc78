"""Random inputs to verify on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hwprune
from hwprune.errors import VerificationError
from hwprune.surgery.random_inputs import random_inputs, with_random_inputs
from hwprune.surgery.rebuild import rebuild

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 20, (2, 4), generator=torch.Generator().manual_seed(0))


def test_random_inputs_keep_shapes_types_and_ranges() -> None:
    mask = torch.tensor([[True, False]])
    drawn = random_inputs({"tokens": TOKENS, "images": IMAGES.double(), "mask": mask, "scale": 2})
    assert drawn["tokens"].shape == TOKENS.shape
    assert not torch.equal(drawn["tokens"], TOKENS)
    assert TOKENS.min() <= drawn["tokens"].min() <= drawn["tokens"].max() <= TOKENS.max()
    assert (drawn["images"].dtype, drawn["images"].shape) == (torch.float64, IMAGES.shape)
    assert float(drawn["images"].min()) < 0 < float(IMAGES.min())
    assert drawn["mask"] is mask
    assert drawn["scale"] == 2


class Root(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.sqrt()


def test_random_inputs_are_left_out_where_the_network_does_not_take_them() -> None:
    assert len(with_random_inputs(nn.ReLU(), [IMAGES])) == 2
    assert len(with_random_inputs(Root(), [IMAGES])) == 1


def test_numbers_that_cannot_be_drawn_leave_the_given_inputs() -> None:
    last = torch.full((1, 2), torch.iinfo(torch.int64).max)
    assert len(with_random_inputs(nn.Identity(), [last])) == 1


def test_finishing_verifies_on_random_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake that the example, which is zero everywhere, does not show."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.ReLU(), nn.Conv2d(32, 4, 1))
    compressor = hwprune.Compressor(
        model,
        torch.zeros(1, 3, 8, 8),
        hwprune.load_profile("x86-avx2-ort"),
        target=hwprune.Keep(0.5),
        total_steps=1,
        measure=False,
    )

    def wrong(trained: nn.Module, axes: object, kept: object) -> nn.Module:
        slim = rebuild(trained, axes, kept)
        slim[0].weight.data *= 2
        return slim

    monkeypatch.setattr("hwprune.channel_scope.rebuild", wrong)
    with pytest.raises(VerificationError, match="in layer 0"):
        compressor.finish()
