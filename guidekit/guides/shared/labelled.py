r"""Shared by guides with a classifier of noisy states: its label, log p(y | x_t), and the step along its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...engine.card import Card
from ...engine.guide import Guide, at, numbers
from ...engine.view import View
from ...errors import NetworkError, RewardError
from ...models.base import Model
from ...models.networks import kind_of, networks_in
from ...process import Gaussian
from .twist import gradient

Classifier = Callable[[Tensor, Tensor], Tensor]  # (x_t, t of each row) -> logits (rows, classes), or log p (rows,)
Label = int | Sequence[int] | None


class Labelled(Guide):
    """A guide with a classifier and a label: a dataclass with these fields.

    classifier   (x_t, t with one entry per row) -> logits or log-probabilities (rows, classes), or, without a label,
                 log p(y | x_t) itself, (rows,)
    label        the class to guide towards, or a list with one for each condition of the run
    """

    classifier: Classifier
    label: Label

    card = Card(
        section="Guidance by classifiers",
        processes=(Gaussian,),
        refusal="takes gradients in x, and tokens have none: use gk.DCBG(classifier) with them",
        changes="target",
    )

    def check(self, model: Model, steps: int) -> None:
        name, label = type(self).__name__, self.label
        if not callable(self.classifier):
            raise TypeError(f"{name}(classifier) is a function of (x_t, t), not {type(self.classifier).__name__}")
        listed = [label] if isinstance(label, int) else [] if label is None else list(label)
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in listed):
            raise ValueError(f"{name}(label={label!r}): a class counted from 0, or a list with one for each condition")

    def regrouped(self, model: Model, groups: Sequence[int], of: int) -> Guide:
        guide, label = super().regrouped(model, groups, of), self.label
        if label is None or isinstance(label, int) or len(label) != of:
            return guide
        return guide.having(label=[label[g] for g in groups])

    def begin(self, view: View, noise: Tensor) -> Tensor:
        if not isinstance(self.label, int | None) and len(self.label) != len(view.step.keys):
            name = type(self).__name__
            raise ValueError(f"{name} has {len(self.label)} labels for {len(view.step.keys)} conditions: one for each")
        return view.x

    def log_probs(self, x: Any, t: float | Tensor) -> Tensor:
        """log p(y | x_t), float64: of all classes (rows, classes), or of the one that the classifier stands for
        (rows,). t may be a tensor with one time for each row."""
        dtype, device = kind_of(networks_in(self.classifier))[0], x.device if isinstance(x, Tensor) else "cpu"
        if isinstance(x, Tensor) and x.is_floating_point():
            x = x.to(dtype or x.dtype)
            dtype = x.dtype
        like = {"dtype": dtype or torch.get_default_dtype(), "device": device}
        out = self.classifier(x, t.to(**like) if isinstance(t, Tensor) else torch.full((len(x),), t, **like))
        if not isinstance(out, Tensor) or out.dim() not in (1, 2) or len(out) != len(x):
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise NetworkError(
                f"the classifier returned {given} for {len(x)} rows: (rows, classes) or (rows,) is needed"
            )
        return out.double() if out.dim() == 1 else out.double().log_softmax(1)

    def labels(self, group: Tensor, classes: int) -> Tensor:
        """The class of each row, given its group."""
        label = self.label
        if label is None or max([label] if isinstance(label, int) else label) >= classes:
            raise ValueError(
                f"{type(self).__name__}(label={label}): the classifier has {classes} classes, counted from 0; give "
                "one, or a list with one for each condition"
            )
        if isinstance(label, int):
            return torch.full_like(group, label)
        return numbers(label, group.device).to(group)[group]

    def own(self, log_p: Tensor, group: Tensor) -> Tensor:
        """log p(y | x_t) of each row's own label, (rows,)."""
        if log_p.dim() == 2:
            return log_p.gather(1, self.labels(group, log_p.shape[1])[:, None])[:, 0]
        if self.label is not None:
            raise ValueError(f"label={self.label!r} is one of many, and the classifier returned one number for a row")
        return log_p


def climbed(guide: Any, view: View, value: Callable[[Tensor], Tensor]) -> Tensor | float:
    """scale (sigma_t^2/alpha_t) grad_x value: the tilt by which exp(scale value) as a factor of p_t moves the clean
    mean."""
    (alpha, sigma), scale = view.model.process.scales(view.t), at(guide.scale, view.t)
    if scale == 0 or alpha < 1e-3:
        return 0.0
    return scale * sigma**2 / alpha * slope(value, view.x)


def slope(value: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """grad_x of each row's value, in a graph of its own, without the network."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        found = value(x)
        if not found.requires_grad:
            raise RewardError("no gradient reaches x_t: the classifier cuts it (numpy, detach(), torch.no_grad())")
        return gradient(found, x).detach()
