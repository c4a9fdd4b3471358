"""The largest eigenvalues by `curv eigs` and by ARPACK (scipy's eigsh): `python benchmarks/eigs.py [MODEL:K …]`.

The same operator in both, in float32. ARPACK runs at the laxest of some tolerances at which its worst true residual
meets what curv was asked for. Both measure the residuals of what they found, a product a pair, and all products are
counted where they are made; the two take turns after a first run of each, which compiles.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse.linalg
from scipy.sparse.linalg import ArpackNoConvergence

from curvcli.analyses.common.context import Context
from curvcli.xla import guard_environment

guard_environment()

import jax
import jax.numpy as jnp
from samples import SAMPLES, load

from curvcli.analyses import eigs
from curvcli.analyses.spectrum import tolerance
from curvcli.curvature import build_for
from curvcli.linalg.iterate import Silent
from curvcli.linalg.krylov.eigen import true_residuals
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.schema.eigs import EigsSettings

RUNS = ("digits_mlp:10", "digits_mlp:50", "digits_cnn:10", "digits_cnn:50")
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ROUNDS = 3


def main() -> None:
    """Print a table."""
    jax.config.update("jax_default_matmul_precision", "highest")
    print("model k solver products seconds worst-residual/norm worst-difference/norm")
    for run in sys.argv[1:] or RUNS:
        model, _, k = run.partition(":")
        compare(model, int(k))


def compare(model: str, k: int) -> None:
    """Both solvers on one Hessian."""
    settings = EigsSettings(k=k, skip_checks=True, vectors="kept.npz")
    problem = load(SAMPLES / f"{model}.ckpt", settings)
    operator = build_for(problem, settings)
    values, vectors, products = by_curv(problem, settings)
    norm = np.abs(values).max()
    for tol in TOLERANCES:
        theirs = by_arpack(operator, k, tol)
        if worst_residual(operator, theirs[1]) <= tolerance(settings) * norm:
            break
    solvers = {
        "curv": lambda: by_curv(problem, settings),
        f"eigsh, tol {tol:g}": lambda: by_arpack(operator, k, tol),
    }
    seconds = rounds(solvers)
    found = {"curv": (values, vectors, products), f"eigsh, tol {tol:g}": theirs}
    for name, (values, vectors, products) in found.items():
        difference = np.abs(values - theirs[0]).max() / norm
        residual = worst_residual(operator, vectors) / norm
        print(f"{model} {k} {name}: {products} {seconds[name]:.2f} {residual:.1e} {difference:.1e}", flush=True)
    ours, arpack = (found[name][2] for name in found)
    times = list(seconds.values())
    print(f"{model} {k} curv / eigsh: products {ours / arpack:.2f}, seconds {times[0] / times[1]:.2f}", flush=True)


def by_curv(problem: Problem, settings: EigsSettings) -> tuple[np.ndarray, np.ndarray, int]:
    """Values, vectors and products of the whole analysis."""
    answer = eigs.run(Context(problem, Silent()), settings)
    names = sorted(problem.params)
    vectors = np.concatenate([answer.arrays[f"vectors/{name}"].reshape(settings.k, -1) for name in names], axis=1)
    return answer.arrays["eigenvalues"], vectors, answer.meter.products


def by_arpack(operator: LinearOperator, k: int, tol: float) -> tuple[np.ndarray, np.ndarray, int]:
    """The same by eigsh, with its own defaults otherwise."""
    meter = Meter()
    counted = meter.count(operator)

    def product(vector: np.ndarray) -> np.ndarray:
        return np.asarray(counted.matmat(jnp.asarray(vector.reshape(1, -1), operator.dtype)))[0]

    shape = (operator.dim, operator.dim)
    linear = scipy.sparse.linalg.LinearOperator(shape, matvec=product, dtype=operator.dtype)  # type: ignore[call-arg]
    start = np.random.default_rng(0).normal(size=operator.dim).astype(operator.dtype)
    try:
        values, vectors = scipy.sparse.linalg.eigsh(linear, k=k, which="LA", tol=tol, v0=start)
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    order = np.argsort(-values)
    rows = vectors[:, order].T
    worst_residual(counted, rows)
    return values[order], rows, meter.products


def worst_residual(operator: LinearOperator, vectors: np.ndarray) -> float:
    """The largest ‖Ay − θy‖, a product a vector."""
    return float(true_residuals(operator, jnp.asarray(vectors, operator.dtype), 2)[1].max())


def rounds(solvers: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in solvers}
    for _ in range(ROUNDS):
        for name, solve in solvers.items():
            start = time.perf_counter()
            solve()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(spent)) for name, spent in times.items()}


if __name__ == "__main__":
    main()
