"""How many width vectors a second the latency prediction prices, without building a network.

Example: python tools/bench_predict.py --model resnet18:1x28x28 --device x86-avx2-ort
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import hwprune
from hwprune.channel_widths import ChannelWidths
from hwprune.cli.profile_networks import make_networks

#: Width vectors of one call, and calls that are timed.
VECTORS, CALLS = 20_000, 5


def rates(predictor: ChannelWidths, vectors: int, calls: int) -> list[float]:
    """Width vectors a second, of each call."""
    steps = np.ceil(predictor.dense / predictor.aligns).astype(np.int64)
    drawn = np.random.default_rng(0).integers(1, steps + 1, size=(vectors, steps.size))
    widths = np.minimum(drawn * predictor.aligns, predictor.dense)
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
    predictor = hwprune.width_predictor(
        network.model, hwprune.load_profile(arguments.device), network.example
    )
    for name, vectors in (
        ("many at a time", arguments.vectors),
        ("100 at a time", 100),
        ("one at a time", 1),
    ):
        rate = statistics.median(rates(predictor, vectors, CALLS))
        operators = len(predictor.predictor.operators)
        print(f"{name}: {rate:,.0f} width vectors a second ({operators} operators)")


if __name__ == "__main__":
    main()
