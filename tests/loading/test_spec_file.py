"""Where curv.toml is found, what is laid over it, what is wrong in it, and how it is written for another folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from curvcli.errors import NotFoundError, SpecError
from curvcli.loading.checkpoints.orbax import read_metadata
from curvcli.loading.checkpoints.reading import load_checkpoint
from curvcli.loading.resolve import checkpoint_path, load_problem
from curvcli.loading.spec.files import FoundSpec, find_spec, merge, relative_to
from curvcli.schema.settings import DataSettings
from tests.loading import models
from tests.loading.models import ocp, refused

NAME = "curv.toml"


def write(path: Path, loss: str = "poisson") -> Path:
    """A curv.toml that tells where it lies by its loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'[loss]\nname = "{loss}"\n')
    return path


def name_of(found: FoundSpec) -> str:
    return merge(found, {}).loss.name or "none"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, two levels below another, with a checkpoint folder that lies elsewhere."""
    here = tmp_path / "home" / "project"
    here.mkdir(parents=True)
    (tmp_path / "runs" / "100" / "default").mkdir(parents=True)
    monkeypatch.chdir(here)
    return here


# --- where it is found ------------------------------------------------------------------------------------


def test_the_order_of_the_search(project: Path, tmp_path: Path) -> None:
    item = tmp_path / "runs" / "100" / "default"
    places = [
        ("in", item / NAME),
        ("step", item.parent / NAME),
        ("root", item.parent.parent / NAME),
        ("beside", item.parent / f"default.{NAME}"),
    ]
    elsewhere = [("here", project / NAME), ("parent", project.parent / NAME)]
    for name, path in [*places, *elsewhere]:
        write(path, name)
    embedded = {"curv": {"loss": {"name": "metadata"}}}
    given = write(tmp_path / "other.toml", "given")
    assert name_of(find_spec(item, given, lambda _: embedded)) == "given"
    for name, path in places:
        found = find_spec(item, None, lambda _: embedded)
        assert (name_of(found), found.base, found.trusted) == (name, path.parent, False)
        path.unlink()
    found = find_spec(item, None, lambda _: embedded)
    assert (name_of(found), found.base, found.trusted) == ("metadata", item, False)
    assert str(item) in found.origin
    for name, path in elsewhere:
        for checkpoint in (item, None):
            found = find_spec(checkpoint, None)
            assert (name_of(found), found.base, found.trusted, found.carried) == (name, path.parent, False, False)
        path.unlink()
    assert find_spec(item, None) == FoundSpec({}, project, "the command line", True)


@pytest.mark.parametrize("step", ["100", "step_100", "ckpt-100"])
def test_a_step_takes_its_own_root_and_no_other_folder(project: Path, tmp_path: Path, step: str) -> None:
    root = tmp_path / "runs" / "one"
    (root / step).mkdir(parents=True)
    write(root.parent / NAME, "unrelated")
    assert name_of(find_spec(root / step, None)) == "none"
    write(root / f"{step}.{NAME}", "beside")
    assert name_of(find_spec(root / step, None)) == "beside"
    write(root / NAME, "root")
    assert name_of(find_spec(root / step, None)) == "root"


def test_a_checkpoint_that_is_no_step_does_not_take_the_folder_above(project: Path, tmp_path: Path) -> None:
    write(tmp_path / "models" / NAME, "above")
    (tmp_path / "models" / "final").mkdir()
    (tmp_path / "models" / "final.msgpack").touch()
    for name in ("final", "final.msgpack"):
        assert name_of(find_spec(tmp_path / "models" / name, None)) == "none"
    write(tmp_path / "models" / f"final.msgpack.{NAME}", "beside")
    assert name_of(find_spec(tmp_path / "models" / "final.msgpack", None)) == "beside"


@pytest.mark.parametrize("argument", [".", "../100", "../../runs/100"])
def test_a_relative_checkpoint(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    monkeypatch.chdir(tmp_path / "runs" / "100")
    assert name_of(find_spec(Path(argument), None)) == "none"
    write(tmp_path / "runs" / f"100.{NAME}", "beside")
    assert name_of(find_spec(Path(argument), None)) == "beside"
    write(tmp_path / "runs" / NAME, "root")
    assert name_of(find_spec(Path(argument), None)) == "root"
    write(tmp_path / "runs" / "100" / NAME, "in")
    found = find_spec(Path(argument), None)
    assert name_of(found) == "in"
    assert not found.carried  # it is the current folder's


def test_the_metadata_that_orbax_keeps(project: Path, tmp_path: Path) -> None:
    spec = {"loss": {"name": "poisson", "l2": 0.5}}
    with models.warnings.catch_warnings():
        models.warnings.simplefilter("ignore")
        with ocp.CheckpointManager(tmp_path / "root") as manager:
            manager.save(3, args=ocp.args.StandardSave({"w": np.ones(2)}), custom_metadata={"curv": spec})
    found = find_spec(tmp_path / "root" / "3", None, read_metadata)
    assert found.values == spec
    assert not found.trusted


# --- what is wrong in it ----------------------------------------------------------------------------------


def test_a_specification_that_is_not_there_is_told(project: Path) -> None:
    refused(NotFoundError, find_spec, None, Path("no.toml"), says=["no specification no.toml", "--spec"])


@pytest.mark.parametrize(
    "content", [b"[model\n", b"a = 1\na = 2\n", b'x = "\xff"\n', b"\xef\xbb\xbf[loss]\n"]
)  # fmt: skip
def test_what_is_no_toml_is_told(project: Path, content: bytes) -> None:
    Path(NAME).write_bytes(content)
    refused(SpecError, find_spec, None, None, says=[f"{NAME} is not valid TOML: ", "curv init"])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"los": {"name": "poisson"}}, ["unknown key [los] in FILE", "known here: model, checkpoint, data, loss"]),
        ({"loss": {"nam": "poisson"}}, ["unknown key [loss] nam in FILE", "name, likelihood, l2"]),
        ({"loss": {"l2": -1.0}}, ["[loss] l2 in FILE", "greater than or equal to 0"]),
        ({"loss": {"l2": "much"}}, ["[loss] l2 in FILE", "valid number"]),
        ({"loss": {"l2": float("inf")}}, ["[loss] l2 in FILE", "finite"]),
        ({"loss": {"reduction": "max"}}, ["[loss] reduction in FILE", "'mean', 'sum' or 'tokens'"]),
        ({"loss": {"ignore_label": 0.5}}, ["[loss] ignore_label in FILE", "integer"]),
        ({"model": {"kind": "torch"}}, ["[model] kind in FILE", "'linen', 'nnx' or 'apply'"]),
        ({"model": {"target": 3}}, ["[model] target in FILE", "string"]),
        ({"model": {"kwargs": [1]}}, ["[model] kwargs in FILE", "dictionary"]),
        ({"data": "data.npz"}, ["[data] in FILE", "dictionary"]),
        ({"loss": 3}, ["[loss] in FILE", "dictionary"]),
        ({"data": {"path": ["a", "b"]}}, ["[data] path in FILE", "string"]),
        ({"checkpoint": {"sha": "0"}}, ["unknown key [checkpoint] sha in FILE", "path, params, sha256"]),
    ],
)
def test_a_key_that_is_wrong_is_named(values: dict[str, Any], says: list[str]) -> None:
    found = FoundSpec(values, Path(), "FILE", True)
    over: dict[str, dict[str, Any]] = {"loss": {"name": "poisson"}, "model": {"kwargs": {"width": 3}}}
    for overrides in ({}, over):
        refused(SpecError, merge, found, overrides, says=says)


# --- what is laid over it ---------------------------------------------------------------------------------


def test_what_is_given_goes_before_what_is_written() -> None:
    values = {
        "model": {"target": "a:b", "kwargs": {"width": 3, "depth": 2}},
        "loss": {"name": "poisson", "l2": 0.5, "reduction": "sum"},
    }
    found = FoundSpec(values, Path(), "FILE", True)
    overrides = {
        "model": {"target": None, "kwargs": {"depth": 4, "act": "relu"}},
        "loss": {"name": "squared_error", "l2": 0.0, "reduction": None},
        "data": {"path": "d.npz", "mask": None},
    }
    spec = merge(found, overrides)
    assert spec.model.target == "a:b"
    assert spec.model.kwargs == {"width": 3, "depth": 4, "act": "relu"}
    assert (spec.loss.name, spec.loss.l2, spec.loss.reduction) == ("squared_error", 0.0, "sum")
    assert (spec.data.path, spec.data.inputs, spec.data.mask) == ("d.npz", "x", None)
    assert values["model"]["kwargs"] == {"width": 3, "depth": 2}
    assert values["loss"]["name"] == "poisson"
    assert merge(FoundSpec({}, Path(), "", True), {"loss": {"l2": None}}).loss.l2 == 0


# --- written for another folder ---------------------------------------------------------------------------

NET = """
import jax.numpy as jnp

def net(params, x):
    return x @ params["w"]

def loss(z, t):
    return jnp.sum((z - t) ** 2, axis=-1)

def penalty(params):
    return jnp.sum(params["w"] ** 2)
"""


@pytest.mark.parametrize("linked", [False, True])
def test_a_specification_written_for_another_folder_means_the_same(tmp_path: Path, linked: bool) -> None:
    first, second = tmp_path / "a" / "project", tmp_path / "b"
    (first / "code").mkdir(parents=True)
    (tmp_path / "far" / "away").mkdir(parents=True)
    if linked:  # a step up from a link leads to where the folder really is
        second.symlink_to(tmp_path / "far" / "away", target_is_directory=True)
    else:
        second.mkdir()
    (first / "code" / "net.py").write_text(NET)
    models.npz(first / "ckpt", {"w": np.ones((3, 2))})
    models.write_data(first, models.X, models.VALUES)
    values = {
        "model": {"target": "code/net.py:net"},
        "checkpoint": {"path": "ckpt", "sha256": load_checkpoint(first / "ckpt").sha256},
        "data": {"path": "data.npz"},
        "loss": {"name": "code/net.py:loss", "regulariser": "code/net.py:penalty", "reduction": "sum"},
    }
    spec = merge(FoundSpec(values, first, "FILE", True), {})
    document = relative_to(spec, checkpoint=first / "ckpt", base=first, folder=second)
    up = "../../a/project" if linked else "../a/project"
    assert document == {
        "model": {"target": f"{up}/code/net.py:net"},
        "checkpoint": {"path": f"{up}/ckpt", "sha256": spec.checkpoint.sha256},
        "data": {"path": f"{up}/data.npz"},
        "loss": {"name": f"{up}/code/net.py:loss", "regulariser": f"{up}/code/net.py:penalty", "reduction": "sum"},
    }
    (second / NAME).write_text(tomli_w.dumps(document))
    found = find_spec(None, second / NAME)
    again = merge(found, {})
    path = checkpoint_path(None, again, found.base)
    settings = DataSettings(dtype="float64")
    loaded = load_problem(again, found, path, settings, step=None, trust=False)
    assert loaded.problem.dim == 6
    assert loaded.problem.normaliser == 1
    back = relative_to(again, checkpoint=path, base=second, folder=first)
    assert back == values


@pytest.mark.parametrize("target", ["models:Net", "models.net:Net", "curvcli.zoo:MLP"])
def test_a_module_is_no_path_though_a_folder_has_its_name(tmp_path: Path, target: str) -> None:
    for name in ("models", "squared_error", "other"):
        (tmp_path / name).mkdir()
    spec = merge(
        FoundSpec(
            {"model": {"target": target}, "loss": {"name": "squared_error"}, "data": {"path": "models:data"}},
            tmp_path, "FILE", True,
        ),
        {},
    )  # fmt: skip
    document = relative_to(spec, checkpoint=tmp_path / "ckpt", base=tmp_path, folder=tmp_path / "other")
    assert document == {
        "model": {"target": target},
        "checkpoint": {"path": "../ckpt"},
        "data": {"path": "models:data"},
        "loss": {"name": "squared_error"},
    }


def test_defaults_are_left_out(tmp_path: Path) -> None:
    spec = merge(FoundSpec({"loss": {"l2": 0.0, "reduction": "mean"}, "data": {"inputs": "x"}}, tmp_path, "", True), {})
    assert relative_to(spec, checkpoint=tmp_path, base=tmp_path, folder=tmp_path) == {"checkpoint": {"path": "."}}
