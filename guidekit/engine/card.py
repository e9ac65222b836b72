"""What a guide's class says of itself besides its mathematics: the paper, a row of the catalogue, an example.

The catalogue (docs/guides.md and `guidekit list guides`), `gk.cite`, the gallery and the check that a guide serves the
model's process are all made from these cards; no method is listed anywhere else.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..process import Gaussian, Masked, Uniform

KINDS: dict[type, str] = {Gaussian: "Gaussian", Masked: "masked", Uniform: "uniform"}
_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030c": "v ", "\u0327": "c "}


@dataclass(frozen=True)
class Paper:
    """A reference. `authors` are separated by "and", as in BibTeX; `where` is an arXiv number, or the venue.

    >>> Paper("ho2022cfg", "Ho, Jonathan and Salimans, Tim", "Classifier-Free Guidance", 2022, "2207.12598").url
    'https://arxiv.org/abs/2207.12598'
    """

    key: str
    authors: str
    title: str
    year: int
    where: str

    @property
    def url(self) -> str:
        """The page on arXiv, or ""."""
        return f"https://arxiv.org/abs/{self.where}" if self.where[-1].isdigit() else ""

    @property
    def bibtex(self) -> str:
        """The entry for a bibliography."""
        where = {"eprint": self.where, "archivePrefix": "arXiv"} if self.url else {"howpublished": self.where}
        found = {"author": self.authors, "title": self.title, "year": self.year, **where}
        return f"@misc{{{self.key},\n" + ",\n".join(f"  {k} = {{{_latex(str(v))}}}" for k, v in found.items()) + "\n}"


@dataclass(frozen=True)
class Card:
    """What there is to know about a method without reading its code. Every field is optional.

    about      what the method does, in a few words
    section    of the catalogue; a guide without one is not listed
    processes  the classes of the processes that it serves; `object` stands for any. The engine refuses others
    refusal    what the error for another process says after the class's name: the reason, and what to use instead
    rows       network evaluations (NFE) per particle and step, beyond the one of the model itself
    exact      the distribution that the samples provably have, if they have one
    changes    "target" | "weights" | "selection" | "start" | "noise" | "condition" | "kernel" | "nothing"
    paper      the reference
    example    how the guide is written, in the names of benchmarks/gallery.py; several are separated by commas
    picture    the model of benchmarks/gallery.py that the example guides in docs/guides.png
    """

    about: str = ""
    section: str = ""
    processes: tuple[type, ...] = (object,)
    refusal: str = ""
    rows: str = "0"
    exact: str = ""
    changes: str = ""
    paper: Paper | None = None
    example: str = ""
    picture: str = "mixture"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The processes by name.

        >>> Card().kinds, Card(processes=(Masked,)).kinds
        (('Gaussian', 'masked', 'uniform'), ('masked',))
        """
        return tuple(name for kind, name in KINDS.items() if issubclass(kind, self.processes))

    def refuse(self, name: str, process: object) -> None:
        """Raise ValueError if this is not one of the processes; `name` is that of the guide."""
        if not isinstance(process, self.processes):
            served = f"serves {' and '.join(self.kinds)} processes, and the model's is {type(process).__name__}"
            raise ValueError(f"{name} {self.refusal} (it {served})" if self.refusal else f"{name} {served}")


Make = TypeVar("Make", bound=Callable[..., Any])


def carded(card: Card) -> Callable[[Make], Make]:
    """Decorator that gives a function which makes guides the card that a class has as an attribute."""

    def put(make: Make) -> Make:
        vars(make)["card"] = card
        return make

    return put


def _latex(text: str) -> str:
    """Accented letters as LaTeX commands.

    >>> _latex("Itô")
    'It{\\\\^o}'
    """
    found = ""
    for letter in unicodedata.normalize("NFD", text):
        found = f"{found[:-1]}{{\\{_ACCENTS[letter]}{found[-1]}}}" if letter in _ACCENTS else found + letter
    return found
