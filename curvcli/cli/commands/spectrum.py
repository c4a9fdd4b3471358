"""`curv spectrum`."""

from __future__ import annotations

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

    if request.output["dry_run"]:
        from curvcli.analyses.inspect import forecast_spectrum

        return forecast(request, forecast_spectrum)

    def run(loaded, settings, watch):
        from curvcli.analyses import spectrum

        return spectrum.run(loaded.problem, settings, watch)

    return execute(request, SpectrumReport, run)
