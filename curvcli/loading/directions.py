"""Directions from files and the user's code: the difference to another checkpoint, a saved array, the tangent of a
transformation. Errors name what does not fit the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.compiling import jit
from curvcli.errors import DataError, NotFoundError, SpecError
from curvcli.loading.access import is_there, reading
from curvcli.loading.checkpoints.reading import find_params, load_checkpoint
from curvcli.loading.checkpoints.trees import flatten_tree
from curvcli.loading.data.arrays import check_dtype
from curvcli.loading.models.network import user_code
from curvcli.loading.resolve import Loaded, checkpoint_path
from curvcli.loading.spec.targets import Targets
from curvcli.problem import Params
from curvcli.schema.lines import FROM_FILES, Along
from curvcli.sources import register

Leaves = dict[str, Any]


class Outside(NamedTuple):
    """Directions and batch statistics from outside the problem, by the text of `--along`."""

    vectors: dict[str, Params]  # float64, of the differentiated parameters' shapes
    statistics: dict[str, Leaves]  # other checkpoints' batch statistics by path, float64: those of their own runs
    warnings: list[str]


def read_directions(along: list[str], loaded: Loaded) -> Outside:
    """Read the directions that come from files or the user's code.

    Parameters
    ----------
    along
        The texts of `--along`; directions that the problem defines are ignored.

    Raises
    ------
    NotFoundError
        A file is missing.
    DataError
        An array is missing, not finite or of another shape, or the vector is zero.
    SpecError
        The user's transformation fails, or is not the identity at s = 0.
    """
    outside = Outside({}, {}, [])
    readers: dict[str, Callable[[str, Loaded, Outside], Leaves]] = {
        "checkpoint": _to_checkpoint, "array": _saved, "tangent": _tangent
    }  # fmt: skip
    for text in dict.fromkeys(along):
        kind, argument = Along.parse(text)
        if kind in FROM_FILES:
            leaves = readers[kind](argument, loaded, outside)
            outside.vectors[text] = _checked(text, leaves, loaded.problem.params)
    return outside


def _checked(text: str, leaves: Leaves, params: Params) -> Params:
    """Check that a direction has an array for each parameter, of its shape, finite, and not all zero."""
    vector = {}
    for name, weight in params.items():
        if name not in leaves:
            raise DataError(f"{text}: there is no {name!r}", f"it has: {', '.join(sorted(leaves)[:8]) or 'no arrays'}")
        check_dtype(f"{text}: {name!r}", np.asarray(leaves[name]).dtype)
        leaf = np.asarray(leaves[name], np.float64)
        if leaf.shape != weight.shape:
            raise DataError(
                f"{text}: {name!r} is {list(leaf.shape)}, the weights are {list(weight.shape)}",
                "the direction must come from the same model",
            )
        if not np.all(np.isfinite(leaf)):
            raise DataError(f"{text}: {name!r} is not finite", "choose a vector without NaN and infinities")
        vector[name] = leaf
    if not any(np.any(leaf) for leaf in vector.values()):
        raise DataError(
            f"{text}: the direction is zero",
            "the weights are the same in both" if text.startswith("checkpoint:") else "give a vector that is not zero",
        )
    return vector


def _to_checkpoint(argument: str, loaded: Loaded, outside: Outside) -> Leaves:
    """Return the difference to another checkpoint's parameters, and record its batch statistics if complete."""
    path, step = argument, None
    head, separator, tail = argument.rpartition("@")
    if separator and _is_count(tail) and not is_there(Path(argument)):
        path, step = head, int(tail)
    chosen = loaded.spec.checkpoint.params
    tree = load_checkpoint(checkpoint_path(path, None, Path.cwd()), step=step, params=chosen).tree
    params, rest = find_params(tree, chosen)
    theirs = {**flatten_tree(rest), **flatten_tree(params)}
    for collection in rest.values():  # as the paths of an nnx model have it
        theirs.update(flatten_tree(collection))
    fixed, ours = flatten_tree(loaded.problem.frozen["collections"]), loaded.problem.statistics
    names = () if ours is None else ours.names
    if names and all(name in theirs and np.shape(theirs[name]) == fixed[name].shape for name in names):
        outside.statistics[f"checkpoint:{argument}"] = {
            name: np.asarray(theirs[name]).astype(np.float64) for name in names
        }
    changed = [
        name for name, leaf in fixed.items() if name not in names and name in theirs and not _equal(theirs[name], leaf)
    ]
    if changed:
        outside.warnings.append(
            f"checkpoint:{argument} has other {changed[0].partition('/')[0]}, which are held at this checkpoint's "
            "values: the loss at s = 1 is not the one that the other checkpoint has by itself"
        )
    return {
        name: np.asarray(theirs[name]).astype(np.float64) - np.asarray(weight, np.float64)
        if np.shape(theirs[name]) == weight.shape
        else theirs[name]
        for name, weight in loaded.problem.params.items()
        if name in theirs
    }


def _is_count(text: str) -> bool:
    """Whether a text is a whole number of plausible size for rows or steps."""
    return text.isdecimal() and len(text) < 20


def _equal(theirs: Any, ours: Any) -> bool:
    return bool(np.array_equal(np.asarray(theirs).astype(ours.dtype), np.asarray(ours)))


def _saved(argument: str, loaded: Loaded, outside: Outside) -> Leaves:
    """Read arrays by parameter path, as `curv diag --arrays` writes them, or a row of those of `--vectors`."""
    path, row = argument, None
    head, separator, tail = argument.rpartition("#")
    if separator and _is_count(tail) and not is_there(Path(argument)):
        path, row = head, int(tail)
    arrays = read_arrays(Path(path))
    rows = {name.removeprefix("vectors/"): leaf for name, leaf in arrays.items() if name.startswith("vectors/")}
    if not rows:
        if row is not None:
            raise DataError(f"array:{argument}: {path} holds one vector, no rows", f"use array:{path}")
        return arrays
    counts = {len(leaf) if leaf.ndim else 0 for leaf in rows.values()}
    count = counts.pop()
    if counts or not count:
        raise DataError(f"array:{argument}: the arrays of vectors have different numbers of rows", "write them anew")
    if row is None and count > 1:
        raise DataError(f"array:{argument}: {path} holds {count} vectors", f"say which: array:{path}#1 … #{count}")
    index = 1 if row is None else row
    if not 1 <= index <= count:
        raise DataError(f"array:{argument}: {path} has the vectors 1 … {count}", f"use array:{path}#1")
    return {name: leaf[index - 1] for name, leaf in rows.items()}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz or .safetensors file.

    Raises
    ------
    NotFoundError, PermissionDeniedError, DataError
        The file is missing, may not be read, or has another format.
    """
    if not is_there(path, file=True):
        raise NotFoundError(f"no array file {path}", "give an .npz or .safetensors file with arrays by parameter path")
    register(path, "a file of arrays")
    with reading(f"{path}: no file of arrays"):
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _tangent(argument: str, loaded: Loaded, outside: Outside) -> Leaves:
    """Return d/ds T(params, s) at s = 0 of the user's transformation T."""
    transform = Targets(Path.cwd(), True, "the command line").load(argument)
    if not callable(transform):
        raise SpecError(f"tangent:{argument} is no function", "it should be T(params, s) -> params")
    problem = loaded.problem
    everything = {**problem.frozen["params"], **problem.params}
    nested = problem.nest(everything)
    zero = jnp.zeros((), problem.dtype)

    def at_identity(nested: Any, zero: Any) -> tuple[Any, Any]:
        return jax.jvp(lambda s: transform(nested, s), (zero,), (jnp.ones_like(zero),))

    value, tangent = user_code(f"the transformation {argument}", jit(at_identity), nested, zero)
    value, tangent = flatten_tree(value), flatten_tree(tangent)
    for name, weight in everything.items():
        if name not in value or np.shape(value[name]) != weight.shape:
            raise SpecError(
                f"T(params, s) of {argument} returns no {name!r} of shape {list(weight.shape)}",
                "return parameters of the form they came in, those that do not move too",
            )
        if not jnp.issubdtype(weight.dtype, jnp.floating):
            continue
        scale = float(jnp.max(jnp.abs(weight), initial=0))
        if not float(jnp.max(jnp.abs(value[name] - weight), initial=0)) <= 100 * jnp.finfo(problem.dtype).eps * scale:
            raise SpecError(
                f"T(params, 0) of {argument} is not the identity: it changes {name!r}",
                "T(params, s) must give the parameters back at s = 0",
            )
    moved = [n for n, w in problem.frozen["params"].items() if w.dtype == problem.dtype and np.any(tangent[n])]
    if moved:
        outside.warnings.append(
            f"tangent:{argument} moves {moved[0]} too, which is held fixed: its part outside is left out"
        )
    return tangent
