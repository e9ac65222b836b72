"""A shelf of models that others have trained, each from a package that carries its weights. Nothing is downloaded.

Packages are found where pip has put them, and their weights are read without running code that lies in them. None is a
requirement of guidekit; where one is missing, the error says how it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..models import Model
from . import proteinmpnn, rxnmapper, terrain

_SHELF: dict[str, Callable[..., Model]] = {
    "proteinmpnn": proteinmpnn.proteinmpnn,
    "solublempnn": proteinmpnn.solublempnn,
    "rxnmapper": rxnmapper.rxnmapper,
    "terrain": terrain.terrain,
}


def names() -> list[str]:
    """The models on the shelf.

    >>> names()
    ['proteinmpnn', 'rxnmapper', 'solublempnn', 'terrain']
    """
    return sorted(_SHELF)


def load(name: str, **options: Any) -> Model:
    """A model of the shelf; its options are on the page [models of others](external.md).

    load("proteinmpnn", backbone="file.pdb")      sequences for a backbone
    load("solublempnn", backbone="file.pdb")      the same, trained on soluble proteins
    load("rxnmapper", length=40)                  reactions
    load("terrain")                               maps of heights
    """
    if name not in _SHELF:
        raise ValueError(f"external: there is no {name!r}; there is {', '.join(names())}")
    return _SHELF[name](**options)


__all__ = ["load", "names"]
