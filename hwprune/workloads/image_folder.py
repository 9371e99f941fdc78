"""Folders of images: one folder per class, in one folder for training and one for testing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwprune.errors import WorkloadError
from hwprune.workloads.data import Dataset, normalised

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".webp")
#: What Pillow calls a pixel format, and what it is read as. Others (16 bits, floats) would lose values.
_READ_AS = {
    "1": "L",
    "L": "L",
    "LA": "L",
    "P": "RGB",
    "RGB": "RGB",
    "RGBA": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}


def image_folder(folder: str) -> Dataset:
    """``DIR/train/CLASS/*.png`` and ``DIR/test/CLASS/*.png`` (or ``DIR/val``), all of one size.

    Args:
        folder: ``DIR``.

    Raises:
        WorkloadError: If the layout, a file or the sizes are wrong, or Pillow is not installed.
    """
    if not folder:
        raise WorkloadError("an image folder needs its place", expected="imagefolder:DIR", got="imagefolder")
    root = Path(folder)
    train = root / "train"
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), root / "test")
    classes = _class_names(train)
    unknown = sorted(set(_class_names(test)) - set(classes))
    if unknown:
        raise WorkloadError(
            "test images of classes without training images",
            where=test,
            expected=", ".join(classes),
            got=", ".join(unknown),
        )
    return normalised(f"imagefolder:{folder}", _read_part(train, classes), _read_part(test, classes), classes)


def _class_names(part: Path) -> list[str]:
    """The folders in it, by name."""
    if not part.is_dir():
        raise WorkloadError("no such folder of images", where=part, expected="a folder per class in it")
    names = sorted(item.name for item in part.iterdir() if item.is_dir())
    if not names:
        raise WorkloadError("no class folders", where=part, expected="at least one, with images in it")
    return names


def _read_part(part: Path, classes: list[str]) -> tuple[Tensor, Tensor]:
    """All images below a folder, float32 ``(n, c, h, w)`` in [0, 1], and their labels ``(n,)``."""
    arrays: list[npt.NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = part / name
        # a class may be missing from the test images: then it is trained, and not tested
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        images = [path for path in paths if path.suffix.lower() in SUFFIXES]
        if folder.is_dir() and not images:
            raise WorkloadError("no images", where=folder, expected=f"files ending in {', '.join(SUFFIXES)}")
        for path in images:
            pixels = _read_image(path)
            if arrays and arrays[0].shape != pixels.shape:
                raise WorkloadError(
                    "images of different sizes",
                    where=path,
                    expected=f"(channels, height, width) = {arrays[0].shape}",
                    got=pixels.shape,
                    hint="bring all images to one size, all grey or all in colour, first",
                )
            arrays.append(pixels)
        labels += [label] * len(images)
    return torch.from_numpy(np.stack(arrays).astype(np.float32) / 255), torch.tensor(labels)


def _read_image(path: Path) -> npt.NDArray[np.uint8]:
    """One image as bytes of shape ``(1, h, w)`` or ``(3, h, w)``."""
    try:
        from PIL import Image
    except ImportError as error:
        raise WorkloadError(
            "reading images needs Pillow, which is not installed", hint="run pip install 'hwprune[images]'"
        ) from error
    try:
        with Image.open(path) as image:
            wanted = _READ_AS.get(image.mode)
            if wanted is None:
                raise WorkloadError(
                    "an image in a pixel format that would lose values",
                    where=path,
                    expected=f"one of {', '.join(_READ_AS)}",
                    got=image.mode,
                )
            pixels = np.asarray(image.convert(wanted))
    # Pillow tells a broken file as any of these, depending on the format and on where it is broken
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise WorkloadError("an image cannot be read", where=path, got=error) from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
