"""Data larger than the memory that a run may take, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.nightly
def test_right_answers_from_data_larger_than_the_limit(tmp_path: Path) -> None:
    sizes = [
        "--gigabytes",
        "1.3",
        "--limit",
        "1.2",
        "--part",
        "60000",
        "--parts",
        "3",
        "--folder",
        str(tmp_path / "set"),
    ]
    report = tmp_path / "found.json"
    script = ROOT / "benchmarks" / "streaming.py"
    subprocess.run([sys.executable, script, *sizes, "--folder", tmp_path / "set", "--json", report], check=True)
    found = json.loads(report.read_text())
    run, truth = found["command"], found["reference"]
    assert run["loss"] == pytest.approx(truth["loss"], rel=1e-6)
    assert abs(run["trace"] - truth["trace"]) < 5 * run["stderr"]
    assert not run["failed"]
    assert max(found["paired"]["errors"]) < 1e-5
    if run["limited"]:
        assert run["unreclaimable"] < found["limit"] < found["bytes"]
    assert not (tmp_path / "set").exists()
