"""Known faults of XLA releases, mended by its own switches before JAX starts.

jaxlib 0.10.2 and 0.11.0 on a CPU return wrong numbers, silently, for products that are summed over an axis in arrays
of more than 32,768 elements (jax issue #39103), and crash on some reductions of high rank (#39257, #40412). Every
softmax of a large batch is such a sum. The fault lies in the fusion of reductions into the YNNPACK library, which a
flag turns off; the cost of doing so was measured as none.
"""

from __future__ import annotations

import os
from importlib import metadata

AFFECTED = ("0.10.2", "0.11.0")
SWITCH = "--xla_cpu_experimental_ynn_fusion_type"


def guard_environment() -> None:
    """Set the switch where the installed jaxlib needs it. Must run before JAX's first computation.

    A value of the user's own is left alone.
    """
    try:
        affected = metadata.version("jaxlib") in AFFECTED
    except metadata.PackageNotFoundError:
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if affected and SWITCH not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {SWITCH}=-reduce".strip()
