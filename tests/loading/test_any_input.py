"""Whatever is in curv.toml and in the data: a problem, or an error that is the user's to understand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from curvcli.errors import CurvError
from curvcli.loading.checkpoints.reading import load_checkpoint
from curvcli.loading.resolve import checkpoint_path, load_problem
from curvcli.loading.spec.files import NAME, find_spec, merge
from curvcli.schema.settings import DataSettings
from tests.loading import models
from tests.loading.models import VALUES, X, spec_for, write_data

RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
LAYERS = models.list_params()


def loaded(place: Path) -> Any:
    """The problem of the curv.toml that lies there."""
    found = find_spec(None, place / NAME)
    spec = merge(found, {})
    return load_problem(spec, found, checkpoint_path(None, spec, place), DataSettings(), step=None, trust=False)


def told(function: Callable[..., Any], *args: Any) -> Any:
    """What it returns, or the error that it tells; any other exception is a fault."""
    try:
        return function(*args)
    except CurvError as error:
        if error.exit_code in (2, 65, 66, 71, 77, 78) and error.message and error.hint:
            return error
        raise


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint and data; `curv.toml` is each test's own."""
    dense = {f"Dense_{i}": {"kernel": one["w"], "bias": one["b"]} for i, one in enumerate(LAYERS)}
    models.npz(tmp_path / "ckpt.npz", {"params": dense})
    write_data(tmp_path, X, VALUES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GOOD = spec_for(
    "curvcli.zoo:MLP", "squared_error", model={"kwargs": {"features": [4, 2]}, "kind": "linen"},
    checkpoint={"path": "ckpt.npz", "params": "params"}, loss={"l2": 0.1, "reduction": "mean"},
)  # fmt: skip
NAMES = st.sampled_from(
    ["", ".", "..", "/", "x", "y", "data.npz", "ckpt.npz", "curv.toml", "a:b", ":", "curvcli.zoo:CNN"]
)
TEXT = NAMES | st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
ANY = st.recursive(
    TEXT | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
KEYS = sorted((table, key) for table, entries in GOOD.items() for key in entries)
KEYS += [("data", "inputs"), ("data", "targets"), ("data", "split"), ("data", "mask"), ("data", "sha256")]
KEYS += [("loss", "likelihood"), ("loss", "regulariser"), ("loss", "ignore_label"), ("checkpoint", "sha256")]


@RELAXED
@given(changes=st.dictionaries(st.sampled_from(KEYS), ANY, min_size=1, max_size=2))
def test_any_value_in_curv_toml(project: Path, changes: dict[tuple[str, str], Any]) -> None:
    values = {table: dict(entries) for table, entries in GOOD.items()}
    for (table, key), value in changes.items():
        values[table][key] = value
    (project / NAME).write_text(tomli_w.dumps(values), encoding="utf-8")
    told(loaded, project)


@RELAXED
@given(features=ANY, activation=ANY)
def test_any_argument_of_a_model(project: Path, features: Any, activation: Any) -> None:
    values = {**GOOD, "model": {**GOOD["model"], "kwargs": {"features": features, "activation": activation}}}
    (project / NAME).write_text(tomli_w.dumps(values), encoding="utf-8")
    assert isinstance(told(loaded, project), CurvError)


LINES = st.sampled_from(["[model]", "[data]", "[[loss]]", "path = 3", 'name = "x"', "[", "a.b.c = 1", "x = 1e999", '"'])


@RELAXED
@given(content=st.binary(max_size=60) | st.lists(LINES | st.text(max_size=9)).map("\n".join).map(str.encode))
def test_any_bytes_as_curv_toml(project: Path, content: bytes) -> None:
    (project / NAME).write_bytes(content)
    assert isinstance(told(loaded, project), CurvError)


@pytest.mark.parametrize("content", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "[a" + ".a" * 20_000 + "]"])
def test_a_curv_toml_without_end(project: Path, content: str) -> None:
    (project / NAME).write_text(content)
    assert told(loaded, project).exit_code == 78


SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMBERS = hnp.boolean_dtypes() | hnp.integer_dtypes(endianness="?") | hnp.floating_dtypes(endianness="?")
DTYPES = NUMBERS | hnp.complex_number_dtypes() | hnp.unicode_string_dtypes(max_len=3) | hnp.datetime64_dtypes()


@RELAXED
@given(
    x=hnp.arrays(DTYPES, st.just((6, 3)) | SHAPES), y=hnp.arrays(DTYPES, st.sampled_from([(6,), (6, 2)]) | SHAPES),
    loss=st.sampled_from(["squared_error", "softmax_cross_entropy", "sigmoid_cross_entropy", "poisson"]),
)  # fmt: skip
def test_any_arrays_as_data(project: Path, x: np.ndarray, y: np.ndarray, loss: str) -> None:
    (project / NAME).write_text(tomli_w.dumps({**GOOD, "loss": {"name": loss}}))
    np.savez(project / "data.npz", x=x, y=y)
    found = told(loaded, project)
    if not isinstance(found, CurvError):
        batch = next(iter(found.problem.batches))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(batch))


CELL = st.sampled_from(["1", "0.5", "-2", "nan", "inf", "1e999", "", " ", '"', "a", "1_0", "x", "9" * 30, "1e39"])


@RELAXED
@given(rows=st.lists(st.lists(CELL, min_size=3, max_size=5), max_size=4))
def test_any_cells_as_csv(project: Path, rows: list[list[str]]) -> None:
    data = {"path": "data.csv", "inputs": "a,b,c", "targets": "y"}
    (project / NAME).write_text(tomli_w.dumps({**GOOD, "data": data, "loss": {"name": "softmax_cross_entropy"}}))
    (project / "data.csv").write_text("\n".join(",".join(row) for row in [["a", "b", "c", "y"], *rows]))
    found = told(loaded, project)
    if not isinstance(found, CurvError):
        assert np.all(np.isfinite(np.asarray(found.problem.batches.inputs, np.float32)))


@RELAXED
@given(arrays=st.dictionaries(st.text("ab/.", max_size=5), hnp.arrays(DTYPES, SHAPES), max_size=4))
def test_any_arrays_as_checkpoint(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    assume("file" not in arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, about names that are twice there
        np.savez(tmp_path / "any.npz", **arrays)  # type: ignore[arg-type]
    told(load_checkpoint, tmp_path / "any.npz")
