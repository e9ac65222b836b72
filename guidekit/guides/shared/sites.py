"""What users write of tokens: letters, IUPAC codes, sets; and the token numbers that a model has for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...models.base import Model

IUPAC = {
    "A": "A", "C": "C", "G": "G", "T": "T", "U": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip

Site = Sequence[Any] | str  # letters, or for each position None (any token), a token number, a letter, or several


def template(model: Any, site: Site | Tensor) -> Tensor:
    """The tokens that each position may have, bool (L, V): of a text, a list, or such a tensor."""
    L, V = model.length, model.vocab_size
    if isinstance(site, Tensor):
        if site.dtype != torch.bool or tuple(site.shape[-2:]) != (L, V):
            raise ValueError(
                f"template of shape {tuple(site.shape)}, {site.dtype}: a bool tensor ({L}, {V}) says which of the {V} "
                f"tokens each of the {L} positions may have"
            )
        return site.to(model.device)
    if isinstance(site, str) and (told := model.template(site)) is not None:
        return told
    if len(site) != L:
        raise ValueError(f"the template has {len(site)} positions and samples have {L}; one for each is needed")
    allowed = torch.zeros(L, V, dtype=torch.bool)
    for i, tokens in enumerate(tokens_of(model, site)):
        allowed[i, sorted(tokens)] = True
    return allowed.to(model.device)


def tokens_of(model: Any, site: Site) -> list[frozenset[int]]:
    """The token numbers of each position of a site."""
    return [_tokens(model, part) for part in site]


def _tokens(model: Any, part: Any) -> frozenset[int]:
    if part is None:
        return frozenset(range(model.vocab_size))
    if isinstance(part, int) and not isinstance(part, bool):
        if not 0 <= part < model.vocab_size:
            raise ValueError(f"token {part}: the model has the tokens 0 to {model.vocab_size - 1}")
        return frozenset([part])
    if isinstance(part, str) and len(part) == 1:
        return frozenset(_token(model, letter) for letter in _meant(model, part))
    if isinstance(part, Collection) and not isinstance(part, str) and part:
        return frozenset().union(*(_tokens(model, p) for p in part))
    raise TypeError(f"{part!r}: a position is None (any token), a letter, a token number, or several of these")


def _meant(model: Model, letter: str) -> str:
    """The letters that an IUPAC code stands for, if the model writes DNA."""
    return IUPAC.get(letter.upper(), letter) if _is_dna(model) else letter


@lru_cache(maxsize=32)
def _is_dna(model: Any) -> bool:
    return model.vocab_size == 4 and all(_known(model, letter) is not None for letter in "ACGT")


def _token(model: Model, letter: str) -> int:
    found = _known(model, letter)
    if found is None and _is_dna(model):
        raise ValueError(
            f"{letter!r} is not one token of this model, which writes A, C, G and T; templates and sites may have the "
            f"other letters of IUPAC too: {', '.join(v for v in IUPAC if v not in 'ACGT')}"
        )
    if found is None:
        raise ValueError(
            f"{letter!r} is not one token of this model: give token numbers (0 to V - 1), or give the model a "
            "read=... that takes samples to tokens"
        )
    return found


@lru_cache(maxsize=1024)
def _known(model: Any, letter: str) -> int | None:
    """The token that the model writes as this letter, found by reading a sample of nothing else."""
    try:
        row = model.read([letter * model.length])[0]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return int(row[0]) if isinstance(row, Tensor) and bool((row == row[0]).all()) else None
