"""What is read of JAX's structure, and the plain paths of a release whose structure is not known."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, primitives

from curvcli import jax_internals
from curvcli.analyses.common import kinks
from curvcli.curvature import build
from curvcli.curvature.jaxprs import heads, reverse, rewriting, taps, work
from curvcli.curvature.kronecker import rows
from curvcli.jax_internals import Interpreter, equations, is_known, plain_where_unknown, scan_sizes
from curvcli.linalg.operator import to_dense
from curvcli.problem import Problem
from tests.curvature.test_reverse import INSIDE, tanh
from tests.problems import make_problem, mlp, mlp_problem


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


# --- calls ------------------------------------------------------------------------------------------------


def bound_by(primitive: Any, body: Callable[[ClosedJaxpr], Any]) -> Callable[[Callable], Callable]:
    """What makes a call of a primitive that no function of JAX makes."""

    def wrapped(function: Callable) -> Callable:
        def call(*args: Any) -> Any:
            (output,) = primitive.bind(
                *args, **primitive.get_bind_params({"call_jaxpr": body(jax.make_jaxpr(function)(*args))})
            )
            return output

        return call

    return wrapped


MAKERS: dict[str, Callable[[Callable], Callable]] = {
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "remat2": jax.checkpoint,
    "call": bound_by(primitives.call_p, lambda closed: closed.jaxpr),
    "closed_call": bound_by(primitives.closed_call_p, lambda closed: closed),
}
HERE = [name for name in MAKERS if name == jax.make_jaxpr(MAKERS[name](jnp.sin))(1.0).eqns[0].primitive.name]
"""Those that this release of JAX makes; the two of `jax.checkpoint` are one."""


def called_layer(make: Callable) -> Problem:
    """A dense layer on tokens, inside a call."""
    layer = make(lambda w, x: jnp.sin(x @ w))
    x, w = jnp.arange(24.0).reshape(2, 3, 4), jnp.ones((4, 5))
    return make_problem(lambda p, x: layer(p["w"], x), {"w": w}, x, np.zeros((2, 3, 5)), weight=np.ones((2, 3)))


def enters_layers(make: Callable) -> bool:
    return [layer.kernel for layer in taps.find_layers(called_layer(make)).layers] == ["w"]


def enters_taps(make: Callable) -> bool:
    problem = called_layer(make)
    x, layers = problem.batches.inputs[0], taps.find_layers(called_layer(jax.jit)).layers
    outputs, (inputs,) = taps.tapped(problem, layers)(problem.params, problem.frozen, x, [jnp.ones((3, 5))])
    np.testing.assert_allclose(inputs, x)
    return np.allclose(outputs, jnp.sin(x @ problem.params["w"] + 1))


def enters_rows(make: Callable) -> bool:
    layers = taps.find_layers(called_layer(jax.jit)).layers
    return rows.token_rows(called_layer(make), layers) == [rows.Rows((1, 3), (1,))]


def enters_kinks(make: Callable) -> bool:
    return kinks.function_kinks(make(jnp.abs), jnp.ones(3)) == ["abs"]


def enters_rewritten(make: Callable) -> bool:
    def cosine(equation: Any, inputs: list[Any]) -> list[Any] | None:
        return [jnp.cos(*inputs)] if equation.primitive.name == "sin" else None

    anywhere = rewriting.Rewrite(
        lambda jaxpr: any(equation.primitive.name == "sin" for equation in equations(jaxpr)), cosine
    )
    return np.allclose(rewriting.rewritten(make(jnp.sin), anywhere)(0.5), jnp.cos(0.5))


INTERPRETERS: dict[type[Interpreter], Callable[[Callable], bool]] = {
    taps._Walk: enters_layers,
    taps._Tapping: enters_taps,
    rows._Walk: enters_rows,
    kinks._Flow: enters_kinks,
    rewriting._Rewriter: enters_rewritten,
}


def test_every_call_and_every_interpreter_is_tested() -> None:
    assert set(MAKERS) == set(jax_internals.CALLS)
    assert {"jit", "remat2"} <= set(HERE)  # each release of JAX makes some of them
    sources = [file.read_text(encoding="utf-8") for file in Path(jax_internals.__file__).parent.rglob("*.py")]
    written = [name for text in sources for name in re.findall(r"class (\w+)\(Interpreter\)", text)]
    assert sorted(written) == sorted(interpreter.__name__ for interpreter in INTERPRETERS)


@pytest.mark.parametrize("call", HERE)
@pytest.mark.parametrize("interpreter", INTERPRETERS, ids=lambda cls: f"{cls.__module__.split('.')[-1]}.{cls.__name__}")
def test_every_interpreter_enters_every_call(interpreter: type[Interpreter], call: str) -> None:
    assert INTERPRETERS[interpreter](MAKERS[call])


@pytest.mark.parametrize("call", HERE)
def test_the_equations_of_every_call_are_read(call: str) -> None:
    jaxpr = jax.make_jaxpr(MAKERS[call](lambda x: plainly(jnp.sin(x))))(1.0).jaxpr
    assert "sin" in {equation.primitive.name for equation in equations(jaxpr)}
    assert reverse.only_backwards(jaxpr)
    assert work.network_work(called_layer(MAKERS[call])).flops == 2 * 3 * 4 * 5


def test_a_function_with_a_derivative_of_its_own_is_no_call() -> None:
    for function, primitive in zip((jax.nn.relu, plainly), jax_internals.CUSTOM_DERIVATIVES, strict=True):
        jaxpr = jax.make_jaxpr(function)(1.0).jaxpr
        (equation,) = (inner for outer in jaxpr.eqns for inner in (jax_internals.called(outer) or jaxpr).eqns)
        assert equation.primitive.name == primitive
        assert jax_internals.called(equation) is None
