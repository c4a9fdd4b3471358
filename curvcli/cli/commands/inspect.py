"""`curv inspect`."""

from __future__ import annotations

from curvcli.cli.options import Request, analysis
from curvcli.schema.inspect import InspectReport, InspectSettings


@analysis(InspectSettings)
def inspect(request: Request) -> int:
    """[bold]curv inspect model.ckpt[/bold]

    What curv sees: parameters by layer, data, loss and gradient norm, whether the self-checks pass, and what
    `curv spectrum` with the same options would cost.
    """
    from curvcli.cli.execute import execute, forecast

    if request.output["dry_run"]:
        from curvcli.analyses.inspect import forecast_spectrum

        return forecast(request, forecast_spectrum)

    def run(loaded, settings, watch):
        from curvcli.analyses import inspect

        return inspect.run(loaded.problem, settings, loaded.outputs, loaded.stored_dtypes)

    return execute(request, InspectReport, run)
