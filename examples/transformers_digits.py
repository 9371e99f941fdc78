"""Prunes a small residual network with the Hugging Face Trainer, on the digits of scikit-learn."""

import torch
from transformers import Trainer, TrainingArguments

import hwprune
from hwprune.trainers.transformers import PruningCallback
from hwprune.workloads import accuracy, load_dataset, make_model


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = make_model("resnet8", in_channels=1, image_size=8, classes=10, seed=0)

    def forward(self, pixel_values, labels=None):
        logits = self.network(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


if __name__ == "__main__":
    data = load_dataset("digits")
    samples = [
        {"pixel_values": image, "labels": label}
        for image, label in zip(data.train_images, data.train_labels, strict=True)
    ]
    pruning = PruningCallback(hwprune.load_profile("x86-avx2-ort"), hwprune.Speedup(2.0))
    arguments = TrainingArguments(
        "checkpoints", num_train_epochs=3, per_device_train_batch_size=64, learning_rate=2e-3
    )
    Trainer(Classifier(), arguments, train_dataset=samples, callbacks=[pruning]).train()
    print(pruning.result.report)
    network = pruning.result.model.network
    print(f"accuracy {accuracy(network, data.test_images, data.test_labels):.2%}")
    hwprune.export(network, "model.onnx", data.test_images[:2])
