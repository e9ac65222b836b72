r"""A bound on the number of positions that differ from a given sequence, kept by every sample.

    p(x | #{i : x_i != reference_i} <= edits)

A sequence is read by an automaton that counts differences; moves are drawn within what can still be completed, and the
weights correct for it (see `shared/constrained`), as Lew et al. (2023, https://arxiv.org/abs/2306.03081) do for hard
constraints of language models. Started from noise, sequences near a given one are improbable and the
weights say so; the bound is most useful in `refine` and `evolve`, or with `StartFrom`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..errors import is_count
from ..models.base import Model
from ..process import Masked, Uniform
from .shared.constrained import Within
from .shared.language import near


@dataclass(frozen=True, eq=False)
class MaxEdits(Within):
    """At most `edits` positions differ from the reference. No NFE; exact under the weights, and kept by every sample.

    reference   a sequence that the model can read, or its tokens, (length,)
    edits       the largest number of positions that may differ
    method      "weighted", or "replace": the constraint holds without weights, and independent samples stay independent
    ess         particles are resampled when the effective sample size falls below this fraction of them
    """

    reference: Any
    edits: int
    _: KW_ONLY
    method: str = "weighted"
    ess: float = 0.5

    card = Card(
        "changes at most so many positions of a given sequence",
        section="Constraints",
        processes=(Masked, Uniform),
        refusal="is for tokens; keep parts of other samples with Keep",
        exact="p(x | at most so many edits), for the weighted samples",
        changes="weights",
        paper=Paper(
            "lew2023smc",
            "Lew, Alexander K. and Zhi-Xuan, Tan and Grand, Gabriel and Mansinghka, Vikash K.",
            "Sequential Monte Carlo Steering of Large Language Models using Probabilistic Programs",
            2023,
            "2306.03081",
        ),
        example="gk.MaxEdits(torch.tensor([11, 11]), 1)",
        picture="tokens",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_count(self.edits, 0):
            raise ValueError(f"MaxEdits(edits={self.edits!r}): a number of positions is needed")

    def bind(self, model: Model) -> Guide:
        try:
            x = model.as_states(self.reference if isinstance(self.reference, Tensor) else [self.reference])
        except ValueError as error:
            raise ValueError(f"MaxEdits(reference=...): {error}") from error
        if x.numel() != model.shape[0]:
            raise ValueError(f"MaxEdits(reference of shape {tuple(x.shape)}): one sequence of shape {model.shape}")
        x = x.view(model.shape).to(model.device)
        V = model.vocab_size  # type: ignore[attr-defined]
        return self.having(reference=x, language=near(x, self.edits, V))
