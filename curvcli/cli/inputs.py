"""What an analysis takes beside the problem, from files and the user's code: read here, handed over as values."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvcli.errors import CurvError

if TYPE_CHECKING:
    from curvcli.loading.resolve import Loaded


def analyse(name: str, loaded: Loaded, settings: Any, monitor: Any) -> Any:
    """The answer of the analysis of this name, with what it takes beside the problem."""
    run = importlib.import_module(f"curvcli.analyses.{name}").run
    if name in ("direction", "landscape"):
        outside = given_directions(loaded, settings)
        answer = run(loaded.problem, settings, outside.vectors, monitor, outside.statistics)
        answer.warnings[:0] = outside.warnings
        return answer
    if name in ("influence", "step"):
        given = (given_influence if name == "influence" else given_step)(loaded, settings)
        return run(loaded.problem, settings, given, monitor)
    if name == "saddle":
        adam = adam_state(loaded, settings) if settings.optimizer_state else None
        return run(loaded.problem, settings, monitor, adam)
    return run(loaded.problem, settings, monitor)


def given_directions(loaded: Loaded, settings: Any) -> Any:
    """The directions of `--along` that come from files or the user's code, with statistics and warnings."""
    from curvcli.loading.directions import read_directions

    return read_directions(settings.along, loaded)


def adam_state(loaded: Loaded, settings: Any) -> Any:
    """Adam as the checkpoint has it, with the constants given over those stored; None before its first step."""
    from curvcli.analyses.descent import AdamState
    from curvcli.loading.optimizer import adam_of

    found = adam_of(loaded, settings.adam_constants)
    return None if found is None else AdamState(*found)


def given_influence(loaded: Loaded, settings: Any) -> Any:
    """Queries, groups, changes and functions of `curv influence`."""
    from curvcli.analyses.study import Given
    from curvcli.loading import influence as reading
    from curvcli.loading.directions import read_arrays

    found: dict[str, Any] = {}
    if settings.queries is not None:
        found["queries"], found["source"], found["first"] = reading.read_queries(loaded, settings.queries)
    if settings.group is not None:
        found["groups"] = reading.read_groups(Path(settings.group), loaded.problem.batches.num_examples)
    if settings.perturb is not None:
        found["change"] = reading.read_change(Path(settings.perturb), loaded, settings.mode)
    if settings.queries is None and not settings.hyper:
        found["clean"] = reading.read_clean(loaded)
    if settings.factors_from is not None:
        found["factors"] = read_arrays(Path(settings.factors_from))
    return Given(**found, functions=reading.hyper_functions(loaded, settings.hyper))


def given_step(loaded: Loaded, settings: Any) -> Any:
    """The step before and the factors of `curv step`."""
    from curvcli.analyses.step import Given
    from curvcli.loading.directions import read_arrays, read_directions

    found: dict[str, Any] = {}
    if settings.momentum not in (None, "previous"):
        name = f"array:{settings.momentum}"
        found["previous"] = read_directions([name], loaded).vectors[name]
    if settings.factors_from is not None:
        found["factors"] = read_arrays(Path(settings.factors_from))
    return Given(**found)


def images_of(report: Any, rows: list[tuple[str, int]], shape: tuple[int, ...] | None) -> tuple[dict[Any, Any], str]:
    """Inputs that a picture of a report would show, by where they stand; and why there are none."""
    from curvcli.loading.images import read_images

    return read_images(report.problem, rows, shape)


def scores_of(report: Any) -> Any:
    """The influence report with its scores, where they are in a file that can still be read."""
    import numpy as np

    from curvcli.cli.reports import LARGEST

    path = report.result.scores
    if not isinstance(path, str) or not path.endswith((".npz", ".safetensors")) or not Path(path).exists():
        return report
    from curvcli.loading.directions import read_arrays

    try:
        scores = read_arrays(Path(path)).get("scores")
    except CurvError:
        return report
    if scores is None or list(scores.shape) != report.result.shape or not np.issubdtype(scores.dtype, np.number):
        return report
    if not np.all(np.abs(scores) <= LARGEST):  # neither of NaN
        return report
    return report.model_copy(update={"result": report.result.model_copy(update={"scores": scores.tolist()})})
