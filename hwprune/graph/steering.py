"""Whether a recording is all there is: refuses networks whose control flow depends on their inputs.

A recording holds what one forward pass ran. Where the network asks for a number that its inputs decide
(``if h.mean() > 0``), other inputs may run what was not recorded, and what is cut then was never followed.
"""

from __future__ import annotations

from torch import nn

from hwprune.errors import GraphError
from hwprune.graph.record import Recording

#: ATen base names of the operators that hand a number of a tensor to Python.
ASKING = frozenset({"_local_scalar_dense", "equal"})
#: Those whose result is as large as the values say: a layer may be left out where it is empty.
SIZING = frozenset({"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"})
#: Base names of operators that read the shape of their argument, not its values.
SHAPE_ONLY = frozenset(
    {
        "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
        "new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided",
    }
)  # fmt: skip


def refuse_steered(model: nn.Module, recording: Recording) -> None:
    """Raises where other inputs may run something else than what was recorded.

    Numbers that follow from shapes, parameters and buffers alone are the same whatever comes in, and are
    allowed. So are questions about the inputs themselves (is anything padded?) and results whose size depends
    on values, as long as every parameter takes part in the recording: then they choose between no two layers.

    Args:
        model: The network.
        recording: Its forward pass.

    Raises:
        GraphError: Names the module that asks.
    """
    parameters = {name for name, _parameter in model.named_parameters()}
    from_inputs = {value.index for value in recording.inputs}
    weighted: set[int] = set()
    asked_of_inputs: str | None = None
    for call in recording.calls:
        base = call.op.split(".")[1]
        depends = base not in SHAPE_ONLY and any(value.index in from_inputs for value in call.inputs)
        learned = any(value.index in weighted or value.name in parameters for value in call.inputs)
        if depends and base in ASKING and learned:
            raise _steered(model, call.module, "a value that it computes from them")
        if depends and base in ASKING | SIZING and asked_of_inputs is None:
            asked_of_inputs = call.module
        made = {value.index for value in call.outputs}
        from_inputs |= made if depends else set()
        weighted |= made if learned else set()
    unread = parameters - {value.name for call in recording.calls for value in call.inputs}
    if asked_of_inputs is not None and unread:
        missing = f"a value of theirs, and {min(unread)} takes no part in what the example inputs run"
        raise _steered(model, asked_of_inputs, missing)


def _steered(model: nn.Module, module: str, got: str) -> GraphError:
    return GraphError(
        "what the network runs may depend on the values of its inputs",
        where=f"{type(model).__name__}.{module}".rstrip("."),
        expected="the same operators for all inputs of a shape",
        got=f"{got}, asked for as a number (item, float, bool, if)",
        hint="keep it a tensor (torch.where in place of if, a product with the tensor in place of its item), "
        "take checks out of the forward pass, or compress the parts of the network before and after it apart",
    )
