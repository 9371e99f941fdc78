"""What the command survives on a real file system: a disk that is full or read-only half-way, damaged files.

And in loops of one's own: workers of a data loader that die.
"""

from __future__ import annotations

import copy as copying
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from quick_runs import prune, told_in_one_message
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import hwprune
from hwprune.cli import main
from hwprune.files import TEMPORARY_FILES
from hwprune.output_folder import CHECKPOINTS
from hwprune.workloads import load_dataset

#: A data set whose augmentation makes a file system read-only when the training has come to its second epoch.
OWN_DATA = """
import subprocess
from dataclasses import replace
from hwprune.workloads import load_dataset

batches = 0

def augment(images, generator):
    global batches
    batches += 1
    if batches == 4:  # the first is the rehearsal, two make an epoch
        subprocess.run(["mount", "-o", "remount,ro", "{}"], check=True)
    return images

def data():
    return replace(load_dataset("digits"), augment=augment)
"""


def mount(*arguments: object) -> bool:
    if shutil.which("mount") is None:
        return False
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; only the superuser makes one."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=700k", "tmpfs", place):
        pytest.skip("file systems cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def weights_of(run: Path) -> str:
    return hashlib.sha256((run / "slim" / "model.safetensors").read_bytes()).hexdigest()


def test_a_disk_that_becomes_full_is_told_and_the_run_goes_on_with_more_room(
    disk: Path, tmp_path: Path
) -> None:
    message = told_in_one_message(prune(disk / "run"))
    assert "No space left on device" in message or "cannot be written" in message
    assert not list(disk.rglob(TEMPORARY_FILES))
    assert not (disk / "run" / "model.onnx").exists()
    assert mount("-o", "remount,size=64m", disk)
    assert prune(disk / "run", "--resume").exit_code == 0
    assert prune(tmp_path / "other").exit_code == 0
    assert weights_of(disk / "run") == weights_of(tmp_path / "other")


def test_a_folder_that_turns_read_only_half_way_is_told_and_keeps_its_checkpoint(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mount("-o", "remount,size=64m", disk)
    (tmp_path / "half_way.py").write_text(OWN_DATA.format(disk))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "half_way", raising=False)
    message = told_in_one_message(prune(disk / "run", "--data", "half_way:data"))
    assert "ead-only file system" in message or "cannot be written" in message
    assert [path.name for path in (disk / "run" / CHECKPOINTS).iterdir()] == ["dense.safetensors"]
    assert mount("-o", "remount,rw", disk)
    assert prune(disk / "run", "--data", "half_way:data", "--resume").exit_code == 0


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Cut off somewhere, or with some bytes changed."""
    if generator.random() < 0.3:
        return content[: generator.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(generator.choice((1, 4, 64))):
        changed[generator.randrange(len(changed))] ^= generator.randrange(1, 256)
    return bytes(changed)


@pytest.mark.parametrize("times", [6, pytest.param(100, marks=pytest.mark.slow)], ids=["some", "a hundred"])
def test_the_command_tells_of_damaged_files_of_a_run_or_goes_on_from_good_ones(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hwprune.pipeline._Job.finish", stop)
        assert prune(tmp_path / "broken off").exit_code == 130
    assert prune(tmp_path / "whole").exit_code == 0
    files = sorted(path for path in (tmp_path / "broken off").rglob("*") if path.is_file())
    assert len(files) >= 3
    generator, refused = random.Random(2), 0
    for attempt in range(times):
        copy = tmp_path / str(attempt)
        shutil.copytree(tmp_path / "broken off", copy)
        path = copy / files[attempt % len(files)].relative_to(tmp_path / "broken off")
        path.write_bytes(damaged(path.read_bytes(), generator))
        result = prune(copy, "--resume")
        if result.exit_code == 0:
            assert weights_of(copy) == weights_of(tmp_path / "whole"), path
        else:
            refused += 1
            assert str(copy) in told_in_one_message(result)
        shutil.rmtree(copy)
    assert refused > 0


@pytest.mark.parametrize("times", [6, pytest.param(100, marks=pytest.mark.slow)], ids=["some", "a hundred"])
def test_the_command_tells_of_damaged_results_or_exports_the_same(times: int, tmp_path: Path) -> None:
    def exported(folder: Path) -> Result:
        return CliRunner().invoke(main, ["export", str(folder), "--format", "onnx"])

    assert prune(tmp_path / "run").exit_code == 0
    assert exported(tmp_path / "run").exit_code == 0
    (expected,) = [path.read_bytes() for path in (tmp_path / "run" / "onnx").glob("*.onnx")]
    shutil.rmtree(tmp_path / "run" / "onnx")
    files = ["model.onnx", "report.json"]
    generator, refused = random.Random(3), 0
    for attempt in range(times):
        copy = tmp_path / str(attempt)
        shutil.copytree(tmp_path / "run", copy)
        path = copy / files[attempt % len(files)]
        path.write_bytes(damaged(path.read_bytes(), generator))
        result = exported(copy)
        if result.exit_code:
            refused += 1
            told_in_one_message(result)
        else:
            assert [path.read_bytes() for path in (copy / "onnx").glob("*.onnx")] == [expected], path
        shutil.rmtree(copy)
    assert refused >= times // 2


class Shelf(Dataset[tuple[Tensor, Tensor]]):
    """The digits; a worker that is asked for the broken one dies."""

    def __init__(self, broken: int | None) -> None:
        self.data, self.broken = load_dataset("digits").first(256), broken

    def __len__(self) -> int:
        return len(self.data.train_labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.broken:
            os._exit(3)
        return self.data.train_images[index], self.data.train_labels[index]


def test_a_worker_that_dies_ends_the_epoch_and_training_goes_on_from_the_last_one() -> None:
    def made() -> tuple[nn.Module, hwprune.Compressor, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        )
        profile = hwprune.load_profile("x86-avx2-ort")
        compressor = hwprune.Compressor(
            model, torch.zeros(2, 1, 8, 8), profile, hwprune.Keep(0.5), total_steps=16, measure=False
        )
        return model, compressor, compressor.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))

    def epoch(
        model: nn.Module, optimizer: torch.optim.Optimizer, number: int, broken: int | None = None
    ) -> None:
        order = torch.Generator().manual_seed(number)
        for images, labels in DataLoader(
            Shelf(broken), batch_size=64, shuffle=True, generator=order, num_workers=1
        ):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    def broken_epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        try:
            epoch(model, optimizer, 2, broken=100)
        except OSError:  # the worker's connection broke before the signal came that it has ended
            time.sleep(60)

    whole, compressor, optimizer = made()
    for number in range(4):
        epoch(whole, optimizer, number)
    expected = compressor.finish().model.state_dict()

    model, _compressor, optimizer = made()
    for number in range(2):
        epoch(model, optimizer, number)
    kept = copying.deepcopy([model.state_dict(), optimizer.state_dict()])
    with pytest.raises(RuntimeError, match="worker"):
        broken_epoch(model, optimizer)
    model, compressor, optimizer = made()
    model.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    for number in (2, 3):
        epoch(model, optimizer, number)
    for name, tensor in compressor.finish().model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
