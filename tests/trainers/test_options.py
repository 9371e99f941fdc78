"""Example inputs made of the training data, and packages that are not there."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from trainer_cases import TARGET, Network, samples

import hwprune
from hwprune.errors import InputError
from hwprune.train.schedule import StrengthSchedule
from hwprune.trainers.options import Job, Options, example_inputs_of

IMAGES = torch.arange(24.0).view(6, 4)


class Augmented:
    """Samples that draw random numbers."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return IMAGES[index] + random.random() + torch.rand(4), index


class Endless(IterableDataset[torch.Tensor]):
    """No sample can be asked for by its number."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield IMAGES[0]


def test_inputs_come_first_and_no_random_state_moves() -> None:
    loader = DataLoader(Augmented(), batch_size=4, shuffle=True)  # type: ignore[arg-type, var-annotated]
    before = torch.random.get_rng_state(), random.getstate()
    inputs = example_inputs_of(loader)
    assert isinstance(inputs, torch.Tensor)
    assert inputs.shape == (2, 4)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()


def test_a_mapping_is_taken_without_its_labels() -> None:
    samples = [{"x": image, "mask": image > 3, "labels": 1, "label_ids": 2} for image in IMAGES]
    inputs = example_inputs_of(DataLoader(samples, batch_size=3))  # type: ignore[arg-type, var-annotated]
    assert isinstance(inputs, dict)
    assert {name: tensor.shape for name, tensor in inputs.items()} == {"x": (2, 4), "mask": (2, 4)}


@pytest.mark.parametrize(
    "loader",
    [
        [IMAGES],
        DataLoader(Endless(), batch_size=2),
        DataLoader(IMAGES, batch_size=None),  # type: ignore[arg-type]
        DataLoader([(["a", "b"], 1)] * 4, batch_size=2),  # type: ignore[arg-type]
    ],
    ids=["no loader", "no index", "no batches", "no tensor"],
)
def test_what_cannot_be_told_is_asked_for(loader: object) -> None:
    with pytest.raises(InputError, match="Pass example_inputs"):
        example_inputs_of(loader)


@pytest.mark.parametrize("package", ["lightning", "transformers"])
def test_an_absent_package_names_its_extra(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from hwprune.errors import MissingPackageError\n"
        f"try: import hwprune.trainers.{package}\n"
        "except MissingPackageError as error: print(isinstance(error, ImportError), error)\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert outcome.stdout.startswith("True ")
    assert f"pip install 'hwprune[{package}]'" in outcome.stdout


def test_survivors_of_a_trained_network_are_fitted_where_that_is_asked_for() -> None:
    said: list[str] = []
    model = Network()
    images = torch.stack([image for image, _ in samples()])
    options = Options(
        schedule=StrengthSchedule.from_trained, measure=False, notify=said.append, reconstruct=images
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    job = Job(hwprune.load_profile("x86-avx2-ort"), TARGET, images[:2], options)
    compressor = job.start(model, optimizer, 4, None)
    model(images, torch.zeros(len(images), dtype=torch.int64))["loss"].backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert compressor.proximal.settled
    assert sum("fitted 3 layers" in line for line in said) == 1
