"""What samples are: when two are the same, how alike they are, and how they are written in a file.

    "smiles"     molecules: the same if their canonical SMILES are; counts of circular fragments up to radius 2
    "sequence"   texts in which what counts is which words occur: counts of k-mers, k = 3 to 6
    "text"       other texts, position by position: which letter is at which place, and which pair of neighbours
    "tokens"     rows of whole numbers, as texts
    "numbers"    anything else: pixels, points; the numbers themselves

A model says which one its samples are (`Model.content`); of a model that does not, texts are "text".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models import Model
from ...models.networks import lent
from .kernels import Counts, Features, Numbers, as_features

CONTENTS = ("smiles", "sequence", "text", "tokens", "numbers")
RADIUS = 2
WORDS = {"sequence": (3, 4, 5, 6), "text": (1, 2), "tokens": (1, 2)}  # sizes of the words that are counted
PLACED = ("text", "tokens")  # of which words count by their place
_PRIME, _LARGEST = 1_000_003, 1 << 43


@dataclass(frozen=True)
class Domain:
    """Samples of one content; `given` are the user's own features, a function of samples."""

    content: str
    given: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.content not in CONTENTS:
            raise ValueError(f"content={self.content!r}: samples are one of {', '.join(CONTENTS)}")

    @staticmethod
    def of(model: Model, content: str | None = None, features: Callable[[Any], Any] | None = None) -> Domain:
        """The domain of a model's samples; content is needed where the model does not say what its texts are."""
        return Domain(content or _content(model), features)

    @property
    def texts(self) -> bool:
        """Whether samples are texts, which a line of a file can hold."""
        return self.content in ("smiles", "sequence", "text")

    def names(self, samples: Any) -> list[Hashable]:
        """What tells samples apart; None for a text that is no sample: no molecule, or empty."""
        if self.content == "smiles":
            return [_canonical(s) for s in samples]
        if self.content == "sequence":
            return [s.strip().upper().replace("U", "T") or None for s in samples]
        if isinstance(samples, Tensor):
            return [v.tobytes() for v in samples.detach().cpu().contiguous().numpy()]
        return [s or None if isinstance(s, str) else np.asarray(s).tobytes() for s in samples]

    def kept(self, samples: Any, rows: Sequence[int], names: Sequence[Hashable]) -> Any:
        """Rows of samples in their canonical form."""
        if isinstance(samples, Tensor):
            return samples[list(rows)].detach().cpu()
        return [names[i] if self.texts else samples[i] for i in rows]

    def features(self, samples: Any) -> Features:
        """Of the surrogate's kernel."""
        if self.given is not None:
            return as_features(self.given(samples), len(samples))
        if self.content == "smiles":
            return Counts.of(map(_circular, samples))
        if self.content in WORDS:
            sizes, placed = WORDS[self.content], self.content in PLACED
            return Counts.of(_words(row, sizes, placed) for row in _letters(samples))
        x = samples if isinstance(samples, Tensor) else torch.as_tensor(np.stack([np.asarray(s) for s in samples]))
        return Numbers(x.detach().cpu().flatten(1).double())

    def text(self, sample: Any, number: int) -> str:
        """A sample in a line of the log: a text, tokens with spaces between them, or its number."""
        if self.content == "tokens":
            return " ".join(map(str, np.asarray(sample).flatten().tolist()))
        return sample if self.texts else f"sample {number}"


def _content(model: Model) -> str:
    if model.content in CONTENTS:
        return model.content
    blank = torch.zeros(1, *model.shape, dtype=torch.long if hasattr(model, "vocab_size") else model.dtype)
    with torch.no_grad(), lent(model.modules()):
        samples = model.decode(blank.to(model.device))
    if isinstance(samples, list) and all(isinstance(s, str) for s in samples):
        return "text"
    whole = isinstance(samples, Tensor) and not samples.is_floating_point() and samples.dim() == 2
    return "tokens" if whole else "numbers"


def _canonical(smiles: Any) -> str | None:
    from rewards.molecules.descriptors import canonical

    return canonical(smiles) or None


@lru_cache(1)
def _generator() -> Any:
    from rdkit.Chem import rdFingerprintGenerator

    return rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS)


def _circular(smiles: str) -> dict[int, int]:
    """Counts of circular fragments (Morgan, ECFP4 by radius), without folding."""
    from rewards.molecules.descriptors import parsed

    return _generator().GetSparseCountFingerprint(parsed(smiles)).GetNonzeroElements()


def _letters(samples: Any) -> Iterable[list[int]]:
    if isinstance(samples, Tensor):
        return samples.flatten(1).tolist()
    return ([ord(c) for c in s] if isinstance(s, str) else np.asarray(s).flatten().tolist() for s in samples)


def _words(row: list[int], sizes: Sequence[int], placed: bool) -> Counter[int]:
    """Counts of the k-mers of a row, or of these by their place, each under a number of its own."""
    a = np.asarray(row, np.int64)
    found = []
    for k in sizes:
        parts = [a[i : len(a) - k + i + 1] for i in range(k)] if k <= len(a) else []
        if parts:
            found.append(_numbered(np.stack([*parts, *([np.arange(len(parts[0]))] if placed else [])]), k))
    return Counter(chain.from_iterable(f.tolist() for f in found))


def _numbered(parts: np.ndarray, kind: int) -> np.ndarray:
    """One number below 2^43 for each column, by a polynomial hash."""
    total = np.full(parts.shape[1], kind + 1, np.int64)
    for part in parts:
        total = (total * _PRIME + part + 1) % _LARGEST
    return total
