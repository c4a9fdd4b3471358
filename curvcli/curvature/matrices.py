"""The table of matrices: how each is computed, and what is known of it beforehand.

What can be said of a matrix without the engine is in the row of the same name in `curvcli.schema.matrices`. No facet of
a row has a default: what a matrix lacks, its row refuses with a reason, and `facet` raises that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from curvcli.curvature.flatten import Layout
from curvcli.curvature.kronecker.factors import Kronecker
from curvcli.curvature.kronecker.kfac import diagonal, kfac
from curvcli.curvature.products import forms, linear_map, ntk, outputs, pairs, sums
from curvcli.curvature.products.linear_map import Field, Middle
from curvcli.devices import on_every, on_host
from curvcli.errors import SpecError
from curvcli.losses import LOSSES, Likelihood, Loss
from curvcli.problem import Batch, Problem
from curvcli.schema.matrices import MATRICES as FACTS
from curvcli.schema.matrices import Refusal


class OutputSide(NamedTuple):
    """C of a matrix Jᵀ C J.

    Parameters
    ----------
    middle
        One of `products.outputs`.
    by_unit
        `(loss, axes of an example's outputs) -> bool`: whether C is positive and has a block for each unit, so that the
        matrix can be written out on the side of the outputs.
    """

    middle: Middle
    by_unit: Callable[[Loss, int], bool]


class Root(NamedTuple):
    """Draws of vectors whose covariance is the matrix.

    Parameters
    ----------
    cotangents
        `(loss, outputs, batch, keys) -> [S, b, ..., C]`, of covariance C.
    exists
        Whether there are any for this loss.
    """

    cotangents: Callable[..., Array]
    exists: Callable[[Loss], bool]


class Factors(NamedTuple):
    """A matrix in closed form.

    Parameters
    ----------
    assemble
        `(problem, recipe, with_regulariser=...) -> Kronecker`.
    corrected
        Whether the eigenvalues are those of E-KFAC.
    """

    assemble: Callable[..., Kronecker]
    corrected: bool


class Extra(NamedTuple):
    """Arguments that field and forms of a batch take after the batch and the vectors.

    Parameters
    ----------
    make
        `(problem, batches, mc_samples, seed) -> tuple of arrays`.
    abstract
        The same for what is only traced.
    subtracted
        The size of what the matrix subtracts, from these arguments; None where it subtracts nothing.
    """

    make: Callable[..., tuple[Any, ...]]
    abstract: Callable[..., tuple[Any, ...]]
    subtracted: Callable[..., float] | None


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One row of the table. A matrix has one of `field`, `products` and `factors`.

    Parameters
    ----------
    field
        A vector field of `products.linear_map`, whose derivative is one batch's part of the matrix.
    products
        `(problem, layout, batches) -> (vectors -> images)`, of a matrix that is no sum over batches.
    factors
        The matrix in closed form.
    forms
        One batch's forms by example, `(functions, layout, params, frozen, batch, vectors, *extra) -> [k, b]`: the error
        of having only some of the examples.
    pairs
        One batch's V A Vᵀ, `(problem, layout, batch, vectors, *extra) -> [k, k]`, cheaper than products.
    output_side
        C of Jᵀ C J.
    root
        Draws whose covariance is the matrix: sampled self-influence and leverage.
    pull
        The curvature H_n of an example in its outputs that the leverage correction takes, one of `products.outputs`
        without further arguments.
    extra
        What field, forms, pairs and C take beside the batch.
    normaliser
        What the sum over the batches is divided by.
    psd
        Whether the data term is known to be positive semidefinite, by the loss.
    same_as
        The name of the matrix that it equals for a loss; None where it is its own.
    """

    field: Field | Refusal
    products: Callable[..., Callable[[Array], Array]] | Refusal
    factors: Factors | Refusal
    forms: Callable[..., Array] | Refusal
    pairs: Callable[..., Array] | Refusal
    output_side: OutputSide | Refusal
    root: Root | Refusal
    pull: Middle | Refusal
    extra: Extra
    normaliser: Callable[[Problem], float]
    psd: Callable[[Loss], bool]
    same_as: Callable[[Loss], str | None]


def never(loss: Loss) -> bool:
    """Of no loss."""
    return False


def always(loss: Loss, axes: int = 0) -> bool:
    """Of every loss."""
    return True


def if_convex(loss: Loss, axes: int = 0) -> bool:
    """Of the losses of the table: of a user's only a sample of output Hessians can be looked at."""
    return loss.known


def if_uncoupled(loss: Loss, axes: int) -> bool:
    """Of losses that do not couple the tokens of an example, as a user's may."""
    return loss.known or axes <= 1


def ggn_of_identity(loss: Loss) -> str | None:
    """The GGN, where the output Hessian of a single draw is the identity."""
    return "ggn" if isinstance(loss, Likelihood) and loss.identity_hessian else None


def itself(loss: Loss) -> None:
    """A matrix of its own, whatever the loss."""
    return


def _squared_norm(vector: Array) -> float:
    return float(np.sum(np.square(on_host(vector).astype(np.float64))))


def _mean_gradient(problem: Problem, batches: Iterable[Batch], mc_samples: int, seed: int) -> tuple[Array]:
    return (sums.mean_gradient(problem, Layout.of(problem.params), batches),)


def _abstract_gradient(problem: Problem, batches: Iterable[Batch], mc_samples: int, seed: int) -> tuple[Any]:
    mesh = problem.batches.mesh
    where = None if mesh is None else on_every(mesh)
    return (jax.ShapeDtypeStruct((problem.dim,), problem.dtype, sharding=where),)


def _draw_keys(problem: Problem, batches: Iterable[Batch], mc_samples: int, seed: int) -> tuple[Array]:
    return (outputs.draw_keys(seed, mc_samples),)


def _no_arguments(problem: Problem, batches: Iterable[Batch], mc_samples: int, seed: int) -> tuple[()]:
    return ()


NO_EXTRA = Extra(_no_arguments, _no_arguments, None)
LABEL_DRAWS = Extra(_draw_keys, _draw_keys, None)
MEAN_GRADIENT = Extra(_mean_gradient, _abstract_gradient, _squared_norm)  # ḡ ḡᵀ is taken off

_SUM = Refusal("it is a sum over batches")
_NO_FACTORS = Refusal("it has no factors")
_NO_MIDDLE = Refusal("it is not of the form Jᵀ C J")


def by_problem(problem: Problem) -> float:
    """The normaliser M of the loss."""
    return problem.normaliser


def by_active_examples(problem: Problem) -> float:
    """The number of examples with any weight."""
    return float(sums.active_examples(problem))


def sandwich(
    middle: Middle,
    *,
    by_unit: Callable[[Loss, int], bool],
    root: Root | Refusal,
    pull: Middle | Refusal,
    extra: Extra,
    psd: Callable[[Loss], bool],
    same_as: Callable[[Loss], str | None],
) -> Matrix:
    """The row of a matrix Jᵀ C J: field, forms and output side follow from C."""
    return Matrix(
        field=partial(linear_map.sandwich, middle), products=_SUM, factors=_NO_FACTORS,
        forms=partial(forms.sandwich, middle), pairs=partial(pairs.sandwich, middle),
        output_side=OutputSide(middle, by_unit), root=root, pull=pull, extra=extra, normaliser=by_problem, psd=psd,
        same_as=same_as,
    )  # fmt: skip


def _second_derivative(field: Field, by_example: Callable[..., Array], pull: Middle | Refusal) -> Matrix:
    return Matrix(
        field=field, products=_SUM, factors=_NO_FACTORS, forms=by_example,
        pairs=Refusal("a form of its second derivative costs as much as a product"), output_side=_NO_MIDDLE,
        root=_NO_MIDDLE, pull=pull, extra=NO_EXTRA, normaliser=by_problem, psd=never, same_as=itself,
    )  # fmt: skip


def _in_closed_form(assemble: Callable[..., Kronecker], *, corrected: bool) -> Matrix:
    factors, examples = Refusal("it is made of factors"), Refusal("its factors are no sum of examples' matrices")
    return Matrix(
        field=factors, products=factors, factors=Factors(assemble, corrected), forms=examples, pairs=factors,
        output_side=factors, root=factors, pull=factors, extra=NO_EXTRA, normaliser=by_problem, psd=always,
        same_as=itself,
    )  # fmt: skip


MATRICES: dict[str, Matrix] = {
    "hessian": _second_derivative(linear_map.hessian, forms.hessian, outputs.loss_hessian),
    "ggn": sandwich(
        outputs.loss_hessian, by_unit=if_convex, root=Root(outputs.fisher_cotangents, if_convex),
        pull=outputs.loss_hessian, extra=NO_EXTRA, psd=if_convex, same_as=itself,
    ),
    "gauss-newton": sandwich(
        outputs.identity, by_unit=always, root=Root(outputs.identity_cotangents, always), pull=outputs.identity,
        extra=NO_EXTRA, psd=always, same_as=ggn_of_identity,
    ),
    "fisher": sandwich(
        outputs.fisher, by_unit=always, root=Root(outputs.fisher_cotangents, lambda loss: loss.family is not None),
        pull=outputs.fisher, extra=NO_EXTRA, psd=always, same_as=lambda loss: "ggn" if loss.known else None,
    ),
    "fisher-mc": sandwich(
        outputs.sampled_fisher, by_unit=if_uncoupled, root=Refusal("it is a sample itself"),
        pull=Refusal("its curvature in the outputs is drawn"), extra=LABEL_DRAWS, psd=always, same_as=itself,
    ),
    "empirical-fisher": sandwich(
        outputs.observed_fisher, by_unit=if_uncoupled, root=Root(outputs.observed_cotangents, always),
        pull=outputs.observed_fisher, extra=NO_EXTRA, psd=always, same_as=itself,
    ),
    "gradient-covariance": Matrix(
        field=linear_map.covariance, products=_SUM, factors=_NO_FACTORS, forms=forms.covariance,
        pairs=pairs.covariance, output_side=_NO_MIDDLE, root=_NO_MIDDLE, pull=_NO_MIDDLE, extra=MEAN_GRADIENT,
        normaliser=by_active_examples, psd=always, same_as=itself,
    ),
    "residual": _second_derivative(linear_map.residual, forms.residual, _NO_MIDDLE),
    "ntk": Matrix(
        field=Refusal("its product passes over all batches twice"), products=ntk.kernel_products, factors=_NO_FACTORS,
        forms=Refusal("its rows are the outputs of the examples"), pairs=Refusal("its rows are outputs"),
        output_side=_NO_MIDDLE, root=_NO_MIDDLE, pull=_NO_MIDDLE, extra=NO_EXTRA, normaliser=by_problem, psd=always,
        same_as=itself,
    ),
    "kfac": _in_closed_form(kfac, corrected=False),
    "ekfac": _in_closed_form(partial(kfac, corrected=True), corrected=True),
    "diagonal": _in_closed_form(diagonal, corrected=False),
}  # fmt: skip


def facet(name: str, which: str) -> Any:
    """One facet of a matrix's row.

    Raises
    ------
    SpecError
        The row refuses it; the message names the facet and the reason.
    """
    found = getattr(MATRICES[name], which)
    if isinstance(found, Refusal):
        raise SpecError(f"the matrix {name} has no {which.replace('_', ' ')}: {found.reason}", "use another --matrix")
    return found


def has(name: str, which: str) -> bool:
    """Whether a matrix's row has a facet."""
    return not isinstance(getattr(MATRICES[name], which), Refusal)


def has_root(name: str, loss: Loss) -> bool:
    """Whether vectors can be drawn whose covariance is this matrix of this loss."""
    return has(name, "root") and facet(name, "root").exists(loss)


def curves_the_loss(name: str) -> bool:
    """Whether the matrix of this name stands for the curvature of J."""
    return FACTS[name].curves_the_loss


def dimension(problem: Problem, name: str) -> int:
    """Rows of the matrix: D, or the number of outputs of all examples.

    Raises
    ------
    SpecError
        The matrix needs a likelihood that the loss does not have.
    """
    check_likelihood(problem.loss, name)
    if FACTS[name].rows == "parameters":
        return problem.dim
    return problem.batches.num_examples * ntk.outputs_per_example(problem)


def normaliser(problem: Problem, name: str) -> float:
    """What the sum over the data is divided by."""
    return MATRICES[name].normaliser(problem)


def extra_arguments(
    problem: Problem, name: str, batches: Iterable[Batch], *, mc_samples: int, seed: int
) -> tuple[Array, ...]:
    """What a matrix's piece takes after the vectors: keys of the label draws, or the mean gradient."""
    return MATRICES[name].extra.make(problem, batches, mc_samples, seed)


def abstract_extra(problem: Problem, name: str, *, mc_samples: int, seed: int) -> tuple[Any, ...]:
    """The same for what is only traced: a gradient by its shape."""
    return MATRICES[name].extra.abstract(problem, (), mc_samples, seed)


def check_likelihood(loss: Loss, name: str) -> None:
    """Check that the loss declares what the matrix needs: which distribution the outputs stand for.

    Raises
    ------
    SpecError
        It does not.
    """
    facts = FACTS[name]
    if facts.needs == "nothing" or loss.family is not None:
        return
    if loss.draw is None or facts.closed_form:
        raise SpecError(
            f"{name} needs a likelihood, and {loss.name} does not say which one it is",
            f'give [loss] likelihood in curv.toml: {", ".join(LOSSES)}, or a sampler "file.py:fn" with '
            "fn(outputs, key) -> targets; or use --matrix ggn",
        )
    if facts.needs == "likelihood":
        raise SpecError(
            f"the exact {facts.label} matrix needs one of the known likelihoods, and [loss] likelihood names a sampler",
            "use --matrix fisher-mc, which draws from it",
        )
