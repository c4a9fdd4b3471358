"""Programs of the comparison run in processes of their own: a job goes in as JSON, an answer comes out as JSON."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent


def ask(module: str, limit: float | None = None, **job: Any) -> dict[str, Any]:
    """The answer of `comparison.<module>` to a job, with the process's seconds; `{"failed": why}` if it has none."""
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        given.write_text(json.dumps(job))
        command = [sys.executable, "-m", f"comparison.{module}", str(given), str(answer)]
        quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
        start = time.perf_counter()
        try:
            done = subprocess.run(command, cwd=BENCHMARKS, env=quiet, timeout=limit, stdout=sys.stderr)
        except subprocess.TimeoutExpired:
            return {"failed": f"not ready after {limit:.0f} s"}
        seconds = time.perf_counter() - start
        if not answer.exists():
            return {"failed": f"exit code {done.returncode}"}
        return {**json.loads(answer.read_text()), "process_seconds": seconds}


def answer(main: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Run a program on the job named on the command line; what goes wrong is the answer."""
    try:
        found = main(json.loads(Path(sys.argv[1]).read_text()))
    except Exception as error:
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    Path(sys.argv[2]).write_text(json.dumps(found))


def run_curv(name: str, folder: str | Path, *options: str, cache: Path | None = None) -> dict[str, Any]:
    """The report of a command of curv on a workload's folder, and the seconds of the whole process."""
    spec = str(Path(folder) / "curv.toml")
    command = [sys.executable, "-m", "curvcli", name, "--spec", spec, "-o", "-", "-q", *options]
    environment = os.environ | ({} if cache is None else {"CURV_CACHE_DIR": str(cache)})
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    if not done.stdout.strip():
        return {"failed": f"exit code {done.returncode}: {done.stderr[-300:]}"}
    return {"report": json.loads(done.stdout.splitlines()[-1]), "seconds": seconds, "exit_code": done.returncode}


def peak_bytes() -> int:
    """The largest resident set of this program so far.

    `ru_maxrss` is the last resort: in a program started by a larger one it begins at that one's size.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
