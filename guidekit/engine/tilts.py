"""From the network's prediction to the one that particles move with: the guides' `tilt` and `finish`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .seats import Acts, Seat
from .tree import Tree
from .view import View


class Apart(NamedTuple):
    """Two tilts: of the prediction that particles move with, and of the one that guides and rewards see as the estimate
    of x_0."""

    moved: Tensor
    shown: Tensor


def tilted(view: View, acts: Acts, memos: Sequence[Tree], steered: bool) -> tuple[View, Tensor | None]:
    """The view with the prediction that defines the target distribution, and, if a guide of the run steers, the
    prediction that particles move with.

        target    = finish(prediction + tilts of the guides that change the target)
        proposal  = finish(target + tilts of the guides that steer)

    Tilts without gradients come first. Those with gradients are taken at the estimate that results: that of the target,
    unless a tilt is `Apart`.
    """
    target, shown, push = view.prediction, None, None
    if target is None:
        return view, None
    for seats in (acts.tilt, acts.late):
        for seat in seats:
            tilt = seat.guide.tilt(_own(view, seat, memos))
            moved, seen = tilt if isinstance(tilt, Apart) else (tilt, tilt)
            if seat.guide.steer:
                push = moved if push is None else push + moved
                continue
            if shown is not None or seen is not moved:
                shown = (target if shown is None else shown) + seen
            target = target + moved
        view = view.with_prediction(target, shown)
    proposal = target if push is None else target + push
    for seat in acts.finish:
        own = _own(view, seat, memos)
        proposal = seat.guide.finish(own, proposal) if steered else proposal
        target = target if seat.guide.steer else seat.guide.finish(own, target)
        shown = shown if seat.guide.steer or shown is None else seat.guide.finish(own, shown)
    return view.with_prediction(target, shown), proposal if steered else None


def _own(view: View, seat: Seat, memos: Sequence[Tree]) -> View:
    return view.own(seat.name, memos[seat.place])
