"""The picture of `curv influence`: examples with their inputs, responses to labels, refits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from curvcli.figures.naming import labels, number
from curvcli.figures.picture import Axis, Image, Mesh, Panel, Rule, Series, Table
from curvcli.schema.influence import Entry, InfluenceReport, InfluenceResult, Ranking
from curvcli.schema.verification import Verification

TITLE = "Influence"
COVERS_ALL_EXAMPLES = False
"""Whether all that is drawn has its interval for all examples, where a part was used."""

NAMES_MATRIX = True
"""Whether the title names the matrix of the reports."""

SHOWS_IMAGES = True
"""Whether inputs that are images are shown: those that `wanted_images(report)` names."""
MOST_QUERIES, MOST_ENTRIES, MOST_ROWS = 8, 6, 12

Images = Mapping[tuple[str, int], Image]
"""Inputs by source (`data` or `test`) and row."""


def wanted_images(report: InfluenceReport) -> list[tuple[str, int]]:
    """Return the source and row of the inputs that the tables show."""
    result = report.result
    places = []
    for ranking in result.top[:MOST_QUERIES]:
        if ranking.query is not None and result.target is not None:
            places.append((result.target.source, ranking.query))
        places += [("data", entry.example) for entry, _ in _entries(ranking)]
    return list(dict.fromkeys(places))


def parts(reports: Sequence[InfluenceReport], images: Images | None = None) -> list[Panel | Table]:
    """Return tables of the most influential examples, label responses, self-influence, groups, damping, refits."""
    made: list[Panel | Table] = []
    for report, name in zip(reports, labels(reports), strict=True):
        result, of = report.result, f" ({name})" if name else ""
        made += [_ranked(result, ranking, images or {}, of) for ranking in result.top[:MOST_QUERIES]]
        made += _label_matrices(result, of)
        made += _beside(result, of)
    return made


def _entries(ranking: Ranking) -> list[tuple[Entry, str]]:
    return [(entry, "highest") for entry in ranking.highest[:MOST_ENTRIES]] + [
        (entry, "lowest") for entry in ranking.lowest[:MOST_ENTRIES]
    ]


def _ranked(result: InfluenceResult, ranking: Ranking, images: Images, of: str) -> Table:
    entries = _entries(ranking)
    moved = any(entry.label is not None for entry, _ in entries)
    rows, pictures = [], []
    if ranking.query is not None and result.target is not None:
        source = result.target.source
        rows.append(["the query", f"{source} {ranking.query}", *([""] if moved else []), ""])
        pictures.append(images.get((source, ranking.query)))
    for entry, end in entries:
        error = f" in [{entry.interval[0]:.2g}, {entry.interval[1]:.2g}]" if entry.interval else ""
        token = "" if entry.token is None else f", token {entry.token}"
        to = [f"{entry.label} → {entry.towards}"] if entry.label is not None else [""] if moved else []
        rows.append([end, f"data {entry.example}{token}", *to, f"{entry.score:+.4g}{error}"])
        pictures.append(images.get(("data", entry.example)))
    title = "Every example on itself" if ranking.query is None else f"Query {ranking.query}"
    title += "" if ranking.output is None else f", output {ranking.output}"
    return Table(
        title + of, f"Scores are {result.units}; {result.sign}. λ = {number(result.damping)}, solver {result.solver}; "
        f"{result.validity.words}",
        ["", "example", *(["label"] if moved else []), "score"], rows, pictures if any(pictures) else (),
    )  # fmt: skip


def _label_matrices(result: InfluenceResult, of: str) -> list[Panel]:
    """Return panels of each query's response to the labels of its most influential examples."""
    scores: Any = result.scores
    if result.mode != "label-perturb" or not isinstance(scores, list) or "class" not in " ".join(result.axes):
        return []
    rank = len(result.shape or [])
    queries = scores if rank == 3 else [scores] if rank == 2 else []
    panels = []
    first = result.target.rows[0] if result.target is not None else 0
    for index, rows in enumerate(queries[:MOST_QUERIES]):
        sizes = [math.hypot(*row) for row in rows]
        top = sorted(sorted(range(len(rows)), key=lambda n: -sizes[n])[:MOST_ROWS])
        title = f"Query {first + index}" if result.target is not None else "Every example on itself"
        panels.append(
            Panel(
                f"{title}: response to labels{of}",
                f"How the query's {result.target.measure if result.target else 'loss'} responds to each class of the "
                "labels of the examples that matter most to it.",
                Axis("class", names=[str(label) for label in range(len(rows[0]))]),
                Axis("example", names=[str(example) for example in top]),
                mesh=Mesh(list(range(len(rows[0]))), list(range(len(top))), [rows[n] for n in top], "response",
                          "diverging"),
            )
        )  # fmt: skip
    return panels


def _beside(result: InfluenceResult, of: str) -> list[Panel | Table]:
    panels: list[Panel | Table] = []
    if result.verification is not None:
        panels.append(_refits(result.verification, of))
    if result.sweep:
        at = [point.damping for point in result.sweep]
        positive = min(at) > 0
        panels.append(
            Panel(
                f"The ranking at other dampings{of}",
                f"Rank correlation with the ranking at λ = {number(result.damping)}, and the share of the top examples "
                "that stays on top.",
                Axis("damping λ", ("log", "linear") if positive else ("linear",)), Axis("agreement"),
                [Series("rank correlation", at, [point.spearman for point in result.sweep], "line"),
                 Series("top examples that stay", at, [point.top_overlap for point in result.sweep], "line")],
                [Rule(result.damping, "chosen")] if result.damping > 0 or not positive else [],
            )
        )  # fmt: skip
    if result.groups:
        panels.append(_groups(result, of))
    rows = [
        [baseline.name, number(baseline.spearman), "–" if baseline.auc is None else
         f"{baseline.auc.value:.3f} in [{baseline.auc.interval[0]:.3f}, {baseline.auc.interval[1]:.3f}]",
         ", ".join(map(str, baseline.top[:8]))]
        for baseline in result.baselines
    ]  # fmt: skip
    if rows:
        panels.append(
            Table(f"Rankings beside it{of}", "Rankings that cost no solve: their rank correlation with influence, and "
                  "how well each finds wrong labels, where the data say which are.",
                  ["ranking", "rank correlation", "AUC of wrong labels", "first examples"], rows)
        )  # fmt: skip
    for response in result.responses or []:
        names = list(response.layers)
        panels.append(
            Panel(
                f"How the weights respond to {response.name}{of}",
                f"‖dw‖ of each layer; of all weights it is {number(response.norm)}.",
                Axis("", names=names),
                Axis("‖dw‖"),
                [Series("‖dw‖", list(range(len(names))), [response.layers[key] for key in names], "bars")],
                sideways=True,
            )
        )
    return panels


def _groups(result: InfluenceResult, of: str) -> Panel:
    """Return the panel of each group's largest effect, to first order and by a Newton step."""
    groups = sorted(result.groups or [], key=lambda group: -max(map(abs, group.newton)))[:MOST_ROWS]
    largest = [max(range(len(group.newton)), key=lambda i, group=group: abs(group.newton[i])) for group in groups]
    at = list(range(len(groups)))
    return Panel(
        f"Groups removed as a whole{of}",
        "The effect on the query that each group moves most: the sum of its examples' scores, and a Newton step "
        "without the group.",
        Axis("", names=[f"{group.name} ({group.size})" for group in groups]), Axis("change of the measure"),
        [Series("first order", [x - 0.2 for x in at], [g.first_order[i] for g, i in zip(groups, largest, strict=True)],
                "bars"),
         Series("Newton's step", [x + 0.2 for x in at], [g.newton[i] for g, i in zip(groups, largest, strict=True)],
                "bars")],
        sideways=True,
    )  # fmt: skip


def _refits(verification: Verification, of: str) -> Panel:
    """Return the panel of predicted and actual changes."""
    pairs = [
        (forecast, refit, f"example {example}")
        for example, predicted, actual in zip(
            verification.examples, verification.predicted, verification.actual, strict=False
        )
        for forecast, refit in zip(predicted, actual, strict=True)
    ]
    agreement = [
        f"{name} {estimate.value:.3f} in [{estimate.interval[0]:.3f}, {estimate.interval[1]:.3f}]"
        for name, estimate in (("correlation", verification.pearson), ("slope", verification.slope))
        if estimate is not None
    ]
    ends = [min(change for change, _, _ in pairs), max(change for change, _, _ in pairs)] if pairs else [0.0, 1.0]
    return Panel(
        f"Predicted and refitted{of}",
        f"What influence predicts beside what refits show, for {len(verification.examples)} examples: "
        f"{', '.join(agreement)}. On "
        "the dashed line both agree.",
        Axis("predicted change"),
        Axis("change after the refit"),
        [
            Series(
                "refits",
                [change for change, _, _ in pairs],
                [change for _, change, _ in pairs],
                "points",
                notes=[note for _, _, note in pairs],
            ),
            Series("agreement", ends, ends, "dashed"),
        ],
    )
