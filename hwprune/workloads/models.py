"""The built-in networks, in their usual small-image forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hwprune.errors import WorkloadError
from hwprune.workloads.data import ImageSize, rows_and_columns


def _convolution(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) as it is usually pruned: 20, 50 and 500 wide, ReLU, max-pooling.

    The convolutions are padded where an image of less than 16 pixels would leave nothing to convolve, and
    poolings that would shrink the map below one pixel are left out.
    """

    def __init__(self, in_channels: int, image_size: ImageSize, classes: int) -> None:
        super().__init__()
        height, width = rows_and_columns(image_size)
        padding = 0 if min(height, width) >= 16 else 2
        self.conv1 = nn.Conv2d(in_channels, 20, 5, padding=padding)
        self.conv2 = nn.Conv2d(20, 50, 5, padding=padding)
        self.pool = nn.MaxPool2d(2)
        self.pooled: tuple[bool, ...] = ()
        for _ in range(2):
            height, width = height - 4 + 2 * padding, width - 4 + 2 * padding
            self.pooled += (min(height, width) >= 2,)
            if self.pooled[-1]:
                height, width = height // 2, width // 2
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(50 * height * width, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(n, c, h, w)`` to logits ``(n, classes)``."""
        features = images
        for convolution, pooled in zip((self.conv1, self.conv2), self.pooled, strict=True):
            features = torch.relu(convolution(features))
            if pooled:
                features = self.pool(features)
        logits: Tensor = self.fc2(torch.relu(self.fc1(self.flatten(features))))
        return logits


class Vgg16(nn.Module):
    """VGG-16 with batch norm and one linear head (Simonyan and Zisserman 2015, CIFAR form).

    Poolings that would shrink the map below one pixel are left out, so that small images work.
    """

    stages = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(self, in_channels: int, image_size: ImageSize, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, size = in_channels, min(rows_and_columns(image_size))
        for stage in self.stages:
            for width in stage:
                layers += [_convolution(channels, width), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            if size >= 2:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(n, c, h, w)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.flatten(self.pool(self.features(images))))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes (He et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, out_channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _convolution(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                _convolution(in_channels, out_channels, kernel=1, stride=stride),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``(n, in, h, w)`` to ``(n, out, h / stride, w / stride)``."""
        hidden = torch.relu(self.bn1(self.conv1(features)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(features))


class ResNet(nn.Module):
    """A residual network with a 3x3 stem, as used on small images.

    Args:
        in_channels: Channels of the images.
        classes: Number of logits.
        widths: Channels of each stage; every stage after the first halves the map.
        blocks: Blocks of each stage.
    """

    def __init__(self, in_channels: int, classes: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(in_channels, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU())
        layers: list[nn.Module] = []
        channels = widths[0]
        for index, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stride = 2 if index > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, width, stride))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(n, c, h, w)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.flatten(self.pool(self.blocks(self.stem(images)))))
        return logits


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions (Howard et al. 2017) with the strides usual on small images."""

    #: Output channels and stride of each separable block.
    layout = (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
        (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
    )  # fmt: skip

    def __init__(self, in_channels: int, image_size: ImageSize, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(in_channels, 32), nn.BatchNorm2d(32), nn.ReLU()]
        channels = 32
        for width, stride in self.layout:
            depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
            layers += [depthwise, nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [_convolution(channels, width, kernel=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(n, c, h, w)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.flatten(self.pool(self.features(images))))
        return logits


def _initialise(model: nn.Module) -> nn.Module:
    """He initialisation of every convolution (He et al. 2015, equation 10)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # by the inputs: that is right for depthwise convolutions too
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _residual(widths: Sequence[int], blocks: Sequence[int]) -> Factory:
    return lambda in_channels, _image_size, classes: ResNet(in_channels, classes, widths, blocks)


Factory = Callable[[int, ImageSize, int], nn.Module]

#: Name to a function of (in_channels, image_size, classes).
MODELS: dict[str, Factory] = {
    "lenet5": LeNet5,
    "mobilenetv1": MobileNetV1,
    "resnet8": _residual((48, 96, 192), (1, 1, 1)),
    "resnet18": _residual((64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet20": _residual((16, 32, 64), (3, 3, 3)),
    "vgg16": Vgg16,
}


def build(name: str, in_channels: int, image_size: ImageSize, classes: int) -> nn.Module:
    """A built-in network, initialised from the global random state.

    Args:
        name: A key of :data:`MODELS`.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels.
        classes: Number of logits.

    Raises:
        WorkloadError: If a number is below 1.
    """
    pixels = min(rows_and_columns(image_size))
    for what, value in (("channels", in_channels), ("pixels", pixels), ("classes", classes)):
        if value < 1:
            raise WorkloadError(f"a network without {what}", where=name, expected="at least 1", got=value)
    return _initialise(MODELS[name](in_channels, image_size, classes))
