"""The registry of analyses: commands, reports, schemas, pictures and Python methods follow from one row each.

The modules that a row names are imported when they are first used, so that help does not import the engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Analysis:
    """An analysis, whose parts are found by its name.

    Parameters
    ----------
    name
        The name of the command, of the schema `curv.NAME/1`, of the Python method, and of the modules with its parts:
        `curvcli.schema.NAME` (NameSettings, NameReport), `curvcli.cli.views.NAME`, `curvcli.figures.NAME`.
    summary
        A line for the list of commands.
    help
        The text of `curv NAME --help`.
    engine
        The module of `curvcli.analyses` with `run(context, settings)` and `forecast(context, settings)`.
    inputs
        The function of `curvcli.run.inputs` that reads further inputs of the analysis; None: it has none.
    watched
        Whether `curv watch` runs it on the steps of a training run.
    """

    name: str
    summary: str
    help: str
    engine: str
    inputs: str | None = None
    watched: bool = True

    @property
    def settings(self) -> type[Any]:
        """The class of the analysis's settings."""
        return self._part("curvcli.schema", f"{self.name.title()}Settings")

    @property
    def report(self) -> type[Any]:
        """The class of the analysis's reports."""
        return self._part("curvcli.schema", f"{self.name.title()}Report")

    @property
    def run(self) -> Callable[..., Any]:
        """The function `run(context, settings) -> Answer`."""
        return importlib.import_module(f"curvcli.analyses.{self.engine}").run

    @property
    def forecast(self) -> Callable[..., Any]:
        """The function `forecast(context, settings) -> (Plan, Forecast)`."""
        return importlib.import_module(f"curvcli.analyses.{self.engine}").forecast

    @property
    def view(self) -> Any:
        """The module with `view(report, width, unicode)`, the summary of a report for a terminal."""
        return importlib.import_module(f"curvcli.cli.views.{self.name}")

    @property
    def figure(self) -> Any:
        """The module with `TITLE` and `parts(reports)`, the picture of reports."""
        return importlib.import_module(f"curvcli.figures.{self.name}")

    def _part(self, package: str, attribute: str) -> Any:
        return getattr(importlib.import_module(f"{package}.{self.name}"), attribute)


ROWS = (
    Analysis(
        name="spectrum",
        summary="spectral density, both extremes, trace: how sharp is this point?",
        engine="spectrum",
        help="""[bold]curv spectrum model.ckpt[/bold]

[bold]curv spectrum model.ckpt --matrix ggn --probes 20 | jq .result.lambda_max[/bold]

The spectral density of a curvature matrix by stochastic Lanczos quadrature; both extreme eigenvalues with their
residuals; trace, Frobenius norm and the negative mass with intervals. Small matrices are diagonalised exactly.
""",
    ),
    Analysis(
        name="trace",
        summary="trace and Frobenius norm, of the whole network and of every layer",
        engine="trace",
        help="""[bold]curv trace model.ckpt[/bold]

[bold]curv trace model.ckpt --matrix fisher --rtol 0.01 | jq '.result.layers[] | [.name, .trace.value]'[/bold]

The trace of a curvature matrix, its Frobenius norm, and every layer's part of the trace, each with an interval, all
from the same products. With `--rtol` products are spent until the trace is known as precisely as that.
""",
    ),
    Analysis(
        name="diag",
        summary="the diagonal with an error for every entry, pruning saliencies; --arrays keeps it",
        engine="diag",
        help="""[bold]curv diag model.ckpt --arrays diagonal.npz[/bold]

[bold]curv diag model.ckpt --matrix ggn --prune 0.3 | jq .result.prune[/bold]

The diagonal of a curvature matrix with a standard error for every entry, by parameter path; each layer's mean and
its pruning saliencies ½ H_ii w_i². With `--prune` the weights of least saliency are zeroed, the losses compared.
""",
    ),
    Analysis(
        name="eigs",
        summary="the k extreme eigenpairs with residuals; --vectors keeps the vectors",
        engine="eigs",
        help="""[bold]curv eigs model.ckpt -k 20[/bold]

[bold]curv eigs model.ckpt --which both --vectors pairs.npz | jq '.result.eigenvalues[].value'[/bold]

The k extreme eigenvalues of a curvature matrix with their true residuals, equal ones as often as they occur; the
eigenvectors by parameter path; how much of the gradient lies in their span.
""",
    ),
    Analysis(
        name="saddle",
        summary="what kind of point is this, and what does gradient descent do here?",
        engine="saddle.analysis",
        inputs="adam",
        help="""[bold]curv saddle model.ckpt --learning-rate 0.1[/bold]

[bold]curv saddle model.ckpt --escape moved.ckpt | jq '.result.classification'[/bold]

Minimum or saddle? The extreme eigenvalues of the Hessian, a bound on negative curvature that was not found, a
certificate of one that was, how many eigenvalues are negative and near zero; and what gradient descent, or Adam,
does here.
""",
    ),
    Analysis(
        name="direction",
        summary="curvature and loss profile along the gradient, a Newton step, another checkpoint, …",
        engine="lines.direction",
        inputs="lines",
        help="""[bold]curv direction model.ckpt --along gradient --along newton[/bold]

[bold]curv direction run/step_9 --along checkpoint:run/step_5 --range -0.5:1.5 | jq .result.profile[/bold]

Slope, curvature and third derivative of the loss along a vector, how far it moves the outputs, and the true loss
along it beside its quadratic model, with the radius within which the model holds.
""",
    ),
    Analysis(
        name="landscape",
        summary="the loss on a line or a plane against its quadratic model; barrier between checkpoints",
        engine="lines.landscape",
        inputs="lines",
        help="""[bold]curv landscape model.ckpt --along filter-normalized --along filter-normalized[/bold]

[bold]curv landscape run --step 9 --along checkpoint:run@5 | jq .result.barrier[/bold]

The true loss and its quadratic model on a plane through the weights, or on the line to another checkpoint with the
height of the barrier between.
""",
    ),
    Analysis(
        name="influence",
        summary="which training examples, labels and inputs drive a prediction; which labels look wrong",
        engine="influence.analysis",
        inputs="influence",
        help="""[bold]curv influence model.ckpt --remove --queries 0:10[/bold]

[bold]curv influence --label-perturb | jq '.result.top[0].highest'[/bold]

Which training examples, labels and inputs drive a prediction: the response of each query to each of them, from one
solve a query and one pass over the data. Without --queries every example is asked about itself, which finds the
labels that the fit leans on. --perturb and --hyper go the other way: one change, all predictions.
""",
    ),
    Analysis(
        name="step",
        summary="a Newton, Gauss-Newton, natural, K-FAC or Hessian-free step, previewed and judged",
        engine="step.analysis",
        inputs="step",
        help="""[bold]curv step model.ckpt --method kfac --damping 1e-3 | jq .result.reduction_ratio[/bold]

[bold]curv step model.ckpt --method gauss-newton --steps 10 --save moved.ckpt[/bold]

A second-order step at these weights, before it is made: how long it is, how far it moves weights and outputs, what
its quadratic model predicts and what the loss does, and the damping to go on with. --steps makes several of them.
""",
    ),
    Analysis(
        name="compare",
        summary="Hessian, GGN, Fisher, empirical Fisher, K-FAC, E-KFAC and diagonal side by side; --laplace",
        engine="compare.analysis",
        help="""[bold]curv compare model.ckpt[/bold]

[bold]curv compare model.ckpt --matrices ggn,kfac,ekfac --laplace kfac | jq .result.laplace.log_evidence[/bold]

Hessian, Gauss-Newton, Fisher, empirical Fisher, K-FAC, E-KFAC and diagonal at one point: how far they are apart,
their traces and top eigenvalues, how far their top eigenspaces agree, and the angles between the damped steps that
they would take. With --laplace also the log evidence and the variances of the outputs.
""",
    ),
    Analysis(
        name="inspect",
        summary="what curv sees: parameters, data, loss, gradient norm, self-checks, cost",
        engine="inspect",
        inputs="network",
        watched=False,
        help="""[bold]curv inspect model.ckpt[/bold]

What curv sees: parameters by layer, data, loss and gradient norm, whether the self-checks pass, and what
`curv spectrum` with the same options would cost.
""",
    ),
)

ANALYSES = {row.name: row for row in ROWS}
"""The analyses by name, in the order of the help."""


def schemas() -> dict[str, type[Any]]:
    """Return every schema by the name that `curv schema NAME` takes."""
    from curvcli.schema.diff import DiffRecord
    from curvcli.schema.doctor import DoctorRecord
    from curvcli.schema.inspect import ForecastRecord
    from curvcli.schema.report import ErrorRecord
    from curvcli.schema.spec import ProblemSpec

    records = {"diff": DiffRecord, "doctor": DoctorRecord, "forecast": ForecastRecord, "error": ErrorRecord}
    return {**{name: row.report for name, row in ANALYSES.items()}, **records, "curv.toml": ProblemSpec}
