"""The callback of the Hugging Face Trainer: the whole training, and one that goes on from its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra transformers", exc_type=ImportError)
pytest.importorskip("accelerate", reason="needs the extra transformers", exc_type=ImportError)

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
from transformers import Trainer, TrainingArguments

import hwprune
from hwprune.trainers import Options
from hwprune.trainers.transformers import PruningCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # the Trainer's own advice


def train(
    folder: Path, *, resume: Path | None = None, pruned: Options = OPTIONS, **options: Any
) -> tuple[Network, PruningCallback]:
    model = Network()
    pruning = PruningCallback(hwprune.load_profile("x86-avx2-ort"), TARGET, options=pruned)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=5e-3,
        save_steps=5,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    data = [{"pixel_values": image, "labels": label} for image, label in samples()]
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[pruning])  # type: ignore[arg-type]
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return model, pruning


def test_every_checkpoint_leads_to_the_same_weights(tmp_path: Path) -> None:
    whole, pruning = train(tmp_path / "whole")
    assert pruning.result is not None
    assert pruning.compressor is not None
    assert pruning.compressor.proximal.step == EPOCHS * SAMPLES // BATCH
    assert pruning.result.report.groups["kept"] == pruning.result.report.groups["budget"]
    assert pruning.result.model.layers[0].out_channels < 32
    for step in (10, 25, 35):  # in the ramp, on the plateau, settled; none at the end of an epoch
        resumed, again = train(tmp_path / f"{step}", resume=tmp_path / f"whole/checkpoint-{step}")
        assert again.compressor is not None
        assert torch.equal(again.compressor.proximal.alive, pruning.compressor.proximal.alive)
        assert_same_weights(resumed, whole)


def test_survivors_are_fitted_once_or_the_checkpoint_is_refused(tmp_path: Path) -> None:
    pruned = fitting_options()
    whole, _ = train(tmp_path / "whole", pruned=pruned)
    with pytest.raises(hwprune.HwpruneError, match="before its survivors were fitted"):
        train(tmp_path / "early", resume=tmp_path / "whole/checkpoint-10", pruned=pruned)
    resumed, _ = train(tmp_path / "late", resume=tmp_path / "whole/checkpoint-35", pruned=pruned)
    assert_same_weights(resumed, whole)


def test_putting_other_weights_in_place_at_the_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(hwprune.HwpruneError, match="load_best_model_at_end"):
        train(tmp_path, load_best_model_at_end=True, eval_strategy="no", save_strategy="no")
