r"""Pictures of DNA: a sequence logo, the fraction of G and C along the sequence, and a strip of coloured rows.

The height of a column of the logo is its information R = max(0, 2 - H - e), H = -sum_b f_b log2 f_b, with f_b the
weighted frequencies of the letters and e = 3 / (2 ln(2) n) the correction for n sequences; n = 1 / sum w^2 for unequal
weights. A letter's height is f_b R. Schneider and Stephens (1990), https://doi.org/10.1093/nar/18.20.6097.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .charts import Series, strip
from .images import png_uri
from .svg import element, number, picture, words

LETTERS = "ACGT"
_ROW, _TALL, _LEFT, _WIDTH = 50, 74, 34, 960
_COLOURS = ((0, 133, 100), (0, 114, 178), (214, 146, 0), (204, 68, 34))  # of A, C, G, T
# glyphs in a box of 10 by 10
_GLYPHS = {
    "A": "M0 10L3.9 0H6.1L10 10H7.9L7 7.6H3L2.1 10ZM3.6 5.9H6.4L5 2.1Z",
    "C": "M9.8 3.4H7.6C7.3 2.3 6.4 1.7 5.2 1.7C3.4 1.7 2.3 3 2.3 5S3.4 8.3 5.2 8.3C6.5 8.3 "
    "7.4 7.6 7.7 6.4H9.9C9.5 8.7 7.7 10 5.2 10C2.1 10 0 8 0 5S2.1 0 5.2 0C7.7 0 9.5 1.3 9.8 3.4Z",
    "G": "M5.4 4.7H10V10H8.4L8.2 8.8C7.5 9.6 6.5 10 5.2 10C2.1 10 0 8 0 5S2.1 0 5.2 0C7.7 0 9.5 1.2 "
    "9.8 3.3H7.6C7.3 2.3 6.4 1.7 5.2 1.7C3.4 1.7 2.3 3 2.3 5S3.4 8.3 5.3 8.3C6.7 8.3 7.7 7.5 7.9 "
    "6.3H5.4Z",
    "T": "M0 0H10V1.8H6.1V10H3.9V1.8H0Z",
}


def shares(sequences: Sequence[str], weights: Sequence[float] | None = None) -> Tensor:
    """The weighted frequency of A, C, G and T at every position, (length, 4); 0 where no sequence has a base. Sequences
    may differ in length.

    >>> shares(["AC", "AG"], [0.75, 0.25]).tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 0.75, 0.25, 0.0]]
    """
    counts = torch.zeros(max(map(len, sequences)), 4, dtype=torch.float64)
    for sequence, weight in zip(sequences, weights or [1.0] * len(sequences), strict=True):
        codes = torch.tensor([LETTERS.find(c) for c in sequence.upper()], dtype=torch.long)
        known = (codes >= 0).nonzero()[:, 0]
        counts[known, codes[known]] += weight
    return counts / counts.sum(1, keepdim=True).clamp(min=1e-300)


def information(shares: Tensor, n: float) -> Tensor:
    """Bits of each position, (length,), corrected for n sequences."""
    bits = 2 + torch.special.xlogy(shares, shares).sum(1) / math.log(2) - 3 / (2 * math.log(2) * n)
    return torch.where(shares.sum(1) > 0, bits.clamp(min=0), 0.0)


def logo(sequences: Sequence[str], weights: Sequence[float]) -> str:
    """The sequence logo, in rows of 50 positions."""
    f = shares(sequences, list(weights))
    n = sum(weights) ** 2 / sum(w * w for w in weights)
    bits = information(f, n)
    top = max(0.25, math.ceil(float(bits.max()) * 4) / 4)
    rows = range(0, len(f), _ROW)
    content = "".join(_row(f[i : i + _ROW], bits[i : i + _ROW], i, 8 + k * (_TALL + 26), top)
                      for k, i in enumerate(rows))  # fmt: skip
    label = f"Sequence logo of {len(sequences)} sequences, up to {number(float(bits.max()))} bits at a position"
    return picture(_glyphs() + content, label, 8 + len(rows) * (_TALL + 26), _WIDTH, class_="chart wide logo")


def gc_track(sets: Sequence[tuple[str, int, Sequence[str], Sequence[float]]], window: int = 9) -> str:
    """The fraction of G and C around every position, for named and coloured sets of weighted sequences."""
    lines = [Series(name, _smooth(shares(s, list(w))[:, 1:3].sum(1), window), colour) for name, colour, s, w in sets]
    return strip(lines, f"Share of G and C along the sequence, mean of {window} positions", "GC share", 1.0)


def barcode(sequences: Sequence[str]) -> str:
    """All sequences as a PNG data URI: one row per sequence, one colour per base, grey for other letters."""
    length = max(map(len, sequences))
    rows = [[LETTERS.find(c) for c in s.upper().ljust(length)] for s in sequences]
    palette = torch.tensor([*_COLOURS, (150, 150, 150)], dtype=torch.uint8)
    return png_uri(palette[torch.tensor(rows)].movedim(-1, 0))


def stripe(sequence: str) -> str | None:
    """One sequence as coloured letters: an image element."""
    if not sequence:
        return None
    return f'<img class="stripe" src="{barcode([sequence])}" alt="its letters as colours">'


def colours() -> list[tuple[str, str]]:
    """Letters and their colours, for the legend."""
    return [(letter, "#" + bytes(rgb).hex()) for letter, rgb in zip(LETTERS, _COLOURS, strict=True)]


def _glyphs() -> str:
    return "<defs>" + "".join(
        element("path", id=f"base{c}", d=_GLYPHS[c], fill=colour) for c, colour in colours()
    ) + "</defs>"  # fmt: skip


def _row(f: Tensor, bits: Tensor, first: int, y: float, top: float) -> str:
    pitch = (_WIDTH - _LEFT - 6) / _ROW
    foot, parts = y + _TALL, []
    for i, (column, r) in enumerate(zip(f.tolist(), bits.tolist(), strict=True)):
        base, x = foot, _LEFT + i * pitch
        for share, letter in sorted(zip(column, LETTERS, strict=True)):
            tall = _TALL * share * r / top
            if tall < 0.4:
                continue
            base -= tall
            place = f"translate({x + 0.5:.1f} {base:.1f})scale({(pitch - 1) / 10:.2f} {tall / 10:.3f})"
            parts.append(element("use", href=f"#base{letter}", transform=place))
    feet = "".join(
        words(first + i + 1, _LEFT + (i + 0.5) * pitch, foot + 15, text_anchor="middle")
        for i in range(len(f))
        if (first + i + 1) % 10 == 0 or i == 0
    )
    scale = words(f"{top:g}", _LEFT - 6, y + 9, text_anchor="end") + words("0", _LEFT - 6, foot, text_anchor="end")
    lines = f'<path class="base" d="M{_LEFT} {y}V{foot}H{_LEFT + len(f) * pitch:.1f}"/>'
    return element("g", lines + feet + scale, class_="axes") + "".join(parts)


def _smooth(v: Tensor, window: int) -> list[float]:
    """The running mean over a window, shorter at the ends."""
    half = window // 2
    total = torch.cat([torch.zeros(1, dtype=v.dtype), v.cumsum(0)])
    low = (torch.arange(len(v)) - half).clamp(min=0)
    high = (torch.arange(len(v)) + half + 1).clamp(max=len(v))
    return ((total[high] - total[low]) / (high - low)).tolist()
