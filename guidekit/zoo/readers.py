"""From samples to the states of the bundled models: what their `read` takes, and how."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..models import reading

if TYPE_CHECKING:
    from .fragments import Fragments
    from .grammar import Grammar
    from .tokens import Tokens

LETTERS = "ACGTN"


@dataclass(frozen=True)
class Molecules:
    """SMILES as rows of tokens."""

    content: ClassVar[str] = "smiles"
    tokens: Tokens
    length: int

    @property
    def takes(self) -> str:
        return f"SMILES of molecules whose SELFIES have at most {self.length} tokens of the model's vocabulary"

    def __call__(self, smiles: Sequence[str]) -> Tensor:
        _check_texts(smiles, "a SMILES")
        return torch.as_tensor(self.tokens.read(smiles, self.length)).long()

    def nearest(self, smiles: Any) -> str:
        return _nearest(smiles, self)

    def template(self, part: str) -> Tensor:
        raise ValueError(
            f"{part!r} cannot be kept: this model writes a molecule from one of its ends, and keeps no parts; take one "
            "that writes fragments, as gk.zoo.load('druglike')"
        )


@dataclass(frozen=True)
class Parts:
    """SMILES as rows of fragments, and parts of molecules as their beginning."""

    tokens: Fragments
    length: int

    @property
    def takes(self) -> str:
        return f"SMILES of molecules whose fragments have at most {self.length} tokens of the model's vocabulary"

    def __call__(self, smiles: Sequence[str]) -> Tensor:
        _check_texts(smiles, "a SMILES")
        return torch.as_tensor(self.tokens.read(smiles, self.length)).long()

    def nearest(self, smiles: Any) -> str:
        return _nearest(smiles, self)

    def template(self, part: str) -> Tensor:
        """The tokens of each position in molecules that hold this part, bool (length, V): its own, and behind them the
        end or another fragment, for else its last atom might go on."""
        from .nearest import nearest

        try:
            first = self._first(part)
        except ValueError as error:
            raise ValueError(f"{error}{nearest(part, lambda other: _works(self._first, other))}") from error
        allowed = torch.ones(self.length, self.tokens.vocab, dtype=torch.bool)
        allowed[: len(first)] = torch.nn.functional.one_hot(first, self.tokens.vocab).bool()
        allowed[len(first)] = torch.tensor([word[:1] in ((), (".",)) for word in self._grammar.tokens])
        return allowed

    def begun(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the same molecules that begin with these tokens, and of which rows there are such."""
        text, own = self.tokens.texts(first[None].cpu())[0], x.clone()
        found = [self._begun(smiles, text) for smiles in self.tokens.decode(x.cpu())]
        fine = torch.tensor([row is not None for row in found], device=x.device)
        if bool(fine.any()):
            own[fine] = torch.stack([row for row in found if row is not None]).to(own)
        return own, fine

    def _begun(self, smiles: str, first: str) -> Tensor | None:
        """The row of a molecule that begins with this text, or None if the model has none."""
        from .fragments import begun, split

        text = begun(smiles, first)
        try:
            row = torch.as_tensor(self.tokens.row(split(text), self.length)).long() if text else None
        except ValueError:
            return None
        return row if row is not None and bool(self._grammar.alive(self._grammar.read(row[None]))) else None

    @cached_property
    def _grammar(self) -> Grammar:
        from .grammar import Grammar

        return Grammar.of(self.tokens)

    def _first(self, part: str) -> Tensor:
        """The first tokens of molecules that hold this part."""
        first = torch.as_tensor(self.tokens.beginning(part, self.length)).long()
        self._check_room(part, first)
        return first

    def _check_room(self, part: str, first: Tensor) -> None:
        """Raise where the rest of the molecule would not fit behind these tokens."""
        needed = int(self._grammar.need(self._grammar.read(first[None])))
        if len(first) + needed + 1 > self.length:
            raise ValueError(
                f"{part!r} cannot be kept: it takes {len(first)} tokens and up to {needed + 1} more to close its open "
                f"bonds, and the model has {self.length}; give it fewer open bonds, or a smaller part"
            )


@dataclass(frozen=True)
class Sequences:
    """DNA as rows of letters."""

    content: ClassVar[str] = "sequence"
    length: int

    @property
    def takes(self) -> str:
        return f"texts of {self.length} letters A, C, G and T (lower case is fine, and U is read as T)"

    def __call__(self, sequences: Sequence[str]) -> Tensor:
        _check_texts(sequences, "a sequence")
        return torch.tensor([self._row(s.strip().upper().replace("U", "T")) for s in sequences])

    def _row(self, text: str) -> list[int]:
        odd = re.search("[^ACGT]", text)
        if odd is not None:
            raise ValueError(f"it has {odd[0]!r} at position {odd.start()}")
        if len(text) != self.length:
            raise ValueError(f"it has {len(text)} letters, and the model has {self.length}")
        return [LETTERS.index(v) for v in text]


@dataclass(frozen=True)
class Images:
    """Images in [0, 1] as standardised pixels."""

    content: ClassVar[str] = "image"
    shape: tuple[int, ...]
    mean: float
    std: float

    @property
    def takes(self) -> str:
        channels, height, width = self.shape
        kind = "grey" if channels == 1 else "colour"
        return f"{kind} images of {height} x {width} pixels: tensors or arrays in [0, 1] or 8 bits, PIL images or files"

    def __call__(self, images: Any) -> Tensor:
        return (self.seen(images) - self.mean) / self.std

    def seen(self, images: Any) -> Tensor:
        """Images as they come out of decoding."""
        return reading.images(reading.listed(images), *self.shape)


def _check_texts(samples: Sequence[Any], what: str) -> None:
    for sample in samples:
        if not isinstance(sample, str):
            raise TypeError(f"{what} is a text, not {type(sample).__name__}")


def _nearest(smiles: Any, read: Callable[[list[str]], Tensor]) -> str:
    """What an error says of the nearest molecule that can be read."""
    from .nearest import nearest

    return nearest(smiles, lambda other: _works(read, [other])) if isinstance(smiles, str) else ""


def _works(function: Callable[[Any], Any], given: Any) -> bool:
    """Whether a function takes what is given."""
    try:
        function(given)
    except ValueError:
        return False
    return True
