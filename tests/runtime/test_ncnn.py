"""What is special about ncnn: packed channels, no batch, layers told apart by their blobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import InputError, RuntimeUnavailableError
from hwprune.operators import Operator
from hwprune.runtime.base import get_runtime
from hwprune.runtime.operator_models import make_operator_model
from hwprune.runtime.sampling import measure_operators
from hwprune.runtime.timing import check_request

pytest.importorskip("ncnn")
pytest.importorskip("pnnx")

from hwprune.runtime.ncnn import Ncnn, branch_names, packed

OPERATORS = [
    Operator("conv", 8, 8, 6, 6, 3, 3, padding=1, fused="add"),
    Operator("add", 8, 8, 6, 6),
    Operator("max_pool", 8, 8, 6, 6, 2, 2, stride=2),
    Operator("linear", 12, 5),
]


def test_layers_belong_to_the_branch_whose_result_they_lead_to() -> None:
    layers = [
        ("Input", [], ["in0"]),
        ("Input", [], ["in1"]),
        ("Pooling", ["in0"], ["2"]),
        ("Pooling", ["in1"], ["3"]),
        ("Convolution", ["2"], ["4"]),
        ("Pooling", ["3"], ["out1"]),
        ("BinaryOp", ["4", "2"], ["5"]),
        ("ReLU", ["5"], ["out0"]),
    ]
    assert branch_names(layers) == {"4": "op0_4", "5": "op0_6", "out0": "op0_7", "out1": "op1_5"}


def test_packing_leaves_what_the_operators_compute() -> None:
    model = make_operator_model(OPERATORS, batch=1)
    before, after = model.content, packed(model.content)
    added = len(onnx.load_from_string(after).graph.node) - len(onnx.load_from_string(before).graph.node)
    assert added == 4  # the maps of the convolution, the sum and the pooling; the helper's has a pooling
    sessions = [ReferenceEvaluator(onnx.load_from_string(part)) for part in (before, after)]
    for first, second in zip(*(session.run(None, model.feed) for session in sessions), strict=True):
        np.testing.assert_array_equal(first, second)


def test_images_of_a_batch_run_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "operators.onnx"
    path.write_bytes(make_operator_model(OPERATORS[:1], batch=1).content)
    session = Ncnn().open(path, RuntimeSpec(kind="ncnn"))
    generator = np.random.default_rng(0)
    feed = {item.name: generator.standard_normal((3, 8, 6, 6)).astype(np.float32) for item in session.inputs}
    (batched,) = session.run(feed)
    singles = [session.run({name: value[i : i + 1] for name, value in feed.items()})[0] for i in range(3)]
    np.testing.assert_array_equal(batched, np.concatenate(singles))


def test_operators_are_timed_for_one_image_only() -> None:
    with pytest.raises(RuntimeUnavailableError, match="one image at a time"):
        measure_operators(OPERATORS, RuntimeSpec(kind="ncnn", batch=2))


def test_a_blob_that_cannot_be_computed_is_no_fast_run(tmp_path: Path) -> None:
    path = tmp_path / "operators.onnx"
    model = make_operator_model(OPERATORS[3:], batch=1)
    path.write_bytes(model.content)
    session = Ncnn().open(path, RuntimeSpec(kind="ncnn"))
    session._results = ["nowhere"]
    feed = {item.name: value for item, value in zip(session.inputs, model.feed.values(), strict=True)}
    with pytest.raises(RuntimeUnavailableError, match=r"cannot run the model .*error code -1 for nowhere"):
        session.run(feed)


def test_a_file_without_the_sizes_of_its_inputs_is_not_timed(tmp_path: Path) -> None:
    (tmp_path / "model.ncnn.param").write_text("")
    with pytest.raises(InputError, match="does not say how large its inputs are"):
        check_request({"network": tmp_path / "model.ncnn.param"}, None)


def test_weights_that_are_missing_are_an_error_in_words(tmp_path: Path) -> None:
    source = tmp_path / "operators.onnx"
    source.write_bytes(make_operator_model(OPERATORS[:1], batch=1).content)
    structure, weights = Ncnn().convert(source, tmp_path / "model.ncnn.param")
    assert get_runtime("ncnn").open(structure, RuntimeSpec(kind="ncnn")).inputs[0].name == "in0"
    weights.unlink()
    with pytest.raises(RuntimeUnavailableError, match="ncnn refuses the model"):
        Ncnn().open(structure, RuntimeSpec(kind="ncnn"))
