"""Whatever the coupling leaves free is cut exactly, on random networks."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from hwprune.graph.coupling import find_axes
from hwprune.surgery.outputs import compare, outputs_of
from hwprune.surgery.random_copies import randomised
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.trial import zeroed

_SPEC = importlib.util.spec_from_file_location(
    "random_networks", Path(__file__).with_name("random_networks.py")
)
random_networks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(random_networks)


def half_of(axes, seed):
    """Masks that keep a random half of the channels of every axis."""
    rng = np.random.default_rng(seed)
    return {axis.name: rng.permutation(axis.width) < (axis.width + 1) // 2 for axis in axes}


def cut_half(seed):
    """Relative difference between a random network with half of its channels zeroed and without them."""
    net, images = random_networks.network(seed)
    free = [axis for axis in find_axes(net, images) if axis.pinned is None]
    net = randomised(net, torch.Generator().manual_seed(seed))
    kept = half_of(free, seed)
    with contextlib.ExitStack() as zeros:
        for axis in free:
            zeros.enter_context(zeroed(net, axis, kept[axis.name]))
        expected = outputs_of(net, images)
        slim = rebuild(net, free, kept)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in net.parameters()) or not free
    return compare(expected, outputs_of(slim, images)).relative, len(free)


@pytest.mark.parametrize("start", range(0, 120, 20))
def test_random_networks(start):
    results = [cut_half(seed) for seed in range(start, start + 20)]
    assert max(difference for difference, _free in results) < 1e-9
    assert sum(free for _difference, free in results) > 20


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 3000, 100))
def test_many_random_networks(start):
    wrong = [seed for seed in range(start, start + 100) if cut_half(seed)[0] > 1e-9]
    assert wrong == []
