"""Intervals that cover, bounds that hold, and the smoothed density."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses.common import estimates
from curvcli.linalg.iterate import Silent
from curvcli.linalg.krylov import bounds, density, slq
from curvcli.linalg.krylov.quadrature import Quadrature, confirmed, normal_quantile
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.statistics import Sampled

DIM, ALPHA = 400, 0.05
RNG = np.random.default_rng(1)
SPECTRA = {
    "flat": RNG.uniform(0.9, 1.1, DIM),
    "one outlier": np.concatenate([[1000.0], RNG.uniform(0, 1, DIM - 1)]),
    "few outliers": np.concatenate([[100, 50, 30, 20, 10], RNG.uniform(-0.5, 1, DIM - 5)]),
    "indefinite": RNG.normal(size=DIM),
    "low rank": np.concatenate([[9, 5, 3, -1, -2], np.zeros(DIM - 5)]),
    "exponential": 0.7 ** np.arange(DIM),
    "power law": 1 / np.arange(1, DIM + 1),
    "ninefold": np.concatenate([np.full(9, 50.0), np.zeros(DIM - 9)]),
    "identity": np.ones(DIM),
}


def diagonal(values: np.ndarray, dtype: str = "float64") -> LinearOperator:
    entries = jnp.asarray(values, dtype)[None]
    return LinearOperator(lambda v: v * entries, len(values), np.dtype(dtype))


def collect(
    operator: LinearOperator, probes: int, steps: int = 30, seed: int = 0, deflate: bool = True, mode: Any = "full"
) -> tuple[slq.Collected, Quadrature]:
    key, collected = jax.random.key(seed), slq.Collected()
    slq.Slq(steps, mode, deflate).round(operator, key, probes, collected, Silent(), 0)
    return collected, slq.quadrature(collected, key, operator)


def holds(estimate: Sampled, truth: float) -> bool:
    return estimate.interval[0] <= truth <= estimate.interval[1]


@pytest.mark.slow
@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("name", SPECTRA)
def test_coverage(name: str, deflate: bool) -> None:
    """60 runs of 4 probes at 95 %: fewer than 51 hits have a probability of 0.1 % if the coverage is 0.95.

    Student's interval covers 0.88 on one outlier; the study with thousands of runs is `benchmarks/coverage.py`.
    """
    values, hits = SPECTRA[name], np.zeros(2)
    operator = diagonal(values)
    for seed in range(60):
        _, quadrature = collect(operator, 4, seed=seed, deflate=deflate)
        trace = quadrature.estimate(lambda x: x, ALPHA, DIM)
        square = quadrature.estimate(np.square, ALPHA, DIM)
        hits += [holds(trace, values.sum()), holds(square, np.sum(values**2))]
    assert hits.min() >= 51


@pytest.mark.nightly
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", ["flat", "one outlier", "few outliers", "indefinite", "power law"])
def test_coverage_of_runs_that_were_cut_off(name: str, steps: int) -> None:
    """40 runs of 10 probes: fewer than 33 hits have a probability of 0.4 % if the coverage is 0.95."""
    values, hits = SPECTRA[name], np.zeros(2)
    operator = diagonal(values)
    for seed in range(40):
        _, quadrature = collect(operator, 10, steps=steps, seed=seed)
        trace = quadrature.estimate(lambda x: x, ALPHA, DIM)
        square = quadrature.estimate(np.square, ALPHA, DIM)
        assert trace.stderr > 0
        hits += [holds(trace, values.sum()), holds(square, np.sum(values**2))]
    assert hits.min() >= 33


def test_one_probe_cut_off_after_one_step_says_how_little_it_knows() -> None:
    _, quadrature = collect(diagonal(SPECTRA["few outliers"]), 1, steps=1)
    trace = quadrature.estimate(lambda x: x, ALPHA, DIM)
    assert trace.interval[1] - trace.interval[0] > 10 * np.linalg.norm(SPECTRA["few outliers"])


def test_deflation_makes_outliers_exact() -> None:
    values = SPECTRA["one outlier"]
    plain, deflated = (
        collect(diagonal(values), 6, deflate=deflate)[1].estimate(lambda x: x, ALPHA, DIM) for deflate in (False, True)
    )
    assert deflated.stderr < plain.stderr / 50
    assert holds(deflated, values.sum())


def test_low_rank_is_exact_after_deflation() -> None:
    _, quadrature = collect(diagonal(SPECTRA["low rank"]), 3)
    trace = quadrature.estimate(lambda x: x, ALPHA, DIM)
    assert trace.value == pytest.approx(14, abs=1e-9)
    assert trace.stderr < 1e-6


def test_float32_rounding_is_within_the_interval() -> None:
    for name in ("identity", "low rank"):
        _, quadrature = collect(diagonal(SPECTRA[name], "float32"), 4)
        assert holds(quadrature.estimate(lambda x: x, ALPHA, DIM), SPECTRA[name].sum())


def test_an_eigenspace_that_probes_do_not_exhaust_is_not_deflated() -> None:
    _, few = collect(diagonal(SPECTRA["ninefold"]), 6)
    assert max(len(known.values) for known in few.outliers) == 0
    _, many = collect(diagonal(SPECTRA["ninefold"]), 14)
    assert {len(known.values) for known in many.outliers} == {9}


def test_confirmed_needs_a_second_probe() -> None:
    owners, values = np.array([0, 1, 0]), np.array([5.0, 5.0, 3.0])
    gram = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]])
    np.testing.assert_array_equal(confirmed(owners, values, gram), [True, True, False])


def test_several_looks_widen_the_interval() -> None:
    assert normal_quantile(0.05) == pytest.approx(1.959964, abs=1e-6)
    assert normal_quantile(0.05 / 5) == pytest.approx(2.575829, abs=1e-6)


@pytest.mark.parametrize("mode", ["full", "none"])
@pytest.mark.parametrize("name", SPECTRA)
def test_cumulative_bounds_hold_for_every_probe(name: str, mode: str) -> None:
    values = SPECTRA[name]
    operator, key = diagonal(values), jax.random.key(0)
    collected, _ = collect(operator, 3, steps=12, mode=mode)
    from curvcli.linalg.probes import sphere

    x = np.linspace(values.min() - 1, values.max() + 1, 301)
    for v, measure in zip(np.asarray(sphere(key, 0, 3, DIM, "float64")), collected.measures, strict=True):
        exact = np.array([np.sum(v[values <= one] ** 2) for one in x])
        lower, upper = bounds.cumulative(measure, x)
        assert np.all(lower <= exact + 1e-10)
        assert np.all(exact <= upper + 1e-10)
        for low, high in ((-0.1, 0.1), (0.5, 2.0), (-np.inf, -1e-9)):
            inside = np.sum(v[(values >= low) & (values <= high)] ** 2)
            least, most = bounds.within(measure, low, high)
            assert least - 1e-10 <= inside <= most + 1e-10


def test_residual_bounds_resolve_a_null_space() -> None:
    values = np.concatenate([np.linspace(1, 2, 40), np.zeros(DIM - 40)])
    collected, quadrature = collect(diagonal(values), 4, steps=45)
    mass = density.mass(quadrature, collected.measures, -1e-3, 1e-3, ALPHA)
    assert holds(mass, 1 - 40 / DIM)
    assert mass.interval[1] - mass.interval[0] < 0.1


def test_a_mass_that_is_not_resolved_has_no_value() -> None:
    """Few steps on a bulk at zero beside outliers: the quadrature's value is arbitrary, its bounds nearly all."""
    values = np.concatenate([1e-4 * np.linspace(-1, 1, DIM - 20), np.linspace(1, 100, 20)])
    collected, quadrature = collect(diagonal(values), 4, steps=10)
    mass = estimates.mass(density.mass(quadrature, collected.measures, -np.inf, -1e-8, ALPHA), 0.95)
    low, high = mass.interval
    assert high - low > 0.5
    assert (mass.value, mass.resolved) == (None, False)
    assert low <= np.mean(values < -1e-8) <= high
    assert json.loads(mass.model_dump_json())["value"] is None
    count = mass.times(DIM).at_least(1.0)
    assert (count.value, count.interval) == (None, (max(DIM * low, 1.0), DIM * high))
    collected, quadrature = collect(diagonal(values), 4, steps=DIM)
    whole = estimates.mass(density.mass(quadrature, collected.measures, -np.inf, -1e-8, ALPHA), 0.95)
    assert whole.resolved
    assert whole.value == pytest.approx(np.mean(values < -1e-8), abs=0.1)


@pytest.mark.parametrize("name", ["flat", "indefinite", "few outliers"])
def test_masses_hold_the_truth(name: str) -> None:
    values = SPECTRA[name]
    collected, quadrature = collect(diagonal(values), 6)
    for low, high in ((-np.inf, -0.1), (-0.1, 0.1), (0.5, 1.0)):
        truth = float(np.mean((values >= low) & (values <= high)))
        assert holds(density.mass(quadrature, collected.measures, low, high, ALPHA), truth)


@pytest.mark.parametrize("name", SPECTRA)
def test_smoothed_density_has_unit_mass_and_a_scaled_width(name: str) -> None:
    values = SPECTRA[name]
    sizes = []
    for scale in (1.0, 1e-3):
        collected, quadrature = collect(diagonal(scale * values), 5)
        low, high = (getattr(np, f)(collected.measures[0].nodes) for f in ("min", "max"))
        smooth = density.smooth(quadrature, low, high)
        assert np.trapezoid(smooth.value, smooth.grid) == pytest.approx(1, abs=2e-3)
        sizes.append(smooth.sigma)
    assert sizes[1] == pytest.approx(1e-3 * sizes[0], rel=1e-3)


def test_cumulative_band_holds_the_truth() -> None:
    values = SPECTRA["indefinite"]
    collected, quadrature = collect(diagonal(values), 8, steps=40)
    grid = np.linspace(-3, 3, 101)
    band = density.cumulative_band(quadrature, collected.measures, grid, ALPHA)
    exact = np.array([np.mean(values <= x) for x in grid])
    assert np.all(np.asarray(band.lower) <= exact)
    assert np.all(exact <= np.asarray(band.upper))
    assert np.mean(np.asarray(band.upper) - np.asarray(band.lower)) < 0.25


def test_nothing_lies_beyond_the_stated_bound() -> None:
    for name, values in SPECTRA.items():
        collected, _ = collect(diagonal(values), 4, steps=40)
        nodes = [m.nodes for m in collected.measures]
        found = bounds.beyond_extremes(
            min(n[0] for n in nodes), max(n[-1] for n in nodes), steps=40, starts=4, dim=DIM, probability=0.99
        )
        assert found is not None
        assert found[0] - 1e-9 <= values.min(), name
        assert values.max() <= found[1] + 1e-9, name
    assert bounds.beyond_extremes(0, 1, steps=3, starts=1, dim=10**6, probability=0.99) is None


def test_rounds_add_up() -> None:
    """Two rounds of 3 probes are the probes of one round of 6."""
    operator, key = diagonal(SPECTRA["indefinite"]), jax.random.key(0)
    collected = slq.Collected()
    for _ in range(2):
        slq.Slq(20, "full", True).round(operator, key, 3, collected, Silent(), 0)
    whole, _ = collect(operator, 6, steps=20)
    for one, other in zip(collected.measures, whole.measures, strict=True):
        np.testing.assert_allclose(one.nodes, other.nodes, rtol=1e-10, atol=1e-12)
    assert collected.products == 120
