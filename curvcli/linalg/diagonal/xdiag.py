"""XDiag: every test vector serves to find the dominant space, and to sample what the others have left of the diagonal.

With Q a basis of the span of all Aω_j, Q₍ᵢ₎ of all but Aω_i, and P the projection away from Q₍ᵢ₎,

    X_i = diag(A − PAP) + ω_i ⊙ PAPω_i − c (ω_i ⊙ Pω_i − diag P)

is unbiased for diag A. Its variance is that of the off-diagonal entries of P(A − cI)P, with c the mean curvature that
is left. As published, XDiag projects from one side, diag(QᵀQA) + ω ⊙ (I − QᵀQ)Aω, without c; for symmetric A both sides
leave less, by the same products.

*Standard errors.* The X_i are not independent: their mean has the variance s²/n + C, with s² the sample variance and
C = Cov(X_i, X_j). With X_i⁽ʲ⁾ the X_i that also does without Aω_j, C = E (X_i − X_i⁽ʲ⁾)(X_j − X_j⁽ⁱ⁾), because
X_i⁽ʲ⁾ does not depend on ω_j, nor has X_i, given all but ω_i, any other mean than the diagonal. It is measured for each
range as a whole.

Cost: 2s products; memory 4·s·D. Source: Epperly, Tropp and Webber (2024), *XTrace: making the most of every sample in
stochastic trace estimation*, on XDiag; the two sides, c and the covariance are curv's own.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.compiling import jit
from curvcli.linalg.diagonal.entries import Found, Ranges, Shared, assemble, ratio
from curvcli.linalg.reductions import inner_products
from curvcli.linalg.trace import exchange

COLUMNS = 1 << 14
"""Entries that samples are formed for at once: all of them together would take n·D numbers several times."""

ALL_PAIRS = 32
"""Pairs of test vectors up to which all are measured; beyond it each vector with its successor."""


class Left(NamedTuple):
    """What r×r matrices say of test vectors, t to each of n sets of directions of Q that are left out."""

    turn: np.ndarray  # [n, q, r], the directions: orthonormal or zero
    middle: np.ndarray  # [n, q, q], H between them
    away: np.ndarray  # [n, t, r], what of Qω is projected away
    back: np.ndarray  # [n, t, q], what of APω comes back along the directions
    tests: np.ndarray  # [n, t]


def xdiag(layout: Ranges, tests: Array, space: exchange.Range, images: Array) -> Found:
    """The diagonal from s ≥ 2 test vectors [s, D], a basis Q of their images' span, and its images AQ [r, D].

    Cost: no product; O(s²D).
    """
    h, rest = exchange.split(space.basis, images)
    h = np.asarray(0.5 * (h + h.T), np.float64)
    w, e = (np.asarray(inner_products(tests, rows), np.float64) for rows in (space.basis, rest))
    s, dim = tests.shape
    left, right = _pairs(s)
    single, pair = space.own[:, None, :], exchange.orthonormal_pairs(space.own[left], space.own[right])
    one = _leave_out(h, w, space.images, single, np.arange(s)[:, None])
    two = _leave_out(h, w, space.images, pair, np.stack([left, right], axis=1))
    inside = np.einsum("ntq,nqr,ntr->", one.back, one.turn, w[one.tests])
    norms = (dim - np.square(one.away).sum(-1)).sum()
    center = float(inside - np.sum(one.away * e[one.tests])) / max(float(norms), 1.0)  # uᵀAu / uᵀu over all u = Pω

    value, variance, sums = np.empty(dim), np.empty(dim), []
    for start in range(0, dim, COLUMNS):
        columns = tuple(_cut(rows, start, min(COLUMNS, dim)) for rows in (space.basis, rest, tests))
        stop = min(start + COLUMNS, dim)
        x, x_two, y, v = (
            np.asarray(a, np.float64)[..., : stop - start]
            for a in (_samples(columns, h, one, center)[0][:, 0], *_samples(columns, h, two, center), columns[2])
        )
        value[start:stop], variance[start:stop] = x.mean(0), x.var(0, ddof=1)
        moved, y, v = (np.moveaxis(a, 1, 0) for a in (x[two.tests] - x_two, y, v[two.tests]))  # [2, p, m]
        products = moved, moved.prod(0).mean(0), np.square(y), y.prod(0), v * y[::-1]
        sums.append([layout.sums(a, start) for a in products])
    change, common, own, shared, cross = (np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
    common = np.maximum(common, 0)
    pairs = Shared.of(layout, own, shared, cross)
    # The sum over a segment: as in `Moments.found`, with the share tr EBEB / tr EB²E of what two left out leave.
    variances = layout.gathered(layout.sums(variance) + common)
    share = np.clip(ratio(pairs.inner, pairs.own)[len(layout.ends) :], 0, 1)
    together = np.maximum(layout.gathered(change).prod(0).mean(0), 0)
    errors = (1 + share) * variances / s + (s - 1) / s * together
    rounding = float(jnp.finfo(tests.dtype).eps) * np.sqrt(np.square(np.asarray(images, np.float64)).sum(0))
    return assemble("xdiag", layout, value, variance, s, pairs, errors, common, rounding)


def _leave_out(h: np.ndarray, w: np.ndarray, r: np.ndarray, turn: np.ndarray, tests: np.ndarray) -> Left:
    """Test vectors `tests` [n, t] where the directions `turn` [n, q, r] are taken out of Q; Aω = r Q, w = Qω."""
    away = w[tests] - np.einsum("nqr,nqu,ntu->ntr", turn, turn, w[tests])
    back = np.einsum("nqr,ntr->ntq", turn, r[tests] - away @ h)
    return Left(turn, np.einsum("nqr,ru,npu->nqp", turn, h, turn), away, back, tests)


@jit
def _samples(columns: tuple[Array, Array, Array], h: Array, left: Left, center: Array) -> tuple[Array, Array]:
    """X and y = P(A − cI)Pω [n, t, m], for m columns of Q, of Z⊥ (AQ = HQ + Z⊥) and of the test vectors."""
    basis, rest, tests = columns
    dtype = basis.dtype
    h, turn, middle, away, back = (jnp.asarray(a, dtype) for a in (h, *left[:4]))
    center, tests = jnp.asarray(center, dtype), tests[left.tests]
    q, z = (jnp.einsum("nqr,rm->nqm", turn, rows) for rows in (basis, rest))
    known = (basis * (h @ basis + 2 * rest)).sum(0)[None] - 2 * (q * z).sum(1)
    known -= jnp.einsum("nqm,nqp,npm->nm", q, middle, q)
    inside = (jnp.square(basis).sum(0)[None] - jnp.square(q).sum(1))[:, None]  # diag(I − P)
    along = away @ basis
    image = jnp.einsum("ntq,nqm->ntm", back, q) - away @ rest
    sample = known[:, None] + tests * image + center * (tests * along - inside)
    return sample, image - center * (tests - along)


def _pairs(s: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs i < j where they are few, else each test vector with the next."""
    if s * (s - 1) // 2 <= ALL_PAIRS:
        return np.triu_indices(s, 1)
    return np.arange(s), (np.arange(s) + 1) % s


def _cut(rows: Array, start: int, width: int) -> Array:
    """Columns start, start + 1, … [k, width], zero beyond the last: one shape for all of them."""
    part = rows[:, start : start + width]
    return jnp.pad(part, ((0, 0), (0, width - part.shape[1])))
