"""The problem of a command line: its specification, its files, and the way products are computed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvcli.cli import distributed, provenance
from curvcli.cli.options import Request, absolute_source, absolute_target
from curvcli.cli.replies import Target
from curvcli.errors import CurvError, NotFoundError, OutputError
from curvcli.run import trust
from curvcli.run.plans import Timing, form, read_way, remembered, with_plan
from curvcli.run.reporting import facts
from curvcli.schema.settings import AnalysisSettings

if TYPE_CHECKING:
    from curvcli.loading.resolve import Loaded


def locate(request: Request, argument: str | None) -> tuple[Any, Any, Path]:
    """Return the source of the specification, the specification with overrides, and the checkpoint's path."""
    from curvcli.loading.checkpoints import orbax
    from curvcli.loading.resolve import checkpoint_path
    from curvcli.loading.spec.files import find_spec, merge

    checkpoint = None if argument is None else checkpoint_path(argument, None, Path.cwd())
    source = find_spec(checkpoint, request.spec["spec"], orbax.read_metadata)
    overrides = request.overrides()
    # Files given on the command line are relative to the current folder, those in curv.toml to it.
    for table, key in (("model", "target"), ("loss", "name")):
        overrides[table][key] = absolute_target(overrides[table][key])
    overrides["data"]["path"] = absolute_source(overrides["data"]["path"])
    spec = merge(source, overrides)
    return source, spec, checkpoint or checkpoint_path(None, spec, source.base, source.passed_over)


def load(
    request: Request,
    settings: Any,
    target: Target,
    *,
    timing: Timing = "never",
    forms: dict[str, Any] | None = None,
    way: Any = None,
) -> Loaded:
    """Load the problem of a command line, and plan its products.

    Parameters
    ----------
    way
        The way products are computed, if --plan is not given.
    timing
        Whether ways of computing products may be timed, for settings that concern products.
    forms
        Functions of the problems loaded before, by form. Problems of one form share them and the compiled programs.
    """
    from curvcli.analyses.common.machine import check_sums
    from curvcli.devices import several_processes
    from curvcli.loading.resolve import functions_of, load_problem
    from curvcli.loading.spec.files import settings_from

    if target.failure is not None:
        raise target.failure
    check_sums()
    source, spec, path = locate(request, target.argument)
    overridden = request.overridden() | ({"checkpoint.path": "flag"} if target.argument else {})
    try:
        loaded = load_problem(
            spec, source, path, settings, step=target.step, trust=_trusted(request, source), overridden=overridden
        )
    except CurvError as error:
        provenance.add_origin(error, source.origin, settings_from(spec, source, overridden))
        raise
    origins = {**loaded.settings_from, **provenance.of_settings(request, settings)}
    loaded = replace(loaded, settings_from=origins)
    line = provenance.line(origins, loaded.spec_file)
    if line and provenance.is_unexpected(request):
        loaded = replace(loaded, warnings=[*loaded.warnings, line])
    problem = loaded.problem
    if forms is not None:
        problem = replace(problem, **forms.setdefault(form(loaded, source.base), functions_of(problem)))
    if several_processes():
        distributed.check_equal(facts(loaded, settings))
        timing = "never"
    if isinstance(settings, AnalysisSettings):
        chosen = way if settings.plan is None else read_way(Path(settings.plan))
        store = None if request.output["no_cache"] or several_processes() else remembered(loaded, settings)
        return with_plan(replace(loaded, problem=problem), settings, way=chosen, store=store, timing=timing)
    return replace(loaded, problem=problem)


def named_specification(path: Path) -> Any:
    """Return the specification at a path: a curv.toml, or that of a checkpoint.

    Raises
    ------
    NotFoundError
        The path has no specification.
    """
    from curvcli.loading.checkpoints import orbax
    from curvcli.loading.spec.files import carried_spec, find_spec

    if path.suffix == ".toml":
        return replace(find_spec(None, path), trusted=False)
    specification = carried_spec(path, orbax.read_metadata) if path.exists() else None
    if specification is None:
        raise NotFoundError(f"no curv.toml at {path}", "give the path of a curv.toml, or of a checkpoint with one")
    return specification


def _trusted(request: Request, source: Any) -> bool:
    """Whether the code that a specification names may run; `--trust` is stored."""
    if not request.spec["trust"]:
        return trust.is_trusted(source)
    if not (source.trusted or request.output["no_cache"] or trust.is_trusted(source)) and trust.code_of(source):
        with contextlib.suppress(OutputError, OSError):  # it holds for this run all the same
            trust.trust(source)
    return True
