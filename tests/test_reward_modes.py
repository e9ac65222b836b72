"""Rewards that are, or hold, torch modules: they score in evaluation mode during a run, and come back as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guidekit as gk
from guidekit.cli.evaluation import evaluated
from rewards import Cached, as_reward, weighted_sum
from rewards.transforms import Sigmoid

N = 6


class Score(nn.Module):
    """A reward whose mode matters in every way: dropout draws, batch norm mixes rows and counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.body[1].running_mean.normal_()
        self.body[1].running_var.uniform_(0.5, 2.0)
        self.double().train()
        self.body[4].eval()  # and not all of it is in one mode
        self.body[0].bias.requires_grad_(False)
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(any(m.training for m in self.modules()) or any(p.requires_grad for p in self.parameters()))
        return self.body(x)[:, 0]


def function(net: Score) -> Callable:
    return lambda x: 0.5 * net(x)


def listed(nets: list[Score]) -> Callable:
    return lambda x: nets[0](x)


# how a user may hand over a network as a reward, and whether gradients pass
SHAPES: dict[str, tuple[Callable[[Score], Any], bool]] = {
    "module": (lambda net: net, True),
    "function": (function, True),
    "method": (lambda net: net.forward, True),
    "wrapped": (as_reward, True),
    "transformed": (lambda net: as_reward(net).transformed(Sigmoid(-1.0, 1.0)), True),
    "formula": (lambda net: 2 * as_reward(net) - as_reward(function(net)), True),
    "sum": (lambda net: weighted_sum([net, lambda x: x[:, 0]], [1.0, 0.5]), True),
    "sum of sums": (
        lambda net: weighted_sum([weighted_sum([(-as_reward(net)).transformed(Sigmoid(-1.0, 1.0)), function(net)])]),
        True,
    ),
    "list": (lambda net: listed([net]), True),
    "cached": (lambda net: Cached(net), False),
    "cached sum": (lambda net: Cached(weighted_sum([function(net)])), False),
}

PLACES: dict[str, tuple[Callable[[Any], dict[str, Any]], bool]] = {
    "FKSteering": (lambda r: {"guides": [gk.FKSteering(r, 0.5)]}, False),
    "value": (lambda r: {"guides": [gk.SVDD(lambda x: x[:, 0], 0.5, 2, value=gk.values.Tweedie(r))]}, False),
    "DPS": (lambda r: {"guides": [gk.DPS(r, scale=0.5)]}, True),
    "TDS": (lambda r: {"guides": [gk.TDS(r, 0.5)]}, True),
    "reward": (lambda r: {"reward": r}, False),
    "holdout": (lambda r: {"holdout": r}, False),
}
CASES = [(s, p) for s, (_, slopes) in SHAPES.items() for p, (_, needs) in PLACES.items() if slopes or not needs]


def drawn(net: Score, shape: str, place: str, seed: int, **options: Any) -> gk.Result:
    base = gk.analytic.GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), [1.0])
    torch.manual_seed(seed)
    return gk.sample(base, N, steps=4, **PLACES[place][0](SHAPES[shape][0](net)), **options)


def state(net: Score) -> list[Any]:
    modes = [*(m.training for m in net.modules()), *(p.requires_grad for p in net.parameters())]
    return [modes, [p.grad for p in net.parameters()], {k: v.clone() for k, v in net.state_dict().items()}]


def numbers(result: gk.Result) -> list[Tensor]:
    return [v for v in (result.x, result.log_weights, result.rewards, result.holdout) if v is not None]


@pytest.mark.filterwarnings("ignore::guidekit.errors.CollapseWarning")
@pytest.mark.parametrize("shape, place", CASES)
def test_a_network_as_a_reward_scores_in_evaluation_mode_and_comes_back_as_it_was(shape: str, place: str):
    """Samples and scores do not depend on the global seed or on the batch size; running statistics do not move."""
    net = Score()
    before = state(net)
    one, two = drawn(net, shape, place, 1), drawn(net, shape, place, 2)
    parts = drawn(net, shape, place, 3, batch_size=2)
    assert net.seen and not any(net.seen)
    after = state(net)
    assert after[:2] == before[:2]
    assert all(torch.equal(v, after[2][k]) for k, v in before[2].items())
    assert all(torch.equal(v, w) for v, w in zip(numbers(one), numbers(two), strict=True))
    assert all(torch.allclose(v, w, rtol=1e-9) for v, w in zip(numbers(one), numbers(parts), strict=True))
    known = drawn(net.eval(), shape, place, 4)  # as if the user had seen to it
    assert all(torch.equal(v, w) for v, w in zip(numbers(one), numbers(known), strict=True))


def test_gradients_pass_through_a_network_in_evaluation_mode():
    plain = gk.sample(gk.analytic.GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), [1.0]), N, steps=4)
    for shape, (_, slopes) in SHAPES.items():
        if slopes:
            assert (drawn(Score(), shape, "DPS", 0).x - plain.x).abs().max() > 1e-4


@pytest.mark.parametrize("place", ["FKSteering", "reward", "DPS"])
def test_a_network_whose_scoring_is_interrupted_comes_back_as_it_was(place: str):
    net = Score()
    before = state(net)[:2]

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    net.body.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        drawn(net, "sum", place, 0)
    assert state(net)[:2] == before


# what scores outside of a run ----------------------------------------------------------------------------------------


def base() -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture([1.0], torch.zeros(1, 2, dtype=torch.float64), [1.0])


def first(x: Tensor) -> Tensor:
    return x[:, 0]


def told(result: gk.Result) -> list[Tensor | None]:
    return [result.x, result.rewards, result.holdout]


def chained(reward: Any) -> Sequence[Tensor]:
    run = gk.Run(base(), 3, steps=4)
    return gk.search.gradients(run, run.chain_noise(), reward)


def tuned(reward: Any) -> list[Tensor]:
    space = {"scale": 0.5}
    found = gk.tune(lambda scale: gk.DPS(first, scale=scale), base(), as_reward(reward), space, n=8, sweeps=1, steps=4)
    return [torch.tensor([row["metric"] for row in found.table])]


def held_out(bank: gk.search.Bank) -> Tensor:
    assert bank.holdout is not None
    return torch.tensor(bank.holdout)


def fitted(reward: Any) -> list[Tensor]:
    """What a fit has seen of the rewards of its rollouts."""
    seen = gk.values.fit(base(), reward, rollouts=64, steps=4, epochs=1).calibration
    return [torch.tensor([seen.constant, *(row.realised for row in seen.rows)])]


NOW: dict[str, Any] = {"steps": 4, "seed": 0}
SCORERS: dict[str, Callable[[Any], Sequence[Tensor | None]]] = {
    "random": lambda r: told(gk.search.random(base(), 3, r, rounds=2, candidates=3, **NOW)),
    "random, held out": lambda r: told(gk.search.random(base(), 3, first, rounds=1, holdout=r, **NOW)),
    "zero order": lambda r: told(gk.search.zero_order(base(), 3, r, rounds=2, **NOW)),
    "gradient": lambda r: told(gk.search.gradient(base(), 3, r, rounds=2, **NOW)),
    "gradients": chained,
    "bank": lambda r: [gk.search.bank(base(), 4, r, [None] * 4, looks=8, **NOW).noise],
    "bank, held out": lambda r: [held_out(gk.search.bank(base(), 4, first, [None] * 4, looks=8, holdout=r, **NOW))],
    "refine": lambda r: told(gk.refine(base(), torch.ones(4, 2).double(), r, rounds=0)),
    "evolve": lambda r: told(gk.evolve(base(), torch.ones(4, 2).double(), r, rounds=1, steps=3)),
    "tune": tuned,
    "fit": fitted,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("shape", ["module", "sum"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_searches_and_fits_score_with_a_network_in_evaluation_mode(scorer: str, shape: str):
    found, net = [], Score()
    before = state(net)
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append([v for v in SCORERS[scorer](SHAPES[shape][0](net)) if v is not None])
    assert net.seen and not any(net.seen)
    after = state(net)
    assert after[:2] == before[:2]
    assert all(torch.equal(v, after[2][k]) for k, v in before[2].items())
    assert all(torch.equal(v, w) for v, w in zip(*found, strict=True))
    assert not any(v.requires_grad for v in found[0])


def test_a_file_is_evaluated_with_a_network_in_evaluation_mode(tmp_path):
    (tmp_path / "scores.py").write_text(
        "from torch import nn\n"
        "class Length(nn.Module):\n"
        "    def forward(self, texts):\n"
        "        return [-1.0 if self.training else float(len(text)) for text in texts]\n"
        "length = Length()\n"
    )
    (tmp_path / "some.smi").write_text("CCO\nCCNC\n")
    found, _ = evaluated(tmp_path / "some.smi", "molecules", None, [f"{tmp_path / 'scores.py'}:length"])
    assert found["mean Length"] == 3.5
