"""`curv trace`."""

from __future__ import annotations

from functools import partial

from curvcli.cli.options import Request, analysis
from curvcli.schema.trace import TraceReport, TraceSettings


@analysis(TraceSettings)
def trace(request: Request) -> int:
    """[bold]curv trace model.ckpt[/bold]

    [bold]curv trace model.ckpt --matrix fisher --rtol 0.01 | jq '.result.layers[] | [.name, .trace.value]'[/bold]

    The trace of a curvature matrix, its Frobenius norm, and every layer's part of the trace, each with an interval, all
    from the same products. With `--rtol` products are spent until the trace is known as precisely as that.
    """
    from curvcli.cli.execute import execute, forecast
    from curvcli.run.inputs import analyse

    if request.output["dry_run"]:
        from curvcli.analyses.trace import forecast_trace

        return forecast(request, forecast_trace)

    return execute(request, TraceReport, partial(analyse, "trace"))
