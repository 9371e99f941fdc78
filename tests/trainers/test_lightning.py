"""The Lightning callback: the whole training, and one that goes on from its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("lightning", reason="needs the extra lightning", exc_type=ImportError)

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from trainer_cases import (
    BATCH,
    EPOCHS,
    OPTIONS,
    SAMPLES,
    TARGET,
    Network,
    assert_same_weights,
    fitting_options,
    samples,
)

import hwprune
from hwprune.trainers import Options
from hwprune.trainers.lightning import PruningCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own advice


class Classifier(lightning.LightningModule):
    optimizers_made = 1

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.network(pixel_values)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.network(*batch)["loss"]

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        share = -(-len(parameters) // self.optimizers_made)
        return [
            torch.optim.SGD(parameters[start : start + share], lr=0.1, momentum=0.9)
            for start in range(0, len(parameters), share)
        ]


class Stop(lightning.Callback):
    """Ends the training after its first epoch, as early stopping does."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.should_stop = True


def fit(
    folder: Path,
    *,
    resume: Path | None = None,
    module: str | None = "network",
    pruned: Options = OPTIONS,
    others: Sequence[lightning.Callback] = (),
    **options: Any,
) -> tuple[Classifier, PruningCallback]:
    model = Classifier()
    pruning = PruningCallback(hwprune.load_profile("x86-avx2-ort"), TARGET, module=module, options=pruned)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pruning, ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1), *others],
        **{"max_epochs": EPOCHS, **options},
    )
    trainer.fit(model, DataLoader(samples(), batch_size=BATCH), ckpt_path=resume)
    return model, pruning


def test_every_checkpoint_leads_to_the_same_weights(tmp_path: Path) -> None:
    whole, pruning = fit(tmp_path / "whole")
    assert pruning.result is not None
    assert pruning.compressor is not None
    assert pruning.compressor.proximal.step == EPOCHS * SAMPLES // BATCH
    assert pruning.result.report.groups["kept"] == pruning.result.report.groups["budget"]
    assert pruning.result.model.layers[0].out_channels < 32
    for epoch in (1, 2, 4):  # in the ramp, on the plateau, settled
        resumed, again = fit(tmp_path / f"{epoch}", resume=tmp_path / f"whole/epoch={epoch}.ckpt")
        assert again.compressor is not None
        assert torch.equal(again.compressor.proximal.alive, pruning.compressor.proximal.alive)
        assert_same_weights(resumed, whole)


def test_survivors_are_fitted_once_or_the_checkpoint_is_refused(tmp_path: Path) -> None:
    pruned = fitting_options()
    whole, _ = fit(tmp_path / "whole", pruned=pruned)
    with pytest.raises(hwprune.HwpruneError, match="before its survivors were fitted"):
        fit(tmp_path / "early", resume=tmp_path / "whole/epoch=1.ckpt", pruned=pruned)
    resumed, _ = fit(tmp_path / "late", resume=tmp_path / "whole/epoch=4.ckpt", pruned=pruned)
    assert_same_weights(resumed, whole)


def test_the_module_itself_can_be_the_network_and_steps_can_be_accumulated(tmp_path: Path) -> None:
    _, pruning = fit(tmp_path, module=None, accumulate_grad_batches=2, gradient_clip_val=1.0)
    assert isinstance(pruning.result, hwprune.Result)
    assert pruning.compressor is not None
    assert pruning.compressor.proximal.step == EPOCHS * SAMPLES // BATCH // 2
    assert isinstance(pruning.result.model, Classifier)


def test_a_training_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(hwprune.HwpruneError, match="how long the training is"):
        fit(tmp_path, max_epochs=-1)


def test_two_optimizers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "optimizers_made", 2)
    monkeypatch.setattr(Classifier, "automatic_optimization", False)
    with pytest.raises(hwprune.HwpruneError, match="one optimizer"):
        fit(tmp_path)


def test_averages_of_weights_that_were_not_pruned_are_refused(tmp_path: Path) -> None:
    averaging = lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.9)
    with pytest.raises(hwprune.HwpruneError, match=r"averages of weights.*EMAWeightAveraging.*slim network"):
        fit(tmp_path, others=[averaging])


def test_weights_may_be_of_half_precision(tmp_path: Path) -> None:
    _, pruning = fit(tmp_path, precision="bf16-true")
    assert pruning.result is not None
    assert {parameter.dtype for parameter in pruning.result.model.parameters()} == {torch.bfloat16}
    assert pruning.result.report.groups["kept"] == pruning.result.report.groups["budget"]


def test_a_training_that_is_stopped_early_is_told(tmp_path: Path) -> None:
    notes: list[str] = []
    fit(tmp_path, pruned=Options(measure=False, notify=notes.append), limit_train_batches=2, max_epochs=1)
    assert not any(line.startswith("the training ended") for line in notes)
    fit(tmp_path, pruned=Options(measure=False, notify=notes.append), others=[Stop()])
    assert any(line.startswith("the training ended after 8 of 48 steps") for line in notes)
