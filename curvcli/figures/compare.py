"""The picture of `curv compare`: matrices side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from curvcli.figures.naming import labels, matrix, number
from curvcli.figures.picture import Axis, Mesh, Panel, Series, Table, beside
from curvcli.schema.compare import CompareReport, CompareResult, StepAngles

TITLE = "Matrices compared"
COVERS_ALL_EXAMPLES = False
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = False
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = False
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""


def parts(reports: Sequence[CompareReport]) -> list[Panel | Table]:
    """Return the panels: distances, top eigenvalues, eigenspaces, traces, angles between steps."""
    panels: list[Panel | Table] = []
    for report, name in zip(reports, labels(reports), strict=True):
        of = f" ({name})" if name else ""
        result = report.result
        panels += [_distances(result, of), _alignment(result, of), _top(result, of), _overlaps(result, of)]
        panels.append(_traces(result, of))
        if result.step_angles is not None and result.step_angles.pairs:
            panels.append(_steps(result.step_angles, of))
    return panels


def _table(
    names: Sequence[str], cells: dict[tuple[str, str], float], diagonal: float | None
) -> list[list[float | None]]:
    return [[diagonal if a == b else cells.get((a, b)) for b in names] for a in names]


def _cell_texts(rows: list[list[float | None]]) -> list[list[str]]:
    return [["" if one is None else f"{one:.3g}" for one in row] for row in rows]


def _grid(
    title: str,
    words: str,
    names: Sequence[str],
    rows: list[list[float | None]],
    label: str,
    labels: tuple[str, str],
    scale: Literal["linear", "log"] = "linear",
) -> Panel:
    labelled = [matrix(name) for name in names]
    places = list(range(len(names)))
    signed = any(value is not None and value < 0 for row in rows for value in row)
    return Panel(
        title, words, Axis(labels[1], names=labelled), Axis(labels[0], names=labelled),
        mesh=Mesh(places, places, rows, label, "diverging" if signed else scale, written=_cell_texts(rows)),
    )  # fmt: skip


def _distances(result: CompareResult, of: str) -> Panel:
    cells = {}
    for distance in result.distances:
        if distance.relative_to_a is not None:
            cells[distance.a, distance.b] = distance.relative_to_a.value
        if distance.relative_to_b is not None:
            cells[distance.b, distance.a] = distance.relative_to_b.value
    return _grid(
        f"Relative distances{of}", "‖A − B‖_F/‖A‖_F, A by row and B by column. The report has their intervals.",
        result.matrices, _table(result.matrices, cells, None), "‖A − B‖/‖A‖", ("A", "B"), scale="log",
    )  # fmt: skip


def _alignment(result: CompareResult, of: str) -> Panel:
    cells = {}
    for one in result.distances:
        if one.alignment is not None:
            cells[one.a, one.b] = cells[one.b, one.a] = one.alignment.value
    return _grid(
        f"Alignment{of}", "⟨A, B⟩/(‖A‖ ‖B‖), the cosine of the matrices' angle: 1 where they differ by a factor.",
        result.matrices, _table(result.matrices, cells, 1.0), "cosine", ("A", "B"),
    )  # fmt: skip


def _top(result: CompareResult, of: str) -> Panel:
    series = [
        Series(
            matrix(name), list(range(1, len(pairs) + 1)), [pair.value for pair in pairs], "line", colour=colour,
            low=[pair.value - pair.residual for pair in pairs], high=[pair.value + pair.residual for pair in pairs],
        )
        for colour, (name, pairs) in enumerate(result.top_eigenvalues.items())
    ]  # fmt: skip
    values = [value for curve in series for value in [*curve.y, *(curve.low or [])] if value is not None]
    return Panel(
        f"Top eigenvalues{of}", "The largest eigenvalues of each matrix with their residuals.",
        Axis("rank", whole=True), Axis("eigenvalue", ("log", "linear") if values and min(values) > 0 else ("linear",)),
        series,
    )  # fmt: skip


def _overlaps(result: CompareResult, of: str) -> Panel:
    reference = result.matrices[0]
    chosen = [overlap for overlap in result.overlaps if reference in (overlap.a, overlap.b)]
    series = [
        Series(
            matrix(overlap.b if overlap.a == reference else overlap.a),
            list(range(1, len(overlap.subspaces) + 1)),
            overlap.subspaces,
            "line",
            colour=colour,
        )
        for colour, overlap in enumerate(chosen, 1)
    ]
    return Panel(
        f"Top eigenspaces against those of the {matrix(reference)}{of}",
        "The mean squared cosine between the spans of the top j eigenvectors; a gap where a span is not determined.",
        Axis("j", whole=True), Axis("overlap", limits=(-0.03, 1.03)), series,
    )  # fmt: skip


def _traces(result: CompareResult, of: str) -> Panel:
    names = list(result.traces)
    series = [
        Series(
            label,
            [index + beside(position, 2) for index in range(len(names))],
            [estimates[name].value for name in names],
            "bars",
            low=[estimates[name].interval[0] for name in names],
            high=[estimates[name].interval[1] for name in names],
        )
        for position, (label, estimates) in enumerate(
            (("trace", result.traces), ("Frobenius norm", result.frobenius_norms))
        )
    ]
    return Panel(
        f"Traces and norms{of}", "Trace and Frobenius norm of each matrix with their intervals.",
        Axis("", names=[matrix(name) for name in names]), Axis("trace, ‖A‖_F"), series, sideways=True,
    )  # fmt: skip


def _steps(found: StepAngles, of: str) -> Panel:
    names = list(dict.fromkeys(itertools.chain.from_iterable((one.a, one.b) for one in found.pairs)))
    cells = {}
    for one in found.pairs:
        cells[one.a, one.b] = cells[one.b, one.a] = one.cosine
    return _grid(
        f"Angles between damped steps{of}",
        f"The cosine between the steps −(A + λI)⁻¹∇J, λ = {number(found.damping)}.",
        names, _table(names, cells, 1.0), "cosine", ("step of", "step of"),
    )  # fmt: skip
