"""Comparison of two reports: which numbers changed by more than their intervals allow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from curvcli.errors import UsageError
from curvcli.run.reports import read_one
from curvcli.schema.diff import Difference, DiffRecord, Setting, Side

CURVES = {"density", "cumulative", "nodes", "weights", "profile", "solves", "refits", "scores", "top", "a", "b", "plan",
          "reason", "words"}  # fmt: skip
"""Parts of results that are not compared: curves, and details of the computation."""

EXPECTED = {
    "path",
    "state",
    "output",
    "threads",
    "time_limit",
    "max_memory",
    "plan",
    "probes",
    "loss_value",
    "sha256",
    "step",
}
"""Entries whose differences are expected, and not listed."""


class Data(NamedTuple):
    """The examples of two reports: whether they are the same, and whether either is part of a larger set."""

    same: bool
    parts: tuple[bool, bool]


def compared(first: Path, second: Path) -> DiffRecord:
    """Compare two reports of the same analysis.

    Raises
    ------
    NotFoundError, DataError
        A file is missing, or no report.
    UsageError
        The reports belong to different analyses.
    """
    a, b = read_one(first), read_one(second)
    if a["schema"] != b["schema"]:
        raise UsageError(
            f"{first} is {a['schema']}, and {second} is {b['schema']}", "compare two reports of the same analysis"
        )
    rows = list(_differences("", a["result"], b["result"], _data(a, b)))
    changed = [row for row in rows if row.change != 0 or row.interval is not None]
    chance = sum(1 - _confidence(a, b) for row in changed if row.kind == "estimate" and row.significant is not None)
    about = ("problem", "matrix", "settings", "environment")
    return DiffRecord(
        analysis=a["schema"], a=_side(first, a), b=_side(second, b), differences=changed,
        significant=sum(bool(row.significant) for row in changed), by_chance=chance,
        settings=[difference for part in about for difference in _settings(part, a.get(part), b.get(part))],
        untrusted=a.get("untrusted", False) or b.get("untrusted", False),
    )  # fmt: skip


def _data(a: dict[str, Any], b: dict[str, Any]) -> Data:
    """Compare the examples of two reports."""
    one, other = a["problem"]["data"], b["problem"]["data"]
    parts = bool(one.get("subsampled")), bool(other.get("subsampled"))
    return Data(one["sha256"] == other["sha256"], parts)


def _differences(name: str, a: Any, b: Any, data: Data) -> Iterator[Difference]:
    """Iterate over the numbers and words that two results have in common, by name."""
    if _is_uncertain(a) and _is_uncertain(b):
        yield _uncertain(name, a, b, data)
    elif isinstance(a, dict) and isinstance(b, dict):
        for key in a:
            if key in b and key not in CURVES:
                yield from _differences(f"{name}.{key}" if name else key, a[key], b[key], data)
    elif isinstance(a, list) and isinstance(b, list):
        labelled = {_label(entry, i): entry for i, entry in enumerate(b)}
        for i, entry in enumerate(a):
            if isinstance(entry, dict) and (label := _label(entry, i)) in labelled:
                yield from _differences(f"{name}[{label}]", entry, labelled[label], data)
    elif _is_number(a) and _is_number(b):
        yield _row(name, "number", a, b, None)
    elif a != b and not {type(a), type(b)} & {dict, list}:
        yield _words(name, a, b)


def _uncertain(name: str, a: dict[str, Any], b: dict[str, Any], data: Data) -> Difference:
    """Return the change of a number with an interval, and an interval of the change.

    The distances of the limits of estimates are added in quadrature (Zou and Donner 2008), which keeps the coverage of
    skewed intervals. The result is conservative if the runs share probes. The residual bounds of eigenvalues are
    deterministic, so their distances are added. The part of `interval` beyond `interval_given_data`, the error of the
    examples left out, is added in quadrature; it vanishes if both runs use the same examples. A number of part of the
    examples whose error is not known has no interval for its change.
    """
    kind = "eigenvalue" if "residual" in a else "estimate"
    if a["value"] is None or b["value"] is None:
        return _unresolved(name, kind, a, b, data)
    change = b["value"] - a["value"]
    if not _comparable(a, b, data):
        return _row(name, kind, a["value"], b["value"], None)
    low = _joined(kind, (b, 0), (a, 1), data)
    high = _joined(kind, (b, 1), (a, 0), data)
    return _row(name, kind, a["value"], b["value"], (change - low, change + high))


def _comparable(a: dict[str, Any], b: dict[str, Any], data: Data) -> bool:
    """Whether the intervals of two numbers refer to the same examples, or to all."""
    known = (number.get("data_stderr") is not None or not part for number, part in zip((a, b), data.parts, strict=True))
    return data.same or all(known)


def _joined(kind: str, left: tuple[dict[str, Any], int], right: tuple[dict[str, Any], int], data: Data) -> float:
    """Return the distance of a limit of the change from the change, given an end of each number's interval."""
    inner, outer = [], []
    for number, end in (left, right):
        bare = abs((number.get("interval_given_data") or number["interval"])[end] - number["value"])
        full = abs(number["interval"][end] - number["value"])
        inner.append(bare)
        outer.append(full if kind == "estimate" else full - bare)
    if data.same:
        outer = inner if kind == "estimate" else [0.0, 0.0]
    return math.hypot(*outer) + (sum(inner) if kind == "eigenvalue" else 0.0)


def _unresolved(name: str, kind: Any, a: dict[str, Any], b: dict[str, Any], data: Data) -> Difference:
    """Compare numbers without a value: there is no change, but their intervals may be disjoint."""
    apart = a["interval"][1] < b["interval"][0] or b["interval"][1] < a["interval"][0]
    low, high = b["interval"][0] - a["interval"][1], b["interval"][1] - a["interval"][0]
    known = _comparable(a, b, data)
    return Difference(
        name=name, kind=kind, a=a["value"], b=b["value"], change=None, relative=None,
        interval=(low, high) if known else None, significant=apart if known else None,
    )  # fmt: skip


def _words(name: str, a: Any, b: Any) -> Difference:
    return Difference(name=name, kind="text", a=a, b=b, change=None, relative=None, interval=None, significant=None)


def _row(name: str, kind: Any, a: Any, b: Any, interval: tuple[float, float] | None) -> Difference:
    change = b - a
    relative = change / abs(a) if a else math.inf
    return Difference(
        name=name, kind=kind, a=a, b=b, change=change, relative=relative if math.isfinite(relative) else None,
        interval=interval,
        significant=None if interval is None else not interval[0] <= 0 <= interval[1],
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_uncertain(value: Any) -> bool:
    return isinstance(value, dict) and {"value", "interval"} <= value.keys()


def _label(entry: Any, index: int) -> Any:
    """Return the label of an entry of a list: its name, else its index."""
    if not isinstance(entry, dict):
        return index
    if {"a", "b"} <= entry.keys() and isinstance(entry["a"], str):
        return f"{entry['a']}, {entry['b']}"
    return entry.get("name") or entry.get("of") or entry.get("direction") or index


def _confidence(a: dict[str, Any], b: dict[str, Any]) -> float:
    return min(one["settings"].get("confidence", 0.95) for one in (a, b))


def _side(path: Path, report: dict[str, Any]) -> Side:
    checkpoint = report["problem"]["checkpoint"]
    return Side(path=str(path), checkpoint=checkpoint["path"], step=checkpoint["step"], matrix=report["matrix"])


def _settings(name: str, a: Any, b: Any) -> Iterator[Setting]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys() - EXPECTED):
            if key not in EXPECTED:
                yield from _settings(f"{name}.{key}", a.get(key), b.get(key))
    elif a != b:
        yield Setting(name=name, a=a, b=b)
