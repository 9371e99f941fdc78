"""Learning from the dense network: the loss, its gradient, and what training makes of it."""

import pytest
import torch
from torch import nn

from hwprune.errors import InputError
from hwprune.train.distillation import Distillation
from hwprune.train.loop import Recipe, Teacher, Trainer
from hwprune.workloads import load_dataset


def test_the_divergence_is_the_textbook_one():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    student_p = (logits / 2).softmax(1)
    teacher_p = (teacher / 2).softmax(1)
    divergence = (teacher_p * (teacher_p / student_p).log()).sum(1).mean()
    mixed = Distillation(0.25, 2.0).mix(torch.tensor(3.0, dtype=torch.float64), logits, teacher)
    torch.testing.assert_close(mixed, 0.75 * 3.0 + 0.25 * 4 * divergence)


def test_the_gradient_of_soft_answers_is_that_of_logits():
    # Section 2.1 of the paper: at high temperatures the gradient of centred logits is their difference / n.
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 1, 4, generator=generator, dtype=torch.float64)
    logits, teacher = logits - logits.mean(), teacher - teacher.mean()
    logits.requires_grad_()
    Distillation(1.0, 1e4).mix(logits.sum() * 0, logits, teacher).backward()
    torch.testing.assert_close(logits.grad, (logits.detach() - teacher) / 4, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("arguments", [(0.0,), (1.5,), (float("nan"),), (0.5, 0.0), (0.5, float("inf"))])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(InputError, match="distillation"):
        Distillation(*arguments)


def test_a_network_without_labels_comes_to_the_teachers_answers():
    data = load_dataset("digits").first(256)

    def network(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    teacher = network(1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    teacher.train()

    def agreement(model):
        with torch.no_grad():
            return float(
                (model(data.test_images).argmax(1) == teacher(data.test_images).argmax(1)).float().mean()
            )

    student = network(2)
    untrained = agreement(student)
    trainer = Trainer(
        student, data, Recipe(epochs=20, batch_size=32), teacher=Teacher(teacher, Distillation(1.0, 2.0))
    )
    while not trainer.done:
        trainer.run_epoch()
    assert untrained < 0.25
    assert agreement(student) > 0.45  # the teacher knows nothing of digits: its answers come from itself only
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
