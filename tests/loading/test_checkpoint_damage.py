"""Every way a checkpoint can be bad: one clear error, nothing printed; the optimizer's damage is none."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from curvcli.errors import CurvError, DataError, NotFoundError, PermissionDeniedError, SpecError, UsageError
from curvcli.loading.checkpoints.reading import check_finite, load_checkpoint
from tests.loading.layouts import pytree, standard

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import orbax.checkpoint as ocp

PARAMS = {
    "Dense_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "Dense_1": {"kernel": np.ones((3, 1), np.float32)},
}
MOMENTS = {"mu": PARAMS, "nu": PARAMS, "count": np.array(3)}


@pytest.fixture(autouse=True)
def quiet_writers():
    """The writers' warnings are not what is tested; those of reading stay errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(orbax|flax|tensorstore).*")
        yield


def tree():
    return {"params": PARAMS, "opt_state": MOMENTS, "step": 3}


def managed(path, steps=(1, 2, 10)):
    with ocp.CheckpointManager(path) as manager:
        for step in steps:
            manager.save(step, args=ocp.args.StandardSave(tree()))
    return path


def separate(path):
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(PARAMS),
        opt_state=ocp.args.PyTreeSave(MOMENTS),
        one=ocp.args.ArraySave(jnp.ones(3)),
    )
    with ocp.CheckpointManager(path) as manager:
        manager.save(5, args=items)
    return path / "5"


def msgpack(path, item=None):
    path.write_bytes(serialization.to_bytes(tree() if item is None else item))
    return path


def same(found, expected):
    assert json.dumps(found, default=np.ndarray.tolist) == json.dumps(expected, default=np.ndarray.tolist)


@pytest.mark.first_tier("corrupt")
@pytest.mark.parametrize("damage", ["delete", "corrupt"])
def test_the_optimizer_is_not_read(damage, tmp_path):
    path = pytree(tmp_path / "ckpt", tree(), use_ocdbt=False)
    folders = list(path.glob("opt_state*"))
    assert folders
    for folder in folders:
        if damage == "delete":
            shutil.rmtree(folder)
        else:
            for file in folder.iterdir():
                file.write_bytes(b"not zarr")
    same(load_checkpoint(path).tree, {"params": PARAMS})


def test_an_optimizer_item_is_not_read(tmp_path):
    root = separate(tmp_path / "run")
    (root / "opt_state" / "_METADATA").write_text("damaged")
    same(load_checkpoint(root).tree, {"params": PARAMS})


class Bomb:
    """A pickle that would leave a trace if it were read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def zipped_pickle(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return path


def truncated(path):
    path.write_bytes(path.read_bytes()[:-20])
    return path


def damaged_orbax(path, name):
    path = pytree(path, tree(), use_ocdbt=False)
    (path / name).unlink()
    return path


def huge_safetensors(path, inside):
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header) if inside else 4 * 10**12) + header + bytes(8))
    return path


def huge_zarr(path):
    path = pytree(path, tree(), use_ocdbt=False)
    file = path / "params.Dense_0.kernel" / ".zarray"
    header = json.loads(file.read_text())
    file.write_text(json.dumps({**header, "shape": [10**6, 10**6], "chunks": [10**6, 10**6]}))
    return path


def huge_npz(path):
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", data.getvalue() + bytes(64))
    return path


def written(path, content):
    path.write_bytes(content)
    return path


def saved_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def two(path):
    standard(path / "first", tree())
    standard(path / "second", tree())
    return path


def made(path):
    path.mkdir()
    return path


def notes(path):
    (made(path) / "notes.txt").write_text("nothing")
    return path


def nan_params():
    bad = {
        "Dense_0": {"kernel": np.float32([1, np.nan, np.inf])},
        "Dense_1": {"kernel": np.ones(2, np.float32)},
    }
    return {"params": bad}


BAD = {
    "missing": (lambda p: p / "digits", NotFoundError, "no such"),
    "empty-file": (lambda p: written(p / "a.msgpack", b""), DataError, "empty"),
    "empty-folder": (lambda p: made(p / "a"), DataError, "empty"),
    "no-checkpoint": (lambda p: notes(p / "a"), NotFoundError, "no checkpoint"),
    "two-candidates": (lambda p: two(p / "a"), DataError, "first, second"),
    "text": (lambda p: written(p / "a.bin", b"hello, this is no checkpoint"), DataError, "a.bin"),
    "one-byte": (lambda p: written(p / "a", b"\x85"), DataError, "damaged"),
    "nothing-inside": (lambda p: written(p / "a", b"\x80"), DataError, "no arrays"),
    "truncated-msgpack": (lambda p: truncated(msgpack(p / "a.msgpack")), DataError, "damaged"),
    "truncated-npz": (lambda p: truncated(saved_npz(p / "a.npz", w=np.ones(9))), DataError, "damaged"),
    "pickle": (lambda p: written(p / "a.pkl", pickle.dumps(Bomb(p / "trace"))), DataError, "pickle"),
    "old-pickle": (
        lambda p: written(p / "a.msgpack", pickle.dumps(Bomb(p / "trace"), 0)),
        DataError,
        "pickle",
    ),
    "torch": (lambda p: zipped_pickle(p / "a.bin"), DataError, "pickle"),
    "object-array": (
        lambda p: saved_npz(p / "a.npz", w=np.array([Bomb(p / "trace")], object)),
        DataError,
        "'w'",
    ),
    "untyped": (lambda p: saved_npz(p / "a.npz", w=np.zeros(2, "V3")), DataError, "'w'"),
    "leaf-and-group": (
        lambda p: saved_npz(p / "a.npz", **{"a": np.ones(1), "a.b": np.ones(1)}),
        DataError,
        "a.b",
    ),
    "header-of-4-TB": (lambda p: huge_safetensors(p / "a.safetensors", False), DataError, "damaged"),
    "tensor-of-4-TB": (lambda p: huge_safetensors(p / "a.safetensors", True), DataError, "damaged"),
    "npz-of-4-TB": (lambda p: huge_npz(p / "a.npz"), DataError, "'w'"),
    "zarr-of-4-TB": (lambda p: huge_zarr(p / "a"), DataError, r"claim 4,000,000,000,\d\d\d bytes"),
    "chunk-missing": (
        lambda p: damaged_orbax(p / "a", "params.Dense_0.kernel/0.0"),
        DataError,
        "'params/Dense_0/kernel'",
    ),
    "header-missing": (
        lambda p: damaged_orbax(p / "a", "params.Dense_1.kernel/.zarray"),
        DataError,
        "'params/Dense_1/kernel'",
    ),
    "list-missing": (lambda p: damaged_orbax(p / "a", "_METADATA"), DataError, "_METADATA"),
    "list-damaged": (
        lambda p: truncated(pytree(p / "a", tree()) / "_METADATA").parent,
        DataError,
        "_METADATA",
    ),
    "ocdbt-damaged": (
        lambda p: truncated(pytree(p / "a", tree()) / "manifest.ocdbt").parent,
        DataError,
        "a: ",
    ),
    "one-array": (lambda p: separate(p / "a") / "one", DataError, "one array"),
    "unfinished": (lambda p: made(p / "7.orbax-checkpoint-tmp-12"), DataError, "not finished"),
    "unfinished-item": (
        lambda p: made(made(p / "7.orbax-checkpoint-tmp") / "default"),
        DataError,
        "not finished",
    ),
    "only-unfinished": (
        lambda p: made(made(p / "a") / "7.orbax-checkpoint-tmp-12").parent,
        DataError,
        "7.orbax",
    ),
    "renamed-soon": (lambda p: made(p / "a.orbax-checkpoint-tmp-1").parent / "a", DataError, "not finished"),
    "nan-orbax": (lambda p: standard(p / "a", nan_params()), DataError, "2 of 3 numbers in 'Dense_0/kernel'"),
    "nan-msgpack": (
        lambda p: msgpack(p / "a", nan_params()),
        DataError,
        "2 of 3 numbers in 'Dense_0/kernel'",
    ),
    "nan-bf16": (
        lambda p: msgpack(p / "a", {"w": np.array([1, np.inf], jnp.bfloat16)}),
        DataError,
        "1 of 2 numbers in 'w'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad(case, tmp_path, capfd):
    write, error, words = BAD[case]
    path = write(tmp_path)
    capfd.readouterr()
    with pytest.raises(CurvError, match=words) as caught:
        load_checkpoint(path)
    assert type(caught.value) is error
    assert caught.value.exit_code == (65 if error is DataError else 66)
    assert path.name in caught.value.message
    assert caught.value.hint
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "trace").exists()


def test_nan_outside_the_differentiated_part_is_let_through(tmp_path):
    path = msgpack(tmp_path / "a", {"params": {"w": np.ones(1)}, "batch_stats": {"m": np.float32([np.nan])}})
    assert np.isnan(load_checkpoint(path).tree["batch_stats"]["m"]).all()
    check_finite({"n": np.arange(3), "b": np.array(True)})


def test_missing_names_a_neighbour(tmp_path):
    standard(tmp_path / "digits_mlp.ckpt", tree())
    with pytest.raises(NotFoundError) as caught:
        load_checkpoint(tmp_path / "digit_mlp.ckpt")
    assert "digits_mlp.ckpt" in caught.value.hint


def test_step_errors(tmp_path):
    root = managed(tmp_path / "run")
    with pytest.raises(NotFoundError, match="step 3") as caught:
        load_checkpoint(root, step=3)
    assert "1, 2, 10" in caught.value.hint
    assert caught.value.exit_code == 66
    single = [root / "10", root / "10" / "default", msgpack(tmp_path / "a"), standard(tmp_path / "b", tree())]
    for path in single:
        with pytest.raises(UsageError, match="no steps") as caught:
            load_checkpoint(path, step=10)
        assert caught.value.exit_code == 2


def test_permission(tmp_path, monkeypatch):
    path = msgpack(tmp_path / "a.msgpack")
    folder = pytree(tmp_path / "b", tree(), use_ocdbt=False)
    path.chmod(0)
    (folder / "params.Dense_0.kernel" / "0.0").chmod(0)
    if os.geteuid() == 0:  # the superuser may read everything
        refuse = PermissionError(13, "Permission denied", str(path))

        def refused(*_, **__):
            raise refuse

        monkeypatch.setattr(Path, "open", refused)
        monkeypatch.setattr(
            "curvcli.loading.checkpoints.orbax.restore",
            lambda *_: (_ for _ in ()).throw(ValueError("PERMISSION_DENIED: 0.0")),
        )
    for bad in (path, folder):
        with pytest.raises(PermissionDeniedError, match="permission denied") as caught:
            load_checkpoint(bad)
        assert caught.value.exit_code == 77


def test_safetensors_is_optional(tmp_path, monkeypatch):
    pytest.importorskip("safetensors.numpy").save_file({"w": np.ones(2)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(SpecError) as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    assert "curvcli[safetensors]" in caught.value.hint


@pytest.mark.first_tier("0")
@pytest.mark.parametrize("seed", range(3))
def test_any_damage_is_an_error_or_harmless(seed, tmp_path):
    random = np.random.default_rng(seed)
    source = standard(tmp_path / "source", tree())
    files = sorted(file.relative_to(source) for file in source.rglob("*") if file.is_file())
    for trial in range(8):
        path = tmp_path / f"copy{trial}"
        shutil.copytree(source, path)
        file = path / files[random.integers(len(files))]
        content = bytearray(file.read_bytes())
        if content and trial % 2:
            content[random.integers(len(content))] ^= 1 << random.integers(8)
        else:
            content = content[: len(content) // 2]
        file.write_bytes(content)
        with contextlib.suppress(DataError):
            load_checkpoint(path)


@pytest.mark.first_tier("True-zarr.json-False")
@pytest.mark.parametrize(
    ("zarr3", "name", "others"), [(False, ".zarray", False), (False, ".zarray", True), (True, "zarr.json", False)]
)
def test_chunks_beyond_reason_do_not_end_the_process(zarr3, name, others, tmp_path):
    """tensorstore allocates a chunk whole: where headers cannot all be read, a process of its own reads first."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=zarr3)) as writer:
        writer.save(tmp_path / "ckpt", args=ocp.args.PyTreeSave({"params": PARAMS}))
    file = tmp_path / "ckpt/params.Dense_0.kernel" / name
    header = json.loads(file.read_text())
    if zarr3:
        header["chunk_grid"]["configuration"]["chunk_shape"] = [10**6, 10**6]
        for codec in header["codecs"]:
            if codec["name"] == "sharding_indexed":
                codec["configuration"]["chunk_shape"] = [10**6, 10**6]
    else:
        header["chunks"] = [10**5, 10**5]
    file.write_text(json.dumps(header))
    if others:
        (tmp_path / "ckpt/params.Dense_1.kernel/.zarray").write_text("{")
    with pytest.raises(DataError) as raised:
        load_checkpoint(tmp_path / "ckpt")
    assert "ckpt" in raised.value.message


DEEP_WRITERS = {
    "npz": lambda path, name, tree, leaf: np.savez(path, **{name: leaf}),
    "safetensors": lambda path, name, tree, leaf: save_file({name: leaf}, path),
    "msgpack": lambda path, name, tree, leaf: path.write_bytes(serialization.msgpack_serialize(tree)),
    "orbax": lambda path, name, tree, leaf: pytree(path, tree),
}


@pytest.mark.parametrize("levels", [90, 200, 500])
@pytest.mark.parametrize("kind", DEEP_WRITERS)
def test_levels_of_names(kind, levels, tmp_path):
    leaf = np.ones((2, 2), np.float32)
    tree = {"kernel": leaf}
    for _ in range(levels):
        tree = {"a": tree}
    path = tmp_path / f"deep.{kind}"
    DEEP_WRITERS[kind](path, "params/" + "a/" * levels + "kernel", {"params": tree}, leaf)
    if levels < 100:
        assert len(load_checkpoint(path).tree) == 1
    else:
        with pytest.raises(DataError, match="more than 100 levels deep"):
            load_checkpoint(path)
