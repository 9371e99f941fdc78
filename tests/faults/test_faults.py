"""What training survives: full disks, damaged files, bad batches, processes that die."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_runs import QUICK, prune, told_in_one_message
from torch import Tensor

import hwprune
from hwprune.errors import ArtifactError, HwpruneError, WorkloadError
from hwprune.graph.coupling import find_axes
from hwprune.output_folder import BEFORE, CHECKPOINTS, OutputFolder
from hwprune.surgery.artifact import save_slim
from hwprune.surgery.rebuild import rebuild
from hwprune.train.checkpoint import load_checkpoint, save_checkpoint
from hwprune.train.loop import Recipe, Trainer
from hwprune.workloads import Dataset, load_dataset, make_model
from hwprune.workloads.batches import iterate_batches

SETTINGS = {"model": "lenet5"}
#: A data set whose augmentation fails, or returns NaN, when the file named in the environment says so.
OWN_DATA = """
import os
from pathlib import Path
import torch
from hwprune.workloads import load_dataset
from dataclasses import replace

batches = 0

def augment(images, generator):
    global batches
    batches += 1
    fault = Path(os.environ["FAULT"]).read_text()
    if fault == "raise" and batches > 3:
        raise ValueError("the shelf is empty")
    return images * float("nan") if fault == "nan" and batches > 3 else images

def data():
    return replace(load_dataset("digits"), augment=augment)
"""

OWN_NETWORK = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {0}), nn.ReLU(), nn.Linear({0}, 10))
"""


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Writing fails beyond so many bytes, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    return OutputFolder.open(tmp_path / "run", SETTINGS, resume=False)


def test_without_room_the_last_good_checkpoint_stays(folder: OutputFolder) -> None:
    state = {"epoch": 1, "weights": torch.arange(50_000)}
    folder.save_checkpoint("prune", state)
    with no_file_above(2**16), pytest.raises(OSError, match="cannot be written"):
        folder.save_checkpoint("prune", {"epoch": 2, "weights": torch.arange(50_000)})
    again = OutputFolder.open(folder.path, SETTINGS, resume=True)
    assert again.load_checkpoint("prune")["epoch"] == 1
    assert not list(folder.path.rglob(".*.tmp"))


def test_a_run_without_room_tells_so_and_resumes(tmp_path: Path) -> None:
    with no_file_above(2**20):
        message = told_in_one_message(prune(tmp_path / "run"))
    # The checkpoint, or the record of the kernels where their rows are still to be measured.
    assert "cannot be written" in message or "not written to the end" in message
    assert not (tmp_path / "run" / "model.onnx").exists()
    assert prune(tmp_path / "run", "--resume").exit_code == 0


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    if os.geteuid():
        tmp_path.chmod(0o555)
        place = tmp_path / "run"
    else:  # nothing is read-only for the superuser but what the kernel makes up
        place = Path("/proc/self/run")
    told_in_one_message(prune(place))
    assert not place.exists()


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_data_that_goes_bad_are_told_and_training_goes_on_from_the_last_epoch(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shelf.py").write_text(OWN_DATA)
    (tmp_path / "fault").write_text(fault)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAULT", str(tmp_path / "fault"))
    monkeypatch.delitem(sys.modules, "shelf", raising=False)
    message = told_in_one_message(prune(tmp_path / "run", "--data", "shelf:data"))
    assert ("the shelf is empty" if fault == "raise" else "the loss is not finite") in message
    assert [path.name for path in (tmp_path / "run" / CHECKPOINTS).iterdir()] == ["dense.safetensors"]
    (tmp_path / "fault").write_text("none")
    assert prune(tmp_path / "run", "--data", "shelf:data", "--resume").exit_code == 0


def test_a_network_that_cannot_be_trained_is_told_before_anything_is_kept(tmp_path: Path) -> None:
    message = told_in_one_message(prune(tmp_path / "run", "--model", "vgg16", "--batch-size", "1"))
    assert "the network fails in training" in message
    assert "--batch-size" in message
    assert not (tmp_path / "run").exists()


def test_an_augmentation_that_fails_is_an_error_of_the_data() -> None:
    def augment(_images: Tensor, _generator: torch.Generator) -> Tensor:
        raise ZeroDivisionError("no light")

    images, labels = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    dataset = Dataset("mine", images, labels, images, labels, 2, augment)
    with pytest.raises(WorkloadError, match=r"mine.*ZeroDivisionError: no light"):
        next(iterate_batches(dataset, 2, torch.Generator()))


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Cut off somewhere, or with some bytes changed."""
    if generator.random() < 0.3:
        return content[: generator.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 4, 64))):
        changed[generator.randrange(len(changed))] ^= generator.randrange(1, 256)
    return bytes(changed)


def trained_state() -> Any:
    dataset = load_dataset("digits").first(64)
    model = make_model("lenet5", in_channels=1, image_size=8, classes=10, seed=0)
    trainer = Trainer(model, dataset, Recipe(1, 64))
    trainer.run_epoch()
    return trainer.state_dict()


@pytest.mark.parametrize("age", ["", BEFORE])
def test_of_a_damaged_checkpoint_and_a_good_one_the_good_one_is_taken(
    folder: OutputFolder, age: str, tmp_path: Path
) -> None:
    for epoch in (1, 2):
        folder.save_checkpoint("prune", {"epoch": epoch, "weights": torch.arange(1000)})
    path = folder.path / CHECKPOINTS / f"prune{age}.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    told: list[str] = []
    assert folder.load_checkpoint("prune", told.append)["epoch"] == (2 if age else 1)
    assert len(told) == (0 if age else 1)
    for other in (folder.path / CHECKPOINTS).iterdir():
        other.write_bytes(b"")
    with pytest.raises(ArtifactError, match="damaged"):
        folder.load_checkpoint("prune", told.append)


def test_a_hundred_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    path, generator = tmp_path / "state.safetensors", random.Random(0)
    save_checkpoint(path, trained_state())
    good = path.read_bytes()
    for _ in range(100):
        path.write_bytes(damaged(good, generator))
        with pytest.raises(ArtifactError) as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value)


def test_a_hundred_damaged_slim_folders_are_refused_or_harmless(tmp_path: Path) -> None:
    dense = make_model("lenet5", in_channels=1, image_size=8, classes=10, seed=0).eval()
    example = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    axes = tuple(find_axes(dense, example))
    kept = {axis.name: torch.arange(axis.width).numpy() % 2 == 0 for axis in axes if axis.pinned is None}
    slim = rebuild(dense, axes, kept)
    save_slim(tmp_path / "slim", slim, axes, kept, {"torch": "1"})
    expected, generator = slim(example), random.Random(1)
    names = sorted(path.name for path in (tmp_path / "slim").iterdir())
    refused = 0
    for attempt in range(100):
        copy = tmp_path / str(attempt)
        shutil.copytree(tmp_path / "slim", copy)
        path = copy / names[attempt % len(names)]
        path.write_bytes(damaged(path.read_bytes(), generator))
        fresh = make_model("lenet5", in_channels=1, image_size=8, classes=10, seed=5).eval()
        try:
            loaded = hwprune.load(copy, model=fresh)
        except HwpruneError:
            refused += 1
            continue
        torch.testing.assert_close(loaded.eval()(example), expected, rtol=0, atol=0)
    assert refused > 80


def test_a_checkpoint_of_another_run_is_refused(folder: OutputFolder, tmp_path: Path) -> None:
    other = OutputFolder.open(tmp_path / "other", {"model": "vgg16"}, resume=False)
    other.save_checkpoint("prune", {"epoch": 1})
    shutil.copytree(other.path / CHECKPOINTS, folder.path / CHECKPOINTS, dirs_exist_ok=True)
    with pytest.raises(ArtifactError, match="another run"):
        folder.load_checkpoint("prune")


def test_a_network_whose_code_has_changed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", "mine:net", "--data", "digits"]

    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    for width in (32, 48):
        (tmp_path / "mine.py").write_text(OWN_NETWORK.format(width))
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        if width == 32:
            with monkeypatch.context() as patched:
                patched.setattr("hwprune.pipeline._Job.train_pruned", stop)
                assert prune(tmp_path / "run", *options).exit_code == 130
    message = told_in_one_message(prune(tmp_path / "run", *options, "--resume"))
    assert "does not fit the network" in message


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_a_message(tmp_path: Path) -> None:
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "hwprune",
        "prune",
    ]
    options = ["--out", str(tmp_path / "run"), *QUICK, "--epochs", "60"]
    environment = {**os.environ, "PYTHONPATH": str(Path(hwprune.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *launch, *options], env=environment, stderr=subprocess.PIPE, text=True
    ) as started:
        checkpoint = tmp_path / "run" / CHECKPOINTS / f"dense{BEFORE}.safetensors"
        while not checkpoint.exists():
            assert started.poll() is None, started.stderr
            time.sleep(0.1)
        ranks = subprocess.run(
            ["pgrep", "-P", str(started.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        _, told = started.communicate(timeout=120)
    assert started.returncode != 0
    # Which of the two comes first, the broken connection or the launcher's signal, is a matter of chance.
    ours = ("Error: another process of this run has gone", "Error: this process was told to end")
    assert any(line in told for line in ours), told
    single = [sys.executable, "-m", "hwprune", "prune", *options, "--resume"]
    assert subprocess.run(single, env=environment, capture_output=True, check=False).returncode == 0
