"""Several processes as a user starts them: the same command in each, with three variables."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from curvcli.xla import SWITCH, program_options
from tests.cli.conftest import Outcome, Project

TIMEOUTS = {"CURV_START_TIMEOUT": "60", "CURV_SILENT_TIMEOUT": "10"}
COMMAND = ("spectrum", "--method", "hutchinson", "--dtype", "float64", "--skip-checks", "--no-cache")
SHORT = ("--probes", "2", "--steps", "8")
ENDLESS = ("--probes", "64", "--steps", "4000", "--reorthogonalize", "none")

Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(project: Project, process_environment: dict[str, str]) -> Start:
    """Start processes of one run; those not in `only` never come."""

    def started(
        count: int, *arguments: str, only: tuple[int, ...] | None = None, host: str = "127.0.0.1",
        more: dict[int, tuple[str, ...]] = {}, prefixes: dict[int, tuple[str, ...]] = {},  # noqa: B006
    ) -> list[subprocess.Popen[str]]:  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = {"CURV_COORDINATOR": f"{host}:{port}", "CURV_NUM_PROCESSES": str(count), "JAX_NUM_CPU_DEVICES": "1"}
        return [
            subprocess.Popen(
                [*prefixes.get(rank, ()), sys.executable, "-m", "curvcli", *COMMAND, *arguments, *more.get(rank, ()),
                 "--distributed"],
                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**process_environment, **TIMEOUTS, **given, "CURV_PROCESS_ID": str(rank)},
            )
            for rank in (range(count) if only is None else only)
        ]  # fmt: skip

    return started


def worker_of(process: subprocess.Popen[str]) -> int:
    """The process that computes for it."""
    for _ in range(200):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.05)
    raise AssertionError("it has started none")


def under_way(state: Path) -> None:
    """Wait until products are kept."""
    for _ in range(1200):
        if (state / "records").exists() and (state / "records").stat().st_size > 10_000:
            return
        time.sleep(0.1)
    raise AssertionError("nothing was computed")


def told_of_a_loss(process: subprocess.Popen[str], within: float) -> str:
    """The error of a process that lost another: two lines, 69, nothing on stdout."""
    out, err = process.communicate(timeout=within)
    assert process.returncode == 69, err
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 2, err
    assert lines[0].startswith("error: distributed: ")
    assert lines[1].startswith("hint: ")
    return lines[0]


@pytest.mark.slow
def test_two_processes_answer_as_one(start: Start, curv: Callable[..., Outcome]) -> None:
    first, second = start(2, *SHORT)
    out, err = first.communicate(timeout=200)
    assert (first.returncode, Outcome.of(0, out, err).err) == (0, "")
    assert second.communicate(timeout=60) == ("", "")
    assert second.returncode == 0
    alone = curv(*COMMAND, *SHORT).report
    together = json.loads(out)
    assert together["environment"]["processes"] == together["environment"]["devices"] == 2
    for name in ("lambda_max", "lambda_min", "trace"):
        assert together["result"][name]["value"] == pytest.approx(alone["result"][name]["value"], rel=1e-9)


@pytest.mark.slow
def test_workers_sum_rightly_whatever_flags_are_set(
    project: Project, start: Start, curv: Callable[..., Outcome], process_environment: dict[str, str]
) -> None:
    """A user's own flag leaves XLA's faulty sums on: the options of each program turn them off, in every process."""
    random = np.random.default_rng(0)
    project.data(x=random.normal(size=(6000, 4)), y=random.integers(0, 3, 6000))
    process_environment["XLA_FLAGS"] = f"{SWITCH}=reduce" if program_options() else ""
    wide = ("--matrix", "ggn", "--probes", "10", "--steps", "4", "--dtype")
    exact = curv(*COMMAND, *wide, "float64").report["result"]["lambda_max"]["value"]
    first, second = start(2, *wide, "float32")
    out, err = first.communicate(timeout=200)
    second.communicate(timeout=60)
    assert (first.returncode, Outcome.of(0, out, err).err) == (0, "")
    assert json.loads(out)["result"]["lambda_max"]["value"] == pytest.approx(exact, rel=1e-4)


def test_a_process_that_is_killed_ends_the_others(start: Start, tmp_path: Path) -> None:
    first, second = start(2, *ENDLESS, "--state", str(tmp_path / "kept"))
    under_way(tmp_path / "kept")
    os.kill(worker_of(second), signal.SIGKILL)
    assert "ended by SIGKILL" in told_of_a_loss(second, 30)
    told_of_a_loss(first, 30)


@pytest.mark.nightly
@pytest.mark.parametrize("rank", range(4))
def test_any_of_four_is_killed(start: Start, tmp_path: Path, rank: int) -> None:
    processes = start(4, *ENDLESS, "--state", str(tmp_path / "kept"))
    under_way(tmp_path / "kept")
    os.kill(worker_of(processes[rank]), signal.SIGKILL)
    for process in processes:
        told_of_a_loss(process, 40)


@pytest.mark.nightly
@pytest.mark.parametrize("rank", range(2))
def test_a_process_that_is_stopped_ends_all_itself_included(start: Start, tmp_path: Path, rank: int) -> None:
    processes = start(2, *ENDLESS, "--state", str(tmp_path / "kept"))
    under_way(tmp_path / "kept")
    os.kill(worker_of(processes[rank]), signal.SIGSTOP)
    for process in processes:
        told_of_a_loss(process, 60)


@pytest.mark.nightly
@pytest.mark.parametrize("missing", range(2))
def test_a_process_that_never_starts(start: Start, monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    monkeypatch.setitem(TIMEOUTS, "CURV_START_TIMEOUT", "8")
    (process,) = start(2, *SHORT, only=(1 - missing,))
    assert "did not answer in time" in told_of_a_loss(process, 60)


@pytest.mark.nightly
def test_the_parent_s_end_is_the_worker_s(start: Start, tmp_path: Path) -> None:
    first, second = start(2, *ENDLESS, "--state", str(tmp_path / "kept"))
    under_way(tmp_path / "kept")
    worker = worker_of(second)
    second.kill()
    second.communicate(timeout=40)
    told_of_a_loss(first, 40)
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    raise AssertionError("the worker goes on")


@pytest.mark.nightly
def test_another_command_is_named(start: Start) -> None:
    for process in start(2, *SHORT, more={1: ("--num-examples", "59")}):
        said = told_of_a_loss(process, 100)
        assert "process 1 has settings other than process 0" in said or "another process" in said


@pytest.mark.nightly
def test_everything_equals_one_process() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.several", address, "2"]
    root = Path(__file__).parent.parent.parent
    processes = [subprocess.Popen([*command, str(rank)], cwd=root) for rank in range(2)]
    assert [process.wait(1200) for process in processes] == [0, 0]


@pytest.mark.nightly
def test_in_namespaces_of_their_own(start: Start) -> None:
    """Two hosts as far as the network goes: nothing listens beyond the addresses that are named."""
    names = [f"curv{os.getpid()}{side}" for side in "ab"]
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add {names[0]} type veth peer name {names[1]}"]
    for side, name in enumerate(names):
        inside = f"ip netns exec {name} ip"
        commands += [f"ip link set {name} netns {name}", f"{inside} addr add 10.77.0.{side + 1}/24 dev {name}",
                     f"{inside} link set {name} up", f"{inside} link set lo up"]  # fmt: skip
    try:
        made = [subprocess.run(command.split(), capture_output=True, check=False).returncode for command in commands]
        if any(made):
            pytest.skip("this machine permits no network namespaces")
        prefixes = {rank: ("ip", "netns", "exec", name) for rank, name in enumerate(names)}
        first, second = start(2, *SHORT, host="10.77.0.1", prefixes=prefixes)
        out, err = first.communicate(timeout=200)
        assert first.returncode == 0, err
        assert json.loads(out)["environment"]["processes"] == 2
        assert second.communicate(timeout=60) == ("", "")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.nightly
def test_a_state_goes_on_with_another_number_of_processes(start: Start, tmp_path: Path) -> None:
    kept = ("--state", str(tmp_path / "kept"))
    for process in start(2, *SHORT, *kept):
        process.communicate(timeout=200)
        assert process.returncode == 0
    first, *others = start(3, "--probes", "2", "--steps", "12", *kept)
    out, err = first.communicate(timeout=200)
    assert first.returncode == 0, err
    assert [process.communicate(timeout=60)[0] for process in others] == ["", ""]
    assert "the number of devices is 3, the state was begun with 2" in err
    assert json.loads(out)["cost"]["recalled"] >= 2


def test_incomplete_variables(curv: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CURV_WORKER", "0,0")
    monkeypatch.setenv("CURV_COORDINATOR", "127.0.0.1:1")
    outcome = curv(*COMMAND, "--distributed")
    assert (outcome.code, outcome.out) == (2, "")
    assert "CURV_NUM_PROCESSES, CURV_PROCESS_ID is not set" in outcome.err
