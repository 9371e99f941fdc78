"""The functions of the Python interface that put several parts together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from hwprune.compressor import Result
from hwprune.device.predict import Prediction, predict_operators
from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError
from hwprune.graph.record import ExampleInputs
from hwprune.graph.trace import trace_operators, with_densities
from hwprune.notes import log_note
from hwprune.operators import Operator
from hwprune.runtime.base import is_here
from hwprune.runtime.environment import versions
from hwprune.runtime.local import localize
from hwprune.runtime.onnx_graph import read_operators
from hwprune.runtime.rows import with_zeros
from hwprune.surgery.artifact import load_slim


def predict(
    model: nn.Module | str | Path, profile: DeviceProfile, example_inputs: ExampleInputs | None = None
) -> Prediction:
    """Predicts the latency of a network from the rows of a profile: an estimate.

    Weights of zero of a PyTorch network count where the profile says that its runtime skips them.

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
        InputError: If a PyTorch network comes without example inputs.
        MissingRowError: If the table lacks an operator, or an operator cannot be measured.
        ProfileError: If the profile is a template and its runtime is not on this machine.
    """
    operators = _operators_of(model, profile, example_inputs)
    if profile.table is None and is_here(profile.runtime):
        dense = tuple(replace(operator, density=1.0) for operator in operators)
        needed = [*dense, *with_zeros(dense)] if profile.prices_zeros else dense
        profile = localize(profile, needed, notify=log_note)
    return predict_operators(operators, profile)


def _operators_of(
    model: nn.Module | str | Path, profile: DeviceProfile, example_inputs: ExampleInputs | None
) -> tuple[Operator, ...]:
    """The fused operators of a network or a file, with their zeros where those have a price."""
    if not isinstance(model, nn.Module):
        return read_operators(Path(model))
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
