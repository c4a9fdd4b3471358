"""Moved weights come back from every format and layout, and nothing else has changed."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization

from curvcli.errors import DataError, NotFoundError, NumericsError, OutputError, UsageError
from curvcli.loading.checkpoints import orbax, writing
from curvcli.loading.checkpoints.reading import find_params, leaves, load_checkpoint, locate, read_selected
from curvcli.loading.checkpoints.trees import flatten_tree
from curvcli.loading.checkpoints.writing import check_target, write_checkpoint
from curvcli.loading.spec.files import find_spec, merge
from tests.full_disk import file_size_limit
from tests.loading.layouts import (
    LAYOUTS,
    PARAMS,
    STATS,
    Net,
    managed,
    msgpack,
    ocp,
    plain,
    pytree,
    quiet_writers,  # noqa: F401
    same,
    standard,
    train,
    tree,
    v1_save,
)

FLAT = flatten_tree(PARAMS)
MOVED = {path: np.asarray(leaf, np.float64) + 0.25 for path, leaf in FLAT.items()}
"""A quarter is exact in every stored type."""


def everything(path, step=None):
    """All numbers of a checkpoint, the optimizer's included, by their keys."""
    found, kind, _ = locate(path, step)
    return {"/".join(keys): array for keys, array in leaves(read_selected(found, kind, lambda names: names))}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def same_bytes(one, other):
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def check(source, target, step=None, moved=MOVED, params=None):
    """The target holds the moved weights and otherwise what the source holds; its folder holds no leftovers."""
    before, after = everything(source, step), everything(target)
    assert before.keys() == after.keys()
    differ = {name for name in before if not same_bytes(before[name], after[name])}
    assert len(differ) == len(moved)
    stored = flatten_tree(find_params(load_checkpoint(target, params=params).tree, params)[0])
    for path, value in moved.items():
        np.testing.assert_array_equal(stored[path].astype(np.float64), value)
    assert {stored[path].dtype for path in moved} <= {before[name].dtype for name in differ}
    assert not [name for name in names_in(target.parent) if name.startswith(".")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout, tmp_path, capfd):
    write, inside, _ = LAYOUTS[layout]
    source = write(tmp_path / "ckpt") / inside
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    capfd.readouterr()
    target = tmp_path / "moved"
    told = write_checkpoint(source, MOVED, target)
    assert all("specification" in line for line in told)  # the manager's metadata {"curv": {"step": 2}} is none
    assert capfd.readouterr() == ("", "")
    check(source, target)
    assert {file: file.read_bytes() for file in kept} == kept
    found = locate(source, None)[0]
    if found.is_dir():  # only the arrays' own files differ
        names = {file.relative_to(found) for file in kept if file.is_relative_to(found)}
        changed = {str(name) for name in names if (found / name).read_bytes() != (target / name).read_bytes()}
        assert all(re.search("manifest.ocdbt$|params.Dense", name) for name in changed)
    assert load_checkpoint(target).format == load_checkpoint(source).format


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("extension", ["npz", "safetensors"])
def test_flat_names(separator, extension, tmp_path):
    source, target = tmp_path / f"a.{extension}", tmp_path / f"b.{extension}"
    flat = {path.replace("/", separator): leaf for path, leaf in flatten_tree({"params": PARAMS}).items()}
    flat[separator.join(("batch_stats", "m"))] = np.float32([1])
    flat[separator.join(("opt_state", "m"))] = np.asfortranarray(np.ones((2, 3), np.int64))
    if extension == "npz":
        np.savez_compressed(source, **flat)
    else:
        pytest.importorskip("safetensors.numpy").save_file(flat, source, metadata={"format": "np", "run": "7"})
    assert write_checkpoint(source, MOVED, target) == []
    check(source, target)
    if extension == "npz":
        kinds = [
            [(one.filename, one.compress_type) for one in zipfile.ZipFile(file).infolist()] for file in (source, target)
        ]
        assert kinds[0] == kinds[1]
        with np.load(source) as before, np.load(target) as after:
            assert [before[name].dtype for name in flat] == [after[name].dtype for name in flat]
    else:
        headers = [
            file.read_bytes()[: 8 + int.from_bytes(file.read_bytes()[:8], "little")] for file in (source, target)
        ]
        assert headers[0] == headers[1]


def test_the_users_own_code_reads_it(tmp_path):
    """Training goes on from the copy: a TrainState by flax, a step by a manager, a pytree by Orbax's first version."""
    expected = jax.tree.map(lambda leaf: (np.asarray(leaf) + np.asarray(0.25, leaf.dtype)).astype(leaf.dtype), PARAMS)
    write_checkpoint(msgpack(tmp_path / "a"), MOVED, tmp_path / "b")
    state = serialization.from_bytes(train(), (tmp_path / "b").read_bytes())
    same(jax.tree.map(np.asarray, state.params), expected)
    same(np.asarray(state.opt_state[0].count), train().opt_state[0].count)

    root = managed(tmp_path / "run")
    write_checkpoint(root, MOVED, root / "11", step=2)
    with ocp.CheckpointManager(root) as manager:
        assert manager.latest_step() == 11
        assert manager.metadata(11).custom_metadata == {"curv": {"step": 2}}
        state = manager.restore(11, args=ocp.args.StandardRestore(train()))
    same(jax.tree.map(np.asarray, state.params), expected)
    assert state.step == 0

    write_checkpoint(v1_save(tmp_path / "v1", item=tree()), MOVED, tmp_path / "v1b")
    import orbax.checkpoint.experimental.v1 as v1

    again = (v1.load if hasattr(v1, "load") else v1.load_pytree)(tmp_path / "v1b")
    same(jax.tree.map(np.asarray, again["params"]), expected)


def test_a_step_of_a_root_is_written_as_a_step_folder(tmp_path):
    root = managed(tmp_path / "run")
    write_checkpoint(root, MOVED, tmp_path / "new", step=1)
    check(root, tmp_path / "new", step=1)
    assert (tmp_path / "new" / "default" / "_METADATA").is_file()
    assert load_checkpoint(tmp_path / "new").metadata == {"curv": {"step": 1}}
    with pytest.raises(NotFoundError, match="step 3"):
        write_checkpoint(root, MOVED, tmp_path / "other", step=3)


@pytest.mark.parametrize("write", [standard, lambda p, item: msgpack(p, serialization.to_state_dict(item))])
@pytest.mark.parametrize("boxed", [True, False])
def test_nnx(write, boxed, tmp_path):
    model = Net()
    state = nnx.state(model, nnx.Not(nnx.RngState))
    if not boxed:
        state = nnx.to_pure_dict(state)
    elif write is not standard:
        state = jax.tree.map(lambda leaf: {"value": leaf}, nnx.to_pure_dict(state))
    source = write(tmp_path / "ckpt", state)
    moved = {path: leaf + np.float32(0.25) for path, leaf in flatten_tree(plain(model, nnx.Param)).items()}
    write_checkpoint(source, moved, tmp_path / "new")
    check(source, tmp_path / "new", moved=moved)


def test_scalars_lists_and_a_named_subtree(tmp_path):
    item = {
        "params": [(np.ones(2), np.zeros(3)), {"a": np.ones(1), "s": 2.5, "n": None, "t": "text", "e": {}}],
        "step": 3,
    }
    moved = {"a": np.float64([3]), "s": np.float64(4.5)}
    for source in (pytree(tmp_path / "a", item), tmp_path / "a.msgpack"):
        if source.suffix:
            source.write_bytes(
                serialization.msgpack_serialize(item | {"params": [list(item["params"][0]), item["params"][1]]})
            )
        target = source.with_name(f"new{source.suffix}")
        write_checkpoint(source, moved, target, params="params/1")
        check(source, target, moved=moved, params="params/1")
    again = serialization.msgpack_restore((tmp_path / "new.msgpack").read_bytes())
    assert again["params"][1] == {"a": np.float64([3]), "s": 4.5, "n": None, "t": "text", "e": {}}
    assert isinstance(again["params"], list)


def test_an_unchanged_msgpack_file_keeps_its_bytes(tmp_path):
    source = msgpack(tmp_path / "a", tree())
    write_checkpoint(source, {}, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == source.read_bytes()


def test_only_the_parameters_given_are_moved(tmp_path):
    moved = {"Dense_1/kernel": MOVED["Dense_1/kernel"]}
    source = standard(tmp_path / "a", tree())
    write_checkpoint(source, moved, tmp_path / "b")
    check(source, tmp_path / "b", moved=moved)
    same(load_checkpoint(tmp_path / "b").tree["batch_stats"], STATS)


def test_rounding_that_eats_the_step_is_told(tmp_path):
    source = msgpack(tmp_path / "a")
    bias = np.asarray(FLAT["Dense_0/bias"], np.float64)
    told = write_checkpoint(source, {"Dense_0/bias": bias + 1e-5}, tmp_path / "b")
    assert len(told) == 1
    assert "bfloat16" in told[0]
    assert "100%" in told[0]
    # A float32 step is rounded too, by far less than its length.
    kernel = np.asarray(FLAT["Dense_1/kernel"], np.float64)
    assert write_checkpoint(source, {"Dense_1/kernel": kernel + 1e-4 / 3}, tmp_path / "c") == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_numbers_that_cannot_be_stored(value, tmp_path):
    source = msgpack(tmp_path / "a")
    with pytest.raises(NumericsError, match="Dense_0/bias"):
        write_checkpoint(source, {"Dense_0/bias": np.full(3, value)}, tmp_path / "b")
    assert names_in(tmp_path) == ["a"]


def test_weights_that_are_not_the_sources(tmp_path):
    source = msgpack(tmp_path / "a")
    for moved in ({"Dense_2/bias": np.ones(3)}, {"Dense_0/bias": np.ones(4)}):
        with pytest.raises(DataError, match="shape"):
            write_checkpoint(source, moved, tmp_path / "b")
    assert names_in(tmp_path) == ["a"]


# The target


@pytest.mark.parametrize("there", ["file", "folder", "link", "sidecar"])
def test_nothing_is_overwritten(there, tmp_path):
    source, target = msgpack(tmp_path / "a"), tmp_path / "b"
    if there == "folder":
        target.mkdir()
    elif there == "link":
        target.symlink_to("nowhere")
    else:
        (target if there == "file" else tmp_path / "b.curv.toml").write_text("mine")
    before = names_in(tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        check_target(target)
    with pytest.raises(UsageError, match="exists already"):
        write_checkpoint(source, MOVED, target)
    assert names_in(tmp_path) == before


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    source, target = standard(tmp_path / "a", tree()), tmp_path / "b"
    monkeypatch.setattr(writing, "_check_written", lambda *_: target.mkdir())
    with pytest.raises(UsageError, match="exists already"):
        write_checkpoint(source, MOVED, target)
    assert names_in(tmp_path) == ["a", "b"]
    assert names_in(target) == []


def test_a_place_inside_a_checkpoint_is_refused(tmp_path):
    root = managed(tmp_path / "run")
    check_target(root / "12")
    for inside in ("10/new", "10/default/new", "10/default/d/new"):
        with pytest.raises(UsageError, match="inside"):
            check_target(root / inside)
    with pytest.raises(UsageError, match="exists"):
        check_target(Path("/"))


def test_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="does not exist"):
        check_target(tmp_path / "nowhere" / "b")
    monkeypatch.setattr(writing.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        check_target(tmp_path / "b")


@pytest.mark.parametrize("source", ["msgpack", "orbax"])
@pytest.mark.parametrize("place", ["_check_written", "_write_spec", "atomic.sync"])
def test_a_failure_leaves_nothing_behind(source, place, tmp_path, monkeypatch):
    path = msgpack(tmp_path / "a") if source == "msgpack" else standard(tmp_path / "a", tree())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"curvcli.loading.checkpoints.writing.{place}", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        write_checkpoint(path, MOVED, tmp_path / "b")
    assert caught.value.exit_code == 74
    assert names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("layout", ["msgpack", "orbax", "npz", "safetensors"])
def test_a_full_disk_leaves_nothing_behind(layout, tmp_path):
    source = tmp_path / "a"
    if layout == "orbax":
        standard(source, tree())
    elif layout == "msgpack":
        msgpack(source)
    else:
        flat = flatten_tree({"params": PARAMS})
        with source.open("wb") as stream:
            if layout == "npz":
                np.savez(stream, **flat)
            else:
                stream.write(pytest.importorskip("safetensors.numpy").save(flat))
    with file_size_limit(100), pytest.raises(OutputError, match="could not be written") as caught:
        write_checkpoint(source, MOVED, tmp_path / "b")
    assert caught.value.exit_code == 74
    assert names_in(tmp_path) == ["a"]


def test_what_reads_back_differently_is_not_kept(tmp_path, monkeypatch):
    source = msgpack(tmp_path / "a")
    monkeypatch.setitem(writing._WRITERS, "msgpack", lambda old, new, changed: new.write_bytes(old.read_bytes()))
    with pytest.raises(OutputError, match="differently"):
        write_checkpoint(source, MOVED, tmp_path / "b")
    assert names_in(tmp_path) == ["a"]


def test_a_read_only_checkpoint_can_be_copied(tmp_path):
    source = standard(tmp_path / "a", tree())
    for path in (*source.rglob("*"), source):
        path.chmod(0o555 if path.is_dir() else 0o444)
    write_checkpoint(source, MOVED, tmp_path / "b")
    check(source, tmp_path / "b")
    for path in (source, *source.rglob("*")):
        path.chmod(0o755)


# The specification

SPEC = """
[model]
target = "net.py:Net"
[checkpoint]
sha256 = "00"
[data]
path = "DATA"
[loss]
name = "squared_error"
"""


def carried(path):
    """The specification that is found for a checkpoint, its data file, and its model's file."""
    found = find_spec(path, None, orbax.read_metadata)
    spec = merge(found, {})
    assert spec.checkpoint.sha256 is None
    assert (found.base / (spec.checkpoint.path or ".")).resolve() == path.resolve()
    return (found.base / (spec.data.path or "")).resolve(), (found.base / (spec.model.target or "")[:-4]).resolve()


def test_a_sidecar_beside_a_file(tmp_path):
    for name in ("data.npz", "net.py"):
        (tmp_path / name).write_text("")
    source = msgpack(tmp_path / "a")
    (tmp_path / "a.curv.toml").write_text(SPEC.replace("DATA", "data.npz"))
    (tmp_path / "sub").mkdir()
    write_checkpoint(source, MOVED, tmp_path / "sub" / "b")
    assert names_in(tmp_path / "sub") == ["b", "b.curv.toml"]
    assert carried(tmp_path / "sub" / "b") == (tmp_path / "data.npz", tmp_path / "net.py")


def test_a_specification_in_a_folder_keeps_what_lies_there(tmp_path):
    source = standard(tmp_path / "a", tree())
    (source / "data.npz").write_text("")
    (tmp_path / "net.py").write_text("")
    (source / "curv.toml").write_text(SPEC.replace("DATA", "data.npz").replace("net.py", "../net.py"))
    (tmp_path / "sub").mkdir()
    write_checkpoint(source, MOVED, tmp_path / "sub" / "b")
    assert carried(tmp_path / "sub" / "b") == (tmp_path / "sub" / "b" / "data.npz", tmp_path / "net.py")


def test_the_specification_of_a_root_and_of_the_metadata(tmp_path):
    root = managed(tmp_path / "run")
    for name in ("data.npz", "net.py"):
        (root / name).write_text("")
    (root / "curv.toml").write_text(SPEC.replace("DATA", "data.npz"))
    write_checkpoint(root, MOVED, tmp_path / "b")
    assert carried(tmp_path / "b") == (root / "data.npz", root / "net.py")
    (root / "curv.toml").unlink()
    assert write_checkpoint(root / "2", MOVED, tmp_path / "c") != []  # {"curv": {"step": 2}} is no specification
    assert not (tmp_path / "c" / "curv.toml").exists()
    check(root / "2", tmp_path / "c")


def test_no_specification_no_file(tmp_path, monkeypatch):
    (tmp_path / "curv.toml").write_text(SPEC.replace("DATA", "data.npz"))
    monkeypatch.chdir(tmp_path)
    write_checkpoint(msgpack(Path("a")), MOVED, Path("b"))
    assert names_in(tmp_path) == ["a", "b", "curv.toml"]
    assert tomllib.loads((tmp_path / "curv.toml").read_text())["checkpoint"] == {"sha256": "00"}
    assert jnp.asarray(load_checkpoint(Path("b")).tree["params"]["Dense_0"]["bias"]).dtype == jnp.bfloat16
