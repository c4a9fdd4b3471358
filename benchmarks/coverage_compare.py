"""How often the intervals of `curv compare` contain the truth: `python benchmarks/coverage_compare.py [runs]`.

Pairs of rotated matrices of known spectra, their top k eigenvectors counted exactly (k = 0: none), 8, 16, 32 and 64
common probes: the share of runs whose 95 % interval holds the trace, the Frobenius norm, the distance, the relative
distance and the alignment; the median half-width of the relative distance.
"""

from __future__ import annotations

import sys

from curvcli.xla import guard_environment

guard_environment()

import jax
import jax.numpy as jnp
import numpy as np
from spectra import DIM, SPECTRA, rotated

from curvcli.analyses.compare.candidates import Candidate
from curvcli.analyses.compare.measures import Reader
from curvcli.linalg.krylov.orthonormal import orthonormalise
from curvcli.linalg.operator import dense_operator
from curvcli.linalg.trace.together import Together
from curvcli.schema.compare import CompareSettings

PAIRS = [
    ("flat", "exponential"), ("single outlier", "few outliers"), ("few outliers", "power law 1/i"),
    ("indefinite", "flat"), ("low rank", "few outliers"), ("power law 1/i", "exponential"),
]  # fmt: skip
PROBES = (8, 16, 32, 64)


def main(runs: int) -> None:
    """The table, as Markdown."""
    jax.config.update("jax_enable_x64", True)
    print(
        "| A, B | k | trace | norm | distance | relative distance | alignment | half-width of the relative distance |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for first, second in PAIRS:
        one = rotated(SPECTRA[first])
        turn, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))
        other = turn @ rotated(SPECTRA[second]) @ turn.T
        for k in (0, 2):
            table = np.array([study(one, other, k, probes, runs) for probes in PROBES])
            cells = [" ".join(f"{value:.3f}" for value in table[:, i]) for i in range(5)]
            widths = " ".join(f"{value:.2g}" for value in table[:, 5])
            print(f"| {first}, {second} | {k} | {' | '.join(cells)} | {widths} |", flush=True)


def study(one: np.ndarray, other: np.ndarray, k: int, probes: int, runs: int) -> list[float]:
    """Coverage of the five numbers, and the median half-width of the fourth."""
    sizes = np.linalg.norm(one), np.linalg.norm(other), np.linalg.norm(one - other)
    truth = [np.trace(one), sizes[0], sizes[2], sizes[2] / sizes[0], np.sum(one * other) / sizes[0] / sizes[1]]
    tops = np.concatenate([np.linalg.eigh(matrix)[1][:, DIM - k :].T for matrix in (one, other)])
    basis = orthonormalise(jnp.asarray(tops))[0] if k else jnp.zeros((0, DIM))
    found = [Candidate(name, dense_operator(m), None) for name, m in (("hessian", one), ("ggn", other))]  # type: ignore[arg-type]
    held, widths = np.zeros(5), []
    for run in range(runs):
        together = Together(DIM, 2, basis)
        if k:
            together.add_known([basis @ one, basis @ other], basis)
        for _ in range(probes // 8):
            tests = together.tests(jax.random.key(run), 8, "float64")
            together.add([tests @ one, tests @ other], tests)
        reader = Reader(CompareSettings(dtype="float64"), 0.05, together, found)
        told = [reader.trace(0), reader.norm(0), reader.distance(0, 1), reader.relative(0, 1), reader.alignment(0, 1)]
        intervals = [estimate.interval for estimate in told if estimate is not None]
        held += [low <= true <= high for (low, high), true in zip(intervals, truth, strict=True)]
        widths.append(0.5 * (intervals[3][1] - intervals[3][0]))
    return [*(held / runs).tolist(), float(np.median(widths))]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
