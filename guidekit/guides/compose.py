r"""Composition of conditions and models: products, contrasts and mixtures of experts.

**Compose.** A product of powers of experts i, each against the model without a condition (Liu et al., 2022,
https://arxiv.org/abs/2206.01714),

    d  <-  w_own d + sum_i w_i d_i + (1 - w_own - sum_i w_i) n,

in the coordinates of the prediction: clean means, in which adding scores is adding these, or log-probabilities of
tokens. With w_own = 1 it adds sum_i w_i (d_i - n); a negative w_i pushes away from an expert (contrast, negation). n is
the prediction at the null condition, or with reliabilities a_i (Unite and Conquer, Nair et al., 2023,
https://arxiv.org/abs/2212.00793) the mean sum_i a_i n_i of the null predictions of all experts' models. Where the
weights add up to 1 n plays no part: .5 and .5 is a geometric mean, 1.5 and -.5 a contrast of two models.

The scores are those of noised experts, and a product of these is not the noised product: the law is exact only for
Gaussians of one common width. `Compose(...).exact()` is the product with the weights that correct for it, see gk.FKC.

**Mixture.** The noised mixture sum_i a_i p_i has the prediction

    d = sum_i rho_i d_i   (tokens: p = sum_i rho_i p_i),      rho_i ~ a_i p_i(x_t),

whose rho needs densities. A network has none, but its kernels do: what leads from noise to x_t under the true reverse
processes differs between the experts by these densities alone, so

    rho_i  ~  a_i prod q_i(x_s | x_t)   over the moves made so far,

exact for small steps (Skreta et al., 2024, https://arxiv.org/abs/2412.17762, have it as an Ito integral) and for masked
tokens that are unmasked one at a time. With adaptive=False rho_i = a_i stays: for tokens a mixture at every position on
its own, for a Gaussian process a geometric mean, which is Compose with these weights and no mixture.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..models.base import Cond, Condition, Encoded, Model, Null, Other
from ..process import Gaussian
from ..tree import Tree
from ..view import View
from .base import Guide, Scale, at
from .fkc import Corrector

# what conditions encode to, so that a text encoder does not run at every step; renewed when a run is checked
_encodings: WeakKeyDictionary[Model, dict[Hashable, tuple[Condition, Encoded]]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class At(Cond):
    """The model, or another one, at a condition of its own: the same for all rows and groups.

    Two are one evaluation where their conditions are equal; of tensors, arrays, lists and dicts that means the same
    object. A null condition is `Null()`, or of another model At(None, network).

    >>> At("a cat") == At("a cat"), At(1) == At(2)
    (True, False)
    """

    condition: Condition
    network: Model | None = None

    def _key(self) -> Hashable:
        same = isinstance(self.condition, Tensor) or not _hashable(self.condition)
        return type(self.condition), id(self.condition) if same else self.condition

    def __eq__(self, other: object) -> bool:
        return isinstance(other, At) and self._key() == other._key() and self.network is other.network

    def __hash__(self) -> int:
        return hash((self._key(), self.network))

    def model(self, base: Model) -> Model:
        return base if self.network is None else self.network

    def cond(self, model: Model, cond: Encoded) -> Encoded:
        if cond is None:
            raise ValueError(
                f"{self!r} has a condition, and the rows of the run have none that it could stand beside: give the run "
                "cond=..., or its model a null condition"
            )
        known = _encodings.get(model, {})
        own = known[self._key()][1] if self._key() in known else model.encode(self.condition)
        mine, theirs = _shapes(own, 0), _shapes(cond, 1)
        if self.network is None and mine != theirs:
            raise ValueError(
                f"{self!r} encodes to {mine} and the condition of the run to {theirs}; encode_cond must pad them to "
                "one shape"
            )
        rows = len(next(iter(cond.values())) if isinstance(cond, dict) else cond)
        if isinstance(own, dict):
            return {k: v.expand(rows, *v.shape) for k, v in own.items()}
        return own.expand(rows, *own.shape)

    def check(self, model: Model) -> None:
        net = self.model(model)
        if self.network is not None:
            Other(self.network).check(model)
        if self.condition is None:
            Null().check(net)
        _encodings.setdefault(net, {})[self._key()] = self.condition, net.encode(self.condition)


def evaluation(expert: Any) -> Cond:
    """An expert as an evaluation: it may be one, a base model (at the run's condition), or a condition.

    >>> evaluation(None), evaluation(3)
    (Null(), At(condition=3, network=None))
    """
    if isinstance(expert, Cond):
        return expert
    if isinstance(expert, Model):
        return Other(expert)
    return Null() if expert is None else At(expert)


def listed(experts: Any) -> list[Any]:
    """One or several."""
    return list(experts) if isinstance(experts, (list, tuple)) else [experts]


def networks(needs: Sequence[Cond]) -> tuple[Model, ...]:
    """The further base models in these evaluations."""
    return tuple(n for need in needs if isinstance(n := getattr(need, "network", None), Model))


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _shapes(encoded: Encoded, skip: int) -> Any:
    if isinstance(encoded, dict):
        return {k: tuple(v.shape[skip:]) for k, v in encoded.items()}
    return tuple(encoded.shape[skip:])


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

    @property
    def models(self) -> tuple[Model, ...]:
        return networks(self.needs)

    def tilt(self, view: View) -> Tensor | float:
        return sum(factor * view.evals[need] for need, factor in self.coefficients(view.t).items() if factor)

    def exact(self, **options: Any) -> Corrector:
        """Weighted particles of the product itself, prod_i p_i^(w_i); the options are those of gk.FKC."""
        if not self._fixed or self.steer or self.start > 0 or self.stop < 1:
            raise ValueError("Compose(...).exact() takes weights that are numbers, and no steer, start or stop")
        powers = {need: c + (need == Cond()) for need, c in self.coefficients(0.5).items()}
        return Corrector(tuple((need, c) for need, c in powers.items() if c or need == Cond()), **options)


@dataclass(frozen=True)
class Mixture(Guide):
    """A mixture of the run's condition with experts. One row for each expert, in one forward for each network. What
    each had to do with a sample is in `result.memos[place of the guide]`: rho of the run's own and of the experts.

    experts   as in Compose
    weights   a_i of the run's own condition and of each expert: positive numbers or 0, or functions of t where
              adaptive=False; None: equal ones
    adaptive  rho from the path of each particle, which needs moves with noise; False: rho_i = a_i
    """

    experts: Any
    weights: Sequence[Scale] | None = None
    adaptive: bool = True

    def __post_init__(self) -> None:
        count = len(listed(self.experts)) + 1
        weights = [1.0] * count if self.weights is None else self.weights
        fixed = [w for w in weights if not callable(w)]
        if len(weights) != count or min([*fixed, 0]) < 0 or not (len(fixed) < count or sum(fixed) > 0):
            raise ValueError(
                f"Mixture(weights={self.weights!r}): {count} shares are needed, the run's own first, none negative"
            )
        if self.adaptive and len(fixed) < count:
            raise ValueError("Mixture(weights=functions): shares change with t only where adaptive=False")

    @property
    def stochastic(self) -> bool:
        return self.steer or self.adaptive

    @property
    def needs(self) -> tuple[Cond, ...]:
        return tuple(evaluation(e) for e in listed(self.experts))

    @property
    def models(self) -> tuple[Model, ...]:
        return networks(self.needs)

    def tilt(self, view: View) -> Tensor:
        every, own = self._every(view), view.evals[Cond()]
        log_rho = self._log_rho(view, view.memo)
        if isinstance(view.model.process, Gaussian):
            return sum(view.rows(log_rho[:, i].exp()) * (d - own) for i, d in enumerate(every) if i)  # type: ignore
        shares = [view.rows(log_rho[:, i]) for i in range(len(every))]
        return torch.stack([d + share for d, share in zip(every, shares, strict=True)]).logsumexp(0) - own

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        if view.step.last:
            return 0.0, None if memo is None else memo[1].exp()
        if not self.adaptive or not self.active(view.step):
            return 0.0, memo
        assert view.step.move is not None
        before = () if memo is None else memo[2]
        history = (torch.stack(self._every(view), 1), *before)[: max(1, len(view.step.move.b))]
        return 0.0, (view.x, self._log_rho(view, memo), history)

    def _every(self, view: View) -> list[Tensor]:
        return [view.evals[need] for need in (Cond(), *self.needs)]

    def _log_rho(self, view: View, memo: Tree) -> Tensor:
        """log rho, float64 (rows, 1 + experts)."""
        if memo is None:
            weights = [1.0] * (len(self.needs) + 1) if self.weights is None else self.weights
            a = torch.tensor([at(w, view.t) for w in weights], dtype=torch.float64, device=view.x.device)
            return (a / a.sum()).log().expand(len(view.x), -1)
        return view.once(("rho", id(self)), lambda: self._followed(view, memo))

    def _followed(self, view: View, memo: Tree) -> Tensor:
        x, log_rho, history = memo
        assert view.step.came is not None
        for i in range(log_rho.shape[1]):
            kernel = view.model.process.kernel(x, tuple(d[:, i] for d in history), view.step.came)
            if not kernel.random:
                return log_rho
            gain = kernel.log_prob(view.x)[:, None]
            log_rho = log_rho + torch.nn.functional.pad(gain, (i, log_rho.shape[1] - 1 - i))
        return log_rho.log_softmax(-1)
