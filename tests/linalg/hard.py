"""Symmetric matrices that eigensolvers and solvers are tested with, after LAPACK's (DLATMS) and Higham's."""

from __future__ import annotations

import numpy as np

DIM = 21
CONDITION = 1e5
"""Of the modes; within reach of float32."""


def rotated(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues in random directions."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    matrix = (q * values) @ q.T
    return 0.5 * (matrix + matrix.T)


def modes() -> dict[str, np.ndarray]:
    """Eigenvalues of DLATMS's modes 1 to 5, and of the third with signs in turn."""
    place = np.arange(DIM) / (DIM - 1)
    geometric = CONDITION**-place
    return {
        "one large": np.r_[1.0, np.full(DIM - 1, 1 / CONDITION)],
        "one small": np.r_[np.ones(DIM - 1), 1 / CONDITION],
        "geometric": geometric,
        "arithmetic": 1 - place * (1 - 1 / CONDITION),
        "random logarithms": np.exp(np.random.default_rng(5).uniform(-np.log(CONDITION), 0, DIM)),
        "geometric, of both signs": geometric * (-1.0) ** np.arange(DIM),
        "clustered": np.r_[np.full(5, 2.0), 1 + 1e-9 * np.arange(DIM - 10), np.full(5, -1.0)],
        "low rank": np.r_[3.0, 1.0, -2.0, np.zeros(DIM - 3)],
    }


def wilkinson(size: int) -> np.ndarray:
    """W⁺: pairs of eigenvalues that agree to many digits."""
    off = np.ones(size - 1)
    return np.diag(np.abs(np.arange(size) - size // 2).astype(float)) + np.diag(off, 1) + np.diag(off, -1)


def glued(glue: float) -> np.ndarray:
    """Three W⁺ of 7 rows, weakly joined: groups of three eigenvalues that nearly agree."""
    matrix = np.kron(np.eye(3), wilkinson(7))
    for row in (7, 14):
        matrix[row, row - 1] = matrix[row - 1, row] = glue
    return matrix


def kahan(angle: float = 1.2) -> np.ndarray:
    """KᵀK of Kahan's triangular matrix: tiny eigenvalues that no diagonal entry shows."""
    s, c = np.sin(angle), np.cos(angle)
    k = np.diag(s ** np.arange(DIM)) @ (np.eye(DIM) - c * np.triu(np.ones((DIM, DIM)), 1))
    return k.T @ k


def hard_matrices() -> dict[str, np.ndarray]:
    """All of them, [DIM, DIM] in float64, of a size near 1."""
    graded = 10.0 ** (-0.25 * np.arange(DIM))
    return {
        **{name: rotated(values) for name, values in modes().items()},
        "graded": graded[:, None] * rotated(modes()["arithmetic"] + 1) * graded,
        "graded upwards": (graded[:, None] * rotated(modes()["arithmetic"] + 1) * graded)[::-1, ::-1].copy(),
        "Wilkinson": wilkinson(DIM),
        "glued Wilkinson": glued(1e-8),
        "Kahan": kahan(),
        "zero": np.zeros((DIM, DIM)),
        "identity": np.eye(DIM),
        "diagonal": np.diag(np.linspace(-1, 1, DIM)),
    }


SCALES = {"float32": {"tiny": 1e-30, "huge": 1e30}, "float64": {"tiny": 1e-140, "huge": 1e140}}
"""Numbers whose squares are zero or infinite in float32, and nearly so in float64 (as LAPACK scales its own)."""


def cases() -> dict[str, tuple[str, np.ndarray]]:
    """Names to (dtype, matrix as stored in it, in float64): the matrices in both, and some at the ends of the range."""
    found = {}
    for dtype, scales in SCALES.items():
        plain = hard_matrices()
        scaled = {
            f"{name}, {how}": plain[name] * scale
            for how, scale in scales.items()
            for name in ("geometric, of both signs", "Wilkinson", "identity")
        }
        for name, matrix in (plain | scaled).items():
            found[f"{name} {dtype}"] = (dtype, matrix.astype(dtype).astype(float))
    return found
