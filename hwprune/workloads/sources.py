"""The built-in data sets and where they come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwprune.errors import WorkloadError
from hwprune.workloads.batches import shift_and_flip
from hwprune.workloads.data import Dataset, normalised
from hwprune.workloads.idx import read_idx
from hwprune.workloads.image_folder import image_folder

#: Every fifth digit is for testing.
DIGITS_TEST_EVERY = 5
#: Where the Debian package ``dataset-fashion-mnist`` puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
#: The classes of Fashion-MNIST.
GARMENTS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def digits(folder: str) -> Dataset:
    """The 8x8 digits of scikit-learn: 1,797 grey images in ten classes.

    Args:
        folder: Empty; there is nothing to choose.

    Raises:
        WorkloadError: If scikit-learn is not installed, or a folder is given.
    """
    if folder:
        raise WorkloadError("the digits come from no folder", expected="digits", got=f"digits:{folder}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise WorkloadError(
            "the digits come with scikit-learn, which is not installed",
            hint="run pip install 'hwprune[demo]'",
        ) from error
    content = load_digits()
    images = torch.from_numpy(content.images).float().unsqueeze(1)
    labels = torch.from_numpy(content.target).long()
    testing = torch.arange(len(labels)) % DIGITS_TEST_EVERY == 0
    return normalised(
        "digits",
        (images[~testing], labels[~testing]),
        (images[testing], labels[testing]),
        [str(digit) for digit in range(10)],
        pixels="from 0 to 16",
    )


def fashion_mnist(folder: str) -> Dataset:
    """Fashion-MNIST from its four idx files, packed or not (Xiao, Rasul and Vollgraf 2017).

    Args:
        folder: Where they lie; empty for ``$HWPRUNE_DATA/fashion-mnist``, else the place of the Debian
            package.

    Raises:
        WorkloadError: If a file is missing or malformed.
    """
    root = _fashion_mnist_folder(folder)
    name = f"fashion-mnist:{folder}" if folder else "fashion-mnist"
    return normalised(name, _idx_pair(root, "train"), _idx_pair(root, "t10k"), GARMENTS, shift_and_flip)


def _fashion_mnist_folder(folder: str) -> Path:
    candidates = [DEBIAN_FASHION_MNIST]
    if os.environ.get("HWPRUNE_DATA"):
        candidates.insert(0, Path(os.environ["HWPRUNE_DATA"]) / "fashion-mnist")
    if folder:
        candidates = [Path(folder)]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise WorkloadError(
        "Fashion-MNIST is not on this machine",
        expected=f"its idx files in {' or '.join(map(str, candidates))}",
        hint="run apt-get install dataset-fashion-mnist, or name their folder: fashion-mnist:DIR",
    )


def _idx_pair(root: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images ``(n, 1, h, w)`` in [0, 1] and labels ``(n,)`` of one part."""
    images = read_idx(_idx_path(root, f"{part}-images-idx3-ubyte"), dimensions=3)
    labels = read_idx(_idx_path(root, f"{part}-labels-idx1-ubyte"), dimensions=1)
    if len(images) != len(labels):
        raise WorkloadError(
            "images and labels differ in number",
            where=f"{root}, {part}",
            expected=f"{len(images)} labels",
            got=len(labels),
        )
    return (
        torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1),
        torch.from_numpy(labels.astype(np.int64)),
    )


def _idx_path(root: Path, name: str) -> Path:
    for candidate in (root / name, root / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise WorkloadError("an idx file is missing", where=root, expected=f"{name} or {name}.gz")


#: Name to a function of what stands behind the colon.
SOURCES: dict[str, Callable[[str], Dataset]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "imagefolder": image_folder,
}
