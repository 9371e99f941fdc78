"""Attention that PyTorch computes in one call, as the operators that exports write and runtimes execute."""

from __future__ import annotations

import math

from hwprune.activations import shaped, softmax
from hwprune.graph.record import Call, Value
from hwprune.operators import Operator, TracedOperator
from hwprune.products import matrix_product

#: ATen base names of attention to the place of the argument that says whether it is causal.
CAUSAL_AT = {
    "_scaled_dot_product_flash_attention_for_cpu": 4,
    "_scaled_dot_product_flash_attention": 4,
    "_scaled_dot_product_fused_attention_overrideable": 5,
    "_scaled_dot_product_efficient_attention": 6,
    "_scaled_dot_product_cudnn_attention": 6,
}


def attention_operators(call: Call, activations: list[Value], batch: int) -> list[TracedOperator]:
    """The steps of an attention: scaled queries and keys, their products, a mask, a softmax, mixed values.

    Args:
        call: One of :data:`CAUSAL_AT`.
        activations: What it reads besides parameters and constants.
        batch: Images that the network was given.

    Returns:
        Nothing where heads share their keys: exports repeat those in many ways.
    """
    query, key, value = call.args[:3]
    *stack, queries, width = query.shape
    if tuple(key.shape[:-2]) != tuple(stack):
        return []
    keys = key.shape[-2]
    turned, scores = (*stack, width, keys), (*stack, queries, keys)
    result = f"v{call.outputs[0].index}"
    read = {each.index: f"v{each.index}" for each in activations}

    def step(operator: Operator, output: str, *inputs: str | None) -> TracedOperator:
        return TracedOperator(operator, tuple(filter(None, inputs)), output)

    parts = {name: f"{result}.{name}" for name in ("turned", "query", "key", "scores", "masked", "weights")}
    steps = [
        step(
            shaped("transpose", (math.prod(stack), width, keys), batch), parts["turned"], read.get(key.index)
        ),
        step(shaped("mul", query.shape, batch), parts["query"], read.get(query.index)),
        step(shaped("mul", turned, batch), parts["key"], parts["turned"]),
        step(matrix_product(query.shape, turned, batch), parts["scores"], parts["query"], parts["key"]),
    ]
    masks = [each for each in call.inputs if each not in (query, key, value)]
    scored = parts["scores"]
    if masks or _is_causal(call):
        computed = (read.get(each.index) for each in masks)
        steps.append(step(shaped("add", scores, batch), parts["masked"], scored, *computed))
        scored = parts["masked"]
    steps.append(step(softmax(scores, -1, batch), parts["weights"], scored))
    mixed = matrix_product(scores, value.shape, batch)
    return [*steps, step(mixed, result, parts["weights"], read.get(value.index))]


def _is_causal(call: Call) -> bool:
    at = CAUSAL_AT[call.op.split(".")[1]]
    return bool(call.kwargs.get("is_causal")) or (len(call.args) > at and bool(call.args[at]))
