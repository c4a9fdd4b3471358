"""Checkpoints in every layout that users write, made with the library that writes it."""

from __future__ import annotations

import warnings

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import checkpoints, train_state

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
