"""gk.cite: BibTeX of the methods in a list of guides."""

from __future__ import annotations

from collections.abc import Iterable

from .guides.base import Guide

# class -> (key, authors, title, year, arXiv)
PAPERS: dict[str, tuple[str, str, str, int, str]] = {
    "CFG": ("ho2022cfg", "Ho, Jonathan and Salimans, Tim", "Classifier-Free Diffusion Guidance", 2022, "2207.12598"),
    "FKSteering": (
        "singhal2025fk",
        "Singhal, Raghav and Horvitz, Zachary and Teehan, Ryan and Ren, Mengye and Yu, Zhou and McKeown, Kathleen and "
        "Ranganath, Rajesh",
        "A General Framework for Inference-time Scaling and Steering of Diffusion Models",
        2025,
        "2501.06848",
    ),
    "SVDD": (
        "li2024svdd",
        "Li, Xiner and Zhao, Yulai and Wang, Chenyu and Scalia, Gabriele and Eraslan, Gokcen and Nair, Surag and "
        "Biancalani, Tommaso and Ji, Shuiwang and Regev, Aviv and Levine, Sergey and Uehara, Masatoshi",
        "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding",
        2024,
        "2408.08252",
    ),
    "TDS": (
        "wu2023tds",
        "Wu, Luhuan and Trippe, Brian L. and Naesseth, Christian A. and Blei, David M. and Cunningham, John P.",
        "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models",
        2023,
        "2306.17775",
    ),
    "DAS": (
        "kim2025das",
        "Kim, Sunwoo and Kim, Minkyu and Park, Dongmin",
        "Test-time Alignment of Diffusion Models without Reward Over-optimization",
        2025,
        "2501.05803",
    ),
    "Corrector": (
        "skreta2025fkc",
        "Skreta, Marta and others",
        "Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts",
        2025,
        "2503.02819",
    ),
    "BeamSearch": (
        "li2025dsearch",
        "Li, Xiner and Uehara, Masatoshi and Su, Xingyu and Scalia, Gabriele and Biancalani, Tommaso and Regev, Aviv "
        "and Levine, Sergey and Ji, Shuiwang",
        "Dynamic Search for Inference-Time Alignment in Diffusion Models",
        2025,
        "2503.02039",
    ),
    "DDCM": (
        "ohayon2025ddcm",
        "Ohayon, Guy and Manor, Hila and Michaeli, Tomer and Elad, Michael",
        "Compressed Image Generation with Denoising Diffusion Codebook Models",
        2025,
        "2502.01189",
    ),
    "StartFrom": (
        "meng2021sdedit",
        "Meng, Chenlin and He, Yutong and Song, Yang and Song, Jiaming and Wu, Jiajun and Zhu, Jun-Yan and "
        "Ermon, Stefano",
        "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
        2021,
        "2108.01073",
    ),
}


def cite(guides: Guide | Iterable[Guide]) -> str:
    """BibTeX entries of the papers behind these guides, each once, in the order of the list.

    A guide of your own is cited where its class has a text `bibtex`.

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
    return "\n\n".join(dict.fromkeys(entry for g in listed if (entry := _entry(type(g)))))


def _entry(kind: type[Guide]) -> str:
    own = getattr(kind, "bibtex", None)
    if own is not None or kind.__name__ not in PAPERS or not kind.__module__.startswith("guidekit."):
        return own or ""
    key, authors, title, year, arxiv = PAPERS[kind.__name__]
    fields = {"author": authors, "title": title, "year": year, "eprint": arxiv, "archivePrefix": "arXiv"}
    return f"@misc{{{key},\n" + ",\n".join(f"  {k} = {{{v}}}" for k, v in fields.items()) + "\n}"
