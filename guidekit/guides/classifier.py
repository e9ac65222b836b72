r"""Guidance by a classifier p(y | x_t): with its gradient, without, and against it.

**ClassifierGuidance** (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233, changes the score by w times that
of the label, here on the clean mean d = E[x_0 | x_t]:

    d <- d + w (sigma_t^2/alpha_t) grad_x log p(y | x_t).

With the exact classifier of noisy states and w = 1 that is E[x_0 | x_t, y]. A classifier that was trained on clean
samples alone knows nothing of x_t, and its gradient there means little: train it on noised ones, or give the clean one
as a reward, `gk.DPS(lambda x: log p(y | x))`. The paper shifts the mean of a move by its variance times w grad log p;
for small steps that is the same. Where alpha_t < 0.001 nothing is added.

**GFCG**, gradient-free classifier guidance (Shenoy et al., 2024), https://arxiv.org/abs/2411.15393, guides a
conditional model away from the class with which its sample is most confused, the more so the less sure a classifier is.
The paper takes that class and the strength from the classifier's output at every step; its formula for the strength was
not at hand. What follows is derived here. Scores sum to zero under p(k | x_t), so for the exact classifier

    (sigma_t^2/alpha_t) grad_x log p(c | x_t) = sum_{k != c} p(k | x_t) (d_c - d_k),       d_k = E[x_0 | x_t, k],

a gradient without gradients. GFCG keeps the most probable wrong classes and gives them the weight of all of these:

    d <- d + w sum_j q_j (d - d_j),      q_j ~ p(j | x_t),      sum_j q_j = 1 - p(c | x_t).

With two classes, or with references = all others, that is ClassifierGuidance on the conditional model. For tokens, with
log-probabilities for d, it is the same rule without that identity.

**AdvDiff** (Dai, Liang and Xiao, 2023), https://arxiv.org/abs/2307.12499: samples that a classifier f gets wrong. The
paper moves each x_s just drawn by sigma_t^2 w grad log f(y_a | x_s), y_a being the wrong class. Here that is taken at
x_t and as a change of the score, d <- d + w (sigma_t^2/alpha_t) grad_x log f(y_a | x_t): the same for small steps, and
for any solver. As in the authors' code it acts in the last fifth of the run, and where no y_a is given it is the most
probable wrong class of each row. `AdvDiff.restart` is the paper's noise sampling guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import NetworkError, RewardError
from ..models.base import Cond, Condition, Encoded, Model, borrowed, rows_of, stack
from ..population import Population
from ..process import Gaussian
from ..result import Result
from ..schedules import Cosine
from ..view import Step, View
from .base import Guide, Scale, at
from .twist import gradient

Classifier = Callable[[Tensor, Tensor], Tensor]  # (x_t, t of each row) -> logits (rows, classes), or log p (rows,)
Label = int | Sequence[int] | None


class Labelled(Guide):
    """A guide with a classifier and a label; a dataclass with these fields.

    classifier   (x_t, t with one entry per row) -> logits or log-probabilities (rows, classes), or, without a label,
                 log p(y | x_t) itself, (rows,)
    label        a class, or a list with one for each condition
    """

    classifier: Classifier
    label: Label

    @property
    def models(self) -> tuple[Model, ...]:
        return (_held(self.classifier),)

    def check(self, model: Model, steps: int) -> None:
        name, label = type(self).__name__, self.label
        if not callable(self.classifier):
            raise TypeError(f"{name}(classifier) is a function of (x_t, t), not {type(self.classifier).__name__}")
        listed = [label] if isinstance(label, int) else [] if label is None else list(label)
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in listed):
            raise ValueError(f"{name}(label={label!r}): a class counted from 0, or a list with one for each condition")

    def begin(self, model: Model, population: Population, noise: Tensor, step: Step) -> Tensor:
        if not isinstance(self.label, int | None) and len(self.label) != len(step.keys):
            name = type(self).__name__
            raise ValueError(f"{name} has {len(self.label)} labels for {len(step.keys)} conditions: one for each")
        return population.x

    def log_probs(self, x: Any, t: float) -> Tensor:
        """log p(y | x_t) of all classes, (rows, classes), or of the one that the classifier stands for, (rows,)."""
        dtype, device = _held(self.classifier).net_dtype, x.device if isinstance(x, Tensor) else "cpu"
        if isinstance(x, Tensor) and x.is_floating_point():
            x = x.to(dtype or x.dtype)
            dtype = x.dtype
        out = self.classifier(x, torch.full((len(x),), t, dtype=dtype or torch.get_default_dtype(), device=device))
        if not isinstance(out, Tensor) or out.dim() not in (1, 2) or len(out) != len(x):
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise NetworkError(
                f"the classifier returned {given} for {len(x)} rows: (rows, classes) or (rows,) is needed"
            )
        return out.double() if out.dim() == 1 else out.double().log_softmax(1)

    def labels(self, group: Tensor, classes: int) -> Tensor:
        """The class of the rows of these groups."""
        label = self.label
        if label is None or max([label] if isinstance(label, int) else label) >= classes:
            raise ValueError(
                f"{type(self).__name__}(label={label}): the classifier has {classes} classes, counted from 0; give "
                "one, or a list with one for each condition"
            )
        return torch.full_like(group, label) if isinstance(label, int) else torch.tensor(label).to(group)[group]

    def own(self, log_p: Tensor, group: Tensor) -> Tensor:
        """log p of the rows' labels, (rows,)."""
        if log_p.dim() == 2:
            return log_p.gather(1, self.labels(group, log_p.shape[1])[:, None])[:, 0]
        if self.label is not None:
            raise ValueError(f"label={self.label!r} is one of many, and the classifier returned one number for a row")
        return log_p


@dataclass(frozen=True)
class ClassifierGuidance(Labelled):
    """Guidance by the gradient of a classifier of noisy states. No network rows; one pass of the classifier and back.

    scale   w, a number or a function of t: 1 samples given the label, 0 does nothing

    >>> import torch, guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-2.0, 2.0], [0.5, 0.5])
    >>> right = ClassifierGuidance(lambda x, t: base.responsibilities(x, float(t[0])).log(), label=1)
    >>> bool((gk.sample(base, 50, steps=50, guides=[right]).x > 0).all())
    True
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        _check_gaussian(self, model, "gk.DCBG(classifier)")

    def tilt(self, view: View) -> Tensor | float:
        return _climbed(self, view, lambda x: self.own(self.log_probs(x, view.t), view.group))


@dataclass(frozen=True, eq=False)
class GFCG(Labelled):
    """Gradient-free classifier guidance of a conditional model. In each step `references` further network rows a
    particle, in a forward of their own, and one pass of the classifier.

    scale        w, a number or a function of t
    label        the class that the condition stands for, or a list with one for each condition
    conditions   the condition of each class, as for gk.sample; None where they are 0, 1, 2...
    references   how many of the most probable wrong classes to guide away from
    clean        the classifier sees the decoded clean estimate in place of x_t, as one that knows no noise must
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None
    conditions: Sequence[Condition] | None = None
    references: int = 1
    clean: bool = False

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        if isinstance(self.references, bool) or not isinstance(self.references, int) or self.references < 1:
            raise ValueError(f"GFCG(references={self.references!r}): at least one wrong class to guide away from")

    def tilt(self, view: View) -> Tensor | float:
        scale = at(self.scale, view.t)
        if scale == 0:
            return 0.0
        log_p = self.log_probs(view.samples if self.clean else view.x, view.t)
        classes = log_p.shape[1] if log_p.dim() == 2 else 1
        if self.references >= classes:
            raise ValueError(
                f"GFCG(references={self.references}): the classifier has {classes} classes, one of them right"
            )
        own = self.labels(view.group, classes)[:, None]
        best = log_p.scatter(1, own, -torch.inf).topk(self.references)
        doubt = -torch.expm1(log_p.gather(1, own).clamp(max=0.0))  # 1 - p(c | x_t)
        weights = scale * doubt * best.values.softmax(1)
        encoded = self._encoded(view.model, classes)
        needs = tuple(_Given(rows_of(encoded, best.indices[:, j])) for j in range(self.references))
        others = view.evaluate(view.x, view.t, needs)
        return sum(view.rows(weights[:, j]) * (view.evals[Cond()] - others[need]) for j, need in enumerate(needs))

    def _encoded(self, model: Model, classes: int) -> Encoded:
        """The encoded conditions of all classes, made once."""
        conditions = range(classes) if self.conditions is None else self.conditions
        if len(conditions) != classes:
            raise ValueError(
                f"GFCG has {len(conditions)} conditions for {classes} classes of the classifier: one for each"
            )
        known = _encodings.get(self)
        if known is None or known[0] is not model:
            known = _encodings[self] = model, stack([model.encode(c) for c in conditions])
        return known[1]


@dataclass(frozen=True)
class AdvDiff(Labelled):
    """Adversarial guidance towards a class that is wrong. No network rows; one pass of the classifier and back.

    target   the class aimed at; None: of each row the most probable one besides its label
    label    the true class, or a list with one for each condition; needed where there is no target
    scale    w, a number or a function of t; what samples truly are is kept by the condition and by gk.CFG
    """

    classifier: Classifier
    scale: Scale = 1.0
    target: int | None = None
    label: Label = None
    _: KW_ONLY
    start: float = 0.8

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        _check_gaussian(self, model, "gk.DCBG(classifier, label=target)")

    def tilt(self, view: View) -> Tensor | float:
        return _climbed(self, view, lambda x: self._wrong(x, view.t, view.group))

    def _wrong(self, x: Tensor, t: float, group: Tensor) -> Tensor:
        """log f(y_a | x_t) of each row."""
        log_p = self.log_probs(x, t)
        classes = log_p.shape[1] if log_p.dim() == 2 else 1
        if classes < 2 or not 0 <= (self.target or 0) < classes:
            raise ValueError(f"AdvDiff(target={self.target}): the classifier has {classes} classes, counted from 0")
        if self.target is not None:
            return log_p[:, self.target]
        return log_p.scatter(1, self.labels(group, classes)[:, None], -torch.inf).amax(1)

    def restart(self, model: Model, result: Result, strength: float = 1.0) -> Tensor:
        """`noise=` for another run: x_T + strength sigma_T^2 grad log f(y_a | x_0), at the samples of the last one."""
        if result.noise is None:
            raise ValueError("AdvDiff.restart moves the starting noise of a result, and this one has none")
        with borrowed(self.models):
            slope = _slope(lambda x: self._wrong(x, 0.0, result.group), result.x)
        return result.noise + strength * model.process.scales(model.process.t_max)[1] * slope


@dataclass(frozen=True, eq=False)
class _Given(Cond):
    """The model at an encoded condition of each row's own; no two are equal."""

    encoded: Encoded

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def cond(self, model: Model, cond: Encoded) -> Encoded:
        return self.encoded


_encodings: WeakKeyDictionary[GFCG, tuple[Model, Encoded]] = WeakKeyDictionary()  # an encoder may be large


def _climbed(guide: Any, view: View, value: Callable[[Tensor], Tensor]) -> Tensor | float:
    """scale (sigma_t^2/alpha_t) grad_x value."""
    (alpha, sigma), scale = view.model.process.scales(view.t), at(guide.scale, view.t)
    if scale == 0 or alpha < 1e-3:
        return 0.0
    return scale * sigma**2 / alpha * _slope(value, view.x)


def _slope(value: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """grad_x of each row's value, apart from any graph of the network's."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        found = value(x)
        if not found.requires_grad:
            raise RewardError("no gradient reaches x_t: the classifier cuts it (numpy, detach(), torch.no_grad())")
        return gradient(found, x).detach()


def _held(f: Any) -> Model:
    """A function as a model, so that a run leaves its networks as it found them."""
    return Model(f if callable(f) else len, Gaussian(Cosine()), ())


def _check_gaussian(guide: Guide, model: Model, instead: str) -> None:
    if not isinstance(model.process, Gaussian):
        raise ValueError(f"{type(guide).__name__} takes gradients in x, and tokens have none: use {instead} with them")
