"""Arrays whose rows are read from their files when used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

WHOLE_BYTES = 256 << 20
"""Columns up to this size together are read at once; of larger ones only the rows that are used."""

GAP = 8
"""Maximum number of unused rows that are read along to avoid another read."""


class Rows:
    """An array [N, …] with numpy's indexing whose rows are read, or computed, when they are used.

    As for a memory map, a slice of the rows is another such array, which `np.asarray` reads. Rows chosen by an array of
    integers are read at once, in the order of the file.

    Parameters
    ----------
    read
        Returns the rows from a first to before a last one. It may be called repeatedly and from any thread.
    shape, dtype
        Shape and dtype of the whole array.
    first
        The row of `read` that is row 0 here.
    """

    def __init__(self, read: Callable[[int, int], np.ndarray], shape: Sequence[int], dtype: Any, first: int = 0):
        self._read, self._first = read, first
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Rows({self.shape}, {self.dtype})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows that are read are a copy")
        return self._rows(0, len(self)).astype(dtype or self.dtype, copy=False)

    def astype(self, dtype: Any) -> Rows:
        """Return the array in another dtype, cast when it is read."""
        return mapped(self, lambda block: block.astype(dtype), dtype)

    def __getitem__(self, key: Any) -> Any:
        first, *rest = key if isinstance(key, tuple) else (key,)
        return self._indexed(key, first, rest)

    def _indexed(self, key: Any, rows: Any, rest: list[Any]) -> Any:
        """Index the array by a key whose first part selects rows."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return self._indexed(key, np.arange(len(self))[rows], rest)
            part = Rows(self._read, (max(stop - start, 0), *self.shape[1:]), self.dtype, self._first + start)
            return mapped(part, lambda block: block[(slice(None), *rest)], self.dtype) if rest else part
        indices = np.asarray(rows)
        if indices.dtype.kind not in "iu" or indices.ndim > 1:
            return np.asarray(self)[key]
        if indices.ndim:
            return self._gathered(indices)[(slice(None), *rest)]
        return self._gathered(indices[None])[(0, *rest)]

    def _rows(self, start: int, stop: int) -> np.ndarray:
        return self._read(self._first + start, self._first + stop)

    def _gathered(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in the given order, read in the order of the file."""
        rows = np.where(rows < 0, rows + len(self), rows)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} … {rows.max()} of {len(self)}")
        gathered = np.empty((len(rows), *self.shape[1:]), self.dtype)
        order = np.argsort(rows, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(rows[order]) > GAP) + 1):
            if len(run):
                low = int(rows[run[0]])
                gathered[run] = self._rows(low, int(rows[run[-1]]) + 1)[rows[run] - low]
        return gathered


def mapped(array: Any, function: Callable[[np.ndarray], np.ndarray], dtype: Any) -> Any:
    """Apply a row-wise function to an array, such as a cast: at once, or for a large array when its rows are read."""
    if not isinstance(array, Rows) and array.nbytes <= WHOLE_BYTES:
        return function(np.asarray(array))
    none = function(np.zeros((0, *array.shape[1:]), array.dtype))
    return Rows(lambda a, b: function(np.asarray(array[a:b])), (len(array), *none.shape[1:]), dtype)


def side_by_side(columns: Sequence[Any]) -> Any:
    """Stack arrays [N] as the columns of one [N, F]."""
    if not any(isinstance(column, Rows) for column in columns):
        return np.stack(columns, axis=1)
    shape = len(columns[0]), len(columns)
    dtype = np.result_type(*[column.dtype for column in columns])
    return Rows(lambda a, b: np.stack([np.asarray(column[a:b]) for column in columns], axis=1), shape, dtype)


def whole_if_small(arrays: dict[str, Rows]) -> dict[str, Any]:
    """Read arrays into memory if they take at most `WHOLE_BYTES` together."""
    if sum(array.nbytes for array in arrays.values()) > WHOLE_BYTES:
        return dict(arrays)
    return {name: np.asarray(array) for name, array in arrays.items()}
