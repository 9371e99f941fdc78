"""The command ``hwprune profile check``: see how far the predictions of a profile hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from hwprune import charts
from hwprune.cli.common import SEED, answer, json_option, profiles_option, told
from hwprune.cli.profile_networks import (
    DEFAULT_NETWORKS,
    check_command,
    make_networks,
    networks_option,
    passes_option,
)
from hwprune.device.kinds import describe
from hwprune.device.library import load_profile
from hwprune.device.predict import table_of
from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError, MissingRowError, ProfileError
from hwprune.files import write_text
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator
from hwprune.profile_check import (
    ALIGNED,
    UNALIGNED,
    NetworkError,
    by_widths,
    compare_networks,
    markdown_page,
    summarise,
)
from hwprune.profile_pictures import agreement
from hwprune.runtime.environment import environment, same_hardware
from hwprune.sampled_networks import LEAST_WIDTH, Network, at_random_widths

#: Operators that a message names at most.
_NAMED = 4


@click.command("check")
@click.argument("folder")
@profiles_option
@networks_option
@click.option(
    "--count", type=click.IntRange(min=1), default=48, show_default=True, help="Networks to measure."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of their widths.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw predicted against measured into this SVG file.",
)
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the errors into this Markdown file, as tables.",
)
@passes_option
@json_option
@told
def check(
    folder: str,
    profiles: Path | None,
    networks: Sequence[str],
    count: int,
    seed: int,
    plot: Path | None,
    markdown: Path | None,
    passes: int,
    as_json: bool,
) -> None:
    """Validate a profile and compare its predictions with measurements of this machine.

    The networks are narrower versions of the covered ones, at random widths that the calibration has not
    seen: two in three at widths that pruning chooses (aligned), one in three at any (unaligned), which are
    reported apart.

    Example: hwprune profile check profiles/x86-avx2-ort --count 48
    """
    _check_writable(plot, markdown)
    checked = load_profile(folder, profiles)
    console = Console(stderr=as_json, highlight=False, emoji=False)
    if checked.table is None:
        console.print(f"{checked.name} is valid; it is a template without a table, nothing can be compared")
        if as_json:
            answer({"profile": checked.name, "template": True})
        return
    console.print(f"{checked.name} is valid: {len(checked.table)} rows")
    if checked.table.of_medians:
        console.print("its rows are medians, and networks are compared by theirs")
    check_here(checked)
    covered = covered_by(make_networks(networks or DEFAULT_NETWORKS), checked, required=bool(networks))

    def done(error: NetworkError) -> None:
        console.print(_error_line(error), markup=False, soft_wrap=True)

    errors = [
        error
        for widths, drawn in _drawn(checked, covered, count, seed, console).items()
        for error in compare_networks(checked, drawn, done, widths, passes=passes)
    ]
    if plot is not None:
        write_text(plot, agreement(errors))
    if markdown is not None:
        place = Path(folder).name if Path(folder).is_absolute() else folder  # it is read on other machines
        command = check_command(
            place, networks, "--count", str(count), "--seed", str(seed), *_unless_once(passes)
        )
        about = f"{_about(checked, command)}{_clock(errors)}"
        write_text(markdown, markdown_page(checked.name, about, errors))
    if as_json:
        answer(_record(checked, seed, errors))
        return
    if remark := _clock(errors).strip():
        console.print(remark, soft_wrap=True)
    for kind, summary in by_widths(errors).items():
        console.print(_summary_line(kind, summary), soft_wrap=True)


def _record(checked: DeviceProfile, seed: int, errors: Sequence[NetworkError]) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "profile": checked.name,
        "environment": environment(),
        "seed": seed,
        "compared": "median" if table_of(checked).of_medians else "undisturbed",
        **summarise(errors),
        "widths": by_widths(errors),
        "errors": [{**asdict(error), "error": error.error} for error in errors],
    }


def _summary_line(kind: str, summary: Mapping[str, float]) -> str:
    return (
        f"{kind}: {summary['networks']} networks, median error {summary['median']:.1%}, 95 % within "
        f"{summary['p95']:.1%}, 99 % within {summary['p99']:.1%}, worst {summary['worst']:.1%}, "
        f"median signed {summary['bias']:+.1%}"
    )


def _drawn(
    profile: DeviceProfile, covered: dict[str, Network], count: int, seed: int, console: Console
) -> dict[str, Iterator[tuple[str, Network]]]:
    """Networks at aligned widths, and at any where the table prices them: a third of all."""
    unaligned = _with_any_width(covered, profile)
    if unaligned.keys() < covered.keys():
        absent = ", ".join(sorted(covered.keys() - unaligned.keys()))
        console.print(f"not at unaligned widths, which the table does not price: {absent}", markup=False)
    has_steps = any(rule.align > 1 for rule in profile.rules)
    apart = count // 3 if unaligned and has_steps else 0
    return {
        ALIGNED: at_random_widths(covered, profile, count - apart, seed),
        UNALIGNED: at_random_widths(unaligned, profile, apart, seed, aligned=False),
    }


def _unless_once(passes: int) -> list[str]:
    """The option that asks for several passes."""
    return ["--passes", str(passes)] if passes > 1 else []


def _about(profile: DeviceProfile, command: str) -> str:
    facts, runtime, table = environment(), profile.runtime, table_of(profile)
    threads = f"{runtime.threads} thread{'s' if runtime.threads > 1 else ''}"
    return (
        f"{runtime.kind} {runtime.version}, {runtime.precision}, {threads}, batch {runtime.batch}; "
        f"{len(table)} rows of {profile.provenance.date}. `{command}` on {facts['cpu']} ({facts['isa']}), "
        f"{facts['date']}: networks at random widths that the calibration has not seen"
        f"{', compared by medians, which is what the rows are' if table.of_medians else ''}."
    )


def _clock(errors: Sequence[NetworkError]) -> str:
    """What the latencies were scaled by, as a sentence; nothing where that is nothing."""
    least, most = (extreme(error.pace for error in errors) for extreme in (min, max))
    if least == most == 1:
        return ""
    raw = summarise([error.unscaled() for error in errors])
    return (
        f" The measured latencies are at the clock that the table was measured at: multiplied by {least:.3f} "
        f"to {most:.3f}, as a reference kernel went faster or slower before and after; without that the "
        f"median error is {raw['median']:.1%}."
    )


def _check_writable(plot: Path | None, markdown: Path | None) -> None:
    """Raises where a file could not be drawn or written, before anything is measured."""
    if plot is not None and not charts.available():
        raise InputError("pictures need matplotlib", where="--plot", hint="pip install 'hwprune[report]'")
    for path in (plot, markdown):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(
                "the folder of the file does not exist", where=path, expected="an existing folder"
            )


def covered_by(networks: dict[str, Network], profile: DeviceProfile, *, required: bool) -> dict[str, Network]:
    """The networks whose operators the table has at every narrower width.

    Raises:
        MissingRowError: If there are none, or one is missing where all are required.
    """
    absent, covered = dict[str, list[Operator]](), {}
    for name, network in networks.items():
        operators = trace_operators(network.model, network.example)
        table = table_of(profile.for_network(operators, pruned=True))
        absent[name] = [op for op in operators if not table.covers_narrower(op, profile.steps_for(op))]
        if not absent[name]:
            covered[name] = network
    missing = {name: operators for name, operators in absent.items() if operators}
    if not covered or (required and missing):
        rows = dict.fromkeys(describe(operator) for operators in missing.values() for operator in operators)
        others = f" and {len(rows) - _NAMED} others" if len(rows) > _NAMED else ""
        raise MissingRowError(
            f"the table does not cover {', '.join(sorted(missing))}",
            where=profile.name,
            expected="rows for every operator, at its width and at all narrower ones",
            got=f"not all of them for {'; '.join(list(rows)[:_NAMED])}{others}",
            hint=f"add them with: {profile.build_command(list(missing))}",
        )
    return covered


def _with_any_width(networks: dict[str, Network], profile: DeviceProfile) -> dict[str, Network]:
    """The networks that the table prices at every width that is drawn, on a step or off it."""
    priced = {}
    for name, network in networks.items():
        operators = trace_operators(network.model, network.example)
        table = table_of(profile.for_network(operators, pruned=True))
        if all(table.covers_unaligned(each, profile.steps_for(each), LEAST_WIDTH) for each in operators):
            priced[name] = network
    return priced


def check_here(profile: DeviceProfile) -> None:
    """Raises where predictions cannot be compared, because a profile was measured on another machine."""
    same, difference = same_hardware(profile)
    if not same:
        raise ProfileError(
            "the predictions cannot be compared: the profile was measured on another machine",
            where=profile.name,
            expected="the machine it was measured on",
            got=difference,
            hint="build one for this machine with: hwprune profile build --out DIR",
        )


def _error_line(error: NetworkError) -> str:
    return (
        f"{error.name:24s} {error.widths:9s} predicted {error.predicted_us:9.1f} us, "
        f"measured {error.measured_us:9.1f} us, error {error.error:+6.1%}"
    )
