"""A form vᵀ f(A) v by the Gauss quadrature of one Lanczos process, which ends when the form has settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from curvcli.linalg.lanczos import Lanczos, LanczosState

EVERY = 8
"""Steps between two looks at the form."""


@dataclass(frozen=True)
class SettledForm(Lanczos):
    """The Lanczos process of one unit vector, until vᵀ f(A) v changes by no more than `rtol` over `EVERY` steps.

    Parameters
    ----------
    f
        A function of eigenvalues [m], all of one sign.
    rtol
        Relative change.

    Notes
    -----
    Cost: a product a step, at most `steps`. Source: Golub and Meurant (2010), chapter 6.
    """

    f: Callable[[np.ndarray], np.ndarray] = field(default=np.square)
    rtol: float = 0.01

    def done(self, state: LanczosState) -> bool:
        """All steps made, an invariant space, or settled."""
        if super().done(state):
            return True
        steps = state.done_steps
        if steps < 2 * EVERY or steps % EVERY:
            return False
        before, now = self.form(state, steps - EVERY), self.form(state, steps)
        return abs(now - before) <= self.rtol * abs(now)

    def form(self, state: LanczosState, steps: int | None = None) -> float:
        """The quadrature after so many steps, or after all."""
        tridiagonal = self.result(state)[0]
        if steps is not None:
            tridiagonal = tridiagonal._replace(alpha=tridiagonal.alpha[:steps], beta=tridiagonal.beta[:steps])
        values, vectors = tridiagonal.eigh()
        return float(self.f(values) @ np.square(vectors[0]))
