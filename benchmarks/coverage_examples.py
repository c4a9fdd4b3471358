"""How often intervals from part of the examples hold the number for all: `benchmarks/coverage_examples.py [runs]`.

Random parts of known sets: linear regression, whose GGN is a mean of x xᵀ, on examples of several laws, and the digits'
network of `sample_models/digits_run` at its last step. For each the share of runs whose 95 % interval held the number
for all examples, and the mean width of that of λ_max over λ_max itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from curvcli.analyses.common.context import Context
from curvcli.xla import guard_environment

guard_environment()

import jax
import jax.numpy as jnp
import numpy as np
from samples import SAMPLES, load

from curvcli.analyses import spectrum
from curvcli.linalg.iterate import Silent
from curvcli.losses import LOSSES
from curvcli.problem import Batches, Problem, Regulariser
from curvcli.schema.spectrum import SpectrumResult, SpectrumSettings

COUNT, DIM = 1500, 24
NUMBERS = ("lambda_max", "lambda_min", "trace", "frobenius_norm")


def main(runs: int) -> None:
    """One row a set and number of examples, as a Markdown table."""
    jax.config.update("jax_enable_x64", True)
    print("| examples | used | λ_max | λ_min | trace | Frobenius | width of λ_max |\n|---|---|---|---|---|---|---|")
    for name, inputs in laws():
        whole, settings = regression(inputs), SpectrumSettings(matrix="ggn", dtype="float64", skip_checks=True)
        for used in (30, 100, 400):
            row(name, whole, used, settings, runs)
    settings = SpectrumSettings(probes=2, steps=30, skip_checks=True, method="xtrace")
    digits = load(SAMPLES / "digits_run", settings)
    for used in (100, 400):
        row("digits, Hessian", digits, used, settings, max(runs // 8, 1))


def laws() -> Iterator[tuple[str, np.ndarray]]:
    """Inputs [N, D]: λ_max of a part is biased where the spectrum is flat, and spreads where examples are skewed."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(COUNT, DIM))
    yield "flat", normal
    yield "power law 1/i", normal / np.sqrt(np.arange(1, DIM + 1))
    yield "one direction", normal + 3 * rng.normal(size=(COUNT, 1)) * np.eye(DIM)[:1]
    centres = 2 * rng.normal(size=(10, DIM))[rng.integers(0, 10, COUNT)]
    yield "ten classes", normal + centres
    yield "ten classes, sizes lognormal(0.7)", (normal + centres) * np.exp(0.7 * rng.normal(size=(COUNT, 1)))
    few = rng.random((COUNT, 1)) < 0.1
    yield "a tenth of the examples carries it", np.where(few, 3.0, 0.1) * (normal + centres)


def regression(inputs: np.ndarray) -> Problem:
    """Linear regression on these inputs."""
    weight, targets = np.ones(len(inputs)), np.zeros((len(inputs), 1))
    return Problem(
        params={"w": jnp.zeros((DIM, 1))}, frozen={"params": {}, "collections": {}},
        predict=lambda params, frozen, x: x @ params["w"], nest=lambda flat: flat, loss=LOSSES["squared_error"],
        batches=Batches(inputs, targets, weight, len(inputs), np.dtype(float)), normaliser=float(len(inputs)),
        regulariser=Regulariser(0.0, None), population=len(inputs),
    )  # fmt: skip


def row(name: str, whole: Problem, used: int, settings: SpectrumSettings, runs: int) -> None:
    """Coverage over random parts of one set."""
    exact, held, width = spectrum.run(Context(whole, Silent()), settings).result, np.zeros(len(NUMBERS)), 0.0
    for seed in range(runs):
        found = spectrum.run(
            Context(part(whole, used, seed), Silent()), settings.model_copy(update={"seed": seed})
        ).result
        held += holds(found, exact)
        low, high = found.lambda_max.interval
        width += (high - low) / exact.lambda_max.value
    cells = " | ".join(f"{share:.3f}" for share in held / runs)
    print(f"| {name} | {used} | {cells} | {width / runs:.2f} |", flush=True)


def part(whole: Problem, used: int, seed: int) -> Problem:
    """A random part of the examples."""
    batches = whole.batches
    rows = np.sort(np.random.default_rng(seed).permutation(batches.num_examples)[:used])
    taken = replace(
        batches, inputs=batches.inputs[rows], targets=batches.targets[rows], weight=batches.weight[rows]
    ).resized(used)  # fmt: skip
    return replace(whole, batches=taken, normaliser=float(used))


def holds(found: SpectrumResult, exact: SpectrumResult) -> np.ndarray:
    """Which of the numbers lie in the intervals."""
    pairs = [(getattr(found, name).interval, getattr(exact, name).value) for name in NUMBERS]
    return np.array([low - 1e-9 <= value <= high + 1e-9 for (low, high), value in pairs], float)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
