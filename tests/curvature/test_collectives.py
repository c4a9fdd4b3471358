"""What devices exchange for a product: as compiled programs say it, against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from curvcli.curvature.products.collectives import collective_bytes, product_traffic
from curvcli.devices import cut_along, mesh_of, on_every
from curvcli.problem import Problem, Way, spread
from tests.problems import mlp_problem

K, BATCHES, ITEMSIZE = 3, 4, 8


def shared(count: int, **rest: bool) -> Problem:
    """Kernels 6 × 16, 16 × 8 and biases; 4 batches."""
    mesh = mesh_of(count)
    assert mesh is not None
    return spread(mlp_problem(sizes=(6, 16, 8), count=64, batch_size=16), mesh, **rest)


@pytest.mark.parametrize("application", ["vmap", "map"])
def test_a_product_adds_up_what_the_devices_have_found(application: str) -> None:
    problem = replace(shared(8), way=Way(application))  # type: ignore[arg-type]
    ggn, hessian = (product_traffic(problem, name, K) for name in ("ggn", "hessian"))
    assert ggn is not None
    assert hessian is not None
    assert ggn.bytes == {"all-reduce": BATCHES * K * problem.dim * ITEMSIZE}
    # Both terms of the derivative of a kernel's gradient xᵀδ are summed; the first kernel has one, its x being data.
    assert hessian.bytes == {"all-reduce": BATCHES * K * (problem.dim + 16 * 8) * ITEMSIZE}
    # J v and Jᵀu of each example: 2 operations an entry of a kernel each, of the examples of this device; and more
    # for activations, the loss and the linearisation.
    least = BATCHES * K * 2 * 2 * (6 * 16 + 16 * 8) * 16 / 8
    assert least <= ggn.flops <= 3 * least


def test_linear_maps_that_are_kept_have_been_paid_for() -> None:
    problem = shared(2)
    fresh, kept = (product_traffic(replace(problem, way=Way(kept_bytes=size)), "ggn", 1) for size in (0, 1))
    assert fresh is not None
    assert kept is not None
    assert kept.bytes == fresh.bytes
    assert kept.flops < fresh.flops


def test_parameters_that_are_cut_are_gathered() -> None:
    found = product_traffic(shared(4, shard_params=True), "ggn", 1)
    assert found is not None
    assert found.bytes["all-gather"] > 0


def test_there_is_nothing_to_say() -> None:
    assert product_traffic(mlp_problem(), "hessian", 1) is None
    assert product_traffic(shared(2), "ntk", 1) is None
    assert product_traffic(shared(2), "kfac", 1) is None


def test_loops_count_as_often_as_they_run() -> None:
    mesh = mesh_of(4)
    assert mesh is not None
    matrix = jax.ShapeDtypeStruct((8, 8), "float32", sharding=cut_along(mesh, 1))
    vector = jax.ShapeDtypeStruct((8,), "float32", sharding=cut_along(mesh, 0))

    def power(a: jax.Array, x: jax.Array) -> jax.Array:
        # What each device has of a x is summed in every turn.
        step = lambda y, _: (jax.lax.with_sharding_constraint(jnp.tanh(a @ y), cut_along(mesh, 0)), None)  # noqa: E731
        return jax.lax.scan(step, x, None, length=5)[0]

    once = jax.jit(lambda a, x: jax.lax.with_sharding_constraint(a @ x, on_every(mesh))).lower(matrix, vector).compile()
    assert collective_bytes(once.as_text()) == {"all-reduce": 8 * 4}
    repeated = jax.jit(power).lower(matrix, vector).compile()
    assert collective_bytes(repeated.as_text()) == {"all-reduce": 5 * 8 * 4}


def test_the_forms_in_which_accelerators_write_them() -> None:
    text = """
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(%x, %y)
}

%wrapped (p: f32[16]) -> f32[4] {
  ROOT %rs = f32[4]{0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
}

ENTRY %main (p: f32[16], q: bf16[8]) -> f32[4] {
  %ar = (f32[16]{0}, bf16[8]{0}) all-reduce-start(%p, %q), replica_groups=[1,8]<=[8], to_apply=%add
  %ard = (f32[16]{0}, bf16[8]{0}) all-reduce-done(%ar)
  %ag = (bf16[8]{0}, bf16[64]{0}) all-gather-start(%q), dimensions={0}, replica_groups=[1,8]<=[8]
  %agd = bf16[64]{0} all-gather-done(%ag)
  %cp = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}
  %a = ((f32[16]{0}), f32[4]{0}) async-start(%p), calls=%wrapped
  ROOT %done = f32[4]{0} async-done(%a)
}
"""
    assert collective_bytes(text) == {
        "all-gather": 64 * 2, "all-reduce": 16 * 4 + 8 * 2, "collective-permute": 16 * 4, "reduce-scatter": 4 * 4 * 4,
    }  # fmt: skip
