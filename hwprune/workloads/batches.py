"""Going through a data set: shuffled training batches, and the accuracy on all of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hwprune.errors import InputError, WorkloadError
from hwprune.workloads.data import Dataset

#: Pixels that an image may be moved by along each axis.
SHIFT = 2


def shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops every image at random after padding it by two pixels, and mirrors half of them.

    Args:
        images: Shape ``(n, c, h, w)``; the padding has their smallest value, the background.
        generator: Source of the shifts and flips.

    Returns:
        New images of the same shape.
    """
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (SHIFT,) * 4, value=float(images.min()))
    shifts = torch.randint(0, 2 * SHIFT + 1, (2, count, 1), generator=generator)
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()


def iterate_batches(
    dataset: Dataset, batch_size: int, generator: torch.Generator, *, augment: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of training batches, in which every image comes once, in random order.

    The batches differ by at most one image, so that none is too small for batch norm.

    Args:
        dataset: The data.
        batch_size: The most images in a batch.
        generator: Source of the order and of the augmentation.
        augment: Whether to change the images at random, where the data set says how.

    Yields:
        Images ``(batch, c, h, w)`` and labels ``(batch,)``.

    Raises:
        InputError: If the batch size is below 1.
        WorkloadError: If the augmentation fails.
    """
    batches = batches_per_epoch(dataset, batch_size)
    order = torch.randperm(len(dataset.train_labels), generator=generator)
    for index in torch.tensor_split(order, batches):
        images = dataset.train_images[index]
        if augment and dataset.augment is not None:
            images = _augmented(dataset, images, generator)
        yield images, dataset.train_labels[index]


def _augmented(dataset: Dataset, images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch changed at random; whatever the data set's function raises is told as an error of the data."""
    assert dataset.augment is not None  # asked for only where there is one
    expected = f"images like those it was given, float32 of shape {tuple(images.shape)}"
    try:
        changed: object = dataset.augment(images, generator)
    except Exception as error:
        raise WorkloadError(
            "the data set's augmentation failed",
            where=dataset.name,
            expected=expected,
            got=f"{type(error).__name__}: {error}",
        ) from error
    if isinstance(changed, Tensor) and (changed.shape, changed.dtype) == (images.shape, images.dtype):
        return changed
    got = f"{changed.dtype} of shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else None
    raise WorkloadError(
        "the data set's augmentation returned something else",
        where=dataset.name,
        expected=expected,
        got=got or type(changed).__name__,
    )


def batches_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Number of batches that :func:`iterate_batches` yields.

    Raises:
        InputError: If the batch size is below 1.
    """
    if batch_size < 1:
        raise InputError("a batch needs an image", expected="a batch size of at least 1", got=batch_size)
    return -(-len(dataset.train_labels) // batch_size)


def spread(images: Tensor, count: int) -> Tensor:
    """So many images, evenly spaced: data that lie in folders are sorted by class.

    Args:
        images: Shape ``(n, ...)``.
        count: Of those wanted; all where there are no more.

    >>> spread(torch.arange(10), 4).tolist(), spread(torch.arange(2), 4).tolist()
    ([0, 3, 6, 9], [0, 1])
    """
    return images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Fraction of images classified right, in evaluation mode; every module's mode is restored.

    Args:
        model: Images to logits ``(batch, classes)``.
        images: Shape ``(n, c, h, w)``.
        labels: Shape ``(n,)``.
        batch_size: Images per forward pass.

    Returns:
        A fraction in [0, 1].
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            hits = sum(
                int(torch.eq(model(part).argmax(1), wanted).sum())
                for part, wanted in zip(
                    torch.split(images, batch_size), torch.split(labels, batch_size), strict=True
                )
            )
    finally:
        for module, training in modes:
            module.training = training
    return hits / len(labels)
