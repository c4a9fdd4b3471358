"""`curv influence`."""

from __future__ import annotations

from functools import partial

from curvcli.cli.options import Request, analysis
from curvcli.schema.influence import InfluenceReport, InfluenceSettings


@analysis(InfluenceSettings)
def influence(request: Request) -> int:
    """[bold]curv influence model.ckpt --remove --queries 0:10[/bold]

    [bold]curv influence --label-perturb | jq '.result.top[0].highest'[/bold]

    Which training examples, labels and inputs drive a prediction: the response of each query to each of them, from one
    solve a query and one pass over the data. Without --queries every example is asked about itself, which finds the
    labels that the fit leans on. --perturb and --hyper go the other way: one change, all predictions.
    """
    from curvcli.cli.execute import execute, forecast
    from curvcli.run.inputs import analyse, given_influence

    if request.output["dry_run"]:
        from curvcli.analyses.influence.analysis import forecast as forecast_influence

        return forecast(request, forecast_influence, given_influence)

    return execute(request, InfluenceReport, partial(analyse, "influence"))
