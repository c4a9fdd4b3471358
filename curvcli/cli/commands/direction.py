"""`curv direction`."""

from __future__ import annotations

from functools import partial

from curvcli.cli.options import Request, analysis
from curvcli.schema.direction import DirectionReport, DirectionSettings


@analysis(DirectionSettings)
def direction(request: Request) -> int:
    """[bold]curv direction model.ckpt --along gradient --along newton[/bold]

    [bold]curv direction run/step_9 --along checkpoint:run/step_5 --range -0.5:1.5 | jq .result.profile[/bold]

    Slope, curvature and third derivative of the loss along a vector, how far it moves the outputs, and the true loss
    along it beside its quadratic model, with the radius within which the model holds.
    """
    from curvcli.cli.execute import execute, forecast
    from curvcli.run.inputs import analyse

    if request.output["dry_run"]:
        from curvcli.analyses.lines.direction import forecast as forecast_direction

        return forecast(request, forecast_direction)

    return execute(request, DirectionReport, partial(analyse, "direction"))
