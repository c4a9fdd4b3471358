"""Replies of a command for its checkpoints: output on stdout or in a file, and the exit code of the process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TextIO

from curvcli.cli import console, distributed, interrupts, output
from curvcli.cli.options import Request
from curvcli.errors import CurvError, DistributedError
from curvcli.run import files
from curvcli.run.runtime import prepare_jax
from curvcli.schema.report import ErrorRecord


@dataclass(frozen=True)
class Target:
    """A checkpoint of a command line, at one step.

    Parameters
    ----------
    argument
        The argument of the command line; None for the checkpoint of curv.toml.
    step
        The step; None for the latest, or for a checkpoint without steps.
    name
        The name of the checkpoint in an error record.
    failure
        The error if its steps could not be listed.
    """

    argument: str | None
    step: int | None
    name: str
    failure: CurvError | None = None


@dataclass(frozen=True)
class Reply:
    """The reply of a command for one target.

    Parameters
    ----------
    line
        The reply as JSON.
    text
        Returns the reply as text for a stream; None where it was written to stderr.
    code
        The exit code.
    """

    line: str
    text: Callable[[TextIO], str] | None
    code: int


def answer_each(request: Request, settings: Any, targets: Iterable[Target], answer: Callable[[Target], Reply]) -> int:
    """Write the reply of every target; with several targets a failure does not stop the others."""
    options = request.output
    file, kind = options["output"], options["format"]
    if file in output.STDOUT:
        file, kind = None, kind or "json"
    if file is not None:
        files.check_writable(file)
    as_text = kind == "text" or (kind is None and sys.stdout is not None and sys.stdout.isatty())
    several = len(request.checkpoints) > 1 or request.spec["all_steps"]
    codes: list[int] = []
    received = interrupts.current
    received.answerable = False
    to_file = contextlib.nullcontext() if file is None else files.ReportFile(file)
    with (
        output.own_stdout(needed=as_text or file is None) as stdout,
        to_file as reports,
        contextlib.ExitStack() as stack,
    ):
        prepare_jax(settings.dtype, settings.threads, cache=not options["no_cache"])
        stack.enter_context(distributed.session(settings.distributed))
        from curvcli.devices import is_first

        for target in targets:
            reply = _tried(answer, target, debug=options["debug"]) if several else answer(target)
            codes.append(reply.code)
            if is_first():
                _say(reply, stdout, reports, as_text=as_text)
            if received.number is not None:
                return 128 + received.number
            received.answerable = False  # the next target, which may have to be waited for, has no answer yet
    return next((code for code in codes if code), 0)


def _say(reply: Reply, stdout: TextIO, reports: files.ReportFile | None, *, as_text: bool) -> None:
    """Write a reply to stdout or the file."""
    if reports is not None:
        reports.add(reply.line)
    if as_text and reply.text is not None:
        output.write_line(stdout, reply.text(stdout))
    elif reports is None and not as_text:
        output.write_line(stdout, reply.line)


def _tried(answer: Callable[[Target], Reply], target: Target, *, debug: bool) -> Reply:
    """Return the reply, or an error record."""
    try:
        return answer(target)
    except DistributedError:  # nobody is there to go on with
        raise
    except (Exception, SystemExit) as error:
        failure = console.as_curv_error(error)
        console.report_error(failure, debug=debug)
        record = ErrorRecord(
            checkpoint=target.name,
            step=target.step,
            error=failure.message,
            hint=failure.hint,
            exit_code=failure.exit_code,
        )
        return Reply(record.to_json(), None, failure.exit_code)
