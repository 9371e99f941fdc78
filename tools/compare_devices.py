"""Whether networks pruned for different devices differ, and which is the faster one where.

    python tools/compare_devices.py variants --speedup 2 --out docs/own-device.md

Takes the folder of `hwprune variants`: of every model, the networks that were pruned for several devices at
one speed-up. On each of these devices all of them are timed in alternation in one run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from bench_pages import machine_line, write_page

from hwprune.device.library import load_profile
from hwprune.device.profile import DeviceProfile
from hwprune.output_folder import REPORT_FILE
from hwprune.report import read_json, single_precision_file
from hwprune.runtime.environment import same_hardware
from hwprune.runtime.timing import Timing, measure_alternately
from hwprune.variants_page import VariantsFolder

#: How to read the tables.
EXPLANATION = (
    "Every column is a network, pruned for the device at its head to the same speed-up over the dense one",
    "*there*; every row is a device that all of them were timed on, in alternation in one run: median in",
    "microseconds (p10 to p90). Bold: the fastest of the row. A network is the faster one on its own device",
    "where the bold figures lie on the diagonal.",
)
#: Medians that differ by less than this part count as one: ratios of medians in one run are no more exact.
ALIKE = 0.01


@dataclass(frozen=True, slots=True)
class Pruned:
    """A network that was pruned for a device.

    Attributes:
        device: Name of its profile.
        profile: The profile.
        file: In ONNX, single precision.
        accuracy: On the test images, in [0, 1].
        widths: Of every layer that could shrink, by its name.
    """

    device: str
    profile: DeviceProfile
    file: Path
    accuracy: float
    widths: Mapping[str, int]


def networks_at(folder: VariantsFolder, speedup: float, profiles: Path | None) -> dict[str, list[Pruned]]:
    """The networks at a speed-up by model, of models that were pruned for two devices or more.

    Args:
        folder: Of the variants.
        speedup: Which of them; those that missed it are left out.
        profiles: Where profiles are looked for first; by default where they were looked for then.
    """
    found: dict[str, list[Pruned]] = {}
    for entry in folder.measured:
        if entry["status"] != "done" or entry["target"] != {"kind": "speedup", "value": speedup}:
            continue
        recorded = entry["settings"].get("profiles")
        where = profiles or (None if recorded is None else Path(recorded))
        place = folder.path / entry["name"]
        layers = read_json(place / REPORT_FILE, "hwprune variants")["layers"]
        found.setdefault(entry["model"], []).append(
            Pruned(
                entry["device"],
                load_profile(entry["settings"]["device"], where),
                single_precision_file(place),
                entry["slim"]["accuracy"],
                {layer["name"]: layer["width_after"] for layer in layers},
            )
        )
    return {model: networks for model, networks in found.items() if len(networks) > 1}


def time_everywhere(networks: Sequence[Pruned]) -> dict[str, dict[str, Timing]]:
    """Device to the timings on it, by the device that each network was pruned for."""
    files = {network.device: network.file for network in networks}
    return {network.device: measure_alternately(files, network.profile) for network in networks}


def at_home(timings: Mapping[str, Mapping[str, Timing]]) -> dict[str, bool]:
    """Device to whether no network of another device is faster on it, by more than :data:`ALIKE`."""
    return {
        device: row[device].median_us <= (1 + ALIKE) * min(each.median_us for each in row.values())
        for device, row in timings.items()
    }


def as_markdown(
    model: str, networks: Sequence[Pruned], timings: Mapping[str, Mapping[str, Timing]]
) -> list[str]:
    """The tables of one model: latencies, and the widths of the layers in which the networks differ."""
    devices = [network.device for network in networks]
    head = [f"| | {' | '.join(f'for {device}' for device in devices)} |", "|---" * (len(devices) + 1) + "|"]
    rows = []
    for device in devices:
        fastest = min(timings[device].values(), key=lambda timing: timing.median_us)
        rows.append(f"| on {device} | {' | '.join(_cell(timings[device][d], fastest) for d in devices)} |")
    accuracies = " | ".join(f"{network.accuracy:.2%}" for network in networks)
    own = at_home(timings)
    names = dict.fromkeys(name for network in networks for name in network.widths)
    other = [name for name in names if len({network.widths.get(name) for network in networks}) > 1]
    widths = [
        f"| `{name}` | {' | '.join(str(network.widths.get(name, '')) for network in networks)} |"
        for name in other
    ]
    return [
        f"## {model}",
        "",
        *head,
        *rows,
        f"| test accuracy | {accuracies} |",
        "",
        f"On its own device no other network is faster (by more than {ALIKE:.0%}) for: "
        f"{', '.join(device for device, yes in own.items() if yes) or 'none'}; "
        f"another one is for: {', '.join(device for device, yes in own.items() if not yes) or 'none'}.",
        "",
        *(f"{device}: {why}, so these are figures of a stand-in." for device, why in _stand_ins(networks)),
        "",
        f"Widths differ in {len(other)} of {len(names)} axes" + (":" if other else "."),
        "",
        *([head[0].replace("| |", "| axis |", 1), head[1], *widths, ""] if other else []),
    ]


def _stand_ins(networks: Sequence[Pruned]) -> Iterator[tuple[str, str]]:
    """Devices that this machine is not, and in what."""
    for network in networks:
        same, why = same_hardware(network.profile)
        if not same:
            yield network.device, why


def _cell(timing: Timing, fastest: Timing) -> str:
    mark = "**" if timing is fastest else ""
    return f"{mark}{timing.median_us:.1f}{mark} ({timing.p10_us:.1f} to {timing.p90_us:.1f})"


def page(sections: Sequence[str], words: Sequence[str], record: Mapping[str, Any]) -> list[str]:
    """The page.

    Args:
        sections: Lines of all models.
        words: The command.
        record: The variants' manifest.
    """
    settings = record["variants"][0]["settings"]
    trained = f"the first {settings['train_images']:,} images" if settings["train_images"] else "all images"
    return [
        "# On its own device and on others",
        "",
        *EXPLANATION,
        "",
        f"Data: {record['variants'][0]['data']}, {trained}, seed {settings['seed']}.",
        f"Machine: {machine_line()}",
        f"Command: `{shlex.join(words)}`",
        "",
        *sections,
    ]


@click.command()
@click.argument("variants", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--speedup", default=2.0, show_default=True, help="Of which variants.")
@click.option("--profiles", type=click.Path(path_type=Path), help="Where profiles are looked for first.")
@click.option("--out", type=click.Path(path_type=Path), help="The page; shown where none is named.")
def main(variants: Path, speedup: float, profiles: Path | None, out: Path | None) -> None:
    """Times the networks of a folder of variants on all of its devices and writes the page."""
    folder = VariantsFolder.read(variants)
    found = networks_at(folder, speedup, profiles)
    if not found:
        raise click.ClickException(
            f"{variants}: no model was pruned for two devices to {speedup:g} times the speed"
        )
    sections = [
        line
        for model, networks in found.items()
        for line in as_markdown(model, networks, time_everywhere(networks))
    ]
    words = ["python", "tools/compare_devices.py", variants.name, "--speedup", f"{speedup:g}"]
    words += ["--profiles", profiles.name] if profiles else []
    write_page(page(sections, words, folder.record), out)


if __name__ == "__main__":
    main()
