"""Digests in curv.toml: of the checkpoint and the data that it names, and of no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curvcli.errors import DataError
from curvcli.loading.resolve import Loaded, load_problem
from curvcli.loading.spec.files import FoundSpec, merge
from curvcli.schema.settings import DataSettings
from tests.loading import models
from tests.loading.models import VALUES, X, refused, small

Values = dict[str, dict[str, Any]]


def load(folder: Path, values: Values, over: Any = None, checkpoint: str = "ckpt", **settings: Any) -> Loaded:
    found = FoundSpec(values, folder, "curv.toml", trusted=True)
    given = DataSettings(dtype="float64", **settings)
    return load_problem(merge(found, over or {}), found, folder / checkpoint, given, step=None, trust=False)


@pytest.fixture
def pinned(tmp_path: Path) -> Values:
    """A curv.toml with both digests."""
    values = small(tmp_path, checkpoint={"path": "ckpt"})
    made = load(tmp_path, values)
    values["checkpoint"]["sha256"], values["data"]["sha256"] = made.checkpoint.sha256, made.data.sha256
    return values


def test_data_are_compared_with_their_digest(tmp_path: Path, pinned: Values) -> None:
    assert load(tmp_path, pinned).data.sha256 == pinned["data"]["sha256"]
    models.write_data(tmp_path, X, np.concatenate([VALUES[:-1], VALUES[-1:] + 1]))
    for count in (None, 2):  # of two examples nothing has changed, but the file has
        refused(DataError, load, tmp_path, pinned, num_examples=count, says=["data.npz is not what", "[data] sha256"])


def test_a_part_of_the_data_has_its_own_digest_in_the_report(tmp_path: Path, pinned: Values) -> None:
    part = load(tmp_path, pinned, num_examples=2)
    assert part.problem.batches.num_examples == 2
    assert part.data.sha256 != pinned["data"]["sha256"]
    del pinned["data"]["sha256"]
    assert load(tmp_path, pinned, num_examples=2).data.sha256 == part.data.sha256


def test_other_data_on_the_command_line_are_not_measured_by_it(tmp_path: Path, pinned: Values) -> None:
    np.savez(tmp_path / "other.npz", x=X, y=VALUES + 1, z=VALUES)
    other, same = str(tmp_path / "other.npz"), str(tmp_path / "data.npz")
    assert load(tmp_path, pinned, {"data": {"path": other}}).spec.data.sha256 is None
    assert load(tmp_path, pinned, {"data": {"path": other, "targets": "z"}}).spec.data.sha256 is None
    assert load(tmp_path, pinned, {"data": {"path": same, "inputs": "x", "targets": None}}).spec.data.sha256
    models.write_data(tmp_path, X, VALUES + 1)
    refused(DataError, load, tmp_path, pinned, {"data": {"path": same, "inputs": "x"}}, says="[data] sha256")


def test_another_checkpoint_is_not_measured_by_it(tmp_path: Path, pinned: Values) -> None:
    layers = models.list_params()
    layers[0]["w"] = layers[0]["w"] * 2
    models.npz(tmp_path / "other", layers)
    assert load(tmp_path, pinned, checkpoint="other").spec.checkpoint.sha256 is None
    (tmp_path / "link").symlink_to(tmp_path / "ckpt")
    assert load(tmp_path, pinned, checkpoint="link").spec.checkpoint.sha256 == pinned["checkpoint"]["sha256"]
    models.npz(tmp_path / "ckpt", layers)
    for name in ("ckpt", "link"):
        refused(DataError, load, tmp_path, pinned, checkpoint=name, says="[checkpoint] sha256")
