"""A journal of computed values: a run that was killed and is started again looks them up instead of recomputing them.

Algorithms do not refer to the journal. Values of a function of vectors are stored under the name of the function and
the fingerprints of the vectors. An algorithm that is run again evaluates the same functions in the same order, and
reads the same bits up to the first value that is not stored. A run with more probes, steps or queries evaluates those
of the earlier run first.

Values that this process stores are for later processes alone: a product that is evaluated twice, as the self-checks do,
is computed twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from jax import Array

_open: ContextVar[Journal | None] = ContextVar("journal", default=None)


class Store(Protocol):
    """A store of rows of arrays by key."""

    def take(self, keys: Sequence[bytes], *, finished: bool = False) -> list[Any]:
        """Return the row under each key, None where there is none.

        A row is returned once: of several under one key, the oldest first. `finished`: only rows of runs that ended.
        """
        ...

    def holds(self, key: bytes) -> bool:
        """Whether an earlier run stored a row under this key that has not been taken."""
        ...

    def exhausted(self) -> bool:
        """Whether all rows of earlier runs have been taken, so that no key need be looked up."""
        ...

    def keep(self, keys: Iterable[bytes], rows: np.ndarray) -> None:
        """Store rows together: later runs find all of them or none. Keys may be computed by another thread."""
        ...


@dataclass
class Journal:
    """The stored values of one problem.

    Parameters
    ----------
    store
        Where the values are stored.
    problem
        A `Problem`. Its weights may differ, since a digest of the weights is part of every key.
    recalled
        Number of rows looked up so far: vectors of products and forms, points of losses.
    """

    store: Store
    problem: Any
    recalled: int = 0
    _digested: tuple[Any, bytes] = (None, b"")  # weights, and their digest

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Look up the values of the problem in this journal until the end of the block."""
        token = _open.set(self)
        try:
            yield
        finally:
            _open.reset(token)

    def covers(self, problem: Any) -> bool:
        """Whether a problem is that of the journal, apart from its weights; data and arithmetic must agree."""
        mine = self.problem
        parts = ("frozen", "predict", "nest", "loss", "batches", "normaliser", "regulariser", "way")
        return problem.dtype == mine.dtype and all(getattr(problem, part) is getattr(mine, part) for part in parts)

    def weights(self, params: Any) -> bytes:
        """Return a digest of weights; the last one is cached."""
        if self._digested[0] is not params:
            import numpy as np

            from curvcli.devices import on_host

            digest = hashlib.sha256()
            for path, leaf in sorted(params.items()):
                digest.update(path.encode())
                digest.update(np.ascontiguousarray(on_host(leaf)).data)
            self._digested = params, digest.digest()
        return self._digested[1]


def rows(function: Callable[[Array], Array], problem: Any, *name: object) -> Callable[[Array], Array]:
    """Wrap a function that maps each row of a block [k, dim] on its own: rows are looked up where a journal is open.

    Parameters
    ----------
    problem
        The problem that the function belongs to.
    name
        Plain values that identify the function: all that its value depends on beside problem and argument.
    """
    journal = _covering(problem)
    if journal is None:
        return function
    place = _place(journal, problem, "rows", *name)

    def recalled(vectors: Array) -> Array:
        import jax.numpy as jnp
        import numpy as np

        from curvcli.devices import on_host

        block = np.asarray(vectors)
        if journal.store.exhausted():
            computed = function(vectors)
            journal.store.keep((_key(place, row) for row in unchanging(block)), on_host(computed))
            return computed
        keys = [_key(place, row) for row in block]
        stored = journal.store.take(keys)
        missing = [i for i, row in enumerate(stored) if row is None]
        journal.recalled += len(keys) - len(missing)
        if not missing:
            return jnp.asarray(np.stack(stored))
        # All rows as they came, where all are missing: another block is another program, and other bits.
        computed = function(vectors if len(missing) == len(keys) else vectors[np.array(missing)])
        new = on_host(computed)
        journal.store.keep([keys[i] for i in missing], new)
        if len(missing) == len(keys):
            return computed
        for i, row in zip(missing, new, strict=True):
            stored[i] = row
        return jnp.asarray(np.stack(stored))

    return recalled


def whole(function: Callable[..., Any], problem: Any, *name: object) -> Callable[..., Any]:
    """Wrap a function of arrays whose value is looked up as a whole. None, the value of a stopped run, is not stored.

    A looked-up value counts as many rows as its last argument has, a vector as one.
    """
    journal = _covering(problem)
    if journal is None:
        return function
    place = _place(journal, problem, "whole", *name)

    def recalled(*arrays: Array) -> Any:
        import numpy as np

        key = _key(place, *(np.asarray(array) for array in arrays))
        (stored,) = journal.store.take([key])
        if stored is not None:
            journal.recalled += len(arrays[-1]) if np.ndim(arrays[-1]) > 1 else 1
            return stored
        computed = function(*arrays)
        if computed is not None:
            journal.store.keep([key], np.asarray(computed)[None])
        return computed

    return recalled


def finished_rows(problem: Any, vectors: Array, *name: object) -> list[Any]:
    """Return what finished runs stored by `keep_rows` for these rows; None where nothing was stored.

    A run that was killed must not find its own rows: it would skip the evaluations that led to them, and their stored
    values would then be returned for later evaluations.
    """
    journal = _covering(problem)
    if journal is None:
        return [None] * len(vectors)
    import numpy as np

    place = _place(journal, problem, "finished", *name)
    return journal.store.take([_key(place, row) for row in np.asarray(vectors)], finished=True)


def keep_rows(problem: Any, vectors: Array, values: np.ndarray, *name: object) -> None:
    """Store the values that belong to rows, where a journal is open, for `finished_rows` of later runs."""
    journal = _covering(problem)
    if journal is None:
        return
    import numpy as np

    place = _place(journal, problem, "finished", *name)
    keys = [_key(place, row) for row in np.asarray(vectors)]
    new = [i for i, key in enumerate(keys) if not journal.store.holds(key)]
    if new:
        journal.store.keep([keys[i] for i in new], values[new])


def unchanging(array: Any) -> Any:
    """Return an array that another thread can read later: a copy where the array is writeable."""
    return array.copy() if array.flags.writeable else array


def _covering(problem: Any) -> Journal | None:
    journal = _open.get()
    return journal if journal is not None and journal.covers(problem) else None


def _place(journal: Journal, problem: Any, *name: object) -> bytes:
    """Return a digest of a function's name and the weights."""
    return hashlib.sha256(repr(name).encode() + journal.weights(problem.params)).digest()


def _key(place: bytes, *arrays: Any) -> bytes:
    """Return a fingerprint of the values of arrays: sums of their words along the rows and columns of a square.

    It separates the vectors that algorithms produce, unit vectors included, but is not collision-resistant. It takes a
    twentieth of the time of SHA-256.
    """
    import numpy as np

    digest = hashlib.sha256(place)
    for array in arrays:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        side = math.isqrt(data.size // 8)
        square = data[: 8 * side * side].view(np.uint64).reshape(side, side)
        digest.update(repr((array.shape, str(array.dtype))).encode())
        digest.update(np.add.reduce(square, axis=0, dtype=np.uint64).data)
        digest.update(np.add.reduce(square, axis=1, dtype=np.uint64).data)
        digest.update(data[8 * side * side :].data)
    return digest.digest()[:16]
