"""From values to pixels along one axis of a chart."""

from __future__ import annotations

import math
from collections.abc import Iterable


class Scale:
    """A linear or logarithmic map from the range of `values` onto the pixels from `start` to `stop`.

    Args:
        values: everything that the axis must hold; what is not finite, or not positive on a logarithmic axis, is left
            out.
        start: pixel of the smallest value.
        stop: pixel of the largest value.
        log: logarithmic.
        margin: share of the range to leave free at both ends.
    """

    def __init__(self, values: Iterable[float], start: float, stop: float, *, log: bool, margin: float = 0.0) -> None:
        usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        low, high = (min(usable), max(usable)) if usable else (0.1 if log else 0.0, 1.0)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))
        if log:
            factor = (high / low) ** margin
            low, high = low / factor, high * factor
        else:
            low, high = low - margin * (high - low), high + margin * (high - low)
        self.log, self.low, self.high, self.start, self.stop = log, low, high, start, stop

    def __call__(self, value: float) -> float | None:
        """The pixel of `value`; None where it cannot be shown."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return None
        low, high, at = (
            (math.log(self.low), math.log(self.high), math.log(value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.stop - self.start)

    def ticks(self, wanted: int) -> list[float]:
        """Round values within the scale, about as many as wanted."""
        if self.log and math.log10(self.high / self.low) >= 1:
            exponents = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            step = max(1, math.ceil(len(exponents) / wanted))
            decades = [10.0**e for e in exponents if (exponents[-1] - e) % step == 0]
            if len(decades) > 1:
                return decades
        return _round_ticks(self.low, self.high, wanted)


def _round_ticks(low: float, high: float, wanted: int) -> list[float]:
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
