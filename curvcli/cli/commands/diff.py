"""`curv diff`."""

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

    Two reports of one analysis, number by number: the change, where the true change lies by both intervals, and whether
    it can be chance. Settings that the two runs did not share are listed.
    """
    from curvcli.cli import output as files
    from curvcli.cli.differences import compared
    from curvcli.cli.render import render

    if output in files.STDOUT:
        output, format = None, format or "json"
    if output is not None:
        files.check_writable(output)
        files.check_distinct({"-o": output})
    record = compared(a, b)
    if output is not None:
        files.write_file(output, record.to_json() + "\n")
    with files.own_stdout(needed=output is None) as stdout:
        if format == "text" or (format is None and output is None and stdout.isatty()):
            files.write_line(stdout, render(record, stdout))
        elif output is None:
            files.write_line(stdout, record.to_json())
    return 0
