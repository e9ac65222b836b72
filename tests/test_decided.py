"""Tokens are evaluated no more than is needed: decided rows not at all, equal rows once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.engine import ahead, run as run_module
from guidekit.models import evaluations
from guidekit.models.analytic import TokenTable
from guidekit.process import Masked

V, L, STEPS = 3, 4, 10
TABLE = torch.randn((V,) * L, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
END = 0


def reward(x: Tensor) -> Tensor:
    return (x == 2).sum(1).double() + 0.5 * (x[:, 0] == 1)


def padded(x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """An ordered network of texts with an end: logits depend on the token before, and after the end is the end."""
    before = torch.cat([torch.full_like(x[:, :1], 1), x[:, :-1]], 1).clamp(max=V - 1)
    table = torch.tensor([[0.2, 1.0, -0.5], [0.8, -0.3, 1.2], [0.5, 0.9, 0.1]], dtype=torch.float64)
    ended = (x[:, :-1] == END).cumsum(1).gt(0)
    ended = torch.cat([torch.zeros_like(ended[:, :1]), ended], 1)
    end = torch.tensor([0.0, -1e4, -1e4], dtype=torch.float64)
    return torch.where(ended[..., None], end, table[before])


MODELS: dict[str, Callable[[], gk.Model]] = {
    "any order": lambda: TokenTable(TABLE),
    "ordered": lambda: TokenTable(TABLE, "ordered"),
    "with an end": lambda: gk.MaskedModel(padded, V, L, ordered=True, end=END, dtype=torch.float64),
}
GUIDES: dict[str, Callable[[], list[gk.Guide]]] = {
    "none": list,
    "FK": lambda: [gk.FKSteering(reward, 0.7)],
    "SVDD": lambda: [gk.SVDD(reward, 0.5, candidates=3)],
    "greedy SVDD": lambda: [gk.SVDD(reward, candidates=4)],
    "beam": lambda: [gk.BeamSearch(reward, 3, 2)],
    "temperature": lambda: [gk.Temperature(0.7), gk.TopP(0.9)],
}


def run(model: gk.Model, name: str, **options: Any) -> gk.Result:
    return gk.sample(model, 12, steps=STEPS, guides=GUIDES[name](), reward=reward, seed=3, **options)


@pytest.mark.parametrize("guides", GUIDES)
@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_the_same_bit_for_bit_and_needs_fewer_rows(name: str, guides: str, monkeypatch: pytest.MonkeyPatch):
    fewer, parts = (run(MODELS[name](), guides, batch_size=size) for size in (None, 5))
    monkeypatch.setattr(evaluations, "distinct", lambda x, cond: None)
    open_rows = run(MODELS[name](), guides)
    monkeypatch.setattr(Masked, "decided", lambda self, x: None)
    monkeypatch.setattr(Masked, "apart", lambda self, move: False)
    every = run(MODELS[name](), guides)
    for other in (parts, open_rows, every):
        assert torch.equal(fewer.x, other.x) and torch.equal(fewer.log_weights, other.log_weights)
        assert fewer.rewards is not None and other.rewards is not None and torch.equal(fewer.rewards, other.rewards)
        assert torch.equal(fewer.ancestors, other.ancestors) and fewer.cost.reward_calls == other.cost.reward_calls
    rows = [result.cost.network_rows for result in (fewer, parts, open_rows, every)]
    assert rows == sorted(rows) and rows[0] < rows[2] < rows[3]


@pytest.mark.parametrize("name", MODELS)
def test_the_rows_are_the_different_ones_with_something_left_to_draw(name: str):
    model, left = MODELS[name](), [1]  # at first all are masks

    def open_rows(population: Any, step: Any) -> None:
        x = population.x
        before_end = (x == END).cumsum(1).eq(0) if name == "with an end" else torch.ones_like(x, dtype=torch.bool)
        left.append(0 if step.last else len(x[((x == V) & before_end).any(1)].unique(dim=0)))

    cost = run(model, "none", callbacks=[open_rows]).cost
    assert cost.network_rows == sum(left) and cost.network_calls == sum(n > 0 for n in left)


@pytest.mark.parametrize("solver", [gk.solvers.Ancestral(), gk.solvers.ReMDM(0.2)], ids=repr)
def test_a_network_that_reads_the_time_sees_the_rows_that_reveal_something_next(solver: gk.solvers.Ancestral):
    """Of runs that nobody watches: a callback may read predictions, and so sees those of all rows."""
    met: list[tuple[float, Tensor]] = []

    def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        met.append((float(t[0]), x))
        return x.cumsum(1)[..., None] * torch.tensor([0.1, -0.2, 0.3]) + t[:, None, None]

    model = gk.MaskedModel(net, V, L)
    path: list[Tensor] = [torch.full((12, L), V)]
    options = {"steps": 30, "solver": solver, "seed": 4}
    watched = gk.sample(model, 12, **options, callbacks=[lambda p, s: path.append(p.x)])
    assert sum(len(x) for _, x in met) > 100
    met.clear()
    for size in (None, 5):
        alone = gk.sample(model, 12, **options, batch_size=size)
        assert torch.equal(alone.x, watched.x)
    calls = {t: torch.cat([x for u, x in met if u == t]) for t, _ in met}
    for k, (x, y) in enumerate(pairwise(path)):
        reveal = ((x == V) & (y != V)).any(1)
        seen = calls.get(next((t for t in calls if abs(t - (1 - k / 30)) < 1e-6), -1.0), x[:0])
        assert {tuple(r) for r in seen.tolist()} == {tuple(r) for r in x[reveal].tolist()}


def timed(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """A network that reads everything: the tokens to the left, the place, the time and the condition."""
    place = torch.linspace(-1, 1, x.shape[1], dtype=torch.float64)[:, None]
    letter = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    return (x.cumsum(1)[..., None] - place) * letter + (t + cond)[:, None, None] * letter.flip(0)


AHEAD: dict[str, dict[str, Any]] = {
    "any order": {},
    "ordered": {"ordered": True},
    "with an end": {"ordered": True, "end": END},
    "token by token": {"ordered": True, "end": END, "alone": True},
    "lengths": {"lengths": [0.0, 0.2, 0.5, 0.3, 0.1, 0.2, 0.1], "end": END},
}


@pytest.mark.parametrize("name", AHEAD)
def test_moves_known_ahead_are_those_that_are_made_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch):
    """Before, between and after the steps at which a guide selects, in groups of different conditions."""
    monkeypatch.setattr(ahead, "_NUMBERS", 500)  # few moves at a time, of few rows
    monkeypatch.setattr(run_module, "POSITIONS", 5 * 7 if name == "any order" else 1 << 21)
    model = gk.MaskedModel(timed, V, 7, encode_cond=lambda c: c, dtype=torch.float64, **AHEAD[name])
    guides = [gk.FKSteering(reward, 0.7, start=0.4, stop=0.5)]
    options: dict[str, Any] = {"steps": 60, "guides": guides, "cond": [0.0, 2.0], "seed": [5, 6]}
    every = gk.sample(model, 9, **options, callbacks=[lambda p, s: None])
    for size in (None, 4):
        fewer = gk.sample(model, 9, **options, batch_size=size)
        assert torch.equal(fewer.x, every.x) and torch.equal(fewer.log_weights, every.log_weights)
        assert torch.equal(fewer.ancestors, every.ancestors)
        for a, b in zip(fewer.trace, every.trace, strict=True):
            assert a["t"] == b["t"] and a["ess"] == b["ess"]
        assert fewer.cost.network_rows < 0.7 * every.cost.network_rows


breaks: list[float] = []


def fragile(x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """The same, until the time at which it breaks."""
    if breaks and t[0] < breaks[0]:
        raise MemoryError
    return timed(x, t, t * 0)


def test_a_run_that_ends_between_moves_known_ahead_goes_on_to_the_same_bytes(tmp_path: Path):
    """Whether the second sitting is watched or not, and the first one was."""
    model, file = gk.MaskedModel(fragile, V, 7, dtype=torch.float64), tmp_path / "run.safetensors"
    whole = gk.sample(model, 9, steps=40, seed=2)
    for first, second in product(([], [lambda p, s: None]), repeat=2):
        breaks[:] = [0.6]
        with pytest.raises(MemoryError):
            gk.sample(model, 9, steps=40, seed=2, checkpoint=file, callbacks=first)
        breaks.clear()
        again = gk.sample(model, 9, steps=40, seed=2, checkpoint=file, callbacks=second)
        assert torch.equal(again.x, whole.x) and len(again.trace) == 40
        file.unlink()


def test_a_network_that_breaks_in_such_a_move_is_named_with_step_and_row():
    def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        out = timed(x, t, t * 0)
        out[x[:, 0] == 2] = torch.nan
        return out

    with pytest.raises(gk.NetworkError, match=r"the network returned NaN or infinity at step \d+ of 30 .* in \d rows"):
        gk.sample(gk.MaskedModel(net, V, 7, dtype=torch.float64), 9, steps=30, seed=2)


def test_every_evaluation_of_a_decided_row_is_its_own_tokens():
    """Classifier-free guidance: what is whole is seen by no forward, in either branch."""
    met = []

    def net(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        met.append(len(x))
        return cond[:, None, :] + torch.zeros(*x.shape, V)

    model = gk.MaskedModel(net, V, 2, null=torch.zeros(V), encode_cond=lambda c: torch.eye(V)[c] * 3)
    gk.sample(model, 6, steps=6, cond=1, guides=[gk.CFG(2.0)], seed=1)
    assert met[0] == 2 and max(met) <= 2 * (V + 1) ** 2 and met[-1] < max(met)
    told = model.process.told(torch.tensor([[1, 2], [0, 0]]))
    assert torch.equal(told.argmax(-1), torch.tensor([[1, 2], [0, 0]]))
    assert torch.equal(told.exp().sum(-1), torch.ones(2, 2))


def test_masking_again_opens_a_row_again():
    """ReMDM masks tokens of whole rows, which are then evaluated again: its law is that of all rows evaluated."""
    model = TokenTable(TABLE)
    solver = gk.solvers.ReMDM(0.4)
    masks: list[Tensor] = []
    gk.sample(model, 400, steps=8, solver=solver, callbacks=[lambda p, s: masks.append((p.x == V).any(1))])
    again = torch.stack([~a & b for a, b in pairwise(masks)])
    assert int(again.sum()) > 20


def test_equal_rows_are_one_only_where_their_conditions_are_equal_too():
    x = torch.tensor([[1, 2], [0, 1], [1, 2], [1, 2]])
    for cond in (
        None,
        torch.tensor([5, 6, 5, 5]),
        {"a": torch.zeros(4, 3), "b": torch.tensor([True, False, True, True])},
    ):
        found = evaluations.distinct(x, cond)
        assert found is not None and found[0][found[1]].tolist() == [0, 1, 0, 0]
    found = evaluations.distinct(x, torch.tensor([[0.0], [1.0], [0.0], [0.5]]))
    assert found is not None and found[0][found[1]].tolist() == [0, 1, 0, 3]
    assert evaluations.distinct(x, torch.arange(4).double()) is None
    assert evaluations.distinct(x[:2], None) is None


def test_rows_that_only_seem_equal_are_evaluated_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluations, "_odd", lambda part, count, device: torch.zeros(count, dtype=torch.long))
    assert evaluations.distinct(torch.tensor([[1, 2], [0, 1]]), None) is None


class Counting:
    """A network that is not told the time, and counts the rows that it sees."""

    timed = False

    def __init__(self) -> None:
        self.table, self.rows = TokenTable(TABLE), list[Tensor]()

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.rows.append(x)
        shift = 0.0 if cond is None else cond[:, None, None] * torch.tensor([1.0, 0.0, -1.0])
        return self.table(x, 0.5, None) + shift


@pytest.mark.parametrize("guides", GUIDES)
def test_a_network_that_is_not_told_the_time_is_asked_again_of_no_state_of_the_step_before(guides: str):
    net, told = Counting(), Counting()
    told.timed = True  # type: ignore[misc]
    once, twice = (
        run(gk.MaskedModel(n, V, L, dtype=torch.float64), guides, batch_size=7, callbacks=[lambda p, s: None])
        for n in (net, told)
    )
    assert torch.equal(once.x, twice.x) and torch.equal(once.log_weights, twice.log_weights)
    assert once.cost.network_rows == sum(map(len, net.rows)) < 0.8 * twice.cost.network_rows


def test_states_are_known_with_their_condition_and_for_one_step():
    net = Counting()
    model = gk.MaskedModel(net, V, L, null=torch.tensor(0.0, dtype=torch.float64), dtype=torch.float64)
    memory, needs = evaluations.Memory(), (evaluations.Cond(), evaluations.Null())

    def asked(rows: list[int], cond: list[float], t: float, needs: Any = needs) -> tuple[int, Any]:
        net.rows.clear()
        states = torch.tensor([[V, V, V, V], [V, 1, V, V], [0, 1, V, V], [V, 2, 1, V]])
        of = states[rows], t, torch.tensor(cond, dtype=torch.float64), lambda rows: None
        found = evaluations.evaluate(model, needs, *of, memory=memory)
        expected = evaluations.evaluate(model, needs, *of)
        assert all(torch.equal(found[need], expected[need]) for need in needs)
        return sum(map(len, net.rows)) - len(needs) * len({*zip(rows, cond, strict=True)}), found

    assert asked([0, 1, 1], [1.0, 1.0, 1.0], 0.9)[0] == 4  # two different rows, in two branches
    assert asked([2], [1.0], 0.9)[0] == 2  # another part of the same step
    assert asked([2, 0, 1], [1.0, 1.0, 2.0], 0.8)[0] == 2  # the last one has another condition
    assert asked([2, 3, 0], [1.0, 1.0, 1.0], 0.7)[0] == 2
    assert asked([1], [1.0], 0.6)[0] == 2  # forgotten
    assert asked([1], [1.0], 0.5, needs[:1])[0] == 0
    assert asked([1], [1.0], 0.4)[0] == 2  # of the last step only one branch is known
