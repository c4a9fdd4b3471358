"""Orthonormal bases that grow row by row, for several Krylov spaces at once.

A basis is a list of chunks [k, CHUNK, dim], filled from the front; unfilled rows are zero. Orthogonalising against
whole chunks keeps every operation a large matrix product of one shape (compiled once), costs at most CHUNK − 1 idle
rows, and lets memory grow with the rows that exist. A basis with a store keeps its chunks there, and brings them to the
device one after the other.

Where devices share the work, chunks are cut along dim, padded with zeros to a multiple of the devices; vectors that
come and go are whole on each of them. A pass of Gram–Schmidt then adds up coefficients and gathers the vectors.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from curvcli.compiling import jit
from curvcli.linalg.cutting import cut, in_parts, sum_of_parts, whole
from curvcli.linalg.krylov.offload import Store, brought
from curvcli.stopwatch import timed

CHUNK = 16


ENOUGH = 0.5
"""The part of a vector that a pass of Gram–Schmidt must leave to be the only one."""


class Basis(NamedTuple):
    """k orthonormal bases of `size` rows each."""

    chunks: tuple[Array, ...]  # each [k, CHUNK, dim], padded where devices share them
    size: int
    dim: int
    mesh: Mesh | None = None  # these devices
    store: Store | None = None  # where chunks are kept; None: on the device, or devices


def empty(dim: int, mesh: Mesh | None = None) -> Basis:
    """No row of length dim yet."""
    return Basis((), 0, dim, mesh)


def append(basis: Basis, new: Array) -> Basis:
    """The bases with one more row each; `new` is [k, dim] and orthonormal to the rows before, or zero."""
    chunks, position = basis.chunks, basis.size % CHUNK
    if position == 0:
        shape = (len(new), CHUNK, basis.dim)
        first = _first(new, basis.mesh) if basis.store is None else basis.store.zeros(shape, new.dtype)
        chunks = (*chunks, first)
    last = chunks[-1]
    if isinstance(last, np.ndarray):  # what was computed with it has been waited for: a step ends with its coefficients
        last[:, position] = np.asarray(new)
    elif position:
        chunks = (*chunks[:-1], _write(last, new, position))
    return basis._replace(chunks=chunks, size=basis.size + 1)


def orthogonalise(basis: Basis, vectors: Array) -> tuple[Array, list[Array]]:
    """Make vectors [k, dim] or [k, b, dim] orthogonal to their bases, by one pass of Gram–Schmidt or two.

    The second pass is made where the first has taken most of a vector away, and with it raised the rounding relative to
    what is left: at most half left (Daniel, Gragg, Kaufman and Stewart 1976). Twice is enough (Giraud, Langou and
    Rozložník 2005). A Lanczos step has taken its large components off before, so that one pass nearly always does.
    Returns the vectors and, for `coefficients`, what was removed.
    """
    before = _norms(vectors)
    vectors, removed = project_out(basis, vectors)
    if np.any(np.asarray(_norms(vectors)) < ENOUGH * np.asarray(before)):
        vectors, more = project_out(basis, vectors)
        removed += more
    return vectors, removed


def project_out(basis: Basis, vectors: Array) -> tuple[Array, list[Array]]:
    """One pass of it: classical within a chunk, modified from chunk to chunk."""
    return timed("orthogonalisation", _project_out, basis, vectors)


@jit
def _norms(vectors: Array) -> Array:
    """Lengths [k, ...], scaled first: squares of small float32 numbers are zero."""
    peak = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)
    return jnp.linalg.norm(vectors / jnp.where(peak > 0, peak, 1), axis=-1) * peak[..., 0]


def _project_out(basis: Basis, vectors: Array) -> tuple[Array, list[Array]]:
    removed = []
    for chunk in brought(basis.chunks):
        vectors, part = _subtract(basis.mesh, chunk, vectors)
        removed.append(part)
    return vectors, removed


def coefficients(basis: Basis, removed: list[Array]) -> np.ndarray:
    """The components [k, size] along the basis that was removed, all passes together, in float64 on the host."""
    passes = np.concatenate([np.asarray(part, np.float64) for part in removed], axis=-1)
    whole = passes.reshape(*passes.shape[:-1], -1, len(basis.chunks) * CHUNK).sum(axis=-2)
    return whole[..., : basis.size]


def combine(basis: Basis, weights: np.ndarray) -> Array:
    """Σ_j weights[k, r, j] row_j: [k, r, size] -> [k, r, dim]. Ritz vectors from eigenvectors of T."""
    k, r, size = weights.shape
    # Padded to whole chunks and to a multiple of 8 vectors, so that few shapes are compiled.
    padded = np.zeros((k, -(-r // 8) * 8, len(basis.chunks) * CHUNK), basis.chunks[0].dtype)
    padded[:, :r, :size] = weights
    total = jnp.zeros((k, padded.shape[1], basis.chunks[0].shape[-1]), padded.dtype)
    for i, chunk in enumerate(brought(basis.chunks)):
        total = _add_combined(total, chunk, padded[:, :, i * CHUNK : (i + 1) * CHUNK])
    total = total if padded.shape[1] == r else total[:, :r]
    return total if basis.mesh is None else whole(basis.mesh, basis.dim, total)


def rotate(basis: Basis, weights: np.ndarray) -> Basis:
    """The bases of the rows Σ_j weights[k, r, j] row_j, `weights` having orthonormal rows: chunk by chunk."""
    k, r, size = weights.shape
    padded = np.zeros((k, -(-r // CHUNK) * CHUNK, size))
    padded[:, :r] = weights
    rows = (combine(basis, padded[:, i : i + CHUNK]) for i in range(0, r, CHUNK))
    keep = partial(cut, basis.mesh) if basis.mesh is not None else basis.store.keep if basis.store is not None else None
    return basis._replace(chunks=tuple(rows if keep is None else map(keep, rows)), size=r)


def single(basis: Basis, index: int) -> Basis:
    """One of the k bases, as a basis of its own."""
    return basis._replace(
        chunks=tuple(
            chunk[index : index + 1] if isinstance(chunk, np.ndarray) else row(chunk, index) for chunk in basis.chunks
        )
    )


@jit
def row(array: Array, index: Array) -> Array:
    """array[index : index + 1] with a traced index: compiled once, not once an index."""
    return jax.lax.dynamic_slice_in_dim(array, index, 1, axis=0)


def _subtract(mesh: Mesh | None, chunk: Array, vectors: Array) -> tuple[Array, Array]:
    return _subtract_whole(chunk, vectors) if mesh is None else _subtract_cut(mesh, chunk, vectors)


@jit
def _subtract_whole(chunk: Array, vectors: Array) -> tuple[Array, Array]:
    along = jnp.einsum("kmd,k...d->k...m", chunk, vectors)
    return vectors - jnp.einsum("kmd,k...m->k...d", chunk, along), along


@jit(static_argnums=0)
def _subtract_cut(mesh: Mesh, chunk: Array, vectors: Array) -> tuple[Array, Array]:
    dim, vectors = vectors.shape[-1], cut(mesh, vectors)
    along = sum_of_parts(mesh, jnp.einsum("kmpd,k...pd->pk...m", in_parts(mesh, chunk), in_parts(mesh, vectors)))
    return whole(mesh, dim, vectors - jnp.einsum("kmd,k...m->k...d", chunk, along)), along


@jit(donate_argnums=0)
def _add_combined(total: Array, chunk: Array, weights: Array) -> Array:
    return total + jnp.einsum("krm,kmd->krd", weights, chunk)


@jit(static_argnums=1)
def _first(new: Array, mesh: Mesh | None) -> Array:
    chunk = jnp.zeros((len(new), CHUNK, new.shape[1]), new.dtype).at[:, 0].set(new)
    return chunk if mesh is None else cut(mesh, chunk)


@jit(donate_argnums=0)
def _write(chunk: Array, new: Array, position: Array) -> Array:
    row = jnp.pad(new, ((0, 0), (0, chunk.shape[-1] - new.shape[-1])))
    return jax.lax.dynamic_update_slice_in_dim(chunk, row[:, None], position, axis=1)
