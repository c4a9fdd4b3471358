"""Loops that a monitor watches: what it is told, and when it is asked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import curvcli
from curvcli.linalg.iterate import Silent, finished, watched

PACKAGE = Path(curvcli.__file__).parent

LOOPS = {"linalg/iterate.py", "linalg/sampling.py"}
SAMPLERS = {
    "analyses/compare/analysis.py",
    "analyses/diag.py",
    "analyses/spectrum.py",
    "analyses/trace.py",
    "linalg/trace/quadratic.py",
    "linalg/trace/stock.py",
}
"""Samplers of test vectors, which report what they have drawn."""
