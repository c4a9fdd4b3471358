"""BFGS in limited memory against its dense formula, and on quadratics."""

from __future__ import annotations

import numpy as np
import pytest

from curvcli.linalg.solvers.bfgs import DAMPED, from_pairs
from tests.linalg.systems import EPS, gaussian, symmetric


def dense(pairs: list[tuple[np.ndarray, np.ndarray]], scale: float) -> np.ndarray:
    """B written out, by the update itself."""
    b = scale * np.eye(len(pairs[0][0]))
    for s, y in pairs:
        bs, sy = b @ s, s @ y
        if sy < DAMPED * s @ bs:
            share = 0.8 * (s @ bs) / (s @ bs - sy)
            y = share * y + (1 - share) * bs
        b = b - np.outer(bs, bs) / (s @ bs) + np.outer(y, y) / (y @ s)
    return b


@pytest.mark.parametrize("low", [0.5, -2.0])
def test_products_and_solutions_are_those_of_the_matrix_written_out(low: float) -> None:
    matrix = symmetric(np.linspace(low, 4, 7))
    pairs = [(s, matrix @ s) for s in gaussian(4, 7)]
    found, b = from_pairs(pairs, 1.7), dense(pairs, 1.7)
    assert np.linalg.eigvalsh(b)[0] > 0  # negative curvature is damped away
    v = gaussian(7, seed=5)
    np.testing.assert_allclose(found.product(v), b @ v, rtol=1e4 * EPS, atol=1e4 * EPS)
    np.testing.assert_allclose(found.solve(v), np.linalg.solve(b, v), rtol=1e5 * EPS, atol=1e5 * EPS)


def test_the_secant_equation_holds_for_the_last_pair() -> None:
    matrix = symmetric(np.linspace(1, 4, 7))
    pairs = [(s, matrix @ s) for s in gaussian(3, 7)]
    np.testing.assert_allclose(from_pairs(pairs, 1.0).product(pairs[-1][0]), pairs[-1][1], rtol=1e4 * EPS)


def test_a_shift_is_that_of_the_matrix() -> None:
    matrix = symmetric(np.linspace(1, 4, 5))
    pairs = [(s, matrix @ s) for s in gaussian(3, 5)]
    shifted = [(s, y + 0.3 * s) for s, y in pairs]
    np.testing.assert_allclose(
        from_pairs(pairs, 2.0, 0.3).product(np.ones(5)), from_pairs(shifted, 2.3).product(np.ones(5)), rtol=1e3 * EPS
    )


def test_with_exact_line_searches_a_quadratic_ends_in_n_steps_and_the_matrix_is_found() -> None:
    matrix, w, pairs = symmetric(np.linspace(1, 5, 6)), gaussian(6), []
    for _ in range(6):
        gradient = matrix @ w
        direction = -from_pairs(pairs, 1.0).solve(gradient)
        step = -(gradient @ direction) / (direction @ matrix @ direction) * direction
        w, pairs = w + step, [*pairs, (step, matrix @ step)]
    assert np.linalg.norm(w) < 1e-8
    np.testing.assert_allclose(dense(pairs, 1.0), matrix, atol=1e-6)


def test_a_step_of_zero_changes_nothing() -> None:
    found = from_pairs([(np.zeros(3), np.zeros(3))], 2.0)
    np.testing.assert_array_equal(found.solve(np.ones(3)), 0.5)
