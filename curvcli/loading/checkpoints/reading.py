"""Reading of checkpoints as trees of numpy arrays: Orbax folders, Flax msgpack files, safetensors and .npz.

Which part of a checkpoint is read
----------------------------------
The *differentiated subtree* is `params` where the root has it, else the whole tree. `[checkpoint] params` names
another subtree by its path (`"model/params"`), and `"."` the whole tree. A tree wrapped in an entry is unwrapped
first: the only entry that holds `params`, or a single entry with the name of a wrapper (`state`, `model`, …).

The *other collections* (`batch_stats`, …) are read as well, and held fixed. Not read are the optimizer's state
(`opt_state`, `optimizer`, …), bookkeeping (`step`, `rng`, averages such as `ema_params`, …) and single values, as every
collection is a dict. In a tree without `params`, whose names are those of layers, only the optimizer's names and a
scalar `step` or `epoch` are left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curvcli.errors import CurvError, DataError, PermissionDeniedError, SpecError
from curvcli.loading.checkpoints import files, orbax
from curvcli.loading.checkpoints.files import Select, Tree
from curvcli.loading.checkpoints.orbax import REPLACE
from curvcli.sources import check_regular, register

DEEPEST = 100
"""Levels of containers in one another."""

BLOCK_BYTES = 64 << 20
"""Bytes of a block of an array that no host holds as a whole."""

Placing = Callable[[tuple[int, ...]], Any]
"""A function from the shape of an array to its sharding."""

Format = Literal["orbax", "msgpack", "safetensors", "npz", "memory"]

_WRAPPER = re.compile("default|state|pytree|train_state|model|model_state|variables|checkpoint|ckpt|target")
_OPTIMIZER = re.compile("opt|optim|opt_states?|optimizers?|optimizer_states?|tx|apply_fn")
_BOOKKEEPING = re.compile(
    "step|epoch|rngs?|key|prng_key|dropout_rng|seed|ema|ema_.*|config|metadata|metrics|loss_scale|dynamic_scale"
    "|dataset|dataset_iterator|data_iterator"
)


@dataclass(frozen=True)
class Checkpoint:
    """The arrays and metadata read from a checkpoint.

    Parameters
    ----------
    path
        The path as given.
    format
        The storage format.
    step
        The training step, where the layout contains it.
    tree
        Nested dict with string keys (indices for lists) whose leaves are numpy arrays, as stored, without the entries
        that the module's rule leaves out.
    sha256
        Digest of the leaves: paths, types, shapes and bytes. It does not depend on the format.
    metadata
        The user's metadata of an Orbax checkpoint; empty for other formats.
    """

    path: Path
    format: Format
    step: int | None
    tree: Tree
    sha256: str
    metadata: dict[str, Any]


def load_checkpoint(
    path: Path, *, step: int | None = None, params: str | None = None, placing: Placing | None = None
) -> Checkpoint:
    """Read a checkpoint's parameters and collections, leaving the optimizer's state unread.

    Parameters
    ----------
    path
        An Orbax item, step folder or manager root, a Flax msgpack file, a .safetensors or .npz file, or a
        folder with exactly one of these.
    step
        The step of a manager root; default: the latest.
    params
        The differentiated subtree; see the module's rule.
    placing
        Returns the sharding for an array of a shape, into which Orbax restores it directly, so that no host holds the
        whole array. Other formats are read as a whole. None: numpy arrays.

    Raises
    ------
    NotFoundError
        The file, folder or step does not exist.
    DataError
        The content is damaged, unfinished, ambiguous, not a checkpoint, or not finite.
    PermissionDeniedError
        The checkpoint may not be read.
    UsageError
        A step is given for a checkpoint without steps.
    SpecError
        `params` names nothing in the checkpoint, or an optional dependency is missing.
    """
    path = Path(path)
    weights, kind, number = locate(path, step)
    register(weights, f"the checkpoint {path}")
    where = str(weights)
    tree = _unbox(read_selected(weights, kind, partial(_select, params=params, where=where), is_auxiliary, placing))
    if not tree:
        raise DataError(f"{where}: holds no arrays", "give the checkpoint that holds the parameters")
    check_finite(find_params(tree, params)[0], where)
    metadata = orbax.read_metadata(weights) if kind == "orbax" else {}
    return Checkpoint(path, kind, number, tree, _digest(tree), metadata)


def in_memory(name: str, tree: Tree, step: int | None) -> Checkpoint:
    """Build a `Checkpoint` of weights in memory.

    Parameters
    ----------
    tree
        Nested dict with string keys and numpy arrays.

    Raises
    ------
    DataError
        There are no arrays, or they are not finite.
    """
    tree = _unbox(tree)
    if not tree:
        raise DataError(f"{name}: no arrays", "give the parameters, or the dictionary of all variables")
    check_finite(find_params(tree, None)[0], name)
    return Checkpoint(Path(name), "memory", step, tree, _digest(tree), {})


def locate(path: Path, step: int | None) -> tuple[Path, Format, int | None]:
    """Return the file or Orbax folder that holds the weights, its format, and its step where the layout contains it.

    Raises
    ------
    CurvError
        See `load_checkpoint`.
    """
    check_regular(path)
    with _translated(path):
        weights, number = orbax.resolve(path, step)
        check_regular(weights)
        return weights, "orbax" if weights.is_dir() else files.detect(weights), number


def read_selected(
    weights: Path,
    kind: Format,
    select: Select,
    skip: Callable[[str], bool] = lambda name: False,
    placing: Placing | None = None,
) -> Tree:
    """Read the arrays of a part of a checkpoint; msgpack files alone are read as a whole.

    Parameters
    ----------
    weights, kind
        Path and format from `locate`.
    select
        Reduces the tree of all names to the entries to read.
    skip
        Whether an Orbax item of this name is ignored.
    placing
        See `load_checkpoint`.

    Raises
    ------
    CurvError
        See `load_checkpoint`.
    """
    with _translated(weights):
        if kind == "orbax":
            tree = orbax.read_tree(weights, select, skip, placing)
        else:
            tree = files.READERS[kind](weights, select)
        return _as_arrays(tree, str(weights)) or {}


def checkpoint_steps(path: Path) -> list[int]:
    """Return the steps of a manager root in ascending order; empty for other paths."""
    path = Path(path)
    with _translated(path):
        return sorted(orbax.find_steps(path)) if path.is_dir() and not orbax.is_checkpoint(path) else []


def find_params(tree: Tree, params: str | None = None) -> tuple[Tree, Tree]:
    """Split a tree into the differentiated subtree and the other collections, which are held fixed.

    Parameters
    ----------
    tree
        The tree of a `Checkpoint`.
    params
        The subtree's path, keys separated by "/"; "." is the whole tree. Default: see the module's rule.

    Raises
    ------
    SpecError
        `params` names nothing in the tree.
    DataError
        The subtree is ambiguous.

    Examples
    --------
    >>> find_params({"params": {"w": 1.0}, "batch_stats": {"m": 0.0}, "step": 3})
    ({'w': 1.0}, {'batch_stats': {'m': 0.0}})
    """
    return _split(tree, params_location(tree, params))


def params_location(tree: Tree, params: str | None = None) -> tuple[str, ...]:
    """Return the keys of the differentiated subtree, () for the whole tree; see `find_params`."""
    return _locate(tree, params, "the checkpoint")


def leaves(tree: Tree, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Iterate over the arrays of a tree and their keys."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*name, key))
        else:
            yield (*name, key), value


def check_finite(params: Tree, source: str = "the checkpoint") -> None:
    """Raise an error if parameters are NaN or infinite.

    Raises
    ------
    DataError
        Some are; the message names the first such leaf and their number.
    """
    for name, array in leaves(params):
        bad = (
            0
            if array.dtype.kind in "biu"
            else array.size - sum(int(np.count_nonzero(np.isfinite(block))) for block in _blocks(array))
        )
        if bad:
            raise DataError(
                f"{source}: {bad} of {array.size} numbers in '{'/'.join(name)}' are NaN or infinite",
                "choose an earlier step, from before the training diverged",
            )


# Which part is wanted


def is_auxiliary(name: str) -> bool:
    """Whether an entry beside the parameters belongs to the optimizer or to bookkeeping, by its name."""
    return bool(_OPTIMIZER.fullmatch(name) or _BOOKKEEPING.fullmatch(name))


def _locate(tree: Tree, params: str | None, where: str) -> tuple[str, ...]:
    """Return the path of the differentiated subtree; () is the whole tree."""
    if params in (".", "/", ""):
        return ()
    subtree = tuple(key for key in (params or "params").split("/") if key)
    base: tuple[str, ...] = ()
    node = tree
    while True:
        inner: Any = node
        for key in subtree:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            return base + subtree
        wrapped = _wrapped(node, where, explicit=params is not None)
        if wrapped is None:
            break
        base, node = (*base, wrapped), node[wrapped]
    if params is None:
        return base
    raise SpecError(
        f"{where}: there is no subtree {params!r}",
        f"set [checkpoint] params to one of: {', '.join(k for k, v in tree.items() if isinstance(v, dict))}",
    )


def _wrapped(node: Tree, where: str, explicit: bool) -> str | None:
    """Return the entry of `node` that holds the whole checkpoint, or None."""
    entries = [key for key, value in node.items() if isinstance(value, dict) and not is_auxiliary(key)]
    holders = [key for key in entries if isinstance(node[key].get("params"), dict)]
    if len(holders) == 1:
        return holders[0]
    if len(holders) > 1 and not explicit:
        raise DataError(
            f"{where}: several subtrees have parameters: {', '.join(holders)}",
            f'say which to differentiate, e.g. [checkpoint] params = "{holders[0]}/params"',
        )
    entries = [key for key in entries if key != "batch_stats"]
    return entries[0] if len(entries) == 1 and _WRAPPER.fullmatch(entries[0]) else None


def _split(tree: Tree, path: tuple[str, ...]) -> tuple[Tree, Tree]:
    """Return the subtree at `path`, and the collections beside it."""
    parent, rest = tree, {}
    for key in path[:-1]:
        parent = parent[key]
    if path:
        rest = {
            key: value
            for key, value in parent.items()
            if isinstance(value, dict) and key not in (path[-1], "params") and not is_auxiliary(key)
        }
    subtree = parent[path[-1]] if path else tree
    if not path or _WRAPPER.fullmatch(path[-1]):
        subtree = {
            key: value
            for key, value in subtree.items()
            if not _OPTIMIZER.fullmatch(key) and (isinstance(value, dict) or key not in ("step", "epoch"))
        }
    return subtree, rest


def _select(tree: Tree, params: str | None, where: str) -> Tree:
    """Reduce a tree to the differentiated subtree and the other collections."""
    path = _locate(tree, params, where)
    subtree, rest = _split(tree, path)
    if not path:
        return subtree
    selected: Tree = {path[-1]: subtree, **rest}
    for key in reversed(path[:-1]):
        selected = {key: selected}
    return selected


# Files


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Translate the exceptions of a library or the system into an error that names the path."""
    try:
        yield
    except CurvError:
        raise
    except PermissionError as error:
        raise PermissionDeniedError(
            f"{error.filename or path}: permission denied", "ask its owner for read access, or copy it"
        ) from error
    except RecursionError as error:
        raise _too_deep(path) from error
    except Exception as error:
        raise DataError(
            f"{path}: damaged, it cannot be read ({type(error).__name__}: {str(error)[:200]})", REPLACE
        ) from error


def _too_deep(path: Path | str) -> CurvError:
    return DataError(f"{path}: arrays lie more than {DEEPEST} levels deep", "save them under names of fewer parts")


# Arrays


def _as_arrays(node: Any, where: str, name: tuple[str, ...] = ()) -> Any:
    """Convert numbers to arrays, and drop text, None and empty containers; None if nothing remains."""
    if len(name) > DEEPEST:
        raise _too_deep(where)
    if isinstance(node, dict):
        members = {key: _as_arrays(value, where, (*name, key)) for key, value in node.items()}
        return {key: value for key, value in members.items() if value is not None} or None
    if node is None or isinstance(node, str | bytes):
        return None
    array = node if hasattr(node, "sharding") else np.asarray(node)
    if array.dtype.kind in "SU":
        return None
    # Types such as bfloat16 have kind "V", like numpy's untyped bytes.
    if array.dtype.kind not in "biufcV" or array.dtype.type is np.void:
        raise DataError(f"{where}: '{'/'.join(name)}' holds no numbers but {array.dtype}", "save it as numbers")
    return array


def _unbox(tree: Tree) -> Tree:
    """Remove the level that `nnx.state` and boxed parameters add around every array."""
    names = [name for name, _ in leaves(tree)]
    if not names or not all(len(name) > 1 and name[-1] == "value" for name in names):
        return tree

    def strip(node: Tree) -> Any:
        inner = {key: strip(child) if isinstance(child, dict) else child for key, child in node.items()}
        return inner["value"] if hasattr(inner.get("value"), "dtype") else inner

    return strip(tree)


def _digest(tree: Tree) -> str:
    """Return the SHA-256 of the sorted leaves."""
    digest = hashlib.sha256()
    for name, array in sorted(leaves(tree), key=lambda leaf: leaf[0]):
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode() + b"\n")
        for block in _blocks(array):
            digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _blocks(array: Any) -> Iterator[np.ndarray]:
    """Iterate over an array as a whole, or by blocks of rows if it is sharded over devices."""
    if isinstance(array, np.ndarray) or not array.ndim:
        yield np.asarray(array)
        return
    from curvcli.devices import on_host

    rows = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        yield on_host(array[start : start + rows])
