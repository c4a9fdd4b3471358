"""The trace at equal products by curv and by matfree's XTrace: `python benchmarks/trace.py [runs]`.

Needs requirements.txt. For each spectrum: root mean square error relative to the trace, and how often an interval at
95 % holds it: curv's own, and value ± 1.96 standard errors as matfree gives them.
"""

from __future__ import annotations

import sys

from curvcli.xla import guard_environment

guard_environment()

import jax
import jax.numpy as jnp
import numpy as np
from matfree import stochtrace
from spectra import DIM, SPECTRA

from curvcli.analyses.trace import sampled
from curvcli.linalg.iterate import Silent
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.schema.trace import TraceSettings


def main(runs: int) -> None:
    """One row a spectrum and number of products, as a Markdown table."""
    jax.config.update("jax_enable_x64", True)
    print("| spectrum | products | matfree: RMSE, coverage | curv xtrace: RMSE, coverage | curv auto: RMSE, coverage |")
    print("|---|---|---|---|---|")
    for name, values in SPECTRA.items():
        for products in (8, 16, 64):
            theirs = matfree(values, products, runs)
            ours = [curv(values, products, runs, method) for method in ("xtrace", "auto")]
            cells = [f"{error:.2e}, {share:.2f}" for error, share in (theirs, *ours)]
            print(f"| {name} | {products} | {' | '.join(cells)} |", flush=True)


def matfree(values: np.ndarray, products: int, runs: int) -> tuple[float, float]:
    """RMSE and coverage of matfree's leave-one-out estimator on the sphere."""
    entries = jnp.asarray(values)
    sampler = stochtrace.sampler_sphere(entries, num=products // 2)
    estimate = stochtrace.estimator_leave_one_out_mean_and_sem(stochtrace.leave_one_out_xtrace(), sampler)
    found = jax.jit(lambda key: estimate(lambda v: entries * v, key))
    pairs = np.array([[float(part) for part in found(jax.random.key(seed))] for seed in range(runs)])
    return score(pairs[:, 0], 1.96 * pairs[:, 1], values)


def curv(values: np.ndarray, products: int, runs: int, method: str) -> tuple[float, float]:
    """RMSE and coverage of curv's estimate."""
    entries = jnp.asarray(values)[None]
    operator, rows = LinearOperator(lambda v: v * entries, DIM, np.dtype(float)), []
    for seed in range(runs):
        settings = TraceSettings(seed=seed, dtype="float64", method=method, probes=products)  # type: ignore[arg-type]
        result, _ = sampled(operator, settings, method, ["all"], (((0, DIM),),), 8, Silent(), Meter())
        low, high = result.trace.interval
        rows.append([result.trace.value, 0.5 * (high - low)])
    table = np.array(rows)
    return score(table[:, 0], table[:, 1], values)


def score(found: np.ndarray, margins: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Relative RMSE, and the share within the margins."""
    errors, slack = np.abs(found - values.sum()), 1e-11 * np.abs(values).sum()
    return float(np.sqrt(np.mean(errors**2)) / abs(values.sum())), float(np.mean(errors <= margins + slack))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
