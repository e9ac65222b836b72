r"""What compositions are made of: conditions, models and evaluations, all as evaluations of one forward."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from ..models.base import Cond, Condition, Encoded, Model, Null, Other

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
