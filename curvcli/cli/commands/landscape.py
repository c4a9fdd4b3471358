"""`curv landscape`."""

from __future__ import annotations

from functools import partial

from curvcli.cli.options import Request, analysis
from curvcli.schema.landscape import LandscapeReport, LandscapeSettings


@analysis(LandscapeSettings)
def landscape(request: Request) -> int:
    """[bold]curv landscape model.ckpt --along filter-normalized --along filter-normalized[/bold]

    [bold]curv landscape run --step 9 --along checkpoint:run@5 | jq .result.barrier[/bold]

    The true loss and its quadratic model on a plane through the weights, or on the line to another checkpoint with the
    height of the barrier between.
    """
    from curvcli.cli.execute import execute, forecast
    from curvcli.run.inputs import analyse

    if request.output["dry_run"]:
        from curvcli.analyses.lines.landscape import forecast as forecast_landscape

        return forecast(request, forecast_landscape)

    return execute(request, LandscapeReport, partial(analyse, "landscape"))
