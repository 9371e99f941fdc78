"""Operators timed on 8 bits."""

from __future__ import annotations

import onnx
import pytest

from hwprune.device.profile import RuntimeSpec
from hwprune.operators import Operator
from hwprune.runtime.base import REGISTRY, Effort, kinds_running
from hwprune.runtime.operator_models import BUILDERS, UNTIMED, make_operator_model
from hwprune.runtime.quantized_operators import quantized, without_edges
from hwprune.runtime.sampling import measure_operators

QUICK = Effort(seconds=0.02, least_runs=8, most_runs=16)
WINDOWS = {"kernel_h": 2, "kernel_w": 2, "stride": 2}
SPECIAL = {"conv_transpose": WINDOWS, "max_pool": WINDOWS, "average_pool": WINDOWS}
OPERATORS = [
    *(
        Operator(kind, 16, 16, 8, 8, **SPECIAL.get(kind, {}))
        for kind in BUILDERS
        if kind not in ("conv", "linear", *UNTIMED["openvino"])
    ),
    Operator("conv", 3, 16, 8, 8, 3, 3, padding=1),
    Operator("conv", 16, 16, 8, 8, 3, 3, padding=1, fused="add"),
    Operator("conv", 16, 16, 8, 8, 3, 3, padding=1, groups=16),
    Operator("linear", 32, 10),
    Operator("linear", 32, 10, height=4),
]


@pytest.fixture(params=kinds_running("int8"))
def spec(request: pytest.FixtureRequest) -> RuntimeSpec:
    pytest.importorskip(REGISTRY[request.param][2])
    return RuntimeSpec(kind=request.param, precision="int8")


def test_every_edge_of_an_operator_is_quantised() -> None:
    graph = onnx.load_from_string(quantized(make_operator_model(OPERATORS, batch=1)).content).graph
    readers = {name: node.op_type for node in graph.node for name in node.input}
    writers = {name: node.op_type for node in graph.node for name in node.output}
    assert {readers[item.name] for item in graph.input} == {"QuantizeLinear"}
    assert {writers[item.name] for item in graph.output} == {"DequantizeLinear"}


def test_every_operator_has_a_time_on_8_bits(spec: RuntimeSpec) -> None:
    rows = measure_operators(OPERATORS, spec, effort=QUICK)
    assert [row.operator for row in rows] == OPERATORS
    assert all(0 < row.p10_us < 5_000 for row in rows)


@pytest.mark.parametrize("out_features", [2, 16])
def test_a_linear_layer_of_one_input_has_a_time_on_8_bits(spec: RuntimeSpec, out_features: int) -> None:
    (row,) = measure_operators([Operator("linear", 1, out_features)], spec, effort=QUICK)
    assert 0 < row.p10_us < 5_000


def test_a_convolution_takes_less_on_8_bits(spec: RuntimeSpec) -> None:
    wide = [Operator("conv", 128, 128, 14, 14, 3, 3, padding=1)]
    single = spec.model_copy(update={"precision": "fp32"})
    times = [measure_operators(wide, each, effort=QUICK)[0].p10_us for each in (spec, single)]
    assert times[0] < 0.9 * times[1]


def test_kernels_are_told_for_the_operator_that_runs_them_on_8_bits(spec: RuntimeSpec) -> None:
    wide = Operator("conv", 192, 192, 20, 20, 3, 3, padding=1)
    narrow = Operator("conv", 8, 8, 20, 20, 3, 3, padding=1)
    operators = [narrow, wide, Operator("relu", 8, 8, 20, 20), wide, narrow]
    times = [row.p10_us for row in measure_operators(operators, spec, effort=QUICK)]
    assert min(times[1], times[3]) > 3 * max(times[0], times[2], times[4])


def test_a_transposed_convolution_under_another_name_belongs_to_what_follows() -> None:
    samples = {name: [1.0] for name in ("op0_0", "x1_DequantizeLinear", "ConvolutionBackpropData_5", "y1")}
    assert sorted(without_edges(samples)) == ["op0_0", "op1_101", "y1"]
