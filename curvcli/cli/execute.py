"""Load, run, report: the only door from the command line to the engine, which is imported here and nowhere earlier."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from curvcli.cli import console, distributed, following, output
from curvcli.cli.options import Request, absolute_source, absolute_target
from curvcli.cli.replies import Reply, Target, answer_each
from curvcli.cli.reporting import (
    ARRAY_FILES,
    facts,
    profile,
    report_of,
    warnings_of,
    what_was_read,
    write_array_files,
)
from curvcli.cli.runtime import compile_clock, prepare_jax
from curvcli.cli.state import state
from curvcli.cli.ways import form, read_way, remembered
from curvcli.errors import CurvError, UsageError
from curvcli.schema.inspect import ForecastRecord
from curvcli.schema.report import Report
from curvcli.schema.settings import AnalysisSettings
from curvcli.stopwatch import Stopwatch

if TYPE_CHECKING:
    from curvcli.analyses.answer import Answer
    from curvcli.loading.resolve import Loaded

EXIT_UNTRUSTED = 3
CHECKPOINTS = ("escape", "save")
"""Settings that name a checkpoint to be written."""
Timing = Literal["never", "if worth it", "always"]
Run = Callable[["Loaded", Any, console.Watch], "Answer[Any]"]


def execute(request: Request, report_class: type[Report[Any, Any]], run: Run) -> int:
    """Answer one command line: a report for each checkpoint, on stdout or in a file. Returns the exit code.

    Parameters
    ----------
    request
        The command line.
    report_class
        Envelope of the reports.
    run
        `(loaded, settings, monitor) -> Answer`.
    """
    settings = request.parsed_settings()
    for name in (*ARRAY_FILES, *CHECKPOINTS):
        if getattr(settings, name, None) is not None:
            _check_file(request, name, Path(getattr(settings, name)))
    if getattr(settings, "state", None):
        _check_one(request, "state", "holds the state of")

    forms: dict[str, Any] = {}
    said: set[str] = set()

    def answer(target: Target) -> Reply:
        from curvcli.cli.render import render

        report, code = _one(request, settings, target, report_class, run, forms, said)
        return Reply(report.to_json(), partial(render, report), code)

    return answer_each(request, settings, _targets(request), answer)


def _check_file(request: Request, name: str, path: Path) -> None:
    """Say before the work that a file beside the report cannot be written."""
    _check_one(request, name, "is written for")
    if name in CHECKPOINTS:
        from curvcli.loading.writing import check_target

        check_target(path)
    else:
        output.check_writable(path)
        output.check_array_format(path, tables=name == "scores")


def _check_one(request: Request, name: str, does: str) -> None:
    if len(request.checkpoints) > 1 or request.spec["all_steps"]:
        raise UsageError(f"{_option(name)} {does} one checkpoint", "run curv once for each of them")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _written(request: Request, settings: Any) -> dict[str, Path]:
    """The files that a command line asks for, by their options."""
    named = {_option(name): getattr(settings, name, None) for name in (*ARRAY_FILES, *CHECKPOINTS)}
    named["-o"] = request.output["output"]
    return {option: Path(path) for option, path in named.items() if path is not None and path not in output.STDOUT}


def _targets(request: Request) -> Iterator[Target]:
    """The checkpoints and steps that a command line asks for."""
    from curvcli.loading.checkpoint import checkpoint_steps

    step, every = request.spec["step"], request.spec["all_steps"]
    if step is not None and every:
        raise UsageError("--step and --all-steps exclude each other", "give one of them")
    for argument in request.checkpoints or [None]:
        if not every:
            yield Target(argument, step, argument or "")
            continue
        if (how := following.active()) is not None:
            steps = how.steps(partial(checkpoint_steps, Path(argument or "")))
            yield from (Target(argument, one, argument or "") for one in steps)
            continue
        try:
            _, _, path = locate(request, argument)
            steps = checkpoint_steps(path)
            if not steps:
                raise UsageError(
                    f"--all-steps: {path} has no steps", "it takes the root folder of a checkpoint manager"
                )
        except CurvError as error:
            if len(request.checkpoints) < 2:
                raise
            yield Target(argument, None, argument or "", error)
        else:
            yield from (Target(argument, one, str(path)) for one in steps)


def locate(request: Request, argument: str | None) -> tuple[Any, Any, Path]:
    """Where the specification was found, the specification with the command line over it, and the checkpoint."""
    from curvcli.loading import orbax
    from curvcli.loading.resolve import checkpoint_path
    from curvcli.loading.spec_file import find_spec, merge

    given = None if argument is None else checkpoint_path(argument, None, Path.cwd())
    found = find_spec(given, request.spec["spec"], orbax.read_metadata)
    overrides = request.overrides()
    # Files given on the command line are relative to the current folder, those in curv.toml to it.
    for table, key in (("model", "target"), ("loss", "name")):
        overrides[table][key] = absolute_target(overrides[table][key])
    overrides["data"]["path"] = absolute_source(overrides["data"]["path"])
    spec = merge(found, overrides)
    return found, spec, given or checkpoint_path(None, spec, found.base)


def load(
    request: Request,
    settings: Any,
    target: Target,
    *,
    timing: Timing = "never",
    forms: dict[str, Any] | None = None,
    way: Any = None,
) -> Loaded:
    """The problem that a command line names, planned.

    Parameters
    ----------
    way
        How products are computed where no --plan says it.
    timing
        Whether ways of computing products may be timed, where the settings speak of products at all.
    forms
        Functions of each form of problem loaded before: problems of one form share them, and all that is compiled.
    """
    from curvcli.analyses.machine import check_sums
    from curvcli.analyses.tuning import planned, remarks
    from curvcli.devices import several_processes
    from curvcli.loading.resolve import functions_of, load_problem

    if target.failure is not None:
        raise target.failure
    check_sums()
    found, spec, path = locate(request, target.argument)
    loaded = load_problem(spec, found, path, settings, step=target.step, trust=request.spec["trust"])
    warnings = [*loaded.warnings, *_inherited(request, found)]
    problem = loaded.problem
    if forms is not None:
        problem = replace(problem, **forms.setdefault(form(loaded, found.base), functions_of(problem)))
    if several_processes():
        distributed.check_equal(facts(loaded, settings))
        timing = "never"
    if isinstance(settings, AnalysisSettings):
        given = way if settings.plan is None else read_way(Path(settings.plan))
        store = None if request.output["no_cache"] or several_processes() else remembered(loaded, settings)
        problem = planned(problem, settings, given=given, store=store, timing=timing)
        warnings += remarks(problem, settings)
    return replace(loaded, problem=problem, warnings=warnings)


def _inherited(request: Request, found: Any) -> list[str]:
    """A warning where the command line names model, data and loss, and a curv.toml still adds to them."""
    if request.spec["spec"] is not None or not all(request.spec[name] for name in ("model", "data", "loss")):
        return []
    beyond = {"data": ("split", "mask"), "loss": ("likelihood", "l2", "reduction", "regulariser", "ignore_label")}
    added = {
        f"{table}.{key}"
        for table, keys in beyond.items()
        for key in keys
        if key in found.values.get(table, {}) and request.spec.get(key) is None
    }
    return [f"{', '.join(sorted(added))} come from {found.origin}"] if added else []


def _one(
    request: Request,
    settings: Any,
    target: Target,
    report_class: type[Report[Any, Any]],
    run: Run,
    forms: dict[str, Any],
    said: set[str],
) -> tuple[Report[Any, Any], int]:
    """One report and its exit code; warnings that an earlier report of the command had are not shown again."""
    from curvcli.analyses.tuning import way_of
    from curvcli.devices import greatest, is_first

    output.check_distinct(_written(request, settings))
    quiet, profiling = request.output["quiet"] or not is_first(), request.output["profile"]
    started, clock = time.perf_counter(), Stopwatch()
    timing = "always" if getattr(settings, "calibrate", False) else "if worth it"
    with contextlib.ExitStack() as stack:
        kept = None if settings.state is None else stack.enter_context(_state(settings))
        stack.enter_context(compile_clock(clock))
        loaded = load(request, settings, target, timing=timing, forms=forms, way=kept and kept.way)
        loading = time.perf_counter() - started - clock.compiling
        if request.output["verbose"]:
            console.note(what_was_read(loaded))
        watch = console.Watch(settings.time_limit, not quiet and console.can_redraw(), greatest)
        with clock.running() if profiling else contextlib.nullcontext(), watch.watching():
            if kept is None:
                answer, recalled = run(loaded, settings, watch), 0
            else:
                answer, recalled = _recalling(kept, loaded, settings, watch, run)
    warnings = warnings_of(loaded, answer, watch)
    if is_first():
        write_array_files(answer, settings)
    for name in CHECKPOINTS:
        if is_first() and answer.params and getattr(settings, name, None):
            from curvcli.loading.writing import write_moved

            warnings += write_moved(loaded, answer.params, Path(getattr(settings, name)))
    seconds = time.perf_counter() - started
    report = report_of(
        report_class, loaded, settings, answer, warnings, way=way_of(loaded.problem), seconds=seconds,
        compiling=clock.compiling, recalled=recalled,
        profile=profile(clock, loading, seconds) if profiling else None,
    )  # fmt: skip
    if not quiet:
        for message in dict.fromkeys(warnings):
            if message not in said:
                console.warn(message)
        said.update(warnings)
    return report, EXIT_UNTRUSTED if report.untrusted else 0


def _state(settings: Any) -> contextlib.AbstractContextManager[Any]:
    """The folder of --state."""
    from curvcli.cli.shared_state import shared_state
    from curvcli.devices import several_processes

    if not settings.state.strip() or "\0" in settings.state:
        raise UsageError("--state: the name is empty or has a null byte", "give the name of a folder")
    return (shared_state if several_processes() else state)(Path(settings.state))


def _recalling(kept: Any, loaded: Loaded, settings: Any, watch: console.Watch, run: Run) -> tuple[Answer[Any], int]:
    """The answer, with what is kept of an earlier run and keeping what is computed, and how much was recalled."""
    from curvcli.analyses.planning import memory_limit
    from curvcli.analyses.precise import code_digest
    from curvcli.analyses.tuning import way_of

    # Blocks are cut by the memory, and another cut rounds otherwise: what the first run might take holds for all.
    memory = settings.max_memory or kept.memory or memory_limit(None)
    problem = loaded.problem
    journal = kept.open(loaded, settings, way_of(problem), memory, code_digest(problem))
    with journal.open():
        answer = run(loaded, settings.model_copy(update={"max_memory": memory}), watch)
    if watch.reason is None:
        kept.finish()
    answer.warnings += kept.warnings
    return answer, journal.recalled


def forecast(
    request: Request, plan_of: Callable[..., tuple[Any, Any]], given: Callable[[Loaded, Any], Any] | None = None
) -> int:
    """`--dry-run`: plan and forecast, no product spent.

    Parameters
    ----------
    plan_of
        `(problem, settings) -> (Plan, Forecast)` of the analysis; its third argument is what `given` reads.
    """
    settings = request.parsed_settings()

    def answer(target: Target) -> Reply:
        loaded = load(request, settings, target)
        plan, cost = plan_of(loaded.problem, settings, *([] if given is None else [given(loaded, settings)]))
        record = ForecastRecord(plan=plan, forecast=cost)
        text = (
            f"{cost.products} products in {cost.data_passes} data passes, {cost.bytes / 1e6:.0f} MB; "
            f"{plan.batches} batches of {plan.batch_size} examples" + (f"; {plan.reason}" if plan.reason else "")
        )
        return Reply(record.to_json(), lambda stream: text, 0)

    return answer_each(request, settings, _targets(request), answer)


def write_spec(request: Request) -> int:
    """`curv init`: evaluate the loss with the specification given, then write it."""
    import tomli_w

    if len(request.checkpoints) != 1:
        raise UsageError(
            "curv init takes one checkpoint",
            "for example: curv init model.ckpt --model net.py:CNN --data digits.npz",
        )
    settings = request.parsed_settings()
    file = request.output["output"] or Path("curv.toml")
    printed = file in output.STDOUT
    if not printed:
        if os.path.lexists(file):
            raise UsageError(f"{file} exists already", "move it away, or write elsewhere: -o FILE")
        output.check_writable(file)
    with output.own_stdout() as stdout:
        prepare_jax(settings.dtype, settings.threads, cache=not request.output["no_cache"])
        from curvcli.analyses.checks import finite_objective
        from curvcli.loading.spec_file import relative_to

        target = Target(request.checkpoints[0], request.spec["step"], request.checkpoints[0])
        loaded = load(request, settings, target)
        value, _ = finite_objective(loaded.problem)
        found, _, path = locate(request, target.argument)
        folder = Path.cwd() if printed else file.resolve().parent
        document = relative_to(loaded.spec, checkpoint=path, base=found.base, folder=folder)
        if settings.pin:
            _pin(document, loaded, path, settings)
        problem = loaded.problem
        said = (
            f"loss {value:.6g} over {loaded.data.num_examples} examples, {problem.dim} parameters, "
            f"normaliser {problem.normaliser:g}"
        )
        if printed:
            output.write_line(stdout, tomli_w.dumps(document).rstrip("\n"))
            if not request.output["quiet"]:
                console.note(said)
        else:
            output.write_file(file, tomli_w.dumps(document))
            output.write_line(stdout, f"{file}: {said}")
    return 0


def _pin(document: dict[str, dict[str, Any]], loaded: Loaded, checkpoint: Path, settings: Any) -> None:
    """Put the digests of what was read into the tables of a curv.toml."""
    from curvcli.loading.checkpoint import checkpoint_steps

    if settings.num_examples is not None:
        raise UsageError("--pin: the digest is of all examples", "leave out --num-examples")
    if checkpoint_steps(checkpoint):
        raise UsageError(
            f"--pin: {checkpoint} holds several steps, and a digest is of one",
            f"name the step's own folder, such as {checkpoint / str(loaded.checkpoint.step)}",
        )
    document["checkpoint"]["sha256"] = loaded.checkpoint.sha256
    document["data"]["sha256"] = loaded.data.sha256
