"""Which convolutions become smaller layers: those that the device runs faster so, and no other.

A smaller form multiplies less and moves more. Whether that pays depends on the layer, on the runtime and on
how many positions live, so every form is timed before it is taken: layer by layer first, then in the whole
network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.device.profile import DeviceProfile
from hwprune.graph.record import ExampleInputs, call_observed, evaluation_mode
from hwprune.graph.twin import copy_of
from hwprune.runtime.bench import THIS_MACHINE, Bench, Exports
from hwprune.surgery.forms import Form, possible_forms, reshape, why_as_it_is
from hwprune.surgery.outputs import UNDECIDED, compare, outputs_of

#: What a form must be faster by, as a fraction, to be taken: less is within the noise of two runs.
SMALLEST_GAIN = 0.03
#: Above this share of living positions a layer is not lowered: it gathers as much as it saves.
MOST_LIVING = 0.75
#: Timed runs of every form of a layer.
RUNS = 200
#: What the convolution as it was is called beside its forms.
DENSE = "dense"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was found for one convolution.

    Attributes:
        form: What it becomes; ``None`` where it stays as it is.
        reason: Why.
        medians_us: Latency as it was (``dense``) and in every form tried; empty where none was timed.
    """

    form: Form | None
    reason: str
    medians_us: Mapping[str, float]

    @property
    def saved_us(self) -> float:
        """By how much the layer became faster, measured on its own; 0 where it stays as it is."""
        if self.form is None or not self.medians_us:
            return 0.0
        return self.medians_us[DENSE] - self.medians_us[self.form.kind]

    def __str__(self) -> str:
        """One line for the report."""
        return f"{self.form.kind if self.form else DENSE}: {self.reason}"


def choose_forms(
    model: nn.Module,
    layers: Sequence[str],
    example_inputs: ExampleInputs,
    profile: DeviceProfile,
    bench: Bench | None = THIS_MACHINE,
) -> dict[str, Choice]:
    """Chooses a form for every convolution.

    Args:
        model: The network, its dead positions at zero; not touched.
        layers: Dotted names of the convolutions.
        example_inputs: What the network is called with.
        profile: Names the runtime.
        bench: What is measured on. ``None``: nothing is measured; a convolution is then cropped where this
            adds no operator, because less of the same work is not slower, and none is lowered.

    Returns:
        Layer to what was found.
    """
    shapes = _input_shapes(model, layers, example_inputs)
    choices = {}
    for name in layers:
        reason = why_as_it_is(model, name) or (None if name in shapes else "the network does not run it")
        choices[name] = (
            Choice(None, reason, {}) if reason else _choose(model, name, shapes[name], profile, bench)
        )
    choices = _fitting(model, choices, example_inputs)
    if bench is None:
        return choices
    return _confirmed(model, choices, example_inputs, profile, bench)


def _choose(
    model: nn.Module, name: str, shape: tuple[int, ...], profile: DeviceProfile, bench: Bench | None
) -> Choice:
    """The form of one convolution, by itself."""
    convolution = model.get_submodule(name)
    assert isinstance(convolution, nn.Conv2d)  # as why_as_it_is has checked
    forms = possible_forms(name, convolution)
    if not forms:
        return Choice(None, "every position lives", {})
    if bench is None:
        plain = [form for form in forms if form.kind == "cropped" and _adds_no_operator(convolution, form)]
        return (
            Choice(plain[0], "fewer products, not measured", {})
            if plain
            else Choice(None, "nothing was measured", {})
        )
    living = len(forms[0].positions) / convolution.weight[0].numel()
    forms = tuple(form for form in forms if form.kind != "lowered" or living <= MOST_LIVING)
    if not forms:
        return Choice(None, f"{living:.0%} of the positions live, too many to lower it", {})
    medians = time_forms(convolution, forms, shape[1:], profile, bench)
    kind = fastest(medians)
    return Choice(next((form for form in forms if form.kind == kind), None), told(medians), medians)


def time_forms(
    convolution: nn.Conv2d,
    forms: Sequence[Form],
    image_shape: Sequence[int],
    profile: DeviceProfile,
    bench: Bench = THIS_MACHINE,
) -> dict[str, float]:
    """Times a convolution as it is and in other forms, alternately.

    Args:
        convolution: Not touched.
        forms: At most one of each kind.
        image_shape: Channels, rows and columns of what it reads.
        profile: Names the runtime.
        bench: What is measured on.

    Returns:
        ``dense`` and the kinds to median latency in microseconds.
    """
    networks: dict[str, nn.Module] = {DENSE: _Between(convolution)}
    networks |= {form.kind: _Between(in_form(convolution, form)) for form in forms}
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(profile.runtime.batch, *image_shape, generator=generator)
    return time_networks(networks, images, profile, bench, RUNS)


def told(medians: Mapping[str, float]) -> str:
    """Latencies on one line.

    >>> told({"dense": 21.04, "lowered": 9.0})
    'dense 21.0 us, lowered 9.0 us'
    """
    return ", ".join(f"{name} {median:.1f} us" for name, median in medians.items())


def in_form(convolution: nn.Conv2d, form: Form) -> nn.Module:
    """One convolution in another form, with weights of its own; the convolution is not touched."""
    holder = nn.Sequential(copy.deepcopy(convolution))
    reshape(holder, [Form("0", form.kind, form.positions)])
    return holder[0]


def _adds_no_operator(convolution: nn.Conv2d, form: Form) -> bool:
    layer = in_form(convolution, form)
    return getattr(layer, "channels", None) is None and getattr(layer, "pads", None) is None


def _fitting(
    model: nn.Module, choices: Mapping[str, Choice], example_inputs: ExampleInputs
) -> dict[str, Choice]:
    """The choices, without those that the user's own code, which may read attributes, cannot do with."""
    trial = copy_of(model)
    fitting = {}
    with evaluation_mode(trial):
        expected = outputs_of(trial, example_inputs)
        for name, choice in choices.items():
            failure = _failure(trial, choice.form, expected, example_inputs) if choice.form else None
            reason = f"the network reads more of it than its output: {failure}"
            fitting[name] = choice if failure is None else Choice(None, reason, choice.medians_us)
    return fitting


def _failure(
    trial: nn.Module, form: Form, expected: Sequence[Tensor], example_inputs: ExampleInputs
) -> str | None:
    """Why one form alone does not fit into the network; ``None`` where it does."""
    layer = trial.get_submodule(form.module)
    reshape(trial, [form])
    try:
        actual = outputs_of(trial, example_inputs)
    except Exception as error:  # the user's own code, which may raise anything
        return f"{type(error).__name__}: {error}"
    finally:
        trial.set_submodule(form.module, layer)
    difference = compare(expected, actual)
    if difference.relative > UNDECIDED:
        return f"outputs differ by {difference.absolute:.2g}"
    return None


def _confirmed(
    model: nn.Module,
    choices: dict[str, Choice],
    example_inputs: ExampleInputs,
    profile: DeviceProfile,
    bench: Bench,
) -> dict[str, Choice]:
    """The choices, without those that do not make the whole network faster."""
    networks = {DENSE: model}
    forms: dict[str, list[Form]] = {DENSE: []}
    everything = [choice.form for choice in choices.values() if choice.form is not None]
    cropped = [form for form in everything if form.kind == "cropped"]
    for name, some in (("cropped", cropped), ("every form", everything)):
        if some and some not in forms.values():
            networks[name], forms[name] = copy_of(model), some
            reshape(networks[name], some)
    if len(networks) == 1:
        return choices
    medians = time_networks(networks, example_inputs, profile, bench)
    taken = forms[fastest(medians)]
    return {
        name: choice
        if choice.form is None or choice.form in taken
        else Choice(None, f"{choice.reason}; the whole network: {told(medians)}", choice.medians_us)
        for name, choice in choices.items()
    }


def fastest(medians: Mapping[str, float]) -> str:
    """The first network, unless a later one is faster by :data:`SMALLEST_GAIN`.

    >>> fastest({"dense": 10.0, "cropped": 9.9, "lowered": 5.0}), fastest({"dense": 10.0, "cropped": 9.9})
    ('lowered', 'dense')
    """
    best, *others = medians
    for name in others:
        if medians[name] < (1 - SMALLEST_GAIN) * medians[best]:
            best = name
    return best


def time_networks(
    networks: Mapping[str, nn.Module],
    example_inputs: ExampleInputs,
    profile: DeviceProfile,
    bench: Bench = THIS_MACHINE,
    runs: int | None = None,
) -> dict[str, float]:
    """Times networks alternately.

    Args:
        networks: Name to network, each with the same inputs.
        example_inputs: What they are exported with.
        profile: Names the runtime.
        bench: What is measured on.
        runs: Timed runs of each; by default as many as the medians need to be certain.

    Returns:
        Name to median latency in microseconds.
    """
    with Exports().files(networks, example_inputs, profile) as paths:
        timings = bench.time(paths, profile, runs)
    return {name: timing.median_us for name, timing in timings.items()}


class _Between(nn.Module):
    """A layer between others: what a runtime keeps in a layout of its own is in that layout around it.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.around = nn.MaxPool2d(1, 1)

    def forward(self, data: Tensor) -> Tensor:
        activated: Tensor = self.around(torch.relu(self.layer(self.around(data))))
        return activated


def _input_shapes(
    model: nn.Module, layers: Sequence[str], example_inputs: ExampleInputs
) -> dict[str, tuple[int, ...]]:
    """The shape of what every layer reads first; none where it is not run."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name in layers:

        def note(_module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            shapes.setdefault(name, tuple((args[0] if args else kwargs["input"]).shape))

        handles.append(model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True))
    call_observed(model, example_inputs, handles)
    return shapes
