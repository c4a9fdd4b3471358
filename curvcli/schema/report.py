"""The common part of all reports, read and written as strict JSON."""

from __future__ import annotations

import json
import math
from typing import Any, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field

from curvcli.schema.base import Strict
from curvcli.schema.plan import Way
from curvcli.schema.spec import ProblemSpec

Settings = TypeVar("Settings", bound=Strict)
Result = TypeVar("Result", bound=Strict)


class CheckpointRecord(Strict):
    """The source of the weights."""

    path: str
    format: Literal["orbax", "msgpack", "safetensors", "npz", "memory"] = Field(
        description="memory: handed over by a Python program, not read from a file"
    )
    step: int | None
    sha256: str = Field(description="of the arrays that were read")


class DataRecord(Strict):
    """The source of the examples."""

    path: str
    num_examples: int
    sha256: str
    subsampled: bool = Field(default=False, description="whether the examples used are part of a larger set")
    population: int | None = Field(
        default=None, description="examples in that set; null where it was not read to its end"
    )

    @property
    def scope(self) -> str:
        """The text `of these 100 examples` where the data set has more, else an empty text."""
        return f"of these {self.num_examples:,} examples" if self.subsampled else ""

    @property
    def counted(self) -> str:
        """The number of examples as text: `1,797`, or `100 of 1,797` where a part is used.

        >>> DataRecord(path="", num_examples=100, sha256="", subsampled=True, population=1797).counted
        '100 of 1,797'
        """
        if not self.subsampled:
            return f"{self.num_examples:,}"
        return f"{self.num_examples:,} of {'more' if self.population is None else f'{self.population:,}'}"


class ProblemRecord(Strict):
    """The objective J(w) = (1/normaliser) Σ loss + regulariser, and the sources of its parts."""

    checkpoint: CheckpointRecord
    model: str
    num_params: int = Field(description="differentiated parameters, D")
    loss: str
    reduction: Literal["mean", "sum", "tokens"]
    normaliser: float
    l2: float
    regulariser: str | None = None
    data: DataRecord
    mode: Literal["eval", "batch"] = Field(
        default="eval",
        description="dropout off; eval: batch statistics held fixed; batch: each batch normalised by its own",
    )
    batch_size: int | None = Field(
        default=None, description="in mode batch: examples of each batch, a part of the objective; else null"
    )
    batches: int | None = Field(default=None, description="in mode batch: how many; J is their mean")
    loss_value: float = Field(description="J, the regulariser included")
    spec: ProblemSpec = Field(description="the specification as resolved from flags, environment and curv.toml")
    spec_file: str | None = Field(default=None, description="the curv.toml that was read")


class Check(Strict):
    """A self-check of the user's model."""

    passed: bool
    value: float
    threshold: float


class Profile(Strict):
    """Seconds by stage, which sum to `seconds`."""

    load: float = Field(description="reading files, and fitting model, data and loss together")
    compile: float = Field(description="in XLA, or reading what it compiled earlier")
    products: float = Field(description="products with blocks of vectors, run to their end")
    orthogonalisation: float = Field(description="against Krylov bases")
    rest: float


class Cost(Strict):
    """The cost of the answer."""

    products: int = Field(description="matrix-vector products")
    forms: int = Field(default=0, description="quadratic forms, half a product each")
    data_passes: int = Field(description="times the data were read: a block of products reads them once")
    recalled: int = Field(
        default=0,
        description="vectors whose products and forms, and points whose losses, came from --state: of those"
        " counted here, an earlier run has paid for these",
    )
    seconds: float = Field(description="of the analysis, compilation included")
    compile_seconds: float
    peak_memory_bytes: int
    way: Way = Field(description="how products were computed; given to --plan, it is repeated")
    profile: Profile | None = Field(default=None, description="with --profile: where the seconds went")


class Environment(Strict):
    """The environment of the computation."""

    jax: str
    device: str
    dtype: str
    threads: int
    devices: int = Field(default=1, description="that shared the work, of all processes together")
    processes: int = 1


class Report(Strict, Generic[Settings, Result]):
    """The report of an analysis of one checkpoint."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    curv: str = Field(description="version of curv")
    problem: ProblemRecord
    matrix: str | None
    regulariser_included: bool | None = Field(
        default=None, description="whether ∇²R is part of the matrix; null where the report has no matrix"
    )
    settings: Settings
    settings_from: dict[str, str] = Field(
        default_factory=dict,
        description="where each setting comes from: the name of a file, flag, environment, argument (of a Python "
        "call) or default; settings of curv.toml as table.key",
    )
    result: Result
    checks: dict[str, Check]
    untrusted: bool = Field(default=False, description="a self-check failed: do not rely on the result")
    cost: Cost
    environment: Environment
    warnings: list[str]

    def to_json(self) -> str:
        """Return the report as one line of JSON with the schema's name first, without NaN and infinities."""
        return one_line(self)


class ErrorRecord(Strict):
    """The record in place of a report, where one of several checkpoints failed."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    schema_name: Literal["curv.error/1"] = Field(default="curv.error/1", alias="schema")
    checkpoint: str
    step: int | None
    error: str
    hint: str
    exit_code: int

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return one_line(self)


def analysis_of(schema: str) -> str:
    """Return the command that writes reports of a schema.

    >>> analysis_of("curv.spectrum/1")
    'spectrum'
    """
    return schema.removeprefix("curv.").partition("/")[0]


def one_line(record: Strict) -> str:
    """Return a record with a `schema_name` as one line of JSON with its schema first, without NaN and infinities."""
    values = record.model_dump(mode="json", by_alias=True)
    return json.dumps({"schema": values.pop("schema"), **values}, allow_nan=False, ensure_ascii=False)


def load_json(text: str) -> Any:
    """Parse strict JSON, without NaN, infinities and duplicate keys.

    Raises
    ------
    ValueError
        The text is not strict JSON.
    """
    return _STRICT.decode(text)


def load_json_values(text: str) -> list[Any]:
    """Parse a sequence of strict JSON values, each on one line or over several.

    Raises
    ------
    ValueError
        The text is not strict JSON.

    Examples
    --------
    >>> load_json_values('{"a": 1}{"a":')
    Traceback (most recent call last):
    json.decoder.JSONDecodeError: Expecting value: line 1 column 14 (char 13)
    >>> load_json_values('{"a": 1}\\n[2,\\n3]\\n')
    [{'a': 1}, [2, 3]]
    """
    values, at = [], _after_space(text, 0)
    while at < len(text):
        value, end = _STRICT.raw_decode(text, at)
        values.append(value)
        at = _after_space(text, end)
    return values


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond the largest number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return dict(pairs)


_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
