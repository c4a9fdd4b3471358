"""The folder of `--state` where several processes compute: the first reads and writes it, and tells the others."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvcli.cli.state import State, state
from curvcli.devices import from_first, is_first
from curvcli.journal import Journal, Store
from curvcli.schema.plan import Way

if TYPE_CHECKING:
    import numpy as np


class SharedState:
    """A `State` as every process has it.

    Parameters
    ----------
    own
        The first process's; None in the others.
    """

    def __init__(self, own: State | None) -> None:
        self._own = own
        way = None if own is None or own.way is None else own.way.model_dump()
        said = json.loads(from_first(json.dumps([way, own and own.memory]).encode()))
        self.way = None if said[0] is None else Way.model_validate(said[0])
        self.memory: int | None = said[1]
        self.warnings: list[str] = []

    def open(self, loaded: Any, settings: Any, way: Way, memory: int, code: str) -> Journal:
        """As `State.open`."""
        store = None
        if self._own is not None:
            store = self._own.open(loaded, settings, way, memory, code).store
            self.warnings = self._own.warnings
        return Journal(_SharedStore(store), loaded.problem)

    def finish(self) -> None:
        """As `State.finish`."""
        if self._own is not None:
            self._own.finish()


class _SharedStore:
    """A store whose answers are the first process's."""

    def __init__(self, own: Store | None) -> None:
        self._own = own

    def take(self, keys: Sequence[bytes], *, finished: bool = False) -> list[Any]:
        import numpy as np

        written = io.BytesIO()
        if self._own is not None:
            found = self._own.take(keys, finished=finished)
            np.savez(written, **{str(i): row for i, row in enumerate(found) if row is not None})
        with np.load(io.BytesIO(from_first(written.getvalue())), allow_pickle=False) as rows:
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
    """As `state`, whose errors the first process alone has."""
    with state(folder) if is_first() else contextlib.nullcontext() as own:
        yield SharedState(own)
