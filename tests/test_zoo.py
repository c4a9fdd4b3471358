"""The sample models: they are complete, small, and the autoencoder gives the lecture's numbers."""

import importlib
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.flatten_util import ravel_pytree

from curvcli import zoo
from curvcli.schema.spec import ProblemSpec

SAMPLES = Path(__file__).parents[1] / "sample_models"
NAMES = (
    "char_transformer.ckpt",
    "digits_cnn.ckpt",
    "digits_mlp.ckpt",
    "digits_run",
    "linear_autoencoder.ckpt",
    "tanh_regression.ckpt",
)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def spec_of(name):
    with (SAMPLES / name / "curv.toml").open("rb") as file:
        return ProblemSpec.model_validate(tomllib.load(file))


def data_of(name):
    """Inputs, targets and mask (ones, if there is none), as curv.toml names them."""
    data = spec_of(name).data
    suffix = f"_{data.split}" if data.split else ""
    with np.load(SAMPLES / name / data.path) as arrays:
        x, y = arrays[data.inputs + suffix], arrays[data.targets + suffix]
        return x, y, arrays[data.mask + suffix] if data.mask else np.ones(len(x))


def model_of(name):
    model = spec_of(name).model
    module, attribute = model.target.split(":")
    return getattr(importlib.import_module(module), attribute)(**model.kwargs)


def steps():
    return sorted(int(f.name) for f in (SAMPLES / "digits_run").iterdir() if f.is_dir())


def checkpoint_of(name):
    """The whole tree, read as any user of Orbax would read it."""
    folder = SAMPLES / name
    if name == "digits_run":
        folder = folder / str(steps()[-1]) / "default"
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder)


def objective_of(name):
    """J as a function of params, written out without the package's losses, and the checkpoint's params."""
    tree, model, loss = checkpoint_of(name), model_of(name), spec_of(name).loss
    collections = {key: tree[key] for key in tree if key == "batch_stats"}
    x, y, weight = data_of(name)

    def objective(params):
        z = model.apply({"params": params, **collections}, x)
        if loss.name == "squared_error":
            units = jnp.sum((z - y) ** 2, axis=-1) / 2
        else:
            units = -jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], axis=-1)[..., 0]
        flat, _ = ravel_pytree(params)
        regulariser = getattr(zoo, loss.regulariser.split(":")[1])(params) if loss.regulariser else 0.0
        return jnp.sum(weight * units) / weight.sum() + loss.l2 / 2 * flat @ flat + regulariser

    return objective, tree["params"]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_has_a_valid_spec_data_and_the_parameters_of_its_model(name):
    x, y, weight = data_of(name)
    assert len(x) == len(y) == len(weight)
    assert (SAMPLES / name / spec_of(name).checkpoint.path).is_dir()
    expected = jax.eval_shape(model_of(name).init, jax.random.key(0), x[:1])
    found = {key: value for key, value in checkpoint_of(name).items() if key in expected}
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize(
    ("name", "largest_loss", "largest_norm"),
    [
        ("char_transformer.ckpt", 0.53, 1e-2),
        ("digits_cnn.ckpt", 0.02, 1e-3),
        ("digits_mlp.ckpt", 0.012, 1e-5),
        ("linear_autoencoder.ckpt", 2.2151, 1e-12),
        ("tanh_regression.ckpt", 0.012, 1e-8),
    ],
)
def test_a_sample_is_trained_to_a_stationary_point(name, largest_loss, largest_norm):
    objective, params = objective_of(name)
    value, gradient = jax.jit(jax.value_and_grad(objective))(params)
    assert value < largest_loss
    assert jnp.linalg.norm(ravel_pytree(gradient)[0]) < largest_norm


def test_the_run_has_its_steps_from_initialisation_on():
    assert steps() == [0, 7, 14, 28, 55, 110, 220, 440]
    assert checkpoint_of("digits_run")["step"] == 440


def test_the_samples_are_small():
    assert sum(f.stat().st_size for f in SAMPLES.rglob("*") if f.is_file()) < 10e6


def test_the_linear_autoencoder_gives_the_lectures_numbers():
    objective, params = objective_of("linear_autoencoder.ckpt")
    w, unravel = ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda w: objective(unravel(w))))(w)

    def curvature(transformation):
        tangent = jax.jvp(lambda s: transformation(params, s), (0.0,), (1.0,))[1]
        v, _ = ravel_pytree(tangent)
        return v @ hessian @ v / (v @ v)

    assert objective(params) == pytest.approx(2.2150983, abs=1e-7)
    assert jnp.linalg.eigvalsh(hessian)[-1] == pytest.approx(2.078364, abs=1e-6)
    assert jnp.trace(hessian) == pytest.approx(256.90022, abs=1e-5)
    assert curvature(zoo.rescale) == pytest.approx(1.358681, abs=1e-6)
    assert curvature(zoo.rotate) == pytest.approx(4.1928e-4, abs=1e-8)


def test_the_penalties_go_up_to_half_the_smallest_kept_variance():
    x, _, _ = data_of("linear_autoencoder.ckpt")
    variances = np.linalg.eigvalsh(x.T @ x / len(x))
    np.testing.assert_allclose(zoo.latent_penalties(10)[[0, -1]], [0, variances[-10] / 2], rtol=1e-13)


@pytest.mark.parametrize("transformation", [zoo.rescale, zoo.rotate])
def test_a_transformation_is_the_identity_at_zero_and_a_group(transformation):
    params = checkpoint_of("linear_autoencoder.ckpt")["params"]
    jax.tree.map(np.testing.assert_array_equal, transformation(params, 0.0), params)
    twice, once = transformation(transformation(params, 0.3), 0.4), transformation(params, 0.7)
    np.testing.assert_allclose(ravel_pytree(twice)[0], ravel_pytree(once)[0], atol=1e-14)


def test_rotation_keeps_the_reconstruction():
    model, params = model_of("linear_autoencoder.ckpt"), checkpoint_of("linear_autoencoder.ckpt")["params"]
    x = np.random.default_rng(0).standard_normal((5, 20))
    turned = model.apply({"params": zoo.rotate(params, 0.7)}, x)
    np.testing.assert_allclose(turned, model.apply({"params": params}, x), atol=1e-13)


@pytest.mark.parametrize(
    ("model", "x", "shape"),
    [
        (zoo.MLP((7, 3)), np.ones((5, 4)), (5, 3)),
        (zoo.MLP((7, 6, 3), "relu"), np.ones((5, 2, 2)), (5, 3)),
        (zoo.CNN((4, 6), 3), np.ones((5, 8, 8, 2)), (5, 3)),
        (zoo.LinearAutoencoder(8, 2), np.ones((5, 8)), (5, 8)),
        (zoo.CharTransformer(11, 9, width=8, heads=2), np.ones((5, 7), int), (5, 7, 11)),
    ],
)
def test_a_network_has_outputs_of_the_promised_shape(model, x, shape):
    outputs = jax.eval_shape(lambda key: model.init_with_output(key, x)[0], jax.random.key(0))
    assert outputs.shape == shape


def test_the_layers_of_an_mlp_are_numbered_and_the_last_has_no_activation():
    model = zoo.MLP((6, 3), "tanh")
    x = np.random.default_rng(0).standard_normal((5, 4))
    params = model.init(jax.random.key(0), x)["params"]
    assert sorted(params) == ["Dense_0", "Dense_1"]
    params = jax.tree.map(np.asarray, params)
    hidden = np.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    outputs = hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
    np.testing.assert_allclose(model.apply({"params": params}, x), outputs, rtol=1e-12)


def test_the_cnn_uses_running_statistics_unless_it_trains():
    x = np.random.default_rng(0).standard_normal((5, 8, 8, 1))
    model = zoo.CNN((4,), 3)
    variables = model.init(jax.random.key(0), x)
    alone = model.apply(variables, x[:1])
    np.testing.assert_allclose(model.apply(variables, x)[:1], alone, rtol=1e-10)
    trained, updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
    assert not np.allclose(trained[:1], alone)
    assert not np.allclose(*(ravel_pytree(v["batch_stats"])[0] for v in (variables, updated)))


def test_the_transformer_does_not_look_ahead_and_drops_out_only_when_asked():
    model = zoo.CharTransformer(11, 9, width=8, layers=1, heads=2, dropout=0.5)
    ids = np.random.default_rng(0).integers(0, 11, (2, 9))
    variables = model.init(jax.random.key(0), ids)
    later = ids.copy()
    later[:, 5:] = (later[:, 5:] + 1) % 11
    before, after = model.apply(variables, ids), model.apply(variables, later)
    np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-12)
    assert not np.allclose(before[:, 5:], after[:, 5:])
    dropped = model.apply(variables, ids, deterministic=False, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(before, dropped)
