"""Random networks over all building blocks, for the soundness test.

Every block keeps the number of channels and of pixels, so that any sequence of blocks is a network. None
repeats a width as a Python number, so whatever the coupling leaves free must be cut exactly.
"""

import random

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.Tanh, nn.GELU, nn.Hardswish)


class Residual(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


class Concatenated(nn.Module):
    def __init__(self, channels, body):
        super().__init__()
        self.body, self.mix = body, nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x):
        return self.mix(torch.cat([self.body(x), x], 1))


class Gated(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.both, self.out = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        left, right = self.both(x).chunk(2, 1)
        return self.out(left * right.sigmoid())


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.squeeze, self.expand = nn.Linear(channels, 3), nn.Linear(3, channels)

    def forward(self, x):
        gate = self.expand(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * gate[:, :, None, None]


class Shuffled(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        x = self.conv(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return x.reshape(batch, -1, height, width)


class Halves(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels // 2, channels // 2, 1)

    def forward(self, x):
        half = x.shape[1] // 2
        return torch.cat([x[:, half:], self.conv(x[:, :half])], 1)


class Attention(nn.Module):
    def __init__(self, channels, open_heads):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(channels, 12) for _ in range(3))
        self.out, self.open_heads = nn.Linear(12, channels), open_heads

    def heads(self, x):
        batch, tokens, _ = x.shape
        split = (batch, tokens, -1, 4) if self.open_heads else (batch, tokens, 3, -1)
        return x.view(split).transpose(1, 2)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = (self.heads(layer(tokens)) for layer in (self.query, self.key, self.value))
        if self.open_heads:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = torch.einsum("bhnd,bhmd->bhnm", query, key).softmax(-1) @ value
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        return mixed.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])


class Scaled(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.ones(1, channels, 4, 4))

    def forward(self, x):
        return torch.clamp(x * self.scale, -5, 5) + self.shift


class ChannelsLast(nn.Module):
    def __init__(self, channels, layer):
        super().__init__()
        self.layer, self.mix = layer, nn.Linear(channels, channels)

    def forward(self, x):
        return self.mix(self.layer(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer(x).relu_())


class Weighted(nn.Module):
    """Channels weighted by their share of a softmax: nothing may be cut before it."""

    def forward(self, x):
        return x * x.softmax(1)


class Pixels(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.wide = nn.Conv2d(channels, 4 * channels, 1)
        self.down = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x):
        return self.down(functional.pixel_unshuffle(functional.pixel_shuffle(self.wide(x), 2), 2))


class Bottleneck(nn.Module):
    def __init__(self, channels, inner, body):
        super().__init__()
        self.into, self.body, self.out = (nn.Conv2d(channels, inner, 1), body, nn.Conv2d(inner, channels, 1))

    def forward(self, x):
        return self.out(self.body(self.into(x)))


def leaf(rng: random.Random, channels: int) -> nn.Module:
    """A random block without blocks inside."""
    activation = rng.choice(ACTIVATIONS)
    groups = rng.choice([group for group in (1, 2, 4, channels) if channels % group == 0])
    choices = [
        lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=rng.random() < 0.5),
        lambda: nn.ConvTranspose2d(channels, channels, 3, padding=1, groups=groups),
        lambda: nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), activation()),
        lambda: nn.Sequential(nn.InstanceNorm2d(channels, affine=True), activation()),
        lambda: nn.Sequential(nn.PReLU(channels), nn.AvgPool2d(3, 1, 1)),
        lambda: nn.GroupNorm(rng.choice([2, channels]), channels),
        lambda: ChannelsLast(channels, rng.choice([nn.LayerNorm, nn.RMSNorm])(channels)),
        lambda: ChannelsLast(channels, nn.Identity()),
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2)),
        lambda: Gated(channels),
        lambda: SqueezeExcite(channels),
        lambda: Shuffled(channels),
        lambda: Halves(channels),
        lambda: Attention(channels, rng.random() < 0.5),
        lambda: Scaled(channels),
        lambda: Pixels(channels),
        lambda: Twice(nn.Conv2d(channels, channels, 1)),
        lambda: Weighted(),
        lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3)),
        lambda: nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ChannelShuffle(2)),
    ]
    return rng.choice(choices)()


def block(rng: random.Random, channels: int, depth: int) -> nn.Module:
    """A random block, possibly around others."""
    if depth == 0 or rng.random() < 0.4:
        return leaf(rng, channels)
    inner = nn.Sequential(*(block(rng, channels, depth - 1) for _ in range(rng.randint(1, 2))))
    kind = rng.randrange(4)
    if kind == 0:
        return Residual(inner)
    if kind == 1:
        return Concatenated(channels, inner)
    if kind == 2:
        width = rng.choice([4, 8])
        return Bottleneck(channels, width, block(rng, width, depth - 1))
    return inner


def network(seed: int) -> tuple[nn.Module, Tensor]:
    """A random network and its input, in double precision."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    channels = rng.choice([4, 6, 8, 12])
    stem = nn.Conv2d(3, channels, 3, padding=1)
    body = [block(rng, channels, 2) for _ in range(rng.randint(1, 4))]
    heads = [
        nn.Sequential(nn.Flatten(), nn.Linear(16 * channels, 5), nn.ReLU(), nn.Linear(5, 2)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2)),
        nn.Conv2d(channels, 2, 1),
    ]
    net = nn.Sequential(stem, *body, rng.choice(heads)).double().eval()
    return net, torch.randn(2, 3, 4, 4, dtype=torch.float64)
