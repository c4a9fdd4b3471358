"""XTrace: every test vector serves to find the dominant space, and to sample what the others have left of it.

Q is an orthonormal basis of the span of all Aω_j, for test vectors ω_j; Q₍ᵢ₎ spans all but Aω_i, so that ω_i is
independent of it, and with P₍ᵢ₎ the projection away from Q₍ᵢ₎

    X_i = tr(Q₍ᵢ₎ A Q₍ᵢ₎ᵀ) + D_i uᵀAu,      u = P₍ᵢ₎ω_i / ‖P₍ᵢ₎ω_i‖,   D_i = D − s + 1,

is unbiased. All of it is algebra of s×s matrices, once the inner products are known.

*Standard error.* The X_i are not independent, and their sample variance, which XTrace's authors propose, falls short.
Var X_i is that of Hutchinson's estimator on P₍ᵢ₎AP₍ᵢ₎, which D_i‖P₍ᵢ₎Au‖² estimates; and leaving out *two* test
vectors gives the covariance: with X_i⁽ʲ⁾ the X_i that also does without Aω_j,

    Cov(X_i, X_j) = E (X_i − X_i⁽ʲ⁾)(X_j − X_j⁽ⁱ⁾),

since X_i⁽ʲ⁾ does not depend on ω_j, nor has X_i, given all but ω_i, any other mean than the trace.

Cost: 2s products; memory 4·s·D. Source: Epperly, Tropp and Webber (2024), *XTrace: making the most of every sample in
stochastic trace estimation*, with its normalisation of the projected test vectors; the covariance is curv's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from curvcli.compiling import jit
from curvcli.linalg.reductions import combinations, inner_products, row_norms
from curvcli.linalg.statistics import Law, Pairs, SquareLaw, degrees_of_freedom, square_law
from curvcli.linalg.trace.hutchinson import Segments

MOST_PAIRS = 512
"""Pairs of test vectors that the covariance is averaged over, at most."""


class Range(NamedTuple):
    """An orthonormal basis of the span of images, and what each image has to itself."""

    basis: Array  # Q [r, D]
    images: np.ndarray  # R [s, r], Aω = R Q
    own: np.ndarray  # [s, r] unit vectors of the basis that only image i reaches; zero where the others reach all


def range_of(images: Array, before: Array | None = None) -> Range:
    """A basis of the span of images [s, D] that begins with the rows of `before`, a basis of the first of them.

    Directions below the rounding of the largest are no directions.
    """
    if before is not None:
        _, rest = split(before, images)
        rest = rest / jnp.maximum(row_norms(images)[:, None], jnp.finfo(images.dtype).tiny)
        fresh = _basis(rest, 1.0)
        basis = jnp.concatenate([before, fresh]) if len(fresh) else before
    else:
        basis = _basis(images, 0.0)
    inside = np.asarray(inner_products(images, basis), np.float64)
    left, values, right = np.linalg.svd(inside, full_matrices=False)
    solid = values > _rounding(inside, images.dtype) * max(values[0] if len(values) else 0.0, np.finfo(float).tiny)
    left, values, right = left[:, solid], values[solid], right[solid]
    alone = np.square(left).sum(1) > 1 - 1e-6  # the leverage: without image i the rank falls
    own = np.where(alone[:, None], (left / values) @ right, 0.0)
    norms = np.linalg.norm(own, axis=1, keepdims=True)
    return Range(basis, inside, own / np.where(norms > 0, norms, 1))


def _basis(rows: Array, largest: float) -> Array:
    """An orthonormal basis [r, D] of the span of rows, but for what is rounding beside `largest` or their own size."""
    orthogonal, triangle = _qr(rows)
    _, values, right = np.linalg.svd(np.asarray(triangle, np.float64).T, full_matrices=False)
    top = max(values[0] if len(values) else 0.0, largest, np.finfo(float).tiny)
    solid = values > _rounding(np.asarray(triangle), rows.dtype) * top
    return combinations(jnp.asarray(right[solid], rows.dtype), orthogonal.T)


def _rounding(matrix: np.ndarray, dtype: DTypeLike) -> float:
    return len(matrix) * float(np.finfo(dtype).eps)


@jit
def _qr(images: Array) -> tuple[Array, Array]:
    found: Any = jnp.linalg.qr(images.T)
    return found


class Sketch(NamedTuple):
    """All inner products that XTrace needs, in float64. With w = Qω, e = Z⊥ω, where AQ = HQ + Z⊥."""

    dim: int
    omega: np.ndarray  # [s, s], ω_iᵀω_j
    w: np.ndarray  # [s, r]
    e: np.ndarray  # [s, r]
    r: np.ndarray  # [s, r], the images in the basis
    h: np.ndarray  # [r, r]
    rest: np.ndarray  # [r, r], Z⊥ Z⊥ᵀ
    own: np.ndarray  # [s, r]
    grams: np.ndarray  # [L, s + 2r, s + 2r] of the rows Ω, Q, Z⊥ by segment


def sketch(segments: Segments, tests: Array, space: Range, images: Array) -> Sketch:
    """Inner products of test vectors [s, D], a basis Q [r, D] and its images AQ [r, D]."""
    h, rest = split(space.basis, images)
    rows = jnp.concatenate([tests, space.basis, rest])
    grams = np.asarray(_segment_grams(segments, rows), np.float64)
    whole, s, r = grams.sum(0), len(tests), len(space.basis)
    h = np.asarray(h, np.float64)
    return Sketch(
        tests.shape[1], whole[:s, :s], whole[:s, s : s + r], whole[:s, s + r :], space.images, 0.5 * (h + h.T),
        whole[s + r :, s + r :], space.own, grams,
    )  # fmt: skip


@jit
def split(basis: Array, images: Array) -> tuple[Array, Array]:
    """AQ = HQ + Z⊥, in two passes: what remains of a fast decaying spectrum must not be the rounding of the first."""
    h = images @ basis.T
    rest = images - h @ basis
    return h, rest - (rest @ basis.T) @ basis


@jit(static_argnums=0)
def _segment_grams(segments: Segments, rows: Array) -> Array:
    return jnp.stack([sum(rows[:, a:b] @ rows[:, a:b].T for a, b in part) for part in segments])


@jit(static_argnums=0)
def segment_norms(segments: Segments, basis: Array) -> Array:
    """[L] squared norms of the segments of all rows together: the dimensions that a basis takes of each."""
    return jnp.stack([sum(jnp.sum(jnp.square(basis[:, a:b])) for a, b in part) for part in segments])


@jit(static_argnums=0)
def segment_traces(segments: Segments, basis: Array, images: Array) -> Array:
    """[L] the trace of Qᵀ(AQ) on each segment."""
    return jnp.stack([sum(jnp.sum(basis[:, a:b] * images[:, a:b]) for a, b in part) for part in segments])


class Remainder(NamedTuple):
    """Test vectors with their image space left out: samples of the trace and of the square, and what they rest on."""

    trace: np.ndarray  # [..., s] X
    square: np.ndarray  # [..., s] the same for ‖A‖_F²
    p: np.ndarray  # [..., s, r], the coordinates of ω that are projected away
    c: np.ndarray  # [..., s, q], those of Au that come back
    norm: np.ndarray  # [..., s], ‖Pω‖²
    rayleigh: np.ndarray  # [..., s], uᵀAu
    image: np.ndarray  # [..., s], ‖PAu‖²
    dim: np.ndarray  # [...], dimensions that are left


def leave_out(k: Sketch, turn: np.ndarray, tests: np.ndarray) -> Remainder:
    """X of `tests` [..., s] with the directions `turn` [..., q, r] (orthonormal rows, or zero) taken out of Q."""
    w, e, r = k.w[tests], k.e[tests], k.r[tests]
    p = w - _project(turn, w)
    inside = np.einsum("...qr,...sr->...sq", turn, r - p @ k.h)
    back = np.einsum("...qr,...sr->...sq", turn, w)
    norm = np.maximum(np.diag(k.omega)[tests] - np.square(p).sum(-1), np.finfo(float).tiny)
    rayleigh = (np.einsum("...sq,...sq->...s", back, inside) - np.einsum("...sr,...sr->...s", e, p)) / norm
    image = (np.square(inside).sum(-1) + np.einsum("...sr,rt,...st->...s", p, k.rest, p)) / norm
    th, tr = turn @ k.h, turn @ (k.rest + k.h @ k.h)
    gone = np.einsum("...qr,...qr->...", th, turn)
    rank = np.square(turn).sum((-1, -2))
    dim = k.dim - (len(k.h) - rank)
    # ‖A‖_F² = 2‖AQ₍ᵢ₎‖² − ‖Q₍ᵢ₎AQ₍ᵢ₎ᵀ‖² + ‖PAP‖²
    images = np.trace(k.rest) + np.square(k.h).sum() - np.einsum("...qr,...qr->...", tr, turn)
    within = (
        np.square(k.h).sum() - 2 * np.square(th).sum((-1, -2)) + np.square(th @ np.swapaxes(turn, -1, -2)).sum((-1, -2))
    )
    trace = (np.trace(k.h) - gone)[..., None] + dim[..., None] * rayleigh
    square = (2 * images - within)[..., None] + dim[..., None] * image
    return Remainder(trace, square, p, inside, norm, rayleigh, image, dim)


def _project(turn: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.einsum("...qr,...qt,...st->...sr", turn, turn, rows)


class Exchanged(NamedTuple):
    """What XTrace finds."""

    trace: Law
    square: SquareLaw
    parts: list[Law]


def xtrace(k: Sketch, sizes: np.ndarray) -> Exchanged:
    """Trace, ‖A‖_F² and the segments' traces with their laws. Cost: no product; O(pairs·s²) on the host.

    Parameters
    ----------
    k
        The inner products.
    sizes
        [L] dimensions of the segments.
    """
    s = len(k.omega)
    one = leave_out(k, k.own[:, None, :], np.arange(s)[:, None])
    x, dims, rayleigh = one.trace[:, 0], one.dim, one.rayleigh[:, 0]
    shift = float(rayleigh.mean())
    body = dims * np.maximum(one.image[:, 0] - 2 * shift * rayleigh + shift**2, 0)  # D_i‖PBu‖² with B = A − shift·I
    known = float(np.mean(one.square[:, 0] - dims * one.image[:, 0]))
    dim = float(dims.mean())
    variance = float(np.mean(2 * dims / (dims + 2) * body)) / s
    if s == 1:
        law = Law(float(x[0]), variance**0.5, 1.0)
        square = square_law(known, shift, dim, float(body[0]), Pairs(0, 0, 0, 0, 0), law, 1)
        return Exchanged(law, square, _parts(k, one, sizes, 1.0, law))
    left, right = _pairs(s)
    two = leave_out(k, orthonormal_pairs(k.own[left], k.own[right]), np.stack([left, right], axis=-1))
    pairs = _pair_means(k, two, left, right, shift)
    change = [x[test] - two.trace[:, side] for side, test in ((0, left), (1, right))]
    covariance = _covariance(change[0], change[1], s)
    # Where the X_i vary together, they are fewer samples than they seem.
    dof = degrees_of_freedom(s, pairs.means.product, pairs.fourth_raw, pairs.means.number)
    dof *= variance / (variance + covariance or 1.0)
    law = Law(float(x.mean()), float(np.sqrt(variance + covariance)), max(dof, 1.0))
    square = square_law(known, shift, dim, float(body.mean()), pairs.means, law, s)
    # Of ‖B‖_F² alone: the covariance of the X_i for the square, less that of the term 2c tr B.
    squares = [one.square[test, 0] - two.square[:, side] for side, test in ((0, left), (1, right))]
    first, second = (a - 2 * shift * b for a, b in zip(squares, change, strict=True))
    common = _covariance(first, second, s)
    # The variance at the size that the remainder has with two images left out: of fast decaying spectra it is larger.
    own = square.body.stderr * max(pairs.body / (float(body.mean()) or 1.0), 1.0)
    total = float(np.hypot(own, common**0.5))
    share = (own / total) ** 2 if total > 0 else 1.0
    square = square._replace(body=square.body._replace(stderr=total, dof=max(square.body.dof * share, 1.0)))
    inflation = law.stderr / variance**0.5 if variance > 0 else 1.0
    return Exchanged(law, square, _parts(k, one, sizes, inflation, law))


class _Measured(NamedTuple):
    """Means over pairs of test vectors, with the images of both left out of Q."""

    means: Pairs
    fourth_raw: float  # of (D (Bv_i)ᵀ(Bv_j))²
    body: float  # of D‖Bv‖²


def _pair_means(k: Sketch, two: Remainder, left: np.ndarray, right: np.ndarray, shift: float) -> _Measured:
    """Given Q without either image, the two test vectors are independent of it: pairs as good as Hutchinson's."""
    scale = two.dim / np.sqrt(two.norm[:, 0]) / np.sqrt(two.norm[:, 1])  # norms may be the smallest of all numbers
    v = (k.omega[left, right] - np.einsum("pr,pr->p", two.p[:, 0], two.p[:, 1])) * scale
    cross = 0.5 * _cross(k, two, left, right) * scale
    gram = np.einsum("pq,pq->p", two.c[:, 0], two.c[:, 1]) + _quadratic(two.p[:, 0], k.rest, two.p[:, 1])
    gram = gram * scale - 2 * shift * cross + shift**2 * v
    cross = cross - shift * v
    body = two.dim[:, None] * np.maximum(two.image - 2 * shift * two.rayleigh + shift**2, 0)
    centred = gram - body.mean() * v / np.where(two.dim > 0, two.dim, 1)
    means = Pairs(
        len(left), float(np.mean(body.prod(1))), float(np.mean(cross**2)), float(np.mean(cross * centred)),
        float(np.mean(centred**2)),
    )  # fmt: skip
    return _Measured(means, float(np.mean(gram**2)), float(body.mean()))


def _quadratic(left: np.ndarray, matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left_iᵀ M right_i for every row."""
    return np.einsum("ir,rt,it->i", left, matrix, right)


def _pairs(s: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs i < j, or evenly many of each vector where there are too many."""
    left, right = np.triu_indices(s, 1)
    if len(left) <= MOST_PAIRS:
        return left, right
    offsets = np.unique(np.linspace(1, s // 2, max(MOST_PAIRS // s, 1)).astype(int))
    left = np.tile(np.arange(s), len(offsets))
    return left, (left + np.repeat(offsets, s)) % s


def orthonormal_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pairs of unit (or zero) vectors [p, r] made orthonormal: [p, 2, r]."""
    rest = second - np.sum(first * second, axis=1, keepdims=True) * first
    norms = np.linalg.norm(rest, axis=1, keepdims=True)
    return np.stack([first, np.where(norms > 1e-8, rest / np.where(norms > 0, norms, 1), 0)], axis=1)


def _cross(k: Sketch, two: Remainder, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """v_iᵀAv_j + v_jᵀAv_i for the projected, not normalised, test vectors of each pair."""
    total = np.zeros(len(left))
    for a, b, i, j in ((0, 1, left, right), (1, 0, right, left)):
        p, image = two.p[:, a], k.r[j] - two.p[:, b] @ k.h
        total += np.einsum("pr,pr->p", k.w[i] - p, image) - np.einsum("pr,pr->p", k.e[i], two.p[:, b])
    return total


def _covariance(first: np.ndarray, second: np.ndarray, s: int) -> float:
    """What the covariances of the X_i add to the variance of their mean, by leaving two out; not negative."""
    return max(float(np.mean(first * second)) * (s - 1) / s, 0.0)


def _parts(k: Sketch, one: Remainder, sizes: np.ndarray, inflation: float, whole: Law) -> list[Law]:
    """The segments' traces: X_i taken apart. The values sum to the whole."""
    s, r = len(k.omega), len(k.h)
    dims, p, norm = one.dim, one.p[:, 0], one.norm[:, 0]
    own, shift = k.own, float(one.rayleigh.mean())
    laws = []
    for gram, size in zip(k.grams, sizes, strict=True):
        oo, oq, oz = gram[:s, :s], gram[:s, s : s + r], gram[:s, s + r :]
        qq, qz, zz = gram[s : s + r, s : s + r], gram[s : s + r, s + r :], gram[s + r :, s + r :]
        # u = ω − pQ, Au = (R − pH)Q − pZ⊥, each restricted to the segment; AQ = HQ + Z⊥.
        a = k.r - p @ k.h
        uu = np.diag(oo) - 2 * np.sum(oq * p, 1) + _quadratic(p, qq, p)
        ua = np.sum(oq * a, 1) - np.sum(oz * p, 1) - _quadratic(p, qq, a) + _quadratic(p, qz, p)
        aa = _quadratic(a, qq, a) - 2 * _quadratic(a, qz, p) + _quadratic(p, zz, p)
        exact = k.h @ qq + qz.T  # (AQ)ᵀ Q on the segment: its trace is the known part
        known = np.trace(exact) - _quadratic(own, exact, own)
        inside = size - (np.trace(qq) - _quadratic(own, qq, own))  # dimensions that are left here
        samples = known + dims / norm * (ua - shift * uu) + shift * inside
        body = np.maximum(dims / norm * (aa - 2 * shift * ua + shift**2 * uu), 0)
        # tr EBEB ≤ tr EB²E, the latter taken for both: pairs say nothing here, since uᵢ is orthogonal to Aω_j.
        variance = float(np.mean(2 * dims / (dims + 2) * body)) / s
        laws.append(Law(float(samples.mean()), variance**0.5 * inflation, min(whole.dof, 4.0 * s)))
    return laws
