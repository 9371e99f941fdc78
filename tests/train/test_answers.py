"""What a teacher has answered: asked for once, and never a bit different from asking again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hwprune.train.answers import Answers
from hwprune.train.distillation import Distillation
from hwprune.train.loop import Recipe, Teacher, Trainer
from hwprune.workloads import Dataset, load_dataset
from hwprune.workloads.batches import shift_and_flip

RECIPE = Recipe(epochs=2, batch_size=48, seed=3)


class Counted(nn.Sequential):
    """A network that counts how often it is asked."""

    asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        logits: Tensor = super().forward(images)
        return logits


def network(seed: int, *more: nn.Module) -> Counted:
    torch.manual_seed(seed)
    return Counted(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), *more, nn.Linear(16, 10))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return replace(load_dataset("digits").first(200), augment=shift_and_flip)


def trained(student: nn.Module, teacher: nn.Module, answers: Answers | None, data: Dataset) -> list[Tensor]:
    trainer = Trainer(student, data, RECIPE, teacher=Teacher(teacher, Distillation(0.5), answers))
    while not trainer.done:
        trainer.run_epoch()
    return list(student.state_dict().values())


def test_what_was_answered_one_network_gives_the_next_the_same_weights_unasked(data: Dataset) -> None:
    """Although images are changed at random, and the networks draw random numbers of their own."""
    teacher, answers = network(1), Answers()
    plain = trained(network(5), teacher, None, data)
    teacher.asked = 0
    trained(network(2, nn.Dropout()), teacher, answers, data)
    batches = RECIPE.epochs * 5
    assert (teacher.asked, answers.added) == (batches, batches)
    kept = trained(network(5), teacher, Answers(answers.known), data)
    assert teacher.asked == batches
    assert all(torch.equal(one, other) for one, other in zip(plain, kept, strict=True))


def test_a_batch_of_another_order_value_or_shape_is_asked_anew() -> None:
    teacher, answers = network(1), Answers()
    images = torch.arange(128.0).reshape(2, 1, 8, 8)
    for batch in (images, images.flip(0), images + 1e-4, images[:1], images.reshape(2, 1, 4, 16)):
        before = teacher.asked
        for _ in range(2):
            assert torch.equal(answers.to(batch, teacher), teacher.forward(batch))
        assert teacher.asked == before + 3


def test_answers_that_are_drawn_are_not_kept() -> None:
    teacher, answers = network(1, nn.Dropout()), Answers()
    images = torch.ones(4, 1, 8, 8)
    assert not torch.equal(answers.to(images, teacher), answers.to(images, teacher))
    assert answers.known == {}


def test_no_more_than_there_is_room_for_is_kept() -> None:
    teacher = network(1)
    answers = Answers(most_bytes=100)
    for value in range(4):
        answers.to(torch.full((1, 1, 8, 8), float(value)), teacher)
    assert answers.added == len(answers.known) == 2
    assert Answers(answers.known, most_bytes=100).to(torch.full((1, 1, 8, 8), 9.0), teacher).shape == (1, 10)
