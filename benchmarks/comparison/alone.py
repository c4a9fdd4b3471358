"""Peak memory, seconds and compilation of one tool's products, alone in a process: `python -m comparison.alone JOB`."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import jobs, workloads

PRODUCTS = 2
"""Calls: the second has what is kept after the first."""

MODULES = {"PyHessian": "pyhessian", "curvlinops": "curvlinops", "eigenthings": "hessian_eigenthings"}


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Bytes beyond those after import, seconds of the last call, seconds in XLA; the product in a file of its own."""
    folder, matrix = Path(job["folder"]), job.get("matrix", "hessian")
    if job["tool"] == "curv":
        found, product = _curv(folder, matrix, job["block"])
    else:
        found, product = _peer(job["tool"], job["workload"], folder, matrix, job["block"])
    np.save(folder / f"{matrix}-{job['tool']}.npy", product)
    return found


def _vectors(block: int, dim: int) -> np.ndarray:
    """In curv's order: [block, dim]."""
    return np.random.default_rng(0).normal(size=(block, dim)).astype(np.float32)


def _curv(folder: Path, matrix: str, block: int) -> tuple[dict[str, Any], np.ndarray]:
    import jax.numpy as jnp

    from . import ours

    ours.prepare()
    jnp.zeros(1).block_until_ready()
    before = jobs.peak_bytes()
    with ours.compile_seconds() as compiling:
        problem = ours.load(folder, matrix)
        operator = ours.operator(problem, matrix)
        vectors = _vectors(block, operator.dim)
        for _ in range(PRODUCTS):
            start = time.perf_counter()
            product = operator.matmat(jnp.asarray(vectors)).block_until_ready()
            seconds = time.perf_counter() - start
    spent = {"bytes": jobs.peak_bytes() - before, "seconds": seconds, "compile_seconds": sum(compiling)}
    return spent | {"way": ours.way(problem)}, np.asarray(product[0])


def _peer(tool: str, name: str, folder: Path, matrix: str, block: int) -> tuple[dict[str, Any], np.ndarray]:
    import torch

    from . import peers
    from .twins import Twin

    importlib.import_module(MODULES[tool])
    before, workload = jobs.peak_bytes(), workloads.WORKLOADS[name]
    twin = Twin(workload.target, workload.kwargs, *workloads.read(folder))
    vectors = torch.from_numpy(np.stack([twin.from_curv(one) for one in _vectors(block, twin.dim)]))
    if tool == "curvlinops":
        (contestant,) = peers.curvlinops(twin, vectors, matrix, (block,))
    else:
        (contestant,) = {"PyHessian": peers.pyhessian, "eigenthings": peers.eigenthings}[tool](twin, vectors, matrix)
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        product = contestant.run()
        seconds = time.perf_counter() - start
    return {"bytes": jobs.peak_bytes() - before, "seconds": seconds}, np.ravel(contestant.first(product))


if __name__ == "__main__":
    jobs.answer(main)
