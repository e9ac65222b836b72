r"""Kernels of the surrogate: how alike two samples are, from 0 to 1.

Counts (of circular fragments of a molecule, of k-mers of a text) have the Tanimoto kernel

    k(a, b) = sum_i min(a_i, b_i) / sum_i max(a_i, b_i) = S / (|a| + |b| - S),     S = sum_i min(a_i, b_i),

which is positive definite (Ralaivola et al., 2005, https://doi.org/10.1016/j.neunet.2005.07.009). A count n of feature
i is written as the n codes (i, 1), ..., (i, n), so that S is the number of codes that two samples share: one product of
sparse matrices for all pairs. Numbers (pixels, the output of a network) have the Gaussian kernel

    k(a, b) = exp(-|a - b|^2 / (2 l^2)),      l the median distance of the samples that are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

LEVELS = 1 << 20  # counts are below this
REFERENCE = 500  # samples whose distances give the length of the Gaussian kernel
EXACT = "donot_use_mm_for_euclid_dist"  # so that a sample is at no distance from itself


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of features, row by row: codes (feature, level), sorted within each row, and where each row begins."""

    codes: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(rows: Iterable[Mapping[int, int]]) -> Counts:
        """From one mapping for each row: feature (a whole number below 2^43) to count."""
        found = [_codes(row) for row in rows]
        starts = np.cumsum([0, *map(len, found)])
        return Counts(np.concatenate([*found, np.zeros(0, np.int64)]), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, rows: Sequence[int] | np.ndarray) -> Counts:
        parts = [self.codes[self.starts[i] : self.starts[i + 1]] for i in rows]
        return Counts(np.concatenate([*parts, np.zeros(0, np.int64)]), np.cumsum([0, *map(len, parts)]))

    def join(self, other: Counts) -> Counts:
        return Counts(
            np.concatenate([self.codes, other.codes]),
            np.concatenate([self.starts, other.starts[1:] + self.starts[-1]]),
        )

    def kernel(self, other: Counts) -> Tensor:
        """k of all pairs, float64 (rows, rows of the other). Two samples without features are the same.

        >>> a = Counts.of([{7: 2, 9: 1}, {7: 1}])
        >>> a.kernel(a)
        tensor([[1.0000, 0.3333],
                [0.3333, 1.0000]], dtype=torch.float64)
        """
        columns = np.unique(other.codes)
        shared = (self._matrix(columns) @ other._matrix(columns).T).toarray()
        sizes = np.diff(self.starts)[:, None] + np.diff(other.starts) - shared
        return torch.from_numpy(np.where(sizes == 0, 1.0, shared / np.maximum(sizes, 1)))

    def _matrix(self, columns: np.ndarray) -> sparse.csr_matrix:
        """1 where a row has a code, (rows, columns); codes that are no column are left out."""
        place = np.searchsorted(columns, self.codes)
        known = np.zeros(len(place), bool)
        inside = place < len(columns)
        known[inside] = columns[place[inside]] == self.codes[inside]
        row = np.repeat(np.arange(len(self)), np.diff(self.starts))[known]
        ones = np.ones(len(row), np.float32)
        return sparse.csr_matrix((ones, (row, place[known])), shape=(len(self), len(columns)))


def _codes(row: Mapping[int, int]) -> np.ndarray:
    features, counts = (np.fromiter(v, np.int64, len(row)) for v in (row.keys(), row.values()))
    level = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return np.sort(np.repeat(features, counts) * LEVELS + level)


@dataclass(frozen=True, eq=False)
class Numbers:
    """Features that are numbers, float64 (rows, D), and the length l of their kernel."""

    values: Tensor
    length: float | None = None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Sequence[int] | np.ndarray) -> Numbers:
        return Numbers(self.values[torch.as_tensor(np.asarray(rows))], self.length)

    def join(self, other: Numbers) -> Numbers:
        return Numbers(torch.cat([self.values, other.values]), self.length)

    def kernel(self, other: Numbers) -> Tensor:
        """k of all pairs; l is that of the other, whose samples are those that are known."""
        length = other.length or _median_distance(other.values)
        return (torch.cdist(self.values, other.values, compute_mode=EXACT) / length).square().div(-2).exp()


def _median_distance(values: Tensor) -> float:
    part = values[:: max(1, len(values) // REFERENCE)]
    distances = torch.cdist(part, part, compute_mode=EXACT)
    return float(distances[distances > 0].median()) if bool((distances > 0).any()) else 1.0


class Features(Protocol):
    """Features of samples, row by row, with a kernel between any two sets of the same kind."""

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int] | np.ndarray) -> Any: ...

    def join(self, other: Any) -> Any: ...

    def kernel(self, other: Any) -> Tensor: ...


def as_features(found: Any, rows: int) -> Features:
    """What a function of samples returned: whole numbers (rows, D) are counts, others are numbers; or features."""
    if isinstance(found, Counts | Numbers):
        return found
    values = torch.as_tensor(found).detach().cpu()
    if values.dim() < 2 or len(values) != rows:
        raise ValueError(
            f"features returned shape {tuple(values.shape)} for {rows} samples: a tensor (samples, D) is needed, of "
            "whole numbers if these are counts"
        )
    if values.is_floating_point():
        return Numbers(values.flatten(1).double())
    return Counts.of({i: n for i, n in enumerate(row) if n} for row in values.flatten(1).tolist())
