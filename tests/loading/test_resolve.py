"""A specification and its files become a problem: the objective against dense truth, and every misfit told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.errors import DataError, NotFoundError, SpecError, UsageError
from curvcli.loading.checkpoints.reading import load_checkpoint
from curvcli.loading.resolve import checkpoint_path
from curvcli.schema.spec import ProblemSpec
from tests.loading import models
from tests.loading.models import COUNT, HERE, Truth, load, refused, same_matrix, small, spec_for, write_data

IGNORING = np.where(models.MASK > 0, models.TOKEN_LABELS, -1)


def tokens(folder: Path, labels: np.ndarray, loss: str, /, **tables: Any) -> tuple[dict[str, Any], Truth]:
    """The curv.toml of a network of tokens, and its truth without mask."""
    variables = models.linen_variables(models.Tokens(), models.IDS, deterministic=True)
    models.msgpack(folder / "ckpt", variables)
    write_data(folder, models.IDS, labels, keep=models.MASK, examples=models.MASK[:, 0])
    by_hand = models.by_path(variables["params"])
    truth = Truth(models.tokens_by_hand, by_hand, {}, models.IDS, models.TOKEN_LABELS, models.cross_entropy)
    return spec_for("Tokens", loss, **tables), truth


# --- the objective ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "data", "loss", "weight", "normaliser"),
    [
        (models.TOKEN_LABELS, {}, {}, None, COUNT),
        (models.TOKEN_LABELS, {}, {"reduction": "tokens"}, None, COUNT * models.TOKENS),
        (models.TOKEN_LABELS, {"mask": "keep"}, {"reduction": "mean"}, models.MASK, 5),
        (models.TOKEN_LABELS, {"mask": "keep"}, {"reduction": "sum"}, models.MASK, 1),
        (models.TOKEN_LABELS, {"mask": "examples"}, {"reduction": "tokens"}, models.MASK[:, 0], 15),
        (IGNORING, {}, {"reduction": "tokens", "ignore_label": -1}, models.MASK, 11),
        (IGNORING, {"mask": "examples"}, {"reduction": "mean", "ignore_label": -1}, models.MASK, 5),
    ],
)
def test_reductions_masks_and_ignored_labels(
    tmp_path: Path, labels: Any, data: dict[str, Any], loss: dict[str, Any], weight: Any, normaliser: float
) -> None:
    spec, truth = tokens(tmp_path, labels, "softmax_cross_entropy", data=data, loss=loss)
    problem = load(tmp_path, spec).problem
    assert problem.normaliser == normaliser
    same_matrix(problem, "ggn", replace(truth, weight=weight, normaliser=normaliser).matrix("ggn"))


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize(
    ("name", "mask", "normaliser"), [("coupled", "examples", 5), ("coupled_tokens", "keep", 5), ("coupled", None, 6)]
)
def test_a_users_loss_that_couples_tokens(
    tmp_path: Path, name: str, mask: str | None, normaliser: float, matrix: str
) -> None:
    spec, truth = tokens(tmp_path, models.TOKEN_LABELS, f"{HERE}:{name}", data={"mask": mask} if mask else {})
    weight = {"examples": models.MASK[:, 0], "keep": models.MASK, None: None}[mask]
    truth = replace(truth, loss=getattr(models, name), weight=weight, normaliser=normaliser)
    same_matrix(load(tmp_path, spec).problem, matrix, truth.matrix(matrix))


@pytest.mark.parametrize("matrix", ["hessian", "ggn", "gauss-newton"])
def test_a_users_loss_and_regulariser(tmp_path: Path, matrix: str) -> None:
    spec = small(tmp_path, f"{HERE}:quartic", loss={"l2": 0.25, "regulariser": f"{HERE}:penalty"})
    problem = load(tmp_path, spec).problem
    params = models.by_path(models.list_params())
    plain = Truth(models.mlp_by_hand, params, {}, models.X, models.VALUES, models.quartic)

    def regulariser(p: Any) -> Any:
        return models.penalty(p) + 0.125 * sum(jnp.sum(leaf**2) for leaf in p.values())

    same_matrix(problem, matrix, replace(plain, regulariser=regulariser).matrix(matrix))
    same_matrix(problem, matrix, plain.matrix(matrix), with_regulariser=False)
    # A block of the whole matrix, its regulariser with it, where the regulariser sees the fixed parameters too.
    block = load(tmp_path, spec, params=["0/*"], exclude=["*/b"]).problem
    assert list(block.params) == ["0/w"]
    part = slice(4, 16)  # 0/b, 0/w, 1/b, 1/w
    same_matrix(block, matrix, replace(plain, regulariser=regulariser).matrix(matrix)[part, part])


def in_own_form(params: Any) -> Any:
    """A regulariser that goes by the names and lists of the model's own tree."""
    if "layers" in params:
        return jnp.sum(params["layers"][1]["kernel"] ** 4)
    return jnp.sum(params["Dense_0"]["kernel"] ** 4)


@pytest.mark.parametrize("kind", ["CNN", "Listed"])
def test_a_regulariser_gets_the_parameters_in_the_models_own_form(tmp_path: Path, kind: str) -> None:
    linen = kind == "CNN"
    models.orbax(
        tmp_path / "ckpt",
        models.linen_variables(models.CNN(), models.IMAGES, train=False) if linen else models.nnx_state(),
    )
    write_data(tmp_path, models.IMAGES if linen else models.X, models.LABELS)
    spec = spec_for(kind, "softmax_cross_entropy", loss={"regulariser": f"{__name__}:in_own_form"})
    problem = load(tmp_path, spec).problem
    name = "Dense_0/kernel" if linen else "layers/1/kernel"
    value = problem.regulariser.fn(problem.nest(problem.params))
    np.testing.assert_allclose(value, np.sum(np.asarray(problem.params[name]) ** 4))


@pytest.mark.parametrize("shape", [(COUNT,), (COUNT, 1)])
def test_one_output_without_an_axis_of_its_own(tmp_path: Path, shape: tuple[int, ...]) -> None:
    models.npz(tmp_path / "ckpt", {"w": np.ones(3)})
    write_data(tmp_path, models.X, models.VALUES[:, 0].reshape(shape))
    problem = load(tmp_path, spec_for(f"{__name__}:one_output")).problem
    truth = models.X.T @ models.X / COUNT
    for matrix in ("hessian", "ggn", "gauss-newton"):
        same_matrix(problem, matrix, truth)


def one_output(params: dict[str, Any], x: Any) -> Any:
    """[b, 3] to [b]."""
    return x @ params["w"]


# --- which parameters, which examples ---------------------------------------------------------------------


def counting(params: dict[str, Any], x: Any) -> Any:
    """A network with a whole number among its parameters."""
    return x @ params["w"] * params["times"].astype(x.dtype) + params["b"][None].astype(x.dtype)


def test_whole_numbers_are_held_fixed_and_short_floats_cast(tmp_path: Path) -> None:
    b = jnp.asarray([0.1, 0.2], jnp.bfloat16)
    models.orbax(tmp_path / "ckpt", {"w": np.ones((3, 2), np.float16), "b": b, "times": np.array(3)})
    write_data(tmp_path, models.X, models.VALUES)
    loaded = load(tmp_path, spec_for(f"{__name__}:counting"))
    assert list(loaded.problem.params) == ["b", "w"]
    assert list(loaded.problem.frozen["params"]) == ["times"]
    assert loaded.stored_dtypes == {"w": "float16", "b": "bfloat16", "times": "int64"}
    assert {leaf.dtype.name for leaf in loaded.problem.params.values()} == {"float64"}
    np.testing.assert_array_equal(loaded.problem.params["b"], np.asarray(b, np.float64))
    refused(UsageError, load, tmp_path, spec_for(f"{__name__}:counting"), params=["times"], says="--exclude")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"params": ["2/*"]}, ["no parameter matches '2/*'", "0/b, 0/w, 1/b, 1/w"]),
        ({"params": ["0/w"], "exclude": ["kernel"]}, ["no parameter matches 'kernel'"]),
        ({"params": ["0/*"], "exclude": ["*/b", "*w"]}, ["no floating parameter", "--params and --exclude"]),
        ({"num_examples": 7}, ["7", "6"]),
    ],
)
def test_a_choice_of_nothing_is_told(tmp_path: Path, settings: dict[str, Any], says: list[str]) -> None:
    refused(UsageError, load, tmp_path, small(tmp_path), says=says, **settings)


def test_the_first_examples(tmp_path: Path) -> None:
    loaded = load(tmp_path, small(tmp_path), num_examples=4)
    assert loaded.data.num_examples == loaded.problem.normaliser == loaded.problem.batches.num_examples == 4


# --- checkpoint and model ---------------------------------------------------------------------------------


def change(tree: Any, path: str, new: Any) -> Any:
    """The nested tree with one leaf replaced, added, or (None) removed."""
    flat = {**models.by_path(tree), path: new}
    nested: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        if leaf is not None:
            node[last] = leaf
    return nested


LINEN_LEAVES = {
    "bias": "params/Dense_0/bias",
    "kernel": "params/Dense_0/kernel",
    "mean": "batch_stats/BatchNorm_0/mean",
}
NNX_LEAVES = {"bias": "layers/1/bias", "kernel": "layers/1/kernel", "mean": "norm/mean"}


@pytest.mark.parametrize("kind", ["CNN", "Listed"])
@pytest.mark.parametrize(
    ("leaf", "new", "says"),
    [
        ("bias", None, "bias [3] is missing"),
        ("kernel", np.ones((5, 3)), "kernel is [5, 3], the model has ["),
        ("bias", np.ones(()), "bias is [], the model has [3]"),
        ("mean", np.ones(1), "mean is [1], the model has ["),
        ("extra", np.ones(2), "extra/scale [2] is not the model's"),
    ],
)
def test_a_leaf_that_does_not_fit_is_named(tmp_path: Path, kind: str, leaf: str, new: Any, says: str) -> None:
    linen = kind == "CNN"
    tree = models.linen_variables(models.CNN(), models.IMAGES, train=False) if linen else models.nnx_state()
    if not linen:
        tree = {**models.nnx.to_pure_dict(models.nnx.split_state(tree, models.nnx.RngState, ...)[1])}
    path = (LINEN_LEAVES if linen else NNX_LEAVES).get(leaf, "params/extra/scale" if linen else "extra/scale")
    models.msgpack(tmp_path / "ckpt", change(tree, path, new))
    write_data(tmp_path, models.IMAGES if linen else models.X, models.LABELS)
    refused(DataError, load, tmp_path, spec_for(kind, "softmax_cross_entropy"), says=[says, "--model"])


@pytest.mark.parametrize(("kind", "says"), [("CNN", "collection 'batch_stats'"), ("Listed", "variable 'norm/mean'")])
def test_statistics_that_are_not_in_the_checkpoint_are_named(tmp_path: Path, kind: str, says: str) -> None:
    linen = kind == "CNN"
    if linen:
        tree = models.linen_variables(models.CNN(), models.IMAGES, train=False)["params"]
    else:
        tree = models.nnx.split_state(models.nnx_state(), models.nnx.Param, ...)[0]
    models.orbax(tmp_path / "ckpt", tree)
    write_data(tmp_path, models.IMAGES if linen else models.X, models.LABELS)
    refused(SpecError, load, tmp_path, spec_for(kind, "softmax_cross_entropy"), says=[says, "save"])


def test_many_misfits_are_counted(tmp_path: Path) -> None:
    models.msgpack(tmp_path / "ckpt", {"params": {f"Dens_{i}": {"kernel": np.ones(2)} for i in range(9)}})
    write_data(tmp_path, models.X, models.VALUES)
    spec = spec_for("curvcli.zoo:MLP", model={"kwargs": {"features": [4, 2]}})
    refused(DataError, load, tmp_path, spec, says=["Dens_0/kernel [2] is not the model's", "and 9 more"])


def test_a_pinned_digest_is_kept(tmp_path: Path) -> None:
    spec = small(tmp_path)
    digest = load_checkpoint(tmp_path / "ckpt").sha256
    assert load(tmp_path, {**spec, "checkpoint": {"sha256": digest}}).checkpoint.sha256 == digest
    spec["checkpoint"] = {"sha256": "0" * 64}
    refused(DataError, load, tmp_path, spec, says=[digest[:12], "[checkpoint] sha256"])


# --- losses, regularisers, data ------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["model", "data", "loss"])
def test_what_is_not_given_is_named(tmp_path: Path, table: str) -> None:
    spec = small(tmp_path)
    del spec[table]
    refused(SpecError, load, tmp_path, spec, says=[f"no {table} is given", f"--{table}", f"[{table}]"])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    spec = small(tmp_path)
    (tmp_path / "ckpt").unlink()
    refused(NotFoundError, load, tmp_path, spec, says="ckpt")
    spec = small(tmp_path, data={"path": "dat.npz"})
    refused(NotFoundError, load, tmp_path, spec, says=["dat.npz", "did you mean 'data.npz'?"])
    refused(NotFoundError, load, tmp_path, {**spec, **spec_for("net.py:f")}, says=["no file net.py", tmp_path.name])


def reduced(z: Any, t: Any) -> Any:
    """A loss that is summed already."""
    return jnp.sum((z - t) ** 2)


def summed_over_examples(z: Any, t: Any) -> Any:
    """A loss per output, of all examples together."""
    return jnp.sum((z - t) ** 2, axis=0)


def leaves(params: Any) -> Any:
    """No number, but the sizes of all leaves."""
    return jnp.stack([jnp.sum(layer["w"]) for layer in params])


def lost(params: Any) -> Any:
    """Goes by a name that is not there."""
    return params["Dense_0"]


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ({"name": "squared-error"}, ["unknown loss 'squared-error'", "did you mean squared_error?"]),
        ({"name": "cross_entropy"}, ["unknown loss", "did you mean", "cross_entropy"]),
        ({"name": "hinge"}, ["unknown loss 'hinge'", "poisson", "module:fn"]),
        ({"name": f"{__name__}:reduced"}, ["returns shape []", "do not reduce", "--reduction"]),
        ({"name": f"{__name__}:summed_over_examples"}, ["returns shape [2]", "do not reduce"]),
        ({"name": f"{HERE}:COUNT"}, ["is no function", "fn(outputs, targets)"]),
        ({"name": f"{HERE}:penalty"}, ["the loss fails: TypeError", "--loss", "fn(outputs, targets)"]),
        ({"regulariser": f"{__name__}:leaves"}, ["leaves does not return one number", "scalar"]),
        ({"regulariser": f"{__name__}:lost"}, ["the regulariser fails: TypeError", "[loss] regulariser", "fn(params)"]),
        ({"regulariser": f"{HERE}:COUNT"}, ["the regulariser fails", "callable"]),
    ],
)
def test_a_loss_or_regulariser_that_does_not_fit_is_told(tmp_path: Path, loss: dict[str, Any], says: list[str]) -> None:
    refused(SpecError, load, tmp_path, small(tmp_path, loss=loss), says=says)


@pytest.mark.parametrize(
    ("inputs", "targets", "more", "loss", "says"),
    [
        (models.X, models.LABELS, {}, "squared_error", ["targets have shape [N]", "[N, 2]"]),
        (models.X, np.full(COUNT, 2), {}, "softmax_cross_entropy", ["label 2 in row 0", "0 … 1"]),
        (models.X, np.full(COUNT, -1), {}, "softmax_cross_entropy", ["label -1 in row 0", "ignore_label"]),
        (models.X, np.zeros(COUNT), {}, "softmax_cross_entropy", ["dtype float64", "integers"]),
        (models.X, models.VALUES, {"m": np.ones((COUNT, 2))}, "squared_error", ["mask has shape [6, 2]"]),
        (models.X, models.VALUES, {"m": np.ones((COUNT, 2))}, f"{HERE}:quartic", ["mask has shape [6, 2]", "[N]"]),
        (np.full((COUNT, 3), 2**31), models.VALUES, {}, "squared_error", ["in row 0", "32 bits", "ids"]),
        (models.X, np.full((COUNT, 2), -(2**31) - 1), {}, f"{HERE}:quartic", ["in row 0", "32 bits"]),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_are_told(
    tmp_path: Path, inputs: Any, targets: Any, more: dict[str, Any], loss: str, says: list[str]
) -> None:
    models.npz(tmp_path / "ckpt", models.list_params())
    write_data(tmp_path, inputs, targets, **more)
    spec = spec_for("mlp", loss, data={"mask": "m"} if more else {})
    refused(DataError, load, tmp_path, spec, says=says)


def test_ignoring_every_label_is_told(tmp_path: Path) -> None:
    spec = small(tmp_path, "softmax_cross_entropy", np.full(COUNT, -1), loss={"ignore_label": -1})
    refused(DataError, load, tmp_path, spec, says=["no example is left", "ignore_label"])


def flat_images(params: Any, x: Any) -> Any:
    """Images as they are stored, unscaled."""
    return models.mlp(params, x.reshape(len(x), 3).astype(params[0]["w"].dtype))


def test_what_is_rarely_meant_is_remarked(tmp_path: Path) -> None:
    models.npz(tmp_path / "ckpt", models.list_params())
    write_data(tmp_path, np.ones((COUNT, 3, 1), np.uint8), np.zeros(COUNT, int))
    warnings = load(tmp_path, spec_for(f"{__name__}:flat_images", "softmax_cross_entropy")).warnings
    assert ["uint8" in warnings[0], "every label is 0" in warnings[1]] == [True, True]


# --- where the checkpoint is ------------------------------------------------------------------------------


def test_the_checkpoint_is_given_or_named_or_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").mkdir()
    named = ProblemSpec.model_validate({"checkpoint": {"path": "runs/a"}})
    assert checkpoint_path(str(tmp_path / "model.ckpt"), named, tmp_path) == tmp_path / "model.ckpt"
    assert checkpoint_path(None, named, tmp_path) == tmp_path / "runs/a"
    missing = str(tmp_path / "modl.ckpt")
    refused(
        NotFoundError, checkpoint_path, missing, named, tmp_path, says=["no checkpoint", "did you mean", "model.ckpt"]
    )
    refused(NotFoundError, checkpoint_path, str(tmp_path / "a/b"), None, tmp_path, says=["no checkpoint", "check"])
    refused(UsageError, checkpoint_path, None, ProblemSpec(), tmp_path, says=["no checkpoint is given", "curv init"])
    (tmp_path / "curv.toml").touch()
    assert checkpoint_path(None, ProblemSpec(), tmp_path) == tmp_path
