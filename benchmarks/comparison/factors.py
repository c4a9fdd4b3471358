"""K-FAC's factors with their eigenvectors, and E-KFAC, by curv and curvlinops: `python -m comparison.factors JOB.json`.

Bias and weights are one block in both. A label is drawn for each example or token, as is usual; that the matrices are
the same is seen where nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from . import jobs, ours, timing, workloads
from .timing import Contestant
from .twins import Twin


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of both, and by how much their products differ."""
    ours.prepare()
    folder, workload = Path(job["folder"]), workloads.WORKLOADS[job["workload"]]
    params, x, y = workloads.read(folder)
    twin, problem = Twin(workload.target, workload.kwargs, params, x, y), ours.load(folder, "ggn")
    failures: dict[str, str] = {}
    differences: dict[str, float] = {}
    names = ("kfac",) if workload.heavy else ("kfac", "ekfac")  # curvlinops' E-KFAC forms gradients of examples
    if workload.small is not None:  # the transformer has a backward pass for each of 65,536 outputs
        small = workloads.WORKLOADS[workload.small]
        files = workloads.write(workload.small, folder.parent)
        compared = Twin(small.target, small.kwargs, *workloads.read(files)), ours.load(files, "ggn"), small.apart
    else:
        compared = None if workload.heavy else (twin, problem, ())
    for name in names if compared is not None else ():
        try:
            differences[name] = _difference(*compared, name)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    contestants = []
    for name in names:
        run = ours.factors(problem, "sampled", corrected=name == "ekfac")
        contestants += [
            Contestant("curv", name, lambda run=run: _wait(run())),
            Contestant("curvlinops", name, _curvlinops(twin, "mc", name)[1]),
        ]
    able = []
    for one in contestants:
        try:
            one.run()
            able.append(one)
        except Exception as error:
            failures[one.name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    times = timing.take_turns(able, job["rounds"], 0.01 if workload.heavy else 0.5)
    return {"times_ms": times, "differences": differences, "failures": failures}


def _wait(made: Any) -> Any:
    jax.block_until_ready([block.input_basis for block in made.blocks])
    return made


def _curvlinops(twin: Twin, kind: str, name: str) -> tuple[Any, Callable[[], None]]:
    """The operator of the weights of its layers, and what computes it anew, eigenvectors included."""
    from curvlinops import EKFACLinearOperator, KFACLinearOperator

    layers = [one for one in twin.model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    chosen = [parameter for layer in layers for parameter in layer.parameters()]
    operator = {"kfac": KFACLinearOperator, "ekfac": EKFACLinearOperator}[name](
        twin.model, twin.criterion, chosen, [(twin.x, twin.y)], check_deterministic=False, fisher_type=kind,
        separate_weight_and_bias=False, num_data=len(twin.x), num_per_example_loss_terms=len(twin.y) // len(twin.x),
    )  # fmt: skip

    def run() -> None:
        operator._input_covariances.clear()
        operator._gradient_covariances.clear()
        if name == "ekfac":
            operator._input_covariances_eigenvectors.clear()
            operator._gradient_covariances_eigenvectors.clear()
            operator._corrected_eigenvalues.clear()
            operator.compute_eigenvalue_correction()
            return
        operator.compute_kronecker_factors()
        for factors in (operator._input_covariances, operator._gradient_covariances):
            for factor in factors.values():
                torch.linalg.eigh(factor)  # as its E-KFAC does

    return operator, run


def _difference(twin: Twin, problem: Any, apart: tuple[str, ...], name: str) -> float:
    """Of the products with a random vector, relatively, by exact factors, on the weights of layers that both have."""
    operator = _curvlinops(twin, "type-2", name)[0]
    both, counted = (
        torch.cat(
            [
                torch.full((one.numel(),), taken(one, path))
                for one, (path, _, _) in zip(twin.params, twin.leaves, strict=True)
            ]
        )
        for taken in (
            lambda one, path: any(one is other for other in operator._params),
            lambda one, path: not apart or path.startswith(apart),
        )
    )
    vector = torch.from_numpy(np.random.default_rng(0).normal(size=twin.dim).astype(np.float32)) * (both & counted)
    theirs = torch.zeros_like(vector)
    theirs[both] = operator @ vector[both]
    made = ours.factors(problem, "exact", corrected=name == "ekfac")()
    own = np.asarray(made.function(lambda values: values)(twin.to_curv(vector.numpy())[None])[0])
    return float(np.linalg.norm(twin.to_curv(theirs.numpy()) - own) / np.linalg.norm(own))


if __name__ == "__main__":
    jobs.answer(main)
