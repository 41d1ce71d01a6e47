"""Charts as SVG made here: bars with a title, a description and their numbers, readable without colour."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: position and height in the chart's own units; `label` under it, empty where there is no room."""

    x: float
    y: float
    width: float
    height: float
    label: str
    told: str


@dataclass(frozen=True, slots=True)
class BarChart:
    """A column chart 640 × 180; `top` is the value of the upper line."""

    bars: tuple[Bar, ...]
    top: int
    unit: str
    width: int = 640
    height: int = 180

    @property
    def floor(self) -> float:
        return self.height - 22


def bar_chart(values: Sequence[tuple[str, int]], *, unit: str) -> BarChart:
    """values: (label, value ≥ 0) from left to right."""
    top = nice_top(max((v for _, v in values), default=0))
    room = 640 - 56
    step = room / max(len(values), 1)
    every = max(1, len(values) // 10)
    bars = []
    for i, (label, value) in enumerate(values):
        height = (180 - 22 - 12) * value / top if top else 0
        shown = label if i % every == 0 else ""
        bars.append(
            Bar(56 + i * step + step * 0.15, 180 - 22 - height, step * 0.7, height, shown, f"{label} {value:,}{unit}")
        )
    return BarChart(tuple(bars), top, unit)


def nice_top(value: int) -> int:
    """The next 1, 2 or 5 times a power of ten: an axis people can read."""
    if value <= 0:
        return 10
    power: int = 10 ** (len(str(value)) - 1)
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value)
