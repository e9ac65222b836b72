"""Teacher guidance of few-step students, and two models stitched along the trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, wasserstein_distance
from torch import nn

import guidekit as gk
from guidekit.guides.distillation import Distillation
from guidekit.models.stitched import Stitched
from guidekit.solvers import Move, Solver

from .problems import PROBLEMS, STEPS

TEACHER = ([0.6, 0.4], [-1.5, 1.5], [0.4, 0.6])
STUDENT = ([0.8, 0.2], [-1.2, 1.4], [0.7, 0.7])  # wrong weights, means and widths


def mixture(weights, means, stds, **options) -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture(weights, torch.tensor(means, dtype=torch.float64), stds, **options)


def clean_mean(x: np.ndarray, t: float, law) -> np.ndarray:
    """E[x_0 | x_t] of a mixture on the cosine schedule, in numpy."""
    pi, m, s = map(np.asarray, law)
    a, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    var = (a * s) ** 2 + sigma**2
    log_p = np.log(pi) - 0.5 * (x[:, None] - a * m) ** 2 / var - 0.5 * np.log(var)
    rho = np.exp(log_p - log_p.max(1, keepdims=True))
    rho /= rho.sum(1, keepdims=True)
    return (rho * (m + a * s**2 / var * (x[:, None] - a * m))).sum(1)


def simulated(estimate, steps: int, n: int, seed: int = 0) -> np.ndarray:
    """Ancestral sampling where the clean mean at (x_t, t, s) is estimate(x, t, s, rng)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    for t, s in pairwise(1 - np.arange(steps + 1) / steps):
        (a_t, s_t), (a_s, s_s) = ((np.cos(np.pi * v / 2), np.sin(np.pi * v / 2)) for v in (t, s))
        step = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        mean = (a_t / a_s) * s_s**2 / s_t**2 * x + a_s * step / s_t**2 * estimate(x, t, s, rng)
        x = mean + np.sqrt(step) * s_s / s_t * rng.standard_normal(n)
    return x


class Recording(gk.Model):
    """A model that keeps what it was asked."""

    def __init__(self, inner: gk.Model):
        super().__init__(inner.net, inner.process, inner.shape, null=inner.null, dtype=inner.dtype)
        self.inner, self.asked = inner, []

    def __call__(self, x, t, cond):
        out = self.inner(x, t, cond)
        self.asked.append((x, t, cond, out))
        return out


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-1d"])
def test_the_teacher_denoises_the_students_estimate_at_the_next_time(name):
    problem = PROBLEMS[name]
    base = problem.model
    teacher = Recording(gk.analytic.GaussianMixture(base.weights, base.means + 0.3, base.stds, base.schedule))
    run = gk.Run(base, 3000, steps=STEPS, cond=1, guides=[Distillation(teacher, 0.7)])
    with torch.no_grad():
        pop = run.advance(run.start(), 0)
        d = base(pop.x, 5 / 6, torch.ones(3000, dtype=torch.long))
    x, s, _, out = teacher.asked[1]
    assert s == run.step(2).t  # asked at 5/6, answered for 4/6
    assert torch.allclose(pop.predictions[0], 0.3 * d + 0.7 * out, rtol=1e-12)
    alpha, sigma = base.process.scales(s)
    z = ((x - alpha * d) / sigma).flatten()
    assert kstest(z.numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z.numpy(), d.flatten().numpy())[0, 1]) < 4 / len(z) ** 0.5  # fresh noise


def test_lambda_zero_and_the_last_step_ask_no_teacher():
    problem = PROBLEMS["vp-1d"]
    teacher = mixture([1.0], [0.0], [1.0])
    plain, idle = (
        gk.sample(problem.model, 10, steps=STEPS, cond=1, guides=g) for g in ([], [Distillation(teacher, 0.0)])
    )
    assert torch.equal(plain.x, idle.x)
    assert idle.cost.network_rows == plain.cost.network_rows
    cost = gk.sample(problem.model, 10, steps=STEPS, cond=1, guides=[Distillation(teacher, 0.5)]).cost
    assert (cost.network_rows, cost.network_calls) == (10 * (STEPS + 3), STEPS + 3)  # fractions 0, 1/6, 2/6
    cost = gk.sample(problem.model, 10, steps=STEPS, cond=1, guides=[Distillation(teacher, 0.5, stop=1.0)]).cost
    assert cost.network_rows == 10 * (2 * STEPS - 1)


@dataclass(frozen=True)
class Consistency(Solver):
    """x_s = alpha_s d + sigma_s z: how networks that predict samples, as distilled ones do, take their few steps."""

    stochastic = True

    def step(self, t, s, last):
        return [Move(t.t, s.t, 0.0, (s.alpha,), s.sigma)]


def endpoint(x: np.ndarray, t: float, law) -> np.ndarray:
    """Where the exact ODE of a mixture in one dimension ends: the same quantile of the law at t = 0."""
    pi, m, s = map(np.asarray, law)
    grid = np.linspace(-8, 8, 20_001)

    def cdf(v, t):
        a, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
        return (pi * norm.cdf((v[:, None] - a * m) / np.sqrt((a * s) ** 2 + sigma**2))).sum(1)

    return np.interp(cdf(x, t), cdf(grid, 0.0), grid)


@pytest.mark.parametrize("scale, stop, gain", [(0.5, 0.5, 0.02), (1.0, 1.0, 0.13)])
def test_a_distilled_student_of_the_wrong_width_comes_closer_to_its_teacher_as_simulated(scale, stop, gain):
    """Without a teacher its samples follow its own law exactly, 0.31 from the teacher's; 0.27 and 0.14 with one."""
    steps, n, wide = 4, 40_000, ([0.6, 0.4], [-1.5, 1.5], [0.9, 0.9])

    def net(x, t, cond):
        return torch.from_numpy(endpoint(x[:, 0].numpy(), float(t[0]), wide))[:, None]

    def sampled(guides):
        student = gk.GaussianModel(net, (1,), predicts="clean", dtype=torch.float64)
        return gk.sample(student, n, steps=steps, guides=guides, solver=Consistency()).x[:, 0].numpy()

    rng = np.random.default_rng(0)
    x = rng.standard_normal(n)
    for t, s in pairwise(1 - np.arange(steps + 1) / steps):
        a, sigma = np.cos(np.pi * s / 2), np.sin(np.pi * s / 2)
        d = endpoint(x, t, wide)
        if 1 - t < stop and s > 0:
            noised = a * d + sigma * rng.standard_normal(n)
            d = (1 - scale) * d + scale * clean_mean(noised, s, TEACHER)
        x = a * d + sigma * rng.standard_normal(n) * (s > 0)
    truth = mixture(*TEACHER).exact_sample(n, 5)[:, 0].numpy()
    alone, found = sampled([]), sampled([Distillation(mixture(*TEACHER), scale, stop=stop)])
    # the shares of the two modes, 3 apart, have errors of 0.0025 in each sample: 0.01 in the distance of two samples
    assert wasserstein_distance(found, x) < 0.03
    assert wasserstein_distance(found, truth) < wasserstein_distance(alone, truth) - gain


def test_the_teachers_own_guidance_takes_one_more_row_and_follows_its_rule():
    base = mixture([0.5, 0.5], [-1.0, 1.0], [0.4, 0.4], labels=[0, 1])
    teacher = Recording(mixture([0.5, 0.5], [-1.3, 1.2], [0.3, 0.5], labels=[0, 1]))
    guide = Distillation(teacher, 1.0, cfg=3.0)
    result = gk.sample(base, 8, steps=4, cond=1, guides=[guide])
    assert result.cost.network_rows == 8 * 4 + 2 * 8 * 2
    run = gk.Run(base, 8, steps=4, cond=1, guides=[guide])
    teacher.asked.clear()
    with torch.no_grad():
        prediction = run.start().predictions[0]
    _, _, cond, out = teacher.asked[0]
    assert torch.equal(cond, torch.tensor([1] * 8 + [-1] * 8))
    assert torch.allclose(prediction, out[8:] + 3.0 * (out[:8] - out[8:]), rtol=1e-12)


def test_a_students_guidance_is_corrected_as_guided():
    """With lambda = 1 the prediction is the teacher's alone, whatever CFG the student has."""
    problem = PROBLEMS["vp-1d"]
    teacher = Recording(problem.model)
    run = gk.Run(problem.model, 8, steps=4, cond=1, guides=[gk.CFG(3.0), Distillation(teacher, 1.0)])
    with torch.no_grad():
        pop = run.advance(run.start(), 0)
    assert torch.allclose(pop.predictions[0], teacher.asked[1][3], rtol=1e-12)
    one, two = problem.model(pop.x, 0.75, torch.ones(8).long()), problem.model(pop.x, 0.75, -torch.ones(8).long())
    alpha, sigma = problem.model.process.scales(0.5)
    spread = (teacher.asked[1][0] - alpha * (two + 3 * (one - two))) / sigma
    assert spread.abs().max() < 4  # standard normal noise, around the guided estimate


def test_a_student_of_one_step_needs_a_time_to_noise_to():
    student, teacher = mixture(*STUDENT), Recording(mixture(*TEACHER))
    plain = gk.sample(student, 5, steps=1)
    assert torch.equal(gk.sample(student, 5, steps=1, guides=[Distillation(teacher, 1.0)]).x, plain.x)
    result = gk.sample(student, 5, steps=1, guides=[Distillation(teacher, 1.0, renoise=0.6)])
    assert teacher.asked[0][1] == 0.6
    assert torch.allclose(result.x, teacher.asked[0][3], rtol=1e-12)


def test_what_cannot_be_taught_is_refused():
    model = PROBLEMS["vp-1d"].model
    with pytest.raises(ValueError, match="tokens have none"):
        gk.Run(PROBLEMS["masked"].model, 2, guides=[Distillation(PROBLEMS["masked"].model, 0.5)])
    with pytest.raises(ValueError, match="share shape and noising law"):
        gk.Run(model, 2, guides=[Distillation(PROBLEMS["flow-2d"].model, 0.5)])
    with pytest.raises(ValueError, match=r"lambda lies in \[0, 1\]"):
        gk.Run(model, 2, guides=[Distillation(model, 1.5)])
    with pytest.raises(ValueError, match="null condition"):
        gk.Run(model, 2, guides=[Distillation(mixture([1.0], [0.0], [1.0]), 0.5, cfg=2.0)])


# stitching -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_two_equal_models_stitched_are_the_model(problem, at):
    both = Stitched(problem.model, problem.model, at)
    plain, guided = (
        gk.sample(m, 12, steps=STEPS, cond=[problem.cond, None], guides=[gk.CFG(1.5)]) for m in (problem.model, both)
    )
    assert torch.equal(plain.x, guided.x)
    assert plain.cost.network_rows == guided.cost.network_rows


def test_each_model_has_its_part_of_the_times():
    early, late = Recording(mixture(*STUDENT)), Recording(mixture(*TEACHER))
    result = gk.sample(Stitched(early, late, at=0.6), 5, steps=5)
    assert [t for _, t, _, _ in early.asked] == pytest.approx([1.0, 0.8])
    assert [t for _, t, _, _ in late.asked] == pytest.approx([0.6, 0.4, 0.2])  # at 0.6 itself the late one
    assert (result.cost.network_rows, result.cost.network_calls) == (25, 5)


def test_the_law_is_that_of_a_simulation_with_the_two_models():
    steps, n, at = 10, 40_000, 0.55
    known = simulated(lambda x, t, s, rng: clean_mean(x, t, STUDENT if t > at else TEACHER), steps, n)
    found = gk.sample(Stitched(mixture(*STUDENT), mixture(*TEACHER), at), n, steps=steps).x[:, 0].numpy()
    small, large = (gk.sample(mixture(*m), n, steps=steps).x[:, 0].numpy() for m in (STUDENT, TEACHER))
    assert wasserstein_distance(found, known) < 0.03
    assert 0.05 < wasserstein_distance(found, large) < 0.8 * wasserstein_distance(small, large)


class Embedding(nn.Module):
    """A clean mean that depends on the condition: a class as a number, or a dict with a vector."""

    def __init__(self, name: str):
        super().__init__()
        self.weight, self.name = nn.Parameter(torch.tensor([0.5, 1.0, -1.0])), name

    def forward(self, x, t, cond):
        c = self.weight[cond] if self.name == "number" else (cond["vector"] * self.weight).sum(-1)
        return 0.3 * x + c[:, None]


def test_models_with_other_encodings_each_see_their_own_condition():
    """CFG included: the early model takes a class number, the late one a dict with a one-hot vector."""
    number = gk.GaussianModel(Embedding("number"), (2,), predicts="clean", null=0)
    hot = {c: {"vector": torch.eye(3)[c]} for c in range(3)}
    vector = gk.GaussianModel(
        Embedding("vector"), (2,), predicts="clean", encode_cond=lambda c: hot[c], null={"vector": torch.eye(3)[0]}
    )
    both = Stitched(number, vector, 0.5)
    assert not both.shared
    conds = [1, None, 2]
    runs = [gk.sample(m, 4, steps=6, cond=conds, guides=[gk.CFG(2.0)]) for m in (number, vector, both)]
    assert torch.allclose(runs[0].x, runs[1].x, atol=1e-6)  # the same function of the class
    assert torch.allclose(runs[0].x, runs[2].x, atol=1e-6)
    number.net.train()
    gk.sample(both, 2, steps=4, cond=1)
    assert number.net.training
    assert number.net.weight.requires_grad
    assert {id(m) for m in both.modules()} == {id(number.net), id(vector.net)}


def test_an_encoding_that_both_share_serves_further_models_too():
    from guidekit.guides.autoguidance import AutoGuidance

    base = PROBLEMS["vp-1d"].model
    wide, wider = (
        gk.analytic.GaussianMixture(base.weights, base.means, k * base.stds, base.schedule, labels=base.labels)
        for k in (1.2, 1.6)
    )
    both = Stitched(wide, base, 0.5)
    assert both.shared
    run = gk.Run(both, 4, steps=4, cond=1, guides=[AutoGuidance(wider, 2.0)])
    with torch.no_grad():
        pop = run.advance(run.start(), 0)
    label = torch.ones(4, dtype=torch.long)
    expected = 2 * wide(pop.x, 0.75, label) - wider(pop.x, 0.75, label)
    assert torch.allclose(pop.predictions[0], expected, rtol=1e-12)


def test_noise_and_clean_predictions_are_stitched_from_the_later_start():
    nets = [gk.GaussianModel(lambda x, t, cond: 0.1 * x, (2,), predicts=p) for p in ("noise", "clean")]
    assert [m.process.t_max for m in nets] == [0.999, 1.0]
    assert Stitched(*nets, 0.5).process.t_max == 0.999


def test_models_that_do_not_belong_together_are_refused():
    one = mixture([1.0], [0.0], [1.0])
    with pytest.raises(ValueError, match="noising law"):
        Stitched(one, mixture([1.0], [0.0], [1.0], schedule=gk.schedules.Flow()), 0.5)
    with pytest.raises(ValueError, match="one shape"):
        Stitched(one, PROBLEMS["flow-2d"].model, 0.5)
    with pytest.raises(ValueError, match="one dtype"):
        Stitched(one, gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), 0.5)
    with pytest.raises(ValueError, match="null condition"):
        Stitched(one, mixture([1.0], [0.0], [1.0], labels=[0]), 0.5)
    with pytest.raises(ValueError, match="at=2"):
        Stitched(one, one, 2)
    with pytest.raises(TypeError, match="base model"):
        Stitched(one, lambda x, t, c: x, 0.5)  # type: ignore
