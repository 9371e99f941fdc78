"""Batches cover an epoch, and augmentation moves and mirrors without inventing pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hwprune.errors import InputError
from hwprune.workloads import Dataset, accuracy, batches_per_epoch, iterate_batches
from hwprune.workloads.batches import shift_and_flip


def numbered(count: int, augmenting: bool = False) -> Dataset:
    """Images whose pixels tell their number."""
    images = torch.arange(count).float().reshape(count, 1, 1, 1).expand(count, 1, 3, 3).contiguous()
    augment = (lambda batch, _generator: batch + 1000) if augmenting else None
    return Dataset("numbered", images, torch.arange(count), images, torch.arange(count), count, augment)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(10, 5, [5, 5]), (65, 64, [33, 32]), (10, 4, [4, 3, 3]), (3, 100, [3]), (3, 1, [1, 1, 1])],
)
def test_every_image_comes_once_in_even_batches(count: int, batch_size: int, sizes: list[int]) -> None:
    data = numbered(count)
    batches = list(iterate_batches(data, batch_size, seeded()))
    assert [len(labels) for _, labels in batches] == sizes
    assert len(batches) == batches_per_epoch(data, batch_size)
    seen = torch.cat([labels for _, labels in batches])
    assert sorted(seen.tolist()) == list(range(count))
    for images, labels in batches:
        assert torch.equal(images[:, 0, 0, 0], labels.float())


def test_order_is_decided_by_the_generator_and_changes_every_epoch() -> None:
    def order(generator: torch.Generator) -> list[int]:
        return [int(label) for _, labels in iterate_batches(numbered(50), 8, generator) for label in labels]

    generator = seeded()
    first, second = order(generator), order(generator)
    assert first == order(seeded())
    assert first != second
    assert first != list(range(50))


def test_augmentation_can_be_left_out() -> None:
    data = numbered(6, augmenting=True)
    assert all((images >= 1000).all() for images, _ in iterate_batches(data, 2, seeded()))
    assert all((images < 6).all() for images, _ in iterate_batches(data, 2, seeded(), augment=False))


def test_empty_batches_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1, got 0"):
        next(iterate_batches(numbered(3), 0, seeded()))


def test_shift_and_flip_gives_a_crop_of_the_padded_image_or_its_mirror() -> None:
    images = torch.rand(64, 2, 5, 6, generator=seeded()) + 1
    images[:, :, 0, 0] = 1.0
    moved = shift_and_flip(images, seeded(1))
    assert moved.shape == images.shape
    assert moved.is_contiguous()
    padded = nn.functional.pad(images, (2, 2, 2, 2), value=1.0)
    found = set()
    for number in range(len(images)):
        crops = {
            (top, left, mirrored): padded[number, :, top : top + 5, left : left + 6].flip(flips)
            for top in range(5)
            for left in range(5)
            for mirrored, flips in ((False, ()), (True, (2,)))
        }
        matches = [key for key, crop in crops.items() if torch.equal(crop, moved[number])]
        assert len(matches) == 1
        found.add(matches[0])
    assert {key[0] for key in found} == set(range(5))
    assert {key[1] for key in found} == set(range(5))
    assert {key[2] for key in found} == {False, True}


def test_shift_and_flip_is_decided_by_the_generator() -> None:
    images = torch.rand(8, 1, 6, 6, generator=seeded())
    assert torch.equal(shift_and_flip(images, seeded(3)), shift_and_flip(images, seeded(3)))
    assert not torch.equal(shift_and_flip(images, seeded(3)), shift_and_flip(images, seeded(4)))


class FirstPixelIsClass(nn.Module):
    """Right wherever the label is the first pixel; wrong in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> Tensor:
        shift = 1 if self.training else 0
        return nn.functional.one_hot((images[:, 0, 0, 0].long() + shift) % 10, 10).float()


def test_accuracy_counts_in_evaluation_mode_and_restores_every_mode() -> None:
    data = numbered(10)
    model = FirstPixelIsClass().train()
    model.norm.eval()
    labels = data.test_labels.clone()
    labels[:3] = 9
    for batch_size in (1, 3, 10, 500):
        assert accuracy(model, data.test_images, labels, batch_size) == pytest.approx(0.7)
    assert model.training
    assert not model.norm.training


def test_accuracy_restores_the_mode_when_the_model_fails() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 2)).train()
    with pytest.raises(RuntimeError):
        accuracy(model, torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64))
    assert model.training
