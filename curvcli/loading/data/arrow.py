"""Columns of .parquet files and Hugging Face folders as arrays: small ones are read at once, large ones when used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curvcli.errors import DataError
from curvcli.loading.access import reading
from curvcli.loading.data.stored import Rows, whole_if_small

GROUPS_KEPT = 2
"""Number of row groups of a .parquet column in the cache: the next batch begins where the last one ended."""


class Piece(NamedTuple):
    """A piece of a column: consecutive rows that are stored together."""

    rows: int
    read: Callable[[int, int], Sequence[Any]]  # first row and last + 1 within it -> Arrow arrays


class Opened(NamedTuple):
    """The content of a file: its columns by name, their types and their pieces."""

    types: dict[str, Any]
    pieces: Callable[[str], list[Piece]]
    rows: int


Opener = Callable[[Sequence[str]], Callable[[Path], Opened]]
"""A function from the names of columns to a function that opens a file."""


def parquet_opener(names: Sequence[str]) -> Callable[[Path], Opened]:
    """Return a reader of the row groups of .parquet files, decoded when their rows are used; files share a cache."""
    import pyarrow.parquet as parquet

    metadata: dict[Path, Any] = {}

    @lru_cache(GROUPS_KEPT * len(names))
    def group(file: Path, index: int, name: str) -> Any:
        with parquet.ParquetFile(file, metadata=metadata[file]) as opened:
            return opened.read_row_group(index, columns=[name]).column(0)

    def piece(file: Path, index: int, name: str) -> Piece:
        rows = metadata[file].row_group(index).num_rows
        return Piece(rows, lambda start, stop: group(file, index, name).slice(start, stop - start).chunks)

    def opened(file: Path) -> Opened:
        with parquet.ParquetFile(file) as table:
            schema, metadata[file] = table.schema_arrow, table.metadata
        return Opened(
            {field.name: field.type for field in schema},
            lambda name: [piece(file, index, name) for index in range(metadata[file].num_row_groups)],
            metadata[file].num_rows,
        )

    return opened


def mapped_opener(names: Sequence[str]) -> Callable[[Path], Opened]:
    """Return a reader of the record batches of Arrow files."""
    return lambda file: open_mapped(file, names)


def open_mapped(file: Path, names: Sequence[str] | None) -> Opened:
    """Open the record batches of an Arrow file by a memory map."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as mapped:
        if mapped.read(6) == b"ARROW1":
            table = pa.ipc.open_file(mapped).read_all()
        else:
            mapped.seek(0)
            table = pa.ipc.open_stream(mapped).read_all()
    if names is not None:
        table = table.select([name for name in names if name in table.column_names])
        table.validate(full=True)  # a damaged offset would otherwise be followed out of the buffer

    def piece(chunk: Any) -> Piece:
        return Piece(len(chunk), lambda start, stop: [chunk.slice(start, stop - start)])

    return Opened(
        {field.name: field.type for field in table.schema},
        lambda name: [piece(chunk) for chunk in table.column(name).chunks],
        table.num_rows,
    )


def column_reader(
    path: str, files: Sequence[Path], opener: Opener
) -> Callable[[Sequence[str], int | None], dict[str, np.ndarray]]:
    """Return a reader of columns that span several files."""

    def told(file: Path) -> str:
        return path if Path(path).name == file.name else f"{path}/{file.name}"

    def read(names: Sequence[str], limit: int | None) -> dict[str, Any]:
        pieces: dict[str, list[tuple[str, Piece]]] = {name: [] for name in names}
        types: dict[str, list[Any]] = {name: [] for name in names}
        rows, open_file = 0, opener(names)
        for file in files:
            with reading(told(file)):
                opened = open_file(file)
                for name in names:
                    if name not in opened.types:
                        raise DataError(
                            f"{path}: {file.name} has no column {name!r}, which {files[0].name} has",
                            "write all the parts with the same columns",
                        )
                    types[name].append(opened.types[name])
                    pieces[name] += [(told(file), piece) for piece in opened.pieces(name) if piece.rows]
            rows += opened.rows
            if limit is not None and rows >= limit:
                break
        with reading(path):
            columns = {name: _column(path, name, types[name], pieces[name]) for name in names}
            return whole_if_small(columns)

    return read


def _column(path: str, name: str, types: Sequence[Any], stored: list[tuple[str, Piece]]) -> Rows:
    """Return a column; the shape of its first row is that of all."""
    where = f"{path}: column {name!r}"
    starts = [0, *accumulate(piece.rows for _, piece in stored)]
    if not stored:
        return Rows(lambda *_: np.zeros(0), (0,), np.float64)

    def arrays(index: int, start: int, stop: int) -> list[np.ndarray]:
        """Read rows start … stop of a piece, counted within it."""
        file, piece = stored[index]
        chunks, row = [], starts[index] + start
        with reading(file):
            for chunk in piece.read(start, stop):
                if len(chunk):
                    chunks.append(_chunk_array(chunk, where, row, 1))
                    row += len(chunk)
        return chunks

    shape = arrays(0, 0, 1)[0].shape[1:]
    dtype = np.result_type(*[_dtype(kind) for kind in types])

    def read(start: int, stop: int) -> np.ndarray:
        values, filled = np.empty((max(stop - start, 0), *shape), dtype), 0
        index = int(np.searchsorted(starts, start, side="right")) - 1
        while filled < len(values):
            low = start + filled - starts[index]
            for array in arrays(index, low, min(stop - starts[index], stored[index][1].rows)):
                if array.shape[1:] != shape:
                    raise _ragged_lists(where, start + filled, array.shape[1:], shape)
                values[filled : filled + len(array)] = array
                filled += len(array)
            index += 1
        return values

    return Rows(read, (starts[-1], *shape), dtype)


def _dtype(kind: Any) -> np.dtype:
    """Return the numpy dtype of the numbers in an Arrow type; lists and tensors are arrays of numbers."""
    while True:
        if hasattr(kind, "storage_type"):
            kind = kind.storage_type
        elif hasattr(kind, "value_type"):
            kind = kind.value_type
        else:
            return np.dtype(kind.to_pandas_dtype())


def _chunk_array(chunk: Any, where: str, row: int, per_row: int) -> np.ndarray:
    """Convert an Arrow array to a numpy array; element i belongs to example row + i // per_row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = chunk.type
    if chunk.null_count:
        first = row + int(np.argmax(chunk.is_null().to_numpy(zero_copy_only=False))) // per_row
        raise DataError(
            f"{where}: no value in row {first} (counting from 0)",
            "fill in or drop the rows with missing values",
        )
    if isinstance(kind, pa.FixedShapeTensorType):
        return chunk.to_numpy_ndarray()
    if isinstance(kind, pa.BaseExtensionType):
        return _chunk_array(chunk.storage, where, row, per_row)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.call_function("list_value_length", [chunk]).to_numpy(zero_copy_only=False)
        length = int(lengths[0]) if len(lengths) else 0
        if (differs := lengths != length).any():
            bad = int(np.argmax(differs))
            raise _ragged_lists(where, row + bad // per_row, (int(lengths[bad]),), (length,))
        values = _chunk_array(chunk.flatten(), where, row, per_row * max(1, length))
        return values.reshape(len(chunk), length, *values.shape[1:])
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return chunk.to_numpy(zero_copy_only=False)
    if pa.types.is_struct(kind) and any(field.name == "bytes" for field in kind):
        raise DataError(
            f"{where} holds encoded images, which curv does not decode",
            "store them as arrays of numbers: Array3D in Hugging Face datasets, or a folder of .npy files",
        )
    raise DataError(f"{where} has the type {kind}, not numbers", "encode it as numbers, or leave the column out")


def _ragged_lists(where: str, row: int, found: Sequence[int], before: Sequence[int]) -> DataError:
    """Return the error for lists of several lengths."""
    told = [" × ".join(map(str, shape)) or "one" for shape in (found, before)]
    return DataError(
        f"{where}: row {row} (counting from 0) has {told[0]} numbers where the rows before it have {told[1]}",
        "pad the lists to one length, and give the padding the weight 0 in a mask",
    )
