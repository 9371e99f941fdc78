"""Operators that stand between convolutions and linear layers: what is built to time them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import MissingRowError
from hwprune.operators import Operator
from hwprune.runtime.base import Effort, get_runtime
from hwprune.runtime.operator_models import UNTIMED, OperatorModel, make_operator_model
from hwprune.runtime.sampling import measure_operators

QUICK = Effort(seconds=0.01, least_runs=2, most_runs=4)
ORT = RuntimeSpec(kind="onnxruntime")
#: Operator to the shape that a network has after it, at batch 2.
RESULTS = {
    Operator("matmul", 8, 12, height=5): (2, 5, 12),
    Operator("split", 6, 6, 4, 5): (2, 6, 4, 5),
    Operator("pad", 6, 6, 4, 5): (2, 6, 4, 5),
    Operator("pad", 6, 6, 4, 1): (2, 6, 4, 1),
    Operator("transpose", 6, 6, 20, 1): (2, 20, 6),
    Operator("resize", 6, 6, 8, 7): (2, 6, 8, 7),
    Operator("layer_norm", 6, 6, 20, 1): (2, 20, 6),
    Operator("group_norm", 6, 6, 4, 5): (2, 6, 4, 5),
    Operator("silu", 6, 6, 4, 5): (2, 6, 4, 5),
    Operator("gelu", 6, 6, 4, 5): (2, 6, 4, 5),
    Operator("clip", 6, 6, 4, 5): (2, 6, 4, 5),
    Operator("bilinear_resize", 6, 6, 8, 7): (2, 6, 8, 7),
    Operator("slice", 6, 6, 4, 5): (2, 6, 4, 5),
    Operator("sequence_mean", 6, 6, 20, 1): (2, 6),
    Operator("softmax", 3, 3, 5, 7): (2, 3, 5, 7),
    Operator("softmax_across", 1, 1, 6, 20): (2, 1, 6, 20),
    Operator("instance_norm", 6, 6, 4, 5): (2, 6, 4, 5),
}


@pytest.mark.parametrize("operator", RESULTS, ids=lambda operator: f"{operator.kind} {operator.width}")
def test_a_branch_computes_what_the_network_has_after_the_operator(operator: Operator) -> None:
    content = make_operator_model([operator], batch=2).content
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output[0]
    assert tuple(dim.dim_value for dim in inferred.type.tensor_type.shape.dim) == RESULTS[operator]


def test_every_kernel_of_a_branch_is_told_for_its_operator() -> None:
    operators = [*RESULTS, Operator("hard_swish", 6, 6, 4, 5)]
    model = make_operator_model([*operators, *operators], batch=1, runtime="onnxruntime")
    samples = get_runtime("onnxruntime").operator_samples(model.content, ORT, model.feed, QUICK)
    told = {kernel: OperatorModel.operator_of(kernel) for kernel in samples}
    assert set(told.values()) == set(range(2 * len(operators)))


@pytest.mark.parametrize(("kind", "axis"), [("softmax", -1), ("softmax_across", 2)])
def test_a_softmax_sums_up_along_the_dimension_that_it_is_priced_by(kind: str, axis: int) -> None:
    model = make_operator_model([Operator(kind, 2, 2, 3, 5)], batch=1)
    session = onnxruntime.InferenceSession(model.content, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, model.feed)[0].sum(axis), 1, rtol=1e-5)


def test_a_clip_has_bounds() -> None:
    nodes = onnx.load_from_string(make_operator_model([Operator("clip", 4, 4)], batch=1).content).graph.node
    assert [(node.op_type, len(node.input)) for node in nodes] == [("Clip", 3)]


def test_a_product_of_activations_is_priced_by_both_of_its_widths() -> None:
    product = Operator("matmul", 8, 12, height=5)
    assert product.matrix
    assert not product.weighted


@pytest.mark.parametrize("runtime", sorted(UNTIMED))
def test_a_kind_that_a_runtime_cannot_tell_is_refused_by_name(runtime: str) -> None:
    kind = min(UNTIMED[runtime])
    with pytest.raises(MissingRowError, match=f"{kind} cannot be measured in {runtime}"):
        measure_operators([Operator(kind, 8, 8, 4, 4)], RuntimeSpec(kind=runtime), effort=QUICK)


def test_group_norms_of_every_width_have_groups() -> None:
    for channels in (1, 7, 24, 37, 64):
        operator = Operator("group_norm", channels, channels, 2, 2)
        assert np.isfinite(measure_operators([operator], ORT, effort=QUICK)[0].median_us)
