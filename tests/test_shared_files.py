"""Networks that runs hand to each other: whole, and made with the settings that are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hwprune.errors import ArtifactError
from hwprune.shared_files import load_shared, save_shared, shared_answers
from hwprune.train.checkpoint import save_checkpoint

SETTINGS = {"model": "lenet5", "recipe": {"seed": 0, "epochs": 2}}


def test_what_was_left_comes_back_for_the_same_settings(tmp_path: Path) -> None:
    save_shared(tmp_path / "net", {"model": {"weight": torch.arange(3)}}, SETTINGS)
    state = load_shared(tmp_path / "net", dict(reversed(SETTINGS.items())))
    assert state.keys() == {"model"}
    assert torch.equal(state["model"]["weight"], torch.arange(3))


def test_a_network_of_another_seed_is_refused(tmp_path: Path) -> None:
    save_shared(tmp_path / "net", {"model": {"weight": torch.arange(3)}}, SETTINGS)
    with pytest.raises(ArtifactError, match=r"other settings.*\"seed\": 1.*\"seed\": 0"):
        load_shared(tmp_path / "net", {**SETTINGS, "recipe": {"seed": 1, "epochs": 2}})


def test_one_from_before_settings_were_noted_is_taken(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "net", {"model": {}})
    assert load_shared(tmp_path / "net", SETTINGS) == {"model": {}}


def test_answers_are_shared_by_runs_with_the_same_teacher(tmp_path: Path) -> None:
    path, teacher, images = tmp_path / "answers.safetensors", nn.Linear(3, 2), torch.ones(1, 3)
    with shared_answers(path, teacher) as answers:
        first = answers.to(images, teacher)
    with shared_answers(path, teacher) as answers:
        assert torch.equal(answers.to(images, None), first)
    written = path.read_bytes()
    path.write_bytes(written[:-7])
    with shared_answers(path, teacher) as answers:
        assert answers.known == {}
    path.write_bytes(written)
    with torch.no_grad():
        teacher.weight += 1
    with shared_answers(path, teacher) as answers:
        assert answers.known == {}
    with shared_answers(None, teacher) as answers:
        assert answers is None
