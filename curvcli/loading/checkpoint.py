"""Checkpoints become trees of numpy arrays: Orbax folders, Flax msgpack files, safetensors and .npz.

Which part of a checkpoint is read
----------------------------------
The *differentiated subtree* is `params` where the root has it, else the whole tree; `[checkpoint] params`
names another one by its path (`"model/params"`), and `"."` the whole tree. A tree wrapped in one entry is
unwrapped first: the entry that alone holds `params`, or one that is alone and has a wrapper's name (`state`,
`model`, …).

Beside it, the *other collections* (`batch_stats`, …) are kept, to be held fixed. Left unread are the
optimizer's state (`opt_state`, `optimizer`, …), bookkeeping (`step`, `rng`, averages such as `ema_params`, …)
and single values, since a collection is always a dict. Inside a tree without `params`, where the names are
the user's own layers, only the optimizer's names and a scalar `step` or `epoch` are left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curvcli.errors import CurvError, DataError, PermissionDeniedError, SpecError, require
from curvcli.loading import orbax
from curvcli.loading.orbax import REPLACE

Format = Literal["orbax", "msgpack", "safetensors", "npz"]
Tree = dict[str, Any]
Select = Callable[[Tree], Tree]

_WRAPPER = re.compile("default|state|pytree|train_state|model|model_state|variables|checkpoint|ckpt|target")
_OPTIMIZER = re.compile("opt|optim|opt_states?|optimizers?|optimizer_states?|tx|apply_fn")
_BOOKKEEPING = re.compile(
    "step|epoch|rngs?|key|prng_key|dropout_rng|seed|ema|ema_.*|config|metadata|metrics|loss_scale|dynamic_scale"
    "|dataset|dataset_iterator|data_iterator"
)
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


@dataclass(frozen=True)
class Checkpoint:
    """What was read of a checkpoint.

    Parameters
    ----------
    path
        As it was given.
    format
        How it is stored.
    step
        The training step, where the layout tells it.
    tree
        Nested dict with string keys (a list's are its indices) whose leaves are numpy arrays, as stored.
        What the module's rule leaves unread is not in it.
    sha256
        Digest of the leaves read: their paths, types, shapes and bytes. The same weights have the same digest
        in every format.
    metadata
        The user's own metadata, of Orbax checkpoints; empty elsewhere.
    """

    path: Path
    format: Format
    step: int | None
    tree: Tree
    sha256: str
    metadata: dict[str, Any]


def load_checkpoint(path: Path, *, step: int | None = None, params: str | None = None) -> Checkpoint:
    """Read a checkpoint's parameters and collections, leaving the optimizer's state unread.

    Parameters
    ----------
    path
        An Orbax item, step folder or manager root, a Flax msgpack file, a .safetensors or .npz file, or a
        folder with exactly one of these.
    step
        Which step of a manager root; default: the latest.
    params
        The differentiated subtree; see the module's rule.

    Raises
    ------
    NotFoundError
        There is no such file, folder or step.
    DataError
        The content is damaged, unfinished, ambiguous, not a checkpoint, or not finite.
    PermissionDeniedError
        It may not be read.
    UsageError
        A step is asked for where there are none.
    SpecError
        `params` names nothing in the checkpoint, or an optional dependency is missing.
    """
    path = Path(path)
    with _translated(path):
        found, number = orbax.resolve(path, step)
        where = str(found)
        select = partial(_select, params=params, where=where)
        metadata: dict[str, Any] = {}
        if found.is_dir():
            kind: Format = "orbax"
            tree = orbax.read_tree(found, select, _is_auxiliary)
            metadata = orbax.read_metadata(found)
        else:
            kind = _detect(found)
            tree = _READERS[kind](found, select)
        tree = _unbox(_as_arrays(tree, where) or {})
        if not tree:
            raise DataError(f"{where}: holds no arrays", "give the checkpoint that holds the parameters")
        check_finite(find_params(tree, params)[0], where)
        return Checkpoint(path, kind, number, tree, _digest(tree), metadata)


def checkpoint_steps(path: Path) -> list[int]:
    """The steps of a manager root in ascending order; empty where `path` is not one."""
    path = Path(path)
    with _translated(path):
        return sorted(orbax.find_steps(path)) if path.is_dir() and not orbax.is_checkpoint(path) else []


def find_params(tree: Tree, params: str | None = None) -> tuple[Tree, Tree]:
    """Split a tree into the differentiated subtree and the other collections, which are held fixed.

    Parameters
    ----------
    tree
        As in `Checkpoint.tree`.
    params
        The subtree's path, keys separated by "/"; "." is the whole tree. Default: see the module's rule.

    Raises
    ------
    SpecError
        `params` names nothing in the tree.
    DataError
        Several subtrees could be meant.

    Examples
    --------
    >>> find_params({"params": {"w": 1.0}, "batch_stats": {"m": 0.0}, "step": 3})
    ({'w': 1.0}, {'batch_stats': {'m': 0.0}})
    """
    return _split(tree, _locate(tree, params, "the checkpoint"))


def check_finite(params: Tree, source: str = "the checkpoint") -> None:
    """Refuse parameters with NaN or infinity among them.

    Raises
    ------
    DataError
        Names the first leaf that has any, and how many.
    """
    for name, array in _leaves(params):
        bad = 0 if array.dtype.kind in "biu" else int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            raise DataError(
                f"{source}: {bad} of {array.size} numbers in '{'/'.join(name)}' are NaN or infinite",
                "choose an earlier step, from before the training diverged",
            )


# Which part is wanted


def _is_auxiliary(name: str) -> bool:
    """Whether an entry beside the parameters is the optimizer's or bookkeeping, by its name."""
    return bool(_OPTIMIZER.fullmatch(name) or _BOOKKEEPING.fullmatch(name))


def _locate(tree: Tree, params: str | None, where: str) -> tuple[str, ...]:
    """The path of the differentiated subtree; () is the whole tree."""
    if params in (".", "/", ""):
        return ()
    wanted = tuple(key for key in (params or "params").split("/") if key)
    base: tuple[str, ...] = ()
    node = tree
    while True:
        inner: Any = node
        for key in wanted:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            return base + wanted
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
    """The entry of `node` that holds the whole checkpoint, if there is one."""
    entries = [key for key, value in node.items() if isinstance(value, dict) and not _is_auxiliary(key)]
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
    """The subtree at `path`, and the collections beside it."""
    parent, rest = tree, {}
    for key in path[:-1]:
        parent = parent[key]
    if path:
        rest = {
            key: value
            for key, value in parent.items()
            if isinstance(value, dict) and key not in (path[-1], "params") and not _is_auxiliary(key)
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
    """The tree reduced to the differentiated subtree and the other collections."""
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
    """Turn whatever a library or the system raises into an error that names the path."""
    try:
        yield
    except CurvError:
        raise
    except PermissionError as error:
        raise PermissionDeniedError(
            f"{error.filename or path}: permission denied", "ask its owner for read access, or copy it"
        ) from error
    except Exception as error:
        raise DataError(
            f"{path}: damaged, it cannot be read ({type(error).__name__}: {str(error)[:200]})", REPLACE
        ) from error


def _detect(file: Path) -> Format:
    """The format of a file by its first bytes, which say more than its extension."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(16)
        stream.seek(-1, 2) if size else None
        last = stream.read(1)
    if not size:
        raise DataError(f"{file}: the file is empty", REPLACE)
    # Before the pickles: the length of a safetensors header can begin like one.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size:
        return "safetensors"
    if head.startswith(_PICKLES) or (head[0] in b"(]}c" and last == b"."):
        raise _pickled(file)
    if head.startswith(b"PK"):
        return "npz"
    if file.suffix.lower() == ".safetensors":
        return "safetensors"
    if head[0] & 0xF0 == 0x80 or head[0] in (0xDE, 0xDF):  # a msgpack file begins with a map
        return "msgpack"
    raise DataError(
        f"{file}: not a checkpoint that can be read (not Flax msgpack, safetensors, .npz or an Orbax folder)",
        "save the parameters in one of these formats; if it is one, it is damaged: copy it again",
    )


def _pickled(file: Path) -> CurvError:
    """The error for a pickle, which would run code when it is read."""
    return DataError(
        f"{file}: this is a pickle, and reading one can run any code",
        "save the parameters with Orbax, flax.serialization.to_bytes, safetensors or numpy.savez",
    )


def _read_msgpack(file: Path, select: Select) -> Tree:
    """Decode a file of `flax.serialization`."""
    from flax.serialization import msgpack_restore

    return select(_keyed(msgpack_restore(file.read_bytes())))


def _keyed(node: Any) -> Any:
    """Containers of any kind as dicts with string keys."""
    if isinstance(node, dict):
        return {str(key): _keyed(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return {str(index): _keyed(value) for index, value in enumerate(node)}
    return node


def _read_safetensors(file: Path, select: Select) -> Tree:
    """Read the wanted tensors of a safetensors file."""
    library: Any = require("safetensors", "safetensors", "reading a .safetensors checkpoint")
    with library.safe_open(str(file), framework="np") as stream:
        return _fetch(select(_nest(stream.keys(), file)), stream.get_tensor, file)


def _read_npz(file: Path, select: Select) -> Tree:
    """Read the wanted arrays of an .npz file; nothing in it is ever unpickled."""
    # Opened here, since numpy leaves a damaged file open.
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        members = archive.zip.namelist()
        if any(name.endswith(".pkl") for name in members):
            raise _pickled(file)
        if not all(name.endswith(".npy") for name in members):
            raise DataError(f"{file}: a zip archive, but not of numpy arrays", "save it with numpy.savez")
        return _fetch(select(_nest(archive.files, file)), lambda name: _named_type(archive[name]), file)


def _named_type(array: np.ndarray) -> np.ndarray:
    """The array, as bfloat16 where numpy stored two bytes without a type: no other one in use is as wide."""
    if array.dtype != np.dtype("V2"):
        return array
    import ml_dtypes

    return array.view(ml_dtypes.bfloat16)


def _nest(names: Iterable[str], file: Path) -> Tree:
    """A nested dict of flat names, split at "/" where any has one, else at "."."""
    names = list(names)
    separator = "/" if any("/" in name for name in names) else "."
    tree: Tree = {}
    for name in names:
        *parents, last = name.split(separator)
        node: Any = tree
        for key in parents:
            node = node.setdefault(key, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last in node:
            raise DataError(f"{file}: {name!r} is both an array and a group", "give every array its own name")
        node[last] = name
    return tree


def _fetch(tree: Tree, read: Callable[[str], Any], file: Path) -> Tree:
    """The tree with each leaf, which is a name, replaced by what is read for it."""

    def one(name: str) -> Any:
        try:
            return read(name)
        except Exception as error:
            raise DataError(f"{file}: the array {name!r} cannot be read ({str(error)[:120]})", REPLACE) from error

    return {key: _fetch(value, read, file) if isinstance(value, dict) else one(value) for key, value in tree.items()}


_READERS: dict[str, Callable[[Path, Select], Tree]] = {
    "msgpack": _read_msgpack,
    "safetensors": _read_safetensors,
    "npz": _read_npz,
}


# Arrays


def _as_arrays(node: Any, where: str, name: tuple[str, ...] = ()) -> Any:
    """The tree with every number an array, without text, None and empty containers (None if none left)."""
    if isinstance(node, dict):
        members = {key: _as_arrays(value, where, (*name, key)) for key, value in node.items()}
        return {key: value for key, value in members.items() if value is not None} or None
    if node is None or isinstance(node, str | bytes):
        return None
    array = np.asarray(node)
    if array.dtype.kind in "SU":
        return None
    # Types such as bfloat16 have kind "V", like numpy's untyped bytes.
    if array.dtype.kind not in "biufcV" or array.dtype.type is np.void:
        raise DataError(f"{where}: '{'/'.join(name)}' holds no numbers but {array.dtype}", "save it as numbers")
    return array


def _unbox(tree: Tree) -> Tree:
    """Strip the extra level that `nnx.state` and boxed parameters put around every array."""
    names = [name for name, _ in _leaves(tree)]
    if not names or not all(len(name) > 1 and name[-1] == "value" for name in names):
        return tree

    def strip(node: Tree) -> Any:
        inner = {key: strip(child) if isinstance(child, dict) else child for key, child in node.items()}
        return inner["value"] if isinstance(inner.get("value"), np.ndarray) else inner

    return strip(tree)


def _leaves(tree: Tree, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Every array and its path."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*name, key))
        else:
            yield (*name, key), value


def _digest(tree: Tree) -> str:
    """SHA-256 over the sorted leaves."""
    digest = hashlib.sha256()
    for name, array in sorted(_leaves(tree), key=lambda leaf: leaf[0]):
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode() + b"\n")
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
