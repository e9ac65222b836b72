r"""Learn the value of a reward from rollouts of a model: `gk.values.fit(model, reward)`.

Rollouts are drawn from the model, each final sample is scored with r, and a network V(x_t, t) is trained on states x_t
of the paths. There are three targets:

    soft      V = alpha log E[exp(r/alpha) | x_t], the optimal twist of p exp(r/alpha)/Z
    bellman   the same value, with V at the next recorded state of the path in place of r
    mean      V = E[r | x_t] by least squares, the "Monte Carlo" value of the SVDD paper and its code

**Look-aheads.** A reward that a few thousand rollouts cannot teach to a network is there to be asked. With `looks`,

    V(x_t) = a(t) + sum_j b_j(t) u_j(x_t) + net(x_t, t, cond)

where u_j are other values, such as the mean reward of a few completions (`Rollout`). They know the reward and not how
far it can be trusted at this time: b_j(t) is near 0 where completions say little of the sample to come, and near 1 at
the end. a and b are linear between a few knots, so that both losses are convex in them: they are found first, by
Newton's method (`solved`), and the network learns what they leave over. It is kept if held-out rollouts are predicted
better with it. With epochs=0 there is no network. `Pooled` says many numbers of what a model of tokens predicts; a
linear head on these (`Correction`) is found together with the rest, and so is as convex.

**The soft loss.** With z = (r - V)/alpha take L = exp(z) - z - 1. It is convex in V, and

    dL/dV = (1 - exp(z))/alpha,     E[dL/dV | x_t] = 0   <=>   exp(V/alpha) = E[exp(r/alpha) | x_t]

so its minimiser is the soft value itself, not a bound on it. It is the LINEX loss, or the Itakura-Saito divergence of
exp(V/alpha) from exp(r/alpha). All Bregman divergences are minimised by the conditional mean; in this one only ratios
count, so states of low value matter as much as those of high value. V starts from the constant
alpha log mean exp(r/alpha), at which exp(z) has mean 1, and the network learns (V - constant)/std(r).

With N rollouts to train on, exp is continued beyond z = 1 + log N by its tangent, so that the gradient of no sample is
more than e N times that of another. The minimum does not move: if one x_t has been seen with n <= N rewards, the best V
there has sum exp(z) = n, and so no z above log N. (A rollout of weight w counts w times, and its bound is 1 +
log(N/w).)

**The Bellman target.** For s < t on a path exp(V(x_t)/alpha) = E[exp(V(x_s)/alpha) | x_t], so replacing r by V'(x_s)
does not change the solution, and V' varies less around it than r does, for a small alpha much less. V' is a moving
average of V; after the last recorded state it is r itself. Errors of V' are passed on to earlier states, so training
may take more epochs.

**Guides.** With guides, the value is that of the guided sampler. If they resample or weight, every state is paired with
the sample that descends from it, and counts with that sample's weight.

References: Li et al. (2024), https://arxiv.org/abs/2408.08252; Banerjee et al. (2005), "Clustering with Bregman
divergences", JMLR 6. The DNA code published with SVDD does not give the time to the value; here V always sees it.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
import random as python_random
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rewards import RewardError, as_reward

from .. import random
from ..engine.cost import Cost
from ..engine.describe import describe, difference, weights
from ..engine.scoring import Scorer
from ..engine.whole import check_writable, whole
from ..engine.world import Alone
from ..errors import CheckpointError, is_count
from ..models.base import Encoded, Model, stack
from ..models.evaluations import rows_of
from ..models.networks import lent, networks_in
from ..solvers import Solver
from .learned import Calibration, Correction, Interval, Learned, Look, Scaled, bins, call, intervals, soft_mean, wide
from .names import named

if TYPE_CHECKING:
    from ..engine.guide import Guide
    from ..engine.population import Population
    from ..engine.run import Run

_FORMAT = "guidekit-values-2"
_FEWEST = 10  # rollouts
_NEWTON, _SMALL = 50, 1e-9  # steps at most, and changes that are none
TARGETS = ("soft", "mean", "bellman")
_OWN = {
    "max_epochs": "epochs=",
    "enable_progress_bar": "progress=",
    "enable_checkpointing": "folder=",
    "fast_dev_run": "epochs=1",
    "barebones": "epochs=1",
}


@dataclass(frozen=True)
class Options:
    """The numbers of a fit, checked."""

    alpha: float
    target: str
    rollouts: int
    per_rollout: int
    batch_size: int
    epochs: int
    lr: float
    holdout: float
    patience: int
    seed: int
    decay: float = 0.01

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"fit(target={self.target!r}): there is {', '.join(map(repr, TARGETS))}")
        for name in ("alpha", "lr", "decay"):
            value, least = getattr(self, name), 0 if name == "decay" else 1e-300
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
                raise ValueError(f"fit({name}={value!r}): a {'positive number' if least else 'number >= 0'} is needed")
        for name, least in {"rollouts": _FEWEST, "per_rollout": 1, "batch_size": 1, "epochs": 0, "patience": 1}.items():
            if not is_count(getattr(self, name), least):
                raise ValueError(f"fit({name}={getattr(self, name)!r}): an int of at least {least} is needed")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"fit(seed={self.seed!r}): an int is needed")
        if isinstance(self.holdout, bool) or not isinstance(self.holdout, float) or not 0 < self.holdout < 1:
            raise ValueError(
                f"fit(holdout={self.holdout!r}): the share of the rollouts that is not trained on lies in (0, 1)"
            )

    @property
    def softness(self) -> float:
        """The temperature of the mean that the value is."""
        return math.inf if self.target == "mean" else self.alpha


def fit(
    model: Model,
    reward: Any,
    net: nn.Module | None = None,
    *,
    alpha: float = 1.0,
    target: str = "soft",
    rollouts: int = 2048,
    steps: int | Sequence[float] = 50,
    cond: Any = None,
    guides: Iterable[Guide] = (),
    solver: Solver | None = None,
    batch_size: int = 256,
    epochs: int = 100,
    lr: float = 1e-3,
    per_rollout: int = 8,
    holdout: float = 0.2,
    patience: int = 10,
    decay: float = 0.01,
    looks: Sequence[Look | str] = (),
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
    trainer: Mapping[str, Any] | None = None,
    world: Any = None,
) -> Learned:
    """Train the value of a reward on rollouts of a model.

    model         a base model. steps, cond, guides and solver are as in `gk.sample`, and should be those that the value
                  will be used with; `rollouts` is the number per condition
    reward        a Reward or a function of decoded samples. Samples that it cannot score are left out, so the value is
                  that of samples which can be scored
    net           a torch module net(x, t, cond) -> (rows,); a copy is trained, and net stays as it was. None builds a
                  small one: residual layers for vectors, convolutions for images (C, H, W); for tokens a linear path of
                  their places and words, and attention beside it, which is kept if it predicts held-out rollouts better
                  (the mask is one more token, with the id vocab_size). For graphs and the like, give your own;
                  whatever it reads besides x comes in cond, as a dict. It is trained at t > 0, because at t = 0 the
                  value is the reward
    alpha         temperature of the soft value: that of the guide which will use it
    target        "soft" | "bellman" | "mean", explained in the module's docstring
    per_rollout   states kept of each path, at random steps; memory grows with rollouts * per_rollout
    batch_size    the largest number of rows in one forward pass, of the model and of the net
    epochs        the largest number; training stops after `patience` epochs without progress on held-out rollouts. With
                  looks, 0 leaves out the network
    decay         weight decay of AdamW, in units of the learning rate: larger where rollouts are few
    looks         look-aheads that the value corrects, or their names (`gk.values.NAMED`), as explained in the module's
                  docstring: with [gk.values.Rollout(reward, k=8)] some hundred rollouts may be enough. The value then
                  costs what they cost, and they are asked for each recorded state
    holdout       fraction of the rollouts that is held out, for early stopping and for `calibration`
    folder        keeps the rollouts and the state of training: the same call resumes an interrupted fit and ends with
                  the same weights, and returns those of a finished one
    seed          decides everything; the global random generators are left as they were
    progress      show progress bars
    trainer       further options of pytorch_lightning.Trainer, like {"logger": CSVLogger("logs"), "callbacks": [...]}
    world         as in `gk.sample`: several processes share the rollouts and the calls of the reward; the first one
                  trains, writes the folder, and tells the others the weights

    Returns the weights that were best on held-out rollouts; `.calibration` says how well they predict, at each time. A
    UserWarning says so if they predict no better than a constant.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> value = fit(base, lambda x: x[:, 0], alpha=0.5, rollouts=64, steps=10, epochs=2)
    >>> steering = gk.FKSteering(lambda x: x[:, 0], alpha=0.5, value=value)
    >>> len(gk.sample(base, 8, steps=10, guides=[steering]))
    8
    >>> value.calibration.held_out
    13
    """
    from ..engine.run import Run

    options = Options(alpha, target, rollouts, per_rollout, batch_size, epochs, lr, holdout, patience, seed, decay)
    as_reward(reward)
    ahead = _looks(looks, reward, options, net)
    run = Run(
        model, rollouts, steps=steps, guides=guides, cond=cond, reward=reward, solver=solver, batch_size=batch_size,
        world=world,
    )  # fmt: skip
    with ExitStack() as held_open:
        for context in (_quiet(), _isolated(), torch.inference_mode(False)):
            held_open.enter_context(context)
        extra = _trainer_options(trainer)
        conds = stack([model.encode(c) for c in run.conditions])
        _check_net(net, run, conds)
        config = _config(run, net, options, extra, ahead)
        run.world.agree(config)
        drawn = partial(_draw, run, steps, options, progress, looks=ahead)
        data, unscored = _scored(drawn(None) if folder is None else _kept(Path(folder), config, run, drawn), reward)
        train, held = _split(data, options)
        module = _module(net, model, train, conds, options, config, sum(map(wide, ahead)))
        loaders = Batches(train, conds, options, shuffled=True), Batches(held, conds, options, shuffled=False)
        path = folder or held_open.enter_context(tempfile.TemporaryDirectory(prefix="guidekit-"))
        done = 0
        if epochs:
            done = _led(run.world, partial(_train, module, loaders, Path(path), options, progress, model.device, extra))
        best = module.best.to(model.device)
        run.world.copy_first(best.state_dict().values())
        if ahead and epochs:
            _weighed(module, loaders[1])
        calibration = _calibration(module, loaders[1], len(train), unscored, done, options)
        for mine, theirs in zip(best.parameters(), module.net.parameters(), strict=True):
            mine.requires_grad_(theirs.requires_grad)
    if not calibration.useful:
        warnings.warn(_useless(calibration), stacklevel=2)
    return Learned(best, calibration, ahead)


def _useless(found: Calibration) -> str:
    return (
        f"the value is no better than a constant: its loss on {found.held_out} held-out rollouts is {found.loss:.4g}, "
        f"and that of a constant {found.constant:.4g} (the difference is uncertain by {found.doubt:.2g}). Take the "
        "default look-ahead, value=None, or fit again with more rollouts, a larger alpha or another net; "
        "print(value.calibration) says what it explains at each time"
    )


# bad input ---------------------------------------------------------------------------------------------------------


def _trainer_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Further options of Lightning's Trainer; those that fit itself sets are refused, and so are misspelt ones."""
    import pytorch_lightning as pl

    if not isinstance(given, Mapping | None):
        raise TypeError(f"fit(trainer=...) takes a dict of options of Lightning's Trainer, not {type(given).__name__}")
    given = dict(given or {})
    for name in given:
        if name in _OWN:
            raise ValueError(f"fit(trainer={{{name!r}: ...}}): say {_OWN[name]} instead")
        if name not in inspect.signature(pl.Trainer).parameters:
            raise ValueError(f"fit(trainer={{{name!r}: ...}}): Lightning's Trainer has no such option")
    devices = given.get("devices", 1)
    if len(devices) != 1 if isinstance(devices, (list, tuple)) else devices not in (1, "1", "auto"):
        raise ValueError(f"fit(trainer={{'devices': {devices!r}}}): a value is trained on one device")
    return given


def _looks(looks: Any, reward: Any, options: Options, net: Any) -> tuple[Look, ...]:
    """The look-aheads, each at the temperature of the fit."""
    if looks and isinstance(net, Scaled) and net.path is None:
        raise ValueError("fit(net=..., looks=...): this net is of a value without look-aheads; give its inner net")
    if not isinstance(looks, (list, tuple)) or not all(isinstance(v, str) or callable(v) for v in looks):
        raise TypeError(f"fit(looks={looks!r}): a list of values is needed, like [gk.values.Rollout(reward, k=8)]")
    if not options.epochs and (net is not None or not looks):
        what = "a net that is not trained" if looks else "a value without a network"
        raise ValueError(f"fit(epochs=0): {what}; leave out net and give looks=[gk.values.Rollout(reward, k=8)]")
    values = [named(look, reward, "fit") if isinstance(look, str) else look for look in looks]
    at = 0.0 if options.target == "mean" else options.alpha
    values.sort(key=lambda look: wide(look) > 0)  # a head reads the last numbers
    return tuple(look.at(at) if hasattr(look, "at") else look for look in values)


def _check_net(net: Any, run: Run, conds: Encoded) -> None:
    """The network can be trained, and returns one number for each of two rows of noise."""
    from .nets import default

    process, model = run.model.process, run.model
    keys = random.fold(random.key(0, model.device), torch.arange(2, device=model.device))
    x = process.prior(process.noise(keys, process.noise_shape(model.shape), model.dtype), run.moves[0].t)
    if net is None:
        default(model, x.double(), conds)
        return
    if not isinstance(net, nn.Module):
        raise TypeError(f"fit(net=...) takes a torch.nn.Module, for it has to train it, not {type(net).__name__}")
    if not any(p.requires_grad for p in net.parameters()):
        raise ValueError(f"fit(net={type(net).__name__}): none of its parameters requires a gradient")
    t = torch.full((2,), run.moves[0].t, dtype=model.dtype, device=model.device)
    with torch.no_grad(), lent(networks_in(net)):
        call(net, x, t, rows_of(conds, torch.zeros(2, dtype=torch.long, device=model.device)))


# rollouts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rollouts:
    """R paths: states x (R, k, *shape) with their times t (R, k) in the order of the path, and what look-aheads see in
    them, (R, k, numbers); the final state `clean`, with its reward and weight; the group; and the row `root` at the
    start, which paths that parted on the way share."""

    x: Tensor
    t: Tensor
    seen: Tensor
    clean: Tensor
    reward: Tensor
    weight: Tensor
    group: Tensor
    root: Tensor

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, rows: Tensor) -> Rollouts:
        return Rollouts(*(getattr(self, f.name)[rows] for f in fields(self)))


def _kept(path: Path, config: str, run: Run, drawn: Callable[[Path], Rollouts]) -> Rollouts:
    """The rollouts in the folder, or new ones, which are then stored there."""
    file, sampling = path / "rollouts.safetensors", path / "sampling.safetensors"
    run.world.agree(("rollouts in the folder", there := file.exists()))
    if there:
        return _read(file, config, run.model.device)
    with run.world.together():
        if run.world.rank == 0:
            check_writable(file)
    data = drawn(sampling)
    with run.world.together():
        if run.world.rank == 0:
            tensors = {f.name: getattr(data, f.name).cpu().contiguous() for f in fields(data)}
            with whole(file) as part:
                save_file(tensors, part, {"guidekit": config})
            sampling.unlink(missing_ok=True)
    return data


def _draw(
    run: Run, steps: Any, options: Options, progress: bool, file: Path | None, looks: tuple[Look, ...] = ()
) -> Rollouts:
    """Sample with a recorder in the list of guides. `file` is a checkpoint, from which an interrupted run resumes."""
    from ..engine.sample import sample
    from .nets import Record

    ends: list[Population] = []
    key = random.fold(random.key(options.seed), "values.fit")  # not the seeds that samples are drawn with later
    result = sample(
        run.model,
        run.n,
        steps=steps,
        guides=[*run.guides, Record(options.per_rollout, looks)],
        cond=run.conditions,
        solver=run.solver,
        seed=random.fold(key, torch.arange(run.groups)).tolist(),
        batch_size=run.batch_size,
        progress=progress,
        callbacks=[lambda pop, step: ends.append(pop) if step.last else None],
        checkpoint=file,
        world=run.world,
    )
    if not ends and file:  # stopped between the last step and here
        with run.world.together():
            if run.world.rank == 0:
                file.unlink()
        return _draw(run, steps, options, progress, file, looks)
    index, x, known = ends[0].memos[-1]
    t = torch.tensor([move.t for move in run.moves], dtype=run.model.dtype, device=x.device)[index]
    with lent(networks_in(run.reward)):
        reward = Scorer(Cost(), run.model.device, world=run.world)(run.reward, result.samples).detach()
    return Rollouts(x, t, known, result.x, reward, result.weights * run.n, result.group, ends[0].root)


def _scored(data: Rollouts, reward: Any) -> tuple[Rollouts, int]:
    """The rollouts that have a reward and a weight, and how many have no reward."""
    scored = data.reward.isfinite()
    unscored = int((~scored).sum())
    kept = data.take((scored & (data.weight > 0)).nonzero()[:, 0])
    if len(kept) < _FEWEST:
        raise RewardError(
            f"reward {as_reward(reward).name!r} scored {len(data) - unscored} of {len(data)} rollouts; to fit a value "
            f"takes at least {_FEWEST}"
        )
    if unscored:
        warnings.warn(f"{unscored} of {len(data)} rollouts could not be scored and are left out", stacklevel=3)
    return kept, unscored


def _split(data: Rollouts, options: Options) -> tuple[Rollouts, Rollouts]:
    """Rollouts to train on and held-out ones, which share no state: whole families of one root are held out."""
    roots, family = data.root.unique(return_inverse=True)
    if len(roots) < 2:
        raise ValueError(
            "all rollouts descend from one start, because guides resampled: none can be held out. Draw several "
            "populations, with cond=[cond] * 16, or more rollouts"
        )
    count = min(max(round(options.holdout * len(roots)), 1), len(roots) - 1)
    key = random.fold(random.key(options.seed, family.device), "holdout")
    held = torch.isin(family, random.uniform(key, (len(roots),)).argsort()[:count])
    return data.take((~held).nonzero()[:, 0]), data.take(held.nonzero()[:, 0])


class Batches:
    """States of rollouts in batches, shuffled in each epoch by addressed random numbers."""

    def __init__(self, data: Rollouts, conds: Encoded, options: Options, shuffled: bool):
        self.data, self.conds, self.size, self.shuffled = data, conds, options.batch_size, shuffled
        self.ahead = shuffled and options.target == "bellman"
        self.key = random.fold(random.key(options.seed, data.x.device), "order")
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.data.t.numel() / self.size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = torch.arange(self.data.t.numel(), device=self.data.t.device)
        if self.shuffled:
            order = random.uniform(random.fold(self.key, self.epoch), (len(order),)).argsort()
        for place in order.split(self.size):  # a generator: Lightning asks for it before the epoch has begun
            yield self._batch(place)

    def _batch(self, place: Tensor) -> dict[str, Any]:
        count = self.data.t.shape[1]
        row, index = place // count, place % count
        batch = {"state": self._state(row, index), "reward": self.data.reward[row], "weight": self.data.weight[row]}
        if self.ahead:
            final = index == count - 1
            batch |= {"next": self._state(row, torch.where(final, index, index + 1)), "final": final}
        return batch

    def _state(self, row: Tensor, index: Tensor) -> tuple[Any, ...]:
        more = (self.data.seen[row, index],) if self.data.seen.shape[-1] else ()
        return self.data.x[row, index], self.data.t[row, index], rows_of(self.conds, self.data.group[row]), *more


# losses ------------------------------------------------------------------------------------------------------------


def soft_loss(value: Tensor, target: Tensor, weight: Tensor, alpha: float, count: int) -> Tensor:
    """w (exp(z) - z - 1) with z = (target - value)/alpha; beyond z = 1 + log(count/w), exp is replaced by its
    tangent."""
    z = (target - value) / alpha
    near = torch.minimum(z, 1 + math.log(count) - weight.log())
    return weight * (near.exp() * (1 + z - near) - z - 1)


def mean_loss(value: Tensor, target: Tensor, weight: Tensor, scale: float) -> Tensor:
    """w ((target - value)/scale)^2."""
    return weight * ((target - value) / scale).square()


def solved(terms: Tensor, left: Tensor, weight: Tensor, alpha: float, count: int, ridge: float) -> Tensor:
    """The b that minimises sum w L(left - terms b) + ridge |b|^2/2, by Newton's method; it is convex.

    L is alpha^2 times the soft loss, which for large alpha is half the square, or that where alpha is infinite. terms
    (n, m), left (n,); returns (m,).
    """

    def loss(b: Tensor) -> Tensor:
        each = mean_loss(terms @ b, left, weight, 2**0.5) if alpha == math.inf else (
            alpha**2 * soft_loss(terms @ b, left, weight, alpha, count)
        )  # fmt: skip
        return each.sum() + 0.5 * ridge * b.square().sum()

    b, identity = terms.new_zeros(terms.shape[1]), torch.eye(terms.shape[1], dtype=terms.dtype, device=terms.device)
    for _ in range(_NEWTON):
        z = left - terms @ b
        slope, curve = z, torch.ones_like(z)
        if alpha != math.inf:
            bound = 1 + math.log(count) - weight.log()
            near = torch.minimum(z / alpha, bound).exp()
            slope, curve = alpha * (near - 1), near * (z / alpha < bound)
        down = terms.T @ (weight * slope) - ridge * b
        step = torch.linalg.solve(terms.T @ ((weight * curve)[:, None] * terms) + ridge * identity, down)
        before = loss(b)
        while not loss(b + step) <= before and float(step.abs().max()) > _SMALL:
            step = step / 2
        if float(step.abs().max()) <= _SMALL * (1 + float(b.abs().max())):
            break
        b = b + step
    return b


# training ----------------------------------------------------------------------------------------------------------


def _path(train: Rollouts, options: Options, loc: float, many: int) -> Correction | None:
    """What look-aheads say of the rollouts, each multiplied by what suits its time; `many` numbers are of a head."""
    if not train.seen.shape[-1]:
        return None
    t, known, of = train.t.flatten(), train.seen.flatten(0, 1), train.t.shape[1]
    path, weight = Correction.of(t, known, many), train.weight.repeat_interleave(of)
    left = train.reward.repeat_interleave(of) - loc
    path.put(solved(path.terms(t, known), left, weight, options.softness, len(train), of))
    return path


def _weighed(module: Any, held: Batches) -> None:
    """The best network is left out if held-out rollouts are predicted no better with it."""
    alone = copy.deepcopy(module.best)
    alone.scale.zero_()
    with torch.no_grad():
        losses = [
            sum(float(module.loss(call(value, *b["state"]), b["reward"], b["weight"]).sum()) for b in held)
            for value in (module.best, alone)
        ]
    if not losses[0] < losses[1]:
        module.best.scale.zero_()


def _module(
    net: nn.Module | None, model: Model, train: Rollouts, conds: Encoded, options: Options, config: str, many: int
):
    """The Lightning module: the network, from the best constant on, and its copies."""
    from .nets import Nothing, Regression, default, seed_all

    w, r = train.weight, train.reward
    loc = soft_mean(r, w, options.softness)
    scale = float(((r - (w * r).sum() / w.sum()).square() * w).sum() / w.sum()) ** 0.5 or 1.0
    seed_all((options.seed, -1), model.device)
    if net is None:
        net = default(model, train.clean, conds).to(model.device) if options.epochs else Nothing()
    net, path = copy.deepcopy(net), _path(train, options, loc, many)
    scaled = net if isinstance(net, Scaled) else Scaled(net, loc, scale, path).to(model.device)
    if options.target == "mean":
        loss = partial(mean_loss, scale=scale)
    else:
        loss = partial(soft_loss, alpha=options.alpha, count=len(train))
    copies = copy.deepcopy(scaled), copy.deepcopy(scaled)
    return Regression(scaled, copies, loss, options, config)


def _led(world: Alone, train: Callable[[Callable[[int], Any]], int]) -> int:
    """Have rank 0 train, and say so after each epoch, as a collective call that waits for longer gives up. Returns the
    epochs done."""
    done = 0
    with world.together():
        if world.rank == 0:
            try:
                done = train(world.told)
            finally:
                world.told(-1)
        else:
            while world.told(0)[0] >= 0:
                pass
    return world.told(done)[0]


def _train(
    module: Any,
    loaders: tuple[Batches, Batches],
    path: Path,
    options: Options,
    progress: bool,
    device: torch.device,
    extra: dict[str, Any],
    tell: Callable[[int], Any],
) -> int:
    """Run Lightning's Trainer, from the last checkpoint in the folder if there is one, and tell the number of each
    epoch. Returns the epochs done."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import LambdaCallback

    from .nets import Last

    last = path / "last.ckpt"
    kept = Last(path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    settings = {
        "accelerator": "gpu" if device.type == "cuda" else device.type,
        "devices": [device.index or 0] if device.type == "cuda" and "accelerator" not in extra else 1,
        "logger": False,
        "default_root_dir": path,
        "enable_model_summary": False,
        "inference_mode": False,
        "num_sanity_val_steps": 0,
    }
    own = {"max_epochs": options.epochs, "enable_progress_bar": progress}
    told = LambdaCallback(on_train_epoch_end=lambda trainer, _: tell(trainer.current_epoch))
    own["callbacks"] = [kept, told, *_listed(extra.get("callbacks"))]
    trainer = pl.Trainer(**settings | extra | own)
    _check_checkpoint(last, module.config)
    try:
        with torch.enable_grad():
            trainer.fit(module, *loaders, ckpt_path=last if last.exists() else None, weights_only=True)
    except SystemExit as stop:  # what Lightning makes of an interrupt
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    return trainer.current_epoch


def _listed(callbacks: Any) -> list[Any]:
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [] if callbacks is None else [callbacks]


def _calibration(
    module: Any, held: Batches, rollouts: int, unscored: int, epochs: int, options: Options
) -> Calibration:
    """How well the best value predicts the held-out rewards."""
    data = held.data
    with torch.no_grad():
        value = torch.cat([call(module.best, *batch["state"]) for batch in held])
    rollout = torch.arange(len(data), device=value.device).repeat_interleave(data.t.shape[1])
    r, w = data.reward[rollout], data.weight[rollout]
    t = data.t.flatten()
    rows = bins(value, r, t, w, rollout, options.softness)

    def losses(own: Tensor) -> tuple[Tensor, Tensor]:
        constant = torch.full_like(r[own], soft_mean(r[own], w[own], options.softness))
        return module.loss(value[own], r[own], w[own]), module.loss(constant, r[own], w[own])

    def interval(own: Tensor) -> Interval:
        loss, constant = (float(each.sum() / w[own].sum()) for each in losses(own))
        explained = 1 - _variance((r - value)[own], w[own]) / (_variance(r[own], w[own]) or math.nan)
        return Interval(float(t[own].min()), float(t[own].max()), explained, loss, constant, len(own))

    every = torch.arange(len(t), device=t.device)
    whole, (own, constant) = interval(every), losses(every)
    gain = (constant - own - (whole.constant - whole.loss) * w).view(len(data), -1).sum(1)
    return Calibration(
        target=options.target,
        alpha=options.alpha,
        rollouts=rollouts,
        held_out=len(data),
        unscored=unscored,
        epochs=epochs,
        error=_root_mean_square([(b.predicted - b.realised, b.count) for b in rows]),
        noise=_root_mean_square([(b.noise, b.count) for b in rows]),
        explained_variance=whole.explained_variance,
        loss=whole.loss,
        constant=whole.constant,
        rows=rows,
        times=tuple(map(interval, intervals(t))),
        doubt=float(gain.square().sum().sqrt() / w.sum()),
    )


def _root_mean_square(pairs: list[tuple[float, int]]) -> float:
    return (sum(count * v**2 for v, count in pairs) / sum(count for _, count in pairs)) ** 0.5


def _variance(v: Tensor, w: Tensor) -> float:
    w = w / w.sum()
    return float((w * (v - (w * v).sum()).square()).sum())


# files and surroundings --------------------------------------------------------------------------------------------


def _config(run: Run, net: Any, options: Options, trainer: dict[str, Any], looks: tuple[Look, ...]) -> str:
    """What decides the weights, as JSON, to recognise the folder of another call."""
    plain = {k: v for k, v in trainer.items() if isinstance(v, (bool, int, float, str))}
    own = {"format": _FORMAT, "net": describe(net), "trainer": plain, "options": asdict(options)}
    own["looks"] = describe(looks)
    return json.dumps(run.describe() | own | {"weights": weights(run.modules())})


def _expect(found: str, config: str, file: Path) -> None:
    """Raise if a file belongs to another call."""
    was, now = json.loads(found), json.loads(config)
    other = difference({k: was.get(k) for k in now}, now)
    if other:
        place, before, after = (v if isinstance(v, str) else json.dumps(v) for v in other)
        raise CheckpointError(
            f"{file} is of another run: {place} was {before[:80]} and is {after[:80]} now; give this fit another "
            "folder, or delete that one"
        )


def _read(file: Path, config: str, device: torch.device) -> Rollouts:
    try:
        with safe_open(str(file), "pt", device=str(device)) as tensors:
            _expect((tensors.metadata() or {})["guidekit"], config, file)
            return Rollouts(*(tensors.get_tensor(f.name) for f in fields(Rollouts)))
    except CheckpointError:
        raise
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is truncated or was not written by guidekit ({error}); delete it to start anew"
        ) from error


def _check_checkpoint(file: Path, config: str) -> None:
    """The training's checkpoint, if there is one, is of this call and holds tensors and plain values only."""
    if not file.exists():
        return
    try:
        _expect(torch.load(file, map_location="cpu", weights_only=True)["guidekit"], config, file)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a foreign file makes of the unpickler
        raise CheckpointError(
            f"{file} is truncated, was not written by guidekit or holds more than tensors and plain values; delete it "
            f"to train anew ({type(error).__name__}: {error})"
        ) from error


@contextmanager
def _isolated() -> Iterator[None]:
    """A context that restores the random generators of Python, numpy and torch."""
    python, numpy = python_random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            python_random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without Lightning's advice about workers, loggers and unused devices."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|lightning_utilities)\b")
        import pytorch_lightning  # noqa: F401  # its import sets levels

        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
