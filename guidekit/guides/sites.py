r"""Sites that samples must not have, or must have: hard constraints on tokens, by an automaton that looks ahead.

The automaton of Aho and Corasick (1975, https://doi.org/10.1145/360825.360855) reads a sequence and knows whether a
site has occurred. At each move the probability that the sequence will end within the constraint is computed
backwards over positions, and tokens are drawn forwards by it, so that no sample breaks the constraint, however short
the run; the weights correct for what was forced (see `shared/constrained`). Zhang et al. (2024,
https://arxiv.org/abs/2406.13892) do the same for language models, with a hidden Markov model in place of the
diffusion's own independent predictions.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..models.base import Model
from ..process import Masked, Uniform
from .shared.constrained import Within
from .shared.language import avoiding, both, containing, spelled
from .shared.sites import tokens_of


@dataclass(frozen=True)
class Sites(Within):
    """Forbidden and required sites. No NFE; exact under the weights, and kept by every sample.

    forbidden   sites that occur nowhere: texts in the model's letters (for DNA with IUPAC codes), or lists of tokens
    required    sites each of which occurs at least once
    method      "weighted", or "replace": the constraint holds without weights, and independent samples stay independent
    ess         particles are resampled when the effective sample size falls below this fraction of them
    """

    forbidden: Any = ()
    required: Any = ()
    _: KW_ONLY
    method: str = "weighted"
    ess: float = 0.5

    card = Card(
        "never a forbidden site, always the required ones",
        section="Constraints",
        processes=(Masked, Uniform),
        refusal="is for tokens; keep parts of other samples with Keep",
        exact="p(x | constraint), for the weighted samples",
        changes="weights",
        paper=Paper(
            "zhang2024ctrlg",
            "Zhang, Honghua and Kung, Po-Nien and Yoshida, Masahiro and Van den Broeck, Guy and Peng, Nanyun",
            "Adaptable Logical Control for Large Language Models",
            2024,
            "2406.13892",
        ),
        example="gk.Sites(forbidden=[[3], [4]], required=[[11]])",
        picture="tokens",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("forbidden", "required"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        if not self.forbidden and not self.required:
            raise ValueError("Sites needs forbidden=[...] or required=[...]")
        if not all(len(site) for site in (*self.forbidden, *self.required)):
            raise ValueError("Sites: an empty site occurs everywhere")

    def bind(self, model: Model) -> Guide:
        never, always = ([tokens_of(model, site) for site in sites] for sites in (self.forbidden, self.required))
        size = model.shape[0], model.vocab_size, model.device  # type: ignore[attr-defined]
        parts = [containing(spelled(site), *size) for site in always]
        if never:
            parts.append(avoiding([word for site in never for word in spelled(site)], *size))
        return self.having(forbidden=tuple(never), required=tuple(always), language=both(parts))
