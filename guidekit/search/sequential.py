r"""Sequential posterior sampling: frames of a sequence, each from the last one (SeqDiff; Stevens et al., 2024),
https://arxiv.org/abs/2409.05399.

The samples of one frame are nearly samples of the next, so that its run need not begin in pure noise:

    x_t = alpha_t f(x_0^(k-1)) + sigma_t z,        t = level,

and goes down from there with the measurement of frame k, in as many steps as the whole run has below that level. f is a
model of how frames follow each other, or leaves the last frame as it is.

How much of the last frame is left is a matter of the level. For one Gaussian with posterior means m_(k-1), m_k and
variance c, the flow ODE ends in the mean

    m_k + (c/(alpha_t^2 c + sigma_t^2))^(1/2) alpha_t (m_(k-1) - m_k),

so a low level saves steps and lags behind, and at level 1 frames know nothing of each other. A heuristic: the law of
frame k given all frames before is not sampled, and weights do not know of the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from ..engine.result import Result
from ..engine.sample import sample
from ..errors import is_count
from ..guides import Guide
from ..guides.start_from import from_level
from ..models import Model


def sequential(
    model: Model,
    frames: Iterable[Any],
    guides: Callable[[Any], Sequence[Guide]],
    n: int,
    *,
    level: float = 0.3,
    steps: int = 50,
    transition: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    **options: Any,
) -> list[Result]:
    """Posterior samples of every frame: the first from pure noise, the others from those of the frame before.

    frames      a measurement of each: a `gk.Measurement`, or a `rewards.ByGroup` of as many as there are conditions
    guides      a function of a frame's measurement that returns the list of guides
    n           samples for each condition
    level       time in (0, 1] up to which the last frame is noised: the faster things move, the higher
    steps       of a run from pure noise; later frames take the share of them that lies below the level
    transition  states of the last frame -> states of this one; None leaves them
    options     cond, solver and batch_size, as in `gk.sample`

    Where samples have weights, they are resampled before the next frame. Rows keep their places from frame to frame.

    >>> import torch, guidekit as gk
    >>> base = gk.analytic.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    >>> seen = [gk.Measurement(torch.tensor([[1.0, 0.0]]), torch.tensor([y]), 0.3) for y in (0.0, 0.2, 0.4)]
    >>> found = sequential(base, seen, lambda m: [gk.PiGDM(m)], 8, level=0.5, steps=20)
    >>> len(found), found[0].cost.network_rows, found[2].cost.network_rows
    (3, 160, 80)
    """
    if not is_count(steps, 1) or not 0 < level <= 1:
        raise ValueError(f"sequential(level={level!r}, steps={steps!r}): a time in (0, 1] and an int of at least 1")
    listed, found = list(frames), list[Result]()
    if not listed:
        raise ValueError("frames is empty: the measurement of one frame at least is needed")
    for number, frame in enumerate(listed):
        given = {"seed": seed + number, **options}
        if not found:
            found.append(sample(model, n, steps=steps, guides=guides(frame), **given))
            continue
        x = _even(found[-1], seed + number).x
        start, times = from_level(
            model, x if transition is None else transition(x), level, max(1, round(level * steps))
        )
        found.append(sample(model, n, steps=times, guides=[start, *guides(frame)], **given))
    return found


def _even(result: Result, seed: int) -> Result:
    """The result with equal weights."""
    weighed = bool((result.log_weights.view(result.groups, -1).std(1, correction=0) > 0).any())
    return result.resample(seed) if weighed else result
