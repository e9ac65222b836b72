"""Search over noise: laws, optima, reproduction of every result by its noise, budgets, folders and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import guidekit as gk
from guidekit.search.sphere import between, gumbel_to_normal, normal_to_gumbel, turned
from guidekit.search.verify import Verifier
from rewards import ByGroup, Reward

from .problems import PROBLEMS, STEPS

S = gk.search
every = pytest.mark.parametrize("name", PROBLEMS)

SEARCHES = {
    "random": lambda *a, **o: S.random(*a, rounds=3, candidates=3, **o),
    "zero_order": lambda *a, **o: S.zero_order(*a, rounds=4, neighbours=3, **o),
    "evolution": lambda *a, **o: S.evolution(*a, rounds=3, population=4, **o),
    "cma": lambda *a, **o: S.cma(*a, rounds=3, candidates=6, **o),
    "paths": lambda *a, **o: S.paths(*a, levels=3, width=2, branch=2, **o),
    "gradient": lambda *a, **o: S.gradient(*a, rounds=4, rate=1.0, **o),
}
searches = pytest.mark.parametrize("kind", SEARCHES)


def tokens(name: str) -> bool:
    return name in ("masked", "uniform")


def normal(d: int = 1) -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture([1.0], torch.zeros(1, d, dtype=torch.float64), [1.0], gk.schedules.Flow())


def first(x: Tensor) -> Tensor:
    return x[:, 0]


# geometry ------------------------------------------------------------------------------------------------------------


def test_noise_is_turned_by_the_angle_and_keeps_its_norm():
    generator = torch.Generator().manual_seed(0)
    z, w = torch.randn(2, 50, 7, generator=generator, dtype=torch.float64)
    angle = torch.linspace(0, math.pi / 2, 50, dtype=torch.float64)
    new = turned(z, w, angle)
    assert torch.allclose(new.norm(dim=1), z.norm(dim=1))
    assert torch.allclose((new * z).sum(1) / z.square().sum(1), angle.cos(), atol=1e-12)
    assert ((new * w).sum(1) >= angle.cos() * (z * w).sum(1) - 1e-9).all()  # towards w and not away
    share = torch.rand(50, generator=generator, dtype=torch.float64)
    point = between(z, w, share)
    whole, part = (((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).arccos() for a, b in ((z, w), (z, point)))
    assert torch.allclose(part, share * whole)
    assert torch.allclose(point.norm(dim=1), (1 - share) * z.norm(dim=1) + share * w.norm(dim=1))
    assert torch.allclose(between(z, w, torch.ones(50, dtype=torch.float64)), w)


def test_normal_coordinates_of_gumbel_noise_have_the_normal_law_and_lead_back():
    g = gk.random.gumbel(gk.random.fold(gk.random.key(1), torch.arange(20_000)))
    z = gumbel_to_normal(g)
    assert torch.allclose(normal_to_gumbel(z), g, rtol=1e-9, atol=1e-9)
    far = torch.tensor([-3.5, -2.0, 0.0, 10.0, 30.0, 36.0], dtype=torch.float64)
    assert torch.allclose(normal_to_gumbel(gumbel_to_normal(far)), far, rtol=1e-9)
    u = torch.special.ndtr(z).sort().values
    assert (u - torch.arange(1, 20_001) / 20_000).abs().max() < 1.95 / 20_000**0.5  # Kolmogorov, level .001
    assert float(torch.corrcoef(torch.stack([z, g]))[0, 1]) > 0.9  # increasing


# every search --------------------------------------------------------------------------------------------------------


@every
@searches
def test_the_noise_of_a_result_gives_its_samples_to_the_bit_and_conditions_are_apart(kind: str, name: str):
    if kind == "gradient" and tokens(name):
        return
    p, options = PROBLEMS[name], {"steps": STEPS, "cond": [PROBLEMS[name].cond, None], "seed": [3, 4]}
    found = SEARCHES[kind](p.model, 4, p.reward, **options)
    again = gk.sample(p.model, 4, noise=found.noise, **options | {"steps": found.times})
    assert torch.equal(again.x, found.x)
    assert torch.allclose(found.rewards, p.reward(found.x).double())
    assert found.rewards.mean() > gk.sample(p.model, 4, reward=p.reward, **options).rewards.mean() + 0.1
    for g, cond in enumerate(options["cond"]):
        alone = SEARCHES[kind](p.model, 4, p.reward, **options | {"cond": cond, "seed": 3 + g})
        assert torch.equal(alone.x, found.x[found.group == g])
    row = found.summary()[1]
    assert row["n"] == 4 and abs(row["reward"] - float(found.rewards[4:].mean())) < 1e-12
    best = found.best(2)
    once = gk.sample(p.model, 2, noise=best.noise, **options | {"steps": found.times})
    assert torch.allclose(once.x.double(), best.x.double())


@pytest.mark.parametrize("kind", ["random", "zero_order", "evolution", "cma", "gradient"])
def test_with_a_deterministic_solver_the_starting_noise_is_searched(kind: str):
    p = PROBLEMS["flow-2d"]
    options = {"steps": STEPS, "cond": p.cond, "solver": gk.solvers.DPMpp(2), "guides": [gk.CFG(1.5)]}
    found = SEARCHES[kind](p.model, 4, p.reward, **options)
    assert found.noise.shape == (4, 2)
    assert torch.equal(gk.sample(p.model, 4, noise=found.noise, **options).x, found.x)
    assert torch.allclose(found.rewards, p.reward(found.x).double())


def test_guides_with_randomness_of_their_own_are_the_same_for_every_candidate_and_in_the_end():
    p = PROBLEMS["vp-1d"]
    options = {"steps": STEPS, "cond": p.cond, "guides": [Jitter(0.5)]}
    found = S.random(p.model, 3, p.reward, rounds=2, candidates=3, **options)
    assert torch.equal(gk.sample(p.model, 3, noise=found.noise, **options).x, found.x)
    assert torch.allclose(found.rewards, p.reward(found.x).double())


# random --------------------------------------------------------------------------------------------------------------


@every
def test_random_search_is_best_of_n(name: str):
    p = PROBLEMS[name]
    options = {"steps": STEPS, "cond": [p.cond, None], "seed": [1, 2]}
    whole = gk.sample(p.model, 6, guides=[gk.BestOfN(p.reward, 6)], **options)
    for rounds in (1, 3):
        found = S.random(p.model, 6, p.reward, rounds=rounds, candidates=6 // rounds, **options)
        assert torch.equal(found.x, whole.x)  # also with the winner in an early round


@pytest.mark.parametrize("candidates, mean", [(2, 0.564), (4, 1.029), (8, 1.424), (16, 1.766)])
def test_the_best_of_n_has_the_law_of_the_largest(candidates: int, mean: float):
    base = gk.analytic.GaussianMixture([1.0], [0.0], [1.0]).exact()
    x = S.random(base, 4000, first, rounds=2, candidates=candidates // 2, steps=1).x[:, 0].double()
    # the largest of two has sd .826, of more a smaller one: standard error .0131, level 4 of it
    assert abs(float(x.mean()) - mean) < 0.053
    u = (torch.special.ndtr(x) ** candidates).sort().values
    assert (u - torch.arange(1, 4001) / 4000).abs().max() < 1.95 / 4000**0.5


def test_rewards_do_not_fall_as_the_budget_grows():
    p, before = PROBLEMS["masked"], None
    for rounds in (1, 2, 4, 8):
        found = S.random(p.model, 20, p.reward, rounds=rounds, candidates=2, steps=STEPS, cond=p.cond)
        assert before is None or (found.rewards >= before).all()
        assert len(found.rounds) == rounds and found.rounds["best_reward"].diff(dim=0).ge(0).all()
        before = found.rewards
    assert before is not None and before.mean() > 0.9


# zero order ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_zero_order_search_climbs_a_linear_reward_to_the_optimum_of_the_sphere():
    """x is linear in z here, so the optimum on the sphere of the first noise is where z is along b."""
    base, b = normal(5), torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0], dtype=torch.float64)
    options = {"steps": 4, "solver": gk.solvers.DDIM()}
    found = S.zero_order(base, 8, lambda x: x @ b, rounds=150, neighbours=4, shrink=0.9, **options)
    start = gk.sample(base, 8, **options).noise
    assert torch.allclose(found.noise.norm(dim=1), start.norm(dim=1))
    top = gk.sample(base, 8, noise=start.norm(dim=1, keepdim=True) * b / b.norm(), reward=lambda x: x @ b, **options)
    assert (found.rewards <= top.rewards + 1e-9).all()
    assert (found.rewards > 0.995 * top.rewards).all()
    fixed = S.zero_order(base, 8, lambda x: x @ b, rounds=150, neighbours=4, **options)
    assert 0.9 < float((fixed.rewards / top.rewards).mean()) < float((found.rewards / top.rewards).mean())


def test_neighbours_lie_at_the_radius_around_the_best_pivot_ever_seen():
    """The usual angle has cosine .95; the pivot is the plain noise, and stays where no neighbour is better."""
    space = S.Space.of(gk.Run(normal(6), 3, steps=4, solver=gk.solvers.DDIM()), None)
    search = S.ZeroOrder(neighbours=5)
    search.begin(space)
    asked = search.ask()
    assert asked.shape == (3, 6, 6)
    plain = gk.sample(normal(6), 3, steps=4, solver=gk.solvers.DDIM()).noise
    assert torch.equal(asked[:, 0], plain)
    cosine = torch.nn.functional.cosine_similarity(asked[:, 1:], plain[:, None], dim=-1)
    assert torch.allclose(cosine, torch.full_like(cosine, 0.95))
    rewards = torch.zeros(3, 6, dtype=torch.float64)
    rewards[0, 2] = rewards[1, 0] = 1.0
    rewards[2] = -torch.inf  # nothing could be scored
    search.tell(asked, rewards)
    assert torch.equal(search.pivot, torch.stack([asked[0, 2], plain[1], plain[2]]))
    after = search.ask()
    assert after.shape == (3, 5, 6) and not torch.equal(after[1], asked[1, 1:])
    search.tell(after, torch.full((3, 5), 0.5, dtype=torch.float64))
    assert torch.equal(search.pivot[:2], torch.stack([asked[0, 2], plain[1]]))
    assert torch.equal(search.pivot[2], after[2, 0])


def test_the_radius_shrinks_where_no_neighbour_is_better_and_only_there():
    """Three samples: one improves in both rounds, one in the second alone, one never."""
    space = S.Space.of(gk.Run(normal(6), 3, steps=4, solver=gk.solvers.DDIM()), None)
    search = S.ZeroOrder(neighbours=2, radius=0.8, shrink=0.5)
    search.begin(space)
    search.tell(search.ask(), torch.zeros(3, 3, dtype=torch.float64))  # the first round sets what is to be beaten
    wanted = [[0.8, 0.8, 0.8], [0.8, 0.4, 0.4], [0.8, 0.4, 0.2]]
    for angles, rewards in zip(wanted, ([[1, 0], [0, 0], [-1, 0]], [[1, 2], [0, 3], [0, -1]], None), strict=True):
        pivot, asked = search.pivot, search.ask()
        cosine = torch.nn.functional.cosine_similarity(asked, pivot[:, None], dim=-1)
        assert torch.allclose(cosine, torch.tensor(angles).double().cos()[:, None].expand(3, 2))
        if rewards is not None:
            search.tell(asked, torch.tensor(rewards, dtype=torch.float64))


# evolution, CMA, others' optimisers ----------------------------------------------------------------------------------


def hard(x: Tensor) -> Tensor:
    return -(x - torch.linspace(-1, 1, x.shape[1], dtype=x.dtype)).square().sum(1)


@pytest.mark.parametrize("kind", ["zero_order", "evolution", "cma"])
def test_what_is_learned_beats_fresh_noise_at_the_same_cost(kind: str):
    """In 12 dimensions, 24 rounds of 8. Differences of 40 independent samples, in their standard errors."""
    base, options = normal(12), {"steps": 2, "solver": gk.solvers.DDIM()}
    plain = S.random(base, 40, hard, rounds=24, candidates=8, **options)
    size = {"zero_order": "neighbours", "evolution": "population", "cma": "candidates"}[kind]
    found = getattr(S, kind)(base, 40, hard, rounds=24, **{size: 8}, **options)
    assert found.cost.network_rows <= plain.cost.network_rows + 40 * 2
    gain = found.rewards - plain.rewards
    assert gain.mean() > 5 * gain.std() / 40**0.5


def test_children_of_evolution_lie_between_their_parents_and_the_best_live():
    space = S.Space.of(gk.Run(normal(9), 2, steps=2, solver=gk.solvers.DDIM()), None)
    search = S.Evolution(population=6, mutation=0.0)
    search.begin(space)
    z = search.ask()
    order = torch.tensor([[5, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]).double()
    search.tell(z, order)
    better = [z[0, [0, 5, 4]], z[1, [5, 4, 3]]]
    assert torch.equal(search.z[0, :3], better[0].double()) and torch.equal(search.z[1, :3], better[1].double())
    for cell, children in enumerate(search.ask()):
        norms = better[cell].norm(dim=1)
        assert (children.norm(dim=1) <= norms.max() + 1e-9).all() and (children.norm(dim=1) >= norms.min() - 1e-9).all()
        # in the plane of two of the three parents: nothing is left outside the span of all three
        basis = torch.linalg.qr(better[cell].T).Q
        assert torch.allclose(children @ basis @ basis.T, children, atol=1e-9)
    search.tell(children.expand(2, 6, 9), torch.full((2, 6), 2.5, dtype=torch.float64))
    assert search.rewards[1].tolist() == [5, 4, 3, 2.5, 2.5, 2.5]


def test_candidates_of_cma_keep_the_law_of_the_norm_and_turn_to_the_best():
    space = S.Space.of(gk.Run(normal(10), 300, steps=2, solver=gk.solvers.DDIM()), None)
    for project in (True, False):
        search = S.CMA(8, project=project)
        search.begin(space)
        for _ in range(12):
            z = search.ask()
            search.tell(z, z[..., 0])
        z = search.ask()
        square = z.square().sum(-1).mean()
        # |z|^2 has mean 10 and sd sqrt(20): standard error .091 with 2400 candidates
        assert (abs(float(square) - 10) < 0.4) is project
        assert z[..., 0].mean() > 2
        assert z[..., 1:].mean().abs() < 0.1 * z[..., 0].mean()


def test_cma_updates_are_those_of_the_paper():
    """One tell, written out: k = 4, mu = 2, d = 3, from m = 0 and sigma = C = 1."""
    space = S.Space.of(gk.Run(normal(3), 1, steps=2, solver=gk.solvers.DDIM()), None)
    search = S.CMA(4)
    search.begin(space)
    z = search.ask()
    search.tell(z, torch.tensor([[0.0, 3.0, 2.0, -torch.inf]], dtype=torch.float64))
    w = torch.tensor([math.log(2.5), math.log(2.5) - math.log(2)]).double()
    w = w / w.sum()
    e = float(1 / (w**2).sum())
    mean = w[0] * z[0, 1] + w[1] * z[0, 2]
    c_s, c_c, c_1 = (e + 2) / (e + 8), 4 / 7, 5 / 3 * 2 / (4.3**2 + e)
    c_mu = min(1 - c_1, 5 / 3 * 2 * (e - 2 + 1 / e) / (25 + e))
    path = math.sqrt(c_c * (2 - c_c) * e) * mean
    c = 1 - c_1 - c_mu + c_1 * path**2 + c_mu * (w[0] * z[0, 1] ** 2 + w[1] * z[0, 2] ** 2)
    length = (math.sqrt(c_s * (2 - c_s) * e) * mean).norm() / (3**0.5 * (1 - 1 / 12 + 1 / 189))
    damping = 1 + 2 * max(0, ((e - 1) / 4) ** 0.5 - 1) + c_s
    assert torch.allclose(search.mean[0], mean)
    assert torch.allclose(search.c[0], c)
    assert torch.allclose(search.sigma[0, 0], (c_s / damping * (length - 1)).exp())


def test_cma_follows_the_paper_round_after_round():
    """Six rounds in numpy, for one sample: from the second on C is not 1, and the path of sigma is whitened by it."""
    space = S.Space.of(gk.Run(normal(3), 1, steps=2, solver=gk.solvers.DDIM()), None)
    search = S.CMA(6)
    search.begin(space)
    d, mu = 3, 3
    w = math.log(mu + 0.5) - np.log(np.arange(1, mu + 1))
    w /= w.sum()
    e = 1 / (w**2).sum()
    c_s, c_c, c_1 = (e + 2) / (d + e + 5), 4 / (d + 4), min(1, (d + 2) / 3 * 2 / ((d + 1.3) ** 2 + e))
    c_mu = min(1 - c_1, (d + 2) / 3 * 2 * (e - 2 + 1 / e) / ((d + 2) ** 2 + e))
    damping = 1 + 2 * max(0, ((e - 1) / (d + 1)) ** 0.5 - 1) + c_s
    usual = d**0.5 * (1 - 1 / (4 * d) + 1 / (21 * d**2))
    m, path_s, path_c, c, sigma = np.zeros(d), np.zeros(d), np.zeros(d), np.ones(d), 1.0
    for _ in range(6):
        z = search.ask()
        value = -((z - torch.tensor([2.0, -1.0, 0.5])) * torch.tensor([5.0, 1.0, 0.2])).square().sum(-1).double()
        search.tell(z, value)
        y = (z[0].double().numpy() - m) / sigma
        y = y[np.argsort(-value[0].numpy(), kind="stable")[:mu]]
        step = w @ y
        m = m + sigma * step
        path_s = (1 - c_s) * path_s + (c_s * (2 - c_s) * e) ** 0.5 * step / c**0.5
        path_c = (1 - c_c) * path_c + (c_c * (2 - c_c) * e) ** 0.5 * step
        c = (1 - c_1 - c_mu) * c + c_1 * path_c**2 + c_mu * (w @ y**2)
        sigma *= math.exp(c_s / damping * (np.linalg.norm(path_s) / usual - 1))
        np.testing.assert_allclose(search.mean[0], m, rtol=1e-9)
        np.testing.assert_allclose(search.c[0], c, rtol=1e-9)
        np.testing.assert_allclose(search.sigma[0, 0], sigma, rtol=1e-9)
    assert c.max() > 2 * c.min()


class Walker:
    """A (1 + k) random walk as another library would have it: lists and losses."""

    def __init__(self, size: int, seed: int):
        self.draw = torch.Generator().manual_seed(seed)
        self.size, self.best, self.loss, self.told = size, torch.zeros(size).tolist(), math.inf, []

    def ask(self) -> list[list[float]]:
        steps = torch.randn(5, self.size, generator=self.draw).double()
        return (torch.tensor(self.best).double() + steps).tolist()

    def tell(self, vectors, losses) -> None:
        self.told += losses
        for v, loss in zip(vectors, losses, strict=True):
            if loss < self.loss:
                self.best, self.loss = list(v), loss


@pytest.mark.parametrize("name", ["flow-2d", "uniform"])
def test_an_optimiser_of_another_library_plugs_in(name: str):
    p, options = PROBLEMS[name], {"steps": STEPS, "cond": [1, None] if name == "flow-2d" else [0, None]}
    own: list[Walker] = []

    def make(size: int, seed: int) -> Walker:
        own.append(Walker(size, seed))
        return own[-1]

    found = S.run(p.model, 3, p.reward, S.Each(make), rounds=6, **options)
    assert len(own) == 6 and all(len(walker.told) == 30 for walker in own)
    assert torch.allclose(found.rewards, -torch.tensor([walker.loss for walker in own], dtype=torch.float64))
    assert torch.equal(gk.sample(p.model, 3, noise=found.noise, **options).x, found.x)
    assert own[0].told[:5] != own[1].told[:5]


# budgets -------------------------------------------------------------------------------------------------------------


def test_budgets_are_not_passed_and_are_used_up():
    p, options = PROBLEMS["flow-2d"], {"steps": STEPS, "cond": [1, None], "guides": [gk.CFG(2.0)]}
    round_ = 2 * 3 * 4 * STEPS * 2  # groups, samples, candidates, steps, branches of CFG
    last = 2 * 3 * STEPS * 2
    for rows, rounds in ((round_ + last, 1), (2 * round_ + last - 1, 1), (5 * round_ + last, 5)):
        found = S.run(p.model, 3, p.reward, S.Random(4), budget=S.Budget(rows=rows), **options)
        assert len(found.rounds) == rounds
        assert found.cost.network_rows == rounds * round_ + last <= rows
    found = S.run(p.model, 3, p.reward, S.Random(4), budget=S.Budget(calls=60), **options)
    assert found.cost.reward_calls == 48
    found = S.run(p.model, 3, p.reward, S.Random(4), rounds=99, budget=S.Budget(target=1.0), **options)
    assert found.rewards.min() >= 1.0 and 1 < len(found.rounds) < 99
    early = S.run(p.model, 3, p.reward, S.Random(4), rounds=len(found.rounds) - 1, **options)
    assert early.rewards.min() < 1.0
    long = S.random(p.model, 3, p.reward, candidates=4, budget=S.Budget(rows=20 * round_), **options)
    assert len(long.rounds) == 19  # more than the usual number
    slow = S.run(p.model, 3, p.reward, S.Random(4), budget=S.Budget(seconds=0.2), **options)
    assert 1 <= len(slow.rounds) < 2000  # without rounds or another limit it would not end


@pytest.mark.usefixtures("every_row")
def test_reward_calls_are_counted_and_equal_samples_of_a_round_scored_once():
    p, seen = PROBLEMS["masked"], []

    def reward(x):
        seen.append(len(x))
        return p.reward(x)

    found = S.random(p.model, 50, reward, rounds=2, candidates=4, steps=STEPS, cond=p.cond)
    assert found.cost.reward_calls == sum(seen) <= 2 * 27  # states
    assert found.cost.network_rows == 50 * 9 * STEPS


@searches
def test_the_bar_shows_the_best_reward_and_what_is_left(kind: str, capsys):
    p = PROBLEMS["flow-2d"]
    rounds = len(SEARCHES[kind](p.model, 2, p.reward, steps=STEPS, cond=1, progress=True).rounds)
    said = capsys.readouterr().err
    assert f"{rounds}/{rounds}" in said and "best=" in said and "rounds left=0" in said
    assert not capsys.readouterr().out


# folders -------------------------------------------------------------------------------------------------------------


@searches
@pytest.mark.parametrize("name", ["flow-2d", "masked"])
def test_a_killed_search_goes_on_to_the_same_end(kind: str, name: str, tmp_path: Path):
    if kind == "gradient" and tokens(name):
        return
    p, options = PROBLEMS[name], {"steps": STEPS, "cond": [PROBLEMS[name].cond, None], "seed": 5}
    whole = SEARCHES[kind](p.model, 3, Killed(p.reward, 10**9), **options)
    killed = Killed(p.reward, 2 if tokens(name) else 3)  # of tokens, a round that brings nothing new takes no call
    with pytest.raises(KeyboardInterrupt):
        SEARCHES[kind](p.model, 3, killed, folder=tmp_path / "run", **options)
    log = tmp_path / "run" / "evaluations.jsonl"
    ends = [json.loads(line) for line in log.read_text().splitlines() if '"end"' in line]
    assert 0 < len(ends) < len(whole.rounds) if tokens(name) else len(ends) == 2
    log.write_text(log.read_text() + '{"round": 2, "condition": 0, "scores": [1.0]}\n{"round": 2, "cond')
    killed.left = 10**9
    resumed = SEARCHES[kind](p.model, 3, killed, folder=tmp_path / "run", **options)
    assert torch.equal(resumed.x, whole.x) and torch.equal(resumed.noise, whole.noise)
    assert torch.equal(resumed.rewards, whole.rewards)
    assert resumed.cost.network_rows == whole.cost.network_rows
    assert resumed.cost.reward_calls == whole.cost.reward_calls
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.rounds]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in whole.rounds]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum("scores" in row for row in rows) == sum(6 * row["candidates"] for row in whole.rounds)
    before = killed.calls
    done = SEARCHES[kind](p.model, 3, killed, folder=tmp_path / "run", **options)
    assert torch.equal(done.x, whole.x) and killed.calls == before  # nothing is scored again
    with pytest.raises(gk.CheckpointError, match="seed was 5 and is 6"):
        SEARCHES[kind](p.model, 3, killed, folder=tmp_path / "run", **options | {"seed": 6})


class Killed:
    """A reward during whose call number `left` the process dies; it is described alike before and after."""

    def __init__(self, reward, left: int):
        self.reward, self.left, self.calls = reward, left, 0

    def identity(self) -> str:
        return "killed"

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.left:
            raise KeyboardInterrupt
        return self.reward(x)


def test_a_longer_search_goes_on_where_a_shorter_one_ended_and_its_log_is_complete(tmp_path: Path):
    base = gk.analytic.TokenTable(torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0)))
    base._decode = lambda x: ["".join("ACGT"[v] for v in row) for row in x.tolist()]
    count = lambda samples: [s.count("A") - 0.1 * s.count("C") for s in samples]  # noqa: E731
    S.random(base, 2, count, rounds=2, candidates=3, steps=4, folder=tmp_path)
    more = S.random(base, 2, count, rounds=5, candidates=3, steps=4, folder=tmp_path)
    whole = S.random(base, 2, count, rounds=5, candidates=3, steps=4)
    assert more.samples == whole.samples and torch.equal(more.noise, whole.noise)
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "end" not in row]
    assert len(rows) == 5 * 2 * 3
    assert all(row["scores"] == count([row["text"]]) == [row["worth"]] for row in rows)
    for i in range(2):
        assert max(row["worth"] for row in rows if row["sample"] == i) == float(more.rewards[i])


def test_a_strategy_may_be_used_again_and_stays_as_it_was(tmp_path: Path):
    strategy, options = S.Evolution(4), {"rounds": 3, "steps": 3, "folder": tmp_path}
    before = dict(vars(strategy))
    one = S.run(normal(2), 2, first, strategy, **options)
    assert vars(strategy) == before
    two = S.run(normal(2), 2, first, strategy, **options)  # from the folder
    assert torch.equal(one.x, two.x) and len(two.rounds) == 3


def test_a_strategy_that_has_no_more_to_ask_ends_the_search():
    class Two(S.Random):
        def ask(self):
            return super().ask() if self.asked < 6 else None

    found = S.run(normal(2), 2, first, Two(3), rounds=9, steps=3)
    assert len(found.rounds) == 2
    with pytest.raises(ValueError, match="asked for no candidates"):
        S.run(normal(2), 2, first, Nothing(3), rounds=9, steps=3)


class Nothing(S.Random):
    def ask(self):
        return None


# several verifiers ---------------------------------------------------------------------------------------------------


def test_several_rewards_rank_together_whatever_their_scales():
    p = PROBLEMS["flow-2d"]
    options = {"steps": STEPS, "cond": [1, None], "rounds": 1, "candidates": 8}
    a, b = (lambda x: x[:, 0]), (lambda x: -x[:, 1].abs())
    found = S.random(p.model, 4, [a, b], **options)
    scaled = S.random(p.model, 4, [lambda x: 1000 * x[:, 0] + 5, lambda x: -x[:, 1].square()], **options)
    assert torch.equal(found.x, scaled.x) and torch.allclose(found.rewards, scaled.rewards)
    x = torch.stack([gk.sample(p.model, 32, steps=STEPS, cond=c).x.view(8, 4, 2) for c in (1, None)])
    scores = torch.stack([x[..., 0], -x[..., 1].abs()], -1)  # (condition, candidate, sample, reward)
    ranks = (scores[:, :, :, None, None] > scores[:, None, None]).double().sum((3, 4)).mean(-1) / 31
    assert torch.allclose(ranks.amax(1).flatten(), found.rewards)
    both = S.zero_order(p.model, 4, [a, b], rounds=20, steps=STEPS, cond=1)
    assert both.x[:, 0].mean() > 1 and both.x[:, 1].abs().mean() < 0.1
    alone = S.zero_order(p.model, 4, a, rounds=20, steps=STEPS, cond=1)
    assert alone.x[:, 1].abs().mean() > both.x[:, 1].abs().mean()


def test_what_beats_the_whole_first_round_still_climbs():
    verifier = Verifier.of([first, first])
    group = torch.tensor([0, 0])
    one = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).double()
    assert verifier.worth(one[..., None].expand(2, 2, 2), group).tolist() == [[0, 1 / 3], [pytest.approx(2 / 3), 1]]
    later = torch.tensor([[1.5, -1.0], [3.0 + 1.25**0.5, math.nan]]).double()
    worth = verifier.worth(later[..., None].expand(2, 2, 2), group)
    assert torch.allclose(worth[0], torch.tensor([0.5, -((1 / 1.25) ** 0.5)]).double())
    assert float(worth[1, 0]) == pytest.approx(2) and float(worth[1, 1]) == -math.inf


@pytest.mark.parametrize("kind", [k for k in SEARCHES if k != "gradient"])
@pytest.mark.parametrize("conds", [None, [None, None]], ids=["one condition", "two conditions"])
def test_every_sample_is_searched_from_its_own_start(kind: str, conds: list | None):
    """Rewards that a search was told are those of the samples that it returns, each of which is near its start."""
    x = torch.tensor([[-30.0, 0.0], [-10.0, 0.0], [10.0, 0.0], [30.0, 0.0]], dtype=torch.float64)
    n, guides = 4 // len(conds or [None]), [gk.StartFrom(x, level=0.1)]
    times = [0.1, 0.08, 0.06, 0.04, 0.02, 0.0]
    found = SEARCHES[kind](normal(2), n, lambda v: v.sum(1), steps=times, guides=guides, cond=conds)
    assert found.rewards is not None and torch.allclose(found.rewards, found.x.sum(1))
    assert bool((found.x[:, 0].diff() > 10).all())


def test_every_condition_may_have_a_reward_of_its_own():
    p = PROBLEMS["flow-2d"]
    own = [lambda x: x[:, 0], lambda x: -x[:, 1]]
    for kind in ("random", "paths", "gradient"):
        both = SEARCHES[kind](p.model, 4, ByGroup(own), steps=STEPS, cond=[1, None])
        for g, cond in enumerate([1, None]):
            alone = SEARCHES[kind](p.model, 4, own[g], steps=STEPS, cond=cond)
            assert torch.allclose(alone.x, both.x[both.group == g])


def test_a_holdout_sees_the_winners_alone():
    seen = []

    def judge(x):
        seen.append(len(x))
        return -x[:, 0]

    p = PROBLEMS["vp-1d"]
    found = S.random(p.model, 3, p.reward, rounds=2, candidates=4, steps=STEPS, cond=p.cond, holdout=judge)
    assert seen == [3] and torch.equal(found.holdout, -found.x[:, 0])


# what goes wrong -----------------------------------------------------------------------------------------------------


def test_a_verifier_that_fails_on_a_candidate_costs_that_candidate_only():
    p = PROBLEMS["vp-1d"]

    def raises(x):
        if (x[:, 0] > 0.8).any():
            raise RuntimeError("it does not parse")
        return x[:, 0]

    def unknown(x):
        return torch.where(x[:, 0] > 0.8, torch.nan, x[:, 0])

    for kind in ("random", "zero_order", "evolution", "cma"):
        options = {"steps": STEPS, "cond": [p.cond, None]}
        a, b = (SEARCHES[kind](p.model, 4, r, **options) for r in (raises, unknown))
        assert torch.equal(a.x, b.x) and torch.equal(a.rewards, b.rewards)
        assert a.rewards.max() <= 0.8 and a.cost.unscored == b.cost.unscored > 0
    reward = lambda x: torch.where(x[:, 0] > -9, x[:, 0], torch.nan)  # noqa: E731
    assert torch.equal(
        SEARCHES["random"](p.model, 4, reward, **options).x, SEARCHES["random"](p.model, 4, first, **options).x
    )


def test_a_verifier_that_always_fails_is_an_error_and_what_was_found_stays(tmp_path: Path):
    p, calls = PROBLEMS["vp-1d"], []

    def dies(x):
        calls.append(len(x))
        if len(calls) > 2:
            raise RuntimeError("no licence")
        return x[:, 0]

    options = {"steps": STEPS, "cond": p.cond}
    with pytest.raises(gk.RewardError, match="no licence"):
        S.random(p.model, 3, dies, rounds=5, candidates=2, folder=tmp_path, **options)
    two = S.random(p.model, 3, first, rounds=2, candidates=2, **options)
    kept = load_file(tmp_path / "best.safetensors")
    assert torch.equal(kept["noise"], two.noise) and torch.equal(kept["rewards"], two.rewards)
    assert torch.equal(kept["x"], two.x)
    with pytest.raises(gk.RewardError, match="scored none of the candidates of condition 0"):
        S.random(p.model, 3, lambda x: x[:, 0] * torch.nan, rounds=1, candidates=2, **options)

    def one(x):  # one sample in three has candidates with a score
        return torch.where(torch.arange(len(x)) % 3 == 0, x[:, 0], torch.nan)

    with pytest.warns(UserWarning, match="2 of 3 samples have no candidate"):
        found = S.random(p.model, 3, one, rounds=1, candidates=2, **options)
    assert found.rewards.isnan().tolist() == [False, True, True]


def test_what_is_wrong_is_said_before_the_first_network_call():
    calls = []

    def net(x, t, cond):
        calls.append(1)
        return x

    model = gk.GaussianModel(net, (2,), predicts="clean")
    table = gk.analytic.TokenTable(torch.zeros(3, 3))
    for message, make in (
        ("is smaller than one round", lambda: S.random(model, 4, first, budget=S.Budget(rows=100), steps=10)),
        ("is smaller than one round", lambda: S.paths(model, 4, first, budget=S.Budget(rows=100), steps=10)),
        ("is smaller than one round", lambda: S.gradient(model, 4, first, budget=S.Budget(rows=100), steps=10)),
        ("candidates=0", lambda: S.random(model, 4, first, candidates=0)),
        ("neighbours=0", lambda: S.zero_order(model, 4, first, neighbours=0)),
        ("radius=2", lambda: S.zero_order(model, 4, first, radius=2)),
        ("shrink=0", lambda: S.zero_order(model, 4, first, shrink=0)),
        ("population=1", lambda: S.evolution(model, 4, first, population=1)),
        ("mutation=-1", lambda: S.evolution(model, 4, first, mutation=-1)),
        ("candidates=3", lambda: S.cma(model, 4, first, candidates=3)),
        ("levels=9", lambda: S.paths(model, 4, first, levels=9, steps=8)),
        ("width=", lambda: S.paths(model, 4, first, levels=3, width=[2, 1])),
        ("branch=0", lambda: S.paths(model, 4, first, branch=0)),
        ("back=0", lambda: S.paths(model, 4, first, back=0, solver=gk.solvers.DDIM())),
        ("a path ends", lambda: S.paths(model, 4, first, budget=S.Budget(seconds=1.0))),
        ("deterministic solver", lambda: S.random(model, 4, first, over="start")),
        ("over='end'", lambda: S.random(model, 4, first, over="end")),
        ("FKSteering", lambda: S.random(model, 4, first, guides=[gk.FKSteering(first, 1.0)])),
        ("rate=0", lambda: S.gradient(model, 4, first, rate=0)),
        ("no gradient passes", lambda: S.gradient(table, 4, first)),
        ("ranks have no gradient", lambda: S.gradient(model, 4, [first, first])),
        ("not differentiable", lambda: S.gradient(model, 4, Plain())),
        ("DPS, through which", lambda: S.gradient(model, 4, first, guides=[gk.DPS(first, 1.0)])),
        ("never end", lambda: S.run(model, 4, first, S.Random(2))),
        ("never end", lambda: S.run(model, 4, first, S.Random(2), budget=S.Budget(target=1.0))),
        ("rounds=0", lambda: S.Budget(rounds=0)),
        ("reward=", lambda: S.random(model, 4, [])),
        ("looks=10", lambda: S.bank(model, 8, first, [1, 2], looks=10)),
        ("allocation='even'", lambda: S.bank(model, 8, first, [1, 2], looks=80, allocation="even")),
        ("list of conditions", lambda: S.bank(model, 8, first, 1, looks=80)),
        ("bank takes no progress", lambda: S.bank(model, 8, first, [1], looks=80, progress=True)),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for message, make in (
        ("got candidate;", lambda: S.random(model, 4, first, candidate=3)),
        ("a reward is", lambda: S.random(model, 4, 3)),
        ("base model", lambda: S.random(net, 4, first)),
        ("begin", lambda: S.run(model, 4, first, object(), rounds=1)),
    ):
        with pytest.raises(TypeError, match=message):
            make()
    assert not calls


class Plain(Reward):
    """A reward that says that it has no gradient."""

    name, differentiable = "plain", False

    def score(self, samples):
        return samples[:, 0]


@pytest.mark.parametrize("asked, message", [
    (torch.zeros(4, 3, 2), r"ask\(\) returned \(4, 3, 2\).*\(4, k, 6, 2\)"),
    (torch.zeros(3, 2, 6, 2), r"\(4, k, 6, 2\)"),
    (torch.zeros(4, 0, 6, 2), r"\(4, k, 6, 2\)"),
    (torch.full((4, 1, 6, 2), torch.nan), "NaN"),
    ([1.0], r"returned \[1.0\]"),
])  # fmt: skip
def test_noise_of_the_wrong_shape_is_refused(asked, message: str):
    class Wrong(S.Random):
        def ask(self):
            return asked

    with pytest.raises(ValueError, match=message):
        S.run(normal(2), 4, first, Wrong(2), rounds=1, steps=5)


def test_a_strategy_that_asks_otherwise_than_it_did_is_found_out(tmp_path: Path):
    class Fickle(S.Random):
        def begin(self, space):
            super().begin(space)
            self.candidates = size[0]

    size = [2]
    S.run(normal(2), 2, first, Fickle(2), rounds=1, steps=3, folder=tmp_path)
    size[0] = 3
    strategy = Fickle(2)
    with pytest.raises(ValueError, match="not deterministic"):
        S.run(normal(2), 2, first, strategy, rounds=2, steps=3, folder=tmp_path)


class Jitter(gk.Guide):
    """Noise of its own on the clean mean."""

    def __init__(self, scale: float):
        super().__init__()
        object.__setattr__(self, "scale", scale)

    def tilt(self, view):
        return self.scale * gk.random.normal(view.key, view.model.shape, view.prediction.dtype)


def test_a_saved_search_keeps_the_noise_of_its_best(tmp_path):
    """Noise of the whole chain has its rows on the second axis, also where a result has been read from disk."""
    p = PROBLEMS["masked"]
    found = gk.search.random(p.model, 6, p.reward, rounds=2, candidates=2, steps=4, cond=p.cond)
    assert len(found.noise) == 5
    found.save(tmp_path / "run")
    for result in (found, gk.load_result(tmp_path / "run")):
        best = result.best(2)
        again = gk.sample(p.model, 2, steps=4, cond=p.cond, noise=best.noise)
        assert torch.equal(again.x, best.x)
        assert torch.equal(best.rewards, found.rewards.sort(descending=True).values[:2])
