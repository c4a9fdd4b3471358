"""One command line of curv, its forecast and its peak of memory: `python -m comparison.peak JOB`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from curvcli.cli.main import build_app, run

from . import jobs, ours


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Bytes beyond those after the imports, the forecast of them, and what the command took."""
    import jax.numpy as jnp

    ours.prepare()
    build_app(None)
    jnp.zeros(1).block_until_ready()
    before = jobs.peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        forecast = _answered([*job["arguments"], "--dry-run"], Path(folder) / "forecast.json")
        planned = jobs.peak_bytes()
        report = _answered(job["arguments"], Path(folder) / "report.json")
    return {
        "bytes": jobs.peak_bytes() - before, "forecast_bytes": forecast["forecast"]["bytes"], "bare_bytes": before,
        "planned_bytes": planned - before, "method": report["result"].get("method"), "cost": report["cost"],
    }  # fmt: skip


def _answered(arguments: list[str], file: Path) -> dict[str, Any]:
    code = run([*arguments, "--no-cache", "-q", "-o", str(file)])
    if not file.exists():
        raise RuntimeError(f"exit code {code}")
    return json.loads(file.read_text())


if __name__ == "__main__":
    jobs.answer(main)
