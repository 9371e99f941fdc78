"""Copies of networks that keep what they computed last."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hwprune.graph.twin import copy_of

INPUTS = torch.ones(2, 3)


class Keeping(nn.Module):
    """Keeps its features, as networks that are looked into do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.seen: dict[str, list[Tensor]] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.layer(inputs)
        self.seen = {"features": [features]}
        return features.relu()


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "model",
    [nn.Sequential(Keeping(), nn.Linear(4, 1)), nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)))],
    ids=["activation", "hook"],
)
def test_what_deepcopy_refuses_is_copied_without_its_graph(model: nn.Module) -> None:
    model(INPUTS).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    model.eval()
    twin = copy_of(model)
    assert torch.equal(twin(INPUTS), model(INPUTS))
    before = model(INPUTS).detach().clone()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(INPUTS), before)


def test_a_submodule_is_replaced_in_the_copy_alone() -> None:
    model = nn.Sequential(Keeping(), nn.Linear(4, 1))
    model(INPUTS)
    twin = copy_of(model, {id(model[1]): nn.Identity()})
    assert twin(INPUTS).shape == (2, 4)
    assert model(INPUTS).shape == (2, 1)
