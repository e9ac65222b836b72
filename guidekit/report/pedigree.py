"""The lineage of the samples as a picture: one line from the start of the run to each survivor, joined where survivors
share an ancestor. Lines do not cross, since those with a common ancestor lie side by side."""

from __future__ import annotations

from collections.abc import Sequence

from .svg import Scale, element, number, picture, ticks, words

SHADES = 5
LEFT, RIGHT, TOP, WIDTH = 14, 62, 30, 640
_COLUMNS = 48


def order(paths: Sequence[Sequence[int]], scores: Sequence[float]) -> list[int]:
    """Order survivors so that those with a common ancestor are adjacent at every step, the family of the best first.

    paths   for each survivor, the row of its ancestor at every step
    scores  by which families are sorted
    """
    best: dict[tuple[int, int], float] = {}
    for path, score in zip(paths, scores, strict=True):
        for step, row in enumerate(path):
            best[step, row] = max(score, best.get((step, row), score))
    return sorted(range(len(paths)), key=lambda i: [(-best[step, row], row) for step, row in enumerate(paths[i])])


def heights(paths: Sequence[Sequence[int]], places: Sequence[int]) -> list[list[float]]:
    """For each survivor and step, the mean place of the survivors that share its ancestor there."""
    nodes: dict[tuple[int, int], list[int]] = {}
    for i, place in enumerate(places):
        for step, row in enumerate(paths[i]):
            nodes.setdefault((step, row), []).append(place)
    return [[sum(v := nodes[step, row]) / len(v) for step, row in enumerate(path)] for path in paths]


def columns(steps: int, moments: Sequence[int], most: int = _COLUMNS) -> list[int]:
    """Steps that are drawn: all if they are few, otherwise evenly spaced ones, and the moments."""
    even = {round(i * steps / most) for i in range(most + 1)} if steps > most else set(range(steps + 1))
    return sorted(even | set(moments))


def shade(score: float, scores: Sequence[float]) -> int:
    """0 for the worst fifth, 4 for the best."""
    below = sum(other < score for other in scores)
    return min(SHADES - 1, SHADES * below // max(1, len(scores)))


def draw(
    paths: Sequence[Sequence[int]],
    scores: Sequence[float],
    names: Sequence[str],
    moments: Sequence[int],
    nodes: Sequence[Sequence[str]],
) -> str:
    """The picture. names[i] identifies a survivor, nodes[i] the parts of the page that show its ancestors."""
    steps = len(paths[0]) - 1
    ranks = order(paths, scores)
    places = [ranks.index(i) for i in range(len(paths))]
    pitch = min(20, max(10, 560 // len(paths)))
    foot = TOP + pitch * max(len(paths), 8)
    x, y = Scale(0, max(steps, 1), LEFT, WIDTH - RIGHT), Scale(0, 1, TOP + pitch / 2, TOP + pitch * 1.5)
    drawn = columns(steps, moments)
    ys = heights(paths, places)
    lines = [
        _survivor(names[i], shade(scores[i], scores), _line([x(c) for c in drawn], [y(ys[i][c]) for c in drawn]),
                  (x(steps), y(ys[i][-1])), [(x(m), y(ys[i][m])) for m in moments], scores[i], nodes[i], k == 0)
        for k, i in enumerate(ranks)
    ]  # fmt: skip
    label = f"Lineage of {len(paths)} samples over {steps} steps; {len({p[0] for p in paths})} starting particles"
    content = _foot(x, foot) + "".join(f'<path class="moment" d="M{x(m)} {TOP - 6}V{foot}"/>' for m in moments)
    return picture(content + "".join(lines), label, foot + 40, WIDTH, class_="chart lineage", role="group")


def _line(xs: Sequence[float], ys: Sequence[float]) -> str:
    """A line, level where nothing changes and curved where the family splits."""
    parts = [f"M{xs[0]} {ys[0]}"]
    for i in range(1, len(xs)):
        if ys[i] == ys[i - 1]:
            parts = [*parts[:-1], f"H{xs[i]}"] if parts[-1][0] == "H" else [*parts, f"H{xs[i]}"]
        else:
            middle = round((xs[i] + xs[i - 1]) / 2, 1)
            parts.append(f"C{middle} {ys[i - 1]} {middle} {ys[i]} {xs[i]} {ys[i]}")
    return "".join(parts)


def _survivor(
    name: str,
    tone: int,
    line: str,
    end: tuple[float, float],
    dots: Sequence[tuple[float, float]],
    score: float,
    nodes: Sequence[str],
    first: bool,
) -> str:
    shown = f'<path class="hit" d="{line}"/><path class="line" d="{line}"/>'
    shown += "".join(f'<circle class="node" cx="{a}" cy="{b}" r="3"/>' for a, b in dots)
    shown += f'<circle class="end" cx="{end[0]}" cy="{end[1]}" r="4"/>'
    shown += words(number(score), end[0] + 9, end[1] + 4)
    return element(
        "g", shown, class_=f"survivor q{tone}", tabindex=0 if first else -1, role="button", aria_label=name,
        data_nodes=" ".join(nodes), data_name=name,
    )  # fmt: skip


def _foot(x: Scale, foot: float) -> str:
    marks = "".join(
        f'<path d="M{x(v)} {foot}v4"/>' + words(number(v), x(v), foot + 17, text_anchor="middle")
        for v in ticks(x.low, x.high)
        if v == int(v)
    )
    names = words("noise", LEFT, TOP - 14, class_="name") + words(
        "samples", x.end, TOP - 14, class_="name", text_anchor="end"
    )
    names += words("step", x.end, foot + 34, class_="name", text_anchor="end")
    return element("g", f'<path class="base" d="M{LEFT} {foot}H{x.end}"/>' + marks + names, class_="axes")
