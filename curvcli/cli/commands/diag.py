"""`curv diag`."""

from __future__ import annotations

from functools import partial

from curvcli.cli.options import Request, analysis
from curvcli.schema.diag import DiagReport, DiagSettings


@analysis(DiagSettings)
def diag(request: Request) -> int:
    """[bold]curv diag model.ckpt --arrays diagonal.npz[/bold]

    [bold]curv diag model.ckpt --matrix ggn --prune 0.3 | jq .result.prune[/bold]

    The diagonal of a curvature matrix with a standard error for every entry, by parameter path; each layer's mean and
    its pruning saliencies ½ H_ii w_i². With `--prune` the weights of least saliency are zeroed, the losses compared.
    """
    from curvcli.cli.execute import execute, forecast
    from curvcli.run.inputs import analyse

    if request.output["dry_run"]:
        from curvcli.analyses.diag import forecast as forecast_diag

        return forecast(request, forecast_diag)

    return execute(request, DiagReport, partial(analyse, "diag"))
