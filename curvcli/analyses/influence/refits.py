"""Are predicted influences right? The problem is changed as they suppose, fitted again, and measured.

First the unchanged problem is fitted from the checkpoint's weights to a minimum w0, to more digits than one example
decides: the *control*, for a checkpoint need not be a minimum. Each changed problem is then fitted from w0, and the
actual change is the measure there less the measure at w0. All in float64, whatever the arithmetic of the analysis.

Refits are Newton's method in a trust region that begins small (`linalg/trust_region.py`). Of a convex J they find the
minimum. Of a network's they find one to which the loss falls from w0 in steps within which its quadratic model holds;
whether that is the minimum that w0 deforms into as the change is switched on, nothing guarantees. `distance` shows the
refits that went elsewhere.

Source: Koh and Liang (2017), *Understanding black-box predictions via influence functions*, section 4; Basu, Pope and
Feizi (2021), *Influence functions in deep learning are fragile*, for what goes wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli import journal
from curvcli.analyses.common.precision import precision
from curvcli.analyses.common.stationarity import size_of
from curvcli.analyses.influence.agreement import agreement
from curvcli.curvature import build
from curvcli.curvature.flatten import Layout
from curvcli.curvature.influence import queries
from curvcli.curvature.influence.responses import Parameter
from curvcli.curvature.products import sums
from curvcli.devices import on_host
from curvcli.linalg.iterate import Monitor, finished
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.solvers.trust_region import Minimum, Point, minimise
from curvcli.problem import Batch, Batches, Problem, PyTree, in_float64
from curvcli.schema.settings import AnalysisSettings
from curvcli.schema.verification import Control, Refit, Verification
from curvcli.streams import Stream

RTOL = 1e-4
"""Gradients are fitted to this share of what the change adds to them: a refit's error is then far below its effect."""

BUDGET = 20_000
"""Gradients and products that one fit may take."""

RADIUS = 0.01
"""The first step's largest length, in sizes of the weights."""


class Change(NamedTuple):
    """What is different in one refit. The normaliser M and the regulariser stay as they are.

    Parameters
    ----------
    example
        Whose change it is.
    parameter
        `remove`: the example's weight, that of all its tokens, becomes 0. `label-perturb`: its targets move by `by`, of
        the shape of its outputs (class numbers count as one-hot). `input-perturb`: its inputs move by `by`, of their
        shape.
    """

    example: int
    parameter: Parameter
    by: PyTree = None


def verify(
    problem: Problem,
    asked: Batches,
    measure: queries.Measure,
    changes: Sequence[Change],
    predicted: np.ndarray,
    settings: AnalysisSettings,
    monitor: Monitor,
    *,
    rtol: float = RTOL,
    budget: int = BUDGET,
) -> Verification:
    """Refit with each change, and compare what it does to the measure of the queries with what was predicted.

    Parameters
    ----------
    asked
        The query examples, Q of them.
    changes
        K of them.
    predicted
        [K, Q], or [K, Q, O] for `output`: the predicted changes of the measures.
    settings
        Seed and confidence.
    rtol, budget
        Tolerance on gradients, relative to the norm of what the change adds to ∇J; gradients and products a fit.

    Returns
    -------
    Verification
        Of as many refits as ended before the monitor stopped the run; those that ended without meeting the tolerance
        are among them, and said.

    Notes
    -----
    Cost: K + 1 fits, each some Newton steps of up to as many products as the Hessian's condition demands, in float64.
    One compiled program for all.
    """
    with jax.enable_x64(True):
        precise = in_float64(problem)
        moveable = any(change.parameter == "label-perturb" for change in changes)
        if moveable:
            precise = _with_moveable_labels(precise)
        asked = in_float64(replace(problem, batches=asked)).batches
        fits = _Fits(problem, precise, moveable, asked, measure, monitor, rtol, budget)
        with contextlib.suppress(_Stopped):
            fits.run(changes)
    done = len(fits.refits)
    foreseen = np.asarray(predicted, np.float64)[:done]
    foreseen = foreseen.reshape(done, math.prod(foreseen.shape[1:]))
    actual = np.array(fits.actual, np.float64).reshape(foreseen.shape)
    found = agreement(
        foreseen, actual, confidence=settings.confidence,
        key=Stream.BOOTSTRAP.key(settings.seed),
    )  # fmt: skip
    return Verification(
        asked=len(changes), examples=[change.example for change in changes[:done]],
        predicted=foreseen.tolist(), actual=actual.tolist(),
        pearson=found.pearson, spearman=found.spearman, slope=found.slope,
        control=fits.control, refits=fits.refits, converged=sum(refit.converged for refit in fits.refits),
        relative_tolerance=rtol, evaluations=fits.evaluations,
    )  # fmt: skip


def choose_examples(scores: np.ndarray, k: int, seed: int) -> list[int]:
    """Which examples to refit without: half those of most influence, half drawn from the rest.

    Parameters
    ----------
    scores
        [..., N]; an example's importance is the largest of its absolute scores.
    k
        How many, at most N.

    Notes
    -----
    The drawn half keeps the correlation honest: the largest scores alone lie far apart, and a prediction that orders
    only them, or none but them, would look as good as one that is right for all.
    """
    importance = np.abs(scores).reshape(-1, scores.shape[-1]).max(axis=0)
    order = np.argsort(-importance, kind="stable")
    k = min(k, len(order))
    top, rest = order[: k - k // 2], order[k - k // 2 :]
    key = Stream.REFITTED_EXAMPLES.key(seed)
    drawn = np.asarray(jax.random.permutation(key, len(rest)))[: k // 2]
    return [int(example) for example in (*top, *np.sort(rest[drawn]))]


class _Stopped(Exception):
    """The monitor said so."""


@dataclass
class _Fits:
    """The control and the refits so far, in float64."""

    original: Problem
    problem: Problem
    moveable: bool  # whether its labels were made to float
    asked: Batches
    measure: queries.Measure
    monitor: Monitor
    rtol: float
    budget: int

    def __post_init__(self) -> None:
        self.layout = Layout.of(self.problem.params)
        self.eps = precision(self.problem)
        self.radius = RADIUS * size_of(self.problem)
        self.evaluations, self.stage = 0, "control refit"
        self.control: Control | None = None
        self.refits: list[Refit] = []
        self.actual: list[np.ndarray] = []

    def run(self, changes: Sequence[Change]) -> None:
        """All of it; what is found before the monitor stops it is kept."""
        start = on_host(self.layout.ravel(self.problem.params))
        function = self._function(None)
        here = function(start)
        sizes = [_norm(self._function(one)(start).gradient - here.gradient) for one in changes]
        smallest = self.rtol * min((size for size in sizes if size > 0), default=_norm(here.gradient))
        minimum = self._fit(function, start, here, smallest)
        measured = self._measured(minimum.w)
        moved = _difference(measured, self._measured(start))
        self.control = Control(
            **self._account(start, here, minimum, smallest),
            loss_change=minimum.point.value - here.value,
            rms_change=float(np.sqrt(np.mean(moved**2))), largest_change=float(np.abs(moved).max()),
        )  # fmt: skip
        for number, change in enumerate(changes, 1):
            self.stage = f"refit {number} of {len(changes)}"
            function = self._function(change)
            first = function(minimum.w)
            # What adds nothing is fitted already; what adds less than at the checkpoint, as well as the control.
            added = _norm(first.gradient - minimum.point.gradient)
            gtol = max(self.rtol * added, smallest) if added else _norm(first.gradient)
            refit = self._fit(function, minimum.w, first, gtol)
            self.actual.append(_difference(self._measured(refit.w), measured))
            self.refits.append(Refit(**self._account(minimum.w, first, refit, gtol)))

    def _fit(self, function: Callable[[np.ndarray], Point], w: np.ndarray, here: Point, gtol: float) -> Minimum:
        return minimise(function, w, here, gtol=gtol, radius=self.radius, budget=self.budget, eps=self.eps)

    def _measured(self, w: np.ndarray) -> np.ndarray:
        """The measure of all queries at w [D]: [Q·O]."""
        return queries.values(self.problem, self.asked, self.measure, self._params(w)).reshape(-1)

    def _account(self, start: np.ndarray, here: Point, minimum: Minimum, gtol: float) -> dict[str, Any]:
        return {
            "converged": minimum.converged, "gradient_before": _norm(here.gradient),
            "gradient_after": _norm(minimum.point.gradient), "gradient_tolerance": gtol,
            "distance": _norm(minimum.w - start), "evaluations": minimum.evaluations + 1,
        }  # fmt: skip

    def _params(self, w: np.ndarray) -> dict[str, Array]:
        return self.layout.unravel(jnp.asarray(w))

    def _function(self, change: Change | None) -> Callable[[np.ndarray], Point]:
        """J of the problem with a change as a function of w [D], counted and watched."""
        problem = self.problem if change is None else changed(self.problem, change)
        name = ("refit", self.moveable, *(() if change is None else _named(change)))

        # The changed problem is not the one that a journal is about, and has a name of its own there.
        def first_order(w: np.ndarray) -> np.ndarray:
            value, gradient = sums.objective_and_gradient(replace(problem, params=self._params(w)), self.layout)
            return np.append(np.asarray(gradient), value)

        def point(w: np.ndarray) -> Point:
            found = journal.whole(first_order, self.original, *name)(w)
            self._count()
            built: list[LinearOperator] = []

            def image(w: np.ndarray, vector: np.ndarray) -> np.ndarray:
                if not built:
                    built.append(build(replace(problem, params=self._params(w)), "hessian"))
                return np.asarray(built[0].matmat(jnp.asarray(vector[None]))[0])

            recalled = journal.whole(image, self.original, *name, "product")

            def product(vector: np.ndarray) -> np.ndarray:
                out = recalled(w, vector)
                self._count()
                return out

            return Point(float(found[-1]), found[:-1], product)

        return point

    def _count(self) -> None:
        self.evaluations += 1
        if finished(self.monitor, self.stage, self.evaluations, unit="evaluations"):
            raise _Stopped


def _difference(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Of measures; outputs that stay infinite have not moved."""
    return np.where(after == before, 0, np.subtract(after, before, where=after != before, out=np.zeros_like(after)))


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


def _named(change: Change) -> tuple[object, ...]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(change.by)]
    return change.example, change.parameter, [hashlib.sha256(leaf.tobytes()).hexdigest() for leaf in leaves]


# --- changes: other arrays of the same shapes, so that nothing is compiled again ----------------------------


def changed(problem: Problem, change: Change) -> Problem:
    """The problem with one example's weight, targets or inputs changed; label moves need targets that float."""
    batches, example = problem.batches, change.example
    if change.parameter == "remove":
        weight = np.array(batches.weight)
        weight[example] = 0
        return replace(problem, batches=replace(batches, weight=weight))

    def moved(leaf: np.ndarray, by: np.ndarray) -> np.ndarray:
        leaf = np.array(leaf, "float64")  # as it will be computed in: a float32 array would round the move
        leaf[example] += by
        return leaf

    name = "targets" if change.parameter == "label-perturb" else "inputs"
    return replace(problem, batches=replace(batches, **{name: jax.tree.map(moved, getattr(batches, name), change.by)}))


def _with_moveable_labels(problem: Problem) -> Problem:
    """Targets that float, class numbers as rows of the shape of the outputs: of all examples, and of all refits."""
    if not problem.loss.known:  # a user's loss is differentiated by its targets only where these float anyway
        return problem
    batches, targets = problem.batches, np.asarray(problem.batches.targets)

    def network(batch: Batch) -> Array:
        return problem.predict(problem.params, problem.frozen, batch.inputs)

    z = jax.eval_shape(network, next(iter(batches)))
    if targets.ndim == z.ndim - 1:
        targets = targets[..., None] == np.arange(z.shape[-1])  # numbers out of range, where masked, as rows of zeros
    return replace(problem, batches=replace(batches, targets=targets.astype("float64")))
