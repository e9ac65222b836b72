r"""Molecules as short rows of tokens: SELFIES symbols (Krenn et al., 2020, https://doi.org/10.1088/2632-2153/aba947),
of which frequent neighbours are merged, as in byte-pair encoding (Sennrich et al., 2016,
https://arxiv.org/abs/1508.07909).

Every row of symbols is a molecule, so every clean estimate can be scored. Token 0 is the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import selfies
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from typing_extensions import Self

_BREAK = -1  # between molecules in a flat array


@dataclass(frozen=True)
class Merged:
    """Maps texts of symbols to rows of tokens and back.

    symbols: with the ids 1, 2, ...; merges: pairs of ids, each of which makes the next id.
    """

    symbols: tuple[str, ...]
    merges: tuple[tuple[int, int], ...]

    @property
    def vocab(self) -> int:
        return 1 + len(self.symbols) + len(self.merges)

    def card(self) -> dict[str, Any]:
        return {"symbols": list(self.symbols), "merges": [list(m) for m in self.merges]}

    @classmethod
    def of(cls, card: dict[str, Any]) -> Self:
        return cls(tuple(card["symbols"]), tuple((a, b) for a, b in card["merges"]))

    def rows(
        self, texts: Sequence[Sequence[str]], length: int, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows, and the indices of their texts: empty or too long texts, or those with other symbols, are left out."""
        ids = {s: i for i, s in enumerate(self.symbols, 1)}
        flat, first = _flat([_known([ids.get(s, 0) for s in text]) for text in texts]), 1 + len(self.symbols)
        for i, (a, b) in enumerate(tqdm(self.merges, desc="merges", disable=not progress)):
            flat = merged(flat, a, b, first + i)
        breaks = np.flatnonzero(flat == _BREAK)
        sizes = np.diff(breaks, append=len(flat)) - 1
        kept = np.flatnonzero((sizes > 0) & (sizes <= length))
        out = np.zeros((len(kept), length), np.int16 if self.vocab < 2**15 else np.int32)
        for row, place in zip(out, kept, strict=True):
            row[: sizes[place]] = flat[breaks[place] + 1 : breaks[place] + 1 + sizes[place]]
        return out, kept

    def row(self, symbols: Sequence[str], length: int) -> np.ndarray:
        """The row of one text; ValueError says why there is none."""
        strange = sorted(set(symbols).difference(self.symbols))
        if strange:
            raise ValueError(f"it holds {', '.join(strange)}, which the model does not know")
        rows, kept = self.rows([symbols], length)
        if not len(kept):
            size = len(self.rows([symbols], len(symbols))[0][0].nonzero()[0])
            raise ValueError(f"it takes {size} tokens, and the model has {length}")
        return rows[0]

    def texts(self, tokens: Any) -> list[str]:
        """The texts of rows, up to their first end."""
        words = self.words()
        rows = (row[: row.index(0)] if 0 in row else row for row in np.asarray(tokens).tolist())
        return ["".join(words[v] for v in row if v < len(words)) for row in rows]

    def words(self) -> list[str]:
        """The text of each token."""
        words = ["", *self.symbols]
        for a, b in self.merges:
            words.append(words[a] + words[b])
        return words


@dataclass(frozen=True)
class Tokens(Merged):
    """The tokens of SELFIES."""

    def encode(self, smiles: Sequence[str], length: int) -> np.ndarray:
        """Rows (molecules, length), 0 after the end, of the molecules that fit."""
        return self.encode_each(smiles, length)[0]

    def encode_each(self, smiles: Sequence[str], length: int, progress: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Rows, and the indices of their molecules: those that are too long, or have other symbols, are left out."""
        return self.rows([_selfies(s) for s in tqdm(smiles, desc="SELFIES", disable=not progress)], length, progress)

    def read(self, smiles: Sequence[str], length: int) -> np.ndarray:
        """Rows (molecules, length) that decode to these molecules; ValueError where there is none.

        Tokens are in the order of the SMILES: what is written first comes first.
        """
        return np.stack([self._read(s, length) for s in smiles])

    def _read(self, smiles: str, length: int) -> np.ndarray:
        from rewards.molecules.descriptors import canonical

        wanted = canonical(smiles)
        if not wanted:
            raise ValueError("it is no SMILES of a molecule")
        symbols = _selfies(smiles)
        if not symbols:
            raise ValueError("SELFIES cannot write it")
        row = self.row(symbols, length)
        if (found := canonical(self.decode(row[None])[0])) != wanted:
            raise ValueError(f"it comes back as {found}, another molecule")
        return row

    def decode(self, tokens: Any) -> list[str]:
        """SMILES of rows, up to their first end; texts that SELFIES cannot read are empty."""
        rules = tuple(selfies.get_semantic_constraints().items())
        return [_smiles(text, rules) for text in self.texts(tokens)]


@lru_cache(maxsize=1 << 16)
def _smiles(text: str, rules: tuple[tuple[str, int], ...]) -> str:
    """The molecule of a text under these rules of SELFIES; guides read most estimates several times."""
    try:
        return str(selfies.decoder(text) or "")
    except selfies.DecoderError:
        return ""


def _selfies(smiles: str) -> list[str]:
    """The SELFIES symbols of a molecule, or [] if it cannot be encoded."""
    try:
        return list(selfies.split_selfies(selfies.encoder(smiles)))
    except selfies.EncoderError:
        return []


def _known(ids: list[int]) -> list[int]:
    return [] if 0 in ids else ids


def learned(smiles: Sequence[str], vocab: int, progress: bool = True) -> Tokens:
    """Learn `vocab` tokens from molecules, by repeatedly merging the most frequent pair."""
    texts = [list(selfies.split_selfies(selfies.encoder(s))) for s in tqdm(smiles, disable=not progress)]
    symbols = tuple(sorted({s for text in texts for s in text}))
    return Tokens(symbols, merges(texts, symbols, vocab, progress))


def merges(
    texts: Sequence[Sequence[str]], symbols: Sequence[str], vocab: int, progress: bool = True
) -> tuple[tuple[int, int], ...]:
    """Pairs to merge, the most frequent first, until there are `vocab` ids."""
    ids = {s: i for i, s in enumerate(symbols, 1)}
    flat, found = _flat([[ids[s] for s in text] for text in texts]), []
    for new in tqdm(range(1 + len(symbols), vocab), disable=not progress):
        a, b = _most_frequent(flat, new)
        flat = merged(flat, a, b, new)
        found.append((a, b))
    return tuple(found)


def _flat(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """All rows one after the other, with a break before each."""
    return np.array([v for row in rows for v in (_BREAK, *row)], np.int32)


def _most_frequent(flat: np.ndarray, size: int) -> tuple[int, int]:
    left, right = flat[:-1].astype(np.int64), flat[1:]
    inside = (left != _BREAK) & (right != _BREAK)
    pair = int(np.bincount(left[inside] * size + right[inside]).argmax())
    return pair // size, pair % size


def merged(flat: np.ndarray, a: int, b: int, new: int) -> np.ndarray:
    """Replace every pair a b, from the left, by one new id."""
    at = np.flatnonzero((flat[:-1] == a) & (flat[1:] == b))
    if a == b and len(at):  # in a run a a a, every second position
        start = np.flatnonzero(np.diff(at, prepend=-2) != 1)
        at = at[(np.arange(len(at)) - np.repeat(start, np.diff(start, append=len(at)))) % 2 == 0]
    flat = flat.copy()
    flat[at] = new
    keep = np.ones(len(flat), bool)
    keep[at + 1] = False
    return flat[keep]
