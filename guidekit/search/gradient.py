r"""Gradient search: gradient ascent of the reward with respect to the noise, through the sampler.

    maximise  r(x(z)) + weight log p_chi(|z|),      log p_chi(|z|) = (d - 1) log|z| - |z|^2/2 + const,

for the starting noise of a one-step or few-step model (ReNO, Eyring et al., 2024, https://arxiv.org/abs/2406.04312), or
through all steps of any Gaussian sampler (DITTO, Novack et al., 2024, https://arxiv.org/abs/2401.12179). The prior is
largest at |z| = sqrt(d - 1). As in ReNO the step is

    g <- grad min(1, clip/|grad|),    v <- momentum v + g,    z <- z + rate (g + momentum v),

row by row, and the best iterate is kept.

`gradients` first samples without a graph, keeping only the states x_t, and then goes back move by move, evaluating each
again with a graph. So memory never holds more than the graph of one move, and a gradient costs twice the network
evaluations of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewards import as_reward

from ..engine.run import Run
from ..engine.tilts import tilted
from ..errors import RewardError
from ..models.base import Model
from ..models.networks import lent, networks_in
from ..process import Gaussian
from .core import Found, Options, Search, limits

if TYPE_CHECKING:
    from typing_extensions import Unpack

State = tuple[Tensor, ...]  # x and the last predictions, newest first


def gradient(
    model: Model,
    n: int,
    reward: Any,
    *,
    rounds: int | None = None,
    rate: float = 5.0,
    momentum: float = 0.9,
    clip: float = 0.1,
    weight: float = 0.01,
    **options: Unpack[Options],
) -> Found:
    """Gradient ascent from the plain sampler's own noise, for each of n samples; the defaults are those of ReNO.

    rounds                 number of steps; 50 unless rounds or a budget are given
    rate, momentum, clip   of the ascent; clip bounds the norm of each row's gradient
    weight                 of log p_chi; penalises noise whose norm is atypical for a Gaussian

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> found = gk.search.gradient(base, 3, lambda x: x[:, 0], rounds=10, rate=1.0, steps=8, solver=gk.solvers.DDIM())
    >>> bool((found.rewards > 2).all())
    True
    """
    for name, value in (("rate", rate), ("momentum", momentum), ("clip", clip), ("weight", weight)):
        if not value >= 0 or (name in ("rate", "clip") and value == 0):
            raise ValueError(f"{name}={value}: a {'positive number' if name in ('rate', 'clip') else 'number >= 0'}")
    setting = {"rate": rate, "momentum": momentum, "clip": clip, "weight": weight}
    search = Search(model, n, reward, options, "search.gradient", setting)
    _check(search)
    search.open(limits(rounds, options, 50))
    with search.bar:
        z, v = _resumed(search)
        while search.fits(2 * search.space.cells * search.per_row, len(z), search.space.cells * search.per_row):
            rewards, grad, x = _evaluated(search, z)
            flat, g = z.double().flatten(1), grad.double().flatten(1)
            if weight:
                size = flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
                g = g + weight * ((flat.shape[1] - 1) / size**2 - 1) * flat
            g = g * (clip / g.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
            v = momentum * v + g
            following = (flat + rate * (g + momentum * v)).view(z.shape).to(z.dtype)
            _book(search, z, rewards, x, following, v)
            z = following
    return search.finish()


def _evaluated(search: Search, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards (cells,), their gradients and the samples, in micro-batches."""
    space, noise = search.space, search.space.rows(z[:, None])
    run, world = search.runs(1, noise), search.world.over(space.cells)
    whole = noise if space.moves is not None else torch.cat([noise[None], run.chain_noise()[1:]])
    mine = torch.arange(space.cells, device=noise.device)[world.share(space.cells)]
    parts = mine.split(search.given.get("batch_size") or space.cells)
    with world.together():
        found = [gradients(run, whole[:, rows], search.verifier.rewards[0], rows) for rows in parts]
        rewards, grads, x = (torch.cat(v, d) for v, d in zip(zip(*found, strict=True), (0, 1, 0), strict=True))
    run.settle()
    rewards, grads, x = (world.rows(v) for v in (rewards, grads.transpose(0, 1).contiguous(), x))
    search.spent(run, 2 * space.cells * sum(search.looks), search.cost)
    return rewards, grads[:, 0] if space.moves is None else grads, x


def gradients(run: Run, noise: Tensor, reward: Any, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards (rows,) given the noise of the whole chain (moves + 1, rows, ...), gradients dr/dnoise, and the samples.

    rows    which rows of the run the noise belongs to; None is all
    """
    rows = torch.arange(noise.shape[1], device=noise.device) if rows is None else rows
    with run.borrowed(), lent(networks_in(reward)):
        states: list[State] = [(run.model.process.prior(noise[0], run.moves[0].t),)]
        for index in range(len(run.moves)):
            states.append(_moved(run, index, states[-1], noise[index + 1], rows))
        rewards, adjoint = _rewarded(run, states[-1][0], reward, rows)
        found, grads = states[-1][0], [torch.zeros_like(z) for z in noise]
        back: State = (adjoint, *[torch.zeros_like(d) for d in states[-1][1:]])
        states.pop()
        for index in reversed(range(len(run.moves))):
            back, grads[index + 1] = _pulled(run, index, states.pop(), noise[index + 1], rows, back)
    grads[0] = back[0] * run.model.process.prior(torch.ones_like(noise[0]), run.moves[0].t)
    lost = rewards.isnan().view(1, -1, *[1] * (noise.dim() - 2))
    return rewards, torch.stack(grads).masked_fill(lost, 0.0), found


def _moved(run: Run, index: int, state: State, noise: Tensor, rows: Tensor) -> State:
    """One move of the run: x_s and the predictions that the next one needs."""
    x, history = state[0], state[1:]
    pop = replace(run.born(rows), x=x, predictions=history)
    view, _ = tilted(run.view(pop, index), run.acts[index], pop.memos, run.steered)
    assert view.prediction is not None
    predictions = (view.prediction, *history)[: run.order]
    kernel = run.model.process.kernel(x, predictions, run.moves[index])
    moved = kernel.push(noise.clone() if kernel.random else None)
    return moved, *kernel.history[: run.order - 1]


def _pulled(run: Run, index: int, state: State, noise: Tensor, rows: Tensor, back: State) -> tuple[State, Tensor]:
    """Backpropagate through one move: the gradients of its state and its noise, given those of its outcome."""
    with torch.enable_grad():
        inputs = [v.detach().requires_grad_() for v in (*state, noise)]
        out = _moved(run, index, tuple(inputs[:-1]), inputs[-1], rows)
        pairs = [(o, b) for o, b in zip(out, back, strict=True) if o.requires_grad]
        outputs, weights = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, inputs, weights, allow_unused=True)
    grads = [torch.zeros_like(v) if g is None else g for v, g in zip(inputs, found, strict=True)]
    return tuple(grads[:-1]), grads[-1]


def _rewarded(run: Run, x: Tensor, reward: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards (NaN for samples that could not be scored) and their gradient with respect to x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        group = rows // run.n
        scores = run.score(reward, run.pasted(run.model.decode(x), group), group)
        run.score.settle()
        if not scores.requires_grad:
            raise ValueError(
                f"no gradient of reward {as_reward(reward).name!r} reaches the samples: numpy, .item() or detach() on "
                "the way; take a differentiable one, or a search that needs no gradients, like gk.search.zero_order"
            )
        (grad,) = torch.autograd.grad(scores[scores.isfinite()].sum(), x)
    return scores.detach(), grad


def _check(search: Search) -> None:
    """Checks before the first network call."""
    if not isinstance(search.model.process, Gaussian):
        raise ValueError("gradient search needs a Gaussian process: no gradient passes through a draw of tokens")
    if len(search.verifier.rewards) > 1:
        raise ValueError("gradient search climbs one reward, and ranks have no gradient; add the rewards up instead")
    if as_reward(search.verifier.rewards[0]).differentiable is False:
        raise ValueError(
            f"reward {as_reward(search.verifier.rewards[0]).name!r} says that it is not differentiable; take "
            "gk.search.zero_order, evolution or random"
        )
    for guide in search.run.guides:
        if guide.grad is True or any(map(guide.has, ("log_weight", "begin", "condition"))):
            raise ValueError(f"guides holds {type(guide).__name__}, through which gradient search does not go")


def _resumed(search: Search) -> tuple[Tensor, Tensor]:
    """The state of the ascent: the plain sampler's noise, or the state saved in the folder."""
    z = search.space.draw([0])[:, 0]
    done = len(search.record.rounds)
    if not done:
        return z, torch.zeros_like(z.double().flatten(1))
    kept, rounds = search.record.kept(f"state{done % 2}")
    kept = {name: v.to(z.device) for name, v in kept.items()}
    search.best.z, search.best.x, search.best.worth = (kept[name] for name in ("best_z", "best_x", "best_worth"))
    search.best.seen = torch.ones_like(search.best.worth, dtype=torch.bool)
    search.rounds = rounds
    search.resume(search.record.rounds[-1].cost)
    return kept["z"], kept["v"]


def _book(search: Search, z: Tensor, rewards: Tensor, x: Tensor, following: Tensor, v: Tensor) -> None:
    """Save the state from which the next round begins, beside that of the round before, and then record this round."""
    if not bool(rewards.isfinite().any()) and search.best.worth is None:
        raise RewardError(f"reward {as_reward(search.verifier.rewards[0]).name!r} scored none of the samples")

    def keep(best: Any, rounds: Sequence[Any]) -> None:
        tensors = {"z": following, "v": v, "best_z": best.z, "best_x": best.x, "best_worth": best.worth}
        search.record.keep(f"state{len(rounds) % 2}", tensors, rounds)

    search.told(z[:, None], rewards[:, None, None], x[:, None], before=keep)
