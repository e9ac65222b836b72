r"""Where to measure next: active diffusion subsampling, ADS (Nolan et al., 2024), https://arxiv.org/abs/2406.14388.

Posterior samples x_i with weights w_i, given what has been measured, predict what each candidate A_a would measure. The
most is learnt where that is the least certain: with noise of one size everywhere, y_a brings as much information about
x as its entropy exceeds that of the noise. The predictions are a mixture of Gaussians around the samples, of which

    entropy     -sum_i w_i log sum_j w_j exp(-|A_a(x_i - x_j)|^2/(2 noise^2))
    variance    the mean variance of the entries of A_a x under the weights

the first bounds that information from above (Kolchinsky and Tracey, 2017, https://arxiv.org/abs/1706.02419), and at
most log n can show. For a Gaussian posterior both choose the same among single numbers, that of the largest variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.result import Result
from ..engine.sample import sample
from ..errors import is_count
from ..guides import Guide
from ..measurements import Mask, Measurement
from ..models import Model

CRITERIA = ("entropy", "variance")


@dataclass(frozen=True)
class Active:
    """What `active` found.

    result        posterior samples given all measurements
    measurement   all of them together
    chosen        the candidates in the order in which they were measured
    information   of every candidate, at each choice, (budget, candidates); -inf where it was measured before
    """

    result: Result
    measurement: Measurement
    chosen: list[int]
    information: Tensor


def active(
    model: Model,
    measure: Callable[[int], Any],
    candidates: Any,
    guides: Callable[[Measurement], Sequence[Guide]],
    n: int,
    *,
    budget: int,
    noise: float = 0.05,
    criterion: str = "entropy",
    seed: int = 0,
    **options: Any,
) -> Active:
    """Measure parts of one sample, each where the samples so far know the least, and sample what they leave open.

    measure     the number of a candidate -> what is measured there: an array of the shape of a sample, of which only
                the entries of the candidate are read
    candidates  masks, bool (candidates, *shape of a sample), like lines of k-space or single pixels
    guides      a function of the measurement so far that returns the list of guides
    n           samples that decide each choice
    budget      candidates that are measured
    noise       standard deviation of the measured entries
    criterion   "entropy" or "variance"
    options     steps, cond, solver and batch_size, as in `gk.sample`

    Samples are tensors. One run for each choice, and one at the end.

    >>> import torch, guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [[-2.0, 0.1], [2.0, -0.1]], [0.3, 0.3])
    >>> truth = torch.tensor([2.1, 0.0])
    >>> found = active(base, lambda a: truth, torch.eye(2).bool(), lambda m: [gk.PiGDM(m)], 50, budget=1, steps=20)
    >>> found.chosen
    [0]
    """
    masks = torch.as_tensor(candidates)
    if masks.dtype != torch.bool or masks.dim() < 2 or not bool(masks.flatten(1).any(1).all()):
        raise ValueError(
            f"candidates {tuple(masks.shape)} of {masks.dtype}: boolean masks (candidates, *shape of a sample) are "
            "needed, each with some True"
        )
    if not is_count(budget) or budget > len(masks):
        raise ValueError(f"budget={budget!r}: an int from 1 to {len(masks)}, the number of candidates")
    y, told = torch.zeros(masks.shape[1:]), torch.zeros(masks.shape[1:], dtype=torch.bool)
    chosen, listed, own = list[int](), list[Tensor](), list[Guide]()
    measurement = None
    for number in range(budget):
        result = sample(model, n, guides=own, seed=seed + number, **options)
        gain = information(result, masks, noise, criterion)
        gain[chosen] = -torch.inf
        chosen.append(int(gain.argmax()))
        listed.append(gain)
        mask = masks[chosen[-1]]
        y, told = torch.where(mask & ~told, torch.as_tensor(measure(chosen[-1])).to(y), y), told | mask
        measurement = Measurement(Mask(told), y, noise)
        own = list(guides(measurement))
    assert measurement is not None
    last = sample(model, n, guides=own, seed=seed + budget, **options)
    return Active(last, measurement, chosen, torch.stack(listed))


def information(result: Result, candidates: Any, noise: float, criterion: str = "entropy") -> Tensor:
    """How uncertain the outcome of each candidate is under the weighted samples, float64 (candidates,).

    candidates  masks, bool (candidates, *shape of a sample), or functions of a batch of samples, like the operators of
                `gk.measurements`
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r}: there is {', '.join(CRITERIA)}")
    if not noise > 0:
        raise ValueError(f"noise={noise!r}: a standard deviation above 0, in whose units outcomes are told apart")
    if not isinstance(result.samples, Tensor) or result.groups > 1:
        raise ValueError("where to measure next is asked of samples of one condition that are tensors")
    x, w = result.samples.cpu().double(), result.weights.cpu()
    if isinstance(candidates, Tensor):
        if candidates.shape[1:] != x.shape[1:]:
            raise ValueError(f"candidates are masks of {tuple(candidates.shape[1:])}, and samples {tuple(x.shape[1:])}")
        outcomes = [x[:, mask] for mask in candidates.cpu()]
    else:
        outcomes = [operator(x).flatten(1) for operator in candidates]
    of = _entropy if criterion == "entropy" else _variance
    return torch.stack([of(u, w, noise) for u in outcomes])


def _entropy(u: Tensor, w: Tensor, noise: float) -> Tensor:
    far = torch.cdist(u, u).square() / (2 * noise**2)
    return -(w * (w.log() - far).logsumexp(1)).sum()


def _variance(u: Tensor, w: Tensor, noise: float) -> Tensor:
    return (w @ (u - w @ u).square()).mean()
