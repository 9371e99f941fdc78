"""What trials of cuts must not let pass: equal outputs that prove nothing, cuts that do not go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import hwprune
from hwprune.errors import ArtifactError, GraphError
from hwprune.graph.coupling import find_axes
from hwprune.surgery.outputs import compare, outputs_of
from hwprune.surgery.prove import prove


def pruned(model: nn.Module, inputs: Any, keep: float = 0.5) -> hwprune.Result:
    torch.manual_seed(1)
    profile = hwprune.load_profile("any-cpu-ort")
    compressor = hwprune.Compressor(
        model, inputs, profile, hwprune.Keep(keep), total_steps=2, measure=False, notify=lambda _line: None
    )
    result = compressor.finish()
    model.eval()
    result.model.eval()
    return result


def reasons(model: nn.Module, inputs: Any) -> dict[str, str | None]:
    """Every axis of a network to why it must stay whole."""
    try:
        plan = hwprune.preview(model, inputs, hwprune.load_profile("any-cpu-ort"), measure=False)
    except GraphError as error:
        return {"all": str(error)}
    return {row.name: row.reason for row in plan.rows}


def gap(model: nn.Module, slim: nn.Module, *inputs: Tensor) -> float:
    with torch.no_grad():
        expected, actual = model(*inputs), slim(*inputs)
    return float((expected - actual).abs().max() / expected.abs().max())


class Masked(nn.Module):
    """Sums up what a mask lets through, of features that are not zero where their weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.features, self.head = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        features = self.features(self.embed(tokens)).sigmoid()
        if mask.dtype == torch.bool:
            return self.head(features.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1))
        return self.head((features * mask.unsqueeze(-1)).sum(1))


@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.int8])
def test_what_a_mask_of_the_example_lets_through_is_no_constant(kind: torch.dtype) -> None:
    tokens = torch.randint(0, 50, (2, 9))
    everything = torch.ones(2, 9).to(kind)
    padded = everything.clone()
    padded[:, 5:] = 0
    model = Masked()
    slim = pruned(model, (tokens, everything)).model
    assert gap(model, slim, tokens, everything) < 1e-5
    assert gap(model, slim, tokens, padded) < 1e-5
    assert gap(model, slim, tokens[:, :4], everything[:, :4]) < 1e-5


class Sets(nn.Module):
    """A sum over a set of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(6, 32), nn.Softplus())
        self.together = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, elements: Tensor) -> Tensor:
        return self.together(self.each(elements).sum(1))


def test_what_grows_with_a_set_is_no_constant() -> None:
    model = Sets()
    result = pruned(model, torch.randn(2, 10, 6))
    for size in (10, 17, 3, 1):
        assert gap(model, result.model, torch.randn(2, size, 6)) < 1e-5
    assert result.model.together[0].out_features < 16


class Means(Sets):
    """A mean over a set: a constant stays one whatever its size."""

    def forward(self, elements: Tensor) -> Tensor:
        return self.together(self.each(elements).mean(1))


def test_what_does_not_grow_with_a_set_is_still_folded() -> None:
    model = Means()
    result = pruned(model, torch.randn(2, 10, 6))
    assert result.model.each[0].out_features < 32
    assert result.biases == ("together.0",)
    for size in (10, 17, 1):
        assert gap(model, result.model, torch.randn(2, size, 6)) < 1e-5


class Detector(nn.Module):
    """Returns boxes where it is sure enough, which nothing is with random weights."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.box, self.score, self.threshold = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 1, 1), threshold

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.second(self.first(images).sigmoid()).sigmoid()
        scores = self.score(maps).flatten()
        sure = scores > self.threshold
        return self.box(maps).permute(0, 2, 3, 1).reshape(-1, 4)[sure], scores[sure]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        pytest.param(Detector(1e6), (1, 3, 8, 8), id="no box"),
        pytest.param(
            nn.Sequential(nn.Linear(8, 32), nn.Sigmoid(), nn.Linear(32, 3), nn.Hardtanh(5e6, 6e6)),
            (4, 8),
            id="out of range",
        ),
    ],
)
def test_outputs_that_show_nothing_prove_nothing(model: nn.Module, shape: tuple[int, ...]) -> None:
    told = reasons(model, torch.randn(shape))
    assert "the outputs do not show whether its channels are there" in told["all"]


class Gate(nn.Module):
    """Squeeze and excite with two channels between, which are dead for many random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.squeeze, self.excite = nn.Conv2d(3, 16, 3), nn.Linear(16, 2), nn.Linear(2, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maps(images).relu()
        gate = self.excite(self.squeeze(maps.mean((2, 3))).relu()).sigmoid()
        return self.head((maps * gate[:, :, None, None]).mean((2, 3)))


@pytest.mark.parametrize("seed", range(8))
def test_channels_that_one_random_copy_does_not_show_are_shown_by_another(seed: int) -> None:
    model, images = Gate(), torch.randn(2, 3, 8, 8)
    axes = find_axes(model, images)
    proven = prove(model, axes, images, {axis.name: 1 for axis in axes}, seed=seed)
    assert [axis.name for axis in proven.axes if axis.pinned is None] == ["maps", "squeeze"]


class Classes(nn.Module):
    """Returns the most likely class: numbers that change by leaps."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(8, 32), nn.Sigmoid(), nn.Linear(32, 32), nn.Sigmoid())
        self.head = nn.Linear(32, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs)).argmax(1)


def test_classes_prove_nothing() -> None:
    assert "do not show" in reasons(Classes(), torch.randn(64, 8))["all"]


class Attributes(dict[str, Tensor]):
    """As libraries return several things."""


class Slots:
    __slots__ = ("hidden",)

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


@dataclass
class Fields:
    hidden: Tensor


class Features(nn.Module):
    """Returns what it holds inside, too."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.wrap = wrap

    def forward(self, inputs: Tensor) -> tuple[Tensor, Any]:
        hidden = self.first(inputs).relu()
        return self.head(self.second(hidden).relu()), self.wrap(hidden)


@pytest.mark.parametrize(
    "wrap", [lambda hidden: Attributes(hidden=hidden), Slots, Fields, lambda hidden: [Slots(hidden)]]
)
def test_features_that_are_returned_in_any_container_stay_whole(wrap: Callable[[Tensor], Any]) -> None:
    told = reasons(Features(wrap), torch.randn(4, 8))
    assert told["first"] == "network output"
    assert told["second"] is None


class Supervised(nn.Module):
    """A head that runs in training only reads the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.deep = nn.Conv2d(32, 16, 3)
        self.helper, self.head = nn.Conv2d(32, 5, 1), nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Any:
        maps = self.stem(images)
        logits = self.head(self.deep(maps).relu().mean((2, 3)))
        return (logits, self.helper(maps).mean((2, 3))) if self.training else logits


def test_what_is_read_in_training_only_stays_whole() -> None:
    model, images = Supervised(), torch.randn(4, 3, 8, 8)
    result = pruned(model, images)
    kept = {row.name: row for row in result.plan.rows}
    assert "a layer that runs only in training reads its channels" in str(kept["stem.0"].reason)
    assert kept["deep"].width_after < 16
    logits, helped = result.model.train()(images)
    (logits.sum() + helped.sum()).backward()
    assert result.model.helper.weight.grad is not None


class Closure(nn.Module):
    """Computes with a function that holds on to the network it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(16, 64), nn.Linear(64, 3)
        self.run = lambda inputs: self.head(self.hidden(inputs).relu())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.run(inputs)


def test_a_copy_that_still_computes_with_the_original_proves_nothing() -> None:
    assert "do not show" in reasons(Closure(), torch.randn(2, 16))["all"]


class Autoencoder(nn.Module):
    """Draws random numbers in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.mean, self.log = nn.Linear(32, 8), nn.Linear(32, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 20))

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.encoder(inputs)
        mean, log = self.mean(features), self.log(features)
        return self.decoder(mean + torch.randn_like(mean) * (0.5 * log).exp())


def test_random_numbers_in_the_forward_pass_are_the_same_for_both() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network, images = Autoencoder().eval(), torch.zeros(4, 20)
    torch.manual_seed(5)
    first, again = outputs_of(network, images), outputs_of(network, images)
    assert torch.equal(first[0], again[0])
    assert torch.equal(torch.rand(3), expected)  # the user's random numbers are as they were
    told = reasons(Autoencoder(), torch.randn(4, 20))
    assert [told[name] for name in ("encoder.0", "encoder.2", "decoder.0")] == [None] * 3


class Policy(nn.Module):
    """Says that some moves are impossible."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 6)

    def forward(self, states: Tensor, legal: Tensor) -> Tensor:
        return self.head(self.body(states)).masked_fill(~legal, float("-inf"))


def test_infinities_that_are_alike_do_not_differ() -> None:
    legal = torch.tensor([[True, False, True, True, False, True]] * 2)
    told = reasons(Policy(), (torch.randn(2, 20), legal))
    assert (told["body.0"], told["body.2"]) == (None, None)
    infinite, one = torch.tensor([float("-inf"), 1.0]), torch.tensor([0.0, 1.0])
    assert compare([infinite], [infinite]).relative == 0
    for left, right in ((infinite, one), (one, infinite), (infinite, -infinite)):
        assert compare([left], [right]).relative == float("inf")


class OwnNorm(nn.Module):
    """A norm with a name of its own for what must be positive."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("moving_variance", torch.ones(channels, 1, 1))
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return maps * torch.rsqrt(self.moving_variance + 1e-5) * self.gain


def test_what_must_be_positive_is_tried_with_positive_numbers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), OwnNorm(32), nn.ReLU(), nn.Conv2d(32, 5, 1))
    assert reasons(model, torch.randn(2, 3, 8, 8))["0"] is None


class Fitting(nn.Module):
    """A residual sum where the widths happen to fit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Conv2d(24, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images).relu()
        more = self.second(maps)
        if more.shape == maps.shape:
            more = more + maps
        return self.head(more.relu())


class Counting(nn.Module):
    """An integer that happens to be a width."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.weight = nn.Linear(16, 32), nn.Parameter(torch.randn(32, 32) * 0.2)
        self.steps, self.head = 32, nn.Linear(32, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(functional.linear(self.inner(inputs).relu(), self.weight).relu() / self.steps)


@pytest.mark.parametrize("keep", [0.4, 0.5, 0.6])
@pytest.mark.parametrize(
    ("make", "shape"), [(Fitting, (2, 3, 8, 8)), (Counting, (4, 16))], ids=["fitting", "counting"]
)
def test_cuts_that_do_not_go_together_are_found_before_training(
    make: Callable[[], nn.Module], shape: tuple[int, ...], keep: float
) -> None:
    model, inputs = make(), torch.randn(shape)
    told = [reason for reason in reasons(model, inputs).values() if reason and "together" in reason]
    assert len(told) == 1
    assert "the network asks how wide it is" in told[0]
    assert gap(model, pruned(model, inputs, keep).model, inputs) < 1e-5


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
            self.register_buffer("table", torch.arange(4.0).view(2, 2))
            self.register_buffer("flat", self.table.view(-1))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.body(inputs) + self.flat

    model = Views()
    result = pruned(model, torch.randn(2, 8))
    hwprune.save(result, tmp_path / "slim")
    slim = hwprune.load(tmp_path / "slim", model=Views())
    inputs = torch.randn(3, 8)
    assert torch.equal(slim.eval()(inputs), result.model(inputs))


def test_layers_without_weights_yet_are_named(tmp_path: Path) -> None:
    def lazy() -> nn.Sequential:
        return nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, 3))

    with pytest.raises(GraphError, match=r"no weights yet \(in 0\.weight\).*called once"):
        pruned(lazy(), torch.randn(2, 8))
    called = lazy()
    called(torch.randn(2, 8))
    hwprune.save(pruned(called, torch.randn(2, 8)), tmp_path / "slim")
    with pytest.raises(ArtifactError, match=r"without weights yet \(in 0\.weight\).*passed to load"):
        hwprune.load(tmp_path / "slim", model=lazy())


def test_empty_inputs_are_refused() -> None:
    with pytest.raises(GraphError, match=r"example input is empty.*\[0, 8\]"):
        pruned(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(0, 8))


def test_a_softmax_over_everything_is_recorded() -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            outputs = self.body(inputs)
            return outputs, torch.softmax(outputs.sum(), 0)

    assert reasons(Scalar(), torch.randn(2, 8))["body.0"] is None


def test_what_is_written_into_a_part_is_told_as_such() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.part, self.head = nn.Linear(8, 32), nn.Linear(16, 16), nn.Linear(32, 3)
            self.other = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.first(inputs).relu()
            room = torch.zeros_like(hidden)
            room[:, :16], room[:, 16:] = self.part(hidden[:, :16]), hidden[:, 16:]
            return self.head(room) + self.other(inputs)

    told = reasons(Parts(), torch.randn(2, 8))
    assert told["first"] == "aten.copy_.default writes it into a part of another tensor"
    assert told["other.0"] is None
