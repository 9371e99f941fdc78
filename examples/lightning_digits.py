"""Prunes a small residual network with Lightning to half its latency, on the digits of scikit-learn."""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import hwprune
from hwprune.trainers.lightning import PruningCallback
from hwprune.workloads import accuracy, load_dataset, make_model


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = make_model("resnet8", in_channels=1, image_size=8, classes=10, seed=0)

    def training_step(self, batch, batch_index):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


if __name__ == "__main__":
    data = load_dataset("digits")
    loader = DataLoader(TensorDataset(data.train_images, data.train_labels), batch_size=64, shuffle=True)
    pruning = PruningCallback(hwprune.load_profile("x86-avx2-ort"), hwprune.Speedup(2.0), module="network")
    lightning.Trainer(max_epochs=3, accelerator="cpu", callbacks=[pruning]).fit(Classifier(), loader)
    print(pruning.result.report)
    print(f"accuracy {accuracy(pruning.result.model, data.test_images, data.test_labels):.2%}")
    hwprune.export(pruning.result.model, "model.onnx", data.test_images[:2])
