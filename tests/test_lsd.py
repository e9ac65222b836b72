"""LSD: the plan is the best of all, its loss is the divergence of the laws, and the fit measures what it says."""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import combinations, pairwise, permutations, product

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit.solvers import LSD

L, V = 5, 2


def table() -> np.ndarray:
    """A law in which the first bit decides how the others depend on each other."""
    p = np.zeros((V,) * L)
    for x in product(range(V), repeat=L):
        ones = sum(x[1:])
        p[x] = (0.7 if x[0] == 0 else 0.3) * (0.2**ones * 0.8 ** (4 - ones) if x[0] == 0 else 0.02 + (ones in (0, 4)))
    return p / p.sum()


P = table()


def conditional(x: tuple[int, ...], known: tuple[int, ...], i: int) -> np.ndarray:
    """p(x_i = . | x at the known positions)."""
    return _conditional(tuple(x[j] if j in known else -1 for j in range(L)), i)


@cache
def _conditional(x: tuple[int, ...], i: int) -> np.ndarray:
    known = [j for j in range(L) if x[j] >= 0]
    fixed = P[tuple(v if v >= 0 else slice(None) for v in x)]
    axis = sum(j not in known for j in range(i))
    found = fixed.sum(tuple(k for k in range(fixed.ndim) if k != axis))
    return found / found.sum()


@lru_cache
def entropies() -> tuple[float, ...]:
    """h(1), ..., h(L), over all sets of known positions and all they may hold."""
    found = []
    for m in range(1, L + 1):
        total = [
            P[x] * -(q * np.log(q)).sum()
            for known in combinations(range(L), L - m)
            for x in product(range(V), repeat=L)
            for i in range(L)
            if i not in known
            for q in [conditional(x, known, i)]
        ]
        found.append(sum(total) / sum(1 for _ in combinations(range(L), m)) / m)
    return tuple(found)


def divergence(left: list[int]) -> float:
    """KL of (sample, order) revealed one by one and of the same revealed with so many masks left, by enumeration."""
    total = 0.0
    for order in permutations(range(L)):
        for x in product(range(V), repeat=L):
            log_q = 0.0
            for m, n in pairwise(left):
                known = order[: L - m]
                log_q += sum(np.log(conditional(x, known, i)[x[i]]) for i in order[L - m : L - n])
            total += P[x] * (np.log(P[x]) - log_q)
    return total / sum(1 for _ in permutations(range(L)))


def test_the_loss_is_the_divergence_of_the_laws_and_the_plan_has_the_least():
    solver = LSD(entropies())
    for steps in (2, 3):
        plans = [[L, *middle, 0] for middle in combinations(range(L - 1, 0, -1), steps - 1)]
        losses = [divergence(plan) for plan in plans]
        assert solver.counts(steps, L) == plans[int(np.argmin(losses))]
        assert solver.loss(steps) == pytest.approx(min(losses), abs=1e-12)
        assert max(losses) > 1.2 * min(losses) > 0.01
    assert solver.loss(L) == pytest.approx(0, abs=1e-12) and solver.counts(99, L) == [5, 4, 3, 2, 1, 0]


def test_the_fit_measures_the_entropies_of_the_model():
    fitted = gk.search.lsd(gk.analytic.TokenTable(torch.from_numpy(P).log()), 4000)
    assert np.allclose(fitted.entropies, entropies(), atol=0.02)


def test_samples_have_the_law_of_the_plan():
    solver, n = LSD(entropies()), 20_000
    law = np.zeros((V,) * L)
    left = solver.counts(2, L)
    for order in permutations(range(L)):
        for x in product(range(V), repeat=L):
            known = order[: L - left[1]]
            first = np.prod([conditional(x, (), i)[x[i]] for i in known])
            law[x] += first * np.prod([conditional(x, known, i)[x[i]] for i in order[L - left[1] :]])
    law /= law.sum()
    x = gk.sample(gk.analytic.TokenTable(torch.from_numpy(P).log()), n, steps=2, solver=solver).x.numpy()
    found = np.zeros_like(law)
    np.add.at(found, tuple(x.T), 1 / n)
    deviations = (found - law) / np.sqrt(law * (1 - law) / n)
    assert np.abs(deviations).max() < 4.5 and np.abs(law - P).sum() > 0.05


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        LSD((0.5, -0.1))
    with pytest.raises(ValueError, match="fit it to this model"):
        gk.sample(gk.analytic.TokenTable(torch.zeros(2, 2, 2)), 2, solver=LSD((0.5, 0.6)))
    with pytest.raises(ValueError, match="noise"):
        gk.search.lsd(gk.analytic.TokenTable(torch.zeros(2, 2, 2), "uniform"))
    with pytest.raises(ValueError, match="draws lengths"):
        gk.search.lsd(gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 2), 2, 2, end=0, lengths=[0.5, 0.5]))


def swinging(x: torch.Tensor, t: torch.Tensor, cond: None) -> torch.Tensor:
    """p(1) = t^2 at every position, whatever the others are."""
    p = t.double().square().clamp(1e-9, 1 - 1e-9)[:, None, None].expand(*x.shape, 1)
    return torch.cat([1 - p, p], -1).log()


def uncertainty(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


def test_times_are_where_the_network_says_what_samples_at_drawn_times_hold():
    """Of two positions the later time is the larger of two uniform ones: h is the mean of H(t^2) there. What is masked
    is 1 with probability E t^2 = 1/3 before the first move, and with 1/6, below that time, before the second."""
    model = gk.MaskedModel(swinging, 2, 2, dtype=torch.float64)
    fitted = gk.search.lsd(model, 6000, times=50)
    u = (np.arange(4000) + 0.5) / 4000
    h = [float((uncertainty(u**2) * w).mean()) for w in (2 * (1 - u), 2 * u)]
    assert np.allclose(fitted.entropies, h, atol=0.015)
    assert np.allclose(np.square(fitted.asked), [1 / 6, 1 / 3], atol=0.03)
    assert np.allclose(fitted.crossed, uncertainty(np.array([1 / 6, 1 / 3])), atol=0.02)
    assert fitted.loss(1) == pytest.approx(2 * fitted.crossed[1] - sum(fitted.entropies), abs=1e-12)
    assert fitted.loss(2) == pytest.approx(sum(fitted.crossed) - sum(fitted.entropies), abs=1e-12)
    learned, drawn = (
        gk.sample(model, 20_000, steps=1, solver=s, seed=1).x.double().mean() for s in (fitted, LSD(fitted.entropies))
    )
    assert abs(float(learned) - fitted.asked[1] ** 2) < 0.015 and abs(float(drawn) - 0.5) < 0.02


def test_the_plan_with_times_is_that_of_their_losses_and_a_row_is_asked_by_its_masks():
    entropies, crossed, asked = (0.1, 1.5, 0.5), (0.1, 0.5, 2.0), (0.2, 0.5, 0.7)
    solver = LSD(entropies, asked, crossed)
    assert LSD(entropies).counts(2, 3) == [3, 1, 0] and solver.counts(2, 3) == [3, 2, 0]
    keep = gk.Keep(torch.tensor([1, 0, 1]), torch.tensor([False, True, False]))
    model = gk.MaskedModel(swinging, 2, 3, dtype=torch.float64)
    for guides, time in (([], 0.7), ([keep], 0.5)):
        run = gk.Run(model, 4, steps=2, solver=solver, guides=guides)
        with run.borrowed():
            assert run.start().times is not None and bool((run.start().times == time).all())


def test_times_that_mean_nothing_are_refused():
    class Timeless:
        timed = False

        def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: None) -> torch.Tensor:
            return torch.zeros(*x.shape, 2)

    with pytest.raises(ValueError, match="does not read t"):
        gk.search.lsd(gk.MaskedModel(Timeless(), 2, 3), times=8)
    with pytest.raises(ValueError, match=r"times=-1.*at least 1"):
        gk.search.lsd(gk.MaskedModel(swinging, 2, 3), times=-1)
    for asked, crossed in (((0.5,), (0.1, 0.2)), ((0.5, 0.0), (0.1, 0.2)), ((), (0.1, 0.2))):
        with pytest.raises(ValueError, match=r"a time in \(0, 1\] and its cross-entropy"):
            LSD((0.1, 0.2), asked, crossed)
