"""The charts of a report: lines, histograms and scatters, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .svg import COLOURS, LEFT, TOP, Scale, axes, bounds, element, number, picture, plane, widened, words

GROUPS = (0, 2, 3, 4, 5, 1)  # colours of the lines of conditions; grey is for unguided samples


@dataclass(frozen=True)
class Series:
    """Named numbers in one colour: the values of a line or a histogram, or the y of a scatter. NaN is left out.

    colour   0 to 5, a colour of the page
    x        x of a scatter
    weights  of the values of a histogram or of the points of a scatter; None is equal weights
    dashed   whether a line is dashed
    labels   labels of the points of a scatter
    """

    name: str
    values: Sequence[float]
    colour: int = 0
    x: Sequence[float] = ()
    weights: Sequence[float] | None = None
    dashed: bool = False
    labels: Sequence[str] = field(default=())

    @property
    def classes(self) -> str:
        return f"c{self.colour % COLOURS}" + (" dashed" if self.dashed else "")


def lines(series: Sequence[Series], title: str, ylabel: str, zero: bool = False, marks: Sequence[int] = ()) -> str:
    """Lines over the steps of a run, starting with the value after step 1; `marks` are steps marked on the x axis."""
    steps = max(len(s.values) for s in series)
    low, high = bounds((v for s in series for v in s.values), *([0.0] if zero else []))
    x, y = plane((0, max(steps, 1)), (low, high) if zero else widened(low, high))
    drawn = "".join(element("g", f'<path class="line" d="{_path(s.values, x, y)}"/>', class_=s.classes) for s in series)
    feet = "".join(f'<path class="mark" d="M{x(m)} {y.start}v-7"/>' for m in marks)
    label = f"{title}. " + " ".join(f"{s.name}: {_first_and_last(s.values)}." for s in series)
    return picture(axes(x, y, "step", ylabel, whole=True) + feet + drawn, label, names=_named(series))


def curves(series: Sequence[Series], title: str, xlabel: str, ylabel: str, points: Sequence[Series] = ()) -> str:
    """Lines through (x, y), from x = 0 on, with a dot at each; `points` are large dots labelled with their names."""
    every = [*series, *points]
    x = (0.0, bounds((v for s in every for v in s.x), 0.0)[1])
    across, up = plane(x, widened(*bounds(v for s in every for v in s.values)))
    drawn = "".join(
        element("g", f'<path class="line" d="{_joined(s.x, s.values, across, up)}"/>' + "".join(_points(s, across, up)),
                class_=s.classes)
        for s in series
    )  # fmt: skip
    named = "".join(element("g", "".join(_points(s, across, up)) + _beside(s, across, up), class_=f"{s.classes} point")
                    for s in points)  # fmt: skip
    label = f"{title}. " + " ".join(f"{s.name}: {_first_and_last(s.values)}." for s in every)
    return picture(axes(across, up, xlabel, ylabel, whole=True) + drawn + named, label, names=_named(series))


def histogram(series: Sequence[Series], title: str, xlabel: str, bins: int = 24) -> str:
    """The fraction of samples in bins shared by all series; the first series is filled, the others are outlines."""
    low, high = bounds(v for s in series for v in s.values)
    shares = [_shares(s, low, high, bins) for s in series]
    x, y = plane((low, high), (0.0, max(max(v) for v in shares) * 1.05 or 1.0))
    edges = [low + (high - low) * i / bins for i in range(bins + 1)]
    drawn = "".join(
        element("g", f'<path class="{"bar" if i == 0 else "line"}" d="{_steps(edges, v, x, y)}"/>', class_=s.classes)
        for i, (s, v) in enumerate(zip(series, shares, strict=True))
    )
    label = f"{title}. " + " ".join(f"{s.name}: mean {number(_mean(s))}." for s in series)
    return picture(axes(x, y, xlabel, "share of samples") + drawn, label, names=_named(series))


def scatter(series: Sequence[Series], title: str, xlabel: str, ylabel: str) -> str:
    """Points whose area grows with their weight; the last series is on top."""
    x, y = plane(
        widened(*bounds(v for s in series for v in s.x)),
        widened(*bounds(v for s in series for v in s.values)),
    )
    drawn = "".join(element("g", "".join(_points(s, x, y)), class_=s.classes) for s in series)
    label = f"{title}. " + " ".join(f"{s.name}: {len(s.values)} points." for s in series)
    return picture(axes(x, y, xlabel, ylabel) + drawn, label, names=_named(series[::-1]))


def strip(values: Sequence[Series], title: str, ylabel: str, top: float) -> str:
    """A low, wide chart along a sequence, from position 1 on."""
    width, height = 960, 170
    x = Scale(1, max(2, *(len(s.values) for s in values)), LEFT, width - 10)
    y = Scale(0.0, top, height - 40, TOP)
    drawn = "".join(
        element("g", f'<path class="line" d="{_path(s.values, x, y, first=1)}"/>', class_=s.classes) for s in values
    )
    content = axes(x, y, "position", ylabel, whole=True) + drawn
    return picture(content, title, height, width, _named(values), class_="chart wide")


def _named(series: Sequence[Series]) -> list[tuple[str, str]]:
    return [(s.classes, s.name) for s in series]


def _path(values: Sequence[float], x: Scale, y: Scale, first: int = 1) -> str:
    """A line through values at consecutive whole numbers."""
    return _joined(range(first, first + len(values)), values, x, y)


def _joined(xs: Sequence[float], values: Sequence[float], x: Scale, y: Scale) -> str:
    """A line, interrupted where a value is missing; an isolated value is a dot."""
    parts, pen = [], "M"
    for place, v in zip(xs, values, strict=True):
        if not math.isfinite(v):
            pen = "M"
            continue
        parts.append(f"{pen}{x(place)} {y(v)}" + ("h.1" if pen == "M" else ""))
        pen = "L"
    return "".join(parts)


def _first_and_last(values: Sequence[float]) -> str:
    known = [v for v in values if math.isfinite(v)]
    return f"from {number(known[0])} to {number(known[-1])}" if known else "unknown"


def _known(s: Series) -> list[tuple[float, float]]:
    weights = s.weights if s.weights is not None else [1.0] * len(s.values)
    return [(v, w) for v, w in zip(s.values, weights, strict=True) if math.isfinite(v)]


def _mean(s: Series) -> float:
    known = _known(s)
    total = sum(w for _, w in known)
    return sum(v * w for v, w in known) / total if total else math.nan


def _shares(s: Series, low: float, high: float, bins: int) -> list[float]:
    counts, known = [0.0] * bins, _known(s)
    for v, w in known:
        counts[min(bins - 1, int((v - low) / (high - low) * bins))] += w
    total = sum(w for _, w in known)
    return [c / total for c in counts] if total else counts


def _steps(edges: Sequence[float], shares: Sequence[float], x: Scale, y: Scale) -> str:
    tops = "".join(f"V{y(v)}H{x(edges[i + 1])}" for i, v in enumerate(shares))
    return f"M{x(edges[0])} {y(0)}{tops}V{y(0)}"


def _points(s: Series, x: Scale, y: Scale) -> list[str]:
    weights = s.weights if s.weights is not None else [1.0] * len(s.values)
    mean = sum(weights) / max(1, len(weights)) or 1.0
    rows = zip(s.x, s.values, weights, s.labels or [""] * len(s.values), strict=True)
    return [
        element("circle", element("title", _text(label, a, b)), class_="dot", cx=x(a), cy=y(b), r=_radius(w / mean))
        for a, b, w, label in rows
        if math.isfinite(a) and math.isfinite(b)
    ]


def _beside(s: Series, x: Scale, y: Scale) -> str:
    """The name of a single point, above or below it, wherever there is room."""
    if not math.isfinite(s.values[0]):
        return ""
    place, height = x(s.x[0]), y(s.values[0])
    left, low = place > (x.start + x.end) / 2, height > (y.start + y.end) / 2
    return words(s.name, place + (6 if left else -6), round(height + (-9 if low else 18), 1),
                 text_anchor="end" if left else "start")  # fmt: skip


def _radius(weight: float) -> float:
    """The radius of a point whose area grows with its weight, within limits that keep it visible and not too large."""
    return round(min(9.0, max(2.0, 3.6 * math.sqrt(weight))), 1)


def _text(label: str, a: float, b: float) -> str:
    from html import escape

    return escape(f"{label}: {number(a)}, {number(b)}")
