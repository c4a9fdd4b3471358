"""`curv eigs`."""

from __future__ import annotations

from functools import partial

from curvcli.cli.options import Request, analysis
from curvcli.schema.eigs import EigsReport, EigsSettings


@analysis(EigsSettings)
def eigs(request: Request) -> int:
    """[bold]curv eigs model.ckpt -k 20[/bold]

    [bold]curv eigs model.ckpt --which both --vectors pairs.npz | jq '.result.eigenvalues[].value'[/bold]

    The k extreme eigenvalues of a curvature matrix with their true residuals, equal ones as often as they occur; the
    eigenvectors by parameter path; how much of the gradient lies in their span.
    """
    from curvcli.cli.execute import execute, forecast
    from curvcli.run.inputs import analyse

    if request.output["dry_run"]:
        from curvcli.analyses.eigs import forecast as forecast_eigs

        return forecast(request, forecast_eigs)

    return execute(request, EigsReport, partial(analyse, "eigs"))
