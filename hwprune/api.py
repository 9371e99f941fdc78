"""The functions of the Python interface that put several parts together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from hwprune.branch_scope import BranchScope
from hwprune.channel_scope import ChannelScope
from hwprune.channel_widths import ChannelWidths, channel_widths
from hwprune.depth_scope import DepthScope
from hwprune.device.commands import NAMELESS
from hwprune.device.predict import Prediction, predict_operators, table_of
from hwprune.device.profile import DeviceProfile, check_profile
from hwprune.errors import InputError
from hwprune.granularities import CHANNEL
from hwprune.graph.record import ExampleInputs
from hwprune.graph.trace import trace_operators, with_densities
from hwprune.notes import log_note
from hwprune.operators import Operator
from hwprune.plan import Plan
from hwprune.result import Result
from hwprune.runtime.base import is_here
from hwprune.runtime.environment import versions
from hwprune.runtime.local import localize
from hwprune.runtime.onnx_graph import read_operators
from hwprune.runtime.patience import Patience
from hwprune.runtime.rows import with_zeros
from hwprune.scope import Request
from hwprune.surgery.artifact import load_slim
from hwprune.targets import Keep

#: Granularities whose groups have a latency of their own before anything is trained.
PREVIEWED: dict[str, type[ChannelScope | BranchScope]] = {
    CHANNEL: ChannelScope,
    "channel+branch": DepthScope,
    "branch": BranchScope,
}


def predict(
    model: nn.Module | str | Path, profile: DeviceProfile, example_inputs: ExampleInputs | None = None
) -> Prediction:
    """Predicts the latency of a network from the rows of a profile: an estimate.

    Weights of zero count where the profile says that its runtime skips them.

    A template has no rows: where its runtime is on this machine, those that the network needs are measured
    here, as :class:`hwprune.Compressor` does, kept for next time, and a warning is logged. Their sum is not
    calibrated. A profile with a table predicts the device that it was measured on, wherever that is.

    Args:
        model: A PyTorch network, or the path of an ONNX file.
        profile: The device.
        example_inputs: What a PyTorch network is called with.

    Returns:
        The whole and every layer, in microseconds.

    Raises:
        InputError: If a PyTorch network comes without example inputs, an ONNX file fixes another batch
            size than the profile's, or an argument is something else.
        MissingRowError: If the table lacks an operator, or an operator cannot be measured.
        ProfileError: If the profile is a template and its runtime is not on this machine.
    """
    check_profile(profile, "predict")
    if not isinstance(model, (nn.Module, str, Path)):
        raise InputError(
            "this is no network",
            where="predict, model",
            expected="a torch.nn.Module or the path of an ONNX file",
            got=type(model).__name__,
        )
    operators = _operators_of(model, profile, example_inputs)
    return predict_operators(operators, _with_rows(profile, operators, example_inputs))


def width_predictor(model: nn.Module, profile: DeviceProfile, example_inputs: ExampleInputs) -> ChannelWidths:
    """Predicts the latency of a network at any widths of its channels, without building it: an estimate.

    What a template lacks is measured here, as :func:`predict` does. Making the predictor takes a few forward
    passes for every axis; what it prices then are tens of thousands of networks a second.

    Args:
        model: A PyTorch network; not touched.
        profile: The device.
        example_inputs: What it is called with.

    Returns:
        The names of its axes, their dense widths and steps, and ``latency_us``: from widths of shape
        ``(networks, axes)`` to microseconds of shape ``(networks,)``.

    Raises:
        GraphError: If the forward pass fails or nothing can be pruned.
        InputError: If an argument is something else.
        MissingRowError: If an operator cannot be measured.
        ProfileError: If the profile is a template and its runtime is not on this machine.
    """
    check_profile(profile, "width_predictor")
    if not isinstance(model, nn.Module):
        raise InputError(
            "widths are those of a PyTorch network",
            where="width_predictor, model",
            expected="a torch.nn.Module",
            got=type(model).__name__,
        )
    operators = trace_operators(model, example_inputs)
    profile = _with_rows(profile, operators, example_inputs)
    table_of(profile)
    return channel_widths(model, operators, profile, example_inputs)


def _with_rows(
    profile: DeviceProfile, operators: Sequence[Operator], example_inputs: ExampleInputs | None
) -> DeviceProfile:
    """The profile itself where it has a table or its runtime is elsewhere, else with rows measured here."""
    if profile.network is None and isinstance(example_inputs, Tensor) and example_inputs.ndim == 4:
        profile = profile.wanted_for(f"{NAMELESS}:{'x'.join(map(str, example_inputs.shape[1:]))}")
    if profile.table is not None or not is_here(profile.runtime):
        return profile
    dense = tuple(replace(operator, density=1.0) for operator in operators)
    needed = [*dense, *with_zeros(dense)] if profile.prices_zeros else dense
    return localize(profile, needed, notify=log_note)


def preview(
    model: nn.Module,
    example_inputs: ExampleInputs,
    profile: DeviceProfile,
    *,
    granularity: str = CHANNEL,
    keep: Sequence[str] = (),
    measure: bool = True,
    notify: Callable[[str], None] = log_note,
) -> Plan:
    """What could be pruned, before anything is trained: what leaves together, what stays and why.

    Args:
        model: Any network; not touched.
        example_inputs: A tensor, a sequence of arguments or a mapping of keyword arguments.
        profile: The device.
        granularity: What leaves, a key of :data:`PREVIEWED`.
        keep: Names of modules that must stay whole.
        measure: Whether operators that nothing prices are measured on this machine.
        notify: Called with one line for everything the user should know; logged by default.

    Returns:
        Widths, and the latency that each axis could free; none where an operator has no price.

    Raises:
        GraphError: If the forward pass fails or nothing can be pruned.
        InputError: If an argument is wrong.
    """
    check_profile(profile, "preview")
    if granularity not in PREVIEWED:
        raise InputError(
            "nothing is known of such groups before they are trained",
            where="granularity",
            expected=f"one of {', '.join(PREVIEWED)}",
            got=granularity,
        )
    request = Request(
        model, model, example_inputs, profile, Keep(1.0), keep, measure, notify, Patience(notify)
    )
    scope = PREVIEWED[granularity](request)
    return replace(scope.preview(), predicted_us=scope.dense_predicted_us)


def _operators_of(
    model: nn.Module | str | Path, profile: DeviceProfile, example_inputs: ExampleInputs | None
) -> tuple[Operator, ...]:
    """The fused operators of a network or a file, with their zeros where those have a price."""
    if not isinstance(model, nn.Module):
        return read_operators(Path(model), batch=profile.runtime.batch, count_zeros=profile.prices_zeros)
    if example_inputs is None:
        raise InputError("a PyTorch network needs example_inputs to be traced", where="predict")
    operators = trace_operators(model, example_inputs)
    return with_densities(operators, model) if profile.prices_zeros else operators


def save(result: Result, folder: str | Path) -> None:
    """Writes a slim network: structure as JSON, weights as safetensors.

    Args:
        result: From :meth:`hwprune.Compressor.finish`.
        folder: Made where it is missing.
    """
    result.save(Path(folder), versions())


def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """Loads a slim network into a fresh, unpruned instance of its class.

    Args:
        folder: What :func:`save` or ``hwprune prune`` wrote (there: ``slim/``).
        model: Narrowed in place and returned, trainable; untouched where anything is wrong.

    Raises:
        ArtifactError: If the folder is not what it claims to be, or is from another network.
    """
    return load_slim(Path(folder), model)
