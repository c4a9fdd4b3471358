"""Loading of a problem from Python objects: network, loss, data and weights."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from pydantic import ValidationError

from curvcli.errors import CurvError, SpecError, UsageError
from curvcli.loading.checkpoints.reading import in_memory
from curvcli.loading.data.dataset import Dataset, load_dataset
from curvcli.loading.resolve import Loaded, fitted
from curvcli.schema.settings import DataSettings
from curvcli.schema.spec import DataSpec, LossSpec, ModelKind, ModelSpec, ProblemSpec, Reduction

PLACE = "memory"


@dataclass(frozen=True)
class Objects:
    """The objects by their names in the specification, in place of `Targets`, which imports them by name."""

    named: dict[str, Any]
    base: Path = field(default_factory=Path.cwd)

    def load(self, target: str) -> Any:
        """Return the object of this name."""
        return self.named[target]


@dataclass(frozen=True)
class Held:
    """An objective without weights: specification, objects and data."""

    spec: ProblemSpec
    objects: Objects
    data: Dataset

    def at(self, variables: Any, step: int | None, settings: DataSettings) -> Loaded:
        """Return the problem at these weights.

        Raises
        ------
        CurvError
            Weights, model, data and loss do not fit together.
        """
        data = self.data
        if settings.num_examples is not None:
            data = _read(self.spec, self.objects, settings.num_examples)
        try:
            step = None if step is None else operator.index(step)
        except TypeError as error:
            raise UsageError(f"at={step!r} is no training step", "give a whole number") from error
        stored = in_memory(PLACE, _as_tree(variables), step)
        return fitted(self.spec, self.objects, stored, data, settings)


def hold(
    model: Any,
    data: Any,
    loss: str | Callable[..., Any],
    *,
    kind: ModelKind | None,
    l2: float,
    reduction: Reduction,
    regulariser: Callable[..., Any] | None,
    likelihood: str | Callable[..., Any] | None,
    ignore_label: int | None,
) -> Held:
    """Build an objective from objects, and check the data.

    Raises
    ------
    CurvError
        The data are not finite, empty, or of several lengths.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(data)):
        raise _traced("data")
    if isinstance(data, Iterator):
        data = list(data)  # they are read again where an analysis takes some of them
    if isinstance(data, Mapping) and not {"inputs", "targets"} <= set(data):
        names = ", ".join(map(repr, data))
        raise SpecError(f"the data have arrays {names}", "name them inputs, targets and, where there is one, mask")
    by_name: dict[str, Any] = {f"{PLACE}:data": lambda: data}

    def called(role: str, value: Any) -> Any:
        """Return the name of a function in the specification; a name of a loss stays as it is."""
        if value is None or isinstance(value, str):
            return value
        name = f"{PLACE}:{getattr(value, '__name__', role)}"
        if by_name.get(name, value) is not value:  # two functions of one name, as two lambdas are
            name = f"{name} ({role})"
        by_name[name] = value
        return name

    target = f"{PLACE}:{getattr(model, '__name__', type(model).__name__)}"
    if target in by_name:
        target = f"{target} (model)"
    by_name[target] = model
    mask = "mask" if isinstance(data, Mapping) and "mask" in data else None
    try:
        spec = ProblemSpec(
            model=ModelSpec(target=target, kind=kind),
            data=DataSpec(path=f"{PLACE}:data", inputs="inputs", targets="targets", mask=mask),
            loss=LossSpec(
                name=called("loss", loss), l2=l2, reduction=reduction, regulariser=called("regulariser", regulariser),
                likelihood=called("likelihood", likelihood), ignore_label=ignore_label,
            ),
        )  # fmt: skip
    except ValidationError as error:
        raise UsageError(refusal(error), "see help(curvcli.Objective)") from error
    if isinstance(loss, str) and ":" in loss:
        raise SpecError(f"{loss!r}: in Python give the loss itself", "pass the function, or the name of a known loss")
    objects = Objects(by_name)
    return Held(spec, objects, _read(spec, objects, None))


def _read(spec: ProblemSpec, objects: Objects, count: int | None) -> Dataset:
    return load_dataset(spec.data, base=objects.base, call_target=objects.load, num_examples=count)


def refusal(error: ValidationError) -> str:
    """Describe the first invalid argument."""
    first = error.errors()[0]
    said = first["msg"].replace("Value error, ", "")
    return ": ".join(part for part in (".".join(map(str, first["loc"])), said) if part)


def _traced(what: str) -> CurvError:
    return UsageError(
        f"the {what} are traced by JAX and have no values",
        "call the analysis outside jax.jit, jax.grad and jax.vmap",
    )


def _as_tree(variables: Any) -> dict[str, Any]:
    """Convert a model's variables to nested dicts of numpy arrays with string keys."""
    from flax import nnx
    from flax.core import meta

    if isinstance(variables, nnx.Module):
        variables = nnx.state(variables)
    if isinstance(variables, nnx.State):
        variables = nnx.to_pure_dict(variables)
    if not isinstance(variables, Mapping):
        raise SpecError(
            f"the weights are a {type(variables).__name__}", "give the parameters, the variables, or an nnx module"
        )
    return _strings(meta.unbox(variables))


def _strings(node: Mapping[Any, Any], parent: str = "") -> dict[str, Any]:
    strings: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{parent}{key}"
        if isinstance(value, Tracer):
            raise _traced("weights")
        if isinstance(value, Mapping):
            strings[str(key)] = _strings(value, f"{path}/")
        elif isinstance(value, list | tuple):
            strings[str(key)] = _strings(dict(enumerate(value)), f"{path}/")
        elif value is not None:
            # Random streams of nnx have keys, which are no weights and which no array holds.
            if hasattr(value, "dtype") and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
                continue
            strings[str(key)] = np.asarray(value)
            if strings[str(key)].dtype.kind in "OSU":
                raise SpecError(
                    f"{path} is a {type(value).__name__}, no array", "give dicts, lists and tuples of arrays alone"
                )
    return strings
