"""Every layout that users write, with the library that writes it, and what is taken from it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx, serialization

from curvcli.errors import DataError, SpecError
from curvcli.loading.checkpoints.reading import checkpoint_steps, find_params, load_checkpoint
from tests.loading.layouts import (
    LAYOUTS,
    PARAMS,
    STATS,
    Net,
    legacy_msgpack,
    managed,
    msgpack,
    plain,
    pytree,
    quiet_writers,  # noqa: F401
    same,
    standard,
    tree,
    v1_save,
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout, tmp_path, capfd):
    write, inside, step = LAYOUTS[layout]
    path = write(tmp_path / "ckpt")
    capfd.readouterr()
    loaded = load_checkpoint(path / inside if inside else path)
    assert capfd.readouterr() == ("", "")
    params, rest = find_params(loaded.tree)
    same(params, PARAMS)
    has_stats = not re.search("trainstate|manager|composite|legacy", layout)
    same(rest, {"batch_stats": STATS} if has_stats else {})
    assert loaded.step == step
    assert loaded.format == ("msgpack" if "msgpack" in layout else "orbax")
    assert loaded.path == (path / inside if inside else path)
    text = json.dumps(jax.tree.map(lambda _: 0, loaded.tree))
    assert not any(word in text for word in ("opt_state", "optimizer", "step", "rng", "ema", "config"))


def test_same_weights_same_digest_in_every_format(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    flat = {f"params/{a}/{b}": leaf for a, sub in PARAMS.items() for b, leaf in sub.items()}
    np.savez(tmp_path / "a.npz", **flat)
    safetensors.save_file(flat, tmp_path / "a.safetensors")
    msgpack(tmp_path / "a.flax")
    managed(tmp_path / "run", (4,))
    standard(tmp_path / "orbax", {"params": PARAMS})
    names = ("a.npz", "a.safetensors", "a.flax", "run", "run/4/default", "orbax")
    digests = {load_checkpoint(tmp_path / name).sha256 for name in names}
    assert len(digests) == 1
    changed = {**flat, "params/Dense_1/kernel": flat["params/Dense_1/kernel"] + 1}
    np.savez(tmp_path / "b.npz", **changed)
    assert load_checkpoint(tmp_path / "b.npz").sha256 not in digests


# Steps


def test_steps(tmp_path):
    root = managed(tmp_path / "run")
    (root / "11.orbax-checkpoint-tmp-123").mkdir()
    (root / "logs").mkdir()
    (root / "curv.toml").write_text("")
    assert checkpoint_steps(root) == [1, 2, 10]
    assert load_checkpoint(root).step == 10
    assert load_checkpoint(root, step=2).step == 2
    assert load_checkpoint(tmp_path).step == 10  # the only candidate in its folder
    assert checkpoint_steps(root / "10") == []
    assert checkpoint_steps(root / "10" / "default") == []
    assert checkpoint_steps(tmp_path / "nowhere") == []
    assert checkpoint_steps(legacy_msgpack(tmp_path / "old")) == [7, 12]


def test_a_damaged_latest_step_is_not_skipped(tmp_path):
    root = managed(tmp_path / "run")
    shutil.rmtree(root / "10" / "default")
    with pytest.raises(DataError, match="10"):
        load_checkpoint(root)
    assert load_checkpoint(root, step=2).step == 2


def test_metadata(tmp_path):
    root = managed(tmp_path / "run")
    for path in (root / "2", root / "2" / "default"):
        assert load_checkpoint(path).metadata == {"curv": {"step": 2}}
    assert load_checkpoint(v1_save(tmp_path / "v1", item=tree())).metadata == {"curv": "x"}
    (root / "2" / "_CHECKPOINT_METADATA").write_text("{")
    assert load_checkpoint(root / "2").metadata == {}


# nnx


@pytest.mark.parametrize("write", [standard, pytree, lambda p, item: v1_save(p, item=item)])
@pytest.mark.parametrize("boxed", [True, False])
def test_nnx(write, boxed, tmp_path):
    model = Net()
    state = nnx.state(model) if boxed else nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))
    loaded = load_checkpoint(write(tmp_path / "ckpt", state)).tree
    loaded.pop("drop", None)
    same(loaded, plain(model))
    assert sorted(loaded["layers"]) == ["0", "1"]


def test_nnx_with_optimizer(tmp_path):
    model = Net()
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    item = {"model": nnx.state(model, nnx.Param), "optimizer": nnx.state(optimizer)}
    loaded = load_checkpoint(standard(tmp_path / "a", item))
    assert list(loaded.tree) == ["model"]
    same(find_params(loaded.tree)[0], plain(model, nnx.Param))
    item = {"params": nnx.state(model, nnx.Param), "batch_stats": nnx.state(model, nnx.BatchStat)}
    params, rest = find_params(load_checkpoint(standard(tmp_path / "b", item)).tree)
    same(params, plain(model, nnx.Param))
    same(rest, {"batch_stats": plain(model, nnx.BatchStat)})


def test_a_parameter_named_value_stays(tmp_path):
    item = {"params": {"attention": {"value": np.ones(2)}, "out": {"bias": np.ones(1)}}}
    same(load_checkpoint(standard(tmp_path / "a", item)).tree, item)


# Trees


def test_lists_scalars_and_text(tmp_path):
    item = {
        "params": [(np.ones(2), np.zeros(3)), {"a": np.ones(1), "n": None, "e": {}, "s": 2.5, "t": "text"}],
        "step": 3,
    }
    expected = {
        "0": {"0": np.ones(2), "1": np.zeros(3)},
        "1": {"a": np.ones(1), "s": np.float64(2.5)},
    }
    same(find_params(load_checkpoint(pytree(tmp_path / "a", item)).tree)[0], expected)
    part = load_checkpoint(pytree(tmp_path / "b", item), params="params/1").tree
    same(find_params(part, "params/1")[0], expected["1"])
    path = tmp_path / "c.msgpack"
    path.write_bytes(serialization.msgpack_serialize({"params": [np.ones(2), None, "x"]}))
    same(load_checkpoint(path).tree, {"params": {"0": np.ones(2)}})


def test_sharded_over_more_devices_than_there_are(tmp_path):
    code = (
        "import sys, jax, jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp\n"
        "from jax.sharding import Mesh, NamedSharding, PartitionSpec as P\n"
        "mesh = Mesh(np.array(jax.devices()).reshape(8, 2), ('a', 'b'))\n"
        "x = jax.device_put(jnp.arange(64.).reshape(16, 4), NamedSharding(mesh, P('a', 'b')))\n"
        "with ocp.StandardCheckpointer() as c: c.save(sys.argv[1], {'params': {'w': x}})\n"
        "assert len(x.sharding.device_set) == 16\n"
    )
    path = tmp_path / "sharded"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=16"}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True, capture_output=True)
    assert len(jax.devices()) < 16
    same(load_checkpoint(path).tree, {"params": {"w": np.arange(64, dtype=np.float32).reshape(16, 4)}})


def test_other_files_in_an_orbax_folder(tmp_path):
    path = standard(tmp_path / "ckpt", tree())
    (path / "curv.toml").write_text("[model]\n")
    np.savez(path / "digits.npz", x=np.ones(3))
    same(load_checkpoint(path).tree["params"], PARAMS)


def test_relative_path_and_name_outside_ascii(tmp_path, monkeypatch):
    standard(tmp_path / "größe", tree())
    monkeypatch.chdir(tmp_path)
    same(load_checkpoint(Path("größe")).tree["params"], PARAMS)


# Which subtree


@pytest.mark.parametrize(
    ("stored", "params", "expected"),
    [
        (
            {"params": {"w": 1}, "batch_stats": {"m": 2}, "step": 3},
            None,
            ({"w": 1}, {"batch_stats": {"m": 2}}),
        ),
        (
            {"params": {"w": 1}, "opt_state": {"m": 2}, "rng": {"k": 1}, "x": {"y": 1}},
            None,
            ({"w": 1}, {"x": {"y": 1}}),
        ),
        ({"Dense_0": {"w": 1}, "Dense_1": {"w": 2}}, None, ({"Dense_0": {"w": 1}, "Dense_1": {"w": 2}}, {})),
        (
            {"w": 1, "scale": 2, "key": 4, "step": 3, "opt": {"m": 0}},
            None,
            ({"w": 1, "scale": 2, "key": 4}, {}),
        ),
        ({"state": {"w": 1, "opt_state": {"m": 0}}}, None, ({"w": 1}, {})),
        ({"model": {"w": 1}, "optimizer": {"m": 0}, "epoch": 3}, None, ({"w": 1}, {})),
        ({"model": {"w": 1}, "batch_stats": {"m": 2}}, None, ({"w": 1}, {"batch_stats": {"m": 2}})),
        ({"model": {"w": 1}}, ".", ({"model": {"w": 1}}, {})),
        ({"net": {"params": {"w": 1}, "batch_stats": {"m": 2}}}, None, ({"w": 1}, {"batch_stats": {"m": 2}})),
        ({"state": {"params": {"w": 1}}}, "params", ({"w": 1}, {})),
        ({"state": {"params": {"w": 1}}}, "state/params", ({"w": 1}, {})),
        (
            {"params": {"w": 1}, "ema_params": {"w": 2}, "s": {"m": 3}},
            "ema_params",
            ({"w": 2}, {"s": {"m": 3}}),
        ),
        ({"gen": {"params": {"w": 1}}, "disc": {"params": {"w": 2}}}, "gen/params", ({"w": 1}, {})),
    ],
)
def test_find_params(stored, params, expected, tmp_path):
    assert find_params(stored, params) == expected
    path = tmp_path / "a.msgpack"
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, stored)))
    again = find_params(load_checkpoint(path, params=params).tree, params)
    assert jax.tree.map(int, again) == expected


def test_find_params_errors(tmp_path):
    both = {"gen": {"params": {"w": np.ones(1)}}, "disc": {"params": {"w": np.ones(1)}}}
    with pytest.raises(DataError, match=r"gen, disc|disc, gen") as caught:
        find_params(both)
    assert "params" in caught.value.hint
    with pytest.raises(SpecError, match="weights") as caught:
        load_checkpoint(standard(tmp_path / "a", tree()), params="weights")
    assert "batch_stats" in caught.value.hint
    with pytest.raises(SpecError):
        find_params({"params": {"w": np.ones(1)}}, "params/w")


# Files


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("extension", ["npz", "safetensors"])
def test_flat_names(separator, extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    flat = {
        separator.join(("params", "Dense_0", "kernel")): np.ones((2, 3), np.float16),
        separator.join(("params", "layer", "0", "b")): np.arange(3, dtype=np.int64),
        separator.join(("batch_stats", "m")): np.float32([1]),
        separator.join(("opt_state", "m")): np.float32([np.nan]),
    }
    if extension == "npz":
        np.savez(path, **flat)
    else:
        pytest.importorskip("safetensors.numpy").save_file(flat, path)
    loaded = load_checkpoint(path)
    assert (loaded.format, loaded.step, loaded.metadata) == (extension, None, {})
    expected = {
        "Dense_0": {"kernel": np.ones((2, 3), np.float16)},
        "layer": {"0": {"b": np.arange(3, dtype=np.int64)}},
    }
    same(loaded.tree, {"params": expected, "batch_stats": {"m": np.float32([1])}})


@pytest.mark.parametrize("name", ["a.msgpack", "a.flax", "a.bin", "a", "a.weights", "a.npz"])
def test_files_are_told_by_content(name, tmp_path):
    same(load_checkpoint(msgpack(tmp_path / name)).tree, {"params": PARAMS})


def test_reading_files_needs_no_jax(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    code = (
        "import sys; from pathlib import Path; from curvcli.loading.checkpoints.reading import load_checkpoint\n"
        "load_checkpoint(Path(sys.argv[1])); assert not {'jax', 'flax', 'orbax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.npz")], check=True)
