r"""Composition (Liu et al., 2022), https://arxiv.org/abs/2206.01714: products and contrasts of conditions and models.

A product of powers of experts i, each relative to the unconditional model,

    d  <-  w_own d + sum_i w_i d_i + (1 - w_own - sum_i w_i) n,

in the coordinates of the prediction: clean means, which add up as scores do, or log-probabilities of tokens. With
w_own = 1 this adds sum_i w_i (d_i - n), and a negative w_i pushes away from an expert (negation, contrast). n is the
unconditional prediction, or with reliabilities a_i (Unite and Conquer, Nair et al., 2023,
https://arxiv.org/abs/2212.00793) the mean sum_i a_i n_i of the unconditional predictions of all experts' models. If the
weights add up to 1, n cancels: 0.5 and 0.5 is a geometric mean, 1.5 and -0.5 a contrast of two models.

The scores are those of the noised experts, and the product of noised densities is not the noised product. So the
samples follow the product exactly only for Gaussians of one common width. `Compose(...).exact()` samples the product
with importance weights that correct for this; see gk.FKC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import View
from ..models.evaluations import At, Cond, Null, evaluation, listed
from .fkc import Corrector


@dataclass(frozen=True)
class Compose(Guide):
    """The product of the run's condition with experts. One extra NFE for each expert and each unconditional prediction
    with a weight other than 0, in one forward pass per network.

    experts         conditions, base models, or evaluations such as At("a cat", other_model): one or a list
    weights         w_i, one for all or one for each: numbers or functions of t
    own             w_own, the weight of the run's own condition
    reliabilities   a_i of the unconditional predictions, the run's own first, with sum 1. None: only the base model's

    >>> Compose(["a cat", "rain"], [2.0, -1.0]).needs
    (At(condition='a cat', network=None), At(condition='rain', network=None), Null())
    """

    experts: Any
    weights: Scale | Sequence[Scale] = 1.0
    own: Scale = 1.0
    reliabilities: Sequence[float] | None = None

    card = Card(
        "multiplies and contrasts conditions and models",
        section="Composition",
        rows="1 for each expert and null condition",
        exact="the product, for Gaussians of one width; see `exact()`",
        changes="target",
        paper=Paper(
            "liu2022compose",
            "Liu, Nan and Li, Shuang and Du, Yilun and Torralba, Antonio and Tenenbaum, Joshua B.",
            "Compositional Visual Generation with Composable Diffusion Models",
            2022,
            "2206.01714",
        ),
        example="gk.Compose(other, 1.0)",
    )

    def __post_init__(self) -> None:
        count, a = len(listed(self.experts)), self.reliabilities
        if not count or (isinstance(self.weights, Sequence) and len(self.weights) != count):
            raise ValueError(
                f"Compose(weights={self.weights!r}): {count} experts are given; one or more are needed, with one "
                "weight for all or one for each"
            )
        if a is not None and (len(a) != count + 1 or abs(sum(a) - 1) > 1e-6):
            raise ValueError(
                f"Compose(reliabilities={a!r}): {count + 1} numbers that sum to 1 are needed, the run's own first"
            )

    @property
    def _experts(self) -> list[tuple[Cond, Scale]]:
        experts = listed(self.experts)
        weights = self.weights if isinstance(self.weights, Sequence) else [self.weights] * len(experts)
        return [(evaluation(e), w) for e, w in zip(experts, weights, strict=True)]

    @property
    def _fixed(self) -> bool:
        return not any(callable(w) for w in (self.own, *(w for _, w in self._experts)))

    def coefficients(self, t: float) -> dict[Cond, float]:
        """The factor of each evaluation in the tilt; the unconditional ones come last."""
        terms = [(Cond(), at(self.own, t) - 1), *((e, at(w, t)) for e, w in self._experts)]
        rest = -sum(w for _, w in terms)
        rest = 0.0 if abs(rest) < 1e-12 else rest
        nulls = [Null() if n is None else At(None, n) for n in (getattr(e, "network", None) for e, _ in self._experts)]
        shares = [1.0] if self.reliabilities is None else self.reliabilities
        terms += [(null, rest * a) for null, a in zip([Null(), *nulls], shares, strict=False)]
        found = dict.fromkeys((need for need, _ in terms), 0.0)
        for need, factor in terms:
            found[need] += factor
        return found

    @property
    def needs(self) -> tuple[Cond, ...]:
        found = self.coefficients(0.5)
        return tuple(need for need, factor in found.items() if need != Cond() and (factor or not self._fixed))

    def tilt(self, view: View) -> Tensor | float:
        return sum(factor * view.evals[need] for need, factor in self.coefficients(view.t).items() if factor)

    def exact(self, **options: Any) -> Corrector:
        """A guide whose weighted particles follow the product itself, prod_i p_i^(w_i); options as for gk.FKC."""
        if not self._fixed or self.steer or self.start > 0 or self.stop < 1:
            raise ValueError("Compose(...).exact() takes weights that are numbers, and no steer, start or stop")
        powers = {need: c + (need == Cond()) for need, c in self.coefficients(0.5).items()}
        return Corrector(tuple((need, c) for need, c in powers.items() if c or need == Cond()), **options)
