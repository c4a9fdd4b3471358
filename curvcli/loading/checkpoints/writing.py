"""Writing of moved weights as a checkpoint in the format and layout of their source.

The checkpoint is copied, and in the copy the values of the moved arrays are replaced in place. All else (other
collections, the optimizer's state, steps, metadata, items without arrays, text, chunks, compression) is unchanged, so
that code which reads the original reads the copy too. The arrays keep their stored types.

* Orbax: the whole item or step folder. A single step of a manager root is written as a step folder, and may be placed
  in a root under a new number. In an OCDBT database the old values remain as an unreferenced version.
* Flax msgpack: the file is decoded, the arrays are replaced, and the file is encoded again.
* safetensors: the bytes of the moved tensors are overwritten; header and order are the same.
* .npz: the members are copied and those of the moved arrays written anew.

The specification of the checkpoint is written too, as `curv.toml` in a folder or as `NAME.curv.toml` beside a file,
with paths relative to the new place and without a `sha256`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from curvcli import atomic
from curvcli.errors import CurvError, DataError, NumericsError, OutputError, SpecError, UsageError
from curvcli.loading.checkpoints import files, orbax
from curvcli.loading.checkpoints.reading import is_auxiliary, leaves, load_checkpoint, locate, params_location
from curvcli.loading.resolve import Loaded
from curvcli.loading.spec.files import NAME, carried_spec, merge, relative_to

Keys = tuple[str, ...]
Changed = Mapping[Keys, np.ndarray]

_LOST = 0.1  # of the step's length; from there on rounding is told


def check_target(target: Path) -> None:
    """Check before the computation that a checkpoint can be written to a path.

    Raises
    ------
    UsageError
        The path exists, or lies inside another checkpoint.
    OutputError
        The folder is missing or not writable.
    """
    existing = target if os.path.lexists(target) else _sidecar(target)
    if os.path.lexists(existing):
        raise UsageError(f"{existing} exists already", "move it away, or write the checkpoint elsewhere")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{target} could not be written: its folder does not exist", f"mkdir -p {target.parent}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{target} could not be written: its folder is not writable", "write it elsewhere")
    for parent in (folder.resolve(), *folder.resolve().parents):
        if orbax.is_item(parent) or (parent / "_CHECKPOINT_METADATA").is_file():
            raise UsageError(f"{target} lies inside the checkpoint {parent}", "write the new checkpoint beside it")


def write_checkpoint(
    source: Path, moved: Mapping[str, Any], target: Path, *, step: int | None = None, params: str | None = None
) -> list[str]:
    """Write a copy of a checkpoint with some of its parameters moved, atomically.

    The copy is made in a temporary folder beside `target`, read back, compared, and only then renamed.

    Parameters
    ----------
    source
        The path given to `load_checkpoint`.
    moved
        New values by parameter path, in the stored shapes; other parameters are unchanged.
    target
        The new file or folder. Its format is that of the source, whatever its name.
    step
        The step of a manager root. Give the step that was analysed: a later one may have been written meanwhile.
    params
        The differentiated subtree, as for `load_checkpoint`.

    Returns
    -------
    list
        Warnings: the stored type rounds the step away; the specification could not be carried over.

    Raises
    ------
    UsageError, OutputError
        See `check_target`; OutputError also if writing fails.
    NumericsError
        A moved value is not finite, or too large for the stored type.
    DataError
        The source has no such parameter in this shape, so it is not the checkpoint that was analysed.
    CurvError
        The source cannot be read; see `load_checkpoint`.

    Notes
    -----
    *Cost*: the checkpoint's size on disk, and three times its parameters in memory (the whole tree for a msgpack file).
    """
    check_target(target)
    weights, kind, _ = locate(source, step)
    tree = load_checkpoint(source, step=step, params=params).tree
    changed, warnings = _changed(tree, moved, source, params)
    try:
        with atomic.folder_beside(target) as folder:
            copy = folder / target.name
            _WRITERS[kind](weights, copy, changed)
            _check_written(copy, dict(leaves(tree)) | dict(changed), params)
            with _errors_as_warnings(warnings):
                _write_spec(source, weights, copy, target)
            for path in folder.rglob("*"):  # the names are not to be there before the numbers
                atomic.sync(path)
            check_target(target)
            for path in (_sidecar(copy), copy):
                if path.exists():
                    path.rename(target.with_name(path.name))
    except CurvError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {str(error)[:200]}"
        raise OutputError(
            f"{target} could not be written: {reason}", "check the folder, its permissions and the free space"
        ) from error
    return warnings


def write_moved(loaded: Loaded, moved: Mapping[str, Any], target: Path) -> list[str]:
    """Call `write_checkpoint` for the checkpoint of a loaded problem."""
    source = loaded.checkpoint
    return write_checkpoint(Path(source.path), moved, target, step=source.step, params=loaded.spec.checkpoint.params)


def _sidecar(path: Path) -> Path:
    """Return the path of the specification beside a file."""
    return path.with_name(f"{path.name}.{NAME}")


# What changes


def _changed(
    tree: files.Tree, moved: Mapping[str, Any], source: Path, params: str | None
) -> tuple[dict[Keys, np.ndarray], list[str]]:
    """Return the moved arrays in their stored types by their keys in the tree, and a warning of large rounding."""
    base = params_location(tree, params)
    stored: dict[str, tuple[Keys, np.ndarray]] = {}
    # A variable of an nnx module may lie in another collection; the differentiated subtree goes first.
    for keys, array in sorted(leaves(tree), key=lambda leaf: leaf[0][: len(base)] != base):
        within = keys[len(base) :] if keys[: len(base)] == base else keys[len(base[:-1]) + 1 :]
        stored.setdefault("/".join(within), (keys, array))
    changed: dict[Keys, np.ndarray] = {}
    lost = intended = 0.0
    for path, value in moved.items():
        keys, old = stored.get(path, ((), None))
        new = np.asarray(value)
        if old is None or old.shape != new.shape:
            has = f"it has shape {list(old.shape)}" if old is not None else "it is not there"
            raise DataError(
                f"{source}: no parameter {path!r} of shape {list(new.shape)} in the checkpoint: {has}",
                "the checkpoint is not the one that was analysed: name its step, and do not write to it meanwhile",
            )
        with np.errstate(over="ignore", invalid="ignore"):
            changed[keys] = new.astype(old.dtype)
        if not np.isfinite(changed[keys]).all():
            raise NumericsError(
                f"the moved {path!r} has numbers that are not finite as {old.dtype.name}", "take a shorter step"
            )
        exact, before = new.astype(np.float64), old.astype(np.float64)
        lost += float(np.sum((changed[keys].astype(np.float64) - exact) ** 2))
        intended += float(np.sum((exact - before) ** 2))
    if lost <= _LOST**2 * intended:
        return changed, []
    kinds, share = ", ".join(sorted({array.dtype.name for array in changed.values()})), (lost / intended) ** 0.5
    return changed, [f"the weights are stored as {kinds}: rounding changes the step by {share:.0%} of its length"]


def _check_written(copy: Path, expected: Mapping[Keys, np.ndarray], params: str | None) -> None:
    """Raise an error if a checkpoint does not read back as it was written."""
    tree = dict(leaves(load_checkpoint(copy, params=params).tree))
    equal = tree.keys() == expected.keys() and all(
        (leaf.dtype, leaf.shape, leaf.tobytes()) == (tree[keys].dtype, tree[keys].shape, tree[keys].tobytes())
        for keys, leaf in expected.items()
    )
    if not equal:
        raise OutputError(f"{copy.name} could not be written: it reads back differently", "check the disk")


# Formats


def _at(tree: files.Tree, keys: Keys) -> Any:
    """Return the leaf at these keys, or at the `value` below them that `nnx.state` adds."""
    node: Any = tree
    for key in keys:
        node = node[key]
    return node["value"] if isinstance(node, dict) else node


def _write_orbax(source: Path, target: Path, changed: Changed) -> None:
    """Copy the folder and overwrite the arrays in its database."""
    import tensorstore

    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(folder.stat().st_mode | 0o700)  # the copy of a read-only folder is to be written to
    tree = orbax.stored_tree(target, is_auxiliary)
    for keys, array in changed.items():
        leaf = _at(tree, keys)
        layout = json.loads((leaf.item / "_METADATA").read_text("utf-8"))
        name = ".".join(leaf.keys) + "/"
        place: dict[str, Any] = {"driver": "file", "path": f"{leaf.item.absolute()}/{name}"}
        if layout.get("use_ocdbt", (leaf.item / "manifest.ocdbt").exists()):
            place = {"driver": "ocdbt", "base": f"file://{leaf.item.absolute()}/", "path": name}
        kind = "zarr3" if layout.get("use_zarr3") else "zarr"
        store = tensorstore.open({"driver": kind, "kvstore": place}, open=True).result()
        store.write(array.astype(store.dtype.numpy_dtype)).result()


def _write_msgpack(source: Path, target: Path, changed: Changed) -> None:
    """Decode the file, replace the arrays, and encode it again."""
    from flax.serialization import msgpack_restore, msgpack_serialize

    def exchanged(node: Any, keys: Keys = ()) -> Any:
        if keys in changed:
            new: Any = changed[keys]
            if isinstance(node, dict):
                return {**node, "value": new}
            return new if isinstance(node, np.ndarray) else new[()] if isinstance(node, np.generic) else new.item()
        if isinstance(node, dict):
            return {key: exchanged(value, (*keys, str(key))) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [exchanged(value, (*keys, str(index))) for index, value in enumerate(node)]
        return node

    target.write_bytes(msgpack_serialize(exchanged(msgpack_restore(source.read_bytes())), in_place=True))


def _write_safetensors(source: Path, target: Path, changed: Changed) -> None:
    """Copy the file and overwrite the bytes of the tensors."""
    shutil.copyfile(source, target)
    with target.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        tree = files.nest((name for name in header if name != "__metadata__"), source)
        for keys, array in changed.items():
            start, end = header[_at(tree, keys)]["data_offsets"]
            data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
            assert len(data) == end - start
            stream.seek(8 + length + start)
            stream.write(data)


def _write_npz(source: Path, target: Path, changed: Changed) -> None:
    """Copy the members of the archive, and write those of the moved arrays."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        tree = files.nest((name.removesuffix(".npy") for name in old.namelist()), source)
        arrays = {f"{_at(tree, keys)}.npy": array for keys, array in changed.items()}
        for member in old.infolist():
            if member.filename not in arrays:
                new.writestr(member, old.read(member))
                continue
            array = arrays[member.filename]
            # Types that numpy does not know, such as bfloat16, are stored as bytes without a type.
            plain = array.view(f"V{array.dtype.itemsize}") if array.dtype.kind == "V" else array
            with new.open(member, "w", force_zip64=True) as out:
                np.lib.format.write_array(out, plain, allow_pickle=False)


_WRITERS: dict[str, Callable[[Path, Path, Changed], None]] = {
    "orbax": _write_orbax,
    "msgpack": _write_msgpack,
    "safetensors": _write_safetensors,
    "npz": _write_npz,
}


# The specification


@contextlib.contextmanager
def _errors_as_warnings(warnings: list[str]) -> Iterator[None]:
    """Turn errors of the source's specification into warnings, so that the weights are written."""
    try:
        yield
    except SpecError as error:
        warnings.append(f"the checkpoint's specification is not carried over: {error.message}")


def _write_spec(source: Path, weights: Path, copy: Path, target: Path) -> None:
    """Write the specification of the source, for the final place of the checkpoint."""
    import tomli_w

    carried = carried_spec(source, orbax.read_metadata)
    if carried is None:
        return
    spec = merge(carried, {})
    spec = spec.model_copy(update={"checkpoint": spec.checkpoint.model_copy(update={"sha256": None})})
    folder = target if copy.is_dir() else target.parent
    document = relative_to(
        spec, checkpoint=target, base=carried.base, folder=folder, copied=weights if weights.is_dir() else None
    )
    place = copy / NAME if copy.is_dir() else _sidecar(copy)
    place.write_bytes(tomli_w.dumps(document).encode())
