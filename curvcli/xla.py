"""Known faults of XLA releases, switched off by options of XLA's own. Knows no JAX.

jaxlib 0.10.2 and 0.11.0 on a CPU return wrong numbers, silently, for products that are summed over an axis in arrays
of more than 32,768 elements (jax issue #39103), and for smaller ones whose sum is broadcast again; they crash on some
reductions of high rank (#39257, #40412). Every softmax of a large batch is such a sum. The fault lies in the fusion of
reductions into the YNNPACK library, which an option turns off; the cost of doing so was measured as none.

The option of a compiled program holds whenever JAX was started (`compiling.jit`). The environment variable, which XLA
reads once, guards what is compiled elsewhere: single operations, and the user's own programs.
"""

from __future__ import annotations

import functools
import os
from importlib import metadata

AFFECTED = ("0.10.2", "0.11.0")
OPTION = "xla_cpu_experimental_ynn_fusion_type"
SWITCH = f"--{OPTION}"


@functools.cache
def _affected() -> bool:
    try:
        return metadata.version("jaxlib") in AFFECTED
    except metadata.PackageNotFoundError:
        return False


def program_options() -> dict[str, str]:
    """Compiler options that every program of the package needs with the installed jaxlib."""
    return {OPTION: ""} if _affected() else {}


def guard_environment() -> None:
    """Set the switch where the installed jaxlib needs it. Has an effect only before JAX's first computation.

    A value of the user's own is left alone.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _affected() and SWITCH not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {SWITCH}=-reduce".strip()
