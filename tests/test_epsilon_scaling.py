"""Epsilon scaling: the noise that the prediction implies is divided, and a network that says too much is put right."""

from __future__ import annotations

import pytest
import torch

import guidekit as gk
from guidekit.solvers import DDIM, DDPM
from guidekit.solvers.schedules import EDM, Cosine, Flow

ASYMMETRIC = ([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])


def loud(schedule, factor):
    """The exact network of a mixture, whose predicted noise is multiplied by factor(t)."""
    base = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ASYMMETRIC), schedule=schedule)

    def net(x, t, cond):
        alpha, sigma = base.process.scales(float(t[0]))
        return factor(float(t[0])) * (x - alpha * base(x, float(t[0]), None)) / sigma

    return gk.GaussianModel(net, (1,), schedule, predicts="noise", dtype=torch.float64)


@pytest.mark.parametrize("schedule", [Cosine(), Flow(), EDM()], ids=["cosine", "flow", "edm"])
@pytest.mark.parametrize("solver", [DDIM(), DDPM()], ids=["ddim", "ddpm"])
def test_noise_predicted_too_long_by_a_factor_is_put_right_by_that_factor(schedule, solver):
    for scale in (1.05, lambda t: 1 + 0.1 * t):
        factor = scale if callable(scale) else lambda t: 1.05
        run = {"steps": 12, "solver": solver, "seed": 2}
        right = gk.sample(loud(schedule, lambda t: 1.0), 6, **run).x
        wrong = gk.sample(loud(schedule, factor), 6, **run).x
        found = gk.sample(loud(schedule, factor), 6, guides=[gk.EpsilonScaling(scale)], **run).x
        assert (wrong - right).abs().max() > 0.02
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


def test_it_scales_what_guidance_has_made_and_leaves_pure_noise_alone():
    base = gk.analytic.GaussianMixture(
        *(torch.tensor(v, dtype=torch.float64) for v in ASYMMETRIC), schedule=Flow(), labels=[1, 0, 1]
    )
    guides = [gk.EpsilonScaling(1.1), gk.CFG(2.0)]
    run = gk.Run(base, 5, steps=[1.0, 0.6, 0.0], cond=1, guides=guides, solver=DDIM())
    plain = gk.Run(base, 5, steps=[1.0, 0.6, 0.0], cond=1, guides=guides[1:], solver=DDIM())
    starts = [r.start() for r in (plain, run)]
    assert torch.equal(starts[0].predictions[0], starts[1].predictions[0])
    there = [r.move(pop, 0) for r, pop in zip((plain, run), starts, strict=True)]
    own, scaled = (r.look(pop, 1).predictions[0] for r, pop in zip((plain, run), there, strict=True))
    noise, less = ((there[0].x - 0.4 * d) / 0.6 for d in (own, scaled))
    torch.testing.assert_close(less, noise / 1.1)


@pytest.mark.parametrize("scale", [0, -1.0, float("inf"), float("nan")])
def test_scales_that_are_no_positive_numbers_are_refused(scale):
    base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"EpsilonScaling\(.*a positive number, a little above 1"):
        gk.Run(base, 2, steps=3, guides=[gk.EpsilonScaling(scale)])
