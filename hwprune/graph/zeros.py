"""Tensors of zeros in a recording: what an export folds away is no operator either.

A network that lost a residual branch adds zeros where the branch was. Exporting drops the sum
(:mod:`hwprune.runtime.fold_zeros`), so that it must not be priced.
"""

from __future__ import annotations

from dataclasses import replace

from torch.utils._pytree import tree_map

from hwprune.graph.record import Call, Recording, Value

#: ATen base names of operators that make zeros.
MAKERS = frozenset({"zeros", "zeros_like", "new_zeros"})
#: ATen base names of operators that are zero where everything they read is zero.
KEEPERS = frozenset(
    {
        "relu", "relu_", "gelu", "silu", "silu_", "hardswish", "hardswish_", "tanh", "leaky_relu",
        "leaky_relu_", "elu", "elu_", "neg", "mul", "mul_", "view", "_unsafe_view",
        "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "alias", "detach", "clone",
        "contiguous", "t", "transpose", "permute", "slice", "select", "dropout", "_to_copy", "mean", "sum",
        "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d",
    }
)  # fmt: skip
_SUMS = frozenset({"add", "add_"})
_PRODUCTS = frozenset({"mul", "mul_"})
_RECTIFIERS = frozenset({"relu", "relu_"})


def without_zeros(recording: Recording) -> Recording:
    """The recording without tensors of zeros, sums with them, and rectifiers of what is rectified already.

    Args:
        recording: One forward pass.

    Returns:
        The calls that are left, reading the values that stand for those that went.
    """
    return _Sweep().over(recording)


class _Sweep:
    """What is known of the values so far."""

    def __init__(self) -> None:
        #: Value that is zero, to the value whose memory it may share.
        self._zeros: dict[int, int] = {}
        self._stand_ins: dict[int, Value] = {}
        self._rectified: set[int] = set()

    def over(self, recording: Recording) -> Recording:
        calls = [call for each in recording.calls if (call := self._step(each)) is not None]
        return replace(
            recording, calls=tuple(calls), outputs=tuple(self._resolved(value) for value in recording.outputs)
        )

    def _resolved(self, leaf: Value) -> Value:
        return self._stand_ins.get(leaf.index, leaf)

    def _step(self, call: Call) -> Call | None:
        """The call as it is left; ``None`` where nothing is."""
        args, kwargs = tree_map(
            lambda leaf: self._resolved(leaf) if isinstance(leaf, Value) else leaf,
            (call.args, dict(call.kwargs)),
        )
        call = replace(call, args=args, kwargs=kwargs)
        base = call.op.split(".")[1]
        if base in MAKERS or self._stays_zero(call, base):
            root = self._zeros.get(call.inputs[0].index) if call.inputs and base not in MAKERS else None
            self._zeros |= {out.index: out.index if root is None else root for out in call.outputs}
            return None
        stand_in = self._stand_in(call, base)
        if call.in_place:
            self._forget(call.inputs[0])
        if stand_in is not None:
            self._stand_ins[call.outputs[0].index] = stand_in
            return None
        if base in _RECTIFIERS:
            self._rectified.add(call.outputs[0].index)
        return call

    def _stays_zero(self, call: Call, base: str) -> bool:
        zeros = [value.index in self._zeros for value in call.inputs]
        if base in _SUMS:
            return len(zeros) == 2 and all(zeros)
        return base in KEEPERS and bool(zeros) and (all(zeros) or (base in _PRODUCTS and any(zeros)))

    def _stand_in(self, call: Call, base: str) -> Value | None:
        """The value that the result equals, where it is one that was there before."""
        if base in _RECTIFIERS and call.inputs[0].index in self._rectified:
            return call.inputs[0]
        if base not in _SUMS or len(call.inputs) != 2:
            return None
        others = [value for value in call.inputs if value.index not in self._zeros]
        same_shape = len(others) == 1 and others[0].shape == call.outputs[0].shape
        # A multiple of the second operand is taken where the first one is zero.
        return others[0] if same_shape and call.kwargs.get("alpha", 1) == 1 else None

    def _forget(self, written: Value) -> None:
        """Whatever shares the memory that an operator wrote into is zero no longer."""
        root = self._zeros.get(written.index)
        if root is not None:
            self._zeros = {value: of for value, of in self._zeros.items() if of != root}
