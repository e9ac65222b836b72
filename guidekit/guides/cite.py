"""gk.cite: BibTeX of the methods in a list of guides."""

from __future__ import annotations

from collections.abc import Iterable

from ..engine.guide import Guide


def cite(guides: Guide | Iterable[Guide]) -> str:
    """BibTeX entries of the papers behind these guides, each once, in the order of the list.

    A guide of your own is cited if its class has a card with a paper, or a text `bibtex`.

    >>> import guidekit as gk
    >>> print(gk.cite([gk.CFG(3.0), gk.CFG(2.0)]))
    @misc{ho2022cfg,
      author = {Ho, Jonathan and Salimans, Tim},
      title = {Classifier-Free Diffusion Guidance},
      year = {2022},
      eprint = {2207.12598},
      archivePrefix = {arXiv}
    }
    """
    listed = [guides] if isinstance(guides, Guide) else list(guides)
    if not all(isinstance(g, Guide) for g in listed):
        raise TypeError(f"cite takes guides, not {listed!r}")
    return "\n\n".join(dict.fromkeys(entry for g in listed if (entry := _entry(g))))


def _entry(guide: Guide) -> str:
    paper = guide.card.paper
    return getattr(guide, "bibtex", "") or ("" if paper is None else paper.bibtex)
