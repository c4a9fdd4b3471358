"""The diagonal: how often its intervals cover, and its error beside matfree's: `python benchmarks/diag.py [runs]`.

First, on rotated matrices of known spectra: the share of entries, pooled over runs, whose 95 % interval holds the
truth, and of the means of three "layers"; the mean half-width as a multiple of the oracle's, which knows the root mean
square error of this very estimator in every entry. Then the error of all entries relative to matfree's estimators
(`requirements.txt`) at equal products, there and on the Hessian of the last layer of `digits_mlp.ckpt`.
"""

from __future__ import annotations

import sys

from curvcli.xla import guard_environment

guard_environment()

import jax
import numpy as np
from samples import SAMPLES, load
from spectra import DIM, SPECTRA, rotated

from curvcli.analyses import diag
from curvcli.analyses.common.planning import MemoryPlan
from curvcli.curvature import build
from curvcli.linalg.diagonal.entries import Found, Ranges, Segments
from curvcli.linalg.iterate import Silent
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import dense_operator, to_dense
from curvcli.linalg.statistics import student_interval
from curvcli.schema.diag import DiagSettings

SEGMENTS = (((0, 150),), ((150, 180), (260, 300)), ((180, 260),))
METHODS = ("hutchinson", "xdiag", "auto")
PRODUCTS = (4, 8, 16, 64)


def main(runs: int) -> None:
    """Both tables, as Markdown."""
    jax.config.update("jax_enable_x64", True)
    print("| spectrum | method | products | entries | layers | half-width / oracle's |\n|---|---|---|---|---|---|")
    for name, values in SPECTRA.items():
        for method in METHODS:
            for products in PRODUCTS:
                entries, layers, width = coverage(rotated(values), method, products, runs)
                print(f"| {name} | {method} | {products} | {entries:.3f} | {layers:.3f} | {width:.2f} |", flush=True)
    print("\n| matrix | products | hutchinson / matfree's | xdiag / matfree's | auto / matfree's better | auto takes |")
    print("|---|---|---|---|---|---|")
    matrices = {name: rotated(values) for name, values in SPECTRA.items()}
    matrices["digits_mlp, last layer"] = last_layer()
    for name, matrix in matrices.items():
        for products in (8, 16, 64):
            row = against_matfree(matrix, products, min(runs, 50))
            print(f"| {name} | {products} | {row[0]:.3f} | {row[1]} | {row[2]} | {row[3]} |", flush=True)


def run(matrix: np.ndarray, segments: Segments, method: str, products: int, seed: int) -> Found:
    """One answer."""
    settings = DiagSettings(method=method, probes=products, seed=seed, dtype="float64")  # type: ignore[arg-type]
    plan = MemoryPlan(min(diag.BLOCK, products), 0)
    return diag.sampled(dense_operator(matrix), settings, method, segments, plan, Silent(), Meter()).found


def coverage(matrix: np.ndarray, method: str, products: int, runs: int) -> tuple[float, float, float]:
    """Coverage of entries and of layer means, and the relative width of the entries' intervals."""
    truth, rounding = np.diag(matrix), 1e-11 * np.abs(matrix).max()
    layout = Ranges.of(SEGMENTS)
    sums = layout.gathered(layout.sums(truth))
    errors, halves, layers = [], [], []
    for seed in range(runs):
        found = run(matrix, SEGMENTS, method, products, seed)
        errors.append(found.value - truth)
        halves.append(found.stderr * layout.spread(diag.quantiles(found, 0.05)))
        for law, total in zip(found.sums, sums, strict=True):
            low, high = student_interval(law, 0.05)
            layers.append(low - DIM * rounding <= total <= high + DIM * rounding)
    error, half = np.array(errors), np.array(halves)
    oracle = 1.96 * np.sqrt(np.mean(error**2, axis=0)).mean()
    return float(np.mean(np.abs(error) <= half + rounding)), float(np.mean(layers)), float(half.mean() / oracle)


def against_matfree(matrix: np.ndarray, products: int, runs: int) -> tuple[float, str, str, str]:
    """Root mean square errors relative to matfree's, and what `auto` takes."""
    from matfree import stochtrace

    truth, like = np.diag(matrix), np.zeros(len(matrix))

    def error(values: list[np.ndarray]) -> float:
        return float(np.sqrt(np.mean(np.square(np.array(values) - truth))))

    def theirs(integrand: object, estimator: object, count: int) -> float:
        estimate = jax.jit(estimator(integrand, stochtrace.sampler_signs(like, num=count)), static_argnums=0)  # type: ignore[operator]
        multiply = lambda v: jax.numpy.asarray(matrix) @ v  # noqa: E731
        return error([np.asarray(estimate(multiply, jax.random.key(seed))) for seed in range(runs)])

    segments = (((0, len(matrix)),),)
    found = {method: [run(matrix, segments, method, products, seed) for seed in range(runs)] for method in METHODS}
    ours = {method: error([one.value for one in answers]) for method, answers in found.items()}
    plain = theirs(stochtrace.monte_carlo_diagonal(), stochtrace.estimator_monte_carlo, products)
    exchanged = theirs(stochtrace.leave_one_out_xdiag(), stochtrace.estimator_leave_one_out, products // 2)
    taken = sum(one.method == "xdiag" for one in found["auto"])

    def ratio(mine: float, other: float) -> str:
        return "both exact" if max(mine, other) <= 1e-12 * np.abs(matrix).max() else f"{mine / other:.3f}"

    better = ratio(ours["auto"], min(plain, exchanged))
    return ours["hutchinson"] / plain, ratio(ours["xdiag"], exchanged), better, f"xdiag in {taken} of {runs}"


def last_layer() -> np.ndarray:
    """The Hessian of the sample model's last layer, written out."""
    settings = DiagSettings(params=["Dense_2/*"], dtype="float64")
    return to_dense(build(load(SAMPLES / "digits_mlp.ckpt", settings), "hessian"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
