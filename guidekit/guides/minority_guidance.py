r"""Minority guidance (Um, Lee and Ye, 2023), https://arxiv.org/abs/2301.12334: guidance towards a quantile of the
minority score,

    d <- d + w (sigma_t^2/alpha_t) grad_x log p(bin | x_t),

by a classifier that was trained on noised samples labelled with the quantiles of their scores (`gk.minority_score`,
`gk.quantile_labels`). The paper has 100 bins and shifts the mean of each move by its variance times w grad log p, with
w = 3.5; for small steps that is the change of the score above. The classifier does not see the condition of the run.

The minority score measures how rare a sample is,

    ms(x_0) = E_z |x_0 - d(alpha_t x_0 + sigma_t z)|^2.

Denoising moves a sample towards regions of high density, so a rare sample is not reconstructed well. The paper uses t
at 0.6 of the steps, five noises, and LPIPS as the distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rewards import Reward

from .. import random
from ..engine.card import Paper
from ..engine.guide import Scale
from ..engine.view import View
from ..errors import NetworkError
from ..models.base import Condition, Model, stack
from ..models.evaluations import rows_of
from ..models.networks import lent, networks_in
from ..process import Gaussian
from .shared.labelled import Classifier, Labelled, climbed


@dataclass(frozen=True)
class MinorityGuidance(Labelled):
    """Guidance towards a quantile of the minority score, by a classifier. No extra NFE; a forward and a backward pass
    of the classifier per step.

    classifier   (x_t, t with one entry per row) -> logits (rows, bins), which torch can differentiate
    scale        w, a number or a function of t: 1 samples given the bin (for small steps), 0 does nothing
    bin          the quantile to aim at; the last one is the rarest
    """

    classifier: Classifier
    scale: Scale
    bin: int = -1

    label = None

    card = replace(
        Labelled.card,
        about="guides towards rare samples, by a classifier of rarity",
        section="Rare samples",
        refusal="takes gradients in x, and tokens have none: use gk.DCBG(classifier, label=bin) with them",
        exact="p given the quantile, for the exact classifier and small steps",
        paper=Paper(
            "um2023minority",
            "Um, Soobin and Lee, Suhyeon and Ye, Jong Chul",
            "Don't Play Favorites: Minority Guidance for Diffusion Models",
            2023,
            "2301.12334",
        ),
        example="gk.MinorityGuidance(quantile, 1.0)",
    )

    def tilt(self, view: View) -> Tensor | float:
        return climbed(self, view, lambda x: self._of_bin(self.log_probs(x, view.t)))

    def _of_bin(self, log_p: Tensor) -> Tensor:
        if log_p.dim() != 2 or not -log_p.shape[1] <= self.bin < log_p.shape[1]:
            raise NetworkError(
                f"the classifier returned {tuple(log_p.shape)}; logits of shape (rows, bins), with bin {self.bin}, are "
                "needed"
            )
        return log_p[:, self.bin]


# the score -------------------------------------------------------------------------------------------------------

Distance = Callable[[Tensor, Tensor], Tensor]  # (rows, *shape) twice -> (rows,)


@dataclass(frozen=True)
class FeatureDistance:
    """|f(a) - f(b)|^2 of each row, in the features f of a network: a tensor, or a list of tensors, rows first."""

    network: Callable[[Tensor], Any]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = (v if isinstance(v, Sequence) else (v,) for v in (self.network(a), self.network(b)))
        return torch.stack([_squared(v, w) for v, w in zip(*pairs, strict=True)]).sum(0)


def minority_score(
    model: Model,
    x: Tensor,
    *,
    t: float = 0.6,
    noises: int = 6,
    distance: Distance | None = None,
    cond: Condition = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """The minority score of each of the states x (rows, *shape): float64 (rows,), the higher the rarer. `noises`
    network evaluations per row.

    t          the time to which x is noised; the score ranks most like -log p at an intermediate t and within one mode
    noises     the number of noises to average over. They are the same for every row, so that the score is a function of
               x alone, and come in antithetic pairs, so that for a Gaussian it ranks exactly as -log p
    distance   (x, reconstruction) -> (rows,); None: the squared distance. See `FeatureDistance`
    cond       one condition for all rows

    >>> import torch, guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.9, 0.1], [[0.0, 0.0], [3.0, 2.0]], [1.0, 0.5])
    >>> common, rare = minority_score(base, torch.tensor([[0.2, 0.1], [3.0, 2.0]]))
    >>> bool(rare > common)
    True
    """
    _check_score(model, t, noises)
    if tuple(x.shape[1:]) != model.shape:
        raise ValueError(f"minority_score takes states of shape {('rows', *model.shape)}, not {tuple(x.shape)}")
    process, encoded = model.process, stack([model.encode(cond)])
    keys = random.fold(random.key(seed, x.device), torch.arange((noises + 1) // 2, device=x.device))
    z = process.noise(keys, process.noise_shape(model.shape), model.dtype)
    z = torch.cat([z, -z])[:noises]

    def score(part: Tensor) -> Tensor:
        many = part.repeat_interleave(noises, 0)
        noisy = process.noised(many, z.repeat(len(part), *[1] * (z.dim() - 1)), t)
        clean = model(noisy, t, rows_of(encoded, torch.zeros(len(many), dtype=torch.long, device=x.device)))
        return measured(distance, many, clean).double().view(-1, noises).mean(1)

    rows = len(x) if batch_size is None else max(1, batch_size // noises)
    with lent([*model.modules(), *networks_in(distance)]), torch.set_grad_enabled(x.requires_grad):
        return torch.cat([score(part) for part in x.split(max(rows, 1))])


@dataclass(frozen=True, eq=False, repr=False)
class MinorityScore(Reward):
    """The minority score of samples as a reward. Options are those of `minority_score`.

    encode   samples -> states of the model; required if the model decodes its samples

    Its network evaluations belong to the reward: they are not counted in the cost of the run.
    """

    model: Model
    _: KW_ONLY
    t: float = 0.6
    noises: int = 6
    distance: Distance | None = None
    cond: Condition = None
    seed: int = 0
    batch_size: int | None = None
    encode: Callable[[Any], Tensor] | None = None

    name = "minority score"
    differentiable = True

    def __post_init__(self) -> None:
        _check_score(self.model, self.t, self.noises)
        if self.encode is None and self.model.decodes:
            raise ValueError("MinorityScore: the model decodes its samples; give encode=, which makes states of them")

    def score(self, samples: Any) -> Tensor:
        x = torch.as_tensor(samples if self.encode is None else self.encode(samples))
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("model", "encode")}
        return minority_score(self.model, x.to(self.model.device, self.model.dtype), **options)


def quantile_labels(scores: Any, bins: int = 100) -> Tensor:
    """The quantile of each score, from 0 to bins - 1 (the rarest): labels for the classifier of `MinorityGuidance`.

    Equal scores get equal labels.

    >>> quantile_labels([0.3, 9.0, 0.1, 0.2], bins=2).tolist()
    [1, 1, 0, 0]
    """
    scores = torch.as_tensor(scores)
    if scores.dim() != 1 or not 1 <= bins <= len(scores) or scores.isnan().any():
        raise ValueError(
            f"quantile_labels(scores of shape {tuple(scores.shape)}, bins={bins}): one number for each sample, no "
            "NaN, and at least as many as bins"
        )
    return torch.searchsorted(scores.sort().values, scores) * bins // len(scores)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).reshape(len(a), -1).square().sum(1)


def measured(distance: Distance | None, a: Tensor, b: Tensor) -> Tensor:
    """The distance of each row, (rows,); None is the squared distance."""
    value = (distance or _squared)(a, b)
    if tuple(value.shape) != (len(a),):
        raise ValueError(f"the distance returned {tuple(value.shape)} for {len(a)} rows; it needs one number for each")
    return value


def _check_score(model: Model, t: float, noises: int) -> None:
    if not isinstance(model, Model) or not isinstance(model.process, Gaussian):
        raise ValueError("the minority score is that of a base model with a Gaussian process: it compares clean means")
    if not 0 < t <= model.process.t_max or noises < 1:
        raise ValueError(f"minority_score(t={t}, noises={noises}): t in (0, {model.process.t_max}], at least 1")
