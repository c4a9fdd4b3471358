"""curv's spectral density twice in one process: `python -m comparison.warm JOB.json`.

The first run gives the peak of memory, the second the seconds without tracing and compilation.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from . import jobs, ours


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds, products, bytes beyond a bare process and the forecast of them."""
    ours.prepare()
    jnp.zeros(1).block_until_ready()
    before = jobs.peak_bytes()
    run, forecast, way = ours.density(Path(job["folder"]), probes=job["probes"], steps=job["steps"])
    run()
    peak, start = jobs.peak_bytes(), time.perf_counter()
    products = run()
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds, "products": products, "bytes": peak - before, "forecast_bytes": forecast, "way": way,
    }  # fmt: skip


if __name__ == "__main__":
    jobs.answer(main)
