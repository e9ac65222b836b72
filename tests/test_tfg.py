"""Training-free guidance: runs are the paper's algorithm, written here again without the library, and with the score's
own strengths DPS has the laws that theory gives it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit import random
from guidekit.errors import RewardError
from guidekit.guides.shared.training_free import TrainingFree
from guidekit.guides.tfg import DPS, LGD, MPGD, TFG, UGD, FreeDoM
from rewards import Reward

from .problems import PROBLEMS, STEPS, Problem, deviations, estimates, populations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
DDPM, DDIM = gk.solvers.DDPM, gk.solvers.DDIM


def reward(x: Tensor) -> Tensor:
    return 0.7 * (x[:, 0] * 1.3).tanh() - 0.3 * (x[:, -1] - 0.4).square()


def ours(pop: gk.Population, guides: int) -> gk.Population:
    """A population of another run, for one with so many guides."""
    return replace(pop, memos=(None,) * guides)


# the algorithm by hand ---------------------------------------------------------------------------------------------

PI, MU, SD = [0.5, 0.3, 0.2], [[-1.5, 0.3], [0.5, -0.4], [2.0, 0.8]], [0.5, 0.4, 0.6]
ALPHA = {
    "vp": lambda t: (np.cos(np.pi * t / 2) if t < 1 else 0.0, np.sin(np.pi * t / 2)),
    "flow": lambda t: (1 - t, t),
    "edm": lambda t: (1.0, (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 if t else 0.0),
}
SCHEDULES = {"vp": gk.schedules.Cosine(), "flow": gk.schedules.Flow(), "edm": gk.schedules.EDM()}


def mixture(kind: str) -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in (PI, MU, SD)), SCHEDULES[kind])


def denoise(x: Tensor, bar: float) -> Tensor:
    """E[x_0 | x_t] of the mixture for x_t = sqrt(bar) x_0 + sqrt(1 - bar) z."""
    pi, mu, sd = (torch.tensor(v, dtype=torch.float64) for v in (PI, MU, SD))
    var = bar * sd**2 + 1 - bar
    log_rho = pi.log() - 0.5 * (x[:, None] - bar**0.5 * mu).square().sum(-1) / var - 0.5 * x.shape[1] * var.log()
    each = (mu * (1 - bar) + (bar**0.5 * sd**2)[:, None] * x[:, None]) / var[:, None]
    return (log_rho.softmax(1)[..., None] * each).sum(1)


@dataclass
class Paper:
    """Algorithm 1 for alpha-bar from noise to data, with the strengths' schedules of the authors."""

    bars: list[float]
    rho: float
    mu: float
    sigma: float
    recur: int
    iters: int
    eta: float
    schedule: str
    draws: int
    deltas: list[Tensor]  # standard normal, in the order of use

    def strength(self, i: int) -> float:
        kept = np.array([t / s for t, s in pairwise(self.bars)])
        s = {"increase": kept, "decrease": 1 - kept, "constant": np.ones_like(kept)}[self.schedule]
        return s[i] * len(s) / s.sum()

    def rounds(self, i: int) -> range:
        """How often a step is taken: once from pure noise, to which all but the last would lead back."""
        return range(0 if self.bars[i] > 1e-6 else self.recur - 1, self.recur)

    def smoothed(self, x0: Tensor, bar: float) -> Tensor:
        if self.sigma == 0:
            return reward(x0)
        delta = self.deltas.pop(0)  # (rows, draws, d)
        return torch.stack(
            [reward(x0 + self.sigma * (1 - bar) ** 0.5 * delta[:, j]) for j in range(self.draws)]
        ).logsumexp(0) - np.log(self.draws)

    def step(self, x: Tensor, i: int, z: Tensor) -> Tensor:
        bar, prev = self.bars[i], self.bars[i + 1]
        x = x.clone().requires_grad_()
        x0 = denoise(x, bar)
        delta_t = torch.zeros_like(x)
        if self.rho and bar > 1e-6:
            each = self.smoothed(x0, bar)
            delta_t = torch.stack([torch.autograd.grad(each[j], x, retain_graph=True)[0][j] for j in range(len(x))])
        x0, delta_0 = x0.detach(), torch.zeros_like(x)
        for _ in range(self.iters if self.mu else 0):
            at = (x0 + delta_0).requires_grad_()
            slope = torch.autograd.grad(self.smoothed(at, bar).sum(), at)[0]
            delta_0 = delta_0 + self.mu * self.strength(i) * slope
        x = x.detach()
        eps = (x - bar**0.5 * x0) / (1 - bar) ** 0.5
        std = self.eta * ((1 - prev) / (1 - bar) * (1 - bar / prev)) ** 0.5
        rest = (1 - self.eta**2) * (1 - prev) + self.eta**2 * (1 - prev) ** 2 / (1 - bar) * bar / prev
        sampled = prev**0.5 * x0 + rest**0.5 * eps + std * z  # rest = 1 - prev - std^2, without cancellation
        rho = self.rho * self.strength(i)
        return sampled + (rho * delta_t / (bar / prev) ** 0.5 if bar > 1e-6 else 0.0) + prev**0.5 * delta_0

    def run(self, x: Tensor, noise: Tensor, again: Tensor) -> Tensor:
        """noise (T, recur, rows, d) of the steps, again (T, recur - 1, rows, d) of the noising."""
        for i in range(len(self.bars) - 1):
            alpha = self.bars[i] / self.bars[i + 1]
            for r in self.rounds(i):
                x = self.step(x, i, noise[i, r])
                if r < self.recur - 1:
                    x = alpha**0.5 * x + (1 - alpha) ** 0.5 * again[i, r]
        return x


def compared(kind: str, guide: TrainingFree, solver, eta: float, steps: int = 5, n: int = 4) -> tuple[Tensor, Tensor]:
    """The engine's samples and the paper's, from the same noise."""
    model = mixture(kind)
    times = [1 - i / steps for i in range(steps)] + [0.0]
    scales = [ALPHA[kind](t) for t in times]
    bars = [a * a / (a * a + s * s) for a, s in scales]
    rho, mu, sigma, recur, iters, draws = (getattr(guide, k) for k in ("rho", "mu", "sigma", "recur", "iters", "draws"))
    generator = torch.Generator().manual_seed(5)
    z0, z, again = (
        torch.randn(*shape, n, 2, generator=generator, dtype=torch.float64)
        for shape in ((), (steps, recur), (steps, recur - 1))
    )
    # one noise for each row of the table: a step, or a step with the noising after it
    table, deltas = [z0], []
    plain = Paper(bars, rho, mu, sigma, recur, iters, eta, guide.schedule, draws, deltas)
    for i in range(steps):
        alpha = bars[i] / bars[i + 1]
        std = eta * ((1 - bars[i + 1]) / (1 - bars[i]) * (1 - alpha)) ** 0.5
        for r in plain.rounds(i):
            last = r == recur - 1
            both = (alpha * std**2 + 1 - alpha) ** 0.5
            table.append(z[i, r] if last else (alpha**0.5 * std * z[i, r] + (1 - alpha) ** 0.5 * again[i, r]) / both)
            look = len(table) - 2
            key = random.fold(
                random.fold(random.fold(random.key(3), f"{type(guide).__name__}.0"), look), torch.arange(n)
            )
            places = [0] * bool(rho and bars[i] > 1e-6) + [1 + j for j in range(iters)] * bool(mu)
            deltas += [random.normal(random.fold(key, p), (draws, 2), torch.float64) for p in places]
    ours = gk.sample(model, n, steps=steps, guides=[guide], solver=solver, noise=torch.stack(table), seed=3)
    start = z0 * scales[0][1] / (scales[0][0] ** 2 + scales[0][1] ** 2) ** 0.5
    return ours.x, plain.run(start, z, again)


SETTINGS = {
    "all of it": TFG(reward, rho=0.4, mu=0.2, sigma=0.5, recur=2, iters=3, draws=3),
    "decrease": TFG(reward, rho=0.4, mu=0.2, sigma=0.5, recur=1, iters=2, schedule="decrease"),
    "constant": TFG(reward, rho=0.4, mu=0.2, sigma=0.0, recur=3, iters=2, schedule="constant"),
    "DPS": DPS(reward, 0.6, schedule="increase"),
    "LGD": LGD(reward, 0.6, sigma=0.7, draws=4, schedule="increase"),
    "MPGD": MPGD(reward, 0.3),
    "FreeDoM": FreeDoM(reward, 0.4, recur=3, schedule="increase"),
    "UGD": UGD(reward, rho=0.4, mu=0.2, recur=2, iters=3),
}


@pytest.mark.parametrize("guide", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_run_is_the_papers_algorithm(kind: str, guide: TrainingFree):
    """On other processes than variance preserving ones, that algorithm in the coordinates x/r."""
    ours, paper = compared(kind, guide, DDPM(), 1.0)
    assert torch.allclose(ours, paper, rtol=1e-10, atol=1e-10)
    free, _ = compared(kind, MPGD(reward, 0.0), DDPM(), 1.0)
    assert (ours - free).abs().max() > 1e-2


@pytest.mark.parametrize("eta", [0.0, 0.4])
@pytest.mark.parametrize("name", ["all of it", "MPGD"])
def test_so_it_is_with_ddim(name: str, eta: float):
    ours, paper = compared("vp", SETTINGS[name], DDIM(eta), eta)
    assert torch.allclose(ours, paper, rtol=1e-10, atol=1e-10)


def test_the_settings_are_those_of_tfg():
    problem = PROBLEMS["flow-2d"]
    pairs = [
        (DPS(problem.reward, 0.7), TFG(problem.reward, 0.7, 0.0, 0.0, schedule="score")),
        (MPGD(problem.reward, 0.7), TFG(problem.reward, 0.0, 0.7, 0.0)),
        (FreeDoM(problem.reward, 0.7, 3), TFG(problem.reward, 0.7, 0.0, 0.0, 3, schedule="score")),
        (UGD(problem.reward, 0.7, 0.2, 2, 3), TFG(problem.reward, 0.7, 0.2, 0.0, 2, 3)),
    ]
    for guide, tfg in pairs:
        one, two = (gk.sample(problem.model, 9, steps=STEPS, cond=1, guides=[g]) for g in (guide, tfg))
        assert torch.equal(one.x, two.x)
        assert one.cost.reward_calls == two.cost.reward_calls


@pytest.mark.parametrize(
    "guide", [TFG(reward, 0.0, 0.0, recur=3), DPS(reward, 0.0), FreeDoM(reward, 0), MPGD(reward, 0.0)]
)
def test_strengths_of_zero_give_the_unguided_sampler_bit_for_bit(guide):
    plain, idle = (gk.sample(mixture("vp"), 8, steps=6, guides=g) for g in ([], [guide]))
    assert torch.equal(plain.x, idle.x)
    assert idle.cost.network_rows == 8 * 6
    assert idle.cost.reward_calls == 8


def test_strengths_may_be_functions_of_t():
    model = mixture("vp")
    late = TFG(reward, lambda t: 0.5 * (t < 0.5), lambda t: 0.2, lambda t: 0.3, lambda t: 1 + (t < 0.3))
    run = gk.Run(model, 3, steps=8, guides=[late])
    assert [round(8 * m.t) for m in run.moves] == [8, 7, 6, 5, 4, 3, 2, 2, 1, 1]
    number, function = (
        gk.sample(model, 5, steps=6, guides=[TFG(reward, *v)])
        for v in ((0.5, 0.2, 0.3, 2), (lambda t: 0.5, lambda t: 0.2, lambda t: 0.3, lambda t: 2))
    )
    assert torch.equal(number.x, function.x)
    assert not torch.equal(number.x, gk.sample(model, 5, steps=6, guides=[TFG(reward, 0.5, 0.2, 0.4, 2)]).x)


# the score's own strengths -----------------------------------------------------------------------------------------

M, S, B, KAPPA, CENTER, TEMPERATURE = 0.4, 0.8, 1.3, 2.0, 1.5, 0.5


def gaussian(std: float = S) -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture(*torch.tensor([[1.0], [M], [std]], dtype=torch.float64))


def quadratic(x: Tensor) -> Tensor:
    return -0.5 * KAPPA * (x[:, 0] - CENTER).square()


def law(guides, steps: int) -> tuple[float, float]:
    """Mean and variance of a chain that is affine in its noise: the path without noise, and the response to each."""
    noise = torch.cat([torch.zeros(1, steps + 1), torch.eye(steps + 1)]).T[..., None].double()
    x = gk.sample(gaussian(), steps + 2, steps=steps, guides=guides, noise=noise.contiguous()).x[:, 0]
    return float(x[0]), float((x[1:] - x[0]).square().sum())


def test_dps_reaches_the_tilted_law_of_a_gaussian_under_a_linear_reward():
    """Mean m + s^2 b/alpha and variance s^2; the chain's own error falls with the step."""
    guide = DPS(lambda x: B * x[:, 0], 1 / TEMPERATURE)
    target = M + S**2 * B / TEMPERATURE
    errors = np.array(
        [[abs(mean - target), abs(var - S**2)] for mean, var in (law([guide], n) for n in (25, 100, 400))]
    )
    assert (errors[-1] < [0.001, 0.01]).all()
    assert ((errors[:-1] / errors[1:]).mean(0) > 3).all()  # of first order: 4


def test_dps_overguides_a_quadratic_reward_by_one_plus_kappa_s_over_alpha():
    """Its tilt at a look, over that of the exact look-ahead; and where the samples end."""
    model = gaussian()
    run = gk.Run(model, 6, steps=10, guides=[DPS(quadratic, 1 / TEMPERATURE)])
    with torch.no_grad():
        pop = run.start()
        for index in range(9):
            pop = run.advance(pop, index)
            t = run.step(index + 1).t
            a, s = model.process.scales(t)
            d, post = model(pop.x, t, None), 1 / (1 / S**2 + (a / s) ** 2)
            exact = -post * (d - CENTER) / (TEMPERATURE / KAPPA + post)  # Var(x_0 | x_t) times the gradient of V in d
            ratio = (pop.predictions[0] - d) / exact
            assert torch.allclose(ratio, torch.full_like(ratio, 1 + KAPPA * post / TEMPERATURE), rtol=1e-10)
    var = 1 / (1 / S**2 + KAPPA / TEMPERATURE)
    target = var * (M / S**2 + KAPPA * CENTER / TEMPERATURE)
    # the same chain by hand: d <- d - kappa S_t (d - c)/alpha
    mean = spread = None
    for i in range(400):
        (a, s), (b, r) = (ALPHA["vp"](1 - j / 400) for j in (i, i + 1))
        r = r if i < 399 else 0.0
        gain, post = a * S**2 / (a * a * S**2 + s * s), S**2 * s * s / (a * a * S**2 + s * s)
        keep, c2 = a * r * r / (b * s * s), r * r * (1 - (a * r / (b * s)) ** 2)
        bend = KAPPA / TEMPERATURE * post * (a > 1e-3)
        slope, shift = gain * (1 - bend), (1 - gain * a) * M * (1 - bend) + bend * CENTER
        mean, spread = (0.0, 1.0) if mean is None else (mean, spread)
        mean = keep * mean + (b - keep * a) * (slope * mean + shift)
        spread = (keep + (b - keep * a) * slope) ** 2 * spread + c2
    found = law([DPS(quadratic, 1 / TEMPERATURE)], 400)
    assert np.allclose(found, [mean, spread], rtol=1e-9)
    assert abs(mean - target) > 0.2  # 1.416, nearer to the centre, instead of 1.191

    def right(t: float) -> float:
        a, s = model.process.scales(t)
        return 1 / (TEMPERATURE + KAPPA / (1 / S**2 + (a / s) ** 2))

    mean, spread = law([DPS(quadratic, right)], 400)
    assert abs(mean - target) < 0.01
    assert abs(spread / var - 1) < 0.03  # the chain's own error, as above


def test_lgd_follows_a_quadratic_reward_right_where_data_has_unit_variance():
    """The gradient of its smoothed reward is the exact one, in expectation over many draws."""
    model = gaussian(1.0)
    run = gk.Run(model, 200, steps=10, guides=[LGD(lambda x: quadratic(x) / TEMPERATURE, 1.0, draws=4000)])
    with torch.no_grad():
        pop = run.start()
        for index in range(9):
            pop = run.advance(pop, index)
        t = run.step(9).t
        a, s = model.process.scales(t)
        d, post = model(pop.x, t, None), 1 / (1 + (a / s) ** 2)
    exact = -post * (d - CENTER) / (TEMPERATURE / KAPPA + post)
    slope = ((pop.predictions[0] - d) * exact).sum() / exact.square().sum()
    assert abs(slope - 1) < 0.01  # 200 rows with a relative error of some 2% each
    assert abs(1 + KAPPA * post / TEMPERATURE - 1) > 0.05  # DPS's


def test_mu_on_the_score_is_the_posteriors_variance_times_the_gradient():
    """With unit data; so DPS and MPGD agree there."""
    model = gaussian(1.0)
    one, two = (
        gk.sample(model, 6, steps=8, guides=[g], solver=gk.solvers.DPMpp(2)).x
        for g in (DPS(reward, 0.8, start=0.1), MPGD(reward, 0.8, schedule="score", start=0.1))
    )
    assert torch.allclose(one, two, rtol=1e-12)


def test_the_score_form_serves_solvers_of_higher_order():
    """They come nearer to what small steps of DDIM reach than as many steps of DDIM."""
    guide = DPS(lambda x: B * x[:, 0], 1.0, start=0.1)  # where there is no data, the tilt jumps
    z = torch.tensor([[-1.0], [0.3], [1.2]], dtype=torch.float64)

    def end(solver, steps):
        return gk.sample(gaussian(), 3, steps=steps, guides=[guide], solver=solver, noise=z).x

    fine = end(DDIM(), 640)
    first, multistep, heun = ((end(s, 40) - fine).abs().max() for s in (DDIM(), gk.solvers.DPMpp(2), gk.solvers.Heun()))
    assert max(multistep, heun) < 0.6 * first


# parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-1d"])
def test_steering_with_fk_weights_is_tds(name: str):
    problem = PROBLEMS[name]
    guides = [DPS(problem.reward, 1 / problem.alpha, steer=True), gk.FKSteering(problem.reward, problem.alpha, ess=0.0)]
    ours = gk.sample(problem.model, 16, steps=STEPS, cond=1, guides=guides)
    tds = gk.sample(problem.model, 16, steps=STEPS, cond=1, guides=[gk.TDS(problem.reward, problem.alpha, ess=0.0)])
    assert torch.allclose(ours.x, tds.x, rtol=1e-12)
    # TDS also scores the first look, in pure noise
    assert torch.allclose(ours.log_z, tds.log_z, rtol=1e-9)


def test_steered_recurrences_leave_the_recurrent_chain_as_it_is():
    """Weights of rows from t to t: against the same table without a tilt."""
    problem = PROBLEMS["flow-2d"]
    free = populations(problem, 1000, 40, [FreeDoM(problem.reward, lambda t: 0.0, recur=2)])
    f = problem.features(free.x)
    guide = FreeDoM(problem.reward, 0.4, recur=2, steer=True)
    found = estimates(problem, populations(problem, 4000, 6, [guide], first=50_000))
    assert np.abs(deviations(found, f.mean(0).numpy(), (f.std(0) / len(f) ** 0.5).numpy())).max() < 4.5
    assert found[:, 0].std() > 0.05


def test_recurrent_runs_keep_the_laws_of_rows_and_of_checkpoints(tmp_path):
    """Whatever the micro-batch, beside other groups, and interrupted: the same samples."""
    problem = PROBLEMS["vp-1d"]
    guide = TFG(problem.reward, 0.3, 0.1, 0.3, 2, 2, 3)
    options = {"steps": STEPS, "guides": [guide]}
    whole = gk.sample(problem.model, 7, cond=[1, None], seed=[3, 4], **options)
    parts = gk.sample(problem.model, 7, cond=[1, None], seed=[3, 4], batch_size=3, **options)
    assert torch.allclose(whole.x, parts.x, rtol=1e-12)
    for g, cond in enumerate((1, None)):
        alone = gk.sample(problem.model, 7, cond=cond, seed=3 + g, **options)
        assert torch.allclose(whole.x[whole.group == g], alone.x, rtol=1e-12)
    assert len(whole.trace) == 2 * STEPS - 1 and [round(6 * row["t"], 9) for row in whole.trace[:3]] == [5, 5, 4]

    def kill(population, step):
        if step.index == 5:
            raise KeyboardInterrupt

    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        gk.sample(problem.model, 7, cond=[1, None], seed=[3, 4], checkpoint=file, callbacks=[kill], **options)
    resumed = gk.sample(problem.model, 7, cond=[1, None], seed=[3, 4], checkpoint=file, **options)
    assert torch.equal(whole.x, resumed.x)


def test_normalised_steps_are_those_of_the_dps_paper():
    """x_s <- x_s - zeta grad |y - A d|^2 / |y - A d| for every row."""
    model, y, zeta = mixture("vp"), torch.tensor([1.0, -0.5], dtype=torch.float64), 0.3
    guide = DPS(lambda x: -(y - 2 * x).square().sum(1), zeta, schedule="constant", normalise=True)
    guided, plain = (gk.Run(model, 5, steps=6, guides=g) for g in ([guide], []))
    with torch.no_grad():
        pop = plain.start()
        for index in range(3):
            pop = plain.advance(pop, index)
        looked = guided.look(ours(pop, 1), 3)
        shifted, free = guided.move(looked, 3).x, plain.move(pop, 3).x
    a_t, a_s = (model.process.scales(t)[0] for t in (guided.moves[3].t, guided.moves[3].s))
    x = pop.x.clone().requires_grad_()
    norm = (y - 2 * denoise(x, a_t**2)).norm(dim=1)
    slope = torch.autograd.grad(norm.square().sum(), x)[0] / norm[:, None]
    assert torch.allclose(shifted - free, -zeta * slope.detach() * a_s / a_t, rtol=1e-9)


def test_a_row_without_a_score_is_not_tilted_and_a_draw_without_one_does_not_count():
    def partial(x):
        return torch.where(x[:, 0] > 0, x[:, 0], torch.nan)

    model = mixture("vp")
    for guide in (DPS(partial, 0.5), MPGD(partial, 0.5), LGD(partial, 0.5, sigma=1e-9)):
        run, plain = (gk.Run(model, 40, steps=6, guides=g) for g in ([guide], []))
        with torch.no_grad():
            pop = plain.start()
            pop = plain.advance(plain.advance(pop, 0), 1)
            tilt = (run.look(ours(pop, 1), 2).predictions[0] - pop.predictions[0]).abs().sum(1)
        known = pop.predictions[0][:, 0] > 0
        assert torch.equal(tilt > 0, known)
        assert known.any() and not known.all()
    # half of the draws are unknown; the others say x_0 or more, and each gradient of a known mean is (1, 0)
    run = gk.Run(model, 40, steps=6, guides=[MPGD(partial, 0.5), LGD(partial, 0.5, sigma=5.0, draws=30)])
    with torch.no_grad():
        assert run.advance(run.start(), 0).predictions[0].isfinite().all()


def test_rows_and_reward_calls():
    def calls(guide):
        cost = gk.sample(mixture("vp"), 3, steps=5, guides=[guide]).cost
        return cost.network_rows // 3, (cost.reward_calls - 3) / 3  # the last ones are the samples'

    assert calls(TFG(reward, 1, 1, 0.1, draws=4)) == (5, 4 * 4 + 5 * 4)  # the first look has no D_t
    assert calls(TFG(reward, 1, 1, 0.0, iters=3)) == (5, 5 * 3)
    assert calls(DPS(reward)) == (5, 4)
    assert calls(MPGD(reward)) == (5, 5)
    assert calls(FreeDoM(reward, recur=3)) == (13, 12)  # one of the first, which is from pure noise
    assert calls(DPS(reward, start=0.4, stop=0.8)) == (5, 2)


def test_only_rho_needs_a_network_that_lets_gradients_through():
    model = gk.GaussianModel(lambda x, t, c: (x * 0.5).detach(), (2,), predicts="clean", dtype=torch.float64)
    guided = gk.sample(model, 3, steps=4, guides=[MPGD(reward, 0.3)])
    assert not torch.equal(guided.x, gk.sample(model, 3, steps=4).x)
    with pytest.raises(RewardError, match="no gradient reaches"):
        gk.sample(model, 3, steps=4, guides=[DPS(reward, 0.3)])


def test_no_tilt_where_times_go_up():
    times = gk.times.restart(8, low=0.25, high=0.5, count=1)
    run = gk.Run(mixture("vp"), 3, steps=times, guides=[guide := MPGD(reward, 0.4)])
    up = [m.s > m.t for m in run.moves]
    assert sum(up) == 1
    assert [guide.active(run.step(i)) for i in range(len(up))] == [not v for v in up]
    result = gk.sample(mixture("vp"), 3, steps=times, guides=[guide])
    assert result.cost.reward_calls == 3 * (len(up) - 1) + 3


def test_it_sees_the_prediction_that_cfg_has_made():
    problem: Problem = PROBLEMS["vp-1d"]
    seen = []

    def watch(x):
        seen.append(x.detach())
        return problem.reward(x)

    run = gk.Run(problem.model, 4, steps=STEPS, cond=1, guides=[MPGD(watch, 0.2, schedule="score"), gk.CFG(2.0)])
    free = gk.Run(problem.model, 4, steps=STEPS, cond=1, guides=[gk.CFG(2.0)])
    with torch.no_grad():
        first, plain = run.start(), free.start()
        run.look(ours(plain, 2), 0)
        assert torch.allclose(seen[-1], plain.predictions[0], rtol=1e-12)
        assert not torch.allclose(first.predictions[0], plain.predictions[0])


class Blind(Reward):
    name = "blind"

    def score(self, samples):
        return [0.0] * len(samples)


def test_what_cannot_work_is_refused_before_the_first_network_call():
    problem = PROBLEMS["masked"]
    with pytest.raises(ValueError, match="tokens have none"):
        gk.Run(problem.model, 2, steps=3, cond=0, guides=[DPS(problem.reward)])
    with pytest.raises(ValueError, match="'blind' is not differentiable"):
        gk.Run(mixture("vp"), 2, steps=3, guides=[MPGD(Blind())])
    for solver in (gk.solvers.DPMpp(2), gk.solvers.Heun()):
        with pytest.raises(ValueError, match="would shift again"):
            gk.Run(mixture("vp"), 2, steps=6, guides=[TFG(reward)], solver=solver)
        with pytest.raises(ValueError, match="would shift again"):
            gk.Run(mixture("vp"), 2, steps=6, guides=[FreeDoM(reward)], solver=solver)
    with pytest.raises(ValueError, match="there is increase, decrease"):
        TFG(reward, schedule="up")
    with pytest.raises(ValueError, match="rho=-1"):
        TFG(reward, -1.0)
    with pytest.raises(ValueError, match=r"recur=1\.5"):
        TFG(reward, recur=1.5)
    with pytest.raises(ValueError, match="iters=0"):
        UGD(reward, iters=0)
    with pytest.raises(TypeError, match="takes a function of samples"):
        DPS("bright")
