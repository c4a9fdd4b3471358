"""How often intervals from three samples and more hold the truth: `python benchmarks/coverage_few.py [runs]`.

The sums of a diagonal over three "layers", from random signs, and scores of self-influence, which are means of products
of normal variables with correlation ρ; a removal's are squares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from curvcli.xla import guard_environment

guard_environment()

import jax
import numpy as np

from curvcli.analyses.influence.self_influence import sampled_interval
from curvcli.linalg.diagonal.entries import Moments, Ranges
from curvcli.linalg.statistics import student_interval

DIM = 60
SEGMENTS = (((0, 30),), ((30, 36), (52, 60)), ((36, 52),))
COUNTS = (3, 4, 8, 16, 64)


def main(runs: int) -> None:
    """Both tables, as Markdown."""
    jax.config.update("jax_enable_x64", True)
    print("| matrix | " + " | ".join(f"{count} products" for count in COUNTS) + " |\n" + "|---" * 6 + "|")
    for name, matrix in matrices():
        cells = [" ".join(f"{share:.3f}" for share in layers(matrix, count, runs)) for count in COUNTS]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n| score | " + " | ".join(f"{count} samples" for count in COUNTS) + " |\n" + "|---" * 6 + "|")
    for name, correlation, squares in (
        ("removal", 1.0, True), ("ρ = 1", 1.0, False), ("ρ = 0.85", 0.85, False), ("ρ = 0.7", 0.7, False),
        ("ρ = 0.5", 0.5, False), ("ρ = 0.3", 0.3, False), ("ρ = 0", 0.0, False),
    ):  # fmt: skip
        cells = [f"{products(correlation, count, 10 * runs, squares=squares):.3f}" for count in COUNTS]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def matrices() -> Iterator[tuple[str, np.ndarray]]:
    """Of several spectra, and rank one with entries of very unequal size."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    yield "flat", (basis * rng.uniform(0.9, 1.1, DIM)) @ basis.T
    yield "outlier", (basis * np.r_[100, np.ones(DIM - 1)]) @ basis.T
    yield "indefinite", (basis * rng.normal(size=DIM)) @ basis.T
    yield "low rank", (basis[:, :5] * np.arange(1, 6)) @ basis[:, :5].T
    for name, scale in (("rank one, entries lognormal(1.5)", 1.5), ("rank one, entries lognormal(2.5)", 2.5)):
        vector = np.exp(scale * rng.normal(size=DIM))
        yield name, np.outer(vector, vector)


def layers(matrix: np.ndarray, count: int, runs: int) -> np.ndarray:
    """Share of runs that hold the sum of each layer's diagonal."""
    layout, held = Ranges.of(SEGMENTS), np.zeros(len(SEGMENTS))
    truth = [sum(np.diag(matrix)[start:stop].sum() for start, stop in part) for part in SEGMENTS]
    for seed in range(runs):
        tests = np.random.default_rng(seed).choice([-1.0, 1.0], size=(count, DIM))
        moments = Moments(layout, DIM)
        moments.add(tests, tests @ matrix)
        ends = [student_interval(law, 0.05) for law in moments.found().sums]
        held += [low - 1e-9 <= value <= high + 1e-9 for (low, high), value in zip(ends, truth, strict=True)]
    return held / runs


def products(correlation: float, count: int, runs: int, *, squares: bool) -> float:
    """Share of runs that hold the mean of a product."""
    random = np.random.default_rng(0)
    x, z = random.normal(size=(2, runs, count))
    terms = x * (correlation * x + (1 - correlation**2) ** 0.5 * z)
    means, errors = terms.mean(axis=1).tolist(), (terms.std(axis=1, ddof=1) / count**0.5).tolist()
    ends = [sampled_interval(*pair, count, 0.95, squares=squares) for pair in zip(means, errors, strict=True)]
    return float(np.mean([low <= correlation <= high for low, high in ends]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
