"""`curv direction`."""

from __future__ import annotations

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
    from curvcli.cli.inputs import given_directions

    if request.output["dry_run"]:
        from curvcli.analyses.direction import forecast as forecast_direction

        return forecast(request, forecast_direction)

    def run(loaded, settings, watch):
        from curvcli.analyses import direction

        given, warnings = given_directions(loaded, settings)
        answer = direction.run(loaded.problem, settings, given, watch)
        answer.warnings[:0] = warnings
        return answer

    return execute(request, DirectionReport, run)
