"""The two rows of a matrix say everything of it: nothing may be left out, and what is refused is refused by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.analyses import diag, pruning
from curvcli.analyses.common.context import Context
from curvcli.analyses.common.dense import smaller_side
from curvcli.analyses.common.subsampling import subsampled
from curvcli.analyses.compare.candidates import choose
from curvcli.analyses.lines import directions
from curvcli.curvature import build
from curvcli.curvature.influence import leverage
from curvcli.curvature.matrices import MATRICES, Matrix, facet, has, has_root
from curvcli.curvature.operators import example_forms
from curvcli.curvature.products.programs import product_programs
from curvcli.errors import SpecError, UsageError
from curvcli.linalg.iterate import Silent
from curvcli.losses import LOSSES, user_loss
from curvcli.problem import Problem
from curvcli.schema.compare import CompareSettings
from curvcli.schema.diag import DiagSettings
from curvcli.schema.direction import DirectionSettings
from curvcli.schema.influence import InfluenceSettings
from curvcli.schema.matrices import MATRICES as FACTS
from curvcli.schema.matrices import MatrixFacts, Refusal, setting_damping
from curvcli.schema.settings import AnalysisSettings
from tests.problems import mlp_problem

ROOT = Path(__file__).parent.parent
GONE = Refusal("the test took it away")


def test_both_tables_have_the_same_rows() -> None:
    assert list(MATRICES) == list(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_a_row_has_every_facet_or_a_reason(name: str) -> None:
    for row in (FACTS[name], MATRICES[name]):
        for one in fields(row):
            held = getattr(row, one.name)
            assert held is not None, one.name
            assert not isinstance(held, Refusal) or held.reason, one.name
    assert [has(name, way) for way in ("field", "products", "factors")].count(True) == 1
    assert has(name, "factors") == FACTS[name].closed_form
    assert not FACTS[name].layers or FACTS[name].closed_form
    assert f"`{name}`" in (ROOT / "docs/matrices.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("facts", [False, True])
def test_a_row_that_leaves_something_out_names_it(facts: bool) -> None:
    row: Any = FACTS["ggn"] if facts else MATRICES["ggn"]
    kind: Any = MatrixFacts if facts else Matrix
    whole = {one.name: getattr(row, one.name) for one in fields(row)}
    for name in whole:
        with pytest.raises(TypeError, match=f"'{name}'"):
            kind(**{key: value for key, value in whole.items() if key != name})


def without(monkeypatch: pytest.MonkeyPatch, name: str, which: str, value: Any = GONE) -> None:
    """Change one facet, or one fact, of a matrix's row."""
    table: Any = FACTS if which in {one.name for one in fields(MatrixFacts)} else MATRICES
    monkeypatch.setitem(table, name, replace(table[name], **{which: value}))


def vectors(problem: Problem) -> Any:
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, problem.dim)))


def pulls(problem: Problem, name: str) -> Any:
    h = iter([np.zeros((23, 3, 3))])
    return next(leverage.pulls(problem, name, vectors(problem), h, 2))


NEEDING: dict[str, Callable[[Problem], Any]] = {
    "field": lambda problem: build(problem, "ggn"),
    "forms": lambda problem: example_forms(problem, "ggn", vectors(problem)),
    "root": lambda problem: leverage.draw(problem, "ggn", 0.1, 0, 0, 2),
    "pull": lambda problem: pulls(problem, "ggn"),
}


@pytest.mark.parametrize("which", NEEDING)
def test_what_needs_a_facet_names_it(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = mlp_problem(batch_size=23)
    NEEDING[which](problem)
    without(monkeypatch, "ggn", which)
    with pytest.raises(SpecError, match=f"ggn has no {which}: the test took it away"):
        NEEDING[which](problem)


@pytest.mark.parametrize(("name", "which"), [("ntk", "products"), ("kfac", "factors")])
def test_what_a_matrix_is_made_of(name: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, name, which)
    with pytest.raises(SpecError, match=f"{name} has no field"):
        build(mlp_problem(), name)


def test_what_there_is_another_way_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pairs and output side the same answers come from products, and no error is stated without forms."""
    problem = replace(mlp_problem(), population=100)
    asked = AnalysisSettings(matrix="ggn", dtype="float64", num_examples=23)
    image, rows = np.asarray(build(problem, "ggn").matmat(vectors(problem))), smaller_side(problem, asked)
    assert (rows.name, rows.rows) == ("parameters", problem.dim)
    few = mlp_problem(count=4)
    assert smaller_side(few, asked).name == "outputs"
    for which in ("pairs", "output_side", "forms", "root"):
        without(monkeypatch, "ggn", which)
        with pytest.raises(SpecError, match=which.replace("_", " ")):
            facet("ggn", which)
    operator = build(problem, "ggn")
    assert operator.forms is None
    np.testing.assert_array_equal(operator.matmat(vectors(problem)), image)
    assert smaller_side(few, asked).name == "parameters"
    assert not has_root("ggn", problem.loss)
    assert not subsampled(problem, asked)
    without(monkeypatch, "ggn", "field")
    assert product_programs(problem, "ggn", 2) is None


ALONG = DirectionSettings(matrix="ggn", along=["gradient"])
USES: dict[str, tuple[type[Exception], Callable[[Problem], Any]]] = {
    "matrix": (ValueError, lambda problem: AnalysisSettings(matrix="ggn")),
    "compare": (ValueError, lambda problem: CompareSettings(matrices=["ggn", "hessian"])),
    "influence": (ValueError, lambda problem: InfluenceSettings(matrix="ggn", remove=True)),
    "saliencies": (UsageError, lambda problem: pruning.check(DiagSettings(matrix="ggn", prune=0.1))),
    "lines": (UsageError, lambda problem: directions.check(problem, ALONG)),
}


@pytest.mark.parametrize("use", USES)
def test_what_does_not_take_a_matrix_says_why(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, (error, ask) = mlp_problem(), USES[use]
    ask(problem)
    without(monkeypatch, "ggn", use)
    with pytest.raises(error, match=r"ggn.*the test took it away"):
        ask(problem)


def test_facts_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them changes what it is said to, and nothing else has to know the name."""
    problem, asked = mlp_problem(l2=0.5), AnalysisSettings(matrix="ggn")
    whole = np.asarray(build(problem, "ggn").matmat(vectors(problem)))
    without(monkeypatch, "ggn", "regularised", False)
    np.testing.assert_allclose(build(problem, "ggn").matmat(vectors(problem)), whole - 0.5 * vectors(problem))
    assert not asked.regulariser_included
    without(monkeypatch, "ggn", "by_examples", True)
    with pytest.raises(ValueError, match="batch-norm batch does not go with the matrix ggn"):
        AnalysisSettings(matrix="ggn", batch_norm="batch")
    without(monkeypatch, "ggn", "needs", "likelihood")
    own = replace(problem, loss=user_loss("mine", LOSSES["softmax_cross_entropy"].value))
    with pytest.raises(SpecError, match="ggn needs a likelihood, and mine"):
        build(own, "ggn")
    assert setting_damping(["hessian", "ekfac", "ggn"]) == "ggn"
    without(monkeypatch, "ggn", "sets_damping")
    assert setting_damping(["hessian", "ekfac", "ggn"]) == "ekfac"
    assert setting_damping(["hessian", "ggn"]) == "hessian"
    without(monkeypatch, "fisher", "same_as", lambda loss: None)
    settings = CompareSettings(matrices=["ggn", "fisher"], dtype="float64")
    assert choose(problem, settings).names == ["ggn", "fisher"]


def test_saliencies_are_given_or_refused_in_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, settings = mlp_problem(), DiagSettings(matrix="ggn", dtype="float64", skip_checks=True)
    assert diag.run(Context(problem, Silent()), settings).result.saliency
    without(monkeypatch, "ggn", "saliencies")
    assert diag.run(Context(problem, Silent()), settings).result.saliency is None


def test_a_matrix_added_by_its_rows_works_everywhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.added_matrix", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
