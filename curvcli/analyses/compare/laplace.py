"""Laplace's approximation of the posterior: log evidence, effective parameters, variances of the outputs.

With the data term M·C of the curvature and a normal prior of precision τ the posterior is taken for normal around the
weights w, of precision P = M·C + τI, M the normaliser of the loss: M·J without R is −log p(data | w) but for constants.

    log p(data) ≈ log p(data | w) + log p(w) + ½D log 2π − ½ log det P
                = log p(data | w) − ½τ‖w‖² − ½ log det(I + M·C/τ)

It is exact where the outputs are linear in the weights, the loss is squared error, and w minimises J. Elsewhere it is
the linearised Laplace of the network at w, be w a minimum or not.

Source: MacKay (1992), *A practical Bayesian framework for backpropagation networks*, *The evidence framework applied
to classification networks*; Ritter, Botev and Barber (2018) for K-FAC; Immer, Korzepa and Bauer (2021) for the GGN.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special
from jax import Array

from curvcli.analyses.common import planning, rounding
from curvcli.analyses.common.dense import (
    DENSE_BLOCK,
    DENSE_DIM,
    outputs_written_out,
    plan_outputs,
    smaller_side,
    written_out,
)
from curvcli.analyses.common.estimates import estimate
from curvcli.analyses.common.precision import weights_norm
from curvcli.analyses.compare.candidates import Diagonalised, Spectral, operator_of
from curvcli.curvature.flatten import Layout
from curvcli.curvature.influence import leverage, queries
from curvcli.curvature.products import sums
from curvcli.curvature.products.ntk import example_outputs
from curvcli.errors import SpecError, UsageError, suggest_float64
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.krylov.quadrature import Function, Quadrature
from curvcli.linalg.krylov.slq import Collected, Slq, quadrature
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.solvers import cg
from curvcli.linalg.statistics import Law, student_interval
from curvcli.losses import LOSSES
from curvcli.problem import Problem, in_float64, unit_weight
from curvcli.schema.compare import CompareSettings, Laplace, Predictive
from curvcli.schema.estimate import Bounded, Estimate
from curvcli.schema.settings import AnalysisSettings

PROBES, STEPS = 10, 80
"""Lanczos processes, and their steps, for a determinant that is sampled."""

DRAWN, SPECTRUM = 14, 13
"""Streams of random vectors within a seed."""

LEAST_DECREMENT = 0.5
"""Nats that the weights may lie below the peak of the posterior's model without a word."""

BLOCK = 16


class Sums(NamedTuple):
    """Spectral sums over C."""

    log_det: Estimate  # log det(I + M·C/τ)
    effective: Estimate


class LaplacePlan(NamedTuple):
    """Vectors in a block, bytes and products beyond those of the comparison."""

    at_once: int
    bytes: int
    products: int


def plan_laplace(problem: Problem, settings: CompareSettings, *, dense: bool) -> LaplacePlan:
    """What --laplace takes; nothing without it. A solve is counted as 50 products.

    Parameters
    ----------
    dense
        Whether matrices are written out.

    Raises
    ------
    UsageError
        There is no proper prior.
    SpecError
        The loss is no normalised likelihood.
    MemoryLimitError
        It does not fit.
    """
    if settings.laplace is None:
        return LaplacePlan(0, 0, 0)
    _prior_precision(problem, settings)
    _check_likelihood(problem)
    dim, costly = problem.dim, settings.laplace == "ggn"
    if dense:
        return LaplacePlan(DENSE_BLOCK, 32 * dim**2, dim * costly)
    plan = planning.plan_vectors(problem, settings, dim, rows=2 * BLOCK, block=BLOCK)
    rows = smaller_side(problem, _plain(settings)).rows if costly else 0
    products = 50 * settings.samples + (rows if rows <= DENSE_DIM else PROBES * STEPS)
    return LaplacePlan(plan.at_once, plan.bytes, products * costly)


def laplace(
    problem: Problem,
    settings: CompareSettings,
    objective: float,
    gradient: Array,
    monitor: Monitor,
    meter: Meter,
    warnings: list[str],
    *,
    dense: bool,
) -> tuple[Laplace, dict[str, np.ndarray]]:
    """The read-out, and the variances of all outputs for `--arrays`.

    Parameters
    ----------
    objective, gradient
        J and ∇J [D] at the weights.
    dense
        Whether the matrix is written out.

    Notes
    -----
    Cost: for the GGN D products where it is written out, a product an output where these are fewer; else 800 products
    for the determinant, and `samples` solves for the variances. For factors none. Every vector of a root takes a
    forward derivative of all examples.
    """
    assert settings.laplace is not None
    precision, origin = _prior_precision(problem, settings)
    plan = plan_laplace(problem, settings, dense=dense)
    operator, spectral = operator_of(problem, settings, settings.laplace, regulariser=False), None
    if settings.laplace == "ggn":
        operator = meter.count(operator)
    if dense:
        spectral = Diagonalised.of(written_out(operator, min(DENSE_BLOCK, operator.dim), monitor))
    elif operator.known is not None:
        spectral = cast(Spectral, operator.known)
    method, found = _sums(problem, settings, operator, spectral, precision / problem.normaliser, monitor, meter)
    likelihood = problem.normaliser * (float(sums.regulariser_value(problem, problem.params)) - objective)
    likelihood -= _constants(problem)
    weights = weights_norm(problem) ** 2
    roots = _roots(problem, settings, operator, spectral, precision, plan.at_once, monitor, warnings)
    predictive, variances = _predictive(problem, settings, roots, exact=dense)
    decrement = _decrement(problem, settings, operator, spectral, precision, gradient, monitor)
    evidence = _affine(found.log_det, -0.5, likelihood - 0.5 * precision * weights)
    if decrement > max(LEAST_DECREMENT, 0.5 * (evidence.interval[1] - evidence.interval[0])):
        warnings.append(
            "--laplace: the weights are no maximum of the posterior: the peak of its quadratic model lies "
            f"{decrement:.3g} nats above them (½ gᵀP⁻¹g), which neither the evidence nor its interval accounts for; "
            "train on to a small gradient"
        )
    told = Laplace(
        matrix=settings.laplace, method=method, prior_precision=precision, prior=origin,
        log_evidence=evidence, decrement=decrement,
        log_likelihood=likelihood,
        log_prior=0.5 * problem.dim * math.log(precision / (2 * math.pi)) - 0.5 * precision * weights,
        log_det=_affine(found.log_det, 1.0, problem.dim * math.log(precision)),
        effective_parameters=Bounded.judged(found.effective, problem.dim), predictive=predictive,
    )  # fmt: skip
    return told, {"variance": variances} if settings.arrays else {}


def _prior_precision(problem: Problem, settings: CompareSettings) -> tuple[float, Literal["of the loss", "given"]]:
    """τ as given, or the loss's own: exp(−M·R) is then the prior.

    Raises
    ------
    UsageError
        R is no multiple of ‖w‖².
    """
    if settings.prior_precision is not None:
        return settings.prior_precision, "given"
    own = problem.normaliser * problem.regulariser.l2
    if own <= 0 or problem.regulariser.fn is not None:
        what = "a regulariser of your own is" if problem.regulariser.fn is not None else "a loss without l2 has"
        raise UsageError(
            f"--laplace needs a normal prior, and {what} none", "give --prior-precision, of every weight, or --l2"
        )
    return own, "of the loss"


def _decrement(
    problem: Problem,
    settings: CompareSettings,
    operator: LinearOperator,
    spectral: Spectral | None,
    precision: float,
    gradient: Array,
    monitor: Monitor,
) -> float:
    """½ gᵀP⁻¹g, g the gradient of −log posterior, M(∇J − ∇R) + τw.

    Cost: a solve where the matrix is neither written out nor of factors.
    """
    normaliser, shift = problem.normaliser, precision / problem.normaliser
    weights = Layout.of(problem.params).ravel(problem.params)
    slope = jnp.asarray(gradient) - _regulariser_slope(problem) + shift * weights  # g/M
    if spectral is not None:
        inverse = spectral.function(lambda values: 1 / (np.maximum(values, 0) + shift))
        step = jnp.asarray(inverse(np.asarray(slope)[None]))[0]
    else:
        system = operator.with_products(lambda v: operator.matmat(v) + shift * v, psd=True)
        step = cg.solve(system, slope[None], tol=settings.tol, max_steps=settings.cg_steps, monitor=monitor).x[0]
    return max(0.5 * normaliser * float(np.asarray(slope, np.float64) @ np.asarray(step, np.float64)), 0.0)


def _regulariser_slope(problem: Problem) -> Array:
    """∇R at the weights: [D]."""
    slope = jax.grad(lambda params: sums.regulariser_value(problem, params))(problem.params)
    return Layout.of(problem.params).ravel(slope)


def _check_likelihood(problem: Problem) -> None:
    """The evidence needs a normalised likelihood.

    Raises
    ------
    SpecError
        The loss is the user's own.
    """
    if not problem.loss.known:
        raise SpecError(
            f"--laplace needs a likelihood with its normalising constants, and {problem.loss.name} does not tell them",
            f"the losses that do are {', '.join(LOSSES)}",
        )


def _plain(settings: CompareSettings) -> AnalysisSettings:
    """What the output side of the GGN is asked for with."""
    return AnalysisSettings(matrix="ggn", regulariser=False, seed=settings.seed, dtype=settings.dtype)


def _sums(
    problem: Problem,
    settings: CompareSettings,
    operator: LinearOperator,
    spectral: Spectral | None,
    shift: float,
    monitor: Monitor,
    meter: Meter,
) -> tuple[Literal["dense", "outputs", "factors", "sampled"], Sums]:
    """Σ log(1 + c/s) and Σ c/(c + s) over the eigenvalues c of C, s = τ/M."""

    dense = isinstance(spectral, Diagonalised)

    def logs(values: np.ndarray) -> np.ndarray:
        return np.log1p(np.maximum(values, 0) / shift)

    def shares(values: np.ndarray) -> np.ndarray:
        return np.maximum(values, 0) / (np.maximum(values, 0) + shift)

    def exact(values: np.ndarray) -> Sums:
        size = float(np.abs(values).max(initial=0.0))
        noise = rounding.OWN * size * float(np.finfo(np.float64 if spectral is None or dense else operator.dtype).eps)
        found = []
        for f in (logs, shares):
            margin = float(np.abs(f(values + noise) - f(values)).sum())
            found.append(rounding.widened(Estimate.exact(float(f(values).sum()), settings.confidence), margin))
        return Sums(*found)

    if spectral is not None:
        return "dense" if dense else "factors", exact(spectral.eigenvalues())
    side = smaller_side(problem, _plain(settings))
    if side.name == "outputs" and side.rows <= DENSE_DIM:
        block = plan_outputs(problem, settings, side.rows).at_once
        kernel = outputs_written_out(problem, _plain(settings), block, monitor, meter).kernel
        return "outputs", exact(scipy.linalg.eigvalsh(kernel))  # the other eigenvalues are zero, and add nothing
    steps = min(STEPS, operator.dim)
    plan = planning.plan_lanczos(problem, settings, probes=PROBES, steps=steps, full=True)
    key, collected = jax.random.fold_in(jax.random.key(settings.seed), SPECTRUM), Collected()
    for first in range(0, PROBES, plan.at_once):
        count = min(plan.at_once, PROBES - first)
        if first and monitor.stop():
            break
        Slq(steps, "full", True).round(operator, key, count, collected, monitor, PROBES * steps)
    quad = quadrature(collected, key, operator)
    noise = rounding.measured(operator, settings.seed).each

    def told(f: Function) -> Estimate:
        # What rounding changes, to first order: all eigenvalues moved by that of a random vector.
        moved = quad.dim * abs(float(quad.mean(lambda values: f(values + noise) - f(values))[0]))
        return rounding.widened(_converged(collected, quad, f, settings), rounding.MARGIN * moved)

    return "sampled", Sums(told(logs), told(shares))


def _converged(collected: Collected, quad: Quadrature, f: Function, settings: CompareSettings) -> Estimate:
    """The estimate of tr f(C), its interval widened by what the last half of the steps still changed.

    The error of a Gauss quadrature of these functions has one sign and falls with the steps (Golub and Meurant 2010,
    chapter 6): what is left is less than that change, where it falls by half at least.
    """
    found = estimate(quad.estimate(f, 1 - settings.confidence, scale=quad.dim), settings.confidence, "slq")
    changes = []
    for one in collected.tridiagonals:
        half = max(len(one.alpha) // 2, 1)
        forms = []
        for size in (len(one.alpha), half):
            values, vectors = one._replace(alpha=one.alpha[:size], beta=one.beta[:size]).eigh()
            forms.append(float(f(values) @ np.square(vectors[0])))
        changes.append(quad.dim * (forms[0] - forms[1]))
    margin = abs(float(np.mean(changes)))
    return found.model_copy(update={"interval": (found.interval[0] - margin, found.interval[1] + margin)})


def _affine(estimate: Estimate, scale: float, offset: float) -> Estimate:
    """scale·x + offset."""
    ends = sorted(scale * end + offset for end in estimate.interval)
    return estimate.model_copy(
        update={
            "value": scale * estimate.value + offset,
            "stderr": abs(scale) * estimate.stderr,
            "interval": (ends[0], ends[1]),
        }
    )


def _output_weights(problem: Problem) -> np.ndarray:
    """The weight of the unit that each output belongs to: [N, ..., C]."""
    weight = np.asarray(problem.batches.weight, np.float64)
    shape = (len(weight), *example_outputs(problem).shape[1:])
    return np.broadcast_to(unit_weight(weight, len(shape)), shape)


def _constants(problem: Problem) -> float:
    """−log p less the loss, summed: what normalises a normal law of variance 1, and a Poisson law."""
    if problem.loss.name == "squared_error":
        return 0.5 * math.log(2 * math.pi) * float(_output_weights(problem).sum())
    if problem.loss.name == "poisson":
        factorials = scipy.special.gammaln(np.asarray(problem.batches.targets) + 1.0)
        return float(np.sum(_output_weights(problem) * factorials))
    return 0.0


def _roots(
    problem: Problem,
    settings: CompareSettings,
    operator: LinearOperator,
    spectral: Spectral | None,
    precision: float,
    at_once: int,
    monitor: Monitor,
    warnings: list[str],
) -> Iterator[Array | np.ndarray]:
    """Blocks of vectors [b, D]: all of P^(−1/2) where it is written out, else draws of covariance P⁻¹."""
    dim, dtype, normaliser, residuals = problem.dim, problem.dtype, problem.normaliser, [0.0]
    root = None
    if spectral is not None:
        root = spectral.function(lambda values: 1 / np.sqrt(normaliser * np.maximum(values, 0) + precision))
    exact = isinstance(spectral, Diagonalised)
    key, shift = jax.random.fold_in(jax.random.key(settings.seed), DRAWN), precision / normaliser
    total = dim if exact else settings.samples
    for first in range(0, total, at_once):
        count = min(at_once, total - first)
        if root is not None:
            rows = np.eye(count, dim, first) if exact else dim**0.5 * sphere(key, first, count, dim, dtype)
            yield np.asarray(root(rows), np.float64) if exact else jnp.asarray(root(rows), dtype)
        else:
            # x = (C + sI)⁻¹ y has the covariance (C + sI)⁻¹ if y has C + sI.
            drawn = leverage.draw(problem, "ggn", shift, settings.seed, first, count)
            system = operator.shifted(shift, psd=True)
            solved = cg.solve(system, drawn, tol=settings.tol, max_steps=settings.cg_steps, monitor=monitor)
            residuals.append(float(np.max(solved.residuals)))
            yield solved.x / normaliser**0.5
        monitor.progress("predictive variance", first + count, total, "vectors")
        if not exact and first + count >= 4 and monitor.stop():
            break
    if max(residuals) > 2 * settings.tol:
        warnings.append(
            f"the solves behind the predictive variance have relative residuals up to {max(residuals):.2g} (asked for "
            f"{settings.tol:.2g}): " + suggest_float64(problem.dtype, "allow more --cg-steps")
        )


def _predictive(
    problem: Problem, settings: CompareSettings, roots: Iterator[Array | np.ndarray], *, exact: bool
) -> tuple[Predictive, np.ndarray]:
    """Variances [N, ..., C] of the outputs, and their summary over outputs with any weight."""
    weights = _output_weights(problem)
    counted = weights.reshape(len(weights), -1) > 0
    total, means = np.zeros(counted.shape), []
    # What is exact is so to the digits of float64: a root that is written out, and the outputs' derivatives along it.
    with jax.enable_x64(True) if exact else contextlib.nullcontext():
        asked = in_float64(problem) if exact else problem
        for vectors in roots:
            start, sizes = 0, np.zeros(len(vectors))
            for slopes in queries.batch_slopes(asked, asked.batches, "output", jnp.asarray(vectors)):
                squares, rows = np.square(slopes), slice(start, start + slopes.shape[1])
                total[rows] += squares.sum(axis=0)
                sizes += squares[:, counted[rows]].sum(axis=1)
                start += slopes.shape[1]
            means += (sizes / counted.sum()).tolist()
    samples = 0 if exact else len(means)
    variances = total if exact else total / samples
    shown = variances[counted]
    if exact:
        mean = rounding.exact(float(shown.mean()), settings.confidence, float(shown.mean()), problem.dim)
    else:
        law = Law(float(np.mean(means)), float(np.std(means, ddof=1)) / samples**0.5, samples - 1)
        low, high = student_interval(law, 1 - settings.confidence)
        mean = Estimate(
            value=law.value, stderr=law.stderr, interval=(max(low, 0.0), high), confidence=settings.confidence,
            samples=samples, method="draws",
        )  # fmt: skip
    smallest, median, decile, largest = np.quantile(shown, [0, 0.5, 0.9, 1]).tolist()
    variances = variances.reshape(weights.shape)
    told = Predictive(
        mean=mean, smallest=smallest, median=median, ninth_decile=decile, largest=largest,
        relative_stderr=(2 / samples) ** 0.5 if samples else 0.0, samples=samples,
        confidence=_confidence(problem, variances, weights), path=settings.arrays,
    )  # fmt: skip
    return told, variances


def _confidence(problem: Problem, variances: np.ndarray, weights: np.ndarray) -> tuple[float, float] | None:
    """Mean largest class probability, and with z/√(1 + πv/8) for every logit z of variance v (MacKay 1992)."""
    if problem.loss.name != "softmax_cross_entropy":
        return None
    z = queries.values(problem, problem.batches, "output").reshape(weights.shape)
    softened = z / np.sqrt(1 + math.pi / 8 * variances)
    active = weights[..., 0] > 0
    plain, after = (float(scipy.special.softmax(one, axis=-1).max(axis=-1)[active].mean()) for one in (z, softened))
    return plain, after
