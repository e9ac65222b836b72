"""CoDe, Funnel and EntropicAnnealing: what each does besides the common laws of tests/conformance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import guidekit as gk
from guidekit.engine.resampling import resample

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
TABLE = gk.analytic.TokenTable(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
BASE = gk.analytic.GaussianMixture([0.4, 0.6], [-1.0, 1.5], [0.5, 0.8])
reward = lambda x: x[:, 0].double() - 0.6 * (x[:, -1].double() - 1) ** 2  # noqa: E731


def test_blocks_of_one_step_are_svdd_and_one_block_is_best_of_n():
    svdd = gk.sample(BASE, 9, steps=5, guides=[gk.SVDD(reward, 0.0, 3)], seed=2)
    code = gk.sample(BASE, 9, steps=5, guides=[gk.CoDe(reward, 0.0, 3, block=1)], seed=2)
    assert torch.equal(svdd.x, code.x) and torch.equal(svdd.log_weights, code.log_weights)
    n = 1500
    drawn = gk.sample(TABLE, n, steps=2, guides=[gk.CoDe(reward, 0.0, 3, block=9)])
    p = gk.sample(TABLE, 3 * n, steps=2, seed=1)
    states = TABLE.states
    share = torch.stack([(p.x == s).all(1).double().mean() for s in states])
    r = reward(states)
    below, at = ((share * (r < v)).sum() for v in r), (((share * (r == v)).sum()) for v in r)
    best = torch.stack([(b + a) ** 3 - b**3 for b, a in zip(below, at, strict=True)])
    best = best * share / torch.stack([share[r == v].sum() for v in r])  # of equal rewards one is as good as another
    found = torch.stack([(drawn.x == s).all(1).double().mean() for s in states])
    assert best.sum() == pytest.approx(1) and float((best - share).abs().max()) > 0.1
    assert ((found - best).abs() < 4.5 * (best * (1 - best) * 2 / n).sqrt() + 1e-9).all()


def test_the_children_of_a_block_live_and_are_scored_at_its_end_alone():
    sizes, seen = [], []
    code = gk.CoDe(lambda x: seen.append(len(x)) or x[:, 0], 0.5, 4, block=3)
    result = gk.sample(BASE, 5, steps=8, guides=[code], callbacks=[lambda pop, step: sizes.append(len(pop))])
    assert sizes == [20, 20, 5, 20, 20, 5, 20, 5]  # moves 0 to 2, 3 to 5, and 6 and 7
    assert seen == [20, 20, 20] and result.cost.network_rows == 5 + 20 * 7
    assert len(result) == 5 and len(result.x.unique()) == 5


def test_what_a_block_cannot_hold_is_said_before_the_first_call():
    wrong = (
        ("block=0", lambda: [gk.CoDe(reward, block=0)]),
        ("takes no start or stop", lambda: [gk.CoDe(reward, start=0.2)]),
        ("mix the children", lambda: [gk.CoDe(reward, 0.5, 2), gk.Resample()]),
        ("numbers that fall", lambda: [gk.Funnel((1, 2))]),
        ("there is linear", lambda: [gk.Funnel(schedule="cubic")]),
        ("how many particles live", lambda: [gk.Funnel(), gk.BestOfN(reward, 2)]),
    )
    for message, make in wrong:
        with pytest.raises(ValueError, match=message):
            gk.sample(BASE, 4, steps=4, guides=make())


def test_a_funnel_narrows_and_stays_unbiased_at_few_particles():
    """Z of 400 runs of two samples, of three times as many particles at first; E[exp(r/alpha)] by enumeration."""
    guides = [gk.FKSteering(reward, 0.7), gk.Funnel((3, 1))]
    sizes: list[int] = []
    G = 400
    result = gk.sample(
        TABLE, 2, steps=4, guides=guides, cond=[None] * G, seed=list(range(G)),
        callbacks=[lambda pop, step: sizes.append(len(pop) // G)],
    )  # fmt: skip
    assert sizes == [round(2 * (3 - 2 * i / 4)) for i in (1, 2, 3)] + [2]
    plain = gk.sample(TABLE, 20000, steps=4, seed=5)
    truth = (reward(plain.x) / 0.7).exp()
    z = result.log_z.exp()
    error = float((z.var() / G + truth.var() / 20000).sqrt())
    assert abs(float(z.mean() - truth.mean())) < 4.5 * error < 0.3 * float(truth.mean())


def test_annealed_masses_are_flat_early_and_the_weights_keep_what_they_lack():
    """Systematic resampling of weights 8 : 1 : 1 : ... by the square roots of them, since 1/b = (1 - f) N/ESS = 2."""
    run = gk.Run(BASE, 8, steps=4, guides=[gk.EntropicAnnealing(ess=0.9)])
    pop = run.start()
    log_w = torch.tensor([8.0, 1, 1, 1, 1, 1, 1, 1], dtype=torch.float64).log()
    ess = 15**2 / 71
    pop = replace(pop, log_w=log_w)
    step = run.step(1).own("EntropicAnnealing.0", 0)
    b = ess / (8 * (1 - step.fraction))
    m = log_w.exp() ** b / (log_w.exp() ** b).sum()
    left = run.guides[0].select(pop, step)
    copies = torch.bincount((left.parent), minlength=8).double()
    assert ((copies == (8 * m).floor()) | (copies == (8 * m).ceil())).all() and copies[0] < 8 * 8 / 15 - 1
    assert torch.allclose(left.log_w.exp(), (log_w.exp() / (8 * m))[left.parent])
    plain = resample(pop, step, 0.9, "systematic")
    assert len(plain.parent.unique()) < len(left.parent.unique())
    end = run.guides[0].select(pop, run.step(4).own("EntropicAnnealing.0", 0))
    assert torch.allclose(end.log_w.exp(), torch.full((8,), 15 / 8, dtype=torch.float64))


def test_annealed_resampling_keeps_the_tilted_law_and_z():
    guides = [gk.FKSteering(reward, 0.8, ess=0.0), gk.EntropicAnnealing(ess=1.0, resampler="multinomial")]
    G = 400
    result = gk.sample(TABLE, 4, steps=4, guides=guides, cond=[None] * G, seed=list(range(G)))
    plain = gk.sample(TABLE, 20000, steps=4, seed=5)
    w = (reward(plain.x) / 0.8).exp()
    z = result.log_z.exp()
    f = (result.log_weights.exp() * (result.x[:, 0] == 2)).view(G, -1).mean(1)
    for found, truth in ((z, w), (f, w * (plain.x[:, 0] == 2))):
        error = float((found.var() / G + truth.var() / 20000).sqrt())
        assert abs(float(found.mean() - truth.mean())) < 4.5 * error < 0.4 * float(truth.mean())
