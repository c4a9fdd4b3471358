"""What common test vectors told of several matrices, as estimates with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from curvcli.analyses.common.estimates import estimate
from curvcli.analyses.common.rounding import OWN, exact, widened
from curvcli.analyses.compare.candidates import Candidate, Diagonalised
from curvcli.analyses.spectrum import noise
from curvcli.linalg.statistics import Law, Sampled, student_interval
from curvcli.linalg.trace.together import Together
from curvcli.schema.compare import CompareSettings
from curvcli.schema.estimate import Estimate


@dataclass(frozen=True)
class Reader:
    """Estimates from the laws of `Together`; exact ones where a matrix knows its eigenvalues.

    Parameters
    ----------
    level
        Error probability of an interval.
    rounding
        Of the products of each matrix relative to its Frobenius norm, measured.
    """

    settings: CompareSettings
    level: float
    together: Together
    compared: list[Candidate]
    rounding: list[float]

    @property
    def _exact(self) -> bool:
        return not self.together.drawn

    def trace(self, i: int) -> Estimate:
        """tr A_i."""
        if (spectral := self.compared[i].spectral) is not None:
            values, dim = spectral.eigenvalues(), self.together.dim
            size = float(np.linalg.norm(values))
            trace = exact(float(values.sum()), self.settings.confidence, size, dim, self._arithmetic(i))
        else:
            law = self.together.trace(i)
            size = math.sqrt(self.together.dim * float(self.together.values()[self.together.square(i)]))
            trace = self._estimate(law, student_interval(law, self.level), self._noise(i) * size)
        return widened(trace, self._floor(i))

    def norm(self, i: int) -> Estimate:
        """‖A_i‖_F."""
        if (spectral := self.compared[i].spectral) is not None:
            size = float(np.linalg.norm(spectral.eigenvalues()))
            norm = exact(size, self.settings.confidence, size, self.together.dim, self._arithmetic(i))
        else:
            norm = self._positive(self.together.norm(self.together.square(i)), None, i)
        return widened(norm, self._floor(i))

    def distance(self, i: int, j: int) -> Estimate:
        """‖A_i − A_j‖_F."""
        values = self.together.values()
        largest = max(values[self.together.square(i)], values[self.together.square(j)])
        distance = self._positive(self.together.norm(self.together.distance(i, j)), math.sqrt(largest), i, j)
        return widened(distance, self._floor(i, j))

    def relative(self, i: int, j: int) -> Estimate | None:
        """‖A_i − A_j‖_F/‖A_i‖_F; None for A_i = 0."""
        values = self.together.values()
        own, other = values[self.together.square(i)], values[self.together.square(j)]
        if math.sqrt(own) <= self._floor(i):
            return None
        return self._positive(self.together.relative(i, j), math.sqrt(max(own, other) / own), i, j)

    def alignment(self, i: int, j: int) -> Estimate | None:
        """⟨A_i, A_j⟩/(‖A_i‖ ‖A_j‖); None where one of them is 0."""
        values = self.together.values()
        if any(math.sqrt(values[self.together.square(place)]) <= self._floor(place) for place in (i, j)):
            return None
        law = self.together.alignment(i, j)
        law = law._replace(value=float(np.clip(law.value, -1, 1)))
        low, high = student_interval(law, self.level)
        if law.stderr and abs(law.value) < 1:
            # Fisher's z: near ±1 the error is to one side.
            wide = law._replace(value=math.atanh(law.value), stderr=law.stderr / (1 - law.value**2))
            low, high = (math.tanh(end) for end in student_interval(wide, self.level))
        found = self._estimate(law, (low, high), self._noise(i, j))
        return found.model_copy(update={"interval": (max(found.interval[0], -1.0), min(found.interval[1], 1.0))})

    def widest(self) -> float:
        """Half the width of the widest interval of a relative distance."""
        pairs = [(i, j) for i in range(len(self.compared)) for j in range(len(self.compared)) if i != j]
        intervals = [distance.interval for i, j in pairs if (distance := self.relative(i, j)) is not None]
        return max((0.5 * (high - low) for low, high in intervals), default=0.0)

    def _floor(self, *places: int) -> float:
        """What is left of terms that cancel, in a sum over the diagonal or in a Frobenius norm."""
        return self.together.dim * sum(self.compared[place].operator.floor for place in places)

    def _noise(self, *places: int) -> float:
        """Rounding of the products of some of the matrices relative to ‖A‖_F, at its largest."""
        if self._exact:
            return max(OWN * float(np.finfo(self._arithmetic(i)).eps) for i in places)
        return max(noise(self.settings), *(self.rounding[i] for i in places))

    def _arithmetic(self, i: int) -> Any:
        """The type whose rounding is in what is known of a matrix: one written out has that of float64."""
        return np.float64 if isinstance(self.compared[i].spectral, Diagonalised) else self.compared[i].operator.dtype

    def _positive(self, law: Law, scale: float | None, *places: int) -> Estimate:
        """An interval that is even in the logarithm: ratios and roots of squares are skewed upwards.

        `scale` is what the value is the difference of: the size that its rounding belongs to.
        """
        rounding = self._noise(*places) * (law.value if scale is None else scale)
        low = high = law.value
        if law.value and law.stderr:
            low, high = student_interval(law._replace(value=0.0, stderr=law.stderr / law.value), self.level)
            low, high = law.value * math.exp(max(low, -50.0)), law.value * math.exp(min(high, 50.0))
        found = self._estimate(law, (low, high), rounding)
        return found.model_copy(update={"interval": (max(found.interval[0], 0.0), found.interval[1])})

    def _estimate(self, law: Law, interval: tuple[float, float], rounding: float) -> Estimate:
        if self._exact:
            return widened(Estimate.exact(law.value, self.settings.confidence), rounding)
        sampled = Sampled(law.value, law.stderr, interval, self.together.drawn)
        return estimate(sampled, self.settings.confidence, "common probes", rounding)
