"""A callback that prunes while the Hugging Face ``Trainer`` trains.

::

    callback = PruningCallback(hwprune.load_profile("x86-avx2-ort"), hwprune.Speedup(2.0))
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    hwprune.save(callback.result, "slim/")

Checkpoints hold the pruning's state inside the optimiser's, so ``train(resume_from_checkpoint=...)`` goes on
with it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hwprune.compressor import Compressor
from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError, MissingPackageError
from hwprune.graph.record import ExampleInputs
from hwprune.result import Result
from hwprune.targets import Target
from hwprune.trainers.options import Job, Options

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingPackageError(
        "the callback for the Hugging Face Trainer needs the package transformers",
        hint="run pip install 'hwprune[transformers]'",
    ) from error


class PruningCallback(TrainerCallback):  # type: ignore[misc]  # an optional package
    """Prunes the model of a ``Trainer``; :attr:`result` is there after ``train``.

    Args:
        profile: The device.
        target: What to reach.
        example_inputs: What the model is called with; made of the first training samples by default, without
            what starts with ``label``.
        options: Granularity, penalty and the rest.

    Attributes:
        compressor: While and after training.
        result: The finished compression, after a training that came to its end.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        target: Target,
        example_inputs: ExampleInputs | None = None,
        *,
        options: Options | None = None,
    ) -> None:
        self._job = Job(profile, target, example_inputs, options or Options())
        self.compressor: Compressor | None = None
        self.result: Result | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module | None = None,
        optimizer: Any = None,
        train_dataloader: object = None,
        **_others: Any,
    ) -> None:
        """Makes the compressor; the trainer has restored the optimiser before this.

        Raises:
            InputError: If the trainer is to put other weights in place of the pruned ones at the end.
        """
        if args.load_best_model_at_end:
            raise InputError(
                "the best checkpoint can be from before the pruning was done",
                where="load_best_model_at_end",
                expected="False",
                got=True,
            )
        assert model is not None  # the trainer passes it to every callback
        self.result = None
        # Accelerate puts a wrapper around the optimiser, which has no hooks of its own.
        inner = getattr(optimizer, "optimizer", optimizer)
        self.compressor = self._job.start(model, inner, state.max_steps, train_dataloader)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Settles, rebuilds and verifies."""
        assert self.compressor is not None  # on_train_begin comes first
        self.result = self.compressor.finish()
