"""Charts as SVG made here: with a title, a description and a table of their numbers, readable without colour.

A chart is drawn on 480 × 216 units, on which the stylesheet sets type that stays readable on a phone too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

WIDTH: Final = 480
HEIGHT: Final = 216
_LEFT: Final = 70
_RIGHT: Final = 14
_TOP: Final = 18
_FLOOR: Final = 182
# How a zone is filled: by pattern as well as by colour (the stylesheet and `kit.chart_patterns` know them).
ZONE_FILLS: Final[Mapping[str, str]] = {"onprem": "on", "domestic": "dom", "overseas": "ovs", "": "none"}


@dataclass(frozen=True, slots=True)
class Tick:
    """A grid line and its words."""

    at: float
    words: str


@dataclass(frozen=True, slots=True)
class Piece:
    """One rectangle of a column; `fill` names the look."""

    x: float
    y: float
    width: float
    height: float
    fill: str


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns over days, each stacked of pieces."""

    pieces: tuple[Piece, ...]
    rows: tuple[Tick, ...]
    days: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT


@dataclass(frozen=True, slots=True)
class Line:
    """A line over days: `points` as SVG wants them, its name at its end, and its highest point."""

    name: str
    look: str
    points: str
    end: float
    top_x: float
    top_y: float
    top_words: str


@dataclass(frozen=True, slots=True)
class Lines:
    lines: tuple[Line, ...]
    rows: tuple[Tick, ...]
    days: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = 46
    right: int = WIDTH - 112


def columns(values: Sequence[tuple[str, Mapping[str, int]]], *, unit: str, order: Sequence[str] = ("",)) -> Columns:
    """values: (label of the day, part → value ≥ 0), from left to right. order: parts from the floor up."""
    top, rows = scale(max((sum(parts.values()) for _, parts in values), default=0), unit=unit)
    step = (WIDTH - _RIGHT - _LEFT) / max(len(values), 1)
    width = min(step * 0.75, 24.0)
    pieces: list[Piece] = []
    for number, (_, parts) in enumerate(values):
        y = float(_FLOOR)
        x = _LEFT + number * step + (step - width) / 2
        for part in order:
            height = (_FLOOR - _TOP) * parts.get(part, 0) / top
            y -= height
            if height > 0:
                pieces.append(Piece(x, y, width, height, ZONE_FILLS.get(part, "none")))
    labels = [(_LEFT + (number + 0.5) * step, label) for number, (label, _) in enumerate(values)]
    return Columns(tuple(pieces), rows, _spaced(labels, step))


def lines(
    values: Sequence[tuple[str, Mapping[str, float]]], *, unit: str, names: Mapping[str, tuple[str, str]]
) -> Lines:
    """values: (label of the day, line → value ≥ 0). names: line → (its words, its look). Days without value are left out."""
    highest = max((v for _, parts in values for v in parts.values()), default=0.0)
    top, rows = scale(int(highest) + 1, unit=unit)
    empty = Lines((), rows, ())
    step = (empty.right - empty.left) / max(len(values) - 1, 1)
    drawn: list[Line] = []
    for key, (words, look) in names.items():
        points = [
            (empty.left + number * step, _FLOOR - (_FLOOR - _TOP) * parts[key] / top, label, parts[key])
            for number, (label, parts) in enumerate(values)
            if key in parts
        ]
        if not points:
            continue
        x, y, label, value = max(points, key=lambda p: p[3])
        told = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
        drawn.append(Line(words, look, told, points[-1][1], x, y, f"{label} {value:.1f}{unit}"))
    labels = [(empty.left + number * step, label) for number, (label, _) in enumerate(values)]
    return Lines(tuple(_apart(drawn)), rows, _spaced(labels, step))


def _apart(drawn: Sequence[Line]) -> list[Line]:
    """The names at the ends of lines that come close are moved so that both can be read."""
    room = 22.0
    ends: list[float] = []
    ordered = sorted(drawn, key=lambda item: item.end)
    for line in ordered:
        ends.append(max(line.end, ends[-1] + room) if ends else line.end)
    # Below the floor stand the days.
    over = max(0.0, ends[-1] - (_FLOOR - 8)) if ends else 0.0
    return [replace(line, end=end - over) for line, end in zip(ordered, ends, strict=True)]


def scale(highest: int, *, unit: str) -> tuple[int, tuple[Tick, ...]]:
    """The value of the highest grid line and the lines: 3 to 5 steps of 1, 2 or 5 times a power of ten."""
    step = 1
    while step * 4 < highest:
        lead = int(str(step)[0])
        step = step * 5 // 2 if lead == 2 else step * 2
    count = max(-(-highest // step), 2)
    ticks = [
        Tick(_FLOOR - (_FLOOR - _TOP) * number / count, amount(step * number, unit)) for number in range(count + 1)
    ]
    return step * count, tuple(ticks)


def amount(value: int, unit: str) -> str:
    """15万円, 8,000円, 3秒: what fits beside a grid line."""
    if value >= 10_000 and value % 1_000 == 0:
        tens = value / 10_000
        return f"{tens:,.0f}万{unit}" if value % 10_000 == 0 else f"{tens:,.1f}万{unit}"
    return f"{value:,}{unit}"


def _spaced(labels: Sequence[tuple[float, str]], step: float) -> tuple[Tick, ...]:
    """The first, the last and every seventh label, as far as they do not meet."""
    room = 58.0
    if not labels:
        return ()
    wanted = [labels[0], *labels[7:-1:7]] if len(labels) > 1 else []
    kept = [label for label in wanted if labels[-1][0] - label[0] >= room]
    if step >= room:
        kept = list(labels[:-1])
    return tuple(Tick(x, words) for x, words in [*kept, labels[-1]])
