r"""Amortised steering of one fixed reward, after PromptGen (Wu et al., 2022), https://arxiv.org/abs/2209.06970: an
invertible network of the start noise, from which a run begins.

With phi(z) = r(D(z))/alpha, where D is the end of a few deterministic steps from the noise z, the target of the noise
is an energy-based model, and a network f: eps -> z, eps ~ N(0, I), is trained towards it (`gk.search.amortise`),

    pi(z) ~ N(z; 0, I) exp(phi(z)),        min_f KL(q || pi) = E_eps[|z|^2/2 - log |det df/deps| - phi(z)] + const,

with log q(z) = log N(eps; 0, I) - log |det df/deps|. The noise is then drawn in one pass, without a search. It follows
p exp(h), h = log q(z) - log N(z; 0, I), which stands for the tilt that is counted already: the potentials of
Feynman-Kac steering (`FKSteering`) go on from h, and over a run their product is exp(r(x_0)/alpha). So the weighted
samples follow p exp(r/alpha)/Z and log Z is unbiased for any network, also one that was not trained. PromptGen itself
has no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.card import Paper
from ..engine.view import View
from ..errors import NetworkError
from ..models.base import Model
from ..process import Gaussian
from .fk_steering import FKSteering
from .shared.tilted_start import TiltedStart


@dataclass(frozen=True)
class Amortised(TiltedStart):
    """Feynman-Kac steering towards p exp(reward/alpha) from the noise that a trained network makes. No extra NFE; by
    default only the samples are scored, and none is resampled.

    net     eps (rows, *shape) -> (z, log |det dz/deps| (rows,)), invertible; `gk.search.amortise` trains one
    """

    _: KW_ONLY
    net: nn.Module | None = None

    card = replace(
        FKSteering.card,
        about="starts from noise that a network has learned for one reward",
        processes=(Gaussian,),
        refusal="makes Gaussian noise, and tokens start from none: use FKSteering",
        paper=Paper(
            "wu2022promptgen",
            "Wu, Chen Henry and Motamed, Saman and Srivastava, Shaunak and De la Torre, Fernando",
            "Generative Visual Prompt: Unifying Distributional Control of Pre-Trained Generative Models",
            2022,
            "2209.06970",
        ),
        example="gk.Amortised(reward, 0.5, net=gk.Couplings((2,)))",
    )

    def check(self, model: Model, steps: int) -> None:
        if not callable(self.net):
            raise ValueError("Amortised(net=...): a network of noise is needed, as gk.search.amortise makes it")

    def begin(self, view: View, noise: Tensor) -> Any:
        assert self.net is not None
        z, log_det = self.net(noise)
        if z.shape != noise.shape or log_det.shape != (len(noise),):
            raise NetworkError(
                f"Amortised(net=...) returned {tuple(z.shape)} and {tuple(log_det.shape)} for noise of shape "
                f"{tuple(noise.shape)}: z of the same shape, and one log-determinant for each row, are needed"
            )
        h = excess(noise, z, log_det)
        return view.model.process.prior(z.to(noise), view.t), view.zeros(), (h, h)


def excess(noise: Tensor, z: Tensor, log_det: Tensor) -> Tensor:
    """log q(z) - log N(z; 0, I), float64 (rows,)."""
    square = (z.double().square() - noise.double().square()).flatten(1).sum(1)
    return square / 2 - log_det.double()


class Couplings(nn.Module):
    """An affine map of each number, then affine couplings (RealNVP, Dinh et al., 2016) of every second number with the
    others. It begins as the identity.

    shape    of the noise of one sample
    layers   couplings; a single number has none
    width    of the hidden layer of each

    >>> import torch
    >>> z, log_det = Couplings((4,))(torch.ones(3, 4))
    >>> bool((z == 1).all()), log_det.shape
    (True, torch.Size([3]))
    """

    def __init__(self, shape: Sequence[int], layers: int = 4, width: int = 64):
        super().__init__()
        size = int(torch.tensor(shape).prod())
        self.shift, self.log_scale = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))
        self.nets = nn.ModuleList()
        for i in range(layers if size > 1 else 0):
            halves = torch.arange(i % 2, size, 2), torch.arange((i + 1) % 2, size, 2)
            into, out = nn.Linear(len(halves[0]), width), nn.Linear(width, 2 * len(halves[1]))
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)
            self.nets.append(nn.Sequential(into, nn.Tanh(), out))
            for name, places in zip(("kept", "moved"), halves, strict=True):
                self.register_buffer(f"{name}{i}", places, persistent=False)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z = noise.flatten(1).to(self.shift.dtype) * self.log_scale.exp() + self.shift
        log_det = self.log_scale.sum().expand(len(z))
        for i, net in enumerate(self.nets):
            kept, moved = getattr(self, f"kept{i}"), getattr(self, f"moved{i}")
            shift, scale = net(z[:, kept]).chunk(2, 1)
            scale = 2 * torch.tanh(scale / 2)  # at most a factor of e^2
            z = z.index_copy(1, moved, z[:, moved] * scale.exp() + shift)
            log_det = log_det + scale.sum(1)
        return z.view_as(noise).to(noise.dtype), log_det
