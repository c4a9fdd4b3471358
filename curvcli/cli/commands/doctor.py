"""The command `curv doctor`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def doctor(
    format: Annotated[
        Literal["json", "text"] | None,
        typer.Option(envvar="CURV_FORMAT", show_envvar=False, help="default: text on a terminal, else json"),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="CPU threads (default: all cores)")] = None,
) -> int:
    """[bold]curv doctor --format json | jq .speed[/bold]

    Shows versions, devices, threads, cache, memory, and the speed of Hessian products, measured for a second. Include
    the output in a bug report.
    """
    from curvcli.cli import output
    from curvcli.cli.health import examined
    from curvcli.cli.render import render
    from curvcli.run.runtime import prepare_jax

    with output.own_stdout() as stdout:
        prepare_jax("float32", threads, cache=True)
        from curvcli.analyses.common import machine

        record = examined(threads, machine.sums_rightly(), machine.memory(), machine.speed())
        as_text = format == "text" or (format is None and stdout.isatty())
        output.write_line(stdout, render(record, stdout) if as_text else record.to_json())
    return 0
