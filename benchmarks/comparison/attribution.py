"""curv's influence in this process: MLPs as folders that the command line reads too, and what is asked of them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from curvcli.analyses.common.answer import Answer
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.tuning import planned
from curvcli.analyses.influence import analysis as influence
from curvcli.analyses.influence.context import Given
from curvcli.linalg.iterate import Silent
from curvcli.loading.resolve import checkpoint_path, load_problem
from curvcli.loading.spec.files import find_spec, merge
from curvcli.problem import Problem
from curvcli.run.runtime import prepare_jax
from curvcli.schema.influence import InfluenceSettings

from . import ours

TOML = """
[model]
target = "curvcli.zoo:MLP"
kind = "linen"
kwargs = {{ features = {features}, activation = "tanh" }}

[checkpoint]
path = "params.npz"

[data]
path = "data.npz"
split = "train"

[loss]
name = "{loss}"
l2 = {l2!r}
"""

Data = tuple[np.ndarray, np.ndarray]


def prepare(dtype: str) -> None:
    """JAX as the command line has it, without its cache."""
    prepare_jax(dtype, None, cache=False)


def write(
    folder: Path, features: list[int], params: dict[str, np.ndarray], train: Data, test: Data, *, loss: str, l2: float
) -> Path:
    """A folder with curv.toml, weights and both splits."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = zip(("x_train", "y_train", "x_test", "y_test"), (*train, *test), strict=True)
    np.savez(folder / "data.npz", **dict(arrays))
    np.savez(folder / "params.npz", **params)
    toml = TOML.format(features=json.dumps(features), loss=loss, l2=l2)
    (folder / "curv.toml").write_text(toml, encoding="utf-8")
    return folder


def load(folder: Path, dtype: str, matrix: str = "ggn") -> Problem:
    """The problem of a folder, planned as the command line plans it."""
    settings = InfluenceSettings(remove=True, matrix=matrix, dtype=dtype)
    found = find_spec(None, folder / "curv.toml")
    spec = merge(found, {})
    path = checkpoint_path(None, spec, found.base)
    return planned(load_problem(spec, found, path, settings, step=None, trust=True).problem, settings, timing="never")


def ask(problem: Problem, queries: Data, dtype: str, **settings: Any) -> tuple[Answer, float]:
    """The answer about these queries, with all scores, and the seconds of the analysis."""
    x, y = queries
    weight = np.ones(len(x), problem.batches.weight.dtype)
    size = min(problem.batches.batch_size, len(x))
    batches = replace(problem.batches, inputs=x, targets=y, weight=weight, batch_size=size)
    mode = {} if settings.get("label_perturb") else {"remove": True}
    monitor = Deadline(settings.get("time_limit"))
    asked = {"dtype": dtype, "skip_checks": True, "queries": f"0:{len(x)}", "scores": "scores.npz", **mode, **settings}
    start = time.perf_counter()
    answer = influence.run(Context(problem, monitor, Given(queries=batches)), InfluenceSettings(**asked))
    jax.block_until_ready(answer.arrays)
    return answer, time.perf_counter() - start


class Deadline(Silent):
    """Stops a run after some seconds; it then answers with what it has."""

    def __init__(self, seconds: float | None) -> None:
        self.end = None if seconds is None else time.monotonic() + seconds

    def stop(self) -> str | None:
        """After the deadline."""
        return "time limit" if self.end is not None and time.monotonic() > self.end else None


def account(answer: Answer, seconds: float) -> dict[str, Any]:
    """What a run took and how well it solved, for the record."""
    result = answer.result
    solves = [one for one in result.solves if one.of.startswith("query")]
    return {
        "seconds": seconds, "products": answer.meter.products, "data_passes": answer.meter.data_passes,
        "damping": result.damping, "reason": result.damping_choice.reason, "solver": result.solver,
        "residual": max(one.residual for one in solves), "iterations": max(one.iterations for one in solves),
        "converged": sum(one.status == "converged" for one in solves), "queries": len(solves),
        "warnings": answer.warnings, "verdict": result.validity.verdict,
    }  # fmt: skip


def parameter_shapes(features: list[int], x: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Shapes by path."""
    return ours.parameter_shapes("curvcli.zoo:MLP", {"features": features, "activation": "tanh"}, x[:1])
