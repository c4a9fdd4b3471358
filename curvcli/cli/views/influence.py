"""The view of `curv influence`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from curvcli.cli.format import Part, estimate, failed, header, number, spent, table
from curvcli.schema.influence import Entry, InfluenceReport, InfluenceResult, Ranking

MOST_QUERIES, MOST_ENTRIES = 4, 5


COVERS_ALL_EXAMPLES = False
"""Whether every number of the headline says whether it is of all examples."""


def view(report: InfluenceReport, width: int, unicode: bool) -> list[Part]:
    """Return the most influential examples, the validity of the scores, and the status of the solves."""
    result, cost = report.result, report.cost
    parts: list[Part] = [Text(_headline(report), style="bold"), header(report), *failed(report), Text("")]
    parts += [Text(result.validity.words), table(_facts(result)), Text("")]
    for ranking in result.top[:MOST_QUERIES]:
        parts += [Text(_title(ranking), style="bold")]
        parts += [] if ranking.caution is None else [Text(f"! {ranking.caution}", style="bold red")]
        parts += [_entries(ranking), Text("")]
    if len(result.top) > MOST_QUERIES:
        parts += [Text(f"… {len(result.top) - MOST_QUERIES} rankings more in the JSON report"), Text("")]
    if result.responses is not None:
        parts += [_responses(result), Text("")]
    if result.groups is not None:
        parts += [_groups(result), Text("")]
    parts += _beside(result)
    where = f" · scores in {report.settings.scores}" if report.settings.scores else ""
    foot = f"{spent(cost)}{where}"
    return [*parts, Text(foot, style="dim")]


def _headline(report: InfluenceReport) -> str:
    result, count = report.result, report.problem.data.num_examples
    subject = {
        "remove": "taking away", "label-perturb": "the labels of", "input-perturb": "the inputs of", "hyper": ""
    }[result.mode]  # fmt: skip
    if result.responses is not None:
        names = [response.name for response in result.responses]
        return (
            f"Response of weights and predictions to {', '.join(names) if len(names) < 4 else f'{len(names)} changes'}"
        )
    if result.target is None:
        return f"Self-influence: {subject} {count:,} examples, each on itself"
    first, last = result.target.rows
    measure = f"{result.target.measure} of {result.target.source} {first}:{last}"
    return f"Influence of {subject} {count:,} examples on the {measure}"


def _facts(result: InfluenceResult) -> list[tuple[str, str]]:
    choice = result.damping_choice
    # The gradient's, which the verdict rests on, is solved to fewer digits.
    of_scores = [solve for solve in result.solves if solve.of != "gradient"] or result.solves
    worst = max(of_scores, key=lambda solve: solve.residual)
    bad = sum(solve.status != "converged" for solve in result.solves)
    convergence = "all converged" if not bad else f"{bad} not converged"
    rows = [
        ("scores", f"{result.units}; {result.sign}"),
        ("damping", f"{number(result.damping)} ({choice.reason})"),
        ("solves", f"{len(result.solves)} by {result.solver}, {convergence}, residual at most {worst.residual:.1e}"),
    ]
    if result.self_influence is not None and result.self_influence.total_leverage is not None:
        rows.append(("total leverage", estimate(result.self_influence.total_leverage)))
    if result.self_influence is not None and result.self_influence.method == "sampled":
        rows.append(("sampling", f"standard error {result.self_influence.relative_stderr:.0%} of a score (median)"))
    if result.leverage is not None:
        rows.append(("leverage", f"at most {number(result.leverage.largest)}, median {number(result.leverage.median)}; "
                     f"scores change by {result.leverage.changed:.1%} (median)"))  # fmt: skip
    return rows


def _title(ranking: Ranking) -> str:
    if ranking.query is None:
        return "Every example on itself"
    return f"Query {ranking.query}" + ("" if ranking.output is None else f", output {ranking.output}")


def _entries(ranking: Ranking) -> Table:
    """Return a table with the two ends of a ranking side by side."""
    grid = Table.grid(padding=(0, 2))
    ends = [ranking.highest[:MOST_ENTRIES], ranking.lowest[:MOST_ENTRIES]]
    classes = any(entry.label is not None for entry in ends[0])
    tokens = any(entry.token is not None for entry in ends[0])
    score = "score" if ends[1] else "‖score‖"
    heads = ["example", *(["token"] if tokens else []), *(["label"] if classes else []), score]
    titles = heads * (2 if ends[1] else 1)
    grid.add_row(*(Text(head, style="dim", justify="right") for head in titles))
    for index in range(max(map(len, ends))):
        cells = [cell for end in ends if end for cell in _cells(end[index], signed=bool(ends[1]))]
        grid.add_row(*(Text(cell, justify="right") for cell in cells))
    return grid


def _cells(entry: Entry, *, signed: bool) -> list[str]:
    score = f"{entry.score:+.4g}" if signed else f"{entry.score:.4g}"
    score += f" in [{entry.interval[0]:.2g}, {entry.interval[1]:.2g}]" if entry.interval else ""
    token = [] if entry.token is None else [str(entry.token)]
    moved = [] if entry.label is None else [f"{entry.label} → {entry.towards}"]
    return [str(entry.example), *token, *moved, score]


def _responses(result: InfluenceResult) -> Table:
    shown = Table.grid(padding=(0, 2))
    asked = "example" if result.target is None else "query"
    shown.add_row(
        *(Text(head, style="dim") for head in ("change", "‖dw‖", "layer that moves most", f"{asked} that does"))
    )
    for one in result.responses or []:
        most = max(one.layers, key=lambda name: one.layers[name])
        shown.add_row(one.name, number(one.norm), f"{most} ({number(one.layers[most])})", _moved(result, one.change))
    return shown


def _moved(result: InfluenceResult, change: list | None) -> str:
    """Name the query and the output with the largest change: `3 output 1 (+0.02)`."""
    if change is None:
        return "too many to show"
    first = result.target.rows[0] if result.target else 0
    moved = [
        (f"{first + query}" + (f" output {output}" if isinstance(values, list) else ""), value)
        for query, values in enumerate(change)
        for output, value in enumerate(values if isinstance(values, list) else [values])
    ]
    name, value = max(moved, key=lambda item: abs(item[1]))
    return f"{name} ({value:+.4g})"


def _groups(result: InfluenceResult) -> Table:
    """Return a table of each group's largest effect on a query."""
    grid, titles = Table.grid(padding=(0, 2)), [_title(ranking).lower() for ranking in result.top]
    grid.add_row(*(Text(head, style="dim") for head in ("group", "size", "on", "first order", "Newton", "")))
    for group in sorted(result.groups or [], key=lambda group: -max(map(abs, group.newton)))[:12]:
        index = max(range(len(group.newton)), key=lambda i: abs(group.newton[i]))
        flag = "disagree" if group.disagree else ""
        grid.add_row(
            group.name,
            str(group.size),
            titles[index],
            f"{group.first_order[index]:+.4g}",
            f"{group.newton[index]:+.4g}",
            flag,
        )
    return grid


def _beside(result: InfluenceResult) -> list[Part]:
    """Return the table of baselines, damping sweep and refits."""
    rows = []
    for baseline in result.baselines:
        notes = []
        if baseline.name != "influence" and baseline.spearman is not None:
            notes.append(f"rank correlation with influence {baseline.spearman:.3f}")
        if baseline.auc is not None:
            low, high = baseline.auc.interval
            notes.append(f"AUC of wrong labels {baseline.auc.value:.3f} in [{low:.3f}, {high:.3f}]")
        if notes:
            rows.append((baseline.name, "; ".join(notes)))
    for point in result.sweep or []:
        moved = "" if point.spearman is None else f"rank correlation {point.spearman:.3f}, "
        stays = f"{point.top_overlap:.0%} of the top stays ({point.status})"
        rows.append((f"λ = {number(point.damping)}", moved + stays))
    verification = result.verification
    if verification is not None:
        for name in ("pearson", "spearman", "slope"):
            interval = getattr(verification, name)
            if interval is not None:
                rows.append(
                    (
                        f"refits: {name}",
                        f"{interval.value:.3f} in [{interval.interval[0]:.3f}, {interval.interval[1]:.3f}]",
                    )
                )
        ended = "" if len(verification.refits) == verification.asked else f", {len(verification.refits)} ended"
        rows.append(("refits", f"{verification.converged} of {verification.asked} converged{ended}"))
    return [table(rows), Text("")] if rows else []
