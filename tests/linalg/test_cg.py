"""Block conjugate gradients against dense solves: dependent right-hand sides, outliers, rounding, no solution."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvcli.errors import NumericsError
from curvcli.linalg.iterate import Silent
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.solvers import cg, minres
from tests.linalg.systems import EPS, gaussian, solved, symmetric, true_residuals
from tests.monitors import StopAfter

OUTLIERS = np.r_[np.geomspace(1e2, 1e4, 10), np.linspace(1, 2, 50)]


def naive(matrix, b, steps):
    """Conjugate gradients as in the textbooks: the iterates."""
    x, r = np.zeros_like(b), b
    p, found = r, []
    for _ in range(steps):
        image = matrix @ p
        alpha = r @ r / (p @ image)
        x, before, r = x + alpha * p, r @ r, r - alpha * image
        p = r + (r @ r / before) * p
        found.append(x)
    return found


def test_one_right_hand_side_is_ordinary_conjugate_gradients():
    matrix, b, seen = symmetric(np.linspace(1, 30, 25)), gaussian(25), []
    solved(cg.solve, matrix, b[None], max_steps=12, each=lambda steps, x: seen.append((steps, np.asarray(x)[0])))
    assert [steps for steps, _ in seen] == list(range(1, 13))
    np.testing.assert_allclose(np.stack([x for _, x in seen]), np.stack(naive(matrix, b, 12)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("values", [np.linspace(1, 20, 40), np.geomspace(1e-6, 1, 40), OUTLIERS])
def test_many_right_hand_sides_of_any_size(values):
    matrix = symmetric(values)
    rhs = gaussian(4, len(values)) * [[1e-9], [1.0], [1e9], [1.0]]
    found = solved(cg.solve, matrix, rhs, tol=1e-9)
    assert found.status == ["converged"] * 4
    # b − Ax rounds by eps ‖A‖ ‖x‖, whichever order a product sums in.
    rounding = EPS * values.max() * np.linalg.norm(found.x, axis=1) / np.linalg.norm(rhs, axis=1)
    off = np.abs(found.residuals - true_residuals(matrix, rhs, found))
    assert np.all(off <= 1e-3 * np.asarray(found.residuals) + 1e3 * EPS + rounding)
    errors = np.linalg.norm(found.x - np.linalg.solve(matrix, rhs.T).T, axis=1) / np.linalg.norm(rhs, axis=1)
    assert np.all(errors <= 2e-9 / values.min())
    assert values.min() <= found.lowest[0] <= found.norm[0] <= values.max() * (1 + 1e-12)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), rank=st.integers(0, 4), k=st.sampled_from([1, 4]), dim=st.sampled_from([1, 3, 8])
)
def test_any_rank_of_right_hand_sides(seed, rank, k, dim):
    """As numpy.linalg.solve has it, also for more systems than dimensions."""
    random = np.random.default_rng(seed)
    matrix = symmetric(random.uniform(0.1, 10, dim), seed)
    rhs = random.normal(size=(k, rank)) @ random.normal(size=(rank, dim))
    found = solved(cg.solve, matrix, rhs)
    assert found.status == ["converged"] * k
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix, rhs.T).T, atol=1e-8 * max(1.0, np.abs(rhs).max()))


def test_each_system_ends_by_itself():
    rhs = np.array([[3.0, 0, 0, 0], [1.0, 1, 0, 0], [0, 0, 0, 0], [1.0, 1, 1, 1], [2.0, 2, 2, 2]])
    values, meter = np.array([1.0, 2.0, 5.0, 7.0]), Meter()
    found = solved(cg.solve, np.diag(values), rhs, operator=meter.count)
    np.testing.assert_allclose(found.x, rhs / values, atol=1e-12)
    assert found.status == ["converged"] * 5
    assert found.iterations.tolist() == [1, 1, 0, 2, 2]
    # One for each step, and one for the residuals.
    assert meter.data_passes == 3


def test_outliers_are_found_once():
    """One process each needs a step for every outlier; the block needs as many for all ten systems together."""
    matrix, rhs, meter = symmetric(OUTLIERS), gaussian(10, 60), Meter()
    left = [[np.linalg.norm(b - matrix @ x) / np.linalg.norm(b) for x in naive(matrix, b, 60)] for b in rhs]
    alone = [1 + next(i for i, size in enumerate(sizes) if size <= 1e-6) for sizes in left]
    found = solved(cg.solve, matrix, rhs, tol=1e-6, operator=meter.count)
    assert found.status == ["converged"] * 10
    assert meter.products < 0.5 * sum(alone)
    assert found.iterations.max() < 0.5 * min(alone)


def test_negative_curvature_is_no_silent_number():
    found = solved(cg.solve, np.diag([3.0, 1.0, -0.5]), np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    assert found.status == ["indefinite", "converged"]
    assert -0.5 <= found.lowest[0] < 0
    block = solved(cg.solve, symmetric(np.r_[-1e-3, np.linspace(1, 5, 39)]), gaussian(5, 40))
    assert block.status == ["indefinite"] * 5
    assert block.lowest[0] < 0
    assert np.all(np.isfinite(block.x))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_singular_systems(scale):
    matrix = symmetric(np.r_[np.zeros(5), np.linspace(1, 6, 20)] * scale)
    inside = gaussian(2, 25) @ matrix
    found = solved(cg.solve, matrix, np.vstack([inside, gaussian(1, 25, seed=4)]), tol=1e-9)
    assert found.status == ["converged", "converged", "not-converged"]
    # No better than nothing, and said so.
    assert found.residuals[2] <= 1
    np.testing.assert_allclose(
        found.residuals[2:], true_residuals(matrix, gaussian(1, 25, seed=4), found._replace(x=found.x[2:]))
    )


@pytest.mark.parametrize("matrix", [np.zeros((2, 2)), np.diag([0.0, 3.0])])
def test_a_right_hand_side_where_the_matrix_is_zero(matrix):
    found = solved(cg.solve, matrix, np.array([[1.0, 0.0]]))
    assert (found.status, found.residuals.tolist()) == (["not-converged"], [1.0])
    np.testing.assert_array_equal(found.x, np.zeros((1, 2)))


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e7])
@pytest.mark.parametrize("smooth", [True, False])
def test_float32_attains_what_it_can_and_stops_there(condition, smooth):
    """‖r‖ ~ eps ‖A‖ ‖x‖ without many products; where that is no use, no more than nothing is claimed."""
    eps, matrix, meter = np.finfo("float32").eps, symmetric(np.geomspace(1 / condition, 1, 60)), Meter()
    matrix = matrix.astype("float32").astype(float)
    rhs = (gaussian(20, 60) @ matrix if smooth else gaussian(20, 60)).astype("float32").astype(float)
    found = solved(cg.solve, matrix, rhs, "float32", operator=meter.count, tol=1e-7, max_steps=1000)
    sizes = np.linalg.norm(rhs, axis=1)
    attainable = eps * np.linalg.norm(np.linalg.solve(matrix, rhs.T), axis=0) / sizes
    rounding = 4 * eps * (np.linalg.norm(found.x, axis=1) / sizes).max()
    np.testing.assert_allclose(found.residuals, true_residuals(matrix, rhs, found), rtol=0.5, atol=rounding)
    assert np.all((found.residuals <= 4 * np.maximum(attainable, 1e-7)) | (attainable > 0.005))
    assert np.all(found.residuals <= 1)
    assert [said == "converged" for said in found.status] == (found.residuals <= 2e-7).tolist()
    assert meter.data_passes < 200


def test_what_the_recurrence_has_lost_is_solved_for_again():
    """The first products are wrong in the fifth digit, as rounding would have it: only measuring tells."""
    matrix, rhs, seen = symmetric(np.linspace(1, 20, 40)), gaussian(2, 40), []

    def inaccurate(operator):
        products = iter([1 + 1e-5] * 3)
        return replace(operator, matmat=lambda rows: operator.matmat(rows) * next(products, 1.0))

    found = solved(
        cg.solve, matrix, rhs, operator=inaccurate, tol=1e-9, each=lambda steps, x: seen.append((steps, np.asarray(x)))
    )
    assert found.status == ["converged"] * 2
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix, rhs.T).T, atol=1e-8)
    assert [steps for steps, _ in seen] == list(range(1, found.iterations.max() + 1))
    np.testing.assert_array_equal(seen[-1][1], found.x)


def test_a_preconditioner_changes_the_way_not_the_answer():
    scales = np.geomspace(1e-3, 1e3, 40)
    matrix = np.diag(scales) @ symmetric(np.linspace(1, 2, 40)) @ np.diag(scales)
    rhs, root = gaussian(3, 40), jnp.asarray(1 / np.sqrt(np.diag(matrix)))
    plain, meter = Meter(), Meter()
    solved(cg.solve, matrix, rhs, tol=1e-8, operator=plain.count)
    seen = []
    found = solved(
        cg.solve, matrix, rhs, tol=1e-8, operator=meter.count, root=lambda rows: rows * root[None],
        each=lambda steps, x: seen.append(np.asarray(x)),
    )  # fmt: skip
    assert found.status == ["converged"] * 3
    np.testing.assert_allclose(found.residuals, true_residuals(matrix, rhs, found), rtol=1e-2, atol=1e-9)
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix, rhs.T).T, rtol=1e-4, atol=1e-3)
    assert meter.products < 0.5 * plain.products
    np.testing.assert_array_equal(seen[-1], found.x)


def test_a_stopped_run_answers_with_what_it_has():
    matrix, rhs = symmetric(np.geomspace(1e-3, 1, 50)), gaussian(2, 50)
    found = solved(cg.solve, matrix, rhs, monitor=StopAfter(3))
    four = solved(cg.solve, matrix, rhs, max_steps=4)
    assert found.iterations.tolist() == [4, 4]
    assert found.status == ["not-converged"] * 2
    np.testing.assert_array_equal(found.x, four.x)
    np.testing.assert_allclose(found.residuals, true_residuals(matrix, rhs, found), rtol=1e-10)


def test_as_minres_has_it():
    matrix, rhs = symmetric(np.geomspace(1e-2, 1, 30)), gaussian(3, 30)
    block, each = solved(cg.solve, matrix, rhs), solved(minres.solve, matrix, rhs, reorthogonalize="full")
    np.testing.assert_allclose(block.x, each.x, atol=1e-7)
    assert block.status == each.status


def test_products_that_are_no_numbers():
    operator = LinearOperator(lambda vectors: vectors * np.nan, 3, np.dtype(float))
    with pytest.raises(NumericsError, match="not finite"):
        cg.solve(operator, jnp.ones((1, 3)), tol=1e-6, max_steps=3, monitor=Silent())
