"""Execution of the analysis commands: run or forecast an analysis for each checkpoint, and write the reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curvcli.cli import console, output, provenance
from curvcli.cli.options import Request
from curvcli.cli.problem import load, locate
from curvcli.cli.replies import Reply, Target, answer_each
from curvcli.errors import CurvError, UsageError
from curvcli.registry import Analysis
from curvcli.run import files
from curvcli.run.inputs import answer_of, context_of
from curvcli.run.reporting import (
    ARRAY_FILES,
    profile,
    report_of,
    warnings_of,
    what_was_read,
    write_array_files,
)
from curvcli.run.runtime import compile_clock
from curvcli.run.state import state
from curvcli.schema.inspect import ForecastRecord
from curvcli.schema.report import Report
from curvcli.stopwatch import Stopwatch

if TYPE_CHECKING:
    from curvcli.analyses.common.answer import Answer
    from curvcli.loading.resolve import Loaded

EXIT_UNTRUSTED = 3
CHECKPOINTS = ("escape", "save")
"""Settings that name a checkpoint to write."""


def execute(request: Request, analysis: Analysis) -> int:
    """Run an analysis of each checkpoint, and write the reports to stdout or a file. Returns the exit code."""
    settings = request.parsed_settings()
    for name in (*ARRAY_FILES, *CHECKPOINTS):
        if getattr(settings, name, None) is not None:
            _check_file(request, name, Path(getattr(settings, name)))
    if getattr(settings, "state", None):
        _check_single(request, "state", "holds the state of")

    forms: dict[str, Any] = {}
    shown_warnings: set[str] = set()

    def answer(target: Target) -> Reply:
        from curvcli.cli.render import render

        report, code = _report(request, settings, target, analysis, forms, shown_warnings)
        return Reply(report.to_json(), partial(render, report), code)

    return answer_each(request, settings, _targets(request), answer)


def _check_file(request: Request, name: str, path: Path) -> None:
    """Check before the computation that a file beside the report can be written."""
    _check_single(request, name, "is written for")
    if name in CHECKPOINTS:
        from curvcli.loading.checkpoints.writing import check_target

        check_target(path)
    else:
        files.check_writable(path)
        files.check_array_format(path, tables=name == "scores")


def _check_single(request: Request, name: str, does: str) -> None:
    if len(request.checkpoints) > 1 or request.spec["all_steps"]:
        raise UsageError(f"{_option(name)} {does} one checkpoint", "run curv once for each of them")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _output_files(request: Request, settings: Any) -> dict[str, Path]:
    """Return the output files of a command line by their options."""
    named = {_option(name): getattr(settings, name, None) for name in (*ARRAY_FILES, *CHECKPOINTS)}
    named["-o"] = request.output["output"]
    return {option: Path(path) for option, path in named.items() if path is not None and path not in output.STDOUT}


def _targets(request: Request) -> Iterator[Target]:
    """Iterate over the checkpoints and steps of a command line."""
    from curvcli.loading.checkpoints.reading import checkpoint_steps

    step, every = request.spec["step"], request.spec["all_steps"]
    if step is not None and every:
        raise UsageError("--step and --all-steps exclude each other", "give one of them")
    for argument in request.checkpoints or [None]:
        if not every:
            yield Target(argument, step, argument or "")
            continue
        if request.following is not None:
            steps = request.following.steps(partial(checkpoint_steps, Path(argument or "")))
            yield from (Target(argument, number, argument or "") for number in steps)
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
            yield from (Target(argument, number, str(path)) for number in steps)


def _report(
    request: Request,
    settings: Any,
    target: Target,
    analysis: Analysis,
    forms: dict[str, Any],
    shown_warnings: set[str],
) -> tuple[Report[Any, Any], int]:
    """Return a report and its exit code; warnings of an earlier report of the command are not shown again."""
    from curvcli.analyses.common.tuning import way_of
    from curvcli.devices import greatest, is_first

    files.check_distinct(_output_files(request, settings))
    quiet, profiling = request.output["quiet"] or not is_first(), request.output["profile"]
    started, clock = time.perf_counter(), Stopwatch()
    timing = "always" if getattr(settings, "calibrate", False) else "if worth it"
    with contextlib.ExitStack() as stack:
        stored_state = None if settings.state is None else stack.enter_context(_state(settings))
        stack.enter_context(compile_clock(clock))
        loaded = load(request, settings, target, timing=timing, forms=forms, way=stored_state and stored_state.way)
        loading = time.perf_counter() - started - clock.compiling
        if request.output["verbose"]:
            console.note(what_was_read(loaded))
        watch = console.Watch(settings.time_limit, not quiet and console.can_redraw(), greatest)
        with clock.running() if profiling else contextlib.nullcontext(), watch.watching():
            if stored_state is None:
                answer, recalled = answer_of(analysis, loaded, settings, watch), 0
            else:
                answer, recalled = _recalling(stored_state, analysis, loaded, settings, watch)
    warnings = warnings_of(loaded, answer, watch)
    if is_first():
        write_array_files(answer, settings)
    for name in CHECKPOINTS:
        if is_first() and answer.params and getattr(settings, name, None):
            from curvcli.loading.checkpoints.writing import write_moved

            warnings += write_moved(loaded, answer.params, Path(getattr(settings, name)))
    seconds = time.perf_counter() - started
    report = report_of(
        analysis.report, loaded, settings, answer, warnings, way=way_of(loaded.problem), seconds=seconds,
        compiling=clock.compiling, recalled=recalled,
        profile=profile(clock, loading, seconds) if profiling else None,
    )  # fmt: skip
    if not quiet:
        for message in dict.fromkeys(warnings):
            if message not in shown_warnings:
                console.warn(message)
        shown_warnings.update(warnings)
    tell_settings(request, loaded, shown_warnings)
    return report, EXIT_UNTRUSTED if report.untrusted else 0


def tell_settings(request: Request, loaded: Loaded, shown_warnings: set[str]) -> None:
    """Write the line that names the settings from a file, unless it has been written before."""
    from curvcli.devices import is_first

    line = provenance.line(loaded.settings_from, loaded.spec_file)
    if line and line not in shown_warnings and not request.output["quiet"] and is_first():
        console.note(line)
        shown_warnings.add(line)


def _state(settings: Any) -> contextlib.AbstractContextManager[Any]:
    """Open the folder of --state."""
    from curvcli.devices import several_processes
    from curvcli.run.shared_state import shared_state

    if not settings.state.strip() or "\0" in settings.state:
        raise UsageError("--state: the name is empty or has a null byte", "give the name of a folder")
    return (shared_state if several_processes() else state)(Path(settings.state))


def _recalling(
    stored_state: Any, analysis: Analysis, loaded: Loaded, settings: Any, watch: console.Watch
) -> tuple[Answer[Any], int]:
    """Run an analysis with a state folder, and return the answer and the number of values that were looked up."""
    from curvcli.analyses.common.planning import memory_limit
    from curvcli.analyses.common.precision import code_digest
    from curvcli.analyses.common.tuning import way_of

    # Blocks are cut by the memory, and another cut rounds otherwise: what the first run might take holds for all.
    memory = settings.max_memory or stored_state.memory or memory_limit(None)
    problem = loaded.problem
    journal = stored_state.open(loaded, settings, way_of(problem), memory, code_digest(problem))
    with journal.open():
        answer = answer_of(analysis, loaded, settings.model_copy(update={"max_memory": memory}), watch)
    if watch.reason is None:
        stored_state.finish()
    answer.warnings += stored_state.warnings
    return answer, journal.recalled


def forecast(request: Request, analysis: Analysis) -> int:
    """Write plan and forecast of an analysis (`--dry-run`), without computing products."""
    settings = request.parsed_settings()
    noted: set[str] = set()

    def answer(target: Target) -> Reply:
        loaded = load(request, settings, target)
        tell_settings(request, loaded, noted)
        plan, cost = analysis.forecast(context_of(analysis, loaded, settings)[0], settings)
        record = ForecastRecord(plan=plan, forecast=cost)
        text = (
            f"{cost.products} products in {cost.data_passes} data passes, {cost.bytes / 1e6:.0f} MB; "
            f"{plan.batches} batches of {plan.batch_size} examples" + (f"; {plan.reason}" if plan.reason else "")
        )
        return Reply(record.to_json(), lambda stream: text, 0)

    return answer_each(request, settings, _targets(request), answer)
