"""Prunes a trained network: the survivors are settled at once, fitted, and learn from the dense network."""

import copy
from pathlib import Path

import torch

import hwprune
from hwprune.train.distillation import Distillation
from hwprune.train.schedule import StrengthSchedule
from hwprune.workloads import accuracy, iterate_batches, load_dataset, make_model


def train(model, optimizer, data, epochs, teacher=None):
    for epoch in range(epochs):
        for images, labels in iterate_batches(data, 64, torch.Generator().manual_seed(epoch)):
            optimizer.zero_grad()
            logits = model(images)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.no_grad():
                    answers = teacher(images)
                loss = Distillation(weight=0.5, temperature=4.0).mix(loss, logits, answers)
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    data = load_dataset("digits")
    model = make_model("resnet8", in_channels=1, image_size=8, classes=10, seed=0)
    checkpoint = Path("dense.pt")
    if not checkpoint.exists():  # yours is there already
        train(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), data, epochs=3)
        torch.save(model.state_dict(), checkpoint)
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    print(f"dense {accuracy(model, data.test_images, data.test_labels):.2%}")

    dense = copy.deepcopy(model).eval()
    epochs, steps = 3, 3 * 23
    profile = hwprune.load_profile("x86-avx2-ort")
    schedule = StrengthSchedule.from_trained(steps)  # settles at once: the steps are for recovery
    compressor = hwprune.Compressor(
        model, data.test_images[:2], profile, hwprune.Speedup(2.0), total_steps=steps, schedule=schedule
    )
    compressor.reconstruct_on(data.train_images[:768])  # the survivors are fitted to what they computed
    optimizer = compressor.wrap(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))
    train(model, optimizer, data, epochs, teacher=dense)
    result = compressor.finish()
    print(result.report)
    print(f"accuracy {accuracy(result.model, data.test_images, data.test_labels):.2%}")
    hwprune.export(result.model, "model.onnx", data.test_images[:2])
