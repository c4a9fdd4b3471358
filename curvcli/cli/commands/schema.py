"""The command `curv schema`."""

from __future__ import annotations

from typing import Annotated

import typer


def schema(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="a report's name, `error` or `curv.toml`")] = None,
) -> int:
    """[bold]curv schema spectrum[/bold]

    Prints the JSON Schema of a report, of an error record, or of curv.toml. Without NAME: the list of names.
    """
    import json

    from curvcli.cli import output
    from curvcli.errors import UsageError
    from curvcli.registry import schemas

    models = schemas()
    if name is None:
        text = "\n".join(models)
    elif name not in models:
        raise UsageError(f"no schema {name!r}", f"the names are: {', '.join(models)}")
    else:
        document = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **models[name].model_json_schema(),
        }
        text = json.dumps(document, indent=2)
    with output.own_stdout() as stdout:
        output.write_line(stdout, text)
    return 0
