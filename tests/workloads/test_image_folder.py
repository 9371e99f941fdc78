"""Folders of images, right and wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwprune.errors import WorkloadError
from hwprune.workloads import load_dataset


def save_image(path: Path, value: int, *, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> None:
    """One plain image, ``size`` being width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value // 2, 0)).convert(mode).save(path)


def write_folder(root: Path, *, mode: str = "RGB", test: str = "test") -> None:
    """Two classes, three images to train and one to test of each."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(3):
            save_image(root / "train" / name / f"{number}.png", 100 * label + 10 * number, mode=mode)
        save_image(root / test / name / "0.png", 100 * label + 5, mode=mode)


@pytest.mark.parametrize("test", ["test", "val"])
def test_reads_classes_in_order(tmp_path: Path, test: str) -> None:
    write_folder(tmp_path, test=test)
    (tmp_path / "train" / "notes.txt").write_text("not a class")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert data.image_shape == (3, 4, 5)
    assert data.classes == 2
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 1]
    red = np.array([0, 10, 20, 100, 110, 120]) / 255
    wanted = (red - red.mean()) / red.std()
    assert data.train_images[:, 0, 2, 3].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    assert (data.train_images[:, 2] == 0).all()


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_pixel_formats(tmp_path: Path, mode: str, channels: int) -> None:
    write_folder(tmp_path, mode=mode)
    assert load_dataset(f"imagefolder:{tmp_path}").image_shape == (channels, 4, 5)


def test_class_without_test_images_is_trained_all_the_same(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "test" / "dog" / "0.png").unlink()
    (tmp_path / "test" / "dog").rmdir()
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert data.classes == 2
    assert data.test_labels.tolist() == [0]


def no_train(root: Path) -> None:
    (root / "train").rename(root / "training")


def no_test(root: Path) -> None:
    (root / "test").rename(root / "testing")


def no_classes(root: Path) -> None:
    for path in sorted((root / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def unknown_class(root: Path) -> None:
    save_image(root / "test" / "horse" / "0.png", 1)


def empty_class(root: Path) -> None:
    (root / "train" / "ox").mkdir()


def other_size(root: Path) -> None:
    save_image(root / "train" / "dog" / "9.png", 1, size=(4, 5))


def other_size_to_test(root: Path) -> None:
    for path in sorted((root / "test").rglob("*.png")):
        save_image(path, 1, size=(6, 6))


def grey_among_colours(root: Path) -> None:
    save_image(root / "train" / "dog" / "9.png", 1, mode="L")


def no_image(root: Path) -> None:
    (root / "train" / "dog" / "9.png").write_text("hello")


def cut_off(root: Path) -> None:
    path = root / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-25])


def sixteen_bits(root: Path) -> None:
    Image.fromarray(np.full((4, 5), 40_000, dtype=np.uint16)).save(root / "train" / "dog" / "9.png")


BROKEN = {
    no_train: "no such folder of images.*train",
    no_test: "no such folder of images.*test",
    no_classes: "no class folders.*test",
    unknown_class: "without training images.*expected cat, dog, got horse",
    empty_class: "no images.*ox",
    other_size: r"different sizes.*9\.png.*\(3, 4, 5\), got \(3, 5, 4\)",
    other_size_to_test: r"differ in shape.*\(3, 4, 5\), got \(3, 6, 6\)",
    grey_among_colours: r"different sizes.*got \(1, 4, 5\)",
    no_image: r"cannot be read.*9\.png",
    cut_off: r"cannot be read.*1\.png",
    sixteen_bits: "lose values.*got I;16",
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda function: function.__name__)
def test_malformed_folders_are_refused(tmp_path: Path, spoil: object) -> None:
    write_folder(tmp_path)
    assert callable(spoil)
    spoil(tmp_path)
    with pytest.raises(WorkloadError, match=BROKEN[spoil]):
        load_dataset(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("spec", ["imagefolder", "imagefolder:"])
def test_folder_must_be_named(spec: str) -> None:
    with pytest.raises(WorkloadError, match="expected imagefolder:DIR"):
        load_dataset(spec)


def test_absent_pillow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(WorkloadError, match=r"hwprune\[images\]"):
        load_dataset(f"imagefolder:{tmp_path}")
