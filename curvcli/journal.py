"""What earlier runs have computed: a run that was killed recalls it, where it would compute it again.

No algorithm knows of this. A function of vectors is remembered under its name and the fingerprints of the vectors: run
again, an algorithm asks the same questions in the same order, and is given the same bits until it comes to the first
question that was never answered. A run with more probes, steps or queries asks the old questions first.

What this process computes is kept for later ones and never given back to itself: a product that is asked for twice, as
the self-checks do, is computed twice.
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
    """Rows of arrays by key."""

    def take(self, keys: Sequence[bytes], *, finished: bool = False) -> list[Any]:
        """The row under each key, None where there is none.

        A row is taken once: of several under one key, the oldest. `finished`: only from runs that came to their end.
        """
        ...

    def holds(self, key: bytes) -> bool:
        """Whether an earlier run kept anything under a key that was not taken yet."""
        ...

    def exhausted(self) -> bool:
        """Whether all that earlier runs kept was taken: no key need be looked up any more."""
        ...

    def keep(self, keys: Iterable[bytes], rows: np.ndarray) -> None:
        """Keep rows together: later runs find all of them or none. Keys may be found out by another thread."""
        ...


@dataclass
class Journal:
    """What was computed of one problem.

    Parameters
    ----------
    store
        Where it is.
    problem
        A `Problem`; its weights may be others, for each place has its own name.
    recalled
        Rows so far that were there: vectors of products and forms, points of losses.
    """

    store: Store
    problem: Any
    recalled: int = 0
    _digested: tuple[Any, bytes] = (None, b"")  # weights, and their digest

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Until the end of the block, what is asked of the problem is looked up here."""
        token = _open.set(self)
        try:
            yield
        finally:
            _open.reset(token)

    def covers(self, problem: Any) -> bool:
        """Whether a problem is the one at hand, but for its weights; other data or arithmetic make another."""
        mine = self.problem
        parts = ("frozen", "predict", "nest", "loss", "batches", "normaliser", "regulariser", "way")
        return problem.dtype == mine.dtype and all(getattr(problem, one) is getattr(mine, one) for one in parts)

    def weights(self, params: Any) -> bytes:
        """A digest of weights; that of those asked for last is held."""
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
    """`function` of a block [k, dim] that maps each row on its own, looked up row by row where a journal is open.

    Parameters
    ----------
    problem
        Whose function it is.
    name
        What it is, of plain values: all that the answer depends on beside problem and argument.
    """
    journal = _covering(problem)
    if journal is None:
        return function
    place = _place(journal, problem, "rows", *name)

    def recalled(vectors: Array) -> Array:
        import jax.numpy as jnp
        import numpy as np

        from curvcli.devices import on_host

        given = np.asarray(vectors)
        if journal.store.exhausted():
            made = function(vectors)
            journal.store.keep((_key(place, row) for row in unchanging(given)), on_host(made))
            return made
        keys = [_key(place, row) for row in given]
        found = journal.store.take(keys)
        missing = [i for i, row in enumerate(found) if row is None]
        journal.recalled += len(keys) - len(missing)
        if not missing:
            return jnp.asarray(np.stack(found))
        # All rows as they came, where all are missing: another block is another program, and other bits.
        made = function(vectors if len(missing) == len(keys) else vectors[np.array(missing)])
        new = on_host(made)
        journal.store.keep([keys[i] for i in missing], new)
        if len(missing) == len(keys):
            return made
        for i, row in zip(missing, new, strict=True):
            found[i] = row
        return jnp.asarray(np.stack(found))

    return recalled


def whole(function: Callable[..., Any], problem: Any, *name: object) -> Callable[..., Any]:
    """`function` of arrays, its value looked up as one; None, of a run that is to stop, is not kept.

    Recalled, it counts as many rows as its last argument has, a vector as one.
    """
    journal = _covering(problem)
    if journal is None:
        return function
    place = _place(journal, problem, "whole", *name)

    def recalled(*arrays: Array) -> Any:
        import numpy as np

        key = _key(place, *(np.asarray(one) for one in arrays))
        (found,) = journal.store.take([key])
        if found is not None:
            journal.recalled += len(arrays[-1]) if np.ndim(arrays[-1]) > 1 else 1
            return found
        made = function(*arrays)
        if made is not None:
            journal.store.keep([key], np.asarray(made)[None])
        return made

    return recalled


def finished_rows(problem: Any, vectors: Array, *name: object) -> list[Any]:
    """What runs that came to their end have kept by `keep_rows` for these rows; None where nothing.

    A run that was killed must not find its own: it would leave out the questions that led to them, whose answers it
    would then be given elsewhere.
    """
    journal = _covering(problem)
    if journal is None:
        return [None] * len(vectors)
    import numpy as np

    place = _place(journal, problem, "finished", *name)
    return journal.store.take([_key(place, row) for row in np.asarray(vectors)], finished=True)


def keep_rows(problem: Any, vectors: Array, values: np.ndarray, *name: object) -> None:
    """Keep what belongs to rows, where a journal is open, for `finished_rows` of later runs."""
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
    """An array that another thread will look at: itself, if nobody can write to it till then."""
    return array.copy() if array.flags.writeable else array


def _covering(problem: Any) -> Journal | None:
    journal = _open.get()
    return journal if journal is not None and journal.covers(problem) else None


def _place(journal: Journal, problem: Any, *name: object) -> bytes:
    """Name and weights, in one digest."""
    return hashlib.sha256(repr(name).encode() + journal.weights(problem.params)).digest()


def _key(place: bytes, *arrays: Any) -> bytes:
    """A fingerprint of the values of arrays: sums of their words along the rows and columns of a square.

    It tells vectors apart that an algorithm comes by, unit vectors too; nobody is meant to forge one. It takes a
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
