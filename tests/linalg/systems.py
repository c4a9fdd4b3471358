"""Linear systems for the solvers' tests: matrices of given spectra, operators from them, runs."""

import jax.numpy as jnp
import numpy as np

from curvcli.linalg.iterate import Silent
from curvcli.linalg.operator import dense_operator

EPS = np.finfo(float).eps


def symmetric(values, seed=0):
    """A random symmetric matrix with these eigenvalues."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return (q * np.asarray(values)) @ q.T


def gaussian(*shape, seed=1):
    """Random right-hand sides."""
    return np.random.default_rng(seed).normal(size=shape)


def solved(solve, matrix, rhs, dtype="float64", operator=None, **options):
    """A solver's answer for a dense matrix; `operator` may wrap it."""
    options = {"tol": 1e-10, "max_steps": 200, "monitor": Silent(), **options}
    dense = dense_operator(jnp.asarray(matrix, dtype))
    return solve(operator(dense) if operator else dense, jnp.asarray(rhs, dtype), **options)


def true_residuals(matrix, rhs, found):
    """‖b − A x‖ / ‖b‖ in float64."""
    left = np.linalg.norm(rhs - np.asarray(found.x, np.float64) @ matrix, axis=1)
    return left / np.linalg.norm(rhs, axis=1)
