"""Numbers from part of the examples: their intervals hold the number for all of them."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses import diag, eigs, spectrum, trace
from curvcli.analyses.common.context import Context
from curvcli.analyses.saddle import analysis as saddle
from curvcli.linalg.iterate import Silent
from curvcli.problem import Problem
from curvcli.schema.diag import DiagSettings
from curvcli.schema.eigs import EigsSettings
from curvcli.schema.estimate import Interval
from curvcli.schema.saddle import SaddleSettings
from curvcli.schema.spectrum import SpectrumSettings
from curvcli.schema.trace import TraceSettings
from tests.problems import make_problem, mlp_problem

DIM, WHOLE = 40, 600


def regression(inputs: np.ndarray, **options: object) -> Problem:
    """Linear regression, whose Hessian is the mean of x xᵀ."""

    def predict(params: dict, x: object) -> object:
        return x @ params["w"]

    params, targets = {"w": jnp.zeros((inputs.shape[1], 1))}, np.zeros((len(inputs), 1))
    return make_problem(predict, params, inputs, targets, batch_size=len(inputs), **options)  # type: ignore[arg-type]


def holds(number: Interval, truth: float) -> bool:
    """Whether the interval does, rounding aside."""
    slack = 1e-9 * max(abs(truth), 1.0)
    return number.interval[0] - slack <= truth <= number.interval[1] + slack


def part_of(whole: Problem, rows: np.ndarray, normaliser: float | None = None) -> Problem:
    """The problem on some of its examples."""
    batches = replace(
        whole.batches, inputs=whole.batches.inputs[rows], targets=whole.batches.targets[rows],
        weight=whole.batches.weight[rows],
    ).resized(len(rows))  # fmt: skip
    return replace(whole, batches=batches, normaliser=float(len(rows) if normaliser is None else normaliser))


def skewed(rng: np.random.Generator) -> np.ndarray:
    """Examples of which a tenth carries the curvature."""
    few = rng.random((WHOLE, 1)) < 0.1
    return np.where(few, 3.0, 0.1) * (rng.normal(size=(WHOLE, DIM)) + 2 * np.eye(DIM)[:1])


LAWS = {
    "flat": lambda rng: rng.normal(size=(WHOLE, DIM)),
    "power law": lambda rng: rng.normal(size=(WHOLE, DIM)) / np.sqrt(np.arange(1, DIM + 1)),
    "skewed": skewed,
}


@pytest.mark.first_tier("30-skewed", "100-flat")
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("used", [30, 100])
def test_intervals_hold_the_numbers_of_all_examples(law: str, used: int) -> None:
    """Of the plain normal interval around λ_max, flat and skewed laws leave next to nothing."""
    whole = regression(LAWS[law](np.random.default_rng(0)))
    inputs = np.asarray(whole.batches.inputs)
    exact = np.linalg.eigvalsh(inputs.T @ inputs / WHOLE)
    held, normal, runs = np.zeros(4), 0, 40
    for seed in range(runs):
        rows = np.random.default_rng(seed).permutation(WHOLE)[:used]
        result = spectrum.run(
            Context(part_of(whole, rows), Silent()), SpectrumSettings(dtype="float64", skip_checks=True, seed=seed)
        ).result
        numbers = (result.lambda_max, result.lambda_min, result.trace, result.frobenius_norm)
        held += [
            holds(number, truth)
            for number, truth in zip(numbers, (exact[-1], exact[0], exact.sum(), np.linalg.norm(exact)), strict=True)
        ]
        assert all(number.data_stderr is not None for number in numbers)
        assert all(number.interval_given_data is not None for number in numbers)
        normal += abs(result.lambda_max.value - exact[-1]) <= 1.96 * (result.lambda_max.data_stderr or 0)
    assert held.min() >= 0.85 * runs
    if law == "flat" and used == 100:
        assert normal <= 0.2 * runs


@pytest.mark.parametrize(
    ("run", "settings"), [(trace.run, TraceSettings), (diag.run, DiagSettings), (eigs.run, EigsSettings)]
)
def test_both_intervals_stand_in_every_number(run, settings) -> None:
    """That of these examples alone is inside, and of a full set it is the only one."""
    problem = replace(mlp_problem(sizes=(4, 5, 3), count=40), population=400)
    options = {"dtype": "float64", "skip_checks": True, "matrix": "ggn"}

    def numbers(result):
        if settings is TraceSettings:
            return [result.trace, result.frobenius_norm, *(layer.trace for layer in result.layers)]
        return [layer.mean for layer in result.layers] if settings is DiagSettings else result.eigenvalues

    for number in numbers(run(Context(problem, Silent()), settings(**options)).result):
        assert number.interval[0] < number.given_data[0] <= number.value <= number.given_data[1] < number.interval[1]
        assert number.data_stderr > 0
    for number in numbers(run(Context(replace(problem, population=40), Silent()), settings(**options)).result):
        assert number.interval_given_data is None
        assert number.given_data == number.interval


def test_the_learning_rate_has_the_interval_of_the_sharpness() -> None:
    problem = replace(mlp_problem(sizes=(4, 5, 3), count=40), population=400)
    options = {"dtype": "float64", "skip_checks": True}
    for result in (
        spectrum.run(Context(problem, Silent()), SpectrumSettings(**options)).result,
        saddle.run(Context(problem, Silent()), SaddleSettings(**options)).result,
    ):
        low, high = result.lambda_max.interval
        assert low > 0
        assert result.max_stable_learning_rate_interval == pytest.approx((2 / high, 2 / low))
        assert 2 / high < result.max_stable_learning_rate < 2 / low


def test_a_sum_grows_with_its_examples_and_has_no_error_of_them() -> None:
    whole = regression(LAWS["power law"](np.random.default_rng(0)), normaliser=1.0)
    result = trace.run(
        Context(part_of(whole, np.arange(50), 1.0), Silent()), TraceSettings(dtype="float64", skip_checks=True)
    ).result
    assert result.trace.data_stderr is None


def test_examples_of_unequal_weight() -> None:
    """Divided by the sum of the weights, a mean of equal terms has no error whatever they weigh."""
    weight = np.random.default_rng(0).integers(1, 9, WHOLE).astype(float)
    whole = regression(np.ones((WHOLE, 2)), weight=weight, normaliser=weight.sum())
    rows = np.arange(60)
    part = part_of(whole, rows, weight[rows].sum())
    settings = SpectrumSettings(dtype="float64", skip_checks=True, matrix="ggn")
    result = spectrum.run(Context(part, Silent()), settings).result
    assert result.lambda_max.value == pytest.approx(2.0)
    assert result.lambda_max.data_stderr == pytest.approx(0, abs=1e-9)
    assert result.trace.data_stderr == pytest.approx(0, abs=1e-9)


def test_a_null_space_that_other_examples_fill() -> None:
    """Five examples of forty dimensions: λ_min is 0 here, and positive for all."""
    whole = regression(LAWS["flat"](np.random.default_rng(0)))
    inputs = np.asarray(whole.batches.inputs)
    truth = np.linalg.eigvalsh(inputs.T @ inputs / WHOLE)[0]
    part, options = part_of(whole, np.arange(5)), {"dtype": "float64", "skip_checks": True, "matrix": "ggn"}
    low = spectrum.run(Context(part, Silent()), SpectrumSettings(**options)).result.lambda_min
    assert low.value == pytest.approx(0, abs=1e-12)
    assert holds(low, truth)
    smallest = eigs.run(Context(part, Silent()), EigsSettings(**options, k=1, which="smallest")).result.eigenvalues[0]
    assert smallest.data_stderr is None
