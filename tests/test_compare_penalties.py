"""The comparison of penalties: what it plans, resumes and writes; the trainings are replaced."""

import pytest
import torch
from click.testing import CliRunner

from hwprune.penalties import penalty_names
from hwprune.workloads import Dataset


@pytest.fixture
def tool(load_tool):
    return load_tool("compare_penalties")


def small_dataset():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 4
    return Dataset("small", images, labels, images, labels, 4)


def test_finished_runs_of_other_code_are_made_again(tool, monkeypatch, tmp_path):
    trained = []

    def train(run, _dataset):
        trained.append(run)
        return tool.Outcome(0.5, 7, 5, 10, 1.0)

    monkeypatch.setattr(tool, "train", train)
    monkeypatch.setattr(tool, "load_dataset", lambda _name: small_dataset())
    arguments = ["--out", str(tmp_path / "page.md"), "--seeds", "1", "--images", "40"]
    told = []
    for code in ("old", "new", "new"):
        monkeypatch.setattr(tool, "fingerprint", lambda _files, code=code: code)
        told.append(CliRunner().invoke(tool.main, arguments, catch_exceptions=False).output)
    planned = list(tool.planned(1, "", 0, 0, 0, 0.0))
    assert len(trained) == 2 * len(planned)
    of_other_code = f"{len(planned)} finished runs are of other code or versions and do not count"
    assert [of_other_code in text for text in told] == [False, True, True]


def test_finished_runs_are_not_repeated_and_all_are_in_the_table(tool, monkeypatch, tmp_path):
    trained = []

    def train(run, _dataset):
        trained.append(run)
        return tool.Outcome(0.5 + 0.01 * run.seed, 7, 5, 10, 1.0)

    monkeypatch.setattr(tool, "train", train)
    monkeypatch.setattr(tool, "load_dataset", lambda _name: small_dataset())
    out = tmp_path / "page.md"
    for seeds, expected in ((1, 1), (1, 1), (2, 2)):
        outcome = CliRunner().invoke(tool.main, ["--out", str(out), "--seeds", str(seeds), "--images", "40"])
        assert outcome.exit_code == 0, outcome.output
        assert len(trained) == len(set(trained)) == len(list(tool.planned(expected, "", 0, 0, 0, 0.0)))
    page = out.read_text()
    for name in penalty_names():
        assert f"| {name} | 50.50 | 0.71 | +0.00 | 7 | 5 of 10 | 1.0 |" in page


@pytest.mark.parametrize("granularity", ["channel", "weight"])
def test_a_run_tells_what_lived_before_the_cut(tool, granularity):
    dataset = small_dataset()
    outcome = tool.train(tool.Run(granularity, "magnitude", 0, "lenet5", 40, 2, 20, 0.01), dataset)
    assert outcome.alive_before == outcome.total
    assert outcome.kept == tool.KEPT[granularity].count_of(outcome.total)
    again = tool.train(tool.Run(granularity, "hard-threshold", 0, "lenet5", 40, 2, 20, 0.01), dataset)
    assert again.alive_before == again.kept == outcome.kept


def test_the_page_says_in_words_who_is_ahead_and_which_penalty_has_pruned_nothing(tool):
    def row(name, accuracy, alive):
        return tool.Row(name, [tool.Outcome(accuracy, alive, 5, 100, 1.0)])

    rows = [row("magnitude", 0.81, 100), row("envelope", 0.8, 5), row("group-lasso", 0.79, 91)]
    ahead, barely = tool.in_words(rows)
    assert ahead == "Ahead of the envelope: magnitude (1.00 points)."
    assert barely.startswith("Of group-lasso over 90% of the groups were left before the cut")
    assert tool.in_words(rows[1:2]) == ["Ahead of the envelope: none."]
