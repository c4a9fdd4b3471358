"""Arrays of one Orbax item by the library itself: as numpy arrays, or each straight into its sharding."""

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
"""Set in the process that reads such an item first."""
_CLAIM_FLOOR, _CLAIM_RATIO = 2**30, 1000  # no compressor reaches this on a trained network


def restore(item: Path, target: Any, placing: Any) -> Any:
    """The item's arrays in the structure of `target`."""
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
    """Read an item whose headers could not be checked in a process of its own, which tensorstore may abort.

    Raises
    ------
    DataError
        It did.
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
    """What Orbax is told of each array, with the sharding that it is restored into."""
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
    """The listing of an item, None where it cannot be read.

    Headers that claim far more than is stored are refused: the allocation would abort the whole process.
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
    """Keep Orbax's log lines and warnings from the user, who did not call it."""
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
    """After a failed read, let the others end while their complaint (its loop is closed) goes unseen."""
    time.sleep(0.2)
    gc.collect()
