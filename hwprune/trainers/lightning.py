"""A Lightning callback that prunes while ``Trainer.fit`` trains.

::

    callback = PruningCallback(hwprune.load_profile("x86-avx2-ort"), hwprune.Speedup(2.0), module="network")
    lightning.Trainer(max_epochs=10, callbacks=[callback]).fit(model, loader)
    hwprune.save(callback.result, "slim/")

Checkpoints hold the pruning's state inside the optimiser's: ``fit(..., ckpt_path=...)`` goes on with it.
"""

from __future__ import annotations

from operator import attrgetter

from torch import nn

from hwprune.compressor import Compressor
from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError, MissingPackageError
from hwprune.graph.record import ExampleInputs
from hwprune.result import Result
from hwprune.targets import Target
from hwprune.trainers.options import Job, Options

try:
    from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
except ImportError as error:
    raise MissingPackageError(
        "the Lightning callback needs the package lightning", hint="run pip install 'hwprune[lightning]'"
    ) from error


class PruningCallback(Callback):  # type: ignore[misc]  # Lightning is an optional package
    """Prunes the network of a LightningModule; :attr:`result` is there after ``fit``.

    Args:
        profile: The device.
        target: What to reach.
        example_inputs: What the network is called with; made of the first training samples by default.
        module: Dotted name of the network inside the LightningModule; the LightningModule itself by default.
        options: Granularity, penalty and the rest.

    Attributes:
        compressor: While and after training.
        result: The finished compression, after a training that came to its end or was stopped by the
            trainer.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        target: Target,
        example_inputs: ExampleInputs | None = None,
        *,
        module: str | None = None,
        options: Options | None = None,
    ) -> None:
        self._job = Job(profile, target, example_inputs, options or Options())
        self._module = module
        self.compressor: Compressor | None = None
        self.result: Result | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the compressor; Lightning restores the optimiser after this.

        Raises:
            InputError: If there is not exactly one optimiser, the number of steps is not known, or another
                callback is to put averages in place of the pruned weights.
        """
        averaging = getattr(callbacks, "WeightAveraging", ())  # Lightning 2.6 and later
        averages = [type(each).__name__ for each in trainer.callbacks if isinstance(each, averaging)]
        if averages:
            raise InputError(
                "averages of weights from before the pruning was done are not pruned",
                where="callbacks of the Trainer",
                expected="none that puts averages in place of the weights",
                got=", ".join(averages),
                hint="average in a second training, of the slim network",
            )
        if len(trainer.optimizers) != 1:
            raise InputError(
                "pruning follows one optimizer",
                where="configure_optimizers",
                expected="one optimizer",
                got=len(trainer.optimizers),
            )
        model: nn.Module = attrgetter(self._module)(pl_module) if self._module else pl_module
        # Asked first: Lightning makes the loaders when it counts the steps.
        total_steps = trainer.estimated_stepping_batches
        loader = trainer.train_dataloader
        self.result = None
        self.compressor = self._job.start(model, trainer.optimizers[0], total_steps, loader)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settles, rebuilds and verifies."""
        assert self.compressor is not None  # on_fit_start comes first
        self.result = self.compressor.finish()
