"""Restoring of an Orbax item by the library: as numpy arrays, or directly into shardings."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curvcli.errors import DataError

REPLACE = "copy the whole checkpoint again from where it was written, or choose another one"
_TRIAL = "_CURV_TRIAL"
"""Environment variable of the child process that reads an item first."""
_CLAIM_FLOOR, _CLAIM_RATIO = 2**30, 1000  # no compressor reaches this on a trained network


def restore(item: Path, target: Any, placing: Any) -> Any:
    """Restore the arrays of an item in the structure of `target`."""
    with _quiet():
        import jax
        import numpy as np
        import orbax.checkpoint as ocp

        how = jax.tree.map(lambda kind: ocp.RestoreArgs(restore_type=str if kind == "string" else np.ndarray), target)
        with ocp.PyTreeCheckpointer() as checkpointer:
            listing = _check_claim(item, checkpointer)
            if listing is None and _TRIAL not in os.environ:
                _try_in_a_child(item, target)
            if placing is not None and listing is not None:
                how = _placed(how, listing, placing)
            return checkpointer.restore(
                item.absolute(),  # Orbax refuses relative paths
                args=ocp.args.PyTreeRestore(item=target, restore_args=how, partial_restore=True),
            )


def _try_in_a_child(item: Path, target: Any) -> None:
    """Read an item with unchecked headers in a child process first, which tensorstore may abort.

    Raises
    ------
    DataError
        The child process was aborted.
    """
    code = "import json, sys; sys.path.append(sys.argv[3]); from curvcli.loading.checkpoints.restoring import restore;"
    code += "from pathlib import Path; restore(Path(sys.argv[1]), json.loads(sys.argv[2]), None)"
    package = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, _TRIAL: "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-P", "-c", code, str(item), json.dumps(target), package]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    if ended.returncode < 0:
        raise DataError(f"{item}: damaged, reading its arrays ends the process", REPLACE)


def _placed(how: Any, listing: Any, placing: Any) -> Any:
    """Return Orbax's arguments for restoring each array, with the sharding that it is restored into."""
    if isinstance(how, dict | list):
        keys = how if isinstance(how, dict) else range(len(how))
        placed = {key: _placed(how[key], listing[key], placing) for key in keys}
        return placed if isinstance(how, dict) else list(placed.values())
    import jax
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    shape, dtype = getattr(listing, "shape", None), getattr(listing, "dtype", None)
    # What JAX would halve the precision of is read by the host; so are single numbers.
    if not shape or dtype is None or jnp.zeros((), dtype).dtype != dtype:
        return how
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=placing(tuple(shape)))


def _check_claim(item: Path, checkpointer: Any) -> Any:
    """Return the listing of an item, None where it cannot be read.

    Headers that claim far more than is stored raise an error: the allocation would abort the process.
    """
    listing: Any = None
    with contextlib.suppress(Exception):
        listing = checkpointer.metadata(item.absolute())
        listing = getattr(listing, "item_metadata", listing)  # the tree itself in Orbax 0.11
    if listing is None:  # some array is damaged; whether it is one of those wanted shows when they are read
        _settle()
        return None
    listing = getattr(listing, "tree", listing)
    pending, claimed = [listing], 0
    while pending:
        node = pending.pop()
        if isinstance(node, dict | list | tuple):
            pending.extend(node.values() if isinstance(node, dict) else node)
        elif getattr(node, "shape", None) is not None:
            # A chunk is allocated whole, however little of it is filled.
            storage = getattr(node, "storage", None)
            chunks = (getattr(storage, name, None) or () for name in ("chunk_shape", "write_shape"))
            largest = max(math.prod(shape) for shape in (node.shape, *chunks))
            claimed += largest * getattr(node.dtype, "itemsize", 1)
    stored = sum(file.stat().st_size for file in item.rglob("*") if file.is_file())
    if claimed > max(_CLAIM_FLOOR, _CLAIM_RATIO * stored):
        raise DataError(f"{item}: damaged, its arrays claim {claimed:,} bytes and the folder holds {stored:,}", REPLACE)
    return listing


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the log lines and warnings of Orbax."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import orbax.checkpoint  # noqa: F401  (absl's own logger exists from here on)

        loggers = [logging.getLogger("absl"), logging.getLogger("asyncio")]
        levels = [logger.level for logger in loggers]
        hook = sys.unraisablehook
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        sys.unraisablehook = lambda _: None
        try:
            yield
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            _settle()
            raise
        finally:
            sys.unraisablehook = hook
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _settle() -> None:
    """Wait for the other reads after a failed one, and suppress their errors about the closed event loop."""
    time.sleep(0.2)
    gc.collect()
