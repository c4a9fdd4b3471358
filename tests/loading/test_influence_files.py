"""Queries, groups, changes of the data and functions that `curv influence` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.errors import DataError, NotFoundError, SpecError, UsageError
from curvcli.loading import influence
from curvcli.loading.resolve import Loaded
from tests.loading import models
from tests.loading.models import COUNT, load, refused, small, spec_for, write_data

RNG = np.random.default_rng(5)
X_TEST, VALUES_TEST = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 2))


def plain(folder: Path, **arrays: Any) -> Loaded:
    """A network of layers on six examples, and more arrays beside the data."""
    spec = small(folder)
    write_data(folder, models.X, models.VALUES, **arrays)
    return load(folder, spec)


def tokens(folder: Path, *, data: dict[str, Any] | None = None, **more: Any) -> Loaded:
    """A network of tokens with class numbers, its mask in `keep`."""
    models.msgpack(folder / "ckpt", models.linen_variables(models.Tokens(), models.IDS, deterministic=True))
    write_data(folder, models.IDS, models.TOKEN_LABELS, keep=models.MASK, **more)
    spec = spec_for("Tokens", "softmax_cross_entropy", data=data or {"mask": "keep"})
    return load(folder, spec)


# --- queries ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "first", "count"),
    [("0:2", 0, 2), ("4:", 4, 2), (":3", 0, 3), (":", 0, COUNT), ("5", 5, 1), ("05:6", 5, 1)],
)
def test_rows_of_the_data(tmp_path: Path, rows: str, first: int, count: int) -> None:
    found = influence.read_queries(plain(tmp_path), rows)
    assert (found.source, found.first, found.batches.num_examples) == ("data", first, count)
    np.testing.assert_array_equal(found.batches.inputs, models.X[first : first + count])
    np.testing.assert_array_equal(found.batches.targets, models.VALUES[first : first + count])


def test_rows_of_the_test_split_where_there_is_one(tmp_path: Path) -> None:
    found = influence.read_queries(plain(tmp_path, x_test=X_TEST, y_test=VALUES_TEST), "1:3")
    assert (found.source, found.first) == ("test", 1)
    np.testing.assert_array_equal(found.batches.inputs, X_TEST[1:3])
    np.testing.assert_array_equal(found.batches.targets, VALUES_TEST[1:3])
    np.testing.assert_array_equal(found.batches.weight, np.ones(2))


@pytest.mark.parametrize("rows", ["6", "0:7", "6:", "100:101"])
def test_rows_that_are_not_there(tmp_path: Path, rows: str) -> None:
    loaded = plain(tmp_path)
    refused(UsageError, influence.read_queries, loaded, rows, says=(rows, "0 to 5"))
    write_data(tmp_path, models.X, models.VALUES, x_test=X_TEST, y_test=VALUES_TEST)
    refused(UsageError, influence.read_queries, loaded, rows, says=(rows, "test split", "0 to 3"))


def test_the_data_are_asked_where_they_are_the_test_split_themselves(tmp_path: Path) -> None:
    spec = small(tmp_path)
    write_data(tmp_path, models.X, models.VALUES, x_test=X_TEST, y_test=VALUES_TEST)
    loaded = load(tmp_path, {**spec, "data": {**spec["data"], "split": "test"}})
    assert influence.read_queries(loaded, ":").source == "data"


def test_a_function_that_makes_the_data_has_no_test_split(tmp_path: Path) -> None:
    spec = small(tmp_path)
    spec["data"] = {"path": f"{__name__}:made"}
    assert influence.read_queries(load(tmp_path, spec), "2").source == "data"


def made() -> Any:
    """Data with what would be a test split in a file."""
    return {"x": models.X, "y": models.VALUES, "x_test": X_TEST, "y_test": VALUES_TEST}


def test_the_test_splits_mask_and_labels_are_fitted_like_the_datas(tmp_path: Path) -> None:
    labels, keep = models.TOKEN_LABELS[:2].astype(np.int64), models.MASK[:2]
    found = influence.read_queries(
        tokens(tmp_path, x_test=models.IDS[:2], y_test=np.where(keep > 0, labels, 99), keep_test=keep), ":"
    )
    assert found.source == "test"
    np.testing.assert_array_equal(found.batches.weight, keep)
    np.testing.assert_array_equal(found.batches.targets[keep > 0], labels[keep > 0])
    assert found.batches.targets.max() < models.CLASSES


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ({"x_test": X_TEST[:, :2], "y_test": VALUES_TEST}, "each"),
        ({"x_test": X_TEST.astype(int), "y_test": VALUES_TEST}, "each"),
        ({"x_test": X_TEST, "y_test": VALUES_TEST[:, :1]}, "squared_error"),
        ({"x_test": X_TEST, "y_test": VALUES_TEST[:3]}, "4"),
        ({"x_test": X_TEST}, ("not complete", "y_test")),
    ],
)
def test_a_test_split_that_does_not_fit_is_no_reason_to_take_the_data(tmp_path: Path, test: Any, says: Any) -> None:
    refused(DataError, influence.read_queries, plain(tmp_path, **test), "0", says=says)


def test_several_inputs_keep_the_names_that_the_model_knows(tmp_path: Path) -> None:
    inputs = {"left": models.X, "right": models.X[:, 1:]}
    models.msgpack(tmp_path / "ckpt", models.linen_variables(models.Pair(), **inputs))
    test = {"left_test": X_TEST, "right_test": X_TEST[:, 1:]}
    write_data(tmp_path, inputs, models.VALUES, **test, y_test=VALUES_TEST)
    found = influence.read_queries(load(tmp_path, spec_for("Pair", data={"inputs": "left,right"})), ":")
    assert set(found.batches.inputs) == {"left", "right"}
    np.testing.assert_array_equal(found.batches.inputs["right"], X_TEST[:, 1:])


# --- which labels are clean -------------------------------------------------------------------------------


def test_which_labels_are_clean(tmp_path: Path) -> None:
    clean = np.array([1, 0, 1, 1, 0, 1])
    found = influence.read_clean(plain(tmp_path, clean=clean))
    np.testing.assert_array_equal(found, clean == 1)
    assert found is not None
    assert found.dtype == bool
    few = load(tmp_path, small(tmp_path), num_examples=3)
    write_data(tmp_path, models.X, models.VALUES, clean=clean)
    np.testing.assert_array_equal(influence.read_clean(few), clean[:3] == 1)


def test_data_that_do_not_say_which_labels_are_clean(tmp_path: Path) -> None:
    assert influence.read_clean(plain(tmp_path)) is None
    refused(DataError, influence.read_clean, plain(tmp_path, clean=np.ones((COUNT, 2))), says="[6, 2]")
    refused(DataError, influence.read_clean, plain(tmp_path, clean=np.ones(3)), says="[3]")


# --- groups -----------------------------------------------------------------------------------------------

NAMES = ["a", "b", "a", "café", "b", ""]


@pytest.mark.parametrize("kind", ["npy", "npz", "text", "no newline at the end", "numbers"])
def test_groups(tmp_path: Path, kind: str) -> None:
    path = tmp_path / {"npy": "g.npy", "npz": "g.npz", "numbers": "n.npy"}.get(kind, "g.txt")
    if kind == "npy":
        np.save(path, np.array(NAMES)[:, None])
    elif kind == "npz":
        np.savez(path, group=np.array(NAMES), other=np.zeros(2))
    elif kind == "numbers":
        np.save(path, np.array([3, 1, 3, 0, 1, 7]))
    else:
        path.write_text("\n".join(NAMES) + ("\n" if kind == "text" or NAMES[-1] == "" else ""), encoding="utf-8")
    expected = ["3", "1", "3", "0", "1", "7"] if kind == "numbers" else NAMES
    assert influence.read_groups(path, COUNT).tolist() == expected


def test_groups_that_are_none(tmp_path: Path) -> None:
    refused(NotFoundError, influence.read_groups, tmp_path / "none.txt", COUNT, says="none.txt")
    refused(NotFoundError, influence.read_groups, tmp_path / "none.npy", COUNT, says="none.npy")
    text, binary, pickled = tmp_path / "g.txt", tmp_path / "b.txt", tmp_path / "p.npy"
    text.write_text("a\nb\n")
    refused(DataError, influence.read_groups, text, COUNT, says=("[2]", "6 examples"))
    binary.write_bytes(b"\xff\xfe\x00")
    refused(DataError, influence.read_groups, binary, COUNT, says="UTF-8")
    np.save(pickled, np.array([object()] * COUNT), allow_pickle=True)
    refused(DataError, influence.read_groups, pickled, COUNT, says="p.npy")
    np.savez(tmp_path / "several.npz", a=np.zeros(COUNT), b=np.zeros(COUNT))
    refused(DataError, influence.read_groups, tmp_path / "several.npz", COUNT, says=("group", "a, b"))


# --- changes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "shape"), [("remove", (COUNT,)), ("label-perturb", (COUNT, 2)), ("input-perturb", (COUNT, 3))]
)
def test_changes_have_the_shape_of_what_they_change(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    loaded, path = plain(tmp_path), tmp_path / "change.npy"
    change = RNG.integers(-2, 3, shape)
    np.save(path, change)
    found = influence.read_change(path, loaded, mode)
    np.testing.assert_array_equal(found, change)
    assert found.dtype == np.float64
    for wrong in (change[:-1], change.T if change.ndim > 1 else change[:, None], np.zeros(())):
        np.save(path, wrong)
        refused(DataError, influence.read_change, path, loaded, mode, says=(str(list(wrong.shape)), str(list(shape))))
    for wrong in (np.full(shape, np.nan), np.full(shape, "a")):
        np.save(path, wrong)
        refused(DataError, influence.read_change, path, loaded, mode, says="finite")
    refused(NotFoundError, influence.read_change, tmp_path / "none.npy", loaded, mode, says="none.npy")
    path.write_bytes(b"no array")
    refused(DataError, influence.read_change, path, loaded, mode, says="change.npy")


def test_changes_of_tokens(tmp_path: Path) -> None:
    loaded, path = tokens(tmp_path), tmp_path / "change.npy"
    for mode, shapes in (("remove", [(COUNT,), models.MASK.shape]), ("label-perturb", [(*models.MASK.shape, 3)])):
        for shape in shapes:
            np.save(path, np.ones(shape))
            assert influence.read_change(path, loaded, mode).shape == shape


def test_changes_of_several_inputs_by_name(tmp_path: Path) -> None:
    inputs = {"left": models.X, "right": models.X[:, 1:]}
    models.msgpack(tmp_path / "ckpt", models.linen_variables(models.Pair(), **inputs))
    write_data(tmp_path, inputs, models.VALUES)
    loaded, path = load(tmp_path, spec_for("Pair", data={"inputs": "left,right"})), tmp_path / "change.npz"
    np.savez(path, left=inputs["left"], right=inputs["right"])
    found = influence.read_change(path, loaded, "input-perturb")
    np.testing.assert_array_equal(found["right"], inputs["right"])
    np.savez(path, left=inputs["left"], middle=inputs["right"])
    refused(DataError, influence.read_change, path, loaded, "input-perturb", says=("right", "left, middle"))


# --- functions --------------------------------------------------------------------------------------------

number = 3


def weighted(z: Any, t: Any, theta: Any) -> Any:
    """Losses that grow with θ."""
    return (1 + theta) * 0.5 * jnp.sum(jnp.square(z - t), axis=-1)


def test_functions_of_hyperparameters(tmp_path: Path) -> None:
    loaded = plain(tmp_path)
    text = f"loss:{__name__}:weighted"
    assert influence.hyper_functions(loaded, ["l2", text, "class-weights"]) == {text: weighted}
    refused(SpecError, influence.hyper_functions, loaded, [f"regulariser:{__name__}:number"], says=("number", "theta"))
    refused(SpecError, influence.hyper_functions, loaded, [f"loss:{__name__}:none"], says="none")
