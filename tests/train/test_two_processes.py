"""Two gloo processes and one with the same global batches: the same groups, and weights within rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from two_processes import CASES, PREPARATIONS, fitted, normalised, train

SCRIPT = Path(__file__).with_name("two_processes.py")
Outcomes = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> list[Outcomes]:
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, str(SCRIPT)]
    running = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder / "init"), str(folder / "out")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads of two processes would wait for each other
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(printed)
    return [torch.load(folder / f"out.{rank}", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module", params=CASES)
def in_one(request: pytest.FixtureRequest) -> tuple[str, dict[str, Tensor]]:
    return request.param, train(request.param, lambda model: model, 0, 1)


@pytest.mark.parametrize("kind", PREPARATIONS)
def test_two_processes_come_to_what_one_does(
    kind: str, in_one: tuple[str, dict[str, Tensor]], in_two: list[Outcomes]
) -> None:
    case, expected = in_one
    first, second = (outcomes[f"{kind} {case}"] for outcomes in in_two)
    assert first.keys() == second.keys() == expected.keys()
    assert 0 < int(expected["alive"].sum()) < expected["alive"].numel()
    for name, tensor in expected.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], tensor, atol=1e-5, rtol=1e-4), name
    zeros = {name: tensor == 0 for name, tensor in expected.items() if name.endswith("weight")}
    for name, mask in zeros.items():
        assert torch.equal(first[name] == 0, mask), name


def test_batch_norms_and_gradients_are_those_of_the_whole_batch(in_two: list[Outcomes]) -> None:
    expected = normalised()
    for outcomes in in_two:
        for name, tensor in expected.items():
            assert torch.allclose(outcomes["batch norm"][name], tensor, atol=1e-6, rtol=1e-5), name


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as each of the two processes has: another number rounds another way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")  # a fit magnifies rounding where the inputs of a layer all but depend
def test_survivors_are_fitted_alike(in_two: list[Outcomes]) -> None:
    first, second = (outcomes["fitted"] for outcomes in in_two)
    alone = fitted(0)
    assert any(not torch.equal(alone[name], tensor) for name, tensor in fitted(1).items())
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert torch.allclose(tensor, alone[name], atol=1e-5, rtol=1e-4), name


def test_the_first_process_decides(in_two: list[Outcomes]) -> None:
    for outcomes in in_two:
        agreed = outcomes["agreement"]
        assert agreed["numbers"].tolist() == [0.0, 0.5]
        assert agreed["flags"].tolist() == [True, False]
        assert agreed["value"] == 0
        assert agreed["error raised"] == 1
        assert agreed["from each"].tolist() == [0, 1]
        assert not torch.equal(agreed["drawn by 0"], agreed["drawn by 1"])
