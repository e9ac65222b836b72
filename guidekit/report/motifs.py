"""Where sequences contain binding sites of common transcription factors: a track with one line per sequence.

Sites are matches of a consensus in IUPAC letters on either strand. This is coarse; for scores by position weight
matrices see `rewards.dna.MotifScan`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewards.dna.sequence import encode, reverse_complement, starts

from .svg import LEFT, Scale, element, number, picture, ticks, words

SITES = {
    "AP-1": "TGASTCA",
    "GATA": "WGATAA",
    "ETS": "MGGAAGT",
    "HNF4A": "CAAAGKYCA",
    "SP1/KLF": "GGGCGG",
    "CTCF": "CCASYAGRKGGC",
}
LINES, _TALL, _TOP, _WIDTH = 16, 16, 34, 960


def hits(sequences: Sequence[str], pattern: str) -> list[tuple[int, int]]:
    """(sequence, first position, counted from 0) of every site on either strand.

    >>> hits(["AATGAGTCATT", "TTATCT"], "WGATAA"), hits(["AATGAGTCATT"], "TGASTCA")
    ([(1, 0)], [(0, 2)])
    """
    codes = encode(sequences)
    found = starts(codes, pattern) | starts(codes, reverse_complement(pattern))
    return [(row, place) for row, place in found.nonzero().tolist()]


def track(sequences: Sequence[str], labels: Sequence[str]) -> str:
    """The sites in the first sequences, one labelled line each; the legend counts the sites in all sequences."""
    found = {name: hits(sequences, pattern) for name, pattern in SITES.items()}
    shown = min(len(sequences), LINES)
    height = _TOP + shown * _TALL + 46
    x = Scale(1, max(2, *map(len, sequences)), LEFT, _WIDTH - 10)
    lines = "".join(
        f'<path d="M{LEFT} {_middle(i)}H{x(max(1, len(s)))}"/>'
        + words(labels[i][:7], LEFT - 6, _middle(i) + 4, text_anchor="end")
        for i, s in enumerate(sequences[:shown])
    )
    marks = "".join(
        _mark(x, row, place, len(SITES[name]), name, k)
        for k, (name, own) in enumerate(found.items())
        for row, place in own
        if row < shown
    )
    names = [(f"c{k}", f"{name} {len(own)}") for k, (name, own) in enumerate(found.items())]
    foot = _TOP + shown * _TALL
    feet = "".join(
        f'<path d="M{x(v)} {foot}v4"/>' + words(number(v), x(v), foot + 18, text_anchor="middle")
        for v in ticks(x.low, x.high)
        if v == int(v)
    )
    counts = ", ".join(f"{name} {len(own)}" for name, own in found.items())
    label = f"Sites of common factors in {len(sequences)} sequences: {counts}"
    content = element("g", lines + feet, class_="axes") + marks
    return picture(content, label, height, _WIDTH, names, class_="chart wide motifs")


def _middle(line: int) -> float:
    return _TOP + line * _TALL + _TALL / 2


def _mark(x: Scale, row: int, place: int, length: int, name: str, colour: int) -> str:
    """A bar over the site, with its name as a tooltip."""
    start, end = x(place + 1), x(place + length)
    title = element("title", f"{name}, positions {place + 1} to {place + length}")
    return element(
        "rect", title, class_=f"site c{colour}", x=start, y=_middle(row) - 5, width=round(end - start, 1), height=10
    )
