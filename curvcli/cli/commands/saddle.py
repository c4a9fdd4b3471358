"""`curv saddle`."""

from __future__ import annotations

from functools import partial

from curvcli.cli.options import Request, analysis
from curvcli.schema.saddle import SaddleReport, SaddleSettings


@analysis(SaddleSettings)
def saddle(request: Request) -> int:
    """[bold]curv saddle model.ckpt --learning-rate 0.1[/bold]

    [bold]curv saddle model.ckpt --escape moved.ckpt | jq '.result.classification'[/bold]

    Minimum or saddle? The extreme eigenvalues of the Hessian, a bound on negative curvature that was not found, a
    certificate of one that was, how many eigenvalues are negative and near zero; and what gradient descent, or Adam,
    does here.
    """
    from curvcli.cli.execute import execute, forecast
    from curvcli.run.inputs import analyse

    if request.output["dry_run"]:
        from curvcli.analyses.saddle.analysis import forecast as forecast_saddle

        return forecast(request, forecast_saddle)

    return execute(request, SaddleReport, partial(analyse, "saddle"))
