"""The registry: every analysis has every facet, and the recipe of ARCHITECTURE.md makes a whole one."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curvcli import api
from curvcli.registry import ANALYSES, Analysis
from curvcli.run import inputs
from curvcli.schema.report import analysis_of

ROOT = Path(__file__).resolve().parents[1]


def schema(row: Analysis) -> None:
    fields = row.report.model_fields
    assert analysis_of(fields["schema_name"].default) == row.name
    assert fields["settings"].annotation is row.settings


def engine(row: Analysis) -> None:
    assert list(inspect.signature(row.run).parameters) == ["context", "settings"]
    assert list(inspect.signature(row.forecast).parameters)[:2] == ["context", "settings"]


def inputs_reader(row: Analysis) -> None:
    assert row.inputs is None or list(inspect.signature(getattr(inputs, row.inputs)).parameters) == [
        "loaded",
        "settings",
    ]


def view(row: Analysis) -> None:
    assert callable(row.view.view)
    assert isinstance(row.view.COVERS_ALL_EXAMPLES, bool)


def figure(row: Analysis) -> None:
    assert callable(row.figure.parts)
    assert row.figure.TITLE
    for flag in ("COVERS_ALL_EXAMPLES", "NAMES_MATRIX", "SHOWS_IMAGES"):
        assert isinstance(getattr(row.figure, flag), bool), flag
    assert not row.figure.SHOWS_IMAGES or callable(row.figure.wanted_images)


def python_method(row: Analysis) -> None:
    assert row.summary in (getattr(api.Objective, row.name).__doc__ or "")
    report = row.report.__name__
    assert re.search(rf"^ +{row.name}: Method\[{report}\]$", Path(inspect.getfile(api)).read_text(), re.MULTILINE)


def page(row: Analysis) -> None:
    assert (ROOT / f"docs/commands/{row.name}.md").is_file()


@pytest.mark.parametrize("facet", [schema, engine, inputs_reader, view, figure, python_method, page])
@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_has_every_facet(name: str, facet: Any) -> None:
    facet(ANALYSES[name])


def apply_recipe(copy: Path) -> None:
    """The blocks of the recipe for an analysis, put where their first lines say."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    recipe = text[text.index("### An analysis") :]
    for path, code in re.findall(r"```python\n# (curvcli/\S+)\n(.*?)```", recipe, re.DOTALL):
        target = copy / path
        if target.exists():
            registry = target.read_text()
            end = registry.index("\n)\n\nANALYSES")
            target.write_text(registry[: end + 1] + code + registry[end + 1 :])
        else:
            target.write_text(code)


@pytest.mark.slow
def test_the_recipe_for_an_analysis(tmp_path: Path) -> None:
    copy = tmp_path / "package"
    shutil.copytree(ROOT / "curvcli", copy / "curvcli", ignore=shutil.ignore_patterns("__pycache__"))
    apply_recipe(copy)
    sample = tmp_path / "model.ckpt"
    shutil.copytree(ROOT / "sample_models/digits_run", sample)
    environment = {**os.environ, "PYTHONPATH": str(copy), "CURV_CACHE_DIR": str(tmp_path / "cache")}

    def curv(*arguments: str) -> str:
        line = [sys.executable, "-m", "curvcli", *arguments]
        done = subprocess.run(
            line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    few = ("--num-examples", "20", "--quiet")
    report = json.loads(curv("rayleigh", str(sample), *few, "-o", "a.json") or (tmp_path / "a.json").read_text())
    assert report["schema"] == "curv.rayleigh/1"
    assert "rayleigh" in curv("--help")
    assert "Curvature along the gradient" in curv("rayleigh", str(sample), *few, "--format", "text")
    assert json.loads(curv("rayleigh", str(sample), *few, "--dry-run"))["forecast"]["products"] == 1
    steps = curv("watch", str(sample), "rayleigh", "--idle", "0", *few, "-o", "run.jsonl") or "run.jsonl"
    assert steps
    curv("plot", "a.json", "-o", "a.svg")
    curv("plot", "run.jsonl", "-o", "run.png")
    assert json.loads(curv("diff", "a.json", "a.json"))["differences"] is not None
    assert json.loads(curv("schema", "rayleigh"))["title"] == "RayleighReport"
    code = (
        "import numpy as np; from curvcli import Objective; x = np.eye(3, dtype='f4');"
        "line = Objective(lambda p, x: x @ p['w'], (x, x[:, :1]), 'squared_error');"
        "print(line.rayleigh({'w': np.ones((3, 1), 'f4')}).report.result.quotient.value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(1 / 3, rel=1e-5)
