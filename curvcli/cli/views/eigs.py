"""The view of `curv eigs`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, failed, header, number, spent
from curvcli.cli.plot_text import bar
from curvcli.schema.eigs import Eigenpair, EigsReport

SHOWN = 20
"""Maximum number of eigenvalues shown, half of them from either end of the list."""


COVERS_ALL_EXAMPLES = False
"""Whether every number of the headline says whether it is of all examples."""


def view(report: EigsReport, width: int, unicode: bool) -> list[Part]:
    """Return the eigenvalues with their residuals and the gradient's share, as many as fit on one screen."""
    result, cost = report.result, report.cost
    pairs = result.eigenvalues
    converged = sum(pair.converged for pair in pairs)
    convergence = "all converged" if converged == len(pairs) else f"{converged} of {len(pairs)} converged"
    headline = f"{_request(report)} of {report.matrix}: {number(pairs[0].value)}"
    headline += f" to {number(pairs[-1].value)}; {convergence}" if len(pairs) > 1 else f"; {convergence}"
    parts = [Text(headline, style="bold"), header(report), *failed(report), Text("")]
    parts += [_table(pairs, min(width - 50, 40), unicode), Text("")]
    if result.gradient_overlap is not None:
        parts.append(Text(f"{result.gradient_overlap:.2%} of the squared gradient lies in the span of these vectors"))
    if result.vectors is not None:
        parts.append(Text(f"vectors in {result.vectors}"))
    how = "all eigenvalues, exact" if result.method == "dense" else f"block Lanczos, {result.restarts} restarts"
    foot = f"{how} · {spent(cost)}"
    return [*parts, Text(foot, style="dim")]


def _beside(pair: Eigenpair, largest: float, room: int, unicode: bool) -> str:
    if not pair.converged:
        return "not converged"
    return bar(pair.value, largest, width=room, unicode=unicode) if room > 4 else ""


def _request(report: EigsReport) -> str:
    """Return a text like `10 largest eigenvalues`."""
    which = {"both": "extreme", "magnitude": "largest (by magnitude)"}.get(report.result.which, report.result.which)
    count = len(report.result.eigenvalues)
    return f"{count} {which} eigenvalue{'s' if count > 1 else ''}"


def _table(pairs: list[Eigenpair], room: int, unicode: bool) -> Table:
    """Return a table with a row for each pair, and a bar where there is room; long lists lack the middle."""
    largest = max(abs(pair.value) for pair in pairs)
    errors = any(pair.data_stderr is not None for pair in pairs)
    overlaps = any(pair.gradient_cosine_squared is not None for pair in pairs)
    table = Table.grid(padding=(0, 2))
    names = ["", "eigenvalue", "residual", *["all examples"] * errors, *["of ‖∇J‖²"] * overlaps, ""]
    table.add_row(*(Text(name, style="dim", justify="right") for name in names))
    for index, pair in enumerate(pairs):
        if len(pairs) > SHOWN and SHOWN // 2 <= index < len(pairs) - SHOWN // 2:
            if index == SHOWN // 2:
                table.add_row(Text("…", justify="right"), Text(f"{len(pairs) - SHOWN} more", justify="right"))
            continue
        cells = [str(index + 1), f"{pair.value:.7g}", f"{pair.residual:.1e}"]
        if errors:
            low, high = pair.interval
            cells.append("–" if pair.data_stderr is None else f"[{low:.3g}, {high:.3g}]")
        if overlaps:
            share = pair.gradient_cosine_squared
            cells.append("–" if share is None else f"{share:.2%}")
        table.add_row(*(Text(cell, justify="right") for cell in cells), Text(_beside(pair, largest, room, unicode)))
    return table
