r"""Minority guidance: a score that tells how rare a sample is, and two guides towards rare ones.

Minority score and classifier guidance (Um, Lee and Ye, 2023), https://arxiv.org/abs/2301.12334:

    ms(x_0) = E_z |x_0 - d(alpha_t x_0 + sigma_t z)|^2,      d <- d + w (sigma_t^2/alpha_t) grad_x log p(bin | x_t)

Denoising brings a sample towards where the data are dense, so what is rare comes back changed. The classifier is
trained on noised samples, labelled with the quantiles of their scores. The paper has 100 bins, t at 0.6 of the steps,
five noises, LPIPS for the distance, and shifts the mean of each move by its variance times w grad log p, w = 3.5; as
steps grow that is the change of the score above. The classifier knows no class: the condition stays the model's.

Self-guidance (Um and Ye, 2024), https://arxiv.org/abs/2407.11555, needs none. With tau = 0.8 t_max and sg() constant,

    L = |d(x_t) - sg(d(alpha_tau d(x_t) + sigma_tau z))|^2,      g = grad_{x_t} L / max|grad_{x_t} L| by sample,
    mean of x_s <- mean + c^2 w g,      that is d <- d + c^2 w g / b_0

in every fifth step, c^2 being the variance of the coming move and b_0 its weight of d; so it fades by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rewards import Reward

from .. import random
from ..errors import NetworkError
from ..models.base import Cond, Condition, Model, borrowed, rows_of, stack
from ..process import Gaussian
from ..schedules import Cosine
from ..solvers import Move
from ..view import Step, View
from .base import Guide, Scale, at
from .twist import gradient

Distance = Callable[[Tensor, Tensor], Tensor]  # (rows, *shape) twice -> (rows,)


@dataclass(frozen=True)
class FeatureDistance:
    """|f(a) - f(b)|^2 of each row in the features of a network: f returns a tensor, or a list of them, rows first."""

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
    """ms of each of the states x (rows, *shape): float64 (rows,), the higher the rarer. `noises` network rows each.

    t          time of the noising; the score ranks by -log p best where one mode rules and t is in the middle
    noises     over how many it is the mean: the same for every row, so that the score is a function of x alone, and
               half of them the negatives of the others, so that of one Gaussian it ranks exactly as -log p
    distance   (x, reconstruction) -> (rows,); None is the squared distance; see `FeatureDistance`
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
        return _measured(distance, many, clean).double().view(-1, noises).mean(1)

    rows = len(x) if batch_size is None else max(1, batch_size // noises)
    with borrowed([model, _held(distance)]), torch.set_grad_enabled(x.requires_grad):
        return torch.cat([score(part) for part in x.split(max(rows, 1))])


@dataclass(frozen=True, eq=False, repr=False)
class MinorityScore(Reward):
    """The minority score of samples as a reward, in whatever takes one. Options are those of `minority_score`.

    encode   samples -> states of the model; needed where the model decodes its samples

    Its network rows are not in the run's cost: they belong to the reward.
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
        if self.encode is None and self.model._decode is not None:
            raise ValueError("MinorityScore: the model decodes its samples; give encode=, which makes states of them")

    def score(self, samples: Any) -> Tensor:
        x = torch.as_tensor(samples if self.encode is None else self.encode(samples))
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("model", "encode")}
        return minority_score(self.model, x.to(self.model.device, self.model.dtype), **options)


def quantile_labels(scores: Any, bins: int = 100) -> Tensor:
    """The quantile of each score, from 0 to bins - 1 (the rarest): the labels of the classifier of `MinorityGuidance`.

    Equal scores have equal labels. The cost is that of sorting.

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


@dataclass(frozen=True)
class MinorityGuidance(Guide):
    """Guidance towards a quantile of the minority score, by a classifier. No network rows, one pass of the classifier.

    classifier   (x_t, t with one entry per row) -> logits (rows, bins), which torch can differentiate
    scale        w, a number or a function of t; 1 samples given the bin (as far as steps are fine), 0 does nothing
    bin          the quantile aimed at; the last is the rarest
    """

    classifier: Callable[[Tensor, Tensor], Tensor]
    scale: Scale
    bin: int = -1

    @property
    def models(self) -> tuple[Model, ...]:
        return (_held(self.classifier),)

    def check(self, model: Model, steps: int) -> None:
        _check_gaussian(self, model)
        if not callable(self.classifier):
            given = type(self.classifier).__name__
            raise TypeError(f"MinorityGuidance(classifier) is a function of (x_t, t), not {given}")

    def tilt(self, view: View) -> Tensor | float:
        (alpha, sigma), scale = view.model.process.scales(view.t), at(self.scale, view.t)
        if scale == 0 or alpha < 1e-3:  # next to nothing is left of the data
            return 0.0
        with torch.enable_grad():
            x = view.x.detach().requires_grad_()
            own = x.to(_held(self.classifier).net_dtype or x.dtype)
            logits = self.classifier(own, torch.full((len(x),), view.t, dtype=own.dtype, device=x.device))
            if logits.dim() != 2 or len(logits) != len(x) or not -logits.shape[1] <= self.bin < logits.shape[1]:
                raise NetworkError(
                    f"the classifier returned {tuple(logits.shape)} for {len(x)} rows; logits of shape (rows, bins), "
                    f"with bin {self.bin}, are needed"
                )
            slope = gradient(logits.log_softmax(-1)[:, self.bin], x)
        return scale * sigma**2 / alpha * slope


@dataclass(frozen=True)
class SelfGuidedMinority(Guide):
    """Guidance towards samples that the model does not reconstruct. In each step in which it acts, one further row per
    particle and a backward pass through the network.

    scale      w, a number or a function of t; the paper takes 0.4 (CelebA) and 0.2 (ImageNet)
    tau        time to which the estimate is noised, as a share of t_max
    interval   it acts in every so many steps; the paper takes 5, and 2 for ImageNet
    t_mid      and only at times above this
    distance   (estimate, reconstruction) -> (rows,); None is the squared distance, the paper's is LPIPS

    It acts in moves with noise alone. With a multistep solver the shift also enters the next move, through the history.
    """

    scale: Scale
    tau: float = 0.8
    interval: int = 5
    t_mid: float = 0.0
    distance: Distance | None = None

    grad = True

    @property
    def models(self) -> tuple[Model, ...]:
        return () if self.distance is None else (_held(self.distance),)

    def check(self, model: Model, steps: int) -> None:
        _check_gaussian(self, model)
        if not 0 < self.tau <= 1 or isinstance(self.interval, bool) or self.interval < 1:
            raise ValueError(
                f"SelfGuidedMinority(tau={self.tau}, interval={self.interval}): a share of t_max in (0, 1], and a "
                "whole number of steps"
            )

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        if not any(move.c > 0 for move in moves):
            raise ValueError(
                "SelfGuidedMinority shifts moves by their variance, and these have none: take a stochastic solver, "
                "like DDPM(), DDIM(eta=1.) or SDEDPMpp()"
            )
        return moves

    def active(self, step: Step) -> bool:
        move = step.move
        due = step.index % self.interval == 0 and step.t > self.t_mid and at(self.scale, step.t) != 0
        return due and move is not None and move.c > 0 and move.s < move.t and super().active(step)

    def tilt(self, view: View) -> Tensor:
        move, tau, clean = view.step.move, self.tau * view.model.process.t_max, view.evals[Cond()]
        assert move is not None
        z = random.normal(view.key, view.model.shape, clean.dtype)
        with torch.no_grad():
            again = view.evaluate(view.model.process.noised(clean.detach(), z, tau), tau)[Cond()]
        slope = gradient(_measured(self.distance, clean, again), view.x)
        most = view.rows(slope.flatten(1).abs().amax(1))
        return at(self.scale, view.t) * move.c**2 / move.b[0] * torch.where(most > 0, slope / most, 0.0)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).reshape(len(a), -1).square().sum(1)


def _measured(distance: Distance | None, a: Tensor, b: Tensor) -> Tensor:
    value = (distance or _squared)(a, b)
    if tuple(value.shape) != (len(a),):
        raise ValueError(f"the distance returned {tuple(value.shape)} for {len(a)} rows; it needs one number for each")
    return value


def _held(f: Callable | None) -> Model:
    """A function as a model, so that a run leaves its networks as it found them."""
    return Model(_squared if f is None else f, Gaussian(Cosine()), ())


def _check_gaussian(guide: Any, model: Model) -> None:
    if not isinstance(model.process, Gaussian):
        name = type(guide).__name__
        raise ValueError(f"{name} takes gradients in x, and tokens have none; use it with a Gaussian process")


def _check_score(model: Model, t: float, noises: int) -> None:
    if not isinstance(model, Model) or not isinstance(model.process, Gaussian):
        raise ValueError("the minority score is that of a base model with a Gaussian process: it compares clean means")
    if not 0 < t <= model.process.t_max or noises < 1:
        raise ValueError(f"minority_score(t={t}, noises={noises}): t in (0, {model.process.t_max}], at least 1")
