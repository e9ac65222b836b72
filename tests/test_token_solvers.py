"""Solvers of token processes: their laws, against an enumeration of the chain that is written here, and weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise, permutations, product
from math import comb
from typing import Any

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit.solvers.token_solver import TokenSolver

from .problems import PROBLEMS, L, V, deviations, estimates, populations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
MASK = V
MASKED = PROBLEMS["masked"]
Chances = Callable[[tuple[int, ...], np.ndarray, int], dict[tuple[int, ...], float]]


# the reference: the law over states, pushed through the moves ------------------------------------------------------


def marginals(table: np.ndarray, x: tuple[int, ...]) -> np.ndarray:
    """P(x_0^i = v | x_t) of the table given what is not masked, (L, V)."""
    fits = np.array(
        [all(b in (a, MASK) for a, b in zip(clean, x, strict=True)) for clean in product(range(V), repeat=L)]
    )
    post = (table * fits / (table * fits).sum()).reshape((V,) * L)
    return np.stack([post.sum(tuple(j for j in range(L) if j != i)) for i in range(L)])


def uniformly(x: tuple[int, ...], p: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
    masks = [i for i in range(L) if x[i] == MASK]
    return {s: 1 / comb(len(masks), k) for s in combinations(masks, k)}


def filled(x: tuple[int, ...], where: tuple[int, ...], p: np.ndarray) -> Iterator[tuple[tuple[int, ...], float]]:
    """All ways to draw tokens at these positions."""
    for values in product(range(V), repeat=len(where)):
        new = dict(zip(where, values, strict=True))
        chance = np.prod([p[i, v] for i, v in new.items()])
        yield tuple(new.get(i, x[i]) for i in range(L)), float(chance)


def revealed(
    table: np.ndarray,
    left: list[int],
    chances: Chances,
    predicted: Callable[[np.ndarray, tuple[int, ...]], np.ndarray] = marginals,
) -> np.ndarray:
    """The law of x_0 where a move leaves so many masks: positions by `chances`, tokens independently."""
    law = {(MASK,) * L: 1.0}
    for before, after in pairwise(left):
        after_law: Counter = Counter()
        for x, weight in law.items():
            p = predicted(table, x)
            for where, chance in chances(x, p, before - after).items():
                for y, own in filled(x, where, p):
                    after_law[y] += weight * chance * own
        law = after_law
    return np.array([law.get(x, 0.0) for x in product(range(V), repeat=L)])


@lru_cache
def own_table() -> np.ndarray:
    """The table that PROBLEMS["masked"] samples."""
    return MASKED.model.table[1].exp().numpy()


def surest(score: Callable[[np.ndarray], float], temperature: float = 0.0) -> Chances:
    """Positions with the largest scores, or drawn one after the other, each with probability ~ exp(score/temperature)
    among those that are left, which is the order of scores with Gumbel noise."""

    def chances(x: tuple[int, ...], p: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
        masks = [i for i in range(L) if x[i] == MASK]
        scale = temperature * (len(masks) - k) / L
        if scale == 0:
            return {tuple(sorted(sorted(masks, key=lambda i: -score(p[i]))[:k])): 1.0}
        found: Counter = Counter()
        for order in permutations(masks, k):
            w = {i: np.exp(score(p[i]) / scale) for i in masks}
            chance = 1.0
            for i in order:
                chance *= w[i] / sum(w.values())
                del w[i]
            found[tuple(sorted(order))] += chance
        return found

    return chances


def in_blocks(chances: Chances) -> Chances:
    """Blocks of two positions, the last of one, where no move reveals positions of both."""

    def within(x: tuple[int, ...], p: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
        early = MASK in x[:2]
        own = tuple(v if (i < 2) == early else 0 for i, v in enumerate(x))
        return chances(own, p, k)

    return within


def remasked(table: np.ndarray, steps: int, eta: float, rescale: bool) -> np.ndarray:
    """The law of x_0 under ReMDM, position by position."""
    law = {(MASK,) * L: 1.0}
    for i in range(steps):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        alpha_t, alpha_s = 1 - t, 1 - s
        most = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0
        sigma = eta * most if rescale else min(eta, most)
        show = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        after: Counter = Counter()
        for x, weight in law.items():
            p = marginals(table, x)
            kernels = [
                [*(show * p[j]), 1 - show] if x[j] == MASK else [(1 - sigma) * (v == x[j]) for v in range(V)] + [sigma]
                for j in range(L)
            ]
            for y in product(range(V + 1), repeat=L):
                after[y] += weight * float(np.prod([kernels[j][v] for j, v in enumerate(y)]))
        law = {y: w for y, w in after.items() if w > 0}
    return np.array([law.get(x, 0.0) for x in product(range(V), repeat=L)])


# the solvers, with the masks that a run of so many steps leaves, and how positions are chosen

CASES: dict[str, tuple[TokenSolver, int, list[int], Chances]] = {
    "one by one": (gk.solvers.FirstHitting(), 3, [3, 2, 1, 0], uniformly),
    "more steps than positions": (gk.solvers.FirstHitting(), 50, [3, 2, 1, 0], uniformly),
    "two steps": (gk.solvers.FirstHitting(), 2, [3, 2, 0], uniformly),
    "two at a time": (gk.solvers.FirstHitting(tokens=2), 3, [3, 2, 0], uniformly),
    "confidence": (gk.solvers.Confidence(), 3, [3, 2, 1, 0], surest(np.max)),
    "confidence, few at first": (gk.solvers.Confidence(times="cosine"), 2, [3, 2, 0], surest(np.max)),
    "margin": (gk.solvers.Margin(), 2, [3, 2, 0], surest(lambda p: np.sort(p)[-1] - np.sort(p)[-2])),
    "entropy": (gk.solvers.Entropy(), 3, [3, 2, 1, 0], surest(lambda p: (p * np.log(p.clip(1e-300))).sum())),
    "confidence with noise": (
        gk.solvers.Confidence(0.8), 3, [3, 2, 1, 0], surest(lambda p: np.log(np.max(p)), temperature=0.8),
    ),
    "learned steps": (gk.solvers.LSD((0.2, 0.9, 1.0)), 2, [3, 1, 0], uniformly),
    "blocks": (gk.solvers.Blocks(2), 3, [3, 2, 1, 0], in_blocks(uniformly)),
    "blocks in two steps": (gk.solvers.Blocks(2), 2, [3, 1, 0], in_blocks(uniformly)),
    "blocks of the surest": (gk.solvers.Blocks(2, gk.solvers.Confidence()), 3, [3, 2, 1, 0], in_blocks(surest(np.max))),
}  # fmt: skip
REMASKING = {"remasking, capped": (0.3, "cap"), "remasking, rescaled": (0.6, "rescale")}
for _name, _options in REMASKING.items():
    CASES[_name] = gk.solvers.ReMDM(*_options), 4, [4, 3, 2, 1, 0], uniformly


@lru_cache
def law(name: str) -> np.ndarray:
    _, steps, left, chances = CASES[name]
    if name in REMASKING:
        eta, schedule = REMASKING[name]
        return remasked(own_table(), steps, eta, schedule == "rescale")
    return revealed(own_table(), left, chances)


def counted(x: torch.Tensor) -> np.ndarray:
    return np.bincount((x * V ** torch.arange(L - 1, -1, -1)).sum(1).numpy(), minlength=V**L)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("every_row")
def test_samples_follow_the_enumerated_chain(name: str):
    solver, steps, left, _ = CASES[name]
    n = 30_000
    result = gk.sample(MASKED.model, n, steps=steps, solver=solver, cond=MASKED.cond, seed=5)
    expected = n * law(name)
    some = expected > 1e-9
    assert not counted(result.x)[~some].any()
    chi = ((counted(result.x) - expected)[some] ** 2 / expected[some]).sum()
    assert chi < 66  # of 26 degrees of freedom: by chance once in 2 10^4
    assert result.cost.network_calls == len(left) - 1
    assert result.cost.network_rows == n * (len(left) - 1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "guides",
    [
        lambda p: [gk.FKSteering(p.reward, p.alpha, ess=0.9)],
        lambda p: [gk.SVDD(p.reward, p.alpha, candidates=3)],
        lambda p: [gk.FKSteering(p.reward, p.alpha, ess=0.9), gk.CFG(2.0, steer=True)],
    ],
    ids=["FK", "SVDD", "FK and a proposal"],
)
def test_weighted_means_are_unbiased_with_four_particles(name: str, guides):
    solver, steps, *_ = CASES[name]
    made = guides(MASKED)
    if solver.unsteerable and any(guide.steer for guide in made):
        with pytest.raises(ValueError, match=r"steer=True.*FirstHitting"):
            gk.sample(MASKED.model, 4, steps=steps, solver=solver, cond=0, guides=made)
        return
    found = estimates(MASKED, populations(MASKED, 3000, 4, made, steps=steps, solver=solver))
    x = torch.as_tensor(MASKED.model.states)
    w = law(name) * np.exp(MASKED.reward(x).double().numpy() / MASKED.alpha)
    truth = (w[:, None] * MASKED.features(x).double().numpy()).sum(0)
    assert np.abs(deviations(found, truth, np.zeros(4))).max() < 4.5  # by chance once in 10^4


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if not case[0].unsteerable])
def test_log_probabilities_of_a_kernel_are_those_of_its_draws_and_sum_to_one(name: str):
    solver, steps, *_ = CASES[name]
    model = MASKED.model
    move = model.moves(steps, solver)[0]
    x = torch.tensor([[MASK, MASK, MASK], [MASK, 1, MASK]])
    prediction = model(x, move.t, model.encode_all([0, 0]))
    every = torch.cartesian_prod(*[torch.arange(V + 1)] * L)
    n = 40_000
    for row in range(2):
        one, p = x[row : row + 1], prediction[row : row + 1]
        kernel = model.process.kernel(one.expand(len(every), -1), (p.expand(len(every), -1, -1),), move)
        chance = kernel.log_prob(every).exp().numpy()
        assert chance.sum() == pytest.approx(1, abs=1e-12)
        noise = model.process.noise(gk.random.fold(gk.random.key([9]), torch.arange(n)), (L, V + 1), torch.float64)
        drawn = model.process.kernel(one.expand(n, -1), (p.expand(n, -1, -1),), move).push(noise)
        found = np.bincount((drawn * (V + 1) ** torch.arange(L - 1, -1, -1)).sum(1).numpy(), minlength=(V + 1) ** L)
        some = chance > 0
        assert not found[~some].any()
        # at most 63 degrees of freedom: 124 is met by chance once in 10^5
        assert ((found - n * chance)[some] ** 2 / (n * chance)[some]).sum() < 124


# each of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["masked", "uniform"])
def test_ancestral_is_the_default_bit_for_bit(process: str):
    model = PROBLEMS[process].model
    runs = [gk.sample(model, 200, steps=7, cond=0, solver=s) for s in (None, gk.solvers.DDPM(), gk.solvers.Ancestral())]
    assert torch.equal(runs[0].x, runs[1].x) and torch.equal(runs[0].x, runs[2].x)
    cosine = [
        gk.sample(model, 200, steps=7, cond=0, solver=s(times="cosine"))
        for s in (gk.solvers.DDPM, gk.solvers.Ancestral)
    ]
    assert torch.equal(cosine[0].x, cosine[1].x) and not torch.equal(cosine[0].x, runs[0].x)


def test_first_hitting_is_the_table_itself_and_the_ancestral_chain_comes_near_it():
    assert np.abs(law("one by one") - own_table()).max() < 1e-12
    far = np.abs(law("two steps") - own_table()).sum() / 2
    assert far > 0.01


@dataclass(frozen=True)
class Pulled(gk.Guide):
    """Adds to the prediction what a measurement would say of each position."""

    def tilt(self, view: Any) -> torch.Tensor:
        return PULL.to(view.prediction).expand_as(view.prediction)


PULL = torch.tensor([[0.0, 0.3, 0.0], [0.4, 0.0, 0.0], [0.0, 3.0, -1.0]])


def test_positions_are_revealed_by_the_prediction_after_the_guides():
    """Anchored remasking: the order is that of the posterior, and samples follow its chain."""
    n, steps, tilt = 20_000, [3, 2, 1, 0], np.exp(PULL.numpy())

    def pulled(table: np.ndarray, x: tuple[int, ...]) -> np.ndarray:
        p = marginals(table, x) * tilt
        return p / p.sum(1, keepdims=True)

    expected = n * revealed(own_table(), steps, surest(np.max), pulled)
    plain = revealed(own_table(), steps, uniformly, pulled)
    assert np.abs(expected / n - plain).sum() > 0.1  # another order is another law
    run = gk.sample(
        MASKED.model, n, steps=3, solver=gk.solvers.Confidence(), cond=MASKED.cond, guides=[Pulled()], seed=5
    )
    some = expected > 1e-9
    assert not counted(run.x)[~some].any()
    assert ((counted(run.x) - expected)[some] ** 2 / expected[some]).sum() < 66


def test_times_of_ones_own_and_starts_from_samples():
    """A row of fewer masks than its time says waits; one of more makes up for them."""
    model, solver = MASKED.model, gk.solvers.FirstHitting()
    result = gk.sample(model, 300, steps=[1.0, 0.7, 0.3, 0.8, 0.4, 0.0], cond=0, solver=solver)
    assert (result.x < V).all()
    start = gk.StartFrom(torch.tensor([2, 0, 1]), level=0.7)
    edited = gk.sample(model, 300, steps=3, cond=0, solver=solver, guides=[start])
    assert (edited.x < V).all() and len(edited.trace) == 2
    same = (edited.x == torch.tensor([2, 0, 1])).all(1).double().mean()
    assert 0.02 < same < 0.9


@pytest.mark.parametrize("guides", [[], [gk.FKSteering(MASKED.reward, 0.5)]], ids=["plain", "FK"])
def test_rows_do_not_depend_on_their_batch_and_runs_resume(guides, tmp_path):
    options = {"steps": 3, "cond": [0, None], "solver": gk.solvers.FirstHitting(), "guides": guides}
    whole = gk.sample(MASKED.model, 40, **options)
    assert torch.equal(whole.x, gk.sample(MASKED.model, 40, batch_size=7, **options).x)

    def stop(population, step):
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gk.sample(MASKED.model, 40, checkpoint=tmp_path / "run", callbacks=[stop], **options)
    assert torch.equal(whole.x, gk.sample(MASKED.model, 40, checkpoint=tmp_path / "run", **options).x)


def broken(x: list[int]) -> bool:
    return any(site in "".join(map(str, x)) for site in ("01", "21", "22"))


@pytest.mark.parametrize("steps", [2, 3])
def test_constraints_hold_and_are_exact_with_first_hitting(steps: int):
    """E[mean of w f] = E[f 1{constraint}] under the chain without it, with four particles."""
    name = {2: "two steps", 3: "one by one"}[steps]
    sites = gk.Sites(forbidden=[[0, 1], [2, {1, 2}]])
    result = populations(MASKED, 3000, 4, [sites], steps=steps, solver=gk.solvers.FirstHitting())
    assert not any(map(broken, result.x.tolist()))
    x = MASKED.model.states
    w = law(name) * [not broken(row) for row in x.tolist()]
    truth = (w[:, None] * MASKED.features(x).double().numpy()).sum(0)
    assert np.abs(deviations(estimates(MASKED, result), truth, np.zeros(4))).max() < 4.5


def test_known_tokens_with_first_hitting():
    """A run that reveals one token at a time is exact, and so is the conditional and its probability."""
    known, where, n = torch.tensor([2, 0, 1]), torch.tensor([False, True, False]), 20_000
    keep = gk.Keep(known, where)
    result = gk.sample(MASKED.model, n, steps=3, cond=0, guides=[keep], solver=gk.solvers.FirstHitting(), seed=2)
    own = own_table() * (MASKED.model.states[:, 1] == 0).numpy()
    assert (result.x[:, 1] == 0).all()
    assert float(result.log_z) == pytest.approx(np.log(own.sum()), abs=1e-6)
    expected, some = n * own / own.sum(), own > 0
    assert ((counted(result.x) - expected)[some] ** 2 / expected[some]).sum() < 33  # 8 degrees of freedom: once in 10^4


class Net:
    """A network that counts its calls."""

    calls = 0

    def __call__(self, x, t, cond):
        self.calls += 1
        return torch.zeros(*x.shape, V)


REFUSED = {
    "uniform noise": (lambda net: gk.UniformModel(net, V, L), gk.solvers.FirstHitting(), [], "masked noise.*uniform"),
    "ordered": (lambda net: gk.MaskedModel(net, V, L, ordered=True), gk.solvers.FirstHitting(), [], "is ordered"),
    "Gaussian": (
        lambda net: gk.GaussianModel(net, (2,)), gk.solvers.Ancestral(), [], r"Ancestral\(.*token processes.*DDPM",
    ),
    "fewer steps than blocks": (
        lambda net: gk.MaskedModel(net, V, L), gk.solvers.Blocks(1), 2, r"steps=2: 3 blocks of 1 of 3 positions",
    ),
    "a proposal": (
        lambda net: gk.MaskedModel(net, V, L, null=torch.zeros(1)), gk.solvers.Entropy(), [gk.CFG(2.0, steer=True)],
        r"CFG\(steer=True\).*Entropy.*follows from the prediction.*FirstHitting",
    ),
    "a constraint": (
        lambda net: gk.MaskedModel(net, V, L), gk.solvers.ReMDM(0.2), [gk.Sites(forbidden=[[0, 1]])],
        r"Sites draws tokens.*ReMDM.*FirstHitting",
    ),
    "experts": (
        lambda net: gk.MaskedModel(net, V, L, null=torch.zeros(1)), gk.solvers.Margin(), [gk.Mixture([None])],
        r"Mixture\(adaptive=True\).*Margin.*adaptive=False",
    ),
    "remasking of uniform tokens": (
        lambda net: gk.UniformModel(net, V, L), gk.solvers.ReMDM(0.2), [], "masked noise.*uniform",
    ),
    "no steps": (lambda net: gk.MaskedModel(net, V, L), gk.solvers.FirstHitting(), 0, "at least one step"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_solver_cannot_do_is_refused_before_the_first_call(name: str):
    make, solver, guides, message = REFUSED[name]
    net = Net()
    options = {"steps": guides} if isinstance(guides, int) else {"guides": guides}
    with pytest.raises(ValueError, match=message):
        gk.sample(make(net), 4, solver=solver, **options)
    assert net.calls == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gk.solvers.FirstHitting(tokens=0), r"tokens=0.*at least 1"),
        (lambda: gk.solvers.Confidence(-1.0), r"Confidence\(temperature=-1\.0\).*at least 0"),
        (lambda: gk.solvers.Blocks(0), r"size=0.*at least 1"),
        (lambda: gk.solvers.Blocks(2, gk.solvers.Ancestral()), r"inner=Ancestral.*orders positions"),
        (lambda: gk.solvers.ReMDM(1.5), r"eta=1\.5.*\[0, 1\]"),
        (lambda: gk.solvers.ReMDM(0.5, "loop"), r"schedule='loop'.*'cap' and 'rescale'"),
    ],
)
def test_settings_that_mean_nothing_are_errors(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_remasking_never_masks_what_is_the_template():
    class Infill(gk.process.Masked):
        def prior(self, noise, t):
            return super().prior(noise, t).index_fill(1, torch.tensor([1]), 2)

    model = gk.analytic.TokenTable(MASKED.model.table[1].view(V, V, V))
    model.process = Infill(V)
    result = gk.sample(model, 500, steps=6, solver=gk.solvers.ReMDM(1.0))
    assert (result.x[:, 1] == 2).all() and (result.x < V).all()


def test_remasking_with_eta_0_is_ancestral():
    runs = [gk.sample(MASKED.model, 100, steps=6, solver=s) for s in (None, gk.solvers.ReMDM(0.0))]
    assert torch.equal(runs[0].x, runs[1].x)


def test_the_noise_of_a_chain_is_that_of_the_ancestral_one():
    with pytest.raises(ValueError, match=r"ancestral chains.*FirstHitting"):
        gk.invert(MASKED.model, torch.tensor([[2, 0, 1]]), cond=0, steps=3, solver=gk.solvers.FirstHitting())
