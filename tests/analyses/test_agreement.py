"""Correlations and slope, and how often their intervals cover."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

from curvcli.analyses.influence.agreement import Agreement, agreement


def agree(x: Any, y: Any, seed: int = 0, confidence: float = 0.95) -> Agreement:
    x, y = np.asarray(x, float), np.asarray(y, float)
    x, y = (one if one.ndim == 2 else one[:, None] for one in (x, y))
    return agreement(x, y, confidence=confidence, key=jax.random.key(seed))


def samples(rho: float, count: int, rng: np.random.Generator, queries: int = 1) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(count, queries))
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=(count, queries))


def test_values_are_those_of_scipy() -> None:
    x, y = samples(0.7, 15, np.random.default_rng(0), queries=4)
    x[3], y[5, :2] = x[8], y[6, :2]  # ties
    found = agree(x, y)
    assert found.pearson.value == pytest.approx(scipy.stats.pearsonr(x.ravel(), y.ravel())[0], rel=1e-12)
    assert found.slope.value == pytest.approx(scipy.stats.linregress(x.ravel(), y.ravel())[0], rel=1e-12)
    by_query = [scipy.stats.spearmanr(x[:, q], y[:, q])[0] for q in range(4)]
    assert found.spearman.value == pytest.approx(np.mean(by_query), rel=1e-12)
    assert found.pearson.samples == 15
    assert found.pearson.method == "refits"


def test_the_interval_is_scipys() -> None:
    x, y = (one[:, 0] for one in samples(0.6, 20, np.random.default_rng(1)))
    with np.errstate(all="ignore"):
        expected = scipy.stats.bootstrap(
            (x, y), lambda a, b: np.corrcoef(a, b)[0, 1], paired=True, vectorized=False, n_resamples=3000,
            method="BCa", random_state=np.random.default_rng(0),
        )  # fmt: skip
    found = agree(x, y)
    np.testing.assert_allclose(found.pearson.interval, expected.confidence_interval, atol=0.03)
    assert found.pearson.stderr == pytest.approx(expected.standard_error, rel=0.1)


def test_ranks_of_a_resample_are_ranks_anew() -> None:
    """The jackknife of Spearman's correlation by hand, of numbers with ties."""
    from curvcli.analyses.influence.agreement import _spearman

    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 5, size=(2, 12)).astype(float)
    counts = rng.multinomial(12, np.full(12, 1 / 12), size=5)
    expected = [scipy.stats.spearmanr(np.repeat(x, c), np.repeat(y, c))[0] for c in counts]
    np.testing.assert_allclose(_spearman(x[:, None], y[:, None])(counts.astype(float)), expected, rtol=1e-12)


@pytest.mark.slow
def test_intervals_cover() -> None:
    rng, rho, hits = np.random.default_rng(3), 0.8, np.zeros(2)
    for _ in range(120):
        found = agree(*samples(rho, 20, rng), confidence=0.9)
        for index, (one, truth) in enumerate(((found.pearson, rho), (found.slope, rho))):
            hits[index] += one.interval[0] <= truth <= one.interval[1]
    # The bootstrap of 20 examples is known to fall a few per cent short.
    assert (hits / 120 > 0.8).all()
    assert (hits / 120 < 0.97).all()


def test_queries_of_one_example_are_not_counted_as_independent() -> None:
    """Ten copies of a query say what one does."""
    x, y = samples(0.8, 20, np.random.default_rng(4))
    one, ten = agree(x, y), agree(np.tile(x, 10), np.tile(y, 10))
    for name in Agreement._fields:
        assert getattr(ten, name).interval == pytest.approx(getattr(one, name).interval, rel=1e-9)


def test_a_perfect_prediction_has_no_doubt() -> None:
    x = np.random.default_rng(5).normal(size=10)
    for one in agree(x, x):
        assert one.value == pytest.approx(1, rel=1e-12)
        assert one.interval == pytest.approx((1, 1), rel=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "defined"),
    [
        ([1.0, 2.0], [1.0, 2.0], ()),  # two points lie on a line
        ([0.1, 0.1, 0.1, 0.1], [1.0, 2.0, 4.0, 3.0], ()),
        ([1.0, 2.0, 4.0, 3.0], [0.1, 0.1, 0.1, 0.1], ("slope",)),  # no change is no correlation, but a slope of 0
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], ()),
    ],
)
def test_what_is_undefined_is_null(x: list[float], y: list[float], defined: tuple[str, ...]) -> None:
    found = agree(x, y)
    assert {name for name in Agreement._fields if getattr(found, name) is not None} == set(defined)


def test_nobody_is_an_answer() -> None:
    assert agree(np.zeros((0, 3)), np.zeros((0, 3))) == Agreement(None, None, None)
