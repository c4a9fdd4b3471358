"""The parts of `benchmarks/compare.py`, each a program of its own for one process."""

import contextlib

# Every process computes with the guarded JAX. Before the environment is made, curvcli may not be there.
with contextlib.suppress(ModuleNotFoundError):
    from curvcli.xla import guard_environment

    guard_environment()
