"""The built-in networks: shapes, published sizes, and initialisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hwprune.errors import WorkloadError
from hwprune.workloads import load_dataset, make_model, model_names


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize(
    ("channels", "size"),
    [
        (1, 8),
        (1, 28),
        (3, 32),
        (2, 15),
        (1, 3),
        (1, 2),
        (1, (64, 4)),
        (3, (4, 20)),
        (2, (17, 32)),
        (1, (3, 9)),
    ],
)
def test_takes_images_of_any_kind(name: str, channels: int, size: int | tuple[int, int]) -> None:
    model = make_model(name, in_channels=channels, image_size=size, classes=7, seed=0).eval()
    shape = (size, size) if isinstance(size, int) else size
    with torch.inference_mode():
        logits = model(torch.randn(2, channels, *shape, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert logits[0].std() > 0
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", model_names())
def test_takes_the_smallest_image(name: str) -> None:
    model = make_model(name, in_channels=1, image_size=1, classes=2, seed=0).eval()
    with torch.inference_mode():
        assert model(torch.ones(1, 1, 1, 1)).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "channels", "size", "parameters"),
    [
        # LeNet-5-Caffe: 431,080 (Louizos et al. 2018)
        ("lenet5", 1, 28, 431_080),
        # the widely used CIFAR forms; vgg16 without the 4,224 biases that its batch norms make idle
        ("resnet18", 3, 32, 11_173_962),
        ("vgg16", 3, 32, 14_728_266 - 4_224),
        # 269,722 with parameterless shortcuts (He et al. 2016), and two projections with their norms
        ("resnet20", 3, 32, 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
        # likewise
        ("mobilenetv1", 3, 32, 3_217_226),
    ],
)
def test_has_the_known_number_of_parameters(name: str, channels: int, size: int, parameters: int) -> None:
    model = make_model(name, in_channels=channels, image_size=size, classes=10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_default_network_has_widths_that_bundle() -> None:
    model = make_model("resnet8", in_channels=1, image_size=8, classes=10, seed=0)
    widths = {module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)}
    assert widths == {48, 96, 192}


@pytest.mark.parametrize("name", model_names())
def test_layers_are_initialised_by_their_inputs(name: str) -> None:
    model = make_model(name, in_channels=3, image_size=16, classes=10, seed=0)
    for label, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() >= 2000:
            wanted = (2 / module.weight[0].numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.1), label


@pytest.mark.parametrize("name", ["lenet5", "resnet8"])
def test_seed_decides_and_leaves_the_global_state(name: str) -> None:
    def make(seed: int) -> torch.Tensor:
        model = make_model(name, in_channels=1, image_size=8, classes=10, seed=seed)
        return nn.utils.parameters_to_vector(model.parameters())

    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = make(0), make(0), make(1)
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"in_channels": 0, "image_size": 8, "classes": 2}, "channels"),
        ({"in_channels": 1, "image_size": 0, "classes": 2}, "pixels"),
        ({"in_channels": 1, "image_size": 8, "classes": 0}, "classes"),
        ({"in_channels": 1, "image_size": (8, 0), "classes": 2}, "pixels"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        make_model("lenet5", **sizes, seed=0)


def test_default_network_learns_the_digits() -> None:
    from hwprune.workloads import accuracy, iterate_batches

    data = load_dataset("digits").first(640)
    model = make_model("resnet8", in_channels=1, image_size=8, classes=10, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    before = accuracy(model, data.test_images, data.test_labels)
    for _ in range(2):
        for images, labels in iterate_batches(data, 64, generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    assert before < 0.5
    assert accuracy(model, data.test_images, data.test_labels) > 0.9
