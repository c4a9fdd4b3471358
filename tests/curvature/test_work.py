"""What is read off a network's jaxpr, against what is known of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.curvature.jaxprs.work import network_work
from tests.problems import make_problem, mlp_problem


def test_operations_of_dense_layers() -> None:
    problem = mlp_problem(sizes=(20, 30, 10))
    assert network_work(problem).flops == 2 * (20 * 30 + 30 * 10)


def test_a_scan_counts_as_often_as_it_runs() -> None:
    def predict(params: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["w"]), None), x, None, length=7)[0]

    problem = make_problem(predict, {"w": np.eye(4)}, np.ones((5, 4)), np.ones((5, 4)))
    work = network_work(problem)
    assert work.flops == 7 * 2 * 16
    assert work.bytes >= 7 * 2 * 4 * 8  # product and tanh of each step


def test_operations_of_a_convolution() -> None:
    def predict(params: Any, x: Any) -> Any:
        out = jax.lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return out.reshape(len(x), -1)

    problem = make_problem(predict, {"w": np.ones((3, 3, 2, 4))}, np.ones((5, 6, 6, 2)), np.ones((5, 144)))
    assert network_work(problem).flops == 2 * 36 * 4 * 9 * 2
