"""The compressor in scripts of others: compiled networks, schedules, trainings that end early."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import InputError
from hwprune.train.schedule import StrengthSchedule

EXAMPLE = torch.zeros(2, 1, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


def compressor_of(model: nn.Module, **options: object) -> hwprune.Compressor:
    profile = hwprune.load_profile("any-cpu-ort")
    arguments = {"total_steps": 20, "measure": False, **options}
    return hwprune.Compressor(model, EXAMPLE, profile, hwprune.Keep(0.5), **arguments)  # type: ignore[arg-type]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        model(images).square().mean().backward()
        optimizer.step()


def test_what_torch_compile_gave_is_pruned_and_loads_into_the_plain_network(tmp_path: Path) -> None:
    plain = network()
    model = torch.compile(plain, backend="eager")
    compressor = compressor_of(model, keep=["0"])
    train(model, compressor.wrap(torch.optim.SGD(model.parameters(), lr=0.1)), 20)
    result = compressor.finish()
    hwprune.save(result, tmp_path / "slim")
    slim = hwprune.load(tmp_path / "slim", model=network())
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(slim(images), result.model(images))
    assert torch.allclose(slim(images), plain.eval()(images), atol=1e-6)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in plain.parameters())


def test_a_schedule_for_another_number_of_steps_is_refused() -> None:
    with pytest.raises(InputError, match=r"another number of steps.*total_steps of 20.*2000"):
        compressor_of(network(), schedule=StrengthSchedule(2000))


@pytest.mark.parametrize("steps", [0, 3, 20])
def test_a_training_that_ended_too_early_is_told(steps: int) -> None:
    notes: list[str] = []
    model = network()
    compressor = compressor_of(model, notify=notes.append)
    train(model, compressor.wrap(torch.optim.SGD(model.parameters(), lr=0.1)), steps)
    compressor.finish()
    early = [line for line in notes if line.startswith(f"the training ended after {steps} of 20 steps")]
    assert len(early) == (steps < 20)
