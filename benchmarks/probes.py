"""How wide an interval is after so many probes, and how far off the answer: `python benchmarks/probes.py [runs]`.

For the Hessians of two sample models, whose trace is known exactly: the trace after 4 to 64 products, by plain
samples and by XTrace; what `--rtol` spends, beside what `result.more` of a short run forecast; and the spectrum's
trace and masses for several numbers of probes and Lanczos steps. Tables in Markdown, for `docs/probes.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from curvcli.analyses.common.context import Context
from curvcli.xla import guard_environment

guard_environment()

import jax
import numpy as np
from samples import SAMPLES, load

from curvcli.analyses import spectrum, trace
from curvcli.curvature import build_for
from curvcli.linalg.iterate import Silent
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.trace.estimators import Tracer
from curvcli.linalg.trace.hutchinson import Segments
from curvcli.problem import Problem
from curvcli.run.runtime import prepare_jax
from curvcli.schema.estimate import Estimate
from curvcli.schema.spectrum import SpectrumSettings
from curvcli.schema.trace import TraceResult, TraceSettings

MODELS = {"tanh_regression": None, "digits_mlp": 300}
"""Of digits_mlp so many examples, which makes its exact trace, a product a parameter, a matter of a minute."""

PROBES = (4, 8, 16, 32, 64)
BLOCK = 8
SPECTRUM = [(2, 80), (5, 80), (10, 20), (10, 40), (10, 80), (10, 160), (20, 80)]
"""Probes and Lanczos steps; the settings' own are 10 and 80."""


def main(runs: int) -> None:
    """All tables."""
    prepare_jax("float32", None, cache=True)
    for name, examples in MODELS.items():
        problem = load(SAMPLES / f"{name}.ckpt", TraceSettings(num_examples=examples))
        operator = build_for(problem, TraceSettings())
        exact = trace.run(Context(problem, Silent()), TraceSettings(method="dense", skip_checks=True)).result
        print(f"\n{name}: {description(problem, operator, exact)}\n", flush=True)
        samples_table(operator, exact.trace.value, runs)
        rtol_table(operator, exact.trace.value, runs)
        if name == "digits_mlp":
            spectrum_table(problem, exact.trace.value)


def description(problem: Problem, operator: LinearOperator, exact: TraceResult) -> str:
    """What the error depends on, B = A − cI being what is sampled: its norm, and how many eigenvalues carry it."""
    dim, value = operator.dim, exact.trace.value
    centred = (exact.frobenius_norm.value**2 - value**2 / dim) ** 0.5
    tracer = Tracer(operator, jax.random.key(0), whole(dim), at_once=BLOCK, keep=False, monitor=Silent())
    tracer.draw(512)
    law = tracer.hutchinson().trace
    return (
        f"D = {dim}, {problem.batches.num_examples} examples, trace {value:.5g}, ‖B‖_F {centred:.4g}, "
        f"(tr B²)²/tr B⁴ {law.dof / 512:.3g}; standard error of one sample, of the trace: by the norm "
        f"{(2 * dim / (dim + 2)) ** 0.5 * centred / value:.1%}, by 512 samples {law.stderr * 512**0.5 / value:.1%}"
    )


def sampled(operator: LinearOperator, method: str, meter: Meter | None = None, **options: Any) -> TraceResult:
    """What `curv trace` answers, without its self-checks."""
    settings, parts = TraceSettings(method=method, **options), whole(operator.dim)  # type: ignore[arg-type]
    return trace.sampled(operator, settings, method, ["all"], parts, BLOCK, Silent(), meter or Meter())[0]


def whole(dim: int) -> Segments:
    """One part, which is all."""
    return (((0, dim),),)


def samples_table(operator: LinearOperator, truth: float, runs: int) -> None:
    """Median half-width of the interval / root mean square error, both relative to the trace; and how often it held."""
    print("| products |", " | ".join(map(str, PROBES)), "|")
    print("|---|", "---|" * len(PROBES), sep="")
    for method in ("hutchinson", "xtrace"):
        found = [[sampled(operator, method, seed=seed, probes=count).trace for seed in range(runs)] for count in PROBES]
        rows: dict[str, Callable[[list[Estimate]], str]] = {
            "half-width": lambda all: percent(np.median([0.5 * width(one) for one in all]) / truth),
            "error": lambda all: percent(np.sqrt(np.mean([(one.value - truth) ** 2 for one in all])) / truth),
            "held": lambda all: f"{sum(one.interval[0] <= truth <= one.interval[1] for one in all)} of {len(all)}",
        }
        for name, cell in rows.items():
            print(f"| {method}: {name} |", " | ".join(cell(all) for all in found), "|", flush=True)


def rtol_table(operator: LinearOperator, truth: float, runs: int) -> None:
    """Products that `--rtol` spent, beside what 16 products forecast."""
    print("\n| `--rtol` | method | forecast after 16, median | spent, median | least | most | error, largest |")
    print("|---|---|---|---|---|---|---|")
    for rtol in (0.1, 0.01):
        for method in ("hutchinson", "auto"):
            short = [sampled(operator, method, seed=seed, probes=16) for seed in range(runs)]
            ahead = [16 + next(one.products for one in short[i].more if one.within == rtol) for i in range(runs)]
            spent, errors = [], []
            for seed in range(runs):
                meter = Meter()
                found = sampled(meter.count(operator), method, meter, seed=seed, rtol=rtol)
                spent.append(meter.products)
                errors.append(abs(found.trace.value / truth - 1))
            cells = [np.median(ahead), np.median(spent), min(spent), max(spent)]
            print(f"| {rtol} | {method} |", " | ".join(f"{one:.0f}" for one in cells), "|", percent(max(errors)), "|",
                  flush=True)  # fmt: skip


def spectrum_table(problem: Problem, truth: float) -> None:
    """The spectrum's numbers against its two settings."""
    print("\n| probes × steps | products | trace: half-width, error | near zero, between | negative, at most | "
          "cumulative: mean gap | λ_max's `beyond` |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for probes, steps in SPECTRUM:
        settings = SpectrumSettings(probes=probes, steps=steps, skip_checks=True)
        answer = spectrum.run(Context(problem, Silent()), settings)
        result, band = answer.result, answer.result.cumulative
        gap = np.mean(np.subtract(band.upper, band.lower))
        low, high = result.near_zero_mass.interval
        beyond = result.lambda_max.beyond
        over = beyond.bound / result.lambda_max.value - 1 if beyond else np.nan
        cells = [
            answer.meter.products,
            f"{percent(0.5 * width(result.trace) / truth)}, {percent(abs(result.trace.value / truth - 1))}",
            f"{low:.3f} and {high:.3f}",
            f"{result.negative_mass.interval[1]:.3f}",
            f"{gap:.3f}",
            f"+{percent(over)}",
        ]
        print(f"| {probes} × {steps} |", " | ".join(map(str, cells)), "|", flush=True)


def percent(share: float) -> str:
    """Two digits of it."""
    return f"{float(f'{100 * share:.2g}'):g} %"


def width(estimate: Estimate) -> float:
    """Of its interval."""
    low, high = estimate.interval
    return high - low


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
