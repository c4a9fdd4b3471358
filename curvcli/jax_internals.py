"""What the package reads of JAX beyond its public interface: equations, `jax._src` and `jaxlib`, in one place.

A release of JAX may change any of this. `KNOWN` names the releases whose structure was read and tested. With another
one, a reader that fails gives way to a plain path (`plain_where_unknown`): a network is not rewritten, a layer is not
recognised, a forecast is coarser. What is computed stays right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal

try:
    from jax._src.core import trace_state_clean as _trace_state_clean
except ImportError:
    _trace_state_clean = None

KNOWN = ("0.10", "0.11", "0.12")
"""Releases of JAX whose equations are known here."""

UNREADABLE = (AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, TypeError, ValueError)
"""What reading an unknown structure raises."""


def is_known() -> bool:
    """Whether the structure of this JAX release is known: an error while reading is then a fault of this package."""
    return ".".join(jax.__version__.split(".")[:2]) in KNOWN


def plain_where_unknown(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: with an unknown release of JAX, `plain` of the same arguments answers where the function fails."""

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_known():
                return function(*args, **kwargs)
            try:
                return function(*args, **kwargs)
            except UNREADABLE:
                return plain(*args, **kwargs)

        return call

    return decorated


def is_tracing(arguments: Any) -> bool:
    """Whether a function is being traced, so that what is called now becomes part of another program.

    Without JAX's own answer, tracers among the arguments (a tree) tell.
    """
    if _trace_state_clean is None:
        return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments))
    return not _trace_state_clean()


# --- equations --------------------------------------------------------------------------------------------


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a constant of its own."""
    return isinstance(atom, Literal)


def closed(jaxpr: Any) -> ClosedJaxpr:
    """A jaxpr with its constants, whether it comes with them or not."""
    return jaxpr if hasattr(jaxpr, "consts") and hasattr(jaxpr, "jaxpr") else ClosedJaxpr(jaxpr, ())


def inner_jaxprs(equation: Any) -> list[ClosedJaxpr]:
    """The jaxprs that an equation holds: of a call, a loop, branches, a function with a derivative of its own."""
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
    return [closed(value) for value in values if _is_jaxpr(value)]


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr, those of inner jaxprs (jit, loops, custom derivatives) in place of their calls."""
    return (equation for equation, _ in repeated_equations(jaxpr))


def repeated_equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """The same with how often each runs: `scan` repeats its body; a `while` loop's count is not known."""
    for equation in jaxpr.eqns:
        inner = inner_jaxprs(equation)
        if not inner:
            yield equation, times
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for body in inner:
            yield from repeated_equations(body.jaxpr, times * length)


def bound(equation: Any, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of an equation as it stands."""
    outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return list(outputs) if equation.primitive.multiple_results else [outputs]


CALLS = {"jit": "jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr", "call": "call_jaxpr", "closed_call": "call_jaxpr"}
"""Primitives that run a jaxpr once, on their own inputs, and the parameter that holds it.

`jax.checkpoint` has two names, by the release. Functions with a derivative of their own are no calls: entered, they
would lose it.
"""

CUSTOM_VJP = "custom_vjp_call"
CUSTOM_DERIVATIVES = ("custom_jvp_call", CUSTOM_VJP)
"""Primitives of functions with a derivative of their own; `call_jaxpr` holds the function."""


def called(equation: Any) -> ClosedJaxpr | None:
    """The jaxpr that a call runs; None of an equation that is no call."""
    holder = CALLS.get(equation.primitive.name)
    return None if holder is None else closed(equation.params[holder])


class Interpreter:
    """Runs a jaxpr equation by equation, on arrays or on what is known of them, with the equations of calls inside.

    A subclass overrides what it does in its own way: `constant`, `equation`, `call`.

    Attributes
    ----------
    site
        Number of the last equation, in the order of evaluation: the equations of a call are counted in its place.
    """

    site = -1

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a jaxpr, from its constants and inputs."""
        values = dict(zip(jaxpr.constvars, map(self.constant, consts), strict=True))
        values.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Any:
            return self.constant(atom.val) if is_literal(atom) else values[atom]

        for equation in jaxpr.eqns:
            arguments, body = [read(atom) for atom in equation.invars], called(equation)
            if body is None:
                self.site += 1
                outputs = self.equation(equation, arguments)
            else:
                outputs = self.call(equation, body, arguments)
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def constant(self, value: Any) -> Any:
        """What stands for a constant or a literal."""
        return value

    def equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        """The outputs of an equation that is no call."""
        return bound(equation, inputs)

    def call(self, equation: Any, body: ClosedJaxpr, inputs: list[Any]) -> list[Any]:
        """The outputs of a call of `body`."""
        return self.run(body.jaxpr, body.consts, inputs)


def scan_sizes(equation: Any) -> tuple[int, int]:
    """Of a `scan`: how many of its inputs are constants, and how many arrays it carries.

    Read from shapes, which every release has: what is scanned over has an axis more outside than in the body, and so
    have the outputs that are stacked.
    """
    body = closed(equation.params["jaxpr"]).jaxpr

    def stacked(outside: Sequence[Any], within: Sequence[Any]) -> int:
        return sum(a.aval.ndim > b.aval.ndim for a, b in zip(outside, within, strict=True))

    carried = len(equation.outvars) - stacked(equation.outvars, body.outvars)
    return len(equation.invars) - stacked(equation.invars, body.invars) - carried, carried


def source(jaxpr: Any) -> tuple[str, str, str]:
    """Name, file and line of the function that was traced, as far as JAX remembers them."""
    told = str(getattr(getattr(jaxpr, "debug_info", None), "func_src_info", None) or "")
    name, _, place = told.partition(" at ")
    file, _, line = place.rpartition(":")
    return name, file, line


# --- compiled programs ------------------------------------------------------------------------------------


def keep_programs(store: Any) -> None:
    """Let JAX keep compiled programs in `store` in place of its own files.

    An entry that JAX writes can be half written, is then refused at every run with a warning, and is never replaced. A
    release that asks for no cache by this name keeps its own.

    Parameters
    ----------
    store
        `get(key) -> bytes | None` and `put(key, value)`, which raise nothing.
    """
    try:
        from jax._src import compilation_cache

        compilation_cache.reset_cache()
        if is_known() or hasattr(compilation_cache, "get_file_cache"):
            compilation_cache.get_file_cache = lambda path: (store, path)
    except UNREADABLE:
        if is_known():
            raise


# --- processes --------------------------------------------------------------------------------------------


def detected_cluster(timeout: int) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """Coordinator, number of processes, rank and devices of this one, as JAX finds its cluster; None where it does not.

    With a JAX that does not tell, nothing is found: three variables name them then.
    """
    try:
        from jax._src.clusters import ClusterEnv

        return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
    except UNREADABLE:
        if is_known():
            raise
        return None, None, None, None


def bind_gloo(host: str) -> None:
    """Let Gloo, which moves arrays between CPUs, listen on this address; with an unknown jaxlib it chooses its own."""
    import jaxlib

    runtime: Any = getattr(jaxlib, "_jax", None)  # there is no public way
    make = getattr(runtime, "make_gloo_tcp_collectives", None)
    if make is not None and not isinstance(make, functools.partial):
        runtime.make_gloo_tcp_collectives = functools.partial(make, hostname=host)
