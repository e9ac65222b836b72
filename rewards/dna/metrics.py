"""Metrics of sets of sequences: similarity to a reference, and diversity. Sets are whatever the rewards accept.

Sequences are compared in the letters ACGT, with N for any other letter inside them; sequences without a base are left
out. A metric that cannot be computed is NaN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import RewardWarning
from .motifs import MotifScan
from .sequence import ALPHABET, GC, OTHER, as_batch, blocks, counted, encode, present, texts


def kmer_counts(samples: Any, k: int = 3) -> Tensor:
    """Counts of each k-mer in each sample, overlaps included: float64 (samples, 4^k), in alphabetical order.

    >>> kmer_counts(["ACAC"], k=2)[0, [1, 4]]  # AC, CA
    tensor([2., 1.], dtype=torch.float64)
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 8:
        raise ValueError(f"k={k!r}: a whole number from 1 to 8 is needed")
    batch = as_batch(samples)
    found = torch.full((len(batch), 4**k), math.nan, dtype=torch.float64)
    for rows, codes in blocks(batch):
        readable = counted(present(codes, ALPHABET)) > 0
        found[rows.cpu()] = _words(codes.cpu().numpy(), k).where(readable.cpu()[:, None], math.nan)
    return found


def _words(codes: np.ndarray, k: int) -> Tensor:
    """Counts (rows, 4^k); the index of a k-mer is the number that its letters form in base 4."""
    places = max(codes.shape[1] - k + 1, 0)
    word, whole = np.zeros((len(codes), places), np.int64), np.ones((len(codes), places), bool)
    for i in range(k if places else 0):
        letter = codes[:, i : i + places]
        word = 4 * word + letter
        whole &= letter < OTHER
    word += 4**k * np.arange(len(codes))[:, None]
    return torch.from_numpy(np.bincount(word[whole], minlength=len(codes) * 4**k).reshape(-1, 4**k)).double()


def kmer_correlation(samples: Any, reference: Any, k: int = 3) -> float:
    """Pearson correlation of the k-mer frequencies of two sets; 1 is best.

    As in DRAKES, Wang et al. (2024), https://arxiv.org/abs/2410.13643.

    >>> round(kmer_correlation(["AAC"], ["AACG"], k=1), 3)  # counts 2, 1, 0, 0 and 2, 1, 1, 0
    0.853
    """
    return _pearson(*(kmer_counts(s, k).nansum(0).numpy() for s in (samples, reference)))


def motif_correlation(samples: Any, reference: Any, motifs: MotifScan | Sequence[str] | Mapping[str, Any]) -> float:
    """Spearman correlation over motifs of the mean number of sites per sequence in two sets; 1 is best.

    motifs   a `MotifScan`, or what it takes: JASPAR names or ids, or a mapping of names to counts
    """
    from scipy.stats import rankdata

    scan = motifs if isinstance(motifs, MotifScan) else MotifScan(motifs)
    means = [scan.counts(s).nanmean(0).numpy() for s in (samples, reference)]
    return _pearson(*(rankdata(m, nan_policy="propagate") for m in means))


def edit_distance_diversity(samples: Any, pairs: int = 2000, seed: int = 0, longest: int = 5000) -> float:
    """Mean Levenshtein distance of random pairs of samples, divided by the length of the longer.

    0 if all samples are equal. Sequences longer than `longest` are left out, with a `RewardWarning`.

    >>> round(edit_distance_diversity(["ACGT", "ACGA"]), 6)
    0.25
    """
    found = [s for s in _comparable(samples, longest) if s]
    if pairs < 1:
        raise ValueError(f"pairs={pairs}: 1 or more are needed")
    if len(found) < 2:
        return math.nan
    rng = np.random.default_rng(seed)
    i = rng.integers(len(found), size=pairs)
    j = (i + rng.integers(1, len(found), size=pairs)) % len(found)
    a, b = [found[v] for v in i], [found[v] for v in j]
    return float(np.mean(levenshtein(a, b) / np.maximum([len(s) for s in a], [len(s) for s in b])))


def nearest_edit_distance(samples: Any, reference: Any, longest: int = 5000) -> Tensor:
    """Levenshtein distance of each sample to the nearest sequence of the reference, float64 (samples,).

    All pairs are computed, so use a part of a large reference.

    >>> nearest_edit_distance(["ACGT", "", "AAAA"], ["ACG", "AATA"])
    tensor([1., nan, 1.], dtype=torch.float64)
    """
    texts_, known = _comparable(samples, longest), sorted({s for s in _comparable(reference, longest) if s})
    asked = [s for s in dict.fromkeys(texts_) if s]
    pairs = levenshtein([s for s in asked for _ in known], known * len(asked)).reshape(len(asked), len(known))
    nearest = dict(zip(asked, pairs.min(1).tolist(), strict=True)) if known else {}
    return torch.tensor([nearest.get(s, math.nan) for s in texts_], dtype=torch.float64)


def uniqueness(samples: Any) -> float:
    """Fraction of distinct sequences.

    >>> uniqueness(["ACGT", "acgt", "A", ""])  # 2 of 3
    0.6666666666666666
    """
    found = [s for s in texts(samples) if s]
    return len(set(found)) / len(found) if found else math.nan


def novelty(samples: Any, reference: Any) -> float:
    """Fraction of the sequences that are not in the reference.

    >>> novelty(["ACGT", "A"], ["acgt"])
    0.5
    """
    found, known = [s for s in texts(samples) if s], set(texts(reference))
    return sum(s not in known for s in found) / len(found) if found else math.nan


def gc_distribution(samples: Any) -> dict[str, float]:
    """Mean, population sd, min, median and max of the GC content of the sequences.

    >>> gc_distribution(["GGCC", "AATT"])
    {'mean': 0.5, 'sd': 0.5, 'min': 0.0, 'median': 0.5, 'max': 1.0}
    """
    gc = GC()(samples).detach().double().cpu()
    gc = gc[~gc.isnan()].numpy()
    if not len(gc):
        return dict.fromkeys(("mean", "sd", "min", "median", "max"), math.nan)
    values = (gc.mean(), gc.std(), gc.min(), np.median(gc), gc.max())
    return dict(zip(("mean", "sd", "min", "median", "max"), map(float, values), strict=True))


def levenshtein(a: Sequence[str], b: Sequence[str], rows: int = 4096) -> np.ndarray:
    """Edit distance of each pair (a_i, b_i), with insertions, deletions and substitutions at cost 1; int64 (pairs,).

    Myers (1999), https://doi.org/10.1145/316542.316550, in words of 64 bits chained as by Hyyro (2003), for many pairs
    at once: a column of the distance table is stored as the bits where it increases and those where it decreases.

    >>> levenshtein(["ACGT", "AAA", ""], ["AGT", "TTT", "AC"]).tolist()
    [1, 3, 2]
    """
    if len(a) != len(b):
        raise ValueError(f"levenshtein takes pairs; given {len(a)} and {len(b)} sequences")
    parts = [_distances(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


_ONE, _LAST_BIT = np.uint64(1), np.uint64(63)


def _distances(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    lengths, ends = (np.array([len(s) for s in v], dtype=np.int64) for v in (a, b))
    text, where = encode(list(b)).numpy(), _bits(encode(list(a)).numpy())
    up, down = np.full(where.shape[1:], ~np.uint64(0)), np.zeros(where.shape[1:], np.uint64)
    word, bit = np.maximum(lengths - 1, 0) // 64, (np.maximum(lengths - 1, 0) % 64).astype(np.uint64)
    distance, pair = lengths.copy(), np.arange(len(lengths))
    for j in range(text.shape[1]):
        rise, fall = _column(where[text[:, j], :, pair].T, up, down)
        change = ((rise[word, pair] >> bit) & _ONE).astype(np.int64) - ((fall[word, pair] >> bit) & _ONE).astype(
            np.int64
        )
        distance += np.where(j < ends, change, 0)
    return np.where(lengths > 0, distance, ends)


def _bits(codes: np.ndarray) -> np.ndarray:
    """For each letter, the positions at which each pattern has it: uint64 (letters, words, pairs)."""
    words = max(1, -(-codes.shape[1] // 64))
    codes = np.pad(codes, ((0, 0), (0, 64 * words - codes.shape[1])), constant_values=OTHER)
    here = codes == np.arange(OTHER + 1, dtype=np.uint8)[:, None, None]
    packed = np.packbits(here, axis=2, bitorder="little").view("<u8")
    return np.ascontiguousarray(packed.transpose(0, 2, 1)).astype(np.uint64)


def _column(equal: np.ndarray, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the next column in place; returns the bits where it exceeds, and is below, the previous one."""
    rise, fall = np.empty_like(up), np.empty_like(up)
    carry_up, carry_down = np.full(up.shape[1], _ONE), np.zeros(up.shape[1], np.uint64)
    for w in range(len(up)):
        vertical = equal[w] | down[w]
        match = equal[w] | carry_down
        across = (((match & up[w]) + up[w]) ^ up[w]) | match
        rise[w], fall[w] = down[w] | ~(across | up[w]), up[w] & across
        more, less = (rise[w] << _ONE) | carry_up, (fall[w] << _ONE) | carry_down
        carry_up, carry_down = rise[w] >> _LAST_BIT, fall[w] >> _LAST_BIT
        up[w], down[w] = less | ~(vertical | more), more & vertical
    return rise, fall


def _comparable(samples: Any, longest: int) -> list[str]:
    """The sequences, with "" for those without a base and those longer than `longest`."""
    found = texts(samples)
    beyond = sum(len(s) > longest for s in found)
    if beyond:
        message = f"{beyond} of {len(found)} sequences have more than longest={longest} bases and are left out"
        warnings.warn(message, RewardWarning, stacklevel=3)
    return [s if len(s) <= longest else "" for s in found]


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation, NaN if one of the two is constant or empty."""
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else math.nan
