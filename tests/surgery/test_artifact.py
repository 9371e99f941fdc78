"""What keeps a slim network from being written is told, and nothing is left half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from hwprune.errors import ArtifactError
from hwprune.surgery.artifact import load_slim, save_slim


class Remembers(nn.Linear):
    """A layer with state of its own."""

    def __init__(self, state: Any) -> None:
        super().__init__(2, 2)
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    message = r"state that is no tensor \(in '0\._extra_state'\).*got dict"
    with pytest.raises(ArtifactError, match=message):
        save_slim(tmp_path / "slim", nn.Sequential(Remembers({"seen": 3})), (), {}, {})
    assert not (tmp_path / "slim").exists()
    save_slim(tmp_path / "slim", nn.Sequential(nn.Linear(2, 2)), (), {}, {})
    with pytest.raises(ArtifactError, match=message):
        load_slim(tmp_path / "slim", nn.Sequential(Remembers({"seen": 3})))


def test_state_that_is_a_tensor_comes_back(tmp_path: Path) -> None:
    save_slim(tmp_path, nn.Sequential(Remembers(torch.tensor(3))), (), {}, {})
    loaded = load_slim(tmp_path, nn.Sequential(Remembers(torch.tensor(0))))
    assert loaded.get_submodule("0").get_extra_state() == torch.tensor(3)


@pytest.mark.parametrize("name", ["taken", "taken/slim"])
def test_a_file_where_the_folder_goes_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ArtifactError, match="the slim folder is a file"):
        save_slim(tmp_path / name, nn.Linear(2, 2), (), {}, {})
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_full_disk_is_an_error_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_room(*_arguments: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("hwprune.surgery.artifact.save_file", without_room)
    with pytest.raises(OSError, match=r"slim network cannot be written.*No space left") as caught:
        save_slim(tmp_path / "slim", nn.Linear(2, 2), (), {}, {})
    assert caught.value.filename == str(tmp_path / "slim" / "model.safetensors")
    assert not list((tmp_path / "slim").iterdir())
