"""A form vᵀ f(A) v by the Gauss quadrature of one Lanczos process, which ends when the form has settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from curvcli.linalg.krylov.lanczos import Lanczos, LanczosState

EVERY = 8
"""Steps between two looks at the form."""

LOOKS = 4
"""Looks in a row that must agree: of an indefinite matrix the form can stand still by chance."""


@dataclass(frozen=True)
class SettledForm(Lanczos):
    """The Lanczos process of one unit vector, until vᵀ f(A) v has changed by no more than `rtol` in several looks.

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
    rtol: float = 1e-3

    def done(self, state: LanczosState) -> bool:
        """All steps made, an invariant space, or settled."""
        return super().done(state) or (state.done_steps % EVERY == 0 and self.settled(state))

    def settled(self, state: LanczosState) -> bool:
        """Whether the form is known: from an invariant space, or since further steps do not change it."""
        steps = state.done_steps
        if state.sizes[0]:
            return True
        if steps < LOOKS * EVERY:
            return False
        looks = [self.form(state, steps - i * EVERY) for i in range(LOOKS)]
        return max(looks) - min(looks) <= self.rtol * abs(looks[0])

    def form(self, state: LanczosState, steps: int | None = None) -> float:
        """The quadrature after so many steps, or after all."""
        tridiagonal = self.result(state)[0]
        if steps is not None:
            tridiagonal = tridiagonal._replace(alpha=tridiagonal.alpha[:steps], beta=tridiagonal.beta[:steps])
        values, vectors = tridiagonal.eigh()
        return float(self.f(values) @ np.square(vectors[0]))
