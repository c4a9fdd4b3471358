"""Peak memory and compilation of one tool's Hessian products, alone in a process: `python -m comparison.alone JOB`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from . import jobs, workloads

PRODUCTS = 2
"""Calls: the second has what is kept after the first."""

MODULES = {"PyHessian": "pyhessian", "curvlinops": "curvlinops", "eigenthings": "hessian_eigenthings"}


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Bytes beyond those after import, and seconds in XLA."""
    folder, block = Path(job["folder"]), job["block"]
    return _curv(folder, block) if job["tool"] == "curv" else _peer(job["tool"], job["workload"], folder, block)


def _curv(folder: Path, block: int) -> dict[str, Any]:
    import jax.numpy as jnp
    import numpy as np

    from . import ours

    ours.prepare()
    jnp.zeros(1).block_until_ready()
    before = jobs.peak_bytes()
    with ours.compile_seconds() as compiling:
        problem = ours.load(folder)
        operator = ours.operator(problem, "hessian")
        vectors = np.random.default_rng(0).normal(size=(block, operator.dim)).astype(np.float32)
        for _ in range(PRODUCTS):
            operator.matmat(jnp.asarray(vectors)).block_until_ready()
    return {"bytes": jobs.peak_bytes() - before, "compile_seconds": sum(compiling), "way": ours.way(problem)}


def _peer(tool: str, name: str, folder: Path, block: int) -> dict[str, Any]:
    import torch

    from . import peers
    from .twins import Twin

    importlib.import_module(MODULES[tool])
    before, workload = jobs.peak_bytes(), workloads.WORKLOADS[name]
    twin = Twin(workload.target, workload.kwargs, *workloads.read(folder))
    vectors = torch.randn(block, twin.dim)
    if tool == "curvlinops":
        (contestant,) = peers.curvlinops(twin, vectors, "hessian", (block,))
    else:
        (contestant,) = {"PyHessian": peers.pyhessian, "eigenthings": peers.eigenthings}[tool](twin, vectors, "hessian")
    for _ in range(PRODUCTS):
        contestant.run()
    return {"bytes": jobs.peak_bytes() - before}


if __name__ == "__main__":
    jobs.answer(main)
