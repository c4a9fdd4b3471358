"""A sample model, or another checkpoint with a `curv.toml` of its own, as a problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curvcli.analyses.common.tuning import planned
from curvcli.loading.checkpoints import orbax
from curvcli.loading.resolve import load_problem
from curvcli.loading.spec.files import find_spec, merge
from curvcli.problem import Problem

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"


def load(path: Path, settings: Any) -> Problem:
    """The problem of a checkpoint, its work cut as the command line cuts it.

    Parameters
    ----------
    settings
        Of any analysis: which parameters, how much data, in which arithmetic.
    """
    found = find_spec(path, None, orbax.read_metadata)
    spec = merge(found, {})
    return planned(load_problem(spec, found, path, settings, step=None, trust=True).problem, settings)
