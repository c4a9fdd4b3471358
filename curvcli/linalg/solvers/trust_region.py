"""Newton's method with a trust region, its steps by truncated conjugate gradients.

Made for a minimum that has to be known to many digits, from a start near it: differences of the function that rounding
has eaten are taken from the gradients instead, (f(w) − f(w + p)) ≈ −½ (g + g₊)·p, which is exact on a quadratic.

What is guaranteed: every accepted step lowers f, and is no longer than the radius within which the quadratic model was
found to hold. Not guaranteed: that the minimum found is the one nearest to the start. Where the Hessian at the start
has a negative eigenvalue beyond rounding, the descent follows it.

Source: Steihaug (1983); Nocedal and Wright, *Numerical Optimization*, algorithms 4.1 and 7.2; Eisenstat and Walker
(1996), choice 1, for how precisely a step is solved for; Hager and Zhang (2005) for differences below rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from curvcli.linalg.solvers.truncated_cg import ROUNDING, truncated_cg

FORCING, FINEST = 0.1, 0.01
"""A step's residual is at most the first times the gradient; less, as soon as the quadratic model has proved better,
but no less than the second: a short step proves little of a long one, whose digits may take hundreds of products."""


class Point(NamedTuple):
    """A function at a point."""

    value: float
    gradient: np.ndarray  # [dim]
    product: Callable[[np.ndarray], np.ndarray]  # the Hessian's, [dim] -> [dim]


class Minimum(NamedTuple):
    """Where the iteration ended."""

    w: np.ndarray  # [dim]
    point: Point
    converged: bool
    evaluations: int  # gradients and products, the first gradient not counted


def minimise(
    function: Callable[[np.ndarray], Point],
    w: np.ndarray,
    here: Point,
    *,
    gtol: float,
    radius: float,
    budget: int,
    eps: float,
) -> Minimum:
    """A minimum of a function near w [dim], in float64.

    Parameters
    ----------
    here
        `function(w)`.
    gtol
        Norm of the gradient at which it is reached.
    radius
        Of the first step; doubled and quartered as the quadratic model deserves.
    budget
        Gradients and products that may be spent.
    eps
        Of the arithmetic that the function is computed in.

    Returns
    -------
    Minimum
        Not converged where the budget or the digits did not suffice.

    Notes
    -----
    Cost: a gradient and some products a step; where f is nearly quadratic a step for every two digits.
    """
    # Products of three numbers at the ends of the range leave it. A power of two changes no other bit.
    _, exponent = np.frexp(np.max(np.abs(here.gradient), initial=0.0))
    scale = 2.0 ** -float(np.clip(exponent, -1000, 1000))
    here, gtol = _scaled(here, scale), scale * gtol
    # An f that ends near 0 is still a sum of terms of its first size.
    spent, forcing, noise = 0, FORCING, ROUNDING * eps * abs(here.value)
    while (size := float(np.linalg.norm(here.gradient))) > gtol and spent < budget and radius > eps * np.linalg.norm(w):
        step = truncated_cg(
            here.product, here.gradient, tolerance=max(forcing * size, 0.1 * gtol), most=budget - spent, eps=eps,
            radius=radius,
        )  # fmt: skip
        there = _scaled(function(w + step.p), scale)
        spent += step.products + 1
        predicted = -0.5 * float((here.gradient + step.residual) @ step.p)
        decrease, resolved = _decrease(here, there, step.p, noise)
        if not predicted > 0:
            break
        ratio = decrease / predicted
        if not ratio >= 0.25:  # a loss that is no number is a step too far as well
            radius = 0.25 * float(np.linalg.norm(step.p))
        elif ratio > 0.75 and step.on_boundary:
            radius *= 2
        if ratio >= 0.1:
            off = float(np.linalg.norm(there.gradient - step.residual)) / size
            forcing = min(max(off, FINEST), FORCING)
            # An interior step lowers the gradient to the forcing term, unless what is left of it is rounding.
            exhausted = not resolved and not step.on_boundary and np.linalg.norm(there.gradient) > 0.5 * size
            w, here = w + step.p, there
            if exhausted:
                break
        elif not resolved:
            break
    return Minimum(w, _scaled(here, 1 / scale), bool(np.linalg.norm(here.gradient) <= gtol), spent)


def _scaled(point: Point, scale: float) -> Point:
    """Of the function times a number."""
    return Point(scale * point.value, scale * point.gradient, lambda v: scale * point.product(v))


def _decrease(here: Point, there: Point, p: np.ndarray, noise: float) -> tuple[float, bool]:
    """f(w) − f(w + p), and whether the values resolve it."""
    difference = here.value - there.value
    if not np.isfinite(difference):
        return -np.inf, True
    if abs(difference) > noise:
        return difference, True
    return -0.5 * float((here.gradient + there.gradient) @ p), False
