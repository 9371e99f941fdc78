"""What a resumed ``hwprune variants`` keeps: what is whole, and nothing else."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from silent import Silent

from hwprune.device.library import load_profile
from hwprune.errors import ArtifactError, RuntimeUnavailableError, WorkloadError
from hwprune.executors.base import InProcess, Outcome, Task, TaskObserver
from hwprune.executors.parcels import pack, unpack
from hwprune.report import read_json
from hwprune.runtime.bench import THIS_MACHINE
from hwprune.targets import Keep
from hwprune.train.loop import Recipe, Trainer
from hwprune.variant_tasks import Variant, VariantTask
from hwprune.variants import Grid, make_variants
from hwprune.variants_kept import keep_whole
from hwprune.variants_page import VariantsFolder

DEVICE = "any-cpu-ort"
LOOSE, TIGHT = (f"lenet5-{DEVICE}-keep-{value}" for value in ("0.7", "0.4"))


@pytest.fixture(scope="module")
def grid() -> Grid:
    recipe = Recipe(1, 256)
    return Grid(
        ["lenet5"], "digits", {DEVICE: load_profile(DEVICE)}, [Keep(0.7), Keep(0.4)], recipe, fine_tune=recipe
    )


@pytest.fixture(scope="module")
def made(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("variants") / "out"
    make_variants(grid, out, Silent(), resume=False)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def entries(out: Path) -> dict[str, dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads((out / "manifest.json").read_text())["variants"]
    return {entry["name"]: entry for entry in listed}


def test_what_is_whole_is_kept_as_it_is_listed(grid: Grid, out: Path) -> None:
    lines: list[str] = []
    assert keep_whole(grid.variants(), out, lines.append) == entries(out)
    assert lines == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.onnx", Path.unlink),
        ("slim/model.safetensors", flip),
        ("slim/structure.json", Path.unlink),
        ("history.csv", flip),
        ("report.json", lambda path: path.write_text("{}")),
        ("report.json", lambda path: path.write_text("no JSON")),
    ],
)
def test_what_is_missing_or_altered_is_to_be_made_anew(
    grid: Grid, out: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    damage(out / TIGHT / name)
    lines: list[str] = []
    assert list(keep_whole(grid.variants(), out, lines.append)) == [LOOSE]
    assert lines == [f"making {out / TIGHT} anew: missing or altered: {name}"]
    assert not (out / TIGHT / "report.json").exists()


@pytest.mark.parametrize("name", ["report.json", "model.onnx"])
def test_what_a_killed_process_did_not_come_to_list_is_looked_at_too(
    grid: Grid, out: Path, name: str
) -> None:
    """Its report is there, but the manifest says nothing of its files."""
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "variants": []}))
    assert list(keep_whole(grid.variants(), out, lambda line: None)) == [LOOSE, TIGHT]
    (out / TIGHT / name).write_text("{}") if name == "report.json" else (out / TIGHT / name).unlink()
    lines: list[str] = []
    assert list(keep_whole(grid.variants(), out, lines.append)) == [LOOSE]
    assert name in lines[0]


def test_what_can_be_written_again_is(grid: Grid, out: Path) -> None:
    (out / TIGHT / "run.py").unlink()
    (out / TIGHT / "report.html").write_text("written anew by hwprune report")
    kept = keep_whole(grid.variants(), out, lambda line: None)
    before = entries(out)[TIGHT]["files"]
    assert {name for name, digest in kept[TIGHT]["files"].items() if digest != before[name]} == {
        "report.html"
    }
    assert (out / TIGHT / "run.py").is_file()


def test_without_its_runtime_an_intact_variant_is_kept_and_another_fails(
    grid: Grid, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_arguments: object) -> None:
        raise RuntimeUnavailableError("the runtime is not installed")

    monkeypatch.setattr("hwprune.variant_tasks.make_shippable", missing)
    (out / TIGHT / "run.py").unlink()
    kept = keep_whole(grid.variants(), out, lambda line: None)
    assert [kept[name]["status"] for name in (LOOSE, TIGHT)] == ["done", "failed"]
    assert (out / TIGHT / "report.json").is_file()
    assert kept[TIGHT]["error"] == "the runtime is not installed"
    assert kept[TIGHT]["slim"] == entries(out)[TIGHT]["slim"]  # it was measured
    manifest = read_json(out / "manifest.json", "")
    (out / "manifest.json").write_text(json.dumps(manifest | {"variants": list(kept.values())}))
    elsewhere = replace(grid, targets=[Keep(0.2)])  # it stays listed when others are made
    assert keep_whole(elsewhere.variants(), out, pytest.fail)[TIGHT]["error"] == kept[TIGHT]["error"]
    monkeypatch.undo()  # and is tried again when it is resumed
    assert keep_whole(grid.variants(), out, pytest.fail)[TIGHT]["status"] == "done"


def test_a_variant_that_was_measured_and_is_lost_later_keeps_its_numbers(grid: Grid, out: Path) -> None:
    before = entries(out)[TIGHT]
    entry = grid.variants()[1].failed_entry(OSError("disk full"), out / TIGHT)
    assert (entry["status"], entry["error"], entry["slim"]) == ("failed", "disk full", before["slim"])
    (out / TIGHT / "report.json").write_text("{")
    entry = grid.variants()[1].failed_entry(OSError("disk full"), out / TIGHT)
    assert (entry["status"], "slim" in entry) == ("failed", False)


def test_what_cannot_be_quantised_keeps_what_it_is_in_single_precision(
    grid: Grid, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object) -> None:
        raise RuntimeUnavailableError("8 bits are refused")

    monkeypatch.setattr("hwprune.variant_tasks.quantize_dense", refused)
    monkeypatch.setattr("hwprune.variant_tasks.export_dense", lambda *_arguments: None)
    before = entries(out)[TIGHT]
    variant = replace(grid.variants()[1], int8=True)
    entry = VariantTask(variant, (), (), resume=True).run(out, THIS_MACHINE, Silent())
    assert (entry["status"], entry["error"]) == ("failed", "8 bits are refused")
    assert entry["slim"] == before["slim"]
    assert (out / TIGHT / "run.py").is_file()
    manifest = read_json(out / "manifest.json", "")
    folder = VariantsFolder(out, manifest | {"variants": [entries(out)[LOOSE], entry]})
    row = folder.networks().set_index("value").loc[0.4]
    assert row["latency_us_median"] == before["slim"]["latency_us"]["median"]
    assert row["reason"] == "8 bits are refused"
    assert "8 bits are refused" in folder.write_page().read_text()


def test_variants_of_other_targets_stay_listed(grid: Grid, out: Path) -> None:
    other = replace(grid, targets=[Keep(0.9)])
    assert list(keep_whole(other.variants(), out, lambda line: None)) == [LOOSE, TIGHT]
    (out / LOOSE / "model.onnx").unlink()
    lines: list[str] = []
    assert list(keep_whole(other.variants(), out, lines.append)) == [TIGHT]
    assert lines == [f"{LOOSE} is left out of the manifest: missing or altered: model.onnx"]
    seeded = replace(other, recipe=replace(grid.recipe, seed=1))
    with pytest.raises(ArtifactError, match="other settings"):
        keep_whole(seeded.variants(), out, lambda line: None)


def test_variants_of_another_profile_or_other_weights_are_not_kept(grid: Grid, out: Path) -> None:
    profile = grid.devices[DEVICE]
    runtime = profile.runtime.model_copy(update={"threads": 2, "batch": 8})
    other = replace(grid, devices={DEVICE: profile.model_copy(update={"runtime": runtime})})
    with pytest.raises(ArtifactError, match=r"other settings.*profile_sha256"):
        keep_whole(other.variants(), out, lambda line: None)


@pytest.mark.parametrize("executor", [None, InProcess()], ids=["by default", "asked for"])
def test_a_start_that_cannot_begin_removes_nothing(grid: Grid, out: Path, executor: InProcess | None) -> None:
    before = entries(out)
    (out / TIGHT / "notes.txt").write_text("mine")
    wrong = replace(grid, data="imagefolder:/nowhere", targets=[Keep(0.4)])
    with pytest.raises(WorkloadError, match="no such folder"):
        make_variants(wrong, out, Silent(), resume=False, executor=executor)
    assert entries(out) == before
    assert list(keep_whole(grid.variants(), out, lambda line: None)) == [LOOSE, TIGHT]


class FarAway:
    """Does every task on a machine of its own, which has what was sent there and sends back what it makes."""

    here = False

    def run(self, tasks: Sequence[Task], root: Path, observer: TaskObserver) -> Iterator[Outcome]:
        for task in tasks:
            with tempfile.TemporaryDirectory() as folder:
                unpack(pack(root, task.needs), Path(folder), task.needs)
                told = task.run(Path(folder), THIS_MACHINE, observer)
                unpack(pack(Path(folder), task.makes), root, task.makes)
            yield Outcome(task, told, None)


@pytest.mark.parametrize("executor", [None, FarAway()], ids=["here", "far away"])
def test_a_start_anew_leaves_what_it_does_not_make(grid: Grid, out: Path, executor: FarAway | None) -> None:
    before = entries(out)
    (out / TIGHT / "notes.txt").write_text("mine")
    tight = replace(grid, targets=[Keep(0.4)])
    make_variants(tight, out, Silent(), resume=False, executor=executor)
    after = entries(out)
    assert list(after) == [TIGHT, LOOSE]
    assert after[LOOSE] == before[LOOSE]
    assert (out / TIGHT / "notes.txt").read_text() == "mine"
    # It was made from the dense network this time, and says so also when it is asked for beside the other.
    assert after[TIGHT]["settings"]["follows"] is None
    assert after[TIGHT]["from"]["looser"] is None
    lines = Silent()
    seeded = replace(tight, recipe=replace(grid.recipe, seed=1), fine_tune=replace(grid.recipe, seed=1))
    make_variants(seeded, out, lines, resume=False)
    assert list(entries(out)) == [TIGHT]
    assert f"{LOOSE} is left out of the manifest: it was made with other settings" in lines.lines
    assert (out / LOOSE / "report.json").is_file()


def test_what_a_variant_started_from_is_what_its_report_says(grid: Grid, out: Path) -> None:
    (out / TIGHT / "README.md").unlink()
    make_variants(replace(grid, targets=[Keep(0.4)]), out, Silent(), resume=True)
    told = entries(out)[TIGHT]
    assert told["settings"]["follows"] == {"kind": "keep", "value": 0.7}
    assert told["from"]["looser"] == LOOSE


def test_a_variant_that_was_taken_away_does_not_hide_the_others(out: Path) -> None:
    shutil.rmtree(out / TIGHT)
    page = VariantsFolder.read(out).write_page().read_text()
    for name in (LOOSE, TIGHT):
        assert f"<summary>{name}: " in page
    assert page.count("Its folder is not beside this page as it was") == 1
    assert str(out) not in page


def test_a_resumed_grid_makes_what_was_damaged_and_lists_what_was_made_before(
    grid: Grid, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, trained = entries(out), list[int]()
    original = Trainer.run_epoch

    def counted(self: Trainer, *rest: Any) -> Any:
        trained.append(self.epoch)
        return original(self, *rest)

    monkeypatch.setattr(Trainer, "run_epoch", counted)
    (out / TIGHT / "report.json").write_text("{}")
    folder = make_variants(replace(grid, targets=[Keep(0.4)]), out, Silent(), resume=True)
    assert len(trained) == 1
    assert set(entries(out)) == {LOOSE, TIGHT}
    assert entries(out)[LOOSE] == before[LOOSE]
    assert read_json(out / TIGHT / "report.json", "")["target"] == {"kind": "keep", "value": 0.4}
    assert len(folder.measured) == 2


def test_altered_numbers_of_8_bits_are_made_anew_without_the_run(grid: Grid, out: Path) -> None:
    """The quantised network is a step of its own."""
    (out / TIGHT / "int8").mkdir()
    (out / TIGHT / "int8" / "int8.json").write_text("{}")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["variants"][1]["files"]["int8/int8.json"] = "another digest"
    (out / "manifest.json").write_text(json.dumps(manifest))
    wanted: list[Variant] = [replace(variant, int8=True) for variant in grid.variants()]
    assert keep_whole(wanted, out, lambda line: None) == {}
    assert (out / TIGHT / "report.json").is_file()
    assert not (out / TIGHT / "int8" / "int8.json").exists()
