"""The times of first hitting: with a network that reads t, samples have the law of the ancestral chain in the limit."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import combinations, pairwise, product
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import guidekit as gk
from guidekit.models.base import Mixed

V, L, MASK = 2, 3, 2
CLEAN = torch.cartesian_prod(*[torch.arange(V)] * L)
STATES = torch.cartesian_prod(*[torch.arange(V + 1)] * L)
FIRST = gk.solvers.FirstHitting


def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """Logits that swing with the time, at each position in its own way, and depend on the tokens that are there."""
    place = torch.arange(L, dtype=torch.float64)
    known = (x == 1).sum(1, keepdim=True).double() - (x == 0).sum(1, keepdim=True)
    logit = 2.5 * torch.sin(7.0 * t.double()[:, None] + place) + 0.8 * known * torch.cos(place)
    return torch.stack([torch.zeros_like(logit), logit], -1)


MODEL = gk.MaskedModel(net, V, L, dtype=torch.float64)


def predicted(t: float) -> np.ndarray:
    """p_i(v | x, t) of all states, (27, L, V)."""
    return net(STATES, torch.full((len(STATES),), t), None).softmax(-1).numpy()


def pushed(steps: int) -> np.ndarray:
    """The law of x_0 under the ancestral chain, over all states, through the kernels of so many steps."""
    law, masked = (STATES == MASK).all(1).double().numpy(), (STATES == MASK).numpy()[..., None]
    same = torch.nn.functional.one_hot(STATES, V + 1).double().numpy()
    for k in range(steps):
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        reveals = np.concatenate([(1 - s / t) * predicted(t), np.full((len(STATES), L, 1), s / t)], -1)
        q = np.where(masked, reveals, same)
        law = np.einsum("x,xa,xb,xc->abc", law, q[:, 0], q[:, 1], q[:, 2], optimize=True).ravel()
    return law.reshape((V + 1,) * L)[:V, :V, :V].ravel()


@lru_cache
def ancestral() -> np.ndarray:
    """The same in the limit of many steps, of which the error of the first order is taken away."""
    return 2 * pushed(400) - pushed(200)


def revealed(law: dict[tuple[int, ...], float], count: int, t: float) -> Counter:
    """The law over states after so many positions, chosen uniformly, have been drawn by the network at t."""
    p, found = predicted(t), Counter()
    for x, weight in law.items():
        own = p[int(np.dot(x, (V + 1) ** np.arange(L - 1, -1, -1)))]
        masks = [i for i in range(L) if x[i] == MASK]
        for where in combinations(masks, count):
            for letters in product(range(V), repeat=count):
                new = dict(zip(where, letters, strict=True))
                chance = np.prod([own[i, v] for i, v in new.items()]) / comb(len(masks), count)
                found[tuple(new.get(i, x[i]) for i in range(L))] += weight * float(chance)
    return found


def of(law: dict[tuple[int, ...], float]) -> np.ndarray:
    return np.array([law.get(x, 0.0) for x in product(range(V), repeat=L)])


def told_the_share() -> np.ndarray:
    """The law of x_0 if the network is told n/L."""
    law = {(MASK,) * L: 1.0}
    for n in range(L, 0, -1):
        law = revealed(law, 1, n / L)
    return of(law)


def two_moves(first: int, points: int = 24) -> np.ndarray:
    """That of so many positions and then the rest. The latest of three uniform times is u^(1/3), and the next one below
    it that is still to come is late v^(1/2) of two, or the earliest of these, late (1 - (1 - v)^(1/2))."""
    total, grid = np.zeros(V**L), (np.arange(points) + 0.5) / points
    for late in grid ** (1 / 3):
        law = revealed({(MASK,) * L: 1.0}, first, late)
        for v in grid:
            total += of(revealed(law, L - first, late * (v**0.5 if first == 1 else 1 - (1 - v) ** 0.5)))
    return total / points**2


def counted(x: Tensor) -> np.ndarray:
    return np.bincount((x * V ** torch.arange(L - 1, -1, -1)).sum(1).numpy(), minlength=V**L)


def chi(x: Tensor, law: np.ndarray) -> float:
    return float(((counted(x) - len(x) * law) ** 2 / (len(x) * law)).sum())


def test_samples_have_the_law_of_the_ancestral_chain_with_many_steps():
    exact = ancestral()
    assert exact.sum() == pytest.approx(1, abs=1e-6)
    assert np.abs(told_the_share() - exact).sum() / 2 > 0.1  # a law that is told from it at once
    x = gk.sample(MODEL, 20_000, steps=L, solver=FIRST(), seed=3).x
    assert chi(x, exact) < 30  # of 7 degrees of freedom: by chance once in 10^4


@pytest.mark.parametrize("first", [1, 2])
def test_of_several_positions_at_a_time_the_network_is_asked_at_the_time_of_the_first(first: int):
    solver = {1: FIRST(tokens=2), 2: gk.solvers.LSD((0.2, 0.9, 1.0))}[first]
    assert solver.counts(2, L) == [L, L - first, 0]
    law = two_moves(first)
    assert np.abs(law - ancestral()).sum() / 2 > 0.02
    assert chi(gk.sample(MODEL, 20_000, steps=2, solver=solver, seed=4).x, law) < 30


def reward(x: Tensor) -> Tensor:
    return 0.9 * x[:, 0] - 0.6 * (x[:, 1] == x[:, 2]).double()


@pytest.mark.parametrize("name", ["FK", "SVDD", "FK and a proposal"])
def test_weighted_means_are_unbiased_with_four_particles(name: str):
    """Copies inherit the time of their particle, and children have their own."""
    guides = {
        "FK": [gk.FKSteering(reward, 0.6, ess=0.9)],
        "SVDD": [gk.SVDD(reward, 0.6, candidates=3)],
        "FK and a proposal": [gk.FKSteering(reward, 0.6, ess=0.9), gk.Temperature(0.7, steer=True)],
    }[name]
    groups = 1500
    given = {"cond": [None] * groups, "seed": list(range(groups)), "guides": guides}
    found = gk.sample(MODEL, 4, steps=L, solver=FIRST(), **given)
    truth = ancestral() * (reward(CLEAN) / 0.6).exp().numpy()
    for feature in (lambda x: torch.ones(len(x)), lambda x: x[:, 1].double(), lambda x: (x[:, 2] == x[:, 0]).double()):
        mean = (found.log_weights.exp() * feature(found.x)).view(groups, 4).mean(1)
        error = mean.mean() - float(truth @ feature(CLEAN).double().numpy())
        assert abs(float(error / (mean.std() / groups**0.5))) < 4.5


@pytest.mark.parametrize("guides", [[], [gk.FKSteering(reward, 0.5)]], ids=["plain", "FK"])
def test_times_follow_from_the_noise_and_runs_resume(guides: list[gk.Guide], tmp_path: Any):
    options: dict[str, Any] = {"steps": L, "solver": FIRST(), "guides": guides}
    whole = gk.sample(MODEL, 40, **options)
    assert torch.equal(whole.x, gk.sample(MODEL, 40, batch_size=7, **options).x)
    noise = gk.Run(MODEL, 40, **options).chain_noise()
    if not guides:  # which draw by the seed
        assert torch.equal(whole.x, gk.sample(MODEL, 40, noise=noise, seed=9, **options).x)

    def stop(population: gk.Population, step: gk.Step) -> None:
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gk.sample(MODEL, 40, checkpoint=tmp_path / "run", callbacks=[stop], **options)
    assert torch.equal(whole.x, gk.sample(MODEL, 40, checkpoint=tmp_path / "run", **options).x)


def uniform(pop: gk.Population, top: float) -> float:
    """How likely it is that the times are the latest of as many uniform ones below the top as there are masks."""
    assert pop.times is not None
    masks = (pop.x == MASK).sum(1)
    some = masks > 0
    return float(kstest(((pop.times[some] / top) ** masks[some]).numpy(), "uniform").pvalue)


def after(run: gk.Run, moves: int) -> gk.Population:
    with run.borrowed():
        pop = run.start()
        for index in range(moves):
            pop = run.advance(pop, index)
    return pop


def test_times_begin_where_the_noise_ended():
    """At the first time, at that of a start from samples, after a move up, and where a part is known or not there."""
    start = gk.StartFrom(torch.tensor([1, 0, 1]), level=0.7)  # the first time of the grid below is 2/3
    keep = gk.Keep(torch.tensor([1, 0, 1]), torch.tensor([False, True, False]))
    short = gk.MaskedModel(lambda x, t, cond: net(x, t, cond), V, L, end=0, lengths=[0.2, 0.5, 0.3])
    up = gk.Run(MODEL, 3000, steps=[1.0, 0.4, 0.9, 0.0], solver=FIRST())
    assert uniform(after(gk.Run(MODEL, 3000, steps=L, solver=FIRST()), 0), 1.0) > 1e-4
    assert uniform(after(gk.Run(MODEL, 3000, steps=L, solver=FIRST(), guides=[start]), 0), 2 / 3) > 1e-4
    assert uniform(after(up, 2), 0.9) > 1e-4 and uniform(after(up, 2), 1.0) < 1e-4
    known = gk.Run(MODEL, 3000, steps=L, solver=FIRST(), guides=[keep])
    assert uniform(after(known, 0), 1.0) > 1e-4
    waiting = after(known, 1)  # a row with two masks of three waits for its turn
    assert waiting.times is not None and bool(((waiting.x == MASK).sum(1) == 2).all())
    assert uniform(waiting, 1.0) > 1e-4
    assert uniform(after(gk.Run(short, 3000, steps=L, solver=FIRST()), 0), 1.0) > 1e-4


def test_the_time_falls_from_move_to_move_as_that_of_the_next_position():
    """t'' = t' u^(1/n) with n masks left, whatever t' was."""
    run = gk.Run(MODEL, 4000, steps=L, solver=FIRST(), seed=6)
    pops = [after(run, moves) for moves in range(L)]
    for n, (before, now) in zip((2, 1), pairwise(pops), strict=True):
        assert before.times is not None and now.times is not None
        share = (now.times / before.times) ** n
        assert kstest(share.numpy(), "uniform").pvalue > 1e-4
        assert abs(float(torch.corrcoef(torch.stack([share, before.times]))[0, 1])) < 0.07


def test_a_network_that_does_not_read_t_is_spared_the_times():
    class Timeless:
        timed = False

        def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            assert len(t.unique()) == 1
            return net(x, t * 0, cond)

    run = gk.Run(gk.MaskedModel(Timeless(), V, L, dtype=torch.float64), 50, steps=L, solver=FIRST())
    assert run.clock is None and after(run, 1).times is None
    assert run.cost.network_rows < 20  # equal rows are evaluated once


def test_classifiers_and_other_networks_are_asked_at_the_times_of_the_rows():
    told: list[Tensor] = []

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        told.append(t)
        return -(x == 1).sum(1).double() * t

    layer = torch.nn.Linear(1, 1)
    module = gk.MaskedModel(torch.nn.Sequential(layer), V, L)
    assert module.timed
    run = gk.Run(MODEL, 5, steps=L, solver=FIRST(), guides=[gk.DCBG(classifier)])
    pop = after(run, 0)
    assert pop.times is not None
    assert torch.equal(told[0].view(5, -1), pop.times.float()[:, None].expand(5, L * V))
    view = run.view(pop, 0)
    assert torch.equal(view.evaluate(pop.x, 1.0)[next(iter(view.evals))], view.evals[next(iter(view.evals))])


def test_a_weaker_network_is_asked_at_the_times_of_the_rows_too():
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(1, L * V, dtype=torch.float64)

        def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            return self.inner(t[:, None]).view(-1, L, V) + 0.1 * x[..., None]

    weak = gk.weakened(gk.MaskedModel(Small(), V, L, dtype=torch.float64), drop=["inner"], share=0.4)
    x, times = CLEAN[:3], torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)
    apart = torch.cat([weak(x[i : i + 1], float(t), None) for i, t in enumerate(times)])
    torch.testing.assert_close(weak.mixed(x, Mixed.of(times), None), apart)
    torch.testing.assert_close(weak.mixed(x[[2, 0]], Mixed.of(times).take(torch.tensor([2, 0])), None), apart[[2, 0]])


def test_solvers_that_reveal_at_random_share_the_times():
    plain = gk.sample(MODEL, 200, steps=L, solver=FIRST(), seed=2).x
    assert torch.equal(plain, gk.sample(MODEL, 200, steps=L, solver=gk.solvers.LSD((0.1, 0.2, 0.3)), seed=2).x)
    nothing = gk.solvers.Joint(torch.zeros(L, V, 1), torch.zeros(L, V, 1), tokens=2)
    pairs = gk.sample(MODEL, 200, solver=FIRST(tokens=2), seed=2).x
    assert torch.equal(pairs, gk.sample(MODEL, 200, solver=nothing, seed=2).x)


def test_a_model_that_knows_one_time_in_each_forward_is_refused_before_the_first_call():
    both = gk.Stitched(MODEL, MODEL, 0.5)
    with pytest.raises(ValueError, match=r"FirstHitting.*time of its own.*Stitched.*one time.*Ancestral"):
        gk.Run(both, 2, steps=L, solver=FIRST())
