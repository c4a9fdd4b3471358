"""Targets, masks and ignored labels against outputs and losses, value by value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from curvcli.errors import DataError, SpecError
from curvcli.loading.data.labels import fit_targets, row_remarks
from curvcli.losses import LOSSES, user_loss
from tests.loading import models

SOFTMAX, SQUARED = LOSSES["softmax_cross_entropy"], LOSSES["squared_error"]
LABELS = np.array([0, 2, 1, 1])
TOKENS = np.array([[0, -1], [2, 1], [-1, -1], [1, 0]])


def fit(targets: Any, *shape: int, loss: Any = SOFTMAX, mask: Any = None, ignore: int | None = None) -> Any:
    """Targets and mask against outputs of a batch of two."""
    outputs = jax.ShapeDtypeStruct((2, *shape), "float64")
    return fit_targets(loss, outputs, targets, None if mask is None else np.asarray(mask), ignore)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64", "bool"])
def test_class_numbers_become_int32(dtype: str) -> None:
    labels = (LABELS % 2).astype(dtype)
    found, mask = fit(labels, 3)
    np.testing.assert_array_equal(found, (LABELS % 2).astype(np.int32), strict=True)
    assert mask is None


@pytest.mark.parametrize(
    ("loss", "targets", "dtype"),
    [
        ("softmax_cross_entropy", np.eye(3, dtype=np.int64)[LABELS], "float64"),
        ("softmax_cross_entropy", np.eye(3, dtype=np.uint8)[LABELS], "float32"),
        ("softmax_cross_entropy", np.eye(3)[LABELS] * 0.5, "float64"),
        ("sigmoid_cross_entropy", np.eye(3, dtype=bool)[LABELS], "float32"),
        ("poisson", np.full((4, 3), 2**24 + 1, np.int32), "float64"),
        ("squared_error", np.full((4, 3), -3, np.int8), "float32"),
    ],
)
def test_rows_of_numbers_keep_their_values(loss: str, targets: np.ndarray, dtype: str) -> None:
    found, _ = fit(targets, 3, loss=LOSSES[loss])
    np.testing.assert_array_equal(found, targets)
    assert found.dtype == dtype


def test_ignored_labels_have_weight_zero() -> None:
    keep = (TOKENS >= 0).astype(np.float32)
    found, mask = fit(TOKENS, 2, 3, ignore=-1)
    np.testing.assert_array_equal(found, TOKENS.astype(np.int32), strict=True)
    np.testing.assert_array_equal(mask, keep, strict=True)
    np.testing.assert_array_equal(fit(TOKENS + 8, 2, 11, ignore=7)[0], np.where(TOKENS < 0, -1, TOKENS + 8))
    for given in ([2, 0, 1, 1], [[1, 1], [0.5, 0], [1, 0], [1, 1]]):
        weight = np.asarray(given, np.float32)
        _, mask = fit(TOKENS, 2, 3, ignore=-1, mask=weight)
        np.testing.assert_array_equal(mask, keep * (weight if weight.ndim > 1 else weight[:, None]))
    assert TOKENS.min() == -1


def test_a_label_may_be_anything_where_it_is_masked_out() -> None:
    weight = np.array([[1, 0], [1, 1], [0, 0], [1, 1]])
    found, mask = fit(np.where(weight, np.maximum(TOKENS, 0), 99), 2, 3, mask=weight)
    np.testing.assert_array_equal(found * weight, np.maximum(TOKENS, 0) * weight)
    np.testing.assert_array_equal(mask, weight)
    np.testing.assert_array_equal(fit(np.array([0, -7, 1, 2]), 3, mask=[1, 0, 1, 1])[0], [0, -1, 1, 2])


def test_rows_of_zeros_are_padding() -> None:
    rows = np.eye(3)[LABELS] * [[1], [0], [2], [0.5]]
    for targets in (rows, rows.astype(np.float32), (2 * rows).astype(np.int8)):
        np.testing.assert_array_equal(fit(targets, 3)[1], [1, 0, 1, 1])
        np.testing.assert_array_equal(fit(targets, 3, mask=[0.5, 1, 0, 2])[1], [0.5, 0, 0, 2])
    tokens = np.eye(3)[np.maximum(TOKENS, 0)] * (TOKENS >= 0)[..., None]
    np.testing.assert_array_equal(fit(tokens, 2, 3)[1], TOKENS >= 0)
    np.testing.assert_array_equal(fit(tokens, 2, 3, mask=[2, 1, 1, 0])[1], (TOKENS >= 0) * [[2], [1], [1], [0]])
    for loss in ("sigmoid_cross_entropy", "poisson", "squared_error"):  # zero is a target like any other
        assert fit(rows.clip(max=1), 3, loss=LOSSES[loss])[1] is None


def test_what_is_said_of_rows_that_are_no_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvcli.loading.data.labels.ROWS", 2)
    rows = np.eye(3)[LABELS]
    assert row_remarks(rows.astype(np.float16) * np.float16(0.9995), np.ones(4)) == []
    empty, sums = row_remarks(rows * [[1], [0], [2], [0.5]], np.array([1, 0, 1, 1]))
    assert "1 rows of the targets are zero" in empty
    assert "sum to 0.5 … 2" in sums
    assert row_remarks(rows * [[1], [1], [2], [1]], np.array([1, 1, 0, 1])) == []  # of weight 0


@pytest.mark.parametrize(
    ("targets", "shape", "options", "says"),
    [
        (np.array([0, 1, 3, 5]), (3,), {}, ["label 3 in row 2", "0 … 2", "--targets"]),
        (np.array([0, -1, 1, -2]), (3,), {}, ["label -1 in row 1", "ignore_label"]),
        (np.array([0, -1, 1, -2]), (3,), {"ignore": -1}, ["label -2 in row 3", "ignore_label"]),
        (np.array([0, 4, 1, 1]), (3,), {"mask": [0, 1, 1, 1]}, ["label 4 in row 1"]),
        (TOKENS, (2, 3), {"mask": [1, 1, 0, 1]}, ["label -1 in row 0"]),
        (np.array([2**40, 0, 0, 0]), (3,), {}, ["label 1099511627776 in row 0"]),
        (LABELS.astype(float), (3,), {}, ["class numbers of dtype float64", "integers"]),
        (LABELS[:, None], (3,), {}, ["[N, 1]", "[N, 3] or integer [N]", "reshape"]),
        (np.eye(4)[LABELS], (3,), {}, ["[N, 4]", "[N, 3]"]),
        (TOKENS, (3,), {}, ["[N, 2]", "[N, 3] or integer [N]"]),
        (LABELS, (2, 3), {}, ["shape [N]", "[N, 2, 3] or integer [N, 2]"]),
        (np.zeros(4), (1,), {"loss": SQUARED}, ["shape [N]", "squared_error needs [N, 1]"]),
        (np.array([[0.0], [1], [-0.5], [2]]), (1,), {"loss": LOSSES["sigmoid_cross_entropy"]},
         ["target -0.5 in row 2", "[0, 1]", "--loss"]),
        (np.array([[0], [1], [1], [2]]), (1,), {"loss": LOSSES["sigmoid_cross_entropy"]}, ["target 2 in row 3"]),
        (np.array([[0.0], [-1]]), (1,), {"loss": LOSSES["poisson"]}, ["target -1 in row 1", "poisson"]),
        (-np.eye(3)[LABELS], (3,), {}, ["target -1 in row 0", "softmax_cross_entropy"]),
        (LABELS, (3,), {"mask": np.ones((4, 2))}, ["mask has shape [4, 2]", "losses [N]", "[N, T]"]),
        (TOKENS, (2, 3), {"mask": np.ones((4, 3))}, ["mask has shape [4, 3]", "losses [N, 2]"]),
        (TOKENS, (2, 3), {"mask": np.ones((4, 1)), "ignore": -1}, ["mask has shape [4, 1]"]),
        (np.eye(3)[LABELS], (3,), {"mask": np.ones((4, 3))}, ["mask has shape [4, 3]", "losses [N]"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(
    targets: np.ndarray, shape: tuple[int, ...], options: dict[str, Any], says: list[str]
) -> None:
    models.refused(DataError, fit, targets, *shape, says=says, **options)


@pytest.mark.parametrize(
    ("targets", "shape", "options", "says"),
    [
        (np.zeros(4, int), (1,), {}, ["single output", "sigmoid_cross_entropy"]),
        (np.zeros((4, 1), int), (1,), {}, ["single output", "sigmoid_cross_entropy"]),
        (np.zeros((4, 2)), (2,), {"loss": SQUARED, "ignore": -1}, ["ignore_label", "squared_error", "mask"]),
        (np.eye(3)[LABELS], (3,), {"ignore": -1}, ["ignore_label", "class numbers", "mask"]),
        (LABELS, (3,), {"loss": user_loss("m:f", max), "ignore": -1}, ["ignore_label", "m:f", "mask"]),
    ],
)
def test_what_would_silently_mean_something_else_is_told(
    targets: np.ndarray, shape: tuple[int, ...], options: dict[str, Any], says: list[str]
) -> None:
    models.refused(SpecError, fit, targets, *shape, says=says, **options)


def test_targets_of_a_users_loss_are_taken_as_they_are() -> None:
    targets = np.array(["anything"])
    assert fit(targets, loss=user_loss("m:f", max))[0] is targets


def test_rows_are_counted_over_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvcli.loading.data.labels.ROWS", 3)
    np.save(tmp_path / "y.npy", np.array([0, 1, 2, 0, 1, 2, 0, 7]))
    labels = np.load(tmp_path / "y.npy", mmap_mode="r")
    models.refused(DataError, fit, labels, 3, says="label 7 in row 7")
    models.refused(DataError, fit, labels, 3, mask=[1] * 8, says="label 7 in row 7")
    sigmoid = replace(LOSSES["sigmoid_cross_entropy"])
    models.refused(DataError, fit, labels[:, None].astype(float), 1, loss=sigmoid, says="target 2 in row 2")
    assert fit(labels, 3, mask=[1] * 7 + [0])[0][-1] == -1


def test_a_column_of_a_table_fits_a_single_output(tmp_path: Any) -> None:
    """A .csv cannot say [N, 1]; an array can, and [N] against [N, 1] stays an error."""
    from curvcli.cli.main import run

    rows = np.random.default_rng(0).normal(size=(12, 3))
    (tmp_path / "d.csv").write_text("a,b,t\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n")
    np.savez(tmp_path / "w.npz", w=np.ones((2, 1)))
    (tmp_path / "net.py").write_text("def net(params, x):\n    return x @ params['w']\n")
    options = ["--model", f"{tmp_path}/net.py:net", "--loss", "squared_error", "--targets", "t", "-q"]
    report = tmp_path / "r.json"
    done = run(
        ["spectrum", f"{tmp_path}/w.npz", "--data", f"{tmp_path}/d.csv", "--inputs", "a,b", *options, "-o", f"{report}"]
    )
    assert done == 0
    np.savez(tmp_path / "d.npz", x=rows[:, :2], t=rows[:, 2])
    assert run(["spectrum", f"{tmp_path}/w.npz", "--data", f"{tmp_path}/d.npz", *options]) == 65
