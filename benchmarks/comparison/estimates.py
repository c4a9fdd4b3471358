"""Products that the peers need for a trace and for eigenvalues: `python -m comparison.estimates JOB.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
import torch
from scipy.sparse.linalg import ArpackNoConvergence

from . import jobs, ours, peers, workloads
from .twins import Twin

SAMPLES, STOPS, LONGEST = 200, 20, 1000
MOST_POWER_STEPS = 4000
"""Products after which power iteration is given up."""
ARPACK_TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


def main(job: dict[str, Any]) -> dict[str, Any]:
    """What was asked for: `trace` or `eigs`."""
    workload = workloads.WORKLOADS[job["workload"]]
    folder = Path(job["folder"])
    twin = Twin(workload.target, workload.kwargs, *workloads.read(folder))
    torch.manual_seed(0)
    if job["what"] == "trace":
        return trace(twin, job["value"], job["frobenius_norm"], job["rtol"])
    return {
        "power": power_iteration(twin, job["k"], job["tol"]),
        "eigsh": arpack(folder, job["k"], job["tol"]),
    }


def trace(twin: Twin, value: float, frobenius: float, rtol: float) -> dict[str, Any]:
    """What PyHessian's own rule stops at, and the products with which its mean is within rtol in 95 % of cases.

    Parameters
    ----------
    value, frobenius
        Trace and Frobenius norm of the matrix, as curv found them.
    """
    made = peers.pyhessian_object(twin)
    samples = np.array(made.trace(maxIter=SAMPLES, tol=-1.0))  # its rule cannot end it
    stops = [made.trace(maxIter=LONGEST) for _ in range(STOPS)]
    errors = np.array([abs(np.mean(one) - value) / abs(value) for one in stops])
    half = rtol * abs(value) / 1.96
    return {
        "needed_by_samples": float(samples.var(ddof=1)) / half**2,
        "needed_by_norm": 2 * frobenius**2 / half**2,
        "mean_of_samples": float(samples.mean()),
        "stopped_after": float(np.median([len(one) for one in stops])),
        "stopped_within_rtol": float(np.mean(errors <= rtol)),
        "stopped_worst_error": float(errors.max()),
    }


def power_iteration(twin: Twin, k: int, tol: float) -> dict[str, Any]:
    """PyHessian's power iteration with deflation, run until the residual is `tol` of the largest eigenvalue."""
    from pyhessian.utils import group_product, hessian_vector_product, normalization, orthnormal

    made = peers.pyhessian_object(twin)
    products, found, vectors, largest = 0, [], [], 0.0
    while len(found) < k and products < MOST_POWER_STEPS:
        v = normalization([torch.randn(p.size()) for p in made.params])
        while products < MOST_POWER_STEPS:
            v = orthnormal(v, vectors)
            image = hessian_vector_product(made.gradsH, made.params, v)
            products += 1
            value = group_product(image, v).item()
            rest = [a - value * b for a, b in zip(image, v, strict=True)]
            largest = max(largest, abs(value))
            if group_product(rest, rest).item() ** 0.5 <= tol * largest:
                found.append(value)
                vectors.append(v)
                break
            v = normalization(image)
    return {"products": products, "eigenvalues": found, "given_up": len(found) < k}


def arpack(folder: Path, k: int, tol: float) -> dict[str, Any]:
    """scipy's eigsh on curv's operator, at the laxest of some tolerances at which its true residuals are small enough.

    Products are counted where they are made; those of the final residuals too, as curv counts its own.
    """
    ours.prepare()
    operator, count = ours.operator(ours.load(folder), "hessian"), [0]

    def product(vector: np.ndarray) -> np.ndarray:
        count[0] += 1
        return np.asarray(operator.matmat(jnp.asarray(vector.reshape(1, -1), operator.dtype)))[0]

    start = np.random.default_rng(0).normal(size=operator.dim).astype(np.float32)
    shape = (operator.dim, operator.dim)
    linear = scipy.sparse.linalg.LinearOperator(shape, matvec=product, dtype=np.float32)
    worst = np.inf
    for own in ARPACK_TOLERANCES:
        count[0] = 0
        try:
            values, vectors = scipy.sparse.linalg.eigsh(linear, k=k, which="LA", tol=own, v0=start)
        except ArpackNoConvergence:
            continue
        images = np.stack([product(v) for v in vectors.T])
        rests = images - values[:, None] * vectors.T
        worst = float(np.linalg.norm(rests, axis=1).max() / np.abs(values).max())
        if worst <= tol:
            break
    found = sorted((float(value) for value in values), reverse=True)
    return {"products": count[0], "tol": own, "worst_residual": worst, "eigenvalues": found, "given_up": worst > tol}


if __name__ == "__main__":
    jobs.answer(main)
