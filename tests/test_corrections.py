"""Corrections of the prediction and starts that skip steps: thresholds, calibrated scores, the flow of a Gaussian."""

from __future__ import annotations

import pytest
import torch

import guidekit as gk
from guidekit.guides.dynamic_thresholding import quantile
from guidekit.solvers import DDIM, DDPM, DPMpp, UniPC
from guidekit.solvers.schedules import EDM, Cosine, Flow

ASYMMETRIC = ([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])


def mixture(schedule=None, **more):
    return gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ASYMMETRIC), schedule, **more)


# thresholds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.0, 0.3, 0.995, 1.0])
def test_quantiles_of_rows_are_those_of_torch(q):
    values = torch.rand(4, 37, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(quantile(values, q), values.quantile(q, 1))


def look(guide, clean):
    """What a guide makes of these clean estimates."""
    model = gk.GaussianModel(lambda x, t, cond: clean, clean.shape[1:], predicts="clean")
    return gk.Run(model, len(clean), steps=2, guides=[guide]).start().predictions[0]


def test_estimates_are_clipped_at_the_quantile_and_scaled_to_the_range():
    clean = torch.tensor([[-3.0, 0.5, 1.0, 2.0, -0.1], [0.2, -0.4, 0.9, 0.1, 0.0]])
    found = look(gk.DynamicThresholding(0.75), clean)  # the second largest of five is 2
    torch.testing.assert_close(found[0], torch.tensor([-1.0, 0.25, 0.5, 1.0, -0.05]))
    assert torch.equal(found[1], clean[1])  # within the range already
    torch.testing.assert_close(look(gk.DynamicThresholding(0.0), clean)[0], clean[0].clamp(-1, 1))
    torch.testing.assert_close(look(gk.DynamicThresholding(1.0, 1.5), clean)[0], clean[0] / 2)


def test_samples_under_strong_guidance_stay_in_the_range_and_others_do_not():
    model = mixture(labels=[1, 0, 1])
    run = {"steps": 12, "cond": 1, "solver": DDIM()}
    assert gk.sample(model, 200, guides=[gk.CFG(6.0)], **run).x.abs().max() > 1.5
    kept = gk.sample(model, 200, guides=[gk.DynamicThresholding(), gk.CFG(6.0)], **run).x
    assert kept.abs().max() <= 1 + 1e-9


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (gk.DynamicThresholding(1.5), r"quantile=1.5\): a share of the numbers"),
        (gk.DynamicThresholding(0.9, 0.0), r"bound=0.0\): data lie in"),
        (gk.ScoreCalibration((0.5, 0.2), torch.zeros(2, 1)), r"rising times"),
        (gk.ScoreCalibration((0.2, 0.5), torch.zeros(2, 3)), r"a finite shift of shape \(1,\) for each"),
        (gk.GaussianStart(torch.zeros(1, 1)), "at least 2 samples"),
        (gk.GaussianStart(torch.randn(9, 1), 0.0), r"level=0.0\): a time in \(0, 1\]"),
        (gk.GaussianStart(torch.randn(9, 1), 0.1), "no step that begins at or below the level"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_the_first_call(guide, message):
    with pytest.raises(ValueError, match=message):
        gk.Run(mixture(), 4, steps=4, guides=[guide])


# calibration ---------------------------------------------------------------------------------------------------------


def biased(schedule):
    """The exact network of a mixture, with a bias of its noise that changes with t."""
    base = mixture(schedule)

    def net(x, t, cond):
        alpha, sigma = base.process.scales(float(t[0]))
        return (x - alpha * base(x, float(t[0]), None)) / sigma + 0.3 * (1 - float(t[0]))

    return base, gk.GaussianModel(net, (1,), schedule, predicts="noise", dtype=torch.float64)


@pytest.mark.parametrize("schedule", [Flow(), EDM()], ids=["flow", "edm"])
def test_a_bias_of_the_score_is_taken_away(schedule):
    base, wrong = biased(schedule)
    own = gk.ScoreCalibration.measured(wrong, base.exact_sample(20_000), count=60, batch_size=20_000)
    run = {"steps": 15, "solver": DDPM(), "seed": 2}
    right, found = gk.sample(base, 400, **run).x, gk.sample(wrong, 400, guides=[own], **run).x
    before = (gk.sample(wrong, 400, **run).x - right).abs().mean()
    assert before > 0.15 and (found - right).abs().mean() < before / 8


def test_the_shift_is_what_lowers_the_loss_the_most_and_a_line_between_times():
    base, wrong = biased(Flow())
    x, t = base.exact_sample(5000), 0.5
    own = gk.ScoreCalibration.measured(wrong, x, count=2, batch_size=700)
    assert own.times == pytest.approx((wrong.process.t_max / 2, wrong.process.t_max))
    t = own.times[0]
    alpha, sigma = wrong.process.scales(t)
    assert float(own.shifts[0]) == pytest.approx(sigma / alpha * 0.3 * (1 - t), abs=0.03)
    for time, share in ((0.1, 0.0), (t + 0.25 * t, 0.25), (own.times[1], 1.0)):
        run = gk.Run(wrong, 3, steps=[time, 0.0], guides=[own])
        shift = run.start().predictions[0] - gk.Run(wrong, 3, steps=[time, 0.0]).start().predictions[0]
        expected = own.shifts[0] + share * (own.shifts[1] - own.shifts[0])
        torch.testing.assert_close(shift, expected.expand(3, 1), rtol=0, atol=1e-6)


# the flow of a Gaussian ----------------------------------------------------------------------------------------------


def gaussian(schedule):
    """Gaussian data in three dimensions, of which one is thin, with the exact network."""
    factor = torch.tensor([[1.5, 0.0, 0.0], [0.8, 0.4, 0.0], [-0.3, 0.2, 0.05]], dtype=torch.float64)
    mean, cov = torch.tensor([0.7, -1.0, 0.4], dtype=torch.float64), factor @ factor.T

    def net(x, t, cond):
        a, s = (float(v) for v in schedule(t[0]))
        gain = a * cov @ torch.linalg.inv(a**2 * cov + s**2 * torch.eye(3, dtype=torch.float64))
        return mean + (x - a * mean) @ gain.T

    model = gk.GaussianModel(net, (3,), schedule, "clean", dtype=torch.float64)
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T.cov())).T  # of mean 0 and covariance 1
    return model, mean + z @ factor.T


@pytest.mark.parametrize("schedule", [Cosine(), Flow(), EDM()], ids=["cosine", "flow", "edm"])
def test_for_gaussian_data_the_start_is_where_the_flow_would_be(schedule):
    model, data = gaussian(schedule)
    run = {"solver": UniPC(3), "seed": 4}
    fine = gk.sample(model, 6, steps=400, **run)
    for level in (0.75, 0.3):
        short = gk.sample(model, 6, steps=400, guides=[gk.GaussianStart(data, level)], **run)
        torch.testing.assert_close(short.x, fine.x, rtol=0, atol=2e-3)
        assert short.cost.network_rows == pytest.approx(6 * 400 * level, abs=6)


def test_fewer_samples_than_numbers_leave_noise_in_the_other_directions():
    model = gk.GaussianModel(lambda x, t, cond: 0 * x, (5,), Flow(), "clean", dtype=torch.float64)
    data = torch.zeros(2, 5, dtype=torch.float64)
    data[0, 0], data[1, 0] = 3.0, 1.0  # the mean is 2 and the variance 2, along the first axis
    run = gk.Run(model, 4, steps=[1.0, 0.4, 0.0], guides=[gk.GaussianStart(data, 0.4)])
    noise = run.start_noise(torch.arange(4))
    expected = 0.4 * noise
    expected[:, 0] = 0.6 * 2 + ((0.6**2 * 2 + 0.4**2) ** 0.5) * noise[:, 0]
    torch.testing.assert_close(run.start().x, expected)


def test_it_stands_alone_at_the_start_and_before_guides_that_repeat_steps():
    start = gk.GaussianStart(torch.randn(9, 1, dtype=torch.float64), 0.6)
    with pytest.raises(ValueError, match="one would overwrite the other"):
        gk.Run(mixture(), 4, steps=8, guides=[start, gk.BoostAndSkip(2.0)])
    short = gk.Run(mixture(), 4, steps=8, guides=[start], solver=DPMpp(2)).moves
    assert short[0].t == 0.5 and len(short[0].b) == 1  # a multistep solver begins anew
