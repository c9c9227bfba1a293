"""A linear or logarithmic chart axis: from values to pixels, and tick positions."""

from __future__ import annotations

import math
from collections.abc import Iterable


class Scale:
    """A linear or logarithmic map from the range of `values` onto the pixels from `start` to `stop`.

    Args:
        values: all values to show; those that are not finite, or not positive on a logarithmic axis, are ignored.
        start: pixel of the smallest value.
        stop: pixel of the largest value.
        log: whether the axis is logarithmic.
        margin: share of the range to leave free at both ends.
        bounds: (smallest, largest) possible value; a linear axis never extends beyond them.
    """

    def __init__(
        self,
        values: Iterable[float],
        start: float,
        stop: float,
        *,
        log: bool,
        margin: float = 0.0,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        self._log, self._start, self._stop = log, start, stop
        places = [place for value in values if (place := self._place(value)) is not None]
        low, high = min(places, default=0.0), max(places, default=1.0)
        largest = max(abs(low), abs(high))
        if high - low <= max(1e-12 * largest, 1e-100):  # in effect a single value
            room = 0.5 if log or largest < 1e-100 else 0.5 * largest
            low, high = low - room, high + room
        self._low, self._high = low - margin * (high - low), high + margin * (high - low)
        if bounds is not None and not log:
            self._low, self._high = max(self._low, bounds[0]), min(self._high, bounds[1])

    def __call__(self, value: float) -> float | None:
        """The pixel of `value`; None where it cannot be shown."""
        place = self._place(value)
        if place is None:
            return None
        return self._start + (place - self._low) / (self._high - self._low) * (self._stop - self._start)

    def ticks(self, wanted: int) -> list[float]:
        """About `wanted` round values within the axis; on a logarithmic axis powers of ten, if at least two fit."""
        if not self._log:
            return _round_ticks(self._low, self._high, wanted)
        exponents = range(math.ceil(self._low - 1e-9), math.floor(self._high + 1e-9) + 1)
        if len(exponents) < 2:
            return _round_ticks(10.0**self._low, 10.0**self._high, wanted)
        step = math.ceil(len(exponents) / wanted)
        return [10.0**exponent for exponent in exponents if (exponents[-1] - exponent) % step == 0]

    def _place(self, value: float) -> float | None:
        if not math.isfinite(value) or (self._log and value <= 0):
            return None
        return math.log10(value) if self._log else float(value)


def _round_ticks(low: float, high: float, wanted: int) -> list[float]:
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
