"""The Lanczos process for k start vectors in lockstep.

From a unit vector v_1 the recurrence β_{j+1} v_{j+1} = A v_j − α_j v_j − β_j v_{j−1} builds an orthonormal basis of the
Krylov space in which A is the tridiagonal matrix T = tridiag(α, β): A Qᵀ − Qᵀ T = β_{m+1} v_{m+1} e_mᵀ.

All k processes advance together, so each step reads the data once and applies one linearisation to k vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array
from jax.typing import DTypeLike

from curvcli.compiling import jit
from curvcli.errors import NumericsError, suggest_float64
from curvcli.linalg.krylov import basis as bases
from curvcli.linalg.krylov.basis import Basis
from curvcli.linalg.krylov.offload import Store
from curvcli.linalg.operator import LinearOperator

Size = TypeVar("Size", float, np.ndarray)


class LanczosState(NamedTuple):
    """Everything that a step changes."""

    done_steps: int
    current: Array  # [k, dim], v_{j+1} after j steps; zero where the process has broken down
    previous: Array  # [k, dim]
    beta: np.ndarray  # [k], β_{j+1}; 0 where broken down
    alphas: np.ndarray  # [k, j]
    betas: np.ndarray  # [k, j], β_2 … β_{j+1}
    sizes: np.ndarray  # [k], steps after which each process ended; 0 while it runs
    norm: np.ndarray  # [k], a lower estimate of ‖A‖
    products: int
    basis: Basis  # rows v_1 … v_j; empty without reorthogonalisation


class Tridiagonal(NamedTuple):
    """What one process has found."""

    alpha: np.ndarray  # [m]
    beta: np.ndarray  # [m], the last being β_{m+1}
    invariant: bool  # whether the Krylov space is invariant: the process broke down

    def eigh(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values θ [m], ascending, and the eigenvectors of T in columns [m, m]."""
        found: Any = scipy.linalg.eigh_tridiagonal(self.alpha, self.beta[:-1])
        return found


@dataclass(frozen=True)
class Lanczos:
    """Lanczos from given start vectors.

    Parameters
    ----------
    start
        Unit vectors [k, dim].
    steps
        m, at most; a process ends earlier when its Krylov space is invariant.
    reorthogonalize
        `full`: two Gram–Schmidt passes against the whole basis at every step. `none`: the bare recurrence, O(dim)
        memory; converged eigenvalues then come again as copies ("ghosts"), which leaves the quadrature valid.
    store
        Where the bases are kept; None: on the device.

    Notes
    -----
    Breakdown: β ≤ 32 eps ‖A‖, or as many steps as dimensions. Going on would invent eigenvalues: a normalised
    rounding error is a random vector with no relation to A. The rounding of a product is at most some 14 eps ‖A‖
    (measured); a threshold that grows with √D would end a float32 run of a large network while β is still the width of
    the bulk of its spectrum.

    Cost: m products in blocks of k; memory k·m·dim with reorthogonalisation.
    Source: Paige (1976); Golub and Meurant, *Matrices, Moments and Quadrature* (2010), chapter 4.
    """

    start: Array
    steps: int
    reorthogonalize: Literal["full", "none"] = "full"
    store: Store | None = None

    def init(self, operator: LinearOperator, key: Array | None = None) -> LanczosState:
        """No step done."""
        k = len(self.start)
        empty = np.zeros((k, 0))
        return LanczosState(
            0, self.start, jnp.zeros_like(self.start), np.zeros(k), empty, empty,
            np.zeros(k, int), np.zeros(k), 0,
            bases.empty(self.start.shape[1], operator.mesh)._replace(store=self.store),
        )  # fmt: skip

    def step(self, operator: LinearOperator, state: LanczosState) -> LanczosState:
        """One product for each process that runs."""
        running = state.sizes == 0
        image = operator.matmat(state.current)
        cast = operator.dtype
        vectors, alpha = _recurrence(image, state.current, state.previous, jnp.asarray(state.beta, cast))
        basis = state.basis
        if self.reorthogonalize == "full":
            basis = bases.append(basis, state.current)
            vectors, _ = bases.orthogonalise(basis, vectors)
        following, beta = normalise(vectors)
        alpha, beta = np.asarray(alpha, np.float64), np.asarray(beta, np.float64)
        if not np.all(np.isfinite(alpha + beta)):
            raise not_finite(cast)

        # Each row of T is at most ‖A‖ long: √(β_j² + α_j² + β_{j+1}²).
        norm = np.maximum(state.norm, np.sqrt(state.beta**2 + alpha**2 + beta**2))
        index = state.done_steps + 1
        # Without reorthogonalisation as many steps as dimensions span less than the whole space.
        through = index == operator.dim and self.reorthogonalize == "full"
        broken = running & ((beta <= breakdown(norm, cast)) | through)
        sizes = np.where(broken, index, state.sizes)
        going = sizes == 0
        following = _keep(following, jnp.asarray(going))
        return LanczosState(
            index, following, state.current, np.where(going, beta, 0.0),
            np.column_stack([state.alphas, alpha]), np.column_stack([state.betas, beta]),
            sizes, norm, state.products + int(running.sum()), basis,
        )  # fmt: skip

    def done(self, state: LanczosState) -> bool:
        """All steps made, or every process has broken down."""
        return state.done_steps >= self.steps or bool(np.all(state.sizes > 0))

    def products(self, state: LanczosState) -> int:
        """Products spent."""
        return state.products

    def result(self, state: LanczosState) -> list[Tridiagonal]:
        """T of each process."""
        sizes = np.where(state.sizes > 0, state.sizes, state.done_steps)
        return [
            Tridiagonal(state.alphas[i, :m], state.betas[i, :m], bool(state.sizes[i] > 0)) for i, m in enumerate(sizes)
        ]


def not_finite(dtype: DTypeLike) -> NumericsError:
    """What to raise when a product in this type has an entry that is no number."""
    return NumericsError(
        "a product of the matrix is not finite", suggest_float64(dtype, "check the model and the loss at these weights")
    )


def check_powers(peak: float, dtype: DTypeLike) -> None:
    """Refuse images whose squares (in float64, on the host: their squares' squares) are beyond the arithmetic.

    Parameters
    ----------
    peak
        The largest magnitude in the images of unit vectors.

    Raises
    ------
    NumericsError
        Laws of errors would be zero or infinite, where they are not.
    """
    info, root = np.finfo(dtype), 2 if np.finfo(dtype).bits < 64 else 4
    low, high = (float(one) ** (1 / root) for one in (info.tiny / info.eps, info.max * info.eps))
    if not np.isfinite(peak):
        raise not_finite(info.dtype)
    if peak and not low <= peak <= high:
        raise NumericsError(
            f"products of the matrix are of size {peak:.1g}, and their powers are not finite or lost in {info.dtype}",
            suggest_float64(info.dtype, "scale the loss"),
        )


def breakdown(norm: Size, dtype: DTypeLike) -> Size:
    """The β below which a Krylov space counts as invariant, for ‖A‖ ≈ `norm`."""
    return 32 * np.finfo(dtype).eps * norm


@jit
def _recurrence(image: Array, current: Array, previous: Array, beta: Array) -> tuple[Array, Array]:
    """A v_j − β_j v_{j−1} − α_j v_j and α_j: α after the subtraction, Paige's stable order."""
    vectors = image - beta[:, None] * previous
    alpha = jnp.einsum("kd,kd->k", vectors, current)
    return vectors - alpha[:, None] * current, alpha


@jit
def normalise(vectors: Array) -> tuple[Array, Array]:
    """Unit vectors [k, dim] and the norms [k]; zero stays zero.

    Scaled by the largest entry first: squares of float32 numbers below 1e-19 are zero, and above 1e19 infinite.
    """
    peak = jnp.max(jnp.abs(vectors), axis=-1)
    peak = jnp.where(peak > 0, peak, 1)
    scaled = vectors / peak[:, None]
    norms = jnp.linalg.norm(scaled, axis=-1)
    return scaled / jnp.where(norms > 0, norms, 1)[:, None], norms * peak


@jit
def _keep(vectors: Array, going: Array) -> Array:
    return jnp.where(going[:, None], vectors, 0)
