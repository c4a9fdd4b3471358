"""Reports: the problem, the answer and its cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from curvcli import __version__
from curvcli.run import files
from curvcli.run.runtime import environment, peak_memory
from curvcli.schema.plan import Way
from curvcli.schema.report import Cost, DataRecord, ProblemRecord, Profile, Report
from curvcli.stopwatch import Stopwatch

if TYPE_CHECKING:
    from curvcli.loading.resolve import Loaded

R = TypeVar("R", bound=Report[Any, Any])

ARRAY_FILES = {"vectors": "arrays", "arrays": "arrays", "scores": "arrays", "save_factors": "factors"}
"""Settings that name a file for arrays, and the attribute of the answer with the arrays."""


def what_was_read(loaded: Loaded) -> str:
    """Describe checkpoint and data in a line."""
    step = "" if loaded.checkpoint.step is None else f", step {loaded.checkpoint.step}"
    return (
        f"{loaded.checkpoint.path} ({loaded.checkpoint.format}{step}): {loaded.problem.dim} parameters; "
        f"{loaded.data.path}: {loaded.data.num_examples} examples in batches of {loaded.problem.batches.batch_size}"
    )


def profile(clock: Stopwatch, loading: float, seconds: float) -> Profile:
    """Return the seconds spent by stage."""
    parts = {name: clock.seconds[name] for name in ("products", "orthogonalisation")}
    rest = max(seconds - loading - clock.compiling - sum(parts.values()), 0.0)
    return Profile(load=loading, compile=clock.compiling, rest=rest, **parts)


def warnings_of(loaded: Loaded, answer: Any, watch: Any) -> list[str]:
    """Return the warnings of a run: about its inputs, its answer, and an early end."""
    part = [_of_part(loaded.data)] if loaded.data.subsampled else []
    early = [] if watch.reason is None else [f"stopped early ({watch.reason}): the answer rests on what was reached"]
    return [*loaded.warnings, *part, *answer.warnings, *early]


def _of_part(data: DataRecord) -> str:
    """Say what the numbers refer to where a part of the examples was used."""
    return (
        f"{data.counted} examples were used: a number with a data_stderr has an interval for all of them, as if those "
        f"used were drawn at random; every other number is {data.scope}"
    )


def write_array_files(answer: Any, settings: Any) -> None:
    """Write the arrays of an answer where the settings name files for them."""
    for name, attribute in ARRAY_FILES.items():
        if (arrays := getattr(answer, attribute)) and getattr(settings, name, None):
            files.write_arrays(Path(getattr(settings, name)), arrays, answer.axes)


def report_of(
    kind: type[R],
    loaded: Loaded,
    settings: Any,
    answer: Any,
    warnings: list[str],
    *,
    way: Way,
    seconds: float,
    compiling: float,
    recalled: int = 0,
    profile: Profile | None = None,
) -> R:
    """Build the report of an answer."""
    return kind(
        curv=__version__,
        problem=problem_record(loaded, answer.loss_value),
        matrix=settings.matrix,
        regulariser_included=settings.regulariser_included,
        settings=settings,
        settings_from=dict(loaded.settings_from),
        result=answer.result,
        checks=answer.checks,
        untrusted=any(not check.passed for check in answer.checks.values()),
        cost=Cost(
            products=answer.meter.products, forms=answer.meter.forms, data_passes=answer.meter.data_passes,
            recalled=recalled, seconds=seconds, compile_seconds=compiling, peak_memory_bytes=peak_memory(),
            way=way, profile=profile,
        ),
        environment=environment(settings),
        warnings=warnings,
    )  # fmt: skip


def problem_record(loaded: Loaded, loss_value: float) -> ProblemRecord:
    """Build the part of a report that describes the problem."""
    problem, spec = loaded.problem, loaded.spec
    coupled = problem.batches.coupled
    return ProblemRecord(
        mode="batch" if coupled else "eval",
        batch_size=problem.batches.batch_size if coupled else None,
        batches=len(problem.batches) if coupled else None,
        checkpoint=loaded.checkpoint,
        model=spec.model.target or "",
        num_params=problem.dim,
        loss=spec.loss.name or "",
        reduction=spec.loss.reduction,
        normaliser=problem.normaliser,
        l2=spec.loss.l2,
        regulariser=spec.loss.regulariser,
        data=loaded.data,
        loss_value=loss_value,
        spec=spec,
        spec_file=loaded.spec_file,
    )


def facts(loaded: Loaded, settings: Any) -> dict[str, str]:
    """Return what must be equal in all processes, by name."""
    import jax
    import numpy

    return {
        "versions": f"{__version__} {jax.__version__} {numpy.__version__}",
        "devices": str(jax.local_device_count()),
        "settings": settings.model_dump_json(),
        "a specification": loaded.spec.model_dump_json(),
        "weights": f"{loaded.checkpoint.sha256} {loaded.checkpoint.step}",
        "data": f"{loaded.data.sha256} {loaded.data.num_examples}",
    }
