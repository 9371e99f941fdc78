"""What computes an ONNX operator in PyTorch, by the operator's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Translation:
    """An ONNX operator in PyTorch.

    Attributes:
        function: Gets the operator's inputs in their order, ``None`` for those that are left out, and its
            attributes by name. It is called once, with proxies (:class:`torch.fx.Proxy`) for tensors: what it
            calls becomes the network. A ``whole`` one becomes a call of the network itself. It raises
            ``TypeError`` or ``ValueError`` where PyTorch has nothing of the kind.
        static: Places of inputs that must be known before the network runs: they come as nested lists of
            numbers, in which a size that is still open stands as a proxy.
        variadic: Whether it gets all inputs as one list.
        whole: Whether it looks at tensors while it runs.
        outputs: Whether it needs to know how many outputs are asked for, as ``outputs``.
    """

    function: Function
    static: tuple[int, ...] = ()
    variadic: bool = False
    whole: bool = False
    outputs: bool = False


#: ONNX operator to what computes it; a new one is an entry.
TRANSLATIONS: dict[str, Translation] = {}


def translates(kind: str, **options: Any) -> Callable[[Function], Function]:
    """Enters the decorated function for an ONNX operator; options are those of :class:`Translation`."""

    def enter(function: Function) -> Function:
        TRANSLATIONS[kind] = Translation(function, **options)
        return function

    return enter
