r"""Calibration of the score (Pang et al., 2023), https://arxiv.org/abs/2302.10688.

The scores of a process are a martingale that ends at mean zero: E[grad log p_t(x_t)] = 0 at every t, where data have
no edge. A network's need not be, and its mean is subtracted, which lowers the loss of denoising by the square of it,

    e <- e - E[e(x_t, t)],      d <- d + E[x_0 - d(x_t, t)],

the same in terms of the noise e and of the clean estimate, whose mean is that of the data. The mean is over data x_0,
noised to x_t; as the noise itself has mean zero, x_0 - d is averaged, which varies less than e. It is measured once for
a model, `ScoreCalibration.measured(model, samples)`, and costs nothing afterwards. Between the times at which it was
measured the shift is a line in t.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.view import View
from ..errors import is_count
from ..models.base import Model
from ..models.evaluations import rows_of
from ..models.networks import lent
from ..process import Gaussian


@dataclass(frozen=True, eq=False)
class ScoreCalibration(Guide):
    """Adds to the clean estimate what it lacks on average. No extra NFE.

    times    at which the shift was measured, rising
    shifts   E[x_0 - d(x_t)] at these times, (times, *shape)
    """

    times: tuple[float, ...]
    shifts: Tensor

    card = Card(
        about="subtracts the mean of the score, which is zero for the true one",
        section="Corrections of the prediction",
        processes=(Gaussian,),
        refusal="shifts clean means, and tokens have none: use it with a Gaussian process",
        changes="target",
        paper=Paper(
            "pang2023calibrating",
            "Pang, Tianyu and Lu, Cheng and Du, Chao and Lin, Min and Yan, Shuicheng and Deng, Zhijie",
            "On Calibrating Diffusion Probabilistic Models",
            2023,
            "2302.10688",
        ),
        example="gk.ScoreCalibration((0.0, 1.0), torch.tensor([[0.0, 0.0], [0.3, -0.2]]))",
    )

    @classmethod
    def measured(
        cls, model: Model, samples: Any, cond: Any = None, *, count: int = 32, seed: int = 0, batch_size: int = 256
    ) -> ScoreCalibration:
        """The calibration of a model by data, at so many times: `count` evaluations of each sample.

        samples   data, as `model.read` takes them, or states; with cond=, data of that condition

        >>> import torch, guidekit as gk
        >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
        >>> own = ScoreCalibration.measured(base, base.exact_sample(2000))
        >>> bool(own.shifts.abs().max() < 0.1)
        True
        """
        if not is_count(count, 2):
            raise ValueError(f"ScoreCalibration.measured(count={count!r}): at least 2 times are needed")
        if not isinstance(model.process, Gaussian):
            raise ValueError(f"ScoreCalibration {cls.card.refusal}")
        x = model.state(model.as_states(samples).view(-1, *model.shape))
        times = [model.process.t_max * (i + 1) / count for i in range(count)]
        index = torch.arange(len(x), device=x.device)
        keys = random.fold(random.fold(random.key(seed, x.device), "calibration"), index)
        z = model.process.noise(keys, model.shape, x.dtype)
        encoded = rows_of(model.encode_all([cond]), index * 0)
        shifts = []
        with torch.inference_mode(False), torch.no_grad(), model.lent(), lent(model.modules()):
            for t in times:
                parts = index.split(batch_size)
                told = [model(model.process.noised(x[p], z[p], t), t, rows_of(encoded, p)) for p in parts]
                shifts.append((x - torch.cat(told)).mean(0, dtype=torch.float64).to(x))
        return cls(tuple(times), torch.stack(shifts))

    def check(self, model: Model, steps: int) -> None:
        fits = self.shifts.shape == (len(self.times), *model.shape) and bool(self.shifts.isfinite().all())
        if not fits or not self.times or list(self.times) != sorted(set(self.times)):
            raise ValueError(
                f"ScoreCalibration(times={self.times}, shifts of shape {tuple(self.shifts.shape)}): rising times, and "
                f"a finite shift of shape {model.shape} for each"
            )

    def tilt(self, view: View) -> Tensor:
        after = min(bisect_left(self.times, view.t), len(self.times) - 1)
        t, s = self.times[max(after - 1, 0)], self.times[after]
        share = min(max((view.t - t) / (s - t), 0.0), 1.0) if s > t else 1.0
        before = self.shifts[max(after - 1, 0)]
        return (before + share * (self.shifts[after] - before)).to(view.x).expand_as(view.x)
