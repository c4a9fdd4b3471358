"""Programs that are looked at before a product are those that it runs, and tell what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest

from curvcli.curvature import build
from curvcli.curvature.operators import linear_map_bytes
from curvcli.curvature.products.borrowing import borrowed, returned
from curvcli.curvature.products.programs import product_programs, room
from curvcli.devices import mesh_of, on_every
from curvcli.problem import Problem, Way, spread
from tests.problems import mlp_problem

COUNT = 6
COMPILED = "/jax/core/compile/backend_compile_duration"
PROGRAMS = ("jit(linearised)", "jit(together)", "jit(single)")


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Names of the programs compiled so far."""
    names: list[str] = []

    def note(event: str, duration_secs: float, **about: str | int) -> None:
        if event == COMPILED:
            names.append(str(about["fun_name"]))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def fresh() -> Problem:
    """A problem that no program was compiled for."""
    return mlp_problem(sizes=(7, 9, 4), count=30, batch_size=10)


@pytest.mark.first_tier("hessian-*-2", "fisher-mc-*-1")
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("way", [Way("map"), Way("vmap"), Way("vmap", 0, 4), Way("vmap", 1)], ids=str)
@pytest.mark.parametrize("matrix", ["hessian", "ggn", "fisher-mc", "gradient-covariance"])
def test_what_is_compiled_to_be_looked_at_is_not_compiled_again(
    compiled: list[str], matrix: str, way: Way, devices: int
) -> None:
    problem, vectors, mesh = replace(fresh(), way=way), jnp.ones((COUNT, fresh().dim)), mesh_of(devices)
    if mesh is not None:
        problem, vectors = spread(problem, mesh), jax.device_put(vectors, on_every(mesh))
    assert product_programs(problem, matrix, COUNT) is not None
    looked = [name for name in compiled if name in PROGRAMS]
    assert len(looked) == 2
    build(problem, matrix).matmat(vectors)
    assert [name for name in compiled if name in PROGRAMS] == looked


@pytest.mark.parametrize("matrix", ["hessian", "ggn", "fisher-mc", "gradient-covariance"])
def test_room(matrix: str) -> None:
    """What the map keeps is known from shapes; what it takes while it is applied grows with the vectors."""
    problem = fresh()
    rooms: list[int] = []
    for count in (1, 8):
        found = product_programs(problem, matrix, count)
        assert found is not None
        taken = room(found)
        assert taken is not None
        pointers = 16 * 40  # of the tuple of results
        assert 0 <= taken.linear - linear_map_bytes(problem, matrix) <= pointers
        rooms.append(taken.applying)
    assert 4 * rooms[0] < rooms[1] < 16 * rooms[0]


@pytest.mark.parametrize("matrix", ["ntk", "kfac", "ekfac"])
def test_matrices_without_such_programs(matrix: str) -> None:
    assert product_programs(fresh(), matrix, COUNT) is None


def test_what_is_an_argument_comes_back_itself() -> None:
    weights, inputs = {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.ones((4, 3))

    def both(weights: Any, inputs: Any) -> tuple[Any, Any]:
        return jax.linearize(lambda w: jnp.tanh(inputs @ w["a"]) @ w["b"], weights)

    @jax.jit
    def traced(*given: Any) -> Any:
        return borrowed(both(*given), given)

    own = traced(weights, inputs)
    assert sum(leaf is not None for leaf in jax.tree.leaves(own)) < len(jax.tree.leaves(jax.jit(both)(weights, inputs)))
    _, linear = returned(own, (weights, inputs))
    assert any(leaf is inputs for leaf in jax.tree.leaves(linear))
    assert any(leaf is weights["b"] for leaf in jax.tree.leaves(linear))
    assert jnp.array_equal(linear(weights), both(weights, inputs)[1](weights))
