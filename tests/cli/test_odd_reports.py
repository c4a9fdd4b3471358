"""`curv plot` and `curv diff` on reports such as curv does not write: the field is named, or the picture is right."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Outcome, Project

FAST = ("--skip-checks", "-q")
COMMANDS: dict[str, list[Any]] = {
    "spectrum": ["spectrum", "--method", "xtrace", "--probes", 6, "--steps", 12],
    "trace": ["trace", "--method", "hutchinson", "--probes", 8],
    "eigs": ["eigs", "-k", 4],
    "direction": ["direction", "--along", "gradient", "--points", 7],
    "line": ["landscape", "--along", "random", "--points", 7],
    "plane": ["landscape", "--along", "eigenvector:1", "--along", "random", "--points", 5],
    "influence": ["influence", "--label-perturb", "--queries", "0:2", "--verify", 3],
    "step": ["step", "--method", "hessian-free", "--steps", 3],
    "compare": ["compare", "--matrices", "hessian,ggn", "-k", 2],
}
Change = Callable[[Any], Any]


@pytest.fixture
def report(project: Project, curv: Callable[..., Outcome]) -> Callable[[str], dict[str, Any]]:
    """`report("trace")`: what the command wrote."""
    return lambda name: curv(COMMANDS[name][0], *FAST, *COMMANDS[name][1:]).report


@pytest.fixture
def written(project: Project) -> Callable[..., Path]:
    """`written(report)`: a file with it."""

    def write(value: Any, name: str = "odd.json") -> Path:
        return project.write(name, json.dumps(value) + "\n")

    return write


def changed(value: Any, place: str, change: Change) -> Any:
    """The value with what is at `a.0.b` changed."""
    head, _, rest = place.partition(".")
    key: Any = int(head) if head.isdecimal() else head
    copy = value.copy()
    copy[key] = changed(value[key], rest, change) if rest else change(value[key])
    return copy


def scaled(value: Any, factor: float) -> Any:
    """All floats times a factor."""
    if isinstance(value, dict):
        return {key: scaled(entry, factor) for key, entry in value.items()}
    if isinstance(value, list):
        return [scaled(entry, factor) for entry in value]
    return value * factor if isinstance(value, float) else value


def fewer(rows: list[Any]) -> list[Any]:
    return rows[:-1]


def none(rows: Any) -> list[Any]:
    return []


LENGTHS = [
    ("spectrum", "density.value", fewer), ("spectrum", "density.grid", none), ("spectrum", "cumulative.lower", fewer),
    ("spectrum", "nodes", none), ("spectrum", "nodes.0", fewer), ("spectrum", "weights", fewer),
    ("direction", "profile.loss", fewer), ("direction", "profile", lambda one: {key: [] for key in one}),
    ("line", "quadratic", fewer), ("line", "a", lambda side: side[::-1]), ("line", "directions", lambda one: one * 2),
    ("plane", "loss.2", fewer), ("plane", "b", none), ("influence", "scores.0", fewer),
    ("influence", "scores.0.0.0", lambda _: "a"), ("influence", "scores.0.0.0", lambda _: None),
    ("influence", "verification.actual", fewer), ("compare", "traces", lambda one: {"hessian": one["hessian"]}),
    ("compare", "matrices", none),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "change"), LENGTHS, ids=lambda one: one if isinstance(one, str) else "")
def test_lists_that_do_not_fit_are_named(report, written, curv, name: str, place: str, change: Change) -> None:
    file = written(changed(report(name), f"result.{place}", change))
    for command in (("plot", file, "-o", "a.svg"), ("diff", file, file)):
        outcome = curv(*command)
        assert outcome.code == 65
        assert "odd.json is no report that this version of curv knows: result" in outcome.error
        assert place.split(".")[0] in outcome.error


@pytest.mark.parametrize(
    ("value", "said"),
    [(1e200, "beyond"), (-1e101, "beyond"), (10**400, "beyond"), (json.loads("[" * 150 + "]" * 150), "levels")],
    ids=["large", "negative", "integer", "deep"],
)
@pytest.mark.parametrize("place", ["result.trace.stderr", "result.dim", "problem.num_params", "settings.seed"])
def test_numbers_too_large_are_named(report, written, curv, place: str, value: Any, said: str) -> None:
    file = written(changed(report("trace"), place, lambda _: value))
    for command in (("plot", file), ("diff", file, file)):
        outcome = curv(*command)
        assert outcome.code == 65
        assert said in outcome.error
        assert place in outcome.error


@pytest.mark.parametrize("text", ["1e999", "NaN", "-Infinity", "9" * 5000])
def test_what_is_no_number(report, written, curv, text: str) -> None:
    file = written(changed(report("trace"), "result.trace.value", lambda _: "here"))
    file.write_text(file.read_text().replace('"here"', text))
    for command in (("plot", file), ("diff", file, file)):
        assert "is no JSON" in curv(*command).error


@pytest.mark.parametrize("factor", [1e95, 1e-320, -1.0])
@pytest.mark.parametrize("name", COMMANDS)
def test_numbers_near_the_ends_of_their_range(report, written, curv, name: str, factor: float) -> None:
    plain = report(name)
    odd = {**plain, "result": scaled(plain["result"], factor)}
    file, first = written(odd), written(plain, "plain.json")
    for command in (("plot", file, "-o", "a.svg", "-o", "a.html"), ("diff", first, file), ("diff", file, first)):
        outcome = curv(*command)
        if factor < 0 or outcome.code:  # an interval that begins with its end, a norm that is not positive
            assert outcome.code == 65
            assert "result." in outcome.error
        else:
            assert outcome.err == ""


@pytest.mark.parametrize(
    ("name", "place"),
    [("trace", "layers"), ("eigs", "eigenvalues"), ("step", "cg"), ("step", "steps"), ("influence", "top")],
)
def test_thousands_of_entries(report, written, curv, name: str, place: str) -> None:
    def many(rows: list[Any]) -> list[Any]:
        rows = (rows * 3000)[:3000]
        return [{**one, "name": f"layer {index}"} for index, one in enumerate(rows)] if place == "layers" else rows

    file = written(changed(report(name), f"result.{place}", many))
    outcome = curv("plot", file, "-o", "a.png", "-o", "a.svg")
    assert (outcome.code, outcome.err) == (0, "")
    text = " ".join("".join(ET.parse("a.svg").getroot().itertext()).split())
    assert ("Of 3,000 the 60 largest are drawn" in text) == (place == "layers")
    assert curv("diff", file, file).code == 0


def test_long_names_leave_room_for_the_picture(report, written, curv) -> None:
    plain = report("trace")
    wide = "W" * 4000
    layers = [{**one, "name": f"{i}{wide}{i}"} for i, one in enumerate(plain["result"]["layers"])]
    odd = changed(changed(plain, "result.layers", lambda _: layers), "problem.model", lambda _: "漢" * 4000)
    outcome = curv("plot", written(odd), "-o", "a.png", "-o", "a.html")
    assert (outcome.code, outcome.err) == (0, "")


def test_differences_of_what_another_writer_wrote(report, written, curv) -> None:
    plain = report("trace")
    odd = {key: value for key, value in plain.items() if key != "untrusted"}
    odd = changed(odd, "result.trace.value", str)  # as a spreadsheet has it
    odd = changed(odd, "result.dim", float)
    differences = curv("diff", written(plain, "plain.json"), written(odd)).report
    assert differences["significant"] == 0
    assert all(one["change"] == 0 for one in differences["differences"])


def test_a_ratio_beyond_the_largest_number_is_none(report, written, curv) -> None:
    plain = report("trace")
    tiny = changed(plain, "result.trace", lambda one: {**one, "value": 1e-310, "interval": [-1.0, 1.0]})
    (row,) = (
        one for one in curv("diff", written(tiny), written(plain, "plain.json")).report["differences"]
        if one["name"] == "trace"
    )  # fmt: skip
    assert row["change"] == pytest.approx(plain["result"]["trace"]["value"])
    assert row["relative"] is None


def test_scores_that_cannot_be_read_are_left_out(project, curv) -> None:
    arguments = ["influence", *FAST, "--label-perturb", "--queries", "0:2", "--scores", "scores.npz", "-o", "a.json"]
    assert curv(*arguments).code == 0
    whole = json.loads((project.folder / "a.json").read_text())
    whole["result"]["scores"] = "scores.npz"
    project.write("a.json", json.dumps(whole))
    (project.folder / "scores.npz").write_bytes(b"PK")
    outcome = curv("plot", "a.json", "-o", "a.svg")
    assert (outcome.code, outcome.err) == (0, "")
