"""The diagonal's estimators against their definitions, dense truths, and the coverage of their intervals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from curvcli.errors import NumericsError
from curvcli.linalg.diagonal.entries import Found, Moments, Ranges, moderated
from curvcli.linalg.diagonal.estimators import Sampler, signs
from curvcli.linalg.iterate import Silent
from curvcli.linalg.operator import LinearOperator, dense_operator
from curvcli.linalg.statistics import student_interval
from tests.monitors import StopAfter

DIM = 120
SEGMENTS = (((0, 30), (100, 120)), ((30, 100),))
LEAVES = [30, 70, 20]
rng = np.random.default_rng(1)
SPECTRA = {
    "flat": rng.uniform(0.9, 1.1, DIM),
    "single outlier": np.concatenate([[1000.0], rng.uniform(0, 1, DIM - 1)]),
    "few outliers": np.concatenate([[100, 50, 30, 20, 10], rng.uniform(-0.5, 1, DIM - 5)]),
    "indefinite": rng.normal(size=DIM),
    "low rank": np.concatenate([[9, 5, 3, -1, -2], np.zeros(DIM - 5)]),
    "exponential": 0.7 ** np.arange(DIM),
}


def rotated(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A matrix with these eigenvalues in random directions."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return (q * values) @ q.T


def sampler(
    matrix: np.ndarray, seed: int = 0, *, at_once: int = 8, monitor: Any = None, segments: Any = None
) -> Sampler:
    segments = segments or (SEGMENTS if len(matrix) == DIM else (((0, len(matrix)),),))
    operator = dense_operator(matrix)
    return Sampler(operator, jax.random.key(seed), segments, at_once=at_once, keep=True, monitor=monitor or Silent())


def estimate(matrix: np.ndarray, products: int, method: str, seed: int = 0, **rest: Any) -> Found:
    drawing = sampler(matrix, seed, **rest)
    if method == "hutchinson":
        drawing.draw(products)
        return drawing.hutchinson()
    drawing.draw(products // 2)
    assert drawing.project()
    assert drawing.products <= products
    return drawing.xdiag()


def leave_one_out(matrix: np.ndarray, tests: np.ndarray, *, sides: int = 2) -> np.ndarray:
    """XDiag's samples by a QR decomposition for each test vector; as published with one side."""
    parts, curvature, norms = [], 0.0, 0.0
    for i, omega in enumerate(tests):
        q, _ = np.linalg.qr((np.delete(tests, i, 0) @ matrix).T)
        away = np.eye(len(matrix)) - q @ q.T
        rest = away @ matrix @ away if sides == 2 else away @ matrix
        u = away @ omega
        curvature, norms = curvature + u @ matrix @ u, norms + u @ u
        control = omega * u - np.diag(away)
        parts.append((np.diag(matrix - rest) + omega * (rest @ omega), control))
    center = curvature / norms if sides == 2 else 0.0
    return np.array([sample - center * control for sample, control in parts])


@pytest.mark.first_tier("2-*", "3-indefinite")
@pytest.mark.parametrize("spectrum", ["few outliers", "indefinite", "exponential"])
@pytest.mark.parametrize("count", [2, 3, 9])
def test_xdiag_is_its_definition(spectrum: str, count: int) -> None:
    matrix = rotated(SPECTRA[spectrum])
    found = estimate(matrix, 2 * count, "xdiag")
    samples = leave_one_out(matrix, np.asarray(signs(jax.random.key(0), 0, count, DIM, float)))
    np.testing.assert_allclose(found.value, samples.mean(0), atol=1e-11 * np.abs(matrix).max())
    assert found.samples == count


def test_hutchinson_is_the_mean_in_blocks_of_any_size() -> None:
    matrix = rotated(SPECTRA["few outliers"])
    tests = np.asarray(signs(jax.random.key(0), 0, 13, DIM, float))
    samples = tests * (tests @ matrix)
    for at_once in (1, 4, 13):
        drawing = sampler(matrix, at_once=at_once)
        drawing.draw(13)
        found = drawing.hutchinson()
        np.testing.assert_allclose(found.value, samples.mean(0), atol=1e-12)
        np.testing.assert_allclose(drawing.plain.variance, samples.var(0, ddof=1), atol=1e-10)
        sums = [samples.mean(0)[list(range(30)) + list(range(100, 120))].sum(), samples.mean(0)[30:100].sum()]
        np.testing.assert_allclose([law.value for law in found.sums], sums, atol=1e-11)


def test_columns_in_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = rotated(SPECTRA["exponential"])
    whole = estimate(matrix, 12, "xdiag")
    monkeypatch.setattr("curvcli.linalg.diagonal.xdiag.COLUMNS", 50)
    pieces = estimate(matrix, 12, "xdiag")
    np.testing.assert_allclose(pieces.value, whole.value, atol=1e-14)
    np.testing.assert_allclose(pieces.stderr, whole.stderr, rtol=1e-6)
    np.testing.assert_allclose([law.stderr for law in pieces.sums], [law.stderr for law in whole.sums], rtol=1e-6)


def test_diagonal_matrices_are_exact() -> None:
    entries = rng.normal(size=DIM)
    found = estimate(np.diag(entries), 2, "hutchinson")
    np.testing.assert_array_equal(found.value, entries)
    np.testing.assert_array_equal(found.stderr, 0)
    assert max(law.stderr for law in found.sums) == 0


@pytest.mark.first_tier("values1", "values3")
@pytest.mark.parametrize("values", [np.zeros(7), np.ones(7), np.array([3.0, 0, 0, 0, 0, 0, 0]), [2.0], [1.0, -4.0]])
def test_what_the_images_span_is_exact(values: Any) -> None:
    matrix = rotated(np.asarray(values, float))
    found = estimate(matrix, 2 * min(5, max(len(values), 2)), "xdiag")
    np.testing.assert_allclose(found.value, np.diag(matrix), atol=1e-13)
    assert np.all(found.stderr <= 1e-12)


def test_low_rank_is_exact_with_as_many_test_vectors() -> None:
    matrix = rotated(SPECTRA["low rank"])
    np.testing.assert_allclose(estimate(matrix, 14, "xdiag").value, np.diag(matrix), atol=1e-13)


def test_both_sides_leave_less_than_the_published_form() -> None:
    keys = range(12)
    for name, better in (("exponential", 0.9), ("few outliers", 0.9), ("flat", 0.5), ("indefinite", 1.01)):
        matrix = rotated(SPECTRA[name])
        ours = [estimate(matrix, 16, "xdiag", seed).value - np.diag(matrix) for seed in keys]
        tests = [np.asarray(signs(jax.random.key(seed), 0, 8, DIM, float)) for seed in keys]
        theirs = [leave_one_out(matrix, t, sides=1).mean(0) - np.diag(matrix) for t in tests]
        assert np.mean(np.square(ours)) <= better**2 * np.mean(np.square(theirs)), name


@pytest.mark.nightly
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_intervals_cover(spectrum: str) -> None:
    """A small study; the large one is benchmarks/diag.py."""
    matrix = rotated(SPECTRA[spectrum])
    truth, rounding = np.diag(matrix), 1e-12 * np.abs(SPECTRA[spectrum]).max()
    variance = np.square(matrix).sum(0) - truth**2
    for method, products in (("hutchinson", 4), ("hutchinson", 16), ("xdiag", 8), ("xdiag", 24)):
        held, widths, layers = [], [], []
        for seed in range(60):
            found = estimate(matrix, products, method, seed)
            half = np.repeat(scipy.stats.t.ppf(0.975, found.dof), LEAVES) * found.stderr
            held.append(np.mean(np.abs(found.value - truth) <= half + rounding))
            widths.append(np.mean(half))
            exact = truth[:30].sum() + truth[100:].sum(), truth[30:100].sum()
            layers += [
                abs(law.value - total) <= scipy.stats.t.ppf(0.975, law.dof) * law.stderr + DIM * rounding
                for law, total in zip(found.sums, exact, strict=True)
            ]
        assert np.mean(held) >= 0.93, (method, products)
        assert np.mean(layers) >= 0.86, (method, products)  # 0.95 but for 3.5 standard errors of 60 independent runs
        if method == "hutchinson":
            oracle = 1.96 * np.sqrt(variance / products).mean()
            assert np.mean(widths) <= (1.5 if products == 4 else 1.2) * oracle, products


def test_captured_foresees_both_errors() -> None:
    for name in ("few outliers", "exponential", "flat"):
        matrix = rotated(SPECTRA[name])
        off = np.square(matrix).sum() - np.square(np.diag(matrix)).sum()
        seen = []
        for seed in range(20):
            drawing = sampler(matrix, seed)
            drawing.draw(16)
            whole, rest = drawing.captured()
            assert drawing.products == 16
            drawing.project()
            seen.append([whole, rest, 16 * np.square(drawing.xdiag().value - np.diag(matrix)).sum()])
        whole, rest, true = np.mean(seen, axis=0)
        assert whole == pytest.approx(off, rel=0.2)
        assert true <= 1.1 * rest, name


def test_a_test_vector_more_extends_the_space() -> None:
    matrix = rotated(SPECTRA["exponential"])
    drawing = sampler(matrix)
    for count in (4, 7):
        drawing.draw(count)
        drawing.project()
    assert drawing.products == 14
    np.testing.assert_allclose(drawing.xdiag().value, estimate(matrix, 14, "xdiag").value, atol=1e-12)


def test_moderated_variances_know_the_common_one() -> None:
    draws = np.random.default_rng(0).chisquare(3, size=20_000) / 3
    same, prior = moderated(4.0 * draws, 3)
    assert prior > 50
    np.testing.assert_allclose(same, 4.0, rtol=0.2)
    spread = 5 / np.random.default_rng(1).chisquare(5, size=20_000)  # scaled-inverse-χ² with 5 degrees of freedom
    _, prior = moderated(spread * draws, 3)
    assert prior == pytest.approx(5, rel=0.15)
    assert moderated(np.zeros(9), 3)[1] == 0


def test_stopping_leaves_what_there_is() -> None:
    matrix = rotated(SPECTRA["flat"])
    drawing = sampler(matrix, at_once=1, monitor=StopAfter(0))
    drawing.draw(30)
    assert drawing.hutchinson().samples == 2
    drawing = sampler(matrix, at_once=2, monitor=StopAfter(3))
    drawing.draw(6)
    assert not drawing.project()
    assert drawing.hutchinson().samples == 6


def test_not_finite_is_said() -> None:
    operator = LinearOperator(lambda v: v * jnp.nan, 9, np.dtype(float))
    with pytest.raises(NumericsError, match="finite"):
        Sampler(operator, jax.random.key(0), (((0, 9),),), at_once=4, keep=False, monitor=Silent()).draw(4)


@pytest.mark.parametrize("count", [3, 4])
def test_sums_of_few_samples_of_a_heavy_rank_one_matrix(count: int) -> None:
    """Three pairs of samples often miss the part of the variance that entries share; the interval covers still."""
    dim, runs = 60, 300
    vector = np.exp(1.5 * np.random.default_rng(1).normal(size=dim))
    segments = (((0, 30),), ((30, 36), (52, 60)), ((36, 52),))
    truth = [sum(np.square(vector[a:b]).sum() for a, b in part) for part in segments]
    held, layout = np.zeros(3), Ranges.of(segments)
    for seed in range(runs):
        tests = np.random.default_rng(seed).choice([-1.0, 1.0], size=(count, dim))
        moments = Moments(layout, dim)
        moments.add(tests, np.outer(tests @ vector, vector))
        ends = [student_interval(law, 0.05) for law in moments.found().sums]
        held += [low <= value <= high for (low, high), value in zip(ends, truth, strict=True)]
    assert held.min() >= 0.93 * runs
