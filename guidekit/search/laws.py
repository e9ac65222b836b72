r"""What a base model owes to the engine, as tests of a user's own model: one function for each law of `gk.check`.

A law is a function of a `Probe` that returns a `Finding`. Networks are compared in the coordinates of predictions F(x).
Differences are relative to the root mean square of what is compared, and may be as large as rounding makes them:
1e-3 in float32, 1e-8 in float64, 0.05 in half precision.

The gradient is tested along J u, the response of the prediction to a change of x in a random direction u:

    w = (F(x + h u) - F(x - h u))/2h,        <w, w> = <J^T w, u>,

where the left side knows no gradient and the right side is what autograd says. A part of the network that the gradient
does not see lowers the right side by its share of |w|^2, in any dimension, where a random w would hide it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rewards import as_reward

from .. import random
from ..engine.guide import Guide
from ..engine.sample import sample
from ..errors import NetworkError
from ..models.base import Encoded, Model, map_cond
from ..models.evaluations import rows_of
from ..models.networks import networks_in
from ..process import Gaussian

HOLDS, FAILS, OPEN = "holds", "fails", "not tested"
ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3, None: 1e-3}
HALF = 0.05
SLACK = 0.05  # of a directional derivative by differences, which are as wrong as the network is curved


class Finding(NamedTuple):
    """A law, whether it holds, and what was found."""

    law: str
    verdict: str
    found: str


def finding(law: str, holds: bool, found: str) -> Finding:
    return Finding(law, HOLDS if holds else FAILS, found)


@dataclass(frozen=True)
class Probe:
    """A model, the guides, and states at which to look at them.

    clean   states of samples, (rows, *shape), whether or not they are the user's data
    conds   the user's conditions, of which row i has number i modulo their number; empty without any
    """

    model: Model
    guides: Sequence[Guide]
    clean: Tensor
    conds: Sequence[Any]
    given: bool  # whether `clean` is the user's data
    steps: int
    seed: int
    draws: int
    n: int  # samples of the runs that are made

    def times(self, parts: Sequence[float]) -> list[float]:
        """These parts of the longest time."""
        return [self.model.process.t_max * part for part in parts]

    @cached_property
    def cond(self) -> Encoded:
        """The encoded condition of every row."""
        found = self.model.encode_all(self.conds or [None])
        return rows_of(found, torch.arange(len(self.clean)) % len(self.conds or [None]))

    def noised(self, t: float, rows: slice = slice(None)) -> Tensor:
        """The states, noised to the time t: row i always by the same noise."""
        process, x = self.model.process, self.clean[rows]
        keys = random.fold(random.key(self.seed, x.device), torch.arange(len(self.clean), device=x.device))[rows]
        noise = process.noise(keys, process.noise_shape(self.model.shape), self.model.dtype)
        return process.noised(x, noise, t)

    @cached_property
    def few(self) -> tuple[Tensor, float, Encoded]:
        """Four rows half-way, and their conditions."""
        t = self.times([0.5])[0]
        return self.noised(t, slice(4)), t, rows_of(self.cond, torch.arange(min(4, len(self.clean))))

    @property
    def rounding(self) -> float:
        return ROUNDING.get(self.model.net_dtype, HALF)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, by the root mean square of b."""
    size = b.double().square().mean().sqrt().clamp(min=1e-12)
    return float((a.double() - b.double()).abs().max() / size)


def answers(probe: Probe) -> Finding:
    """A tensor of the right shape, of finite numbers, at every time; x and the conditions as they were."""
    model, worst = probe.model, []
    for t in probe.times([1.0, 0.5, 1 / 50]):
        x, cond = probe.noised(t), probe.cond
        before = [v.clone() for v in (x, *_tensors(cond))]
        try:
            out = model(x, t, cond)
        except NetworkError as error:
            return Finding("input", FAILS, str(error))
        if not all(torch.equal(a, b) for a, b in zip(before, (x, *_tensors(cond)), strict=True)):
            return Finding("input", FAILS, f"x or the condition is another one after the call at t={t:.3g}")
        worst += [] if bool(out.isfinite().all()) else [f"{t:.3g}"]
    return finding("input", not worst, f"NaN or infinity at t={', '.join(worst)}" if worst else "left as it was")


def repeats(probe: Probe) -> Finding:
    """The same call gives the same prediction."""
    x, t, cond = probe.few
    found = apart(probe.model(x, t, cond), probe.model(x, t, cond))
    return finding("repeats", found <= probe.rounding, f"two equal calls differ by {found:.1e}")


def rows(probe: Probe) -> Finding:
    """A row alone, in its batch, and in a batch the other way round."""
    x, t, cond = probe.few
    whole, last = probe.model(x, t, cond), torch.arange(len(x) - 1, -1, -1)
    turned = probe.model(x[last], t, rows_of(cond, last))[last]
    alone = torch.cat([probe.model(x[i : i + 1], t, rows_of(cond, torch.tensor([i]))) for i in range(len(x))])
    found = max(apart(alone, whole), apart(turned, whole))
    return finding("rows", found <= probe.rounding, f"alone and in a batch a row differs by {found:.1e}")


def conditions(probe: Probe) -> Finding:
    """The null condition and the conditions all give different predictions."""
    model, (x, t, _) = probe.model, probe.few
    kinds = [*probe.conds, *([None] if model.null is not None else [])]
    if len(kinds) < 2:
        lacks = "the model has no null condition" if probe.conds else "no cond=... was given"
        return Finding("null", OPEN, f"{lacks}, so there is nothing to compare")
    stacked = model.encode_all(kinds)
    said = [model(x, t, map_cond(lambda v, _, i=i: v[i].expand(len(x), *v[i].shape), stacked, stacked))
            for i in range(len(kinds))]  # fmt: skip
    pairs = [(apart(a, b), i, j) for i, a in enumerate(said) for j, b in enumerate(said[:i])]
    found, i, j = min(pairs)
    least = f"{kinds[j]!r} and {kinds[i]!r} differ by {found:.1e}"
    return finding("null", found > 1e-6, least if found > 1e-6 else f"{least}: the condition is not used")


def gradient(probe: Probe) -> Finding:
    """What autograd says of the prediction along a direction, and what differences say."""
    model, (x, t, cond) = probe.model, probe.few
    if not x.is_floating_point():
        return Finding("gradient", OPEN, "tokens have none")
    said = _directional(lambda v: model(v, t, cond), x, probe)
    return _compared("gradient", said, "of the prediction")


def rewarded(probe: Probe) -> list[Finding]:
    """The gradients of the rewards that say they have one."""
    model, found = probe.model, []
    judges = [as_reward(g.judge) for g in probe.guides if g.judge is not None]
    for reward in dict.fromkeys(r for r in judges if r.differentiable):
        if not probe.clean.is_floating_point():
            continue
        x = probe.clean[:8].to(model.dtype)
        said = _directional(lambda v, reward=reward: reward(model.decode(v))[:, None], x, probe)
        found.append(_compared("reward", said, f"of {reward.name}"))
    return found


def cost(probe: Probe) -> Finding:
    """Rows that reach the networks of the model in a run, and those that the run counts."""
    model = probe.model
    with _counted(_outermost(model.net)) as seen:
        result = sample(model, probe.n, steps=probe.steps, guides=probe.guides, cond=_one(probe), seed=probe.seed)
    counted, real = result.cost.network_rows, max(seen.values(), default=0)
    if not real:
        return Finding("cost", OPEN, "the network is no torch module that is called")
    return finding("cost", real <= counted, f"{real} rows reach a network, and {counted} are counted")


def guided(probe: Probe) -> list[Finding]:
    """Runs with the guides: equal by seed, equal in parts, and different from runs without them."""
    if not probe.guides:
        return []
    options: dict[str, Any] = {"steps": probe.steps, "cond": _one(probe), "seed": probe.seed}
    first, again, parts = (
        sample(probe.model, probe.n, guides=probe.guides, batch_size=size, **options) for size in (None, None, 3)
    )
    plain = sample(probe.model, probe.n, **options)
    same, split, acts = (_differing(first, other) for other in (again, parts, plain))
    idle = not acts and torch.equal(first.log_weights, plain.log_weights)
    return [
        finding("seed", not same, f"{same} of {probe.n} samples differ between two equal runs"),
        finding("batch_size", split <= probe.n // 4, f"{split} of {probe.n} samples differ with batch_size=3"),
        finding(
            "acts", not idle, "samples are those without the guides" if idle else f"{acts} of {probe.n} samples differ"
        ),
    ]


def _one(probe: Probe) -> Any:
    return probe.conds[0] if probe.conds else None


def _differing(a: Any, b: Any) -> int:
    """How many samples are not the same but for rounding."""
    if len(a.x) != len(b.x):
        return len(a.x)
    return sum(apart(v, w) > 1e-2 if v.is_floating_point() else not torch.equal(v, w) for v, w in zip(a.x, b.x))  # noqa: B905


def _tensors(cond: Encoded) -> list[Tensor]:
    return list(cond.values()) if isinstance(cond, dict) else [] if cond is None else [cond]


def _directional(function: Any, x: Tensor, probe: Probe) -> tuple[float, float] | None:
    """<w, w> and <J^T w, u>; None where autograd has nothing to say."""
    u = random.normal(random.fold(random.key(probe.seed, x.device), torch.arange(len(x))), x.shape[1:], x.dtype)
    half = probe.model.net_dtype in (torch.float16, torch.bfloat16)
    h = (0.1 if half else 1e-2) * float(x.std())
    w = ((function(x + h * u) - function(x - h * u)) / (2 * h)).detach()
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        out = function(leaf)
        if not out.requires_grad:
            return None
        (grad,) = torch.autograd.grad((out * w).sum(), leaf, allow_unused=True)
    return float(w.double().square().sum()), 0.0 if grad is None else float((grad.double() * u).sum())


def _compared(law: str, said: tuple[float, float] | None, what: str) -> Finding:
    if said is None:
        return Finding(law, FAILS, f"there is no gradient {what}: is it computed under no_grad, or detached?")
    real, auto = said
    away = abs(auto - real) / max(abs(real), 1e-12)
    return finding(law, away <= SLACK, f"the gradient {what} is {auto / max(real, 1e-12):.3f} of what differences say")


def _outermost(net: Any) -> list[nn.Module]:
    """The modules of a network that are no parts of others."""
    found = networks_in(net)
    inner = {id(part) for m in found for part in m.modules() if part is not m}
    return [m for m in found if id(m) not in inner]


@contextmanager
def _counted(modules: Sequence[nn.Module]) -> Iterator[dict[int, int]]:
    """How many rows each of the modules is called with."""
    seen = dict.fromkeys(range(len(modules)), 0)

    def count(place: int) -> Any:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            seen[place] += next((len(v) for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()), 0)

        return hook

    handles = [m.register_forward_pre_hook(count(i), with_kwargs=True) for i, m in enumerate(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def is_gaussian(model: Model) -> bool:
    return isinstance(model.process, Gaussian)
