"""Data sets held in memory as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hwprune.errors import WorkloadError

Augment = Callable[[Tensor, torch.Generator], Tensor]
#: Height and width in pixels, or one number for both.
ImageSize = int | tuple[int, int]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What was done to pixels: ``(pixels - mean) / deviation``, channel by channel.

    Attributes:
        pixels: What they were before, such as ``from 0 to 1``.
        mean: Per channel.
        deviation: Per channel; 1 for one that never changes.
    """

    pixels: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels for training and testing.

    Attributes:
        name: What the user called it.
        train_images: Shape ``(n, c, h, w)``, float32, normalised.
        train_labels: Shape ``(n,)``, int64.
        test_images: Shape ``(m, c, h, w)``, float32, normalised like the training images.
        test_labels: Shape ``(m,)``, int64.
        classes: Number of classes.
        augment: Changes a batch of training images at random, or ``None``.
        preprocessing: What makes images of pixels; ``None`` where that is not known.
        class_names: In the order of the labels; none where they are not known.

    Raises:
        WorkloadError: If shapes, types, counts or values do not fit together.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int
    augment: Augment | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            _check_images(getattr(self, f"{part}_images"), f"{self.name}, {part} set")
        if not isinstance(self.classes, int) or self.classes < 2:
            raise WorkloadError(
                "there are not enough classes to tell apart",
                where=self.name,
                expected="a whole number, at least 2",
                got=self.classes,
            )
        for part in ("train", "test"):
            images, labels = (getattr(self, f"{part}_{kind}") for kind in ("images", "labels"))
            _check_labels(labels, len(images), self.classes, f"{self.name}, {part} set")
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise WorkloadError(
                "training and test images differ in shape",
                where=self.name,
                expected=tuple(self.train_images.shape[1:]),
                got=tuple(self.test_images.shape[1:]),
            )
        _check_told(self)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def image_size(self) -> ImageSize:
        """Height and width in pixels; one number where they are the same."""
        _, height, width = self.image_shape
        return image_size_of(height, width)

    def first(self, count: int | None) -> Dataset:
        """The same data set with only the first ``count`` training images; all of them for ``None``.

        Raises:
            WorkloadError: If there are not that many.
        """
        if count is None:
            return self
        if not 1 <= count <= len(self.train_labels):
            raise WorkloadError(
                "there are not that many training images",
                where=self.name,
                expected=f"1 to {len(self.train_labels)}",
                got=count,
            )
        return replace(self, train_images=self.train_images[:count], train_labels=self.train_labels[:count])


def _check_told(dataset: Dataset) -> None:
    """Raises where what is told with the images is not what is told of it in reports."""
    done, names, channels = dataset.preprocessing, dataset.class_names, dataset.train_images.shape[1]
    if done is not None and not (
        isinstance(done, Preprocessing)
        and isinstance(done.pixels, str)
        and _are_numbers(done.mean, channels)
        and _are_numbers(done.deviation, channels)
        and min(done.deviation) > 0
    ):
        raise WorkloadError(
            "this does not say how pixels become images",
            where=f"{dataset.name}, preprocessing",
            expected=f"a Preprocessing: mean, and deviation above 0, of each of {channels} channels; or None",
            got=done,
        )
    told = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not told or len(names) not in (0, dataset.classes):
        raise WorkloadError(
            "these are not the names of the classes",
            where=f"{dataset.name}, class_names",
            expected=f"{dataset.classes} strings, or none",
            got=f"{len(names)} of {type(names[0]).__name__}"
            if isinstance(names, list | tuple)
            else repr(names),
        )


def _are_numbers(values: object, count: int) -> bool:
    """Whether these are as many numbers that JSON can hold."""
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def image_size_of(height: int, width: int) -> ImageSize:
    """What a network is told of the size of its images: one number where they are square."""
    return height if height == width else (height, width)


def rows_and_columns(size: ImageSize) -> tuple[int, int]:
    """Height and width in pixels."""
    return (size, size) if isinstance(size, int) else size


def _check_images(images: Tensor, where: str) -> None:
    """Refuses anything but at least one finite float32 image."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.dtype != torch.float32:
        raise WorkloadError(
            "images of the wrong form",
            where=where,
            expected="float32 of shape (n, channels, height, width)",
            got=_describe(images),
        )
    if images.requires_grad:
        raise WorkloadError(
            "images that gradients are wanted for",
            where=where,
            expected="tensors without requires_grad",
            hint="return images.detach()",
        )
    if not images.numel():
        raise WorkloadError(
            "there are no images", where=where, expected="at least one", got=_describe(images)
        )
    if not bool(torch.isfinite(images).all()):
        raise WorkloadError("images hold NaN or infinity", where=where)


def _check_labels(labels: Tensor, count: int, classes: int, where: str) -> None:
    """Refuses anything but one class number per image."""
    if not isinstance(labels, Tensor) or labels.shape != (count,) or labels.dtype != torch.int64:
        raise WorkloadError(
            "labels do not fit the images",
            where=where,
            expected=f"int64 of shape ({count},)",
            got=_describe(labels),
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise WorkloadError(
            "a label is no class",
            where=where,
            expected=f"0 to {classes - 1}",
            got=f"{int(labels.min())} to {int(labels.max())}",
        )


def _describe(value: object) -> str:
    """A tensor by its type and shape, anything else by its class."""
    return (
        f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    )


def normalised(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    class_names: Sequence[str],
    augment: Augment | None = None,
    *,
    pixels: str = "from 0 to 1",
) -> Dataset:
    """A data set whose channels have mean 0 and deviation 1 over the training set.

    A channel that never changes is only centred.

    Args:
        name: What the user called it.
        train: Images ``(n, c, h, w)`` as float32 of any scale, and labels ``(n,)``.
        test: Likewise; scaled by the numbers of the training set.
        class_names: In the order of the labels.
        augment: See :class:`Dataset`.
        pixels: What the images are, see :class:`Preprocessing`.

    Raises:
        WorkloadError: If they do not make a data set.

    >>> images, labels = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1), torch.tensor([0, 1])
    >>> data = normalised("example", (images, labels), (images, labels), ["cat", "dog"], pixels="from 1 to 3")
    >>> data.train_images.flatten().tolist(), data.preprocessing
    ([-1.0, 1.0], Preprocessing(pixels='from 1 to 3', mean=(2.0,), deviation=(1.0,)))
    """
    mean = train[0].mean(dim=(0, 2, 3), keepdim=True)
    deviation = (train[0] - mean).square().mean(dim=(0, 2, 3), keepdim=True).sqrt()
    scale = torch.where(deviation > 0, deviation, 1.0)
    return Dataset(
        name,
        (train[0] - mean).div_(scale),
        train[1],
        (test[0] - mean).div_(scale),
        test[1],
        len(class_names),
        augment,
        Preprocessing(pixels, tuple(mean.flatten().tolist()), tuple(scale.flatten().tolist())),
        tuple(class_names),
    )
