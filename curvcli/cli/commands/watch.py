"""The command `curv watch`."""

from __future__ import annotations

from typing import Annotated

import typer


def watch(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="the root of an Orbax checkpoint manager")],
    analysis: Annotated[str, typer.Argument(metavar="[ANALYSIS]", help="the command to run on each step")] = "spectrum",
    every: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="interval between listings of DIR")] = 5.0,
    idle: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="end after this time without a new step (default: never)"),
    ] = None,
    until: Annotated[int | None, typer.Option(metavar="STEP", help="end with this step")] = None,
    new: Annotated[bool, typer.Option("--new", help="leave out the steps that exist already")] = False,
) -> int:
    """[bold]curv watch runs/7/checkpoints saddle --learning-rate 0.01 --until 5000 >> saddle.jsonl[/bold]

    [bold]curv watch runs/7/checkpoints --matrix ggn | jq -c '.problem.checkpoint.step, .result.lambda_max.value'[/bold]

    Analyses each step of a training run as it is written, with one JSON line a step and programs compiled once. Other
    arguments are passed to the analysis. A step that Orbax has not committed is ignored.
    """
    from curvcli.cli.following import Following
    from curvcli.cli.main import build_app
    from curvcli.errors import UsageError
    from curvcli.registry import ANALYSES

    extra = list(context.args)
    if analysis.startswith("-"):  # an option of the analysis, which has taken its place
        extra, analysis = [analysis, *extra], "spectrum"
    watched = [name for name, row in ANALYSES.items() if row.watched]
    if analysis not in watched:
        raise UsageError(f"{analysis!r} is no analysis of checkpoints", f"one of: {', '.join(watched)}")
    line = [analysis, folder, "--all-steps", *extra]
    following = Following(every, idle, until, new)
    return build_app(analysis)(line, prog_name="curv", standalone_mode=False, obj=following)
