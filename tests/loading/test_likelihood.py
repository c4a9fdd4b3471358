"""`[loss] likelihood`: what a user's loss stands for, and who may name code there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from curvcli.curvature import build
from curvcli.errors import SpecError
from curvcli.linalg.operator import to_dense
from curvcli.loading.spec.files import relative_to
from tests.loading import models
from tests.loading.models import HERE, load, refused, small

OWN = f"{HERE}:squared_error"
SAMPLER = """
def draw(outputs, key):
    import jax
    return outputs + jax.random.normal(key, outputs.shape, "float32")
"""


def spec_of(folder: Path, likelihood: str | None) -> dict[str, dict[str, Any]]:
    """A user's squared error with this likelihood."""
    (folder / "laws.py").write_text(SAMPLER + "def sums(outputs, key):\n    return outputs.sum()\nname = 'draw'\n")
    return small(folder, OWN, loss={"likelihood": likelihood} if likelihood else {})


def dense(folder: Path, spec: dict[str, dict[str, Any]], name: str) -> np.ndarray:
    return to_dense(build(load(folder, spec).problem, name, mc_samples=2))


def test_a_family_gives_its_fisher_matrices(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "squared_error")
    np.testing.assert_allclose(dense(tmp_path, spec, "fisher"), dense(tmp_path, spec, "ggn"), rtol=1e-10, atol=1e-12)
    assert np.trace(dense(tmp_path, spec, "fisher-mc")) > 0


def test_a_sampler_gives_the_sampled_one(tmp_path: Path) -> None:
    """The file is relative to the curv.toml, and the draws are those of the table's normal law with the same keys."""
    found = dense(tmp_path, spec_of(tmp_path, "laws.py:draw"), "fisher-mc")
    assert jax.numpy_rank_promotion.value == "raise"
    family = spec_of(tmp_path, "squared_error")
    # A sampler is called with float32 outputs, whatever the arithmetic: its targets are rounded to that type.
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(found, dense(tmp_path, family, "fisher-mc"), rtol=50 * eps, atol=50 * eps)


@pytest.mark.parametrize(
    ("likelihood", "says"),
    [
        ("squared_eror", ["unknown [loss] likelihood", "did you mean squared_error"]),
        ("normal", ["unknown [loss] likelihood 'normal'", "poisson", "module:fn"]),
        ("laws.py:name", ["laws.py:name is no function", "fn(outputs, key)"]),
        ("laws.py:nothing", ["has no 'nothing'"]),
        ("laws.py:sums", ["draws targets of shape [] for one example", "[1, 2]"]),
        (f"{HERE}:linen_variables", ["the likelihood fails", "[loss] likelihood"]),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, likelihood: str, says: list[str]) -> None:
    refused(SpecError, load, tmp_path, spec_of(tmp_path, likelihood), says=says)


def test_class_labels_need_several_outputs(tmp_path: Path) -> None:
    models.npz(tmp_path / "ckpt", {"w": np.ones((3, 1))})
    models.write_data(tmp_path, models.X, models.VALUES[:, :1])
    (tmp_path / "one.py").write_text("def model(p, x):\n    return x @ p['w']\n")
    spec = {
        "model": {"target": "one.py:model"}, "data": {"path": "data.npz"},
        "loss": {"name": OWN, "likelihood": "softmax_cross_entropy"},
    }  # fmt: skip
    refused(SpecError, load, tmp_path, spec, says=["softmax_cross_entropy", "sigmoid_cross_entropy"])


def test_a_known_loss_is_its_own_likelihood(tmp_path: Path) -> None:
    spec = small(tmp_path, "squared_error", loss={"likelihood": "poisson"})
    assert any("likelihood is not used" in warning for warning in load(tmp_path, spec).warnings)
    assert not load(tmp_path, small(tmp_path, "squared_error", loss={"likelihood": "squared_error"})).warnings


def test_code_beside_the_checkpoint_does_not_run_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = spec_of(tmp_path, "laws.py:draw")
    (tmp_path / "laws.py").write_text("open('evil.txt', 'w')\ndraw = print\n")
    spec["model"]["target"], spec["loss"]["name"] = "curvcli.zoo:MLP", "curvcli.zoo:rescale"
    spec["model"]["kwargs"] = {"features": [4, 2]}
    first, second = models.list_params()
    names = {"Dense_0": first, "Dense_1": second}
    models.msgpack(
        tmp_path / "ckpt", {"params": {n: {"kernel": one["w"], "bias": one["b"]} for n, one in names.items()}}
    )
    refused(SpecError, load, tmp_path, spec, trusted=False, says=["names code to run: laws.py:draw", "--trust"])
    assert not (tmp_path / "evil.txt").exists()


def test_a_moved_specification_keeps_its_sampler(tmp_path: Path) -> None:
    spec = load(tmp_path, spec_of(tmp_path, "laws.py:draw")).spec
    folder = tmp_path / "deeper"
    folder.mkdir()
    document = relative_to(spec, checkpoint=tmp_path / "ckpt", base=tmp_path, folder=folder)
    assert document["loss"]["likelihood"] == "../laws.py:draw"
