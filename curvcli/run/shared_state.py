"""The state folder of several processes: process 0 reads and writes it, and broadcasts the values."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvcli.devices import from_first, is_first
from curvcli.journal import Journal, Store
from curvcli.run.state import State, state
from curvcli.schema.plan import Way

if TYPE_CHECKING:
    import numpy as np


class SharedState:
    """A `State` that all processes share.

    Parameters
    ----------
    first
        The state of process 0; None in the others.
    """

    def __init__(self, first: State | None) -> None:
        self._own = first
        way = None if first is None or first.way is None else first.way.model_dump()
        values = json.loads(from_first(json.dumps([way, first and first.memory]).encode()))
        self.way = None if values[0] is None else Way.model_validate(values[0])
        self.memory: int | None = values[1]
        self.warnings: list[str] = []

    def open(self, loaded: Any, settings: Any, way: Way, memory: int, code: str) -> Journal:
        """Open the journal of a problem; see `State.open`."""
        store = None
        if self._own is not None:
            store = self._own.open(loaded, settings, way, memory, code).store
            self.warnings = self._own.warnings
        return Journal(_SharedStore(store), loaded.problem)

    def finish(self) -> None:
        """Mark the run as finished; see `State.finish`."""
        if self._own is not None:
            self._own.finish()


class _SharedStore:
    """A store that broadcasts the values of process 0."""

    def __init__(self, first: Store | None) -> None:
        self._own = first

    def take(self, keys: Sequence[bytes], *, finished: bool = False) -> list[Any]:
        import numpy as np

        buffer = io.BytesIO()
        if self._own is not None:
            stored = self._own.take(keys, finished=finished)
            np.savez(buffer, **{str(i): row for i, row in enumerate(stored) if row is not None})
        with np.load(io.BytesIO(from_first(buffer.getvalue())), allow_pickle=False) as rows:
            return [rows.get(str(i)) for i in range(len(keys))]

    def holds(self, key: bytes) -> bool:
        return from_first(b"1" if self._own is not None and self._own.holds(key) else b"0") == b"1"

    def exhausted(self) -> bool:
        return from_first(b"1" if self._own is not None and self._own.exhausted() else b"0") == b"1"

    def keep(self, keys: Iterable[bytes], rows: np.ndarray) -> None:
        if self._own is not None:
            self._own.keep(keys, rows)


@contextlib.contextmanager
def shared_state(folder: Path) -> Iterator[SharedState]:
    """Open the state folder in process 0, which alone raises the errors of `state`."""
    with state(folder) if is_first() else contextlib.nullcontext() as first:
        yield SharedState(first)
