"""The `jit` of the package: `jax.jit` with the compiler options that keep this jaxlib from computing wrong numbers.

An option of a program holds whenever JAX was started, where an environment variable is read once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from curvcli.jax_internals import is_tracing
from curvcli.xla import program_options


def jit(
    function: Callable[..., Any] | None = None,
    *,
    static_argnums: int | Sequence[int] = (),
    donate_argnums: int | Sequence[int] = (),
) -> Any:
    """`jax.jit` with the options of `xla.program_options`; a decorator with or without arguments.

    Inside of another traced function the options are left out: those of the outermost program hold for all of it, and
    JAX refuses options of inner ones. Has `lower` and `clear_cache`, as `jax.jit`'s functions have.
    """
    if function is None:
        return functools.partial(jit, static_argnums=static_argnums, donate_argnums=donate_argnums)
    inner = jax.jit(function, static_argnums=static_argnums, donate_argnums=donate_argnums)
    options = program_options()
    if not options:
        return inner
    outermost = jax.jit(
        function, static_argnums=static_argnums, donate_argnums=donate_argnums, compiler_options=options
    )

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (inner if is_tracing(args) else outermost)(*args, **kwargs)

    for name in ("lower", "clear_cache", "_cache_size"):
        setattr(call, name, getattr(outermost, name))
    return call
