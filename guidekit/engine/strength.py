r"""How strong? The temperature that a budget allows, from a pilot run.

With weights W_i of n samples of the model, 1/n each where the pilot run is unguided, and w_i ~ W_i exp(r(x_i)/alpha),

    log Z ~ log sum_i W_i exp(r(x_i)/alpha),        E[r] ~ sum_i w_i r(x_i),
    KL(p_alpha || p) = E[r]/alpha - log Z,           ESS/n = 1/(n sum_i w_i^2),

where p_alpha = p exp(r/alpha)/Z. KL rises and ESS falls with 1/alpha without turning, so bisection finds the
temperature at which the one or the other is what the user allows. KL is a cost in nats: by so much p_alpha differs from
the model.
Tails that no sample has met are not in these sums. So what one pilot run tells ends where the ESS of w is a tenth of
that of W. An `alpha="auto"` that allows more is tempered: the next pilot run is guided at that temperature, 1/beta, has
weights W_i of p exp(beta r)/Z_beta, and

    log Z ~ log Z_beta + log sum_i W_i exp((1/alpha - beta) r(x_i)),        w_i ~ W_i exp((1/alpha - beta) r(x_i)),

with log Z_beta as the run before has it; and so on, until the budget is reached.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rewards import as_reward

from ..errors import RewardError, is_count
from .cost import Cost
from .guide import Guide
from .population import effective_size
from .result import Result
from .scoring import same

_NEAR = math.log(10)  # nats below log n, beyond which KL of n samples rests on fewer than about ten of them
_TENTH = 0.1
_STAGES = 20  # pilot runs at most
_CURVE = 200  # temperatures at which a second reward is looked at
_NUMBER = re.compile(r"\d*\.?\d+(e-?\d+)?")


@dataclass(frozen=True)
class Auto:
    """`alpha` of a weighted guide: the smallest temperature that a budget allows, which `gk.sample` finds by a pilot
    run.
        kl      the most nats by which p exp(r/alpha)/Z may differ from the model, 1 if nothing is said; or
        ess     the least effective sample size of unguided samples, as a share of them, between 0 and 1
        n       samples of the pilot run, and of each further one where kl is more than they can tell
        until   a second reward: alpha stays above the temperature at which its mean turns and falls

        In place of it guides take a text: "auto" is Auto(), "kl=2" is Auto(kl=2) and "ess=0.3" is Auto(ess=0.3).

        >>> Auto.of("auto").kl, Auto.of("ess=0.3"), Auto.of(0.5)
        (1.0, Auto(ess=0.3), 0.5)
    """

    kl: float | None = None
    ess: float | None = None
    n: int = 256
    until: Any = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if self.kl is None and self.ess is None:
            object.__setattr__(self, "kl", 1.0)
        _check(self.kl, self.ess)
        least = math.ceil(10 / self.ess) if self.ess is not None else 32
        if not is_count(self.n) or self.n < least:
            raise ValueError(f"Auto(n={self.n!r}): a pilot run of at least {least} samples is needed for {self.limit}")
        if self.until is not None:
            as_reward(self.until)

    def __repr__(self) -> str:
        more = [f"n={self.n}"] * (self.n != 256) + ["until=..."] * (self.until is not None)
        return f"Auto({', '.join([self.limit, *more])})"

    def __float__(self) -> float:
        raise ValueError(
            f"alpha={self!r} is found by a pilot run, which gk.sample makes of the guides of its list: elsewhere give "
            "a number, as gk.search.strength(model, reward, kl=1.0).alpha says it"
        )

    @property
    def limit(self) -> str:
        return f"ess={self.ess:g}" if self.ess is not None else f"kl={self.kl:g}"

    @staticmethod
    def of(alpha: Any, guide: str = "") -> Any:
        """What a text stands for, as the temperature of that guide; anything else is as it is."""
        if not isinstance(alpha, str):
            return alpha
        name, _, value = alpha.replace(" ", "").partition("=")
        if alpha == "auto":
            return Auto()
        if name not in ("kl", "ess") or not _NUMBER.fullmatch(value):
            what = 'the temperature is a number, "auto", or a budget like "kl=2" or "ess=0.3"'
            raise ValueError(f"{guide}(alpha={alpha!r}): {what}")
        return Auto(kl=float(value)) if name == "kl" else Auto(ess=float(value))


@dataclass(frozen=True)
class Strength:
    """A temperature, and what it means for samples of p exp(r/alpha)/Z.

    alpha    to be given to guides, in units of the reward
    kl       KL(p_alpha || p), in nats
    ess      the effective sample size of unguided samples, as a share of them; NaN after more than one pilot run
    reward   the mean reward under p_alpha; `before` is that of the model
    pilot    the last pilot run: its samples with their rewards and cost
    log_z    log Z
    why      what stopped it: "budget", "turn" of a second reward, or "pilot", where the samples can tell no more
    cost     of all pilot runs
    """

    alpha: float
    kl: float
    ess: float
    reward: float
    before: float
    pilot: Result
    log_z: float = 0.0
    why: str = "budget"
    cost: Cost = field(default_factory=Cost)

    def described(self) -> dict[str, Any]:
        """As plain values, without the samples."""
        own = {k: getattr(self, k) for k in ("alpha", "kl", "reward", "before", "why")}
        own["ess"] = None if math.isnan(self.ess) else self.ess
        return own | {"n": len(self.pilot), "cost": asdict(self.cost)}


def measured(
    pilot: Result, auto: Auto, so_far: Strength | None = None, of: Any = None, tempered: bool = True
) -> Strength:
    """The smallest temperature that the budget allows, and, where others can follow (`tempered`), that the samples can
    tell. `so_far` is the temperature at which the pilot run was guided, as the one before it found it; `of` the reward,
    for messages."""
    assert pilot.rewards is not None
    known = pilot.rewards.isfinite() & pilot.log_weights.isfinite()
    r, log_w = pilot.rewards[known], pilot.log_weights[known].log_softmax(0)
    spread = float(r.max() - r.min()) if len(r) else 0.0
    if spread == 0:
        raise RewardError(f"reward {as_reward(of).name!r} is the same for all {len(pilot)} samples of the pilot run")
    begun, log_z = (0.0, 0.0) if so_far is None else (1 / so_far.alpha, so_far.log_z)
    curve = _Curve(r, log_w, begun, log_z)
    within = _largest(lambda beta: curve.within(beta, auto), begun, spread)
    least = _TENTH * curve.share(begun) if tempered and auto.kl is not None else 0.0
    told = _largest(lambda beta: curve.share(beta) >= least, begun, spread)
    beta, why = (within, "budget") if within <= told else (told, "pilot")
    if math.isinf(beta):
        raise ValueError(
            "no temperature reaches this limit: so many samples of the pilot run share the best reward that even "
            "argmax is nearer to the model. Allow less, or take alpha=0 where a guide knows it"
        )
    if auto.until is not None and (turn := _turn(curve, pilot, known, beta)) < beta:
        beta, why = turn, "turn"
    return curve.strength(beta, pilot, so_far, why)


@dataclass(frozen=True)
class _Curve:
    """What weighted samples of p exp(begun r)/Z say of p exp(beta r)/Z."""

    r: Tensor
    log_w: Tensor
    begun: float
    log_z: float

    def moved(self, beta: float) -> Tensor:
        """The log-weights, unnormalised."""
        return self.log_w + (beta - self.begun) * self.r

    def kl(self, beta: float) -> float:
        """KL to the model: beta E[r] - log Z."""
        moved = self.moved(beta)
        return beta * float(moved.softmax(0) @ self.r) - self.log_z - float(moved.logsumexp(0))

    def share(self, beta: float) -> float:
        """The ESS as a share of the samples."""
        return float(effective_size(self.moved(beta))) / len(self.r)

    def within(self, beta: float, auto: Auto) -> bool:
        return self.share(beta) >= auto.ess if auto.ess is not None else self.kl(beta) <= float(auto.kl or 0.0)

    def strength(self, beta: float, pilot: Result, so_far: Strength | None, why: str) -> Strength:
        moved = self.moved(beta)
        reward, log_z = float(moved.softmax(0) @ self.r), self.log_z + float(moved.logsumexp(0))
        before, ess = float(self.log_w.exp() @ self.r), self.share(beta)
        if so_far is not None:
            before, ess = so_far.before, math.nan
        return Strength(1 / beta, self.kl(beta), ess, reward, before, pilot, log_z, why)


def _largest(fine: Callable[[float], bool], low: float, spread: float) -> float:
    """The largest beta at which it is fine, near `low`; infinity where it always is."""
    start, high = low, low + 1 / spread
    if not fine(low):
        low, high = 0.0, low
    while fine(high):
        low, high = high, start + 2 * (high - start)
        if (high - start) * spread > 1e6:
            return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fine(middle) else (low, middle)
    return low


def _turn(curve: _Curve, pilot: Result, known: Tensor, beta: float) -> float:
    """The beta, up to this one, at which the mean of the second reward is largest."""
    assert pilot.holdout is not None
    h = pilot.holdout[known]
    some = h.isfinite()
    betas = torch.linspace(curve.begun, beta, _CURVE, dtype=torch.float64).tolist()
    means = [float(curve.moved(b)[some].softmax(0) @ h[some]) for b in betas]
    best = max(range(_CURVE), key=means.__getitem__)
    if betas[best] == 0:
        raise ValueError(
            "Auto(until=...): the mean of the second reward falls from the first on, so no temperature serves it. "
            "Steer by another reward, or by a sum of both"
        )
    return betas[best]


def strength_of(pilot: Result, reward: Any, kl: float | None, ess: float | None) -> Strength:
    """The temperature that one unguided pilot run can tell, or an error where the budget asks for more."""
    return measured(pilot, Auto(kl, ess, n=max(len(pilot), 32)), of=reward, tempered=False)


def check_budget(kl: float | None, ess: float | None, n: int) -> None:
    """Raise unless one pilot run of n samples can tell this budget."""
    if (kl is None) == (ess is None):
        raise ValueError("give either kl=..., in nats, or ess=..., a share between 0 and 1")
    _check(kl, ess)
    least = math.exp(_NEAR + kl) if kl is not None else 10 / float(ess)  # type: ignore[arg-type]
    if n < least:
        said = f"kl={kl}" if kl is not None else f"ess={ess}"
        raise ValueError(f"{said} cannot be told from n={n} unguided samples: at least {math.ceil(least)} are needed")


def _check(kl: float | None, ess: float | None) -> None:
    if kl is not None and ess is not None:
        raise ValueError("give either kl=..., in nats, or ess=..., a share between 0 and 1")
    if kl is not None and not 0 < kl < math.inf:
        raise ValueError(f"kl={kl!r}: a positive number of nats")
    if ess is not None and not 0 < ess < 1:
        raise ValueError(f"ess={ess!r}: a share between 0 and 1")


# the guides of a run -------------------------------------------------------------------------------------------------


def unset(guides: Iterable[Guide]) -> list[Guide]:
    """The guides whose temperature is to be found."""
    return [guide for guide in guides if isinstance(getattr(guide, "alpha", None), Auto)]


def check_auto(guides: Sequence[Guide], groups: int) -> None:
    """Raise unless one temperature can be found: of one reward, for one condition."""
    asking = unset(guides)
    if asking and groups > 1:
        raise ValueError(
            f"alpha={asking[0].alpha!r}: one temperature is found for one condition, and cond is a list of {groups}: "  # type: ignore[attr-defined]
            "run them one by one, or give a number"
        )
    if len({(same(guide.judge), guide.alpha) for guide in asking}) > 1:  # type: ignore[attr-defined]
        raise ValueError(
            f"{' and '.join(type(g).__name__ for g in asking)} have rewards or budgets of their own: a budget is that "
            "of one reward. Give numbers to all but one"
        )


def settled(
    guides: Sequence[Guide], draw: Callable[[Sequence[Guide], Any, Auto, int], Result]
) -> tuple[tuple[Guide, ...], Strength]:
    """The guides with the temperature that their budget allows. `draw(guides, reward, auto,
    stage)` makes a pilot run: the first without them, the others with them at the temperature so far."""
    asking = unset(guides)
    reward, auto = asking[0].judge, asking[0].alpha  # type: ignore[attr-defined]
    found: Strength | None = None
    cost = Cost()
    for stage in range(_STAGES):
        run = [_at(g, found) for g in guides if found is not None or g not in asking]
        pilot = draw(run, reward, auto, stage)
        cost = cost + pilot.cost
        found = replace(measured(pilot, auto, found, reward), cost=cost)
        if found.why != "pilot":
            return tuple(_at(g, found) for g in guides), found
    raise ValueError(
        f"alpha={auto!r}: {_STAGES} pilot runs of {auto.n} samples did not reach it: allow less, or raise n"
    )


def _at(guide: Guide, found: Strength | None) -> Guide:
    return guide if found is None or not unset([guide]) else guide.having(alpha=found.alpha)
