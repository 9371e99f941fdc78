"""The examples run as they stand, on the digits of scikit-learn."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
#: What an example needs besides the package.
NEEDS = {"lightning_digits": ["lightning"], "transformers_digits": ["transformers", "accelerate"]}


@pytest.mark.filterwarnings("ignore")  # other people's advice
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
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
