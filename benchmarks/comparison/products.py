"""Gradients, products and forms of one workload by all tools, in turns: `python -m comparison.products JOB.json`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from . import floor, jobs, ours, peers, timing, workloads
from .timing import Contestant
from .twins import Twin

Makers = list[tuple[str, Callable[[], list[Contestant]]]]
BLOCK = 8
MATRICES = ("hessian", "ggn", "empirical-fisher")
AGREEMENT = 1e-5
"""Of the losses, relatively."""
WRONG = 0.05
"""Of products, in the norm, relatively: beyond it another matrix is multiplied, and nothing is timed."""


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Times of every contestant that runs, and why others do not."""
    name, folder = job["workload"], Path(job["folder"])
    ours.prepare()
    workload = workloads.WORKLOADS[name]
    params, x, y = workloads.read(folder)
    twin = Twin(workload.target, workload.kwargs, params, x, y)
    plain = ours.load(folder)
    losses = {"curv": ours.loss(plain), "torch": float(twin.loss().detach())}
    assert abs(losses["curv"] - losses["torch"]) <= AGREEMENT * abs(losses["torch"]), losses
    assert ours.parameter_order(plain) == sorted(params)

    failures: dict[str, str] = {}
    outcome: dict[str, Any] = {"losses": losses, "dim": twin.dim, "examples": len(x), "failures": failures}
    outcome |= {"ways": {}, "rates": {}}
    vectors = np.random.default_rng(0).normal(size=(BLOCK if workload.heavy else 32, twin.dim)).astype(np.float32)
    times: dict[str, list[float]] = {}
    differences: dict[str, float] = {}
    groups = [("gradient", lambda: _gradients(plain, twin))]
    groups += [
        (matrix, _group(matrix, folder, twin, vectors, workload.heavy, job["calibrate"], outcome))
        for matrix in MATRICES
    ]
    groups += [("ggn-trace", _group("ggn-trace", folder, twin, vectors, workload.heavy, job["calibrate"], outcome))]
    rates = _multiplications(name, len(x))
    for quantity, make in groups:
        running = _running(quantity, make(), failures)
        contestants = [one for one in running if _agrees(one, quantity, differences, failures)]
        # The machine's rate takes its turns with what is held against it.
        found = timing.take_turns(contestants + [one for one, _ in rates], job["rounds"], job["seconds"])
        flop_rates = np.array([[flops / ms / 1e6 for ms in found.pop(one.name)] for one, flops in rates])
        outcome["rates"][quantity] = {"best": flop_rates.max(0).tolist(), "median": np.median(flop_rates, 0).tolist()}
        times |= found
        shown = ", ".join(f"{key} {np.median(ms):.3g} ms" for key, ms in found.items())
        print(f"{name} {shown}", file=sys.stderr, flush=True)
        # What is kept from product to product goes before the next matrix is made.
        del running, contestants
        twin.model.zero_grad(set_to_none=True)
        gc.collect()
    operations = {matrix: floor.operations(name, matrix, len(x)) for matrix in floor.PER_MAC}
    return outcome | {"times_ms": times, "operations": operations, "differences": differences}


def _gradients(problem: Any, twin: Twin) -> Makers:
    def torch_first(out: Any) -> np.ndarray:
        return twin.to_curv(torch.cat([one.reshape(-1) for one in out]).numpy())

    return [
        ("curv", lambda: [Contestant("curv", "gradient", ours.gradient(problem), 1, np.asarray)]),
        ("torch", lambda: [Contestant("torch", "gradient", twin.gradient, 1, torch_first)]),
    ]


def _group(
    quantity: str, folder: Path, twin: Twin, vectors: np.ndarray, heavy: bool, calibrated: bool, outcome: dict[str, Any]
) -> Callable[[], Makers]:
    """Makers of the contestants for one matrix; curv first, whose result is the reference."""
    blocks = (1,) if heavy else (1, BLOCK)
    tensors = torch.from_numpy(np.stack([twin.from_curv(one) for one in vectors[: 1 if heavy else 32]]))

    def curv() -> list[Contestant]:
        problem = ours.load(folder, quantity.removesuffix("-trace"), calibrated=calibrated)
        outcome["ways"][quantity] = ours.way(problem)
        if quantity == "ggn-trace":
            eight = jnp.asarray(vectors[:BLOCK])
            forms = ours.ggn_trace_per_probe(problem)
            run = lambda: forms(eight)  # noqa: E731
            return [Contestant("curv", quantity, run, BLOCK, lambda out: out[:1])]
        operator = ours.operator(problem, quantity)

        def product(block: int) -> Callable[[], Any]:
            rows = jnp.asarray(vectors[:block])
            return lambda: jax.block_until_ready(operator.matmat(rows))

        first = lambda out: np.asarray(out[0])  # noqa: E731
        return [Contestant("curv", quantity, product(block), block, first) for block in (BLOCK, 1)]

    cheap = (*blocks, 32) if twin.dim < 100_000 else blocks
    return lambda: [
        ("curv", curv),
        ("PyHessian", lambda: peers.pyhessian(twin, tensors, quantity)),
        ("curvlinops", lambda: peers.curvlinops(twin, tensors, quantity, cheap)),
        ("eigenthings", lambda: peers.eigenthings(twin, tensors, quantity)),
    ]


def _multiplications(name: str, examples: int) -> list[tuple[Contestant, int]]:
    """Matrix products of the workload's shapes, with their operations."""
    multiply, found = jax.jit(jnp.matmul), []
    for m, k, n in floor.typical_shapes(name, examples):
        left, right = jnp.ones((m, k), jnp.float32), jnp.ones((k, n), jnp.float32)
        run = lambda left=left, right=right: multiply(left, right).block_until_ready()  # noqa: E731
        found.append((Contestant("matmul", f"{m}x{k}x{n}", run), 2 * m * k * n))
    return found


def _running(quantity: str, makers: Makers, failures: dict[str, str]) -> list[Contestant]:
    """The contestants that can be made."""
    made = []
    for who, maker in makers:
        try:
            made += maker()
        except Exception as error:  # a peer that does not run is named, and the others go on
            failures[f"{quantity}: {who}"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return made


def _agrees(one: Contestant, quantity: str, differences: dict[str, float], failures: dict[str, str]) -> bool:
    """Whether it runs; its result must be that of the first contestant of its quantity, which is curv."""
    try:
        out = one.first(one.run()) if one.first else None
    except Exception as error:
        failures[one.name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return False
    if one.tool == "curv" and quantity not in _REFERENCE:
        _REFERENCE[quantity] = out
    reference = _REFERENCE[quantity]
    differences[one.name] = float(np.linalg.norm(out - reference) / np.linalg.norm(reference))
    assert differences[one.name] <= WRONG, (one.name, differences[one.name])
    return True


_REFERENCE: dict[str, Any] = {}


if __name__ == "__main__":
    jobs.answer(main)
