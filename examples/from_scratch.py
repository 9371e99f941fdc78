"""Prunes a small residual network while it is trained from scratch, on the digits of scikit-learn."""

import torch

import hwprune
from hwprune.workloads import accuracy, iterate_batches, load_dataset, make_model

if __name__ == "__main__":
    data = load_dataset("digits")
    model = make_model("resnet8", in_channels=1, image_size=8, classes=10, seed=0)
    profile = hwprune.load_profile("x86-avx2-ort")
    steps = 4 * 23
    compressor = hwprune.Compressor(
        model, data.test_images[:2], profile, hwprune.Speedup(2.0), total_steps=steps
    )
    optimizer = compressor.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    for epoch in range(4):
        for images, labels in iterate_batches(data, 64, torch.Generator().manual_seed(epoch)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    result = compressor.finish()
    print(result.report)
    print(f"accuracy {accuracy(result.model, data.test_images, data.test_labels):.2%}")
    hwprune.export(result.model, "model.onnx", data.test_images[:2])
