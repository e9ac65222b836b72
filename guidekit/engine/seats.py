"""The guides of a run in their seats, and which of them act at which step: decided once, before the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..models.base import Model
from ..models.evaluations import Cond
from .guide import Guide
from .view import Step

HOOKS = (
    *("plan", "begin", "condition", "propose", "noise", "tilt", "finish", "log_weight", "weigh", "select"),
    *("paste", "traced"),
)


@dataclass(frozen=True, eq=False)
class Seat:
    """A guide and its position in the list.

    name     the address of its random numbers, which does not depend on the order of guides of different classes
    place    its index in the list, and that of its memos in `Population.memos`
    counts   whether its log-weights count; they do not if an earlier guide has the same twist
    """

    guide: Guide
    name: str
    place: int
    counts: bool = True

    @cached_property
    def hooks(self) -> frozenset[str]:
        """The hooks that the guide's class overrides."""
        return frozenset(hook for hook in HOOKS if self.guide.has(hook))


def seated(guides: Sequence[Guide]) -> tuple[Seat, ...]:
    """One seat for each guide, in the order of the list."""
    before: Counter[str] = Counter()
    twists: set[Hashable] = set()
    seats = []
    for place, guide in enumerate(guides):
        name, twist = type(guide).__name__, guide.twist
        seats.append(Seat(guide, f"{name}.{before[name]}", place, twist is None or twist not in twists))
        before[name] += 1
        twists.add(twist)
    return tuple(seats)


@dataclass(frozen=True)
class Acts:
    """The guides that act at one step, by hook and in the order of the list; in `select`, those that choose among
    children come first. `late` are the tilts with gradients.

    needs   the network evaluations of the step, each once
    grad    whether the graph from x_t to the evaluations is kept
    """

    needs: tuple[Cond, ...]
    grad: bool
    condition: tuple[Seat, ...]
    propose: tuple[Seat, ...]
    noise: tuple[Seat, ...]
    tilt: tuple[Seat, ...]
    late: tuple[Seat, ...]
    finish: tuple[Seat, ...]
    log_weight: tuple[Seat, ...]
    weigh: tuple[Seat, ...]
    select: tuple[Seat, ...]
    traced: tuple[Seat, ...]

    @cached_property
    def read(self) -> frozenset[int]:
        """The places of the guides whose memos a selection reads."""
        return frozenset(seat.place for seat in (*self.weigh, *self.select, *self.traced))

    @cached_property
    def quiet(self) -> bool:
        """Whether no guide reads what the networks say here, nor moves or chooses particles."""
        hooks = self.condition, self.propose, self.noise, self.tilt, self.late, self.finish
        return self.needs == (Cond(),) and not any((*hooks, self.log_weight, self.weigh, self.select, self.traced))

    def rows(self, model: Model) -> int:
        """The largest number of rows that one particle takes up in a single forward."""
        return max(Counter(id(need.model(model)) for need in self.needs).values())


_NOBODY = Acts((Cond(),), False, *[()] * 10)


def acting(seats: Sequence[Seat], step: Step, before: Step | None = None) -> Acts:
    """The guides whose window contains this step, and at the last step also all that weigh or select. `before` is the
    step at which the move started."""
    if not seats:
        return _NOBODY
    active = [seat for seat in seats if seat.guide.active(step)]

    def of(hook: str, among: Iterable[Seat]) -> tuple[Seat, ...]:
        return tuple(seat for seat in among if hook in seat.hooks)

    tilts, weighing = of("tilt", active), seats if step.last else active
    return Acts(
        needs=tuple(dict.fromkeys([Cond(), *(need for seat in active for need in seat.guide.needs)])),
        grad=any(seat.guide.grad is True for seat in active),
        condition=of("condition", active),
        propose=of("propose", active),
        noise=of("noise", active),
        tilt=tuple(seat for seat in tilts if not seat.guide.grad),
        late=tuple(seat for seat in tilts if seat.guide.grad),
        finish=of("finish", active),
        traced=of("traced", seats),
        log_weight=of("log_weight", weighing),
        weigh=of("weigh", weighing),
        select=tuple(sorted(of("select", weighing), key=lambda seat: _rank(seat, before))),
    )


def _rank(seat: Seat, before: Step | None) -> int:
    """The order of selections: first guides that choose among the children that they have asked for, then those that
    choose among chains of their own, and last those that resample, which would thin the candidates at random."""
    if "plan" not in seat.hooks:
        return 2
    return 0 if before is not None and seat.guide.plan(1, before)[1] > 1 else 1


def overridden(guides: Iterable[Guide], *hooks: str) -> list[Guide]:
    """The guides that override one of these hooks."""
    return [guide for guide in guides if any(map(guide.has, hooks))]
