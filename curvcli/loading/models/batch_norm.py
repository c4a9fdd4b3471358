"""Calls in training mode without dropout: each BatchNorm normalises by the batch, and returns its moments.

BatchNorm layers of Flax are recognised by their class and switched, whatever arguments the model passes to them. Where
statistics belong to other layers, training mode is set by the arguments of the call (`train`, `training`,
`is_training`, `use_running_average`). Dropout layers return their inputs in both cases.

A running average is r ← m r + (1 − m) s with the moments s of the batch. In the layers of Flax m is set to 0, so that
the call writes s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from curvcli.errors import SpecError, UsageError
from curvcli.loading.data.dataset import Dataset
from curvcli.problem import BatchStatistics

PyTree = Any
Flat = dict[str, Any]
Arguments = Mapping[str, bool]
Call = Callable[[Flat, PyTree, PyTree, Arguments], tuple[Any, Flat]]
"""`(params by path, collections, inputs, arguments) -> (outputs, statistics as the call leaves them, by path)`."""

TRAINING = {"train": True, "training": True, "is_training": True, "use_running_average": False, "deterministic": True}
"""Arguments of a model's call that select batch statistics without dropout."""

SWITCHED = {"use_running_average": False, "momentum": 0.0, "axis_name": None}
"""Attributes of a BatchNorm in training mode. A program has the whole batch, so there is no axis of devices."""


def statistics_of(names: list[str], call: Call, arguments: Callable[[], Arguments], shapes: Any) -> BatchStatistics:
    """Return the batch statistics of a network, with its call in training mode.

    Parameters
    ----------
    names
        Paths of the statistics.
    call
        The network with its BatchNorm and Dropout layers switched.
    arguments
        Returns the arguments of the call for evaluation.
    shapes
        Shapes and dtypes of `(params by path, collections, inputs)`.
    """

    @functools.cache
    def chosen() -> Arguments:
        """Return the arguments with which most statistics are written. Cost: one or two traces, no computation."""
        evaluation, most, reason = arguments(), 0, "it leaves the statistics as they are"
        best: Arguments | None = None
        for candidate in (evaluation, {name: TRAINING[name] for name in evaluation}):
            try:
                count = _count_written(call, candidate, names, *shapes)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a model may raise anything
                reason = f"it fails: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
                continue
            if count > most:
                best, most = candidate, count
        if best is None:
            raise SpecError(
                f"the model has no call in training mode without dropout: {reason}",
                "give its call an argument train, or use --batch-norm fixed and --batch-stats fixed",
            )
        return best

    def training(params: Flat, collections: PyTree, inputs: PyTree) -> tuple[Any, Flat]:
        outputs, updated = call(params, collections, inputs, chosen())
        return outputs, {name: updated[name] for name in names}

    return BatchStatistics(tuple(names), training)


def in_training_mode(network: Any) -> Any:
    """Return a `Network` whose call normalises each batch by its own statistics, without dropout.

    Raises
    ------
    UsageError
        The network has no batch statistics.
    """
    statistics = network.statistics
    if statistics is None:
        raise UsageError(
            "--batch-norm batch: the model has no batch statistics", "leave it out: the answer is the same"
        )
    return replace(network, call=lambda *arguments: statistics.training(*arguments)[0], statistics=None)


def whole_batches(data: Dataset, size: int) -> tuple[Dataset, list[str]]:
    """Return the examples that fill batches of this size, and notes for the user.

    Padding would change the statistics, and a smaller last batch would have noisier ones than in training. The
    remaining examples are left out, as by loaders that drop the last batch.
    """
    count = data.num_examples - data.num_examples % size
    note = (
        f"--batch-norm batch: the loss is the mean over {count // size} fixed batches of {size} examples, in the order "
        "of the data, each normalised by its own statistics; the batch size is part of the answer"
    )
    rest = data.num_examples - count
    if not rest:
        return data, [note]
    inputs, targets, mask = jax.tree.map(lambda leaf: leaf[:count], (data.inputs, data.targets, data.mask))
    trimmed = replace(data, inputs=inputs, targets=targets, mask=mask, num_examples=count)
    return trimmed, [note, f"the last {rest} examples fill no batch of {size} and are left out"]


def _count_written(
    call: Call, arguments: Arguments, names: list[str], params: Flat, collections: PyTree, inputs: PyTree
) -> int:
    """Count the statistics that a call writes: the others are the very objects that it was given."""
    count = 0

    def traced(params: Flat, collections: PyTree, inputs: PyTree) -> Any:
        nonlocal count
        before = named(collections)
        outputs, after = call(params, collections, inputs, arguments)
        count = sum(after[name] is not before[name] for name in names)
        return outputs

    jax.eval_shape(traced, params, collections, inputs)
    return count


def named(collections: PyTree) -> Flat:
    """Return the leaves of collections by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(collections)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def floating(collections: PyTree) -> list[str]:
    """Return the paths of the leaves that are real numbers."""
    return sorted(name for name, leaf in named(collections).items() if jnp.issubdtype(leaf.dtype, jnp.floating))


def intercept_linen(next_function: Callable[..., Any], args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
    """Intercept the methods of linen modules: BatchNorm normalises by the batch, Dropout returns its inputs."""
    import flax.linen as nn

    layer = context.module
    if context.method_name != "__call__" or not isinstance(layer, nn.BatchNorm | nn.Dropout):
        return next_function(*args, **kwargs)
    inputs = args[0] if args else kwargs["x" if isinstance(layer, nn.BatchNorm) else "inputs"]
    if isinstance(layer, nn.Dropout):
        return inputs
    with _set(layer, SWITCHED):
        return next_function(inputs, mask=kwargs.get("mask"))


@contextmanager
def _set(layer: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Set attributes of a frozen linen module until the block ends."""
    before = {name: getattr(layer, name) for name in values}
    try:
        for name, value in values.items():
            object.__setattr__(layer, name, value)
        yield
    finally:
        for name, value in before.items():
            object.__setattr__(layer, name, value)


def switch_nnx(network: Any) -> None:
    """Switch the BatchNorm and Dropout layers of an nnx module in place."""
    from flax import nnx

    for _, layer in nnx.iter_graph(network):
        if isinstance(layer, nnx.BatchNorm):
            for name, value in SWITCHED.items():
                setattr(layer, name, value)
        if isinstance(layer, nnx.BatchNorm | nnx.Dropout):
            object.__setattr__(layer, "__class__", _deaf(type(layer)))


@functools.cache
def _deaf(layer: type) -> Any:
    """Return a subclass of BatchNorm or Dropout that ignores the mode given to its call."""
    from flax import nnx

    def normalise(self: Any, x: Any, use_running_average: Any = None, **rest: Any) -> Any:
        return layer.__call__(self, x, use_running_average=False, **rest)

    def keep(self: Any, inputs: Any, **rest: Any) -> Any:
        return inputs

    return type(layer.__name__, (layer,), {"__call__": normalise if issubclass(layer, nnx.BatchNorm) else keep})
