"""Fits what survives of a trained network to what the whole one computes, layer by layer.

When channels leave, the layers behind them get other inputs than they were trained on. For each layer in turn
the survivors are chosen anew: the weights with which the inputs that are left come closest, in least squares,
to what the layer computed before (He et al., Channel pruning for accelerating very deep neural networks,
arXiv 1707.06168). Each layer sees the inputs that the layers before it, fitted already, give it. That takes
two forward passes, one before and one after, and no labels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hwprune.errors import GraphError
from hwprune.graph.record import ExampleInputs, call_observed
from hwprune.processes import agree_
from hwprune.train.patches import (
    arriving,
    by_position,
    drawn_positions,
    is_batched,
    is_solvable,
    only_input,
    patches,
    rows_of,
)

#: How firmly weights are held where they are, as fractions of the mean square of what each is multiplied by.
RIDGES = (1e-3, 1e-2, 1e-1)
#: The part of the inputs on which one of :data:`RIDGES` is chosen: a fit that only repeats its samples loses.
HELD_OUT = 1 / 8
#: Bytes that the outputs of one layer may fill; of large maps fewer inputs are looked at.
MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class _Targets:
    """What a layer computed in the whole network.

    Attributes:
        positions: Positions of the output that are looked at, of every input alike.
        outputs: Shape ``(inputs * positions, outputs)``.
    """

    positions: Tensor
    outputs: Tensor

    def on(self, device: torch.device) -> _Targets:
        """The same ones where the network is now."""
        return _Targets(self.positions.to(device), self.outputs.to(device))


class Reconstruction:
    """What the layers of a network compute now, to fit them to later.

    Convolutions in one and two dimensions without groups and linear layers are fitted, those that run once.
    All others, subclasses of these, layers that are frozen or whose weights are shared, computed or spread
    over processes, and weights of zero are left as they are.

    Args:
        model: The trained network, whole.
        inputs: What it is called with, the first dimension of every tensor: some hundreds.

    Raises:
        GraphError: If the forward pass fails.
    """

    def __init__(self, model: nn.Module, inputs: ExampleInputs) -> None:
        try:
            self._inputs = _first(inputs, _affordable(model, inputs))
            self._targets = _observed(model, self._inputs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise GraphError(
                "the forward pass fails on the inputs that survivors are to be fitted on",
                where=type(model).__name__,
                expected="inputs as the network is called with them in training",
                got=str(error).strip().splitlines()[0],
            ) from error

    @property
    def inputs(self) -> ExampleInputs:
        """What the network is called with: as many as fit in memory."""
        return self._inputs

    def fit(self, model: nn.Module) -> dict[str, float]:
        """Fits the survivors of a network to what it computed before.

        Args:
            model: The network, some of whose weights are zero now; changed in place, its zeros and its mode
                are not.

        Returns:
            Name of every layer that was fitted to the part of the energy of its outputs that it does not
            reproduce on inputs that the fit has not seen.
        """
        errors: dict[str, float] = {}

        def fit(name: str, layer: nn.Module, inputs: Tensor) -> None:
            with torch.autocast(inputs.device.type, enabled=False):
                error = _fit_layer(layer, inputs, self._targets[name].on(inputs.device))
            if error is not None:
                errors[name] = error

        layers = {name: layer for name, layer in _fittable(model).items() if name in self._targets}
        handles = [
            layer.register_forward_pre_hook(
                lambda layer, arguments, named, name=name: fit(name, layer, only_input(arguments, named)),
                with_kwargs=True,
            )
            for name, layer in layers.items()
        ]
        call_observed(model, self._inputs, handles)
        for layer in layers.values():  # in every process, whatever it found
            for parameter in layer.parameters():
                agree_(parameter.detach())
        return errors


def _affordable(model: nn.Module, inputs: ExampleInputs) -> int:
    """How many inputs fit in memory with what the layers make of them."""
    largest = [1]

    def observe(_layer: nn.Module, _arguments: Any, output: Tensor) -> None:
        largest.append(output.numel() * output.element_size())

    handles = [layer.register_forward_hook(observe) for layer in _fittable(model).values()]
    call_observed(model, _first(inputs, 2), handles)
    return max(2, MOST_BYTES // (max(largest) // 2 + 1))


def _first(inputs: ExampleInputs, count: int) -> ExampleInputs:
    """The first so many of the inputs."""

    def first(leaf: Any) -> Any:
        return leaf[:count] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    found: ExampleInputs = tree_map(first, inputs)
    return found


def _observed(model: nn.Module, inputs: ExampleInputs) -> dict[str, _Targets]:
    """What every layer that runs once computes in the whole network."""
    runs: Counter[str] = Counter()
    found: dict[str, _Targets] = {}

    def observe(name: str, layer: nn.Module, output: Tensor) -> None:
        runs[name] += 1
        if output.numel() and is_batched(layer, output):
            found[name] = _sampled(layer, output)

    handles = [
        layer.register_forward_hook(lambda layer, _arguments, output, name=name: observe(name, layer, output))
        for name, layer in _fittable(model).items()
    ]
    call_observed(model, inputs, handles)
    return {name: targets for name, targets in found.items() if runs[name] == 1}


def _fittable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that can be fitted, by name."""
    weights = Counter(id(module._parameters.get("weight")) for module in model.modules())
    return {
        name: module
        for name, module in model.named_modules()
        if is_solvable(module)
        and (weight := module.get_parameter("weight")).requires_grad
        and weights[id(weight)] == 1
    }


def _sampled(layer: nn.Module, output: Tensor) -> _Targets:
    """A layer's output at some positions."""
    drawn = drawn_positions(layer, output)
    return _Targets(drawn, by_position(layer, output)[:, :, drawn].transpose(1, 2).flatten(0, 1).float())


class _Equations:
    """The normal equations of a least-squares fit, summed up part by part.

    Args:
        start: The weights now, shape ``(weights, outputs)``, float64.
    """

    def __init__(self, start: Tensor) -> None:
        count = len(start)
        self.square = torch.zeros(count, count, dtype=torch.float64, device=start.device)
        self.product = torch.zeros_like(start)
        self.energy = torch.zeros((), dtype=torch.float64, device=start.device)

    def add(self, known: Tensor, wanted: Tensor) -> None:
        """Adds samples: shapes ``(samples, weights)`` and ``(samples, outputs)``, float32."""
        self.square += known.T @ known
        self.product += known.T @ wanted
        self.energy += wanted.double().square().sum()

    def left(self, weights: Tensor) -> float:
        """The part of the energy of the outputs that some weights do not reproduce; 0 where there is none."""
        missing = self.energy - 2 * (weights * self.product).sum() + (weights * (self.square @ weights)).sum()
        return float((missing / self.energy).clamp_min(0)) if self.energy > 0 else 0.0

    def solved(self, start: Tensor, ridge: float) -> Tensor | None:
        """The best weights that are held near ``start``; ``None`` where rounding leaves none."""
        held = self.square.clone()
        # In proportion to what a weight is multiplied by, so that the scale of an input changes nothing.
        diagonal = self.square.diagonal()
        held.diagonal().add_(ridge * (diagonal + 1e-6 * diagonal.mean()))
        factor, failed = torch.linalg.cholesky_ex(held)
        if bool(failed):
            return None
        fitted = start + torch.cholesky_solve(self.product - self.square @ start, factor)
        return fitted if bool(torch.isfinite(fitted).all()) else None


def _fit_layer(layer: nn.Module, inputs: Tensor, targets: _Targets) -> float | None:
    """Fits one layer in place; the error on what was held out, ``None`` where there is nothing to fit."""
    rows = rows_of(layer).float()
    outputs = rows.any(1)
    columns = rows.any(0) & arriving(layer, inputs)
    living = rows[outputs][:, columns]
    if not living.numel() or not bool(living.all()):  # single weights among them are zero, and shall stay so
        return None
    bias = layer.bias
    assert bias is None or isinstance(bias, Tensor)  # a plain layer's
    parts = [living.T] if bias is None else [living.T, bias.detach()[outputs].float()[None]]
    start = torch.cat(parts).double()
    seen, unseen = _Equations(start), _Equations(start)
    wanted, done = targets.outputs[:, outputs], 0
    last = round((1 - HELD_OUT) * len(wanted))
    for part in patches(layer, inputs, targets.positions):
        known = part[:, columns]
        known = known if bias is None else torch.cat([known, known.new_ones(len(known), 1)], dim=1)
        cut = min(max(last - done, 0), len(known))
        goal = wanted[done : done + len(known)]
        seen.add(known[:cut], goal[:cut])
        unseen.add(known[cut:], goal[cut:])
        done += len(known)
    fits = [fit for ridge in RIDGES if (fit := seen.solved(start, ridge)) is not None]
    best = min([start, *fits], key=unseen.left)
    if best is not start:
        _write(layer, outputs, columns, best.float())
    return unseen.left(best)


def _write(layer: nn.Module, outputs: Tensor, columns: Tensor, fitted: Tensor) -> None:
    """Puts fitted weights, and after them the bias, in the place of those of the living outputs."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)  # of a plain layer
    rows = rows_of(layer).clone()
    living = rows[outputs]
    living[:, columns] = fitted[: int(columns.sum())].T.to(rows.dtype)
    rows[outputs] = living
    weight.detach().copy_(rows.view_as(weight))
    if isinstance(bias, Tensor):
        bias.detach()[outputs] = fitted[-1].to(bias.dtype)
