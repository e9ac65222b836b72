"""Rewards of DNA and RNA sequences computed from their letters: composition, runs, k-mers, forbidden sites.

Samples are a list of strings (lower case is fine, U is read as T), an integer tensor (rows, length) with A=0, C=1, G=2,
T=3, or a one-hot tensor (rows, length, 4) in that order. Any other letter or number, or a row of zeros, is not a base:
it is not counted, and no window or k-mer spans it. A sample without any base, or one that is not a string, is NaN.

For a one-hot tensor x, "position j is one of the letters S" becomes the number sum_{b in S} x_jb, and "and" a product.
So counts equal those of strings, and are polynomials in x with gradients.
"""

from __future__ import annotations

import functools
import math
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import Reward, RewardWarning

ALPHABET = "ACGT"
OTHER = 4  # code of anything that is not a base, including padding

_MEANT = ("A", "C", "G", "T", "AG", "CT", "CG", "AT", "GT", "AC", "CGT", "AGT", "ACT", "ACG", "ACGT")
IUPAC: dict[str, str] = dict(zip("ACGTRYSWKMBDHVN", _MEANT, strict=True))
_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")
_CODE_OF_BYTE = np.full(256, OTHER, np.uint8)
for _code, _letters in enumerate(("Aa", "Cc", "Gg", "TtUu")):
    _CODE_OF_BYTE[np.frombuffer(_letters.encode(), np.uint8)] = _code


def encode(samples: Any) -> Tensor:
    """Codes uint8 (rows, longest): A=0, C=1, G=2, T=3, and 4 for other letters and after the end.

    >>> encode(["ACgu", "N", None])
    tensor([[0, 1, 2, 3],
            [4, 4, 4, 4],
            [4, 4, 4, 4]], dtype=torch.uint8)
    """
    samples = as_batch(samples)
    if isinstance(samples, Tensor):
        return codes_of_tensor(samples)
    lengths = np.array([len(s) for s in samples], dtype=np.int64)
    text = "".join(samples).encode("ascii", "replace")  # one byte for each letter, "?" for those beyond ASCII
    codes = np.full((len(samples), max(lengths, default=0)), OTHER, np.uint8)
    codes[np.arange(codes.shape[1]) < lengths[:, None]] = _CODE_OF_BYTE[np.frombuffer(text, np.uint8)]
    return torch.from_numpy(codes)


def as_batch(samples: Any) -> Tensor | list[str]:
    """The samples as a tensor of codes or one-hot rows, or as a list of strings, with "" for items that are not."""
    if isinstance(samples, str):
        raise TypeError(f"a list of sequences is needed, not the text {samples[:40]!r}")
    if isinstance(samples, np.ndarray) and samples.dtype.kind in "iuf":
        samples = torch.from_numpy(samples)
    if not isinstance(samples, Tensor):
        return [str(s) if isinstance(s, str) else "" for s in samples]
    codes = samples.dim() == 2 and not samples.is_floating_point() and samples.dtype != torch.bool
    if not codes and not (samples.dim() == 3 and samples.shape[2] == 4):
        raise ValueError(
            f"a tensor of shape {tuple(samples.shape)} and {samples.dtype}; sequences are strings, integers "
            "(rows, length) with A=0, C=1, G=2, T=3, or a one-hot tensor (rows, length, 4) in that order"
        )
    return samples


def codes_of_tensor(x: Tensor) -> Tensor:
    """Codes uint8 (rows, length); a one-hot row is the letter with more than one half, or not a base."""
    if x.dim() == 3:
        most, code = x.detach().max(-1)
        return code.where(most > 0.5, OTHER).to(torch.uint8)
    x = x.long()
    return x.where((x >= 0) & (x < OTHER), OTHER).to(torch.uint8)


def blocks(samples: Tensor | list[str], cells: int = 2**22) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch in parts, as row indices and codes. Rows of similar length go together, so one long sequence does not
    cost memory in all the others."""
    if isinstance(samples, Tensor):
        rows = torch.arange(len(samples), device=samples.device)
        size = max(1, cells // max(1, samples.shape[1]))
        yield from ((part, codes_of_tensor(samples[part])) for part in rows.split(size) if len(part))
        return
    lengths = np.array([len(s) for s in samples], dtype=np.int64)
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        part = order[start : start + max(1, cells // max(1, int(lengths[order[start]])))]
        yield torch.from_numpy(part), encode([samples[i] for i in part])
        start += len(part)


def texts(samples: Any) -> list[str]:
    """Each sample in the letters ACGTN. N at the ends, the padding of tensors, is dropped; "" has no base.

    >>> texts(["NacguN", "A-C", 3])
    ['ACGT', 'ANC', '']
    """
    batch = as_batch(samples)
    found, letters = [""] * len(batch), np.frombuffer(b"ACGTN", np.uint8)
    for rows, codes in blocks(batch):
        for i, row in zip(rows.tolist(), letters[codes.cpu().numpy()], strict=True):
            found[i] = row.tobytes().decode().strip("N")
    return found


def one_hot(codes: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """One-hot rows (rows, length, 4), zero where there is no base."""
    return F.one_hot(codes.long(), 5)[..., :4].to(dtype)


def reverse_complement(pattern: str) -> str:
    """Reverse complement of IUPAC letters.

    >>> reverse_complement("GGTNR")
    'YNACC'
    """
    return pattern.translate(_COMPLEMENT)[::-1]


def present(x: Tensor, letters: str) -> Tensor:
    """Whether each position is one of the letters, (rows, length): bool for codes, a number for a one-hot tensor."""
    if x.dim() == 3:
        return x[..., [ALPHABET.index(v) for v in letters]].sum(-1)
    if letters == ALPHABET:
        return x < OTHER
    return functools.reduce(operator.or_, [x == ALPHABET.index(v) for v in letters])


def counted(found: Tensor) -> Tensor:
    """The number of positions in each row, as floats (rows,)."""
    return found.sum(1) if found.is_floating_point() else found.sum(1, dtype=torch.int32).double()


def starts(x: Tensor, pattern: str) -> Tensor:
    """Whether an IUPAC pattern starts at each position, (rows, length - len(pattern) + 1)."""
    places = x.shape[1] - len(pattern) + 1
    found = torch.ones(len(x), max(places, 0), device=x.device, dtype=torch.bool if x.dim() == 2 else x.dtype)
    at = {letter: present(x, IUPAC[letter]) for letter in set(pattern)}
    for i, letter in enumerate(pattern if places > 0 else ""):
        found = found * at[letter][:, i : i + places]
    return found


def sites(x: Tensor, pattern: str, both_strands: bool) -> Tensor:
    """At how many positions the pattern starts, on either strand: a + b - a b, so a palindrome is one site."""
    forward, reverse = starts(x, pattern), reverse_complement(pattern)
    if not both_strands or reverse == pattern:
        return counted(forward)
    back = starts(x, reverse)
    return counted(forward | back if x.dim() == 2 else forward + back - forward * back)


class OfBases(Reward):
    """Base of these rewards: a subclass implements `of`, the score of codes uint8 (rows, length) and, if it is
    differentiable, of one-hot rows (rows, length, 4). Rows without a base are NaN."""

    content = "sequence"  # by which `rewards.Cached` tells samples apart

    def of(self, x: Tensor) -> Tensor:
        """One number for each row."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its score is of")

    def score(self, samples: Any) -> Tensor:
        batch = as_batch(samples)
        if isinstance(batch, Tensor) and batch.dim() == 3 and self.differentiable:
            return self._readable(batch if batch.is_floating_point() else batch.double())
        device = batch.device if isinstance(batch, Tensor) else None
        scores = torch.full((len(batch),), math.nan, dtype=torch.float64, device=device)
        for rows, codes in blocks(batch):
            scores[rows] = self._readable(codes).double()
        return scores

    def _readable(self, x: Tensor) -> Tensor:
        if not len(x) or not x.shape[1]:
            return x.new_full((len(x),), math.nan, dtype=x.dtype if x.is_floating_point() else torch.float64)
        return self.of(x).where(counted(present(x, ALPHABET)) > 0, math.nan)


@dataclass(frozen=True, eq=False, repr=False)
class GC(OfBases):
    """GC content f, or with `low` or `high` a score of how well f lies in [low, high]:

        1 inside, f/low below and (1 - f)/(1 - high) above, falling to 0 at f = 0 and f = 1.

    window   score every window of this many bases and take the worst; a shorter sequence is one window

    >>> GC()(["GGCA", "acgu", "NNN"])
    tensor([0.7500, 0.5000,    nan], dtype=torch.float64)
    """

    low: float | None = None
    high: float | None = None
    window: int | None = None

    name = "GC"
    differentiable = True

    def __post_init__(self) -> None:
        low, high = (d if v is None else v for v, d in ((self.low, 0.0), (self.high, 1.0)))
        if not 0 <= low <= high <= 1:
            raise ValueError(f"GC(low={self.low}, high={self.high}): 0 <= low <= high <= 1 is needed")
        if self.window is not None and (not _whole(self.window) or (self.low is None and self.high is None)):
            raise ValueError(
                f"GC(window={self.window!r}, low={self.low}, high={self.high}): the worst window needs a whole number "
                "of bases, and low or high to say what is bad"
            )
        if (low, high) != (0.0, 1.0):
            object.__setattr__(self, "name", f"GC within {low:g} to {high:g}")

    def of(self, x: Tensor) -> Tensor:
        gc, bases = present(x, "GC"), present(x, ALPHABET)
        whole = self._kept(counted(gc) / counted(bases))
        if self.window is None or self.window > x.shape[1]:
            return whole
        gc, count = (_sums(v, self.window) for v in (gc, bases))
        full = count > self.window - 0.5
        worst = self._kept(gc / self.window).where(full, math.inf).amin(1)
        return worst.where(full.any(1), whole)

    def _kept(self, f: Tensor) -> Tensor:
        if self.low is None and self.high is None:
            return f
        kept = torch.ones_like(f)
        if self.low:
            kept = torch.minimum(kept, f / self.low)
        if self.high is not None and self.high < 1:
            kept = torch.minimum(kept, (1 - f) / (1 - self.high))
        return kept


@dataclass(frozen=True, eq=False, repr=False)
class Homopolymer(OfBases):
    """Length of the longest run of one base.

    >>> Homopolymer()(["ACCCT", "AANAA"])
    tensor([3., 2.], dtype=torch.float64)
    """

    name = "homopolymer"
    higher_is_better = False
    unit = "bases"

    def of(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1], device=x.device).expand(x.shape)
        new = F.pad(x[:, 1:] != x[:, :-1], (1, 0), value=True)
        first = at.where(new, 0).cummax(1).values
        return (at - first + 1).where(x < OTHER, 0).amax(1)


@dataclass(frozen=True, eq=False, repr=False)
class Kmer(OfBases):
    """Weighted frequency of k-mers: sum_k w_k (sites of k) / (windows of len(k) bases).

    kmers          one k-mer, several, or a mapping of k-mers to weights w; IUPAC letters are fine, and sites may
                   overlap
    both_strands   count sites on either strand; a site on both strands, as of a palindrome, counts once

    >>> Kmer("TA")(["TATAA", "GGGG", "T"])
    tensor([0.5000, 0.0000, 0.0000], dtype=torch.float64)
    """

    kmers: str | Sequence[str] | Mapping[str, float]
    both_strands: bool = False

    differentiable = True

    def __post_init__(self) -> None:
        kmers = self.kmers if isinstance(self.kmers, Mapping) else dict.fromkeys(_words(self.kmers), 1.0)
        if any(isinstance(w, bool) or not isinstance(w, (int, float)) or not math.isfinite(w) for w in kmers.values()):
            raise ValueError(f"Kmer: weights are finite numbers, not {list(kmers.values())[:5]}")
        patterns = zip(_patterns(kmers, "Kmer"), kmers.values(), strict=True)
        object.__setattr__(self, "weights", tuple((p, float(w)) for p, w in patterns))
        object.__setattr__(self, "name", f"k-mer {next(iter(kmers))}" if len(kmers) == 1 else f"{len(kmers)} k-mers")

    def of(self, x: Tensor) -> Tensor:
        total, places = torch.zeros((), device=x.device), {}
        for pattern, weight in self.weights:  # type: ignore[attr-defined]
            k = len(pattern)
            if k not in places:
                places[k] = sites(x, "N" * k, False)
            share = sites(x, pattern, self.both_strands) / places[k].where(places[k] > 0, 1)
            total = total + weight * share
        return total


@dataclass(frozen=True, eq=False, repr=False)
class Forbidden(OfBases):
    """Number of sites of IUPAC patterns on both strands, such as the sites of restriction enzymes.

    >>> Forbidden(["GAATTC", "GGTCTC"])(["TGAATTCC", "GAGACC", "ACGT"])  # EcoRI; BsaI on the other strand
    tensor([1., 1., 0.], dtype=torch.float64)
    """

    sites: str | Sequence[str]
    both_strands: bool = True

    name = "forbidden sites"
    differentiable = True
    higher_is_better = False
    unit = "sites"

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", _patterns(_words(self.sites), "Forbidden"))

    def of(self, x: Tensor) -> Tensor:
        patterns: tuple[str, ...] = self.patterns  # type: ignore[attr-defined]
        return torch.stack([sites(x, pattern, self.both_strands) for pattern in patterns]).sum(0)


@dataclass(frozen=True, eq=False, repr=False)
class Length(OfBases):
    """The number of bases.

    >>> Length()(["ACGT", "AC-GT", ""])
    tensor([4., 4., nan], dtype=torch.float64)
    """

    name = "length"
    unit = "bases"

    def of(self, x: Tensor) -> Tensor:
        return counted(present(x, ALPHABET))


@dataclass(frozen=True, eq=False, repr=False)
class CpG(OfBases):
    """Observed over expected CpG: n_CG L / (n_C n_G), with L bases; NaN without C or without G.

    Gardiner-Garden and Frommer (1987), https://doi.org/10.1016/0022-2836(87)90689-9, define CpG islands as regions of
    200 bases or more in which it exceeds 0.6 and the GC content one half.

    >>> CpG()(["CGCG", "GGCC", "CCCC"])
    tensor([2., 0., nan], dtype=torch.float64)
    """

    name = "CpG"
    differentiable = True

    def of(self, x: Tensor) -> Tensor:
        c, g, bases = (counted(present(x, v)) for v in ("C", "G", ALPHABET))
        ratio = sites(x, "CG", False) * bases / (c * g)
        return ratio.where(c * g > 0, math.nan)


def warn_failures(name: str, errors: Sequence[Exception], count: int) -> None:
    """One warning for all samples that were lost to errors."""
    if errors:
        first = f"{type(errors[0]).__name__}: {errors[0]}"
        message = f"reward {name!r} raised on {len(errors)} of {count} samples, first {first:.300}"
        warnings.warn(message, RewardWarning, stacklevel=3)


def _sums(v: Tensor, window: int) -> Tensor:
    """Sums over every window of this many positions, (rows, length - window + 1)."""
    total = F.pad((v if v.is_floating_point() else v.double()).cumsum(1), (1, 0))
    return total[:, window:] - total[:, :-window]


def _whole(number: Any, least: int = 1) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def _words(words: Any) -> list[str]:
    return [words] if isinstance(words, str) else list(words)


def _patterns(words: Any, name: str) -> tuple[str, ...]:
    """IUPAC patterns in upper case, with T for U."""
    found = tuple(w.upper().replace("U", "T") if isinstance(w, str) else "" for w in words)
    bad = [w for w, p in zip(words, found, strict=True) if not p or set(p) - set(IUPAC)]
    if bad or not found:
        raise ValueError(f"{name} takes words of the letters {''.join(IUPAC)}, one at least; given {bad[:3] or words}")
    return found
