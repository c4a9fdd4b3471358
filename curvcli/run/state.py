"""A folder that a run keeps what it computes in: killed at any moment, the same command goes on from there.

`problem.json` says what it was computed from, `problem.copy.json` says it again, and `records` holds the values.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from curvcli import __version__, sources
from curvcli.errors import DataError, OutputError, PermissionDeniedError, StateLockedError, UsageError
from curvcli.journal import Journal
from curvcli.run import files
from curvcli.run.records import Records, open_regular
from curvcli.run.runtime import environment
from curvcli.schema.plan import Way
from curvcli.schema.state import StateRecord

if TYPE_CHECKING:
    from curvcli.loading.resolve import Loaded

PROBLEM, RECORDS, LOCK = ("problem.json", "problem.copy.json"), "records", "lock"
MARK = "This folder belongs to curv --state.\n"
"""What the lock says: a folder without it is somebody else's, and nothing in it is touched."""

UNESSENTIAL = {
    "state", "time_limit", "max_memory", "plan", "skip_checks", "threads", "devices", "shard_params",
    "distributed",  # how, not what
    "vectors", "arrays", "scores", "save", "escape", "save_factors",  # where to
    "probes", "steps", "tol", "rtol", "confidence", "samples", "queries", "top", "verify", "k", "cg_steps",  # how far
}  # fmt: skip
"""Settings that nothing kept depends on: values are found by what they are the answers to."""

DEVICES = "the number of devices"


class State:
    """An open and locked folder.

    Parameters
    ----------
    folder
        Where it is.

    Attributes
    ----------
    way
        How products were computed so far, which later ones must follow; None in a new folder.
    memory
        Bytes that the first run might take: blocks are cut by it, and with them the rounding.
    warnings
        What the user should know.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: Records | None = None
        self._description = _description(folder)
        self.way = None if self._description is None else self._description.way
        self.memory: int | None = None if self._description is None else self._description.memory
        self.warnings: list[str] = []

    def open(self, loaded: Loaded, settings: Any, way: Way, memory: int, code: str) -> Journal:
        """What is there for this problem.

        Parameters
        ----------
        loaded, settings
            What values are computed from: weights and data by their digests, the specification, the settings that
            define numbers.
        way, memory
            How products are computed, and the bytes that may be taken.
        code
            Digest of the model's, the loss's and the regulariser's computations.

        Raises
        ------
        DataError
            What is there was computed from something else.
        """
        needed, soft = _facts(loaded, settings, way, code)
        now = StateRecord(needed=json.loads(json.dumps(needed)), soft=soft, way=way, memory=memory)
        path = self._folder / RECORDS
        if self._description is None:
            # Values of which nobody can say what they were computed from are none.
            path.unlink(missing_ok=True)
            text = json.dumps(now.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
            for name in PROBLEM:
                files.write_file(self._folder / name, text)
        else:
            self._compare(self._description, now)
        self._records = Records(path)
        return Journal(self._records, loaded.problem)

    @property
    def begun(self) -> bool:
        """Whether it was opened for a problem."""
        return self._records is not None

    def finish(self) -> None:
        """The run came to its end."""
        assert self._records is not None
        self._records.finish()

    def close(self) -> None:
        """Nothing more will be kept."""
        if self._records is not None:
            self._records.close()

    def _compare(self, before: StateRecord, now: StateRecord) -> None:
        changed = _differing(before.needed, now.needed)
        if before.soft.get(DEVICES) != now.soft[DEVICES]:  # a batch is a multiple of the devices
            changed = [name for name in changed if name != "way of computing.batch_size"]
        if changed:
            raise DataError(
                f"{self._folder} holds the state of another run: {', '.join(changed[:4])} changed",
                "give the same command again, or another --state folder",
            )
        self.warnings += [
            f"{name} is {now.soft[name]}, the state was begun with {before.soft.get(name)}: "
            "values may differ in rounding"
            for name in now.soft
            if before.soft.get(name) != now.soft[name]
        ]


@contextlib.contextmanager
def state(folder: Path) -> Iterator[State]:
    """The folder, made if need be, locked while it is in use.

    Parameters
    ----------
    folder
        Its parent must exist. It is new or empty, or its file `lock` says that it is a state folder.

    Raises
    ------
    UsageError
        It holds something else.
    StateLockedError
        Another process uses it.
    OutputError, PermissionDeniedError
        It cannot be made or written.
    DataError
        What it says of itself is damaged.
    """
    sources.will_write(folder, "--state")
    new = not os.path.lexists(folder)
    try:
        folder.mkdir(exist_ok=True)
        _check_marked(folder)
        lock = os.fdopen(open_regular(folder / LOCK, os.O_RDWR | os.O_CREAT), "r+", encoding="utf-8")
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
        if not lock.read(len(MARK)):
            lock.write(MARK)
            lock.flush()
        for orphan in folder.glob(".curv-*.tmp"):  # of a process that was killed as it wrote one
            with contextlib.suppress(OSError):
                orphan.unlink(missing_ok=True)
        current = State(folder)
        try:
            yield current
        finally:
            current.close()
            if new and not current.begun:  # nothing was computed: nothing is left behind
                with contextlib.suppress(OSError):
                    (folder / LOCK).unlink()
                    folder.rmdir()


def _check_marked(folder: Path) -> None:
    """Whether a folder is curv's: empty, marked by its lock, or described as the folders of earlier versions are.

    Raises
    ------
    UsageError
        It holds something else.
    """
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries}
    mark = _text(folder / LOCK)
    if not names or mark == MARK or (names == {LOCK} and mark == ""):
        return
    with contextlib.suppress(DataError):
        if _description(folder) is not None:
            return
    examples = ", ".join(sorted(names)[:3])
    raise UsageError(f"{folder} is not a state folder: it holds {examples}", "give a new name, or an empty folder")


def _text(path: Path) -> str | None:
    """The beginning of a regular file; None where there is none."""
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), encoding="utf-8", errors="replace") as stream:
            return stream.read(len(MARK) + 1)
    except (OSError, DataError):
        return None


def _description(folder: Path) -> StateRecord | None:
    """What a folder says it was computed from, by its first description that is whole; None where there is none."""
    names = [name for name in PROBLEM if os.path.lexists(folder / name)]
    reasons = []
    for name in names:
        try:
            with os.fdopen(open_regular(folder / name, os.O_RDONLY), "rb") as stream:
                return StateRecord.model_validate_json(stream.read())
        except OSError as error:
            reasons.append(str(error.strerror))
        except DataError as error:
            reasons.append(error.message)
        except ValidationError as error:
            first = error.errors()[0]
            reasons.append(f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip())
    if names:
        raise DataError(
            f"{folder / names[0]} is damaged: {reasons[0]}", "give another --state folder, or remove this one"
        )
    return None


def _facts(loaded: Loaded, settings: Any, way: Way, code: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What values depend on, and what only their rounding does."""
    spec, machine = loaded.spec, environment(settings)
    needed = {
        "checkpoint": {"sha256": loaded.checkpoint.sha256, "step": loaded.checkpoint.step},
        "data": {**spec.data.model_dump(mode="json", exclude={"path"}), "sha256": loaded.data.sha256},
        "model": spec.model.model_dump(mode="json"),
        "loss": spec.loss.model_dump(mode="json"),
        "code of model, loss or regulariser": code,
        "settings": settings.model_dump(mode="json", exclude=UNESSENTIAL),
        "way of computing": way.model_dump(),
        "versions": {"curv": __version__, "jax": machine.jax},
        "device": machine.device,
    }
    return needed, {"the number of threads": machine.threads, DEVICES: machine.devices}


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
