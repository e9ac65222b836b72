"""Classifier-free guidance: the formula in every coordinate, its ends, its interval and its rescaling."""

from __future__ import annotations

import pytest
import torch

import guidekit as gk

from .problems import PROBLEMS


def guided(problem, guides, index: int = 2, n: int = 5):
    """A population after `index` moves with the plain chain, looked at with the guides; and the two evaluations."""
    plain = gk.Run(problem.model, n, steps=6, cond=problem.cond)
    run = gk.Run(problem.model, n, steps=6, cond=problem.cond, guides=guides)
    with torch.no_grad():
        pop = plain.start()
        for i in range(index):
            pop = plain.advance(pop, i)
        t = plain.step(index).t
        own = problem.model.encode(problem.cond).expand(n)
        cond, null = problem.model(pop.x, t, own), problem.model(pop.x, t, problem.model.null.expand(n))
        start = run.start()
        looked = run.look(
            gk.Population(**{**vars(pop), "memos": start.memos, "predictions": (), "proposals": ()}), index
        )
    return looked, cond, null


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_the_prediction_is_null_plus_scale_times_the_difference(problem, scale):
    looked, cond, null = guided(problem, [gk.CFG(scale)])
    assert torch.allclose(looked.predictions[0], null + scale * (cond - null), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(cond, null)


@pytest.mark.parametrize("predicts", ["noise", "velocity", "score", "flow", "clean"])
def test_it_is_the_usual_rule_in_whatever_the_network_predicts(predicts: str):
    """Guiding the clean mean and guiding the output give the same sample."""
    schedule = gk.schedules.Flow() if predicts == "flow" else gk.schedules.Cosine()
    directions = torch.tensor([[0.3, -0.7], [0.9, 0.2]], dtype=torch.float64)

    def net(x, t, cond):
        return (x * 0.8 - directions[cond]).tanh() * (0.4 + t[:, None])

    def usual(x, t, cond):
        c, u = net(x, t, torch.ones(len(x), dtype=torch.long)), net(x, t, torch.zeros(len(x), dtype=torch.long))
        return u + 3.0 * (c - u)

    common = {"shape": (2,), "schedule": schedule, "predicts": predicts, "dtype": torch.float64}
    ours = gk.sample(gk.GaussianModel(net, null=0, **common), 8, steps=9, cond=1, guides=[gk.CFG(3.0)])
    theirs = gk.sample(gk.GaussianModel(usual, **common), 8, steps=9)
    assert torch.allclose(ours.x, theirs.x, rtol=1e-9)


def test_tokens_follow_the_normalised_product_of_powers():
    problem = PROBLEMS["masked"]
    looked, cond, null = guided(problem, [gk.CFG(2.5)])
    move = gk.Run(problem.model, 5, steps=6).moves[2]
    kernel = problem.model.process.kernel(looked.x, looked.predictions, move)
    p = cond.exp() ** 2.5 * null.exp() ** -1.5
    p = p / p.sum(-1, keepdim=True)
    masked = looked.x == problem.model.vocab_size
    assert masked.any()
    leave = 1 - move.s / move.t
    assert torch.allclose(kernel.log_probs.exp()[..., :-1][masked], (leave * p)[masked], atol=1e-12)


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_scale_zero_gives_the_unconditional_tokens(name: str):
    problem = PROBLEMS[name]
    guided = gk.sample(problem.model, 200, steps=6, cond=problem.cond, guides=[gk.CFG(0.0)])
    free = gk.sample(problem.model, 200, steps=6)
    assert torch.equal(guided.x, free.x)


def test_two_guides_add_and_share_their_evaluations():
    problem = PROBLEMS["vp-1d"]
    twice, cond, null = guided(problem, [gk.CFG(2.0), gk.CFG(1.5)])
    assert torch.allclose(twice.predictions[0], cond + 1.5 * (cond - null), rtol=1e-12)
    result = gk.sample(problem.model, 4, steps=6, cond=1, guides=[gk.CFG(2.0), gk.CFG(1.5)])
    assert result.cost.network_rows == 2 * 4 * 6


def test_weight_one_is_the_plain_run_of_a_real_network_bit_for_bit_and_costs_nothing():
    model = gk.zoo.load("fashion")
    plain, idle = (gk.sample(model, 3, steps=3, cond="bag", guides=guides) for guides in ([], [gk.CFG(1.0)]))
    assert torch.equal(plain.x, idle.x)
    assert plain.cost.network_rows == idle.cost.network_rows


def test_the_interval_and_the_schedule_decide_step_by_step():
    """8 steps, fractions k/8: an interval [.25, .5) acts at the predictions of steps 2 and 3 and costs nothing else."""
    problem = PROBLEMS["vp-1d"]
    rows: list[int] = []
    model = gk.analytic.GaussianMixture(
        problem.model.weights, problem.model.means, problem.model.stds, labels=problem.model.labels
    )
    responsibilities = model.responsibilities
    model.responsibilities = lambda x, *rest: rows.append(len(x)) or responsibilities(x, *rest)
    gk.sample(model, 3, steps=8, cond=1, guides=[gk.CFG(4.0, start=0.25, stop=0.5)])
    assert rows == [3, 3, 6, 6, 3, 3, 3, 3]

    seen: list[float] = []
    gk.sample(model, 3, steps=4, cond=1, guides=[gk.CFG(lambda t: seen.append(t) or 1.0)])
    assert seen == [1.0, 0.75, 0.5, 0.25]


def test_rescale_brings_back_the_standard_deviation_of_the_conditional_prediction():
    weight = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def net(x, t, cond):
        out = torch.nn.functional.conv2d(x, weight, padding=1)
        return out * (1 + cond.view(-1, 1, 1, 1)) + cond.view(-1, 1, 1, 1)

    model = gk.GaussianModel(net, (2, 6, 6), predicts="clean", null=0, dtype=torch.float64)

    def look(rescale: float):
        run = gk.Run(model, 3, steps=5, cond=1, guides=[gk.CFG(4.0, rescale=rescale)])
        with torch.no_grad():
            pop = run.start()
            cond = model(pop.x, run.moves[0].t, torch.ones(3, dtype=torch.long))
        return pop.predictions[0].flatten(1).std(1), cond.flatten(1).std(1)

    free, cond = look(0.0)
    full, _ = look(1.0)
    part, _ = look(0.7)
    assert (free / cond > 1.5).all()
    assert torch.allclose(full, cond, rtol=1e-12)
    assert torch.allclose(part, 0.7 * cond + 0.3 * free, rtol=1e-12)


def test_rescale_is_refused_for_tokens():
    with pytest.raises(ValueError, match="Gaussian"):
        gk.sample(PROBLEMS["masked"].model, 2, steps=3, cond=0, guides=[gk.CFG(2.0, rescale=0.5)])
