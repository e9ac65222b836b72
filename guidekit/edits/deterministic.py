r"""Inversion of deterministic first-order samplers: DDIM inversion, fixed points, and their average.

A move of DDIM goes from x_t to x_s = a x_t + b d(x_t), with the clean mean d at x_t. Its inverse is the x_t with

    r(x_t) = a x_t + b d(x_t) - x_s = 0.

    ddim          one step up the same equation with the prediction at x_s: with z = (x_s - alpha_s d(x_s)) / sigma_s,
                  x_t = alpha_t d(x_s) + sigma_t z (Song et al., 2020, https://arxiv.org/abs/2010.02502; Dhariwal and
                  Nichol, 2021, https://arxiv.org/abs/2105.05233). At s = 0 the prediction is that at alpha_t x_0
    fixed_point   from there x_t <- x_t - k r(x_t), one evaluation each (Pan et al., 2023,
                  https://arxiv.org/abs/2309.04907; Meiri et al., 2023, https://arxiv.org/abs/2312.12540)
    renoise       the mean of the last half of these iterates (ReNoise: Garibi et al., 2024,
                  https://arxiv.org/abs/2403.14602, without its terms that make noise look Gaussian)

k = alpha_t / alpha_s is the published iteration, which puts the new prediction of the noise in; k = 1/a puts that of
the clean mean in, and is what converges where alpha_t is close to 0. With q = alpha_t^2 / (alpha_t^2 + sigma_t^2) and
rho = a alpha_t / alpha_s, errors shrink by (1 - rho)(1 - q) and by (1/rho - 1) q on standard normal data; the smaller
is taken. fixed_point goes on from the iterate with the smallest |r| in its second half, with half of k where |r| grew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers import Move, Point
from ..solvers.ddim import posterior
from .walk import Walk


def check(walk: Walk) -> None:
    """The moves are those of a deterministic sampler with one evaluation and no memory."""
    if any(move.c > 0 or len(move.b) != 1 for move in walk.moves):
        raise ValueError(
            f"solver={walk.run.solver!r}: inversion by moves needs a deterministic solver without memory, "
            "gk.solvers.DDIM() or Euler(). For BELM() there is method='reversible', for any deterministic solver "
            "gk.search.flowopt, and for stochastic ones method='chain'"
        )
    walk.check_no_memory()


def start(walk: Walk, x: Tensor, iterations: int, average: bool) -> Tensor:
    """The state at the first time from which the sampler comes to x."""
    for index in reversed(range(len(walk.moves))):
        x = up(walk, x, index, iterations, average)
    return x


def up(walk: Walk, x: Tensor, index: int, iterations: int, average: bool) -> Tensor:
    """The state from which a move of DDIM comes to x."""
    move, scales = _single(walk, index), walk.run.model.process.scales
    (alpha, sigma), (alpha_s, sigma_s) = scales(move.t), scales(move.s)
    if sigma_s > 0:
        d = walk.prediction(x, index + 1)
        guess = alpha * d + sigma * (x - alpha_s * d) / sigma_s
    else:
        guess = alpha * (2 * x - walk.prediction(alpha * x, index))
    return solved(walk, guess, x, index, iterations, average)


def solved(walk: Walk, guess: Tensor, x: Tensor, index: int, iterations: int, average: bool = False) -> Tensor:
    """A better solution of r = 0 than this guess, by so many evaluations."""
    move = _single(walk, index)
    k = _rate(walk, move)
    state, best, rate = guess, (guess, guess), guess.new_full((len(x),), k)
    least = guess.new_full((len(x),), torch.inf, dtype=torch.float64)
    late: list[Tensor] = []
    for i in range(iterations):
        r = move.a * state + sum(move.b) * walk.prediction(state, index) - x
        error = r.flatten(1).double().norm(dim=1)
        better = error < least
        best = tuple(torch.where(_rows(better, x), new, old) for new, old in zip((state, r), best, strict=True))
        least = torch.minimum(error, least)
        if average or 2 * i + 2 < iterations:
            state = state - k * r
        else:
            rate = torch.where(better, rate, rate / 2)
            state = best[0] - _rows(rate, x) * best[1]
        late += [state] if 2 * i >= iterations else []
    return torch.stack(late).mean(0) if average and late else state


def _single(walk: Walk, index: int) -> Move:
    """The move, or that of DDIM where it takes more than the newest prediction."""
    move, scales = walk.moves[index], walk.run.model.process.scales
    return move if len(move.b) == 1 else posterior(*(Point(v, *scales(v)) for v in move[:2]), eta=0.0)


def _rate(walk: Walk, move: Move) -> float:
    """k."""
    (alpha, sigma), (alpha_s, _) = map(walk.run.model.process.scales, (move.t, move.s))
    q, rho = alpha**2 / (alpha**2 + sigma**2), move.a * alpha / alpha_s
    by_noise = move.a == 0 or (rho > 0 and (1 - rho) * (1 - q) < (1 / rho - 1) * q)
    return alpha / alpha_s if by_noise else 1 / move.a


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
