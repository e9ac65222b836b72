"""Products, contrasts and mixtures of conditions and models: their formulas, and the laws of their samples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

import guidekit as gk
from guidekit import At, Compose, Mixture
from guidekit.models.evaluations import Other

from .problems import PROBLEMS, Problem, deviations, estimates, populations
from .test_cfg import guided

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")


def gaussians(means, stds, predicts: str = "clean") -> gk.GaussianModel:
    """Condition k is N(means[k], stds[k]^2) with its exact denoiser; 0 is the null condition."""
    m, s = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (means, stds))
    schedule = gk.schedules.Cosine()

    def net(x, t, cond):
        alpha, sigma = schedule(t[0])
        gain = alpha * s[cond] ** 2 / ((alpha * s[cond]) ** 2 + sigma**2)
        return m[cond] * (1 - alpha * gain) + gain * x

    return gk.GaussianModel(net, (1,), schedule, predicts, null=0, dtype=torch.float64)


def chain(powers, means, stds, steps: int) -> tuple[float, float]:
    """Mean and deviation of x_0 where the clean mean is sum_i powers_i d_i: every step is linear, so in closed form."""
    mean, var = 0.0, 1.0
    for t, s in pairwise(1 - np.arange(steps + 1) / steps):
        (a_t, s_t), (a_s, s_s) = ((np.cos(np.pi * u / 2), np.sin(np.pi * u / 2)) for u in (t, s))
        slope = offset = 0.0
        for power, m, std in zip(powers, means, stds, strict=True):
            gain = a_t * std**2 / ((a_t * std) ** 2 + s_t**2)
            slope, offset = slope + power * gain, offset + power * m * (1 - a_t * gain)
        fresh = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        factor = (a_t / a_s) * s_s**2 / s_t**2 + a_s * fresh / s_t**2 * slope
        mean = factor * mean + a_s * fresh / s_t**2 * offset
        var = factor**2 * var + fresh * s_s**2 / s_t**2
    return mean, var**0.5


def other(problem: Problem) -> gk.Model:
    """Another model of the same noising law."""
    base = problem.model
    if isinstance(base, gk.analytic.TokenTable):
        tables = base.table.flip(1).view(-1, *(base.vocab_size,) * base.length)
        return gk.analytic.TokenTable(tables[0], problem.name, classes=tables[1:])
    return gk.analytic.GaussianMixture([0.6, 0.4], base.means[:2] + 0.7, base.stds[1:3], base.schedule)


# products and contrasts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[0.8, 0.3], [1.0, -0.5], [-0.4, -0.2]], ids=["product", "contrast", "negation"])
def test_a_product_of_gaussians_has_the_law_of_its_chain(weights):
    means, stds, n = [0.0, 1.0, -0.5, 0.4], [1.0, 0.6, 0.7, 1.3], 20_000
    result = gk.sample(gaussians(means, stds), n, steps=10, cond=1, guides=[Compose([2, 3], weights)])
    mean, std = chain([-sum(weights), 1.0, *weights], means, stds, 10)
    assert stats.kstest(result.x[:, 0].numpy(), stats.norm(mean, std).cdf).pvalue > 1e-3
    assert abs(mean - 1) > 0.15  # it is not the condition alone


def test_equal_widths_give_the_product_itself():
    """N(m_1 + w (m_2 - m_0), s^2) is the product of Gaussians of one width, noised as every path is."""
    means, n = [0.3, 1.0, -0.5], 20_000
    product = means[1] + 0.8 * (means[2] - means[0])
    assert chain([-0.8, 1.0, 0.8], means, [0.7] * 3, 4000) == pytest.approx((product, 0.7), abs=1e-3)
    result = gk.sample(gaussians(means, [0.7] * 3), n, steps=100, cond=1, guides=[Compose(2, 0.8)])
    assert abs(float(result.x.mean()) - product) < 4.5 * 0.7 / n**0.5  # 4.5 standard errors


def test_unequal_widths_do_not_and_exact_does():
    """The product N(0, 1)^-1 N(1.5, .25) N(1.2, .3): its mean and deviation, against those of the bare product."""
    means, var = [0.0, 1.5, 1.2], [1.0, 0.25, 0.3]
    precision = -1 + 1 / var[1] + 1 / var[2]
    mean, std = (means[1] / var[1] + means[2] / var[2]) / precision, precision**-0.5
    model, product = gaussians(means, [v**0.5 for v in var]), Compose(2, 1.0)
    bare = gk.sample(model, 5000, steps=250, cond=1, guides=[product])
    exact = gk.sample(model, 5000, steps=250, cond=1, guides=[product.exact()])
    x, w = exact.x[:, 0], exact.weights
    found = float(w @ x), float((w @ (x - w @ x) ** 2).sqrt())
    # standard errors .006 and .004; 250 steps leave about .03 and -.02, and 600 less than these errors
    assert abs(found[0] - mean) < 0.05 and abs(found[1] - std) < 0.035
    assert abs(float(bare.x.mean()) - mean) > 0.12 and float(bare.x.std()) < std - 0.045


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_prediction_is_the_weighted_sum(problem):
    """d <- w d + sum_i w_i d_i + (1 - w - sum_i w_i) n, with functions of t as weights."""
    net = other(problem)
    guide = Compose([net, gk.Cond()], [lambda t: 2 * t, 0.5], own=0.9)
    looked, cond, null = guided(problem, [guide])
    plain = gk.Run(problem.model, 5, steps=6, cond=problem.cond)
    t = plain.step(2).t
    theirs = net(looked.x, t, problem.model.encode(problem.cond).expand(5))
    expected = (0.9 + 0.5) * cond + 2 * t * theirs + (1 - 0.9 - 0.5 - 2 * t) * null
    assert torch.allclose(looked.predictions[0], expected, rtol=1e-12, atol=1e-12)


def test_an_expert_at_the_run_s_condition_is_classifier_free_guidance():
    for name in ("vp-1d", "masked"):
        problem = PROBLEMS[name]
        options = {"n": 20, "steps": 6, "cond": problem.cond}
        cfg = gk.sample(problem.model, **options, guides=[gk.CFG(2.5)])
        for guide in (Compose(problem.cond, 1.5), Compose(gk.Cond(), 1.5), Compose(None, 0.0, own=2.5)):
            assert torch.allclose(gk.sample(problem.model, **options, guides=[guide]).x, cfg.x)


def test_reliabilities_share_the_null_prediction():
    """Unite and Conquer: sum_i w_i d_i - (sum_i w_i - 1) sum_i a_i n_i, each model with a null of its own."""
    base, second = gaussians([0.0, 1.0], [1.0, 0.5]), gaussians([0.4, -1.0, 2.0], [0.8, 0.6, 0.4])
    guide = Compose([At(2, second), At(1)], [3.0, 0.5], own=2.0, reliabilities=[0.5, 0.3, 0.2])
    run = gk.Run(base, 4, steps=5, cond=1, guides=[guide])
    with torch.no_grad():
        pop = run.advance(run.start(), 0)

        def at(model, c):
            return model(pop.x, run.step(1).t, torch.full((4,), c))

        united = 2 * at(base, 1) + 3 * at(second, 2) + 0.5 * at(base, 1)
        nulls = 0.7 * at(base, 0) + 0.3 * at(second, 0)
    assert torch.allclose(pop.predictions[0], united - (5.5 - 1) * nulls, rtol=1e-12)
    assert run.cost.network_calls == 2 * 2  # one forward for each network and look
    assert run.models == [base, second]


def test_weights_that_add_up_to_one_need_no_null_condition():
    """Two models without one: 1.5 and -.5 is a contrast, as autoguidance has it."""
    base = gk.analytic.GaussianMixture([0.6, 0.4], [-1.0, 1.5], [0.5, 0.4])
    weak = gk.analytic.GaussianMixture([0.5, 0.5], [-1.0, 1.5], [0.9, 0.9])
    guide = Compose(weak, -0.5, own=1.5)
    assert guide.needs == (Other(weak),)
    run = gk.Run(base, 6, steps=5, guides=[guide])
    with torch.no_grad():
        pop = run.start()
        t = run.step(0).t
        expected = 1.5 * base(pop.x, t, None) - 0.5 * weak(pop.x, t, None)
    assert torch.allclose(pop.predictions[0], expected)
    with pytest.raises(ValueError, match="no null condition"):
        gk.Run(base, 6, steps=5, guides=[Compose(weak, -0.5)])


def test_tokens_follow_the_normalised_product_of_powers():
    problem = PROBLEMS["masked"]
    net = other(problem)
    looked, cond, null = guided(problem, [Compose(net, 0.7)])
    move = gk.Run(problem.model, 5, steps=6).moves[2]
    kernel = problem.model.process.kernel(looked.x, looked.predictions, move)
    theirs = net(looked.x, move.t, problem.model.encode(problem.cond).expand(5))
    p = cond.exp() * (theirs.exp() / null.exp()) ** 0.7
    masked = looked.x == problem.model.vocab_size
    assert masked.any()
    expected = (1 - move.s / move.t) * p / p.sum(-1, keepdim=True)
    assert torch.allclose(kernel.log_probs.exp()[..., :-1][masked], expected[masked], atol=1e-12)


# mixtures ----------------------------------------------------------------------------------------------------------


def labelled() -> gk.analytic.GaussianMixture:
    weights, means, stds = (
        torch.tensor(v, dtype=torch.float64)
        for v in ([0.3, 0.2, 0.25, 0.25], [-2.0, -0.5, 1.0, 2.5], [0.5, 0.4, 0.3, 0.5])
    )
    return gk.analytic.GaussianMixture(weights, means, stds, labels=[0, 0, 1, 1])


def test_the_mixture_of_two_conditions_has_the_law_of_the_mixture():
    """.3 p(x | 0) + .7 p(x | 1) in closed form. With fixed shares it is the geometric mean instead."""
    model, n = labelled(), 3000

    def cdf(x):
        parts = [(0.18, -2.0, 0.5), (0.12, -0.5, 0.4), (0.35, 1.0, 0.3), (0.35, 2.5, 0.5)]
        return sum(w * stats.norm.cdf(x, m, s) for w, m, s in parts)

    mixed = gk.sample(model, n, steps=100, cond=0, guides=[Mixture(1, [0.3, 0.7])])
    fixed = gk.sample(model, n, steps=100, cond=0, guides=[Mixture(1, [0.3, 0.7], adaptive=False)])
    assert stats.kstest(mixed.x[:, 0].numpy(), cdf).pvalue > 1e-3
    assert stats.kstest(fixed.x[:, 0].numpy(), cdf).statistic > 0.2
    geometric = gk.sample(model, n, steps=100, cond=0, guides=[Compose(1, 0.7, own=0.3)])
    assert torch.allclose(geometric.x, fixed.x)


def test_rho_is_the_posterior_of_the_expert():
    """From the path alone, against pi_i p_i(x_t) of the labelled mixture: at half of the run and at its end."""
    model, shares = labelled(), torch.tensor([0.3, 0.7], dtype=torch.float64)
    run = gk.Run(model, 2000, steps=400, cond=0, guides=[Mixture(1, shares.tolist())])
    with torch.no_grad():
        pop = run.start()
        for index in range(300):
            pop = run.advance(pop, index)
    rho = model.responsibilities(pop.x, run.step(300).t)  # of the components, at weights .5 for each label
    true = torch.stack([rho[:, :2].sum(1), rho[:, 2:].sum(1)], 1) * shares
    true = true / true.sum(1, keepdim=True)
    assert 0.1 < float((true[:, 0] > 0.5).double().mean()) < 0.5
    assert float((pop.memos[0][1].exp() - true).abs().mean()) < 0.03  # of an error that falls with the steps


def test_the_end_says_which_expert_made_a_sample():
    result = gk.sample(labelled(), 500, steps=100, cond=0, guides=[Mixture(1, [0.3, 0.7])])
    rho = result.memos[0]
    assert torch.allclose(rho.sum(1), torch.ones(500, dtype=torch.float64))
    sure = rho[:, 1] > 0.99
    assert sure.any() and (result.x[sure, 0] > -0.5).all() and (result.x[rho[:, 1] < 0.01, 0] < 1.0).all()


def test_the_mixture_of_token_laws_is_exact_one_position_at_a_time():
    """Masked, one position in each of many steps: the law of .3 p_1 + .7 p_2 by enumeration, in total variation."""
    generator = torch.Generator().manual_seed(4)
    first, second = (torch.randn(3, 3, 3, generator=generator, dtype=torch.float64) * 1.5 for _ in range(2))
    model = gk.analytic.TokenTable(first, classes=torch.stack([first, second]))
    n = 6000
    truth = 0.3 * model.log_probs(model.states, 0).exp() + 0.7 * model.log_probs(model.states, 1).exp()

    def distance(guide) -> float:
        x = gk.sample(model, n, steps=30, cond=0, guides=[guide]).x
        counts = torch.bincount((x * torch.tensor([9, 3, 1])).sum(1), minlength=27)
        return 0.5 * float((counts / n - truth).abs().sum())

    # n true samples are about sqrt(27/(2 pi n)) = .027 away
    assert distance(Mixture(1, [0.3, 0.7])) < 0.05
    assert distance(Mixture(1, [0.3, 0.7], adaptive=False)) > 0.1


@pytest.mark.parametrize("solver", [gk.solvers.DDPM(), gk.solvers.SDEDPMpp(order=2)], ids=["one step", "two steps"])
def test_rho_follows_the_kernels_of_the_solver(solver):
    """By hand, from the first moves: log rho_i = log a_i + sum of log q_i, with the experts' own history."""
    model, n = labelled(), 6
    run = gk.Run(model, n, steps=8, cond=0, guides=[Mixture(1, [0.4, 0.6])], solver=solver)
    log_rho = torch.tensor([0.4, 0.6], dtype=torch.float64).log().expand(n, 2)
    past: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        pop = run.start()
        for index in range(4):
            before, move = pop.x, run.moves[index]
            for c in range(2):
                past[c].insert(0, model(before, move.t, torch.full((n,), c)))
            pop = run.advance(pop, index)
            means = [move.a * before + sum(b * d for b, d in zip(move.b, past[c], strict=False)) for c in range(2)]
            log_rho = log_rho + torch.cat([-((pop.x - m) ** 2) / (2 * move.c**2) for m in means], 1)
            assert torch.allclose(pop.memos[0][1], log_rho.log_softmax(1), rtol=1e-9, atol=1e-9)
            d = [model(pop.x, run.step(index + 1).t, torch.full((n,), c)) for c in range(2)]
            rho = log_rho.softmax(1)
            assert torch.allclose(pop.predictions[0], rho[:, :1] * d[0] + rho[:, 1:] * d[1])
    assert max(len(m.b) for m in run.moves[:4]) == (1 if isinstance(solver, gk.solvers.DDPM) else 2)


# what all have in common -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp-1d", "edm-1d", "masked", "uniform"])
def test_idle_settings_give_the_unguided_sampler_bit_for_bit(name):
    problem = PROBLEMS[name]
    net, options = other(problem), {"n": 12, "steps": 6, "cond": problem.cond}
    plain = gk.sample(problem.model, **options)
    for guide in (Compose(net, 0.0), Compose(net, lambda t: 0.0), Mixture(net, [1, 0]), Mixture(net, [1, 0], False)):
        assert torch.equal(gk.sample(problem.model, **options, guides=[guide]).x, plain.x)
    assert Compose(net, 0.0).needs == ()  # and weight 0 costs nothing


@pytest.mark.parametrize("name", ["vp-1d", "masked"])
@pytest.mark.parametrize("kind", [Compose, Mixture])
def test_rows_do_not_depend_on_batch_size_or_groups_and_follow_selections(name, kind):
    problem = PROBLEMS[name]
    guides = [kind(other(problem)), gk.FKSteering(problem.reward, problem.alpha, ess=0.9)]
    options = {"n": 12, "steps": 6, "guides": guides}
    whole = gk.sample(problem.model, **options, cond=[problem.cond, None], seed=[3, 8])
    parts = gk.sample(problem.model, **options, cond=[problem.cond, None], seed=[3, 8], batch_size=5)
    assert whole.trace["resampled"].any()
    assert torch.equal(whole.ancestors, parts.ancestors)
    assert torch.allclose(whole.x.double(), parts.x.double(), rtol=1e-12)
    alone = gk.sample(problem.model, **options, cond=None, seed=8)
    assert torch.allclose(whole.x[12:].double(), alone.x.double(), rtol=1e-12)


def test_steer_leaves_the_target_unchanged():
    """E[w f] is that of the unguided chain, for a product and for a mixture that bend the proposal only."""
    problem = PROBLEMS["vp-1d"]
    truth, error = problem.tilted(reward=False)
    for guide in (Compose(0, 0.3, steer=True), Mixture(0, [0.8, 0.2], steer=True)):
        found = estimates(problem, populations(problem, 2000, 8, [guide]))
        assert np.abs(deviations(found, truth, error)).max() < 4.5


def test_all_conditions_of_a_network_go_into_one_forward_and_equal_ones_are_one():
    means = [0.0, 1.0, -0.5, 0.4]
    guides = [Compose([2, 3], 0.5), gk.CFG(2.0), Compose(3, -0.2, start=0.5)]
    result = gk.sample(gaussians(means, [1.0] * 4), 5, steps=6, cond=1, guides=guides)
    assert result.cost.network_calls == 6
    assert result.cost.network_rows == 6 * 5 * 4


# evaluations at a condition ----------------------------------------------------------------------------------------


def test_conditions_are_equal_by_value_and_tensors_by_identity():
    a, b = torch.zeros(3), torch.zeros(3)
    assert At("x") == At("x") and hash(At("x")) == hash(At("x"))
    assert At(a) == At(a) and At(a) != At(b) and len({At(a), At(a), At(b)}) == 2
    parts = {"size": 3}
    assert At(parts) == At(parts) and At(parts) != At({"size": 3})
    assert At(1) != At(True) and At(1) != At("1")
    model = gaussians([0.0], [1.0])
    assert At(1, model) == At(1, model) != At(1)


def encoder(lengths: dict[str, int]):
    """A model whose prompts encode to a dict with a mask, and a list of what was encoded."""
    calls: list[str] = []

    def encode(prompt):
        calls.append(prompt)
        return {"text": torch.full((lengths[prompt],), float(len(prompt))), "mask": torch.ones(lengths[prompt])}

    def net(x, t, cond):
        return x * 0.5 + (cond["text"] * cond["mask"]).mean(1, keepdim=True)

    null = {"text": torch.zeros(3), "mask": torch.ones(3)}
    return gk.GaussianModel(net, (2,), predicts="clean", encode_cond=encode, null=null), calls


def test_prompts_encode_once_in_a_run_and_to_the_shape_of_the_others():
    model, calls = encoder({"cat": 3, "a dog": 3, "long": 4})
    run = gk.Run(model, 4, steps=5, cond=["cat", None], guides=[Compose("a dog", 0.5)])
    with torch.no_grad():
        pop = run.start()
        for index in range(5):
            pop = run.advance(pop, index)
    assert calls.count("a dog") == 1
    # x_0 is the last clean mean: .5 x + 3 + .5 (5 - 0) for the cat, and .5 x + 2.5 without a condition
    with torch.no_grad():
        start = run.start()
    assert torch.allclose(start.predictions[0][:4], start.x[:4] * 0.5 + 3 + 2.5)
    assert torch.allclose(start.predictions[0][4:], start.x[4:] * 0.5 + 2.5)
    with pytest.raises(ValueError, match="encode_cond must pad them"):
        gk.sample(model, 4, steps=5, cond="cat", guides=[Compose("long")])


def test_a_new_run_encodes_anew():
    """An encoder that has been trained on between two runs is not remembered as it was."""
    model, _ = encoder({"cat": 3, "a dog": 3})
    options = {"n": 4, "steps": 3, "cond": "cat", "guides": [Compose("a dog", 0.5)]}
    before = gk.sample(model, **options)
    encode = model._encode
    model._encode = lambda prompt: {k: v * (1 + (k == "text")) for k, v in encode(prompt).items()}
    # .5 x + 3 + 2.5 becomes .5 x + 6 + 5; the last prediction is the sample
    assert float((gk.sample(model, **options).x - before.x).min()) > 5.5


def test_bad_input_is_an_error_before_the_first_network_call():
    def never(x, t, cond):
        raise AssertionError("the network was called")

    model = gk.GaussianModel(never, (1,), null=0)
    blind = gk.GaussianModel(never, (1,))
    apart = gk.GaussianModel(never, (2,), null=0)
    for guide, match in (
        (Compose(apart), "share shape and noising law"),
        (Compose(At(1, apart)), "share shape and noising law"),
        (Compose(At(None, blind), 0.5, own=0.5), "no null condition"),
        (Compose("cat"), "is no tensor"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            gk.Run(model, 2, cond=1, guides=[guide])
    with pytest.raises(ValueError, match="no null condition"):
        gk.Run(blind, 2, cond=1, guides=[Compose(2)])
    with pytest.raises(ValueError, match="the rows of the run have none"):
        gk.sample(blind, 2, guides=[Compose(2, 0.5, own=0.5)])
    with pytest.raises(ValueError, match="is deterministic"):
        gk.Run(model, 2, cond=1, guides=[Mixture(2)], solver=gk.solvers.DDIM())
    assert gk.Run(model, 2, cond=1, guides=[Mixture(2, adaptive=False)], solver=gk.solvers.DDIM())
    for wrong, match in (
        (lambda: Compose([]), "one or more are needed"),
        (lambda: Compose([1, 2], [0.5]), "2 experts are given"),
        (lambda: Compose(1, reliabilities=[0.5, 0.6]), "sum to 1"),
        (lambda: Compose(1, lambda t: t).exact(), "weights that are numbers"),
        (lambda: Compose(1, start=0.5).exact(), "no steer, start or stop"),
        (lambda: Mixture([1, 2], [0.5, 0.5]), "3 shares are needed"),
        (lambda: Mixture(1, [1.5, -0.5]), "none negative"),
        (lambda: Mixture(1, [lambda t: t, 1]), "adaptive=False"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
