r"""Time-step guidance (Sadat et al., 2024), https://arxiv.org/abs/2407.02687, section 5.

    d <- d + (w - 1) (d(x_t, e) - d(x_t, e~)),      e~ = e + s t^a n,    n ~ N(0, 1)

e is the embedding of the time inside the network, and t the time of the run. A network that is told the time wrongly
removes too much noise, or too little; it is pushed away from both. There is need of no condition. n is another one at
every step, and the same for all rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.card import Paper
from ..errors import NetworkError
from ..models.attention import Perturbation, Perturbed, modules
from ..models.base import Model
from .shared.perturbing import Away, Drawn

# what modules are called that embed the time
_EMBEDDINGS = re.compile(r"(^|\.)(t|time|timestep|time_step|time_text)_?(emb|embed|embedder|embedding|mlp)$")


@dataclass(frozen=True)
class Noised(Perturbation):
    """A module's output plus noise, the same for all rows, that is drawn from the key."""

    key: int
    std: float

    whole = True

    def module(self, given: list[Tensor], out: Any, put: Callable[[Tensor, Tensor], Tensor]) -> Any:
        if not isinstance(out, Tensor):
            raise NetworkError(f"TSG: a module that returns one tensor is needed, not {type(out).__name__}")
        noise = random.normal(random.key(self.key, out.device), out.shape[1:], torch.float64)
        return put(out, out + self.std * noise.to(out))


@dataclass(frozen=True)
class TSG(Drawn):
    """Time-step guidance. One extra NFE per particle and step, in a forward pass of its own.

    scale    s = w - 1, a number or a function of t; 0 does nothing
    layers   the dotted name of the module that embeds the time; None: the one that is called time_embedding, t_embedder
             or the like
    std      s of the formula, in units of the embedding
    power    a: 0 is as much noise at all times, larger values are less towards the end of the run
    seed     of the noise
    """

    std: float = 1.0
    power: float = 1.0
    seed: int = 0

    card = replace(
        Away.card,
        about="extrapolates away from the network with a noised embedding of time",
        paper=Paper(
            "sadat2024icg",
            "Sadat, Seyedmorteza and Kansy, Manuel and Hilliges, Otmar and Weber, Romann M.",
            "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models",
            2024,
            "2407.02687",
        ),
        example='gk.TSG(0.4, "into")',
    )

    def check(self, model: Model, steps: int) -> None:
        if not (self.std >= 0 and self.power >= 0):
            raise ValueError(f"TSG(std={self.std}, power={self.power}): both are at least 0")
        super().check(model, steps)

    @property
    def idle(self) -> bool:
        return self.scale == 0 or self.std == 0

    def drawn(self, model: Model, key: int, t: float) -> Perturbed:
        layers = self.layers or next((name for name in modules(model) if _EMBEDDINGS.search(name)), None)
        if layers is None:
            raise ValueError("TSG found no module that embeds the time: name it with layers=...")
        return Perturbed.of(Noised(key, self.std * t**self.power), layers)
