"""Block Krylov spaces: orthonormal rows V, the projection T = V A Vᵀ, and the directions in which A leads out of V.

    A Vᵀ = Vᵀ T + Fᵀ B

`front` holds the directions that the next step multiplies by A. All of T is kept, formed from the coefficients that the
orthogonalisation removes anyway, so that neither a restart nor a fresh direction is a case of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from curvcli.compiling import jit
from curvcli.linalg.krylov import basis as bases
from curvcli.linalg.krylov.basis import Basis
from curvcli.linalg.krylov.lanczos import LanczosState, breakdown, not_finite
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.reductions import combinations, inner_products


class KrylovSpace(NamedTuple):
    """V with what is known of A on it."""

    basis: Basis  # one space: rows [1, j, dim]
    projected: np.ndarray  # T [j, j], float64
    front: Array  # [b, dim], orthonormal, and orthogonal to V; no rows where V is invariant
    outgoing: np.ndarray  # B [c, j], c ≥ b: the last b rows belong to the front, those before to directions given up
    norm: float  # a lower estimate of ‖A‖

    @property
    def size(self) -> int:
        """j, the dimension of the space."""
        return self.basis.size


class Ritz(NamedTuple):
    """The eigenpairs of T."""

    values: np.ndarray  # [j], ascending
    vectors: np.ndarray  # [j, j], in columns
    leaving: np.ndarray  # B s of each, [c, j]: the residual vectors A y − θ y in the directions that lead out

    @property
    def residuals(self) -> np.ndarray:
        """‖A y − θ y‖ of each Ritz vector, as the recurrence has it: [j]."""
        return np.linalg.norm(self.leaving, axis=0)

    def take(self, chosen: np.ndarray) -> Ritz:
        """Some of the pairs."""
        return Ritz(self.values[chosen], self.vectors[:, chosen], self.leaving[:, chosen])


def from_vectors(front: Array, mesh: Mesh | None = None) -> KrylovSpace:
    """The empty space before orthonormal start vectors [b, dim]; its basis will be shared by the devices of a mesh."""
    return KrylovSpace(bases.empty(front.shape[1], mesh), np.zeros((0, 0)), front, np.zeros((len(front), 0)), 0.0)


def from_random(key: Array, block: int, dim: int, dtype: DTypeLike, mesh: Mesh | None = None) -> KrylovSpace:
    """The empty space before `block` random orthonormal start vectors."""
    empty = from_vectors(jnp.zeros((0, dim), dtype), mesh)
    return add_directions(empty, sphere(key, 0, block, dim, dtype))


def from_lanczos(state: LanczosState, probe: int) -> KrylovSpace:
    """One of the Krylov spaces that a lockstep Lanczos run has built; needs its basis."""
    size = int(state.sizes[probe]) or state.done_steps
    alpha, beta = state.alphas[probe, :size], state.betas[probe, :size]
    projected = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    outgoing = np.zeros((1, size))
    outgoing[0, -1] = beta[-1]
    # A process that broke down early has zero rows behind its basis: they are cut off here.
    single = bases.single(state.basis, probe)
    basis = single._replace(chunks=single.chunks[: -(-size // bases.CHUNK)], size=size)
    # β stays in the residuals of a process that broke down, but its direction is followed no further.
    front = bases.row(state.current, probe)[: 0 if state.sizes[probe] else 1]
    return KrylovSpace(basis, projected, front, outgoing, float(state.norm[probe]))


def ritz(space: KrylovSpace) -> Ritz:
    """All Ritz pairs. Cost: O(j³) on the host, no product."""
    values, vectors = np.linalg.eigh(space.projected)
    return Ritz(values, vectors, space.outgoing @ vectors)


def extend(operator: LinearOperator, space: KrylovSpace) -> KrylovSpace:
    """The space with its front taken in. Cost: b products, two block Gram–Schmidt passes.

    Directions of the image whose length is at most the breakdown threshold are rounding: they are dropped, and the new
    front is the shorter for it.

    Notes
    -----
    The image is made orthogonal to V, orthonormal in itself, and both again: a short direction of the block is
    amplified when it is normalised, and with it what rounding left of it along V.
    Source: Barlow and Smoktunowicz (2013), *Reorthogonalized block classical Gram–Schmidt*.
    """
    basis = space.basis
    for i in range(len(space.front)):
        basis = bases.append(basis, bases.row(space.front, i))
    remainder, first = bases.project_out(basis, operator.matmat(space.front)[None])
    block, lower = _orthonormal(remainder[0])
    remainder, second = bases.project_out(basis, block[None])
    block, again = _orthonormal(remainder[0])
    lower = np.asarray(lower, np.float64)
    columns = bases.coefficients(basis, first)[0] + lower @ bases.coefficients(basis, second)[0]
    lower = lower @ np.asarray(again, np.float64)
    if not (np.all(np.isfinite(lower)) and np.all(np.isfinite(columns))):
        raise not_finite(operator.dtype)

    b, old = len(space.front), space.size
    projected = np.zeros((old + b, old + b))
    projected[:old, :old] = space.projected
    projected[old:], projected[:, old:] = columns, columns.T
    projected[old:, old:] = 0.5 * (columns[:, old:] + columns[:, old:].T)
    norm = max(space.norm, float(np.sqrt(np.sum(columns**2, axis=1) + np.sum(lower**2, axis=1)).max()))
    front, leaving = _directions(block, lower, breakdown(norm, operator.dtype))
    given_up = space.outgoing[: len(space.outgoing) - b]
    outgoing = np.zeros((len(given_up) + len(leaving), old + b))
    outgoing[: len(given_up), :old], outgoing[len(given_up) :, old:] = given_up, leaving
    return KrylovSpace(basis, projected, front, outgoing, norm)


def _directions(block: Array, lower: np.ndarray, threshold: float) -> tuple[Array, np.ndarray]:
    """The directions [f, dim] of the remainder `lower` @ `block` longer than a threshold, and B for them [f, b].

    With lower = U Σ Wᵀ the remainder is Σ_i σ_i u_i (w_iᵀ block).
    """
    u, sigma, wt = np.linalg.svd(lower)
    kept = int(np.sum(sigma > threshold))
    if kept == len(sigma):  # as it nearly always is: no rotation needed
        return block, lower.T
    return combinations(jnp.asarray(wt[:kept], block.dtype), block), (sigma[:, None] * u.T)[:kept]


def add_directions(space: KrylovSpace, fresh: Array) -> KrylovSpace:
    """The space with further vectors [f, dim] in its front, made orthogonal to all it knows; V may not be all of Rᴰ."""
    for _ in range(2):
        rows = bases.project_out(space.basis, fresh[None])[0][0]
        fresh, _ = _orthonormal(rows - combinations(inner_products(rows, space.front), space.front))
    outgoing = np.vstack([space.outgoing, np.zeros((len(fresh), space.size))])
    return space._replace(front=jnp.concatenate([space.front, fresh]), outgoing=outgoing)


def compress(space: KrylovSpace, keep: tuple[int, int]) -> KrylovSpace:
    """The space reduced to its `keep` = (lowest, highest) Ritz vectors: what a thick restart keeps."""
    low, high = keep
    if low + high >= space.size:
        return space
    pairs = ritz(space).take(np.r_[:low, space.size - high : space.size].astype(int))
    basis = bases.rotate(space.basis, pairs.vectors.T[None])
    return space._replace(basis=basis, projected=np.diag(pairs.values), outgoing=pairs.leaving)


def without_front(space: KrylovSpace) -> KrylovSpace:
    """The space whose front is followed no further; how far A leads out that way stays known."""
    return space._replace(front=space.front[:0])


@jit
def _orthonormal(rows: Array) -> tuple[Array, Array]:
    """Q and L with rows = L Q, Q having orthonormal rows: [b, dim] -> [b, dim], [b, b]."""
    q, r = jnp.linalg.qr(rows.T)
    return q.T, r.T
