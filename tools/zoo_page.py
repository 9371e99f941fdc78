"""The page about the zoo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from zoo_cut import ENOUGH, RUNTIME_TOLERANCE, TOLERANCE, Outcome

#: The verdict on a network of the list that the results have no line of.
NOT_ASKED = "not asked"
UNJUDGED = ("not built", "no answer", NOT_ASKED)
HOW = f"""\
Written by `tools/zoo.py`, whose head says how to run it. Every network has random weights in double precision
(which decides for users, too, where single precision leaves a doubt) and goes the way of a compression: axes
are found, each is tried by itself before anything else (what does not
come out equal is kept), all that may shrink lose half of their channels together, biases take up constants,
and the slim network is verified against the one whose channels are merely zero, as `finish` does it: on the
example and on random inputs, in evaluation and with batch statistics. *WRONG* means that this verification
fails. *Pruned* means at least {ENOUGH:.0%} of the parameters gone, *partly pinned* fewer, *refused* none.
The reasons are those that `hwprune plan` prints, with the number of axes.

*ONNX Runtime*: the slim network in single precision, exported with `hwprune.export` and run; *equal*
means no further from the zeroed network than {RUNTIME_TOLERANCE:g} of its largest output (or ten times
what PyTorch's own single precision is, where that is more); *no export* that `torch.onnx.export` or the
runtime refuses the network.

*torch-pruning* is the plain magnitude pruner, half of every layer, output layers ignored, on the same
weights in double precision: *differs* means that the pruned network does not compute what the network
with the same filters at zero computes (by more than {TOLERANCE:g} of the largest output), which
torch-pruning does not promise; *crashes* that pruning or the forward pass after
it raises; *nothing* that nothing was pruned.
"""


def as_markdown(
    cut: Sequence[Outcome], onnx: Sequence[Outcome], peer: Sequence[Outcome], versions: str
) -> str:
    """The page.

    Args:
        cut: What became of every network, in the order of the table.
        onnx: What ONNX Runtime made of those that were exported.
        peer: What torch-pruning made of them.
        versions: Of the packages, in words.
    """
    exported = {(outcome.family, outcome.name): outcome for outcome in onnx}
    peers = {(outcome.family, outcome.name): outcome for outcome in peer}
    judged = [outcome for outcome in cut if outcome.verdict not in UNJUDGED]
    unjudged = [outcome for outcome in cut if outcome.verdict in UNJUDGED]
    lines = [*_front(judged, unjudged, exported.values(), peers.values(), versions), "", HOW]
    lines += [
        "| network | result | gone | axes cut | why the others stay | ONNX Runtime | torch-pruning | gone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for outcome in cut:
        key = outcome.family, outcome.name
        lines.append(_row(outcome, exported.get(key), peers.get(key)))
    return "\n".join(lines) + "\n"


def _front(
    cut: Sequence[Outcome],
    unjudged: Collection[Outcome],
    onnx: Collection[Outcome],
    peer: Collection[Outcome],
    versions: str,
) -> list[str]:
    """The counts, how many networks each was asked of, and the versions they hold for."""
    pruned = sum(outcome.verdict == "pruned" for outcome in cut)
    share = f"{pruned / len(cut):.1%} pruned" if cut else "none judged"
    return [
        "# The zoo",
        "",
        f"{len(cut) + len(unjudged)} networks, {len(cut)} of them judged: {_counts(cut, 'WRONG')}; {share}. "
        f"Without a verdict: {_counts(unjudged, *UNJUDGED)}.",
        f"ONNX Runtime, asked about {len(onnx)} of them: {_counts(onnx, 'WRONG')}.",
        f"torch-pruning, given {len(peer)} of them: {_counts(peer)}.",
        "",
        f"Versions: {versions}. {_asked([*cut, *onnx, *peer])}",
    ]


def _asked(outcomes: Collection[Outcome]) -> str:
    """When the networks were asked, and at which revision of this repository."""
    dates = sorted({outcome.date for outcome in outcomes if outcome.date})
    revisions = sorted({outcome.revision for outcome in outcomes if outcome.revision})
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "at a date that was not noted"
    return f"Asked {when}, at revision {', '.join(revisions) or 'unknown'}."


def _counts(outcomes: Collection[Outcome], *named: str) -> str:
    """Verdicts with how often they occur; those ``named`` also where they never do."""
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    verdicts.update(dict.fromkeys(named, 0))
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())


def _row(cut: Outcome, onnx: Outcome | None, peer: Outcome | None) -> str:
    """One network."""
    reasons = "; ".join(
        f"{reason} ({count})"
        for reason, count in Counter(cut.reasons).most_common()
        if reason != "network output"
    )
    cells = [
        f"{cut.family}/{cut.name}",
        cut.verdict,
        f"{cut.gone:.0%}",
        f"{cut.cut}/{cut.axes}",
        reasons.replace("|", "/"),
        onnx.verdict if onnx else "",
        peer.verdict if peer else "",
        f"{peer.gone:.0%}" if peer and peer.gone else "",
    ]
    return f"| {' | '.join(cells)} |"
