"""Further inputs of the analyses, read from files and the user's code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvcli.errors import CurvError
from curvcli.registry import Analysis

if TYPE_CHECKING:
    from curvcli.analyses.common.answer import Answer
    from curvcli.analyses.common.context import Context
    from curvcli.loading.resolve import Loaded


def answer_of(analysis: Analysis, loaded: Loaded, settings: Any, monitor: Any) -> Answer[Any]:
    """Run an analysis with its further inputs."""
    context, warnings = context_of(analysis, loaded, settings, monitor)
    answer = analysis.run(context, settings)
    answer.warnings[:0] = warnings
    return answer


def context_of(
    analysis: Analysis, loaded: Loaded, settings: Any, monitor: Any = None
) -> tuple[Context[Any], list[str]]:
    """Return the context of an analysis, and warnings about its further inputs."""
    from curvcli.analyses.common.context import Context

    inputs, warnings = (None, []) if analysis.inputs is None else globals()[analysis.inputs](loaded, settings)
    return Context(loaded.problem, inputs=inputs, **({} if monitor is None else {"monitor": monitor})), warnings


def lines(loaded: Loaded, settings: Any) -> tuple[Any, list[str]]:
    """Read the directions of `--along` from files or the user's code, with the batch statistics at their ends."""
    from curvcli.analyses.lines.directions import Inputs
    from curvcli.loading.directions import read_directions

    outside = read_directions(settings.along, loaded)
    return Inputs(outside.vectors, outside.statistics), outside.warnings


def adam(loaded: Loaded, settings: Any) -> tuple[Any, list[str]]:
    """Read Adam's state from the checkpoint; constants in the settings override stored ones. None before a step."""
    from curvcli.analyses.saddle.descent import AdamState
    from curvcli.loading.checkpoints.optimizer import adam_of

    state = adam_of(loaded, settings.adam_constants) if settings.optimizer_state else None
    return None if state is None else AdamState(*state), []


def influence(loaded: Loaded, settings: Any) -> tuple[Any, list[str]]:
    """Read the queries, groups, changes and functions of `curv influence`."""
    from curvcli.analyses.influence.context import Inputs
    from curvcli.loading import influence as reading
    from curvcli.loading.directions import read_arrays

    fields: dict[str, Any] = {"functions": reading.hyper_functions(loaded, settings.hyper)}
    if settings.queries is not None:
        fields["queries"], fields["source"], fields["first"] = reading.read_queries(loaded, settings.queries)
    if settings.group is not None:
        fields["groups"] = reading.read_groups(Path(settings.group), loaded.problem.batches.num_examples)
    if settings.perturb is not None:
        fields["change"] = reading.read_change(Path(settings.perturb), loaded, settings.mode)
    if settings.queries is None and not settings.hyper:
        fields["clean"] = reading.read_clean(loaded)
    if settings.factors_from is not None:
        fields["factors"] = read_arrays(Path(settings.factors_from))
    return Inputs(**fields), []


def step(loaded: Loaded, settings: Any) -> tuple[Any, list[str]]:
    """Read the previous step and the Kronecker factors of `curv step`."""
    from curvcli.analyses.step.analysis import Inputs
    from curvcli.loading.directions import read_arrays, read_directions

    fields: dict[str, Any] = {}
    if settings.momentum not in (None, "previous"):
        name = f"array:{settings.momentum}"
        fields["previous"] = read_directions([name], loaded).vectors[name]
    if settings.factors_from is not None:
        fields["factors"] = read_arrays(Path(settings.factors_from))
    return Inputs(**fields), []


def network(loaded: Loaded, settings: Any) -> tuple[Any, list[str]]:
    """Return the shape of the outputs and the stored types of the parameters, for `curv inspect`."""
    from curvcli.analyses.inspect import Inputs

    return Inputs(loaded.outputs, loaded.stored_dtypes), []


def images_of(report: Any, rows: list[tuple[str, int]], shape: tuple[int, ...] | None) -> tuple[dict[Any, Any], str]:
    """Read the input images that a picture of a report shows, by source and row; and the reason where none can be."""
    from curvcli.loading.data.images import read_images

    return read_images(report.problem, rows, shape)


def scores_of(report: Any) -> Any:
    """Return an influence report with the scores of its file, where that can still be read."""
    import numpy as np

    from curvcli.run.reports import LARGEST

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
