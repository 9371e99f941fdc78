"""A network and data of your own for the commands: ``--model own_task:network --data own_task:data``.

Run as a script it trains the network and leaves ``dense.pt``, which ``--weights`` starts from.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from hwprune.workloads import Dataset, Preprocessing, accuracy, iterate_batches


def network(in_channels, classes):
    """Called with those of the keywords in_channels, image_size and classes that it takes."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


def data():
    """Called without arguments; images as float32 (n, channels, rows, columns), labels as int64 (n,)."""
    content = load_digits()  # read your own files here
    pixels = torch.from_numpy(content.images).float().unsqueeze(1)  # from 0 to 16
    images, labels = (pixels - 4.9) / 6.0, torch.from_numpy(content.target).long()
    test = torch.arange(len(labels)) % 5 == 0
    return Dataset(
        "my digits",
        images[~test],
        labels[~test],
        images[test],
        labels[test],
        classes=10,
        augment=None,  # or a function of a batch of training images and a generator
        preprocessing=Preprocessing("from 0 to 16", mean=(4.9,), deviation=(6.0,)),
        class_names=tuple(map(str, range(10))),
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    digits = data()
    model = network(in_channels=1, classes=digits.classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(8):
        for images, labels in iterate_batches(digits, 64, torch.Generator().manual_seed(epoch)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    torch.save(model.state_dict(), "dense.pt")
    print(f"accuracy {accuracy(model, digits.test_images, digits.test_labels):.2%}")
