"""Influence against closed forms and exact leave-one-out: `python -m comparison.influence_exact JOB ANSWER`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from . import attribution, jobs, refitting

DTYPE = "float64"
BREAST_CANCER_L2, DIGITS_L2 = (0.1, 0.01, 0.001), 0.01


def main(job: dict[str, Any]) -> dict[str, Any]:
    """`closed` or `loo`."""
    attribution.prepare(DTYPE)
    return closed() if job["part"] == "closed" else leave_one_out(job["refits"])


def closed() -> dict[str, Any]:
    """Largest errors relative to the largest entry: of ridge on the diabetes data, of logistic on breast cancer."""
    from sklearn.datasets import load_diabetes

    x, t = load_diabetes(return_X_y=True)
    x, t = refitting.normal_rows(x), refitting.normal_rows(t[:, None])
    count, l2, wide = len(x), 0.01, np.c_[x, np.ones(len(x))]
    matrix = wide.T @ wide / count + l2 * np.eye(wide.shape[1])
    w = np.linalg.solve(matrix, wide.T @ t / count)
    hat = wide @ np.linalg.solve(matrix, wide.T) / count
    h, found = np.diag(hat), {}
    problem = _problem(refitting.dense(w), x, t, "squared_error", l2)
    labels, _ = attribution.ask(problem, (x, t), DTYPE, label_perturb=True, measure="output")
    found["ridge: labels − hat matrix"] = _error(labels.arrays["scores"][:, 0, :, 0], hat)
    change = 10 * np.random.default_rng(0).normal(size=t.shape)
    actual = wide @ np.linalg.solve(matrix, wide.T @ change / count)
    found["ridge: finite change of all labels"] = _error(labels.arrays["scores"][:, 0, :, 0] @ change, actual)
    settings = {"measure": "output", "leverage": True, "self_": True}
    removal, _ = attribution.ask(problem, (x, t), DTYPE, **settings)
    loo = np.empty((count, count))
    for n in range(count):
        rest = matrix - np.outer(wide[n], wide[n]) / count
        loo[:, n] = wide @ (np.linalg.solve(rest, wide.T @ t - wide[n][:, None] * t[n]) / count - w)[:, 0]
    found["ridge: removal / (1 − h) − leave-one-out"] = _error(removal.arrays["scores"][:, 0] / (1 - h), loo)
    found["ridge: corrected − leave-one-out"] = _error(removal.arrays["corrected"], loo)
    total = removal.result.self_influence.total_leverage.value
    found["largest leverage, and the sum"] = [removal.result.leverage.largest, total]

    x, t = refitting.breast_cancer()
    l2, wide = 0.01, np.c_[x, np.ones(len(x))]
    w = refitting.logistic(x, t, np.ones(len(x)), l2, np.zeros((31, 1)))
    p = 1 / (1 + np.exp(-wide @ w))
    hessian = (wide * p * (1 - p)).T @ wide / len(x) + l2 * np.eye(31)
    slopes = (p - t) * wide
    answer, _ = attribution.ask(_problem(refitting.dense(w), x, t, "sigmoid_cross_entropy", l2), (x, t), DTYPE)
    expected = slopes @ np.linalg.solve(hessian, slopes.T) / len(x)
    found["logistic: removal − closed form"] = _error(answer.arrays["scores"], expected)
    return found


def leave_one_out(refits: int) -> dict[str, Any]:
    """Predicted and actual changes of held-out losses, and of each removed row's own margin."""
    found: dict[str, Any] = {}
    x, t = refitting.breast_cancer()
    order = np.random.default_rng(0).permutation(len(x))
    x, t = x[order], t[order]
    for l2 in BREAST_CANCER_L2:
        found[f"breast cancer, l2 = {l2}"] = _breast_cancer(x[:469], t[:469], x[469:], t[469:], l2)
    found[f"digits, l2 = {DIGITS_L2}"] = _digits(refits)
    return found


def _breast_cancer(x: np.ndarray, t: np.ndarray, x_q: np.ndarray, t_q: np.ndarray, l2: float) -> dict[str, Any]:
    full = refitting.logistic(x, t, np.ones(len(x)), l2, np.zeros((31, 1)))
    problem = _problem(refitting.dense(full), x, t, "sigmoid_cross_entropy", l2)
    held_out, own = [], []

    def margin(w: np.ndarray, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        return ((2 * t - 1) * (np.c_[x, np.ones(len(x))] @ w))[:, 0]

    start = time.perf_counter()
    for n in range(len(x)):
        weight = np.ones(len(x))
        weight[n] = 0
        w = refitting.logistic(x, t, weight, l2, full)
        held_out.append(np.logaddexp(0, -margin(w, x_q, t_q)) - np.logaddexp(0, -margin(full, x_q, t_q)))
        own.append((margin(w, x, t) - margin(full, x, t))[n])
    seconds = time.perf_counter() - start
    asked = {"leverage": True}
    losses, took = attribution.ask(problem, (x_q, t_q), DTYPE, **asked)
    margins, _ = attribution.ask(problem, (x, t), DTYPE, measure="margin", **asked)
    return {
        "refits": len(x), "queries": len(x_q), "seconds of refits": seconds, "seconds of curv": took,
        "held-out losses": _agreement(losses.arrays, np.array(held_out).T),
        "own margins": _agreement(_diagonals(margins.arrays, np.arange(len(x))), np.array([own])),
    }  # fmt: skip


def _digits(refits: int) -> dict[str, Any]:
    x, t, x_q, t_q = refitting.digits(1000)
    x_q, t_q = x_q[:100], t_q[:100]
    full = refitting.softmax(x, t, np.ones(len(x)), DIGITS_L2, np.zeros((65, 10)))
    problem = _problem(refitting.dense(full), x, t, "softmax_cross_entropy", DIGITS_L2)
    rows = np.sort(np.random.default_rng(1).permutation(len(x))[:refits])
    outputs = lambda w, x: np.c_[x, np.ones(len(x))] @ w  # noqa: E731
    held_out, own = [], []
    start = time.perf_counter()
    for n in rows:
        weight = np.ones(len(x))
        weight[n] = 0
        w = refitting.softmax(x, t, weight, DIGITS_L2, full)
        held_out.append(refitting.losses(outputs(w, x_q), t_q) - refitting.losses(outputs(full, x_q), t_q))
        both = [refitting.margins(outputs(one, x[n : n + 1]), t[n : n + 1])[0] for one in (w, full)]
        own.append(both[0] - both[1])
    seconds = time.perf_counter() - start
    losses, took = attribution.ask(problem, (x_q, t_q), DTYPE, leverage=True)
    margins, _ = attribution.ask(problem, (x[rows], t[rows]), DTYPE, measure="margin", leverage=True)
    of_rows = {name: one[:, rows] for name, one in losses.arrays.items() if one.ndim == 2}
    return {
        "refits": len(rows), "queries": len(x_q), "seconds of refits": seconds, "seconds of curv": took,
        "held-out losses": _agreement(of_rows, np.array(held_out).T),
        "own margins": _agreement(_diagonals(margins.arrays, rows), np.array([own])),
    }  # fmt: skip


def _diagonals(arrays: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Of scores whose queries are these rows: each row's response to its own removal, [1, K]."""
    return {name: np.diag(one[:, rows])[None] for name, one in arrays.items() if one.ndim == 2}


def _agreement(arrays: dict[str, np.ndarray], actual: np.ndarray) -> dict[str, Any]:
    """Medians over queries of Pearson's and Spearman's correlation and of the slope of predicted on actual changes."""
    found = {}
    for name in ("scores", "corrected"):
        rows = [
            (
                np.corrcoef(a, b)[0, 1],
                scipy.stats.spearmanr(a, b).statistic,
                np.cov(a, b)[0, 1] / np.var(b, ddof=1),
            )
            for a, b in zip(arrays[name], actual, strict=True)
        ]
        pearson, spearman, slope = np.median(rows, axis=0)
        found[name] = {"pearson": pearson, "spearman": spearman, "slope": slope}
    return found


def _problem(params: refitting.Params, x: np.ndarray, t: np.ndarray, loss: str, l2: float) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        features = [params["Dense_0/kernel"].shape[1]]
        path = attribution.write(Path(folder), features, params, (x, t), (x[:1], t[:1]), loss=loss, l2=l2)
        return attribution.load(path, DTYPE)


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    jobs.answer(main)
