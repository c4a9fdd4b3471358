"""Reading of named arrays of examples from data files and the user's functions.

Pickles are never read. Arrays in a folder of .npy files stay on disk as memory maps, which are read once, in blocks.
"""

from __future__ import annotations

import difflib
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from curvcli.errors import CurvError, DataError, NotFoundError, SpecError, UsageError
from curvcli.loading.access import is_there, reading
from curvcli.loading.data import stored, tables
from curvcli.loading.data.arrays import Key, check_dtype, check_shapes, check_values, of, plain, read_mask
from curvcli.loading.data.stored import side_by_side
from curvcli.loading.data.tables import Source, choose, listed
from curvcli.schema.spec import DataSpec
from curvcli.sources import register

_ROLES = ("inputs", "targets", "mask")
_TARGET = re.compile(r"[\w./-]+:[^\W\d]\w*(\.[^\W\d]\w*)*")
_SUFFIXES = (".npz", ".npy", ".csv", ".parquet")
_GIVE = "give .npz, .csv, .parquet, a folder of .npy or .parquet files, a Hugging Face folder or pkg.mod:fn"
_BATCH = "give (inputs, targets), (inputs, targets, mask), a dict of arrays, or an iterable of these"


@dataclass(frozen=True)
class Dataset:
    """A data set: arrays whose first axis counts the examples.

    Parameters
    ----------
    inputs
        An array [N, …], possibly memory-mapped, or a dict of them where the model takes several.
    targets
        An array [N, …].
    mask
        Weights [N] or [N, T], none of them negative, or None.
    num_examples, total
        N, and the number of examples of the source; None where that was not read to its end.
    path
        The file, folder or function, as given by the user.
    sha256
        Digest of the names, dtypes, shapes and bytes of the arrays.
    """

    inputs: Any
    targets: Any
    mask: np.ndarray | None
    num_examples: int
    total: int | None
    path: str
    sha256: str
    tabular: bool = False  # came as columns, which cannot tell [N] from [N, 1]


def load_dataset(
    spec: DataSpec, *, base: Path, call_target: Callable[[str], Any], num_examples: int | None = None
) -> Dataset:
    """Read the examples that a specification names, and check them.

    Parameters
    ----------
    spec
        The source and the names of its arrays or columns.
    base
        The folder that a relative path is relative to.
    call_target
        Imports and returns the object that `pkg.mod:function` names.
    num_examples
        Number of examples to take, the first ones; default: all. Only these are checked and part of the digest. If the
        specification has a digest, all examples are read and compared with it first.

    Returns
    -------
    Dataset
        Arrays of one length, finite and not empty, in their stored dtypes. Columns of a table are stacked to [N, F],
        even a single one of the inputs; a single column of targets is [N].

    Raises
    ------
    NotFoundError, PermissionDeniedError
        The file or folder does not exist, or may not be read.
    DataError
        The content is damaged, not numbers, not finite, ragged, empty, or of several lengths.
    SpecError
        An array, column or split is missing, the format is unknown, or the user's function fails.
    UsageError
        The source has fewer examples than requested.
    """
    path = spec.path
    if not path:
        raise SpecError("no data is named", "give --data, or `path` under [data] in curv.toml")
    if num_examples is not None and num_examples < 1:
        raise UsageError(f"--num-examples {num_examples}: at least 1 is needed", "give a positive number")
    limit = num_examples if spec.sha256 is None else None
    if _is_target(path, base):
        read_to_end, noun, arrays = False, "array", _from_target(spec, path, call_target, limit)
    else:
        source = _open(register(base / path, "the data"), path, spec.split)
        noun, keys = source.noun, _keys(spec, path, source)
        read_to_end = noun == "array"  # tables are read no further than needed
        columns = source.read(list(dict.fromkeys(key.name for key in keys)), limit)
        arrays = {key: columns[key.name] for key in keys}
    total = check_shapes(path, noun, arrays)
    digest = check_values(path, noun, arrays) if limit is None else ""
    if spec.sha256 not in (None, digest):
        raise DataError(
            f"{path} is not what curv.toml was written for: its digest is {digest[:12]}…",
            "the data changed or are damaged; remove [data] sha256 if the change was meant",
        )
    if num_examples is not None:
        if num_examples > total:
            raise UsageError(
                f"--num-examples {num_examples}: {path} has {total} examples",
                f"give at most {total}, or leave the option out to take all",
            )
        arrays = {key: array[:num_examples] for key, array in arrays.items()}
        digest = check_values(path, noun, arrays)
    arrays = {key: plain(array) for key, array in arrays.items()}
    return Dataset(
        inputs=_inputs(arrays, stacked=noun == "column"),
        tabular=noun == "column",
        targets=_targets(path, of("targets", arrays)),
        mask=read_mask(path, of("mask", arrays)),
        num_examples=num_examples or total,
        total=total if read_to_end or num_examples is None else None,
        path=path,
        sha256=digest,
    )


def _keys(spec: DataSpec, path: str, source: Source) -> list[Key]:
    """Return the arrays to read from a source."""
    chosen = {
        role: choose(path, source, role, name) for role in _ROLES if (name := getattr(spec, role)) or role != "mask"
    }
    return [Key(role, name, len(names) > 1) for role, names in chosen.items() for name in names]


# --- files ------------------------------------------------------------------------------------------------


def _is_target(path: str, base: Path) -> bool:
    """Whether a source is `pkg.mod:function` or `file.py:function`, and not the name of a file."""
    return bool(_TARGET.fullmatch(path)) and not path.endswith(_SUFFIXES) and not is_there(base / path)


def _open(file: Path, path: str, split: str | None) -> Source:
    """Open a file or folder as a source."""
    try:
        with reading(path):
            mode = file.stat().st_mode
    except (NotFoundError, DataError) as error:  # the latter: a name too long, a file taken for a folder
        raise _not_found(file, path) from error
    if stat.S_ISDIR(mode):
        return _open_folder(file, path, split)
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: not a regular file", "write the data to a file first")
    suffix = file.suffix.lower()
    if suffix == ".npz":
        return _npz_source(file, path, split)
    if suffix == ".csv":
        return tables.csv_source(file, path, split)
    if suffix == ".parquet":
        return tables.parquet_source([file], path, split)
    raise SpecError(f"{path}: not a kind of data that curv reads", _GIVE)


def _open_folder(folder: Path, path: str, split: str | None) -> Source:
    """Open a folder as a source."""
    with reading(path):
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    if not {"dataset_dict.json", "dataset_info.json", "state.json"}.isdisjoint(file.name for file in files):
        return tables.saved_source(folder, path, split)
    if arrays := {f.stem: f for f in files if f.suffix == ".npy"}:
        return _npy_source(arrays, path, split)
    if parts := [file for file in files if file.suffix == ".parquet"]:
        return tables.parquet_source(parts, path, split)
    if split and split == Path(split).name != ".." and (folder / split).is_dir():
        return _open_folder(folder / split, path, None)
    if (folder / "data").is_dir():  # as a clone of a data set's repository has it
        return _open_folder(folder / "data", path, split)
    candidates = [file.name for file in files if file.name.endswith(_SUFFIXES)]
    raise NotFoundError(
        f"{path}: no .npy, .parquet or Hugging Face data in this folder",
        f"name a file in it: {listed(candidates)}" if candidates else _GIVE,
    )


def _not_found(file: Path, path: str) -> NotFoundError:
    """Return the error for a missing path, with a sibling of a similar name."""
    if "://" in path:
        return NotFoundError(f"{path}: not a file on this machine", "download it, and name the local file")
    hint = "check the path; a relative one is relative to the curv.toml that names it"
    siblings: list[str] = []
    try:
        siblings = [sibling.name for sibling in file.parent.iterdir()]
    except (OSError, ValueError):
        hint = "check the path: the folder that should hold it is not there, or cannot be listed"
    if close := difflib.get_close_matches(file.name, siblings, 1):
        hint = f"did you mean {str(Path(path).parent / close[0])!r}?"
    return NotFoundError(f"{path}: no such file or folder", hint)


def _npz_source(file: Path, path: str, split: str | None) -> Source:
    """Return the arrays of an .npz archive as a source."""
    with reading(path):
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path}: truncated, or not an .npz archive", "write it again with np.savez")
        with zipfile.ZipFile(file) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}

    def read(names: Sequence[str], _: int | None) -> dict[str, np.ndarray]:
        with reading(path), zipfile.ZipFile(file) as archive:
            return {name: _npz_member(archive, file, members[name], f"{path}: array {name!r}") for name in names}

    return Source(tuple(members), read, "array", f"_{split}" if split else "")


def _npz_member(archive: zipfile.ZipFile, file: Path, member: str, where: str) -> np.ndarray:
    """Read an array after its header was validated: a wrong header would allocate any amount of memory.

    Large uncompressed arrays, as written by `np.savez`, stay on the disk.
    """
    npy = np.lib.format
    with archive.open(member) as stream:
        header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        check_dtype(where, dtype)
        info, begins = archive.getinfo(member), stream.tell()
        size, stored_bytes = prod(shape) * dtype.itemsize, info.file_size - begins
        if size != stored_bytes:
            raise DataError(f"{where} should have {size} bytes and has {stored_bytes}", "write the file again")
    if size > stored.WHOLE_BYTES and info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
        offset = _content_at(file, info) + begins
        return np.memmap(file, dtype, "r", offset, shape, "F" if fortran else "C")
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False)


def _content_at(file: Path, info: zipfile.ZipInfo) -> int:
    """Return the offset of a member's content, after its header of 30 bytes, its name and extra fields."""
    with file.open("rb") as stream:
        stream.seek(info.header_offset + 26)
        return info.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4)))


def _npy_source(files: dict[str, Path], path: str, split: str | None) -> Source:
    """Return the arrays of a folder of .npy files, memory-mapped, as a source."""

    def read(names: Sequence[str], _: int | None) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name in names:
            with reading(f"{path}/{files[name].name}"):
                arrays[name] = np.lib.format.open_memmap(files[name], mode="r")  # refuses pickles
        return arrays

    return Source(tuple(files), read, "array", f"_{split}" if split else "")


# --- functions of the user --------------------------------------------------------------------------------


@contextmanager
def _users_code(path: str) -> Iterator[None]:
    """Translate exceptions of the user's code into an error that says so."""
    try:
        yield
    except CurvError:
        raise
    except (Exception, SystemExit) as error:
        raise SpecError(
            f"{path}: raised {type(error).__name__}: {error}",
            "call the function in Python, or give --debug, to see the traceback",
        ) from error


def _from_target(
    spec: DataSpec, path: str, call_target: Callable[[str], Any], limit: int | None
) -> dict[Key, np.ndarray]:
    """Gather the arrays that a function of the user returns."""
    target = call_target(path)
    gathered: dict[Key, list[np.ndarray]] = {}
    with _users_code(path):
        returned = target() if callable(target) else target
        count = 0
        for batch in _batches(path, returned):
            members = _batch_arrays(spec, path, batch)
            gathered = gathered or {key: [] for key in members}
            if members.keys() != gathered.keys():
                raise DataError(
                    f"{path}: the batch after example {count} has other arrays than the first",
                    "give the same arrays in every batch",
                )
            for key, array in members.items():
                _add_batch(f"{path}: array {key.name!r}", array, gathered[key], count)
            count += max(map(len, members.values()), default=0)
            if limit is not None and count >= limit:  # a loader may repeat without end
                break
    with reading(path):
        return {key: np.concatenate(a) if len(a) > 1 else a[0] for key, a in gathered.items()}


def _batches(path: str, made: Any) -> Iterable[Any]:
    """Iterate over batches; a set of arrays is a single batch."""
    if isinstance(made, Mapping):
        return [made]
    if isinstance(made, tuple) and not all(isinstance(part, tuple | list) for part in made):
        return [made]
    if isinstance(made, Iterable) and not hasattr(made, "__array__") and not isinstance(made, str | bytes):
        return made
    raise SpecError(f"{path}: gave {type(made).__name__}, not data", _BATCH)


def _batch_arrays(spec: DataSpec, path: str, batch: Any) -> dict[Key, np.ndarray]:
    """Return the arrays of a batch."""
    if isinstance(batch, Mapping):
        batch = {str(name): value for name, value in batch.items()}
        source = Source(tuple(batch), lambda *_: {}, "array", f"_{spec.split}" if spec.split else "")
        members = {key: batch[key.name] for key in _keys(spec, path, source)}
    elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
        for key, absent in (("split", spec.split), ("mask", spec.mask and len(batch) == 2)):
            if absent:
                raise SpecError(
                    f"{path}: gave {len(batch)} arrays without names, where `{key}` cannot be found",
                    f"remove `{key}` under [data], or return a dict of named arrays",
                )
        members = {Key(role, role, False): value for role, value in zip(_ROLES, batch, strict=False)}
    else:
        raise SpecError(f"{path}: gave {type(batch).__name__} as a batch", _BATCH)
    arrays: dict[Key, np.ndarray] = {}
    for key, value in members.items():
        if isinstance(value, Mapping):
            arrays |= {Key(key.role, str(name), True): np.asarray(part) for name, part in value.items()}
        else:
            arrays[key] = np.asarray(value)
    return arrays


def _add_batch(where: str, array: np.ndarray, gathered: list[np.ndarray], count: int) -> None:
    """Append an array that differs from the ones before it in its first axis only."""
    check_dtype(where, array.dtype)
    if not array.ndim:
        raise DataError(f"{where} is a single number", "give batches: arrays whose first axis counts examples")
    if gathered and array.shape[1:] != gathered[0].shape[1:]:
        raise DataError(
            f"{where}: {array.shape} in the batch after example {count}, {gathered[0].shape} in the first",
            "make all batches the same but for their first axis: pad, with the weight 0 in a mask",
        )
    gathered.append(array)


def _inputs(arrays: dict[Key, np.ndarray], *, stacked: bool) -> Any:
    """Return the inputs: one array, a dict of several, or stacked columns of a table, [N, F]."""
    inputs = of("inputs", arrays)
    if stacked and all(array.ndim == 1 for array in inputs.values()):
        return side_by_side(list(inputs.values()))
    in_dict = any(key.in_dict for key in arrays if key.role == "inputs")
    return inputs if in_dict else next(iter(inputs.values()))


def _targets(path: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return the targets: one array, or several with one number per example, stacked."""
    targets = list(arrays.values())
    if len(targets) == 1:
        return targets[0]
    if any(array.ndim != 1 for array in targets):
        raise SpecError(
            f"{path}: several targets, and not one number per example in each: {listed(list(arrays))}",
            "name one array as `targets` under [data] (or --targets)",
        )
    return side_by_side(targets)
