r"""FreSca, frequency scaling (Huang et al., 2025), https://arxiv.org/abs/2504.02154: CFG whose difference is scaled in
frequency.

    d <- d_null + w F^-1(m F(d_cond - d_null)),      m = low where the frequency is within `cutoff`, else high

F is the discrete Fourier transform over space. Its frequencies, counted from -n/2 to n/2 along every axis, are low if
they lie in [-cutoff, cutoff) along all of them, as in the authors' code. low = high = 1 is CFG. FrequencyDecoupled does
the same with a pyramid, whose bands overlap and do not ring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.view import View
from ..models.base import Model
from .shared.contrast import Contrast, both


@dataclass(frozen=True)
class FreSca(Contrast):
    """CFG with scales of its own for low and high frequencies. One extra NFE per particle and step.

    scale    w, a number or a function of t
    low      the factor of low frequencies
    high     the factor of high ones; above 1 adds detail
    cutoff   the number of frequencies that are low, to each side; the authors use 20 for latents of 64 x 64
    """

    low: float = 1.0
    high: float = 1.5
    cutoff: int = 20

    neutral = None

    card = replace(
        Contrast.card,
        about="CFG whose low and high frequencies are scaled apart",
        paper=Paper(
            "huang2025fresca",
            "Huang, Chao and Liang, Susan and Tang, Yunlong and Bing, Jing and Ma, Li and Tian, Yapeng and "
            "Xu, Chenliang",
            "FreSca: Scaling in Frequency Space Enhances Diffusion Models",
            2025,
            "2504.02154",
        ),
        example="gk.FreSca(2.5, high=1.5, cutoff=1)",
    )

    def check(self, model: Model, steps: int) -> None:
        if not self.cutoff >= 0:
            raise ValueError(f"FreSca(cutoff={self.cutoff}): a number of frequencies, at least 0")

    def tilt(self, view: View) -> Tensor:
        cond, null = both(view)
        return null - cond + at(self.scale, view.t) * self._scaled(cond - null)

    def _scaled(self, x: Tensor) -> Tensor:
        """F^-1(m F(x)) over all axes of space."""
        axes = tuple(range(2 if x.dim() > 2 else 1, x.dim()))
        near = torch.ones([1] * x.dim(), dtype=torch.bool, device=x.device)
        for axis in axes:
            n = x.shape[axis]
            k = torch.fft.fftfreq(n, 1 / n, device=x.device).round()  # -n/2 to n/2, beginning with 0
            inside = (k >= -self.cutoff) & (k < self.cutoff)
            near = near & inside.view([-1 if a == axis else 1 for a in range(x.dim())])
        kept = torch.fft.ifftn(
            torch.fft.fftn(x.to(torch.promote_types(x.dtype, torch.float32)), dim=axes) * near, dim=axes
        )
        # a cut that leaves out -k of a k leaves an imaginary part, which the authors drop as well
        part = kept.real.to(x)
        return self.low * part + self.high * (x - part)
