"""What the package reads of JAX beyond its public interface, in one place.

Every function here says what it does where JAX no longer has the part that it reads: the package then takes a plain
path, which is slower or tells less and is right. Known: jax and jaxlib 0.10, 0.11 and 0.12.
"""

from __future__ import annotations

from typing import Any

import jax


def is_tracing(arguments: Any) -> bool:
    """Whether a function is being traced, so that what is called now becomes part of another program.

    Without JAX's own answer, tracers among the arguments (a tree) tell.
    """
    try:
        from jax._src.core import trace_state_clean
    except ImportError:
        return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments))
    return not trace_state_clean()
