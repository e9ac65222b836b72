r"""Train the start noise of one fixed reward: `gk.search.amortise(model, reward, alpha)`, for `gk.Amortised`, whose
module says what is learned."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards import as_reward

from .. import random
from ..engine.describe import describe
from ..engine.run import Run
from ..errors import is_count
from ..guides.amortised import Amortised, Couplings, excess
from ..guides.psi_sampler import of_noise
from ..models.base import Model
from ..process import Gaussian
from ..solvers import DDIM
from ..values.trained import trained


def amortise(
    model: Model,
    reward: Any,
    alpha: float,
    net: nn.Module | None = None,
    *,
    cond: Any = None,
    flow: int = 4,
    train: int = 500,
    rows: int = 128,
    lr: float = 1e-2,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Amortised:
    """A guide whose runs start from noise that a network has learned for this reward. `flow` rows (train) network rows.

    reward   differentiable, or a `gk.values.Proxy` of one that is not
    net      eps -> (z, log-determinant), trained in a copy; None takes `gk.Couplings`
    cond     the condition that the network is for
    flow     deterministic steps of D, the short run by which noise is scored
    train    steps of Adam on `rows` noises each, with the rate lr, that falls to 0
    folder   keeps the training: the same call goes on where an interrupted one stopped, to the same weights

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> guide = amortise(base, lambda x: x[:, 0], 0.5, train=20)
    >>> len(gk.sample(base, 8, steps=10, guides=[guide], solver=gk.solvers.DDIM()))
    8
    """
    if not isinstance(model.process, Gaussian):
        raise ValueError("amortise(model=...): a network of Gaussian noise is trained, and tokens start from none")
    if as_reward(reward).differentiable is False:
        raise ValueError(
            f"amortise follows the gradient of its reward, and {as_reward(reward).name!r} is not differentiable: take "
            "a reward that is, like the network of gk.values.proxy(model, reward)"
        )
    for name, value in (("flow", flow), ("train", train), ("rows", rows)):
        if not is_count(value):
            raise ValueError(f"amortise({name}={value!r}): an int of at least 1 is needed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = (Couplings(model.shape) if net is None else copy.deepcopy(net)).to(model.device)
    run = Run(model, rows, steps=1, cond=cond, solver=DDIM(), seed=seed)
    view = replace(run.view(run.born(), 0, seen=False), x=torch.empty(0))
    keys = random.fold(random.fold(random.key(seed, model.device), "amortise"), torch.arange(rows, device=model.device))

    def loss(i: int) -> Tensor:
        noise = random.normal(random.fold(keys, i), model.shape, model.dtype)
        z, log_det = net(noise)
        r = of_noise(view, reward, flow, z)
        known = r.isfinite()
        gain = torch.where(known, r / alpha, 0.0)
        return (excess(noise, z, log_det) - gain).where(known, 0.0).mean()

    path = None if folder is None else Path(folder) / "amortise.safetensors"
    about = {"model": describe(model), "reward": describe(reward), "alpha": alpha, "net": describe(net),
             "cond": describe(cond), "flow": flow, "rows": rows, "seed": seed}  # fmt: skip
    with run.borrowed():
        trained(net, loss, train, lr, file=path, about=about, progress=progress)
    return Amortised(reward, alpha, net=net.eval().requires_grad_(False))
