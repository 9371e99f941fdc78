"""Data sets refuse what does not fit together, and are normalised by their training images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hwprune.errors import WorkloadError
from hwprune.workloads import Dataset, Preprocessing
from hwprune.workloads.data import normalised


def good_parts() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "train_images": torch.randn(6, 2, 4, 4, generator=generator),
        "train_labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "test_images": torch.randn(3, 2, 4, 4, generator=generator),
        "test_labels": torch.tensor([2, 1, 0]),
    }


BROKEN = {
    "no tensor": ("train_images", [1, 2], "wrong form.*got list"),
    "bytes": ("train_images", torch.zeros(6, 2, 4, 4, dtype=torch.uint8), "expected float32.*uint8"),
    "no channels": ("test_images", torch.zeros(3, 4, 4), r"test set.*got torch.float32 of shape \(3, 4, 4\)"),
    "no images": ("train_images", torch.zeros(0, 2, 4, 4), "no images"),
    "no pixels": ("train_images", torch.zeros(6, 2, 0, 4), "no images"),
    "NaN": ("test_images", torch.full((3, 2, 4, 4), torch.nan), "NaN or infinity.*test set"),
    "infinity": ("train_images", torch.full((6, 2, 4, 4), torch.inf), "NaN or infinity.*train set"),
    "other size": ("test_images", torch.zeros(3, 2, 5, 4), r"differ in shape.*\(2, 4, 4\).*\(2, 5, 4\)"),
    "too few labels": ("train_labels", torch.tensor([0, 1]), r"labels.*shape \(6,\).*shape \(2,\)"),
    "float labels": ("test_labels", torch.zeros(3), "expected int64.*got torch.float32"),
    "one-hot labels": ("test_labels", torch.zeros(3, 3, dtype=torch.int64), r"shape \(3, 3\)"),
    "label too large": ("train_labels", torch.tensor([0, 1, 2, 0, 1, 3]), "expected 0 to 2, got 0 to 3"),
    "negative label": ("test_labels", torch.tensor([-1, 0, 1]), "got -1 to 1"),
    "no label tensor": ("test_labels", None, "got NoneType"),
    "mean of too few channels": (
        "preprocessing",
        Preprocessing("from 0 to 1", (0.5,), (1.0, 1.0)),
        "of each of 2 channels",
    ),
    "tensors, which JSON cannot hold": (
        "preprocessing",
        Preprocessing("from 0 to 1", tuple(torch.zeros(2)), tuple(torch.ones(2))),
        "expected a Preprocessing: mean",
    ),
    "a mean that is NaN": (
        "preprocessing",
        Preprocessing("from 0 to 1", (0.5, float("nan")), (1.0, 1.0)),
        "how pixels become images",
    ),
    "no deviation": ("preprocessing", Preprocessing("from 0 to 1", (0.5, 0.5), (1.0, 0.0)), "above 0"),
    "told in words": ("preprocessing", "as usual", "got as usual"),
    "too few names": ("class_names", ("one", "two"), "expected 3 strings, or none, got 2 of str"),
    "numbers for names": ("class_names", (0, 1, 2), "names of the classes"),
    "one name": ("class_names", "abc", "names of the classes"),
    "no names but None": ("class_names", None, "names of the classes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_refused(case: str) -> None:
    part, value, message = BROKEN[case]
    with pytest.raises(WorkloadError, match=message):
        Dataset(name="mine", classes=3, **{**good_parts(), part: value})


def test_what_is_told_of_images_and_classes_is_kept() -> None:
    done = Preprocessing("from 0 to 1", (0.5, 0), (1.0, 2.0))
    data = Dataset(name="mine", classes=3, **good_parts(), preprocessing=done, class_names=("a", "b", "c"))
    assert (data.preprocessing, data.class_names) == (done, ("a", "b", "c"))


def test_shape_and_size() -> None:
    data = Dataset(name="mine", classes=3, **good_parts())
    assert data.image_shape == (2, 4, 4)
    assert data.image_size == 4


def test_size_of_images_that_are_not_square_is_height_and_width() -> None:
    parts = good_parts()
    wide = {name: parts[name][:, :, :3] for name in ("train_images", "test_images")}
    data = Dataset(name="mine", classes=3, **{**parts, **wide})
    assert data.image_shape == (2, 3, 4)
    assert data.image_size == (3, 4)


def test_first_keeps_the_test_set() -> None:
    data = Dataset(name="mine", classes=3, **good_parts())
    part = data.first(2)
    assert torch.equal(part.train_images, data.train_images[:2])
    assert part.train_labels.tolist() == [0, 1]
    assert torch.equal(part.test_images, data.test_images)
    assert data.first(None) is data
    for count in (0, 7):
        with pytest.raises(WorkloadError, match=f"expected 1 to 6, got {count}"):
            data.first(count)


def test_normalised_by_the_training_images_of_each_channel() -> None:
    parts = good_parts()
    train, test = parts["train_images"] * 50 + 7, parts["test_images"] * 50 + 7
    train[:, 1] *= 3
    before = train.clone()
    data = normalised("mine", (train, parts["train_labels"]), (test, parts["test_labels"]), "abc")
    torch.testing.assert_close(data.train_images.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train_images.std(dim=(0, 2, 3), correction=0), torch.ones(2))
    mean, deviation = train[:, 0].mean(), train[:, 0].std(correction=0)
    torch.testing.assert_close(data.test_images[:, 0], (test[:, 0] - mean) / deviation)
    assert torch.equal(train, before)


def test_constant_channel_is_only_centred() -> None:
    parts = good_parts()
    train, test = torch.full((6, 2, 4, 4), 0.5), torch.full((3, 2, 4, 4), 1.5)
    data = normalised("mine", (train, parts["train_labels"]), (test, parts["test_labels"]), "abc")
    assert (data.train_images == 0).all()
    assert (data.test_images == 1).all()
