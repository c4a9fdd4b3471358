"""The Python interface: the analyses of `curv` for objects that a program holds in memory.

A training loop makes one `Objective` and calls its methods with the current weights. Compiled programs are reused from
one set of weights to the next.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import numpy as np

from curvcli.errors import CurvError, CurvWarning, UsageError
from curvcli.registry import ANALYSES, Analysis
from curvcli.schema.report import Report
from curvcli.schema.settings import AnalysisSettings
from curvcli.xla import guard_environment

if TYPE_CHECKING:
    from curvcli.loading.resolve import Loaded
    from curvcli.schema.compare import CompareReport
    from curvcli.schema.diag import DiagReport
    from curvcli.schema.direction import DirectionReport
    from curvcli.schema.eigs import EigsReport
    from curvcli.schema.influence import InfluenceReport
    from curvcli.schema.inspect import InspectReport
    from curvcli.schema.landscape import LandscapeReport
    from curvcli.schema.saddle import SaddleReport
    from curvcli.schema.spectrum import SpectrumReport
    from curvcli.schema.step import StepReport
    from curvcli.schema.trace import TraceReport

R = TypeVar("R", bound=Report[Any, Any], covariant=True)

FILES = ("save", "escape", "state", "plan", "save_factors", "optimizer_state")
"""Settings that name files, which the Python interface does not take."""


@dataclass(frozen=True, repr=False)
class Found(Generic[R]):
    """The answer of an analysis.

    Parameters
    ----------
    report
        The report that `curv` writes: `report.result` has the numbers, `report.to_json()` is a line that `curv plot`
        and `curv diff` read.
    arrays
        Vectors, diagonals or scores by name, where the settings name a file for them. The file is written as well.
    params
        The weights after a step, by path.
    """

    report: R
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    params: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def result(self) -> Any:
        """The result of the report."""
        return self.report.result

    def __repr__(self) -> str:
        doubt = f"UNTRUSTED ({', '.join(_failed(self.report))} failed): " if self.report.untrusted else ""
        parts = [type(self.report).__name__, f"{len(self.report.warnings)} warnings"]
        parts += [f"{name}={list(arrays)}" for name in ("arrays", "params") if (arrays := getattr(self, name))]
        return f"{doubt}Found({', '.join(parts)})"


def _failed(report: Report[Any, Any]) -> list[str]:
    """Return the names of the self-checks that failed."""
    return [name for name, check in report.checks.items() if not check.passed]


class Method(Protocol[R]):
    """The signature that the methods of `Objective` share."""

    def __call__(self, /, variables: Any, *, at: int | None = None, **settings: Any) -> Found[R]:
        """Run the analysis at these weights."""
        ...


class Objective:
    """The objective J(w) = (1/M) Σ loss + R(w) of a network, data and a loss, analysed at any weights.

    Parameters
    ----------
    model
        A linen module, an nnx module, or a function `apply(params, inputs)`. Dropout is turned off. Batch statistics
        are held fixed. With `batch_norm="batch", batch_size=B` each batch is normalised by its own statistics.
    data
        `(inputs, targets)`, `(inputs, targets, mask)`, or a dict of arrays `inputs`, `targets` and optionally `mask`;
        each array is [N, …].
    loss
        `squared_error`, `softmax_cross_entropy`, `sigmoid_cross_entropy`, `poisson`, or
        `fn(outputs, targets) -> loss of each example`; losses of single outputs are summed over the last axis.
    kind
        `linen`, `nnx` or `apply`; by default detected from the model.
    l2, regulariser
        R(w) = ½·l2·‖w‖² + regulariser(params).
    reduction
        The normaliser M: `mean`, the number of examples with a weight above 0; `tokens`, the sum of the tokens'
        weights; `sum`, 1.
    likelihood
        The likelihood of a custom loss, which the Fisher matrices need: the name of a loss, or
        `fn(outputs, key) -> targets drawn`.
    ignore_label
        An integer label whose tokens are left out.

    Raises
    ------
    CurvError
        The data are not finite, empty, or of several lengths.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> line = Objective(lambda params, x: x @ params["w"], (x, x @ np.ones((3, 1))), "squared_error")
    >>> found = line.spectrum({"w": np.zeros((3, 1))}, dtype="float64")
    >>> bool(np.isclose(found.result.lambda_max.value, np.linalg.eigvalsh(x.T @ x / 40)[-1]))
    True
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        loss: str | Callable[..., Any],
        *,
        kind: Literal["linen", "nnx", "apply"] | None = None,
        l2: float = 0.0,
        reduction: Literal["mean", "sum", "tokens"] = "mean",
        regulariser: Callable[..., Any] | None = None,
        likelihood: str | Callable[..., Any] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        guard_environment()
        from curvcli.analyses.common.machine import check_sums
        from curvcli.loading.memory import hold

        check_sums()
        with _as_python_says():
            self._held = hold(
                model, data, loss, kind=kind, l2=l2, reduction=reduction, regulariser=regulariser,
                likelihood=likelihood, ignore_label=ignore_label,
            )  # fmt: skip
        self._functions: dict[Any, dict[str, Any]] = {}

    if TYPE_CHECKING:
        spectrum: Method[SpectrumReport]
        trace: Method[TraceReport]
        diag: Method[DiagReport]
        eigs: Method[EigsReport]
        saddle: Method[SaddleReport]
        direction: Method[DirectionReport]
        landscape: Method[LandscapeReport]
        influence: Method[InfluenceReport]
        step: Method[StepReport]
        compare: Method[CompareReport]
        inspect: Method[InspectReport]

    def _run(self, analysis: Analysis, variables: Any, at: int | None, arguments: dict[str, Any]) -> Found[Any]:
        """Run an analysis and return its report."""
        import jax

        from curvcli.analyses.common.tuning import way_of
        from curvcli.run.inputs import answer_of
        from curvcli.run.monitor import Monitor
        from curvcli.run.plans import with_plan
        from curvcli.run.reporting import report_of, warnings_of, write_array_files
        from curvcli.run.runtime import compile_clock
        from curvcli.stopwatch import Stopwatch

        with _as_python_says():
            settings = _settings(analysis, arguments)
        started, clock = time.perf_counter(), Stopwatch()
        precision = jax.default_matmul_precision("highest")
        with _as_python_says(), compile_clock(clock), precision, jax.enable_x64(settings.dtype == "float64"):
            loaded = self._held.at(variables, at, settings)
            problem = replace(loaded.problem, **self._shared(loaded, settings))
            loaded = replace(loaded, problem=problem, settings_from=_settings_from(loaded.spec, settings))
            if isinstance(settings, AnalysisSettings):
                loaded = with_plan(loaded, settings)
            monitor = Monitor(settings.time_limit)
            answer = answer_of(analysis, loaded, settings, monitor)
        write_array_files(answer, settings)
        report = report_of(
            analysis.report, loaded, settings, answer, warnings_of(loaded, answer, monitor), way=way_of(loaded.problem),
            seconds=time.perf_counter() - started, compiling=clock.compiling,
        )  # fmt: skip
        if report.untrusted:
            causes = [warning for warning in report.warnings if warning.startswith("self-check")]
            warnings.warn(f"the result is not to be relied on: {'; '.join(causes)}", CurvWarning, stacklevel=3)
        return Found(report, answer.arrays, answer.params)

    def _shared(self, loaded: Loaded, settings: Any) -> dict[str, Any]:
        """Return the functions of the first problem of this form, whose compiled programs serve all others."""
        from curvcli.loading.resolve import functions_of

        problem = loaded.problem
        shapes = tuple((path, leaf.shape) for path, leaf in problem.params.items())
        form = shapes, settings.dtype, settings.batch_norm, loaded.outputs.shape[1:]
        return self._functions.setdefault(form, functions_of(problem))


def _settings_from(spec: Any, settings: Any) -> dict[str, str]:
    """Return the origin of each setting: `argument` or `default`."""
    origins = {}
    for prefix, values in (*((f"{table}.", getattr(spec, table)) for table in type(spec).model_fields), ("", settings)):
        for name in type(values).model_fields:
            default = type(values).model_fields[name].get_default(call_default_factory=True)
            origins[f"{prefix}{name}"] = "default" if getattr(values, name) == default else "argument"
    return origins


@contextlib.contextmanager
def _as_python_says() -> Iterator[None]:
    """Replace names of options by names of arguments in the messages of errors."""
    try:
        yield
    except CurvError as error:
        error.message, error.hint = map(_argument_names, (error.message, error.hint))
        error.args = (error.message,)
        raise


def _argument_names(text: str) -> str:
    """Replace the options in a text by the arguments of the Python interface.

    >>> _argument_names("--num-examples 99: see curv trace --help; --debug shows where")
    'num_examples 99: see curv trace --help; the traceback shows where'
    """
    for options, words in (("--model, --model-arg and --inputs", "model and data"), ("--debug", "the traceback")):
        text = text.replace(options, words)
    return re.sub(r"--(?!help\b)([a-z][a-z0-9-]*)", lambda match: match[1].replace("-", "_"), text)


def _method(analysis: Analysis) -> Callable[..., Found[Any]]:
    """Return the method of `Objective` that runs an analysis."""

    def method(self: Objective, /, variables: Any, *, at: int | None = None, **settings: Any) -> Found[Any]:
        return self._run(analysis, variables, at, settings)

    method.__name__, method.__qualname__ = analysis.name, f"Objective.{analysis.name}"
    method.__doc__ = f"""`curv {analysis.name}`: {analysis.summary}.

        Parameters
        ----------
        variables
            The parameters, the variables with other collections beside `params`, or an nnx module.
        at
            The training step, for the report.
        settings
            The options of the command by name: `matrix="ggn"`, `probes=4`, `num_examples=512`.

        Raises
        ------
        CurvError
            A setting, the model or the data are invalid; the subclass says which.

        Warns
        -----
        CurvWarning
            A self-check failed, and `report.untrusted` is true.
        """
    return method


for _analysis in ANALYSES.values():
    setattr(Objective, _analysis.name, _method(_analysis))


def _settings(analysis: Analysis, arguments: dict[str, Any]) -> Any:
    """Validate the settings of an analysis, given by the names of its options."""
    from pydantic import ValidationError

    model, name = analysis.settings, analysis.name
    if arguments.get("distributed"):
        raise UsageError(
            "distributed is an option of the command line", "call jax.distributed.initialize before the analysis"
        )
    for setting in FILES:
        if arguments.get(setting) is not None:
            raise UsageError(f"{setting} is of files", "in Python the values are in Found.params and Found.arrays")
    defaults = {"save": "memory"} if name == "step" else {}
    aliases = {key: f"{key}_" for key in ("self",) if key in arguments}
    plain = {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in arguments.items()}
    values = {**defaults, **{aliases.get(key, key): value for key, value in plain.items()}}
    try:
        return model(**values)
    except ValidationError as error:
        from curvcli.loading.memory import refusal

        raise UsageError(refusal(error), f"see the options: curv {name} --help") from error
