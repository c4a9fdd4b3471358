"""Adam's state is found wherever Optax and Flax put it, and makes the preconditioner that its step divides by."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import train_state
from jax.flatten_util import ravel_pytree

from curvcli.analyses.saddle.descent import stability_threshold
from curvcli.errors import DataError, NumericsError
from curvcli.loading.checkpoints import orbax
from curvcli.loading.checkpoints.optimizer import preconditioner, read_adam, unseen
from curvcli.loading.checkpoints.trees import flatten_tree
from tests.loading.layouts import (
    Net,
    managed,
    msgpack,
    ocp,
    pytree,
    quiet_writers,  # noqa: F401
    standard,
    v1_save,
)

PARAMS = {"Dense_0": {"kernel": np.arange(1.0, 7).reshape(2, 3), "bias": np.array([0.5, -1, 3])}, "scale": np.ones(2)}
FLAT = flatten_tree(PARAMS)
SHAPES = {path: leaf.shape for path, leaf in FLAT.items()}
LABELS = {"Dense_0": {"kernel": "x", "bias": "y"}, "scale": "x"}


def after(tx, steps=3, params=PARAMS):
    """The optimizer's state after some steps on the loss Σ w⁴/4."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(lambda leaf: leaf**3, params), state, params)
        params = optax.apply_updates(params, updates)
    return state


def item(tx, **extra):
    return {"params": PARAMS, "opt_state": after(tx), "step": 3, **extra}


def moments(state, path=()):
    """The ScaleByAdamState inside an optimizer's state."""
    if hasattr(state, "nu"):
        return state
    members = state.values() if isinstance(state, dict) else state if isinstance(state, tuple | list) else ()
    return next((found for one in members if (found := moments(one)) is not None), None)


def check(read, state, paths=FLAT):
    expected = moments(state)
    assert read.count == int(expected.count)
    for name in ("mu", "nu"):
        stored, found = flatten_tree(getattr(expected, name)), getattr(read, name)
        assert set(found) == set(paths)
        for path in paths:
            np.testing.assert_array_equal(found[path], stored[path])
            assert found[path].dtype == stored[path].dtype


ADAM = optax.adam(1e-2)
OPTIMIZERS = {
    "adam": ADAM,
    "adamw": optax.adamw(1e-2),
    "nadam": optax.nadam(1e-2),
    "schedule": optax.adam(optax.cosine_decay_schedule(1e-2, 10)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), ADAM),
    "nested": optax.chain(optax.chain(optax.clip(1.0), optax.scale_by_adam()), optax.scale(-1e-2)),
    "low-precision-mu": optax.adam(1e-2, mu_dtype=jnp.bfloat16),
    "multi-steps": optax.MultiSteps(ADAM, 2),
    "finite": optax.apply_if_finite(ADAM, 3),
    "inject": optax.inject_hyperparams(optax.adam)(learning_rate=1e-2, b2=0.99),
    "inject-chain": optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2, b2=0.99)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, tmp_path):
    tx = OPTIMIZERS[name]
    state = after(tx)
    for write in (standard, lambda p, tree: msgpack(p.with_suffix(".msgpack"), tree)):
        read = read_adam(write(tmp_path / "a", item(tx)), SHAPES)
        check(read, state)
        assert read.variant == "adam"
        assert read.place.startswith("opt_state")
        if name.startswith("inject"):
            assert read.hyperparams["learning_rate"] == pytest.approx(1e-2)
            assert read.hyperparams["b2"] == pytest.approx(0.99)
        else:
            assert read.hyperparams == {}


@pytest.mark.parametrize("name", ["adam", "low-precision-mu", "amsgrad", "eps-root", "inject"])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_step_of_optax_is_this_preconditioners(name, steps, tmp_path):
    """Optax's update is −η P⁻¹ mu, from the first step on."""
    given = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-3}
    rule = optax.amsgrad if name == "amsgrad" else optax.adam
    if name == "inject":
        tx, told = optax.inject_hyperparams(rule)(**given, eps_root=1e-4), {}
    else:
        tx, told = rule(**given), {key: given[key] for key in ("b1", "b2", "eps")}
    state = after(tx, steps - 1)
    updates, state = tx.update(PARAMS, state, PARAMS)
    read = read_adam(msgpack(tmp_path / "a", {"params": PARAMS, "opt_state": state}), SHAPES)
    assert read.variant == ("amsgrad" if name == "amsgrad" else "adam")
    diagonal = preconditioner(replace(read, hyperparams=read.hyperparams | told))
    eps = np.finfo(np.float64).eps
    for path, update in flatten_tree(updates).items():
        assert diagonal[path].dtype == np.float64
        # Injected numbers are rounded to float32.
        tolerance = 1e-6 if name == "inject" else 64 * eps
        np.testing.assert_allclose(-0.1 * read.mu[path] / diagonal[path], update, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_rounding_alone_are_told_by_the_size_of_all_others(dtype, tmp_path):
    eps = np.finfo(dtype).eps
    large = {"kernel": np.full((2, 3), 5.0), "bias": np.array([9 * eps, 0.0, 1e-3])}
    gradients = {"Dense_0": large, "scale": np.array([1e-3, 20 * eps])}
    gradients = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), gradients)
    state = ADAM.init(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PARAMS))
    for _ in range(3):
        _, state = ADAM.update(gradients, state)
    path = msgpack(tmp_path / "a", {"params": PARAMS, "opt_state": state})
    expected = {"Dense_0/kernel": np.zeros((2, 3), bool), "Dense_0/bias": [True, True, False], "scale": [False, True]}
    found = unseen(read_adam(path, SHAPES))
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask)
    # Of a block of the parameters the size of all counts, where they are known.
    block, others = {"Dense_0/bias": (3,)}, ["Dense_0/kernel", "scale", "not/trained"]
    np.testing.assert_array_equal(unseen(read_adam(path, block, beside=others))["Dense_0/bias"], [True, True, False])


def test_defaults_are_those_of_optax(tmp_path):
    read = read_adam(msgpack(tmp_path / "a", item(ADAM)), SHAPES)
    for path, entries in preconditioner(read).items():
        expected = (1 - 0.9**3) * (np.sqrt(read.nu[path] / (1 - 0.999**3)) + 1e-8)
        np.testing.assert_allclose(entries, expected, rtol=8 * np.finfo(np.float64).eps)


# Where it lies


def trained():
    state = train_state.TrainState.create(apply_fn=len, params=PARAMS, tx=ADAM)
    return state.apply_gradients(grads=PARAMS)


def composite():
    return ocp.args.Composite(
        params=ocp.args.StandardSave(PARAMS),
        opt_state=ocp.args.PyTreeSave(trained().opt_state),
        config=ocp.args.JsonSave({"lr": 1.0}),
    )


PLACES = {
    "trainstate": lambda p: standard(p, trained()),
    "trainstate-msgpack": lambda p: msgpack(p, trained()),
    "no-ocdbt": lambda p: pytree(p, trained(), use_ocdbt=False),
    "manager": lambda p: managed(p, (4,), lambda: ocp.args.StandardSave(trained())),
    "items": lambda p: managed(p, (4,), composite),
    "v1": lambda p: v1_save(p, item={"params": PARAMS, "opt_state": trained().opt_state}),
    "wrapped": lambda p: standard(p, {"model": {"params": PARAMS}, "optimizer": trained().opt_state}),
    "whole-variables": lambda p: standard(
        p, {"params": PARAMS, "opt_state": ADAM.update({"params": PARAMS}, ADAM.init({"params": PARAMS}))[1]}
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_places(place, tmp_path, capfd):
    path = PLACES[place](tmp_path / "ckpt")
    capfd.readouterr()
    read = read_adam(path, SHAPES)
    assert capfd.readouterr() == ("", "")
    assert read.count == 1
    for name, leaf in FLAT.items():
        np.testing.assert_allclose(read.nu[name], 0.001 * leaf**2, rtol=1e-12)


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("extension", ["npz", "safetensors"])
def test_flat_files(separator, extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    flat = flatten_tree(serialization.to_state_dict(item(OPTIMIZERS["inject"])))
    flat = {name.replace("/", separator): np.asarray(leaf) for name, leaf in flat.items()}
    if extension == "npz":
        np.savez(path, **flat)
    else:
        pytest.importorskip("safetensors.numpy").save_file(flat, path)
    read = read_adam(path, SHAPES)
    check(read, after(OPTIMIZERS["inject"]))
    assert read.hyperparams["b2"] == pytest.approx(0.99)


@pytest.mark.parametrize("boxed", [True, False])
def test_nnx_optimizer(boxed, tmp_path):
    model = Net()
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    state = {"model": nnx.state(model, nnx.Param), "optimizer": nnx.state(optimizer)}
    if not boxed:
        state = {key: nnx.to_pure_dict(value) for key, value in state.items()}
    params = flatten_tree(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    shapes = {path: leaf.shape for path, leaf in params.items()}
    read = read_adam(standard(tmp_path / "a", state), shapes)
    assert read.count == 1
    for path, shape in shapes.items():
        np.testing.assert_array_equal(read.nu[path], np.full(shape, np.float32(0.001)))


def test_a_block_and_a_named_subtree(tmp_path):
    path = standard(tmp_path / "a", item(ADAM))
    read = read_adam(path, {"scale": (2,)})
    check(read, after(ADAM), ["scale"])
    read = read_adam(path, {"kernel": (2, 3), "bias": (3,)}, params="params/Dense_0")
    assert sorted(read.nu) == ["bias", "kernel"]
    np.testing.assert_array_equal(read.nu["bias"], after(ADAM)[0].nu["Dense_0"]["bias"])
    twins = {"params": {"a": {"w": np.ones(2)}, "b": {"w": np.full(2, 2.0)}}}
    twins["opt_state"] = after(ADAM, 1, twins["params"])
    read = read_adam(standard(tmp_path / "b", twins), {"w": (2,)}, params="params/b")
    np.testing.assert_allclose(read.nu["w"], 0.001 * 64, rtol=1e-12)


def test_only_the_state_is_read(tmp_path, monkeypatch):
    path = standard(tmp_path / "a", item(ADAM))
    seen, call = [], orbax.restore
    monkeypatch.setattr(
        orbax, "restore", lambda place, target, placing: (seen.append(target), call(place, target, placing))[1]
    )
    read_adam(path, SHAPES)
    assert [list(target) for target in seen] == [["opt_state"]]


# Groups, masks, several


def test_groups_of_parameters_are_joined(tmp_path):
    tx = optax.multi_transform({"x": OPTIMIZERS["inject"], "y": ADAM}, LABELS)
    read = read_adam(standard(tmp_path / "a", item(tx)), SHAPES)
    assert sorted(read.nu) == sorted(SHAPES)
    assert read.hyperparams == {}  # the groups' need not be the same
    for path, leaf in flatten_tree(after(ADAM)[0].mu).items():
        np.testing.assert_allclose(read.mu[path], leaf, rtol=1e-6)
    same_rate = optax.multi_transform({"x": OPTIMIZERS["inject"], "y": OPTIMIZERS["inject"]}, LABELS)
    read = read_adam(standard(tmp_path / "b", item(same_rate)), SHAPES)
    assert read.hyperparams["learning_rate"] == pytest.approx(1e-2)


def test_parameters_under_no_adam(tmp_path):
    tx = optax.multi_transform({"x": ADAM, "y": optax.sgd(1e-2)}, LABELS)
    path = standard(tmp_path / "a", item(tx))
    with pytest.raises(DataError, match="Dense_0/bias") as caught:
        read_adam(path, SHAPES)
    assert "--exclude" in caught.value.hint
    assert sorted(read_adam(path, {name: SHAPES[name] for name in ("Dense_0/kernel", "scale")}).nu)[1] == "scale"


@pytest.mark.parametrize("tx", [optax.sgd(1e-2, momentum=0.9), optax.rmsprop(1e-2), optax.lion(1e-2)])
def test_no_adam(tx, tmp_path):
    with pytest.raises(DataError, match="no Optax Adam state") as caught:
        read_adam(msgpack(tmp_path / "a", item(tx)), SHAPES)
    assert caught.value.exit_code == 65
    assert "opt_state" in caught.value.hint


def test_several_states(tmp_path):
    state = after(ADAM)
    two = standard(tmp_path / "a", {"params": PARAMS, "opt_state": state, "old": {"opt_state": state}})
    with pytest.raises(DataError, match=r"several.*old/opt_state/0.*opt_state/0|several.*opt_state/0.*old"):
        read_adam(two, SHAPES)
    # Of a generator and a discriminator with the same names, each has its own.
    pair = {
        name: {"params": PARAMS, "opt_state": after(ADAM, steps)} for name, steps in (("generator", 2), ("critic", 5))
    }
    path = msgpack(tmp_path / "b", pair)
    assert [read_adam(path, SHAPES, params=f"{name}/params").count for name in pair] == [2, 5]


def test_states_that_do_not_fit(tmp_path):
    path = msgpack(tmp_path / "a", item(ADAM))
    with pytest.raises(DataError, match=r"nu of 'scale'|mu of 'scale'"):
        read_adam(path, SHAPES | {"scale": (3,)})
    with pytest.raises(DataError, match="is \\[\\], the parameter"):  # one number a layer
        read_adam(msgpack(tmp_path / "b", item(optax.novograd(1e-2))), SHAPES)
    assert read_adam(msgpack(tmp_path / "c", {"params": PARAMS, "opt_state": ADAM.init(PARAMS)}), SHAPES).count == 0
    bad = after(ADAM)
    bad[0].nu["scale"] = jnp.array([1.0, jnp.nan])
    with pytest.raises(DataError, match=r"nu/scale.*NaN"):
        read_adam(msgpack(tmp_path / "d", {"params": PARAMS, "opt_state": bad}), SHAPES)
    bad[0].nu["scale"] = jnp.array([1.0, -1.0])
    with pytest.raises(DataError, match="negative"):
        read_adam(msgpack(tmp_path / "e", {"params": PARAMS, "opt_state": bad}), SHAPES)
    states = {"a": after(ADAM, 2, {"scale": np.ones(2)}), "b": after(ADAM, 3, {"Dense_0": PARAMS["Dense_0"]})}
    with pytest.raises(DataError, match="different numbers"):
        read_adam(msgpack(tmp_path / "f", {"params": PARAMS, "opt_state": states}), SHAPES)


def test_an_entry_without_gradient_needs_eps(tmp_path):
    params = {"scale": np.array([0.0, 1.0])}
    path = msgpack(tmp_path / "a", {"params": params, "opt_state": after(ADAM, 2, params)})
    read = read_adam(path, {"scale": (2,)})
    assert preconditioner(replace(read, hyperparams={"b1": 0.5}))["scale"][0] == pytest.approx(0.75 * 1e-8)
    with pytest.raises(NumericsError, match="scale"):
        preconditioner(replace(read, hyperparams={"eps": 0.0}))


# The edge of stability


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.9])
def test_threshold_of_adam_with_its_preconditioner_held(b1):
    """On a quadratic, m ← β₁m + (1 − β₁)λw, w ← w − ηm/p has spectral radius 1 exactly at the threshold."""
    rate, p = 0.01, 3.0
    for factor, stable in ((0.999, True), (1.001, False)):
        curvature = factor * stability_threshold(rate, b1) * p
        step = np.array([[b1, (1 - b1) * curvature], [-rate / p * b1, 1 - rate / p * (1 - b1) * curvature]])
        assert (np.abs(np.linalg.eigvals(step)).max() < 1) == stable


def test_full_batch_adam_hovers_at_its_threshold(tmp_path):
    """The preconditioned sharpness rises to 38/η and stays about it, while λ_max(H) is nowhere near 2/η or 38/η."""
    rate, b2, width = 0.01, 0.99, 16
    inputs = jnp.linspace(-1, 1, 20)[:, None]
    first, second, third = jax.random.split(jax.random.key(0), 3)
    params = {
        "Dense_0": {"kernel": 2 * jax.random.normal(first, (1, width)), "bias": jax.random.normal(third, (width,))},
        "Dense_1": {"kernel": jax.random.normal(second, (width, 1)) / 4},
    }
    tx = optax.adam(rate, b2=b2)
    nest = ravel_pytree(params)[1]

    def loss(params, inputs):
        hidden = jnp.tanh(inputs @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
        return jnp.mean((hidden @ params["Dense_1"]["kernel"] - jnp.sin(5 * inputs)) ** 2)

    @jax.jit
    def train(params, state, inputs):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, inputs), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=100)[0]

    hessian = jax.jit(jax.hessian(lambda flat, inputs: loss(nest(flat), inputs)))
    state, ratios, sharpness = tx.init(params), [], []
    for _ in range(30):
        params, state = train(params, state, inputs)
        tree = {"params": params, "opt_state": state}
        flat = flatten_tree(params)
        read = read_adam(msgpack(tmp_path / "a", tree), {path: leaf.shape for path, leaf in flat.items()})
        diagonal = ravel_pytree({path: preconditioner(replace(read, hyperparams={"b2": b2}))[path] for path in flat})[0]
        matrix = np.asarray(hessian(ravel_pytree(params)[0], inputs))
        scale = np.sqrt(np.asarray(diagonal))
        ratios.append(np.linalg.eigvalsh(matrix / scale[:, None] / scale)[-1] / stability_threshold(rate))
        sharpness.append(np.linalg.eigvalsh(matrix)[-1])
    assert ratios[0] < 0.6
    assert np.all(np.abs(np.array(ratios[10:]) - 1) < 0.25)
    assert abs(np.mean(ratios[10:]) - 1) < 0.1
    assert max(sharpness) < 0.2 * 2 / rate
