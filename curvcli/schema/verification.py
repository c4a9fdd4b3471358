"""The result of `curv influence --verify`: predicted changes beside those of refits."""

from __future__ import annotations

from pydantic import Field

from curvcli.schema.base import Strict, same_shape
from curvcli.schema.estimate import Estimate


class Refit(Strict):
    """A refit in float64, and its convergence."""

    converged: bool = Field(description="whether the gradient met its tolerance")
    gradient_before: float = Field(ge=0, description="‖∇J‖ at its start")
    gradient_after: float = Field(ge=0)
    gradient_tolerance: float = Field(
        ge=0, description="relative to the gradient that the change adds; of the control, to the smallest of these"
    )
    distance: float = Field(ge=0, description="how far the weights moved: one far beyond the others left the basin")
    evaluations: int = Field(ge=1, description="gradients and products with the Hessian, each a pass over the data")


class Control(Refit):
    """The refit of the unchanged problem, from the checkpoint to the minimum that all others start from."""

    loss_change: float = Field(description="of J, from the checkpoint to the minimum")
    rms_change: float = Field(ge=0, description="of the measures, root mean square: an error of the checkpoint itself")
    largest_change: float = Field(ge=0, description="of any measure")


class Verification(Strict):
    """Predicted and actual changes of the measures; null where fewer than three refits ended or nothing varies."""

    asked: int = Field(ge=0, description="refits wanted; fewer examples are listed where the run was stopped")
    examples: list[int]
    predicted: list[list[float]] = Field(description="by example and query, the outputs of a query side by side")
    actual: list[list[float]] = Field(description="measure after the refit less measure at the control's minimum")
    pearson: Estimate | None = Field(description="over all pairs; interval by bootstrap over the examples")
    spearman: Estimate | None = Field(description="over examples, the mean over queries; interval likewise")
    slope: Estimate | None = Field(description="of actual on predicted, least squares over all pairs; 1 is right")
    control: Control | None = Field(description="null where the run was stopped before its end")
    refits: list[Refit] = Field(description="in the order of the examples; those not converged count above, too")
    converged: int = Field(ge=0, description="refits that met their tolerance, of those listed")
    relative_tolerance: float = Field(gt=0, description="of gradients: times the norm of what the change adds")
    evaluations: int = Field(ge=0, description="gradients and products of all refits, stopped ones included")

    _shape = same_shape("predicted", "actual")
