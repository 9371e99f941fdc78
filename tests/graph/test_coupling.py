"""Axes of small networks, checked by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from hwprune.errors import GraphError
from hwprune.graph.coupling import find_axes

IMAGE = torch.zeros(2, 3, 8, 8)


def axes_of(net, *inputs):
    return {axis.name: axis for axis in find_axes(net.eval(), inputs or (IMAGE,))}


def parts(slices):
    return {(part.tensor, part.dim) for part in slices}


class Net(nn.Module):
    """Layers by name and a forward pass given as a function of (layers, inputs)."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.run(self, *inputs)


def test_chain():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten())
    axes = axes_of(net)
    assert list(axes) == ["0", "3"]
    assert axes["0"].width == 8
    assert axes["0"].pinned is None
    assert parts(axes["0"].producers) == {("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0)}
    assert parts(axes["0"].consumers) == {("1.running_mean", 0), ("1.running_var", 0), ("3.weight", 1)}
    assert axes["3"].pinned == "network output"


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    find_axes(net, IMAGE + 1)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_residual_sum_ties_its_branches():
    net = Net(
        lambda s, x: s.out(functional.relu(s.stem(x) + s.branch(s.stem(x)))),
        stem=nn.Conv2d(3, 8, 1),
        branch=nn.Conv2d(8, 8, 3, padding=1),
        out=nn.Conv2d(8, 2, 1),
    )
    axes = axes_of(net)
    assert list(axes) == ["stem", "out"]
    assert {tensor for tensor, _ in parts(axes["stem"].producers)} == {
        "stem.weight",
        "stem.bias",
        "branch.weight",
        "branch.bias",
    }
    assert parts(axes["stem"].consumers) == {("branch.weight", 1), ("out.weight", 1)}


def test_concatenation_keeps_axes_apart():
    net = Net(
        lambda s, x: s.out(torch.cat([s.left(x), x, s.right(x)], 1)),
        left=nn.Conv2d(3, 4, 1),
        right=nn.Conv2d(3, 2, 1),
        out=nn.Conv2d(9, 1, 1),
    )
    axes = axes_of(net)
    assert axes["left"].consumers[0].channels.tolist() == [0, 1, 2, 3, -1, -1, -1, -1, -1]
    assert axes["right"].consumers[0].channels.tolist() == [-1, -1, -1, -1, -1, -1, -1, 0, 1]
    assert axes["left"].pinned is None


def test_depthwise_follows_its_input():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 2, 1))
    axes = axes_of(net)
    assert list(axes) == ["0", "2"]
    by_tensor = {(part.tensor, part.dim): part.channels.tolist() for part in axes["0"].slices}
    assert by_tensor["1.weight", 0] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert by_tensor["2.weight", 1] == by_tensor["1.bias", 0] == by_tensor["1.weight", 0]
    assert ("1.weight", 0) in parts(axes["0"].producers)


def test_groups_of_a_convolution_stay_equal():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 2, 1))
    axes = axes_of(net)
    by_tensor = {(p.tensor, p.dim): p.channels.tolist() for axis in axes.values() for p in axis.slices}
    assert by_tensor["0.weight", 0] == [0, 1, 2, 0, 1, 2]
    assert by_tensor["1.weight", 1] == [0, 1, 2]
    assert by_tensor["1.weight", 0] == [0, 1, 0, 1]
    assert by_tensor["2.weight", 1] == [0, 1, 0, 1]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution(groups):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, groups=groups), nn.Conv2d(4, 2, 1))
    axes = axes_of(net)
    assert all(axis.pinned is None for name, axis in axes.items() if name != "2")
    if groups == 1:
        assert ("1.weight", 0) in parts(axes["0"].consumers)
        assert parts(axes["1"].producers) == {("1.weight", 1), ("1.bias", 0)}
    elif groups == 2:
        assert [axes["0"].width, axes["1"].width] == [2, 2]
    else:
        assert ("1.weight", 0) in parts(axes["0"].producers)


@pytest.mark.parametrize(("conv", "size"), [(nn.Conv1d, (2, 3, 9)), (nn.Conv3d, (2, 3, 5, 5, 5))])
def test_other_numbers_of_dimensions(conv, size):
    axes = axes_of(nn.Sequential(conv(3, 4, 3), nn.ReLU(), conv(4, 2, 1)), torch.zeros(size))
    assert axes["0"].pinned is None
    assert parts(axes["0"].consumers) == {("2.weight", 1)}


def test_flattened_map_owns_several_positions():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 3))
    consumer = axes_of(net)["0"].consumers[0]
    assert consumer.channels.tolist() == [0] * 64 + [1] * 64


def test_squeeze_and_excite_gate_ties_with_its_map():
    net = Net(
        lambda s, x: s.out(
            s.body(x) * s.expand(functional.relu(s.squeeze(s.body(x).mean((2, 3), True)))).sigmoid()
        ),
        body=nn.Conv2d(3, 8, 1),
        squeeze=nn.Conv2d(8, 2, 1),
        expand=nn.Conv2d(2, 8, 1),
        out=nn.Conv2d(8, 2, 1),
    )
    axes = axes_of(net)
    assert list(axes) == ["body", "squeeze", "out"]
    assert ("expand.weight", 0) in parts(axes["body"].producers)
    assert parts(axes["squeeze"].consumers) == {("expand.weight", 1)}


def test_layer_scale_and_prelu_are_narrowed_and_added_parameters_must_vanish():
    net = Net(
        lambda s, x: s.out(s.act(s.conv(x)) * s.scale + s.shift),
        conv=nn.Conv2d(3, 4, 1),
        act=nn.PReLU(4),
        scale=nn.Parameter(torch.ones(4, 1, 1)),
        shift=nn.Parameter(torch.ones(1, 4, 8, 8)),
        out=nn.Conv2d(4, 2, 1),
    )
    axis = axes_of(net)["conv"]
    assert axis.pinned is None
    assert {("act.weight", 0), ("scale", 0)} <= parts(axis.consumers)
    assert ("shift", 1) in parts(axis.producers)
    assert not any(part.tensor == "shift" and part.dim > 1 for part in axis.slices)


def test_shared_layer_called_twice():
    net = Net(
        lambda s, x: s.out(s.twice(functional.relu(s.twice(s.stem(x))))),
        stem=nn.Conv2d(3, 4, 1),
        twice=nn.Conv2d(4, 4, 1),
        out=nn.Conv2d(4, 2, 1),
    )
    axes = axes_of(net)
    assert list(axes) == ["stem", "out"]
    assert {("twice.weight", 0), ("stem.weight", 0)} <= parts(axes["stem"].producers)
    assert ("twice.weight", 1) in parts(axes["stem"].consumers)


def test_channel_shuffle_between_grouped_convolutions():
    def shuffle(x):
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return x.reshape(batch, -1, height, width)

    net = Net(
        lambda s, x: s.out(shuffle(s.first(x))),
        first=nn.Conv2d(3, 6, 1),
        out=nn.Conv2d(6, 2, 1, groups=2),
    )
    axis = axes_of(net)["first"]
    assert axis.slices[0].channels.tolist() == [0] * 6, (
        "a tie over groups and one over halves is a tie of all"
    )
    assert axis.pinned == "it has a single channel"


def test_channel_shuffle_repeats_each_channel():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ChannelShuffle(2), nn.Conv2d(6, 2, 1))
    axis = axes_of(net)["0"]
    assert axis.slices[0].channels.tolist() == [0, 1, 2, 0, 1, 2]
    assert axis.consumers[0].channels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "shuffle", [nn.PixelShuffle(2), nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2))]
)
def test_pixel_shuffle(shuffle):
    channels = 3 if isinstance(shuffle, nn.PixelShuffle) else 12
    net = nn.Sequential(nn.Conv2d(3, 12, 1), shuffle, nn.Conv2d(channels, 2, 1))
    axis = axes_of(net)["0"]
    assert axis.width == 3
    assert axis.slices[0].channels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_equal_chunks_lose_the_same_channels():
    def forward(s, x):
        left, right = s.first(x).chunk(2, 1)
        return s.out(left * right.sigmoid())

    net = Net(forward, first=nn.Conv2d(3, 8, 1), out=nn.Conv2d(4, 2, 1))
    axis = axes_of(net)["first"]
    assert axis.slices[0].channels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert axis.pinned is None


def test_uneven_parts_are_kept():
    def forward(s, x):
        left, right = s.first(x).split([3, 5], 1)
        return s.left(left) + s.right(right)

    net = Net(forward, first=nn.Conv2d(3, 8, 1), left=nn.Conv2d(3, 2, 1), right=nn.Conv2d(5, 2, 1))
    assert all(
        "fixed width" in axis.pinned for name, axis in axes_of(net).items() if name.startswith("first")
    )


def test_part_of_a_layer_that_leaves_the_network_is_kept_by_itself():
    net = Net(
        lambda s, x: (s.first(x)[:, :4] + s.second(x), s.out(s.first(x))),
        first=nn.Conv2d(3, 8, 1),
        second=nn.Conv2d(3, 4, 1),
        out=nn.Conv2d(8, 2, 1),
    )
    assert {axis.pinned for axis in axes_of(net).values()} == {"network output"}


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.GroupNorm(1, 8), "a group norm takes statistics over channels (in 1)"),
        (nn.Softmax(1), "a softmax or a running sum sees all channels (in 1)"),
        (nn.Bilinear(8, 8, 8), None),
    ],
)
def test_layers_that_mix_channels_keep_them(layer, reason):
    if isinstance(layer, nn.Bilinear):
        net = Net(
            lambda s, x: s.out(s.mix(s.first(x), s.first(x))),
            first=nn.Linear(3, 8),
            mix=layer,
            out=nn.Linear(8, 2),
        )
        assert (
            axes_of(net, torch.zeros(2, 3))["first"].pinned == "operator aten._trilinear has no rule (in mix)"
        )
        return
    axis = axes_of(nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(8, 2, 1)))["0"]
    assert axis.pinned == reason


def test_groups_of_a_group_norm_leave_whole():
    axis = axes_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1)))["0"]
    assert axis.pinned is None
    assert axis.width == 4
    (reader,) = [part for part in axis.consumers if part.tensor == "2.weight"]
    assert reader.channels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_pooling_of_a_channels_last_map_is_followed():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1))
    axes = axes_of(net, IMAGE.to(memory_format=torch.channels_last))
    assert axes["0"].pinned is None
    assert axes["0"].width == 8


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(8, 8), nn.InstanceNorm2d(8)]
)
def test_norms_of_single_channels_follow_them(norm):
    axis = axes_of(nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 2, 1)))["0"]
    assert axis.pinned is None
    assert axis.width == 8
    if norm.weight is not None:
        assert {("1.weight", 0), ("1.bias", 0)} <= parts(axis.producers)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8)])
def test_norms_over_channels_keep_them(norm):
    net = nn.Sequential(nn.Linear(3, 8), norm, nn.Linear(8, 2))
    axis = axes_of(net, torch.zeros(2, 3))["0"]
    assert axis.pinned is not None
    assert "statistic" in axis.pinned
    assert "(in 1)" in axis.pinned


@pytest.mark.parametrize("layer", [nn.LSTM(8, 4), nn.GRU(8, 4), nn.RNN(8, 4)])
def test_recurrent_layers_are_refused_by_name(layer):
    net = Net(
        lambda s, x: s.out(s.memory(s.first(x))[0]), first=nn.Linear(3, 8), memory=layer, out=nn.Linear(4, 2)
    )
    axes = axes_of(net, torch.zeros(5, 2, 3))
    assert (
        axes["first"].pinned == f"recurrent layer memory ({type(layer).__name__}) is kept whole (in memory)"
    )
    assert set(axes) == {"first", "out"}


def test_an_operator_without_a_rule_is_named():
    net = Net(
        lambda s, x: s.out(torch.cdist(s.first(x), s.first(x))), first=nn.Linear(3, 8), out=nn.Linear(2, 2)
    )
    assert axes_of(net, torch.zeros(2, 3))["first"].pinned == "operator aten._cdist_forward has no rule"


def test_a_constant_of_full_width_keeps_the_channels():
    constant = torch.ones(1, 8, 1, 1)
    net = Net(lambda s, x: s.out(s.first(x) * constant), first=nn.Conv2d(3, 8, 1), out=nn.Conv2d(8, 2, 1))
    assert "fixed width" in axes_of(net)["first"].pinned


def test_a_buffer_that_scales_is_cut_and_one_that_shifts_keeps_the_channels():
    class Fixed(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.register_buffer("value", torch.ones(8, 1, 1))
            self.shift = shift

        def forward(self, x):
            return x + self.value if self.shift else x * self.value

    def axis(shift):
        return axes_of(nn.Sequential(nn.Conv2d(3, 8, 1), Fixed(shift), nn.Conv2d(8, 2, 1)))["0"]

    assert axis(shift=False).pinned is None
    assert ("1.value", 0) in parts(axis(shift=False).consumers)
    assert axis(shift=True).pinned == "a fixed buffer feeds the channel (in 1)"


def test_einsum_against_a_buffer_is_cut_with_it():
    class Projection(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("basis", torch.ones(8, 5))

        def forward(self, x):
            return torch.einsum("bc,cd->bd", x, self.basis)

    net = nn.Sequential(nn.Linear(3, 8), Projection(), nn.Linear(5, 2))
    axis = axes_of(net, torch.zeros(2, 3))["0"]
    assert parts(axis.consumers) == {("1.basis", 0)}


def test_writing_into_a_part_keeps_both():
    def forward(s, x):
        y, z = s.first(x), s.second(x)
        y[:, 2:4] = z
        return s.out(y)

    net = Net(forward, first=nn.Conv2d(3, 6, 1), second=nn.Conv2d(3, 2, 1), out=nn.Conv2d(6, 2, 1))
    axes = axes_of(net)
    assert all(axis.pinned for axis in axes.values())


def test_zero_padded_channels_shorten_what_they_are_added_to():
    net = Net(
        lambda s, x: s.out(s.wide(s.thin(x)) + functional.pad(s.thin(x), (0, 0, 0, 0, 1, 1))),
        thin=nn.Conv2d(3, 4, 1),
        wide=nn.Conv2d(4, 6, 1),
        out=nn.Conv2d(6, 2, 1),
    )
    axes = axes_of(net)
    assert axes["thin"].pinned is None
    assert axes["thin"].width == 4
    assert axes["wide"].width == 2
    assert "fixed width" in axes["wide"].pinned


def test_embedding_and_tied_head():
    def forward(s, tokens):
        return functional.linear(s.mix(s.table(tokens)), s.table.weight)

    net = Net(forward, table=nn.Embedding(11, 6), mix=nn.Linear(6, 6))
    axes = axes_of(net, torch.zeros(2, 5, dtype=torch.long))
    assert axes["table"].pinned is not None
    assert axes["table"].width == 11
    assert axes["table#2"].pinned is None
    assert parts(axes["table#2"].slices) == {
        ("table.weight", 1),
        ("mix.weight", 1),
        ("mix.weight", 0),
        ("mix.bias", 0),
    }


def test_gated_mlp():
    net = Net(
        lambda s, x: s.down(functional.silu(s.gate(x)) * s.up(x)),
        gate=nn.Linear(4, 10, bias=False),
        up=nn.Linear(4, 10, bias=False),
        down=nn.Linear(10, 4, bias=False),
    )
    axes = axes_of(net, torch.zeros(2, 3, 4))
    assert parts(axes["gate"].slices) == {("gate.weight", 0), ("up.weight", 0), ("down.weight", 1)}


def test_several_inputs_by_name_and_several_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.out = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, a, b):
            hidden = self.left(a) + self.right(b)
            return {"hidden": hidden.sum(), "out": [self.out(hidden)]}

    found = find_axes(Two(), {"a": torch.zeros(2, 3), "b": torch.zeros(2, 5)})
    assert [(axis.name, axis.pinned) for axis in found] == [("left", None), ("out", "network output")]


def test_outputs_in_an_unknown_container_are_kept():
    class Box:
        def __init__(self, value):
            self.value = value

    def closed(value):
        return lambda: value

    for wrap, reason in (
        (Box, "network output"),
        (closed, "no operator reads what aten.addmm.default returns"),
    ):
        net = Net(lambda s, x, w=wrap: w(s.out(s.first(x))), first=nn.Linear(3, 4), out=nn.Linear(4, 2))
        axes = axes_of(net, torch.zeros(2, 3))
        assert axes["first"].pinned is None
        assert axes["out"].pinned == reason


def test_a_failing_forward_pass_is_told():
    with pytest.raises(GraphError, match="fails on the example inputs"):
        find_axes(nn.Conv2d(4, 4, 1), IMAGE)


class Masked(nn.Module):
    """A linear layer whose weight is computed from a parameter and a buffer."""

    def __init__(self, compute, buffer_shape=(8, 3), weight_shape=(8, 3)):
        super().__init__()
        self.register_buffer("mask", torch.ones(buffer_shape))
        self.weight = nn.Parameter(torch.ones(weight_shape))
        self.compute = compute

    def forward(self, x):
        return functional.linear(x, self.compute(self.mask, self.weight))


def masked_axes(*arguments):
    net = nn.Sequential(Masked(*arguments), nn.Linear(8, 2))
    return {name: axis for name, axis in axes_of(net, torch.zeros(2, 3)).items() if name != "1"}


@pytest.mark.parametrize(
    "compute", [lambda mask, weight: mask * weight, lambda mask, weight: weight * mask], ids=["first", "last"]
)
def test_a_weight_behind_a_buffer_brings_its_channels_into_being_in_either_order(compute):
    axis = masked_axes(compute)["0"]
    assert axis.pinned is None
    assert parts(axis.producers) == {("0.weight", 0)}
    assert parts(axis.consumers) == {("0.mask", 0), ("1.weight", 1)}


def test_channels_of_a_buffer_that_a_parameter_only_scales_are_kept():
    # The parameter has no position of its own per channel, so that nothing but the buffer could be zeroed.
    axes = masked_axes(lambda mask, weight: weight * mask, (8, 3), (1, 3))
    assert all(not axis.producers or axis.pinned for axis in axes.values())
    assert not any("0.mask" in {part.tensor for part in axis.producers} for axis in axes.values())


def test_of_a_weight_beside_a_buffer_the_rows_of_the_buffer_are_kept():
    axes = masked_axes(lambda mask, weight: torch.cat([mask, weight]), (4, 3), (4, 3))
    (axis,) = (axis for axis in axes.values() if axis.pinned is None)
    assert parts(axis.producers) == {("0.weight", 0)}
    assert axis.width == 4
