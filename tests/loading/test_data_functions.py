"""Data from a function of the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from curvcli import errors
from curvcli.loading.data.dataset import load_dataset
from curvcli.schema.spec import DataSpec
from tests.loading.datasets import X, Y, fails, load, same

# --- functions ----------------------------------------------------------------------------------------------


class Loader:
    """Re-iterable batches, as torch gives them: lists, not tuples."""

    def __iter__(self):
        return iter([[X[:4], Y[:4]], [X[4:], Y[4:]]])


@pytest.mark.parametrize(
    "made",
    [
        (X, Y),
        {"x": X, "y": Y, "other": "text"},
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        ((X[:4], Y[:4]), (X[4:], Y[4:])),
        [{"x": X[:1], "y": Y[:1]}, {"y": Y[1:], "x": X[1:]}],
        Loader(),
        ((X[i : i + 1], Y[i : i + 1]) for i in range(6)),
    ],
)
def test_function(tmp_path, made):
    found = load(tmp_path, "pkg.mod:make", made)
    same(found.inputs, X)
    same(found.targets, Y)
    assert (found.mask, found.path, found.num_examples) == (None, "pkg.mod:make", 6)


def test_function_is_called_with_its_name(tmp_path):
    asked = []

    def call_target(target: str) -> Any:
        asked.append(target)
        return {"x": X, "y": Y}  # an instance serves too

    spec = DataSpec(path="make.py:data")
    assert load_dataset(spec, base=tmp_path, call_target=call_target).num_examples == 6
    assert asked == ["make.py:data"]


def test_function_masks_splits_dicts(tmp_path):
    same(load(tmp_path, "m:f", (X, Y, Y > 0)).mask, Y > 0)
    made = {"x_train": X, "y_train": Y, "w_train": np.ones(6), "x_test": X[:1], "y_test": Y[:1]}
    same(load(tmp_path, "m:f", made, split="train", mask="w").mask, np.ones(6))
    assert load(tmp_path, "m:f", made, split="test").num_examples == 1
    found = load(tmp_path, "m:f", [({"ids": X[:2]}, Y[:2]), ({"ids": X[2:]}, Y[2:])])
    same(found.inputs["ids"], X)
    assert list(load(tmp_path, "m:f", {"a": X, "b": X, "y": Y}, inputs="a,b").inputs) == ["a", "b"]
    fails(errors.SpecError, tmp_path, "m:f", "`split`", made=(X, Y), split="train")
    fails(errors.SpecError, tmp_path, "m:f", "`mask`", made=(X, Y), mask="w")
    fails(errors.SpecError, tmp_path, "m:f", "no array 'x'", "'z'", made={"z": X, "y": Y})


def test_function_without_end(tmp_path):
    def forever():
        while True:
            yield X, Y

    assert load(tmp_path, "m:f", forever(), n=8).num_examples == 8
    fails(errors.UsageError, tmp_path, "m:f", "8", "6", made=(X, Y), n=8)


@pytest.mark.parametrize("made", [None, 3, "text", X, [X, Y], [(X,)], [(X, Y, Y, Y)], (X,), [1, 2]])
def test_function_gives_something_else(tmp_path, made):
    fails(errors.SpecError, tmp_path, "m:f", "m:f: gave ", made=made)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ([], "no inputs"),
        ([({}, Y)], "no inputs"),
        ([{"x": 1.0, "y": 2}], "single number"),
        ((X, np.array([None] * 6)), "Python objects"),
        ([(X[:2], Y[:2]), (X[2:, :3], Y[2:])], "after example 2"),
        ([(X, Y), (X, Y, Y)], "other arrays"),
        ([(X, Y[:5]), (X, Y)], "has 11 examples"),
        ((X, Y * np.nan), "NaN"),
    ],
)
def test_function_gives_bad_data(tmp_path, made, says):
    fails(errors.DataError, tmp_path, "m:f", says, made=made)


@pytest.mark.parametrize("raised", [ValueError("no\nway"), SystemExit(3), KeyError("k"), StopIteration()])
def test_function_raises(tmp_path, raised):
    def make() -> None:
        raise raised

    with pytest.raises(errors.SpecError, match=f"pkg.mod:make: raised {type(raised).__name__}"):
        load_dataset(DataSpec(path="pkg.mod:make"), base=tmp_path, call_target=lambda _: make)

    def batches():
        yield X, Y
        raise OSError("gone")

    fails(errors.SpecError, tmp_path, "m:f", "raised OSError: gone", made=batches())


def test_function_import_errors_pass(tmp_path):
    def call_target(_: str) -> None:
        raise errors.SpecError("no module", "install it")

    with pytest.raises(errors.SpecError, match="no module"):
        load_dataset(DataSpec(path="m:f"), base=tmp_path, call_target=call_target)


def test_function_of_jax_arrays(tmp_path):
    jnp = pytest.importorskip("jax.numpy")
    found = load(tmp_path, "m:f", (jnp.asarray(X, jnp.bfloat16), jnp.asarray(Y)))
    same(found.inputs, X)
    assert isinstance(found.targets, np.ndarray)
    bad = jnp.asarray(X, jnp.bfloat16).at[2, 0].set(jnp.nan)
    fails(errors.DataError, tmp_path, "m:f", "row 2", made=(bad, Y))
