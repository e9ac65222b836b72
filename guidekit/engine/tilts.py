"""From the network's prediction to the one that particles move with: the guides' `tilt` and `finish`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .seats import Acts, Seat
from .tree import Tree
from .view import View


def tilted(view: View, acts: Acts, memos: Sequence[Tree], steered: bool) -> tuple[View, Tensor | None]:
    """The view with the prediction that defines the target distribution, and, if a guide of the run steers, the
    prediction that particles move with.

        target    = finish(prediction + tilts of the guides that change the target)
        proposal  = finish(target + tilts of the guides that steer)

    Tilts without gradients come first. Those with gradients are taken at the estimate that results.
    """
    target, push = view.prediction, None
    if target is None:
        return view, None
    for seats in (acts.tilt, acts.late):
        for seat in seats:
            tilt = seat.guide.tilt(_own(view, seat, memos))
            if seat.guide.steer:
                push = tilt if push is None else push + tilt
            else:
                target = target + tilt
        view = view.with_prediction(target)
    proposal = target if push is None else target + push
    for seat in acts.finish:
        own = _own(view, seat, memos)
        proposal = seat.guide.finish(own, proposal)
        target = target if seat.guide.steer else seat.guide.finish(own, target)
    return view.with_prediction(target), proposal if steered else None


def _own(view: View, seat: Seat, memos: Sequence[Tree]) -> View:
    return view.own(seat.name, memos[seat.place])
