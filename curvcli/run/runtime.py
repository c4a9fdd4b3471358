"""Configuration of JAX for this process, and measurements of its compilation time and memory."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curvcli.run.cache import enable_compilation_cache
from curvcli.schema.report import Environment
from curvcli.stopwatch import Stopwatch
from curvcli.xla import guard_environment


def prepare_jax(dtype: str, threads: int | None, *, cache: bool) -> None:
    """Configure JAX before its first computation: threads, precision, dtype, compilation cache."""
    if threads is not None:
        # XLA's CPU backend sizes its pool by NPROC, read when the backend starts.
        os.environ["NPROC"] = str(threads)
    guard_environment()
    import jax

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    # Accelerators multiply float32 in lower precision by default; curvature is a second derivative and needs it whole.
    jax.config.update("jax_default_matmul_precision", "highest")
    if cache:
        enable_compilation_cache(jax)


@contextlib.contextmanager
def compile_clock(watch: Stopwatch) -> Iterator[None]:
    """Measure the seconds that XLA spends compiling or reading compiled programs, as JAX reports them."""
    from jax import monitoring

    active = [True]

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if active[0] and event.endswith("backend_compile_duration"):
            watch.compiling += duration_secs

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        active[0] = False  # listeners cannot be taken off again without touching those of others


def peak_memory() -> int:
    """Return the peak bytes of the device, or of the process where the device is the host."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use") or _peak_of_process())


def _peak_of_process() -> int:
    """Return the peak bytes of this process; `ru_maxrss` alone would include the peak of the parent process."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def thread_count(given: int | None) -> int:
    """Return the number of CPU threads: the one given, else the number of cores that this process may use."""
    return given or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])


def environment(settings: Any) -> Environment:
    """Describe the environment: version of JAX, device, dtype, threads, devices, processes."""
    import jax

    from curvcli.devices import mesh_of

    device, mesh = jax.local_devices()[0], mesh_of(settings.devices)
    return Environment(
        jax=jax.__version__,
        device=f"{device.platform} {device.device_kind}",
        dtype=settings.dtype,
        threads=thread_count(settings.threads),
        devices=1 if mesh is None else mesh.size,
        processes=jax.process_count(),
    )
