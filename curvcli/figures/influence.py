"""Who drives what: examples with their inputs, responses to labels, refits."""

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
"""Inputs by where they stand: (`data` or `test`, row)."""


def wanted_images(report: InfluenceReport) -> list[tuple[str, int]]:
    """Whose inputs the tables would show."""
    result = report.result
    found = []
    for ranking in result.top[:MOST_QUERIES]:
        if ranking.query is not None and result.target is not None:
            found.append((result.target.source, ranking.query))
        found += [("data", one.example) for one, _ in _entries(ranking)]
    return list(dict.fromkeys(found))


def parts(reports: Sequence[InfluenceReport], images: Images | None = None) -> list[Panel | Table]:
    """Tables of the examples that matter most, label responses, self-influence, groups, damping, refits."""
    made: list[Panel | Table] = []
    for report, name in zip(reports, labels(reports), strict=True):
        result, of = report.result, f" ({name})" if name else ""
        made += [_ranked(result, ranking, images or {}, of) for ranking in result.top[:MOST_QUERIES]]
        made += _label_matrices(result, of)
        made += _beside(result, of)
    return made


def _entries(ranking: Ranking) -> list[tuple[Entry, str]]:
    return [(one, "highest") for one in ranking.highest[:MOST_ENTRIES]] + [
        (one, "lowest") for one in ranking.lowest[:MOST_ENTRIES]
    ]


def _ranked(result: InfluenceResult, ranking: Ranking, images: Images, of: str) -> Table:
    entries = _entries(ranking)
    moved = any(one.label is not None for one, _ in entries)
    rows, shown = [], []
    if ranking.query is not None and result.target is not None:
        source = result.target.source
        rows.append(["the query", f"{source} {ranking.query}", *([""] if moved else []), ""])
        shown.append(images.get((source, ranking.query)))
    for one, end in entries:
        error = f" in [{one.interval[0]:.2g}, {one.interval[1]:.2g}]" if one.interval else ""
        token = "" if one.token is None else f", token {one.token}"
        to = [f"{one.label} → {one.towards}"] if one.label is not None else [""] if moved else []
        rows.append([end, f"data {one.example}{token}", *to, f"{one.score:+.4g}{error}"])
        shown.append(images.get(("data", one.example)))
    asked = "Every example on itself" if ranking.query is None else f"Query {ranking.query}"
    asked += "" if ranking.output is None else f", output {ranking.output}"
    return Table(
        asked + of, f"Scores are {result.units}; {result.sign}. λ = {number(result.damping)}, solver {result.solver}; "
        f"{result.validity.words}",
        ["", "example", *(["label"] if moved else []), "score"], rows, shown if any(shown) else (),
    )  # fmt: skip


def _label_matrices(result: InfluenceResult, of: str) -> list[Panel]:
    """Each query's response to the labels of the examples that matter most to it."""
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
                Axis("class", names=[str(one) for one in range(len(rows[0]))]),
                Axis("example", names=[str(one) for one in top]),
                mesh=Mesh(list(range(len(rows[0]))), list(range(len(top))), [rows[n] for n in top], "response",
                          "diverging"),
            )
        )  # fmt: skip
    return panels


def _beside(result: InfluenceResult, of: str) -> list[Panel | Table]:
    made: list[Panel | Table] = []
    if result.verification is not None:
        made.append(_refits(result.verification, of))
    if result.sweep:
        at = [one.damping for one in result.sweep]
        positive = min(at) > 0
        made.append(
            Panel(
                f"The ranking at other dampings{of}",
                f"Rank correlation with the ranking at λ = {number(result.damping)}, and the share of the top examples "
                "that stays on top.",
                Axis("damping λ", ("log", "linear") if positive else ("linear",)), Axis("agreement"),
                [Series("rank correlation", at, [one.spearman for one in result.sweep], "line"),
                 Series("top examples that stay", at, [one.top_overlap for one in result.sweep], "line")],
                [Rule(result.damping, "chosen")] if result.damping > 0 or not positive else [],
            )
        )  # fmt: skip
    if result.groups:
        made.append(_groups(result, of))
    rows = [
        [one.name, number(one.spearman), "–" if one.auc is None else
         f"{one.auc.value:.3f} in [{one.auc.interval[0]:.3f}, {one.auc.interval[1]:.3f}]",
         ", ".join(map(str, one.top[:8]))]
        for one in result.baselines
    ]  # fmt: skip
    if rows:
        made.append(
            Table(f"Rankings beside it{of}", "Rankings that cost no solve: their rank correlation with influence, and "
                  "how well each finds wrong labels, where the data say which are.",
                  ["ranking", "rank correlation", "AUC of wrong labels", "first examples"], rows)
        )  # fmt: skip
    for one in result.responses or []:
        names = list(one.layers)
        made.append(
            Panel(f"How the weights respond to {one.name}{of}", f"‖dw‖ of each layer; of all weights it is "
                  f"{number(one.norm)}.", Axis("", names=names), Axis("‖dw‖"),
                  [Series("‖dw‖", list(range(len(names))), [one.layers[key] for key in names], "bars")], sideways=True)
        )  # fmt: skip
    return made


def _groups(result: InfluenceResult, of: str) -> Panel:
    """Each group's largest effect, to first order and by Newton's step."""
    groups = sorted(result.groups or [], key=lambda one: -max(map(abs, one.newton)))[:MOST_ROWS]
    largest = [max(range(len(one.newton)), key=lambda i, one=one: abs(one.newton[i])) for one in groups]
    at = list(range(len(groups)))
    return Panel(
        f"Groups removed as a whole{of}",
        "The effect on the query that each group moves most: the sum of its examples' scores, and a Newton step "
        "without the group.",
        Axis("", names=[f"{one.name} ({one.size})" for one in groups]), Axis("change of the measure"),
        [Series("first order", [x - 0.2 for x in at], [g.first_order[i] for g, i in zip(groups, largest, strict=True)],
                "bars"),
         Series("Newton's step", [x + 0.2 for x in at], [g.newton[i] for g, i in zip(groups, largest, strict=True)],
                "bars")],
        sideways=True,
    )  # fmt: skip


def _refits(found: Verification, of: str) -> Panel:
    """Predicted against actual changes."""
    pairs = [
        (one, other, f"example {example}")
        for example, predicted, actual in zip(found.examples, found.predicted, found.actual, strict=False)
        for one, other in zip(predicted, actual, strict=True)
    ]
    said = [
        f"{name} {one.value:.3f} in [{one.interval[0]:.3f}, {one.interval[1]:.3f}]"
        for name, one in (("correlation", found.pearson), ("slope", found.slope))
        if one is not None
    ]
    ends = [min(one for one, _, _ in pairs), max(one for one, _, _ in pairs)] if pairs else [0.0, 1.0]
    return Panel(
        f"Predicted and refitted{of}",
        f"What influence predicts beside what refits show, for {len(found.examples)} examples: {', '.join(said)}. On "
        "the dashed line both agree.",
        Axis("predicted change"), Axis("change after the refit"),
        [Series("refits", [one for one, _, _ in pairs], [one for _, one, _ in pairs], "points",
                notes=[note for _, _, note in pairs]),
         Series("agreement", ends, ends, "dashed")],
    )  # fmt: skip
