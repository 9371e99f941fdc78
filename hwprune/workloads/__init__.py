"""The built-in models and data sets that the command line can name."""

from hwprune.workloads.batches import accuracy, batches_per_epoch, iterate_batches, spread
from hwprune.workloads.data import Dataset, Preprocessing, image_size_of
from hwprune.workloads.outputs import check_outputs
from hwprune.workloads.resolve import (
    dataset_names,
    load_dataset,
    make_model,
    make_with_inputs,
    model_names,
)
from hwprune.workloads.weights import load_weights, read_weights

__all__ = [
    "Dataset",
    "Preprocessing",
    "accuracy",
    "batches_per_epoch",
    "check_outputs",
    "dataset_names",
    "image_size_of",
    "iterate_batches",
    "load_dataset",
    "load_weights",
    "make_model",
    "make_with_inputs",
    "model_names",
    "read_weights",
    "spread",
]
