"""The catalogue of all guides, made from the cards of their classes: for the documentation and the command line.

python -m guidekit.guides.catalog > docs/guides.md
"""

from __future__ import annotations

import sys

from .. import guides
from ..engine.card import Card

SECTIONS = (  # in the order of the page; within a section the order is that of publication
    "Steering with rewards",
    "Constraints",
    "Starts, noise and resampling",
    "Classifier-free guidance and its relatives",
    "Perturbed networks",
    "Weaker and stronger models",
    "Corrections of the prediction",
    "Rare samples",
    "Training-free guidance",
    "Inverse problems",
    "Guidance by classifiers",
    "Sampling of tokens",
    "Composition",
    "Diagnosis",
)


def listed() -> dict[str, Card]:
    """The cards of all guides that this package exports and that have a section, in the order of the page."""
    found = {name: getattr(value, "card", None) for name, value in vars(guides).items()}
    cards = {name: card for name, card in found.items() if isinstance(card, Card) and card.section}
    return dict(sorted(cards.items(), key=_place))


def _place(entry: tuple[str, Card]) -> tuple[int, int, str, str]:
    name, card = entry
    if card.section not in SECTIONS:
        raise ValueError(f"{name}: there is no section {card.section!r}; there is {', '.join(SECTIONS)}")
    year, where = (9999, "") if card.paper is None else (card.paper.year, card.paper.where)
    return SECTIONS.index(card.section), year, where, name


GUIDES = listed()

_COLUMNS = "| guide | what it does | paper | processes | extra NFE | exact | changes |"
_HEAD = """\
# The guides

All guides of the package, by section. They can be combined in one list, `guides=[...]`; combinations in which one guide
would make another one useless or wrong are refused.

* **Extra NFE** are network evaluations per particle and step, beyond the one of the model itself. Guides that need the
  same evaluation share it.
* **Exact** is the distribution that the samples provably have, up to the discretisation error of the steps. Guides
  without an entry are heuristics.
* **Changes** says what the guide acts on. A guide that changes the target can also be given `steer=True`: it then only
  bends the proposal, and importance weights correct for it, so that the target remains that of the other guides.

`gk.cite(guides)` prints the papers as BibTeX, and `guidekit list guides` prints this list in a terminal.

![One panel for every guide: samples of a mixture in two dimensions](guides.png)

Samples of a two-dimensional mixture under every guide. Grey lines are the distribution of the model at its condition;
dots are samples, the darker the larger their weight. `python benchmarks/gallery.py --out docs/guides.png` draws the
picture, and `python -m guidekit.guides.catalog > docs/guides.md` writes this page from the classes of the guides.
"""


def table() -> str:
    """docs/guides.md."""
    parts = [_HEAD]
    for title in dict.fromkeys(card.section for card in GUIDES.values()):
        rows = [_line(name, card) for name, card in GUIDES.items() if card.section == title]
        parts.append("\n".join([f"## {title}\n", _COLUMNS, "|---" * 7 + "|", *rows]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _line(name: str, card: Card) -> str:
    cells = (f"`{name}`", card.about, _reference(card), ", ".join(card.kinds), card.rows, card.exact, card.changes)
    return f"| {' | '.join(cells)} |"


def _reference(card: Card) -> str:
    paper = card.paper
    if paper is None:
        return ""
    return f"[{paper.title}, {paper.year}]({paper.url})" if paper.url else f"{paper.title}, {paper.where}, {paper.year}"


if __name__ == "__main__":
    sys.stdout.write(table())
