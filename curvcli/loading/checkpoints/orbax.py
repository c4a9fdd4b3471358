"""Orbax checkpoints: their layout in a folder, and the selected arrays.

The library restores the arrays. The tree is read from the item's `_METADATA`, which is plain JSON, because the
library's listing opens every array and fails if any is damaged, even one of the optimizer.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from curvcli.errors import CurvError, DataError, NotFoundError, UsageError
from curvcli.loading.checkpoints.restoring import REPLACE, restore

UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax has not committed yet
_OWN_ITEMS = ("default", "state", "pytree")  # names that Orbax itself gives to the only item of a checkpoint
_EMPTY = ("None", "NamedTuple", "Dict", "List", "Tuple")  # kinds for which nothing is stored
_STEP = re.compile(r"(?P<prefix>(?:.*[_.-])?)(?P<step>\d+)")
_STEP_PREFIXES = ("", "checkpoint_", "ckpt_", "step_", "epoch_")  # a manager's own may be any other
_FILES = (".msgpack", ".flax", ".safetensors")  # what is taken for a checkpoint inside a folder


class Stored(NamedTuple):
    """A leaf of an item, as listed in `_METADATA`."""

    item: Path
    keys: tuple[str, ...]
    in_list: tuple[bool, ...]  # whether each key is an index into a list
    kind: str  # Orbax's name for the value: jax.Array, np.ndarray, scalar, string, None, Dict, …


def is_item(folder: Path) -> bool:
    """Whether a folder is a single tree of arrays."""
    return (folder / "_METADATA").is_file()


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint: an item, or a step folder with items in it."""
    if not folder.is_dir() or UNFINISHED in folder.name:
        return False
    return is_item(folder) or (folder / "_CHECKPOINT_METADATA").is_file() or bool(_items(folder))


def step_number(name: str) -> tuple[str, int] | None:
    """Return the prefix and the number of a step's name (`10`, `ckpt_00000010`), or None."""
    match = _STEP.fullmatch(name)
    return (match["prefix"], int(match["step"])) if match else None


def looks_damaged(folder: Path) -> bool:
    """Whether Orbax wrote to a folder that is not a valid checkpoint."""
    return (folder / "manifest.ocdbt").exists() or (folder / "commit_success.txt").exists()


def resolve(path: Path, step: int | None) -> tuple[Path, int | None]:
    """Return the file or Orbax folder to read, and its step where known."""
    if UNFINISHED in str(path):
        raise _unfinished(path)
    try:
        path.stat()
    except FileNotFoundError as error:
        raise _missing(path) from error
    if path.is_file() or is_checkpoint(path):
        if step is not None:
            raise UsageError(
                f"{path} is a single checkpoint and has no steps to choose from",
                "leave out --step, or give the folder that holds the steps",
            )
        return path, _step_of_folder(path)
    if not path.is_dir():
        raise DataError(f"{path} is neither a file nor a folder", "give a checkpoint file or folder")
    steps = find_steps(path)
    if steps:
        if step is not None and step not in steps:
            available = ", ".join(map(str, sorted(steps)[-20:]))
            raise NotFoundError(
                f"{path}: there is no step {step}",
                f"{'the latest' if len(steps) > 20 else 'available'} steps: {available}",
            )
        number = max(steps) if step is None else step
        return steps[number], number
    candidates = _candidates(path)
    if len(candidates) == 1:
        return resolve(candidates[0], step)
    if candidates:
        raise DataError(
            f"{path}: several checkpoints lie here: {', '.join(child.name for child in candidates[:10])}",
            f"give one of them, e.g. {candidates[0]}",
        )
    raise _nothing_in(path)


def find_steps(root: Path) -> dict[int, Path]:
    """Return the steps of a manager root and their paths; empty for other folders."""
    numbered = [
        (child, *parsed)
        for child in sorted(root.iterdir())
        if (parsed := step_number(child.name)) and (child.is_dir() or parsed[0] == "checkpoint_")
    ]
    prefixes = {
        prefix
        for child, prefix, _ in numbered
        if child.is_file() or (is_checkpoint(child) and (prefix in _STEP_PREFIXES or not is_item(child)))
    }
    if len(prefixes) != 1:
        return {}
    # A damaged step counts as well: skipping it silently would analyse older weights than were asked for.
    return {number: child for child, prefix, number in numbered if prefix in prefixes}


def _candidates(folder: Path) -> list[Path]:
    """Return the files and folders within a folder that could be the intended checkpoint."""
    return [
        child
        for child in sorted(folder.iterdir())
        if UNFINISHED not in child.name
        and (is_checkpoint(child) or bool(find_steps(child)) if child.is_dir() else child.suffix.lower() in _FILES)
    ]


def _step_of_folder(path: Path) -> int | None:
    """Return the step of a step folder, or of an item inside it, by the folder's name."""
    folder = path.absolute()
    if is_item(folder) and folder.name in _items(folder.parent):
        folder = folder.parent
    parsed = step_number(folder.name)
    return parsed[1] if parsed and parsed[0] in _STEP_PREFIXES else None


def _missing(path: Path) -> CurvError:
    """Return the error for a missing path, with similar names."""
    siblings: list[str] = []
    with contextlib.suppress(OSError):
        siblings = sorted(child.name for child in path.parent.iterdir())
    if any(name.startswith(path.name + UNFINISHED) for name in siblings):
        return _unfinished(path)
    close = difflib.get_close_matches(path.name, siblings, 1)
    hint = f"did you mean {path.parent / close[0]} ?" if close else "give the path of a checkpoint"
    return NotFoundError(f"{path}: no such file or folder", hint)


def _unfinished(path: Path) -> CurvError:
    """Return the error for a folder that Orbax has not committed."""
    return DataError(
        f"{path}: this Orbax checkpoint is not finished (its writer still works on it, or died)",
        "wait until it is renamed to its final name, or choose another checkpoint",
    )


def _nothing_in(folder: Path) -> CurvError:
    """Return the error for a folder without a checkpoint."""
    names = sorted(child.name for child in folder.iterdir())
    unfinished = [name for name in names if UNFINISHED in name]
    if unfinished:
        return _unfinished(folder / unfinished[0])
    if not names:
        return DataError(f"{folder}: the folder is empty", "give the folder that a checkpoint was written to")
    if looks_damaged(folder):
        return DataError(f"{folder}: a damaged Orbax checkpoint, its _METADATA is missing", REPLACE)
    arrays = [name for name in names if name.endswith(".npz")]
    return NotFoundError(
        f"{folder}: no checkpoint in this folder",
        f"give the file itself: {folder / arrays[0]}" if arrays else "give the path of a checkpoint",
    )


def _is_array(item: Path) -> bool:
    """Whether an item is a single array (`ArraySave`), not a tree."""
    return (item / "checkpoint").is_dir()


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """Read the user's metadata of the manager root, the step and the item; the innermost takes precedence."""
    metadata: dict[str, Any] = {}
    for file in (
        checkpoint.parent.parent / "metadata" / "_ROOT_METADATA",
        checkpoint.parent / "metadata" / "_ROOT_METADATA",
        checkpoint.parent / "_CHECKPOINT_METADATA",
        checkpoint / "_CHECKPOINT_METADATA",
        checkpoint / "_METADATA",
    ):
        # It only adds to what was read, so an unreadable one is left out; a FIFO would be waited for.
        with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
            if not file.is_file():
                continue
            custom = json.loads(file.read_text("utf-8")).get("custom_metadata")
            metadata.update(custom if isinstance(custom, dict) else {})
    return metadata


def read_tree(
    checkpoint: Path,
    select: Callable[[dict[str, Any]], dict[str, Any]],
    skip: Callable[[str], bool],
    placing: Callable[[tuple[int, ...]], Any] | None = None,
) -> dict[str, Any]:
    """Read the selected arrays of a checkpoint.

    Parameters
    ----------
    checkpoint
        An item, or a step folder.
    select
        Reduces a nested dict to the entries to read; it is called before any array is read.
    skip
        Whether an item of this name is ignored.
    placing
        Returns the sharding into which an array of a shape is restored; None: numpy arrays.

    Returns
    -------
    dict
        Nested, with string keys (indices for lists) and the stored leaves.
    """
    selected = select(stored_tree(checkpoint, skip))
    values: dict[Stored, Any] = {}
    leaves = list(_leaves(selected))
    for item in dict.fromkeys(leaf.item for leaf in leaves):
        values.update(_restore(item, [leaf for leaf in leaves if leaf.item == item], placing))
    return _replace(selected, values)


def stored_tree(checkpoint: Path, skip: Callable[[str], bool]) -> dict[str, Any]:
    """Return the nested dict of a checkpoint with a `Stored` at every leaf, without opening arrays."""
    if is_item(checkpoint):
        return _skeleton(checkpoint)
    _expect_items(checkpoint, skip)
    trees = {
        name: _skeleton(item) for name, item in _items(checkpoint).items() if not skip(name) and not _is_array(item)
    }
    only = next(iter(trees)) if len(trees) == 1 else None
    return trees[only] if only in _OWN_ITEMS else trees


def _items(folder: Path) -> dict[str, Path]:
    """Return the items of a step folder; a folder with the metadata of a checkpoint is not an item."""
    with_metadata = (folder / "_CHECKPOINT_METADATA").exists()
    return {
        child.name: child
        for child in sorted(folder.iterdir())
        if UNFINISHED not in child.name
        and is_item(child)
        and not (child / "_CHECKPOINT_METADATA").exists()
        and (with_metadata or not step_number(child.name))
    }


def _expect_items(step: Path, skip: Callable[[str], bool]) -> None:
    """Raise an error if a step folder lacks an item of arrays that it was written with."""
    handlers: Any = None
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        handlers = json.loads((step / "_CHECKPOINT_METADATA").read_text("utf-8")).get("item_handlers")
    names = handlers if isinstance(handlers, dict) else {}
    for name, handler in names.items():
        if re.search("PyTree|Standard", str(handler)) and not skip(name) and not is_item(step / name):
            raise DataError(
                f"{step}: the item {name!r} is damaged: its _METADATA is missing",
                REPLACE,
            )
    if not _items(step):
        raise DataError(
            f"{step}: this Orbax folder holds no tree of arrays (no item with a _METADATA file)",
            REPLACE,
        )


def _listed(item: Path) -> list[Stored]:
    """Return the leaves listed in the `_METADATA` of an item, without opening arrays."""
    try:
        entries = json.loads((item / "_METADATA").read_text("utf-8"))["tree_metadata"].values()
        leaves = [
            Stored(
                item,
                tuple(str(key["key"]) for key in entry["key_metadata"]),
                tuple(key["key_type"] == 1 for key in entry["key_metadata"]),
                str(entry["value_metadata"]["value_type"]),
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"{item / '_METADATA'}: damaged, the list of arrays cannot be decoded"
        raise DataError(message, REPLACE) from error
    # A container that was empty at first and filled by a later save is listed both ways.
    inner = {leaf.keys[:depth] for leaf in leaves for depth in range(len(leaf.keys))}
    return [leaf for leaf in leaves if leaf.keys not in inner]


def _skeleton(item: Path) -> dict[str, Any]:
    """Return the tree of an item with a `Stored` at every leaf and None where nothing is stored."""
    tree: dict[str, Any] = {}
    for leaf in _listed(item):
        node = tree
        for key in leaf.keys[:-1]:
            node = node.setdefault(key, {})
        node[leaf.keys[-1]] = None if leaf.kind in _EMPTY else leaf
    return tree


def _leaves(tree: dict[str, Any]) -> Iterator[Stored]:
    """Iterate over the stored leaves of a skeleton."""
    for value in tree.values():
        if isinstance(value, dict):
            yield from _leaves(value)
        elif value is not None:
            yield value


def _replace(tree: dict[str, Any], values: dict[Stored, Any]) -> dict[str, Any]:
    """Replace the leaves of a skeleton by their values."""
    return {
        key: _replace(value, values) if isinstance(value, dict) else values.get(value) for key, value in tree.items()
    }


def _restore(item: Path, leaves: list[Stored], placing: Any) -> dict[Stored, Any]:
    """Restore some leaves of an item; the others are not read."""
    if _is_array(item):
        raise DataError(
            f"{item}: this item is one array, not a tree of parameters",
            "give the item that holds the parameters",
        )
    keys = {leaf.keys for leaf in leaves}
    # Orbax matches a list as a whole, so one wanted member brings the others.
    lists = {leaf.keys[: leaf.in_list.index(True)] for leaf in leaves if any(leaf.in_list)}
    target = _assemble(
        [
            leaf
            for leaf in _listed(item)
            if leaf.keys in keys or any(leaf.keys[:depth] in lists for depth in range(len(leaf.keys)))
        ]
    )
    try:
        tree = restore(item, target, placing)
    except DataError:
        raise
    except Exception as error:
        if "PERMISSION_DENIED" in str(error):
            raise PermissionError(str(error)) from error
        damaged = [leaf.keys for leaf in leaves if ".".join(leaf.keys) in str(error)]
        subject = f"the array {'/'.join(max(damaged, key=len))!r}" if damaged else "an array"
        reason = str(error).split("[tensorstore_spec")[0][:200]
        raise DataError(f"{item}: {subject} cannot be read: {reason}", REPLACE) from error
    return {leaf: _value(tree, leaf) for leaf in leaves}


def _assemble(leaves: list[Stored], depth: int = 0) -> Any:
    """Build the structure of leaves, with lists as lists, from the kinds of the leaves."""
    if len(leaves) == 1 and len(leaves[0].keys) == depth:
        return leaves[0].kind
    members: dict[str, list[Stored]] = {}
    for leaf in leaves:
        members.setdefault(leaf.keys[depth], []).append(leaf)
    if leaves and leaves[0].in_list[depth]:
        return [_assemble(members[key], depth + 1) for key in sorted(members, key=int)]
    return {key: _assemble(inside, depth + 1) for key, inside in members.items()}


def _value(tree: Any, leaf: Stored) -> Any:
    """Return the value of a leaf in a restored tree."""
    for key, index in zip(leaf.keys, leaf.in_list, strict=True):
        tree = tree[int(key) if index else key]
    return tree
