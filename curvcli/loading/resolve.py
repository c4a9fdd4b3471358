"""A specification and its files become a problem; whatever does not fit is named."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.devices import mesh_of, parameter_sharding
from curvcli.errors import DataError, NotFoundError, SpecError, UsageError
from curvcli.loading.access import is_there
from curvcli.loading.checkpoints.reading import Checkpoint, find_params, load_checkpoint
from curvcli.loading.checkpoints.trees import flatten_tree
from curvcli.loading.data.arrays import computed_dtype
from curvcli.loading.data.dataset import Dataset, load_dataset
from curvcli.loading.data.labels import check_mask, fit_targets, row_remarks
from curvcli.loading.models.batch_norm import in_training_mode, whole_batches
from curvcli.loading.models.loss import check_likelihood, named_loss, of_single_outputs, summed_over_outputs, unit_shape
from curvcli.loading.models.network import Network, make_network, user_code
from curvcli.loading.spec.files import NAME, FoundSpec, pinned, settings_from
from curvcli.loading.spec.targets import Targets
from curvcli.losses import Loss
from curvcli.problem import Batches, Params, Problem, Regulariser, spread
from curvcli.schema.report import CheckpointRecord, DataRecord
from curvcli.schema.settings import DataSettings
from curvcli.schema.spec import ProblemSpec

PROVISIONAL_BATCH = 64


@dataclass(frozen=True)
class Loaded:
    """A problem and the record of what it was made from.

    Parameters
    ----------
    problem
        With a provisional batch size; the plan of an analysis sets it.
    spec
        As resolved.
    checkpoint, data
        What was read.
    stored_dtypes
        Of every parameter, by path.
    outputs
        Shape and dtype of the model's outputs for one batch.
    warnings
        What the user should know and no error is.
    targets
        Imports what the user names.
    spec_file
        The curv.toml that was read.
    settings_from
        Where each setting of `spec` comes from: a file, `flag`, `environment` or `default`.
    """

    problem: Problem
    spec: ProblemSpec
    checkpoint: CheckpointRecord
    data: DataRecord
    stored_dtypes: dict[str, str]
    outputs: jax.ShapeDtypeStruct
    warnings: list[str]
    targets: Targets
    spec_file: str | None = None
    settings_from: Mapping[str, str] = field(default_factory=dict)


def load_problem(
    spec: ProblemSpec,
    found: FoundSpec,
    checkpoint: Path,
    settings: DataSettings,
    *,
    step: int | None,
    trust: bool,
    overridden: Mapping[str, str] | None = None,
) -> Loaded:
    """Read everything that a specification names and fit it together.

    Parameters
    ----------
    spec, found
        The specification, and where it came from: its paths are relative to that file.
    checkpoint
        The file or folder with the weights.
    settings
        Which parameters and how many examples, in which arithmetic.
    step
        Of a checkpoint manager's root; None for the latest.
    trust
        Whether the code that `found` names may run.
    overridden
        The settings that lie over `found`, and where they come from.

    Raises
    ------
    CurvError
        Of the class that fits what is wrong.
    """
    origins = settings_from(spec, found, overridden or {})
    # What the command line names may run, also over a file that is not trusted.
    named = frozenset(
        str(found.values[table][key])
        for table, key in (setting.split(".", 1) for setting, origin in origins.items() if origin == found.origin)
        if key in found.values.get(table, {})
    )
    targets = Targets(found.base, found.trusted or trust, found.origin, named, found.carried)
    for table, key, value in (
        ("model", "target", spec.model.target), ("data", "path", spec.data.path), ("loss", "name", spec.loss.name)
    ):  # fmt: skip
        if not value:
            raise SpecError(
                f"no {table} is given",
                found.passed_over or f"use --{table}, or [{table}] {key} in curv.toml (curv init writes one)",
            )
    spec = pinned(spec, found, checkpoint)
    cut = _parameter_cut(settings)
    stored = load_checkpoint(checkpoint, step=step, params=spec.checkpoint.params, placing=cut)
    if spec.checkpoint.sha256 and spec.checkpoint.sha256 != stored.sha256:
        raise DataError(
            f"{checkpoint} is not what curv.toml was written for: its digest is {stored.sha256[:12]}…",
            "the file changed or is damaged; remove [checkpoint] sha256 if the change was meant",
        )
    targets.check_path(spec.data.path or "")
    data = load_dataset(spec.data, base=found.base, call_target=targets.load, num_examples=settings.num_examples)
    loaded = fitted(spec, targets, stored, data, settings)
    return replace(loaded, spec_file=found.origin if found.values else None, settings_from=origins)


def fitted(spec: ProblemSpec, targets: Any, stored: Checkpoint, data: Dataset, settings: DataSettings) -> Loaded:
    """Weights and data that have been read, fitted together with model and loss.

    Parameters
    ----------
    targets
        Has what the specification names: `load(name)`.

    Raises
    ------
    CurvError
        Of the class that fits what is wrong.
    """
    dtype = np.dtype(settings.dtype)
    coupled, told = settings.batch_norm == "batch", []
    size = min(settings.batch_size or data.num_examples, data.num_examples)
    if coupled:
        data, told = whole_batches(data, size)
    inputs = jax.tree.map(lambda array: _batch_of("inputs", array, dtype), data.inputs)
    network = _network(spec, targets, stored, inputs)
    network = in_training_mode(network) if coupled else network
    params, fixed = _choose(network.params, settings)
    problem, outputs, warnings = _assemble(spec, targets, network, params, fixed, data, dtype, inputs)
    if coupled:
        batches = replace(problem.batches, batch_size=size, coupled=True)
        problem, warnings = replace(problem, batches=batches), [*warnings, *told]
    if (mesh := mesh_of(settings.devices)) is not None:
        problem = spread(problem, mesh, shard_params=settings.shard_params)
    return Loaded(
        problem,
        spec,
        CheckpointRecord(path=str(stored.path), format=stored.format, step=stored.step, sha256=stored.sha256),
        DataRecord(
            path=data.path,
            num_examples=data.num_examples,
            sha256=data.sha256,
            subsampled=problem.subsampled,
            population=data.total,
        ),
        {path: str(leaf.dtype) for path, leaf in network.params.items()},
        outputs,
        warnings,
        targets,
    )


def _parameter_cut(settings: DataSettings) -> Callable[[tuple[int, ...]], Any] | None:
    """Where a parameter of a shape is to lie, if it is to be cut."""
    mesh = mesh_of(settings.devices) if settings.shard_params else None
    return None if mesh is None else partial(parameter_sharding, mesh)


def functions_of(problem: Problem) -> dict[str, Any]:
    """The functions of a problem: given to another of the same form, what was compiled for one serves both."""
    return {name: getattr(problem, name) for name in ("predict", "nest", "loss", "regulariser", "statistics")}


def _batch_of(what: str, array: Any, dtype: np.dtype) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one array for a batch."""
    return jax.ShapeDtypeStruct(
        (min(PROVISIONAL_BATCH, len(array)), *array.shape[1:]), computed_dtype(what, array, dtype)
    )


def _network(spec: ProblemSpec, targets: Targets, stored: Checkpoint, inputs: Any) -> Network:
    """The model bound to the checkpoint's arrays, shape by shape."""
    assert spec.model.target is not None
    params, rest = find_params(stored.tree, spec.checkpoint.params)
    network = make_network(spec.model, targets.load(spec.model.target), params, rest, inputs)
    if network.expected is not None:
        _compare({**network.params, **flatten_tree(network.collections)}, network.expected)
    return network


def _compare(stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every parameter of the model is in the checkpoint, in its shape and kind of number, and none is left over."""
    hint = "check --model and --model-arg (and [checkpoint] params) against how the checkpoint was trained"
    problems = []
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            near = difflib.get_close_matches(name, stored, 1)
            problems.append(
                f"{name} {list(expected[name].shape)} is missing" + (f" (there is {near[0]})" if near else "")
            )
        elif name not in expected:
            problems.append(f"{name} {list(stored[name].shape)} is not the model's")
        elif tuple(stored[name].shape) != tuple(expected[name].shape):
            problems.append(f"{name} is {list(stored[name].shape)}, the model has {list(expected[name].shape)}")
        elif _kind(stored[name]) != _kind(expected[name]):  # float16 for float32 is how weights are stored
            problems.append(f"{name} holds {stored[name].dtype}, the model has {expected[name].dtype}")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise DataError("checkpoint and model differ: " + "; ".join(problems[:4]) + more, hint)


def _kind(leaf: Any) -> Any:
    """Whether it holds real numbers, complex ones, integers or truth values."""
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer)
    return next((kind for kind in kinds if jnp.issubdtype(leaf.dtype, kind)), leaf.dtype)


def _choose(params: dict[str, Any], settings: DataSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters to differentiate, by the globs of `--params` and `--exclude`, and the others."""

    def matches(globs: list[str]) -> set[str]:
        found = set()
        for glob in globs:
            hits = {name for name in params if fnmatch.fnmatchcase(name, glob)}
            if not hits:
                raise UsageError(
                    f"no parameter matches {glob!r}", f"the parameters are: {', '.join(sorted(params)[:12])}"
                )
            found |= hits
        return found

    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size for leaf in params.values()):
        raise DataError(
            "the checkpoint holds no real numbers to differentiate by: its parameters are integers",
            "name the subtree of the weights: [checkpoint] params",
        )
    chosen = matches(settings.params) if settings.params else set(params)
    chosen -= matches(settings.exclude)
    chosen = {name for name in chosen if jnp.issubdtype(params[name].dtype, jnp.floating) and params[name].size}
    odd = [name for name in sorted(params) if jnp.issubdtype(params[name].dtype, jnp.complexfloating)]
    if odd:
        raise SpecError(
            f"the parameter {odd[0]} is complex", "its real and imaginary part must be parameters of their own"
        )
    if not chosen:
        raise UsageError("no floating parameter is left to differentiate", "loosen --params and --exclude")
    return {n: params[n] for n in sorted(chosen)}, {n: params[n] for n in sorted(set(params) - chosen)}


def _assemble(
    spec: ProblemSpec,
    targets: Targets,
    network: Network,
    params: dict[str, Any],
    fixed: dict[str, Any],
    data: Dataset,
    dtype: np.dtype,
    inputs: Any,
) -> tuple[Problem, jax.ShapeDtypeStruct, list[str]]:
    """Outputs, loss, targets, mask and normaliser fitted together."""
    arrays: Params = _cast(params, dtype)
    frozen = {"params": _cast(fixed, dtype), "collections": _cast(network.collections, dtype)}
    loss, predict, labels = named_loss(spec, targets), _predict(network.call), data.targets
    outputs = user_code("the model", jax.eval_shape, predict, arrays, frozen, inputs)
    if outputs.ndim == 1 and loss.known:
        # One output without an axis of its own: the losses of the table want one, [b, 1], and so for the targets.
        predict = _with_last_axis(predict)
        outputs = jax.ShapeDtypeStruct((*outputs.shape, 1), outputs.dtype)
        labels = labels[:, None] if labels.ndim == 1 else labels
    elif data.tabular and labels.ndim == 1 and outputs.shape[1:] == (1,) and loss.known:
        # A column of a table cannot say whether it is [N] or [N, 1]; arrays can, and are taken at their word.
        labels = labels[:, None]
    labels, mask = fit_targets(loss, outputs, labels, data.mask, spec.loss.ignore_label)
    weight = np.ones(data.num_examples, dtype) if mask is None else np.asarray(mask, dtype)
    units = unit_shape(loss, outputs, _batch_of("targets", labels, outputs.dtype))
    if not loss.known and outputs.ndim > 1 and units == outputs.shape:
        # A number for each output: those of an example, or of a token, are one loss, unless each has a weight.
        if mask is not None and mask.ndim == len(units):
            loss, predict = of_single_outputs(loss), _with_last_axis(predict)
            outputs = jax.ShapeDtypeStruct((*outputs.shape, 1), outputs.dtype)
        else:
            loss, units = summed_over_outputs(loss), units[:-1]
    check_mask(mask, units[1:])
    check_likelihood(loss, outputs, labels, weight.shape)
    if not weight.any():
        raise DataError(
            "no example is left: ignore_label, mask and targets of zeros leave all out", "check [loss] ignore_label"
        )
    regulariser = Regulariser(spec.loss.l2, targets.load(spec.loss.regulariser) if spec.loss.regulariser else None)
    problem = Problem(
        arrays, frozen, predict, network.nest, loss,
        Batches(data.inputs, labels, weight, min(PROVISIONAL_BATCH, data.num_examples), dtype),
        _normaliser(spec.loss.reduction, weight, units), regulariser, data.total, statistics=network.statistics,
    )  # fmt: skip
    if regulariser.fn is not None:
        value = user_code(
            "the regulariser", jax.eval_shape, regulariser.fn, network.nest({**frozen["params"], **arrays})
        )
        if getattr(value, "shape", None) != ():
            raise SpecError(f"the regulariser {spec.loss.regulariser} does not return one number", "return a scalar")
    return problem, outputs, _remarks(spec, data, loss, problem)


def _cast(tree: Any, dtype: np.dtype) -> Any:
    """The stored numbers in the arithmetic of the analysis.

    Raises
    ------
    DataError
        One becomes infinite by it.
    """

    def one(path: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(leaf)
        with np.errstate(over="ignore"):
            made = leaf.astype(dtype)
        if leaf.dtype.itemsize > dtype.itemsize and np.any(np.isinf(made) & np.isfinite(leaf)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise DataError(f"a number of '{name}' does not fit {dtype.name}", "use --dtype float64")
        return jnp.asarray(made)

    return jax.tree_util.tree_map_with_path(one, tree)


def _predict(call: Callable[..., Any]) -> Callable[..., Any]:
    """The network's call on differentiated and frozen parameters, its outputs an array with b rows."""

    def predict(params: Params, frozen: dict[str, Any], inputs: Any) -> Any:
        outputs = call({**frozen["params"], **params}, frozen["collections"], inputs)
        if not hasattr(outputs, "shape") or not jnp.issubdtype(outputs.dtype, jnp.floating):
            kind = f"{outputs.dtype} outputs" if hasattr(outputs, "dtype") else f"a {type(outputs).__name__}"
            raise SpecError(
                f"the model returns {kind}, not an array of floating outputs",
                "name a function that returns the outputs (logits) alone, with --kind apply",
            )
        if outputs.ndim == 0 or outputs.shape[0] != jax.tree.leaves(inputs)[0].shape[0]:
            raise SpecError(
                f"the model returns shape {list(outputs.shape)}, without an axis of examples in front",
                "the outputs must be [batch, …], one row for each example",
            )
        dtype = next(iter(params.values())).dtype
        return outputs.astype(dtype)  # a model that computes in bfloat16 still has its loss in full precision

    return predict


def _with_last_axis(predict: Callable[..., Any]) -> Callable[..., Any]:
    """Outputs [b] as [b, 1], [b, T] as [b, T, 1]."""
    return lambda params, frozen, inputs: predict(params, frozen, inputs)[..., None]


def _normaliser(reduction: str, weight: np.ndarray, units: tuple[int, ...]) -> float:
    """M: examples with any weight, 1, or the sum of the tokens' weights."""
    if reduction == "sum":
        return 1.0
    if reduction == "tokens":
        return float(np.sum(weight, dtype=np.float64)) * float(np.prod(units[weight.ndim :]))
    return float(np.sum(np.any(weight.reshape(len(weight), -1) > 0, axis=1)))


def _remarks(spec: ProblemSpec, data: Dataset, loss: Loss, problem: Problem) -> list[str]:
    """What is no error, but rarely meant."""
    remarks = []
    if any(array.dtype == np.uint8 and array.ndim > 2 for array in jax.tree.leaves(data.inputs)):
        remarks.append("the inputs are uint8 and reach the model unscaled, as 0 … 255")
    if loss.known and spec.loss.likelihood not in (None, loss.name):
        remarks.append(f"[loss] likelihood is not used: {loss.name} is its own")
    labels, weight = problem.batches.targets, problem.batches.weight
    if loss.classes and np.issubdtype(labels.dtype, np.floating):
        remarks += row_remarks(labels, weight)
    if loss.classes and np.issubdtype(labels.dtype, np.integer) and len(labels) > 1:
        first = np.asarray(labels[: 1 << 16])
        first = first[first >= 0]
        if len(labels) <= 1 << 16 and len(first) and first.min() == first.max():
            remarks.append(f"every label is {int(first.min())}: is this the right targets array?")
    return remarks


def checkpoint_path(argument: str | None, spec: ProblemSpec | None, base: Path, passed_over: str = "") -> Path:
    """The checkpoint given, or the one that the specification names; `passed_over` is the hint where neither is there.

    Raises
    ------
    UsageError
        Neither is there.
    """
    if argument is not None:
        path = Path(argument)
        if not is_there(path):
            near = difflib.get_close_matches(path.name, _neighbours(path), 1)
            hint = f"did you mean {path.parent / near[0]}?" if near else "check the path"
            raise NotFoundError(f"no checkpoint {path}", hint)
        return path
    if spec is not None and (spec.checkpoint.path is not None or (base / NAME).is_file()):
        return base / (spec.checkpoint.path or ".")
    raise UsageError(
        "no checkpoint is given",
        passed_over or "name one: curv spectrum CKPT, or write a curv.toml with: curv init CKPT",
    )


def _neighbours(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []
