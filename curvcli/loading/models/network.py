"""Networks from targets: Flax linen, Flax nnx, or a plain `apply(params, x)`.

Each kind gives the arrays of the checkpoint that are differentiated, those that are held fixed, and a function of both.
Evaluation mode (no dropout, running statistics) is set by the arguments of the call's signature. No parameters are
initialised: the weights are in the checkpoint, and `jax.eval_shape` gives the shapes.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from curvcli.compiling import jit
from curvcli.errors import SpecError
from curvcli.loading.checkpoints.trees import flatten_tree, nest_tree, with_lists
from curvcli.loading.models.batch_norm import floating, intercept_linen, named, statistics_of, switch_nnx
from curvcli.loading.spec.targets import described
from curvcli.problem import BatchStatistics
from curvcli.schema.spec import ModelSpec

PyTree = Any
Flat = dict[str, Any]

EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}
"""Arguments of a model's call that turn dropout and batch statistics off."""

WRITTEN = ("intermediates", "cache", "perturbations")
"""Collections that a linen model writes and no checkpoint holds."""

STATISTICS = "batch_stats"
"""The collection of a linen model's batch statistics."""


@dataclass(frozen=True)
class Network:
    """A model bound to the arrays of a checkpoint.

    Parameters
    ----------
    kind
        The kind of the model: linen, nnx or apply.
    params
        The arrays that are differentiated (float leaves) or held fixed (others), by path.
    collections
        Further variables of the model, held fixed, such as batch statistics.
    call
        `(params by path, collections, inputs) -> outputs`.
    nest
        Maps parameters by path to the form of the user's model, for a regulariser.
    expected
        Shapes of the model's parameters by path; None where they are not known.
    statistics
        The batch statistics; None where the model has none.
    """

    kind: str
    params: Flat
    collections: PyTree
    call: Callable[[Flat, PyTree, PyTree], Any]
    nest: Callable[[Flat], PyTree]
    expected: Flat | None
    statistics: BatchStatistics | None = None


def make_network(spec: ModelSpec, target: Any, params: PyTree, rest: dict[str, PyTree], inputs: PyTree) -> Network:
    """Bind a target to the arrays of a checkpoint.

    Parameters
    ----------
    spec
        Kind and arguments of the model.
    target
        The object that `spec.target` names: a class, a factory or an instance.
    params, rest
        The checkpoint's differentiated subtree and its other collections, with arrays as leaves.
    inputs
        Shapes and dtypes of a batch of inputs.

    Raises
    ------
    SpecError
        The kind cannot be detected, or the target fails.
    """
    kind, model = _instantiate(spec, target)
    make = {"linen": _linen, "nnx": _nnx, "apply": _apply}[kind]
    return make(model, params, rest, inputs)


def _instantiate(spec: ModelSpec, target: Any) -> tuple[str, Any]:
    """Return the kind of a target, and its instance (linen), constructor (nnx) or function (apply)."""
    plain = _kind_of(target, spec.kwargs)
    kind = spec.kind or plain
    if plain in ("linen", "nnx") and kind != plain:
        raise SpecError(
            f"{spec.target} is no {kind} module: it is a {plain} one", f"give --kind {plain}, or leave it out"
        )
    if kind == "apply":
        return kind, _apply_function(target, spec.kwargs)
    make = _constructor(target, spec.kwargs)
    if kind == "nnx":
        return kind, make
    # A linen class, or a factory: what it returns tells the kind.
    model = user_code("the model's constructor", make)
    actual = _kind_of(model, {})
    if actual is None or actual != (kind or actual):
        raise SpecError(
            f"cannot tell what kind of model {spec.target} is: it gives a {type(model).__name__}"
            if kind is None
            else f"{spec.target} is no {kind} module: it gives a {type(model).__name__}",
            "give --kind linen, nnx or apply, as the target is",
        )
    return actual, make if actual == "nnx" else model


def _constructor(target: Any, kwargs: dict[str, Any]) -> Callable[[], Any]:
    """Return a function without arguments that builds the instance, with random streams where required."""
    if not inspect.isclass(target) and _kind_of(target, {}) in ("linen", "nnx"):
        return lambda: target
    # The metaclass of nnx hides the signature of its classes.
    names = _signature(target.__init__ if inspect.isclass(target) else target)
    if "rngs" not in names or "rngs" in kwargs:
        return lambda: target(**kwargs)
    from flax import nnx

    return lambda: target(**{**kwargs, "rngs": nnx.Rngs(0)})


def _kind_of(target: Any, kwargs: dict[str, Any]) -> str | None:
    """Return linen, nnx or apply by the type of the target; None for a factory."""
    cls = target if inspect.isclass(target) else type(target)
    for name, module in (("linen", "flax.linen"), ("nnx", "flax.nnx")):
        if module in sys.modules and issubclass(cls, sys.modules[module].Module):
            return name
    if callable(target) and not inspect.isclass(target) and len(_required(target, kwargs)) >= 2:
        return "apply"
    return None


def _signature(function: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a signature by name; empty where there is no signature."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _required(function: Any, kwargs: dict[str, Any]) -> list[str]:
    """Return the names of parameters with neither a default nor a given value."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, one in _signature(function).items()
        if one.kind not in variadic and one.default is inspect.Parameter.empty and name not in kwargs
    ]


def _evaluation_arguments(function: Any) -> dict[str, bool]:
    """Return the arguments among `EVALUATION` that a function takes."""
    names = _signature(function)
    return {name: value for name, value in EVALUATION.items() if name in names}


def user_code(role: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the user's code, and translate any exception into an error of one line.

    Raises
    ------
    SpecError
        The code raised an exception, or tried to exit.
    """
    try:
        return function(*args, **kwargs)
    except (SpecError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a model may raise anything, SystemExit included
        raise SpecError(f"{role} fails: {described(error)}", _advice(role, error)) from error


def _attempt(function: Callable[[], Any]) -> Any:
    """Call the user's code; None where it fails, as the call of the model will raise the error."""
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None


def _advice(role: str, error: BaseException) -> str:
    text = str(error)
    if role == "the loss":
        return "check --loss: it is called as fn(outputs, targets) with arrays of a batch; --debug shows where"
    if role == "the likelihood":
        return "check [loss] likelihood: it is called as fn(outputs, key) with a batch of one; --debug shows where"
    if role.startswith("--hyper"):
        return "it is called as fn(outputs, targets, theta) for loss:, fn(params, theta) for regulariser:; see --debug"
    if role.startswith("the transformation"):
        return "check --along tangent: it is called as T(params, s) with the model's parameters; --debug shows where"
    if role == "the regulariser":
        return "check [loss] regulariser: it is called as fn(params) with the model's parameters; --debug shows where"
    if "rng" in text.lower() and ("dropout" in text.lower() or "PRNG" in text):
        return "dropout is on: give the call an argument train=False or deterministic=True that turns it off"
    if "mutable" in text or "immutable" in text.lower():
        return "the model updates its statistics: give the call an argument train=False or use_running_average=True"
    if type(error).__name__ == "ScopeParamNotFoundError":
        return (
            "the checkpoint lacks a parameter of this model: compare with curv inspect, check --model and --model-arg"
        )
    return "check --model, --model-arg and --inputs against how the checkpoint was trained; --debug shows where"


def _call_with(function: Callable[..., Any], inputs: PyTree, extra: Mapping[str, Any], lead: tuple = ()) -> Any:
    """Call a model with one input, or with several by name where its signature has their names."""
    if isinstance(inputs, dict) and inputs.keys() <= _signature(function).keys():
        return function(*lead, **inputs, **extra)
    return function(*lead, inputs, **extra)


def _linen(module: Any, params: PyTree, rest: dict[str, PyTree], inputs: PyTree) -> Network:
    """Bind a linen module: `apply({'params': …, **collections}, x)`."""
    import flax.linen as nn

    extra = _evaluation_arguments(module)

    def call(flat: Flat, collections: PyTree, x: PyTree) -> Any:
        def run(bound: Any, value: PyTree) -> Any:
            return _call_with(bound, value, extra)

        # The signature is read off the bound module, so that several named inputs reach their arguments.
        return nn.apply(run, module)({"params": nest_tree(flat), **collections}, x)

    def train(flat: Flat, collections: PyTree, x: PyTree, arguments: Mapping[str, bool]) -> tuple[Any, Flat]:
        with nn.intercept_methods(intercept_linen):
            run = nn.apply(lambda bound, value: _call_with(bound, value, arguments), module, mutable=[STATISTICS])
            outputs, updated = run({"params": nest_tree(flat), **collections}, x)
        return outputs, named(updated)

    def initialise(key: Any, x: PyTree) -> Any:
        rngs = {"params": key, "dropout": key}
        return nn.meta.unbox(nn.init(lambda bound, value: _call_with(bound, value, extra), module)(rngs, x))

    shapes = _attempt(lambda: jax.eval_shape(initialise, jax.random.key(0), inputs))
    if shapes is None:  # it may need what only training has, such as other random streams
        return Network("linen", flatten_tree(params), rest, call, nest_tree, None)
    needed = {name: tree for name, tree in shapes.items() if name not in ("params", *WRITTEN)}
    missing = sorted(needed.keys() - rest.keys())
    if missing:
        raise SpecError(
            f"the model needs the collection {missing[0]!r}, which the checkpoint does not hold beside its parameters",
            'save the whole variables dictionary, or name the subtree: [checkpoint] params = "…/params"',
        )
    expected = {**flatten_tree(shapes.get("params", {})), **flatten_tree(needed)}
    flat, fixed = flatten_tree(params), {name: rest[name] for name in needed}
    names = floating({STATISTICS: fixed[STATISTICS]}) if STATISTICS in fixed else []
    statistics = statistics_of(names, train, lambda: extra, _shapes(flat, fixed, inputs)) if names else None
    return Network("linen", flat, fixed, call, nest_tree, expected, statistics)


def _shapes(*trees: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), trees)


def _nnx(construct: Callable[[], Any], params: PyTree, rest: dict[str, PyTree], inputs: PyTree) -> Network:
    """Bind an nnx module, whose variables are replaced by those of the checkpoint."""
    from flax import nnx

    model = user_code("the model's constructor", nnx.eval_shape, construct)
    if not isinstance(model, nnx.Module):
        raise SpecError(f"the model is no nnx module: it gives a {type(model).__name__}", "give --kind linen or apply")
    model.eval()
    graph, state = nnx.split(model)
    variables = {"/".join(str(part) for part in path): (path, variable) for path, variable in nnx.to_flat_state(state)}
    stored = flatten_tree(params)
    for tree in rest.values():
        stored.update({path: leaf for path, leaf in flatten_tree(tree).items() if path in variables})

    trained = {path for path, (_, variable) in variables.items() if isinstance(variable, nnx.Param)}
    # Random streams serve dropout, which is off; any key will do, and it never reaches the outputs.
    random = {path for path, (_, variable) in variables.items() if isinstance(variable, nnx.RngState)}
    fixed = set(variables) - trained - random
    missing = sorted(fixed - set(stored))
    if missing:
        raise SpecError(
            f"the model needs the variable {missing[0]!r}, which the checkpoint does not hold",
            "save nnx.state(model) with all its variables",
        )

    def streams() -> Flat:
        keys = {}
        for path in random:
            shape = variables[path][1].get_value()
            typed = jax.numpy.issubdtype(shape.dtype, jax.dtypes.prng_key)
            keys[path] = jax.numpy.broadcast_to(
                jax.random.key(0) if typed else jax.numpy.zeros((), shape.dtype), shape.shape
            )
        return keys

    def nest(flat: Flat) -> Any:
        return nnx.from_flat_state(
            [(variables[path][0], variables[path][1].replace(leaf)) for path, leaf in flat.items()]
        )

    def call(flat: Flat, collections: PyTree, x: PyTree) -> Any:
        return run({**flat, **collections, **streams()}, x)[0]

    def run(values: Flat, x: PyTree) -> tuple[Any, Flat]:
        """Return the outputs, and the counters and statistics that the call has changed."""
        network = nnx.merge(graph, nest(values))
        outputs = _call_with(network, x, _evaluation_arguments(network))
        watched = variables_of(network, nnx.RngCount | nnx.BatchStat)
        return outputs, {name: value for name, value in watched.items() if value is not values.get(name)}

    def variables_of(network: Any, kinds: Any) -> Flat:
        after = {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(network))}
        return {name: variable.get_value() for name, variable in after.items() if isinstance(variable, kinds)}

    def train(flat: Flat, collections: PyTree, x: PyTree, arguments: Mapping[str, bool]) -> tuple[Any, Flat]:
        network = nnx.merge(graph, nest({**flat, **collections, **streams()}))
        switch_nnx(network)
        outputs = _call_with(network, x, arguments)
        return outputs, variables_of(network, nnx.BatchStat)

    def check_evaluation(values: Flat) -> None:
        if not _attempt(lambda: jax.eval_shape(run, values, inputs)[1]):
            return
        # A transformation such as nnx.scan sets them to what they were: only other values tell.
        example = jax.tree.map(lambda leaf: jax.numpy.ones((1, *leaf.shape[1:]), leaf.dtype), inputs)
        for name, after in (_attempt(lambda: jit(run)(values, example)[1]) or {}).items():
            if name not in values or not np.array_equal(after, jax.numpy.asarray(values[name])):
                fault = f"dropout is on ({name} advances)" if name in random else f"{name} is updated"
                raise SpecError(
                    f"the model is not in evaluation mode: {fault}",
                    "give its call an argument train=False or deterministic=True that turns dropout and statistics off",
                )

    expected = {path: variables[path][1].get_value() for path in trained | fixed}
    differentiated = {path: leaf for path, leaf in stored.items() if path not in fixed | random}
    constants = {path: stored[path] for path in fixed}
    check_evaluation({**differentiated, **constants, **streams()})
    names = floating({path: constants[path] for path in fixed if isinstance(variables[path][1], nnx.BatchStat)})
    shapes = _shapes(differentiated, constants, inputs)
    statistics = statistics_of(names, train, lambda: _evaluation_arguments(model), shapes) if names else None
    return Network(
        "nnx", differentiated, constants, call, lambda flat: nnx.to_pure_dict(nest(flat)), expected, statistics
    )


def _apply_function(target: Any, kwargs: dict[str, Any]) -> Callable[..., Any]:
    """Return `apply(params, x)` with its keyword arguments bound, or the function that a factory returns."""
    if not callable(target):
        raise SpecError(f"the model is a {type(target).__name__}, not a function", "name a function apply(params, x)")
    if len(_required(target, kwargs)) >= 2:
        return functools.partial(target, **kwargs) if kwargs else target
    made = user_code("the model's factory", target, **kwargs)
    if not callable(made):
        raise SpecError("the model's factory returned no function", "it should return a function apply(params, x)")
    return made


def _apply(function: Callable[..., Any], params: PyTree, rest: dict[str, PyTree], inputs: PyTree) -> Network:
    """Bind a plain function of parameters and inputs."""
    extra = _evaluation_arguments(function)
    flat = flatten_tree(params)

    def with_form(form: Callable[[Any], Any]) -> Network:
        def nest(arrays: Flat) -> PyTree:
            return form(nest_tree(arrays))

        def call(arrays: Flat, collections: PyTree, x: PyTree) -> Any:
            return _call_with(function, x, extra, (nest(arrays),))

        return Network("apply", flat, {}, call, nest, None)

    def works(network: Network) -> bool:
        return _attempt(lambda: jax.eval_shape(network.call, flat, {}, inputs)) is not None

    # Files do not tell a list from a dictionary with the keys "0", "1", …: whichever the function can use is right.
    lists, plain = with_form(with_lists), with_form(lambda tree: tree)
    return plain if _has_lists(nest_tree(flat)) and not works(lists) and works(plain) else lists


def _has_lists(tree: Any) -> bool:
    """Whether `with_lists` would change a tree."""
    if not isinstance(tree, dict):
        return False
    return isinstance(with_lists(tree), list) or any(_has_lists(value) for value in tree.values())
