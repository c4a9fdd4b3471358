"""`curv step`."""

from __future__ import annotations

from functools import partial

from curvcli.cli.options import Request, analysis
from curvcli.schema.step import StepReport, StepSettings


@analysis(StepSettings)
def step(request: Request) -> int:
    """[bold]curv step model.ckpt --method kfac --damping 1e-3 | jq .result.reduction_ratio[/bold]

    [bold]curv step model.ckpt --method gauss-newton --steps 10 --save moved.ckpt[/bold]

    A second-order step at these weights, before it is made: how long it is, how far it moves weights and outputs, what
    its quadratic model predicts and what the loss does, and the damping to go on with. --steps makes several of them.
    """
    from curvcli.cli.execute import execute, forecast
    from curvcli.run.inputs import analyse

    if request.output["dry_run"]:
        from curvcli.analyses.step.analysis import forecast as forecast_step

        return forecast(request, forecast_step)

    return execute(request, StepReport, partial(analyse, "step"))
