"""Every layout that users write, with the library that writes it, and what is taken from it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import checkpoints, train_state

from curvcli.errors import DataError, SpecError
from curvcli.loading.checkpoint import checkpoint_steps, find_params, load_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import orbax.checkpoint as ocp
    import orbax.checkpoint.experimental.v1 as v1

PARAMS = {
    "Dense_0": {
        "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bias": np.array([0.5, -1, 3], jnp.bfloat16),
    },
    "Dense_1": {"kernel": np.linspace(-1, 1, 3, dtype=np.float32)[:, None]},
}
STATS = {"BatchNorm_0": {"mean": np.array([0.25, 0.5], np.float32)}}


def same(found, expected):
    """Whether two trees have the same keys, types, shapes and numbers."""
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert sorted(found) == sorted(expected)
        return all(same(found[key], expected[key]) for key in expected)
    assert isinstance(found, np.ndarray)
    expected = np.asarray(expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    return True


def train(params=PARAMS):
    """A TrainState as users keep it: a function, parameters, an optimizer's state, a step."""
    params = jax.tree.map(jnp.asarray, params)
    return train_state.TrainState.create(apply_fn=len, params=params, tx=optax.adam(1e-3))


def tree(**extra):
    """What users save beside the parameters."""
    return {
        "params": train().params,
        "batch_stats": STATS,
        "opt_state": train().opt_state,
        "step": 3,
        **extra,
    }


@pytest.fixture(autouse=True)
def quiet_writers():
    """The writers' warnings are not what is tested; those of reading stay errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(orbax|flax|tensorstore).*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def standard(path, item):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, item)
    return path


def pytree(path, item, **options):
    with ocp.PyTreeCheckpointer(**options) as checkpointer:
        checkpointer.save(path, item)
    return path


def managed(path, steps=(1, 2, 10), save=lambda: ocp.args.StandardSave(train()), **options):
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(**options)) as manager:
        for step in steps:
            manager.save(step, args=save(), custom_metadata={"curv": {"step": step}})
    return path


def composite():
    return ocp.args.Composite(state=ocp.args.StandardSave(train()), config=ocp.args.JsonSave({"params": {"lr": 1.0}}))


def separate():
    return ocp.args.Composite(
        params=ocp.args.StandardSave(PARAMS),
        batch_stats=ocp.args.PyTreeSave(STATS),
        opt_state=ocp.args.PyTreeSave(train().opt_state),
        one=ocp.args.ArraySave(jnp.ones(3)),
        key=ocp.args.JaxRandomKeySave(jax.random.key(0)),
    )


def legacy(path):
    checkpoints.save_checkpoint(path, train(), 7, orbax_checkpointer=ocp.PyTreeCheckpointer())
    return path


def legacy_msgpack(path):
    before = flax.config.flax_use_orbax_checkpointing
    flax.config.update("flax_use_orbax_checkpointing", False)
    try:
        for step in (7, 12):
            checkpoints.save_checkpoint(path, train(), step, keep=2)
    finally:
        flax.config.update("flax_use_orbax_checkpointing", before)
    return path


def msgpack(path, item=None):
    path.write_bytes(serialization.to_bytes(train() if item is None else item))
    return path


SAVE = "save" if hasattr(v1, "save") else "save_pytree"  # Orbax before 0.12 has only the second
V1_SEVERAL = "save_checkpointables"


def v1_save(path, name=SAVE, **items):
    getattr(v1, name)(path, *items.values(), custom_metadata={"curv": "x"})
    return path


def v1_training(path):
    with v1.training.Checkpointer(path) as checkpointer:
        for step in (0, 3):
            getattr(checkpointer, SAVE)(step, tree())
    return path


# How it is written, where it is then read from, the step it tells
LAYOUTS = {
    "standard": (lambda p: standard(p, tree()), "", None),
    "standard-trainstate": (lambda p: standard(p, train()), "", None),
    "pytree": (lambda p: pytree(p, tree()), "", None),
    "pytree-trainstate": (lambda p: pytree(p, train()), "", None),
    "no-ocdbt": (lambda p: pytree(p, tree(), use_ocdbt=False), "", None),
    "manager": (managed, "", 10),
    "manager-step": (managed, "2", 2),
    "manager-item": (managed, "2/default", 2),
    "manager-prefix": (lambda p: managed(p, step_prefix="run", step_format_fixed_length=6), "", 10),
    "composite": (lambda p: managed(p, (5,), composite), "", 5),
    "composite-step": (lambda p: managed(p, (5,), composite), "5", 5),
    "composite-item": (lambda p: managed(p, (5,), composite), "5/state", 5),
    "separate-items": (lambda p: managed(p, (5,), separate), "", 5),
    "v1": (lambda p: v1_save(p, item=tree()), "", None),
    "v1-item": (lambda p: v1_save(p, item=tree()), "state", None),
    "v1-several": (lambda p: v1_save(p, V1_SEVERAL, x={"train": tree(), "config": {"lr": 1}}), "", None),
    "v1-training": (v1_training, "", 3),
    "legacy": (legacy, "", 7),
    "legacy-step": (legacy, "checkpoint_7", 7),
    "legacy-msgpack": (legacy_msgpack, "", 12),
    "legacy-msgpack-file": (legacy_msgpack, "checkpoint_7", 7),
    "msgpack-trainstate": (lambda p: msgpack(p.with_suffix(".msgpack")), "", None),
    "msgpack-any-name": (lambda p: msgpack(p.with_suffix(".weights"), tree()), "", None),
    "wrapped-state": (lambda p: standard(p, {"state": tree(), "config": {"lr": 0.1}}), "", None),
    "wrapped-model": (lambda p: standard(p, {"model": tree(), "optimizer": train().opt_state}), "", None),
    "wrapped-twice": (lambda p: standard(p, {"default": {"ckpt": tree()}}), "", None),
    "noise": (lambda p: pytree(p, tree(empty={}, none=None, rng=jax.random.key(0), ema=PARAMS)), "", None),
}


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


LIST = getattr(nnx, "List", list)  # flax before 0.12 takes plain lists


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = LIST([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def plain(model, *only):
    """The model's arrays as curv gives them, without those of its random streams."""
    state = nnx.to_pure_dict(nnx.state(model, *(only or [nnx.Not(nnx.RngState)])))
    return jax.tree.map(np.asarray, json_keys(state))


def json_keys(node):
    return {str(k): json_keys(v) for k, v in node.items()} if isinstance(node, dict) else node


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


def test_sharded_over_eight_devices(tmp_path):
    code = (
        "import sys, jax, jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp\n"
        "from jax.sharding import Mesh, NamedSharding, PartitionSpec as P\n"
        "mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('a', 'b'))\n"
        "x = jax.device_put(jnp.arange(64.).reshape(16, 4), NamedSharding(mesh, P('a', 'b')))\n"
        "with ocp.StandardCheckpointer() as c: c.save(sys.argv[1], {'params': {'w': x}})\n"
        "assert len(x.sharding.device_set) == 8\n"
    )
    path = tmp_path / "sharded"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True, capture_output=True)
    assert len(jax.devices()) == 1
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
        "import sys; from pathlib import Path; from curvcli.loading.checkpoint import load_checkpoint\n"
        "load_checkpoint(Path(sys.argv[1])); assert not {'jax', 'flax', 'orbax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.npz")], check=True)
