"""The record of `curv doctor`: properties of this machine, and problems."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata

from curvcli import __version__
from curvcli.run import cache
from curvcli.run.runtime import thread_count
from curvcli.schema.doctor import Cache, DoctorRecord, Memory, Speed

PACKAGES = (
    "jax", "jaxlib", "flax", "orbax-checkpoint", "tensorstore", "numpy", "scipy", "pydantic", "typer", "rich",
    "pyarrow", "safetensors", "optax",
)  # fmt: skip
"""The required packages, then those of the extras."""

LEAST = 1 << 30
"""Least number of bytes of memory for useful analyses."""


def examined(threads: int | None, sums_rightly: bool, memory: Memory, speed: Speed) -> DoctorRecord:
    """Build the record of `curv doctor` from measurements of this machine."""
    import jax

    cache = _cache()
    problems = []
    if not sums_rightly:
        problems.append("XLA sums wrongly here (as in jax issue 39103): install another release of jaxlib")
    if cache is None:
        problems.append("no folder for compiled programs can be had: set CURV_CACHE_DIR to one that you can write")
    if memory.limit < LEAST:
        problems.append(f"only {memory.limit / 1e6:.0f} MB may be taken: close other programs, or use --max-memory")
    return DoctorRecord(
        curv=__version__, python=platform.python_version(), platform=f"{platform.system()} {platform.machine()}",
        packages={name: _version(name) for name in PACKAGES},
        devices=[" ".join(dict.fromkeys((device.platform, device.device_kind))) for device in jax.local_devices()],
        threads=thread_count(threads),
        cache=cache, memory=memory, speed=speed, problems=problems,
    )  # fmt: skip


def _version(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def _cache() -> Cache | None:
    plans = cache.folder("plans")
    if plans is None or not os.access(plans, os.W_OK):
        return None
    sizes = []
    for parent, _, names in os.walk(plans.parent):
        for name in names:
            with contextlib.suppress(OSError):  # other processes remove files too
                sizes.append(os.lstat(os.path.join(parent, name)).st_size)  # noqa: PTH118 - thousands of files
    return Cache(path=str(plans.parent), bytes=sum(sizes), files=len(sizes))
