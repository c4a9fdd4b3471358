"""The spectra that intervals are tried on."""

from __future__ import annotations

import numpy as np

DIM = 300
_rng = np.random.default_rng(1)
SPECTRA: dict[str, np.ndarray] = {
    "flat": _rng.uniform(0.9, 1.1, DIM),
    "single outlier": np.concatenate([[1000.0], _rng.uniform(0, 1, DIM - 1)]),
    "few outliers": np.concatenate([[100, 50, 30, 20, 10], _rng.uniform(-0.5, 1, DIM - 5)]),
    "indefinite": _rng.normal(size=DIM),
    "low rank": np.concatenate([[9, 5, 3, -1, -2], np.zeros(DIM - 5)]),
    "exponential": 0.7 ** np.arange(DIM),
    "power law 1/i": 1 / np.arange(1, DIM + 1),
}


def rotated(values: np.ndarray) -> np.ndarray:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    basis, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(len(values), len(values))))
    return (basis * values) @ basis.T
