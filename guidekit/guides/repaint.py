r"""RePaint (Lugmayr et al., 2022), https://arxiv.org/abs/2201.09865: inpainting without noise.

The known entries follow the forward process of their values, the others the network, and each stretch of `jump` steps
is undone by noising and made again, `recur` times in all, so that the two come to agree. It is
`Keep(method="repaint")` with the mask and the picture of a measurement. A heuristic: the other entries do not follow
p(x_0 | y) even in the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..engine.card import Paper
from ..engine.guide import Guide
from ..errors import is_count
from ..measurements import Mask
from ..models.base import Model
from .keep import Keep
from .shared.inverse import Inverse


@dataclass(frozen=True)
class RePaint(Inverse):
    """Keep the measured entries, and make every stretch of steps several times. The measurement is a `Mask` without
    noise. NFE: about `recur` per particle and step.

    recur   how often each stretch is made
    jump    steps of a stretch
    """

    measurement: Any
    recur: int = 10
    jump: int = 10

    card = replace(
        Inverse.card,
        about="keeps measured entries, and makes every stretch of steps again",
        changes="kernel",
        rows="recur - 1",
        paper=Paper(
            "lugmayr2022repaint",
            "Lugmayr, Andreas and Danelljan, Martin and Romero, Andres and Yu, Fisher and Timofte, Radu and Van "
            "Gool, Luc",
            "RePaint: Inpainting using Denoising Diffusion Probabilistic Models",
            2022,
            "2201.09865",
        ),
        example="gk.RePaint(exact)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("recur", "jump"):
            if not is_count(getattr(self, name)):
                raise ValueError(f"RePaint({name}={getattr(self, name)!r}): an int of at least 1 is needed")

    def bind(self, model: Model) -> Guide:
        own = super().bind(model).problem  # type: ignore[attr-defined]
        if not isinstance(own.operator, Mask) or own.noise > 0:
            raise ValueError(
                "RePaint keeps entries as they are: it takes gk.Measurement(gk.measurements.Mask(where), y, "
                "noise=0). With "
                "noise, or for other operators, take DDRM, DDNM or PiGDM"
            )
        where = own.operator.where.expand(model.shape)
        return Keep(own.y, where, method="repaint", recur=self.recur, jump=self.jump).bind(model)
