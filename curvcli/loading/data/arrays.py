"""Named arrays of examples: their roles, and checks of shapes and values."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from curvcli.devices import from_all, process, processes
from curvcli.errors import DataError
from curvcli.loading.data.stored import mapped
from curvcli.problem import let_go

_BLOCK = 64 * 2**20  # bytes of an array looked at together
_INT32 = np.iinfo(np.int32)


class Key(NamedTuple):
    """The role of an array, its name, and whether the model takes it in a dict."""

    role: str
    name: str
    in_dict: bool


def of(role: str, arrays: dict[Key, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of one role by name."""
    return {key.name: array for key, array in arrays.items() if key.role == role}


def check_dtype(where: str, dtype: np.dtype) -> None:
    """Raise an error for a dtype that is not boolean, integer or real."""
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects (in a file, a pickle), not numbers",
            "store numbers, with lists padded to one length: a.astype(np.float32)",
        )
    if dtype.kind not in "biuf" and dtype.name != "bfloat16":
        raise DataError(f"{where} has the dtype {dtype}, not numbers", "convert it to integers or floats")


def check_shapes(path: str, noun: str, arrays: dict[Key, np.ndarray]) -> int:
    """Return the number of examples, which all arrays must share."""
    if not (of("inputs", arrays) and of("targets", arrays)):
        raise DataError(f"{path}: gave no inputs or no targets", "give at least one example")
    first, total = next((key.name, array.shape[:1]) for key, array in arrays.items())
    for key, array in arrays.items():
        where = f"{path}: {noun} {key.name!r}"
        check_dtype(where, array.dtype)
        if not array.ndim:
            raise DataError(f"{where} is a single number", "its first axis must count the examples")
        if not array.size:
            raise DataError(f"{where} is empty, of the shape {array.shape}", "give at least one example")
        if array.shape[:1] != total:
            raise DataError(
                f"{where} has {len(array)} examples, and {first!r} has {total[0]}",
                "give inputs, targets and mask of one length, in the same order",
            )
    return total[0]


def check_values(path: str, noun: str, arrays: dict[Key, np.ndarray]) -> str:
    """Check that values are finite and return the digest, in one pass over blocks, which processes share.

    The digest of an array of several blocks is that of the blocks' digests, so that it does not depend on the number of
    processes.
    """
    digest = hashlib.sha256()
    for key, array in arrays.items():
        header = (key.role, key.name, array.dtype.name, array.dtype.str, array.shape)
        digest.update(repr(header).encode("utf-8", "surrogatepass"))
        blocks = _block_checks(array)
        count = sum(bad for _, bad, _ in blocks)
        if count:
            first = next(row for _, bad, row in blocks if bad)
            raise DataError(
                f"{path}: {noun} {key.name!r} has {count} values that are NaN or infinite, "
                f"the first in row {first} (counting from 0)",
                "remove or replace them",
            )
        digest.update(
            _bytes(np.asarray(array)) if len(blocks) == 1 else b"".join(digested for digested, _, _ in blocks)
        )
    return digest.hexdigest()


_CHECKED = struct.Struct("32sqq")
"""The layout of a block's digest, its number of invalid values, and its first invalid row."""


def _block_checks(array: Any) -> list[tuple[bytes, int, int]]:
    """Return digest, number of invalid values and first invalid row of each block; each process reads its own."""
    starts = _starts(array)
    count = processes()
    local = [_CHECKED.pack(*_look(array, start)) for start in starts[process() :: count]]
    local += [_CHECKED.pack(b"", 0, 0)] * (-(-len(starts) // count) - len(local))
    everyone = [list(_CHECKED.iter_unpack(part)) for part in from_all(b"".join(local))]
    return [everyone[place % count][place // count] for place in range(len(starts))]


def _look(array: Any, start: int) -> tuple[bytes, int, int]:
    block = np.asarray(array[start : start + _rows(array)])
    digest = hashlib.sha256(_bytes(block)).digest()
    finite = None if array.dtype.kind in "biu" else np.isfinite(block)
    let_go(array)
    if finite is None or finite.all():
        return digest, 0, 0
    first = int(np.argmin(finite.reshape(len(block), -1).all(axis=1)))
    return digest, int(finite.size - np.count_nonzero(finite)), start + first


def _bytes(block: np.ndarray) -> memoryview:
    return np.ascontiguousarray(block).view(np.uint8).data


def _rows(array: Any) -> int:
    return max(1, _BLOCK * len(array) // max(1, array.nbytes))


def _starts(array: Any) -> range:
    return range(0, len(array), _rows(array))


def _blocks(array: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Iterate over blocks of rows and their first row, as memory-mapped arrays may be larger than memory."""
    for start in _starts(array):
        yield start, np.asarray(array[start : start + _rows(array)])
        let_go(array)


def computed_dtype(arrays: str, array: Any, dtype: np.dtype) -> np.dtype:
    """Return the dtype in which the model gets an array: `dtype` for reals, at most 32 bits for integers.

    Raises
    ------
    DataError
        A number does not fit: a real would become infinite, an integer would wrap around.
    """
    real = np.issubdtype(array.dtype, np.floating)
    if array.dtype.itemsize <= (dtype.itemsize if real else 4):
        return dtype if real else array.dtype
    low, high = (np.finfo(dtype).min, np.finfo(dtype).max) if real else (_INT32.min, _INT32.max)
    for start, block in _blocks(array):
        if block.size and (block.min() < low or block.max() > high):
            row = start + int(np.argmax(((block < low) | (block > high)).reshape(len(block), -1).any(axis=1)))
            raise DataError(
                f"the {arrays} have a number in row {row} (counting from 0) that does not fit "
                f"{dtype.name if real else '32 bits'}",
                "scale the data, or use --dtype float64" if real else "number the ids from 0 on",
            )
    return dtype if real else np.dtype(np.int32)


def read_mask(path: str, arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    """Return the array of weights: a single one, none negative, not all zero."""
    if not arrays:
        return None
    name, mask = next((name, np.asarray(array)) for name, array in arrays.items())
    where = f"{path}: mask {name!r}"
    if len(arrays) > 1 or mask.ndim > 2:
        fault = f"{where} is one of {len(arrays)}, of the shape {mask.shape}"
        raise DataError(fault, "give one array of weights, [N] or [N, T]")
    if (negative := (mask < 0).reshape(len(mask), -1).any(axis=1)).any():
        fault = f"{where} is negative, first in row {np.argmax(negative)} (counting from 0)"
        raise DataError(fault, "use weights of 0 and above")
    if not mask.any():
        raise DataError(f"{where} is 0 everywhere", "give some example a weight above 0")
    return mask


def plain(array: np.ndarray) -> np.ndarray:
    """Convert an array to a dtype that JAX takes: in native byte order, and not bfloat16."""
    if array.dtype.name == "bfloat16":
        return mapped(array, lambda block: block.astype(np.float32), np.float32)
    native = array.dtype.newbyteorder("=")
    return array if array.dtype.isnative else mapped(array, lambda block: block.astype(native), native)
