"""Operators, likelihoods and gk.Measurement: adjoints and spectra against dense matrices, densities against sums, and
the evidence against its closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.measurements import Blur, Downsample, Linear, Mask, Matrix, Poisson, Quantised
from guidekit.measurements.measurement import problem
from guidekit.measurements.operators import as_operator, gradients
from rewards import ByGroup

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
SHAPE = (2, 4, 6)
G = torch.Generator().manual_seed(0)
KERNEL = torch.tensor([[0.1, 0.5, 0.0], [0.0, 0.3, 0.2], [-0.1, 0.0, 0.0]], dtype=torch.float64)  # not symmetric
OPERATORS = {
    "mask": Mask(torch.rand(4, 6, generator=G) < 0.6),
    "blur": Blur(kernel=KERNEL, cut=1e-6),
    "downsample": Downsample(2),
    "matrix": Matrix(torch.randn(7, 48, generator=G, dtype=torch.float64), SHAPE),
    "wide": Matrix(torch.randn(60, 48, generator=G, dtype=torch.float64), SHAPE),
}
every = pytest.mark.parametrize("A", OPERATORS.values(), ids=OPERATORS)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(A: Linear) -> Tensor:
    """The matrix of an operator, column by column."""
    return A.A(torch.eye(48, dtype=torch.float64).view(48, *SHAPE)).flatten(1).mT


class Plain:
    """An operator without a decomposition."""

    def __init__(self, of: Linear):
        self.of = of

    def A(self, x: Tensor) -> Tensor:
        return self.of.A(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.of.adjoint(y)


@every
def test_adjoint_pseudo_inverse_spectrum_and_ridge_are_those_of_the_matrix(A: Linear):
    M, x = dense(A), numbers(3, *SHAPE)
    y = A.A(numbers(3, *SHAPE, seed=1)) + 0.1 * A.A(x) ** 2  # not in the range of a wide matrix
    if A.measured is not None:
        y = y * A.measured
    assert torch.allclose(A.adjoint(y).flatten(1), y.flatten(1) @ M, atol=1e-12)
    assert torch.allclose(A.pinv(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(M, rtol=1e-9).mT, atol=1e-9)
    s = torch.linalg.svdvals(M)
    _, S, V = torch.linalg.svd(M)
    full = torch.zeros(48, dtype=torch.float64)
    full[: len(S)] = S
    g = lambda s: 1 / (0.3 + s.square()) + 2.0 * (s > 0.05)  # noqa: E731
    assert torch.allclose(A.spectral(g, x).flatten(1), x.flatten(1) @ V.mT * g(full) @ V, atol=1e-9)
    ridge = torch.linalg.inv(M.mT @ M + 0.3 * torch.eye(48))
    assert torch.allclose(A.solve(x, 0.3).flatten(1), x.flatten(1) @ ridge, atol=1e-9)
    assert s.max() > 0


@every
def test_conjugate_gradients_give_what_the_decomposition_gives(A: Linear):
    plain = as_operator(Plain(A))
    x, y = numbers(3, *SHAPE), A.A(numbers(3, *SHAPE, seed=1))
    assert not plain.decomposed
    plain.iters = 100
    assert torch.allclose(plain.solve(x, 0.3), A.solve(x, 0.3), atol=1e-7)
    assert torch.allclose(plain.pinv(y), A.pinv(y), atol=1e-5)


def test_conjugate_gradients_minimise_over_the_krylov_space():
    """After k steps from x_0: x_0 plus the combination of r, M r, ..., M^(k-1) r that is nearest in the norm of M."""
    root = numbers(6, 6)
    M, v, start = root @ root.mT + 0.5 * torch.eye(6), numbers(1, 6, seed=1), numbers(1, 6, seed=2)
    r = v[0] - M @ start[0]
    K = torch.stack([r, M @ r, M @ (M @ r)], 1)
    best = start[0] + K @ torch.linalg.solve(K.mT @ M @ K, K.mT @ r)
    assert torch.allclose(gradients(lambda x: x @ M, v, start, 3)[0], best, atol=1e-9)


def test_a_row_of_conjugate_gradients_does_not_depend_on_the_others():
    M = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    v = torch.stack([numbers(3), torch.zeros(3), numbers(3, seed=4) * 1e3])
    whole = gradients(lambda x: x @ M, v, None, 7)  # more steps than there are eigenvalues
    assert torch.allclose(whole, v @ torch.linalg.inv(M), atol=1e-9)
    assert torch.equal(whole[:1], gradients(lambda x: x @ M, v[:1], None, 7))


def test_a_blur_moves_nothing_and_leaves_the_mean():
    x = torch.zeros(1, 9, 9)
    x[0, 4, 7] = 1.0
    y = Blur(sigma=0.8).A(x)[0]
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    near = (columns - 7 + 4) % 9 - 4
    assert torch.allclose(torch.stack([(y * (rows - 4)).sum(), (y * near).sum()]), torch.zeros(2), atol=1e-5)
    assert torch.allclose(y.sum(), torch.tensor(1.0)) and y.argmax() == 4 * 9 + 7
    assert torch.allclose((y * near.square()).sum(), torch.tensor(0.8**2), rtol=0.03)  # the kernel ends at 3 sigma


# likelihoods -------------------------------------------------------------------------------------------------------


def test_gaussian_noise_has_the_density_of_torch():
    u, y = numbers(5), numbers(5, seed=1)
    exact = torch.distributions.Normal(u, 0.3).log_prob(y)
    assert torch.allclose(gk.measurements.Gaussian(0.3).log_prob(y, u), exact)


@pytest.mark.parametrize("noise", [Poisson(4.0), Quantised(0.5, 0.3)], ids=["poisson", "quantised"])
def test_counts_and_steps_have_probabilities_that_add_up_and_are_those_of_what_is_drawn(noise):
    u = torch.tensor(1.3, dtype=torch.float64)
    values = torch.arange(-40, 80, dtype=torch.float64) * (0.25 if isinstance(noise, Poisson) else 0.5)
    values = values[values >= 0] if isinstance(noise, Poisson) else values
    p = noise.log_prob(values, u).exp()
    assert torch.allclose(p.sum(), torch.tensor(1.0).double(), atol=1e-9)
    drawn = gk.Measurement(lambda x: x, torch.zeros(1), noise).simulate(u.expand(20_000, 1), seed=3)[:, 0]
    found = (drawn[:, None] - values).abs().lt(1e-6).double().mean(0)
    assert torch.allclose(found.sum(), torch.tensor(1.0).double())
    assert ((found - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt() + 1e-4).all()  # five standard errors


def test_far_from_what_was_measured_a_quantised_likelihood_still_has_a_gradient():
    u = torch.tensor([40.0, -40.0], dtype=torch.float64, requires_grad=True)
    log_p = Quantised(0.5, 0.3).log_prob(torch.zeros(2, dtype=torch.float64), u)
    log_p.sum().backward()
    assert log_p.isfinite().all() and u.grad is not None
    # far out the nearer edge of the interval, at 0.25, counts alone: -(|u| - 0.25)/noise^2, plus the Mills ratio
    assert torch.allclose(u.grad, torch.tensor([-1.0, 1.0]).double() * (39.75 / 0.09), rtol=1e-2)


# the measurement ---------------------------------------------------------------------------------------------------


def test_only_measured_entries_count():
    where = torch.tensor([True, False, True])
    m = gk.Measurement(Mask(where), torch.tensor([1.0, 9.0, 2.0]), 0.5)
    x = torch.tensor([[1.5, -3.0, 2.0], [1.0, 0.0, 2.0]])
    exact = -0.5 * torch.tensor([1.0, 0.0]) - 2 * math.log(0.5 * math.sqrt(2 * math.pi))
    assert torch.allclose(m(x), exact.double())
    assert torch.allclose(m.residual(x), torch.tensor([0.5 / 2**0.5, 0.0]).double())
    assert torch.equal(m.simulate(x)[:, 1], torch.zeros(2))
    assert torch.equal(m.of(torch.zeros(3)).y, torch.zeros(3)) and m.y[0] == 1


def test_simulated_noise_has_its_standard_deviation_and_a_row_does_not_depend_on_the_others():
    m = gk.Measurement(lambda x: 2 * x, torch.zeros(3), 0.4)
    x = numbers(4000, 3)
    z = (m.simulate(x, seed=1) - 2 * x) / 0.4
    assert abs(float(z.std()) - 1) < 5 / math.sqrt(2 * 12_000) and abs(float(z.mean())) < 5 / math.sqrt(12_000)
    assert torch.equal(m.simulate(x, seed=1)[:7], m.simulate(x[:7], seed=1))
    assert not torch.equal(m.simulate(x, seed=1), m.simulate(x, seed=2))


BASE = gk.analytic.GaussianMixture(
    torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([[1.5, 0.3], [-1.0, 1.0], [0.4, -1.6]]).double(),
    torch.tensor([0.4, 0.6, 0.3]).double(),
)  # fmt: skip
ROW = torch.tensor([[0.9, -0.5]], dtype=torch.float64)
MEASURED = gk.Measurement(ROW, torch.tensor([0.7]), 0.4)


def closed_form(A: Tensor = ROW, y: Tensor = MEASURED.y, noise: float = 0.4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p(y), and weights, means and covariances of the posterior of BASE."""
    weights, means, covs = [], [], []
    for w, m, s in zip(BASE.weights, BASE.means, BASE.stds, strict=True):
        S = s**2 * A @ A.mT + noise**2 * torch.eye(len(A), dtype=torch.float64)
        gain = s**2 * A.mT @ torch.linalg.inv(S)
        means.append(m + gain @ (y.double() - A @ m))
        covs.append(s**2 * torch.eye(2, dtype=torch.float64) - s**2 * gain @ A)
        weights.append(w.log() + torch.distributions.MultivariateNormal(A @ m, S).log_prob(y.double()))
    log_w = torch.stack(weights)
    return log_w.logsumexp(0), log_w.softmax(0), torch.stack(means), torch.stack(covs)


GUIDES = {
    "FK": lambda m: gk.FKSteering(m, 1.0),
    "TDS": lambda m: gk.TDS(m, 1.0, scale=0.5),  # at full strength the Tweedie twist has weights with long tails here
    "FK likelihood": lambda m: gk.FKSteering(m, 1.0, value=gk.values.Likelihood(m)),
    "TDS unit": lambda m: gk.TDS(m, 1.0, value=gk.values.Likelihood(m)),
    "TDS tweedie": lambda m: gk.TDS(m, 1.0, value=gk.values.Likelihood(m, "tweedie")),
}


SLOW = [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("FK", "TDS unit"))) for n in GUIDES]


@pytest.mark.parametrize("name", SLOW)
def test_weighted_samples_follow_the_posterior_and_log_z_is_the_log_evidence(name: str):
    """60 populations of 100, whose estimates of Z and of moments times Z are unbiased for every number of particles,
    up to what 60 steps do to the prior."""
    result = gk.sample(BASE, 100, steps=60, cond=[None] * 60, seed=list(range(60)), guides=[GUIDES[name](MEASURED)])
    log_z, weights, means, covs = closed_form()
    w = result.log_weights.exp().view(60, 100, 1)
    x = result.x.view(60, 100, 2)
    own = torch.stack([(x[..., 0] > 0.8), (x[..., 1] < -0.9)], -1).double()  # of one component each, nearly
    features = torch.cat([torch.ones_like(w), x, x[..., :1] * x[..., 1:], own], -1)
    found = (w * features).mean(1)
    normal = [torch.distributions.MultivariateNormal(m, c) for m, c in zip(means, covs, strict=True)]
    truth = sum(p * _moments(n) for p, n in zip(weights, normal, strict=True)) * log_z.exp()
    error = found.std(0) / math.sqrt(60)
    # five standard errors, and 2 % of a moment for the steps
    assert ((found.mean(0) - truth).abs() < 5 * error + 0.02 * truth.abs() + 0.003).all()


def _moments(n) -> Tensor:
    """1, E x, E y, E xy, P(x > 0.8), P(y < -0.9)."""
    m, c = n.mean, n.covariance_matrix
    sd = c.diagonal().sqrt()
    above = torch.special.ndtr((m[0] - 0.8) / sd[0])
    return torch.stack(
        [torch.ones(()).double(), m[0], m[1], m[0] * m[1] + c[0, 1], above, torch.special.ndtr((-0.9 - m[1]) / sd[1])]
    )


def test_a_temperature_is_a_noise_of_its_root_for_the_likelihood():
    view_value = {}

    class Spy(gk.Guide):
        def tilt(self, view):
            wide = replace(gk.values.Likelihood(MEASURED), alpha=4.0)
            louder = gk.values.Likelihood(gk.Measurement(ROW, MEASURED.y, 0.8))
            view_value[view.step.index] = wide(view), louder(view), view.x
            return 0.0

    gk.sample(BASE, 5, steps=4, guides=[Spy()])
    for wide, louder, _ in view_value.values():
        assert torch.allclose(wide, 4 * louder)


def test_the_look_ahead_is_the_log_density_of_a_gaussian_with_its_gradient():
    seen = {}

    class Spy(gk.Guide):
        grad = True

        def tilt(self, view):
            for name in ("unit", "tweedie"):
                value = gk.values.Likelihood(MEASURED, name)(view)
                (slope,) = torch.autograd.grad(value.sum(), view.x, retain_graph=True)
                seen[name, view.step.index] = view.t, view.x, value, slope
            return 0.0

    gk.sample(BASE, 6, steps=5, guides=[Spy()])
    for (name, index), (t, x, value, slope) in seen.items():
        alpha, sigma = BASE.process.scales(t)
        x = x.detach().requires_grad_()
        d = BASE(x, t, None)
        J = torch.stack([torch.autograd.grad(d[:, i].sum(), x, retain_graph=True)[0] for i in range(2)], 1)
        r2 = sigma**2 / (alpha**2 + sigma**2)
        C = sigma**2 / alpha * J if name == "tweedie" and index else r2 * torch.eye(2).double().expand(6, 2, 2)
        S = (ROW @ C @ ROW.mT)[:, 0, 0].detach() + 0.4**2
        e = 0.7 - d @ ROW[0]
        exact = -0.5 * e.square() / S
        assert torch.allclose(value.detach(), exact.detach(), atol=1e-6), (name, index)
        if index:
            (expected,) = torch.autograd.grad(exact.sum(), x)
            assert torch.allclose(slope, expected, atol=1e-6)


def test_a_measurement_of_each_condition():
    m = ByGroup([MEASURED, MEASURED.of(torch.tensor([-0.9]))])
    both = gk.sample(BASE, 50, steps=10, cond=[None, None], guides=[gk.TDS(m, 1.0, value=gk.values.Likelihood(m))])
    for g, one in enumerate(m.rewards):
        alone = gk.sample(BASE, 50, steps=10, guides=[gk.TDS(one, 1.0, value=gk.values.Likelihood(one))])
        assert torch.allclose(both.x[both.group == g], alone.x, atol=1e-12)
        assert torch.allclose(both.log_z[g], alone.log_z[0])


def test_samples_that_are_a_scale_and_an_offset_of_states_are_measured_as_samples():
    """y = A(2 x + 0.5) + 0.4 z is A x = (y - A 0.5)/2 with noise 0.2."""
    picture = gk.GaussianModel(
        lambda x, t, cond: x, (1, 2, 2), predicts="clean", decode=lambda x: (2 * x + 0.5).clamp(0, 1)
    )
    y = torch.tensor([[[1.3]]])
    own = problem("PiGDM", gk.Measurement(Downsample(2), y, 0.4), picture)
    assert abs(own.noise - 0.2) < 1e-4
    assert torch.allclose(own.y, (y - 0.5)[None] / 2, atol=1e-4)


def test_sequences_are_measured_by_any_function_and_weighed_exactly():
    """The posterior of a table, enumerated: y = the mean of the first two tokens, with noise."""
    table = gk.analytic.TokenTable(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(2)).double(), "ordered")
    m = gk.Measurement(lambda x: x[:, :2].double().mean(1, keepdim=True), torch.tensor([1.5]), 0.4)
    p = table.table[0].exp() * m(table.states).exp()
    result = gk.sample(table, 6000, steps=3, guides=[gk.FKSteering(m, 1.0)])
    place = (result.x * torch.tensor([9, 3, 1])).sum(1)
    found = torch.zeros(27).double().index_add(0, place, result.weights)
    assert (found - p / p.sum()).abs().max() < 5 * math.sqrt(
        0.25 / 3000
    )  # of at least half as many independent samples
    assert abs(float(result.log_z) - float(p.sum().log())) < 0.05


# errors ------------------------------------------------------------------------------------------------------------


def never(x, t, cond):
    raise AssertionError("the network was called")


def run(guide: gk.Guide, model: gk.Model | None = None, **options) -> gk.Result:
    return gk.sample(gk.GaussianModel(never, (3,)) if model is None else model, 2, steps=4, guides=[guide], **options)


EYE = torch.eye(3)[:2]


@pytest.mark.parametrize(
    "guide, told",
    [
        (lambda: gk.TDS(gk.Measurement(EYE, torch.zeros(3)), 1.0), r"y of shape \(3,\).*makes \(2,\) of each sample"),
        (lambda: gk.PiGDM(gk.Measurement(EYE, torch.zeros(1, 2))), r"y of shape \(1, 2\).*without a row axis"),
        (lambda: gk.TDS(gk.Measurement(torch.eye(4), torch.zeros(4)), 1.0), r"4 columns, and samples of \(3,\)"),
        (lambda: gk.FKSteering(gk.Measurement(EYE, torch.zeros(2), 0.0), 1.0), "noise=0.*no density"),
        (lambda: gk.TDS(gk.Measurement(lambda x: x.detach(), torch.zeros(3)), 1.0), "none passes through the operator"),
        (lambda: gk.DDNM(gk.Measurement(lambda x: x, torch.zeros(3))), "needs a linear operator with an adjoint"),
        (lambda: gk.DDRM(gk.Measurement(EYE, torch.zeros(2), Poisson())), "for Gaussian noise, and this is Poisson"),
        (lambda: gk.DDRM(gk.Measurement(Plain(Matrix(EYE)), torch.zeros(2))), "needs the singular values.*take DDS"),
        (lambda: gk.DDNM(gk.Measurement(Plain(Matrix(EYE)), torch.zeros(2))), "with noise needs the singular values"),
        (lambda: gk.RePaint(gk.Measurement(EYE, torch.zeros(2), 0.0)), "Mask"),
        (lambda: gk.RePaint(gk.Measurement(Mask([True, False, True]), torch.zeros(3))), "noise=0"),
        (lambda: gk.DAPS(gk.Measurement(lambda x: x, torch.zeros(3), Poisson())), "curvature"),
        (lambda: gk.DAPS(gk.Measurement(EYE, torch.zeros(2), 0.0)), "noise=0"),
        (lambda: gk.TDS(gk.Measurement(lambda x: 1.0, torch.zeros(3)), 1.0), "returned float for one sample"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_the_network_is_called(guide, told: str):
    with pytest.raises(ValueError, match=told):
        run(guide())


def test_an_adjoint_that_is_none_is_found_before_the_network_is_called():
    class Wrong(Plain):
        def adjoint(self, y):
            return 1.01 * self.of.adjoint(y)

    class Affine(Plain):
        def A(self, x):
            return self.of.A(x) + 1.0

    for kind in (Wrong, Affine):
        with pytest.raises(ValueError, match="adjoint is none, since <A x, y> ="):
            run(gk.PiGDM(gk.Measurement(kind(Matrix(EYE)), torch.zeros(2))))


@pytest.mark.parametrize("guides", [lambda m: [gk.TMPD(m)], lambda m: [gk.TDS(m, 1.0, value=gk.values.Likelihood(m))]])
def test_an_adjoint_is_checked_once_and_not_at_every_step(guides):
    asked = []

    class Counted(Plain):
        def adjoint(self, y):
            asked.append(len(y))
            return self.of.adjoint(y)

    m = gk.Measurement(Counted(Matrix(ROW)), MEASURED.y, MEASURED.noise)
    gk.sample(BASE, 3, steps=4, guides=guides(m))
    assert asked.count(1) == 1 and asked.count(3) >= 4


def test_an_operator_of_the_users_gets_numbers_of_its_own_precision():
    """Predictions of pipelines are in double precision, whatever the model is."""

    class Strict(Plain):
        def A(self, x):
            assert x.dtype == torch.float32
            return self.of.A(x)

        def adjoint(self, y):
            assert y.dtype == torch.float32
            return self.of.adjoint(y)

    model, x = gk.GaussianModel(never, (3,)), numbers(2, 3)
    own = problem("PiGDM", gk.Measurement(Strict(Matrix(EYE)), torch.tensor([1.0, 2.0]), 0.5), model)
    rest = own.rest(x, torch.zeros(2, dtype=torch.long))
    assert rest.dtype == torch.float64 and torch.allclose(rest, torch.tensor([1.0, 2.0]) - x[:, :2], atol=1e-6)
    gain = own.gain(rest, 0.75)  # (A^T A + 0.25/0.75)^-1 A^T e
    assert gain.dtype == torch.float64 and torch.allclose(gain[:, :2], rest / (1 + 1 / 3), atol=1e-5)


def test_a_model_that_decodes_latents_is_refused_by_methods_for_states():
    latent = gk.GaussianModel(never, (3,), decode=lambda x: x.cumsum(1).tanh())
    with pytest.raises(ValueError, match=r"decodes them by more than one factor.*ReSample, TDS, DPS or DAPS"):
        run(gk.PiGDM(gk.Measurement(EYE, torch.zeros(2))), latent)


@pytest.mark.parametrize("make", [gk.DDRM, gk.DiffPIR, gk.DAPS, gk.DDNM])
def test_methods_with_moves_of_their_own_refuse_solvers_with_two_evaluations_and_what_steers_beside(make):
    m = gk.Measurement(EYE, torch.zeros(2))
    with pytest.raises(ValueError, match=r"two evaluations a step does not fit.*DDPM"):
        run(make(m), solver=gk.solvers.DPMpp(2) if make is not gk.DDNM else gk.solvers.SDEDPMpp(2))
    with pytest.raises(ValueError, match="no weights could correct for what steers"):
        gk.Run(BASE, 2, guides=[make(MEASURED), gk.TDS(MEASURED, 1.0)])


def test_the_exact_reverse_process_is_refused_since_it_uses_no_prediction():
    for make in (gk.PiGDM, gk.DDRM):
        with pytest.raises(ValueError, match=r"without exact\(\)"):
            gk.Run(BASE.exact(), 2, steps=3, guides=[make(MEASURED)])


def test_arguments_are_checked_where_they_are_given():
    with pytest.raises(TypeError, match=r"operator=list.*a matrix, or an object with A and adjoint"):
        gk.Measurement([1, 2], torch.zeros(2))
    with pytest.raises(TypeError, match=r"noise='loud'.*standard deviation"):
        gk.Measurement(EYE, torch.zeros(2), "loud")
    with pytest.raises(ValueError, match="noise=-1"):
        gk.Measurement(EYE, torch.zeros(2), -1.0)
    with pytest.raises(TypeError, match=r"gk.Measurement.*is needed, or a ByGroup of them, not function"):
        gk.PiGDM(lambda x: x)
    with pytest.raises(ValueError, match=r"counts of photons are not negative, and y goes down to -2"):
        gk.Measurement(EYE, torch.zeros(2), Poisson()).of(torch.tensor([3.0, -2.0]))
    with pytest.raises(ValueError, match=r"not finite; what is not measured belongs in a Mask"):
        gk.Measurement(EYE, torch.tensor([math.nan, 0.0]))
    for y in (torch.tensor([math.nan, 0.0]), torch.tensor([[math.nan, 0.0]])):
        gk.Measurement(Mask(torch.tensor([False, True])), y)  # whose other entries are not read
    with pytest.raises(ValueError, match=r"one that is False everywhere"):
        Mask(torch.zeros(3).bool())
    with pytest.raises(ValueError, match=r"Blur measures numbers, and this model makes tokens: give a function"):
        run(gk.FKSteering(gk.Measurement(Blur(1.0), torch.zeros(3)), 1.0), gk.analytic.TokenTable(torch.zeros(3, 3)))
    with pytest.raises(ValueError, match=r"Blur needs either sigma"):
        Blur()
    with pytest.raises(ValueError, match=r"blocks of 3 x 3 do not fill"):
        Downsample(3).A(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="one operator and one noise"):
        run(gk.DDS(ByGroup([MEASURED, gk.Measurement(ROW, MEASURED.y)])), BASE)
