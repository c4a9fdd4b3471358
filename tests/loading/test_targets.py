"""Targets: the user's own code, imported where the user named it and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curvcli.errors import SpecError
from curvcli.loading.resolve import load_problem
from curvcli.loading.spec.files import FoundSpec, merge
from curvcli.schema.settings import DataSettings
from tests.loading import models
from tests.loading.models import HERE, load, refused, small, spec_for, write_data


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("mlp.py", ["'mlp.py' is not a target", "package.module:attribute"]),
        (":mlp", ["':mlp' is not a target", "file.py:attribute"]),
        ("no_such_module:f", ["no_such_module:f fails to import: ModuleNotFoundError", "install no_such_module"]),
        (f"{HERE}:MPL", [f"{HERE} has no 'MPL'", "it has: ", "CNN"]),
        (f"{HERE}:CNN.x.y", ["has no 'x'"]),
        ("bad.py:f", ["bad.py:f fails to import: SystemExit: 4"]),
    ],
)
def test_a_target_that_cannot_be_had_is_told(tmp_path: Path, target: str, says: list[str]) -> None:
    (tmp_path / "bad.py").write_text("import sys\nsys.exit(4)\n")
    refused(SpecError, load, tmp_path, {**small(tmp_path), "model": {"target": target}}, says=says)


@pytest.mark.parametrize(
    ("table", "entries"),
    [
        ("model", {"target": "evil.py:model"}),
        ("model", {"target": "evil:model"}),
        ("data", {"path": "evil.py:data"}),
        ("loss", {"name": "evil.py:loss"}),
        ("loss", {"name": "squared_error", "regulariser": "evil.py:loss"}),
        ("model", {"target": "curvcli.zoo:np.save", "kwargs": {"file": "evil.txt", "arr": 1}}),
        ("model", {"target": "curvcli.zoo:partial"}),
        ("model", {"target": "curvcli.zoo:jax"}),
    ],
)
def test_code_beside_the_checkpoint_does_not_run_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, entries: dict[str, Any]
) -> None:
    (tmp_path / "evil.py").write_text("open('evil.txt', 'w')\nmodel = loss = data = print\n")
    monkeypatch.chdir(tmp_path)
    spec = {**spec_for("curvcli.zoo:MLP", model={"kwargs": {"features": [4, 2]}}), table: entries}
    models.msgpack(tmp_path / "ckpt", dense_params())
    write_data(tmp_path, models.X, models.VALUES)
    named = entries.get("regulariser") or entries.get("target") or entries.get("path") or entries["name"]
    refused(SpecError, load, tmp_path, spec, trusted=False, says=[f"curv.toml names code to run: {named}", "--trust"])
    assert not (tmp_path / "evil.txt").exists()


def dense_params() -> dict[str, Any]:
    """Of the zoo's MLP with features (4, 2)."""
    first, second = models.list_params()
    names = {"Dense_0": first, "Dense_1": second}
    return {"params": {name: {"kernel": layer["w"], "bias": layer["b"]} for name, layer in names.items()}}


def test_the_zoo_runs_without_trust_and_its_folder_shadows_nothing(tmp_path: Path) -> None:
    models.msgpack(tmp_path / "ckpt", dense_params())
    write_data(tmp_path, models.X, models.VALUES)
    spec = spec_for("curvcli.zoo:MLP", model={"kwargs": {"features": [4, 2]}})
    assert load(tmp_path, spec, trusted=False).problem.dim == 26
    assert str(tmp_path) not in sys.path


def test_the_users_own_word_stands_over_an_untrusted_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = FoundSpec({**small(tmp_path), "model": {"target": "evil.py:model"}}, tmp_path, "curv.toml", False)
    settings = DataSettings(dtype="float64")

    def load_with(target: str, trust: bool) -> Any:
        spec = merge(found, {"model": {"target": target}})
        return load_problem(spec, found, tmp_path / "ckpt", settings, step=None, trust=trust)

    assert load_with(f"{HERE}:mlp", False).problem.dim == 26
    (tmp_path / "evil.py").write_text(f"from {HERE} import mlp as model\n")
    refused(SpecError, load_with, "evil.py:model", False, says="--trust")
    assert load_with("evil.py:model", True).problem.dim == 26


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for name, width in (("run-1", 1.0), ("run-2", 2.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "net.py").write_text(f"def apply(params, x):\n    return {width} * x @ params['w']\n")
        models.npz(folder / "ckpt", {"w": np.ones((3, 2))})
        write_data(folder, models.X, models.VALUES)
        problem = load(folder, spec_for("net.py:apply")).problem
        outputs = problem.predict(problem.params, problem.frozen, models.X)
        np.testing.assert_allclose(outputs, width * models.X @ np.ones((3, 2)))
