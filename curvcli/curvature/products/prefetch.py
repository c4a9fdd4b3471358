"""Batches that stream: read and brought to the device while it computes with the batches before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import numpy as np

from curvcli.problem import Batch, Batches, let_go

AHEAD = 2
"""Batches that are read before they are asked for: one in transfer, one being read."""


@dataclass(frozen=True)
class Prefetched:
    """Batches that can be iterated any number of times, each time read ahead by a thread of its own.

    Parameters
    ----------
    batches
        What is read: any data that are cut into batches.
    put
        Brings a batch to the device, or devices; called in the reading thread.

    Notes
    -----
    Memory: `AHEAD` + 1 batches beside the one that is computed with. An error in reading is raised where the batch is
    asked for. An iteration that is given up ends its thread.
    """

    batches: Batches
    put: Callable[[Batch], Batch] = jax.device_put

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        waiting = iter(self.batches)  # advanced by the reading thread alone
        wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64  # of this thread: others have the default
        with ThreadPoolExecutor(1, thread_name_prefix="reading") as reader:
            coming: deque[Future[Batch | None]] = deque()
            try:
                for _ in range(AHEAD):
                    coming.append(reader.submit(self._following, waiting, wide))
                while (batch := coming.popleft().result()) is not None:
                    coming.append(reader.submit(self._following, waiting, wide))
                    yield batch
            finally:
                reader.shutdown(wait=False, cancel_futures=True)

    def _following(self, waiting: Iterator[Batch], wide: bool) -> Batch | None:
        """The next batch on the device; None after the last."""
        for batch in islice(waiting, 1):
            with jax.enable_x64(wide):
                batch = jax.tree.map(_read, batch)
                let_go((self.batches.inputs, self.batches.targets))
                return self.put(batch)
        return None


def _read(leaf: Any) -> Any:
    """A part of a memory map as an array in memory: it would else be read when the device computes with it."""
    return np.array(leaf) if isinstance(leaf, np.ndarray) and not leaf.flags.owndata else leaf
