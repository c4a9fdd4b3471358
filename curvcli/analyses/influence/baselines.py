"""Rankings that cost no solve, beside influence: the loss, the gradient's norm, the gradients' inner products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jax import Array

from curvcli.analyses.influence.context import Study
from curvcli.analyses.influence.ranking import LEAST_CLEAN, auc, median_spearman
from curvcli.curvature.influence import leverage, queries
from curvcli.curvature.influence.responses import entries
from curvcli.linalg.krylov.lanczos import normalise
from curvcli.problem import Problem
from curvcli.schema.influence import Baseline


def for_queries(study: Study, strengths: np.ndarray, gradients: Array) -> list[Baseline]:
    """Beside the rankings of queries [R, N], whose gradients are [R, D]. Cost: a pass, and a gradient an example."""
    # Rankings do not depend on the lengths, whose products may be below the smallest number of float32.
    pieces = [piece[""] for piece in entries(study.problem, "remove", normalise(gradients)[0], study.at_once)]
    study.meter.data_passes += 1
    dot = np.concatenate(pieces, axis=1)
    loss, norm = _of_examples(study, study.problem)
    same = study.settings.mode == "remove"
    strong = np.abs(strengths)
    return [
        _baseline(study, "gradient-dot", dot[0], median_spearman(dot if same else np.abs(dot), strengths)),
        _baseline(study, "loss", loss, median_spearman(np.broadcast_to(loss, strong.shape), strong)),
        _baseline(study, "gradient-norm", norm, median_spearman(np.broadcast_to(norm, strong.shape), strong)),
    ]


def for_labels(study: Study, strengths: np.ndarray) -> list[Baseline]:
    """Beside self-ranking [N]; with AUC where the data say which labels are clean.

    An example's own loss is asked about, as of a query: its weight in training does not say that its label is wrong.
    """
    batches = queries.selected(study.problem.loss, study.problem.batches, "loss")
    loss, norm = _of_examples(study, replace(study.problem, batches=batches))
    clean = study.given.clean
    if clean is not None and min(int(clean.sum()), int((~clean).sum())) < LEAST_CLEAN:
        study.warnings.append("`clean` says the same of (almost) all examples: there is no AUC")
        clean = None
    found = []
    for name, scores in (("influence", strengths), ("loss", loss), ("gradient-norm", norm)):
        area = None if clean is None else auc(scores, ~clean, study.settings.confidence)
        found.append(_baseline(study, name, scores, median_spearman(scores[None], strengths[None]), area))
    return found


def _of_examples(study: Study, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient norm of every example, weighted as in the problem."""
    loss, norm = leverage.loss_sizes(problem)
    study.meter.data_passes += 1
    study.arrays |= {"loss": loss, "gradient_norm": norm}
    return loss, norm


def _baseline(study: Study, name: Any, scores: np.ndarray, agreement: float | None, area: Any = None) -> Baseline:
    order = np.argsort(-scores, kind="stable")[: study.settings.top]
    return Baseline(name=name, spearman=agreement, auc=area, top=order.tolist())
