"""K-FAC and E-KFAC with weights of examples and tokens: one weight a row, in both factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli.curvature.jaxprs.taps import find_layers
from curvcli.curvature.kronecker.kfac import Recipe, kfac
from curvcli.curvature.kronecker.rows import Rows, token_rows
from curvcli.problem import Problem
from tests.curvature.test_kronecker import in_blocks, written_out
from tests.problems import dense_ggn, make_problem, targets_for

EPS = float(np.finfo("float64").eps)
EXACT = [Recipe("exact"), Recipe("exact", "reduce")]


def by_path(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def module_problem(module: nn.Module, inputs: np.ndarray, targets: np.ndarray, weight: Any, **rest: Any) -> Problem:
    params = module.init(jax.random.key(0), jnp.asarray(inputs))["params"]
    predict = lambda flat, x: module.apply({"params": nested(flat)}, x)  # noqa: E731
    return make_problem(predict, by_path(params), inputs, targets, weight=weight, **rest)


class Mixed(nn.Module):
    """Layers at tokens, at heads, at every second token, and at one place for all tokens; tokens see none but the
    earlier ones."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        options: dict[str, Any] = {"param_dtype": "float64"}
        h = nn.tanh(nn.Dense(6, **options)(x))
        heads = nn.DenseGeneral((6, 2), axis=-1, **options)(h)  # as many heads as tokens
        h = h + nn.DenseGeneral(6, axis=(-2, -1), **options)(nn.tanh(heads))
        halves = nn.tanh(nn.Conv(4, (2,), strides=2, padding="VALID", **options)(h))
        halves = jnp.concatenate([jnp.zeros_like(halves[:, :1]), halves[:, :-1]], axis=1)  # of earlier tokens alone
        h = h + nn.Dense(6, **options)(jnp.repeat(halves, 2, axis=1))
        first = nn.Dense(6, **options)(h[:, 0])
        return nn.Dense(3, **options)(h + nn.tanh(first)[:, None])


def mixed_data(count: int = 19) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs [N, 6, 3], labels, and fractional weights of tokens, zero behind a length of the example's own."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(count, 6, 3)), rng.integers(0, 3, (count, 6)).astype(np.int32)
    lengths = np.arange(count) % 4 + 1
    return x, labels, rng.uniform(0.3, 2.0, (count, 6)) * (np.arange(6)[None] < lengths[:, None])


def mixed_problem(x: np.ndarray, labels: np.ndarray, weight: np.ndarray, normaliser: float = 3.0) -> Problem:
    return module_problem(Mixed(), x, labels, weight, loss="softmax_cross_entropy", normaliser=normaliser, batch_size=3)


def linear_examples(weight: np.ndarray) -> Problem:
    rng = np.random.default_rng(1)
    params = {"w": rng.normal(size=(4, 2)), "b": rng.normal(size=2)}
    x = rng.normal(size=(len(weight), 4)) * np.exp(rng.normal(size=(len(weight), 1)))
    return make_problem(
        lambda p, x: x @ p["w"] + p["b"][None], params, x, rng.normal(size=(len(x), 2)), weight=weight, normaliser=7.0
    )


def linear_tokens(weight: np.ndarray) -> Problem:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(*weight.shape, 3)) * np.exp(rng.normal(size=(*weight.shape, 1)))
    return make_problem(
        lambda p, x: x @ p["w"] + p["b"][None, None], {"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)},
        x, rng.normal(size=(*weight.shape, 2)), weight=weight, normaliser=7.0,
    )  # fmt: skip


def linear_pixels(weight: np.ndarray) -> Problem:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(len(weight), 3, 4, 2))
    convolution = nn.Conv(3, (2, 3), param_dtype="float64")
    return module_problem(convolution, x, rng.normal(size=(len(weight), 3, 4, 3)), weight, normaliser=7.0)


def embedded(weight: np.ndarray) -> Problem:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 5, weight.shape).astype(np.int32)
    return make_problem(
        lambda p, x: p["table"][x], {"table": rng.normal(size=(5, 2))}, ids, rng.normal(size=(*ids.shape, 2)),
        weight=weight, normaliser=7.0,
    )  # fmt: skip


def unequal(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.exp(2 * rng.normal(size=shape)) * (rng.random(shape) < 0.7)


@pytest.mark.first_tier("linear_tokens-shape1-*", "embedded-shape4-*")
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(
    ("make", "shape"),
    [(linear_examples, (9,)), (linear_tokens, (9, 4)), (linear_pixels, (5, 3)), (linear_pixels, (5, 3, 4)),
     (embedded, (9, 4))],
)  # fmt: skip
def test_one_linear_layer_is_exact_whatever_the_weights(
    make: Callable[[np.ndarray], Problem], shape: tuple[int, ...], corrected: bool
) -> None:
    problem = make(unequal(*shape))
    ((found, true),) = in_blocks(kfac(problem, Recipe("exact"), corrected=corrected), dense_ggn(problem))
    np.testing.assert_allclose(found, true, atol=1e3 * EPS * np.abs(true).max())


def test_reduce_is_exact_where_an_example_repeats_its_input() -> None:
    rng = np.random.default_rng(4)
    x, weight = np.repeat(rng.normal(size=(6, 1, 3)), 4, axis=1), unequal(6, 4)
    x[weight == 0] = 9
    problem = make_problem(
        lambda p, x: x @ p["w"], {"w": rng.normal(size=(3, 2))}, x, rng.normal(size=(6, 4, 2)), weight=weight
    )
    ((found, true),) = in_blocks(kfac(problem, Recipe("exact", "reduce")), dense_ggn(problem))
    np.testing.assert_allclose(found, true, atol=1e3 * EPS * np.abs(true).max())


@pytest.mark.first_tier("recipe0-True", "recipe2-False")
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("recipe", [*EXACT, Recipe("empirical"), Recipe("sampled", samples=2)])
def test_what_stands_in_masked_tokens_changes_nothing(recipe: Recipe, corrected: bool) -> None:
    x, labels, weight = mixed_data()
    other, labelled = np.where(weight[..., None] > 0, x, 9.0), np.where(weight > 0, labels, 2)
    one, two = (
        written_out(kfac(mixed_problem(*pair, weight), recipe, corrected=corrected))
        for pair in ((x, labels), (other, labelled))
    )
    np.testing.assert_allclose(one, two, atol=1e4 * EPS * np.abs(one).max())


@pytest.mark.first_tier("recipe1-*")
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("recipe", EXACT)  # draws, and signs of empirical gradients, belong to places in the data
def test_an_example_of_weight_two_is_that_example_twice(recipe: Recipe, corrected: bool) -> None:
    x, labels, weight = mixed_data()
    times = np.random.default_rng(1).integers(1, 3, len(x))
    twice, doubled = np.repeat(np.arange(len(x)), times), weight * times[:, None]
    one, two = (
        written_out(kfac(problem, recipe, corrected=corrected))
        for problem in (mixed_problem(x, labels, doubled), mixed_problem(x[twice], labels[twice], weight[twice]))
    )
    np.testing.assert_allclose(one, two, atol=1e4 * EPS * np.abs(one).max())


@pytest.mark.first_tier("recipe1-*")
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("recipe", EXACT)  # draws, and signs of empirical gradients, belong to places in the data
def test_data_without_their_padding_give_the_same(recipe: Recipe, corrected: bool) -> None:
    rng = np.random.default_rng(5)
    x, weight = rng.normal(size=(16, 5, 3)), rng.uniform(0.5, 2.0, (16, 5))
    weight[:, 2:] = 0
    labels = targets_for("softmax_cross_entropy", 80, 4).reshape(16, 5)
    params = {"w": rng.normal(size=(3, 4)), "v": rng.normal(size=(4, 4)), "g": rng.normal(size=4)}

    def predict(p: dict, x: Any) -> Any:  # `g` fits no layer
        return (jnp.tanh(jnp.cumsum(x, axis=1) @ p["w"]) * p["g"]) @ p["v"]

    def matrix(length: int) -> np.ndarray:
        problem = make_problem(
            lambda p, x: predict({**p, "g": p["g"][None, None]}, x), params, x[:, :length], labels[:, :length],
            "softmax_cross_entropy", weight=weight[:, :length], normaliser=weight.sum(),
        )  # fmt: skip
        return written_out(kfac(problem, recipe, corrected=corrected))

    np.testing.assert_allclose(matrix(5), matrix(2), atol=1e4 * EPS * np.abs(matrix(2)).max())


def test_the_factors_of_a_network_of_tokens_by_hand() -> None:
    x, labels, weight = mixed_data()
    rng = np.random.default_rng(6)
    w, v = rng.normal(size=(3, 5)), rng.normal(size=(5, 3))
    problem = make_problem(
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], {"v": v, "w": w}, x, labels, "softmax_cross_entropy",
        weight=weight, normaliser=4.0,
    )  # fmt: skip
    h = np.tanh(x @ w)
    p = np.asarray(jax.nn.softmax(h @ v))
    hessians = p[..., None] * np.eye(3) - p[..., None] * p[..., None, :]
    back = np.einsum("ntj,jc->ntjc", 1 - h**2, v)
    factors = [
        (np.einsum("nt,nti,ntj->ij", weight, x, x), np.einsum("nt,ntic,ntcd,ntjd->ij", weight, back, hessians, back)),
        (np.einsum("nt,nti,ntj->ij", weight, h, h), np.einsum("nt,ntcd->cd", weight, hessians)),
    ]
    full = np.zeros((problem.dim, problem.dim))
    for (found, _), (a, s) in zip(in_blocks(kfac(problem, Recipe("exact")), full), factors, strict=True):
        expected = np.kron(a / weight.sum(), s / 4.0)
        np.testing.assert_allclose(found, expected, atol=1e4 * EPS * np.abs(expected).max())


class Attention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(5)(x + nn.MultiHeadDotProductAttention(self.heads, qkv_features=10 * self.heads)(x))


def mixer(p: dict, x: Any) -> Any:
    """Tokens mixed for every channel, of which there are as many; channels mixed for every token."""
    mixed = jnp.tanh(jnp.swapaxes(x, 1, 2) @ p["across tokens"])
    return (x + jnp.swapaxes(mixed, 1, 2)) @ p["at tokens"]


def flattened(p: dict, x: Any) -> Any:
    """Tokens and examples in one axis, then tokens first."""
    h = jnp.tanh(x.reshape(-1, x.shape[-1]) @ p["a"]).reshape(*x.shape[:2], -1)
    return jnp.swapaxes(jnp.swapaxes(h, 0, 1) @ p["b"], 0, 1)


def by_head(p: dict, x: Any) -> Any:
    """A matrix for the inside of each head, heads first; as many as tokens."""
    heads = x.reshape(*x.shape[:2], 5, -1).transpose(0, 2, 1, 3)
    return (heads @ p["inside"]).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)


@pytest.mark.slow
def test_the_axis_of_the_tokens_is_found_in_the_equations() -> None:
    rng = np.random.default_rng(0)

    def rows(problem: Problem) -> dict[str, Rows | None]:
        layers = find_layers(problem).layers
        return dict(zip((layer.kernel for layer in layers), token_rows(problem, layers), strict=True))

    def plain(predict: Callable[[dict, Any], Any], **shapes: tuple[int, ...]) -> dict[str, Rows | None]:
        params = {name.replace("_", " "): rng.normal(size=shape) for name, shape in shapes.items()}
        x = rng.normal(size=(5, 5, 5 if predict is not by_head else 10))
        outputs = jax.eval_shape(predict, params, x).shape
        return rows(make_problem(predict, params, x, rng.normal(size=outputs), weight=np.ones((5, 5))))

    at_tokens = Rows((1, 5), (1,))
    assert plain(mixer, across_tokens=(5, 5), at_tokens=(5, 3)) == {"across tokens": None, "at tokens": at_tokens}
    assert plain(flattened, a=(5, 5), b=(5, 5)) == {"a": Rows((5,), (0,)), "b": Rows((5, 1), (0,))}
    assert plain(by_head, inside=(2, 2)) == {"inside": Rows((1, 5, 5), (2,))}
    for heads in (1, 5):
        x = rng.normal(size=(3, 5, 5)).astype(np.float32)
        found = rows(module_problem(Attention(heads), x, x, np.ones((3, 5)), dtype="float32"))
        assert len(found) == 5
        assert set(found.values()) == {at_tokens}
    x, labels, weight = mixed_data()
    assert [one.axes if one else None for one in rows(mixed_problem(x, labels, weight)).values()] == [
        (1,), (1,), (1,), None, (1,), None, (1,),
    ]  # fmt: skip
