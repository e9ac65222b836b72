"""Learned values that correct look-aheads, completions with shared noise, and what a value explains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.engine.guide import Guide
from guidekit.values.fit import solved
from guidekit.values.learned import Correction, Scaled, call, soft_mean
from guidekit.values.nets import Nothing, Record

from .test_values_fit import STEPS, V, enumerated, quick, same, small, token_reward

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning", "ignore:the value is no better")


def x0(x: Tensor) -> Tensor:
    return x[:, 0]


# the least loss ----------------------------------------------------------------------------------------------------


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_the_squares_are_least_at_the_normal_equations():
    terms, left, weight = drawn(50, 3), drawn(50) + 1, drawn(50).exp()
    exact = torch.linalg.solve(
        terms.T @ (weight[:, None] * terms) + 2 * torch.eye(3).double(), terms.T @ (weight * left)
    )
    assert torch.allclose(solved(terms, left, weight, math.inf, 50, 2.0), exact, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_the_soft_loss_of_a_constant_is_least_at_the_soft_mean(alpha: float):
    left, weight = drawn(50), (drawn(50) / 4).exp()
    found = solved(torch.ones(50, 1).double(), left, weight, alpha, 50, 0.0)
    assert float(found) == pytest.approx(soft_mean(left, weight, alpha), abs=1e-7)


def test_the_soft_loss_is_stationary_in_all_weights():
    """sum w (exp(z) - 1) phi alpha = ridge b with z = (left - phi b)/alpha, below the bound on exp."""
    terms, left, weight, alpha = drawn(80, 3), drawn(80), (drawn(80) / 4).exp(), 0.5
    b = solved(terms, left, weight, alpha, 10**6, 3.0)
    z = (left - terms @ b) / alpha
    assert torch.allclose(alpha * terms.T @ (weight * torch.expm1(z)), 3.0 * b, atol=1e-6)


def test_a_correction_is_linear_between_its_knots():
    t, seen = torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64), torch.tensor([[1.0], [3.0], [math.nan]]).double()
    path = Correction.of(t, seen)
    assert path.knots.tolist() == pytest.approx([0.2, 0.6, 1.0]) and (float(path.mean), float(path.spread)) == (2, 1)
    path.weight.copy_(torch.tensor([[0.0, 1.0], [4.0, 3.0], [8.0, 9.0]]))
    at = torch.tensor([0.1, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    found = path(at, torch.tensor([[4.0], [4.0], [3.0], [2.5], [math.nan]]).double())
    # a(t) + b(t) (u - 2): 0 + 1*2; 1 + 1.5*2; 4 + 3*1; 7 + 7.5*.5; and at the last, unknown, a alone
    assert found.tolist() == pytest.approx([2.0, 4.0, 7.0, 10.75, 8.0])


# fits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["soft", "mean"])
def test_a_tweedie_value_of_a_gaussian_is_corrected_to_the_exact_one(target: str):
    """p(x_0 | x_t) = N(m, S), so that V = m + S/2a for r = x_0, and m for the mean. The look-ahead says 2 m - 1.

    At each of 12 times 500 states: residuals have deviation sqrt(S) < .8 and soft weights exp((r - V)/a) inflate the
    error by exp(S/2a^2) < 1.4, so that one of a(t) and b(t) is uncertain by .05; half of S/a is .32 at t = .9.
    """
    base, alpha = gk.analytic.GaussianMixture([1.0], [0.5], [0.8]).exact(), 1.0
    looks = [gk.values.Tweedie(lambda x: 2 * x[:, 0] - 1)]
    options = {"alpha": alpha, "rollouts": 1250, "steps": 12, "per_rollout": 6}
    value = gk.values.fit(base, x0, looks=looks, target=target, epochs=0, **options)
    for t in (11 / 12, 0.75, 0.5, 0.25):
        a, sigma = base.process.scales(t)
        s = 1 / (1 / 0.64 + a**2 / sigma**2)
        x = a * 0.5 + math.sqrt(0.64 * a**2 + sigma**2) * torch.tensor([[-1.0], [0.0], [1.0]])
        m = s * (0.5 / 0.64 + a * x[:, 0].double() / sigma**2)
        found = call(value.net, x, torch.full((3,), t), None, (2 * m - 1)[:, None]) - m
        assert (found - (s / (2 * alpha) if target == "soft" else 0)).abs().max() < 0.2, t
    assert value.looks == tuple(looks) and value.sees_prediction


@lru_cache(maxsize=1)
def table():
    """The exact soft value at alpha .3 and mean value of each state at each step, as {step: (soft, mean)}."""
    model = gk.analytic.TokenTable(
        torch.randn(V, V, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1.2
    )
    grid, moves, kernels, law = enumerated(model)
    r = token_reward(torch.as_tensor(grid)).double()
    soft, mean, found = (r / 0.3).exp(), r, {}
    for i in range(len(moves))[::-1]:
        k = torch.as_tensor(kernels[i])
        soft, mean = k @ soft, k @ mean
        found[i] = 0.3 * soft.log(), mean
    return model, torch.as_tensor(grid), [torch.as_tensor(p) for p in law], found


def at(x: Tensor) -> Tensor:
    """The place of states in the enumeration."""
    return (x * (V + 1) ** torch.arange(x.shape[1] - 1, -1, -1)).sum(1)


@dataclass(frozen=True)
class Told:
    """The exact value, times 2, less 1."""

    kind: int
    sees_prediction = False

    def __call__(self, view) -> Tensor:
        return 2 * table()[3][view.step.index][self.kind][at(view.x)] - 1


@pytest.mark.parametrize("target", ["soft", "mean"])
def test_a_value_of_tokens_undoes_what_a_look_ahead_gets_wrong(target: str):
    """V' = 2 V - 1 is corrected to V; with 1,600 rollouts whose rewards spread by .4 the error is about .01."""
    model, grid, law, exact = table()
    kind = ("soft", "mean").index(target)
    value = gk.values.fit(
        model, token_reward, alpha=0.3, target=target, rollouts=2000, steps=STEPS, per_rollout=3, epochs=0,
        looks=[Told(kind)],
    )  # fmt: skip
    assert not value.sees_prediction
    for i, (t, _) in enumerate(pairwise(1 - torch.arange(STEPS + 1) / STEPS)):
        own, other, p = exact[i][kind], exact[i][1 - kind], law[i]
        found = call(value.net, grid, torch.full((len(grid),), float(t)), None, (2 * own - 1)[:, None])
        assert (p @ (found - own) ** 2).sqrt() < 0.06
        assert (p @ (other - own) ** 2).sqrt() > 0.1 or t < 0.2


def test_states_are_seen_where_they_were_recorded():
    """Also those of particles that resampling has moved about."""
    look = gk.values.Learned(lambda x, t, cond: 3 * x[:, 0] + t)
    guides = [gk.FKSteering(x0, 0.5, ess=1.0), Record(3, (look,))]
    base = gk.analytic.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.5, 0.5])
    index, states, seen = gk.sample(base, 40, steps=6, guides=guides, seed=1).memos[1]
    assert torch.allclose(seen[..., 0], (3 * states[..., 0] + 1 - index / 6).double(), atol=1e-5)
    assert states[:, 1, 0].unique().numel() < 40 and not guides[1].sees_prediction


@dataclass(frozen=True)
class Half:
    """Half of x_t, which says something of x_0."""

    sees_prediction = False

    def __call__(self, view) -> Tensor:
        return view.x[:, 0].double() / 2


def test_a_network_that_adds_nothing_is_left_out():
    """Against one that does: the reward is what the look-ahead says, or has a square besides."""
    base = gk.analytic.GaussianMixture([1.0], [0.0], [1.0]).exact()
    options = {"target": "mean", "rollouts": 200, "steps": 4, "looks": [Half()], "patience": 30}
    alone = quick(model=base, reward=lambda x: torch.zeros(len(x)), epochs=1, **options)
    assert float(alone.net.scale) == 0
    both = quick(model=base, reward=lambda x: x[:, 0].square(), epochs=30, **options)
    alike = {"alpha": 0.8, "per_rollout": 8} | options
    without = gk.values.fit(base, lambda x: x[:, 0].square(), epochs=0, **alike)
    assert float(both.net.scale) > 0 and both.calibration.loss < without.calibration.loss - 0.05


def test_a_fit_with_look_aheads_is_resumed_and_not_taken_for_another(tmp_path: Path):
    options = {"rollouts": 60, "steps": 6, "epochs": 0, "folder": tmp_path, "seed": 3}
    base = gk.analytic.GaussianMixture([1.0], [0.0], [1.0])
    first = gk.values.fit(base, x0, looks=[Half()], **options)
    assert (tmp_path / "rollouts.safetensors").exists()
    assert same(first, gk.values.fit(base, x0, looks=[Half()], **options))
    with pytest.raises(gk.CheckpointError, match="is of another run: looks"):
        gk.values.fit(base, x0, looks=["tweedie"], **options)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"epochs": 0}, ValueError, r"a value without a network; .* give looks="),
        ({"epochs": 0, "looks": ["tweedie"], "net": small()}, ValueError, "a net that is not trained; leave out net"),
        ({"looks": gk.values.Tweedie(x0)}, TypeError, "a list of values"),
        ({"looks": [3]}, TypeError, "a list of values"),
        ({"looks": ["guess"]}, ValueError, r"fit\(value='guess'\): there is 'tweedie'"),
        ({"looks": ["tweedie"], "net": Scaled(small())}, ValueError, "without look-aheads; give its inner net"),
    ],
)
def test_look_aheads_that_cannot_be_are_refused_before_any_work(options, error, message):
    with pytest.raises(error, match=message):
        gk.values.fit(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), x0, **options)


def test_a_value_costs_what_its_look_aheads_cost():
    """With one that reads x_t alone the network sees survivors; with one that sees the prediction, every child."""
    base = gk.analytic.GaussianMixture([1.0], [0.0], [1.0])
    for look, rows in ((Half(), 10), (gk.values.Tweedie(x0), 10 + 3 * 10 * 3)):
        value = gk.values.Learned(Scaled(Nothing(), path=Correction(1)), looks=(look,))
        result = gk.sample(base, 10, steps=4, guides=[gk.SVDD(x0, 0.5, 3, value=value)])
        assert result.cost.network_rows == (40 if look == Half() else rows)


# completions with shared noise -------------------------------------------------------------------------------------


class Asked(Guide):
    """Asks a value at the second step and keeps what it said beside the states."""

    def __init__(self, value):
        self.value, self.seen = value, []

    def log_weight(self, view, memo):
        if view.step.index == 1:
            self.seen.append((view.x.clone(), self.value(view)))
        return 0.0, memo


@pytest.mark.parametrize("shared", [True, False])
def test_completions_with_shared_noise_are_equal_for_equal_states(shared: bool):
    model = table()[0]
    probe = Asked(gk.values.Rollout(token_reward, 1, 2, 0.0, shared))
    gk.sample(model, 200, steps=3, guides=[probe], seed=1)
    ((x, value),) = probe.seen
    places = at(x)
    spread = max(float(value[places == place].std()) for place in places.unique() if (places == place).sum() > 5)
    assert spread == 0 if shared else spread > 0.05


def test_completions_with_shared_noise_follow_the_factorised_posterior():
    """Groups have noise of their own: over 800 of one particle the mean at the fully masked state is that of r under
    the product of the marginals, within 4.5 standard errors."""
    model, n = table()[0], 800
    probe = Asked(gk.values.Rollout(token_reward, 1, 2, 0.0, shared=True))
    gk.sample(model, 1, steps=40, cond=[None] * n, guides=[probe], seed=list(range(n)))
    x, value = (torch.cat(part) for part in zip(*probe.seen, strict=True))
    value = value[(x == V).all(1)]
    p = model.table[0].view(V, V, V).exp()
    one = [p.sum((1, 2)), p.sum((0, 2)), p.sum((0, 1))]
    states = torch.cartesian_prod(*[torch.arange(V)] * 3)
    weight = torch.stack([one[i][states[:, i]] for i in range(3)]).prod(0)
    assert len(value) > 0.9 * n
    assert (
        abs(float(value.mean() - weight @ token_reward(states).double())) < 4.5 * float(value.std()) / len(value) ** 0.5
    )


def test_a_child_is_completed_by_what_was_said_of_its_parent():
    """After one move, whose parent is masked everywhere, the masks of x are filled in from the marginals of p, which
    the tokens of x do not change: E r(x) over these, within 4.5 standard errors, at no further network rows."""
    model, n = table()[0], 6000
    probe = Asked(gk.values.Rollout(token_reward, 1, 4, 0.0, parent=True))
    result = gk.sample(model, n, steps=3, guides=[probe], seed=5)
    x, value = (torch.cat(part) for part in zip(*probe.seen, strict=True))
    p = model.table[0].view(V, V, V).exp()
    one = [p.sum((1, 2)), p.sum((0, 2)), p.sum((0, 1))]
    off = []
    for state in x.unique(dim=0):
        rows = (x == state).all(1)
        if rows.sum() < 200 or (state == V).all() or (state < V).all():
            continue
        full = torch.cartesian_prod(*[torch.arange(V) if v == V else v[None] for v in state])
        weight = torch.stack([one[i][full[:, i]] if state[i] == V else torch.ones(len(full)) for i in range(3)]).prod(0)
        mean, own = weight @ token_reward(full).double(), value[rows]
        assert abs(float(own.mean() - mean)) < 4.5 * float(own.std()) / len(own) ** 0.5 + 1e-9, state
        post = p[tuple(slice(None) if v == V else int(v) for v in state)].flatten()
        off.append(abs(float(mean - post @ token_reward(full).double() / post.sum())) / (float(own.std()) + 1e-9))
    assert len(off) > 3 and max(off) > 0.3  # the posterior given x itself would say something else
    assert not gk.values.Rollout(token_reward, parent=True).sees_prediction
    assert probe.seen and result.cost.network_rows <= 3 * n
    with pytest.raises(ValueError, match=r"steps=2, parent=True\): a parent's prediction is for one step"):
        gk.values.Rollout(token_reward, 2, parent=True)
    with pytest.raises(ValueError, match="fills in masks, and Gaussian"):
        guides = [gk.FKSteering(x0, 1.0, value=gk.values.Rollout(x0, parent=True))]
        gk.sample(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), 4, steps=3, guides=guides)


# what is explained -------------------------------------------------------------------------------------------------


def test_what_can_be_explained_is_the_variance_of_the_exact_mean():
    """var E[r | x_t] / var r by enumeration, within 4.5 standard errors, (1 - c^2)/sqrt(n) of a correlation. The exact
    value V would explain it; 2 V - 1 has the error r - V, and V besides."""
    model, grid, law, exact = table()
    value, n = Told(1), 1500
    times = [1 - i / STEPS for i in (2, 4)]
    rows = gk.values.explained(model, token_reward, value, n=n, times=times, steps=STEPS, seed=4)
    assert [row.t for row in rows] == pytest.approx(times)
    end = law[-1] @ torch.as_tensor(enumerated(model)[2][-1])
    r = token_reward(grid).double()
    total = end @ (r - end @ r) ** 2
    for row, i in zip(rows, (2, 4), strict=True):
        mean = exact[i][1]
        possible = float(law[i] @ (mean - law[i] @ mean) ** 2 / total)
        assert row.noise == pytest.approx((1 - possible**2) / n**0.5, rel=0.2)
        assert abs(row.possible - possible) < 4.5 * row.noise
        # 1 - Var(r - 2 V + 1)/Var(r) = 1 - (1 - possible) - possible = 0
        assert abs(row.explained[0]) < 0.15 and possible > 0.2


@pytest.mark.parametrize("batch_size", [30, 100])
def test_what_is_explained_does_not_depend_on_the_batch(batch_size: int):
    """Second completions start from the states of their own rows, in any part of the run."""
    model, value = table()[0], gk.values.Tweedie(token_reward)
    options = {"n": 100, "times": [0.5], "steps": 6, "seed": 1}
    (whole,) = gk.values.explained(model, token_reward, value, **options)
    (row,) = gk.values.explained(model, token_reward, value, batch_size=batch_size, **options)
    assert row.explained == pytest.approx(whole.explained, abs=1e-6) and row.possible == pytest.approx(whole.possible)


@pytest.mark.parametrize(
    "options, message",
    [({"n": 2}, "at least 3 rollouts"), ({"times": [0.0]}, "numbers in"), ({"times": []}, "numbers")],
)
def test_what_is_explained_needs_rollouts_and_times(options, message):
    with pytest.raises(ValueError, match=message):
        gk.values.explained(table()[0], token_reward, **options)
