"""Devices that share the work: a mesh with one axis, `data`.

The examples of a batch are cut across it, and what grows with D and is kept (Krylov bases, the blocks of conjugate
gradients, Kronecker factors) along `dim`. Parameters and single vectors are whole on every device, unless parameters
are to be cut too. From that XLA's partitioner derives the collectives: nothing else in the engine knows of devices.
With several processes every process runs the same program, and holds its own part of what is cut.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from curvcli.compiling import jit
from curvcli.errors import UsageError

AXIS = "data"


def mesh_of(devices: int | Literal["all"] | None) -> Mesh | None:
    """The mesh of the first so many devices of this process, of all of them, or of all processes' where there are more.

    None where one device is meant.

    Raises
    ------
    UsageError
        There are not so many.
    """
    there, several = jax.local_devices(), jax.process_count() > 1
    if devices is None and not several:
        return None
    each = len(there) if devices in (None, "all") else int(devices)
    if each > len(there):
        kind = there[0].platform
        have = f"{len(there)} {kind} device{'s' if len(there) > 1 else ''}"
        raise UsageError(
            f"--devices {each}: JAX has {have}",
            f"set JAX_NUM_CPU_DEVICES={each} to have so many"
            if kind == "cpu"
            else f"give at most {len(there)}, or all",
        )
    if several:
        # The first so many of every process: a mesh that leaves a process out would leave it waiting.
        own = [
            [one for one in jax.devices() if one.process_index == rank][:each] for rank in range(jax.process_count())
        ]
        return Mesh(np.array([one for part in own for one in part]), (AXIS,))
    return Mesh(np.array(there[:each]), (AXIS,)) if each > 1 else None


def on_every(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def cut_along(mesh: Mesh, axis: int) -> NamedSharding:
    """Cut along one axis, whose length the devices must divide: see `rounded_up`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def rounded_up(mesh: Mesh | None, size: int) -> int:
    """The next multiple of the number of devices.

    >>> rounded_up(None, 7)
    7
    """
    return size if mesh is None else -(-size // mesh.size) * mesh.size


def placed(array: Array | np.ndarray, sharding: NamedSharding) -> Array:
    """An array that every process has on the devices of the sharding: each takes its own part alone."""
    return jax.make_array_from_callback(tuple(array.shape), sharding, lambda part: np.asarray(array[part]))


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Cut along the longest axis that the devices divide; whole on every device where there is none."""
    axes = [axis for axis, length in enumerate(shape) if length and length % mesh.size == 0]
    return cut_along(mesh, max(axes, key=lambda axis: shape[axis])) if axes else on_every(mesh)


def on_host(tree: Any) -> Any:
    """The arrays of a tree as numpy arrays, gathered where other processes hold parts; all processes must ask."""
    return jax.device_get(jax.tree.map(_gathered, tree))


def _gathered(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    assert isinstance(leaf.sharding, NamedSharding)
    return _whole(leaf.sharding.mesh, leaf)


@jit(static_argnums=0)
def _whole(mesh: Any, leaf: Array) -> Array:
    return jax.lax.with_sharding_constraint(leaf, on_every(mesh))


def processes() -> int:
    """How many processes run the same program."""
    return jax.process_count()


def process() -> int:
    """Which of them this is."""
    return jax.process_index()


def several_processes() -> bool:
    """Whether there are others."""
    return processes() > 1


def is_first() -> bool:
    """Whether this is the process that speaks: the others only compute."""
    return process() == 0


def greatest(value: float) -> float:
    """The largest of all processes' values, where there are several; all must ask."""
    return float(np.max(_from_all(np.float64(value)))) if several_processes() else value


def least(value: float) -> float:
    """The smallest of them."""
    return -greatest(-value)


def from_all(payload: bytes) -> list[bytes]:
    """What each process has to say, all of one length, in the order of the processes."""
    rows = _from_all(np.frombuffer(payload, np.uint8)) if several_processes() else [np.frombuffer(payload, np.uint8)]
    return [np.asarray(row).tobytes() for row in rows]


def from_first(payload: bytes) -> bytes:
    """The first process's payload, whatever the others give; all must ask."""
    if not several_processes():
        return payload
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(payload))))
    own = np.frombuffer(payload, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(own)).tobytes()


def _from_all(value: Any) -> Any:
    # Eight bytes are moved as bytes: without x64, JAX would halve them.
    raw = np.frombuffer(np.asarray(value).tobytes(), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(raw))
    return [np.frombuffer(row.tobytes(), np.asarray(value).dtype) for row in rows]
