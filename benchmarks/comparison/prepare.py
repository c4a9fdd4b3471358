"""Writes the files of the workloads: `python -m comparison.prepare JOB.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import jobs, ours, workloads


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Folders by name."""
    ours.prepare()
    return {"folders": {name: str(workloads.write(name, Path(job["folder"]))) for name in job["workloads"]}}


if __name__ == "__main__":
    jobs.answer(main)
