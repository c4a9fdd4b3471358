"""What `curv influence` reads beside the problem: queries, groups, a change of the data, which labels are clean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from curvcli.errors import DataError, NotFoundError, SpecError, UsageError
from curvcli.loading.access import is_there, reading
from curvcli.loading.data.arrays import computed_dtype
from curvcli.loading.data.dataset import Dataset, load_dataset
from curvcli.loading.data.labels import check_mask, fit_targets
from curvcli.loading.models.network import user_code
from curvcli.loading.resolve import Loaded
from curvcli.problem import Batches, PyTree
from curvcli.schema.spec import DataSpec
from curvcli.sources import register

TEST = "test"
CLEAN = "clean"


class Queries(NamedTuple):
    """Query examples, what the report calls their source, and the row of the first."""

    batches: Batches
    source: str
    first: int


def read_queries(loaded: Loaded, rows: str) -> Queries:
    """The rows asked for, of the test split if there is one, else of the data.

    Raises
    ------
    UsageError
        There are no such rows.
    DataError
        The test split does not fit the model as the data do.
    """
    found = _test_split(loaded)
    source, batches = ("data", loaded.problem.batches) if found is None else (TEST, _fitted(loaded, found))
    first, _, last = rows.partition(":")
    count = batches.num_examples
    start = int(first or 0)
    stop = (int(last) if last else count) if ":" in rows else start + 1
    if start >= stop or stop > count:
        raise UsageError(
            f"--queries {rows}: the {'test split has' if found else 'data have'} the rows 0 to {count - 1}",
            f"for example --queries 0:{min(count, 10)}",
        )
    return Queries(batches.chosen(np.arange(start, stop)), source, start)


def _test_split(loaded: Loaded) -> Dataset | None:
    """The test split, where the source has one that is not what is analysed."""
    spec = loaded.spec.data
    if spec.split == TEST or not spec.path or _is_function(loaded, spec.path):
        return None
    wanted = spec.model_copy(update={"split": TEST, "sha256": None})
    try:
        return _load(loaded, wanted)
    except (SpecError, NotFoundError) as error:
        try:
            _load(loaded, wanted.model_copy(update={"targets": spec.inputs, "mask": None}))
        except (SpecError, NotFoundError):
            return None
        raise DataError(f"the test split is not complete: {error.message}", "give it all that the data have") from error


def _is_function(loaded: Loaded, path: str) -> bool:
    return ":" in path and not is_there(loaded.targets.base / path)


def _load(loaded: Loaded, spec: DataSpec) -> Dataset:
    return load_dataset(spec, base=loaded.targets.base, call_target=loaded.targets.load)


def _fitted(loaded: Loaded, found: Dataset) -> Batches:
    """The split with its labels and mask in the form of the problem's own."""
    problem, train = loaded.problem, loaded.problem.batches
    inputs = _named_alike(found.inputs, train.inputs, loaded.spec.data.split)
    for theirs, ours in zip(jax.tree.leaves(inputs), jax.tree.leaves(train.inputs), strict=True):
        if theirs.shape[1:] != ours.shape[1:] or theirs.dtype.kind != ours.dtype.kind:
            raise DataError(
                f"the inputs of the test split are {theirs.dtype}{list(theirs.shape[1:])} each, those of the data "
                f"{ours.dtype}{list(ours.shape[1:])}",
                "write both splits alike",
            )
        computed_dtype("inputs of the test split", theirs, problem.dtype)
    labels = found.targets
    computed_dtype("targets of the test split", labels, problem.dtype)
    if labels.ndim == 1 and loaded.outputs.shape[1:] == (1,) and train.targets.ndim == 2:
        labels = labels[:, None]
    labels, mask = fit_targets(problem.loss, loaded.outputs, labels, found.mask, loaded.spec.loss.ignore_label)
    if not problem.loss.known:  # `fit_targets` knows the units of the losses of the table
        check_mask(mask, train.weight.shape[1:])
    weight = np.ones(found.num_examples, train.weight.dtype)
    weight = weight if mask is None else np.asarray(mask, train.weight.dtype)
    return Batches(inputs, labels, weight, min(train.batch_size, found.num_examples), train.cast, train.mesh)


def _named_alike(inputs: PyTree, train: PyTree, split: str | None) -> PyTree:
    """Several inputs under the names that the model knows: `left_test` is its `left`, or its `left_train`."""
    if not isinstance(train, dict):
        return inputs
    stems = {name.removesuffix(f"_{TEST}"): leaf for name, leaf in inputs.items()}
    ours = {name: name.removesuffix(f"_{split}") if split else name for name in train}
    if set(stems) != set(ours.values()):
        raise DataError(
            f"the test split has the inputs {', '.join(sorted(inputs))}, the data {', '.join(sorted(train))}",
            "write both splits alike",
        )
    return {name: stems[stem] for name, stem in ours.items()}


def read_clean(loaded: Loaded) -> np.ndarray | None:
    """The array `clean` beside the data, whether each example's label is right: [N] bool; None where there is none.

    Raises
    ------
    DataError
        It is not one number an example.
    """
    spec = loaded.spec.data
    if not spec.path or _is_function(loaded, spec.path):
        return None
    try:
        found = _load(loaded, DataSpec(path=spec.path, inputs=CLEAN, targets=CLEAN, split=spec.split))
    except (SpecError, NotFoundError):
        return None
    clean, count = np.asarray(found.targets), loaded.problem.batches.num_examples
    if clean.ndim != 1 or len(clean) < count:
        raise DataError(f"`clean` has the shape {list(clean.shape)}", "give one true or false for each example")
    return clean[:count].astype(bool)


def read_groups(path: Path, count: int) -> np.ndarray:
    """The group of each example, [N] texts: an array of .npy or .npz (its only one, or `group`), or a line each.

    Raises
    ------
    NotFoundError
        There is no such file.
    DataError
        There is not one label for each example.
    """
    if path.suffix in (".npy", ".npz"):
        labels = _array(path, "group")
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    else:
        labels = np.array(_text(path).split("\n"))
        labels = labels[:-1] if len(labels) and labels[-1] == "" else labels
    if labels.ndim != 1 or len(labels) != count:
        raise DataError(
            f"{path}: {list(labels.shape)} group labels for {count} examples",
            "give one for each, in order",
        )
    return np.array([str(label).strip() for label in labels.tolist()])


def _text(path: Path) -> str:
    if not is_there(path, file=True):
        raise NotFoundError(f"no file {path}", "give an .npy or .npz file, or text with one label a line")
    register(path, "a file of labels")
    with reading(f"{path}: not UTF-8 text"):
        return path.read_text(encoding="utf-8")


def read_change(path: Path, loaded: Loaded, mode: str) -> PyTree:
    """A change Δ of weights [N] (or [N, T]), labels or inputs, in the shape of what it changes.

    Raises
    ------
    NotFoundError
        There is no such file.
    DataError
        A shape does not fit, or a number is not finite.
    """
    problem, batches = loaded.problem, loaded.problem.batches
    count = batches.num_examples
    if mode == "input-perturb" and isinstance(batches.inputs, dict):
        return {name: _fit(path, _array(path, name), leaf.shape) for name, leaf in batches.inputs.items()}
    change = _array(path, {"remove": "weight", "label-perturb": "label", "input-perturb": "input"}[mode])
    if mode == "remove":
        return _fit(path, change, batches.weight.shape if change.ndim > 1 else (count,))
    if mode == "input-perturb":
        return _fit(path, change, batches.inputs.shape)
    shape = (count, *loaded.outputs.shape[1:]) if problem.loss.known else batches.targets.shape
    return _fit(path, change[:, None] if shape == (count, 1) and change.ndim == 1 else change, shape)


def _fit(path: Path, change: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if change.shape != tuple(shape):
        raise DataError(
            f"{path}: the change has the shape {list(change.shape)}, what it changes {list(shape)}",
            "give a number for each, 0 where nothing changes",
        )
    if change.dtype.kind not in "biuf" or not np.all(np.isfinite(change)):
        raise DataError(f"{path}: the change is not finite numbers", "give finite numbers")
    return np.asarray(change, np.float64)


def _array(path: Path, name: str) -> np.ndarray:
    """The array of an .npy file; of an .npz the one of this name, or its only one."""
    if not is_there(path, file=True):
        raise NotFoundError(f"no file {path}", "give an .npy or .npz file")
    register(path, "a file of arrays")
    with reading(f"{path}: no array"), path.open("rb") as stream:
        found = np.load(stream, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found as archive:
            if name in archive.files:
                return archive[name]
            if len(archive.files) == 1:
                return archive[archive.files[0]]
            names = archive.files
    raise DataError(f"{path}: no array {name!r}; there are {', '.join(names) or 'none'}", f"name one of them {name}")


def hyper_functions(loaded: Loaded, texts: list[str]) -> dict[str, Callable[..., Any]]:
    """The user's functions of `--hyper loss:TARGET` and `regulariser:TARGET`, by text.

    Raises
    ------
    SpecError
        A target is no function.
    """
    found = {}
    for text in texts:
        kind, separator, target = text.partition(":")
        if not separator:
            continue
        function: Callable[..., Any] = loaded.targets.load(target)
        form = "fn(outputs, targets, theta)" if kind == "loss" else "fn(params, theta)"
        if not callable(function):
            raise SpecError(f"--hyper {text}: {target} is no function", f"it should be {form}")
        if kind == "loss":
            function = loaded.problem.loss.adapt(function)
        _try_out(loaded, text, kind, form, function)
        found[text] = function
    return found


def _try_out(loaded: Loaded, text: str, kind: str, form: str, function: Callable[..., Any]) -> None:
    """Call it on shapes alone: it returns what the loss, or a regulariser, does."""
    problem = loaded.problem
    theta = jax.ShapeDtypeStruct((), problem.dtype)
    if kind == "loss":
        batch = next(iter(problem.batches.resized(1)))
        outputs = jax.ShapeDtypeStruct((1, *loaded.outputs.shape[1:]), problem.dtype)
        wanted = jax.eval_shape(problem.loss.value, outputs, batch.targets).shape
        given = (outputs, batch.targets, theta)
    else:
        wanted, given = (), (problem.nest({**problem.frozen["params"], **problem.params}), theta)
    made = user_code(f"--hyper {text}", jax.eval_shape, function, *given)
    if getattr(made, "shape", None) != wanted:
        what = f"shape {list(made.shape)}" if hasattr(made, "shape") else f"a {type(made).__name__}"
        raise SpecError(
            f"--hyper {text} returns {what}, not shape {list(wanted)}",
            f"it should be {form} -> what {'the loss' if kind == 'loss' else 'a regulariser'} returns",
        )
