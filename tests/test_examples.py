"""The examples run as they stand, on the digits of scikit-learn."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from hwprune.cli import main

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PAGE = EXAMPLES.parent / "docs" / "own-network.md"
#: What an example needs besides the package.
#: Not a training of its own, but what commands name; see the last test.
FOR_COMMANDS = "own_task"
NEEDS = {"lightning_digits": ["lightning"], "transformers_digits": ["transformers", "accelerate"]}


@pytest.mark.filterwarnings("ignore")  # other people's advice
@pytest.mark.parametrize("name", sorted({path.stem for path in EXAMPLES.glob("*.py")} - {FOR_COMMANDS}))
def test_an_example_ends_with_an_accurate_slim_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in NEEDS.get(name, []):
        pytest.importorskip(package, reason=f"the example needs {package}", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    accuracy = re.search(r"accuracy ([0-9.]+)%", capsys.readouterr().out)
    assert accuracy is not None
    assert float(accuracy[1]) >= 90
    assert (tmp_path / "model.onnx").is_file()


def test_commands_take_a_network_data_and_weights_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / f"{FOR_COMMANDS}.py"), run_name="__main__")
    named = ["--model", "own_task:network", "--data", "own_task:data", "--weights", "dense.pt"]
    options = ["--epochs", "2", "--keep", "0.5", "--out", "run"]
    done = CliRunner().invoke(main, ["prune", *named, *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["dense"]["accuracy"] > 0.9
    assert report["slim"]["accuracy"] > 0.9
    assert report["slim"]["params"] < 0.7 * report["dense"]["params"]
    assert report["preprocessing"] == {"pixels": "from 0 to 16", "mean": [4.9], "deviation": [6.0]}
    assert report["class_names"] == list("0123456789")
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("    hwprune prune"):
            assert line.split("#")[0].split()[2:8] == named
            break
    else:
        pytest.fail("the page shows no command")
