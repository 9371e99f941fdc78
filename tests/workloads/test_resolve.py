"""Names and callables: what is found, and how what is not is told."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from hwprune.errors import TrainingError, WorkloadError
from hwprune.workloads import dataset_names, load_dataset, make_model, make_with_inputs, model_names

SIZES = {"in_channels": 2, "image_size": 6, "classes": 3, "seed": 0}
_numbers = itertools.count()

USER_CODE = """
import sys
import torch
from torch import nn
from hwprune.errors import TrainingError
from hwprune.workloads import Dataset

def images(count): return torch.randn(count, 2, 6, 6)
def some(count): return torch.arange(count) % 3

class Net(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.head = nn.Linear(in_channels, classes)

class holder:
    @staticmethod
    def tiny(classes): return nn.Linear(1, classes)

def all_three(*, in_channels, image_size, classes): return nn.Linear(in_channels * image_size, classes)
def anything(**sizes): return nn.Linear(sizes["image_size"], sizes["classes"])
def nothing(): return nn.Linear(7, 5)
def needs_more(in_channels, depth): return nn.Linear(in_channels, depth)
def with_inputs(): return nn.Linear(7, 5), {"input": torch.zeros(3, 7)}
def no_model(): return 3
def fails(): raise ZeroDivisionError("by nothing")
def exits(): sys.exit(4)
def ours(): raise TrainingError("told already")
number = 3

def dataset(): return Dataset("own", images(6), some(6), images(3), some(3), 5)
def four(): return images(6), some(6), images(3), some(3)
def three(): return images(6), some(6), images(3)
def nan(): return images(6) * float("nan"), some(6), images(3), some(3)
def floats(): return images(6), some(6).float() * float("nan"), images(3), some(3)
def arrays(): return images(6).numpy(), some(6).numpy(), images(3).numpy(), some(3).numpy()
def empty(): return images(6), some(6), images(0), some(0)
def scalars(): return torch.tensor(0.), torch.tensor(0), torch.tensor(0.), torch.tensor(0)
def listed(): return list(four())
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, found only by being there."""
    name = f"user_code_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(USER_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield name
    sys.modules.pop(name, None)


def test_names_are_sorted_and_complete() -> None:
    assert model_names() == ("lenet5", "mobilenetv1", "resnet18", "resnet20", "resnet8", "vgg16")
    assert dataset_names() == ("digits", "fashion-mnist", "imagefolder")


@pytest.mark.parametrize(
    ("attribute", "shape"),
    [("all_three", (3, 12)), ("anything", (3, 6)), ("nothing", (5, 7)), ("holder.tiny", (3, 1))],
)
def test_a_callable_gets_the_keywords_it_takes(
    user_module: str, attribute: str, shape: tuple[int, int]
) -> None:
    model = make_model(f"{user_module}:{attribute}", **SIZES)
    assert isinstance(model, nn.Linear)
    assert tuple(model.weight.shape) == shape


def test_a_callable_may_return_what_its_network_is_called_with(user_module: str) -> None:
    model, inputs = make_with_inputs(f"{user_module}:with_inputs", (2, 6, 8), classes=3, seed=0)
    assert isinstance(inputs, dict)
    assert model(**inputs).shape == (3, 5)
    _model, images = make_with_inputs("resnet8", (2, 6, 8), classes=3, seed=0)
    assert isinstance(images, torch.Tensor)
    assert images.shape == (2, 2, 6, 8)
    with pytest.raises(WorkloadError, match="no network"):
        make_with_inputs(f"{user_module}:no_model", (2, 6, 8), classes=3, seed=0)


def test_a_class_is_a_callable_and_is_seeded(user_module: str) -> None:
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    first = make_model(f"{user_module}:Net", **SIZES)
    second = make_model(f"{user_module}:Net", **SIZES)
    assert torch.equal(torch.rand(2), wanted)
    assert torch.equal(first.get_parameter("head.weight"), second.get_parameter("head.weight"))


BAD_MODELS = {
    "needs_more": r"failed.*takes only in_channels, image_size, classes.*TypeError.*depth",
    "no_model": r"no network.*expected a torch\.nn\.Module, got int",
    "fails": "failed.*ZeroDivisionError: by nothing",
    "exits": "failed.*SystemExit: 4",
    "number": "not callable.*got int",
    "absent": "cannot be imported.*AttributeError",
}


@pytest.mark.parametrize("attribute", BAD_MODELS)
def test_bad_model_callables_are_told(user_module: str, attribute: str) -> None:
    with pytest.raises(WorkloadError, match=BAD_MODELS[attribute]) as raised:
        make_model(f"{user_module}:{attribute}", **SIZES)
    assert f"{user_module}:{attribute}" in str(raised.value)


def test_errors_keep_their_cause(user_module: str) -> None:
    with pytest.raises(WorkloadError) as raised:
        make_model(f"{user_module}:fails", **SIZES)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_errors_of_ours_pass_through(user_module: str) -> None:
    with pytest.raises(TrainingError, match="told already"):
        make_model(f"{user_module}:ours", **SIZES)


def test_random_state_survives_a_failing_callable(user_module: str) -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(WorkloadError):
        make_model(f"{user_module}:fails", **SIZES)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_callable_may_return_a_data_set(user_module: str) -> None:
    data = load_dataset(f"{user_module}:dataset")
    assert (data.name, data.classes, data.image_shape) == ("own", 5, (2, 6, 6))


def test_a_callable_may_return_four_tensors(user_module: str) -> None:
    data = load_dataset(f"{user_module}:four")
    assert data.name == f"{user_module}:four"
    assert data.classes == 3
    assert data.augment is None
    assert len(data.train_labels) == 6


BAD_DATA = {
    "three": "no data set.*got tuple of 3",
    "no_model": "no data set.*got int",
    "nan": "NaN or infinity.*train set",
    "floats": "labels do not fit.*torch.float32",
    "arrays": "images of the wrong form.*got ndarray",
    "empty": "no images.*test set",
    "scalars": "images of the wrong form",
    "listed": "no data set.*got list",
    "fails": "failed.*needs no argument.*ZeroDivisionError: by nothing",
    "needs_more": "failed.*TypeError.*in_channels",
}


@pytest.mark.parametrize("attribute", BAD_DATA)
def test_bad_data_callables_are_told(user_module: str, attribute: str) -> None:
    with pytest.raises(WorkloadError, match=BAD_DATA[attribute]):
        load_dataset(f"{user_module}:{attribute}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnt18", "unknown model 'resnt18'.*expected one of lenet5, .*Did you mean 'resnet18'"),
        ("ResNet18", "Did you mean 'resnet18'"),
        ("", "unknown model ''"),
        ("zzz", r"package\.module:callable$"),
        ("module_that_is_not:thing", "cannot be imported.*ModuleNotFoundError"),
        ("json:", "unknown model"),
        (":thing", "unknown model"),
        ("..json:loads", "cannot be imported"),
    ],
)
def test_unknown_models_are_told(spec: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        make_model(spec, **SIZES)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fashion_mnist", "unknown data set.*Did you mean 'fashion-mnist'"),
        ("imagefoldr:here", "cannot be imported.*Did you mean 'imagefolder'"),
        ("cifar", "expected one of digits, fashion-mnist, imagefolder"),
    ],
)
def test_unknown_data_sets_are_told(spec: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        load_dataset(spec)


def test_a_module_that_fails_to_import_is_told(user_module: str, tmp_path: Path) -> None:
    (tmp_path / f"broken_{user_module}.py").write_text("raise KeyError('inside')")
    with pytest.raises(WorkloadError, match=r"cannot be imported.*KeyError: 'inside'") as raised:
        load_dataset(f"broken_{user_module}:data")
    assert isinstance(raised.value.__cause__, KeyError)
