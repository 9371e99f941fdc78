"""Training as people write it: nothing is silently skipped, and the survivors are the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hwprune
from hwprune.errors import InputError, TrainingError
from hwprune.graph.coupling import find_axes
from hwprune.groups.channel import ChannelGroups
from hwprune.groups.costs import CountBudget
from hwprune.groups.widths import WidthAllowance
from hwprune.penalties import make_penalty
from hwprune.train.prox import ProximalStep
from hwprune.train.schedule import StrengthSchedule

STEPS, KEPT, BATCH = 60, 14, 16


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.GroupNorm(1, 16), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def proximal_step(model: nn.Module) -> ProximalStep:
    axes = find_axes(model, torch.zeros(1, 1, 10, 10))
    groups = ChannelGroups(model, axes, {axis.name: 1 for axis in axes})
    allowance = WidthAllowance(groups, CountBudget(np.array(groups.aligns), KEPT))
    return ProximalStep(groups, make_penalty("envelope"), allowance, StrengthSchedule(STEPS, peak=0.2))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 4, (BATCH,), generator=generator)
    return torch.randn(BATCH, 1, 10, 10, generator=generator) + labels.view(-1, 1, 1, 1), labels


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


class Training:
    """Sixty steps of one kind; subclasses change what people change."""

    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] = staticmethod(sgd)

    def __init__(self) -> None:
        self.model = network()
        self.proximal = proximal_step(self.model)
        self.optimizer = self.proximal.attach(self.make_optimizer(self.model))
        self.prepare()

    def prepare(self) -> None:
        """What happens before the first step."""

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()

    def run(self) -> ProximalStep:
        for index in range(STEPS):
            self.step(*batch(index))
        return self.proximal


class Accumulating(Training):
    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        for part in range(4):
            chosen = slice(part * BATCH // 4, (part + 1) * BATCH // 4)
            (nn.functional.cross_entropy(self.model(images[chosen]), labels[chosen]) / 4).backward()
        self.optimizer.step()


class ClippingNothing(Training):
    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(images), labels).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1e6)
        self.optimizer.step()


class ChannelsLast(Training):
    def prepare(self) -> None:
        self.model.to(memory_format=torch.channels_last)

    def step(self, images: Tensor, labels: Tensor) -> None:
        super().step(images.to(memory_format=torch.channels_last), labels)


class ParameterGroups(Training):
    make_optimizer = staticmethod(
        lambda model: torch.optim.SGD(
            [{"params": list(layer.parameters())} for layer in model if list(layer.parameters())],
            lr=0.05,
            momentum=0.9,
        )
    )


class Closure(Training):
    def step(self, images: Tensor, labels: Tensor) -> None:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(images), labels)
            loss.backward()
            return loss

        self.optimizer.step(closure)


class ConstantScheduler(Training):
    def prepare(self) -> None:
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)

    def step(self, images: Tensor, labels: Tensor) -> None:
        super().step(images, labels)
        self.scheduler.step()


class ScaledByPowersOfTwo(Training):
    """No step overflows, and the scale comes out of the gradients again exactly."""

    def prepare(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(nn.functional.cross_entropy(self.model(images), labels)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


SAME_MATHS = {
    style.__name__: style
    for style in (
        Accumulating,
        ClippingNothing,
        ChannelsLast,
        ParameterGroups,
        Closure,
        ConstantScheduler,
        ScaledByPowersOfTwo,
    )
}


@pytest.fixture(scope="module")
def plain() -> ProximalStep:
    return Training().run()


@pytest.mark.parametrize("name", SAME_MATHS)
def test_what_changes_no_gradient_changes_no_survivor(name: str, plain: ProximalStep) -> None:
    proximal = SAME_MATHS[name]().run()
    assert proximal.step == STEPS
    assert torch.equal(proximal.alive, plain.alive)


class HalfRate(Training):
    """The classifier has a parameter group of its own, at half the learning rate."""

    make_optimizer = staticmethod(
        lambda model: torch.optim.SGD(
            [{"params": model[:-1].parameters()}, {"params": model[-1].parameters(), "lr": 0.025}],
            lr=0.05,
            momentum=0.9,
        )
    )


class HalfGradient(Training):
    """One group, in which the classifier's gradients are halved."""

    def prepare(self) -> None:
        for parameter in self.model[-1].parameters():  # type: ignore[index]
            parameter.register_hook(lambda gradient: gradient / 2)


def test_a_parameter_group_with_a_rate_of_its_own_is_pruned_like_all_others(plain: ProximalStep) -> None:
    grouped, halved = HalfRate(), HalfGradient()
    assert torch.equal(grouped.run().alive, halved.run().alive)
    for one, other in zip(grouped.model.parameters(), halved.model.parameters(), strict=True):
        assert torch.equal(one, other)
    rates = [group["lr"] for group in grouped.optimizer.param_groups]
    assert rates == [0.05, 0.025]
    norms = [step.groups.member_norms() for step in (grouped.proximal, plain)]
    assert not torch.equal(*norms)


class Adam(Training):
    make_optimizer = staticmethod(lambda model: torch.optim.Adam(model.parameters(), lr=0.01))


class AdamW(Training):
    make_optimizer = staticmethod(lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, fused=True))


@pytest.fixture(scope="module")
def plain_adamw() -> ProximalStep:
    return AdamW().run()


@pytest.mark.parametrize("style", [Accumulating, ClippingNothing, ChannelsLast, ScaledByPowersOfTwo])
def test_nor_does_it_with_an_adaptive_optimiser(
    style: type[Training], plain_adamw: ProximalStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "make_optimizer", staticmethod(AdamW.make_optimizer), raising=False)
    proximal = style().run()
    assert proximal.step == STEPS
    assert torch.equal(proximal.alive, plain_adamw.alive)


class RmsProp(Training):
    make_optimizer = staticmethod(lambda model: torch.optim.RMSprop(model.parameters(), lr=0.002))


class Adagrad(Training):
    make_optimizer = staticmethod(lambda model: torch.optim.Adagrad(model.parameters(), lr=0.02))


class Nadam(Training):
    make_optimizer = staticmethod(lambda model: torch.optim.NAdam(model.parameters(), lr=0.01))


class Clipping(Training):
    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(images), labels).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()


class CosineScheduler(Training):
    def prepare(self) -> None:
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)

    def step(self, images: Tensor, labels: Tensor) -> None:
        super().step(images, labels)
        self.scheduler.step()


class Bfloat16(Training):
    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()


class Scaled(Training):
    """A gradient scaler; the first three steps overflow and are skipped by it."""

    def prepare(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        self.taken = 0

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(images), labels)

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = self.loss(images, labels)
        if self.taken < 3:
            loss = loss * float("inf")
        self.taken += 1
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Float16(Scaled):
    """Half precision, whose small gradients the scaler saves; steps overflow as above."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            output = self.model(images)
            assert output.dtype == torch.float16
            return nn.functional.cross_entropy(output, labels)


class Float16WithoutOverflow(Float16):
    """Half precision, no step of which is skipped."""

    def prepare(self) -> None:
        super().prepare()
        self.taken = 3


class ScaledFused(Scaled):
    """The scaler calls the optimiser's step even so, whose kernel then leaves the weights as they are."""

    make_optimizer = staticmethod(lambda model: torch.optim.Adam(model.parameters(), lr=0.01, fused=True))


OTHER_MATHS = {
    style.__name__: style
    for style in (
        Adam,
        AdamW,
        RmsProp,
        Adagrad,
        Nadam,
        Clipping,
        CosineScheduler,
        Bfloat16,
        Scaled,
        Float16,
        ScaledFused,
    )
}


@pytest.mark.parametrize("name", OTHER_MATHS)
def test_every_style_ends_on_exactly_the_budget(name: str) -> None:
    training = OTHER_MATHS[name]()
    proximal = training.run()
    skipped = 3 if isinstance(training, Scaled) else 0
    assert proximal.step == STEPS - skipped  # a step that the scaler skips is no step of the schedule
    assert proximal.settled
    assert proximal.groups_alive == KEPT
    norms = proximal.groups.member_norms()
    assert torch.equal(norms > 0, proximal.alive)
    assert all(bool(parameter.isfinite().all()) for parameter in training.model.parameters())


def averaged(model: nn.Module) -> torch.optim.swa_utils.AveragedModel:
    return torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )


def test_an_average_of_settled_weights_has_the_same_zeros() -> None:
    training = Training()
    average = averaged(training.model)
    for index in range(STEPS):
        training.step(*batch(index))
        if training.proximal.settled:
            average.update_parameters(training.model)
    twin = proximal_step(average.module)
    assert torch.equal(twin.groups.member_norms() > 0, training.proximal.alive)


def compressed(model: nn.Module, notify: Callable[[str], None] = lambda line: None) -> hwprune.Compressor:
    return hwprune.Compressor(
        model,
        batch(0)[0][:2],
        hwprune.load_profile("x86-avx2-ort"),
        hwprune.Keep(0.5),
        total_steps=STEPS,
        measure=False,
        notify=notify,
    )


@pytest.mark.parametrize("inner", [False, True], ids=["averaged model", "its module"])
def test_an_average_of_all_weights_becomes_a_slim_network(inner: bool) -> None:
    plain, training = Training(), Training()
    for one in (plain, training):
        one.model = network()
    compressors = [compressed(one.model) for one in (plain, training)]
    for one, compressor in zip((plain, training), compressors, strict=True):
        one.optimizer = compressor.wrap(one.make_optimizer(one.model))
    average = averaged(training.model)
    for index in range(STEPS):
        plain.step(*batch(index))
        training.step(*batch(index))
        average.update_parameters(training.model)
    before = [value.clone() for value in average.state_dict().values()]
    compressors[1].use_average(average.module if inner else average)
    result = compressors[1].finish()
    # Survivors were fixed before; what is averaged is not changed itself.
    assert torch.equal(compressors[0].proximal.alive, compressors[1].proximal.alive)
    assert all(map(torch.equal, before, average.state_dict().values()))
    sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (result.model, plain.model)]
    assert sizes[0] < sizes[1]
    columns, slim = (one.state_dict()["8.weight"].T for one in (average.module, result.model))
    assert all(any(torch.equal(column, other) for other in columns) for column in slim)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["in parallel", "compiled"])
def test_an_average_may_be_of_the_network_in_wrappers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = network()
    compressor = compressed(model)
    average = averaged(wrap(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    wanted = [value.clone() for value in network().state_dict().values()]
    compressor.use_average(average)
    kept = [value != 0 for value in model.state_dict().values()]
    assert any(bool(mask.any()) for mask in kept)
    for value, original, mask in zip(model.state_dict().values(), wanted, kept, strict=True):
        assert torch.equal(value[mask], original[mask])


def test_survivors_that_are_not_fixed_yet_are_chosen_by_the_average() -> None:
    model, notes = network(), list[str]()
    compressor = compressed(model, notes.append)
    compressor.wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    average = averaged(model)
    with torch.no_grad():  # the last channels of the average are its largest, those of the network its least
        for index in (2, 4):
            average.module[index].weight[-8:] = 10.0
            model[index].weight[-8:] = 1e-3
    compressor.use_average(average)
    assert [note for note in notes if note.startswith("the training ended after 0 of")]
    lost = [model[index].weight.detach().flatten(1).norm(dim=1) == 0 for index in (2, 4)]
    assert not any(bool(each[-8:].any()) for each in lost)
    assert any(bool(each[:8].any()) for each in lost)


def test_an_average_that_is_not_finite_leaves_the_network_as_it_is() -> None:
    model = network()
    compressor = compressed(model)
    average = averaged(model)
    with torch.no_grad():
        average.module[0].weight[0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        compressor.use_average(average)
    assert all(map(torch.equal, model.state_dict().values(), network().state_dict().values()))
    assert not compressor.proximal.settled


def test_an_average_of_another_network_is_refused() -> None:
    compressor = compressed(network())
    for other in (nn.Sequential(nn.Conv2d(1, 16, 3)), averaged(nn.Linear(2, 2))):
        with pytest.raises(InputError, match="of another network"):
            compressor.use_average(other)
    assert not compressor.proximal.settled


@pytest.mark.parametrize("style", [Bfloat16, Float16WithoutOverflow])
def test_half_precision_leaves_the_same_survivors(style: type[Training], plain: ProximalStep) -> None:
    assert torch.equal(style().run().alive, plain.alive)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_has_the_same_survivors(backend: str, plain: ProximalStep) -> None:
    training = Training()
    original = training.model
    training.model = torch.compile(original, backend=backend)  # type: ignore[assignment]
    assert torch.equal(training.run().alive, plain.alive)


def test_half_precision_goes_through_the_compressor_to_a_slim_network() -> None:
    training = Float16()
    training.model = network()
    example = batch(0)[0][:2]
    compressor = hwprune.Compressor(
        training.model,
        example,
        hwprune.load_profile("x86-avx2-ort"),
        hwprune.Keep(0.5),
        total_steps=STEPS,
        measure=False,
    )
    training.optimizer = compressor.wrap(training.make_optimizer(training.model))
    for index in range(STEPS + 3):  # the first three are skipped
        training.step(*batch(index))
    assert compressor.proximal.settled
    result = compressor.finish([example])
    training.model.eval()
    with torch.no_grad():
        assert torch.allclose(result.model(example), training.model(example), atol=1e-5)
    before, after = (sum(p.numel() for p in model.parameters()) for model in (training.model, result.model))
    assert after < 0.6 * before
