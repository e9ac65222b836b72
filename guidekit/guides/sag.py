r"""Self-attention guidance (Hong et al., 2022), https://arxiv.org/abs/2210.00939.

Regions that the network attends to are blurred in its own clean estimate and noised again with its own noise, and the
prediction is pushed away from the one for that state, which has lost what those regions said:

    a   = sum over queries of the mean over heads of softmax(q k^T/sqrt(c)),      M = [a > 1], as large as x
    d_b = M blur(d) + (1 - M) d,       x~ = alpha d_b + sigma e = x_t + alpha (d_b - d)
    e  <- e + s (e(x_t) - e(x~)),      that is    d <- d + s (d_b - d(x~))

a has mean 1, as an attention map has one for each query. The paper takes the middle of the network for the map, and
guides the unconditional branch: with branch="null" beside CFG this is StableDiffusionSAGPipeline of diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.view import Step, View
from ..models.attention import Attention, Heard, Perturbed
from ..models.base import Model
from ..models.evaluations import Cond, Null
from ..process import Gaussian
from .seg import kernel, sizes_of
from .shared.perturbing import Away

BRANCHES: dict[str, Cond] = {"cond": Cond(), "null": Null()}


@dataclass(frozen=True)
class SAG(Away):
    """Self-attention guidance. Two extra NFE per particle and step, one after the other: the network once more, to read
    its attention, and at the blurred state.

    scale        s, a number or a function of t; 0 does nothing. The paper uses 0.1 to 1
    layers       dotted names of modules with self-attention, whose maps are averaged; None: the middle of the network
    branch       "cond" or "null": the condition at which both predictions are made
    sigma        the standard deviation of the blur, in entries of x
    threshold    of a
    """

    branch: str = "cond"
    sigma: float = 1.0
    threshold: float = 1.0

    card = replace(
        Away.card,
        about="extrapolates away from the prediction with attended regions blurred",
        processes=(Gaussian,),
        refusal="blurs a clean mean, and tokens have none: use PAG or TPG with them",
        rows="2",
        paper=Paper(
            "hong2022sag",
            "Hong, Susung and Lee, Gyuseong and Jang, Wooseok and Kim, Seungryong",
            "Improving Sample Quality of Diffusion Models Using Self-Attention Guidance",
            2022,
            "2210.00939",
        ),
        example='gk.SAG(0.5, "blocks.1")',
    )

    @property
    def needs(self) -> tuple[Cond, ...]:
        return ()

    def check(self, model: Model, steps: int) -> None:
        if self.branch not in BRANCHES:
            raise ValueError(f"SAG(branch={self.branch!r}): there is 'cond' and 'null'")
        if not self.sigma > 0:
            raise ValueError(f"SAG(sigma={self.sigma}): the width of the blur is positive")
        self.reading(Heard()).check(model)

    def reading(self, heard: Heard) -> Perturbed:
        """The evaluation whose attention is read."""
        return replace(Perturbed.of(heard, self.layers), branch=BRANCHES[self.branch])

    def further(self, step: Step) -> int:
        return 0 if at(self.scale, step.t) == 0 else 2

    def tilt(self, view: View) -> Tensor:
        heard, alpha = Heard(), view.model.process.scales(view.t)[0]
        reading = self.reading(heard)
        clean = view.evaluate(view.x, view.t, (reading,))[reading]
        mask = (attended(heard, clean.shape) > self.threshold).to(clean)
        changed = clean + mask * (blurred(clean, self.sigma) - clean)
        branch = BRANCHES[self.branch]
        worse = view.evaluate(view.x + alpha * (changed - clean), view.t, (branch,))[branch]
        return at(self.scale, view.t) * (changed - worse)


def attended(heard: Heard, shape: torch.Size) -> Tensor:
    """a at every place of x, (rows, 1, *space), or (rows, space) for vectors."""
    maps = torch.stack([received(call) for call in heard.calls.values()]).mean(0)
    space = tuple(shape[2:] or shape[1:])
    sizes = sizes_of(maps.shape[1], space) if len(space) > 1 else (-1,)
    grid = maps.unflatten(1, sizes)[:, None]
    resized = nn.functional.interpolate(grid, size=space, mode="nearest")
    return resized if len(shape) > 2 else resized[:, 0]


def received(call: Attention) -> Tensor:
    """What every token receives of attention, (rows, tokens), mean 1: the mean over heads of the map, summed over
    queries. It is read by attending to unit vectors."""
    tokens = call.key.shape[-2]
    unit = torch.eye(tokens, dtype=call.value.dtype, device=call.value.device)
    weights = call._replace(value=unit.expand(*call.value.shape[:-2], tokens, tokens))()
    return weights.mean(1).sum(1)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur over space, of four entries to each side, that reflects at the borders."""
    for axis in range(2 if x.dim() > 2 else 1, x.dim()):
        x = (x.movedim(axis, -1) @ kernel(x.shape[axis], sigma, x, reach=4).mT).movedim(-1, axis)
    return x
