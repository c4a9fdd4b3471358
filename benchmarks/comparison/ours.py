"""Everything that the comparison asks of curvcli, in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import numpy as np
import optax

from curvcli.analyses import spectrum
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.tuning import planned, way_of
from curvcli.analyses.inspect import forecast_spectrum
from curvcli.curvature import build
from curvcli.curvature.flatten import Layout
from curvcli.curvature.kronecker.kfac import Recipe, Taps, kfac
from curvcli.curvature.products.sums import objective, objective_and_gradient
from curvcli.linalg.iterate import Silent
from curvcli.linalg.operator import LinearOperator
from curvcli.loading.checkpoints.reading import load_checkpoint
from curvcli.loading.checkpoints.trees import flatten_tree
from curvcli.loading.resolve import checkpoint_path, load_problem
from curvcli.loading.spec.files import find_spec, merge
from curvcli.problem import Problem
from curvcli.run.runtime import prepare_jax
from curvcli.schema.inspect import InspectSettings
from curvcli.schema.spectrum import SpectrumSettings

from . import workloads


def prepare() -> None:
    """JAX as the command line has it, without its cache."""
    prepare_jax("float32", None, cache=False)


def checkpoint_params(path: Path) -> dict[str, np.ndarray]:
    """Parameters by path."""
    tree = load_checkpoint(path).tree["params"]
    return {name: np.asarray(leaf) for name, leaf in flatten_tree(tree).items()}


def parameter_shapes(target: str, kwargs: dict[str, Any], x: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Shapes by path of a linen network; nothing is computed."""
    from . import networks

    head, _, attribute = target.rpartition(":")
    module = networks if head.endswith(".py") else __import__("curvcli.zoo", fromlist=["zoo"])
    made = jax.eval_shape(lambda: getattr(module, attribute)(**kwargs).init(jax.random.key(0), x))
    return {name: tuple(leaf.shape) for name, leaf in flatten_tree(made["params"]).items()}


def load(folder: Path, matrix: str = "hessian", *, calibrated: bool = False) -> Problem:
    """The problem of a workload's folder, planned for one matrix; `calibrated`: after timing several ways."""
    return _planned(folder, SpectrumSettings(matrix=matrix), calibrated)


def _planned(folder: Path, settings: SpectrumSettings, calibrated: bool) -> Problem:
    found = find_spec(None, folder / "curv.toml")
    spec = merge(found, {})
    path = checkpoint_path(None, spec, found.base)
    loaded = load_problem(spec, found, path, settings, step=None, trust=True)
    return planned(loaded.problem, settings, timing="always" if calibrated else "never")


def way(problem: Problem) -> dict[str, Any]:
    """How its products are computed, for the record."""
    return way_of(problem).model_dump()


def parameter_order(problem: Problem) -> list[str]:
    """Paths in the order of the flat vector."""
    return list(Layout.of(problem.params).names)


def loss(problem: Problem) -> float:
    """J."""
    return objective(problem)


def gradient(problem: Problem) -> Callable[[], Any]:
    """∇J."""
    layout = Layout.of(problem.params)
    return lambda: jax.block_until_ready(objective_and_gradient(problem, layout)[1])


def operator(problem: Problem, matrix: str) -> LinearOperator:
    """The matrix; `.matmat(vectors [k, dim])` gives products."""
    return build(problem, matrix)


def ggn_trace_per_probe(problem: Problem) -> Callable[[Any], np.ndarray]:
    """`vectors [k, dim] -> vᵀGv` of each, by quadratic forms without the transpose."""
    made = build(problem, "ggn")
    assert made.forms is not None
    return lambda vectors: np.diagonal(np.asarray(made.forms(vectors)))


def plain_objective(folder: Path) -> tuple[Callable[..., Any], Any, Any]:
    """`objective(flat params, data)`, the parameters and the data: for tools that take any function of JAX."""
    from jax.flatten_util import ravel_pytree

    problem = load(folder)
    flat, unravel = ravel_pytree(problem.params)
    predict, frozen = problem.predict, problem.frozen
    _, x, y = workloads.read(folder)

    def objective(params: Any, data: Any) -> Any:
        z = predict(unravel(params), frozen, data[0])
        return optax.softmax_cross_entropy_with_integer_labels(z, data[1]).mean()

    return objective, flat, (x, y)


def factors(problem: Problem, sampling: str, *, corrected: bool = False) -> Callable[[], Any]:
    """What computes K-FAC's factors and their eigenvectors; compiled once."""
    recipe, taps = Recipe(sampling), Taps(problem)  # type: ignore[arg-type]
    return lambda: kfac(problem, recipe, corrected=corrected, taps=taps)


def density(folder: Path, **given: Any) -> tuple[Callable[[], int], int, dict[str, Any]]:
    """What computes the spectral density and says how many products it took; the forecast's bytes; the way."""
    settings = SpectrumSettings(skip_checks=True, **given)
    problem = _planned(folder, settings, calibrated=False)
    forecast = forecast_spectrum(problem, InspectSettings(**settings.model_dump()))[1]
    return lambda: spectrum.run(Context(problem, Silent()), settings).meter.products, forecast.bytes, way(problem)


@contextlib.contextmanager
def compile_seconds() -> Iterator[list[float]]:
    """A list of the seconds that XLA spends on each program within the block."""
    spent: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            spent.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield spent
