"""`curv influence`: settings and result."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from curvcli.schema.base import Strict, array_shape, same_shape
from curvcli.schema.estimate import Eigenvalue, Estimate
from curvcli.schema.matrices import taken_by
from curvcli.schema.report import Report
from curvcli.schema.settings import FIXED, AnalysisSettings
from curvcli.schema.verification import Verification

Mode = Literal["label-perturb", "remove", "input-perturb", "hyper"]
Measure = Literal["loss", "output", "margin"]
SolverName = Literal["cg", "minres", "neumann", "dense", "kfac", "ekfac"]
SolveStatus = Literal["converged", "least-squares", "not-converged", "indefinite", "approximate"]
if TYPE_CHECKING:
    InfluenceMatrix = str
else:
    # The default is the first choice.
    InfluenceMatrix = Literal[tuple(sorted(taken_by("influence"), key=lambda name: name != "ggn"))]

HYPER = ("l2", "class-weights", "loss:", "regulariser:")


def _rows(text: str) -> str:
    match = re.fullmatch(r"(\d*):(\d*)|(\d+)", text)
    if match is None or (match[1] and match[2] and int(match[1]) >= int(match[2])):
        raise ValueError("write rows as FROM:TO, the last one not included, such as 0:10, or one number")
    return text


def _hyper(text: str) -> str:
    if not any(text == name or (name.endswith(":") and text.startswith(name) and text != name) for name in HYPER):
        raise ValueError("known are l2, class-weights, loss:TARGET and regulariser:TARGET")
    return text


def _array(value: Any) -> Any:
    if value is not None:
        array_shape(value)
    return value


def _array_or_path(value: Any) -> Any:
    return value if isinstance(value, str) else _array(value)


Numbers = Annotated[Any, AfterValidator(_array)]
"""A number, nested lists of numbers that are an array, or null."""

NumbersOrPath = Annotated[Any, AfterValidator(_array_or_path)]


class InfluenceSettings(AnalysisSettings):
    """What `curv influence` can be told."""

    use: ClassVar[str] = "influence"

    # Instances do not change, so a narrower type is a subtype.
    label_perturb: bool = Field(default=False, description="the response to each example's label")
    remove: bool = Field(default=False, description="the response to each example being taken away")
    input_perturb: bool = Field(default=False, description="the response to each example's input")
    hyper: list[Annotated[str, AfterValidator(_hyper)]] = Field(
        default_factory=list,
        description="the response to l2, class-weights, loss:TARGET with fn(outputs, targets, theta), or "
        "regulariser:TARGET with fn(params, theta) (repeatable)",
    )
    queries: Annotated[str, AfterValidator(_rows)] | None = Field(
        default=None,
        description="FROM:TO, rows of the test split if there is one, else of the data; without: self-ranking",
    )
    measure: Measure = Field(default="loss", description="what is asked of a query: its loss, its outputs, its margin")
    matrix: InfluenceMatrix = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="ggn", description="the curvature C whose inverse is applied"
    )
    damping: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(  # pyright: ignore
        default="auto", description="λ; λI is added to C; auto: 0 where the regulariser is enough, else by C's mean"
    )
    rtol: None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, json_schema_extra=FIXED
    )
    solver: Literal["auto"] | SolverName = Field(
        default="auto",
        description="block conjugate gradients, minres, neumann (LiSSA); dense: exact; kfac, ekfac: their "
        "inverse in place of C's; auto: by size",
    )
    precondition: Literal["none", "diagonal", "kfac", "ekfac"] = Field(default="none", description="of cg")
    factors_from: str | None = Field(
        default=None, description="factors of kfac or ekfac that curv step --save-factors wrote, not new ones"
    )
    probes: int | None = Field(default=None, ge=1, description="products for each solve, at most (1000)")
    tol: float = Field(default=1e-4, gt=0, description="residual of a solve relative to its right-hand side")
    samples: int = Field(
        default=256, ge=4, description="random solves for --self and --leverage, where C is not written out"
    )
    top: int = Field(default=10, ge=1, description="examples listed at each end of a ranking")
    self_: bool = Field(default=False, description="self-influence of every example, beside the queries")
    leverage: bool = Field(default=False, description="removal scores with the correction 1/(1 - h)")
    group: str | None = Field(
        default=None, description="groups to remove as a whole: .npy, .npz, or text, one label an example"
    )
    perturb: str | None = Field(
        default=None,
        description="a change of labels, inputs or weights (.npy, .npz): how weights and queries respond to it",
    )
    per_iteration: bool = Field(default=False, description="with --perturb: the response after each iteration of cg")
    damping_sweep: bool = Field(default=False, description="how the ranking moves with the damping")
    verify: int | None = Field(default=None, ge=3, description="refit with K examples changed, and compare")
    scores: str | None = Field(default=None, description="write all scores here: FILE.npz, .safetensors or .parquet")

    @model_validator(mode="after")
    def _one_mode(self) -> InfluenceSettings:
        asked = [self.label_perturb, self.remove, self.input_perturb, bool(self.hyper)]
        if sum(asked) != 1:
            raise ValueError("give one of --label-perturb, --remove, --input-perturb, --hyper")
        if self.perturb is not None and self.hyper:
            raise ValueError("--perturb goes with --label-perturb, --remove or --input-perturb")
        if self.per_iteration and (self.perturb is None or self.solver not in ("auto", "cg")):
            raise ValueError("--per-iteration goes with --perturb and --solver cg")
        if (self.group is not None or self.leverage) and not self.remove:
            raise ValueError("--group and --leverage go with --remove")
        if self.factors_from is not None and self.factored is None:
            raise ValueError("--factors-from goes with kfac or ekfac as --solver or --precondition")
        if self.group is not None and (self.queries is None or self.perturb is not None):
            raise ValueError("--group goes with --queries")
        responding = bool(self.hyper) or self.perturb is not None
        if responding and (self.self_ or self.verify or self.damping_sweep or self.leverage):
            raise ValueError("--self, --leverage, --verify and --damping-sweep do not go with --perturb and --hyper")
        if self.leverage and self.queries is None and self.measure != "loss":
            raise ValueError("--leverage without --queries corrects each example's own loss: leave out --measure")
        if self.damping_sweep and self.queries is None:
            raise ValueError("--damping-sweep goes with --queries")
        return self

    @property
    def rests_on_examples(self) -> str:
        """Influence is that of each example's own loss."""
        return "influence"

    @property
    def mode(self) -> Mode:
        """The perturbation."""
        if self.hyper:
            return "hyper"
        return "label-perturb" if self.label_perturb else "remove" if self.remove else "input-perturb"

    @property
    def factored(self) -> Literal["kfac", "ekfac"] | None:
        """The factors that are asked for, as solver or as preconditioner."""
        return next((one for one in (self.solver, self.precondition) if one == "kfac" or one == "ekfac"), None)

    @property
    def max_probes(self) -> int:
        """Products for each solve, at most."""
        return self.probes or 1000


class Target(Strict):
    """What is asked about."""

    measure: Measure
    source: str = Field(description="`test`, the test split; `data`, the examples of the problem")
    rows: tuple[int, int] = Field(description="first row, and the one after the last")
    outputs: int | None = Field(default=None, description="outputs of a query, for the measure `output`")


class Entry(Strict):
    """One example in a ranking."""

    example: int = Field(ge=0, description="row of the data")
    score: float = Field(
        description="remove: the score; label-perturb with classes: of the label moved from its class to another; "
        "else the norm of the example's scores"
    )
    stderr: float | None = Field(default=None, ge=0, description="of sampled self-influence")
    interval: tuple[float, float] | None = Field(
        default=None, description="[low, high] of sampled self-influence, at the confidence of the settings"
    )
    label: int | None = Field(default=None, description="label-perturb: the example's class")
    towards: int | None = Field(default=None, description="label-perturb: the class that its label is moved to")
    token: int | None = Field(default=None, ge=0, description="label-perturb: which of its tokens' labels")


class Ranking(Strict):
    """The examples that matter most to one query, or in all."""

    query: int | None = Field(description="row of the query; null for self-ranking")
    output: int | None = Field(default=None, description="which output of the query")
    caution: str | None = Field(
        default=None, description="why these scores are no prediction of what training would do; null at a minimum"
    )
    highest: list[Entry]
    lowest: list[Entry] = Field(description="most negative first; empty where scores have no sign")


class InfluenceSolve(Strict):
    """One linear system (C + λI) s = b."""

    of: str = Field(description="`query 3`, `query 3 output 1`, `gradient`, `samples`, `factorisation`, …")
    status: SolveStatus = Field(
        description="indefinite: a direction of negative curvature was met, and the solution is none; approximate: the "
        "inverse of factors was applied, and the residual says how far that is from C's"
    )
    residual: float = Field(ge=0, description="‖b − (C + λI) s‖ / ‖b‖, measured; the largest of several")
    iterations: int = Field(ge=0)
    lowest_curvature: float | None = Field(description="smallest met: λ_min of C + λI is no larger")


class DampingChoice(Strict):
    """How λ was chosen."""

    chosen: Literal["given", "auto"]
    reason: str
    lambda_max: float = Field(description="of C without λ: the largest Ritz value of a short Lanczos process")
    lambda_min: float = Field(description="the smallest")
    mean: float = Field(description="tr C / D, from two random vectors")


class Validity(Strict):
    """Whether a first-order response means anything here."""

    verdict: Literal["minimum", "not-at-minimum", "negative-curvature", "unknown"]
    words: str
    gradient_norm: float = Field(ge=0)
    loss_above_least: float | None = Field(
        default=None, description="J less what it can never be below, given the targets; null where that is not known"
    )
    model_holds: bool | None = Field(
        default=None,
        description="false: the decrement is more than loss_above_least, which no step can reach; null where not known",
    )
    decrement: float | None = Field(description="½ ∇Jᵀ(C + λI)⁻¹∇J: J less the minimum of its damped quadratic")
    distance: float | None = Field(description="‖(C + λI)⁻¹∇J‖ / ‖w‖: how far that minimum is")
    lambda_min: Eigenvalue = Field(description="of the Hessian, damping left out: the smallest found")


class Baseline(Strict):
    """A ranking that costs no solve, beside that by influence."""

    name: Literal["influence", "loss", "gradient-norm", "gradient-dot"]
    spearman: float | None = Field(
        ge=-1, le=1, description="rank correlation with influence; over queries the median; null where one is constant"
    )
    auc: Estimate | None = Field(
        default=None, description="how well it finds the examples that are not `clean`, where the data say which are"
    )
    top: list[int] = Field(description="examples, highest first; for gradient-dot those of the first query")


class SelfInfluence(Strict):
    """How each example's own measure responds to its own perturbation."""

    method: Literal["exact", "sampled"]
    samples: int = Field(ge=0, description="random solves; 0 where exact")
    relative_stderr: float = Field(ge=0, description="median over examples of stderr / |score|; 0 where exact")
    total_leverage: Estimate | None = Field(
        description="Σ_n tr(H_n h_n), h_n = J_n (C + λI)⁻¹ J_nᵀ/M: the effective number of parameters; null where C is "
        "the Hessian, or a regulariser has a curvature of its own"
    )


class Leverage(Strict):
    """The correction of removal scores for the removed example's own pull."""

    method: Literal["exact", "sampled"]
    largest: float = Field(description="largest eigenvalue of any H_n h_n: 1 would be an example fitted by itself")
    median: float
    changed: float = Field(ge=0, description="median over examples of |corrected − plain| / |plain|")
    capped: int = Field(ge=0, description="examples whose correction was cut off: h_n came too near 1")


class GroupScore(Strict):
    """A group of examples removed as a whole."""

    name: str
    size: int = Field(ge=1)
    first_order: list[float] = Field(min_length=1, description="by query: the sum of the examples' scores")
    second_order: list[float] = Field(description="with the curvature that the group takes along, to second order")
    newton: list[float] = Field(description="with all of it: a step of Newton's method without the group")
    disagree: bool = Field(description="whether the first order is off Newton's by more than a fifth of it")
    status: SolveStatus = Field(description="of Newton's system")

    _shape = same_shape("first_order", "second_order", "newton")


class SweepPoint(Strict):
    """The ranking at another damping."""

    damping: float
    spearman: float | None = Field(description="with the ranking at the damping chosen; median over queries")
    top_overlap: float = Field(ge=0, le=1, description="share of the top examples that stay on top; mean over queries")
    status: SolveStatus = Field(description="the worst of its solves")


class Response(Strict):
    """What one perturbation does to weights and queries, to first order."""

    name: str = Field(description="`perturb`, `l2`, `class-weights 3`, …")
    norm: float = Field(ge=0, description="‖dw‖")
    layers: dict[str, float] = Field(description="‖dw‖ by layer")
    change: Numbers = Field(description="d(measure) of each query, [Q] or [Q][O]; null where it is only in the file")
    iterations: Numbers = Field(default=None, description="the same after 0, 1, 2, … iterations, with --per-iteration")


class InfluenceResult(Strict):
    """Scores, what they rest on, and how far they can be trusted."""

    mode: Mode
    target: Target | None = Field(description="null for self-ranking")
    units: str
    sign: str = Field(description="what a positive score says")
    scores: NumbersOrPath = Field(
        default=None,
        description="remove: [Q][N], or [Q][O][N]; label-perturb: [Q][N][C]; input-perturb: [Q][N][…]; self-ranking "
        "without Q; inline up to 10,000 numbers, else the path of the file, else null",
    )
    shape: list[int] | None = Field(default=None, description="of the scores; null without any")
    axes: list[str] = Field(default_factory=list, description="what the axes of the scores count")
    top: list[Ranking] = Field(default_factory=list)
    solver: SolverName
    solves: list[InfluenceSolve]
    damping: float = Field(ge=0, description="λ")
    damping_choice: DampingChoice
    validity: Validity
    baselines: list[Baseline] = Field(default_factory=list)
    self_influence: SelfInfluence | None = None
    leverage: Leverage | None = None
    groups: list[GroupScore] | None = None
    sweep: list[SweepPoint] | None = None
    responses: list[Response] | None = None
    verification: Verification | None = None

    @model_validator(mode="after")
    def _shaped(self) -> InfluenceResult:
        if isinstance(self.scores, list) and list(array_shape(self.scores)) != self.shape:
            raise ValueError("scores are not of the shape")
        return self


class InfluenceReport(Report[InfluenceSettings, InfluenceResult]):
    """The report of `curv influence`."""

    schema_name: Literal["curv.influence/1"] = Field(default="curv.influence/1", alias="schema")
