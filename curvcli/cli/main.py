"""The command-line application. Only the command that runs is imported, so that help is quick."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from curvcli import __version__, sources
from curvcli.cli import console, distributed
from curvcli.errors import OutputError, UsageError
from curvcli.registry import ANALYSES

COMMANDS = {
    **{name: analysis.summary for name, analysis in ANALYSES.items()},
    "watch": "each step of a training run as it is written, by any of the above",
    "plot": "reports as pictures: png, svg, pdf, or a page that shows values and switches scales",
    "diff": "two reports of one analysis, number by number: what changed, and what may be chance",
    "init": "write a curv.toml and prove it by evaluating the loss",
    "trust": "allow the code that a curv.toml names, until it changes",
    "doctor": "versions, devices, cache, memory, and how fast this machine is",
    "schema": "the JSON Schema of a report or of curv.toml",
}
"""Every command, with a line about it: an analysis, or `curvcli/cli/commands/NAME.py` with a function of that name."""

HELP = """[bold]curv spectrum model.ckpt --model net.py:CNN --data digits.npz --loss softmax_cross_entropy[/bold]

Loss curvature of a trained JAX network: a checkpoint, a dataset and a loss go in, numbers with their uncertainty come
out: as JSON on stdout in a pipeline, as a summary on a terminal."""


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"curv {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


def build_app(chosen: str | None) -> typer.Typer:
    """Build the application with one command in full and the others by name and summary; None: all in full."""
    app = typer.Typer(
        name="curv", help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback(help=_paragraphs(HELP))(_root)
    for name, summary in COMMANDS.items():
        function = command_of(name) if chosen in (None, name) else lambda: None
        # `watch` hands on what it does not know.
        more = {"allow_extra_args": True, "ignore_unknown_options": True} if name == "watch" else {}
        app.command(name, short_help=summary, help=_paragraphs(function.__doc__ or ""), context_settings=more)(function)
    return app


def _paragraphs(text: str) -> str:
    """Remove the line breaks within paragraphs, for a terminal of any width."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))


def command_of(name: str) -> Callable[..., Any]:
    """Return the function of a command, with its options as parameters."""
    if name not in ANALYSES:
        return getattr(importlib.import_module(f"curvcli.cli.commands.{name}"), name)
    from curvcli.cli.options import analysis

    def command(request: Any) -> int:
        from curvcli.cli.execute import execute, forecast

        return (forecast if request.output["dry_run"] else execute)(request, ANALYSES[name])

    command.__name__, command.__doc__ = name, ANALYSES[name].help
    return analysis(ANALYSES[name].settings)(command)


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; errors are written to stderr."""
    chosen = next((argument for argument in arguments if not argument.startswith("-")), "")
    completing = "_CURV_COMPLETE" in os.environ
    debug = "--debug" in arguments or os.environ.get("CURV_DEBUG", "").lower() in ("1", "true", "yes", "on", "t", "y")
    if chosen and chosen not in COMMANDS and not completing:
        return console.report_error(unknown_command(chosen), debug=False)
    try:
        if any("\0" in argument for argument in arguments):  # which only a Python program can hand over
            raise UsageError("an argument has a null byte", "no name of a file has one")
        if chosen in COMMANDS and distributed.asked_for(arguments):
            return distributed.supervise(arguments)
        with sources.registry():
            code = build_app(None if completing else chosen)(list(arguments), prog_name="curv", standalone_mode=False)
        return int(code or 0)
    except typer.TyperException as error:
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        if not message:  # no command: the help was shown
            return UsageError.exit_code
        hint = f"see: curv {chosen} --help".replace("  ", " ")
        return console.report_error(UsageError(message, hint), debug=False)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except SystemExit as error:
        if completing:  # how typer ends a completion
            return int(error.code or 0)
        if isinstance(error.__context__, BrokenPipeError):  # what typer and rich make of a closed pipe
            console.silence_stdout()
            return 141
        return console.report_error(console.as_curv_error(error), debug=debug)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            error = OutputError("no space is left on the device that is written to", "free some, or write elsewhere")
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            error = UsageError(f"{error.filename}: the name is too long for a file", "give a shorter one")
        return console.report_error(console.as_curv_error(error), debug=debug)


def unknown_command(name: str) -> UsageError:
    """Return the error for a command that does not exist."""
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, 1)
    return UsageError(
        f"no command {name!r}",
        f"did you mean: curv {near[0]}" if near else f"the commands are: {', '.join(COMMANDS)}",
    )
