"""Programs carry the compiler options that the installed jaxlib needs, whenever JAX was started."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler

from curvcli import xla
from curvcli.analyses.common import machine
from curvcli.compiling import jit

SCRIPT = """
import json, sys, threading
import jax, jax.numpy as jnp, numpy as np

def products(p, rows):
    return jax.vmap(lambda row: p * jnp.sum(p * row, -1, keepdims=True))(rows)

random = np.random.default_rng(0)
x, y = random.normal(size=(1797, 6)).astype(np.float32), random.integers(0, 10, 1797)
weights = {"w": random.normal(size=(6, 10)).astype(np.float32)}
p, rows = random.normal(size=(1797, 10)).astype("float32"), random.normal(size=(8, 1797, 10)).astype("float32")
exact = p.astype("float64") * np.sum(p.astype("float64") * rows, -1, keepdims=True)
plain = float(np.abs(jax.jit(products)(p, rows) - exact).max())  # JAX has computed before curvcli is imported

from curvcli import Objective
from curvcli.compiling import jit

found = {"plain": plain, "jit": float(np.abs(jit(products)(p, rows) - exact).max())}

def ask(name):
    objective = Objective(lambda params, x: x @ params["w"], (x, y), "softmax_cross_entropy")
    for dtype in ("float32", "float64"):
        result = objective.spectrum(weights, matrix="ggn", method="dense", dtype=dtype).result
        found[name, dtype] = [result.lambda_max.value, result.trace.value]

ask("main")
thread = threading.Thread(target=ask, args=("thread",))
thread.start()
thread.join()
print(json.dumps([found["plain"], found["jit"], [found[key] for key in found if isinstance(key, tuple)]]))
"""


@pytest.mark.slow
def test_a_jax_that_has_computed_before_is_right() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    plain, guarded, numbers = json.loads(done.stdout.splitlines()[-1])
    assert (plain > 0.1) == bool(xla.program_options()), "the fault, where this jaxlib has it"
    assert guarded < 1e-4
    for single, double in zip(numbers[::2], numbers[1::2], strict=True):
        np.testing.assert_allclose(single, double, rtol=1e-4)


def test_flags_of_the_users_own_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla, "_affected", lambda: True)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    xla.guard_environment()
    flags = os.environ["XLA_FLAGS"]
    assert flags.startswith("--xla_force_host_platform_device_count=2 ")
    assert flags.endswith("ynn_fusion_type=-reduce")
    xla.guard_environment()
    assert os.environ["XLA_FLAGS"] == flags
    monkeypatch.setenv("XLA_FLAGS", f"{xla.SWITCH}=dot")
    xla.guard_environment()
    assert os.environ["XLA_FLAGS"] == f"{xla.SWITCH}=dot"


def test_inside_of_another_program_options_are_left_out() -> None:
    double = jit(lambda x: 2 * x)
    assert float(jax.jit(lambda x: double(x) + 1)(jnp.ones(()))) == 3
    assert float(jit(lambda x: double(x) + 1)(jnp.ones(()))) == 3
    assert float(jax.jit(lambda: double(3.0))()) == 6  # no tracer among the arguments
    assert float(jax.grad(jit(lambda x: double(x) * x))(1.0)) == 4


def test_a_wrong_sum_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.sums_rightly()
    monkeypatch.setattr(machine, "_softmax_sums", lambda p, rows: (0 * rows[..., :1], 0 * rows))
    assert not machine.sums_rightly()


BIG = 1000
"""Entries of an array that counts as large here: fewer than the parameters of the problem below."""


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines of programs compiled without options that reduce large arrays."""
    lines: list[str] = []
    original = compiler.compile_or_get_cached

    def compile_or_get_cached(backend: Any, computation: Any, devices: Any, options: Any, *rest: Any, **kw: Any) -> Any:
        if not any(xla.OPTION in option for option, _ in options.env_option_overrides):
            for line in str(computation).splitlines():
                if re.search(r"stablehlo\.(reduce\b|dot_general|convolution|reduce_window)", line):
                    shapes = re.findall(r"tensor<((?:\d+x)+)", line)
                    if max((int(np.prod([int(n) for n in s.split("x") if n])) for s in shapes), default=0) >= BIG:
                        lines.append(line.strip())
        return original(backend, computation, devices, options, *rest, **kw)

    monkeypatch.setattr(compiler, "compile_or_get_cached", compile_or_get_cached)
    return lines


@pytest.mark.skipif(not xla.program_options(), reason="no program needs an option with this jaxlib")
@pytest.mark.parametrize(
    ("analysis", "settings"),
    [
        ("spectrum", {"probes": 2, "steps": 8, "method": "hutchinson"}),
        ("trace", {"probes": 4, "method": "xtrace"}),
        ("eigs", {"k": 2, "tol": 1e-2, "method": "lanczos"}),
        *(
            pytest.param(analysis, settings, marks=pytest.mark.nightly)
            for analysis, settings in [
                ("trace", {"probes": 8, "method": "hutchinson", "num_examples": 20}),
                ("diag", {"probes": 4, "method": "xdiag"}),
                ("diag", {"probes": 4}),
                ("saddle", {}),
                ("direction", {"along": ["newton", "filter-normalized", "eigenvector:1"]}),
                ("landscape", {"along": ["gradient", "random"], "points": 3}),
                ("influence", {"remove": True, "queries": "0:3", "damping": 0.1, "verify": 3}),
                ("influence", {"label_perturb": True, "queries": "0:3", "damping": 0.1, "solver": "minres"}),
                ("influence", {"remove": True, "self_": True, "damping": 0.1, "matrix": "ggn"}),
                ("step", {"method": "kfac"}),
                ("step", {"method": "hessian-free"}),
                ("step", {"method": "bfgs"}),
                ("compare", {"laplace": "kfac"}),
            ]
        ),
    ],
)
def test_nothing_large_is_reduced_eagerly(analysis: str, settings: dict[str, Any], unguarded: list[str]) -> None:
    from curvcli import Objective

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 23)).astype(np.float32), rng.integers(0, 3, 40)
    params = {"a": {"kernel": rng.normal(size=(23, 61)) / 5}, "b": {"kernel": rng.normal(size=(61, 3)) / 8}}
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    objective = Objective(
        lambda p, x: jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"], (x, y), "softmax_cross_entropy", l2=1e-3
    )
    with jax.enable_x64(False):
        getattr(objective, analysis)(params, **settings)
    assert not unguarded
