"""The command `curv diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="a report, as -o FILE wrote it")],
    b: Annotated[Path, typer.Argument(metavar="B", help="another of the same analysis")],
    format: Annotated[
        Literal["json", "text"] | None,
        typer.Option(envvar="CURV_FORMAT", show_envvar=False, help="default: text on a terminal, else json"),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="write the JSON here")] = None,
) -> int:
    """[bold]curv diff before.json after.json | jq '.differences[] | select(.significant)'[/bold]

    Compares two reports of one analysis, number by number: the change, an interval of the true change, and whether the
    change is significant. Settings in which the two runs differ are listed.
    """
    from curvcli.cli.differences import compared
    from curvcli.cli.output import STDOUT, own_stdout, write_line
    from curvcli.cli.render import render
    from curvcli.run import files

    if output in STDOUT:
        output, format = None, format or "json"
    if output is not None:
        files.check_writable(output)
        files.check_distinct({"-o": output})
    record = compared(a, b)
    if output is not None:
        files.write_file(output, record.to_json() + "\n")
    with own_stdout(needed=output is None) as stdout:
        if format == "text" or (format is None and output is None and stdout.isatty()):
            write_line(stdout, render(record, stdout))
        elif output is None:
            write_line(stdout, record.to_json())
    return 0
