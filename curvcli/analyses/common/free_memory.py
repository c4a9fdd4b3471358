"""Memory that is free: of the device, of the machine, of the control groups that the process is in, of its ulimit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import jax

GROUPS = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self")


def available_bytes() -> int:
    """Free memory of the first device, or of the machine where the device is a CPU.

    What the page cache holds counts as free: of data that are read again and again from memory maps it holds as much as
    there is room for, and gives it up when asked.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return free_host_bytes()


def free_host_bytes() -> int:
    """Free memory of the machine, as far as this process may have it."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return max(min([free, *_left_by_groups(), *_left_by_ulimit()]), 0)


def _left_by_groups() -> Iterator[int]:
    """What each control group that sets a limit leaves free: the process's own and those above it, versions 1 and 2."""
    try:
        lines = (PROCESS / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    folders = {(GROUPS, "memory.max", "memory.current", "")}  # as a container sees its own
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inside = [own.relative_to("/") for own in (PurePosixPath(path), *PurePosixPath(path).parents)]
        if not controllers:
            folders |= {(GROUPS / own, "memory.max", "memory.current", "") for own in inside}
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
            folders |= {(GROUPS / "memory" / own, *names) for own in inside}
    for folder, limit, usage, prefix in folders:
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(int(stat[f"{prefix}{name}"]) for name in ("inactive_file", "active_file"))
            yield int((folder / limit).read_text()) - int((folder / usage).read_text()) + cached
        except (OSError, ValueError, KeyError):  # no such group here, or no limit: "max"
            continue


def _left_by_ulimit() -> Iterator[int]:
    """What `ulimit -v` leaves of the address space."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            yield limit - int((PROCESS / "statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):
        return
