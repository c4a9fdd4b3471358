"""`curv compare`: settings and result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from curvcli.schema.base import Strict
from curvcli.schema.estimate import Bounded, Eigenvalue, Estimate
from curvcli.schema.matrices import MATRICES, having, refused, taken_by
from curvcli.schema.report import Report
from curvcli.schema.settings import FIXED, AnalysisSettings

if TYPE_CHECKING:
    ComparedName = str
else:
    ComparedName = Literal[taken_by("compare")]

DEFAULT = having("compare", "by default")
"""What is compared where nothing is asked for."""

LaplaceName = Literal["kfac", "ekfac", "ggn", "diagonal"]


class CompareSettings(AnalysisSettings):
    """What `curv compare` can be told."""

    # Instances do not change, so a narrower type is a subtype.
    matrix: Literal["hessian"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="hessian", json_schema_extra=FIXED
    )
    matrices: list[ComparedName] = Field(
        default_factory=list,
        description=f"names with commas between them, of {', '.join(taken_by('compare'))}; default: "
        f"{', '.join(DEFAULT)}, as far as the loss permits",
    )
    k: int = Field(default=5, ge=1, description="top eigenpairs of each matrix")
    method: Literal["auto", "dense", "sampled"] = Field(
        default="auto",
        description="dense: every matrix written out, exact; sampled: common random probes beside the top eigenspaces; "
        "auto: dense up to 1500 parameters",
    )
    probes: int | None = Field(
        default=None, ge=4, description="common random vectors, a product each and matrix; default 32, with rtol at "
        "most 1024",
    )  # fmt: skip
    rtol: float | None = Field(
        default=None, gt=0, lt=1, description="draw probes until every relative distance is known to ± this"
    )
    tol: float = Field(
        default=1e-5, gt=0, description="residual of an eigenpair relative to its matrix, of a step to the gradient"
    )
    cg_steps: int = Field(default=500, ge=1, description="iterations of a damped step's solve, at most")
    damping: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(  # pyright: ignore
        default="auto", description="λ of the steps -(A + λI)⁻¹∇J; auto: a tenth of the mean eigenvalue of the ggn"
    )
    factors: Literal["auto", "exact", "sampled", "empirical"] = Field(  # pyright: ignore
        default="auto",
        description="of kfac, ekfac, diagonal: from all columns of the output Hessians' roots, from labels drawn (as "
        "many as --mc-samples), or from the observed labels; auto: exact up to 32 outputs an example, else sampled",
    )
    laplace: LaplaceName | None = Field(
        default=None,
        description="log evidence and predictive variance of Laplace's approximation with the curvature kfac, ekfac, "
        "ggn or diagonal",
    )
    prior_precision: float | None = Field(
        default=None, gt=0, description="of the weights, for --laplace; default M·l2, which the loss says"
    )
    samples: int = Field(
        default=64, ge=4, description="weights drawn for --laplace where its matrix is not written out"
    )
    arrays: str | None = Field(
        default=None, description="with --laplace: write each output's variance here: FILE.npz or .safetensors"
    )

    @field_validator("matrices", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """`ggn,kfac` as a list of names."""
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        return [refused(name, "compare") for name in names] if isinstance(names, list | tuple) else names

    @model_validator(mode="after")
    def _together(self) -> CompareSettings:
        if self.matrices and len(set(self.matrices)) < max(len(self.matrices), 2):
            raise ValueError("--matrices takes two names or more, each of them once")
        if self.laplace is None and (self.prior_precision is not None or self.arrays is not None):
            raise ValueError("--prior-precision and --arrays go with --laplace")
        return self

    @property
    def rests_on_examples(self) -> str:
        """Laplace's approximation, or the first of the matrices asked for."""
        if self.laplace is not None:
            return "--laplace"
        return next((f"the matrix {name}" for name in self.matrices if MATRICES[name].by_examples), "")

    @property
    def max_probes(self) -> int:
        """Common random vectors, at most."""
        return self.probes or (32 if self.rtol is None else 1024)


class Equal(Strict):
    """A matrix that was asked for and is another one."""

    name: ComparedName
    to: ComparedName
    reason: str


class Distance(Strict):
    """How far two matrices are apart."""

    a: ComparedName
    b: ComparedName
    absolute: Estimate = Field(description="‖A − B‖_F")
    relative_to_a: Estimate | None = Field(description="‖A − B‖_F/‖A‖_F; null for A = 0")
    relative_to_b: Estimate | None = Field(description="‖A − B‖_F/‖B‖_F; null for B = 0")
    alignment: Estimate | None = Field(
        description="⟨A, B⟩_F/(‖A‖_F ‖B‖_F), the cosine of their angle: 1 where they differ by a positive factor; null "
        "where one is 0"
    )


class Overlap(Strict):
    """How far the top eigenspaces of two matrices agree."""

    a: ComparedName
    b: ComparedName
    subspaces: list[float | None] = Field(
        description="‖U_AᵀU_B‖_F²/j for the top j = 1, …, k eigenvectors of each, the mean squared cosine of angles "
        "between their spans; null where one of the spans is not determined: eigenvalue j is too near to the next one"
    )


class StepSolve(Strict):
    """What became of (A + ∇²R + λI) δ = −∇J."""

    solver: Literal["closed form", "cg", "minres"]
    status: Literal["converged", "least-squares", "not-converged", "indefinite"]
    residual: float = Field(ge=0, description="‖∇J + (A + λI) δ‖/‖∇J‖")
    iterations: int = Field(ge=0)
    lowest_curvature: float = Field(description="the smallest found of A + λI; below 0 no minimum is sought")


class Step(Strict):
    """The damped step of one matrix."""

    name: ComparedName
    norm: float = Field(ge=0)
    gradient_cosine: float = Field(
        ge=-1, le=1, description="of the angle between the step and −∇J: below 0 it goes uphill"
    )
    solve: StepSolve


class StepPair(Strict):
    """Two steps."""

    a: ComparedName
    b: ComparedName
    cosine: float = Field(ge=-1, le=1)
    norm_ratio: float = Field(ge=0, description="‖δ_A‖/‖δ_B‖")


class StepAngles(Strict):
    """Where each matrix would go from here, δ = −(A + ∇²R + λI)⁻¹∇J."""

    damping: float = Field(ge=0, description="λ, the same for all")
    reason: str
    gradient_norm: float = Field(gt=0)
    steps: list[Step]
    pairs: list[StepPair] = Field(description="of steps that have a length")


class Predictive(Strict):
    """Variances of the outputs that come from the weights' posterior, by J_n P⁻¹ J_nᵀ."""

    mean: Estimate = Field(description="over all outputs of the examples (tokens) with any weight, each counted once")
    smallest: float
    median: float
    ninth_decile: float
    largest: float
    relative_stderr: float = Field(ge=0, description="of a single output's variance, √(2/samples); 0 where exact")
    samples: int = Field(ge=0, description="weights drawn; 0 where exact")
    confidence: tuple[float, float] | None = Field(
        description="mean largest class probability at the weights, and with the variance by MacKay's probit "
        "correction; null where the loss has no classes"
    )
    path: str | None = Field(description="of the file that has all variances")


class Laplace(Strict):
    """Laplace's approximation of the posterior: normal around the weights, with precision P = M·C + τI."""

    matrix: LaplaceName = Field(description="C, without the regulariser")
    method: Literal["dense", "outputs", "factors", "sampled"]
    prior_precision: float = Field(gt=0, description="τ")
    prior: Literal["of the loss", "given"] = Field(description="M·l2, or --prior-precision")
    log_evidence: Estimate = Field(
        description="log p(data), in nats: log-likelihood + log prior + ½D log 2π − ½ log det P"
    )
    log_likelihood: float = Field(description="of the examples used, its normalising constants included")
    log_prior: float
    log_det: Estimate = Field(description="log det P")
    decrement: float = Field(
        ge=0,
        description="½ gᵀP⁻¹g in nats, g the gradient of −log posterior: how far the peak of its quadratic model lies "
        "above the weights; 0 at a MAP estimate, which the evidence is meant for",
    )
    effective_parameters: Bounded = Field(description="Σ M c/(M c + τ) over the eigenvalues c of C")
    predictive: Predictive


class CompareResult(Strict):
    """The matrices of one point side by side."""

    dim: int = Field(ge=1)
    method: Literal["dense", "sampled"] = Field(description="the one used")
    reason: str
    matrices: list[ComparedName] = Field(min_length=1, description="those compared, in the order of all that follows")
    equal: list[Equal] = Field(description="those asked for that are another one, and not computed twice")
    left_out: dict[str, str] = Field(description="why a matrix of the default list has no meaning for this loss")
    known_vectors: int = Field(ge=0, description="top eigenvectors whose span counts exactly; 0 for dense")
    distances: list[Distance] = Field(description="of all pairs, the earlier one is a")
    traces: dict[str, Estimate]
    frobenius_norms: dict[str, Estimate]
    top_eigenvalues: dict[str, list[Eigenvalue]] = Field(description="descending")
    overlaps: list[Overlap]
    step_angles: StepAngles | None = Field(description="null where ∇J = 0: there is no step")
    laplace: Laplace | None = None

    @model_validator(mode="after")
    def _same_names(self) -> CompareResult:
        if self.traces.keys() != self.frobenius_norms.keys():
            raise ValueError("traces, frobenius_norms are of different matrices")
        return self


class CompareReport(Report[CompareSettings, CompareResult]):
    """The report of `curv compare`."""

    schema_name: Literal["curv.compare/1"] = Field(default="curv.compare/1", alias="schema")
