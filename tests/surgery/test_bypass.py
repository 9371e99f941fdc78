import json
import math

import onnx
import pytest
import torch
from torch import nn

from hwprune.errors import ArtifactError
from hwprune.graph.branches import find_branches
from hwprune.runtime.export import export
from hwprune.runtime.onnx_graph import read_operators
from hwprune.surgery.artifact import load_slim, save_slim
from hwprune.surgery.bypass import prove_branches, remove
from hwprune.surgery.stand_in import StandIn, absent_layers
from hwprune.surgery.verify import verify
from hwprune.workloads import make_model

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def proven(model, inputs=IMAGES):
    recording, branches = find_branches(model, inputs)
    return prove_branches(model, recording, branches, inputs)


def masked(model, bypasses):
    """The network with the weights of these branches at zero."""
    for bypass in bypasses:
        for name in bypass.branch.parameters:
            model.get_parameter(name).detach().zero_()
    return model


class Transformer(nn.Module):
    """Pre-norm attention and gated layers, as vision transformers have them."""

    def __init__(self, activation=nn.GELU):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.scale = nn.Parameter(torch.ones(12))
        self.mlp = nn.Sequential(nn.Linear(12, 24), activation(), nn.Linear(24, 12), nn.Dropout(0.1))

    def forward(self, tokens):
        hidden = self.norm1(tokens)
        tokens = tokens + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return tokens + self.scale * self.mlp(self.norm2(tokens))


class Bottleneck(nn.Module):
    """In-place sums and activations, a shared activation, and a map that is halved."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, 2, 1, bias=False), nn.BatchNorm2d(3)
        self.conv3, self.bn3 = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8))

    def forward(self, images):
        out = self.relu(self.bn1(self.conv1(images)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        out += self.downsample(images)
        return self.relu(out)


class Gate(nn.Module):
    """A branch whose middle is not zero where its weights are."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)

    def forward(self, images):
        return images + self.two(torch.sigmoid(self.one(images)))


NETWORKS = {
    "resnet8": (lambda: make_model("resnet8", in_channels=3, image_size=16, classes=5, seed=0), IMAGES),
    "bottleneck": (lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(inplace=True), Bottleneck()), IMAGES),
    "a constant on the way": (lambda: nn.Sequential(Gate(), Gate()), IMAGES),
    "transformer": (
        lambda: nn.Sequential(Transformer(), Transformer()),
        torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_removed_branches_change_nothing_and_are_not_in_the_file(name, tmp_path):
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.bias)
    bypasses = proven(model, inputs)
    assert all(bypass.branch.pinned is None for bypass in bypasses)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    slim = remove(masked(model, bypasses), bypasses)
    assert verify(model, slim, [inputs]).relative < 1e-6
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in model.parameters())
    assert before.keys() == model.state_dict().keys()
    export(slim, tmp_path / "slim.onnx", inputs)
    assert "add" not in {operator.kind for operator in read_operators(tmp_path / "slim.onnx")}
    stored = sum(math.prod(item.dims) for item in onnx.load(tmp_path / "slim.onnx").graph.initializer)
    assert stored <= sum(parameter.numel() for parameter in slim.parameters()) + 8


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_without_branches_loads_into_a_fresh_one_and_trains(name, tmp_path):
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    gone = proven(model, inputs)[::2]
    slim = remove(masked(model, gone), gone).eval()
    save_slim(tmp_path, slim, (), {}, {})
    torch.manual_seed(1)
    loaded = load_slim(tmp_path, make()).eval()
    assert torch.equal(loaded(inputs), slim(inputs))
    assert absent_layers(loaded) == absent_layers(slim) != {}
    loaded.train()(inputs).square().mean().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_maps_of_another_size_still_fit():
    make, _ = NETWORKS["bottleneck"]
    slim = remove(make(), proven(make()))
    assert slim(torch.zeros(1, 3, 31, 18)).shape == (1, 8, 16, 9)


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ({"blocks.77": {}}, "another network"),
        ({"": {}}, "another network"),
        ({"blocks.0": {}, "blocks.0.conv1": {}}, "taken out itself"),
        ({"head": {}}, "do not fit"),
        ({"blocks.0.conv1": {"outputs": []}}, "malformed"),
        ({"blocks.0.conv1": {"outputs": [[{"size": -1}]]}}, "malformed"),
        ({"blocks.0.conv1": {"code": "1"}}, "malformed"),
    ],
)
def test_a_tampered_structure_is_refused_and_nothing_is_touched(absent, message, tmp_path):
    make, _ = NETWORKS["resnet8"]
    save_slim(tmp_path, make(), (), {}, {})
    path = tmp_path / "structure.json"
    content = json.loads(path.read_text())
    whole = {"passes": False, "outputs": [[{"size": 2}]], "single": True}
    content["absent"] = {name: whole | changes for name, changes in absent.items()}
    path.write_text(json.dumps(content))
    fresh = make()
    with pytest.raises(ArtifactError, match=message):
        load_slim(tmp_path, fresh)
    assert not any(isinstance(module, StandIn) for module in fresh.modules())


class Constant(nn.Module):
    """A branch that is not zero where its weights are."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        return images + torch.sigmoid(self.conv(images))


class Looking(nn.Module):
    """A forward pass that looks into a layer of its branch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        return images + self.conv(images.to(self.conv.weight.dtype))


class Direct(nn.Module):
    """A branch half of which is computed by the block itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, images):
        return images + self.conv(nn.functional.conv2d(images, self.other))


class Scale(nn.Module):
    """A layer that is called without a tensor."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self):
        return self.value * 2


class Scaled(nn.Module):
    """A branch with such a layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 3, 3, padding=1), Scale()

    def forward(self, images):
        return images + self.conv(images) * self.scale()


class Fast(nn.Module):
    """Reads the weight of its layer where nobody records it, as PyTorch's transformer does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        if torch.utils._python_dispatch._get_current_dispatch_mode() is None:
            assert self.conv.weight.ndim == 4
        return images + self.conv(images)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Constant, "still runs operators of it: add"),
        (Looking, "the network cannot do without it"),
        (Direct, "still runs operators of it: conv"),
        (Scaled, "called without a tensor"),
        (
            Fast,
            "the network cannot do without it: AttributeError: 'StandIn' object has no attribute 'weight'",
        ),
    ],
)
def test_what_cannot_be_taken_out_exactly_is_pinned(block, reason):
    torch.manual_seed(0)
    model = nn.Sequential(block())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    (bypass,) = proven(model)
    assert reason in str(bypass.branch.pinned)
    assert bypass.absences == {}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_branches_that_the_fast_path_of_a_transformer_reads_are_pinned():
    torch.manual_seed(0)
    bypasses = proven(nn.TransformerEncoderLayer(12, 2, 24, batch_first=True), torch.randn(2, 5, 12))
    reasons = [str(bypass.branch.pinned) for bypass in bypasses]
    assert all("AttributeError: 'StandIn' object has no attribute" in reason for reason in reasons)
    assert any("'weight'" in reason for reason in reasons)
