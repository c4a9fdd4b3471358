"""How often the intervals contain the truth, and how wide they are: `python benchmarks/coverage.py [runs]`.

For each spectrum and number of probes: the share of runs whose 95 % interval for the trace and for the Frobenius norm
contains the exact value, Student's interval from the same plain samples beside it, and the mean half-width as a
multiple of the oracle's (the one that knows the standard deviation of the plain mean).
"""

from __future__ import annotations

import sys
from dataclasses import replace

from curvcli.xla import guard_environment

guard_environment()

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from spectra import DIM, SPECTRA

from curvcli.linalg.iterate import Silent
from curvcli.linalg.krylov import slq
from curvcli.linalg.krylov.quadrature import NO_OUTLIERS
from curvcli.linalg.operator import LinearOperator

STEPS = 30


def main(runs: int) -> None:
    """One row a spectrum, method and number of probes, as a Markdown table."""
    jax.config.update("jax_enable_x64", True)
    print("| spectrum | method | probes | trace | Frobenius | Student's t | half-width / oracle's |")
    print("|---|---|---|---|---|---|---|")
    for name, values in SPECTRA.items():
        entries = jnp.asarray(values)[None]
        operator = LinearOperator(lambda v, entries=entries: v * entries, DIM, np.dtype(float))
        square = np.sum(values**2)
        oracle = np.sqrt(2 * DIM / (DIM + 2) * (square - values.sum() ** 2 / DIM))
        for probes in (4, 8):
            rows = [study(operator, values, probes, seed) for seed in range(runs)]
            for method, row in zip(("hutchinson", "xtrace"), np.mean(rows, axis=0), strict=True):
                trace, frobenius, student, width = row
                ratio = width / (1.96 * oracle / np.sqrt(probes))
                print(f"| {name} | {method} | {probes} | {trace:.3f} | {frobenius:.3f} | {student:.3f} | {ratio:.3g} |",
                      flush=True)  # fmt: skip


def study(operator: LinearOperator, values: np.ndarray, probes: int, seed: int) -> list[list[float]]:
    """One run, plain and deflated: whether each interval contains the truth, and the trace's half-width."""
    key, collected = jax.random.key(seed), slq.Collected()
    slq.Slq(STEPS, "full", deflate=True).round(operator, key, probes, collected, Silent(), 0)
    deflated = slq.quadrature(collected, key, operator)
    plain = replace(deflated, outliers=[NO_OUTLIERS] * probes)
    rounding = 1e-12 * np.abs(values).sum()
    samples = DIM * plain.sample(lambda x: x)
    margin = scipy.stats.t.ppf(0.975, probes - 1) * samples.std(ddof=1) / np.sqrt(probes)
    student = abs(samples.mean() - values.sum()) <= margin + rounding
    row = []
    for quadrature in (plain, deflated):
        trace = quadrature.estimate(lambda x: x, 0.05, DIM)
        frobenius = quadrature.estimate(np.square, 0.05, DIM)
        held = [
            estimate.interval[0] - rounding <= truth <= estimate.interval[1] + rounding
            for estimate, truth in ((trace, values.sum()), (frobenius, np.sum(values**2)))
        ]
        row.append([*map(float, held), float(student), 0.5 * (trace.interval[1] - trace.interval[0])])
    return row


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
