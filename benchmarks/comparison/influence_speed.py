"""Seconds, products and residuals of influence beside the peers: `python -m comparison.influence_speed JOB ANSWER`.

`peers`: 100 queries × all examples of W1, the digits MLP as it was trained (l2 = 10⁻⁴). `large`: 60,000 × 64 synthetic
inputs and an MLP of 99,126 parameters.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvcli.linalg.solvers.solution import residual

from . import attribution, jobs, ours, workloads

DTYPE, FEATURES, L2 = "float32", [128, 128, 10], 1e-4
LARGE = [300, 256, 10]


def main(job: dict[str, Any]) -> dict[str, Any]:
    """`peers` or `large`."""
    attribution.prepare(DTYPE)
    return beside_peers(job) if job["part"] == "peers" else large(job)


def beside_peers(job: dict[str, Any]) -> dict[str, Any]:
    """The same systems (H + λI) s = ∇q by curv and by pyDVL, in turns, to the same measured residual; E-KFAC beside."""
    import torch

    from . import attribution_peers as peers

    params = {name: leaf.astype(np.float32) for name, leaf in ours.checkpoint_params(workloads.DIGITS).items()}
    data = np.load(workloads.DIGITS / "digits.npz")
    train = (data["x"].astype(np.float32), data["y"].astype(np.int32))
    queries, damping, tol = (train[0][: job["queries"]], train[1][: job["queries"]]), job["damping"], job["tol"]
    found: dict[str, Any] = {"damping": damping, "tol": tol, "l2": L2, "queries": job["queries"]}
    made = peers.twin(FEATURES, params, train)
    few = (queries[0][: job["single"]], queries[1][: job["single"]])
    single, block = (peers.Pydvl(kind, made, L2 + damping, maxiter=1000) for kind in ("CG", "block CG"))
    block_tol = {"rtol": tol**0.5, "atol": 0.0}
    for one in block.model.block_mapper.composable_block_dict.values():
        one.op.rtol, one.op.atol = block_tol["rtol"], block_tol["atol"]
    with tempfile.TemporaryDirectory() as folder:
        path = attribution.write(
            Path(folder) / "W1", FEATURES, params, train, queries, loss="softmax_cross_entropy", l2=L2
        )
        settings = {"damping": damping, "tol": tol, "solver": "cg"}
        rounds: dict[str, list[dict[str, Any]]] = {}
        reference = None
        problems = {matrix: attribution.load(path, DTYPE, matrix) for matrix in ("hessian", "ggn")}
        for turn in range(1 + job["rounds"]):  # the first compiles, and stops after two steps
            for matrix, problem in problems.items():
                short = {} if turn else {"probes": 2}
                answer, seconds = attribution.ask(problem, queries, DTYPE, matrix=matrix, **settings, **short)
                if turn:
                    rounds.setdefault(f"curv, {matrix}", []).append(attribution.account(answer, seconds))
                if matrix == "hessian":
                    reference = answer.arrays["scores"]
            if not turn:
                continue
            assert reference is not None
            for name, model, asked in (("pyDVL CG", single, few), ("pyDVL block CG", block, queries)):
                if name == "pyDVL block CG" and not job["block"]:
                    continue
                start = time.perf_counter()
                try:
                    factors = model.factors(asked, tol)
                    middle = time.perf_counter()
                    scores = model.scores(factors)
                except RuntimeError as error:
                    rounds.setdefault(name, []).append({"failed": str(error)[:200]})
                    continue
                end, share = time.perf_counter(), len(queries[0]) / len(asked[0])
                operator, right = _system(path, asked, damping)
                solved = np.stack([made.to_curv(row) for row in factors.detach().numpy()])
                _, sizes = residual(operator, right, jnp.asarray(solved))
                rounds.setdefault(name, []).append(
                    {
                        "seconds": (middle - start) * share + (end - middle) * share, "measured": end - start,
                        "queries": len(asked[0]), "residual": float(sizes.max()),
                        "correlation": float(np.corrcoef(scores.ravel(), reference[: len(scores)].ravel())[0, 1]),
                    }
                )  # fmt: skip
            scores, seconds = peers.ekfac(made, queries, [L2 + damping])
            both = {"correlation": float(np.corrcoef(scores[L2 + damping].ravel(), reference.ravel())[0, 1])}
            rounds.setdefault("kronfluence E-KFAC", []).append(
                {"seconds": sum(seconds.values()), "parts": seconds, **both}
            )
        found["rounds"], found["torch threads"] = rounds, torch.get_num_threads()
        with tempfile.TemporaryDirectory() as cache:
            asked = (
                "--remove",
                "--queries",
                f"0:{job['queries']}",
                "--matrix",
                "hessian",
                "--scores",
                f"{folder}/s.npz",
            )
            more = ("--damping", str(damping), "--tol", str(tol), "--solver", "cg")
            whole = [jobs.run_curv("influence", path, *asked, *more, cache=Path(cache)) for _ in range(2)]
            found["whole process"] = [run.get("seconds", run.get("failed")) for run in whole]
    return found


def _system(path: Path, queries: Any, damping: float) -> tuple[Any, Any]:
    """H + λI with l2, and the gradients of the queries' losses: curv's own, to measure residuals with."""
    from dataclasses import replace

    from curvcli.curvature.influence.queries import gradients

    problem = attribution.load(path, DTYPE, "hessian")
    weight = np.ones(len(queries[0]), np.float32)
    asked = replace(problem.batches, inputs=queries[0], targets=queries[1], weight=weight)
    operator = ours.operator(problem, "hessian")
    plain = operator.matmat
    return replace(operator, matmat=lambda v: plain(v) + damping * v), gradients(problem, asked, "loss")


def large(job: dict[str, Any]) -> dict[str, Any]:
    """Products, passes and seconds of the scores of many queries on many examples."""
    count, queries = job["examples"], job["queries"]
    rng = np.random.default_rng(0)
    means = 0.5 * rng.normal(size=(10, 64))
    labels = rng.integers(0, 10, count + queries)
    x = (means[labels] + rng.normal(size=(count + queries, 64))).astype(np.float32)
    labels = labels.astype(np.int32)
    train, asked = (x[:count], labels[:count]), (x[count:], labels[count:])
    params = _trained(train, job["epochs"])
    with tempfile.TemporaryDirectory() as folder:
        path = attribution.write(Path(folder), LARGE, params, train, asked, loss="softmax_cross_entropy", l2=0.0)
        problem = attribution.load(path, DTYPE)
        settings = {"damping": job["damping"], "tol": job["tol"], "time_limit": job.get("limit"), "matrix": "ggn"}
        answer, seconds = attribution.ask(problem, asked, DTYPE, **settings)
    return {"dim": problem.dim, "examples": count, "tol": job["tol"], **attribution.account(answer, seconds)}


def _trained(train: attribution.Data, epochs: int) -> dict[str, np.ndarray]:
    """The network after a few epochs of Adam in batches of 512."""
    import optax

    rng, params = np.random.default_rng(0), {}
    for path, shape in attribution.parameter_shapes(LARGE, train[0]).items():
        params[path] = (rng.normal(size=shape) / np.sqrt(shape[0]) if len(shape) > 1 else np.zeros(shape)).astype("f4")

    def objective(params: dict, x: Any, t: Any) -> Any:
        for layer in range(3):
            x = x @ params[f"Dense_{layer}/kernel"] + params[f"Dense_{layer}/bias"][None]
            x = jnp.tanh(x) if layer < 2 else x
        return optax.softmax_cross_entropy_with_integer_labels(x, t).mean()

    adam = optax.adam(1e-3)

    @jax.jit
    def step(params: dict, state: Any, x: Any, t: Any) -> tuple[Any, Any]:
        updates, state = adam.update(jax.grad(objective)(params, x, t), state)
        return optax.apply_updates(params, updates), state

    state = adam.init(params)
    for _ in range(epochs):
        order = rng.permutation(len(train[0]))
        for start in range(0, len(order) - 511, 512):
            rows = order[start : start + 512]
            params, state = step(params, state, train[0][rows], train[1][rows])
    return {name: np.asarray(leaf) for name, leaf in params.items()}


if __name__ == "__main__":
    jobs.answer(main)
