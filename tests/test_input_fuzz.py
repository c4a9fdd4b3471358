"""Whatever a file holds that a command reads: an answer or an error in two lines; no bug, no wait, no lost file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.input_fuzz import SCENES, fuzz_scene
from tests.worker import Worker

SAMPLE = ("checkpoint-npz", "data-csv", "spec", "plan", "diff-trace")
TRIALS = 24


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One process for all scenes."""
    with Worker(tmp_path_factory.mktemp("cache")) as process:
        yield process


@pytest.mark.parametrize("name", SAMPLE)
def test_changed_files(name: str, worker: Worker, tmp_path: Path) -> None:
    tally = fuzz_scene(name, tmp_path, worker, seed=0, trials=8, specials=1)
    assert not tally.faults
    assert tally.outcomes["refused"] >= 8


@pytest.mark.nightly
@pytest.mark.parametrize("name", SCENES)
def test_many_changed_files(name: str, worker: Worker, tmp_path: Path) -> None:
    tally = fuzz_scene(name, tmp_path, worker, seed=1, trials=TRIALS, specials=2)
    assert not tally.faults
    assert tally.outcomes.total() >= TRIALS


def test_there_are_a_thousand_changes() -> None:
    assert TRIALS * len(SCENES) >= 1000


def test_a_crash_and_a_hang_are_faults(tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text("import os\nos._exit(7)\n")
    np.savez(tmp_path / "x.npz", w=np.ones(3))
    (tmp_path / "hang.py").write_text("import time\ntime.sleep(60)\n")
    with Worker(tmp_path / "cache", limit=8.0) as process:
        assert process.run(tmp_path, ["schema"]).code == 0
        for target, said in (("crash.py:f", "ended with 7"), ("hang.py:f", "no answer")):
            ended = process.run(tmp_path, ["trace", "x.npz", "--data", target, "--model", target, "--loss", "poisson"])
            assert ended.code < 0, target
            assert said in ended.err
        assert process.run(tmp_path, ["schema"]).code == 0
