"""Every eigenvalue of a small matrix, written out on its parameter side or on its output side."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg

from curvcli.analyses.common.dense import outputs_written_out, written_out
from curvcli.curvature.products.gram import Gram
from curvcli.devices import on_host
from curvcli.linalg.iterate import Monitor
from curvcli.linalg.meter import Meter
from curvcli.linalg.operator import LinearOperator
from curvcli.problem import Problem
from curvcli.schema.settings import AnalysisSettings


class Written(NamedTuple):
    """Every eigenvalue, and unit vectors of both extremes."""

    values: np.ndarray  # ascending, each once
    copies: np.ndarray  # how often each occurs: they sum to D
    ends: Any  # [2, D]
    residual: float = 0.0  # of λ_max, measured; that of what was written out is rounding alone


def eigenvalues_from_parameters(operator: LinearOperator, block: int, monitor: Monitor) -> Written:
    """All eigenvalues of the matrix written out."""
    values, vectors = scipy.linalg.eigh(written_out(operator, block, monitor))
    return Written(values, np.ones(len(values), int), vectors[:, [0, -1]].T.astype(operator.dtype))


def eigenvalues_from_outputs(
    problem: Problem,
    operator: LinearOperator,
    settings: AnalysisSettings,
    block: int,
    monitor: Monitor,
    meter: Meter,
) -> Written:
    """All eigenvalues, from those of the output side; its fewer rows leave the shift alone for λ_min."""
    gram, kernel, _ = outputs_written_out(problem, settings, block, monitor, meter)
    values, vectors = scipy.linalg.eigh(kernel)
    values = gram.shift + np.r_[0.0, np.maximum(values, 0)]  # positive semi-definite but for rounding
    copies = np.r_[problem.dim - gram.rows, np.ones(gram.rows, int)]
    top = _pulled_back(gram, vectors[:, -1:].T, operator.dtype, meter)
    # Every form of an example vanishes on the null space, as on the zero vector that stands for it.
    image = operator.images(top)  # the matrix's own product
    residual = float(np.linalg.norm(image - values[-1] * np.asarray(top, np.float64)))
    return Written(values, copies, jax.numpy.concatenate([jax.numpy.zeros_like(top), top]), residual)


def _pulled_back(gram: Gram, vectors: np.ndarray, dtype: Any, meter: Meter) -> Any:
    """Unit eigenvectors of the matrix from those of its output side; zeros where the matrix is."""
    meter.products += len(vectors)
    meter.data_passes += 1
    with jax.enable_x64(True):
        pulled = on_host(gram.pull(vectors))
    size = np.linalg.norm(pulled, axis=1, keepdims=True)
    return jax.numpy.asarray(pulled / np.where(size > 0, size, 1), dtype)
