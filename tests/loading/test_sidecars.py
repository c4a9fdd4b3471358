"""What a checkpoint's own specification may do unasked: no code, no file far away, no pickle in anything it names."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curvcli.errors import DataError, NotFoundError, SpecError
from curvcli.loading.resolve import Loaded, load_problem
from curvcli.loading.spec.files import FoundSpec, find_spec, merge
from curvcli.schema.settings import DataSettings
from tests.loading import models
from tests.loading.models import VALUES, X, refused, spec_for, write_data

SIZES = {"kwargs": {"features": [4, 2]}}


def dense() -> dict[str, Any]:
    """Of the zoo's MLP of these sizes."""
    layers = models.list_params()
    return {"params": {f"Dense_{i}": {"kernel": one["w"], "bias": one["b"]} for i, one in enumerate(layers)}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """near/model with a checkpoint and data, code that leaves a trace when it runs, and data further off."""
    place = tmp_path / "near" / "model"
    place.mkdir(parents=True)
    models.msgpack(place / "ckpt", dense())
    for other in (place, place.parent, tmp_path):
        write_data(other, X, VALUES)
    for other in (place, tmp_path):
        (other / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nmodel = loss = data = print\n")
    monkeypatch.chdir(tmp_path)
    return place


def load(place: Path, values: dict[str, Any], *, trust: bool = False, given: Any = None) -> Loaded:
    """Loaded by a sidecar, with what the command line gave over it."""
    found = FoundSpec(values, place, "the sidecar", trusted=False, carried=True)
    spec = merge(found, given or {})
    return load_problem(spec, found, place / "ckpt", DataSettings(dtype="float64"), step=None, trust=trust)


def sidecar(**tables: dict[str, Any]) -> dict[str, Any]:
    """A harmless sidecar with other entries over it."""
    return spec_for("curvcli.zoo:MLP", **{**tables, "model": {**SIZES, **tables.get("model", {})}})


CODE = [
    {"model": {"target": "evil.py:model"}},
    {"model": {"target": "evil:model"}},
    {"model": {"target": "curvcli.zoo:MLP.apply"}},
    {"model": {"target": "curvcli.zoo.evil:model"}},
    {"model": {"target": "os:system", "kwargs": {"command": "touch trace"}, "kind": "apply"}},
    {"data": {"path": "evil.py:data"}},
    {"data": {"path": "evil:data"}},
    {"loss": {"name": "evil.py:loss"}},
    {"loss": {"name": "evil:loss"}},
    {"loss": {"regulariser": "evil.py:loss"}},
    {"loss": {"name": "curvcli.zoo:latent_penalties", "likelihood": "evil.py:loss"}},
]
"""Every key that can name code; a likelihood is asked for only with a loss of one's own."""


@pytest.mark.parametrize("tables", CODE, ids=str)
def test_no_key_of_a_sidecar_runs_code(folder: Path, tables: dict[str, Any]) -> None:
    refused(SpecError, load, folder, sidecar(**tables), says=["the sidecar names code to run: ", "--trust"])
    assert not (folder.parent.parent / "trace").exists()


def test_every_key_that_can_name_code_is_known() -> None:
    """A key that is new in curv.toml must be looked at here: does it name code, or a path?"""
    from curvcli.schema.spec import ProblemSpec

    keys = {f"{t}.{key}" for t, field in ProblemSpec.model_fields.items() for key in type(field.default).model_fields}
    code = {f"{table}.{key}" for tables in CODE for table, entries in tables.items() for key in entries}
    harmless = {"model.kind", "model.kwargs", "checkpoint.params", "checkpoint.sha256", "data.inputs", "data.targets"}
    harmless |= {"data.split", "data.mask", "data.sha256", "loss.l2", "loss.reduction", "loss.ignore_label"}
    unread = {"checkpoint.path"}  # a sidecar is found from its checkpoint, whose path is known by then
    assert keys == code | harmless | unread


def test_the_zoo_and_data_nearby_need_no_trust(folder: Path) -> None:
    for path in ("data.npz", "../data.npz", str(folder.parent / "data.npz")):
        assert load(folder, sidecar(data={"path": path})).problem.dim == 26


def linked_file(folder: Path) -> str:
    (folder / "link.npz").symlink_to(folder.parent.parent / "data.npz")
    return "link.npz"


def linked_folder(folder: Path) -> str:
    (folder / "link").symlink_to(folder.parent.parent)
    return "link/data.npz"


def link_in_a_folder(folder: Path) -> str:
    (folder / "arrays").mkdir()
    np.save(folder / "arrays" / "y.npy", VALUES)
    np.save(folder.parent.parent / "x.npy", X)
    (folder / "arrays" / "x.npy").symlink_to(folder.parent.parent / "x.npy")
    return "arrays"


FAR: dict[str, Callable[[Path], str]] = {
    "..": lambda folder: "../../data.npz",
    "absolute": lambda folder: str(folder.parent.parent / "data.npz"),
    "link": linked_file,
    "folder linked": linked_folder,
    "link in a folder": link_in_a_folder,
}


@pytest.mark.parametrize("how", FAR)
def test_data_far_away_need_trust(folder: Path, how: str) -> None:
    path = FAR[how](folder)
    values = sidecar(data={"path": path})
    refused(SpecError, load, folder, values, says=[f"names data outside of {folder.parent}: {path}", "--trust"])
    assert load(folder, values, trust=True).problem.dim == 26
    elsewhere = str(folder.parent.parent / "elsewhere.npz")
    np.savez(elsewhere, x=X, y=VALUES)
    assert load(folder, values, given={"data": {"path": elsewhere}}).problem.dim == 26  # the user's own word


def test_a_split_is_no_way_out(folder: Path) -> None:
    (folder / "data").mkdir()
    np.save(folder.parent.parent / "x.npy", X)
    np.save(folder.parent.parent / "y.npy", VALUES)
    for split in ("../../..", "..", str(folder.parent.parent)):
        with pytest.raises((SpecError, NotFoundError)):
            load(folder, sidecar(data={"path": "data", "split": split}))


def test_a_sidecar_in_the_current_folder_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "ckpt.curv.toml").write_text('[model]\ntarget = "evil.py:model"\n')
    assert find_spec(Path("ckpt"), None).carried
    assert find_spec(Path("ckpt"), Path("ckpt.curv.toml")).trusted
    (folder / "ckpt.curv.toml").rename(folder / "curv.toml")
    found = find_spec(Path("ckpt"), None)
    assert (found.trusted, found.carried) == (False, False)


class Bomb:
    """A pickle that leaves a trace when it is read."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("trace"),)


def bomb_npz(path: Path) -> None:
    np.savez(path / "d.npz", x=np.array([Bomb()], object), y=VALUES)


def bomb_npy(path: Path) -> None:
    path = path / "d"
    path.mkdir()
    np.save(path / "x.npy", np.array([Bomb()], object), allow_pickle=True)
    np.save(path / "y.npy", VALUES)


def bomb_named_npz(path: Path) -> None:
    (path / "d.npz").write_bytes(pickle.dumps(Bomb()))


def bomb_parquet(path: Path) -> None:
    """As pyarrow once wrote types of the user's own: their class as a pickle."""
    kind = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Bomb())}
    fields = [pa.field("x", pa.float64(), metadata=kind), pa.field("y", pa.float64())]
    pq.write_table(pa.table([X[:, 0], VALUES[:, 0]], schema=pa.schema(fields)), path / "d.parquet")


def bomb_script(path: Path) -> None:
    """As a data set of Hugging Face that is made by a script of its own."""
    bomb_parquet(path)
    (path / "d").mkdir()
    (path / "d.parquet").rename(path / "d" / "train.parquet")
    (path / "d" / "d.py").write_text("open('trace', 'w')\n")


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (bomb_npz, "d.npz"),
        (bomb_npy, "d"),
        (bomb_named_npz, "d.npz"),
        (bomb_parquet, "d.parquet"),
        (bomb_script, "d"),
    ],
)
def test_nothing_is_unpickled_and_no_script_runs(folder: Path, write: Callable[[Path], None], name: str) -> None:
    write(folder)
    with contextlib.suppress(DataError):
        load(folder, sidecar(data={"path": name}))
    assert not Path("trace").exists()
    pickle.loads(pickle.dumps(Bomb()))  # it is live
    assert Path("trace").exists()
