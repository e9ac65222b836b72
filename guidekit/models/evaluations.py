r"""Evaluations: what a step needs from the networks, as small hashable descriptions.

A guide declares the evaluations it needs, `needs = (Null(),)`. Those that several guides need are computed once, and
all evaluations of one network go through one forward pass (`evaluate`).

    Cond()       the model at the user's condition; every run has it
    Null()       the model without its condition
    Other(m)     another base model of the same noising process
    At(c, m)     the model, or another one, at a fixed condition
    Given(c)     the model at a condition for each row
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import random
from ..process import Masked
from .base import Condition, Encoded, Mixed, Model
from .hooked import held_again, made

_encodings: WeakKeyDictionary[Model, dict[Hashable, tuple[Condition, Encoded]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Cond:
    """The model at the user's condition, which every run evaluates. Other evaluations override these methods."""

    def model(self, base: Model) -> Model:
        """The model whose network is evaluated."""
        return base

    def cond(self, model: Model, cond: Encoded) -> Encoded:
        """The condition of the rows, given the user's condition."""
        return cond

    def among(self, rows: Tensor) -> Cond:
        """The same evaluation of some of the rows, where it holds something for each of them."""
        return self

    def during(self, model: Model, rows: slice) -> AbstractContextManager:
        """A context for the forward pass in which these rows are evaluated. If it yields an object with a method
        again(where), that context holds when a backward pass recomputes parts of it; see `guidekit.models.hooked`."""
        return nullcontext()

    def check(self, model: Model) -> None:
        """Raise if this evaluation is not possible with the model."""


@dataclass(frozen=True)
class Spread(Cond):
    """What the network says of the variance of its step, at the user's condition; it comes with Cond()."""


@dataclass(frozen=True)
class Null(Cond):
    """The model at its null condition."""

    def cond(self, model: Model, cond: Encoded) -> Encoded:
        return model.nulled(cond)

    def check(self, model: Model) -> None:
        if model.null is None:
            raise ValueError(
                "a guide needs the model without its condition, but the model has no null condition: "
                "build it with null=..., the encoded 'no condition' that it was trained with"
            )


@dataclass(frozen=True)
class Other(Cond):
    """Another base model with the same noising process, at the user's condition."""

    network: Model

    def model(self, base: Model) -> Model:
        return self.network

    def check(self, model: Model) -> None:
        other = self.network
        if not isinstance(other, Model):
            raise TypeError(f"a second base model is needed, not {type(other).__name__}")
        if other.shape != model.shape or other.process != model.process:
            raise ValueError(
                f"two models in one target share shape and noising law; given {model.shape}, {model.process} and "
                f"{other.shape}, {other.process}"
            )
        if other.process.t_max < model.process.t_max:
            raise ValueError(
                f"the other model starts at t={other.process.t_max}, where its prediction of noise or score says "
                f"something of the data, and the first at {model.process.t_max}: change them about, or let the other "
                "predict the clean mean or a velocity"
            )


@dataclass(frozen=True, eq=False)
class At(Cond):
    """The model, or another one, at a fixed condition: the same for all rows and groups.

    Two are the same evaluation if their conditions are equal; tensors, arrays, lists and dicts are equal only to
    themselves. The null condition is `Null()`, or At(None, network) for another model.

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


@dataclass(frozen=True, eq=False)
class Given(Cond):
    """The model at a separate encoded condition for each row; no two such evaluations are equal."""

    encoded: Encoded

    __eq__, __hash__ = object.__eq__, object.__hash__  # type: ignore[assignment]

    def cond(self, model: Model, cond: Encoded) -> Encoded:
        return self.encoded

    def among(self, rows: Tensor) -> Cond:
        return Given(rows_of(self.encoded, rows))


def evaluation(expert: Any) -> Cond:
    """An expert as an evaluation. It may be an evaluation, a base model (at the run's condition), or a condition.

    >>> evaluation(None), evaluation(3)
    (Null(), At(condition=3, network=None))
    """
    if isinstance(expert, Cond):
        return expert
    if isinstance(expert, Model):
        return Other(expert)
    return Null() if expert is None else At(expert)


def listed(experts: Any) -> list[Any]:
    """One expert or several, as a list."""
    return list(experts) if isinstance(experts, (list, tuple)) else [experts]


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


def evaluate(
    model: Model,
    needs: Sequence[Cond],
    x: Tensor,
    t: float | Mixed,
    cond: Encoded,
    count: Callable[[int], None],
    limit: int | None = None,
    memory: Memory | None = None,
) -> dict[Cond, Tensor]:
    """All evaluations at (x, t), in one forward pass per network (in more if there are over `limit` rows).

    Tokens are evaluated no more than is needed: no rows in which nothing is left to draw, whose prediction is what they
    hold, equal rows with equal conditions once, and with a memory none that it knows from the step before. `count` is
    called with the number of rows of each forward pass.

    Rows may stand at several times, which t then says. Equal ones are then not looked for.
    """
    decided = model.process.decided(x)
    if decided is not None and bool(decided.any()):
        told, rest = model.process.told(x).to(model.dtype), (~decided).nonzero()[:, 0]
        own, at = [need.among(rest) for need in needs], t.take(rest) if isinstance(t, Mixed) else t
        found = evaluate(model, own, x[rest], at, rows_of(cond, rest), count, limit, memory) if len(rest) else {}
        return {a: told.index_put((rest,), found[b]) if found else told for a, b in zip(needs, own, strict=True)}
    if isinstance(t, Mixed):
        return _evaluated(model, needs, x, t, cond, count, limit)
    whole = x.is_floating_point() or any(type(need).among is not Cond.among for need in needs)
    if whole or memory is None or any(need.model(model).timed for need in needs):
        memory = None
    same = None if whole else distinct(x, cond)
    if same is None:
        return _remembered(memory, model, needs, x, t, cond, count, limit)
    first, place = same
    found = _remembered(memory, model, needs, x[first], t, rows_of(cond, first), count, limit)
    return {need: out[place] for need, out in found.items()}


def evaluate_at(
    model: Model, x: Tensor, t: float, cond: Encoded, rows: Tensor, places: Tensor, count: Callable[[int], None]
) -> Tensor:
    """The predictions of tokens at masks of these rows alone, (masks, V). Rows are evaluated as `evaluate` does it."""
    if isinstance(model.process, Masked) and model.process.ends(x):
        return evaluate(model, (Cond(),), x, t, cond, count)[Cond()][rows, places]
    if (same := distinct(x, cond)) is not None:
        first, kind = same
        x, cond, rows = x[first], rows_of(cond, first), kind[rows]
    count(len(x))
    return model.at_places(x, t, cond, rows, places)


class Memory:
    """What networks that are not told the time said in the last step, and in this one so far."""

    def __init__(self) -> None:
        self.t, self.steps = -1.0, ([], [])  # rows of both steps, in the parts in which they came

    def turn(self, t: float) -> None:
        """The step at this time, if it is another one, begins."""
        if t != self.t:
            self.t, self.steps = t, (self.steps[1], [])

    def keep(self, x: Tensor, cond: Encoded, found: dict[Cond, Tensor]) -> None:
        """Evaluations of this step."""
        self.steps[1].append((parts := _parts(x, cond), _key(parts), found))

    def known(self, needs: Sequence[Cond], x: Tensor, cond: Encoded) -> tuple[Tensor, dict[Cond, Tensor]]:
        """Which of these rows were evaluated in the last step, bool (rows,), and what was said of them; whatever else
        of the others."""
        last = [part for part in self.steps[0] if all(need in part[2] for need in needs)]
        if not last:
            return torch.zeros(len(x), dtype=torch.bool, device=x.device), {}
        parts = _parts(x, cond)
        before = [torch.cat(same) for same in zip(*(part[0] for part in last), strict=True)]
        keys, order = torch.cat([part[1] for part in last]).sort()
        place = order[torch.searchsorted(keys, _key(parts)).clamp(max=len(keys) - 1)]
        equal = torch.stack([(own == old[place]).all(1) for own, old in zip(parts, before, strict=True)]).all(0)
        return equal, {need: torch.cat([part[2][need] for part in last])[place] for need in needs}


def _remembered(
    memory: Memory | None,
    model: Model,
    needs: Sequence[Cond],
    x: Tensor,
    t: float,
    cond: Encoded,
    count: Callable[[int], None],
    limit: int | None,
) -> dict[Cond, Tensor]:
    """The evaluations of rows that are all different, and not known."""
    if memory is None:
        return _evaluated(model, needs, x, t, cond, count, limit)
    memory.turn(t)
    known, found = memory.known(needs, x, cond)
    new = (~known).nonzero()[:, 0]
    if len(new):
        fresh = _evaluated(model, needs, x[new], t, rows_of(cond, new), count, limit)
        found = {need: found[need].index_put((new,), out) if found else out for need, out in fresh.items()}
    memory.keep(x, cond, found)
    return found


def distinct(x: Tensor, cond: Encoded) -> tuple[Tensor, Tensor] | None:
    """One of each kind of equal rows (x, cond), and the place of every row among these; None where all differ.

    Rows are told apart by a sum of their bits times odd numbers, and then compared.
    """
    key = _key(parts := _parts(x, cond))
    if len(set(key.tolist())) == len(x):
        return None
    kinds, place = key.unique(return_inverse=True)
    row = torch.arange(len(x), device=x.device)
    first = torch.full_like(kinds, len(x)).scatter_reduce(0, place, row, "amin")
    fine = all(bool((v[first][place] == v).all()) for v in parts)
    return (first, place) if fine else None


def _parts(x: Tensor, cond: Encoded) -> list[Tensor]:
    """The bits of rows, whole numbers (rows, numbers), of the state and of all that belongs to the condition."""
    return [bits(v) for v in (x, *(cond.values() if isinstance(cond, dict) else () if cond is None else (cond,)))]


def _key(parts: list[Tensor]) -> Tensor:
    """A sum of the bits of each row times odd numbers."""
    return reduce(torch.add, [(v * _odd(i, v.shape[1], v.device)).sum(1) for i, v in enumerate(parts)])


@lru_cache(maxsize=32)
def _odd(part: int, count: int, device: torch.device) -> Tensor:
    """Odd numbers that have nothing to do with each other."""
    return random.fold(random.key(part, device), torch.arange(count, device=device)) | 1


def bits(v: Tensor) -> Tensor:
    """The bits of every number, as whole numbers (rows, numbers)."""
    if v.dtype == torch.int64:
        return v.reshape(len(v), -1)
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
    v = v.detach().reshape(len(v), -1).contiguous()
    return (v if v.dtype == torch.bool else v.view(kinds[v.element_size()])).long()


def _evaluated(
    model: Model,
    needs: Sequence[Cond],
    x: Tensor,
    t: float | Mixed,
    cond: Encoded,
    count: Callable[[int], None],
    limit: int | None,
) -> dict[Cond, Tensor]:
    """The evaluations of all rows."""
    rows, found = len(x), dict[Cond, Tensor]()
    if len(needs) == 1 and type(needs[0]) is Cond:  # nothing to join, to hold or to split
        found[needs[0]], spread = _said(model, x, t, cond)
        count(rows)
        return found if spread is None else found | {Spread(): spread}
    most = len(needs) if limit is None else max(1, limit // rows)
    networks: dict[Model, list[Cond]] = {}
    for need in needs:
        networks.setdefault(need.model(model), []).append(need)
    for net, branches in networks.items():
        for part in (branches[i : i + most] for i in range(0, len(branches), most)):
            since = made()
            with ExitStack() as stack:
                spans = (slice(i * rows, (i + 1) * rows) for i in range(len(part)))
                held = [stack.enter_context(need.during(net, s)) for need, s in zip(part, spans, strict=True)]
                conds = joined([need.cond(net, cond) for need in part])
                out, spread = _said(net, x, t, conds, len(part))
            for again in (context.again for context in held if hasattr(context, "again")):
                held_again(out, since, again)
            count(rows * len(part))
            found |= dict(zip(part, out.split(rows), strict=True))
            if spread is not None and net is model and Cond() in part:
                found[Spread()] = spread.split(rows)[part.index(Cond())]
    return found


def rows_of(encoded: Encoded, group: Tensor) -> Encoded:
    """The condition of every row, from the stacked conditions of the groups."""
    if isinstance(encoded, dict):
        return {k: v[group] for k, v in encoded.items()}
    return None if encoded is None else encoded[group]


def _said(net: Model, x: Tensor, t: float | Mixed, cond: Encoded, parts: int = 1) -> tuple[Tensor, Tensor | None]:
    """The predictions of the rows, so many times over, and what is said of the variance of the step."""
    x = x if parts == 1 else torch.cat([x] * parts)
    return (net.mixed(x, t * parts, cond), None) if isinstance(t, Mixed) else net.predicted(x, t, cond)


def joined(conds: list[Encoded]) -> Encoded:
    if len(conds) == 1 or conds[0] is None:
        return conds[0]
    if isinstance(conds[0], dict):
        return {k: torch.cat([c[k] for c in conds]) for k in conds[0]}
    return torch.cat(conds)
