"""`curv compare`."""

from __future__ import annotations

from functools import partial

from curvcli.cli.options import Request, analysis
from curvcli.schema.compare import CompareReport, CompareSettings


@analysis(CompareSettings)
def compare(request: Request) -> int:
    """[bold]curv compare model.ckpt[/bold]

    [bold]curv compare model.ckpt --matrices ggn,kfac,ekfac --laplace kfac | jq .result.laplace.log_evidence[/bold]

    Hessian, Gauss-Newton, Fisher, empirical Fisher, K-FAC, E-KFAC and diagonal at one point: how far they are apart,
    their traces and top eigenvalues, how far their top eigenspaces agree, and the angles between the damped steps that
    they would take. With --laplace also the log evidence and the variances of the outputs.
    """
    from curvcli.cli.execute import execute, forecast
    from curvcli.run.inputs import analyse

    if request.output["dry_run"]:
        from curvcli.analyses.compare.analysis import forecast as forecast_compare

        return forecast(request, forecast_compare)

    return execute(request, CompareReport, partial(analyse, "compare"))
