"""The state folder of a run: after the run was killed, the same command continues from the stored values.

`problem.json` describes the problem and settings, `problem.copy.json` is a copy of it, and `records` holds the values.
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
"""Content of the lock. A folder without it does not belong to curv, and nothing in it is changed."""

UNESSENTIAL = {
    "state", "time_limit", "max_memory", "plan", "skip_checks", "threads", "devices", "shard_params",
    "distributed",  # how, not what
    "vectors", "arrays", "scores", "save", "escape", "save_factors",  # where to
    "probes", "steps", "tol", "rtol", "confidence", "samples", "queries", "top", "verify", "k", "cg_steps",  # how far
}  # fmt: skip
"""Settings that the stored values do not depend on, since values are looked up by their arguments."""

DEVICES = "the number of devices"


class State:
    """An open and locked state folder.

    Parameters
    ----------
    folder
        Its path.

    Attributes
    ----------
    way
        The way products were computed so far, which later runs must follow; None in a new folder.
    memory
        The memory limit of the first run in bytes. It determines the size of blocks, and so the rounding.
    warnings
        Warnings for the user.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: Records | None = None
        self._description = _description(folder)
        self.way = None if self._description is None else self._description.way
        self.memory: int | None = None if self._description is None else self._description.memory
        self.warnings: list[str] = []

    def open(self, loaded: Loaded, settings: Any, way: Way, memory: int, code: str) -> Journal:
        """Open the journal of a problem.

        Parameters
        ----------
        loaded, settings
            The values depend on the digests of weights and data, the specification, and the settings that define
            numbers.
        way, memory
            The way products are computed, and the memory limit in bytes.
        code
            Digest of the computations of model, loss and regulariser.

        Raises
        ------
        DataError
            The stored values belong to another problem or other settings.
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
        """Whether the journal of a problem has been opened."""
        return self._records is not None

    def finish(self) -> None:
        """Mark the run as finished."""
        assert self._records is not None
        self._records.finish()

    def close(self) -> None:
        """Close the file of records."""
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
    """Open the state folder, created if missing, and lock it until the block ends.

    Parameters
    ----------
    folder
        Its path. The parent must exist. It is new or empty, or its file `lock` marks it as a state folder.

    Raises
    ------
    UsageError
        It holds something else.
    StateLockedError
        Another process uses it.
    OutputError, PermissionDeniedError
        It cannot be created or written.
    DataError
        Its description is damaged.
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
    """Check that a folder is empty, marked by its lock, or described as the folders of earlier versions are.

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
    """Read the beginning of a regular file; None where there is none."""
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), encoding="utf-8", errors="replace") as stream:
            return stream.read(len(MARK) + 1)
    except (OSError, DataError):
        return None


def _description(folder: Path) -> StateRecord | None:
    """Read the first complete description of a folder; None where there is none."""
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
    """Return what the values depend on, and what only their rounding depends on."""
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
    """Return the names of entries that differ; nested ones as `data.path`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            found
            for key in keys
            for found in _differing(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == now else [name]
