"""The random numbers of one training (of torch, NumPy and Python), apart from everybody else's."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hwprune.processes import from_each, process_rank


class Randomness:
    """Random numbers that a training draws, in a sequence of its own.

    Dropout, stochastic depth and the like draw from generators that everybody shares. Within :meth:`drawn`
    these continue the training's sequence; outside they are what they would be without the training.

    Args:
        seed: Of the sequence; every process of a training has another one.
    """

    def __init__(self, seed: int) -> None:
        # Not the seed itself: the weights were drawn with it.
        mixed = np.random.SeedSequence([seed % 2**64, process_rank()])
        self._seed = int(mixed.generate_state(1)[0])
        with random_states_kept():
            _seed_everything(self._seed)
            self._states = _random_states()

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Within the context the shared generators continue the training's sequence."""
        with random_states_kept():
            _set_random_states(self._states)
            if "cuda" not in self._states and _cuda_in_use():
                torch.cuda.manual_seed_all(self._seed)
            try:
                yield
            finally:
                self._states = _random_states()

    def state_dict(self) -> dict[str, Any]:
        """Where the sequence of every process stands, as tensors, numbers and strings; all must ask."""
        return {"processes": from_each(self._states)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave; a process that was not there then begins its sequence."""
        if process_rank() < len(state["processes"]):
            self._states = state["processes"][process_rank()]


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Whatever is drawn within the context, the shared generators stand where they stood before after it."""
    before = _random_states()
    try:
        yield
    finally:
        _set_random_states(before)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _seed_everything(seed: int) -> None:
    # Accelerators that nobody uses yet would be seeded later, for everybody, by torch.manual_seed.
    torch.default_generator.manual_seed(seed)
    if _cuda_in_use():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed)
    random.seed(seed)


def _random_states() -> dict[str, Any]:
    """Where the shared generators stand, those of accelerators that are in use included."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(internal), gauss_next],
    }
    if _cuda_in_use():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    kind, keys, *others = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *others))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))
    if _cuda_in_use():
        for device, state in zip(range(torch.cuda.device_count()), states.get("cuda", ()), strict=False):
            torch.cuda.set_rng_state(state, device)
