"""gk.coverage: uniform ranks for the exact posterior, and none for one whose noise is wrong by a factor of two."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.search.coverage import Coverage
from rewards import ByGroup

from .test_measurement import BASE

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
BOTH = gk.Measurement(torch.tensor([[1.0, 0.3], [0.0, 0.8]]).double(), torch.zeros(2), 0.25)


class Posterior(gk.Guide):
    """Exact independent draws of the posterior of BASE, in closed form, for a noise that is `wrong` times the true
    one."""

    def __init__(self, each: ByGroup, wrong: float):
        object.__setattr__(self, "each", each)
        object.__setattr__(self, "noise", BOTH.noise.std * wrong)  # type: ignore[union-attr]

    def finish(self, view, prediction):
        if view.step.move.s > 0:
            return prediction
        y = torch.stack([m.y for m in self.each.rewards])[view.group]  # type: ignore[attr-defined]
        return drawn(y.double(), view.key, self.noise)  # type: ignore[attr-defined]


def drawn(y: Tensor, keys: Tensor, noise: float) -> Tensor:
    """One draw of the mixture p(x | y) for each row."""
    A, eye = BOTH.operator.matrix, torch.eye(2).double()
    log_w, means, roots = [], [], []
    for w, m, s in zip(BASE.weights, BASE.means, BASE.stds, strict=True):
        S = s**2 * A @ A.mT + noise**2 * eye
        gain = s**2 * A.mT @ torch.linalg.inv(S)
        log_w.append(w.log() + torch.distributions.MultivariateNormal(A @ m, S).log_prob(y))
        means.append(m + (y - A @ m) @ gain.mT)
        roots.append(torch.linalg.cholesky(s**2 * eye - s**2 * gain @ A))
    k = (torch.stack(log_w, 1) + gk.random.gumbel(gk.random.fold(keys, 1), (3,))).argmax(1)
    z = gk.random.normal(gk.random.fold(keys, 2), (2,), torch.float64)
    return torch.stack(means, 1)[torch.arange(len(y)), k] + (torch.stack(roots)[k] @ z[..., None])[..., 0]


def found(wrong: float, **options) -> Coverage:
    """500 measurements, whose truth is drawn from BASE itself, as one step of a sampler would not."""
    options = {"n": 500, "draws": 60, "steps": 2, "truth": BASE.exact_sample(500, seed=5)} | options
    return gk.coverage(BASE, BOTH, lambda each: [Posterior(each, wrong)], **options)


def test_the_exact_posterior_passes_and_one_of_a_wrong_noise_does_not():
    """Each p-value is uniform if the posterior is exact: below 0.001 once in 160 runs of six statistics."""
    right = {row["statistic"]: row for row in found(1.0).table}
    assert min(row["p"] for row in right.values()) > 1e-3
    assert abs(right["TARP"]["within 90 %"] - 0.9) < 4 * math.sqrt(0.09 / 500)
    for wrong, sign in ((2.0, 1), (0.5, -1)):
        table = {row["statistic"]: row for row in found(wrong).table}
        assert table["log p(y | x)"]["p"] < 1e-20
        assert wrong > 1 or table["TARP"]["p"] < 1e-6  # too wide a posterior hides from random reference points
        assert sign * (table["direction 1"]["within 50 %"] - 0.5) > 0.04  # of too wide ones in the middle
        assert sign * table["log p(y | x)"]["bias"] > 0.1  # and fits better than the draws


def test_ranks_count_weights_and_put_equal_values_in_random_order():
    from guidekit.search import coverage as module

    truth, v = torch.tensor([2.0, 1.0]), torch.tensor([0.25, 0.5])
    values, weights = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    # 3 * 0.5 below and 3 * 0.3 equal; and all three equal
    exact = torch.tensor([(1.5 + 0.25 * (1 + 0.9)) / 4, 0.5 * 4 / 4])
    assert torch.allclose(module.ranked(truth, values, weights, v), exact)


def test_a_model_that_is_not_that_of_the_truth_shows():
    moved = found(1.0, truth=BASE.exact_sample(500, seed=5) + torch.tensor([0.4, 0.0]))
    assert moved.p < 1e-6


@pytest.mark.slow
def test_weighted_particles_pass_and_dps_is_too_narrow():
    m = gk.Measurement(torch.tensor([[0.9, -0.5]]).double(), torch.zeros(1), 0.4)
    options = {"n": 200, "draws": 60, "steps": 30}
    for exact in (lambda e: [gk.TDS(e, 1.0, value=gk.values.Likelihood(e))], lambda e: [gk.FKSteering(e, 1.0)]):
        assert gk.coverage(BASE, m, exact, **options).p > 1e-3
    narrow = {row["statistic"]: row for row in gk.coverage(BASE, m, lambda e: [gk.DPS(e, 1.0)], **options).table}
    assert narrow["log p(y | x)"]["p"] < 1e-4 and narrow["direction 2"]["within 90 %"] < 0.8


def test_statistics_of_the_user_a_frame_and_a_plot():
    pytest.importorskip("matplotlib")
    own = found(1.0, n=20, draws=5, truth=BASE.exact_sample(20), statistics={"first": lambda x: x[:, 0]})
    assert list(own.to_frame()["statistic"]) == ["first", "TARP"] == list(own.ranks)
    assert own.p == min(1.0, 2 * min(row["p"] for row in own.table))
    from matplotlib.figure import Figure

    axes = own.plot(Figure().subplots())
    line = axes.lines[0].get_ydata()
    assert line[-1] == 1.0 and line[50] == pytest.approx(float((own.ranks["first"] < 0.5).double().mean()))


def test_what_cannot_be_tested_is_refused():
    with pytest.raises(TypeError, match=r"takes a gk.Measurement, not ByGroup"):
        gk.coverage(BASE, ByGroup([BOTH]), lambda m: [])
    with pytest.raises(ValueError, match="without it there is no density"):
        gk.coverage(BASE, gk.Measurement(torch.eye(2), torch.zeros(2), 0.0), lambda m: [])
    with pytest.raises(TypeError, match=r"like lambda m: \[gk.PiGDM\(m\)\]"):
        gk.coverage(BASE, BOTH, [gk.PiGDM(BOTH)])
    with pytest.raises(ValueError, match="draws=1"):
        gk.coverage(BASE, BOTH, lambda m: [], draws=1)
    with pytest.raises(ValueError, match=r"truth of shape \(3, 2\)"):
        gk.coverage(BASE, BOTH, lambda m: [], 5, truth=torch.zeros(3, 2), steps=1)


@pytest.mark.slow
def test_tarp_agrees_with_the_package_of_its_authors():
    """The share of ranks below each level is the expected coverage of `tarp` at that level, with the same reference
    points."""
    tarp = pytest.importorskip("tarp")
    truth = BASE.exact_sample(500, seed=5)
    own = found(2.0)
    x = own.result.x.view(500, 60, 2).transpose(0, 1).numpy()
    prior = gk.sample(BASE, 1000, steps=2).x[500:]
    share, level = tarp.get_tarp_coverage(x, truth.numpy(), references=prior.numpy(), metric="euclidean", norm=False)
    mine = [(own.ranks["TARP"] < v).double().mean().item() for v in level]
    assert abs(torch.tensor(mine) - torch.tensor(share)).max() < 0.04  # bins of 1/60, and random places of x*
