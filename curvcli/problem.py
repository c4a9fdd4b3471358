"""The problem of the curvature engine: a network, a loss, data and weights.

    J(w) = (1/M) Σ_n a_n L(f(w, x_n), t_n) + R(w)

`Problem` holds every part of it; `normaliser` is M. Nothing here reads a file or builds a matrix.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from curvcli.devices import cut_along, on_every, parameter_sharding, placed, rounded_up
from curvcli.losses import Loss

PyTree = Any
Params = dict[str, Any]
"""Parameters by path, such as `{"Dense_0/kernel": [64, 128]}`: flat, so that a block of them is a sub-dictionary."""


class Batch(NamedTuple):
    """A batch of examples; all batches have the same size."""

    inputs: PyTree  # leading axis b
    targets: Any  # leading axis b
    weight: Any  # [b], or [b, T] where tokens are masked; 0 on padding
    index: Any  # [b], the examples' places in the data: random draws belong to them, whatever the batch size


@dataclass(frozen=True)
class Batches:
    """Examples in fixed order, cut into batches of one shape, which can be iterated any number of times.

    The last batch is padded with copies of the last example under weight 0. Padding by zeros would give NaN, as weight
    0 times infinity, in a model that is singular at zero (a logarithm, a norm).

    Parameters
    ----------
    inputs, targets
        Arrays (or dictionaries of arrays) with leading axis N; memory-mapped arrays are read batch by batch.
    weight
        [N] or [N, T].
    batch_size
        Examples in a batch, b.
    cast
        The dtype that floating inputs and targets are cast to.
    mesh
        Devices over which every batch is sharded: each reads and holds its own examples. None: arrays of the host.
    streamed
        Whether small data too are read again at every pass, to save memory.
    coupled
        Whether the network couples the examples of a batch, as batch statistics do. The batches then define the
        problem: they keep their size, which divides N, and have no padding.
    """

    inputs: PyTree
    targets: Any
    weight: np.ndarray
    batch_size: int
    cast: Any
    mesh: Mesh | None = None
    streamed: bool = False
    coupled: bool = False

    @property
    def num_examples(self) -> int:
        """The number of examples N, without padding."""
        return len(self.weight)

    def __len__(self) -> int:
        return -(-self.num_examples // self.batch_size)

    @property
    def nbytes(self) -> int:
        """Bytes of all batches as the device holds them."""
        per_example = sum(leaf.nbytes / len(leaf) for leaf in jax.tree.leaves(self._batch(0)))
        return int(per_example * len(self) * self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.num_examples, self.batch_size):
            yield self._batch(start) if self.mesh is None else self._shared(self.mesh, start)

    def _batch(self, start: int, first: int = 0, count: int | None = None) -> Batch:
        """Return the padded batch of rows start, start + 1, …, or `count` of its rows from `first` on."""
        low, high = start + first, start + (self.batch_size if count is None else first + count)
        stop = min(high, self.num_examples)
        # Rows of padding alone are copies of the last example.
        span = slice(min(low, self.num_examples - 1), max(stop, min(low, self.num_examples - 1) + 1))
        real = max(stop - low, 0)
        missing = high - low - (span.stop - span.start)

        def take(leaf: np.ndarray) -> np.ndarray:
            rows = np.asarray(leaf[span])
            if np.issubdtype(rows.dtype, np.floating):
                rows = rows.astype(self.cast)
            return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows

        weight = np.array(take(self.weight))
        weight[real:] = 0
        index = np.arange(low, high, dtype=np.int32)
        return Batch(jax.tree.map(take, self.inputs), jax.tree.map(take, self.targets), weight, index)

    def _shared(self, mesh: Mesh, start: int) -> Batch:
        """Return a batch sharded over the devices, or replicated where they do not divide its size."""
        size = self.batch_size
        if size % mesh.size:
            return jax.tree.map(lambda leaf: placed(leaf, on_every(mesh)), self._batch(start))
        part = size // mesh.size
        where = cut_along(mesh, 0)
        starts = {
            device: (cut or (slice(0),))[0].start or 0
            for device, cut in where.addressable_devices_indices_map((size,)).items()
        }
        pieces = {first: self._batch(start, first, part) for first in set(starts.values())}

        def joined(*leaves: np.ndarray) -> Any:
            by_first = dict(zip(pieces, leaves, strict=True))
            parts = [jax.device_put(by_first[first], device) for device, first in starts.items()]
            return jax.make_array_from_single_device_arrays((size, *leaves[0].shape[1:]), where, parts)

        return jax.tree.map(joined, *pieces.values())

    def parts(self) -> Iterator[PyTree]:
        """Iterate over the inputs in parts of nearly equal size, at most that of a batch, unpadded and replicated."""
        edges = np.linspace(0, self.num_examples, len(self) + 1).astype(int)
        for start, stop in itertools.pairwise(edges):
            inputs = self._batch(int(start), 0, int(stop - start)).inputs
            yield inputs if self.mesh is None else placed_everywhere(self.mesh, inputs)

    def chosen(self, rows: np.ndarray) -> Batches:
        """Return the batches of these rows in this order, with the same batch size and new indices."""
        # Memory maps are read in the order of the file.
        order = np.argsort(rows, kind="stable")

        def take(leaf: np.ndarray) -> np.ndarray:
            return np.asarray(leaf[rows[order]])[np.argsort(order, kind="stable")]

        inputs, targets, weight = jax.tree.map(take, (self.inputs, self.targets, self.weight))
        return replace(self, inputs=inputs, targets=targets, weight=weight)

    def resized(self, batch_size: int) -> Batches:
        """Return the examples in batches of another size, rounded up to a multiple of the devices unless smaller.

        Coupled batches stay as they are.
        """
        if self.coupled:
            return self
        shared = self.mesh is not None and batch_size >= self.mesh.size
        return replace(self, batch_size=rounded_up(self.mesh, batch_size) if shared else batch_size)


def placed_everywhere(mesh: Mesh, tree: PyTree) -> PyTree:
    """Replicate arrays of the host on each device."""
    return jax.tree.map(lambda leaf: placed(leaf, on_every(mesh)), tree)


def let_go(tree: PyTree) -> None:
    """Release the pages of memory maps that have been read, so that they do not count as memory of this process.

    The page cache keeps them as long as there is room. Only read-only maps are released.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, np.memmap) and leaf.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
            leaf._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Regulariser:
    """The regulariser R(w) = ½·l2·‖w‖² + fn(w), which is not divided by the normaliser.

    Parameters
    ----------
    l2
        Weight of the squared norm of all parameters, biases too.
    fn
        A function of the parameters in the checkpoint's own (nested) form, or None.
    """

    l2: float = 0.0
    fn: Callable[[PyTree], Any] | None = None


@dataclass(frozen=True)
class Way:
    """The way products are computed, on which the answer depends by rounding alone.

    Parameters
    ----------
    application
        A batch's linear map applied to all vectors of a block at once (`vmap`), or to one after the other (`map`).
    kept_bytes
        Bytes of the linear maps of all batches, if they are kept between products; 0: they are recomputed.
    width
        Number of vectors that `vmap` takes at once. A wider block is split, so that the tangents fit the caches.
    chosen
        What chose the way: sizes alone (`default`), timing (`measured`, `remembered`), or the user (`given`).
    """

    application: Literal["vmap", "map"] = "vmap"
    kept_bytes: int = 0
    width: int = 128
    chosen: Literal["default", "measured", "remembered", "given"] = "default"


@dataclass(frozen=True)
class BatchStatistics:
    """The running means and variances of normalisation layers.

    Parameters
    ----------
    names
        Their paths in `Problem.frozen["collections"]`.
    training
        `(all params by path, collections, inputs) -> (outputs, statistics by path)`: the network in training mode
        without dropout, and its running averages after this batch. Raises SpecError where the model has no such call.
    """

    names: tuple[str, ...]
    training: Callable[[Params, PyTree, PyTree], tuple[Any, dict[str, Any]]]


@dataclass(frozen=True)
class Problem:
    """All that the objective J depends on.

    Parameters
    ----------
    params
        The differentiated parameters, by path.
    frozen
        `{"params": …, "collections": …}`: parameters outside the chosen block, and the model's other collections
        (batch statistics). Held fixed, but passed as arguments.
    predict
        `(params, frozen, inputs) -> outputs` of shape [b, ..., C].
    nest
        Maps all parameters by path to the form that the user's model takes.
    loss
        The loss of each example (or token), not reduced.
    batches
        The examples.
    normaliser
        M: the number of examples with any weight, the sum of the tokens' weights, or 1.
    regulariser
        The regulariser R.
    population
        Number of examples in the whole data set, of which `batches` may hold some; None where it is not known.
    way
        The way products are computed.
    statistics
        The network's batch statistics; None where it has none.
    """

    params: Params
    frozen: dict[str, PyTree]
    predict: Callable[[Params, dict[str, PyTree], PyTree], Any]
    nest: Callable[[Params], PyTree]
    loss: Loss
    batches: Batches
    normaliser: float
    regulariser: Regulariser
    population: int | None = None
    way: Way = Way()
    statistics: BatchStatistics | None = None

    @property
    def subsampled(self) -> bool:
        """Whether the data are part of a larger set."""
        return self.population != self.batches.num_examples

    @property
    def dim(self) -> int:
        """The number D of differentiated parameters."""
        return sum(leaf.size for leaf in self.params.values())

    @property
    def dtype(self) -> np.dtype:
        """The floating dtype of all computation."""
        return np.dtype(next(iter(self.params.values())).dtype)


def spread(problem: Problem, mesh: Mesh, *, shard_params: bool = False) -> Problem:
    """Shard the batches of a problem over devices, and replicate or shard its parameters.

    Parameters
    ----------
    shard_params
        Whether each parameter is sharded along its longest axis that the devices divide.
    """

    def put(leaf: Any) -> Any:
        where = parameter_sharding(mesh, leaf.shape) if shard_params else on_every(mesh)
        return leaf if getattr(leaf, "sharding", None) == where else placed(leaf, where)

    params, frozen = jax.tree.map(put, (problem.params, problem.frozen))
    batches = replace(problem.batches, mesh=mesh)
    return replace(problem, params=params, frozen=frozen, batches=batches.resized(batches.batch_size))


def in_float64(problem: Problem, examples: int | None = None) -> Problem:
    """Cast the floating arrays of a problem to float64; to be used under `jax.enable_x64(True)`.

    Parameters
    ----------
    examples
        Number of examples to keep, the first ones, in one batch; None: all.
    """

    def cast(leaf: Any) -> Any:
        return jnp.asarray(leaf, "float64") if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    params, frozen = jax.tree.map(cast, (problem.params, problem.frozen))
    batches, size = problem.batches, problem.batches.batch_size
    inputs, targets, weight = batches.inputs, batches.targets, batches.weight
    if examples is not None:
        size = min(examples, batches.num_examples)
        inputs, targets, weight = jax.tree.map(lambda leaf: leaf[:size], (inputs, targets, weight))
    weight = np.asarray(weight, "float64")
    mesh = batches.mesh if examples is None else None  # a few are not worth sharing
    batches = Batches(inputs, targets, weight, size, np.dtype("float64"), mesh, coupled=batches.coupled)
    return replace(problem, params=params, frozen=frozen, batches=batches)


def unit_weight(weight: Any, ndim: int) -> Any:
    """Append axes of length one to `weight`: [b] becomes [b, 1] beside losses of shape [b, T]."""
    return weight.reshape(weight.shape + (1,) * (ndim - weight.ndim))
