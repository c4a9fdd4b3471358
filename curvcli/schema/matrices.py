"""The table of matrices: what can be said of each by name, without the engine.

The choices of `--matrix`, of `curv compare` and of `curv influence`, what is warned of and the labels of figures follow
from these rows. How a matrix is computed is in the row of the same name in `curvcli.curvature.matrices`. No fact has a
default: what a matrix does not take part in, its row refuses with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Refusal:
    """The reason why a matrix lacks something, or does not take part in something."""

    reason: str


Needs = Literal["nothing", "label draws", "likelihood"]
Use = Literal["taken", "by default"] | Refusal


@dataclass(frozen=True, kw_only=True)
class MatrixFacts:
    """One row of the table.

    Parameters
    ----------
    label
        The matrix in sentences and figures.
    needs
        What the loss must declare: nothing; a likelihood or a sampler of labels; a likelihood of the table of losses.
    by_examples
        Whether it is made of each example's own gradient, or of what the layers see of an example alone. A network with
        the statistics of a batch has neither.
    regularised
        Whether ∇²R can be part of it.
    curves_the_loss
        Whether it stands for the curvature of J, so that 2/λ_max is a learning rate.
    own_hessian
        Whether it is ∇²J itself, whose λ_max is the sharpness.
    second_derivatives
        Whether it has second derivatives of the network, which leave out kinks.
    closed_form
        Whether its eigenvalues, eigenvectors and diagonal are known without a product.
    layers
        Whether it is made of Kronecker factors of the layers.
    rows
        What its rows are.
    matrix, lines, saliencies, compare, influence
        Whether `--matrix` takes it, `curv direction` and `curv landscape` do, `curv diag` ranks weights by it,
        `curv compare --matrices` takes it (`by default`: also where none are asked for), `curv influence --matrix`
        does; or the reason why not.
    sets_damping
        Its place among the matrices whose mean eigenvalue sets the damping in `curv compare`, the least first; or the
        reason why it has none.
    """

    label: str
    needs: Needs
    by_examples: bool
    regularised: bool
    curves_the_loss: bool
    own_hessian: bool
    second_derivatives: bool
    closed_form: bool
    layers: bool
    rows: Literal["parameters", "outputs"]
    matrix: Use
    lines: Use
    saliencies: Use
    compare: Use
    influence: Use
    sets_damping: int | Refusal


_NO_CURVATURE = Refusal("it is no curvature of the loss")
_OUTPUTS = Refusal("its rows are outputs")
_INDEFINITE = Refusal("it may be indefinite")
_STANDS_IN = Refusal("it stands in for the ggn")
_INVERSE = Refusal("its inverse stands in for that of the ggn: see --solver and --precondition")
_COMPARED = Refusal("curv compare alone makes it")

MATRICES: dict[str, MatrixFacts] = {
    "hessian": MatrixFacts(
        label="Hessian", needs="nothing", by_examples=False, regularised=True, curves_the_loss=True, own_hessian=True,
        second_derivatives=True, closed_form=False, layers=False, rows="parameters", matrix="taken", lines="taken",
        saliencies="taken", compare="by default", influence="taken", sets_damping=_INDEFINITE,
    ),
    "ggn": MatrixFacts(
        label="GGN", needs="nothing", by_examples=False, regularised=True, curves_the_loss=True, own_hessian=False,
        second_derivatives=False, closed_form=False, layers=False, rows="parameters", matrix="taken", lines="taken",
        saliencies="taken", compare="by default", influence="taken", sets_damping=0,
    ),
    "gauss-newton": MatrixFacts(
        label="Gauss–Newton", needs="nothing", by_examples=False, regularised=True, curves_the_loss=True,
        own_hessian=False, second_derivatives=False, closed_form=False, layers=False, rows="parameters", matrix="taken",
        lines="taken", saliencies="taken", compare="taken", influence="taken", sets_damping=2,
    ),
    "fisher": MatrixFacts(
        label="Fisher", needs="likelihood", by_examples=False, regularised=True, curves_the_loss=True,
        own_hessian=False, second_derivatives=False, closed_form=False, layers=False, rows="parameters", matrix="taken",
        lines="taken", saliencies="taken", compare="by default", influence="taken", sets_damping=1,
    ),
    "fisher-mc": MatrixFacts(
        label="sampled Fisher", needs="label draws", by_examples=False, regularised=True, curves_the_loss=True,
        own_hessian=False, second_derivatives=False, closed_form=False, layers=False, rows="parameters", matrix="taken",
        lines="taken", saliencies="taken", compare="taken", influence=Refusal("it is a sample: use fisher"),
        sets_damping=3,
    ),
    "empirical-fisher": MatrixFacts(
        label="empirical Fisher", needs="nothing", by_examples=True, regularised=False, curves_the_loss=False,
        own_hessian=False, second_derivatives=False, closed_form=False, layers=False, rows="parameters", matrix="taken",
        lines="taken", saliencies=_NO_CURVATURE, compare="by default", influence="taken", sets_damping=_NO_CURVATURE,
    ),
    "gradient-covariance": MatrixFacts(
        label="gradient covariance", needs="nothing", by_examples=True, regularised=False, curves_the_loss=False,
        own_hessian=False, second_derivatives=False, closed_form=False, layers=False, rows="parameters", matrix="taken",
        lines="taken", saliencies=_NO_CURVATURE, compare="taken", influence=_NO_CURVATURE, sets_damping=_NO_CURVATURE,
    ),
    "residual": MatrixFacts(
        label="residual", needs="nothing", by_examples=False, regularised=False, curves_the_loss=False,
        own_hessian=False, second_derivatives=True, closed_form=False, layers=False, rows="parameters", matrix="taken",
        lines="taken", saliencies=_NO_CURVATURE, compare=Refusal("compare hessian with ggn, whose distance it is"),
        influence=_INDEFINITE, sets_damping=_NO_CURVATURE,
    ),
    "ntk": MatrixFacts(
        label="NTK", needs="nothing", by_examples=False, regularised=False, curves_the_loss=False, own_hessian=False,
        second_derivatives=False, closed_form=False, layers=False, rows="outputs", matrix="taken", lines=_OUTPUTS,
        saliencies=_OUTPUTS, compare=_OUTPUTS, influence=_OUTPUTS, sets_damping=_OUTPUTS,
    ),
    "kfac": MatrixFacts(
        label="K-FAC", needs="likelihood", by_examples=True, regularised=True, curves_the_loss=True, own_hessian=False,
        second_derivatives=False, closed_form=True, layers=True, rows="parameters", matrix="taken", lines="taken",
        saliencies=_STANDS_IN, compare="by default", influence=_INVERSE, sets_damping=5,
    ),
    "ekfac": MatrixFacts(
        label="E-KFAC", needs="likelihood", by_examples=True, regularised=True, curves_the_loss=True, own_hessian=False,
        second_derivatives=False, closed_form=True, layers=True, rows="parameters", matrix="taken", lines="taken",
        saliencies=_STANDS_IN, compare="by default", influence=_INVERSE, sets_damping=4,
    ),
    "diagonal": MatrixFacts(
        label="diagonal", needs="likelihood", by_examples=True, regularised=True, curves_the_loss=True,
        own_hessian=False, second_derivatives=False, closed_form=True, layers=False, rows="parameters",
        matrix=_COMPARED, lines=_COMPARED, saliencies=_COMPARED, compare="by default", influence=_COMPARED,
        sets_damping=6,
    ),
}  # fmt: skip


def having(fact: str, value: Any = True) -> tuple[str, ...]:
    """The names of the matrices with this value of a fact, in the order of the table.

    >>> having("layers"), having("regularised", False)[-1]
    (('kfac', 'ekfac'), 'ntk')
    """
    return tuple(name for name, facts in MATRICES.items() if getattr(facts, fact) == value)


def taken_by(use: str) -> tuple[str, ...]:
    """The names of the matrices that take part in something, in the order of the table.

    >>> taken_by("saliencies")
    ('hessian', 'ggn', 'gauss-newton', 'fisher', 'fisher-mc')
    """
    return tuple(name for name, facts in MATRICES.items() if not isinstance(getattr(facts, use), Refusal))


def refusal(name: str, use: str) -> str | None:
    """Why a matrix does not take part in something; None where it does."""
    found = getattr(MATRICES[name], use)
    return found.reason if isinstance(found, Refusal) else None


def setting_damping(names: list[str]) -> str:
    """The one of these matrices whose mean eigenvalue sets the damping: the first of them where the table has none."""
    places = {name: place for name in names if isinstance(place := MATRICES[name].sets_damping, int)}
    return min(places, key=lambda name: places[name], default=names[0])


def refused(name: Any, use: str) -> Any:
    """The name, where the table does not refuse it.

    Raises
    ------
    ValueError
        It does; the message has the reason.
    """
    if isinstance(name, str) and name in MATRICES and (why := refusal(name, use)) is not None:
        raise ValueError(f"{name} is not taken here: {why}")
    return name


FACTORED = having("layers")
