"""Fits what survives of a trained network to what the whole one computes, layer by layer.

When channels leave, the layers behind them get other inputs than they were trained on. For each layer in turn
the survivors are chosen anew: the weights with which the inputs that are left come closest, in least squares,
to what the layer computed before (He et al., Channel pruning for accelerating very deep neural networks,
arXiv 1707.06168). Each layer sees the inputs that the layers before it, fitted already, give it. That takes
one forward pass and no labels.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.graph.record import ExampleInputs, call_observed
from hwprune.groups.shards import is_sharded
from hwprune.processes import agree_

#: Samples of its output that a layer is fitted to: this many times as many as it has weights per output,
#: within these bounds.
SAMPLES_PER_WEIGHT, LEAST_SAMPLES, MOST_SAMPLES = 4, 8192, 16384
#: How much weights are held where they are, as a fraction of the mean square of what they are multiplied by.
RIDGE = 1e-3
#: Numbers that are unfolded at a time.
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class _Targets:
    """What a layer computed in the whole network.

    Attributes:
        positions: Positions of the output that are looked at, of every input alike.
        outputs: Shape ``(inputs * positions, outputs)``.
    """

    positions: Tensor
    outputs: Tensor


class Reconstruction:
    """The network as it is now, and inputs to compare it on later.

    Convolutions in one and two dimensions without groups and linear layers are fitted, those that run once.
    All others, layers whose weights are shared, computed or spread over processes, and rows and columns that
    are zero are left as they are.

    Args:
        model: The trained network; copied.
        inputs: What it is called with: some hundreds, the first dimension of every tensor.
    """

    def __init__(self, model: nn.Module, inputs: ExampleInputs) -> None:
        self._whole = copy.deepcopy(model).requires_grad_(False)
        self._inputs = inputs

    def fit(self, model: nn.Module) -> dict[str, float]:
        """Fits the survivors of a network to what it computed before.

        Args:
            model: The network, some of whose weights are zero now; changed in place, its zeros and its mode
                are not.

        Returns:
            Name of every layer that was fitted to the part of the energy of its outputs, in [0, 1], that it
            still does not reproduce.

        Raises:
            GraphError: If the forward pass fails.
        """
        targets = self._observed()
        errors: dict[str, float] = {}

        def fit(name: str, layer: nn.Module, inputs: Tensor) -> None:
            errors[name] = _fit_layer(layer, inputs, targets[name])

        handles = [
            layer.register_forward_pre_hook(
                lambda layer, arguments, named, name=name: fit(name, layer, _only_input(arguments, named)),
                with_kwargs=True,
            )
            for name, layer in _fittable(model).items()
            if name in targets
        ]
        call_observed(model, self._inputs, handles)
        return errors

    def _observed(self) -> dict[str, _Targets]:
        """What every layer that runs once computes in the whole network."""
        runs: Counter[str] = Counter()
        found: dict[str, _Targets] = {}

        def observe(name: str, layer: nn.Module, output: Tensor) -> None:
            runs[name] += 1
            if output.dim() >= len(layer.state_dict()["weight"].shape):  # else the inputs are not in a batch
                found[name] = _sampled(layer, output)

        handles = [
            layer.register_forward_hook(
                lambda layer, _arguments, output, name=name: observe(name, layer, output)
            )
            for name, layer in _fittable(self._whole).items()
        ]
        call_observed(self._whole, self._inputs, handles)
        return {name: targets for name, targets in found.items() if runs[name] == 1}


def _fittable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that can be fitted, by name."""
    weights = Counter(id(module._parameters.get("weight")) for module in model.modules())
    return {
        name: module
        for name, module in model.named_modules()
        if _is_plain(module)
        and isinstance(weight := module._parameters.get("weight"), nn.Parameter)
        and weights[id(weight)] == 1
        and not is_sharded(weight)
    }


def _is_plain(module: nn.Module) -> bool:
    """Whether a module multiplies its input by its weights and does nothing else that matters here."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.groups == 1
    return isinstance(module, nn.Linear)


def _sampled(layer: nn.Module, output: Tensor) -> _Targets:
    """A layer's output at positions drawn at random, the same ones for equal shapes."""
    outputs = _by_position(layer, output)
    inputs, _, positions = outputs.shape
    weights = _rows(layer).shape[1]
    samples = min(max(SAMPLES_PER_WEIGHT * weights, LEAST_SAMPLES), MOST_SAMPLES)
    generator = torch.Generator().manual_seed(positions)
    drawn = torch.randperm(positions, generator=generator)[: math.ceil(samples / inputs)].sort().values
    drawn = drawn.to(output.device)
    return _Targets(drawn, outputs[:, :, drawn].transpose(1, 2).flatten(0, 1).float())


def _by_position(layer: nn.Module, output: Tensor) -> Tensor:
    """A layer's output in the shape ``(inputs, outputs, positions)``."""
    if isinstance(layer, nn.Linear):
        return output.reshape(output.shape[0], -1, output.shape[-1]).transpose(1, 2)
    return output.flatten(2)


def _rows(layer: nn.Module) -> Tensor:
    """A layer's weights, one row per output."""
    weight = layer.weight
    assert isinstance(weight, Tensor)  # of a layer that can be fitted
    return weight.detach().flatten(1)


def _fit_layer(layer: nn.Module, inputs: Tensor, targets: _Targets) -> float:
    """Fits one layer in place; see :meth:`Reconstruction.fit` for what it returns."""
    rows = _rows(layer).float()
    outputs = rows.any(1)
    columns = rows.any(0) & _arriving(layer, inputs)
    wanted = targets.outputs[:, outputs]
    bias = layer.bias
    assert bias is None or isinstance(bias, Tensor)  # a layer's, too
    weights = rows[outputs][:, columns].T
    if bias is not None:
        weights = torch.cat([weights, bias.detach()[outputs].float()[None]])
    square = torch.zeros(len(weights), len(weights), dtype=torch.float64, device=rows.device)
    product = torch.zeros(weights.shape, dtype=torch.float64, device=rows.device)
    done = 0
    for patches in _patches(layer, inputs, targets.positions):
        known = patches[:, columns]
        if bias is not None:
            known = torch.cat([known, known.new_ones(len(known), 1)], dim=1)
        square += known.T @ known
        product += known.T @ wanted[done : done + len(known)]
        done += len(known)
    if not weights.numel() or not bool(square.diagonal().any()):
        return 0.0
    start = weights.double()
    held = RIDGE * square.diagonal().mean() * torch.eye(len(start), dtype=torch.float64, device=rows.device)
    factor = torch.linalg.cholesky(square + held)
    fitted = start + torch.cholesky_solve(product - square @ start, factor)
    _write(layer, outputs, columns, fitted.float())
    energy = wanted.double().square().sum()
    left = energy - 2 * (fitted * product).sum() + (fitted * (square @ fitted)).sum()
    return float((left / energy).clamp(0, 1)) if energy > 0 else 0.0


def _arriving(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Which columns of a layer's weights are multiplied by anything but zero."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2).any(0)
    channels = inputs.flatten(2).any(2).any(0)
    return channels.repeat_interleave(_rows(layer).shape[1] // len(channels))


def _patches(layer: nn.Module, inputs: Tensor, positions: Tensor) -> Iterator[Tensor]:
    """What the weights of an output are multiplied by at some positions, shape ``(samples, weights)``."""
    if isinstance(layer, nn.Linear):
        flat = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
        yield flat[:, positions].flatten(0, 1).float()
        return
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)  # what else can be fitted
    kernel, stride, dilation = (_pair(value) for value in (layer.kernel_size, layer.stride, layer.dilation))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = nn.functional.pad(inputs, _padding(layer), mode)
    padded = padded.unsqueeze(2) if padded.dim() == 3 else padded
    part = max(1, _CHUNK // (kernel[0] * kernel[1] * padded[0].numel()))
    for some in torch.split(padded, part):
        columns = nn.functional.unfold(some, kernel, dilation, 0, stride)
        yield columns[:, :, positions].transpose(1, 2).flatten(0, 1).float()


def _only_input(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The input of a layer that was called with it by place or by name."""
    (found,) = (*arguments, *named.values())
    assert isinstance(found, Tensor)  # convolutions and linear layers take nothing else
    return found


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return (1, value[0]) if len(value) == 1 else (value[0], value[1])


def _padding(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Padding of every side as :func:`torch.nn.functional.pad` takes it, the last dimension first."""
    sides: list[int] = []
    for at in reversed(range(len(layer.kernel_size))):
        if layer.padding == "valid":
            sides += [0, 0]
        elif layer.padding == "same":
            both = layer.dilation[at] * (layer.kernel_size[at] - 1)
            sides += [both // 2, both - both // 2]
        else:
            sides += [int(layer.padding[at])] * 2
    return sides


def _write(layer: nn.Module, outputs: Tensor, columns: Tensor, fitted: Tensor) -> None:
    """Puts fitted weights, and after them the bias, in the place of those of the living outputs."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)  # of a layer that can be fitted
    rows = _rows(layer).clone()
    living = rows[outputs]
    living[:, columns] = fitted[: int(columns.sum())].T.to(rows.dtype)
    rows[outputs] = living
    weight.detach().copy_(rows.view_as(weight))
    agree_(weight.detach())
    if isinstance(bias, Tensor):
        bias.detach()[outputs] = fitted[-1].to(bias.dtype)
        agree_(bias.detach())
