"""The table of matrices: a name, what one batch has to do with it, and what is known of the matrix beforehand.

Adding a matrix means adding a row here, a vector field in `products.py` (or what stands between J and Jᵀ in
`outputs.py`), and its quadratic form in `forms.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curvcli import journal
from curvcli.curvature.flatten import Layout
from curvcli.curvature.jaxprs.work import abstract_batch
from curvcli.curvature.kronecker.kfac import Recipe, Sampling, Sharing, kfac
from curvcli.curvature.likelihood import check_output_hessian
from curvcli.curvature.products import linear_map as products
from curvcli.curvature.products import ntk, outputs, pairs, sums
from curvcli.devices import on_every, on_host
from curvcli.errors import SpecError
from curvcli.linalg.operator import LinearOperator
from curvcli.losses import LOSSES, Loss
from curvcli.problem import Batch, Problem, Way, in_float64
from curvcli.schema.settings import FACTORED, UNREGULARISED, AnalysisSettings


@dataclass(frozen=True)
class Matrix:
    """One row of the table.

    Parameters
    ----------
    field
        One of `products.py`, whose derivative is one batch's matrix, not normalised; None: the matrix is no sum over
        batches (`ntk`).
    psd
        Whether the data term is known to be positive semi-definite, by the loss.
    curves_the_loss
        Whether the matrix stands for the curvature of J, so that 2/λ_max is a learning rate.
    """

    field: products.Field | None
    psd: Callable[[Loss], bool]
    curves_the_loss: bool


def _never(loss: Loss) -> bool:
    return False


def _always(loss: Loss) -> bool:
    return True


def _if_convex(loss: Loss) -> bool:
    return loss.known  # of a user's loss only a sample of output Hessians can be looked at


def _sandwich(name: str) -> products.Field:
    return partial(products.sandwich, outputs.MIDDLES[name])


MATRICES: dict[str, Matrix] = {
    "hessian": Matrix(products.hessian, _never, True),
    "ggn": Matrix(_sandwich("ggn"), _if_convex, True),
    "gauss-newton": Matrix(_sandwich("gauss-newton"), _always, True),
    "fisher": Matrix(_sandwich("fisher"), _always, True),
    "fisher-mc": Matrix(_sandwich("fisher-mc"), _always, True),
    "empirical-fisher": Matrix(_sandwich("empirical-fisher"), _always, False),
    "gradient-covariance": Matrix(products.covariance, _always, False),
    "residual": Matrix(products.residual, _never, False),
    "ntk": Matrix(None, _always, False),
}


def curves_the_loss(name: str) -> bool:
    """Whether the matrix of this name stands for the curvature of J."""
    return name in FACTORED or MATRICES[name].curves_the_loss


def build_for(problem: Problem, settings: AnalysisSettings) -> LinearOperator:
    """The matrix that an analysis was asked for; see `build`."""
    return build(
        problem,
        settings.matrix,
        damping=settings.damping,
        with_regulariser=settings.regulariser,
        mc_samples=settings.mc_samples,
        seed=settings.seed,
        factors=settings.factors,
        sharing=settings.sharing,
    )


def build(
    problem: Problem,
    name: str,
    *,
    damping: float = 0.0,
    with_regulariser: bool = True,
    mc_samples: int = 1,
    seed: int = 0,
    factors: Sampling = "sampled",
    sharing: Sharing = "expand",
) -> LinearOperator:
    """The matrix of this name as a linear operator on blocks of vectors [k, dim].

    Parameters
    ----------
    problem
        Network, loss, data and weights.
    name
        In `MATRICES`.
    damping
        λ; λI is added.
    with_regulariser
        Whether ∇²R is part of the matrix, where it can be (`UNREGULARISED`).
    mc_samples, seed
        Label samples a unit for `fisher-mc` and sampled factors, and where they come from.
    factors, sharing
        Of `kfac` and `ekfac`: see `kronecker.Recipe`.

    Raises
    ------
    SpecError
        The matrix needs a likelihood that the loss does not have, or one with the loss's own output Hessian.

    Notes
    -----
    Cost of a product: one linearisation of each batch, shared by the block (or by all blocks: `Problem.way`), and k
    applications of it; twice that for `ntk`. Building `gradient-covariance` costs one gradient.
    """
    check_likelihood(problem.loss, name)
    if name in FACTORED:
        recipe = Recipe(factors, sharing, mc_samples, seed)
        if factors != "empirical":
            check_output_hessian(problem, name)
        known = kfac(problem, recipe, corrected=name == "ekfac", with_regulariser=with_regulariser).damped(damping)
        return known.operator()
    layout, row, batches = Layout.of(problem.params), MATRICES[name], sums.resident(problem.batches)
    data_forms, floor = None, 0.0
    if row.field is None:
        data_term = ntk.kernel_products(problem, layout, batches)
    else:
        extra = extra_arguments(problem, name, batches, mc_samples=mc_samples, seed=seed)
        data_term = sums.sum_products(row.field, problem, layout, batches, normaliser(problem, name), *extra)
        if name == "gradient-covariance":  # ḡ ḡᵀ is taken off
            floor = float(np.finfo(np.float64).eps) * _squared_norm(*extra)
        data_forms = pairs.pair_forms(problem, name, layout, batches, normaliser(problem, name), *extra)
    regularised = with_regulariser and name not in UNREGULARISED
    regulariser = sums.regulariser_products(problem, layout) if regularised else None

    def matmat(vectors: Array) -> Array:
        out = data_term(vectors)
        if regulariser is not None:
            out = out + regulariser(vectors)
        return out + damping * vectors if damping else out

    # A user's regulariser may curve downwards; the ½·l2·‖w‖² of curv's own does not.
    psd = row.psd(problem.loss) and damping >= 0 and (regulariser is None or problem.regulariser.fn is None)
    forms = pairs.with_rest(data_forms, regulariser, damping)
    # With the arguments that the matrix depends on: other products are not to be taken for these.
    what = (name, damping, regularised, mc_samples, seed)
    if forms is not None:
        forms = journal.whole(forms, problem, "forms", *what)
    how = {"damping": damping, "with_regulariser": with_regulariser, "mc_samples": mc_samples, "seed": seed}
    application = "map" if problem.way.application == "vmap" else "vmap"
    another = replace(problem, way=Way(application))
    return LinearOperator(
        journal.rows(matmat, problem, "products", *what), dimension(problem, name), problem.dtype, psd, forms,
        mesh=problem.batches.mesh, floor=floor,
        by_another=None if row.field is None else lambda: build(another, name, **how),
        precise=_in_float64(problem, name, damping, with_regulariser, mc_samples, seed),
    )  # fmt: skip


def _squared_norm(vector: Array) -> float:
    return float(np.sum(np.square(on_host(vector).astype(np.float64))))


def _in_float64(
    problem: Problem, name: str, damping: float, with_regulariser: bool, mc_samples: int, seed: int
) -> Callable[[Any], np.ndarray] | None:
    """The products of a matrix in float64, on the host; None where that is the problem's own arithmetic.

    The float64 problem is made when the first product is asked for. It takes no more memory than the products that
    were planned for: the batches are half as large, and large data are read anew at every pass.
    """
    if problem.dtype == np.float64:
        return None

    @cache
    def operator() -> LinearOperator:
        precise = in_float64(problem)
        batches = replace(precise.batches, streamed=precise.batches.streamed or precise.batches.nbytes > HELD_BYTES)
        half = -(-batches.batch_size // 2)
        precise = replace(precise, batches=batches.resized(half), way=replace(precise.way, kept_bytes=0))
        arguments = {"damping": damping, "with_regulariser": with_regulariser, "mc_samples": mc_samples, "seed": seed}
        return build(precise, name, **arguments)

    def matmat(vectors: Any) -> np.ndarray:
        rows = on_host(vectors).astype(np.float64)
        with jax.enable_x64(True):
            return on_host(operator().matmat(jnp.asarray(rows)))

    return matmat


HELD_BYTES = 256 << 20
"""Data in float64 up to this size are put on the device beside those of the analysis."""


def dimension(problem: Problem, name: str) -> int:
    """Rows of the matrix: D, or the number of outputs of all examples for `ntk`.

    Raises
    ------
    SpecError
        The matrix needs a likelihood that the loss does not have.
    """
    check_likelihood(problem.loss, name)
    return problem.batches.num_examples * ntk.outputs_per_example(problem) if name == "ntk" else problem.dim


def linear_map_bytes(problem: Problem, name: str, *, mc_samples: int = 1, seed: int = 0) -> int:
    """What the linear map of one batch keeps of the forward and backward passes; 0 where none is made. Nothing runs.

    Weights and inputs are not copied.
    """
    field = None if name in FACTORED else MATRICES[name].field
    if field is None:
        return 0
    check_likelihood(problem.loss, name)
    layout, batch = Layout.of(problem.params), abstract_batch(problem, problem.batches.batch_size)
    extra = abstract_extra(problem, name, mc_samples=mc_samples, seed=seed)
    made = jax.eval_shape(
        partial(products.linearised, field, sums.functions(problem), layout),
        problem.params,
        problem.frozen,
        batch,
        *extra,
    )
    return sum(one.size * one.dtype.itemsize for one in jax.tree.leaves(made))


def normaliser(problem: Problem, name: str) -> float:
    """What the sum over the data is divided by."""
    return float(sums.active_examples(problem)) if name == "gradient-covariance" else problem.normaliser


def extra_arguments(
    problem: Problem, name: str, batches: Iterable[Batch], *, mc_samples: int, seed: int
) -> tuple[Array, ...]:
    """What a matrix's piece takes after the vectors: keys of the label draws, or the mean gradient."""
    if name == "fisher-mc":
        return (outputs.draw_keys(seed, mc_samples),)
    if name == "gradient-covariance":
        return (sums.mean_gradient(problem, Layout.of(problem.params), batches),)
    return ()


def abstract_extra(problem: Problem, name: str, *, mc_samples: int, seed: int) -> tuple[Any, ...]:
    """The same for what is only traced: a gradient by its shape."""
    if name == "gradient-covariance":
        mesh = problem.batches.mesh
        where = None if mesh is None else on_every(mesh)
        return (jax.ShapeDtypeStruct((problem.dim,), problem.dtype, sharding=where),)
    return extra_arguments(problem, name, (), mc_samples=mc_samples, seed=seed)


def check_likelihood(loss: Loss, name: str) -> None:
    """The Fisher matrices need to know which distribution the outputs stand for.

    Raises
    ------
    SpecError
        They do not.
    """
    if name not in ("fisher", "fisher-mc", *FACTORED) or loss.family is not None:
        return
    if loss.draw is None or name in FACTORED:
        raise SpecError(
            f"{name} needs a likelihood, and {loss.name} does not say which one it is",
            f'give [loss] likelihood in curv.toml: {", ".join(LOSSES)}, or a sampler "file.py:fn" with '
            "fn(outputs, key) -> targets; or use --matrix ggn",
        )
    if name == "fisher":
        raise SpecError(
            "the exact Fisher matrix needs one of the known likelihoods, and [loss] likelihood names a sampler",
            "use --matrix fisher-mc, which draws from it",
        )
