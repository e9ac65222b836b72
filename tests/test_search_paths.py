"""Search over paths, by gradients and in banks of seeds: selections by hand, derivatives, memory and allocation."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import guidekit as gk

from .problems import PROBLEMS, STEPS
from .test_sharing import Kept

S = gk.search
every = pytest.mark.parametrize("name", PROBLEMS)


def normal(d: int = 1) -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture([1.0], torch.zeros(1, d, dtype=torch.float64), [1.0], gk.schedules.Flow())


# paths ---------------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.usefixtures("every_row")
def test_paths_of_width_1_without_branches_are_plain_sampling(name: str, levels: int):
    p, options = PROBLEMS[name], {"steps": STEPS, "cond": [PROBLEMS[name].cond, None], "seed": [1, 2]}
    found = S.paths(p.model, 5, p.reward, levels=levels, width=1, branch=1, **options)
    plain = gk.sample(p.model, 5, **options)
    assert torch.equal(found.x, plain.x)
    assert found.cost.network_rows == 2 * plain.cost.network_rows  # the search, and the run of the winners


@every
@pytest.mark.usefixtures("every_row")
def test_one_level_is_best_of_n_and_more_do_better_at_the_same_cost(name: str):
    p, options = PROBLEMS[name], {"steps": STEPS, "cond": [PROBLEMS[name].cond, None]}
    one = S.paths(p.model, 50, p.reward, levels=1, width=2, branch=3, **options)
    best = S.random(p.model, 50, p.reward, rounds=1, candidates=6, **options)
    assert torch.equal(one.x, best.x) and one.cost.network_rows == best.cost.network_rows
    more = S.paths(p.model, 50, p.reward, levels=3, width=2, branch=3, **options)
    assert more.cost.network_rows == best.cost.network_rows
    gain = more.rewards - best.rewards
    if name in ("vp-1d", "flow-2d", "uniform"):  # elsewhere the look-ahead of the first third says little
        assert gain.mean() > 3 * gain.std() / 100**0.5


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("name", ["flow-2d", "masked"])
def test_survivors_are_the_best_by_the_look_ahead_and_their_paths_are_branched(name: str, ahead: int):
    """Two levels of three moves each, by hand with plain runs."""
    p, n, k = PROBLEMS[name], 4, 3
    options = {"steps": STEPS, "cond": p.cond, "seed": 7}
    found = S.paths(p.model, n, p.reward, levels=2, width=[1, 1], branch=k, ahead=ahead, **options)
    chains = gk.Run(p.model, 2 * k * n, **options).chain_noise()
    clean: list[Tensor] = []

    def watch(pop, step):
        process = p.model.process
        clean.append(pop.x if step.last else process.clean(pop.predictions[0], pop.x))

    gk.sample(p.model, k * n, noise=chains[:, : k * n], callbacks=[watch], **options)
    value = p.reward(clean[2 + ahead]).double().view(k, n)
    parent = value.max(0).indices * n + torch.arange(n)
    # of equals the first one
    assert all(value[:, i].tolist().index(value[:, i].max()) * n + i == parent[i] for i in range(n))
    children = [torch.cat([chains[:4, parent], chains[4:, rows]]) for rows in (
        parent, *(torch.arange(n) + (k + c) * n for c in range(1, k)))]  # fmt: skip
    runs = [gk.sample(p.model, n, noise=z, reward=p.reward, **options) for z in children]
    assert torch.allclose(torch.stack([r.rewards for r in runs]).amax(0), found.rewards) or ahead == 3
    if ahead == 3:  # whole samples were seen at the first level, and the best of both levels counts
        both = torch.stack([*(r.rewards for r in runs), *p.reward(clean[-1]).double().view(k, n)])
        assert torch.allclose(both.amax(0), found.rewards)


def test_a_falling_width_is_halving_on_the_way():
    """16 candidates at first and 2 in the end, for the rows of less than 8 whole ones, near the best of all 16."""
    p, options = PROBLEMS["flow-2d"], {"steps": 8, "cond": 1}
    halved = S.paths(p.model, 60, p.reward, levels=4, width=[16, 8, 4, 2], branch=1, **options)
    assert halved.cost.network_rows == 60 * (16 * 3 + 8 * 2 + 4 * 2 + 2 * 1 + 8)
    full = S.random(p.model, 60, p.reward, rounds=1, candidates=16, **options)
    equal = S.random(p.model, 60, p.reward, rounds=1, candidates=9, **options)
    assert equal.cost.network_rows == 60 * (9 * 8 + 8)  # a little less than the 74 + 8 of halving
    assert (halved.rewards <= full.rewards + 1e-9).all()
    gain = halved.rewards - equal.rewards
    assert gain.mean() > 2 * gain.std() / 60**0.5


@pytest.mark.parametrize("solver", [gk.solvers.DDIM(), gk.solvers.DPMpp(2), gk.solvers.Heun()], ids=["1", "2", "heun"])
def test_deterministic_paths_go_up_to_branch(solver: gk.solvers.Solver):
    p, options = PROBLEMS["flow-2d"], {"cond": [1, None], "solver": solver}
    found = S.paths(p.model, 20, p.reward, steps=9, levels=3, width=2, branch=4, back=2, **options)
    grid = [1 - i / 9 for i in range(10)]
    assert found.times == pytest.approx([*grid[:4], *grid[1:7], *grid[4:]])
    again = gk.sample(p.model, 20, steps=found.times, noise=found.noise, reward=p.reward, **options)
    assert torch.equal(again.x, found.x) and torch.allclose(again.rewards, found.rewards)
    best = S.random(p.model, 20, p.reward, rounds=1, candidates=8, steps=found.times, **options)
    assert found.rewards.mean() > best.rewards.mean()


@pytest.mark.usefixtures("every_row")
def test_paths_heed_their_budget():
    p = PROBLEMS["masked"]
    options = {"steps": STEPS, "cond": p.cond, "levels": 3, "width": 2, "branch": 2, "ahead": 1}
    rows = 5 * (4 * 4 + 4 * 3 + 4 * 1 + STEPS)
    found = S.paths(p.model, 5, p.reward, budget=S.Budget(rows=rows), **options)
    assert found.cost.network_rows == rows
    with pytest.raises(ValueError, match="smaller than one round"):
        S.paths(p.model, 5, p.reward, budget=S.Budget(rows=rows - 1), **options)


# gradients -----------------------------------------------------------------------------------------------------------


def network(d: int = 4, wide: int = 32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        inner = nn.Linear(wide, wide)
        return nn.Sequential(nn.Linear(d + 1, wide), nn.Tanh(), inner, nn.Tanh(), nn.Linear(wide, d)).double()


def model_of(net: nn.Module, d: int = 4) -> gk.GaussianModel:
    call = lambda x, t, c: net(torch.cat([x, t[:, None]], 1)) + 0.1 * c[:, None]  # noqa: E731
    return gk.GaussianModel(call, (d,), gk.schedules.Flow(), "flow", dtype=torch.float64, null=0.0)


def bent(x: Tensor) -> Tensor:
    return (x[:, 0] - 0.5).sin() - (x[:, 1] * x[:, 2]) + 0.1 * x[:, 3] ** 3


SOLVERS = {
    "ddpm": gk.solvers.DDPM(),
    "ddim": gk.solvers.DDIM(),
    "dpm++2": gk.solvers.DPMpp(2),
    "sde2": gk.solvers.SDEDPMpp(2),
    "heun": gk.solvers.Heun(),
}


def by_loop(run: gk.Run, net: nn.Module, z: Tensor, scale: float) -> Tensor:
    """The sampler written out, with one graph: a flow, x_t = (1 - t) x_0 + t z, with classifier-free guidance."""
    x, history = z[0], []
    for i, move in enumerate(run.moves):
        out = [net(torch.cat([x, torch.full_like(x[:, :1], move.t)], 1)) + 0.1 * c for c in (0.0, 2.0)]
        null, cond = (x - move.t * o for o in out)
        history = [null + scale * (cond - null), *history]
        x = move.a * x + sum(b * d for b, d in zip(move.b, history, strict=False)) + move.c * z[i + 1]
    return x


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_are_those_of_autograd_through_the_whole_loop(solver: str):
    net = network()
    model, options = model_of(net), {"steps": 5, "solver": SOLVERS[solver], "guides": [gk.CFG(1.7)], "cond": 2.0}
    run = gk.Run(model, 6, **options)
    noise = run.chain_noise()
    rewards, grads, x = S.gradients(run, noise, bent)
    assert torch.equal(x, gk.sample(model, 6, **options).x)
    leaf = noise.clone().requires_grad_()
    value = bent(by_loop(run, net, leaf, 1.7))
    (wanted,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.allclose(rewards, value.detach(), atol=1e-6)
    assert torch.allclose(grads, wanted, rtol=1e-5, atol=1e-6)
    # and those of gk.sample by differences
    step = gk.random.normal(gk.random.key(5), tuple(noise.shape), torch.float64)
    up, down = (bent(gk.sample(model, 6, noise=noise + h * step, **options).x) for h in (1e-5, -1e-5))
    assert torch.allclose((up - down) / 2e-5, (grads * step).sum((0, 2)), rtol=1e-5, atol=1e-6)


def most_kept(steps: int) -> int:
    kept, run = Kept(), gk.Run(model_of(network(4, 256)), 32, steps=steps, cond=1.0)
    noise = run.chain_noise()
    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda v: v):
        S.gradients(run, noise, bent)
    return kept.most


def test_the_graph_does_not_grow_with_the_number_of_steps():
    few = most_kept(4)
    assert few > 32 * 256 * 8
    assert most_kept(64) <= few


def test_the_ascent_is_that_of_sgd_on_reward_and_prior():
    """torch's SGD with Nesterov momentum and clipped rows, for a one-step model; the fourth iterate is the best."""
    net, run = network(), {"steps": 1, "cond": 1.0, "solver": gk.solvers.DDIM()}
    far = lambda x: 100 * x @ torch.tensor([1.0, -1.0, 0.5, 0.3], dtype=torch.float64)  # noqa: E731
    leaf = gk.sample(model_of(net), 3, **run).noise.clone().requires_grad_()
    sgd = torch.optim.SGD([leaf], lr=0.3, momentum=0.8, nesterov=True)
    for _ in range(3):
        size = leaf.norm(dim=1)
        prior = 3 * size.log() - size.square() / 2
        x = leaf - net(torch.cat([leaf, torch.ones_like(leaf[:, :1])], 1)) - 0.1  # x_0 = x_1 - velocity
        (-(far(x) + 2.0 * prior).sum()).backward()
        assert leaf.grad is not None
        leaf.grad.mul_((9.0 / leaf.grad.norm(dim=1, keepdim=True)).clamp(max=1))
        sgd.step()
        sgd.zero_grad()
    found = S.gradient(model_of(net), 3, far, rounds=4, rate=0.3, momentum=0.8, clip=9.0, weight=2.0, **run)
    assert torch.allclose(found.noise, leaf.detach(), atol=1e-6)


@pytest.mark.slow
def test_without_prior_the_noise_leaves_the_shell_and_with_it_it_stays():
    base, reward = normal(16), lambda x: x.sum(1)
    options = {"rounds": 60, "clip": 1.0, "steps": 2, "solver": gk.solvers.DDIM()}
    free = S.gradient(base, 4, reward, weight=0.0, rate=1.0, **options).noise.norm(dim=1)
    held = S.gradient(base, 4, reward, weight=10.0, rate=0.1, momentum=0.0, **options).noise.norm(dim=1)
    assert (free > 15).all()
    assert ((held - 15**0.5).abs() < 1).all()


def test_a_gradient_search_is_the_same_in_micro_batches_and_by_the_whole_chain():
    p = PROBLEMS["vp-1d"]
    options = {"rounds": 8, "rate": 1.0, "steps": STEPS, "cond": [1, None]}
    whole = S.gradient(p.model, 5, p.reward, **options)
    parts = S.gradient(p.model, 5, p.reward, batch_size=3, **options)
    assert torch.allclose(whole.x, parts.x) and whole.noise.shape == (STEPS + 1, 10, 1)
    assert whole.cost.network_rows == 10 * STEPS * (2 * 8 + 1)
    plain = gk.sample(p.model, 5, steps=STEPS, cond=[1, None])
    assert not torch.equal(whole.noise[3], gk.Run(p.model, 5, steps=STEPS, cond=[1, None]).chain_noise()[3])
    assert (whole.rewards >= p.reward(plain.x)).all()


def test_rewards_without_gradients_are_refused_and_those_that_fail_cost_their_row(tmp_path: Path):
    p, options = PROBLEMS["flow-2d"], {"steps": STEPS, "cond": 1, "rate": 1.0}
    with pytest.raises(ValueError, match="no gradient of reward '<lambda>' reaches the samples"):
        S.gradient(p.model, 3, lambda x: x[:, 0].detach(), rounds=2, **options)
    with pytest.raises(ValueError, match="no gradient"):
        S.gradient(p.model, 3, lambda x: x[:, 0].tolist(), rounds=2, **options)
    row = torch.arange(3) == 1
    some = lambda x: torch.where(row, torch.nan, x[:, 0])  # noqa: E731
    with pytest.warns(UserWarning, match="1 of 3 samples have no candidate"):
        found = S.gradient(p.model, 3, some, rounds=5, **options)
    whole = S.gradient(p.model, 3, lambda x: x[:, 0], rounds=5, **options)
    assert torch.equal(found.x[~row], whole.x[~row]) and found.rewards.isnan().tolist() == [False, True, False]
    calls = []

    def dies(x):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("out of memory")
        return x[:, 0]

    with pytest.raises(gk.RewardError, match="out of memory"):
        S.gradient(p.model, 3, dies, rounds=5, folder=tmp_path, **options)
    three = S.gradient(p.model, 3, lambda x: x[:, 0], rounds=3, **options)
    assert torch.equal(load_file(tmp_path / "best.safetensors")["noise"], three.noise)


# banks ---------------------------------------------------------------------------------------------------------------


def seeded(steps: int = 1) -> gk.GaussianModel:
    """One step gives x = (z_0, z_1 cos c + z_2 sin c): the first is the seed's own, the second depends on c too."""

    def net(x, t, c):
        return torch.stack([x[:, 0], x[:, 1] * c.cos() + x[:, 2] * c.sin(), 0 * x[:, 2]], 1)

    return gk.GaussianModel(net, (3,), predicts="clean", dtype=torch.float64, null=0.0)


def mixed(x: Tensor) -> Tensor:
    return x[:, 0] + 3 * torch.sin(7 * x[:, 1])


def test_a_bank_ranks_seeds_by_their_mean_over_conditions():
    conds = [0.1, 0.7, 1.3]
    bank = S.bank(seeded(), 6, mixed, conds, looks=18, allocation="equal", steps=1)
    z = gk.sample(seeded(), 6, steps=1, cond=0.0).noise
    by = torch.stack([mixed(gk.sample(seeded(), 6, steps=1, cond=c).x) for c in conds]).mean(0)
    order = by.argsort(descending=True)
    assert bank.seeds == order.tolist() and bank.looks == [3] * 6
    assert torch.allclose(torch.tensor(bank.values).double(), by[order])
    again = gk.sample(seeded(), 2, steps=1, cond=[5.0, 6.0], noise=bank.rows(2, 2))
    assert torch.equal(again.x[:, 0], z[order[:2], 0].repeat(2))
    assert bank.cost.network_rows == bank.cost.reward_calls == 18
    with pytest.raises(ValueError, match="the bank has 6 seeds"):
        bank.rows(7)


def test_halving_gives_its_looks_to_the_better_half():
    conds = [0.3 * i for i in range(40)]
    bank = S.bank(seeded(), 8, mixed, conds, looks=72, steps=1)
    # 24 looks in each of 3 rounds: 3 for each of 8, 6 more for each of 4, 12 more for each of 2
    assert sorted(bank.looks) == [3, 3, 3, 3, 9, 9, 21, 21] and bank.looks[:2] == [21, 21]
    assert bank.cost.reward_calls == 72
    values = torch.stack([mixed(gk.sample(seeded(), 8, steps=1, cond=c).x) for c in conds])
    first = values[:3].mean(0).argsort(descending=True)[:4].tolist()
    assert set(bank.seeds[:4]) == set(first)
    second = sorted(first, key=lambda s: -float(values[:9, s].mean()))
    assert set(bank.seeds[:2]) == set(second[:2]) and bank.seeds[2:4] == second[2:]
    assert bank.values[0] == pytest.approx(float(values[:21, bank.seeds[0]].mean()))


@pytest.mark.slow
def test_halving_finds_the_best_seed_more_often_than_an_equal_split():
    """100 banks of 16 seeds with 128 looks: 8 for each, or up to 60 for the last two."""
    conds, hits = [1.7 * i for i in range(128)], {"halving": 0, "equal": 0}
    for seed in range(100):
        z = gk.sample(seeded(), 16, steps=1, cond=0.0, seed=seed).noise
        c = torch.tensor(conds, dtype=torch.float64)[:, None]
        truth = z[:, 0] + 3 * (7 * (z[:, 1] * c.cos() + z[:, 2] * c.sin())).sin().mean(0)
        for kind in hits:
            found = S.bank(seeded(), 16, mixed, conds, looks=128, keep=1, allocation=kind, steps=1, seed=seed)
            assert found.cost.reward_calls <= 128
            hits[kind] += found.seeds[0] == int(truth.argmax())
    # difference of two counts of 100: sd at most sqrt(2 * 25) = 7
    assert hits["halving"] > hits["equal"] + 7


def test_a_seed_that_fails_under_a_condition_counts_as_the_worst_there():
    some = lambda x: torch.where(x[:, 0] > 0, torch.nan, x[:, 0])  # noqa: E731
    bank = S.bank(seeded(), 6, some, [0.1, 0.2], looks=12, allocation="equal", steps=1)
    z = gk.sample(seeded(), 6, steps=1, cond=0.0).noise[:, 0]
    assert 0 < int((z > 0).sum()) < 6
    value = torch.where(z > 0, z.min(), z)
    assert bank.values == pytest.approx(value[bank.seeds].tolist()) and bank.values == sorted(bank.values, reverse=True)
