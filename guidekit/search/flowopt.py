r"""FlowOpt (Ronen et al., 2025, https://arxiv.org/abs/2510.22010): find the noise of a given sample without gradients.

A deterministic sampler is a function f from noise z to samples. For a target y,

    z <- z - rate (f(z) - y),

with one run per round. *Inversion* finds the noise of y under its own condition. *Editing* starts from that noise under
another condition: the first iterate is the edit that plain inversion gives, and each round pulls it back towards y.

For a linear flow f(z) = m + A z, with a symmetric positive A with eigenvalues a_i, the noise is z* = A^-1 (y - m), and

    z - z* <- (1 - rate A)(z - z*),

which shrinks by a factor of max_i |1 - rate a_i| or less per round: it converges for rate < 2 / max_i a_i.

Without a rate, one is chosen for every row and round by the method of Barzilai and Borwein (1988,
https://doi.org/10.1093/imanum/8.1.141). With s = z_k - z_j and g = f(z_k) - f(z_j) from two evaluations, g = A s for a
linear flow; so rate g should equal s, and the rate that minimises |rate g - s| is

    rate = <s, g> / <g, g>,    between 1/max a and 1/min a.

Safeguards: the first rate is at most 1, and the first step no longer than z; if <s, g> is not positive the rate is
halved; it is at most 10 times the last one; and if the error is more than twice that of the best iterate, the next one
starts from there, with the rate from the pair or half the last rate. The best iterate is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..models.base import Model
from ..process import Gaussian
from .core import Found, Options, Search, limits

if TYPE_CHECKING:
    from typing_extensions import Unpack


class State(NamedTuple):
    """The state of every row, float64 (rows, d): the next iterate and its rate (rows,); the last and the best iterate
    with their differences f(z) - y. Rates are NaN before the first round."""

    z: Tensor
    rate: Tensor
    last: Tensor
    last_off: Tensor
    best: Tensor
    best_off: Tensor


def flowopt(
    model: Model,
    target: Any,
    *,
    rounds: int | None = None,
    rate: float | None = None,
    start: Tensor | None = None,
    **options: Unpack[Options],
) -> Found:
    """Find noise whose samples are the target, or close to it. Rewards are minus the root mean square of f(z) - y.

    target   samples as `model.read` takes them, or final states (rows, *shape): condition by condition
    rounds   number of rounds, each a run of all samples; 30 unless rounds or a budget are given
    rate     step size; None chooses it automatically
    start    noise (rows, *shape) to start from; None is the plain sampler's own

    `rounds["error"]` holds the error of every sample in each round.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 1.0]], [0.5, 0.5])
    >>> options = {"steps": 10, "solver": gk.solvers.DDIM()}
    >>> source = base.exact_sample(4)
    >>> found = gk.search.flowopt(base, source, rounds=40, **options)
    >>> bool((found.x - source).abs().max() < 0.01)
    True
    """
    if isinstance(model, Model) and (model.decodes or not isinstance(target, Tensor)):
        target = model.as_states(target)
    search = _prepared(model, target, rate, start, options)
    y = target.to(search.space.keys.device, torch.float64).flatten(1)
    search.open(limits(rounds, options, 30))
    rows = search.space.cells * search.per_row
    with search.bar:
        state = _resumed(search, start)
        while search.fits(rows, 0, rows):
            z = _within(state.z, rate).view(-1, *search.space.shape).to(search.space.dtype)
            x = search.sampled(z[:, None])
            off = x.double().flatten(1) - y
            state = moved(state, off, rate)
            _book(search, z, x, off, state)
    return search.finish()


def moved(state: State, off: Tensor, rate: float | None) -> State:
    """The next iterate, given f(z) - y of this one."""
    z, first = state.z, bool(state.rate.isnan().all())
    error, least = off.norm(dim=1), state.best_off.norm(dim=1)
    better = first | (error < least)
    best, best_off = (torch.where(better[:, None], a, b) for a, b in ((z, state.best), (off, state.best_off)))
    if rate is not None:
        return State(z - rate * off, torch.full_like(error, rate), z, off, best, best_off)
    if first:
        longest = z.norm(dim=1) / error.clamp(min=1e-300)
        chosen = torch.where(longest > 0, longest, 1.0).clamp(max=1.0)
        return State(z - chosen[:, None] * off, chosen, z, off, best, best_off)
    s, g = z - state.last, off - state.last_off
    along, square = (s * g).sum(1), g.square().sum(1)
    taught = torch.where(along > 0, along / square.clamp(min=1e-300), state.rate / 2)
    chosen = torch.minimum(taught, 10 * state.rate)
    back = (error > 2 * least) & ~better
    chosen = torch.where(back, torch.minimum(chosen, state.rate / 2), chosen)
    origin, by = (torch.where(back[:, None], a, b) for a, b in ((best, z), (best_off, off)))
    return State(origin - chosen[:, None] * by, chosen, origin, by, best, best_off)


def _prepared(model: Model, target: Any, rate: float | None, start: Any, options: Options) -> Search:
    """The search, with its arguments checked."""
    if not isinstance(model, Model):
        Search(model, 1, _distance, options, "search.flowopt", {})  # says what is needed
    if not isinstance(model.process, Gaussian):
        raise ValueError("flowopt needs a Gaussian process: of tokens, samples and noise have no differences")
    solver = options.get("solver")
    if solver is None or solver.stochastic:
        raise ValueError(
            f"flowopt needs a deterministic solver, like gk.solvers.DDIM() or DPMpp(2), and got solver={solver!r}"
        )
    if options.get("over") not in (None, "start"):
        raise ValueError(f"over={options.get('over')!r}: flowopt looks for the starting noise")
    if rate is not None and not 0 < rate < float("inf"):
        raise ValueError(f"rate={rate!r}: a positive number, or None to have it chosen")
    cond = options.get("cond")
    n = _rows(model, target, "target", len(cond) if isinstance(cond, list) else 1)
    setting = {"target": target, "rate": rate, "start": start}
    search = Search(model, n, _distance, {**options, "over": "start"}, "search.flowopt", setting)
    if start is not None and _rows(model, start, "start", search.space.groups) != n:
        raise ValueError(f"start has {len(start)} rows, and target {len(target)}: one for each sample is needed")
    return search


def _rows(model: Model, value: Any, name: str, groups: int) -> int:
    """The samples of each condition."""
    fits = isinstance(value, Tensor) and value.is_floating_point() and tuple(value.shape[1:]) == model.shape
    if not fits or not len(value) or len(value) % groups:
        given = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name} is {given}; needed is a float tensor (samples, {', '.join(map(str, model.shape))}), as many for "
            f"each of the {groups} conditions"
        )
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} has NaN or infinity")
    return len(value) // groups


def _distance(samples: Any) -> Any:
    """Takes the place of a reward; rounds are recorded with the errors of final states, and no sample is scored."""
    raise AssertionError("flowopt asks no reward")


def _within(z: Tensor, rate: float | None) -> Tensor:
    if float(z.abs().max()) > 1e6:
        raise ValueError(f"rate={rate}: too large, the noise has grown beyond 1e6; take a smaller one, or None")
    return z


def _resumed(search: Search, start: Tensor | None) -> State:
    """The state of the rows: at the start, or as saved in the folder."""
    done, device = len(search.record.rounds), search.space.keys.device
    if not done:
        z = search.space.draw([0])[:, 0] if start is None else start.to(device)
        z = z.double().flatten(1)
        return State(z, z.new_full((len(z),), torch.nan), z, z, z, z)
    kept, rounds = search.record.kept(f"state{done % 2}")
    kept = {name: v.to(device) for name, v in kept.items()}
    search.best.z, search.best.x, search.best.worth = (kept.pop(f"found_{name}") for name in ("z", "x", "worth"))
    search.best.seen = torch.ones_like(search.best.worth, dtype=torch.bool)
    search.rounds = rounds
    search.resume(search.record.rounds[-1].cost)
    return State(**kept)


def _book(search: Search, z: Tensor, x: Tensor, off: Tensor, state: State) -> None:
    """Save the state from which the next round begins, beside that of the round before, and then record this round."""
    error = off.square().mean(1).sqrt()

    def keep(best: Any, rounds: Sequence[Any]) -> None:
        rounds[-1]["error"] = error.tolist()
        found = {"found_z": best.z, "found_x": best.x, "found_worth": best.worth}
        search.record.keep(f"state{len(rounds) % 2}", state._asdict() | found, rounds)

    search.told(z[:, None], -error[:, None, None], x[:, None], before=keep)
