"""Data files, and functions of the user, become named arrays of examples.

Nothing is unpickled. Arrays in a folder of .npy files stay on disk as memory maps, which are read once, in blocks.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from curvcli.errors import CurvError, DataError, NotFoundError, SpecError, UsageError
from curvcli.loading import tables
from curvcli.loading.tables import Source, choose, listed, reading
from curvcli.schema.spec import DataSpec

_BLOCK = 64 * 2**20  # bytes of an array looked at together
_ROLES = ("inputs", "targets", "mask")
_TARGET = re.compile(r"[\w./-]+:[^\W\d]\w*(\.[^\W\d]\w*)*")
_SUFFIXES = (".npz", ".npy", ".csv", ".parquet")
_GIVE = "give .npz, .csv, .parquet, a folder of .npy or .parquet files, a Hugging Face folder or pkg.mod:fn"
_BATCH = "give (inputs, targets), (inputs, targets, mask), a dict of arrays, or an iterable of these"


class _Key(NamedTuple):
    """What an array is for, its name, and whether the model is to get it in a dict."""

    role: str
    name: str
    in_dict: bool


@dataclass(frozen=True)
class Dataset:
    """Examples, each array's first axis counting them.

    Parameters
    ----------
    inputs
        An array [N, …], possibly memory-mapped, or a dict of them where the model takes several.
    targets
        An array [N, …].
    mask
        Weights [N] or [N, T], none of them negative, or None.
    num_examples, total
        N, and how many the source has; None where it was not read to its end.
    path
        The file, folder or function, as the user gave it.
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
        Take the first so many; by default all. Only these are checked, and are in the digest.

    Returns
    -------
    Dataset
        Arrays of one length, finite and not empty, with the dtypes they were stored with. Columns of a table
        are side by side, [N, F], a single one of the inputs too; a single column of targets is [N].

    Raises
    ------
    NotFoundError, PermissionDeniedError
        The file or folder is not there, or may not be read.
    DataError
        The content is damaged, not numbers, not finite, ragged, empty, or of several lengths.
    SpecError
        An array, column or split is not there, the kind of file is unknown, or the user's function fails.
    UsageError
        More examples are asked for than there are.
    """
    path = spec.path
    if not path:
        raise SpecError("no data is named", "give --data, or `path` under [data] in curv.toml")
    if num_examples is not None and num_examples < 1:
        raise UsageError(f"--num-examples {num_examples}: at least 1 is needed", "give a positive number")
    if _is_target(path, base):
        counted, noun, arrays = False, "array", _from_target(spec, path, call_target, num_examples)
    else:
        source = _open(base / path, path, spec.split)
        noun, keys = source.noun, _keys(spec, path, source)
        counted = noun == "array"  # tables are read no further than needed
        stored = source.read(list(dict.fromkeys(key.name for key in keys)), num_examples)
        arrays = {key: stored[key.name] for key in keys}
    total = _check_shapes(path, noun, arrays)
    if num_examples is not None:
        if num_examples > total:
            raise UsageError(
                f"--num-examples {num_examples}: {path} has {total} examples",
                f"give at most {total}, or leave the option out to take all",
            )
        arrays = {key: array[:num_examples] for key, array in arrays.items()}
    digest = _check_values(path, noun, arrays)
    arrays = {key: _plain(array) for key, array in arrays.items()}
    return Dataset(
        inputs=_inputs(arrays, stacked=noun == "column"),
        tabular=noun == "column",
        targets=_targets(path, _of("targets", arrays)),
        mask=_mask(path, _of("mask", arrays)),
        num_examples=num_examples or total,
        total=total if counted or num_examples is None else None,
        path=path,
        sha256=digest,
    )


def _keys(spec: DataSpec, path: str, source: Source) -> list[_Key]:
    """The arrays that are wanted of a source."""
    chosen = {role: choose(path, source, role, name) for role in _ROLES if (name := getattr(spec, role))}
    return [_Key(role, name, len(names) > 1) for role, names in chosen.items() for name in names]


def _of(role: str, arrays: dict[_Key, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one role, by name."""
    return {key.name: array for key, array in arrays.items() if key.role == role}


# --- files ------------------------------------------------------------------------------------------------


def _is_target(path: str, base: Path) -> bool:
    """Whether a source is `pkg.mod:function` or `file.py:function`, and no file has that name."""
    return bool(_TARGET.fullmatch(path)) and not path.endswith(_SUFFIXES) and not (base / path).exists()


def _open(file: Path, path: str, split: str | None) -> Source:
    """What is in a file or folder."""
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
    """What is in a folder."""
    with reading(path):
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    if not {"dataset_dict.json", "dataset_info.json", "state.json"}.isdisjoint(file.name for file in files):
        return tables.saved_source(folder, path, split)
    if arrays := {f.stem: f for f in files if f.suffix == ".npy"}:
        return _npy_source(arrays, path, split)
    if parts := [file for file in files if file.suffix == ".parquet"]:
        return tables.parquet_source(parts, path, split)
    if split and (folder / split).is_dir():
        return _open_folder(folder / split, path, None)
    if (folder / "data").is_dir():  # as a clone of a data set's repository has it
        return _open_folder(folder / "data", path, split)
    others = [file.name for file in files if file.name.endswith(_SUFFIXES)]
    raise NotFoundError(
        f"{path}: no .npy, .parquet or Hugging Face data in this folder",
        f"name a file in it: {listed(others)}" if others else _GIVE,
    )


def _not_found(file: Path, path: str) -> NotFoundError:
    """The error for a path that is not there, with a sibling of a similar name."""
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
    """The arrays of an .npz archive."""
    with reading(path):
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path}: truncated, or not an .npz archive", "write it again with np.savez")
        with zipfile.ZipFile(file) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}

    def read(names: Sequence[str], _: int | None) -> dict[str, np.ndarray]:
        with reading(path), zipfile.ZipFile(file) as archive:
            return {name: _npz_member(archive, members[name], f"{path}: array {name!r}") for name in names}

    return Source(tuple(members), read, "array", f"_{split}" if split else "")


def _npz_member(archive: zipfile.ZipFile, member: str, where: str) -> np.ndarray:
    """One array, once its header has been seen to be honest: a lie would reserve any amount of memory."""
    npy = np.lib.format
    with archive.open(member) as stream:
        header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(stream)
        _check_dtype(where, dtype)
        size, stored = prod(shape) * dtype.itemsize, archive.getinfo(member).file_size - stream.tell()
        if size != stored:
            raise DataError(f"{where} should have {size} bytes and has {stored}", "write the file again")
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False)


def _npy_source(files: dict[str, Path], path: str, split: str | None) -> Source:
    """The arrays of a folder of .npy files, left on the disk."""

    def read(names: Sequence[str], _: int | None) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name in names:
            with reading(f"{path}/{files[name].name}"):
                found[name] = np.lib.format.open_memmap(files[name], mode="r")  # refuses pickles
        return found

    return Source(tuple(files), read, "array", f"_{split}" if split else "")


# --- functions of the user --------------------------------------------------------------------------------


@contextmanager
def _users_code(path: str) -> Iterator[None]:
    """Tell what the user's own code raised, and that it was theirs."""
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
) -> dict[_Key, np.ndarray]:
    """What a function of the user returns, gathered."""
    target = call_target(path)
    gathered: dict[_Key, list[np.ndarray]] = {}
    with _users_code(path):
        made = target() if callable(target) else target
        count = 0
        for batch in _batches(path, made):
            named = _named(spec, path, batch)
            gathered = gathered or {key: [] for key in named}
            if named.keys() != gathered.keys():
                raise DataError(
                    f"{path}: the batch after example {count} has other arrays than the first",
                    "give the same arrays in every batch",
                )
            for key, array in named.items():
                _add_batch(f"{path}: array {key.name!r}", array, gathered[key], count)
            count += max(map(len, named.values()), default=0)
            if limit is not None and count >= limit:  # a loader may repeat without end
                break
    with reading(path):
        return {key: np.concatenate(a) if len(a) > 1 else a[0] for key, a in gathered.items()}


def _batches(path: str, made: Any) -> Iterable[Any]:
    """One set of arrays is a single batch; anything else is iterated over."""
    if isinstance(made, Mapping):
        return [made]
    if isinstance(made, tuple) and not all(isinstance(part, tuple | list) for part in made):
        return [made]
    if isinstance(made, Iterable) and not hasattr(made, "__array__") and not isinstance(made, str | bytes):
        return made
    raise SpecError(f"{path}: gave {type(made).__name__}, not data", _BATCH)


def _named(spec: DataSpec, path: str, batch: Any) -> dict[_Key, np.ndarray]:
    """The arrays of one batch."""
    if isinstance(batch, Mapping):
        batch = {str(name): value for name, value in batch.items()}
        source = Source(tuple(batch), lambda *_: {}, "array", f"_{spec.split}" if spec.split else "")
        found = {key: batch[key.name] for key in _keys(spec, path, source)}
    elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
        for key, absent in (("split", spec.split), ("mask", spec.mask and len(batch) == 2)):
            if absent:
                raise SpecError(
                    f"{path}: gave {len(batch)} arrays without names, where `{key}` cannot be found",
                    f"remove `{key}` under [data], or return a dict of named arrays",
                )
        found = {_Key(role, role, False): value for role, value in zip(_ROLES, batch, strict=False)}
    else:
        raise SpecError(f"{path}: gave {type(batch).__name__} as a batch", _BATCH)
    arrays: dict[_Key, np.ndarray] = {}
    for key, value in found.items():
        if isinstance(value, Mapping):
            arrays |= {_Key(key.role, str(name), True): np.asarray(part) for name, part in value.items()}
        else:
            arrays[key] = np.asarray(value)
    return arrays


def _add_batch(where: str, array: np.ndarray, gathered: list[np.ndarray], count: int) -> None:
    """Append an array that differs from the ones before it in its first axis only."""
    _check_dtype(where, array.dtype)
    if not array.ndim:
        raise DataError(f"{where} is a single number", "give batches: arrays whose first axis counts examples")
    if gathered and array.shape[1:] != gathered[0].shape[1:]:
        raise DataError(
            f"{where}: {array.shape} in the batch after example {count}, {gathered[0].shape} in the first",
            "make all batches the same but for their first axis: pad, with the weight 0 in a mask",
        )
    gathered.append(array)


def _check_dtype(where: str, dtype: np.dtype) -> None:
    """Refuse what is not boolean, integer or real."""
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects (in a file, a pickle), not numbers",
            "store numbers, with lists padded to one length: a.astype(np.float32)",
        )
    if dtype.kind not in "biuf" and dtype.name != "bfloat16":
        raise DataError(f"{where} has the dtype {dtype}, not numbers", "convert it to integers or floats")


def _check_shapes(path: str, noun: str, arrays: dict[_Key, np.ndarray]) -> int:
    """How many examples all the arrays have."""
    if not (_of("inputs", arrays) and _of("targets", arrays)):
        raise DataError(f"{path}: gave no inputs or no targets", "give at least one example")
    first, total = next((key.name, array.shape[:1]) for key, array in arrays.items())
    for key, array in arrays.items():
        where = f"{path}: {noun} {key.name!r}"
        _check_dtype(where, array.dtype)
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


def _check_values(path: str, noun: str, arrays: dict[_Key, np.ndarray]) -> str:
    """Refuse NaN and infinity, and take the digest, in one pass over blocks."""
    digest = hashlib.sha256()
    for key, array in arrays.items():
        header = (key.role, key.name, array.dtype.name, array.dtype.str, array.shape)
        digest.update(repr(header).encode("utf-8", "surrogatepass"))
        count, first = 0, 0
        step = max(1, _BLOCK * len(array) // array.nbytes)
        for start in range(0, len(array), step):
            block = array[start : start + step]
            digest.update(np.ascontiguousarray(block).view(np.uint8).data)
            if array.dtype.kind in "biu" or (finite := np.isfinite(block)).all():
                continue
            if not count:
                first = start + int(np.argmin(finite.reshape(len(block), -1).all(axis=1)))
            count += int(finite.size - np.count_nonzero(finite))
        if count:
            raise DataError(
                f"{path}: {noun} {key.name!r} has {count} values that are NaN or infinite, "
                f"the first in row {first} (counting from 0)",
                "remove or replace them",
            )
    return digest.hexdigest()


def _mask(path: str, arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    """Weights: one array, none negative, not all zero."""
    if not arrays:
        return None
    name, mask = next(iter(arrays.items()))
    where = f"{path}: mask {name!r}"
    if len(arrays) > 1 or mask.ndim > 2:
        told = f"{where} is one of {len(arrays)}, of the shape {mask.shape}"
        raise DataError(told, "give one array of weights, [N] or [N, T]")
    if (negative := (mask < 0).reshape(len(mask), -1).any(axis=1)).any():
        told = f"{where} is negative, first in row {np.argmax(negative)} (counting from 0)"
        raise DataError(told, "use weights of 0 and above")
    if not mask.any():
        raise DataError(f"{where} is 0 everywhere", "give some example a weight above 0")
    return mask


def _inputs(arrays: dict[_Key, np.ndarray], *, stacked: bool) -> Any:
    """One array, a dict of several, or the columns of a table side by side: [N, F]."""
    inputs = _of("inputs", arrays)
    if stacked and all(array.ndim == 1 for array in inputs.values()):
        return np.stack(list(inputs.values()), axis=1)
    in_dict = any(key.in_dict for key in arrays if key.role == "inputs")
    return inputs if in_dict else next(iter(inputs.values()))


def _targets(path: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """One array, or several of one number per example side by side."""
    targets = list(arrays.values())
    if len(targets) == 1:
        return targets[0]
    if any(array.ndim != 1 for array in targets):
        raise SpecError(
            f"{path}: several targets, and not one number per example in each: {listed(list(arrays))}",
            "name one array as `targets` under [data] (or --targets)",
        )
    return np.stack(targets, axis=1)


def _plain(array: np.ndarray) -> np.ndarray:
    """The same numbers in a dtype that JAX takes: of this machine's byte order, and not bfloat16."""
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
