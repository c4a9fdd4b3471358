"""Settings, result and report of `curv step`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from curvcli.schema.base import Strict
from curvcli.schema.matrices import FACTORED, MATRICES
from curvcli.schema.report import Report
from curvcli.schema.settings import FIXED, AnalysisSettings, MatrixName

StepMethod = Literal[
    "newton", "gauss-newton", "natural", "kfac", "ekfac", "hessian-free", "bfgs", "covariance"
]  # fmt: skip
MATRIX_OF: dict[str, MatrixName] = {
    "newton": "hessian", "gauss-newton": "ggn", "natural": "fisher", "kfac": "kfac", "ekfac": "ekfac",
    "hessian-free": "ggn", "bfgs": "hessian", "covariance": "gradient-covariance",
}  # fmt: skip
"""The matrix that each method inverts, or approximates."""
MODEL_OF: dict[str, MatrixName] = {**MATRIX_OF, "kfac": "ggn", "ekfac": "ggn", "covariance": "ggn"}
"""The exact matrix of the quadratic model Q with which each method's step is compared."""
ITERATIVE = ("newton", "gauss-newton", "natural", "hessian-free", "covariance")
"""Methods that solve a system; the others have their inverse in closed form."""
PREVIOUS = "previous"

SolveStatus = Literal[
    "converged", "least-squares", "relative-progress", "boundary", "negative-curvature", "flat", "not-converged",
    "stopped", "approximate",
]  # fmt: skip


class StepSettings(AnalysisSettings):
    """Settings of `curv step`."""

    # Instances do not change, so a narrower type is a subtype.
    method: StepMethod = Field(default="gauss-newton", description="whose step")
    matrix: MatrixName = Field(default="ggn", json_schema_extra=FIXED, description="fixed by the method")
    damping: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(  # pyright: ignore
        default="auto", description="λ; auto: tried larger or smaller by the Levenberg-Marquardt rule"
    )
    cg_steps: int | None = Field(
        default=None,
        ge=1,
        description="products of a solve, at most (1000; hessian-free 250); given, nothing is written out",
    )
    precondition: Literal["none", "diagonal", "kfac", "ekfac"] = Field(
        default="none", description="preconditioner of conjugate gradients"
    )
    radius: float | None = Field(
        default=None, gt=0, description="radius of a trust region (default: ‖w‖ along negative curvature)"
    )
    momentum: str | None = Field(
        default=None,
        min_length=1,
        description="file of the previous step (as --arrays writes it), or with --steps `previous`: the step is the "
        "best of the plane of both; hessian-free starts from it",
    )
    rescale: bool = Field(
        default=True, description="whether steps that do not minimise Q are multiplied by its exact step size"
    )
    factored_damping: bool = Field(
        default=False, description="kfac: λ as a part of each factor, in place of exactly in their eigenbasis"
    )
    history: int = Field(default=10, ge=1, description="pairs that bfgs remembers")
    steps: int = Field(default=1, ge=1, description="steps that are really made; the first is the one shown")
    update_every: int = Field(default=1, ge=1, description="steps between updates of kfac's factors and inverses")
    save: str | None = Field(default=None, description="write the moved checkpoint here, in the format read")
    arrays: str | None = Field(default=None, description="write the step, by path: FILE.npz or .safetensors")
    save_factors: str | None = Field(default=None, description="write the factors of kfac: FILE.npz or .safetensors")
    factors_from: str | None = Field(default=None, description="factors that --save-factors wrote, not new ones")
    stale_factors: bool = Field(default=False, description="with --factors-from: also those of other weights")
    probes: None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, json_schema_extra=FIXED
    )
    tol: float = Field(default=1e-6, gt=0, description="residual of a solve relative to the gradient")
    rtol: None = Field(default=None, json_schema_extra=FIXED)  # pyright: ignore[reportIncompatibleVariableOverride]
    confidence: float = Field(default=0.95, ge=0.95, le=0.95, json_schema_extra=FIXED)

    @model_validator(mode="before")
    @classmethod
    def _with_matrix(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        method = values.get("method", "gauss-newton")
        fixed = MATRIX_OF.get(method)
        if fixed is None:
            return values
        if values.get("matrix", fixed) != fixed:
            raise ValueError(f"--matrix is fixed by the method: {method} takes {fixed}")
        return {**values, "matrix": fixed}

    @property
    def rests_on_examples(self) -> str:
        """The method, or its preconditioner, if it uses the gradients of single examples."""
        if self.precondition != "none":
            return f"--precondition {self.precondition}"
        return f"--method {self.method}" if MATRICES[self.matrix].by_examples else ""

    @model_validator(mode="after")
    def _together(self) -> StepSettings:
        factored = self.method in FACTORED
        if self.precondition != "none" and self.method not in ITERATIVE[:-1]:
            raise ValueError("--precondition goes with newton, gauss-newton, natural and hessian-free")
        if self.cg_steps is not None and self.method not in ITERATIVE:
            raise ValueError(f"--cg-steps: {self.method} solves nothing by conjugate gradients")
        if (self.factored_damping or self.save_factors or self.factors_from or self.update_every > 1) and not factored:
            raise ValueError(
                "--factored-damping, --update-every, --save-factors and --factors-from go with kfac and ekfac"
            )
        if self.factored_damping and self.method != "kfac":
            raise ValueError("--factored-damping goes with kfac: ekfac's eigenvalues are no products")
        if self.stale_factors and not self.factors_from:
            raise ValueError("--stale-factors goes with --factors-from")
        if self.momentum == PREVIOUS and self.steps == 1:
            raise ValueError("--momentum previous goes with --steps; give the file of a step")
        return self

    @property
    def model(self) -> MatrixName:
        """The matrix of the quadratic model Q."""
        return MODEL_OF[self.method]

    @property
    def most_products(self) -> int:
        """Maximum number of products of a solve."""
        return self.cg_steps or (250 if self.method == "hessian-free" else 1000)

    @property
    def max_probes(self) -> int:
        """Maximum number of products of a step, for the choice of the way they are computed."""
        return min(self.most_products, 100) if self.method in ITERATIVE else 2


class Solve(Strict):
    """The solution of the linear system of the step."""

    solver: Literal["dense", "cg", "factors", "bfgs"]
    status: SolveStatus = Field(description="approximate: of an inverse that is not the model's own")
    residual: float | None = Field(
        ge=0, description="‖(C + λI)δ + ∇J‖ / ‖∇J‖ with the method's own matrix C; null where that is an approximation"
    )
    iterations: int = Field(ge=0)


class CgStep(Strict):
    """One iteration of conjugate gradients."""

    iteration: int = Field(ge=0)
    quadratic: float = Field(description="Q - Q(0), with damping")
    residual: float = Field(ge=0, description="‖(C + λI)δ + ∇J‖ / ‖∇J‖")
    loss: float | None = Field(default=None, description="J, where backtracking evaluated it")


class NegativeCurvature(Strict):
    """A direction of negative curvature found by conjugate gradients."""

    curvature: float = Field(description="dᵀ(C + λI)d of the unit vector d")
    used: bool = Field(description="whether the step goes along it; false where the loss does not fall there")
    length: float = Field(ge=0, description="of the step's part along it, the best of a line search on J")


class FunctionChange(Strict):
    """The change of the outputs: the step in function space."""

    rms: float = Field(ge=0, description="root of the mean of ‖Δz‖² over examples (tokens), weighted as in the loss")
    kl: float | None = Field(
        ge=0, description="the same mean of the KL divergence from the old to the new; null without a likelihood"
    )


class WeightChange(Strict):
    """The change of the weights."""

    norm: float = Field(ge=0)
    relative: float | None = Field(ge=0, description="‖δ‖ / ‖w‖")


class Momentum(Strict):
    """The coefficients of δ = step·r + previous·δ_prev, the minimum of the damped Q on the plane of both."""

    step: float
    previous: float


class Judged(Strict):
    """A step compared with its quadratic model."""

    damping: float = Field(ge=0)
    step_norm: float = Field(ge=0)
    predicted_decrease: float = Field(description="Q(0) - Q(δ), Q with the exact matrix `model`, undamped")
    predicted_decrease_damped: float = Field(description="the same with ½λ‖δ‖² in Q")
    actual_decrease: float | None = Field(description="J(w) - J(w + δ); null where J is not finite")
    reduction_ratio: float | None = Field(description="actual/predicted; null where it says nothing: see ratio_reason")
    reduction_ratio_damped: float | None
    ratio_reason: str | None = Field(description="why there is no ratio")


class Passes(Strict):
    """The cost of the step."""

    forward: int = Field(ge=0, description="passes that evaluate J or the outputs")
    gradient: int = Field(ge=0)
    products: int = Field(ge=0, description="of Gauss-Newton kind, or of the Hessian")
    factors: int = Field(ge=0, description="cotangents taken back for Kronecker factors, or a diagonal")
    in_gradients: float = Field(
        ge=0,
        description="all of it, by matrix products of a dense layer: forward 1, gradient 3, Gauss-Newton 5, Hessian 9, "
        "factors 4; in units of a gradient",
    )


class StepRecord(Judged):
    """A step of several that were made."""

    step: int = Field(ge=1)
    loss: float = Field(description="J before it")
    accepted: bool = Field(description="false: J did not fall under --damping auto, and the weights stay")
    passes: float = Field(ge=0, description="in gradients")


class StepResult(Judged):
    """A step, its predicted and its actual effect."""

    dim: int = Field(ge=1)
    method: StepMethod
    model: MatrixName = Field(description="the matrix in Q")
    gradient_norm: float = Field(ge=0)
    gradient_cosine: float | None = Field(description="between δ and -∇J")
    noise: float = Field(ge=0, description="differences of J up to here are rounding")
    next_damping: float = Field(ge=0, description="what the Levenberg-Marquardt rule takes next")
    step_size: float | None = Field(
        description="α = -∇Jᵀr / rᵀ(C + λI)r of the method's own step r (without λ for covariance); null where the "
        "model does not curve upwards along it"
    )
    rescaled: bool = Field(description="whether δ is α r")
    momentum: Momentum | None
    function_change: FunctionChange | None = Field(description="null where outputs are not finite")
    weight_change: WeightChange
    trials: list[Judged] = Field(description="with --damping auto: the steps that were tried")
    cg: list[CgStep]
    negative_curvature: NegativeCurvature | None
    solve: Solve
    steps: list[StepRecord] = Field(description="with --steps: those made, the first included")
    final_loss: float | None = Field(description="J after them, or after the step; null where it is not finite")
    passes: Passes
    saved: str | None = Field(default=None, description="the checkpoint written")


class StepReport(Report[StepSettings, StepResult]):
    """The report of `curv step`."""

    schema_name: Literal["curv.step/1"] = Field(default="curv.step/1", alias="schema")
