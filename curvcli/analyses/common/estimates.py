"""Numbers and curves of `linalg` as the report's values: the one place where these become pydantic classes."""

from __future__ import annotations

from curvcli.linalg.krylov.density import Band, Smoothed
from curvcli.linalg.statistics import Sampled
from curvcli.schema.estimate import Bounded, Estimate
from curvcli.schema.spectrum import Cumulative, Density


def estimate(sampled: Sampled, confidence: float, method: str, margin: float = 0.0) -> Estimate:
    """An estimate, its interval longer by `margin` at both ends: what rounding adds."""
    low, high = sampled.interval
    return Estimate(
        value=sampled.value,
        stderr=sampled.stderr,
        interval=(low - margin, high + margin),
        confidence=confidence,
        samples=sampled.samples,
        method=method,
    )


def mass(sampled: Sampled, confidence: float) -> Bounded:
    """A fraction of the eigenvalues, without its value where the interval is wider than a half."""
    return Bounded.judged(estimate(sampled, confidence, "lanczos quadrature, bounded"), 1.0)


def density(smoothed: Smoothed) -> Density:
    """The smoothed spectral density."""
    grid, value, stderr = (values.tolist() for values in smoothed[:3])
    return Density(grid=grid, value=value, stderr=stderr, sigma=smoothed.sigma)


def cumulative(band: Band) -> Cumulative:
    """Bounds on the cumulative spectral density."""
    grid, lower, upper = (values.tolist() for values in band)
    return Cumulative(grid=grid, lower=lower, upper=upper)


def is_narrow(estimate: Estimate, rtol: float | None) -> bool:
    """Whether half the width of an interval is at most `rtol` of the value; never without a tolerance."""
    low, high = estimate.interval
    return rtol is not None and 0.5 * (high - low) <= rtol * abs(estimate.value)


def not_reached(rtol: float | None, count: int, unit: str) -> str:
    """The warning that an interval is wider than asked for, after `count` samples of a `unit` each."""
    return f"--rtol {rtol:g} was not reached with {count} {unit}"
