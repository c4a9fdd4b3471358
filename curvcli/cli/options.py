"""Options of the commands: those of the problem, of the settings and of the output, as a signature.

The options of an analysis are derived from the fields of its Settings class, which define names, types, defaults and
help texts. Each option is also read from the environment, as CURV_NAME.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError

from curvcli.cli.following import Following
from curvcli.errors import UsageError
from curvcli.schema.settings import FIXED
from curvcli.schema.spec import LOSS_NAMES, ProblemSpec

Kind = Literal["linen", "nnx", "apply"]
ReductionName = Literal["mean", "sum", "tokens"]
Format = Literal["json", "text"]
Source = Literal["flag", "environment", "default"]

PROBLEM, DATA, ANALYSIS, OUTPUT = "The problem", "How much of it", "The analysis", "Output and run"

_SPEC: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "spec": (Path, "--spec", "a curv.toml; default: beside the checkpoint, else in this folder", {"metavar": "FILE"}),
    "model": (str, "--model", "the network: pkg.mod:attr or file.py:attr", {"metavar": "TARGET"}),
    "model_arg": (list[str], "--model-arg", "argument of the model, as TOML (repeatable)", {"metavar": "K=V"}),
    "kind": (Kind, "--kind", "how the model is called; detected where unambiguous", {}),
    "data": (str, "--data", ".npz, .npy folder, .csv, .parquet, Hugging Face folder, pkg.mod:fn", {"metavar": "SRC"}),
    "inputs": (str, "--inputs", "name of the input array, or columns: a,b or px_* (default: x)", {"metavar": "NAME"}),
    "targets": (str, "--targets", "name of the target array, or columns (default: y)", {"metavar": "NAME"}),
    "loss": (str, "--loss", f"{', '.join(LOSS_NAMES)}, or a target", {"metavar": "NAME"}),
    "l2": (float, "--l2", "adds ½·l2·‖w‖² to the loss", {"metavar": "X"}),
    "reduction": (ReductionName, "--reduction", "divide the summed losses by examples, 1 or tokens", {}),
    "step": (int, "--step", "the step of a checkpoint manager's root (default: the latest)", {"metavar": "N"}),
    "all_steps": (bool, "--all-steps", "every step of a manager's root, one report a line", {}),
    "trust": (bool, "--trust", "run the code that a curv.toml names, and trust it from now on", {}),
}  # fmt: skip

_OUTPUT: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "output": (Path, "-o,--output", "write the JSON report here (-: stdout)", {"metavar": "FILE"}),
    "format": (Format, "--format", "default: text on a terminal, else json", {}),
    "quiet": (bool, "-q,--quiet", "no progress and no warnings", {}),
    "verbose": (bool, "-v,--verbose", "more messages on stderr", {}),
    "debug": (bool, "--debug", "show tracebacks", {}),
    "no_cache": (bool, "--no-cache", "keep nothing between runs: neither compiled programs nor timings", {}),
    "profile": (bool, "--profile", "add seconds by stage to the report's cost", {}),
    "dry_run": (bool, "--dry-run", "forecast bytes, products and data passes: compile, and compute nothing", {}),
}

_OVERRIDES = {
    "model": ("model", "target"), "kind": ("model", "kind"),
    "data": ("data", "path"), "inputs": ("data", "inputs"), "targets": ("data", "targets"),
    "loss": ("loss", "name"), "l2": ("loss", "l2"), "reduction": ("loss", "reduction"),
}  # fmt: skip
"""Options that override a setting of curv.toml, with its table and key."""

LONGEST_METAVAR = 20
"""Maximum number of characters of choices shown beside an option on 80 columns."""

_SIZES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


@dataclass(frozen=True)
class Request:
    """The values of a command line, None where an option was not given.

    `sources` gives the origin of each value; `following` the conditions of `curv watch`.
    """

    name: str
    checkpoints: list[str]
    settings_class: type[BaseModel]
    settings: dict[str, Any]
    spec: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    following: Following | None = None

    def overrides(self) -> dict[str, dict[str, Any]]:
        """The values that override curv.toml, by table; None where nothing does.

        Raises
        ------
        UsageError
            A value is out of range; the message names the option.
        """
        tables: dict[str, dict[str, Any]] = {"model": {}, "data": {}, "loss": {}}
        for option, (table, key) in _OVERRIDES.items():
            tables[table][key] = self.spec[option]
        tables["model"]["kwargs"] = model_arguments(self.spec["model_arg"] or [])
        chosen = {table: {k: v for k, v in entries.items() if v is not None} for table, entries in tables.items()}
        self._validated(ProblemSpec, chosen)
        return tables

    def overridden(self) -> dict[str, str]:
        """The settings of curv.toml that the command line or the environment overrides, and which of the two it is."""
        options = {f"{table}.{key}": option for option, (table, key) in _OVERRIDES.items()}
        options |= {f"model.kwargs.{name}": "model_arg" for name in model_arguments(self.spec["model_arg"] or [])}
        return {setting: self.sources[o] for setting, o in options.items() if self.spec[o] is not None}

    def parsed_settings(self) -> Any:
        """Validate the settings.

        Raises
        ------
        UsageError
            A value is out of range; the message names the option.
        """
        values = {name: value for name, value in self.settings.items() if value not in (None, [])}
        if "max_memory" in values:
            values["max_memory"] = parse_size(values["max_memory"])
        return self._validated(self.settings_class, values)

    def _validated(self, schema: type[BaseModel], values: dict[str, Any]) -> Any:
        """Validate values against a schema whose innermost keys are names of options."""
        try:
            return schema.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            message, place = first["msg"].removeprefix("Value error, "), ""
            # The place is empty where options do not go together; it ends in an index where one of several values is
            # wrong, and in what the value was tried as ("constrained-float") where a number or a word is taken.
            if names := [key for key in first["loc"] if isinstance(key, str) and key.isidentifier()]:
                value = first["input"] if not isinstance(first["input"], list) else " ".join(map(str, first["input"]))
                place, message = f"{_flag(names[-1])} {value}: ", message[:1].lower() + message[1:]
            raise UsageError(f"{place}{message}", f"see: curv {self.name} --help") from error


def analysis(settings_class: type[BaseModel]) -> Callable[[Callable[[Request], Any]], Callable[..., Any]]:
    """Decorate a function of a Request: the command gets the signature with all shared options."""

    def decorate(function: Callable[[Request], Any]) -> Callable[..., Any]:
        fields = settings_class.model_fields
        settings = {name: _setting(name, info) for name, info in fields.items() if info.json_schema_extra != FIXED}
        spec = {name: _option(name, *row, panel=PROBLEM) for name, row in _SPEC.items()}
        output = {name: _option(name, *row, panel=OUTPUT) for name, row in _OUTPUT.items()}

        def command(context: typer.Context, **arguments: Any) -> Any:
            return function(
                Request(
                    function.__name__,
                    arguments["checkpoints"] or [],
                    settings_class,
                    {n: arguments[n] for n in settings},
                    {n: arguments[n] for n in spec},
                    {n: arguments[n] for n in output},
                    {name: _source(context, name) for name in arguments},
                    context.obj,
                )
            )

        checkpoint = typer.Argument(
            metavar="CKPT", show_default=False,
            help="Orbax checkpoint (item, step or manager root), msgpack, .safetensors or .npz; default: curv.toml's",
        )  # fmt: skip
        first = inspect.Parameter(
            "checkpoints",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[list[str] | None, checkpoint],
        )
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [context, first, *spec.values(), *settings.values(), *output.values()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        return command

    return decorate


def _source(context: typer.Context, name: str) -> Source:
    """Return the origin of an option's value: `flag`, `environment` or `default`."""
    source = context.get_parameter_source(name)
    named: dict[str, Source] = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment"}
    return named.get(source.name if source else "", "default")


def _option(name: str, kind: Any, flags: str, text: str, extra: dict[str, Any], *, panel: str) -> inspect.Parameter:
    """Return an option as a parameter with default None, or False for a flag."""
    option = typer.Option(
        *flags.split(","), help=text, envvar=f"CURV_{name.rstrip('_').upper()}", show_envvar=False,
        rich_help_panel=panel, show_default=False, **extra,
    )  # fmt: skip
    default = False if kind is bool else None
    annotation = kind if kind is bool else kind | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )


def _setting(name: str, info: Any) -> inspect.Parameter:
    """Return the option of a field of a Settings class."""
    text, kind, extra = info.description or "", _plain_type(info.annotation), {}
    panel = DATA if name in DATA_FIELDS else ANALYSIS
    if info.default is True:
        # On by default, so the option switches it off.
        option = typer.Option(f"--no-{name}", help=SWITCHED_OFF.get(name, text), rich_help_panel=panel,
                              show_default=False, envvar=f"CURV_NO_{name.upper()}", show_envvar=False)  # fmt: skip
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None,
            annotation=Annotated[bool | None, _inverted(option)],
        )  # fmt: skip
    if name in AS_TEXT:
        kind, metavar = AS_TEXT[name]
        extra = {"metavar": metavar}
    choices = [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
    if len("|".join(choices)) > LONGEST_METAVAR:
        extra = {"metavar": "NAME"}
        text += "" if all(choice in text for choice in choices) else f": {', '.join(choices)}"
    default = info.default if info.default_factory is None else None
    if default is not None and kind is not bool:
        text += f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
    return _option(name, kind, _flag(name), text, extra, panel=panel)


def _inverted(option: Any) -> Any:
    """Return a flag that turns a setting off: False if given, else None."""
    option.callback = lambda value: False if value else None
    return option


SWITCHED_OFF = {
    "regulariser": "leave the regulariser's curvature out",
    "rescale": "leave steps that do not minimise Q as long as their method makes them",
    "layers": "leave the layers' traces out: a GGN-like matrix needs forward derivatives only, half the cost",
}
"""Help texts of the flags that turn off settings that are on by default."""

AS_TEXT: dict[str, tuple[Any, str]] = {
    "max_memory": (str, "SIZE"),
    "devices": (str, "N|all"),
    "plan": (str, "FILE"),
    "arrays": (str, "FILE"),
    "vectors": (str, "FILE"),
    "state": (str, "DIR"),
    "along": (list[str], "DIRECTION"),
    "range": (list[str], "LO:HI"),
    "queries": (str, "FROM:TO"),
    "hyper": (list[str], "NAME"),
    "group": (str, "FILE"),
    "perturb": (str, "FILE"),
    "scores": (str, "FILE"),
    "momentum": (str, "FILE"),
    "save": (str, "CKPT"),
    "save_factors": (str, "FILE"),
    "factors_from": (str, "FILE"),
    "matrices": (str, "LIST"),
}
"""Settings whose options take text that is parsed later, and the metavar of that text."""

DATA_FIELDS = ("params", "exclude", "num_examples", "batch_size", "batch_norm", "seed", "dtype", "threads", "devices",
               "shard_params", "distributed")  # fmt: skip


def _flag(name: str) -> str:
    short = {"k": "-k"}
    return short.get(name, "--" + name.rstrip("_").replace("_", "-"))


def _plain_type(annotation: Any) -> Any:
    """Remove `None` from a union annotation."""
    if get_origin(annotation) in (list, Literal):
        return annotation
    rest = [part for part in get_args(annotation) if part is not type(None)]
    if len(rest) > 1:  # a number or a word, or two sets of words
        words = [word for part in rest for word in (get_args(part) if get_origin(part) is Literal else ())]
        return Literal[tuple(words)] if all(get_origin(part) is Literal for part in rest) else str
    return rest[0] if rest else annotation


def parse_size(text: str | int) -> int:
    """Parse a number of bytes from `4GB`, `512 MiB` or a plain number.

    >>> parse_size("4GB"), parse_size("1.5 KiB"), parse_size("100")
    (4000000000, 1536, 100)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", str(text))
    if not match or match[2].lower() not in _SIZES:
        raise UsageError(f"--max-memory {text}: not a size", "write it as 4GB, 512MiB or a number of bytes")
    return int(min(Decimal(match[1]) * _SIZES[match[2].lower()], Decimal(sys.maxsize)))


def model_arguments(pairs: list[str]) -> dict[str, Any]:
    """Parse `K=V` arguments, each V as TOML.

    >>> model_arguments(["features=[128, 10]", 'activation="tanh"'])
    {'features': [128, 10], 'activation': 'tanh'}
    """
    import tomllib

    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key.strip().isidentifier():
            raise UsageError(f"--model-arg {pair}: not of the form K=V", "for example --model-arg 'features=[128, 10]'")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError) as error:
            bare = text.strip().strip("()")
            list_meant = "," in bare
            value = f"[{bare}]" if list_meant else f'"{bare}"'
            kind = "a list needs brackets" if list_meant else "a text needs quotes"
            raise UsageError(
                f"--model-arg {pair}: {text!r} is not a TOML value", f"{kind}: --model-arg '{key.strip()}={value}'"
            ) from error
    return values


def absolute_target(text: str | None) -> str | None:
    """Make the path of a `file.py:attr` target absolute; other targets stay as they are."""
    head, _, attribute = (text or "").rpartition(":")
    return f"{Path(head).absolute()}:{attribute}" if head.endswith(".py") else text


def absolute_source(text: str | None) -> str | None:
    """Make the path of a data source absolute; modules and URLs stay as they are."""
    if text is None or (":" in text and not Path(text).exists()):
        return absolute_target(text)
    return str(Path(text).absolute())
