"""Lines through the weights: the options `--along` and `--range`, and the results common to all directions."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from curvcli.schema.base import Strict
from curvcli.schema.estimate import Eigenvalue
from curvcli.schema.settings import AnalysisSettings

ARGUMENTS = {
    "gradient": None,
    "newton": None,
    "random": None,
    "filter-normalized": None,
    "eigenvector": "K",
    "checkpoint": "PATH",
    "array": "FILE",
    "tangent": "TARGET",
}
"""Kinds of directions, and their argument after the colon."""

FROM_FILES = ("checkpoint", "array", "tangent")
"""Kinds of directions that come from outside the problem."""

RANGES = {
    "checkpoint": (-0.5, 1.5),
    "newton": (-0.5, 1.5),
    "filter-normalized": (-1.0, 1.0),
    "array": (-1.0, 1.0),
    "tangent": (-1.0, 1.0),
}
"""Default ranges; directions without a natural length have a range by their curvature."""


BatchStats = Literal["fixed", "interpolate", "recompute"]

BATCH_STATS: dict[str | None, str] = {
    "fixed": "held at this checkpoint's",
    "interpolate": "between both checkpoints'",
    "recompute": "recomputed from the data at each point",
}
"""Descriptions of the statistics of batch normalisation along a line."""


FARTHEST = 1e30
"""Maximum multiple of a vector; the largest float32 is 3e38."""


class Along(NamedTuple):
    """A direction as given by `--along`."""

    kind: str
    argument: str

    @classmethod
    def parse(cls, text: str) -> Along:
        """Parse a direction.

        Raises
        ------
        ValueError
            The direction is unknown.

        >>> Along.parse("eigenvector:-1"), Along.parse("random")
        (Along(kind='eigenvector', argument='-1'), Along(kind='random', argument=''))
        """
        kind, separator, argument = text.partition(":")
        if kind not in ARGUMENTS:
            raise ValueError("no such direction; there are " + ", ".join(_form(name) for name in ARGUMENTS))
        if bool(argument) != bool(ARGUMENTS[kind]) or bool(separator) != bool(argument):
            raise ValueError(f"write it as {_form(kind)}")
        if kind == "eigenvector" and not (argument.removeprefix("-").isdecimal() and int(argument)):
            raise ValueError("write it as eigenvector:K, K = 1 being the largest eigenvalue, K = -1 the smallest")
        return cls(kind, argument)

    @property
    def rank(self) -> int:
        """The rank K of `eigenvector:K`."""
        return int(self.argument)


def _form(kind: str) -> str:
    return kind if ARGUMENTS[kind] is None else f"{kind}:{ARGUMENTS[kind]}"


def parse_range(text: str) -> tuple[float, float]:
    """Parse a range `LO:HI`.

    Raises
    ------
    ValueError
        The text is not two numbers in ascending order, or they are too large for float32.

    >>> parse_range("-0.5:1.5")
    (-0.5, 1.5)
    """
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = math.nan, math.nan
    if not -FARTHEST <= low < high <= FARTHEST:
        raise ValueError(f"write it as LO:HI, two numbers with LO < HI, within ±{FARTHEST:g}")
    return low, high


def _known(text: str) -> str:
    Along.parse(text)
    return text


def _ordered(text: str) -> str:
    parse_range(text)
    return text


class LineSettings(AnalysisSettings):
    """Settings of the analyses along lines."""

    probes: int | None = Field(
        default=None, ge=1, description="products for each Newton direction, or for each end's eigenvectors (1000)"
    )
    along: list[Annotated[str, AfterValidator(_known)]] = Field(
        default_factory=lambda: ["gradient"],
        min_length=1,
        description="gradient, newton, random, filter-normalized, eigenvector:K, checkpoint:PATH[@STEP], "
        "array:FILE[#ROW], tangent:TARGET with T(params, s) (repeatable; default: gradient)",
    )
    range: list[Annotated[str, AfterValidator(_ordered)]] = Field(
        default_factory=list,
        description="range of s, in multiples of the vector; once, or for each --along (default: by the direction)",
    )

    batch_stats: BatchStats | None = Field(
        default=None,
        description="statistics of batch normalisation along the line: fixed; interpolate, between both checkpoints'; "
        "recompute, from the data at each point (default: recompute towards a checkpoint that has others, else fixed)",
    )

    @model_validator(mode="after")
    def _statistics(self) -> LineSettings:
        if self.batch_stats is not None and self.batch_norm == "batch":
            raise ValueError("--batch-stats goes with --batch-norm fixed: each batch has its own statistics")
        if self.batch_stats == "interpolate" and any(one.kind != "checkpoint" for one in self.directions):
            raise ValueError("--batch-stats interpolate goes with --along checkpoint:PATH, which has the other end's")
        return self

    @field_validator("range")
    @classmethod
    def _one_or_one_each(cls, value: list[str], info: ValidationInfo) -> list[str]:
        asked = len(info.data.get("along", value))
        if len(value) not in (0, 1, asked):
            raise ValueError(f"give one range for all, or one for each of the {asked} directions")
        return value

    @property
    def directions(self) -> list[Along]:
        """The parsed directions of `along`."""
        return [Along.parse(text) for text in self.along]

    def bounds(self, index: int) -> tuple[float, float] | None:
        """Return the range of a direction; None where its curvature determines it."""
        if self.range:
            return parse_range(self.range[index if len(self.range) > 1 else 0])
        return RANGES.get(self.directions[index].kind)

    @property
    def max_probes(self) -> int:
        """Maximum number of products of each iteration; 1 where none is needed."""
        iterated = any(one.kind in ("newton", "eigenvector") for one in self.directions)
        return self.probes or (1000 if iterated else 1)


class Solve(Strict):
    """The solution of the linear system that defines a direction."""

    status: Literal["converged", "least-squares", "not-converged"] = Field(
        description="least-squares: the matrix is singular within the tolerance, and the rest of −∇J lies where it is 0"
    )
    residual: float = Field(ge=0, description="‖A d + ∇J‖ / ‖∇J‖, measured")
    iterations: int = Field(ge=0)
    lowest_curvature: float = Field(description="smallest Ritz value met: λ_min of the matrix is no larger")


class Line(Strict):
    """A direction v and the derivatives of J along its unit vector."""

    direction: str = Field(description="as asked for")
    norm: float = Field(gt=0, description="‖v‖ of the vector as given")
    slope: float = Field(description="∇J·v/‖v‖")
    rayleigh_quotient: float = Field(description="vᵀAv/vᵀv, A the matrix asked for")
    gradient_cosine: float | None = Field(ge=-1, le=1, description="cosine of the angle to ∇J; null where ∇J = 0")
    solve: Solve | None = Field(default=None, description="of newton")
    eigenvalue: Eigenvalue | None = Field(default=None, description="of eigenvector:K")


class Undefined(Strict):
    """A direction that is undefined at these weights."""

    direction: str
    reason: str
