"""`curv spectrum`."""

from __future__ import annotations

from functools import partial

from curvcli.cli.options import Request, analysis
from curvcli.schema.spectrum import SpectrumReport, SpectrumSettings


@analysis(SpectrumSettings)
def spectrum(request: Request) -> int:
    """[bold]curv spectrum model.ckpt[/bold]

    [bold]curv spectrum model.ckpt --matrix ggn --probes 20 | jq .result.lambda_max[/bold]

    The spectral density of a curvature matrix by stochastic Lanczos quadrature; both extreme eigenvalues with their
    residuals; trace, Frobenius norm and the negative mass with intervals. Small matrices are diagonalised exactly.
    """
    from curvcli.cli.execute import execute, forecast
    from curvcli.run.inputs import analyse

    if request.output["dry_run"]:
        from curvcli.analyses.inspect import forecast_spectrum

        return forecast(request, forecast_spectrum)

    return execute(request, SpectrumReport, partial(analyse, "spectrum"))
