"""The linear datamodelling score on digits: `python -m comparison.influence_lds JOB ANSWER`.

A network is fitted to 1,000 rows, and again to each of many random halves of them, from the same initial weights and
each to its own minimum. The LDS of a method is the rank correlation over the halves of a held-out row's measure with
the sum of its scores over the rows kept: the mean over held-out rows.

Source: Park et al. (2023), *TRAK: attributing model behavior at scale*, section 2.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from . import attribution, jobs, refitting

DTYPE, ROWS = "float64", 1000
MODELS = {"softmax regression": [64, 10], "MLP 64-16-10": [64, 16, 10]}
DAMPINGS = (1e-4, 1e-3, 1e-2)
CG_DAMPINGS = (1e-3,)
"""pyDVL's CG solves what curv solves, query by query, in minutes: once, to see that they agree."""

GRADIENT_DOT = 1e6
"""A damping so large that the inverse is the identity, but for its scale."""


def main(job: dict[str, Any]) -> dict[str, Any]:
    """By model: the LDS of every method for the losses of held-out rows."""
    attribution.prepare(DTYPE)
    x, t, x_q, t_q = refitting.digits(ROWS)
    asked, found, l2 = (x_q[: job["queries"]], t_q[: job["queries"]]), {}, job["l2"]
    for name in job["models"]:
        sizes = MODELS[name]
        network = refitting.Network(sizes, l2)
        start = time.perf_counter()
        w, gradient = network.fit(x, t)
        kept = [np.random.default_rng(1 + i).permutation(ROWS)[: ROWS // 2] for i in range(job["halves"])]
        fits = [network.fit(x[rows], t[rows]) for rows in kept]
        actual = np.array([refitting.losses(network.outputs(one, asked[0]), asked[1]) for one, _ in fits])
        refits = {
            "seconds": time.perf_counter() - start, "halves": len(kept), "queries": len(asked[0]), "l2": l2,
            "largest gradient": max(gradient, *(one for _, one in fits)),
        }  # fmt: skip

        def score(scores: np.ndarray, kept: Any = kept, actual: np.ndarray = actual) -> float:
            sums = np.array([-scores[:, rows].sum(axis=1) for rows in kept])  # [halves, Q]
            return float(
                np.mean([scipy.stats.spearmanr(*pair).statistic for pair in zip(sums.T, actual.T, strict=True)])
            )

        params = network.params(w)
        with tempfile.TemporaryDirectory() as folder:
            place, data = Path(folder), ((x, t), asked)
            path = attribution.write(place, sizes[1:], params, *data, loss="softmax_cross_entropy", l2=l2)
            found[name] = {"refits": refits, **of_curv(path, asked, score)}
        found[name] |= of_peers(sizes[1:], params, (x, t), asked, l2, score)
    return found


def of_curv(path: Path, asked: Any, score: Callable[[np.ndarray], float]) -> dict[str, Any]:
    """curv's matrices at the damping that it takes by itself and at several others."""
    found: dict[str, Any] = {}
    for matrix in ("ggn", "hessian", "empirical-fisher"):
        problem = attribution.load(path, DTYPE, matrix)
        by_damping = {}
        for damping in ("auto", *DAMPINGS):
            answer, seconds = attribution.ask(problem, asked, DTYPE, matrix=matrix, damping=damping)
            one = {"lds": score(answer.arrays["scores"]), "lowest": answer.result.damping_choice.lambda_min}
            by_damping[str(damping)] = one | {"damping": answer.result.damping, "seconds": seconds}
        found[f"curv {matrix}"] = by_damping
    answer, _ = attribution.ask(problem, asked, DTYPE, matrix="ggn", damping=GRADIENT_DOT)
    found["gradient dot"] = {"": {"lds": score(answer.arrays["scores"])}}
    return found


def of_peers(
    features: list[int], params: Any, train: Any, asked: Any, l2: float, score: Callable[..., float]
) -> dict[str, Any]:
    """kronfluence's E-KFAC and pyDVL; what fails says why."""
    from . import attribution_peers as peers

    made, found = peers.twin(features, params, train), {}

    def attempt(name: str, run: Callable[[], Any]) -> None:
        try:
            found[name] = run()
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}

    def ekfac() -> Any:
        dampings = [None, *(l2 + one for one in DAMPINGS)]
        scores, _ = peers.ekfac(made, asked, dampings)
        names = ["auto", *map(str, DAMPINGS)]
        return {name: {"lds": score(scores[one])} for name, one in zip(names, dampings, strict=True)}

    attempt("kronfluence E-KFAC", ekfac)
    for kind, given in {"CG": {}, "Arnoldi": {"rank": 50}, "Nyström": {"rank": 50}}.items():

        def run(kind: str = kind, given: dict = given) -> Any:
            by_damping = {}
            for damping in DAMPINGS if given else CG_DAMPINGS:
                model = peers.Pydvl(kind, made, l2 + damping, **given)
                by_damping[str(damping)] = {"lds": score(model.scores(model.factors(asked)))}
            return by_damping

        attempt(f"pyDVL {kind}" + (", rank 50" if given else ""), run)
    return found


if __name__ == "__main__":
    jobs.answer(main)
