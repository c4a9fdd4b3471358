"""Networks of every kind: their curvature against dense truth, evaluation mode, and how their kind is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from curvcli.errors import SpecError
from curvcli.loading.resolve import Loaded
from curvcli.loading.spec.targets import Targets
from tests.loading import models
from tests.loading.models import COUNT, Truth, load, same_matrix, spec_for, write_data

MATRICES = ["hessian", "ggn", "gauss-newton"]


def cnn_case(folder: Path, save: Callable[..., None] = models.orbax) -> tuple[Loaded, Truth]:
    variables = models.linen_variables(models.CNN(), models.IMAGES, train=False)
    save(folder / "ckpt", {**variables, "step": 3})
    write_data(folder, models.IMAGES, models.LABELS)
    loaded = load(folder, spec_for("CNN", "softmax_cross_entropy"))
    flat = models.by_path(variables)
    params = {name.removeprefix("params/"): leaf for name, leaf in flat.items() if name.startswith("params/")}
    return loaded, Truth(models.cnn_by_hand, params, flat, models.IMAGES, models.LABELS, models.cross_entropy)


def nnx_case(folder: Path, form: Callable[[Any], Any] = lambda state: state) -> tuple[Loaded, Truth]:
    state = models.nnx_state()
    models.orbax(folder / "ckpt", form(state))
    write_data(folder, models.X, models.LABELS)
    loaded = load(folder, spec_for("Listed", "softmax_cross_entropy", model={"kwargs": {"width": 4}}))
    params, stats = ({"/".join(map(str, path)): np.asarray(one[...]) for path, one in nnx.to_flat_state(part)}
                     for part in nnx.split_state(state, nnx.Param, nnx.BatchStat, ...)[:2])  # fmt: skip
    return loaded, Truth(models.listed_by_hand, params, stats, models.X, models.LABELS, models.cross_entropy)


def apply_case(folder: Path, save: Callable[..., None] = models.npz) -> tuple[Loaded, Truth]:
    params = models.list_params()
    save(folder / "ckpt", params)
    write_data(folder, models.X, models.VALUES)
    truth = Truth(
        models.mlp_by_hand, models.by_path(params), {}, models.X, models.VALUES, models.squared_error
    )  # fmt: skip
    return load(folder, spec_for("mlp")), truth


def tokens_case(folder: Path) -> tuple[Loaded, Truth]:
    variables = models.linen_variables(models.Tokens(), models.IDS, deterministic=True)
    models.msgpack(folder / "ckpt", variables)
    write_data(folder, models.IDS, models.TOKEN_LABELS, keep=models.MASK)
    spec = spec_for("Tokens", "softmax_cross_entropy", data={"mask": "keep"}, loss={"reduction": "tokens"})
    truth = Truth(
        models.tokens_by_hand, models.by_path(variables["params"]), {}, models.IDS, models.TOKEN_LABELS,
        models.cross_entropy, models.MASK, models.MASK.sum(),
    )  # fmt: skip
    return load(folder, spec), truth


def pair_case(folder: Path) -> tuple[Loaded, Truth]:
    inputs = {"left": models.X, "right": models.X[:, 1:] ** 2}
    variables = models.linen_variables(models.Pair(), **inputs)
    models.orbax(folder / "ckpt", variables)
    write_data(folder, inputs, models.VALUES)
    truth = Truth(
        models.pair_by_hand, models.by_path(variables["params"]), {}, inputs, models.VALUES, models.squared_error
    )
    return load(folder, spec_for("Pair", data={"inputs": "left,right"})), truth


CASES: dict[str, Callable[[Path], tuple[Loaded, Truth]]] = {
    "linen": cnn_case,
    "nnx": nnx_case,
    "apply": apply_case,
    "tokens": tokens_case,
    "pair": pair_case,
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, Truth]:
    """A network, loaded and by hand."""
    return CASES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.mark.first_tier("linen-ggn", "nnx-gauss-newton", "tokens-hessian", "pair-ggn")
@pytest.mark.parametrize("matrix", MATRICES)
def test_curvature_is_the_dense_one_for_every_batch_size(case: tuple[Loaded, Truth], matrix: str) -> None:
    loaded, truth = case
    dense = truth.matrix(matrix)
    assert loaded.problem.normaliser == truth.normaliser
    for batch_size in (1, 3, 4, COUNT) if matrix != "gauss-newton" else (4,):
        same_matrix(loaded.problem, matrix, dense, batch_size)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (cnn_case, models.msgpack),
        (nnx_case, lambda state: nnx.to_pure_dict(state)),
        (nnx_case, lambda state: nnx.split_state(state, nnx.RngState, ...)[1]),
        (apply_case, models.orbax),
    ],
    ids=["msgpack", "pure-dict", "no-streams", "orbax"],
)
def test_the_same_network_is_read_however_it_is_saved(tmp_path: Path, make: Callable[..., Any], option: Any) -> None:
    loaded, truth = make(tmp_path, option)
    problem = loaded.problem
    assert sorted(problem.params) == sorted(truth.params)
    with jax.numpy_rank_promotion("allow"):
        expected = truth.outputs(truth.params, truth.stats, truth.inputs)
    found = problem.predict(problem.params, problem.frozen, truth.inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.first_tier("names1")
@pytest.mark.parametrize("names", [[f"layers/{i}/*"] for i in range(2)] + [["*/b*", "norm/*"]])
def test_a_block_of_parameters_gives_the_principal_block(tmp_path: Path, names: list[str]) -> None:
    loaded, truth = nnx_case(tmp_path)
    block = load(tmp_path, loaded.spec.model_dump(exclude_none=True), params=names, exclude=["*/scale"]).problem
    position = np.concatenate([np.full(truth.params[name].size, name in block.params) for name in sorted(truth.params)])
    dense = truth.matrix("hessian")[np.ix_(position, position)]
    assert 0 < block.dim == position.sum() < loaded.problem.dim
    same_matrix(block, "hessian", dense)


def in_order(params: dict[str, Any], x: Any) -> Any:
    """A network whose layers follow the order of the dictionary's keys."""
    for layer in params.values():
        x = np.tanh(1) * x @ layer["w"] + x**2
    return x


def test_the_order_of_a_dictionary_is_that_of_jax_also_for_a_block(tmp_path: Path) -> None:
    params = {name: {"w": np.random.default_rng(i).normal(size=(3, 3))} for i, name in enumerate("cab")}
    models.npz(tmp_path / "ckpt", params)
    write_data(tmp_path, models.X, models.X)
    expected = jax.jit(in_order)(params, models.X)
    for globs in ([], ["b/*"], ["a/w", "c/w"]):
        problem = load(tmp_path, spec_for(f"{__name__}:in_order"), params=globs).problem
        np.testing.assert_allclose(problem.predict(problem.params, problem.frozen, models.X), expected, rtol=1e-13)


def by_name(params: Any, left: Any, right: Any, train: bool = True) -> Any:
    """Two inputs that are two arguments."""
    assert not train
    return left @ params["w"] + right @ params["w"][1:]


def by_keyword(params: Any, *, right: Any, left: Any) -> Any:
    """The same, by keyword alone and in another order."""
    return by_name(params, left, right, train=False)


def whole(params: Any, batch: dict[str, Any]) -> Any:
    """The same in one argument."""
    return by_name(params, batch["left"], batch["right"], train=False)


@pytest.mark.parametrize("function", [by_name, by_keyword, whole])
def test_inputs_by_name_reach_their_arguments(tmp_path: Path, function: Callable[..., Any]) -> None:
    w = np.arange(6.0).reshape(3, 2)
    models.npz(tmp_path / "ckpt", {"w": w})
    inputs = {"left": models.X, "right": models.X[:, 1:] ** 2}
    write_data(tmp_path, inputs, models.VALUES)
    problem = load(tmp_path, spec_for(f"{__name__}:{function.__name__}", data={"inputs": "left,right"})).problem
    truth = Truth(
        lambda p, stats, x: x["left"] @ p["w"] + x["right"] @ p["w"][1:],
        {"w": w}, {}, inputs, models.VALUES, models.squared_error,
    )  # fmt: skip
    same_matrix(problem, "hessian", truth.matrix("hessian"))


# --- evaluation mode --------------------------------------------------------------------------------------

FLAGGED = """
import flax.linen as nn
from flax import nnx

seen = []

class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, {flag}):
        seen.append({flag})
        return nn.Dense(2)(x)

class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x, *, {flag}):
        seen.append({flag})
        return self.dense(x)

def apply(params, x, {flag}):
    seen.append({flag})
    return x @ params["kernel"] + params["bias"][None]

def factory(width, depth=2):
    return Linen()

def nnx_factory(*, width, depth, rngs):
    return Nnx(rngs)

def apply_factory(width, depth):
    return lambda params, x: apply(params, x, {flag}=False)

class Callable:
    def __call__(self, params, x):
        return apply(params, x, None)

instance, nnx_instance = Linen(), Nnx(nnx.Rngs(1))
jitted = __import__("jax").jit(lambda params, x: apply(params, x, None))

def scaled(params, x, scale, shift=0.0):
    return scale * apply(params, x, None) + shift

def nothing(width=3, depth=2):
    return None
"""
DENSE = {"kernel": np.arange(6.0).reshape(3, 2) - 2, "bias": np.array([0.5, -1])}
DENSE_TREES = {"linen": {"params": {"Dense_0": DENSE}}, "nnx": {"dense": DENSE}, "apply": DENSE}
SIZES = {"width": 3, "depth": 2}


def flagged(folder: Path, flag: str = "train") -> str:
    (folder / "net.py").write_text(FLAGGED.format(flag=flag))
    return str(folder / "net.py")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("train", False),
        ("training", False),
        ("is_training", False),
        ("deterministic", True),
        ("use_running_average", True),
    ],
)
def test_evaluation_mode_is_asked_for_by_the_signature(tmp_path: Path, flag: str, value: bool) -> None:
    write_data(tmp_path, models.X, models.VALUES)
    for kind, attribute in (("linen", "Linen"), ("nnx", "Nnx"), ("apply", "apply")):
        models.npz(tmp_path / "ckpt", DENSE_TREES[kind])
        spec = spec_for(f"{flagged(tmp_path, flag)}:{attribute}")
        load(tmp_path, {**spec, "model": {**spec["model"], "kind": kind}})
        seen = Targets(tmp_path, True, "curv.toml").load(f"{flagged(tmp_path, flag)}:seen")
        assert seen
        assert set(seen) == {value}
        seen.clear()


@pytest.mark.parametrize(
    ("kind", "attribute", "model"),
    [
        ("linen", "Linen", {}),
        ("linen", "instance", {}),
        ("linen", "instance", {"kind": "linen"}),
        ("linen", "factory", {"kwargs": SIZES}),
        ("linen", "factory", {"kwargs": SIZES, "kind": "linen"}),
        ("nnx", "Nnx", {}),
        ("nnx", "nnx_instance", {}),
        ("nnx", "nnx_factory", {"kwargs": SIZES}),
        ("nnx", "nnx_factory", {"kwargs": SIZES, "kind": "nnx"}),
        ("apply", "apply", {}),
        ("apply", "jitted", {}),
        ("apply", "Callable", {}),
        ("apply", "apply_factory", {"kwargs": SIZES}),
        ("apply", "apply_factory", {"kwargs": SIZES, "kind": "apply"}),
        ("apply", "scaled", {"kwargs": {"scale": 1.0}}),
        ("apply", "scaled", {"kwargs": {"scale": 0.5, "shift": 0.0}, "kind": "apply"}),
    ],
)
def test_the_kind_of_a_target_is_told(tmp_path: Path, kind: str, attribute: str, model: dict[str, Any]) -> None:
    write_data(tmp_path, models.X, models.VALUES)
    models.npz(tmp_path / "ckpt", DENSE_TREES[kind])
    problem = load(tmp_path, spec_for(f"{flagged(tmp_path)}:{attribute}", model=model)).problem
    scale = model.get("kwargs", {}).get("scale", 1.0)
    expected = scale * (models.X @ DENSE["kernel"] + DENSE["bias"])
    np.testing.assert_allclose(problem.predict(problem.params, problem.frozen, models.X), expected, rtol=1e-13)
    assert problem.dim == 8


@pytest.mark.parametrize(
    ("attribute", "model", "says"),
    [
        ("nothing", {}, ["cannot tell what kind", "NoneType", "--kind"]),
        ("nothing", {"kind": "linen"}, ["no linen module", "NoneType"]),
        ("nothing", {"kind": "nnx"}, ["no nnx module", "NoneType"]),
        ("nothing", {"kind": "apply"}, ["returned no function", "apply(params, x)"]),
        ("seen", {"kind": "apply"}, ["is a list, not a function", "apply(params, x)"]),
        ("seen", {"kind": "nnx"}, ["constructor fails", "not callable"]),
        ("Nnx", {"kind": "linen"}, ["no linen module", "Nnx"]),
        ("Linen", {"kwargs": {"width": 3}}, ["constructor fails", "'width'", "--model-arg"]),
    ],
)
def test_a_target_of_the_wrong_kind_is_told(
    tmp_path: Path, attribute: str, model: dict[str, Any], says: list[str]
) -> None:
    write_data(tmp_path, models.X, models.VALUES)
    models.npz(tmp_path / "ckpt", DENSE)
    models.refused(SpecError, load, tmp_path, spec_for(f"{flagged(tmp_path)}:{attribute}", model=model), says=says)


# --- models that fail -------------------------------------------------------------------------------------


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(2)(x))


class Updating(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.BatchNorm(use_running_average=False)(nn.Dense(2)(x))


class NoisyNnx(models.Listed):
    def __call__(self, x: Any) -> Any:
        return self.drop(self.layers[1](self.layers[0](x)), deterministic=False)


class UpdatingNnx(models.Listed):
    def __call__(self, x: Any) -> Any:
        return self.layers[1](self.norm(self.layers[0](x), use_running_average=False))


class ScannedNnx(models.Listed):
    """A transformation hands every variable back as a new array, of the same value."""

    def __call__(self, x: Any) -> Any:
        inner = nnx.jit(lambda self, x: self.drop(self.norm(self.layers[0](x))))
        return self.layers[1](inner(self, x))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Noisy, ["dropout is on", "train=False or deterministic=True"]),
        (Updating, ["immutable", "updates its statistics", "train=False or use_running_average=True"]),
        (NoisyNnx, ["not in evaluation mode", "drop/rngs/count", "deterministic=True"]),
        (UpdatingNnx, ["not in evaluation mode", "norm/mean", "train=False"]),
    ],
)
def test_a_model_that_stays_in_training_mode_is_refused(tmp_path: Path, model: Any, says: list[str]) -> None:
    if issubclass(model, nn.Module):
        tree = models.random_like(jax.eval_shape(lambda: model().init(
            {"params": jax.random.key(0), "dropout": jax.random.key(0)}, models.X)))  # fmt: skip
    else:
        tree = models.nnx_state(model)
    models.orbax(tmp_path / "ckpt", tree)
    write_data(tmp_path, models.X, models.VALUES)
    models.refused(SpecError, load, tmp_path, spec_for(f"{__name__}:{model.__name__}"), says=says)


def test_an_nnx_transformation_is_no_sign_of_training(tmp_path: Path) -> None:
    models.orbax(tmp_path / "ckpt", models.nnx_state(ScannedNnx))
    write_data(tmp_path, models.X, models.LABELS)
    assert load(tmp_path, spec_for(f"{__name__}:ScannedNnx", "softmax_cross_entropy")).problem.dim > 0


FAILING: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "raises": (lambda z: [][len(z)], ["the model fails: IndexError", "--model"]),
    "exits": (lambda z: sys.exit("no\nlicence"), ["the model fails: SystemExit: no licence"]),
    "tuple": (lambda z: (z, z), ["returns a tuple", "outputs (logits) alone"]),
    "integers": (lambda z: z.argmax(axis=-1), ["returns int64 outputs", "logits"]),
    "scalar": (lambda z: z.sum(), ["returns shape []", "[batch, …]"]),
    "transposed": (lambda z: z.T, ["returns shape [2, 6]", "one row for each example"]),
}


def failing(params: Any, x: Any, how: str) -> Any:
    """`mlp`, with something wrong at the end."""
    print("a model may print")
    return FAILING[how][0](models.mlp(params, x)) if how in FAILING else models.mlp(params, x)


@pytest.mark.parametrize("how", FAILING)
def test_a_model_that_fails_is_told(tmp_path: Path, how: str) -> None:
    models.npz(tmp_path / "ckpt", models.list_params())
    write_data(tmp_path, models.X, models.VALUES)
    spec = spec_for(f"{__name__}:failing", model={"kwargs": {"how": how}})
    models.refused(SpecError, load, tmp_path, spec, says=FAILING[how][1])


def test_a_model_may_print(tmp_path: Path) -> None:
    models.npz(tmp_path / "ckpt", models.list_params())
    write_data(tmp_path, models.X, models.VALUES)
    assert load(tmp_path, spec_for(f"{__name__}:failing", model={"kwargs": {"how": "well"}})).problem.dim == 26


def keyed(params: dict[str, Any], x: Any) -> Any:
    """Parameters in a dictionary whose keys happen to be numbers."""
    return x @ params["0"] + params.get("1", 0)[None]


def test_keys_that_are_numbers_need_not_be_a_list(tmp_path: Path) -> None:
    models.npz(tmp_path / "ckpt", {"0": np.ones((3, 2)), "1": np.zeros(2)})
    write_data(tmp_path, models.X, models.VALUES)
    assert load(tmp_path, spec_for(f"{__name__}:keyed")).problem.dim == 8
