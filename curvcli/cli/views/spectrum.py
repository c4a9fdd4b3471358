"""The view of `curv spectrum`."""

from __future__ import annotations

from rich.text import Text

from curvcli.cli.format import Part, eigenvalue, estimate, failed, fraction, header, number, spent, stable_rate, table
from curvcli.cli.plot_text import density_plot
from curvcli.schema.matrices import MATRICES
from curvcli.schema.spectrum import SpectrumReport

COVERS_ALL_EXAMPLES = True
"""Whether every number of the headline says whether it is of all examples."""


def view(report: SpectrumReport, width: int, unicode: bool) -> list[Part]:
    """Return sharpness, both extremes, trace and masses, and a plot of the density."""
    result = report.result
    high, low, scope = result.lambda_max, result.lambda_min, report.problem.data.scope
    own_hessian = MATRICES[report.matrix or "hessian"].own_hessian
    kind = "Sharpness: " if own_hessian and high.value > 0 else ""
    if not high.converged:
        headline = f"{kind}λ_max has not converged; it is at least {number(high.value)}"
        headline += f" ({scope})" if scope else ""
    else:
        headline = f"{kind}λ_max {eigenvalue(high, scope)}{'' if high.value > 0 else ': no positive curvature'}"
    all_parameters = not (report.settings.params or report.settings.exclude)
    rate = stable_rate(result, high)
    if rate is not None and own_hessian and all_parameters:
        headline += f"; gradient descent is stable to lr {rate}"
    rows = [
        ("λ_max", eigenvalue(high, scope)),
        ("λ_min", eigenvalue(low, scope)),
        ("trace", estimate(result.trace, scope)),
        ("Frobenius norm", estimate(result.frobenius_norm, scope)),
        ("2/λ_max", rate or "none"),
        (f"eigenvalues < −{result.near_zero_tolerance:.1g}", fraction(result.negative_mass, scope)),
        (f"within ±{result.near_zero_tolerance:.1g}", fraction(result.near_zero_mass, scope)),
    ]
    cost = report.cost
    method = {
        "dense": "all eigenvalues, exact",
        "hutchinson": "Lanczos quadrature",
        "xtrace": "deflated Lanczos quadrature",
    }
    foot = f"{method[result.method]} · {spent(cost)}"
    plot = density_plot(result.density, result.dim, width=min(width, 100), height=9, unicode=unicode)
    title = f"{report.matrix}: eigenvalues per unit, logarithmic{f', {scope}' if scope else ''}"
    return [
        Text(headline, style="bold"), header(report), *failed(report), Text(""), table(rows), Text(""),
        Text(title), Text(plot), Text(foot, style="dim"),
    ]  # fmt: skip
