"""Measuring on another machine, with an ssh server of this one in its place."""

from __future__ import annotations

import ast
import getpass
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import hwprune
from hwprune.cli import main
from hwprune.device.profile import DeviceProfile
from hwprune.errors import HostError, HwpruneError, InputError
from hwprune.operators import Operator
from hwprune.runtime import board, processor, remote, stopwatch
from hwprune.runtime.base import REGISTRY, get_runtime, on_gpu
from hwprune.runtime.board import LOADERS
from hwprune.runtime.onnx_values import read_values
from hwprune.runtime.operator_models import make_operator_model
from hwprune.runtime.quantize import quantize
from hwprune.runtime.remote import Host, measure_on
from hwprune.runtime.timing import random_feed

SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
needs_sshd = pytest.mark.skipif(SSHD is None, reason="needs sshd: the package openssh-server")
PATIENCE = 60.0


def device(kind: str = "onnxruntime") -> DeviceProfile:
    profile = hwprune.load_profile("any-cpu-ort")
    return profile.model_copy(update={"runtime": profile.runtime.model_copy(update={"kind": kind})})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for name, width in (("narrow", 8), ("wide", 96)):
        operator = Operator("conv", width, width, 20, 20, 3, 3, padding=1)
        paths[name] = folder / f"{name}.onnx"
        paths[name].write_bytes(make_operator_model([operator], batch=1).content)
    return paths


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """An ssh server on loopback with keys of its own, and the client's side of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir()
        for key in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True
            )
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        port = free_port()
        options = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "user.pub",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
        }
        config = folder / "config"
        config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", str(config)], stdout=self.log, stderr=self.log
        )
        client = ["ssh", "-F", "none", "-p", str(port), "-i", str(folder / "user"), "-o", "LogLevel=ERROR"]
        client += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        self.host = Host(f"{getpass.getuser()}@127.0.0.1", self.script("python", ""), tuple(client))

    def script(self, name: str, options: str, after: str = "") -> str:
        """A Python for the server that keeps its temporary files here."""
        path = self.folder / name
        path.write_text(
            f'#!/bin/sh\nexport TMPDIR={self.temporary}\n{sys.executable} {options} "$@"{after}\n'
        )
        path.chmod(0o755)
        return str(path)

    def left(self, name: str) -> list[str]:
        """What a script left of ours; some runtimes leave files of their own."""
        return [path.name for path in (self.temporary / name).glob("hwprune-*")]

    def wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        command = [*self.host.ssh, "-o", "BatchMode=yes", self.host.name, "true"]
        while subprocess.run(command, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.2)

    def drop_connections(self) -> None:
        """Kills what serves the connections, as a host does that loses its power."""
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@needs_sshd
@pytest.mark.parametrize("kind", sorted(LOADERS))
def test_files_are_timed_there_and_nothing_is_left(server: Server, files: dict[str, Path], kind: str) -> None:
    pytest.importorskip(REGISTRY[kind][2])
    timings = measure_on(server.host, files, device(kind), runs=30)
    assert timings.keys() == files.keys()
    assert {timing.runs for timing in timings.values()} == {30}
    assert timings["wide"].p10_us > 3 * timings["narrow"].p10_us > 0
    facts = timings["wide"].environment
    assert (facts["host"], facts["runtime"]) == (server.host.name, kind)
    assert facts["loadings"] == (1 if on_gpu(device(kind).runtime) else 2)  # 30 runs are two turns
    assert facts["runtime_version"] == get_runtime(kind).version()
    assert server.left("python") == []


@pytest.mark.parametrize("module", [board, processor, stopwatch])
def test_what_is_sent_is_understood_by_older_pythons(module: ModuleType) -> None:
    ast.parse(Path(str(module.__file__)).read_text(), feature_version=(3, 9))


def test_every_runtime_can_be_measured_elsewhere() -> None:
    assert LOADERS.keys() == REGISTRY.keys()
    assert {kind: package for kind, (_, package) in LOADERS.items()} == {
        kind: entry[2] for kind, entry in REGISTRY.items()
    }


def test_the_version_of_a_package_is_told_whatever_it_is_distributed_as() -> None:
    assert board.version_of("numpy") == np.__version__
    assert board.version_of("yaml") == importlib.metadata.version("pyyaml")
    with pytest.raises(ImportError):
        board.version_of("not_there_at_all")


@needs_sshd
def test_a_host_that_vanishes_half_way_is_told(server: Server, files: dict[str, Path]) -> None:
    flag = server.folder / "started"
    after = f' | {{ read -r first; echo "$first"; touch {flag}; cat; }}'
    host = replace(server.host, python=server.script("vanishing", "", after))
    caught: list[Exception] = []

    def measure() -> None:
        try:
            measure_on(host, {"wide": files["wide"]}, device(), runs=4_000)
        except HwpruneError as error:
            caught.append(error)

    thread = threading.Thread(target=measure)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not flag.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    server.drop_connections()
    thread.join(PATIENCE)
    (error,) = caught
    assert isinstance(error, HostError)
    assert "left before it was done" in str(error)
    assert host.name in str(error)
    deadline = time.monotonic() + PATIENCE
    while server.left("vanishing") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.left("vanishing") == []  # what ran there ends when it finds nobody listening


@needs_sshd
def test_a_host_without_the_runtime_is_told_what_to_install(server: Server, files: dict[str, Path]) -> None:
    host = replace(server.host, python=server.script("bare", "-I -S"))
    with pytest.raises(HostError, match="lacks the runtime onnxruntime") as caught:
        measure_on(host, files, device(), runs=5)
    assert "-m pip install onnxruntime" in str(caught.value)
    assert server.left("bare") == []


@needs_sshd
def test_a_host_without_python_is_told(server: Server, files: dict[str, Path]) -> None:
    with pytest.raises(HostError, match="the host has no no-such-python"):
        measure_on(replace(server.host, python="no-such-python"), files, device(), runs=5)


@needs_sshd
def test_a_model_that_the_host_refuses_is_named(server: Server, tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"], domain="nowhere")
    graph = onnx.helper.make_graph([node], "graph", [value], [result])
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("nowhere", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(HostError, match="onnxruntime on the host refuses odd") as caught:
        measure_on(server.host, {"odd": tmp_path / "odd.onnx"}, device(), runs=5)
    assert "NoSuchOperator" in str(caught.value)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh: the package openssh-client")
def test_the_command_tells_a_host_that_does_not_answer_in_one_message(files: dict[str, Path]) -> None:
    arguments = ["measure", str(files["narrow"]), "--device", "any-cpu-ort"]
    arguments += ["--host", "nobody@127.0.0.1", "--port", str(free_port())]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: the host cannot be reached (in host nobody@127.0.0.1)")


def test_a_machine_without_ssh_is_told(files: dict[str, Path]) -> None:
    with pytest.raises(HostError, match="the ssh client cannot be started"):
        measure_on(Host("board", ssh=("/no/such/ssh",)), files, device(), runs=5)


@pytest.mark.parametrize("name", ["", "-oProxyCommand=evil"])
def test_the_name_of_a_host_is_never_an_option(files: dict[str, Path], name: str) -> None:
    with pytest.raises(InputError, match="no such host"):
        measure_on(Host(name), files, device(), runs=5)


def test_a_quantised_file_is_reported_on_8_bits_whatever_the_profile_says(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"fp32": files["narrow"], "int8": tmp_path / "int8.onnx"}
    quantize(paths["fp32"], paths["int8"], [random_feed(read_values(paths["fp32"]).inputs, 1)])
    told = [{"machine": {}}, *({"name": name, "durations_us": [1.0]} for name in paths), {"done": True}]
    monkeypatch.setattr(remote, "_talk", lambda host, archive: (told, "", 0))
    timings = measure_on(Host("board"), paths, device())
    assert {name: timing.environment["precision"] for name, timing in timings.items()} == {
        name: name for name in paths
    }
