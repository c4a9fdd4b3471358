"""Long rows kept outside of the device's memory: in the host's, or in files that the page cache holds as far as it can.

What is kept is a numpy array, and passes for one of the device wherever it is an argument of a jitted function.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from curvcli.errors import MemoryLimitError


@dataclass(frozen=True)
class Store:
    """Where rows are kept.

    Parameters
    ----------
    folder
        For files of its own, which have no name and are gone with the process, however it ends. None: the host's
        memory, where the device has another.
    """

    folder: Path | None = None

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array of zeros.

        Raises
        ------
        MemoryLimitError
            The disk is full: said now, since writing to a map without room behind it would kill the process.
        """
        if self.folder is None:
            return np.zeros(shape, dtype)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, dtype, "r+", shape=shape)
        except OSError as error:
            raise MemoryLimitError(
                f"{self.folder}: no room for {size / 1e6:.0f} MB of a Krylov basis: {error.strerror}",
                "set TMPDIR (or --state) to a folder on a larger disk, or use --reorthogonalize none",
            ) from error

    def keep(self, rows: Array) -> np.ndarray:
        """A copy of an array."""
        kept = self.zeros(rows.shape, rows.dtype)
        kept[...] = np.asarray(rows)
        return kept


def brought(chunks: Sequence[Array]) -> Iterator[Array]:
    """Chunks as arrays of the device; of those kept elsewhere the next one is on its way while one is computed with."""
    following = None
    for i, chunk in enumerate(chunks):
        here = chunk if following is None else following
        ahead = chunks[i + 1] if i + 1 < len(chunks) else None
        following = jax.device_put(ahead) if isinstance(ahead, np.ndarray) else None
        yield here
