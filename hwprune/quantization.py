"""A network quantised on the images that it was trained on, and how good it is in its runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import InputError
from hwprune.runtime.base import Array, runtime_for
from hwprune.runtime.onnx_values import read_values
from hwprune.runtime.quantize import quantize
from hwprune.workloads import Dataset

#: Training images that ranges of activations are taken from, where nobody says.
CALIBRATION_IMAGES = 512
#: Images that a network in a runtime is fed at once, where it takes any number.
BATCH = 64


@dataclass(frozen=True, slots=True)
class Scores:
    """What quantising a network did to it.

    Attributes:
        before: Test accuracy in single precision, in the runtime.
        after: Test accuracy on 8 bits, in the runtime.
        calibration_images: Training images that it was calibrated on.
    """

    before: float
    after: float
    calibration_images: int


def quantize_on(dataset: Dataset, source: Path, target: Path, images: int = CALIBRATION_IMAGES) -> int:
    """Quantises an ONNX file, calibrated on training images spread evenly over the data set.

    Args:
        dataset: The data.
        source: The file in single precision.
        target: The file to write.
        images: How many to calibrate on; all of them where there are fewer.

    Returns:
        How many it was calibrated on.

    Raises:
        InputError: If there is not one batch of images.
        RuntimeUnavailableError: If the network cannot be quantised.
    """
    if images < 1:
        raise InputError("nothing to calibrate on", expected="at least 1 image", got=images)
    available = len(dataset.train_images)
    # The first images of a data set may all be of one class.
    chosen = np.unique(np.linspace(0, available - 1, min(images, available)).astype(np.int64))
    batches = list(_batches(source, dataset.train_images[torch.from_numpy(chosen)]))
    quantize(source, target, [feed for feed, _ in batches])
    return sum(count for _, count in batches)


def accuracy_in_runtime(path: Path, spec: RuntimeSpec, dataset: Dataset) -> float:
    """Fraction of the test images that a network in its runtime classifies right.

    Args:
        path: What the runtime opens.
        spec: The runtime.
        dataset: The data.

    Raises:
        RuntimeUnavailableError: If the runtime is missing or refuses the file.
    """
    session = runtime_for(spec).open(path, spec)
    (item,) = session.inputs
    size, hits = item.shape[0] or BATCH, 0
    for images, labels in zip(
        torch.split(dataset.test_images, size), torch.split(dataset.test_labels, size), strict=True
    ):
        scores = session.run({item.name: _filled(images, item.shape[0])})[0]
        hits += int((scores[: len(labels)].argmax(axis=1) == labels.numpy()).sum())
    return hits / len(dataset.test_labels)


def scores(dataset: Dataset, single: Path, quantized: Path, kind: str, calibration_images: int) -> Scores:
    """Accuracy of a network before and after it was quantised, both in the runtime.

    Args:
        dataset: The data.
        single: The file in single precision.
        quantized: The quantised one.
        kind: The runtime.
        calibration_images: What :func:`quantize_on` returned.
    """
    return Scores(
        accuracy_in_runtime(single, RuntimeSpec(kind=kind), dataset),
        accuracy_in_runtime(quantized, RuntimeSpec(kind=kind, precision="int8"), dataset),
        calibration_images,
    )


def _batches(path: Path, images: Tensor) -> Iterator[tuple[dict[str, Array], int]]:
    """Feeds of an ONNX file with one input, and how many different images are in each."""
    (item,) = read_values(path).inputs
    for part in torch.split(images, item.shape[0] or BATCH):
        yield {item.name: _filled(part, item.shape[0])}, len(part)


def _filled(images: Tensor, size: int | None) -> Array:
    """Images as an array, repeated up to the batch size of a file that fixes it."""
    if size is None or len(images) == size:
        return images.numpy()
    return images[torch.arange(size) % len(images)].numpy()
