"""A folder that a run keeps its finished parts in: killed at any moment, the same command goes on from there.

`problem.json` says what the parts were computed from; `parts.jsonl` has one part a line, each with a digest. Parts are
only appended: a line that was cut off by the end of its process is dropped, and nothing before it can be lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from curvcli import __version__
from curvcli.cli import output
from curvcli.cli.runtime import environment
from curvcli.errors import DataError, OutputError, PermissionDeniedError, StateLockedError

PROBLEM, PARTS, LOCK = "problem.json", "parts.jsonl", "lock"

UNESSENTIAL = {"state", "time_limit", "max_memory", "plan", "skip_checks", "threads", "confidence", "rtol"}
"""Settings that no finished part depends on."""

Loaded = Any
"""`curvcli.loading.resolve.Loaded`, which only `execute.py` and the commands may import."""


class State:
    """Parts of a result by name, in an open and locked folder.

    Parameters
    ----------
    folder
        Where they are.
    facts
        What the parts depend on, by the name that a message calls it.
    soft
        The same for what changes only their rounding: a difference is told, not refused.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], soft: dict[str, Any]) -> None:
        self._folder, self._facts, self._soft = folder, facts, soft
        self._stream: TextIO | None = None
        self.warnings: list[str] = []

    def open(self, facts: dict[str, str]) -> dict[str, Any]:
        """The parts that are there.

        Parameters
        ----------
        facts
            Further ones, known only now.

        Raises
        ------
        DataError
            They were computed from something else.
        """
        self._compare({"needed": {**self._facts, **facts}, "soft": self._soft})
        path = self._folder / PARTS
        parts, length = _read(path)
        self._stream = path.open("a", encoding="utf-8")
        # What follows the last whole line was being written when the process ended.
        self._stream.truncate(length)
        return parts

    def append(self, name: str, row: Any) -> None:
        """Keep a part: it is on the disk when this returns.

        Raises
        ------
        OutputError
            It could not be written.
        """
        assert self._stream is not None
        try:
            self._stream.write(_line(name, row))
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise OutputError(
                f"{self._folder} could not be written: {error.strerror}", "check the free space and the permissions"
            ) from error

    def close(self) -> None:
        """Nothing more will be kept."""
        if self._stream is not None:
            self._stream.close()

    def _compare(self, now: dict[str, Any]) -> None:
        path = self._folder / PROBLEM
        now = json.loads(json.dumps(now))
        if not path.exists():
            # Parts of which nobody can say what they were computed from are none.
            (self._folder / PARTS).unlink(missing_ok=True)
            output.write_file(path, json.dumps(now, indent=1, sort_keys=True) + "\n")
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            needed, soft = before["needed"], before["soft"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged", "remove the folder, and the work starts anew") from error
        changed = _differing(needed, now["needed"])
        if changed:
            raise DataError(
                f"{self._folder} holds the state of another run: {', '.join(changed[:4])} changed",
                "give the same command again, or another --state folder",
            )
        self.warnings += [
            f"{name} is {now['soft'][name]}, the state was begun with {soft.get(name)}: rows may differ in rounding"
            for name in now["soft"]
            if soft.get(name) != now["soft"][name]
        ]


@contextlib.contextmanager
def state(folder: Path, loaded: Loaded, settings: Any) -> Iterator[State]:
    """The folder, made if need be, locked while it is in use.

    Parameters
    ----------
    folder
        Its parent must exist.
    loaded, settings
        What the parts are computed from: weights and data by their digests, the specification, the settings that
        define numbers, and the way in which products are computed.

    Raises
    ------
    StateLockedError
        Another process uses it.
    OutputError, PermissionDeniedError
        It cannot be made or written.
    """
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / LOCK).open("w")
    except PermissionError as error:
        raise PermissionDeniedError(f"{folder}: permission denied", "give another --state folder") from error
    except OSError as error:
        raise OutputError(
            f"the state folder {folder} cannot be used: {error.strerror}", f"mkdir -p {folder.parent}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StateLockedError(
                f"{folder} is in use by another process", "wait for it to end, or give another --state folder"
            ) from error
        kept = State(folder, *_facts(loaded, settings))
        try:
            yield kept
        finally:
            kept.close()


def _facts(loaded: Loaded, settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the parts depend on, and what only their rounding does."""
    problem, spec, machine = loaded.problem, loaded.spec, environment(settings)
    needed = {
        "checkpoint": {"sha256": loaded.checkpoint.sha256, "step": loaded.checkpoint.step},
        "data": {**spec.data.model_dump(mode="json", exclude={"path"}), "sha256": loaded.data.sha256},
        "model": spec.model.model_dump(mode="json"),
        "loss": spec.loss.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json", exclude=UNESSENTIAL),
        "batch size": problem.batches.batch_size,
        "application": problem.way.application,
        "versions": {"curv": __version__, "jax": machine.jax},
        "device": machine.device,
    }
    return needed, {"the number of threads": machine.threads}


def _differing(before: Any, now: Any, name: str = "") -> list[str]:
    """Names of what differs, `data.path` for nested ones."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            found
            for key in keys
            for found in _differing(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == now else [name]


def _line(name: str, part: Any) -> str:
    text = json.dumps([name, part], allow_nan=False)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n"


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """The parts up to the first line that is damaged or cut off, and the bytes they take."""
    parts, length = {}, 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        digest, _, text = line.partition(b" ")
        if not line.endswith(b"\n") or digest.decode(errors="replace") != hashlib.sha256(text[:-1]).hexdigest()[:16]:
            break
        name, part = json.loads(text)
        parts[name] = part
        length += len(line)
    return parts, length
