"""The recipes of docs/recipes: make on a sample run, and the Slurm script with stand-ins for curv and scontrol."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_docs import ROOT, known_options

RECIPES = ROOT / "docs/recipes"
RUN = ROOT / "sample_models/digits_run"
needs_make = pytest.mark.skipif(not (shutil.which("make") and shutil.which("jq")), reason="make and jq")


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make` with the sample run, its reports in `folder`."""
    line = ["make", "-f", str(RECIPES / "Makefile"), f"RUN={RUN}", f"OUT={folder}", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, env=environment)


@needs_make
def test_make_would_analyse_each_step_in_order_and_draw_them(tmp_path: Path) -> None:
    done = make(tmp_path / "out", "-n", "all", "OPTIONS=--matrix ggn")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("curv ")]
    steps = [line[line.index("--step") + 1] for line in lines if line[1] == "spectrum"]
    assert steps == ["0", "7", "14", "28", "55", "110", "220", "440"]
    assert [Path(line[-1]).name for line in lines if line[1] == "plot"] == ["run.png", "run.html"]
    for line in lines:
        assert {word for word in line if word.startswith("--")} <= known_options(line[1])


@needs_make
def test_make_says_that_there_are_no_steps(tmp_path: Path) -> None:
    done = make(tmp_path / "out", f"RUN={tmp_path}")
    assert done.returncode == 2
    assert "has no steps" in done.stderr


@pytest.mark.slow
@needs_make
def test_make_writes_a_report_once_and_holds_it_against_the_learning_rate(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    words = [
        f"CURV={sys.executable} -m curvcli",
        "STEPS=440",
        "OPTIONS=--num-examples 20 --probes 1 --steps 8 --skip-checks",
    ]
    assert make(tmp_path / "out", *words, f"{tmp_path}/out/table.tsv").returncode == 0
    report = json.loads((tmp_path / "out/440.json").read_text())
    step, loss, largest, total = (tmp_path / "out/table.tsv").read_text().rstrip("\n").split("\t")
    assert (int(step), float(loss)) == (440, report["problem"]["loss_value"])
    assert (float(largest), float(total)) == (
        report["result"]["lambda_max"]["value"],
        report["result"]["trace"]["value"],
    )
    assert "up to date" in make(tmp_path / "out", *words, f"{tmp_path}/out/440.json").stdout
    top = report["result"]["lambda_max"]
    stable = 2 / (top["beyond"]["bound"] if top["beyond"] else top["interval"][1])
    assert make(tmp_path / "out", *words, "gate", f"LEARNING_RATE={0.99 * stable}").returncode == 0
    assert make(tmp_path / "out", *words, "gate", f"LEARNING_RATE={1.01 * stable}").returncode != 0


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[[str, int], subprocess.Popen[bytes]]:
    """`slurm(body of a curv, task)`: the script as Slurm starts it, in a folder with a run of steps 2 and 10."""
    for step in (2, 10):
        (tmp_path / "run" / str(step)).mkdir(parents=True)
    (tmp_path / "bin").mkdir()

    def start(curv: str, task: int) -> subprocess.Popen[bytes]:
        for name, body in {
            "curv": f'echo "curv $*" >> calls; {curv}',
            "scontrol": 'echo "scontrol $*" >> calls',
        }.items():
            (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        told = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_PER_TASK": "3"}
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **told}
        line = ["bash", str(RECIPES / "spectrum.sbatch"), "run", "out", "--probes", "20"]
        with (tmp_path / "log").open("w") as log:
            return subprocess.Popen(line, cwd=tmp_path, env=environment, stderr=log)

    return start


WRITES = r'while [ "$1" != -o ]; do shift; done; mkdir -p "${2%.json}.state"; echo {} > "$2"'
WAITS = 'trap "exit 143" TERM; touch started; for _ in $(seq 200); do sleep 0.05; done'


def calls(folder: Path) -> list[str]:
    """What the stand-ins were called with."""
    return (folder / "calls").read_text().splitlines()


def test_a_task_analyses_its_step_once(slurm: Callable, tmp_path: Path) -> None:
    assert slurm(WRITES, 1).wait(20) == 0
    assert slurm(WRITES, 1).wait(20) == 0
    (line,) = calls(tmp_path)
    assert line == "curv spectrum run --step 10 --state out/10.state --threads 3 -o out/10.json --probes 20"
    assert set(re.findall(r"--[a-z-]+", line)) <= known_options("spectrum")
    assert not (tmp_path / "out/10.state").exists()


@pytest.mark.parametrize("code", [3, 71, 78])
def test_what_went_wrong_is_the_code_of_the_task(slurm: Callable, tmp_path: Path, code: int) -> None:
    assert slurm(f"{WRITES}; exit {code}", 0).wait(20) == code
    assert len(calls(tmp_path)) == 1
    assert (tmp_path / "out/2.state").exists()


def test_a_task_without_a_step_says_so(slurm: Callable, tmp_path: Path) -> None:
    assert slurm(WRITES, 2).wait(20) == 66
    assert "run has 2 steps" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("sent", "queued"), [(signal.SIGUSR1, ["scontrol requeue 7_0"]), (signal.SIGTERM, [])])
def test_the_time_limit_puts_a_task_back_and_scancel_does_not(
    slurm: Callable, tmp_path: Path, sent: signal.Signals, queued: list[str]
) -> None:
    task = slurm(WAITS, 0)
    until = time.monotonic() + 20
    while not (tmp_path / "started").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    task.send_signal(sent)
    assert task.wait(20) == 143
    assert calls(tmp_path)[1:] == queued
