r"""Products and contrasts of conditions and models. A product of powers of experts i, each against the model without a
condition (Liu et al., 2022, https://arxiv.org/abs/2206.01714),

    d  <-  w_own d + sum_i w_i d_i + (1 - w_own - sum_i w_i) n,

in the coordinates of the prediction: clean means, in which adding scores is adding these, or log-probabilities of
tokens. With w_own = 1 it adds sum_i w_i (d_i - n); a negative w_i pushes away from an expert (contrast, negation). n is
the prediction at the null condition, or with reliabilities a_i (Unite and Conquer, Nair et al., 2023,
https://arxiv.org/abs/2212.00793) the mean sum_i a_i n_i of the null predictions of all experts' models. Where the
weights add up to 1 n plays no part: .5 and .5 is a geometric mean, 1.5 and -.5 a contrast of two models.

The scores are those of noised experts, and a product of these is not the noised product: the law is exact only for
Gaussians of one common width. `Compose(...).exact()` is the product with the weights that correct for it, see gk.FKC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.guide import Guide, Scale, at
from ..engine.view import View
from ..models.evaluations import At, Cond, Null, evaluation, listed
from .fkc import Corrector


@dataclass(frozen=True)
class Compose(Guide):
    """A product of the run's condition with experts. One row for each expert and null condition, in one forward for
    each network; none for what has weight 0.

    experts        conditions, base models or evaluations like At("a cat", other_model): one or a list
    weights        w_i, one for all or one for each: numbers or functions of t
    own            the weight of the run's own condition
    reliabilities  a_i of the null predictions, the run's own first; they sum to 1. None: the base model's alone

    >>> Compose(["a cat", "rain"], [2.0, -1.0]).needs
    (At(condition='a cat', network=None), At(condition='rain', network=None), Null())
    """

    experts: Any
    weights: Scale | Sequence[Scale] = 1.0
    own: Scale = 1.0
    reliabilities: Sequence[float] | None = None

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
        """What each evaluation is multiplied by in the tilt; the null ones last."""
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
        """Weighted particles of the product itself, prod_i p_i^(w_i); the options are those of gk.FKC."""
        if not self._fixed or self.steer or self.start > 0 or self.stop < 1:
            raise ValueError("Compose(...).exact() takes weights that are numbers, and no steer, start or stop")
        powers = {need: c + (need == Cond()) for need, c in self.coefficients(0.5).items()}
        return Corrector(tuple((need, c) for need, c in powers.items() if c or need == Cond()), **options)
