"""What examples do to themselves: self-influence, and the leverage that corrects the scores of removals."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax import Array

from curvcli.analyses.common.rounding import exact
from curvcli.analyses.influence.context import Study
from curvcli.analyses.influence.ranking import Ranker, Strength, moves, moves_labels, strength
from curvcli.analyses.spectrum import noise
from curvcli.curvature.influence import leverage as pulling
from curvcli.curvature.influence.responses import Piece
from curvcli.curvature.matrices import has, has_root
from curvcli.errors import NumericsError, UsageError
from curvcli.linalg.diagonal.estimators import signs
from curvcli.problem import Problem
from curvcli.schema.estimate import Estimate
from curvcli.schema.influence import InfluenceSettings, Leverage, SelfInfluence
from curvcli.streams import Stream

LARGEST = 0.99
"""Of an eigenvalue of a sampled H_n h_n. An exact one is at most 1 where C is a GGN: at 1 the others do not determine
what the example is fitted by, and nothing can be said of its removal."""


class InverseRoot(NamedTuple):
    """Vectors with Σ_k u_k u_kᵀ = (C + λI)⁻¹, exactly or in expectation."""

    vectors: Array  # [K, D]
    samples: int  # 0 where exact
    energies: np.ndarray | None  # [K], u_kᵀ C_data u_k, in the scale of whole samples; None where R has its own shape


def inverse_root(study: Study) -> InverseRoot:
    """The scaled eigenvectors of C + λI, or samples: solutions whose right-hand sides were drawn from it; of factors
    the inverse root times random signs. Made once.

    Raises
    ------
    NumericsError
        C + λI is written out, and not positive definite.
    """
    if study.root is None:
        study.root = _exact(study) if study.system.values is not None else _sampled(study)
    return study.root


def _exact(study: Study) -> InverseRoot:
    system = study.system
    assert system.values is not None
    assert system.vectors is not None
    shifted = system.values + system.damping
    if shifted[0] <= noise(study.settings) * abs(shifted[-1]):
        raise NumericsError(
            f"self-influence and leverage need {study.settings.matrix} + λI to be positive definite, and its smallest "
            f"eigenvalue is {shifted[0]:.2g}",
            "use more --damping, or --matrix ggn",
        )
    vectors = jnp.asarray((system.vectors / np.sqrt(shifted)).T, study.problem.dtype)
    return InverseRoot(vectors, 0, _energies(study, (shifted - _shift(study)) / shifted))


def check_drawable(problem: Problem, settings: InfluenceSettings) -> None:
    """Whether C + λI can be drawn from where it is not written out.

    Raises
    ------
    UsageError
        It cannot.
    """
    curved = settings.regulariser_included and problem.regulariser.fn is not None
    if curved or not has_root(settings.matrix, problem.loss):
        what = "a regulariser of your own" if curved else f"the {settings.matrix} of {problem.loss.name}"
        raise UsageError(
            f"self-influence and leverage draw from the matrix, and {what} cannot be drawn from",
            "use --solver dense where the network is small, --matrix gauss-newton, or --no-regulariser",
        )


def _sampled(study: Study) -> InverseRoot:
    settings, sample = study.settings, _drawn if study.system.factors is None else _signed
    parts, energies = [], []
    for first in range(0, settings.samples, study.at_once):
        vectors, energy = sample(study, first, min(study.at_once, settings.samples - first))
        parts.append(vectors / settings.samples**0.5)
        energies.append(energy)
    return InverseRoot(jnp.concatenate(parts), settings.samples, _energies(study, np.concatenate(energies)))


def _drawn(study: Study, first: int, count: int) -> tuple[Array, np.ndarray]:
    """Solutions whose right-hand sides have the covariance C + λI [count, D], and their energies [count]."""
    shift = _shift(study)
    drawn = pulling.draw(study.problem, study.settings.matrix, shift, study.settings.seed, first, count)
    study.meter.data_passes += 1
    solved = study.system.solve(drawn, [f"samples {first} to {first + count - 1}"], one_record=True)
    return solved, _forms(solved, drawn) - shift * _forms(solved, solved)


def _signed(study: Study, first: int, count: int) -> tuple[Array, np.ndarray]:
    """The same from the root of the factors' inverse and random signs. Cost: a product each, for the energies alone."""
    system, key = study.system, Stream.SELF_INFLUENCE.key(study.settings.seed)
    drawn = system.by_factors(-0.5, signs(key, first, count, system.matrix.dim, system.matrix.dtype))
    l2 = _shift(study) - system.damping  # which is in C
    return drawn, _forms(drawn, system.matrix.matmat(drawn)) - l2 * _forms(drawn, drawn)


def _forms(rows: Array, others: Array) -> np.ndarray:
    """Inner products of rows [k, D] with others: float64 [k]."""
    return np.einsum("kd,kd->k", np.asarray(rows, np.float64), np.asarray(others, np.float64))


def _shift(study: Study) -> float:
    l2 = study.problem.regulariser.l2 if study.settings.regulariser_included else 0.0
    return study.system.damping + l2


def _energies(study: Study, found: np.ndarray) -> np.ndarray | None:
    curved = study.settings.regulariser_included and study.problem.regulariser.fn is not None
    return None if curved or not has(study.settings.matrix, "output_side") else found


class Found(NamedTuple):
    """Self-influence."""

    report: SelfInfluence
    ranker: Ranker
    scores: Piece  # [1, N, ...]
    stderr: np.ndarray  # of the strengths at the two ends, [2, 1, N]


def self_influence(study: Study, root: InverseRoot) -> Found:
    """Every example's response to itself. Cost: two forward derivatives a vector of the root."""
    problem, mode, measure = study.problem, study.settings.mode, study.settings.measure
    assert mode != "hyper"
    ranker, parts, errors, start = Ranker(1, study.settings.top), [], [], 0
    moving = measure != "output" and moves_labels(mode, problem.loss)
    contrast = moves if moving else None
    for found in pulling.own_entries(problem, mode, measure, root.vectors, study.at_once, contrast):
        sign = 1.0 if mode == "remove" else -1.0
        total = {name: sign * one[None] for name, one in found.total.items()}
        count = next(iter(total.values())).shape[1]
        rows = slice(start, start + count)
        targets, weight = np.asarray(problem.batches.targets[rows]), problem.batches.weight[rows]
        # Of outputs their norm stands for an example.
        strong = _norms(total) if measure == "output" else strength(mode, problem.loss, total, targets, weight)
        centre = {name: moves(one, targets) if moving else one for name, one in total.items()}
        spread = {name: _stderr(centre[name], one[None], root.samples) for name, one in found.squares.items()}
        ranker.add(strong)
        errors.append(_of_strength(strong, spread))
        parts.append(total)
        start += count
    study.meter.data_passes += 2 * -(-len(root.vectors) // study.at_once)
    stderr, sizes = np.concatenate(errors, axis=2), np.abs(ranker.all)
    relative = np.divide(stderr[0], sizes, out=np.zeros_like(stderr[0]), where=sizes > 0)
    scores = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    study.arrays["self_strength"], study.arrays["self_stderr"] = ranker.all[0], stderr[0, 0]
    report = SelfInfluence(
        method="sampled" if root.samples else "exact", samples=root.samples,
        relative_stderr=float(np.median(relative)) if root.samples else 0.0,
        total_leverage=_total(root, study.settings.confidence),
    )  # fmt: skip
    return Found(report, ranker, scores, stderr)


def _stderr(total: np.ndarray, squares: np.ndarray, samples: int) -> np.ndarray:
    """Of means over samples, from the sums of the K-th parts and of their squares; 0 where exact."""
    if not samples:
        return np.zeros_like(total)
    return np.sqrt(np.maximum(samples * squares - np.square(total), 0) / (samples - 1))


def sampled_interval(
    score: float, stderr: float, samples: int, confidence: float, *, squares: bool
) -> tuple[float, float]:
    """Where a score lies that is a mean over samples.

    Of a removal's score every sample is the square of a normal variable, so that the mean has the law of χ² with as
    many degrees of freedom as samples. Of others it is a product xy of two, with E xy = ρσ_xσ_y and the variance
    (1 + ρ²)σ_x²σ_y², which is twice the square of the mean at least: Student's interval with no smaller variance is
    joined to that of χ², both with what the samples may miss of their spread.

    Parameters
    ----------
    squares
        Whether the samples are squares.
    """
    level = 1 - confidence
    if not squares:
        size, spread = abs(score) + 0.5 * stderr, max(stderr, abs(score) * (2 / samples) ** 0.5)
        spread = (spread**2 + 3 * stderr**2 / samples) ** 0.5
        margin = float(scipy.stats.t.ppf(1 - level / 2, samples - 1)) * spread
    else:
        size, margin = abs(score), 0.0
    near, far = (samples / float(scipy.stats.chi2.ppf(end, samples)) for end in (1 - level / 2, level / 2))
    ends = sorted((np.copysign(near * abs(score), score), np.copysign(far * size, score)))
    return min(float(ends[0]), score - margin), max(float(ends[1]), score + margin)


def _norms(piece: Piece) -> Strength:
    squares = [np.sum(np.square(one), axis=tuple(range(2, one.ndim))) for one in piece.values()]
    return Strength(np.sqrt(np.sum(squares, axis=0)), None)


def _of_strength(strong: Strength, spread: Piece) -> np.ndarray:
    """Standard errors [2, 1, b] of strengths at both ends: of the entry that each is, or at most of its norm."""
    if strong.towards is None:
        return np.stack([_norms(spread).high] * 2)
    flat = spread[""].reshape(*spread[""].shape[:2], -1)
    first = (0, 0) if strong.token is None else [token * spread[""].shape[-1] for token in strong.token]
    places = [start + to for start, to in zip(first, strong.towards, strict=True)]
    return np.stack([np.take_along_axis(flat, place[..., None], axis=-1)[..., 0] for place in places])


def _total(root: InverseRoot, confidence: float) -> Estimate | None:
    """Σ_n tr(H_n h_n): the sum over the spectrum where it is exact, else the mean over the samples."""
    if root.energies is None:
        return None
    if not root.samples:
        size = float(np.linalg.norm(root.energies))
        return exact(float(root.energies.sum()), confidence, size, len(root.energies))
    mean, stderr = float(root.energies.mean()), float(root.energies.std(ddof=1) / root.samples**0.5)
    width = float(scipy.stats.t.ppf(0.5 + confidence / 2, root.samples - 1)) * stderr
    return Estimate(
        value=mean, stderr=stderr, interval=(mean - width, mean + width), confidence=confidence,
        samples=root.samples, method="solves of draws",
    )  # fmt: skip


def corrected(
    study: Study, root: InverseRoot, solutions: Array | None, plain: np.ndarray
) -> tuple[Leverage, np.ndarray]:
    """Removal scores with (I − H_n h_n)⁻¹ between query and example: what a Newton step without it gives.

    Parameters
    ----------
    solutions
        Of the queries, [R, D]; None corrects self-influence.
    plain
        The scores without correction, [R, N].

    Returns
    -------
    The report's account, and the corrected scores [R, N].
    """
    problem, name = study.problem, study.settings.matrix
    # Of self-influence the query's solution is the example's own: J_n s_n = M h_n ∂q/∂z.
    own = solutions is None
    vectors = root.vectors[:1] if solutions is None else solutions
    limit = LARGEST if root.samples else 1 - noise(study.settings)
    gains, scores, capped = [], [], 0
    shares = pulling.leverages(problem, root.vectors, study.at_once)
    for pull in pulling.pulls(problem, name, vectors, shares, study.at_once):
        top = np.abs(np.linalg.eigvals(pull.curvature)).max(axis=-1)
        shrink = np.minimum(1.0, limit / np.maximum(top, limit))
        capped += int(np.sum(shrink < 1))
        kept = np.eye(pull.curvature.shape[-1])[None] - shrink[:, None, None] * pull.curvature
        moved = np.linalg.solve(kept, pull.gradient[..., None])[..., 0]  # (I − H h)⁻¹ ∂L/∂z
        if own:
            scores.append(np.einsum("bi,bij,bj->b", pull.slope, pull.leverage, moved)[None])
        else:
            scores.append(np.einsum("kbo,bo->kb", pull.tangents, moved) / problem.normaliser)
        gains.append(top)
    study.meter.data_passes += 1 + -(-len(root.vectors) // study.at_once)
    found, top = np.concatenate(scores, axis=1), np.concatenate(gains)
    relative = np.divide(np.abs(found - plain), np.abs(plain), out=np.zeros_like(found), where=plain != 0)
    report = Leverage(
        method="sampled" if root.samples else "exact", largest=float(top.max()), median=float(np.median(top)),
        changed=float(np.median(relative)), capped=capped,
    )  # fmt: skip
    return report, found if not own else found[0]
