"""More posterior samplers, each against what its formula says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.guides.hard_consistency import fitted
from guidekit.measurements import Mask
from guidekit.measurements.operators import gradients
from rewards import ByGroup

from .test_measurement_guides import EXACT, EYE, NOISE, WIDE, A, M, Y, looks

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")


# ReSample ------------------------------------------------------------------------------------------------------------


def rest(x: Tensor) -> Tensor:
    return Y - x @ A.mT


def test_conjugate_gradients_of_a_linear_operator_end_where_the_noise_allows():
    """Each row is at the first iterate of linear conjugate gradients whose residual is at most the noise."""
    x = torch.tensor([[0.3, -0.7, 0.9], [2.0, 1.0, -3.0], [1.0, 0.4, 0.72]], dtype=torch.float64)
    found = fitted(rest, x, 10, NOISE * math.sqrt(2))
    normal = [gradients(lambda v: v @ A.mT @ A, Y @ A + 0 * x, x, k) for k in range(4)]
    ends = torch.stack([rest(v).square().mean(1).sqrt() <= NOISE for v in normal]).int().argmax(0)
    assert ends.tolist()[2] == 0 and len(set(ends.tolist())) > 1  # one row fits already, and others take steps
    assert torch.allclose(found, torch.stack([normal[k][i] for i, k in enumerate(ends)]), atol=1e-9)


def test_conjugate_gradients_of_a_curved_operator_never_take_a_step_that_is_worse():
    curved = lambda x: torch.tensor([[1.5, 0.1]]) - torch.stack([x.square().sum(1), (3 * x[:, 0]).sin()], 1)  # noqa: E731
    x = torch.tensor([[0.1, 0.6], [4.0, -3.0], [-0.5, 2.0]], dtype=torch.float64)
    levels = torch.stack([curved(fitted(curved, x, k, 0.0)).square().sum(1) for k in range(1, 20)])
    assert (levels[1:] <= levels[:-1] + 1e-15).all() and (levels[-1] < 1e-12).all()


@pytest.mark.parametrize("every", [1, 2])
def test_resample_draws_from_the_product_of_the_two_gaussians_of_the_paper(every: int):
    gamma = 3.0
    seen = looks(gk.ReSample(EXACT, gamma, every=every))
    for i, (t, move, x, d, moved) in enumerate(seen[1:], start=1):
        (a_t, s_t), (a_s, s_s) = WIDE.process.scales(t), WIDE.process.scales(move.s)
        near = a_s * d + s_s * (x - a_t * d) / s_t
        tau2 = gamma * s_s**2 / a_t**2 * (1 - a_t**2 / a_s**2)  # alpha^2 + sigma^2 = 1
        fit = d + rest(d) @ torch.linalg.pinv(A).mT
        mean, variance = (tau2 * a_s * fit + s_s**2 * near) / (tau2 + s_s**2 + 1e-300), tau2 * s_s**2
        variance /= tau2 + s_s**2 + 1e-300
        if move.s == 0:
            mean, variance = fit, 0.0
        elif (len(seen) - 1 - i) % every:
            mean, variance = near, 0.0
        assert torch.allclose(move.a * x + move.b[0] * moved, mean, atol=1e-8)
        assert math.isclose(move.c**2, variance, rel_tol=1e-9, abs_tol=1e-12)
    x = gk.sample(WIDE, 20, steps=6, guides=[gk.ReSample(EXACT, gamma, every=every)]).x
    assert rest(x).abs().max() < 1e-7


@pytest.mark.parametrize("schedule", [gk.schedules.EDM(), gk.schedules.Flow()])
def test_resample_does_not_depend_on_how_a_process_scales_its_states(schedule):
    """x_t/alpha_t has one law for all schedules at equal sigma/alpha, and so has the move."""
    base = gk.analytic.GaussianMixture(WIDE.weights, WIDE.means, WIDE.stds, schedule)

    def at(process, ratio: float) -> float:
        low, high = 0.0, process.t_max
        for _ in range(80):
            mid = (low + high) / 2
            a, s = process.scales(mid)
            low, high = (mid, high) if s < ratio * a else (low, mid)
        return low

    found = []
    for model in (WIDE, base):
        times = [model.process.t_max, at(model.process, 1.3), at(model.process, 0.4), 0.0]
        move = gk.Run(model, 2, steps=times, guides=[gk.ReSample(EXACT, 2.0)]).moves[1]
        (a_t, _), (a_s, _) = model.process.scales(move.t), model.process.scales(move.s)
        found.append(torch.tensor([move.a * a_t / a_s, move.b[0] / a_s, move.c / a_s], dtype=torch.float64))
    assert torch.allclose(*found, rtol=1e-6)


def test_resample_fits_latent_models_and_curved_operators_to_the_noise():
    """The decoder mixes and bends; y is what a sample of the model measured."""
    B = torch.tensor([[1.0, 0.4, 0.0], [-0.3, 1.0, 0.2], [0.1, 0.0, 1.0]], dtype=torch.float64)
    model = gk.GaussianModel(
        lambda x, t, cond: WIDE(x, float(t[0]), None), (3,), predicts="clean", dtype=torch.float64,
        decode=lambda x: (x @ B).tanh(),
    )  # fmt: skip
    m = gk.Measurement(lambda v: v[:, :2].square() + v[:, 1:], torch.zeros(2), 0.02)
    truth = gk.sample(model, 2, steps=6, seed=7).samples
    both = ByGroup([m.of(y) for y in m.simulate(truth, 3)])
    result = gk.sample(model, 5, steps=6, cond=[None, None], guides=[gk.ReSample(both)])
    free = gk.sample(model, 5, steps=6, cond=[None, None])
    for g, own in enumerate(both.rewards):
        assert isinstance(own, gk.Measurement)
        residual = own.residual(result.samples[result.group == g])
        assert float(residual.median()) <= 0.02 < 0.1 < float(own.residual(free.samples[free.group == g]).median())


def test_resample_counts_the_entries_that_are_measured():
    """One of three: its residual is at most the noise, and not 3^1/2 times that; and it is left alone where it fits."""
    m = gk.Measurement(Mask(torch.tensor([False, True, False])), torch.tensor([0.0, 0.7, 0.0]), 0.3)
    for _, _, _, d, moved in looks(gk.ReSample(m), n=100)[-1:]:
        near = (d[:, 1] - 0.7).abs() <= 0.3
        assert torch.equal(moved[near], d[near]) and ((moved[:, 1] - 0.7).abs() <= 0.3).all()
        assert ((d[:, 1] - 0.7).abs() < 0.3 * 3**0.5).sum() > near.sum() > 0


def test_resample_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"ReSample\(gamma=0"):
        gk.ReSample(M, 0.0)
    with pytest.raises(ValueError, match=r"ReSample is made for Gaussian noise, and this is Poisson"):
        gk.Run(WIDE, 2, guides=[gk.ReSample(gk.Measurement(A, Y.abs(), gk.measurements.Poisson()))])
    with pytest.raises(ValueError, match="none passes through the operator"):
        gk.Run(WIDE, 2, guides=[gk.ReSample(gk.Measurement(lambda x: x.round()[:, :2].detach(), Y, 0.1))])
    with pytest.raises(ValueError, match=r"Measurement\(y of shape \(2,\)\)"):
        gk.Run(WIDE, 2, guides=[gk.ReSample(gk.Measurement(Mask(EYE[0] > 0), Y, 0.1))])


# STSL ----------------------------------------------------------------------------------------------------------------


def bound(x: Tensor, t: float, gamma: float) -> Tensor:
    """-(|y - A d|^2 + gamma tr(A C A^T))/(2 noise^2) of one state."""
    alpha, sigma = WIDE.process.scales(t)
    d = lambda x: WIDE(x[None], t, None)[0]  # noqa: E731
    C = sigma**2 / alpha * torch.autograd.functional.jacobian(d, x, create_graph=True)
    return -((Y - A @ d(x)).square().sum() + gamma * torch.trace(A @ C @ A.mT)) / (2 * NOISE**2)


@pytest.mark.parametrize("curved", [False, True])
def test_stsl_follows_the_bound_in_the_mean_over_its_probes(curved: bool):
    """At one state, over many probes; with a decoder (which a linear operator undoes) by differences through it."""
    n, gamma, scale = 4000, 0.7, 0.9
    model, m = WIDE, M
    if curved:
        model = gk.GaussianModel(
            lambda x, t, cond: WIDE(x, float(t[0]), None), (3,), predicts="clean", dtype=torch.float64,
            decode=lambda x: x.sinh(),
        )  # fmt: skip
        m = gk.Measurement(lambda x: x.asinh() @ A.mT, Y, NOISE)
    same = torch.tensor([0.4, -0.6, 0.9], dtype=torch.float64).expand(n, 3)
    guide = gk.STSL(m, scale, gamma, probe=0.01)
    (t, _, x, d, moved), *_ = looks(guide, model, n, steps=[0.7, 0.0], noise=same, solver=gk.solvers.DDIM())
    alpha, sigma = WIDE.process.scales(t)
    at = x[0].requires_grad_()
    (slope,) = torch.autograd.grad(bound(at, t, gamma), at)
    (plain,) = torch.autograd.grad(bound(at, t, 0.0), at)
    found = (moved - d) / (scale * sigma**2 / alpha)
    error = found.std(0) / math.sqrt(n)
    assert ((found.mean(0) - slope).abs() < 5 * error + 2e-3 * slope.norm()).all()
    assert ((slope - plain).abs() > 20 * error).any()  # so that a wrong sign or factor of the trace would be seen


def test_stsl_for_one_gaussian_is_the_likelihood_of_the_estimate():
    """There the covariance is the same everywhere, and its trace has no gradient."""
    base = gk.analytic.GaussianMixture(
        torch.ones(1).double(), torch.tensor([[0.5, -0.3, 0.2]]).double(), torch.tensor([0.8]).double()
    )
    for t, _, _, d, moved in looks(gk.STSL(M), base)[1:]:
        alpha, sigma = base.process.scales(t)
        slope = alpha * 0.64 / (alpha**2 * 0.64 + sigma**2)  # dd/dx_t
        assert torch.allclose(moved, d + sigma**2 / alpha * slope * rest(d) @ A / NOISE**2, atol=1e-8)


def test_stsl_says_what_it_needs():
    with pytest.raises(ValueError, match=r"STSL weighs the measurement by its noise.*ReSample or DDNM"):
        gk.Run(WIDE, 2, guides=[gk.STSL(EXACT)])
    with pytest.raises(ValueError, match=r"STSL\(gamma=-1"):
        gk.STSL(M, gamma=-1.0)


# TReg ----------------------------------------------------------------------------------------------------------------


B = torch.tensor([[1.0, 0.4, 0.0], [-0.3, 1.0, 0.2], [0.1, 0.0, 1.0]], dtype=torch.float64)


def conditional(**options) -> gk.GaussianModel:
    """The clean mean, and a shift by the condition; null is (0.3, -0.2, 0.1)."""
    null = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    net = lambda x, t, cond: WIDE(x, float(t[0]), None) + 0.5 * cond  # noqa: E731
    return gk.GaussianModel(net, (3,), predicts="clean", dtype=torch.float64, null=null, **options)


COND = torch.tensor([1.0, 0.5, -0.5], dtype=torch.float64)


@pytest.mark.parametrize("latent", [False, True])
def test_treg_fits_the_decoded_estimate_and_reads_a_share_of_it(latent: bool):
    seen = (lambda x: x @ B) if latent else (lambda x: x)
    back = (lambda v: v @ torch.linalg.inv(B)) if latent else (lambda v: v)
    model = conditional(decode=seen, read=back) if latent else conditional()
    guide, gamma = gk.TReg(M, 2.5, 3.0, iters=3), 3.0  # three numbers: three steps are exact
    for t, move, x, d, moved in looks(guide, model, cond=COND, solver=gk.solvers.DPMpp(2)):
        null = model(x, t, model.null.expand(len(x), 3))
        assert torch.allclose(model(x, t, COND.expand(len(x), 3)), d, atol=1e-12)
        d = d + 1.5 * (d - null)
        fit = (Y @ A + seen(d) / gamma) @ torch.linalg.inv(A.mT @ A + EYE / gamma)
        alpha, sigma = model.process.scales(move.s)
        assert torch.allclose(moved, alpha**2 * back(fit) + sigma**2 * d, atol=1e-8)  # alpha^2 + sigma^2 = 1


def test_treg_moves_the_null_condition_away_from_what_is_seen():
    """Of a similarity that is half a square in the null condition, every step shrinks its distance by 1 - rate."""
    model = conditional(decode=lambda x: x @ B, read=lambda v: v @ torch.linalg.inv(B))
    similar = lambda v, null: 0.5 * (null - v).square().sum(1)  # noqa: E731
    ends = []
    for options in ({"similarity": similar, "rate": 0.4, "turns": 2}, {}):
        guide = gk.TReg(M, 2.5, **options)
        for t, _, x, d, moved in looks(guide, model, cond=COND):
            null = model.null + (1 - 0.6**2) * (d @ B - model.null) if options else model.null
            own = d + 1.5 * (d - model(x, t, null.expand(len(x), 3)))
            if not options or t < 0.2:
                continue
            bare = looks(gk.TReg(M, 1.0), gk.GaussianModel(
                lambda *_, own=own: own, (3,), predicts="clean", dtype=torch.float64, decode=model.decode,
                read=model.read), noise=x, steps=[t, _.s, 0.0])  # fmt: skip
            assert torch.allclose(moved, bare[0][4], atol=1e-9)
        ends.append(gk.sample(model, 4, steps=6, cond=COND, guides=[guide]))
    assert ends[0].cost.network_rows == ends[1].cost.network_rows == 2 * 4 * 6
    assert not torch.allclose(ends[0].x, ends[1].x, atol=1e-2)


def test_treg_says_what_it_needs():
    latent = conditional(decode=lambda x: x @ B)
    for guide, model, told in (
        (gk.TReg(M), latent, r"TReg changes samples and reads them back, and cannot.*read="),
        (gk.TReg(M, similarity=lambda v, c: c.sum(1)), conditional(), "scale=1 does not use"),
        (gk.TReg(M, 2.0, similarity=lambda v, c: c.sum(1)), WIDE, "a tensor of real numbers"),
        (gk.TReg(gk.Measurement(lambda x: x[:, :2], Y)), latent, "needs a linear operator"),
    ):
        with pytest.raises(ValueError, match=told):
            gk.Run(model, 2, cond=None if model is WIDE else COND, guides=[guide])


# CDDB ----------------------------------------------------------------------------------------------------------------


def test_cddb_is_a_gradient_step():
    for t, _, _, d, moved in looks(gk.CDDB(M, lambda t: 0.3 + t), solver=gk.solvers.DPMpp(2)):
        assert torch.allclose(moved, d + (0.3 + t) * rest(d) @ A, atol=1e-9)


def test_a_bridge_is_a_gaussian_model_and_cddb_makes_it_consistent():
    """x_0 ~ N(0, 1) of three numbers, x_1 = x_0 with its last number replaced by noise of 0.5: the bridge draws from
    p(x_0 | x_1), of which the first two numbers are known, and the last is N(0, 1). Its network, which says 0.8 of what
    it should, is made consistent where y = the first two numbers tells."""
    s, n = 0.7, 2000
    start = torch.tensor([0.4, -1.1, 0.9], dtype=torch.float64)

    def schedule(t):
        return (1 - t).sqrt(), s * t.sqrt()

    def network(x, t, x_1):
        """E[x_0 | x_t, x_1] of the bridge, with the first two numbers 0.8 times as large."""
        t = t.view(-1, 1)
        last = (1 - t) * (x - t * x_1) / ((1 - t) ** 2 + t * (1 - t) * s**2).clamp(min=1e-12)
        return torch.where(torch.arange(3) < 2, 0.8 * x_1, last)

    model = gk.GaussianModel(
        lambda v, t, x_1: network((1 - t).sqrt().view(-1, 1) * v + t.view(-1, 1) * x_1, t, x_1), (3,), schedule,
        predicts="clean", dtype=torch.float64, encode_cond=lambda c: c,
    )  # fmt: skip
    measured = gk.Measurement(Mask(torch.tensor([True, True, False])), start, 0.0)
    free = gk.sample(model, n, steps=60, cond=start).x
    held = gk.sample(model, n, steps=60, cond=start, guides=[gk.CDDB(measured)]).x
    assert torch.allclose(free[:, :2], 0.8 * start[:2].expand(n, 2)) and torch.equal(free[:, 2], held[:, 2])
    assert torch.allclose(held[:, :2], start[:2].expand(n, 2), atol=1e-9)
    assert abs(float(held[:, 2].mean())) < 5 / math.sqrt(n)
    assert abs(float(held[:, 2].var()) - 1) < 5 * math.sqrt(2 / n) + 0.05  # and the error of 60 steps


# optimal boundary conditions -----------------------------------------------------------------------------------------


def test_a_start_that_was_good_for_some_measurements_is_good_for_new_ones():
    """A deterministic sampler, and 32 starts ranked by their error for 8 measurements whose truth is known."""
    base = gk.analytic.GaussianMixture([0.7, 0.3], [[-1.0, 0.5], [1.0, 0.0]], [0.5, 0.3])
    measured = gk.Measurement(torch.tensor([[1.0, 0.5]]), torch.tensor([0.4]), noise=0.2)
    truth = base.exact_sample(208, seed=8)
    each = [measured.of(y) for y in measured.simulate(truth, seed=1)]
    error = ByGroup([lambda x, best=best: -(x - best).square().sum(1) for best in truth[:8]])
    options = {"steps": 10, "solver": gk.solvers.DDIM()}
    bank = gk.search.bank(base, 32, error, [None] * 8, looks=160, guides=[gk.PiGDM(ByGroup(each[:8]))], **options)
    new = {"cond": [None] * 200, "guides": [gk.PiGDM(ByGroup(each[8:]))]} | options
    found = gk.sample(base, 1, noise=bank.rows(1, 200), **new).x
    drawn = gk.sample(base, 1, seed=list(range(200)), **new).x
    gain = (drawn - truth[8:]).square().sum(1) - (found - truth[8:]).square().sum(1)
    assert float(gain.mean()) > 3 * float(gain.std()) / math.sqrt(200)


# ScoreSDE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [gk.solvers.DDPM(), gk.solvers.DDIM()])
def test_score_sde_gives_the_measured_part_the_law_of_the_forward_process_and_leaves_the_rest(solver):
    """In the range of A^T N(alpha_s A^+ y, sigma_s^2), mixed with the move's own by 1 - lam; else the move."""
    n, lam = 6000, 0.7
    P, pinv = torch.linalg.pinv(A) @ A, torch.linalg.pinv(A)
    guide = gk.ScoreSDE(EXACT, lam)
    run = gk.Run(WIDE, n, steps=[1.0, 0.6, 0.3, 0.0], guides=[guide], solver=solver)
    pop = run.advance(run.start(), 0)
    move = run.moves[1]
    alpha, sigma = WIDE.process.scales(move.s)
    mean = move.a * pop.x + move.b[0] * pop.predictions[0]
    x = run.move(pop, 1).x
    inside = (1 - lam) * mean @ P + lam * alpha * Y @ pinv.mT
    spread = ((1 - lam) * move.c + lam * sigma) * P + move.c * (EYE - P)  # one noise for both
    rest = x - inside - mean @ (EYE - P)
    assert (rest.mean(0).abs() < 5 * rest.std(0) / math.sqrt(n) + 1e-12).all()
    exact = spread @ spread.mT
    assert ((rest.mT @ rest / n - exact).abs() < 5 * exact.max() * math.sqrt(2 / n)).all()
    x = gk.sample(WIDE, 20, steps=6, guides=[gk.ScoreSDE(EXACT)]).x
    assert torch.allclose(x @ A.mT, Y.expand(20, 2), atol=1e-9)


def test_score_sde_needs_one_evaluation_a_step():
    with pytest.raises(ValueError, match="ScoreSDE projects the state after every move"):
        gk.Run(WIDE, 2, guides=[gk.ScoreSDE(M)], solver=gk.solvers.SDEDPMpp(2))
