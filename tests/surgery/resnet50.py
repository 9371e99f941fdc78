"""ResNet-50 as published (He et al. 2015, table 1), for tests of the size of real networks.

Run as a program it is the other process: ``resnet50.py SLIM BATCH OUT`` loads a slim network into a fresh
instance, trains it for one step and exports it.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import hwprune


class Bottleneck(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut = nn.Identity()
        if stride > 1 or channels != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        inner = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.bn3(self.conv3(inner)) + self.shortcut(x))


class ResNet50(nn.Module):
    def __init__(self):
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        blocks, channels = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(count):
                blocks.append(Bottleneck(channels, width, stride if index == 0 else 1))
                channels = 4 * width
        self.body = nn.Sequential(*stem, *blocks)
        self.head = nn.Linear(channels, 1000)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


def train_one_step(model, images, labels):
    """One step of SGD; the outputs before and after it, in evaluation mode."""
    outputs = []
    for _ in range(2):
        model.eval()
        with torch.no_grad():
            outputs.append(model(images))
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"before": outputs[0], "after": outputs[1]}


def main(slim, batch, out):
    torch.set_num_threads(1)
    data = load_file(batch)
    model = hwprune.load(slim, model=ResNet50())
    hwprune.export(model, Path(out) / "model.onnx", data["images"])
    save_file(train_one_step(model, data["images"], data["labels"]), str(Path(out) / "outputs.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
