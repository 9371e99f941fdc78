"""Networks that draw random numbers: the seed fixes which, and a resumed training goes on with them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwprune.train.checkpoint import load_checkpoint, save_checkpoint
from hwprune.train.loop import Recipe, Trainer
from hwprune.train.randomness import Randomness
from hwprune.workloads import load_dataset

EPOCHS = 3


class Drawing(nn.Module):
    """Drops units with torch, scales with NumPy, and leaves out a branch with Python."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.branch, self.last = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.dropout(self.first(images.flatten(1)), 0.3, self.training)
        if self.training:
            hidden = hidden * (1 + 0.1 * float(np.random.standard_normal()))
            # The pair of normal numbers that Python and NumPy make at once is half used when the epoch ends.
            if random.gauss(0.0, 1.0) < 0:
                return self.last(hidden)
        return self.last(hidden + self.branch(hidden).relu())


def trainer(seed: int = 0) -> Trainer:
    return Trainer(Drawing(), load_dataset("digits").first(96), Recipe(EPOCHS, 32, seed=seed))


def trained(seed: int = 0) -> dict[str, Tensor]:
    running = trainer(seed)
    while not running.done:
        running.run_epoch()
        disturb()
    return running.model.state_dict()


def disturb() -> None:
    """Draws from the generators that everybody shares, another number each time."""
    torch.rand(random.randrange(1, 9))
    np.random.standard_normal(3)


def shared_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def test_the_seed_fixes_what_the_network_draws() -> None:
    first = trained()
    disturb()
    assert same(first, trained())
    assert not same(first, trained(seed=1))


@pytest.mark.parametrize("epoch", range(1, EPOCHS))
def test_a_resumed_training_draws_what_the_uninterrupted_one_would(epoch: int, tmp_path: Path) -> None:
    interrupted = trainer()
    for _ in range(epoch):
        interrupted.run_epoch()
    save_checkpoint(tmp_path / "state.safetensors", interrupted.state_dict())
    disturb()
    resumed = trainer()
    resumed.load_state_dict(load_checkpoint(tmp_path / "state.safetensors"))
    while not resumed.done:
        resumed.run_epoch()
    assert same(trained(), resumed.model.state_dict())


def test_a_checkpoint_from_before_random_numbers_were_kept_is_taken() -> None:
    interrupted = trainer()
    interrupted.run_epoch()
    resumed = trainer()
    resumed.load_state_dict({k: v for k, v in interrupted.state_dict().items() if k != "randomness"})
    assert resumed.run_epoch().epoch == 2


def test_nobody_else_notices() -> None:
    before = shared_states()
    running = trainer()
    running.run_epoch()
    assert shared_states() == before


def test_every_process_has_a_sequence_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(rank: int, seed: int) -> float:
        monkeypatch.setattr("hwprune.train.randomness.process_rank", lambda: rank)
        with Randomness(seed).drawn():
            return float(torch.rand(()))

    assert len({drawn(rank, seed) for rank in range(3) for seed in range(3)}) == 9


def test_a_process_takes_back_its_own_and_one_more_begins_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(rank: int) -> Randomness:
        monkeypatch.setattr("hwprune.train.randomness.process_rank", lambda: rank)
        return Randomness(0)

    def draw(randomness: Randomness) -> float:
        with randomness.drawn():
            return float(torch.rand(()))

    both = [make(0), make(1)]
    for each in both:
        draw(each)
    state = {"processes": [each.state_dict()["processes"][0] for each in both]}
    expected = [draw(each) for each in both]
    for rank in (0, 1):
        resumed = make(rank)
        resumed.load_state_dict(state)
        assert draw(resumed) == expected[rank]
    third = make(2)
    third.load_state_dict(state)
    assert draw(third) == draw(make(2))
