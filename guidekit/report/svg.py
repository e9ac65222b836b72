"""The elements of all pictures of a report: scales, ticks, axes, legends. Pictures are SVG text; colours come from the
classes c0, c1... of the page, so they follow its light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import takewhile
from typing import Any

WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 46, 42
LINE = 18  # from one line of a legend to the next
COLOURS = 6


@dataclass(frozen=True)
class Scale:
    """A linear map of [low, high] to [start, end], in the units of the picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def bounds(values: Iterable[float], *also: float) -> tuple[float, float]:
    """The smallest and largest finite value, moved apart if they are equal."""
    finite = [v for v in (*values, *also) if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    gap = (high - low) or abs(high) or 1.0
    return (low, high) if high > low else (low - gap / 2, high + gap / 2)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    size = 10 ** math.floor(math.log10((high - low) / count))
    step = size * next((m for m in (1, 2, 5) if m * size * count >= 0.8 * (high - low)), 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def widened(low: float, high: float) -> tuple[float, float]:
    """The interval with a small margin at both ends."""
    room = 0.04 * (high - low)
    return low - room, high + room


def number(value: Any, digits: int = 3) -> str:
    """A short decimal; a dash for anything that is not a finite number.

    >>> number(0.123456), number(12345.6), number(3.0), number(float("nan")), number(True)
    ('0.123', '12,346', '3', '–', '–')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return (f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.{digits}g}").replace("-", "−")
    short = f"{value:.{digits}g}"
    return (f"{value:.1e}" if "e" in short else short).replace("-", "−")


def element(name: str, content: str = "", /, **attributes: Any) -> str:
    """An SVG element; attributes are escaped, the content is markup. `class_` becomes class, `a_b` becomes a-b.

    >>> element("g", class_="a", aria_label='say "<"')
    '<g class="a" aria-label="say &quot;&lt;&quot;"></g>'
    """
    given = "".join(
        f' {k.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for k, v in attributes.items() if v is not None
    )
    return f"<{name}{given}>{content}</{name}>"


def words(text: Any, x: float, y: float, **attributes: Any) -> str:
    """Text in a picture."""
    return element("text", escape(str(text)), x=x, y=y, **attributes)


def picture(
    content: str,
    label: str,
    height: float = HEIGHT,
    width: float = WIDTH,
    names: Sequence[tuple[str, str]] = (),
    **attributes: Any,
) -> str:
    """The whole picture, with a legend of these (classes, name) and a description in words."""
    marks, above = legend(names, width) if names else ("", 0)
    box = f"0 {-above} {width} {height + above:g}"
    given = {"class_": "chart", "role": "img", "viewBox": box, "aria_label": label}
    return element("svg", content + marks, xmlns="http://www.w3.org/2000/svg", **(given | attributes))


def axes(x: Scale, y: Scale, xlabel: str, ylabel: str, whole: bool = False) -> str:
    """Grid lines, ticks and the names of both axes; `whole` keeps only whole numbers along x."""
    below, left = max(y.start, y.end), min(x.start, x.end)
    across = [v for v in ticks(x.low, x.high) if not whole or v == int(v)]
    grid = "".join(
        f'<path d="M{left} {y(v)}H{max(x.start, x.end)}"/>' + words(number(v), left - 7, y(v) + 4, text_anchor="end")
        for v in ticks(y.low, y.high)
    )
    feet = "".join(
        f'<path d="M{x(v)} {below}v4"/>' + words(number(v), x(v), below + 17, text_anchor="middle") for v in across
    )
    names = words(ylabel, 4, TOP - 12, class_="name") + words(
        xlabel, max(x.start, x.end), below + 34, class_="name", text_anchor="end"
    )
    return element("g", grid + feet + f'<path class="base" d="M{left} {below}H{max(x.start, x.end)}"/>' + names,
                   class_="axes")  # fmt: skip


def plane(xs: tuple[float, float], ys: tuple[float, float], height: float = HEIGHT) -> tuple[Scale, Scale]:
    """Scales of a picture with axes."""
    return Scale(*xs, LEFT, WIDTH - RIGHT), Scale(*ys, height - BOTTOM, TOP)


def legend(names: Sequence[tuple[str, str]], width: float = WIDTH) -> tuple[str, int]:
    """Marks with their names along the top, given as (classes, name), and the height of lines above the usual one."""
    placed, line, x = [], 0, LEFT
    for (classes, name), text in zip(names, shortened([name for _, name in names]), strict=True):
        wide = 44 + 8 * len(text)
        if x > LEFT and x + wide > width:
            line, x = line + 1, LEFT
        placed.append((line, x, text, name, classes))
        x += wide
    parts = [_named_mark(x, 12 - LINE * (line - own), *rest) for own, x, *rest in placed]
    return element("g", "".join(parts), class_="legend"), LINE * line


def _named_mark(x: int, y: int, text: str, name: str, classes: str) -> str:
    """A mark with its name, of which the whole is a tooltip."""
    mark = element("title", escape(name)) + f'<path class="line" d="M{x} {y}h18"/>'
    return element("g", mark + words(text, x + 24, y + 4), class_=classes)


def shortened(names: Sequence[str], most: int = 26) -> list[str]:
    """Names of at most `most` characters; if one is longer, without the words with which all of them begin.

    >>> shortened(["a photograph of a small horse", "a photograph of a cat"])
    ['…small horse', '…cat']
    """
    split = [name.split(" ") for name in names]
    heads = zip(*(words[:-1] for words in split), strict=False)
    cut = len(names) > 1 and max(map(len, names)) > most
    same = len(list(takewhile(lambda found: len(set(found)) == 1, heads))) if cut else 0
    told = ["…" + " ".join(words[same:]) if same else name for words, name in zip(split, names, strict=True)]
    return [name if len(name) <= most else name[: most - 1] + "…" for name in told]
