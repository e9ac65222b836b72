r"""Learned values: V(x_t) = net(x_t, t, cond), in the reward's own units.

`gk.values.fit` trains one on rollouts of a model, and any network trained elsewhere can be used too. A network reads
x_t alone, not the model's prediction, so guides that weight by it need no network evaluation for candidates that are
not selected. A learned value may also correct other look-aheads u_j,

    V(x_t) = a(t) + sum_j b_j(t) u_j(x_t) + net(x_t, t, cond),

of which most see the prediction: these cost SVDD one evaluation for each candidate instead of each particle.

Reference: Li et al. (2024), https://arxiv.org/abs/2408.08252 (where the value is learned "by Monte Carlo").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..engine.describe import weights
from ..engine.view import View
from ..errors import NetworkError
from ..models.base import Encoded
from ..models.networks import kind_of, lent, networks_in

KNOTS = 8  # in time, of what look-aheads are multiplied by
_POWERS, _TRUST = 3, 1 / 8  # of time, of what many numbers are multiplied by, and a scale that keeps these small
Network = Callable[[Tensor, Tensor, Encoded], Tensor]
Look = Callable[[View], Tensor]


class Bin(NamedTuple):
    """Held-out states with times in [t_low, t_high] and similar predicted values.

    predicted, realised   means over the bin, of the values and of the rewards obtained: soft means for a soft value
    noise                 standard error of `realised`
    count                 states in the bin
    """

    t_low: float
    t_high: float
    predicted: float
    realised: float
    noise: float
    count: int


class Interval(NamedTuple):
    """Held-out states with times in [t_low, t_high]: 1 - Var(r - V)/Var(r), which is 0 for a constant; the mean losses
    of the value and of the best constant; and how many there are."""

    t_low: float
    t_high: float
    explained_variance: float
    loss: float
    constant: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """What `fit` measured on held-out rollouts, which it used for early stopping but not for training.

    target, alpha        as given to fit; means are alpha log mean exp(v/alpha), or plain means if target is "mean"
    rollouts, held_out   numbers of rollouts trained on and measured on
    unscored             rollouts left out because their sample could not be scored
    epochs               epochs of training
    error, noise         root mean square over the bins, weighted by count: of predicted - realised, and of the part
                         of it that is expected by chance
    explained_variance   1 - Var(r - V)/Var(r)
    loss, constant       mean loss of the value and of the best constant
    doubt                standard error of constant - loss, from the spread over rollouts
    rows                 the bins
    times                explained variance and losses at each time; at t = 1 nothing can be explained
    """

    target: str
    alpha: float
    rollouts: int
    held_out: int
    unscored: int
    epochs: int
    error: float
    noise: float
    explained_variance: float
    loss: float
    constant: float
    rows: tuple[Bin, ...]
    times: tuple[Interval, ...] = ()
    doubt: float = 0.0

    @property
    def useful(self) -> bool:
        """The loss is lower than that of a constant, by more than two standard errors."""
        return self.constant - self.loss > 2 * self.doubt

    def to_frame(self):
        """The bins as a pandas DataFrame."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame() needs pandas: pip install 'guidekit[report]'") from error
        return pandas.DataFrame(list(self.rows))

    def __str__(self) -> str:
        head = (
            f"target {self.target!r}, alpha {self.alpha:g}; trained on {self.rollouts} rollouts for {self.epochs} "
            f"epochs, measured on {self.held_out} others; {self.unscored} could not be scored\n"
            f"error {self.error:.3g} (by chance {self.noise:.2g}), explained variance {self.explained_variance:.3g}, "
            f"loss {self.loss:.3g} (of a constant {self.constant:.3g})\n"
        )
        columns = ("predicted", "realised", "noise", "count", "explained", "loss", "of a constant")
        lines = [f"{'t':>13}  {'  '.join(f'{c:>10}' for c in columns)}"]
        own = {next(b for b in self.rows if b.t_low >= at.t_low): at for at in self.times}
        for b in self.rows:
            line = [f"{b.predicted:10.4g}", f"{b.realised:10.4g}", f"{b.noise:10.2g}", f"{b.count:10d}"]
            if b in own:  # the first of its time
                at = own[b]
                line += [f"{at.explained_variance:10.3f}", f"{at.loss:10.3g}", f"{at.constant:13.3g}"]
            lines.append("  ".join([f"{b.t_low:.3f} - {b.t_high:.3f}", *line]))
        return head + "\n".join(lines)


@dataclass(frozen=True)
class Learned:
    """A trained network net(x, t, cond) -> (rows,) as a look-ahead.

    net           gets x, t and cond as networks of base models do: t a float tensor with one entry per row, cond a
                  tensor or dict of tensors with one entry per row, or None. It is called in evaluation mode, on its own
                  device and in its own precision, with gradients if a guide needs those in x. NaN means unknown
    calibration   what `fit` measured, or None
    looks         look-aheads that the value corrects: their numbers for each row, side by side, are the fourth
                  argument of net. It sees the prediction if one of them does

    A Learned stands for the network's weights at the time of its creation: create a new one after further training.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> value = Learned(lambda x, t, cond: (1 - t) * x[:, 0])  # any network
    >>> steering = gk.FKSteering(lambda x: x[:, 0], alpha=1.0, value=value)
    >>> len(gk.sample(base, 8, steps=5, guides=[steering]))
    8
    """

    net: Network
    calibration: Calibration | None = field(default=None, compare=False, repr=False)
    looks: tuple[Look, ...] = ()
    digest: str = field(init=False, compare=False, repr=False)  # of the weights, for checkpoints

    @property
    def sees_prediction(self) -> bool:
        return any(getattr(look, "sees_prediction", True) for look in self.looks)

    def __post_init__(self) -> None:
        if not callable(self.net):
            raise TypeError(f"Learned(net) takes a network (x, t, cond) -> (rows,), not {type(self.net).__name__}")
        object.__setattr__(self, "digest", weights(self.modules()))

    def modules(self) -> list[nn.Module]:
        """The networks that a run puts into evaluation mode and restores afterwards."""
        return networks_in(self.net)

    def __call__(self, view: View) -> Tensor:
        times = torch.full((len(view.x),), view.t, dtype=view.model.dtype, device=view.x.device)
        idle = not view.x.requires_grad and not any(m.training for m in self.modules())
        with nullcontext() if idle else lent(self.modules()), torch.set_grad_enabled(view.x.requires_grad):
            return call(self.net, view.x, times, view.cond, seen(self.looks, view))


def seen(looks: Sequence[Look], view: View) -> Tensor | None:
    """What look-aheads say of each row, float64 (rows, numbers); None where there are none."""
    return torch.cat([look(view).double().view(len(view.x), -1) for look in looks], 1) if looks else None


def wide(look: Look) -> int:
    """How many numbers a look-ahead says at once; 0 of one that is a value, and says one."""
    return getattr(look, "width", 0)


def call(net: Callable[..., Tensor], x: Tensor, t: Tensor, cond: Encoded, seen: Tensor | None = None) -> Tensor:
    """Call the network in its own precision and on its own device; returns float64 (rows,) on the device of x."""
    modules = networks_in(net)
    dtype, device = kind_of(modules) if modules else (None, x.device)
    given = x.to(device, dtype if x.is_floating_point() else None)
    version = None if given.is_inference() else given._version
    more = () if seen is None else (seen.to(device),)
    out = net(given, t.to(device), _moved(cond, device), *more)
    if version is not None and given._version != version:
        raise NetworkError("the network works on its input x in place; it must leave x as it is (x = x + ..., not +=)")
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if shape != (len(x),):
        raise NetworkError(
            f"the value's network returned {shape} for an input of shape {tuple(x.shape)}; a value is one number for "
            f"each row, a tensor of shape {(len(x),)} (is an [:, 0] or .squeeze(-1) missing?)"
        )
    return out.to(x.device, torch.float64)


def _moved(cond: Encoded, device: torch.device) -> Encoded:
    if isinstance(cond, dict):
        return {k: v.to(device) for k, v in cond.items()}
    return None if cond is None else cond.to(device)


class Scaled(nn.Module):
    """V = loc + scale net(x, t, cond): the network learns numbers of order one, whatever the reward's units are. With a
    `path` of look-aheads, V = loc + path(t, seen) + scale net(x, t, cond)."""

    loc: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module, loc: float = 0.0, scale: float = 1.0, path: Correction | None = None):
        super().__init__()
        self.net, self.path = net, path
        self.register_buffer("loc", torch.tensor(loc, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Encoded, seen: Tensor | None = None) -> Tensor:
        value = self.loc + self.scale * self.net(x, t, cond).double()
        return value if self.path is None else value + self.path(t, seen)


class Correction(nn.Module):
    """a(t) + sum_j b_j(t) (u_j - m_j)/s_j for look-aheads u, with a and b linear between knots in time and constant
    beyond them, and m_j and s_j the mean and spread of u_j. An unknown u_j counts as m_j.

    Of the last `many` numbers b_j is a cubic, (w_1j t + w_2j t^2 + w_3j t^3)/8: a linear head that vanishes at t = 0,
    where a look-ahead knows the reward. The 8 makes the same ridge on w 64 times as strong on it.
    """

    knots: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, looks: int, knots: int = KNOTS, many: int = 0):
        super().__init__()
        self.few = looks - many
        self.register_buffer("knots", torch.arange(knots, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(looks, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(looks, dtype=torch.float64))
        self.weight = nn.Parameter(torch.zeros(knots, 1 + self.few, dtype=torch.float64), requires_grad=False)
        head = nn.Parameter(torch.zeros(_POWERS, many, dtype=torch.float64), requires_grad=False) if many else None
        self.register_parameter("head", head)

    @classmethod
    def of(cls, t: Tensor, seen: Tensor, many: int = 0) -> Correction:
        """The path of states at times t (n,) that look-aheads see as (n, looks), with weights that are zero."""
        times = t.double().unique()
        at = torch.linspace(0, 1, min(KNOTS, len(times)), dtype=torch.float64, device=t.device)
        path = cls(seen.shape[1], len(at), many).to(t.device)
        path.knots.copy_(times.quantile(at))
        path.mean.copy_(seen.nanmean(0).nan_to_num(0.0))
        spread = (seen - path.mean).square().nanmean(0).sqrt()
        path.spread.copy_(torch.where(spread > 0, spread, 1.0))
        return path

    def forward(self, t: Tensor, seen: Tensor) -> Tensor:
        return self.terms(t, seen) @ torch.cat([own.flatten() for own in self.parameters()])

    def put(self, b: Tensor) -> None:
        """Take the weights that multiply the terms."""
        for own, new in zip(self.parameters(), b.split([own.numel() for own in self.parameters()]), strict=True):
            own.copy_(new.view_as(own))

    def terms(self, t: Tensor, seen: Tensor) -> Tensor:
        """What the weights multiply, (n, knots (1 + few) + 3 many)."""
        known = ((seen - self.mean) / self.spread).nan_to_num(0.0)
        each = torch.cat([torch.ones_like(t.double())[:, None], known[:, : self.few]], 1)
        powers = _TRUST * torch.stack([t.double() ** i for i in range(1, 1 + _POWERS)], 1)
        own, many = (
            a[:, :, None] * b[:, None] for a, b in ((self._hats(t.double()), each), (powers, known[:, self.few :]))
        )
        return torch.cat([own.flatten(1), many.flatten(1)], 1)

    def _hats(self, t: Tensor) -> Tensor:
        """The share of every knot at times t, (n, knots)."""
        right = torch.searchsorted(self.knots, t.contiguous()).clamp(1, max(len(self.knots) - 1, 1))
        if len(self.knots) == 1:
            return torch.ones_like(t)[:, None]
        a, b = self.knots[right - 1], self.knots[right]
        share = ((t - a) / (b - a)).clamp(0, 1)[:, None]
        place = torch.arange(len(self.knots), device=t.device)
        return (place == right[:, None]) * share + (place == right[:, None] - 1) * (1 - share)


# calibration -----------------------------------------------------------------------------------------------------


def soft_mean(v: Tensor, w: Tensor, alpha: float) -> float:
    """alpha log(sum w exp(v/alpha) / sum w); at alpha = infinity the weighted mean."""
    if alpha == math.inf:
        return float((w * v).sum() / w.sum())
    return float(alpha * ((v / alpha + w.log()).logsumexp(0) - w.sum().log()))


def intervals(t: Tensor, times: int = 5) -> list[Tensor]:
    """The places of the states of each of so many intervals of time, which hold like numbers of different times."""
    parts = [part for part in t.unique().tensor_split(times) if len(part)]
    return [((t >= part[0]) & (t <= part[-1])).nonzero()[:, 0] for part in parts]


def bins(
    value: Tensor, reward: Tensor, t: Tensor, w: Tensor, rollout: Tensor, alpha: float, times: int = 5, levels: int = 4
) -> tuple[Bin, ...]:
    """Group states by `times` intervals of time, and within each by `levels` ranges of the value with equal counts."""
    rows = []
    for own in intervals(t, times):
        for part in own[value[own].argsort(stable=True)].tensor_split(levels):
            if len(part):
                rows.append(_bin(value[part], reward[part], t[part], w[part], rollout[part], alpha))
    return tuple(rows)


def _bin(value: Tensor, reward: Tensor, t: Tensor, w: Tensor, rollout: Tensor, alpha: float) -> Bin:
    realised = soft_mean(reward, w, alpha)
    # exp((r - realised)/alpha) has mean 1, so to first order alpha times its error is the error of the soft mean
    spread = reward - realised if alpha == math.inf else alpha * torch.expm1((reward - realised) / alpha)
    of_rollout = torch.zeros(int(rollout.max()) + 1, dtype=w.dtype, device=w.device).index_add_(0, rollout, w * spread)
    noise = float(of_rollout.square().sum().sqrt() / w.sum())  # states of one rollout share its reward
    return Bin(float(t.min()), float(t.max()), soft_mean(value, w, alpha), realised, noise, len(value))
