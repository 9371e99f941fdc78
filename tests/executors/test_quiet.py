"""Who measures is alone on the machine, and need not wait for ever."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from hwprune.executors.quiet import Worker, alone


def test_who_measures_waits_for_a_worker_to_step_aside_and_then_has_the_machine(tmp_path: Path) -> None:
    steps: list[str] = []

    def measure() -> None:
        with alone(tmp_path):
            steps.append("measuring")
            time.sleep(0.1)
            steps.append("measured")

    with Worker(tmp_path) as worker:
        measuring = threading.Thread(target=measure)
        measuring.start()
        time.sleep(0.1)
        steps.append("worked")
        while measuring.is_alive() and "measured" not in steps:
            worker.step_aside()
        steps.append("works on")
        measuring.join()
    assert steps == ["worked", "measuring", "measured", "works on"]


def test_two_workers_are_in_at_once_and_two_who_measure_are_not(tmp_path: Path) -> None:
    with Worker(tmp_path), Worker(tmp_path) as second:
        second.step_aside()
    inside, most = 0, 0

    def measure() -> None:
        nonlocal inside, most
        with alone(tmp_path):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=measure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
