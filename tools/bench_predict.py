"""How many width vectors a second the latency prediction prices, without building a network.

Example: python tools/bench_predict.py --model resnet18:1x28x28 --device x86-avx2-ort
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from hwprune.cli.profile_networks import make_networks
from hwprune.device.library import load_profile
from hwprune.device.predict import WidthPredictor
from hwprune.device.profile import DeviceProfile
from hwprune.graph.coupling import find_axes
from hwprune.graph.trace import trace_operators
from hwprune.groups.channel import ChannelGroups
from hwprune.plan import axis_aligns
from hwprune.sampled_networks import Network
from hwprune.surgery.prove import prove

#: Width vectors of one call, and calls that are timed.
VECTORS, CALLS = 20_000, 5


def make_predictor(network: Network, profile: DeviceProfile) -> tuple[WidthPredictor, ChannelGroups]:
    """The prediction that pruning asks, and the channels whose widths it takes."""
    operators = trace_operators(network.model, network.example)
    axes = find_axes(network.model, network.example)
    aligns = axis_aligns(axes, operators, profile)
    proven = prove(network.model, axes, network.example, aligns)
    groups = ChannelGroups(network.model, proven.axes, aligns)
    columns = [proven.axes.index(axis) for axis in groups.axes]
    in_loss, out_loss = proven.in_loss[:, columns], proven.out_loss[:, columns]
    return WidthPredictor(operators, in_loss, out_loss, groups.widths, profile), groups


def rates(predictor: WidthPredictor, groups: ChannelGroups, vectors: int, calls: int) -> list[float]:
    """Width vectors a second, of each call."""
    aligns = np.array(groups.aligns)
    steps = np.ceil(groups.widths / aligns).astype(np.int64)
    drawn = np.random.default_rng(0).integers(1, steps + 1, size=(vectors, steps.size))
    widths = np.minimum(drawn * aligns, groups.widths)
    predictor.latency_us(widths[:1])  # reads the table and prepares it, once
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        predictor.latency_us(widths)
        found.append(vectors / (time.perf_counter() - start))
    return found


def main() -> None:
    """Prints the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet18:1x28x28")
    parser.add_argument("--device", default="x86-avx2-ort")
    parser.add_argument("--vectors", type=int, default=VECTORS)
    arguments = parser.parse_args()
    (network,) = make_networks([arguments.model]).values()
    predictor, groups = make_predictor(network, load_profile(arguments.device))
    for name, vectors in (
        ("many at a time", arguments.vectors),
        ("100 at a time", 100),
        ("one at a time", 1),
    ):
        rate = statistics.median(rates(predictor, groups, vectors, CALLS))
        print(f"{name}: {rate:,.0f} width vectors a second ({len(predictor.operators)} operators)")


if __name__ == "__main__":
    main()
