"""The built-in data sets."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hwprune.errors import WorkloadError
from hwprune.workloads import load_dataset, sources
from hwprune.workloads.batches import shift_and_flip


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_fashion_mnist(folder: Path, *, packed: bool = False, label: int = 9) -> None:
    """A tiny data set in the layout of Fashion-MNIST."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("t10k", 4)):
        files = {
            f"{part}-images-idx3-ubyte": random.integers(0, 256, (count, 6, 6)),
            f"{part}-labels-idx1-ubyte": np.arange(count) % 2 * label,
        }
        for name, values in files.items():
            content = idx_bytes(values)
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content) if packed else content)


def test_digits() -> None:
    data = load_dataset("digits")
    assert data.name == "digits"
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    assert data.classes == 10
    assert data.augment is None
    assert set(data.train_labels.tolist()) == set(data.test_labels.tolist()) == set(range(10))
    assert data.train_images.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train_images.std().item() == pytest.approx(1, abs=1e-3)
    train = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in train for image in data.test_images)


def test_digits_without_their_package_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(WorkloadError, match=r"hwprune\[demo\]"):
        load_dataset("digits")


def test_digits_from_a_folder_are_refused() -> None:
    with pytest.raises(WorkloadError, match="expected digits, got digits:here"):
        load_dataset("digits:here")


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_from_a_folder(tmp_path: Path, packed: bool) -> None:
    write_fashion_mnist(tmp_path / "files", packed=packed)
    data = load_dataset(f"fashion-mnist:{tmp_path / 'files'}")
    assert data.image_shape == (1, 6, 6)
    assert data.classes == 10
    assert data.train_labels.tolist() == [0, 9] * 4
    assert len(data.test_labels) == 4
    assert data.augment is shift_and_flip
    raw = np.random.default_rng(0).integers(0, 256, (8, 6, 6)) / 255
    wanted = torch.from_numpy((raw - raw.mean()) / raw.std()).float().unsqueeze(1)
    torch.testing.assert_close(data.train_images, wanted)


def test_fashion_mnist_from_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(tmp_path / "fashion-mnist")
    monkeypatch.setenv("HWPRUNE_DATA", str(tmp_path))
    assert load_dataset("fashion-mnist").image_shape == (1, 6, 6)


def test_absent_fashion_mnist_tells_where_it_was_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.setenv("HWPRUNE_DATA", str(tmp_path / "mine"))
    with pytest.raises(WorkloadError, match="apt-get install dataset-fashion-mnist") as raised:
        load_dataset("fashion-mnist")
    assert str(tmp_path / "mine" / "fashion-mnist") in str(raised.value)
    assert str(tmp_path / "debian") in str(raised.value)
    with pytest.raises(WorkloadError, match="elsewhere"):
        load_dataset(f"fashion-mnist:{tmp_path / 'elsewhere'}")


def test_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "files")
    (tmp_path / "files" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(WorkloadError, match=r"expected t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz"):
        load_dataset(f"fashion-mnist:{tmp_path / 'files'}")


def test_counts_that_differ_are_refused(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "files")
    (tmp_path / "files" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(5)))
    with pytest.raises(WorkloadError, match=r"train.*expected 8 labels, got 5"):
        load_dataset(f"fashion-mnist:{tmp_path / 'files'}")


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "files", label=10)
    with pytest.raises(WorkloadError, match="expected 0 to 9, got 0 to 10"):
        load_dataset(f"fashion-mnist:{tmp_path / 'files'}")


def test_files_without_images_are_refused(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "files")
    (tmp_path / "files" / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((0, 6, 6))))
    (tmp_path / "files" / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(0)))
    with pytest.raises(WorkloadError, match=r"no images.*test set"):
        load_dataset(f"fashion-mnist:{tmp_path / 'files'}")


@pytest.mark.fashion_mnist
@pytest.mark.skipif(
    not sources.DEBIAN_FASHION_MNIST.is_dir(), reason="the package dataset-fashion-mnist is not installed"
)
def test_the_real_fashion_mnist() -> None:
    data = load_dataset(f"fashion-mnist:{sources.DEBIAN_FASHION_MNIST}")
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.test_images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(data.train_labels).tolist() == [6000] * 10
    assert torch.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.train_images.mean().item() == pytest.approx(0, abs=1e-3)
    # the published mean and deviation of the training images, 0.2860 and 0.3530
    assert data.train_images.min().item() == pytest.approx(-0.2860 / 0.3530, abs=1e-3)
