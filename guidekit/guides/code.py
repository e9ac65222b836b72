r"""Blockwise best-of-n, CoDe (Singh et al., 2025), https://arxiv.org/abs/2502.00968.

At the start of every block of B steps a particle has M children, which live through the block side by side; at its end,
and at the end of the run, one of each M survives by the rule of SVDD:

    alpha = 0    the child with the largest look-ahead V, as in the paper: greedy, with equal weights
    alpha > 0    child m with probability exp(V_m/alpha) / sum_j exp(V_j/alpha), and

                     log w += log 1/M sum_m exp(V(x_s^m)/alpha) - V(x_t)/alpha,

                 t being the start of the block, s its end; V = r at the end of the run, 0 before its first move.

The move from t to s is B moves of the model, so the second is nested importance sampling as SVDD is: for any B, M and V
the weighted samples follow p exp(r/alpha)/Z. With B = 1 it is SVDD; with one block, alpha = 0 is best-of-N, whose
samples have the density N p F^(N-1), and alpha > 0 importance sampling with M proposals for each sample. Between them V
is asked, and rewards are called, B times less often than in SVDD, at the same number of evaluations, and where the
estimate of x_0 has had time to change.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..errors import is_count
from ..models.base import Model
from .svdd import SVDD


@dataclass(frozen=True)
class CoDe(SVDD):
    """Keep one of several children of every particle at the end of each block. NFE: `candidates` per particle and step.

    block        B, the number of steps of a block
    reward, alpha, candidates, value   as of `SVDD`
    """

    _: KW_ONLY
    block: int = 5

    card = replace(
        SVDD.card,
        about="keeps the best of several chains at the end of each block of steps",
        paper=Paper(
            "singh2025code",
            "Singh, Anuj and Mukherjee, Sayak and Beirami, Ahmad and Rad, Hadi Jamali",
            "CoDe: Blockwise Control for Denoising Diffusion Models",
            2025,
            "2502.00968",
        ),
        example="gk.CoDe(reward, candidates=4, block=5)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_count(self.block):
            raise ValueError(f"CoDe(block={self.block!r}): a number of steps, at least 1")

    def check(self, model: Model, steps: int) -> None:
        if self.start > 0 or self.stop < 1:
            raise ValueError("CoDe divides the whole run into blocks: it takes no start or stop; SVDD has a window")

    def clashes(self, other: Guide, after: bool) -> str | None:
        if other.has("select"):
            return "a selection inside a block would mix the children of different particles. Take SVDD in its place"
        return None

    def ends(self, step: Step) -> bool:
        """Whether a block ends here."""
        return step.last or step.index % self.block == 0

    def plan(self, n: int, step: Step) -> tuple[int, int]:
        return (n, self.candidates) if self.ends(step) else (n * self.candidates, 1)

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        return super().log_weight(view, memo) if self.ends(view.step) else (0.0, memo)

    def select(self, population: Population, step: Step) -> Population:
        if not self.ends(step):
            return population
        return super().select(replace(population, branch=len(population) // (population.groups * step.n)), step)
