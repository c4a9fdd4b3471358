"""Self-checks of the user's model: is what automatic differentiation returns the curvature of the loss?

No single check suffices. Symmetry finds a wrong custom derivative; repeatability finds randomness (dropout left on); a
block of products against a single one finds faults of compilation; the comparison with differences of gradients finds
`stop_gradient` and straight-through estimators inside a second derivative; the comparison of the gradient with
differences of losses finds them inside the first; examples with others beside them find batch statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli.analyses.common.causes import likely_cause
from curvcli.analyses.common.kinks import kinks
from curvcli.analyses.common.precision import network_jaxpr, precision
from curvcli.compiling import jit
from curvcli.curvature import MATRICES, build
from curvcli.curvature.flatten import Layout
from curvcli.curvature.influence import queries
from curvcli.curvature.jaxprs.reverse import only_backwards
from curvcli.curvature.jaxprs.taps import find_layers
from curvcli.curvature.matrices import if_convex
from curvcli.curvature.operators import example_forms
from curvcli.curvature.products import outputs, sums
from curvcli.devices import on_host
from curvcli.errors import NumericsError, suggest_float64
from curvcli.linalg.krylov.lanczos import Lanczos, not_finite
from curvcli.linalg.operator import LinearOperator
from curvcli.linalg.probes import sphere
from curvcli.linalg.reductions import all_finite, largest, norm, row_dots, row_norms
from curvcli.problem import Problem, Regulariser, in_float64
from curvcli.schema.matrices import MATRICES as FACTS
from curvcli.schema.report import Check
from curvcli.schema.settings import AnalysisSettings
from curvcli.streams import Stream

Best = Callable[[Callable[[float], float]], float]
"""`error(h) -> the least` over several lengths h of a difference."""

EXAMPLES = 32
"""Examples that derivatives are compared with differences on, at most: an eighth of the data, but four if there are."""

STEPS = (1e-4, 1e-5, 1e-3, 1e-6, 1e-2, 1e-7, 1e-8, 1e-9)
"""Lengths of the differences relative to the weights; the best agreement counts, since a ReLU's kinks spoil long ones
and rounding spoils short ones. The most likely first: the others are tried where it leaves a doubt. Without
those below 1e-6, 1 and 5 of 200 seeds were false alarms on two ReLU networks (`benchmarks/reliability_checks.py`)."""

CANCELLING = 1 / 32
"""Of the terms that cancel in a product: what the thresholds are relative to where the product itself is nothing."""

ROUNDING = 8
"""Times eps: rounding of a loss, or of a gradient, whose differences are taken."""

BEYOND_DOUBT = 0.1
"""Of the threshold: an error that settles a comparison."""


INDEFINITE = 1e-6
"""Relative to its largest eigenvalue: an output Hessian with a Ritz value below minus this is indefinite."""


def finite_objective(problem: Problem) -> tuple[float, Array]:
    """J and ∇J, which must be finite.

    Raises
    ------
    NumericsError
        The loss or the gradient is not finite.
    """
    value, gradient = sums.objective_and_gradient(problem, Layout.of(problem.params))
    if not np.isfinite(value):
        row = _ruled_out(problem)
        if row is not None:
            raise NumericsError(
                f"the loss is {value} at these weights: the target in row {row} has mass on what the model rules "
                "out by an infinite output",
                "give it no mass (smooth labels over the allowed classes alone), or leave the row out by a mask",
            )
        raise NumericsError(
            f"the loss is {value} at these weights",
            suggest_float64(problem.dtype, "check the data and the model's outputs"),
        )
    if not all_finite(gradient):
        raise NumericsError(
            "the gradient of the loss is not finite at these weights",
            suggest_float64(problem.dtype, "check the model for divisions and square roots at zero"),
        )
    return value, gradient


def _ruled_out(problem: Problem) -> int | None:
    """The first row whose loss is infinite because an output is, where the loss is one of the table."""
    if not problem.loss.known:
        return None
    batches = problem.batches
    weight = batches.weight.reshape(batches.num_examples, -1)
    infinite = np.isinf(queries.values(problem, batches, "loss")) & np.any(weight > 0, axis=1)
    if not infinite.any():
        return None
    row = int(np.argmax(infinite))
    outputs = queries.values(problem, batches.chosen(np.array([row])), "output")
    return row if np.isinf(outputs).any() else None


def examined(
    problem: Problem, operator: LinearOperator, settings: AnalysisSettings, block: int, matrix: str | None = None
) -> tuple[dict[str, Check], list[str]]:
    """The self-checks, unless they are to be left out, and all warnings of this matrix for this model and loss.

    Parameters
    ----------
    matrix
        The name of the operator's matrix, where it is not that of the settings.
    """
    checks, warnings = ({}, []) if settings.skip_checks else self_checks(problem, operator, settings, block, matrix)
    network = network_jaxpr(problem)
    return checks, [*warnings, *network_notes(network), *matrix_notes(problem, settings.matrix, settings.seed)]


def self_checks(
    problem: Problem, operator: LinearOperator, settings: AnalysisSettings, block: int, matrix: str | None = None
) -> tuple[dict[str, Check], list[str]]:
    """Six checks, and a warning with the likely cause for each that fails.

    Parameters
    ----------
    block
        Vectors in a block, as many as the analysis uses: a fault of a compiler can spoil a block's later vectors only,
        and only from a size on.
    matrix
        The name of the operator's matrix, where it is not that of the settings: what cancels in it is known by name.

    Notes
    -----
    Cost: two blocks of products, of two vectors at least, and two products by another program; differences of gradients
    and losses on at most 32 examples.

    Raises
    ------
    NumericsError
        A product of the matrix is not finite.
    """
    key = Stream.SELF_CHECKS.key(settings.seed)
    count = max(block, 2)
    vectors = sphere(key, 0, count, operator.dim, operator.dtype)
    first, second = (_in_blocks(operator, vectors, block) for _ in range(2))
    if not all_finite(first):
        raise not_finite(operator.dtype)
    ends = jnp.array([0, count - 1])
    single = _in_blocks(operator if operator.by_another is None else operator.by_another(), vectors[ends], 1)
    # In units of the largest entry, whose square float32 may not hold.
    unit = float(largest(first)) or 1.0
    first, second, single = first / unit, second / unit, single / unit
    size = float(norm(first)) / count**0.5
    eps = float(np.finfo(operator.dtype).eps)
    # A network may hold a layer in float32 whatever the arithmetic of the analysis.
    eps32 = float(np.finfo(np.float32).eps)
    inner = max(eps, min(precision(problem), eps32)) if eps < eps32 else eps

    drawn, apart = _on_few_examples(problem, settings.seed)
    # Of unit vectors, and what each error may be in units of their images.
    errors = {
        "deterministic": (float(norm(first - second)), 100 * eps),
        "block": (float(largest(row_norms(first[ends] - single))), 1e3 * eps),
        "symmetric": (abs(float(np.subtract(*row_dots(first[:2], vectors[1::-1])))), 1e3 * inner),
    }
    if any(error > threshold * size for error, threshold in errors.values()):
        # A matrix near zero has errors of the size of what cancelled in it.
        size = max(size, CANCELLING * _terms(problem, matrix or settings.matrix, vectors[-1:]) / unit)
    values = {name: (error / (size or 1.0), threshold) for name, (error, threshold) in errors.items()}
    values["deterministic"] = max(values["deterministic"][0], drawn), values["deterministic"][1]
    values |= apart
    checks = {
        name: Check(passed=bool(value <= threshold), value=value, threshold=threshold)
        for name, (value, threshold) in values.items()
    }
    failed = [name for name, check in checks.items() if not check.passed]
    # Where the model draws at random, no other check can hold.
    causes = {name: likely_cause("deterministic" if "deterministic" in failed else name, problem) for name in failed}
    warnings = [
        f"self-check {name!r} failed ({checks[name].value:.2g}, allowed {checks[name].threshold:.2g}): {cause}"
        for name, cause in causes.items()
    ]
    return checks, warnings


def _in_blocks(operator: LinearOperator, vectors: Array, block: int) -> Array:
    """Products of so many vectors at a time."""
    return jnp.concatenate([operator.matmat(vectors[i : i + block]) for i in range(0, len(vectors), block)])


def _terms(problem: Problem, matrix: str, vectors: Array) -> float:
    """The size of the terms that the products with unit vectors [1, dim] are sums of, where terms may cancel.

    What the matrix subtracts: of gradients that are centred ‖ḡ‖². Of second derivatives of the network: the GGN's
    product, the shares of the examples, and the regulariser's.

    Cost: a gradient, or a product and a quadratic form of every example.
    """
    extra = MATRICES[matrix].extra
    if extra.subtracted is not None:
        return extra.subtracted(*extra.make(problem, sums.resident(problem.batches), 1, 0))
    if not FACTS[matrix].second_derivatives:
        return 0.0
    image = on_host(build(problem, "ggn", with_regulariser=False).matmat(vectors)).astype(np.float64)
    shares = np.abs(example_forms(problem, matrix, vectors))
    return float(np.linalg.norm(image) + shares.mean() + problem.regulariser.l2)


def network_notes(network: Any) -> list[str]:
    """What a user should know of the network, its jaxpr, whatever the matrix: warnings."""
    if not only_backwards(network):
        return []
    return [
        "the network has a custom_vjp without a rule for tangents: derivatives forwards are the transpose of those "
        "backwards (reverse over reverse), which takes longer"
    ]


def matrix_notes(problem: Problem, matrix: str, seed: int) -> list[str]:
    """What a user should know of this matrix for this network and loss, as warnings.

    Notes
    -----
    Cost: for second derivatives a trace of network, loss and regulariser; for factors of layers one of the network for
    one example; for a matrix that is positive where the loss is convex, with a user's loss 32 products of the output
    Hessian of 32 examples.
    """
    notes, facts = [], FACTS[matrix]
    if facts.layers and (others := find_layers(problem).others):
        shown = ", ".join(f"{name} ({why})" for name, why in list(others.items())[:3])
        notes.append(
            f"{len(others)} parameters fit no layer and have their diagonal in the {matrix}: {shown}"
            + (", …" if len(others) > 3 else "")
        )
    if facts.second_derivatives and (bends := kinks(problem)):
        shown = ", ".join(bends[:4]) + (", …" if len(bends) > 4 else "")
        notes.append(
            f"the loss has kinks or jumps, as a piecewise linear network has ({shown}): the {matrix} leaves "
            "them out, since they have no second derivative"
        )
    if MATRICES[matrix].psd is if_convex and not problem.loss.known:
        ratio = _lowest_output_curvature(problem, seed)
        if ratio < -INDEFINITE:
            notes.append(
                f"the loss {problem.loss.name} is not convex in the outputs (smallest curvature {ratio:.2g} of the "
                f"largest): the {matrix} is indefinite"
            )
    return notes


def _lowest_output_curvature(problem: Problem, seed: int) -> float:
    """The smallest Ritz value of a few examples' output Hessians, relative to the largest magnitude; 0 if all are 0."""
    with jax.enable_x64(True):
        problem = in_float64(problem, EXAMPLES)
        batch = next(iter(problem.batches))
        z = jit(problem.predict)(problem.params, problem.frozen, batch.inputs)

        @jit
        def products(z: Array, batch: Any, vectors: Array) -> Array:
            across = outputs.loss_hessian(problem.loss, z, batch)
            return jax.vmap(lambda row: across(row.reshape(z.shape)).reshape(-1))(vectors)

        operator = LinearOperator(lambda vectors: products(z, batch, vectors), z.size, np.dtype("float64"))
        start = sphere(jax.random.key(seed), 0, 1, z.size, "float64")
        lanczos = Lanczos(start, min(32, z.size))
        state = lanczos.init(operator)
        while not lanczos.done(state):
            state = lanczos.step(operator, state)
        values, _ = lanczos.result(state)[0].eigh()
        return float(values[0] / (np.abs(values).max() or 1.0))


def _on_few_examples(problem: Problem, seed: int) -> tuple[float, dict[str, tuple[float, float]]]:
    """How far two gradients at one point are apart; errors and thresholds of the other checks there.

    In float64 even where the analysis is not: in float32 the steps would have to be so long that a ReLU network crosses
    kinks on the way, whose contribution to a difference of gradients no derivative sees.
    """
    with jax.enable_x64(True):
        # A few, so that the differences stay cheaper than the products of the other checks where examples are heavy.
        problem = in_float64(problem, int(np.clip(problem.batches.num_examples // 8, 4, EXAMPLES)))
        layout = Layout.of(problem.params)
        key = jax.random.key(seed + 1)
        away, direction = sphere(key, 0, 2, layout.dim, "float64")
        weights = layout.ravel(problem.params)
        scale = float(norm(weights)) or 1.0
        # Not at w itself: at a minimum the gradient is rounding, and says nothing of the model.
        point = weights + 0.01 * scale * away
        eps = precision(problem)
        threshold = 20 * eps ** (1 / 3)
        # What rounding leaves of a difference quotient over the first step, relative to the size of what is subtracted.
        rounding = ROUNDING * eps / (STEPS[0] * scale)
        best = partial(_best, scale=scale, threshold=threshold)
        again, once = (sums.objective_and_gradient(problem, layout, layout.unravel(point))[1] for _ in range(2))
        errors = {
            "gradient_vs_loss": (_gradient_error(problem, layout, point, rounding, best), threshold),
            "product_vs_gradient": (_product_error(problem, layout, point, direction, rounding, best), threshold),
        }
        if not problem.batches.coupled:  # there the examples of a batch are meant to depend on each other
            errors["per_example"] = (_mixing(problem, layout, point), threshold)
        return _apart(again, once), errors


def _mixing(problem: Problem, layout: Layout, point: Array) -> float:
    """How much J and ∇J of half of the examples change with their places and with others beside them, relatively.

    The smaller of both changes: a gradient, or a loss, may be all rounding. The others have weight 0, so that the
    program is that of all gradients here. A single example has nothing beside it.
    """
    size = problem.batches.num_examples
    half, params = size // 2, layout.unravel(point)

    def found(rows: np.ndarray) -> tuple[float, Array]:
        batches = problem.batches.chosen(rows)
        weight = batches.weight.copy()
        weight[half:] = 0
        alone = replace(problem, batches=replace(batches, weight=weight), regulariser=Regulariser())
        return sums.objective_and_gradient(alone, layout, params)

    first, moved = found(np.arange(size)), found(np.append(np.arange(half)[::-1], np.zeros(size - half, int)))
    return min(_apart(one, other) for one, other in zip(first, moved, strict=True))


def _apart(one: Any, other: Any) -> float:
    """‖one − other‖ by the larger of both; the largest float where that is not finite."""
    larger = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    apart = float(np.linalg.norm(other - one)) / larger if larger else 0.0
    return apart if np.isfinite(apart) else float(np.finfo("float64").max)


def _gradient_error(problem: Problem, layout: Layout, point: Array, rounding: float, best: Best) -> float:
    """∇J·u against (J(w + hu) − J(w − hu)) / 2h along the gradient's own direction u, relative; best of several h."""
    _, gradient = sums.objective_and_gradient(problem, layout, layout.unravel(point))
    length = float(norm(gradient))
    if length == 0:
        return 0.0
    unit = gradient / length

    def error(step: float) -> float:
        # With the gradient, which is not needed: that program is compiled already.
        ahead, behind = (
            sums.objective_and_gradient(problem, layout, layout.unravel(point + sign * step * unit))[0]
            for sign in (1, -1)
        )
        off = abs((ahead - behind) / (2 * step) - length)
        return 0.0 if off <= rounding * max(abs(ahead), abs(behind)) else off / length

    return best(error)


def _product_error(
    problem: Problem, layout: Layout, point: Array, direction: Array, rounding: float, best: Best
) -> float:
    """H v against (∇J(w + hv) − ∇J(w − hv)) / 2h, relative; best of several h. Of the Hessian, whatever the matrix."""
    moved = replace(problem, params=layout.unravel(point))
    product = build(moved, "hessian").matmat(direction[None])[0]

    def error(step: float) -> float:
        ahead, behind = (
            sums.objective_and_gradient(problem, layout, layout.unravel(point + sign * step * direction))[1]
            for sign in (1, -1)
        )
        difference = (ahead - behind) / (2 * step)
        # Of a curvature that is zero nothing is left but the rounding of the gradients.
        longest = max(float(norm(side)) for side in (ahead, behind))
        within = float(norm(difference - product)) <= rounding * longest
        return 0.0 if within else _apart(difference, product)

    return best(error)


def _best(error: Callable[[float], float], scale: float, threshold: float) -> float:
    """The smallest error over steps relative to the size of the weights, or the first that is beyond doubt.

    Infinite errors give the largest float.
    """
    least = np.inf
    for step in STEPS:
        found = error(step * scale)
        least = min(least, found) if np.isfinite(found) else least
        if least <= BEYOND_DOUBT * threshold:
            break
    return float(np.nan_to_num(least))
