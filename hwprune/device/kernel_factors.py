"""What kernels of some kinds take in a network, per microsecond that they take by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from hwprune.operators import Operator

_Factor = Annotated[float, Field(gt=0)]


class KernelFactors(BaseModel):
    """Factors of rows, beside the one of all rows: caches and threads serve some kernels worse than others.

    Attributes:
        pointwise: Of convolutions with one weight for each pair of channels.
        depthwise: Of convolutions with one input channel for each output channel.
        linear: Of products with a weight matrix.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    pointwise: _Factor = 1.0
    depthwise: _Factor = 1.0
    linear: _Factor = 1.0

    def of(self, operator: Operator) -> float:
        """The factor of an operator's rows; 1 for all other kinds.

        >>> factors = KernelFactors(pointwise=1.25)
        >>> factors.of(Operator("conv", 8, 16, 4, 4)), factors.of(Operator("conv", 8, 16, 4, 4, 3, 3))
        (1.25, 1.0)
        """
        name = kernel_of(operator)
        factor: float = getattr(self, name) if name else 1.0
        return factor


#: Prices are the rows then.
NO_FACTORS = KernelFactors()
#: Name of a factor to what it is a factor of; the first that is true decides.
_KERNELS: Mapping[str, Callable[[Operator], bool]] = {
    "depthwise": lambda operator: operator.kind == "conv" and operator.depthwise,
    "pointwise": lambda operator: (
        operator.kind == "conv" and operator.groups == operator.kernel_h == operator.kernel_w == 1
    ),
    "linear": lambda operator: operator.kind == "linear",
}


def kernel_of(operator: Operator) -> str:
    """Which of :class:`KernelFactors` an operator's rows have; empty for none.

    >>> kernel_of(Operator("conv", 8, 8, 4, 4, 3, 3, groups=8))
    'depthwise'
    """
    return next((name for name, holds in _KERNELS.items() if holds(operator)), "")
