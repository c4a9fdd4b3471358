"""What is read of JAX's structure, and the plain paths of a release whose structure is not known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvcli import jax_internals
from curvcli.curvature import build
from curvcli.curvature.jaxprs import heads, rewriting, taps, work
from curvcli.jax_internals import is_known, plain_where_unknown, scan_sizes
from curvcli.linalg.operator import to_dense
from tests.curvature.test_reverse import INSIDE, tanh
from tests.problems import mlp, mlp_problem


def test_this_release_is_known() -> None:
    assert is_known(), f"read what changed in jax {jax.__version__}, then add it to KNOWN"


@pytest.mark.parametrize(("version", "known"), [("0.10.2", True), ("0.12.0.1", True), ("0.1", False), ("1.0.0", False)])
def test_releases_by_their_first_two_numbers(version: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "__version__", version)
    assert is_known() == known


@pytest.mark.parametrize(("consts", "carry", "rows"), [(0, 1, 1), (2, 1, 0), (1, 0, 2), (0, 3, 1)])
def test_sizes_of_a_scan(consts: int, carry: int, rows: int) -> None:
    weights, state = [jnp.ones((3, 3))] * consts, [jnp.ones((4, 3))] * carry

    def whole(weights: Any, state: Any, xs: Any) -> Any:
        def step(state: Any, row: Any) -> Any:
            total = sum(w.sum() for w in weights) + sum(x.sum() for x in row)
            return [one * total for one in state], total

        return jax.lax.scan(step, state, xs, length=4)

    jaxpr = jax.make_jaxpr(whole)(weights, state, [jnp.ones((4, 3))] * rows).jaxpr
    (equation,) = (one for one in jaxpr.eqns if one.primitive.name == "scan")
    found_consts, found_carry = scan_sizes(equation)
    assert found_carry == carry
    assert found_consts == len(equation.invars) - carry - rows


def unreadable(*_: Any, **__: Any) -> Any:
    raise KeyError("num_consts")


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of JAX that changed everything that is read of it."""
    monkeypatch.setattr(jax_internals, "KNOWN", ())
    for module, name in [
        (rewriting, "evaluated"), (rewriting, "scan_sizes"), (taps, "traced"), (heads, "_tail"),
        (work, "repeated_equations"),
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, unreadable)


def test_an_error_of_a_known_release_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        plain_where_unknown(lambda: 0)(unreadable)()
    monkeypatch.setattr(jax_internals, "KNOWN", ())
    assert plain_where_unknown(lambda: 0)(unreadable)() == 0


@jax.custom_vjp
def plainly(x: Any) -> Any:
    """A tanh whose forward pass does not call itself."""
    return jnp.tanh(x)


plainly.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


@pytest.mark.first_tier("ggn-tanh-scan")
@pytest.mark.parametrize("where", ["scan", "cond"])
@pytest.mark.parametrize(("matrix", "function"), [("hessian", plainly), ("ggn", tanh)])
def test_an_unknown_release_computes_the_same(where: str, matrix: Any, function: Any, unknown: None) -> None:
    problem = mlp_problem(count=5, batch_size=3)
    plain, sealed = (
        replace(problem, predict=lambda p, frozen, x, function=one: INSIDE[where](function, mlp(p, x)))
        for one in (jnp.tanh, function)
    )
    expected = to_dense(build(plain, matrix))
    np.testing.assert_allclose(to_dense(build(sealed, matrix)), expected, atol=1e-12 * np.abs(expected).max())


def test_an_unknown_release_recognises_no_layer_and_forecasts_more_coarsely(unknown: None) -> None:
    problem = mlp_problem()
    layers = taps.find_layers(problem)
    assert not layers.layers
    assert set(layers.others) == set(problem.params)
    diagonal = np.diag(to_dense(build(problem, "ggn")))
    factored = to_dense(build(problem, "kfac", factors="exact"))
    np.testing.assert_allclose(factored, np.diag(diagonal), atol=1e-12)
    found = work.network_work(problem)
    assert found.bytes > 0
    assert found.flops == 2 * problem.dim
