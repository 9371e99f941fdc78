"""From what the user typed to a network or a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.errors import WorkloadError
from hwprune.workloads.data import Dataset, ImageSize, image_size_of
from hwprune.workloads.imports import call, import_callable
from hwprune.workloads.models import MODELS, build
from hwprune.workloads.sources import SOURCES

#: A tensor, a sequence of arguments or a mapping of keyword arguments.
ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any]


def model_names() -> tuple[str, ...]:
    """The built-in networks, sorted."""
    return tuple(sorted(MODELS))


def dataset_names() -> tuple[str, ...]:
    """The built-in data sets, sorted."""
    return tuple(sorted(SOURCES))


def load_dataset(spec: str) -> Dataset:
    """Loads a data set.

    Args:
        spec: ``digits``, ``fashion-mnist[:DIR]``, ``imagefolder:DIR`` or ``package.module:callable``; a
            callable returns a :class:`Dataset` or a tuple of training images, training labels, test
            images and test labels, which are used as they are.

    Raises:
        WorkloadError: If it cannot be found or made, or is malformed.
    """
    name, _, folder = spec.partition(":")
    if name in SOURCES:
        return SOURCES[name](folder)
    result = call(import_callable(spec, kind="data set", known=dataset_names()), {}, spec)
    if isinstance(result, Dataset):
        return result
    if not isinstance(result, tuple) or len(result) != 4:
        length = f" of {len(result)}" if isinstance(result, tuple) else ""
        raise WorkloadError(
            "the callable returned no data set",
            where=spec,
            expected="a Dataset, or a tuple of train images, train labels, test images, test labels",
            got=f"{type(result).__name__}{length}",
        )
    train_images, train_labels, test_images, test_labels = result
    classes = max(_class_count(train_labels), _class_count(test_labels))
    return Dataset(spec, train_images, train_labels, test_images, test_labels, classes)


def _class_count(labels: Any) -> int:
    """One more than the largest label; 1 where they are no labels, which :class:`Dataset` refuses."""
    valid = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.numel()
    return max(int(labels.max()) + 1, 1) if valid else 1


def make_model(spec: str, *, in_channels: int, image_size: ImageSize, classes: int, seed: int) -> nn.Module:
    """Makes a freshly initialised network; the CPU's random state is left as it was.

    Args:
        spec: A built-in name, or ``package.module:callable``, called with those of the keywords
            ``in_channels``, ``image_size`` and ``classes`` that it takes.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels; one number where they are the same.
        classes: Number of logits.
        seed: Seed of the initialisation.

    Raises:
        WorkloadError: If it cannot be found or made, or is no network.
    """
    return _network(_made(spec, in_channels, image_size, classes, seed), spec)


def make_with_inputs(
    spec: str, shape: tuple[int, int, int], *, classes: int, seed: int
) -> tuple[nn.Module, ExampleInputs]:
    """Makes a freshly initialised network and what it is called with.

    Args:
        spec: See :func:`make_model`. A callable may return the network alone, which is called with two images
            then, or a tuple of the network and its inputs: a tensor, a sequence of arguments or a mapping of
            keyword arguments.
        shape: Channels, height and width of an image.
        classes: Number of logits.
        seed: Seed of the initialisation.

    Raises:
        WorkloadError: If it cannot be found or made, or is no network.
    """
    channels, *size = shape
    result = _made(spec, channels, image_size_of(*size), classes, seed)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Tensor | Sequence | Mapping):
        return _network(result[0], spec), result[1]
    return _network(result, spec), torch.zeros(2, *shape)


def _made(spec: str, in_channels: int, image_size: ImageSize, classes: int, seed: int) -> Any:
    """What the name stands for."""
    # Only the CPU's generator: torch.manual_seed would also reseed the accelerators'.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if spec in MODELS:
            return build(spec, in_channels, image_size, classes)
        sizes = {"in_channels": in_channels, "image_size": image_size, "classes": classes}
        return call(import_callable(spec, kind="model", known=model_names()), sizes, spec)


def _network(result: Any, spec: str) -> nn.Module:
    if isinstance(result, nn.Module):
        return result
    raise WorkloadError(
        "the callable returned no network",
        where=spec,
        expected="a torch.nn.Module",
        got=type(result).__name__,
    )
