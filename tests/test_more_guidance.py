"""Bands of frequencies, negative and random conditions, weights that adapt, superposition by AND: formulas and laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import guidekit as gk
from guidekit.models.evaluations import Given

from .test_cfg_family import D, Net, inner, model, state


def pictures(size: int = 8, **options) -> gk.GaussianModel:
    """Pictures of two channels, whose network says something else for each condition; condition 4 is none."""
    fields = torch.randn(5, 2, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return gk.GaussianModel(
        lambda x, t, c: (x + fields[c]).tanh(),
        (2, size, size),
        gk.schedules.Flow(),
        "clean",
        null=4,
        dtype=torch.float64,
        **options,
    )


def first(base: gk.Model, guides, n: int = 3):
    """The guided prediction at the start, and those of the network at condition 2 and without one."""
    with torch.no_grad():
        pop = gk.Run(base, n, steps=5, guides=guides, cond=2).start()
        cond, null = (base(pop.x, 1.0, torch.full((n,), c)) for c in (2, 4))
    return pop.predictions[0], cond, null, pop.x


# bands of frequencies ------------------------------------------------------------------------------------------------


def smoothed(x):
    """(1, 4, 6, 4, 1)/16 along both axes."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype) / 16
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])


def down(x):
    return F.interpolate(smoothed(x), scale_factor=0.5, mode="bilinear", align_corners=False)


def up(x):
    return smoothed(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))


def laplacian(x, levels: int):
    """The Laplacian pyramid, finest level first."""
    parts = []
    for _ in range(levels - 1):
        parts.append(x - up(down(x)))
        x = down(x)
    return [*parts, x]


def test_frequency_decoupled_guidance_is_cfg_of_every_level_of_the_pyramid():
    scales = (4.0, 2.5, 1.5)
    guided, cond, null, _ = first(pictures(16), [gk.FrequencyDecoupled(scales)])
    levels = [u + w * (c - u) for w, c, u in zip(scales, laplacian(cond, 3), laplacian(null, 3), strict=True)]
    wanted = levels[2]
    for level in (levels[1], levels[0]):
        wanted = up(wanted) + level
    assert torch.allclose(guided, wanted, rtol=1e-10, atol=1e-12)
    same = first(pictures(16), [gk.FrequencyDecoupled((3.0, 3.0))])[0]
    assert torch.allclose(same, null + 3 * (cond - null), rtol=1e-10, atol=1e-12)


def test_frequency_decoupled_guidance_takes_any_side_and_refuses_too_many_bands():
    flat = torch.ones(1, 1, 7, 5, dtype=torch.float64)
    from guidekit.guides.frequency_decoupled import low

    assert torch.allclose(low(flat, 2), flat)  # what is flat is all low
    assert low(torch.randn(1, 1, 7, 5, dtype=torch.float64), 2).std() < 0.5
    for scale in (3.0, (3.0,)):
        with pytest.raises(ValueError, match="a weight for each band"):
            gk.FrequencyDecoupled(scale)
    with pytest.raises(ValueError, match="too many for sides of 8"):
        gk.Run(pictures(), 2, guides=[gk.FrequencyDecoupled((1.0,) * 6)], cond=2)


@pytest.mark.parametrize("size", [8, 7])
def test_fresca_scales_the_difference_in_frequency(size: int):
    guided, cond, null, _ = first(pictures(size), [gk.FreSca(2.0, 0.6, 1.7, cutoff=2)])
    spectrum = torch.fft.fftshift(torch.fft.fftn(cond - null, dim=(2, 3)), dim=(2, 3))
    middle = slice(size // 2 - 2, size // 2 + 2)
    scale = torch.full((size, size), 1.7, dtype=torch.float64)
    scale[middle, middle] = 0.6
    back = torch.fft.ifftn(torch.fft.ifftshift(spectrum * scale, dim=(2, 3)), dim=(2, 3)).real
    assert torch.allclose(guided, null + 2 * back, rtol=1e-10, atol=1e-12)
    plain = first(pictures(size), [gk.FreSca(2.0, 1.0, 1.0)])[0]
    assert torch.allclose(plain, null + 2 * (cond - null), rtol=1e-10, atol=1e-12)


# negative conditions -------------------------------------------------------------------------------------------------


def at_conditions(pop, run, t: float, *conds):
    with torch.no_grad():
        return [run.model(pop.x, t, torch.full((len(pop.x),), c)).numpy() for c in conds]


def test_perp_neg_by_hand():
    run, pop, _, t, c, u = state([gk.PerpNeg(4.0, [1, 3], [0.7, 1.2])], 6, 3)
    d, wanted = c - u, 4.0 * (c - u)
    for weight, other in zip((0.7, 1.2), at_conditions(pop, run, t, 1, 3), strict=True):
        e = other - u
        perpendicular = e - inner(e, d) / inner(d, d) * d
        assert np.abs(inner(perpendicular, d)).max() < 1e-12
        wanted = wanted - 4.0 * weight * perpendicular
    assert np.allclose(pop.predictions[0].numpy(), u + wanted, rtol=1e-9)
    run, pop, _, _, c, u = state([gk.PerpNeg(4.0, 2)], 6, 3)  # the condition itself: nothing of it is perpendicular
    assert np.allclose(pop.predictions[0].numpy(), u + 4.0 * (c - u), rtol=1e-9)


def test_contrastive_cfg_by_hand_and_without_contrast_it_is_a_composition():
    schedule = gk.schedules.Cosine()
    run, pop, _, t, c, u = state([gk.ContrastiveCFG(3.0, [1], 0.8, tau=0.5)], 6, 3, schedule=schedule)
    alpha, sigma = run.model.process.scales(t)
    (other,) = at_conditions(pop, run, t, 1)
    plus, minus = (inner(d, d) * (alpha / sigma) ** 2 for d in (c - u, other - u))
    near = 2 / (1 + np.exp(-0.5 * plus)), 2 * np.exp(-0.5 * minus) / (1 + np.exp(-0.5 * minus))
    assert near[0].min() > 1 > near[1].max() and np.ptp(near[1]) > 0.05
    wanted = u + 3.0 * near[0] * (c - u) - 3.0 * 0.8 * near[1] * (other - u)
    assert np.allclose(pop.predictions[0].numpy(), wanted, rtol=1e-9)
    guides = gk.ContrastiveCFG(3.0, 1, 0.8, tau=0.0), gk.Compose(1, -2.4, own=3.0)
    one, two = (gk.sample(model(), 6, steps=5, cond=2, guides=[guide]).x for guide in guides)
    assert torch.allclose(one, two, rtol=1e-9)


def spheres(net=None) -> gk.GaussianModel:
    """N(m, 0.3) in three dimensions, of four conditions and of none at 0; `net` says the clean mean instead."""

    def guess(x: torch.Tensor, t: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        a, s = (v[:, None] for v in gk.schedules.Cosine()(t.double()))
        return mean + 0.3 * a / (0.3 * a**2 + s**2) * (x - a * mean)

    def usual(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return guess(x, t, PLACES[cond])

    return gk.GaussianModel(net(guess) if net else usual, (3,), gk.schedules.Cosine(), "clean", null=torch.tensor(4),
                            encode_cond=torch.tensor, dtype=torch.float64)  # fmt: skip


PLACES = torch.tensor([[2.0, 0.5, -1.0], [1.0, 1.5, 0.3], [-0.7, 0.4, 1.2], [0.2, -2.0, 0.6], [0, 0, 0]]).double()


def test_perp_neg_draws_from_the_sphere_that_its_vectors_lead_to():
    """Predictions of such spheres differ by a vector along their means, so the guided ones are those of another sphere:
    at w (m - sum_i b_i m_i_perp)."""
    own, wanted = PLACES[0], 2.0 * PLACES[0]
    for i, b in ((1, 0.7), (3, 1.2)):
        wanted = wanted - 2.0 * b * (PLACES[i] - PLACES[i] @ own / (own @ own) * own)
    found = gk.sample(spheres(), 50, steps=12, cond=0, guides=[gk.PerpNeg(2.0, [1, 3], [0.7, 1.2])])
    other = spheres(lambda guess: lambda x, t, c: guess(x, t, wanted))
    assert torch.allclose(found.x, gk.sample(other, 50, steps=12).x, atol=1e-9)


def test_contrastive_cfg_follows_the_vectors_with_weights_of_their_own_lengths():
    """Of spheres |e_c - e_null|^2 is that of their means, times (alpha/sigma c)^2 with c the share of the mean in d."""

    def net(guess):
        def guided(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
            a, s = gk.schedules.Cosine()(t.double())
            share = (1 - 0.3 * a**2 / (0.3 * a**2 + s**2))[:, None]
            size = (a / s)[:, None] * share
            plus, minus = (2 / (1 + torch.exp(sign * 0.5 * (size * m.norm()) ** 2))
                           for sign, m in ((-1, PLACES[0]), (1, PLACES[1])))  # fmt: skip
            return guess(x, t, PLACES[4]) + 2 * share * (plus * PLACES[0] - 0.8 * minus * PLACES[1])

        return guided

    found = gk.sample(spheres(), 50, steps=12, cond=0, guides=[gk.ContrastiveCFG(2.0, 1, 0.8, tau=0.5)])
    assert torch.allclose(found.x, gk.sample(spheres(net), 50, steps=12).x, atol=1e-8)


def test_perp_neg_takes_no_direction_from_rounding():
    """The prediction of the condition is that of none, but for the last digit."""

    def net(last: float):
        def usual(guess, x, t, cond):
            own = guess(x, t, PLACES[torch.where(cond == 0, 4, cond)])
            return torch.where(cond[:, None] == 0, own * (1 + last), own)

        return lambda guess: lambda x, t, cond: usual(guess, x, t, cond)

    exact, rounded = (
        gk.sample(spheres(net(last)), 50, steps=12, cond=0, guides=[gk.PerpNeg(2.0, [1, 3])]).x
        for last in (0.0, torch.finfo(torch.float64).eps)
    )
    assert torch.allclose(exact, rounded, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(exact, gk.sample(spheres(), 50, steps=12, cond=None).x, atol=0.1)


@pytest.mark.parametrize("guide", [gk.PerpNeg, gk.ContrastiveCFG])
def test_negative_conditions_share_their_evaluations_and_are_checked(guide):
    result = gk.sample(model(), 6, steps=5, cond=2, guides=[guide(2.0, [1, 3]), gk.CFG(1.5), gk.Compose(3, 0.1)])
    assert result.cost.network_rows == 4 * 6 * 5
    with pytest.raises(ValueError, match="2 negative conditions are given"):
        guide(2.0, [1, 3], [0.5])
    with pytest.raises(ValueError, match="null condition"):
        gk.Run(model(null=None), 4, guides=[guide(2.0, 1)], cond=2)


# random conditions ---------------------------------------------------------------------------------------------------


def test_independent_conditions_are_drawn_for_every_row_and_step():
    guide = gk.ICG(3.0, [1, 3])
    run, pop, _, t, c, _ = state([guide], 6, 3, n=400)
    wanted = [c + 2.0 * (c - other) for other in at_conditions(pop, run, t, 1, 3)]
    found = pop.predictions[0].numpy()
    which = np.array([np.abs(found - w).max(1) < 1e-9 for w in wanted])
    assert (which.sum(0) == 1).all() and 150 < which[0].sum() < 250  # five standard errors of 400 coins
    before = state([guide], 6, 2, n=400)
    wanted = [before[4] + 2.0 * (before[4] - other) for other in at_conditions(before[1], before[0], before[3], 1, 3)]
    assert 0.3 < (np.abs(before[1].predictions[0].numpy() - wanted[0]).max(1) < 1e-9)[which[0]].mean() < 0.7
    one = gk.sample(model(), 6, steps=5, cond=2, guides=[gk.ICG(3.0, [4])]).x
    assert torch.allclose(one, gk.sample(model(), 6, steps=5, cond=2, guides=[gk.CFG(3.0)]).x, rtol=1e-9)
    assert gk.sample(model(null=None), 6, steps=5, cond=2, guides=[guide]).cost.network_rows == 2 * 6 * 5


def test_drawn_embeddings_have_the_mean_and_the_deviation_of_the_condition():
    seen = []

    def net(x, t, cond):
        seen.append(cond)
        return x * cond["y"].mean(1, keepdim=True)

    code = torch.randn(2000, generator=torch.Generator().manual_seed(1)) * 3 + 2
    base = gk.GaussianModel(net, (D,), encode_cond=lambda c: {"y": code, "mask": torch.ones(3, dtype=torch.long)})
    gk.sample(base, 4, steps=1, cond=0, guides=[gk.ICG(2.0)])
    drawn = seen[1]
    assert len(seen) == 2 and (drawn["mask"] == 1).all() and not torch.equal(drawn["y"][0], drawn["y"][1])
    assert (drawn["y"].mean(1) - code.mean()).abs().max() < 5 * 3 / 2000**0.5
    assert (drawn["y"].std(1) - code.std()).abs().max() < 5 * 3 / 4000**0.5
    with pytest.raises(ValueError, match=r"conditions=\[...\]"):
        gk.sample(model(), 4, steps=2, cond=2, guides=[gk.ICG(2.0)])
    assert Given(torch.ones(2)) != Given(torch.ones(2))


# weights that adapt --------------------------------------------------------------------------------------------------


def test_adaptive_guidance_stops_row_by_row_and_pays_for_no_null_row_afterwards():
    steps, n, threshold = 12, 8, 0.98
    base, net = model(gk.schedules.Cosine()), Net()
    options = {"steps": steps, "cond": 2, "solver": gk.solvers.DDIM()}
    result = gk.sample(base, n, guides=[gk.AdaptiveGuidance(3.0, threshold)], **options)
    run, done, rows, x = gk.Run(base, n, **options), np.zeros(n, bool), 0, result.noise.numpy()
    for move in run.moves:
        alpha, _ = base.process.scales(move.t)
        t = torch.full((n,), move.t, dtype=torch.float64)
        with torch.no_grad():
            c, u = (net(torch.from_numpy(x), t, torch.full((n,), k)).numpy() for k in (2, 4))
        rows += n + (~done).sum()
        a, b = x - alpha * c, x - alpha * u
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        d = np.where(done[:, None], c, u + 3.0 * (c - u))
        done = done | (cosine > threshold)
        x = move.a * x + move.b[0] * d
    assert np.allclose(result.x.numpy(), x, rtol=1e-8)
    assert result.cost.network_rows == rows and n * steps < rows < 2 * n * steps
    whole = gk.sample(base, n, guides=[gk.AdaptiveGuidance(3.0, 1.0)], **options).x
    assert torch.allclose(whole, gk.sample(base, n, guides=[gk.CFG(3.0)], **options).x, rtol=1e-9)


def test_feedback_guidance_finds_the_law_that_is_mixed_with_the_unconditional_one():
    """The network has learnt 0.7 N(1.5, 0.5^2) + 0.3 p of its condition, p = 0.6 N(-1, 0.4^2) + 0.4 N(1.5, 0.5^2), and
    knows p: guided samples follow the first part. 1,200 of them, and 100 steps, of a bias of 0.03."""
    pi, means, stds = 0.7, [[-1.0], [1.5]], [0.4, 0.5]
    null = gk.analytic.GaussianMixture([0.6, 0.4], means, stds)
    own = gk.analytic.GaussianMixture([0.3 * 0.6, 0.3 * 0.4 + 0.7], means, stds)

    def net(x, t, cond):
        time, none = float(t[0]), torch.full((len(x),), -1)
        return torch.where(cond[:, None] == 1, own(x, time, none), null(x, time, none))

    base = gk.GaussianModel(net, (1,), gk.schedules.Cosine(), "clean", null=0)
    guided = gk.sample(base, 1200, steps=100, cond=1, guides=[gk.FeedbackGuidance(pi=pi, max_scale=20.0)])
    plain = gk.sample(base, 1200, steps=30, cond=1)
    assert (plain.x < 0).double().mean() > 0.14 and (guided.x < 0).double().mean() < 0.02
    assert abs(guided.x.mean() - 1.5) < 0.03 + 4 * 0.5 / 1200**0.5
    assert abs(guided.x.std() - 0.5) < 0.06
    with pytest.raises(ValueError, match="pi lies in"):
        gk.Run(base, 2, guides=[gk.FeedbackGuidance(pi=1.0)], cond=1)


def test_feedback_guidance_by_hand():
    """Its weight from the probabilities of the moves, on a schedule that is not variance preserving, with an offset."""
    pi, tau, delta = 0.8, 0.4, -0.05
    guides = [gk.FeedbackGuidance(pi=pi, tau=tau, delta=delta, max_scale=6.0)]
    run = gk.Run(model(), 5, steps=8, cond=2, guides=guides, solver=gk.solvers.DDIM(0.5))
    log_r, weights = np.zeros(5), []
    with torch.no_grad():
        pop = run.start()
        for index, move in enumerate(run.moves[:5]):
            c, u = at_conditions(pop, run, move.t, 2, 4)
            r = np.exp(log_r)
            weights.append(r / (r - (1 - pi)))
            assert np.allclose(pop.predictions[0].numpy(), u + weights[-1][:, None] * (c - u), rtol=1e-8)
            x, pop = pop.x.numpy(), run.advance(pop, index)
            (a_t, s_t), (a_s, s_s) = (run.model.process.scales(v) for v in (move.t, move.s))
            var = s_s**2 * (1 - (a_t * s_s / (a_s * s_t)) ** 2)
            ahead = [a_s * d + np.sqrt(s_s**2 - var) * (x - a_t * d) / s_t for d in (c, u)]
            square = [((pop.x.numpy() - m) ** 2).sum(1) for m in ahead]
            log_r = log_r + tau * (square[1] - square[0]) / (2 * var) + delta
            log_r = np.clip(log_r, np.log((1 - pi) * 6 / 5), 3)
    assert np.ptp(weights[-1]) > 0.05


# AND -----------------------------------------------------------------------------------------------------------------


def test_both_experts_find_samples_of_their_intersection_equally_likely():
    """The densities of N((-1, 0), 0.5^2) and N((1, 0.5), 0.7^2): up to the noise and the bias of 60 steps."""
    base = gk.analytic.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.5, 0.7], labels=[0, 1])
    experts = [gk.analytic.GaussianMixture([1.0], [m], [s]) for m, s in (([-1.0, 0.0], 0.5), ([1.0, 0.5], 0.7))]

    def gap(guide: gk.Guide) -> torch.Tensor:
        x = gk.sample(base, 300, steps=60, cond=0, guides=[guide], seed=1).x
        return experts[0].log_prob(x) - experts[1].log_prob(x)

    equal, product = gap(gk.Intersection(1)), gap(gk.Compose(1, 0.5, own=0.5))
    assert abs(equal.mean()) < 0.4 and equal.std() < 0.3
    assert product.std() > 1.0
    shares = gap(gk.Intersection(1, [0.2, 0.8]))  # 0.2 p_0 = 0.8 p_1
    assert abs(shares.mean() - equal.mean() - np.log(4.0)) < 0.15


def test_the_weights_of_three_experts_make_the_expected_densities_equal():
    """After the first move, by the linear system of the docstring in numpy; at first all densities are equal."""
    run, pop, _, t, c, _ = state([gk.Intersection([1, 3])], 6, 0)
    others = at_conditions(pop, run, t, 1, 3)
    d = pop.predictions[0].numpy()
    away = [((d - o) ** 2).sum(1) for o in (c, *others)]
    assert np.allclose(away[0], away[1], rtol=1e-9) and np.allclose(away[0], away[2], rtol=1e-9)
    with pytest.raises(ValueError, match="one step"):
        gk.Run(model(), 4, guides=[gk.Intersection(1)], cond=2, solver=gk.solvers.SDEDPMpp(2))
    with pytest.raises(ValueError, match="follow from the densities"):
        gk.Intersection(1, adaptive=False)


# a weight for each condition -----------------------------------------------------------------------------------------


def test_cfg_takes_a_scale_for_each_condition():
    """Groups equal runs of their own, also where a search asks for some of them; the lengths are checked at once."""
    conds, scales, options = [2, 0, 1], [1.0, 4.0, lambda t: 1 + 2 * t], {"steps": 6, "seed": 3}
    together = gk.sample(model(), 4, cond=conds, guides=[gk.CFG(scales)], **options)
    for group, (cond, scale) in enumerate(zip(conds, scales, strict=True)):
        alone = gk.sample(model(), 4, cond=cond, guides=[gk.CFG(scale)], **options).x
        assert torch.allclose(together.x[together.group == group], alone, rtol=1e-9)
    some = gk.CFG(scales).regrouped(model(), [2, 0], 3)
    assert some == gk.CFG([scales[2], 1.0]) and hash(some)
    found = gk.search.random(model(), 2, lambda x: x[:, 0], rounds=1, candidates=2, cond=conds, guides=[gk.CFG(scales)])
    assert found.x.isfinite().all()
    with pytest.raises(ValueError, match="2 scales for 3 conditions"):
        gk.Run(model(), 2, cond=conds, guides=[gk.CFG([2.0, 3.0])])
    assert gk.sample(model(), 2, steps=4, cond=conds[:2], guides=[gk.CFG([1.0, 1])]).cost.network_rows == 2 * 2 * 4
