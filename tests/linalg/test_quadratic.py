"""The trace from quadratic forms: moments counted one by one, the operator's blocks, and coverage."""

from __future__ import annotations

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.linalg.iterate import Silent
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator, dense_operator
from curvcli.linalg.statistics import student_interval
from curvcli.linalg.trace import quadratic

DIM = 200
SPECTRA = {
    "flat": np.linspace(0.9, 1.1, DIM),
    "single outlier": np.r_[1000.0, np.linspace(0, 1, DIM - 1)],
    "few outliers": np.r_[100.0, 50, 30, 20, 10, np.linspace(-0.5, 1, DIM - 5)],
    "power law": 1 / np.arange(1, DIM + 1),
}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_moments_are_sums_over_distinct_vectors(size: int) -> None:
    gram = np.random.default_rng(size).normal(size=(size, size))
    gram = gram + gram.T
    found = quadratic.moments(gram)
    pairs = list(itertools.combinations(range(size), 2))
    triples, fours = (list(itertools.permutations(range(size), k)) for k in (3, 4))
    assert (found.pairs, found.triples, found.fours) == (len(pairs), len(triples), len(fours))
    assert found.square == pytest.approx(sum(gram[i, j] ** 2 for i, j in pairs))
    assert found.cube == pytest.approx(sum(gram[i, j] * gram[j, k] * gram[k, i] for i, j, k in triples), abs=1e-12)
    product = sum(gram[i, j] ** 2 * gram[k, m] ** 2 for i, j, k, m in fours)
    cycles = sum(gram[i, j] * gram[j, k] * gram[k, m] * gram[m, i] for i, j, k, m in fours)
    assert found.product == pytest.approx(product, abs=1e-11)
    assert found.fourth == pytest.approx(cycles, abs=1e-11)


def with_forms(matrix: np.ndarray) -> LinearOperator:
    return replace(dense_operator(matrix), forms=lambda v: v @ jnp.asarray(matrix) @ v.T)


def test_blocks_are_those_of_the_operator() -> None:
    random = np.random.default_rng(0).normal(size=(30, 30))
    matrix, meter = random @ random.T, Meter()
    operator = meter.count(with_forms(matrix))
    forms = quadratic.Forms(operator, jax.random.key(0), at_once=8, monitor=Silent())
    forms.draw(11)
    assert [block.inner.shape for block in forms.blocks] == [(8, 8), (3, 3)]
    assert (forms.drawn, forms.padding, meter.forms, meter.data_passes, meter.products) == (11, 5, 16, 2, 0)
    other = quadratic.Forms(operator, jax.random.key(0), at_once=4, monitor=Silent())
    other.draw(11)
    for name in ("inner", "forms"):
        whole, parts = (
            np.concatenate([np.diag(getattr(block, name)) for block in one.blocks]) for one in (forms, other)
        )
        np.testing.assert_allclose(whole, parts, rtol=1e-12)
    trace, square = quadratic.estimates(30, forms.blocks)
    assert abs(trace.value - np.trace(matrix)) < 4 * trace.stderr
    assert square.interval(0.001)[0] < np.square(matrix).sum() < square.interval(0.001)[1]


def test_a_multiple_of_the_identity_is_known() -> None:
    forms = quadratic.Forms(with_forms(3 * np.eye(20)), jax.random.key(0), at_once=8, monitor=Silent())
    forms.draw(8)
    trace, square = quadratic.estimates(20, forms.blocks)
    assert trace.value == pytest.approx(60)
    assert trace.stderr < 1e-12
    assert square.value == pytest.approx(180)


def test_degrees_of_freedom_fall_where_one_eigenvalue_is_all() -> None:
    """n/4, not n: ‖B‖² from pairs is as uncertain as the square of what images give."""
    draws = np.random.default_rng(0).normal(size=(64, 1))
    blocks = [quadratic.Block(np.eye(8), one @ one.T / DIM) for one in draws.reshape(8, 8, 1)]
    trace, _ = quadratic.estimates(DIM, blocks)
    assert trace.dof == pytest.approx(2 / (8 / 64 + 4 / (8 * 28)))


@pytest.mark.nightly
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("count", [8, 24])
def test_coverage(spectrum: str, count: int) -> None:
    """With as many degrees of freedom as samples, "single outlier" would be at 0.88 with 8 forms."""
    values, runs = SPECTRA[spectrum], 500
    draws = np.random.default_rng(count).normal(size=(runs, count, DIM))
    draws /= np.linalg.norm(draws, axis=2, keepdims=True)
    held = np.zeros((runs, 2))
    for one, v in zip(held, draws, strict=True):
        parts = v.reshape(-1, 8, DIM)
        trace, square = quadratic.estimates(DIM, [quadratic.Block(p @ p.T, (p * values) @ p.T) for p in parts])
        ends = student_interval(trace, 0.05), square.interval(0.05)
        one[:] = [
            low <= truth <= high for (low, high), truth in zip(ends, (values.sum(), values @ values), strict=True)
        ]
    assert held.mean(axis=0).min() > 0.92
