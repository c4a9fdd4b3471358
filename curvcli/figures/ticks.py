"""Tick locators and formatters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, SymmetricalLogLocator

STEPS = [1, 2, 2.5, 5, 10]
"""Distances between ticks, up to a power of ten."""


class Ticks(Formatter):
    """A formatter that writes as many digits as distinguish the ticks."""

    def __init__(self, *, powers: bool) -> None:
        self._powers, self._digits = powers, 6

    def set_locs(self, locs: Any) -> None:
        """Set the positions of the ticks."""
        self._digits = next(
            (digits for digits in range(6, 16) if len({f"{one:.{digits}g}" for one in locs}) == len(set(locs))), 16
        )

    def __call__(self, x: Any, pos: Any = None) -> str:
        return tick(float(x), powers=self._powers, digits=self._digits)


class Apart(SymmetricalLogLocator):
    """A locator of ticks at powers of ten whose labels do not overlap."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Return at most nine ticks, with zero where it is visible."""
        low, high = min(vmin, vmax), max(vmin, vmax)
        threshold = float(self._linthresh)  # pyright: ignore[reportAttributeAccessIssue]
        first = math.ceil(math.log10(threshold) - 1e-9)
        powers = [10.0**k for k in range(first, 40) if 10.0**k <= max(abs(low), abs(high))]
        ticks = [*(-tick for tick in reversed(powers)), 0.0, *powers]
        visible = [tick for tick in ticks if low <= tick <= high]
        beyond = [tick for tick in visible if tick != 0]
        step = max(1, math.ceil(len(beyond) / 8))
        spaced = [tick for tick in beyond if (round(math.log10(abs(tick))) - round(math.log10(powers[-1]))) % step == 0]
        # Beside zero a tick needs as much room as between two others.
        room = 1 if step > 1 or len(beyond) > 4 else 0
        return np.array(
            [
                *(tick for tick in spaced if abs(tick) > threshold * 10 ** (room - 0.5)),
                *(tick for tick in visible if tick == 0),
            ]
        )


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def tick(value: float, *, powers: bool, digits: int = 6) -> str:
    """Format the number at a tick.

    >>> tick(0.001, powers=True), tick(-100.0, powers=True), tick(0.25, powers=False), tick(4e-05, powers=False)
    ('10⁻³', '−10²', '0.25', '4·10⁻⁵')
    """
    exponent = math.log10(abs(value)) if value else 0.0
    if powers and value and abs(exponent - round(exponent)) < 1e-9 and abs(round(exponent)) >= 2:
        return ("−" if value < 0 else "") + "10" + str(round(exponent)).translate(SUPERSCRIPTS)
    if value and not -3 <= exponent < 6:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{float(mantissa):.{digits}g}·10{str(int(power)).translate(SUPERSCRIPTS)}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


class LogTicks(LogLocator):
    """A locator of powers of ten, with 2 and 5 of each where they are few; linear over less than half a decade."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Return the ticks between the limits."""
        low, high = sorted((vmin, vmax))
        if low <= 0 or high / low > 100:
            return np.asarray(LogLocator(base=10, numticks=8).tick_values(vmin, vmax))
        if high / low > 3:
            return np.asarray(LogLocator(base=10, subs=(1, 2, 5), numticks=12).tick_values(vmin, vmax))
        return np.asarray(MaxNLocator(6, steps=STEPS).tick_values(low, high))
