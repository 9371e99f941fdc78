"""What a network answers to the images of a data set: logits, or an error before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwprune.errors import WorkloadError
from hwprune.workloads.data import Dataset


def check_outputs(model: nn.Module, spec: str, dataset: Dataset) -> None:
    """Raises where a network does not give logits for the classes of a data set.

    Args:
        model: Asked in evaluation mode for two test images; every module's mode is restored.
        spec: What the user called it.
        dataset: The data.

    Raises:
        WorkloadError: If it fails on the images, or returns anything but one row of logits for each of them.
    """
    images = dataset.test_images[:2]
    returned = _answer(model, spec, images)
    fits = (
        isinstance(returned, Tensor)
        and returned.is_floating_point()
        and returned.ndim == 2
        and len(returned) == len(images)
        and returned.shape[1] >= dataset.classes
    )
    if not fits:
        raise WorkloadError(
            "the network returns no logits for the classes of the data",
            where=spec,
            expected=f"one tensor of shape ({len(images)}, {dataset.classes}) for {len(images)} images",
            got=_describe(returned),
            hint=f"return only the logits of the {dataset.classes} classes of {dataset.name}",
        )


def _answer(model: nn.Module, spec: str, images: Tensor) -> object:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return model(images)
    except Exception as error:  # the user's own code, which may raise anything
        raise WorkloadError(
            "the network fails on the images of the data",
            where=spec,
            expected=f"a network for images of shape {tuple(images.shape[1:])}",
            got=f"{type(error).__name__}: {error}",
        ) from error
    finally:
        for module, training in modes:
            module.training = training


def _describe(returned: object) -> str:
    if isinstance(returned, Tensor):
        return f"{returned.dtype} of shape {tuple(returned.shape)}"
    if isinstance(returned, (tuple, list)):
        return f"a {type(returned).__name__} of {len(returned)}"
    return type(returned).__name__
