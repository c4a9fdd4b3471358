"""A loss times c: eigenvalues times c, steps as they were, whatever the units of the loss, in float32 too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses import diag, eigs, spectrum, trace
from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.context import Context
from curvcli.analyses.compare import analysis as compare
from curvcli.analyses.influence import analysis as influence
from curvcli.analyses.influence.context import Inputs
from curvcli.analyses.lines import direction, landscape
from curvcli.analyses.lines.directions import Inputs as LineInputs
from curvcli.analyses.saddle import analysis as saddle
from curvcli.analyses.step import analysis as step
from curvcli.analyses.step.analysis import Inputs as StepInputs
from curvcli.errors import NumericsError
from curvcli.linalg.iterate import Silent
from curvcli.losses import user_loss
from curvcli.problem import Problem, Regulariser
from curvcli.schema.compare import CompareSettings
from curvcli.schema.diag import DiagSettings
from curvcli.schema.direction import DirectionSettings
from curvcli.schema.eigs import EigsSettings
from curvcli.schema.influence import InfluenceSettings
from curvcli.schema.landscape import LandscapeSettings
from curvcli.schema.saddle import SaddleSettings
from curvcli.schema.spectrum import SpectrumSettings
from curvcli.schema.step import StepSettings
from curvcli.schema.trace import TraceSettings
from tests.problems import make_problem, mlp, mlp_params

SCALES = (1e-30, 1e-20, 1e20, 1e30)
POWERS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0)


def _loss(z: Any, t: Any) -> Any:
    """The last column of the targets is c: another c is no other program."""
    return t[:, -1] * 0.5 * jnp.sum(jnp.square(z - t[:, :-1]), axis=-1)


LOSS = user_loss("scaled", _loss)
RANDOM = np.random.default_rng(2)
INPUTS, TARGETS = RANDOM.normal(size=(15, 3)), RANDOM.normal(size=(15, 2))
L2 = 0.01


@pytest.fixture(scope="module", params=["float32", "float64"])
def base(request: pytest.FixtureRequest) -> Problem:
    targets = np.column_stack([TARGETS, np.ones(15)])
    return make_problem(mlp, mlp_params((3, 4, 2)), INPUTS, targets, LOSS, l2=L2, dtype=request.param)


def scaled(problem: Problem, c: float) -> Problem:
    targets = np.column_stack([TARGETS, np.full(15, c)])
    return replace(problem, batches=replace(problem.batches, targets=targets), regulariser=Regulariser(L2 * c))


def some(problem: Problem) -> Inputs:
    return Inputs(queries=problem.batches.chosen(np.arange(3)))


def _influence(**settings: Any) -> Callable[[Problem, dict], Answer]:
    return lambda p, s: influence.run(Context(p, Silent(), some(p)), InfluenceSettings(**s, matrix="ggn", **settings))


def _step(**settings: Any) -> Callable[[Problem, dict], Answer]:
    return lambda p, s: step.run(Context(p, Silent(), StepInputs()), StepSettings(**s, **settings))


def _of(analysis: Any, kind: Any, **settings: Any) -> Callable[[Problem, dict], Answer]:
    return lambda p, s: analysis.run(Context(p, Silent()), kind(**s, **settings))


def _along(analysis: Any, kind: Any, **settings: Any) -> Callable[[Problem, dict], Answer]:
    return lambda p, s: analysis.run(Context(p, Silent(), LineInputs({})), kind(**s, **settings))


RUNS: dict[str, tuple[Callable[[Problem, dict], Answer], dict[str, float]]] = {
    "spectrum dense": (_of(spectrum, SpectrumSettings, method="dense"), {".lambda_max.value": 1, ".trace.value": 1}),
    "spectrum sampled": (
        _of(spectrum, SpectrumSettings, method="xtrace", probes=4, steps=10),
        {".lambda_max.value": 1, ".lambda_min.value": 1, ".trace.value": 1, ".trace.stderr": 1},
    ),
    "eigs dense": (_of(eigs, EigsSettings, k=3), {".eigenvalues[0].value": 1}),
    "eigs lanczos": (_of(eigs, EigsSettings, k=3, method="lanczos"), {".eigenvalues[0].value": 1}),
    "trace dense": (_of(trace, TraceSettings, method="dense"), {".trace.value": 1, ".frobenius_norm.value": 1}),
    **{
        f"trace {method}": (
            _of(trace, TraceSettings, method=method, probes=12),
            {".trace.value": 1, ".trace.stderr": 1, ".trace.interval[0]": 1, ".frobenius_norm.value": 1},
        )
        for method in ("hutchinson", "hutch++", "xtrace")
    },
    "trace of forms": (
        _of(trace, TraceSettings, method="hutchinson", probes=16, layers=False),
        {".trace.value": 1, ".trace.stderr": 1, ".frobenius_norm.value": 1},
    ),
    "diag dense": (_of(diag, DiagSettings, method="dense", prune=0.2), {".layers[0].mean.value": 1}),
    **{
        f"diag {method}": (
            _of(diag, DiagSettings, method=method, probes=16, prune=0.2),
            {".layers[0].mean.value": 1, ".layers[0].stderr": 1, ".prune.predicted_by_quadratic": 1},
        )
        for method in ("hutchinson", "xdiag")
    },
    "saddle dense": (
        _of(saddle, SaddleSettings, method="dense"), {".lambda_max.value": 1, ".stationarity.gradient": 0},
    ),
    "saddle lanczos": (
        _of(saddle, SaddleSettings, method="lanczos"), {".lambda_max.value": 1, ".stationarity.decrement": 1},
    ),
    "direction": (
        _along(direction, DirectionSettings, along=["gradient", "newton", "eigenvector:1"], matrix="ggn"),
        {".directions[0].rayleigh_quotient": 1, ".directions[1].norm": 0, ".directions[0].model_radius": -1},
    ),
    "landscape": (
        _along(landscape, LandscapeSettings, along=["gradient", "newton"]),
        {".curvature[1][1]": 1, ".directions[0].rayleigh_quotient": 1, ".a[0]": -1, ".b[0]": 0},
    ),
    **{
        f"influence {solver} {mode}": (
            _influence(solver=solver, **{mode: True}), {f".scores[0][3]{last}": 1, ".damping": 1},
        )
        for solver, mode, last in (
            ("dense", "remove", ""), ("cg", "remove", ""), ("minres", "remove", ""),
            ("neumann", "input_perturb", "[0]"),
        )
    },
    "influence leverage": (
        _influence(solver="dense", remove=True, leverage=True), {".damping": 1},
    ),
    "step newton": (_step(method="newton"), {".step_norm": 0, ".predicted_decrease": 1, ".damping": 1}),
    "step gauss-newton": (
        _step(method="gauss-newton"), {".step_norm": 0, ".reduction_ratio": 0, ".actual_decrease": 1},
    ),
    "step gauss-newton cg": (
        _step(method="gauss-newton", cg_steps=200, damping=1e-3), {".step_norm": 0, ".reduction_ratio": 0},
    ),
    "step hessian-free": (_step(method="hessian-free"), {".step_norm": 0, ".reduction_ratio": 0}),
    "step bfgs": (_step(method="bfgs"), {".step_norm": 0, ".reduction_ratio": 0}),
    "compare dense": (
        _of(compare, CompareSettings, matrices=("hessian", "ggn"), method="dense", k=2),
        {".distances[0].absolute.value": 1, ".distances[0].alignment.value": 0},
    ),
    "compare sampled": (
        _of(compare, CompareSettings, matrices=("hessian", "ggn"), method="sampled", k=2, probes=16),
        {".distances[0].absolute.value": 1, ".distances[0].alignment.value": 0, ".distances[0].absolute.stderr": 1},
    ),
}  # fmt: skip

ROUNDING = (
    "residual", "interval", "noise", "iterations", "products", "passes", "in_gradients", "lowest_curvature", ".cg[",
    "witness", "resolution", "second_difference", "trials", "error",
)  # fmt: skip
"""What is read off rounding, or counts steps that end by it."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All numbers of a report by their place."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{i}]")
    elif isinstance(value, float):
        yield path, value


@pytest.mark.first_tier(
    "float32-eigs lanczos",
    "float32-trace hutchinson",
    "float32-trace of forms",
    "float32-diag xdiag",
    "float32-saddle dense",
    "float32-direction",
    "float32-landscape",
    "float32-influence cg remove",
    "float32-influence leverage",
    "float32-step gauss-newton",
    "float32-compare dense",
)
@pytest.mark.parametrize("name", RUNS)
def test_every_number_has_its_power_of_the_scale(base: Problem, name: str) -> None:
    run, expected = RUNS[name]
    precise = base.dtype == np.float64
    settings: dict[str, Any] = {"dtype": base.dtype.name, "skip_checks": name != "eigs lanczos"}
    given = "gauss-newton cg" in name
    close = 1e-3 if precise and "minres" not in name else 5e-3  # MINRES stops at a relative residual, not at an error

    def told(c: float) -> Answer:
        if not given:
            return run(scaled(base, c), settings)
        asked = StepSettings(**settings, method="gauss-newton", cg_steps=200, damping=1e-3 * c)
        return step.run(Context(scaled(base, c), Silent(), StepInputs()), asked)

    plain = told(1.0)
    numbers = dict(leaves(plain.result.model_dump()))
    assert set(expected) <= set(numbers)
    largest = max(abs(one) for one in numbers.values())
    for c in SCALES:
        answer = told(c)
        assert len(answer.warnings) == len(plain.warnings), (answer.warnings, plain.warnings)
        assert all(check.passed for check in answer.checks.values())
        found = dict(leaves(answer.result.model_dump()))
        for place, power in expected.items():
            assert found[place] == pytest.approx(numbers[place] * c**power, rel=close), (place, c)
        if precise:
            continue
        for place, one in numbers.items():
            # Small differences of large numbers are rounding in float32.
            if any(part in place for part in ROUNDING) or abs(one) < 1e-3 * largest or place not in found:
                continue
            assert found[place] != 0, (place, c)
            power = math.log(abs(found[place] / one)) / math.log(c)
            assert min(abs(power - whole) for whole in POWERS) < 0.01, (place, c, one, found[place])


@pytest.mark.first_tier("float32")
def test_covariances_of_gradients_are_right_or_refused(base: Problem) -> None:
    """They go with the square of the loss: 1e-40 and 1e40 are no numbers of float32, but the matrix written out is."""
    settings: dict[str, Any] = {"dtype": base.dtype.name, "skip_checks": True, "matrix": "gradient-covariance"}
    truth = trace.run(Context(base, Silent()), TraceSettings(**settings, method="dense")).result.trace.value
    for c in (1e-20, 1e20):
        dense = trace.run(
            Context(scaled(base, c), Silent()), TraceSettings(**settings, method="dense")
        ).result.trace.value
        assert dense == pytest.approx(truth * c**2, rel=1e-5)
        sampled = TraceSettings(**settings, method="hutchinson", probes=8)
        if base.dtype == np.float64:
            assert trace.run(Context(scaled(base, c), Silent()), sampled).result.trace.value == pytest.approx(
                dense, rel=1.0
            )
        else:
            with pytest.raises(NumericsError, match=r"lose all digits|not finite") as caught:
                trace.run(Context(scaled(base, c), Silent()), sampled)
            assert "--dtype float64" in (caught.value.hint or "")
