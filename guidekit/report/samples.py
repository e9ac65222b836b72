"""The samples of a report, by domain: molecules, DNA, images, or numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.result import Result
from . import dna, images, molecules, motifs
from .compared import own
from .reading import Output, value
from .recorder import plain
from .svg import number

MOST = 60  # number of samples that are drawn
_POSITIONS, _LOGOS = 600, 8  # length of the longest sequences in a logo, and number of groups with a logo
_SHORT = 11  # characters of a name together with its value that fit into half a card
DRAWN: dict[str, Callable[[str], str | None]] = {"molecules": molecules.draw, "dna": dna.stripe}


@dataclass(frozen=True)
class Fact:
    """A named value on a card; a `wide` one has a line of its own."""

    name: str
    shown: str

    @property
    def wide(self) -> bool:
        return len(self.name) + len(self.shown) > _SHORT


def domain(result: Result, given: Any = None) -> str:
    """The domain of the samples: the given one, or inferred from them."""
    if given in ("molecules", "dna", "images", "other"):
        return given
    own = result.samples
    if not isinstance(own, list):
        return "other" if images.pixels(own) is None else "images"
    texts = [s for s in own if isinstance(s, str) and s][:100]
    if not texts:
        return "other"
    if all(len(s) > 5 and set(s.upper()) <= set("ACGTN") for s in texts):
        return "dna"
    return "molecules" if 2 * sum(molecules.draw(s) is not None for s in texts) > len(texts) else "other"


def conditions(result: Result) -> list[str]:
    """A name for every group: its condition if that is text or a number; only the beginning of a very long text."""
    given = result.config.get("cond")
    given = given if isinstance(given, list) and len(given) == result.groups else [None] * result.groups
    return [plain(str(c)) if isinstance(c, (str, int, float)) else f"group {g}" for g, c in enumerate(given)]


def texts(result: Result) -> list[str]:
    """Every sample as text; an image is the name of the file that the command line writes."""
    if images.pixels(result.samples) is not None:
        return [f"images/{i:05d}.png" for i in range(len(result))]
    return [plain(s) for s in result.samples]


def ranked(result: Result, rows: Sequence[int] | None = None) -> list[int]:
    """Rows by reward, the best first and those without a score last; in their order if there is no reward."""
    listed = range(len(result)) if rows is None else rows
    if result.rewards is None:
        return list(listed)
    scores = result.rewards.tolist()
    return sorted(listed, key=lambda i: (-scores[i] if math.isfinite(scores[i]) else math.inf, i))


def shown(out: Output, kind: str, names: Sequence[str]) -> dict[str, Any]:
    """The content of the section of samples: for each group its best distinct samples, and pictures of all samples."""
    result = out.result
    each = max(1, MOST // result.groups)
    columns = _columns(out, kind)
    drawn = _thumbnails(result) if kind == "images" else None
    groups = [_group(out, kind, g, names[g], each if g < MOST else 0, drawn, columns) for g in range(result.groups)]
    count = sum(len(g["cards"]) for g in groups)
    different = sum(g["distinct"] for g in groups)
    return {
        "domain": kind,
        "groups": groups[:MOST],
        "count": count,
        "left_out": different - count,
        "repeated": len(result) - different,
        "letters": dna.colours() if kind == "dna" else [],
    }


def _columns(out: Output, kind: str) -> list[str]:
    """The extra columns that are new on a card: neither the reward again, nor a property shown for every molecule."""
    shown = {name.lower() for name in molecules.SHOWN} if kind == "molecules" else set()
    return [c for c in next(iter(out.table.values()), {}) if c.lower() not in shown and not _is_reward(out, c)]


def _is_reward(out: Output, column: str) -> bool:
    """Whether a column repeats the rewards of all samples."""
    rewards = out.result.rewards
    known = [] if rewards is None else [(i, r) for i, r in enumerate(rewards.tolist()) if math.isfinite(r)]
    return bool(known) and all(value(out.table[i][column]) == r for i, r in known)


def _group(
    out: Output, kind: str, g: int, name: str, each: int, drawn: list[str] | None, columns: Sequence[str]
) -> dict[str, Any]:
    result = out.result
    order = ranked(result, (result.group == g).nonzero()[:, 0].tolist())
    same: dict[Any, list[int]] = {}
    for i in order:
        same.setdefault(key(result, kind, i), []).append(i)
    cards = [_card(out, kind, rows, drawn, columns) for rows in list(same.values())[:each]]
    return {
        "name": name,
        "cards": cards,
        "distinct": len(same),
        "picture": _sequences(out, g) if kind == "dna" and g < _LOGOS else None,
    }


def key(result: Result, kind: str, i: int) -> Any:
    """What identifies a sample, so that duplicates are recognised."""
    if isinstance(result.samples, list):
        own = result.samples[i]
        return molecules.key(own) if kind == "molecules" and isinstance(own, str) else str(own)
    return result.x[i].detach().cpu().contiguous().numpy().tobytes()


def _card(out: Output, kind: str, rows: list[int], drawn: list[str] | None, columns: Sequence[str]) -> dict[str, Any]:
    """The card of one distinct sample, which occurs in these rows."""
    result, row = out.result, rows[0]
    text = plain(result.samples[row]) if drawn is None else ""
    properties = molecules.properties(text) if kind == "molecules" else {}
    extra = {name: _shown(given) for name in columns if (given := out.table[row][name])}
    return {
        "row": row,
        "times": len(rows),
        "text": text,
        "whole": result.samples[row] if isinstance(result.samples, list) else text,
        "picture": DRAWN[kind](text) if kind in DRAWN else None,
        "image": None if drawn is None else drawn[row],
        "reward": None if result.rewards is None else float(result.rewards[row]),
        "holdout": None if result.holdout is None else float(result.holdout[row]),
        "known": bool(properties),
        "facts": sorted((Fact(*fact) for fact in (properties | extra).items()), key=lambda fact: fact.wide),
        "file": f"images/{row:05d}.png" if (out.path / "images" / f"{row:05d}.png").exists() else None,
    }


def _shown(text: str) -> str:
    found = value(text)
    return found if isinstance(found, str) else number(found)


def _thumbnails(result: Result) -> list[str] | None:
    pixels = images.pixels(result.samples)
    if pixels is None:
        return None
    best = ranked(result)
    wanted = {i for g in range(result.groups) for i in [r for r in best if int(result.group[r]) == g][:MOST]}
    small: Tensor = images.fitted(pixels, 256, images.BUDGET * len(pixels) // max(1, min(len(wanted), MOST)))
    return [images.png_uri(v) if i in wanted else "" for i, v in enumerate(small)]


def _sequences(out: Output, g: int) -> dict[str, Any] | None:
    """Logo, GC along the sequence and coloured rows of a group."""
    rows, weights, mine = _of_group(out.result, g)
    if not any(mine):
        return None
    sets = [(own(out.result), 0, mine, weights)]
    if out.base is not None and g < out.base.groups and domain(out.base) == "dna":
        _, w, theirs = _of_group(out.base, g)
        sets.append(("unguided", 1, theirs, w))
    best = ranked(out.result, rows)
    return {
        "logo": dna.logo(mine, weights),
        "gc": dna.gc_track(sets),
        "motifs": motifs.track([mine[rows.index(i)] for i in best], [f"row {i}" for i in best]),
        "barcode": dna.barcode([mine[rows.index(i)] for i in best][:MOST]),
        "rows": min(len(mine), MOST),
        "count": len(mine),
        "cut": _POSITIONS if any(len(s) == _POSITIONS for s in mine) else 0,
    }


def _of_group(result: Result, g: int) -> tuple[list[int], list[float], list[str]]:
    rows = (result.group == g).nonzero()[:, 0].tolist()
    weights = result.weights.tolist()
    return rows, [weights[i] for i in rows], [str(result.samples[i])[:_POSITIONS] for i in rows]
