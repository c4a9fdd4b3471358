"""The command `curv trust`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def trust(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="a curv.toml, or a checkpoint with one beside it or in its metadata")
    ],
    revoke: Annotated[bool, typer.Option("--revoke", help="no longer allow it")] = False,
) -> int:
    """[bold]curv trust downloads/resnet/curv.toml[/bold]

    Allows the code that a curv.toml names to run. A digest of the file and of the files with the code is stored: after
    a change of any of them the code must be trusted again. Modules that this code imports are not part of the digest.
    A curv.toml given to --spec, and code named on the command line, need no trust.
    """
    from curvcli.cli import output
    from curvcli.cli.problem import named_specification
    from curvcli.run.trust import code_of
    from curvcli.run.trust import revoke as forget
    from curvcli.run.trust import trust as remember

    specification = named_specification(file)
    if revoke:
        lines = [f"{specification.origin}: {'no longer trusted' if forget(specification) else 'was not trusted'}"]
    else:
        code = code_of(specification)
        remember(specification)
        files = [f"  {item.setting}: {item.target} ({_places(item.files)})" for item in code]
        lines = [f"{specification.origin}: {'trusted' if code else 'trusted; it names no code'}", *files]
    with output.own_stdout() as stdout:
        for line in lines:
            output.write_line(stdout, line)
    return 0


def _places(files: tuple[Path, ...]) -> str:
    """Name the files of a target."""
    return ", ".join(map(str, files)) or "a module outside of its folder"
