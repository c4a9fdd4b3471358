"""Turns: every contestant once a round, so that the machine's noise hits all alike; ratios are taken within rounds."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Contestant:
    """One way of computing something.

    Parameters
    ----------
    tool, quantity
        Who computes what.
    run
        Computes it and waits for the end.
    vectors
        In one call of `run`.
    first
        From what `run` returns, the first vector's result in curv's order, to be compared; None: nothing to compare.
    """

    tool: str
    quantity: str
    run: Callable[[], Any]
    vectors: int = 1
    first: Callable[[Any], np.ndarray] | None = None

    @property
    def name(self) -> str:
        """`quantity: tool, block of vectors`."""
        return f"{self.quantity}: {self.tool}" + (f", block of {self.vectors}" if self.vectors > 1 else "")


def take_turns(contestants: list[Contestant], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds a vector of each contestant in each round; it is called for `seconds` a round, once at least.

    All run once before: with the call that compared their results, the first has compiled and the second kept what
    is kept.
    """
    for one in contestants:
        one.run()
    times: dict[str, list[float]] = {one.name: [] for one in contestants}
    for turn in range(rounds):
        shift = turn * len(contestants) // max(rounds, 1)
        for one in contestants[shift:] + contestants[:shift]:
            times[one.name].append(_timed(one.run, seconds) / one.vectors)
    return times


def _timed(run: Callable[[], Any], seconds: float) -> float:
    """Median milliseconds of a call."""
    spent: list[float] = []
    while sum(spent) < seconds:
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return 1e3 * float(np.median(spent))


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios within rounds."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def machine() -> dict[str, Any]:
    """Cores, what they are busy with already, CPU, versions and date."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    versions = {}
    for name in ("curvcli", "jax", "jaxlib", "flax", "numpy", "scipy", "torch", *PEERS.values()):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": date.today().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "cpu": model,
        "python": platform.python_version(),
        "versions": versions,
    }


PEERS = {
    "pyhessian": "pyhessian",
    "curvlinops": "curvlinops-for-pytorch",
    "hessian_eigenthings": "hessian-eigenthings",
    "matfree": "matfree",
    "pydvl": "pyDVL",
    "kronfluence": "kronfluence",
}
"""Modules of the peers, and their distributions."""
