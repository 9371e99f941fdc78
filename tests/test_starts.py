"""What pruning starts from, and for how long it trains, by what was asked for."""

import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from hwprune.cli import main


@pytest.fixture
def asked(monkeypatch):
    """Settings of the runs, and grids, that would have been made."""
    made = []
    prune = sys.modules["hwprune.cli.prune"]  # the command hides the module of the same name
    monkeypatch.setattr(prune, "compress", lambda settings, *_rest, **_named: made.append(settings))
    for name in ("prune", "variants"):
        module = sys.modules[f"hwprune.cli.{name}"]
        monkeypatch.setattr(module, "run_grid", lambda grid, *_rest, **_named: made.append(grid))
    return made


def ask(asked, *arguments):
    result = CliRunner().invoke(main, [*arguments, "--epochs", "10"])
    assert result.exit_code == 0, result.output
    return asked[-1]


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        (["prune"], 10),
        (["prune", "--weights", "trained.pt"], 10),
        (["prune", "--fine-tune-epochs", "4"], 4),
        (["prune", "--keep", "0.5", "--keep", "0.3"], 10),
        (["prune", "--keep", "0.5", "--keep", "0.3", "--weights", "trained.pt"], 10),
        (["variants", "--keep", "0.5"], 10),
        (["variants", "--keep", "0.5", "--fine-tune-epochs", "4"], 4),
    ],
)
def test_pruning_starts_from_trained_weights(asked, arguments, epochs):
    run = ask(asked, *arguments)
    assert run.fine_tune.epochs == epochs
    assert run.fine_tune.learning_rate < run.recipe.learning_rate
    assert run.distillation.weight == 0.5
    assert run.reconstruct > 0


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ([], [10, 2, 2]),
        (["--fine-tune-epochs", "4"], [4, 4, 4]),
        (["--weights", "trained.pt"], [10, 2, 2]),
        (["--from-scratch"], [10, 10, 10]),
    ],
)
@pytest.mark.parametrize("command", ["prune", "variants"])
def test_what_a_looser_target_left_is_trained_for_less_long(asked, command, options, epochs):
    grid = ask(asked, command, "--speedup", "3", "--speedup", "1.5", "--speedup", "2", *options)
    variants = grid.variants()
    assert [variant.settings.target.factor for variant in variants] == [1.5, 2.0, 3.0]
    recipes = [variant.settings.pruning_recipe for variant in variants]
    assert [recipe.epochs for recipe in recipes] == epochs
    # One whose looser variant failed starts from the dense network, and is trained like the first.
    alone = [replace(variant.settings, follows=None).pruning_recipe for variant in variants]
    assert [recipe.epochs for recipe in alone] == epochs[:1] * 3


@pytest.mark.parametrize("command", ["prune", "variants"])
def test_from_scratch_nothing_is_fitted_and_nobody_teaches(asked, command):
    run = ask(asked, command, "--from-scratch")
    assert run.fine_tune is None
    assert run.distillation is None
    assert run.reconstruct == 0


@pytest.mark.parametrize("also", [["--weights", "trained.pt"], ["--fine-tune-epochs", "3"]])
def test_from_scratch_contradicts_a_trained_start(asked, also):
    result = CliRunner().invoke(main, ["prune", "--from-scratch", *also])
    assert result.exit_code == 2
    assert "--from-scratch contradicts" in result.output


def test_there_is_nothing_to_fit_to_from_scratch(asked):
    result = CliRunner().invoke(main, ["prune", "--from-scratch", "--reconstruct", "100"])
    assert result.exit_code == 2
    assert "leave out --from-scratch" in result.output
