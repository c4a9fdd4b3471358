"""The least of a quadratic over the span of a few vectors: exact step sizes, and momentum."""

from __future__ import annotations

import numpy as np

ROUNDING = 64
"""Curvatures below this times eps of the largest are rounding."""


def least_over(rows: np.ndarray, images: np.ndarray, gradient: np.ndarray, eps: float) -> np.ndarray | None:
    """The c [k] of the least gᵀ(cᵀR) + ½ (cᵀR) A (cᵀR)ᵀ.

    Parameters
    ----------
    rows
        R [k, dim]; a row may be zero, or depend on the others.
    images
        R A [k, dim].
    gradient
        g [dim].
    eps
        Of the arithmetic of the images.

    Returns
    -------
    The shortest minimiser (of rows scaled to length 1), or None: A curves downwards on the span, or not at all.

    Notes
    -----
    Over −g and the step before, from the second step on, this is conjugate gradients on a quadratic.
    Source: Martens and Grosse (2015), section 7, for r and the step before.
    """
    lengths = np.linalg.norm(rows, axis=1)
    lengths = np.where(lengths > 0, lengths, 1.0)
    forms = (rows / lengths[:, None]) @ (images / lengths[:, None]).T
    values, vectors = np.linalg.eigh(0.5 * (forms + forms.T))
    cut = ROUNDING * eps * float(np.abs(values).max())
    if values[0] < -cut or not values[-1] > 0:
        return None
    known = values > cut
    slopes = vectors.T @ (rows @ gradient / lengths)
    return -(vectors[:, known] @ (slopes[known] / values[known])) / lengths
