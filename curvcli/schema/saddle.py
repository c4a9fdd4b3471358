"""Settings, result and report of `curv saddle`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from curvcli.schema.base import Strict
from curvcli.schema.estimate import Bounded, Eigenvalue
from curvcli.schema.report import Report
from curvcli.schema.settings import FIXED, AnalysisSettings

Classification = Literal[
    "not-stationary", "saddle", "local-maximum", "minimum-within-tolerance", "degenerate", "undecided"
]


class SaddleSettings(AnalysisSettings):
    """Settings of `curv saddle`."""

    # Instances do not change, so a narrower type is a subtype.
    matrix: Literal["hessian"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="hessian", description="the point is classified by J's own Hessian"
    )
    mc_samples: int = Field(default=1, ge=1, le=1, json_schema_extra=FIXED)
    factors: Literal["sampled"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="sampled", json_schema_extra=FIXED
    )
    sharing: Literal["expand"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="expand", json_schema_extra=FIXED
    )
    damping: float = Field(default=0.0, ge=0, le=0, json_schema_extra=FIXED)
    regulariser: Literal[True] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=True, json_schema_extra=FIXED
    )
    rtol: None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, json_schema_extra=FIXED
    )
    probes: int | None = Field(
        default=None, ge=1, description="random vectors; default 5: one for the bound, all for the counts"
    )
    method: Literal["auto", "dense", "lanczos"] = Field(
        default="auto", description="dense: all eigenvalues, exact; lanczos: extremes, a bound, counts; auto: by size"
    )
    steps: int = Field(default=80, ge=2, description="Lanczos steps of the vectors that serve the counts alone")
    epsilon: float = Field(
        default=1e-3, gt=0, lt=1, description="the bound is -ε‖H‖: a smaller one needs more steps, as 1/√ε"
    )
    delta: float = Field(default=0.01, gt=0, lt=1, description="probability with which the bound may fail")
    stationary_tol: float = Field(
        default=1e-4, gt=0, lt=1, description="the point is stationary if ‖∇J‖ is at most this times ‖H‖·‖w‖"
    )
    escape: str | None = Field(
        default=None, description="write the checkpoint moved along the negative curvature here, in the format read"
    )
    learning_rate: float | None = Field(
        default=None, gt=0, le=1e30, description="learning rate of gradient descent, for rates and stability"
    )
    optimizer_state: bool = Field(
        default=False, description="read Adam's state from the checkpoint, and give the preconditioned sharpness"
    )
    beta1: float | None = Field(
        default=None, ge=0, lt=1, description="Adam's β₁; default: as inject_hyperparams stored it, else 0.9"
    )
    beta2: float | None = Field(default=None, ge=0, lt=1, description="Adam's β₂; default: as stored, else 0.999")
    adam_epsilon: float | None = Field(default=None, ge=0, description="Adam's ε; default: as stored, else 1e-8")

    @property
    def adam_constants(self) -> dict[str, float | None]:
        """The given constants of Adam by Optax's names."""
        return {
            "b1": self.beta1,
            "b2": self.beta2,
            "eps": self.adam_epsilon,
            "learning_rate": self.learning_rate,
        }

    @property
    def max_probes(self) -> int:
        """Maximum number of random vectors."""
        return self.probes or 5


class Stationarity(Strict):
    """Two tests of stationarity that do not depend on the scales of J and w; both hold where ∇J = 0."""

    gradient: float = Field(ge=0, description="‖∇J‖ / (‖H‖·size of w)")
    gradient_tolerance: float
    weight_size: float = Field(gt=0, description="the larger of ‖w‖ and 0.01·√D")
    decrement_settled: bool = Field(description="false: the run ended before the decrement was known")
    decrement: float = Field(ge=0, description="½ ∇Jᵀ(|H| + τ‖H‖I)⁻¹∇J: how far J lies above where its model is flat")
    loss_above_least: float | None = Field(
        default=None, description="J less what it can never be below, given the targets; null where that is not known"
    )
    model_holds: bool | None = Field(
        default=None,
        description="false: the decrement is more than loss_above_least, which no step can reach; null where not known",
    )
    decrement_tolerance: float = Field(description="the larger of 1e-3·|J| and τ²‖H‖·(size of w)²")


class Certificate(Strict):
    """The certificate of negative curvature: vᵀHv of a unit vector in float64, and the loss along v."""

    curvature: float
    error: float = Field(ge=0, description="bound on its rounding error")
    second_difference: float | None = Field(
        description="(J(w + sv) − 2J(w) + J(w − sv))/s² at the s where it agrees best; null where no s resolves it"
    )


class Witness(Strict):
    """A step along ±v that lowers the loss, both losses evaluated in float64."""

    curvature: float
    step: float = Field(description="multiple of the unit vector v; the best that a line search found")
    loss_change: float = Field(description="J(w + step·v) − J(w)")


class Bound(Strict):
    """The bound −epsilon·norm on negative curvature, with its probability over the random start vector."""

    epsilon: float = Field(ge=0)
    probability: float = Field(gt=0, le=1)
    norm: float = Field(ge=0, description="an upper bound on ‖H‖, within the same probability")
    steps: int = Field(ge=0, description="Lanczos steps it rests on; 0 for dense")


class Steepest(Strict):
    """A decrease of the loss beyond what gradient and Hessian allow, due to a kink or a jump."""

    direction: str
    sense: Literal[-1, 1] = Field(description="of the unit vector")
    slope: float = Field(description="loss_change / step: of one side, in the direction's sense")
    step: float = Field(gt=0, description="the shortest at which it shows")
    loss_change: float = Field(description="J(w + sense·step·v) − J(w), in float64")
    allowed: float = Field(le=0, description="the largest change downwards that gradient and Hessian allow there")


class Probes(Strict):
    """The loss along both senses of some directions, in float64."""

    directions: int = Field(ge=1)
    steepest: Steepest | None = Field(description="null where the loss falls nowhere beyond what is allowed")


class Mode(Strict):
    """Gradient descent along one eigenvector, on the quadratic model."""

    eigenvalue: float
    residual: float = Field(ge=0)
    rate: float | None = Field(description="|1 − learning rate·λ|: the factor of a step; null without a learning rate")
    steps_to_halve: float | None = Field(description="null where the factor is 1 or more")


class GradientDescent(Strict):
    """Gradient descent on the quadratic model, along the top and the bottom eigenvectors."""

    learning_rate: float | None
    stable: bool | None = Field(description="learning rate < 2/λ_max; null if λ_max ≤ 0 or not converged")
    modes: list[Mode] = Field(description="descending by eigenvalue")


class LeftOut(Strict):
    """Entries of one array without a gradient beyond rounding in training."""

    name: str
    count: int = Field(ge=1, description="entries of the array that are left out")
    size: int = Field(ge=1, description="entries that it has")


class Adam(Strict):
    """The preconditioned sharpness: λ_max of P^(-1/2) H P^(-1/2) with Adam's preconditioner P."""

    count: int = Field(ge=0, description="steps that the state has seen")
    lambda_max: Eigenvalue = Field(description="of the block of all parameters but those of left_out")
    left_out: list[LeftOut] = Field(
        default_factory=list,
        description="√ν̂ is at most 100 eps of its root mean square over all parameters: P says nothing there",
    )
    lambda_max_of_all: Eigenvalue | None = Field(
        default=None, description="with the parameters of left_out; null where there are none"
    )
    learning_rate: float | None
    threshold: float | None = Field(
        description="(2 + 2β₁)/((1 − β₁)·learning rate), 38/lr for β₁ = 0.9: above it Adam's momentum is unstable"
    )
    stable: bool | None


class SaddleResult(Strict):
    """The classification of the point, and its evidence."""

    dim: int = Field(ge=1)
    method: Literal["dense", "lanczos"] = Field(description="the one used")
    classification: Classification
    gradient_norm: float = Field(ge=0)
    stationary: bool | None = Field(description="null where the run ended before either could be said")
    stationarity: Stationarity
    lambda_min: Eigenvalue
    lambda_max: Eigenvalue
    tolerance: float = Field(ge=0, description="an eigenvalue counts as zero up to here")
    noise_floor: float = Field(ge=0, description="below it an eigenvalue in this arithmetic has no sign")
    negative_curvature_certified: bool
    certificate: Certificate | None = Field(description="null where the smallest eigenvalue found is not negative")
    index: Bounded = Field(description="how many eigenvalues are below −tolerance")
    null_space: Bounded = Field(description="how many eigenvalues are within ±tolerance")
    witness: Witness | None = Field(description="null where no step along ±v lowers the loss, or none was tried")
    probes: Probes | None = Field(
        default=None, description="asked before a point is called a minimum, or degenerate; null where it is neither"
    )
    bound: Bound | None = Field(description="null where curvature below it shows, or the run ended too early")
    max_stable_learning_rate: float | None = Field(description="2/λ_max; null if λ_max ≤ 0 or not converged")
    max_stable_learning_rate_interval: tuple[float, float | None] | None = Field(
        default=None, description="2/λ_max over the interval of λ_max, with no upper end (null) where that reaches 0"
    )
    condition_number: float | None = Field(
        description="λ_max over the smallest resolvable eigenvalue > 0; null if λ_max ≤ 0"
    )
    condition_number_exact: bool = Field(
        description="false: a lower bound, from the smallest eigenvalue that a residual places"
    )
    gradient_descent: GradientDescent
    adam: Adam | None = Field(default=None, description="with --optimizer-state; null before Adam's first step")
    escape: str | None = Field(default=None, description="the checkpoint written, at w + witness.step·v")


class SaddleReport(Report[SaddleSettings, SaddleResult]):
    """The report of `curv saddle`."""

    schema_name: Literal["curv.saddle/1"] = Field(default="curv.saddle/1", alias="schema")
