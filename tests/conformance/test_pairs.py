"""Every two guides run together, in either order. A file of its own, so that those who ask for one law do not wait for
the list of all pairs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch

import guidekit as gk

from ..problems import PROBLEMS, STEPS, Problem
from .cases import CASES, Case, N
from .test_laws import run

# The particles of small populations degenerate on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")

WIDE = (gk.BestOfN, gk.BeamSearch)  # more rows live on the way than are returned
ORDERED = ("select", "finish", "moves", "begin", "condition", "noise")  # hooks that run one after the other


def refused(problem: Problem, guides: Sequence[gk.Guide]) -> bool:
    """Whether a list says itself that it cannot be right."""
    try:
        gk.Run(problem.model, N, steps=STEPS, cond=problem.cond, guides=guides)
    except ValueError as error:
        assert re.search(r"in one list|each draw children|FKC follows a path down in time", str(error))
        return True
    return False


def pairs() -> Iterator[Any]:
    """Each pair on one of the problems that both serve, in turn; in the default run one pair in eight."""
    for i, (a, b) in enumerate(combinations_with_replacement(CASES, 2)):
        names = [name for name in ("vp-1d", "flow-2d", "masked") if name in a.processes and name in b.processes]
        if names:
            j = i % len(names)
            marks = [pytest.mark.slow] if (i - j) % (8 * len(names) * max(a.seldom, b.seldom)) else []
            yield pytest.param(a, b, names[j], marks=marks, id=f"{a.name} and {b.name} on {names[j]}")


@pytest.mark.parametrize("first, second, name", list(pairs()))
@pytest.mark.usefixtures("every_row")
def test_every_pair_of_guides_runs_together_and_in_either_order(first: Case, second: Case, name: str):
    """The order of two matters only where both have a hook that works on what the other one's has made."""
    problem = PROBLEMS[name]
    for with_ in dict.fromkeys((first.with_, second.with_)):
        problem = with_(problem)
    guides = [first.make(problem), second.make(problem)]
    if problem.model.null.dim() and any(
        m.null is not None for g in guides for need in g.needs if (m := need.model(problem.model)) is not problem.model
    ):
        pytest.skip("another model cannot read an embedding that is not its own")
    orders = [order for order in (guides, guides[::-1]) if not refused(problem, order)]
    if not orders:
        return
    result, swapped = run(problem, orders[0]), run(problem, orders[-1])
    assert result.log_weights.isfinite().any()
    most = first.rows(N, STEPS) * second.rows(N, STEPS)
    assert max(result.cost.network_rows, swapped.cost.network_rows) <= most
    guides = [g.bind(problem.model) for g in guides]
    if not all(isinstance(g, WIDE) or g.has("moves") for g in guides):  # the widest of all, or all of the widest
        assert result.cost.network_rows == swapped.cost.network_rows
    if not any(all(g.has(hook) for g in guides) for hook in ORDERED):
        assert torch.equal(result.ancestors, swapped.ancestors)
        assert torch.allclose(result.x.double(), swapped.x.double(), rtol=1e-11, atol=1e-11)
        assert torch.allclose(result.log_weights, swapped.log_weights, rtol=1e-10, atol=1e-10)
