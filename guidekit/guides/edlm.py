r"""Energy-based diffusion language model, EDLM (Xu et al., 2024), https://arxiv.org/abs/2410.21357.

Tokens of one step are drawn independently of each other, which is what makes few steps inaccurate. An energy of whole
sequences makes them fit together:

    p(x_0 | x_t)  ~  prod_i p_i(x_0^i) exp(-E(x_0)),      x_s from q(x_s | x_t, x_0).

At each step K candidates x_0^k are drawn from prod_i p_i, in parallel, and one of them is taken with probability
w_k/sum_j w_j. With residual=True the energy is that of the clean law itself, such as -log p(x) of an autoregressive
model, and the energy above its difference to the prediction:

    w_k = exp(-E(x_0^k)),      residual: w_k = exp(-E(x_0^k))/prod_i p_i(x_0^{k, i}).

`gk.values.fit_energy` fits the former to data by noise contrast, E(x_0, x_t, t), the paper's other way.

So the law is that of the chain with a self-normalised estimate of p(x_0 | x_t): its error is of the order of 1/K, and
gone in the limit of many candidates. If exp(-E) is then the exact clean law (residual), samples follow it with any
number of steps. Weights of other guides (`FKSteering`, `SVDD`) tilt the law with K candidates exactly. The paper takes
candidates in the first part of the run only: `stop=0.6`, say, which is its window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random
from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.view import View
from ..errors import NetworkError, is_count
from ..models.base import Model
from ..models.evaluations import rows_of
from ..models.tokens import LOG_ZERO
from ..process import Masked
from ..values import Energy
from .shared.constrained import Within

_ROWS = 4096  # sequences per call of the energy, if the run has no batch_size


@dataclass(frozen=True)
class EDLM(Guide):
    """Draws the tokens of a step together, by an energy of whole sequences. No extra NFE; `candidates` energies per
    particle and step, at most the run's `batch_size` at a time.

    energy       tokens (rows, length) without masks -> E(x), (rows,); or a `gk.values.Energy`, E(x_0, x_t, t)
    candidates   K, sequences of which one is taken
    residual     False: E(x) is what the prediction lacks. True: -log p(x) of the clean sequences, up to a constant

    >>> import torch, guidekit as gk
    >>> table = gk.analytic.TokenTable(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)))
    >>> guide = EDLM(lambda x: -table.log_probs(x), candidates=8, residual=True)
    >>> gk.sample(table, 4, steps=2, guides=[guide]).x.shape
    torch.Size([4, 3])
    """

    energy: Callable[[Tensor], Tensor] | Energy
    candidates: int = 16
    residual: bool = False

    card = Card(
        about="draws the tokens of a step together, by an energy of whole sequences",
        section="Sampling of tokens",
        processes=(Masked,),
        refusal="chooses among completions of masked sequences; else use gk.FKSteering with the energy as a reward",
        rows="0",
        exact="the law of exp(-energy) with residual=True, for many candidates",
        changes="target",
        paper=Paper(
            "xu2024edlm",
            "Xu, Minkai and Geffner, Tomas and Kreis, Karsten and Nie, Weili and Xu, Yilun and Leskovec, Jure and "
            "Ermon, Stefano and Vahdat, Arash",
            "Energy-Based Diffusion Language Models for Text Generation",
            2024,
            "2410.21357",
        ),
        example="gk.EDLM(lambda x: -2 * right(x, None), 8)",
        picture="tokens",
    )

    def __post_init__(self) -> None:
        if not callable(self.energy):
            raise TypeError(f"EDLM(energy) is a function of tokens (rows, length), not {type(self.energy).__name__}")
        if not is_count(self.candidates):
            raise ValueError(f"EDLM(candidates={self.candidates!r}): an int of at least 1")
        if self.residual and isinstance(self.energy, Energy):
            raise ValueError(
                "EDLM(residual=True) takes -log p(x) of whole sequences, and this Energy is what the prediction lacks: "
                "give residual=False"
            )

    def check(self, model: Model, steps: int) -> None:
        if self.steer:
            raise ValueError(
                "EDLM(steer=True): one clean sequence is taken, and a proposal from another one cannot be corrected "
                "for by weights: give steer=False"
            )
        if isinstance(model.process, Masked) and model.process.places:
            raise ValueError(
                "EDLM draws all masked tokens at once, and an ordered model predicts the next one: it needs no energy"
            )

    def clashes(self, other: Guide, after: bool) -> str | None:
        if other.steer:
            return (
                f"{type(other).__name__}(steer=True) proposes from predictions of its own, and EDLM takes one clean "
                "sequence for both: give steer=False"
            )
        if isinstance(other, Within) and other.weighted:
            return (
                f"{type(other).__name__} draws tokens within its constraint, and EDLM leaves one to each position: let "
                "the energy be infinite where the constraint does not hold"
            )
        return None

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        log_p = prediction.double().log_softmax(-1)
        drawn = torch.stack([self._drawn(view, log_p, k) for k in range(self.candidates)], 1)
        log_w = -self._energies(view, drawn.flatten(0, 1)).view(drawn.shape[:2])
        if self.residual:
            log_w = log_w - self._log_probs(view, log_p, drawn)
        log_w = log_w.nan_to_num(-torch.inf, posinf=torch.inf)
        chosen = (log_w + random.gumbel(random.fold(view.key, "choice"), (self.candidates,))).argmax(-1)
        taken = drawn[torch.arange(len(drawn), device=drawn.device), chosen]
        return torch.full_like(prediction, LOG_ZERO).scatter(-1, taken[..., None], 0.0)

    def _drawn(self, view: View, log_p: Tensor, k: int) -> Tensor:
        """The k-th completion of every row, (rows, length)."""
        letters = (log_p + random.gumbel(random.fold(view.key, k), tuple(log_p.shape[1:]))).argmax(-1)
        return torch.where(view.x == log_p.shape[-1], letters, view.x)

    def _log_probs(self, view: View, log_p: Tensor, drawn: Tensor) -> Tensor:
        """The log-probabilities of completions, (rows, candidates)."""
        each = log_p[:, None].expand(*drawn.shape, -1).gather(-1, drawn[..., None])[..., 0]
        return torch.where((view.x == log_p.shape[-1])[:, None], each, 0.0).sum(-1)

    def _energies(self, view: View, x_0: Tensor) -> Tensor:
        """The energies of the candidates of all rows, one row after the other."""
        row, size = torch.arange(len(x_0), device=x_0.device) // self.candidates, view.limit or _ROWS
        found = [self._asked(view, *part) for part in zip(x_0.split(size), row.split(size), strict=True)]
        for part in found:
            if not isinstance(part, Tensor) or part.dim() != 1:
                given = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise NetworkError(
                    f"the energy returned {given} for sequences: one number for each, (rows,), is needed"
                )
        return torch.cat(found).double()

    def _asked(self, view: View, x_0: Tensor, row: Tensor) -> Tensor:
        if isinstance(self.energy, Energy):
            at = view.told[row] if isinstance(view.told, Tensor) else view.told
            return self.energy(x_0, view.x[row], at, rows_of(view.cond, row))
        return self.energy(x_0)
