"""How often the intervals of `curv trace` contain the truth: `python benchmarks/coverage_trace.py [runs] [method …]`.

On rotated matrices of known spectra, for 4, 8, 16 and 64 products: the share of runs whose 95 % interval holds the
exact trace, the Frobenius norm, and the traces of three "layers"; the median half-width as a multiple of the
oracle's, which knows the standard deviation of this very estimator. Then the same with `--rtol`, where the width
decides when to stop, and the products spent.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from curvcli.xla import guard_environment

guard_environment()

import jax
import numpy as np
from spectra import DIM, SPECTRA, rotated

from curvcli.analyses.trace import sampled
from curvcli.linalg.iterate import Silent
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import dense_operator
from curvcli.schema.trace import TraceSettings

NAMES = ["a", "b", "c"]
SEGMENTS = (((0, 150),), ((150, 180), (260, 300)), ((180, 260),))
METHODS = ("hutchinson", "hutch++", "xtrace", "auto", FORMS := "forms")
"""The last is `--no-layers --method hutchinson`: quadratic forms without images."""
PRODUCTS = (4, 8, 16, 64)


def main(runs: int, methods: tuple[str, ...]) -> None:
    """Both tables, as Markdown."""
    jax.config.update("jax_enable_x64", True)
    print("| spectrum | method | trace | Frobenius norm | layers | half-width / oracle's |")
    print("|---|---|---|---|---|---|")
    for name, values in SPECTRA.items():
        for method in methods:
            table = np.array([study(values, runs, method=method, probes=products)[:4] for products in PRODUCTS])
            cells = [" ".join(f"{value:.2f}" if i == 3 else f"{value:.3f}" for value in table[:, i]) for i in range(4)]
            print(f"| {name} | {method} | {' | '.join(cells)} |", flush=True)
    print(
        "\n| spectrum | method | `--rtol` | trace | reached | products, median | products, fixed number for the same |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, values in SPECTRA.items():
        for method in (one for one in methods if one in ("hutchinson", "auto", FORMS)):
            for rtol in (0.1, 0.01):
                row = study(values, runs, method=method, rtol=rtol, probes=256)
                print(f"| {name} | {method} | {rtol} | {row[0]:.3f} | {row[5]:.2f} | {row[4]:.0f} | {row[6]:.0f} |",
                      flush=True)  # fmt: skip


def study(values: np.ndarray, runs: int, **options: object) -> list[float]:
    """Coverage of trace, norm and layers; relative width; products; share that met rtol; the oracle's products."""
    matrix = rotated(values)
    operator = replace(dense_operator(matrix), forms=lambda v: v @ matrix @ v.T)
    diagonal, trace, norm = np.diag(matrix), values.sum(), float(np.linalg.norm(values))
    parts = [sum(diagonal[a:b].sum() for a, b in part) for part in SEGMENTS]
    rounding = 1e-11 * np.abs(values).sum()
    rows, found = [], []
    for seed in range(runs):
        told = {**options, "method": "hutchinson", "layers": False} if options["method"] == FORMS else options
        settings = TraceSettings(seed=seed, dtype="float64", **told)  # type: ignore[arg-type]
        meter = Meter()
        result, warnings = sampled(
            meter.count(operator), settings, settings.method, NAMES, SEGMENTS, 8, Silent(), meter
        )
        held = [
            float(estimate.interval[0] - rounding <= truth <= estimate.interval[1] + rounding)
            for estimate, truth in [
                (result.trace, trace), (result.frobenius_norm, norm),
                *((layer.trace, part) for layer, part in zip(result.layers, parts, strict=False)),
            ]
        ]  # fmt: skip
        low, high = result.trace.interval
        layers = np.mean(held[2:]) if len(held) > 2 else np.nan
        rows.append([held[0], held[1], layers, 0.5 * (high - low), meter.products + meter.forms, not warnings])
        found.append(result.trace.value)
    table = np.array(rows, float)
    error = np.sqrt(np.mean(np.square(np.array(found) - trace))) + 1e-13 * abs(trace)
    variance = 2 * DIM / (DIM + 2) * (norm**2 - trace**2 / DIM)
    oracle = variance * (1.96 / (options.get("rtol", 1.0) * trace)) ** 2  # type: ignore[operator]
    return [
        *table[:, :3].mean(0),
        np.median(table[:, 3]) / (1.96 * error),
        np.median(table[:, 4]),
        table[:, 5].mean(),
        oracle,
    ]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500, tuple(sys.argv[2:]) or METHODS)
