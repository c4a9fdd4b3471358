"""Batch statistics at other weights: put in their place among a network's collections, and recomputed from the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.curvature.flatten import Layout, moved
from curvcli.devices import on_host
from curvcli.errors import SpecError
from curvcli.problem import Params, Problem

Statistics = dict[str, np.ndarray]
"""By path, float64: [...] of one place, or [p, ...] of several."""

AVERAGE = 1e-3
"""How far what is written may be from an average of what was there and of the batch's moments, relatively."""


def stored(problem: Problem) -> Statistics:
    """The statistics of the checkpoint; empty where the network has none."""
    names = () if problem.statistics is None else problem.statistics.names
    return {name: on_host(leaf).astype(np.float64) for name, leaf in _named(problem.frozen).items() if name in names}


def with_statistics(frozen: dict[str, Any], statistics: dict[str, Any]) -> dict[str, Any]:
    """`Problem.frozen` with these statistics in the place of those that it has."""

    def replaced(path: Any, leaf: Array) -> Array:
        found = statistics.get(_name(path))
        return leaf if found is None else jnp.asarray(found, leaf.dtype)

    return {**frozen, "collections": jax.tree_util.tree_map_with_path(replaced, frozen["collections"])}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(frozen: dict[str, Any]) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(frozen["collections"])[0]}


def recomputed(
    problem: Problem, directions: Array, points: np.ndarray, *, stop: Callable[[], Any] = lambda: None
) -> Statistics | None:
    """The statistics that the data have at w + Σ_i points[:, i] · directions[i], the network in training mode.

    Parameters
    ----------
    directions
        [d, dim].
    points
        [p, d].
    stop
        Asked before every batch; anything but None gives the work up.

    Returns
    -------
    [p, ...] by path, None where the work was given up. Means over the examples of the batches' moments; a variance
    beside a mean of its layer has the variance of the batches' means added, so that the first layer's are those of all
    data, whatever the batch size. All rows of the data count, those of weight 0 too, as they do in training.

    Raises
    ------
    SpecError
        The network has no call in training mode, or what that writes are no running averages.

    Notes
    -----
    Cost: p forward passes, the data read once; statistics of p points.
    Source: Izmailov et al. (2018), *Averaging weights leads to wider optima*, for the pass over the data.
    """
    assert problem.statistics is not None
    layout, training, names = Layout.of(problem.params), problem.statistics.training, problem.statistics.names
    along, steps = layout.unravel(directions), list(np.asarray(points, problem.dtype))
    totals: list[Statistics] = [{} for _ in steps]
    seen = 0
    for inputs in problem.batches.parts():
        if stop() is not None:
            return None
        count = len(jax.tree.leaves(inputs)[0])
        for total, step in zip(totals, steps, strict=True):
            moments, off = on_host(_moments(training, names, problem.params, problem.frozen, inputs, along, step))
            if off > AVERAGE:
                raise SpecError(
                    "the statistics that the model's call in training mode writes are no running averages",
                    "hold the statistics fixed, or interpolate them: --batch-stats",
                )
            _add(total, {name: leaf.astype(np.float64) for name, leaf in moments.items()}, count / (seen + count))
        seen += count
    return {name: np.stack([total[name] for total in totals]) for name in names}


def _add(total: Statistics, moments: Statistics, share: float) -> None:
    """Take a batch's moments into the mean so far, of which it is this share: Chan's update for means and variances."""
    joined = dict(moments)
    for name, before in total.items():
        head, separator, last = name.rpartition("/")
        mean = f"{head}{separator}mean"
        between = np.square(moments[mean] - total[mean]) if last == "var" and mean in moments else 0.0
        joined[name] = (1 - share) * before + share * moments[name] + share * (1 - share) * between
    total.update(joined)


@jit(static_argnums=(0, 1))
def _moments(
    training: Callable,
    names: tuple[str, ...],
    params: Params,
    frozen: dict,
    inputs: Any,
    directions: Params,
    step: Array,
) -> tuple[dict[str, Array], Array]:
    """The moments of one batch, and how far the statistics written are from averages of these and those before.

    r ← m r + (1 − m) s has the derivative m by r; what stays as it is keeps its value.
    """
    everything = {**frozen["params"], **moved(params, directions, step)}
    before = {name: leaf for name, leaf in _named(frozen).items() if name in names}

    def written(statistics: dict[str, Array]) -> dict[str, Array]:
        return training(everything, with_statistics(frozen, statistics)["collections"], inputs)[1]

    zeros, ones = (jax.tree.map(like, before) for like in (jnp.zeros_like, jnp.ones_like))
    rest, momentum = jax.jvp(written, (zeros,), (ones,))
    after, off, found = written(before), jnp.zeros(()), {}
    for name, value in before.items():
        kept = momentum[name] == 1
        found[name] = jnp.where(kept, value, rest[name] / jnp.where(kept, 1, 1 - momentum[name]))
        size = jnp.linalg.norm(after[name]) + jnp.linalg.norm(value)
        apart = jnp.linalg.norm(momentum[name] * value + rest[name] - after[name])
        off = jnp.maximum(off, jnp.where(size > 0, apart / jnp.where(size > 0, size, 1), 0))
    return found, off
