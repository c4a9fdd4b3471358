"""Sharding over devices: a mesh with one axis, `data`.

The examples of a batch are sharded along it. Arrays that grow with D and are kept (Krylov bases, the blocks of
conjugate gradients, Kronecker factors) are sharded along `dim`. Parameters and single vectors are replicated, unless
the parameters are to be sharded too. XLA's partitioner derives the collectives from these shardings; no other module
of the engine refers to devices. With several processes every process runs the same program and holds its own shards.
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
    """Return the mesh of the first `devices` devices of each process, or of all of them.

    None for a single device.

    Raises
    ------
    UsageError
        The process has fewer devices.
    """
    local, several = jax.local_devices(), jax.process_count() > 1
    if devices is None and not several:
        return None
    count = len(local) if devices in (None, "all") else int(devices)
    if count > len(local):
        kind = local[0].platform
        have = f"{len(local)} {kind} device{'s' if len(local) > 1 else ''}"
        raise UsageError(
            f"--devices {count}: JAX has {have}",
            f"set JAX_NUM_CPU_DEVICES={count} to have so many"
            if kind == "cpu"
            else f"give at most {len(local)}, or all",
        )
    if several:
        # The first so many of every process: a mesh that leaves a process out would leave it waiting.
        groups = [
            [device for device in jax.devices() if device.process_index == rank][:count]
            for rank in range(jax.process_count())
        ]
        return Mesh(np.array([device for part in groups for device in part]), (AXIS,))
    return Mesh(np.array(local[:count]), (AXIS,)) if count > 1 else None


def on_every(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def cut_along(mesh: Mesh, axis: int) -> NamedSharding:
    """Return the sharding along one axis, whose length the devices must divide: see `rounded_up`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def rounded_up(mesh: Mesh | None, size: int) -> int:
    """Round a size up to a multiple of the number of devices.

    >>> rounded_up(None, 7)
    7
    """
    return size if mesh is None else -(-size // mesh.size) * mesh.size


def placed(array: Array | np.ndarray, sharding: NamedSharding) -> Array:
    """Place an array that every process holds on the devices of a sharding: each device gets its own shard alone."""
    return jax.make_array_from_callback(tuple(array.shape), sharding, lambda part: np.asarray(array[part]))


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Return the sharding along the longest axis that the devices divide, or replication where there is none."""
    axes = [axis for axis, length in enumerate(shape) if length and length % mesh.size == 0]
    return cut_along(mesh, max(axes, key=lambda axis: shape[axis])) if axes else on_every(mesh)


def on_host(tree: Any) -> Any:
    """Return the arrays of a tree as numpy arrays, gathered over processes; all processes must call this."""
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
    """Return the number of processes that run the program."""
    return jax.process_count()


def process() -> int:
    """Return the index of this process."""
    return jax.process_index()


def several_processes() -> bool:
    """Whether several processes run the program."""
    return processes() > 1


def is_first() -> bool:
    """Whether this is process 0, the one that writes output."""
    return process() == 0


def greatest(value: float) -> float:
    """Return the maximum over processes; all processes must call this."""
    return float(np.max(_from_all(np.float64(value)))) if several_processes() else value


def least(value: float) -> float:
    """Return the minimum over processes; all processes must call this."""
    return -greatest(-value)


def from_all(payload: bytes) -> list[bytes]:
    """Gather the payloads of all processes, which have one length, in the order of the processes."""
    rows = _from_all(np.frombuffer(payload, np.uint8)) if several_processes() else [np.frombuffer(payload, np.uint8)]
    return [np.asarray(row).tobytes() for row in rows]


def from_first(payload: bytes) -> bytes:
    """Broadcast the payload of process 0; all processes must call this."""
    if not several_processes():
        return payload
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(payload))))
    sent = np.frombuffer(payload, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes()


def _from_all(value: Any) -> Any:
    # Eight bytes are moved as bytes: without x64, JAX would halve them.
    raw = np.frombuffer(np.asarray(value).tobytes(), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(raw))
    return [np.frombuffer(row.tobytes(), np.asarray(value).dtype) for row in rows]
