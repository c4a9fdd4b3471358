"""Tables of examples (.csv, .parquet, Hugging Face folders) as named columns of numbers."""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from curvcli.errors import DataError, SpecError, require
from curvcli.loading.access import reading
from curvcli.loading.data import arrow

_CELLS_AT_ONCE = 400_000  # text cells of a .csv held at a time
_SPLIT_IN_NAME = re.compile(r"(train|test|valid|validation|val|dev)(?![a-z])")


@dataclass(frozen=True)
class Source:
    """A source of named arrays or columns, which are read on request.

    Parameters
    ----------
    names
        The names, in the order of the file.
    read
        Called with some of `names` and the number of examples to read (None for all); it may return more examples.
    noun
        The noun for messages: "array" or "column".
    suffix
        The suffix of a split's names, such as "_train"; empty where the source is a single split.
    """

    names: tuple[str, ...]
    read: Callable[[Sequence[str], int | None], dict[str, np.ndarray]]
    noun: str
    suffix: str = ""


def listed(names: Sequence[str]) -> str:
    """Join at most twenty names for a message."""
    told = ", ".join(repr(name) for name in names[:20])
    return told + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def choose(path: str, source: Source, role: str, pattern: str) -> list[str]:
    """Return the names that match `a`, `a,b` or `pixel_*`.

    Raises
    ------
    SpecError
        A name is missing.
    """
    if pattern + source.suffix in source.names:
        return [pattern + source.suffix]
    chosen: dict[str, None] = {}
    for part in [part.strip() + source.suffix for part in pattern.split(",") if part.strip()] or [pattern]:
        matching = [part] if part in source.names else [name for name in source.names if fnmatchcase(name, part)]
        if not matching:
            raise _missing(path, source, role, part)
        chosen.update(dict.fromkeys(matching))
    return list(chosen)


def _missing(path: str, source: Source, role: str, name: str) -> SpecError:
    """Return the error for a missing name."""
    set_it = f"set `{role}` under [data]" + ("" if role == "mask" else f" (or --{role})")
    lower = {existing.lower(): existing for existing in source.names}
    close = [lower[existing] for existing in difflib.get_close_matches(name.lower(), lower, 1)]
    if source.suffix and name.removesuffix(source.suffix) in source.names:
        hint = "remove `split` under [data]"
    elif splits := [existing.removeprefix(f"{name}_") for existing in source.names if existing.startswith(f"{name}_")]:
        hint = f'{set_it}, or `split`, such as split = "{splits[0]}"'
    else:
        hint = set_it + (f": did you mean {close[0]!r}?" if close else "")
    available = f"there are {listed(source.names)}" if source.names else "there are none"
    return SpecError(f"{path}: no {source.noun} {name!r} for the {role}; {available}", hint)


# --- .csv -------------------------------------------------------------------------------------------------


def csv_source(file: Path, path: str, split: str | None = None) -> Source:
    """Read the header of a .csv file; the rows are read on request.

    Parameters
    ----------
    file, path
        The file, and its name in messages.
    split
        Appended to the names of columns.

    Raises
    ------
    DataError
        The file is not UTF-8, is empty or has no header.
    """
    with closing(_csv_rows(file, path)) as rows:
        _, first = next(rows, (0, []))
    header = [cell.strip() for cell in first]
    if not header:
        raise DataError(f"{path}: the file is empty", "write a header line and one line per example")
    if all(map(_is_number, header)):
        raise DataError(
            f"{path}: the first line holds numbers, not the names of columns",
            "add a header line that names the columns",
        )

    def read(names: Sequence[str], limit: int | None) -> dict[str, np.ndarray]:
        for name in names:
            if header.count(name) > 1:
                raise DataError(f"{path}: several columns are named {name!r}", "give each a name of its own")
        pieces: dict[str, list[np.ndarray]] = {name: [np.zeros(0, np.int64)] for name in names}
        with closing(_csv_rows(file, path)) as rows:
            requested = islice(rows, 1, None if limit is None else limit + 1)
            while chunk := list(islice(requested, math.ceil(_CELLS_AT_ONCE / len(header)))):
                for line, row in chunk:
                    if len(row) != len(header):
                        raise _ragged(path, line, row, header)
                lines = [line for line, _ in chunk]
                columns = list(zip(*(row for _, row in chunk), strict=True))
                for name in names:
                    cells = columns[header.index(name)]
                    pieces[name].append(_csv_column(path, name, lines, cells))
        return {name: np.concatenate(pieces.pop(name)) for name in names}

    return Source(tuple(dict.fromkeys(header)), read, "column", f"_{split}" if split else "")


def _csv_rows(file: Path, path: str) -> Generator[tuple[int, list[str]]]:
    """Iterate over the rows that are not blank, with their line numbers."""
    with reading(path), file.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, skipinitialspace=True, strict=True)
        try:
            for row in rows:
                if row:
                    yield rows.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}: line {rows.line_num}: {error}", "check that line's quotes and commas") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: not UTF-8 text (after line {rows.line_num}: {error.reason})",
                "save the file with the encoding UTF-8",
            ) from error


def _ragged(path: str, line: int, row: list[str], header: list[str]) -> DataError:
    """Return the error for a row with too few or too many cells."""
    at = (
        f"nothing in column {header[len(row)]!r}"
        if len(row) < len(header)
        else f"{row[len(header)][:40]!r} is beyond the last column, {header[-1]!r}"
    )
    return DataError(
        f"{path}: line {line} has {len(row)} cells where the header names {len(header)}: {at}",
        "give every line as many cells as the header; quote a cell that contains a comma",
    )


def _csv_column(path: str, name: str, lines: list[int], cells: Sequence[str]) -> np.ndarray:
    """Convert cells to integers if all are integers, else to floats."""
    if "_" not in "".join(cells):  # Python takes 1_000 for a number; a data file never means one by it
        with suppress(ValueError, OverflowError):
            return np.array([int(cell) for cell in cells], np.int64)
        with suppress(ValueError):
            return np.array([float(cell) for cell in cells])
    line, cell = next((line, cell) for line, cell in zip(lines, cells, strict=True) if not _is_number(cell))
    fault = f"{cell[:40]!r} is not a number" if cell.strip() else "the cell is empty"
    raise DataError(
        f"{path}: line {line}, column {name!r}: {fault}",
        "put a number there, remove the line, or leave the column out of inputs and targets",
    )


def _is_number(cell: str) -> bool:
    """Whether a cell is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


# --- .parquet and Hugging Face folders, both through pyarrow ----------------------------------------------


def parquet_source(files: Sequence[Path], path: str, split: str | None = None) -> Source:
    """Read the column names of .parquet files that are parts of one table.

    Parameters
    ----------
    files, path
        The files in order, and their common name in messages.
    split
        Selects the files whose names begin with it (`train-00000-of-00002.parquet`). For a single file with another
        name it is appended to the names of columns.

    Raises
    ------
    SpecError
        pyarrow is not installed, the split is missing, or none of several splits was given.
    """
    parquet: Any = require("pyarrow.parquet", "tables", "reading .parquet files")
    suffix = f"_{split}" if split else ""
    if len(files) > 1 or (split and files[0].name.startswith(split)):
        files, suffix = _files_of_split(files, path, split), ""
    with reading(path), parquet.ParquetFile(files[0]) as first:
        names = tuple(first.schema_arrow.names)

    return Source(names, arrow.column_reader(path, files, arrow.parquet_opener), "column", suffix)


def _files_of_split(files: Sequence[Path], path: str, split: str | None) -> list[Path]:
    """Return the files of a split, or all where their names contain no splits."""
    if split is None:
        splits = {match[1] for file in files if (match := _SPLIT_IN_NAME.match(file.stem))}
        if len(splits) > 1:
            raise SpecError(
                f"{path}: holds several splits: {listed(sorted(splits))}",
                'set `split` under [data], such as split = "train"',
            )
        return list(files)
    of_split = [file for file in files if file.stem == split or file.stem.startswith(f"{split}-")]
    if not of_split:
        raise SpecError(
            f"{path}: no file of the split {split!r}; there are {listed([file.name for file in files])}",
            "set `split` under [data] to how a file's name begins, or leave it out",
        )
    return of_split


def saved_source(folder: Path, path: str, split: str | None = None) -> Source:
    """Read the column names of a folder written by Hugging Face's `save_to_disk`.

    Parameters
    ----------
    folder, path
        A Dataset (state.json, .arrow files) or a DatasetDict (dataset_dict.json, a folder for each split), and its name
        in messages.
    split
        The split; optional where there is only one.

    Raises
    ------
    SpecError
        pyarrow is not installed, the split is missing, or none of several splits was given.
    """
    require("pyarrow", "tables", "reading Hugging Face folders")
    if (folder / "dataset_dict.json").is_file():
        splits = _strings(_json(folder / "dataset_dict.json", path).get("splits"))
        split = split or (splits[0] if len(splits) == 1 else None)
        if split not in splits or split != Path(split).name or split == "..":
            problem = f"no split {split!r}; there are" if split else "holds several splits:"
            raise SpecError(f"{path}: {problem} {listed(splits)}", 'set `split` under [data], such as split = "train"')
        folder, path = folder / split, f"{path}/{split}"
        state = _json(folder / "state.json", path)
    else:
        file = folder / "state.json"
        state = _json(file, path) if file.is_file() else {}
        if split and state.get("_split") != split:
            raise SpecError(
                f"{path}: no split {split!r}; it is a single Dataset, of the split {state.get('_split')!r}",
                "remove `split` under [data], or name the folder of the DatasetDict",
            )
    if state.get("_indices_data_files"):
        raise DataError(
            f"{path}: its rows are rearranged by a separate index file",
            "save it again: dataset.flatten_indices().save_to_disk(…)",
        )
    # By their last part: what a state.json says never leads out of its folder.
    entries = state.get("_data_files")
    entries = entries if isinstance(entries, list) else []
    stored = _strings([entry.get("filename") for entry in entries if isinstance(entry, dict)])
    files = [folder / Path(name).name for name in stored] or sorted(folder.glob("*.arrow"))
    if not files:
        raise DataError(f"{path}: no .arrow file in it", "save the dataset again with save_to_disk")

    with reading(f"{path}/{files[0].name}"):
        names = tuple(arrow.open_mapped(files[0], None).types)
    return Source(names, arrow.column_reader(path, files, arrow.mapped_opener), "column")


def _json(file: Path, path: str) -> dict[str, Any]:
    """Read a JSON object."""
    with reading(f"{path}/{file.name}"):
        found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise DataError(f"{path}: {file.name} is not a JSON object", "save it again with save_to_disk")
    return found


def _strings(values: Any) -> list[str]:
    """Return the strings of a list."""
    return [item for item in values if isinstance(item, str)] if isinstance(values, list) else []
