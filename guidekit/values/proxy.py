r"""A differentiable stand-in for a black-box reward, after the latent reward model of DOLLAR (Ding et al., 2024),
https://arxiv.org/abs/2412.15689.

A small network R(x_0) is fitted to the rewards of samples of the model, by least squares in standardised units,

    min E[((r(x_0) - loc)/scale - net(x_0))^2],        R = loc + scale net,

and V(x_t) = R(E[x_0 | x_t]) is a look-ahead that has a gradient, however the reward is computed. Guides weigh the
samples by the true reward in the end, so that a wrong proxy costs them efficiency and no exactness: `TDS` and `DAS`
with value=proxy follow p exp(r/alpha)/Z for a reward that cannot be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards import RewardError

from .. import random
from ..engine.describe import describe
from ..engine.view import View
from ..errors import is_count
from ..models.base import Model, stack
from ..models.evaluations import rows_of
from ..models.networks import lent, networks_in
from ..process import Gaussian
from ..solvers import Solver
from .learned import Learned, Scaled, call
from .trained import trained

_FEWEST = 50  # samples


@dataclass(frozen=True)
class Proxy(Learned):
    """A network of samples, net(x_0, t, cond) -> (rows,) with t = 0, at the clean estimate: a look-ahead with a
    gradient. No extra NFE and no reward call.

    explained   the share of the variance of the rewards that it explains, of samples that it was not fitted to
    """

    explained: float = field(default=float("nan"), compare=False)

    @property
    def sees_prediction(self) -> bool:
        return True

    def __call__(self, view: View) -> Tensor:
        idle = not any(m.training for m in self.modules())
        with lent([] if idle else self.modules()):
            return call(self.net, view.clean, _zeros(view.clean, view.model.dtype), view.cond)


def _zeros(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(len(x), dtype=dtype, device=x.device)


def proxy(
    model: Model,
    reward: Any,
    net: nn.Module | None = None,
    *,
    n: int = 1024,
    steps: int | Sequence[float] = 50,
    cond: Any = None,
    solver: Solver | None = None,
    train: int = 1000,
    rows: int = 128,
    lr: float = 3e-3,
    batch_size: int | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Proxy:
    """Fit a proxy of a reward to n samples of a model per condition, at one reward call each.

    reward   a Reward or a function of decoded samples; samples that it cannot score are left out
    net      a module net(x_0, t, cond) -> (rows,), trained in a copy; None takes that of `gk.values.fit`
    train    steps of Adam on `rows` samples each, with the rate lr, that falls to 0
    folder   keeps samples and training: the same call goes on where an interrupted one stopped, to the same weights

    One fifth of the samples is held out, for `.explained`.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> found = proxy(base, lambda x: x[:, 0].detach() > 0, n=200, steps=10, train=100)
    >>> steering = gk.TDS(lambda x: x[:, 0].detach() > 0, 1.0, value=found)
    >>> len(gk.sample(base, 8, steps=10, guides=[steering]))
    8
    """
    from ..engine.sample import sample
    from .nets import default

    if not isinstance(model.process, Gaussian):
        raise ValueError(
            "proxy(model=...): its gradient is taken in clean means, which Gaussian processes have; with tokens a "
            "differentiable reward of one-hot rows serves gk.TaylorSMC"
        )
    for name, value, least in (("n", n, _FEWEST), ("train", train, 1), ("rows", rows, 1)):
        if not is_count(value, least):
            raise ValueError(f"proxy({name}={value!r}): an int of at least {least} is needed")
    path = None if folder is None else Path(folder)
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
    key = random.fold(random.key(seed, model.device), "proxy")
    options: dict[str, Any] = {"steps": steps, "cond": cond, "solver": solver, "batch_size": batch_size}
    drawn = sample(
        model, n, reward=reward, seed=int(key), progress=progress,
        checkpoint=None if path is None else path / "samples.safetensors", **options,
    )  # fmt: skip
    assert drawn.rewards is not None
    known = drawn.rewards.isfinite().nonzero()[:, 0]
    if len(known) < _FEWEST:
        raise RewardError(f"only {len(known)} of {len(drawn.x)} samples could be scored, and {_FEWEST} are needed")
    known = known[random.uniform(random.fold(key, "order"), (len(known),)).argsort()]
    held, own = known.tensor_split([len(known) // 5])
    x, r = drawn.x.detach(), drawn.rewards.double()
    loc, scale = float(r[own].mean()), max(float(r[own].std()), 1e-12)
    conds = stack([model.encode(c) for c in (cond if isinstance(cond, list) else [cond])])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(key) % 2**62)
        net = (default(model, x[own].double(), conds) if net is None else _copied(net)).to(model.device)

    def told(which: Tensor) -> Tensor:
        return call(net, x[which], _zeros(x[which], model.dtype), rows_of(conds, drawn.group[which]))

    def loss(i: int) -> Tensor:
        some = own[(random.uniform(random.fold(key, i), (min(rows, len(own)),)) * len(own)).long()]
        return (told(some) - (r[some] - loc) / scale).square().mean()

    about = {"model": describe(model), "reward": describe(reward), "n": n, "seed": seed, "rows": rows,
             "net": describe(net), "cond": describe(cond)}  # fmt: skip
    file = None if path is None else path / "proxy.safetensors"
    net.train()
    trained(net, loss, train, lr, file=file, about=about, progress=progress)
    net.eval().requires_grad_(False)
    with torch.no_grad():
        rest = (r[held] - loc) / scale - told(held)
    share = 1 - float(rest.square().mean() / ((r[held] - r[held].mean()) / scale).square().mean().clamp(min=1e-12))
    return Proxy(Scaled(net, loc, scale), explained=share)


def _copied(net: nn.Module) -> nn.Module:
    import copy

    if not networks_in(net):
        raise TypeError(f"proxy(net=...) takes a torch.nn.Module, for it has to train it, not {type(net).__name__}")
    return copy.deepcopy(net)
