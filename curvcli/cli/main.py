"""The app: one line a command. Only the command that runs is imported, so that help is quick."""

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

COMMANDS = {
    "spectrum": "spectral density, both extremes, trace: how sharp is this point?",
    "trace": "trace and Frobenius norm, of the whole network and of every layer",
    "diag": "the diagonal with an error for every entry, pruning saliencies; --arrays keeps it",
    "eigs": "the k extreme eigenpairs with residuals; --vectors keeps the vectors",
    "saddle": "what kind of point is this, and what does gradient descent do here?",
    "direction": "curvature and loss profile along the gradient, a Newton step, another checkpoint, …",
    "landscape": "the loss on a line or a plane against its quadratic model; barrier between checkpoints",
    "influence": "which training examples, labels and inputs drive a prediction; which labels look wrong",
    "step": "a Newton, Gauss-Newton, natural, K-FAC or Hessian-free step, previewed and judged",
    "compare": "Hessian, GGN, Fisher, empirical Fisher, K-FAC, E-KFAC and diagonal side by side; --laplace",
    "watch": "each step of a training run as it is written, by any of the above",
    "inspect": "what curv sees: parameters, data, loss, gradient norm, self-checks, cost",
    "plot": "reports as pictures: png, svg, pdf, or a page that shows values and switches scales",
    "diff": "two reports of one analysis, number by number: what changed, and what may be chance",
    "init": "write a curv.toml and prove it by evaluating the loss",
    "doctor": "versions, devices, cache, memory, and how fast this machine is",
    "schema": "the JSON Schema of a report or of curv.toml",
}
"""Every command is `curvcli/cli/commands/NAME.py` with a function of that name."""

STEPWISE = tuple(COMMANDS)[: tuple(COMMANDS).index("watch")]
"""Analyses of one checkpoint, which can be of each step."""

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
    """The app with one command in full; the others by name and summary alone. None: all in full."""
    app = typer.Typer(
        name="curv", help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback(help=_paragraphs(HELP))(_root)
    for name, summary in COMMANDS.items():
        function = _load(name) if chosen in (None, name) else lambda: None
        # `watch` hands on what it does not know.
        more = {"allow_extra_args": True, "ignore_unknown_options": True} if name == "watch" else {}
        app.command(name, short_help=summary, help=_paragraphs(function.__doc__ or ""), context_settings=more)(function)
    return app


def _paragraphs(text: str) -> str:
    """The text without the line breaks of its source, for a terminal of any width."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))


def _load(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"curvcli.cli.commands.{name}"), name)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; what goes wrong is told on stderr."""
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
        return console.report_error(console.as_told(error), debug=debug)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            error = OutputError("no space is left on the device that is written to", "free some, or write elsewhere")
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            error = UsageError(f"{error.filename}: the name is too long for a file", "give a shorter one")
        return console.report_error(console.as_told(error), debug=debug)


def unknown_command(name: str) -> UsageError:
    """What to say of a command that does not exist."""
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, 1)
    return UsageError(
        f"no command {name!r}",
        f"did you mean: curv {near[0]}" if near else f"the commands are: {', '.join(COMMANDS)}",
    )
