"""The spectral density by a peer, in a process of its own: `python -m comparison.density JOB.json`.

Where all probes would take longer than `longest` seconds, fewer are run, at least one, and the rest is scaled.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from . import jobs, peers, workloads
from .twins import Twin


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the density with all probes, and how many were run."""
    workload = workloads.WORKLOADS[job["workload"]]
    folder, probes, steps = Path(job["folder"]), job["probes"], job["steps"]
    torch.manual_seed(0)
    start = time.perf_counter()
    if job["tool"] == "matfree":
        by = _matfree(folder, steps)
    else:
        twin = Twin(workload.target, workload.kwargs, *workloads.read(folder))
        by = {"PyHessian": _pyhessian, "curvlinops": _curvlinops}[job["tool"]](twin, steps)
    setting_up, start = time.perf_counter() - start, time.perf_counter()
    by(1)
    one = time.perf_counter() - start
    run = int(min(probes, max(1, job["longest"] // one)))
    if run > 1:
        by(run - 1)
    measured = time.perf_counter() - start
    return {
        "probes_run": run, "products": probes * steps, "setting_up": setting_up,
        "measured": measured, "scaled": measured * probes / run,
    }  # fmt: skip


def _pyhessian(twin: Twin, steps: int):
    """Its own `density`, the graph of the gradient kept."""
    torch.eig = _eig  # it calls a function that torch took out
    made = peers.pyhessian_object(twin)
    return lambda probes: made.density(iter=steps, n_v=probes)


def _eig(matrix: torch.Tensor, eigenvectors: bool) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def _curvlinops(twin: Twin, steps: int):
    """Its own Lanczos and smoothing (Papyan), with the Ritz values as bounds: no products are spent on finding them."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos, lanczos_approximate_spectrum_from_iter

    operator = peers.curvlinops_operator(twin, "hessian")

    def run(probes: int) -> None:
        for _ in range(probes):
            values, vectors = fast_lanczos(operator, steps)
            bounds = float(values.min()), float(values.max())
            lanczos_approximate_spectrum_from_iter((values, vectors), bounds, 1024, 3.0, 0.05)

    return run


def _matfree(folder: Path, steps: int):
    """Its Lanczos process, as one program, of products that are `jvp` of `grad`."""
    import jax
    import numpy as np
    from matfree import decomp

    from . import ours

    ours.prepare()
    objective, start, data = ours.plain_objective(folder)

    def product(v, params, data):
        return jax.jvp(jax.grad(lambda p: objective(p, data)), (params,), (v,))[1]

    lanczos = jax.jit(decomp.tridiag_sym(steps, custom_vjp=False), static_argnums=0)

    def run(probes: int) -> None:
        for probe in range(probes):
            found = lanczos(product, jax.random.normal(jax.random.key(probe), start.shape), start, data)
            np.linalg.eigh(np.asarray(found.J_small))

    return run


if __name__ == "__main__":
    jobs.answer(main)
