"""A process that runs command lines of curv one after another, so that a crash or a hang of it is seen from outside.

`python -m tests.worker` reads a line of JSON a command, `{"cwd": …, "argv": […]}`, and answers with one.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PROGRAMS = 200
"""Command lines after which compiled programs are given up: thousands exhaust a process's memory maps."""


@dataclass(frozen=True)
class Ended:
    """How a command line ended.

    Parameters
    ----------
    code
        The exit code; -1 after a hang, less than -1 for a signal that ended the process.
    """

    code: int
    out: str
    err: str


class Worker:
    """A process for command lines, started anew after one that ended it.

    Parameters
    ----------
    limit
        Seconds that a command line may take.
    """

    def __init__(self, cache: Path, limit: float = 90.0) -> None:
        self._cache, self._limit = cache, limit
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, cwd: Path, argv: list[str]) -> Ended:
        """The command line's end."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"cwd": str(cwd), "argv": argv}).encode() + b"\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(self._limit):
                self._end()
                return Ended(-1, "", f"no answer within {self._limit:g} s")
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self._end()
            return Ended(-abs(code) - 1, "", f"the process ended with {code}")
        return Ended(**json.loads(line))

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("CURV_")}
        added = {
            "CURV_CACHE_DIR": str(self._cache),
            "CURV_TRUST": "1",  # the code of a changed curv.toml would not run otherwise
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(REPOSITORY),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker"], cwd=REPOSITORY, env={**kept, **added}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._process = None


def _serve() -> None:
    """Answer command lines until stdin ends; file descriptors 1 and 2 are files while one runs."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    from curvcli.cli.main import run

    path = sys.path[:]
    for count, line in enumerate(jobs):
        job = json.loads(line)
        os.chdir(job["cwd"])
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            try:
                code = run(job["argv"])
            except BaseException as error:
                print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
                code = 70
            sys.stdout.flush()
            sys.stderr.flush()
            said = [_read(stream) for stream in (out, err)]
        # Modules of the user's are read anew by the next.
        for name in [name for name in sys.modules if name.startswith("curv_target_")]:
            del sys.modules[name]
        sys.path[:] = path
        if count % PROGRAMS == PROGRAMS - 1 and "jax" in sys.modules:
            sys.modules["jax"].clear_caches()
        answers.write(json.dumps({"code": code, "out": said[0], "err": said[1]}).encode() + b"\n")
        answers.flush()


def _read(stream: Any) -> str:
    stream.seek(0)
    return stream.read(100_000).decode(errors="backslashreplace")


if __name__ == "__main__":
    _serve()
