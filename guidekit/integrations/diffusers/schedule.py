r"""The noise levels of a diffusers scheduler as a guidekit schedule.

States keep the scheduler's own coordinates, so that its arithmetic applies to them as they are:

    kind    x_t                      schedulers
    vp      alpha x_0 + sigma z      DDPM, DDIM, PNDM, DPM-Solver, UniPC, LCM...    alpha^2 + sigma^2 = 1
    ve      x_0 + sigma z            Euler, Euler ancestral, Heun, LMS...           scaled before the network sees them
    flow    (1 - t) x_0 + t z        FlowMatch..., any with use_flow_sigmas

Step k of T of the training table is the time t = (k + 1)/T; between two of them the angle arctan(sigma/alpha) is
interpolated, and t = 0 is data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Table:
    """t -> alpha, sigma from a table of angles at even times; `angles` is None for a flow, which needs none."""

    def __init__(self, kind: str, angles: np.ndarray | None = None):
        self.kind, self.angles = kind, np.zeros(0) if angles is None else angles
        self.times = np.linspace(0, 1, len(self.angles))

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t)
        if self.kind == "flow":
            return 1 - t, t
        angle = torch.as_tensor(np.interp(t.double().cpu().numpy(), self.times, self.angles)).to(t)
        if self.kind == "vp":
            return angle.cos(), angle.sin()
        return torch.ones_like(angle), angle.tan()

    def time(self, alpha: float, sigma: float) -> float:
        """The t with this ratio of noise to data."""
        if self.kind == "flow":
            return sigma / (alpha + sigma)
        angle = float(np.arctan2(sigma, alpha))
        if angle > self.angles[-1] + 1e-5:
            raise ValueError(
                f"the scheduler starts at sigma/alpha = {sigma / alpha:.4g}, above {np.tan(self.angles[-1]):.4g}, "
                "where its training table ends; leave sigma_max to the scheduler"
            )
        return float(np.interp(angle, self.angles, self.times))

    def timestep(self, t: float, count: int) -> float:
        """What the network calls this t."""
        return t * count if self.kind == "flow" else max(t * count - 1, 0.0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.kind == other.kind and np.array_equal(self.angles, other.angles)

    def __hash__(self) -> int:
        return hash(self.kind)


def table(scheduler: Any, alpha: float, sigma: float) -> Table:
    """The table of a scheduler whose state has this alpha and sigma at its first step."""
    products = getattr(scheduler, "alphas_cumprod", None)
    if abs(alpha + sigma - 1) < 1e-4 and (products is None or _flows(scheduler.config)):
        return Table("flow")
    kind = "ve" if abs(alpha - 1) < 1e-6 else "vp" if abs(alpha**2 + sigma**2 - 1) < 1e-4 else None
    if products is None or kind is None:
        raise ValueError(
            f"{type(scheduler).__name__} has neither a table of alphas_cumprod nor flow sigmas, so its noise levels "
            "are not known; take DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler, "
            "DPMSolverMultistepScheduler or, for flows, FlowMatchEulerDiscreteScheduler"
        )
    a = products.double().cpu().clamp(0, 1).numpy()
    return Table(kind, np.concatenate([[0.0], np.arctan2(np.sqrt(1 - a), np.sqrt(a))]))


def _flows(config: Any) -> bool:
    return bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"
