"""Checkpoints in a single file: Flax msgpack, safetensors and .npz."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curvcli.errors import CurvError, DataError, require
from curvcli.loading.checkpoints.orbax import REPLACE

FileFormat = Literal["msgpack", "safetensors", "npz"]
Tree = dict[str, Any]
Select = Callable[[Tree], Tree]

_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


def detect(file: Path) -> FileFormat:
    """Return the format of a file by its first bytes, not its extension."""
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
    """Return the error for a pickle, which would run code when it is read."""
    return DataError(
        f"{file}: this is a pickle, and reading one can run any code",
        "save the parameters with Orbax, flax.serialization.to_bytes, safetensors or numpy.savez",
    )


def _read_msgpack(file: Path, select: Select) -> Tree:
    """Decode a file of `flax.serialization`."""
    from flax.serialization import msgpack_restore

    return select(_keyed(msgpack_restore(file.read_bytes())))


def _keyed(node: Any) -> Any:
    """Convert containers of any kind to dicts with string keys."""
    if isinstance(node, dict):
        return {str(key): _keyed(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return {str(index): _keyed(value) for index, value in enumerate(node)}
    return node


def _read_safetensors(file: Path, select: Select) -> Tree:
    """Read the selected tensors of a safetensors file."""
    library: Any = require("safetensors", "safetensors", "reading a .safetensors checkpoint")
    with library.safe_open(str(file), framework="np") as stream:
        return _fetch(select(nest(stream.keys(), file)), stream.get_tensor, file)


def _read_npz(file: Path, select: Select) -> Tree:
    """Read the selected arrays of an .npz file, without unpickling."""
    # Opened here, since numpy leaves a damaged file open.
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        members = archive.zip.namelist()
        if any(name.endswith(".pkl") for name in members):
            raise _pickled(file)
        if not all(name.endswith(".npy") for name in members):
            raise DataError(f"{file}: a zip archive, but not of numpy arrays", "save it with numpy.savez")
        return _fetch(select(nest(archive.files, file)), lambda name: _named_type(archive[name]), file)


def _named_type(array: np.ndarray) -> np.ndarray:
    """View an array as bfloat16 where numpy stored two bytes without a type: no other type in use is as wide."""
    if array.dtype != np.dtype("V2"):
        return array
    import ml_dtypes

    return array.view(ml_dtypes.bfloat16)


def nest(names: Iterable[str], file: Path) -> Tree:
    """Build a nested dict with flat names as leaves, split at "/" where any name has one, else at "."."""
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
    """Replace each leaf of a tree of names by the array that is read for it."""

    def one(name: str) -> Any:
        try:
            return read(name)
        except Exception as error:
            raise DataError(f"{file}: the array {name!r} cannot be read ({str(error)[:120]})", REPLACE) from error

    return {key: _fetch(value, read, file) if isinstance(value, dict) else one(value) for key, value in tree.items()}


READERS: dict[str, Callable[[Path, Select], Tree]] = {
    "msgpack": _read_msgpack,
    "safetensors": _read_safetensors,
    "npz": _read_npz,
}
"""Readers of the selected arrays of a file, by format."""
