r"""S2-Guidance, stochastic self-guidance (Chen et al., 2025), https://arxiv.org/abs/2508.12880.

    d <- d + s (d_cond - d_sub)

where d_sub comes from a sub-network: the same network with some of its blocks, drawn anew at every step, left out. They
return their input, as for SLG. The sub-networks err as the network does, only more, so that none has to be chosen as
the weak one. Beside CFG the sum is d_null + w (d_cond - d_null) + s (d_cond - d_sub), equation 4 of the third version
of the paper; the first two subtract s d_sub alone, which the sum of the coefficients does not allow for a clean mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import random
from ..engine.card import Paper
from ..models.attention import Perturbed, blocks
from ..models.base import Model
from .shared.perturbing import Away, Drawn
from .slg import Skip


@dataclass(frozen=True)
class S2Guidance(Drawn):
    """Stochastic self-guidance. One extra NFE per particle and step, in a forward pass of its own.

    scale    s, a number or a function of t; 0 does nothing, the paper uses about 0.25
    layers   dotted names of the blocks to draw from; None: the longest list of modules of one class
    drop     the share of them that is left out, in (0, 1); at least one is, and at least one stays
    seed     of the draws, which are the same for all rows
    """

    drop: float = 0.1
    seed: int = 0

    card = replace(
        Away.card,
        about="extrapolates away from random sub-networks",
        paper=Paper(
            "chen2025s2",
            "Chen, Chubin and Zhu, Jiashu and Feng, Xiaokun and Huang, Nisha and Wu, Meiqi and Mao, Fangyuan and "
            "Wu, Jiahong and Chu, Xiangxiang and Li, Xiu",
            "S2-Guidance: Stochastic Self Guidance for Training-Free Enhancement of Diffusion Models",
            2025,
            "2508.12880",
        ),
        example="gk.S2Guidance(0.4, drop=0.3)",
    )

    def check(self, model: Model, steps: int) -> None:
        if not 0 < self.drop < 1:
            raise ValueError(f"S2Guidance(drop={self.drop}): the share of blocks to leave out lies in (0, 1)")
        if len(self._blocks(model)) < 2:
            raise ValueError(
                f"S2Guidance draws from two blocks or more, and {self._blocks(model) or 'none'} was found or "
                "given: name them with layers=(...)"
            )
        Perturbed.of(Skip(), self._blocks(model)).check(model)

    def drawn(self, model: Model, key: int, t: float) -> Perturbed:
        names = self._blocks(model)
        count = min(max(round(self.drop * len(names)), 1), len(names) - 1)
        order = random.uniform(random.key(key), (len(names),)).argsort().tolist()
        return Perturbed.of(Skip(), [names[i] for i in order[:count]])

    def _blocks(self, model: Model) -> list[str]:
        given = [self.layers] if isinstance(self.layers, str) else self.layers
        return blocks(model) if given is None else sorted(set(given))
