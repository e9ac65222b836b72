"""Relatives of classifier-free guidance: each formula against its own in numpy, and its defining property."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit.guides.apg import APG
from guidekit.guides.cads import CADS
from guidekit.guides.cfg_zero import CFGZero
from guidekit.guides.cfgpp import CFGpp
from guidekit.guides.magnitude_aware import MagnitudeAware
from guidekit.guides.shared.contrast import Contrast
from guidekit.guides.tcfg import TCFG
from guidekit.report.recorder import Recorder

D = 5
ALL = [APG, CFGZero, TCFG, MagnitudeAware, CFGpp]


class Net(torch.nn.Module):
    """A small smooth network with a condition; condition 4 is none."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = torch.nn.Parameter(torch.randn(2 * D, D, generator=generator, dtype=torch.float64) * 0.4)
        self.e = torch.nn.Parameter(torch.randn(5, D, generator=generator, dtype=torch.float64))

    def forward(self, x, t, cond):
        return torch.tanh(torch.cat([x, self.e[cond] * (1 + t[:, None])], 1) @ self.w) + 0.3 * x


def model(schedule=None, null=4) -> gk.GaussianModel:
    return gk.GaussianModel(Net(), (D,), schedule or gk.schedules.Flow(), predicts="clean", null=null)


def state(guides, steps: int, at: int, solver=None, schedule=None, n: int = 6):
    """A run stepped by hand to a look: the run, the population, and what the network says there, as numpy arrays."""
    run = gk.Run(model(schedule), n, steps=steps, guides=guides, cond=2, solver=solver)
    with torch.no_grad():
        pop = run.start()
        for index in range(at):
            pop = run.advance(pop, index)
        t = run.moves[at].t
        cond, null = (run.model(pop.x, t, torch.full((n,), c)).numpy() for c in (2, 4))
    return run, pop, pop.x.numpy(), t, cond, null


def inner(a, b):
    return (a * b).sum(1, keepdims=True)


@pytest.mark.parametrize("schedule", [gk.schedules.Flow(), gk.schedules.Cosine(), gk.schedules.EDM()], ids=str)
def test_apg_by_hand(schedule):
    _, pop, _, _, c, u = state([APG(4.0, eta=0.3, radius=0.7)], 6, 3, schedule=schedule)
    d = c - u
    d = d * np.minimum(1, 0.7 / np.linalg.norm(d, axis=1, keepdims=True))
    parallel = inner(d, c) / inner(c, c) * c
    assert (np.linalg.norm(c - u, axis=1) > 0.7).any()  # the bound is met
    assert np.allclose(pop.predictions[0].numpy(), c + 3.0 * (d - parallel + 0.3 * parallel), rtol=1e-10)


def test_apg_momentum_is_each_particles_own():
    guides = [APG(4.0, eta=1.0, momentum=-0.5), gk.FKSteering(lambda x: x[:, 0], 0.3, ess=1.0)]
    run = gk.Run(model(), 16, steps=6, guides=guides, cond=2)
    resampled = False
    with torch.no_grad():
        pop = run.start()
        kept = None  # of each particle, from the start: the running difference
        for index in range(6):
            t = run.moves[index].t
            c, u = (run.model(pop.x, t, torch.full((16,), k)) for k in (2, 4))
            running = c - u if kept is None else c - u - 0.5 * kept
            assert torch.allclose(pop.predictions[0], c + 3.0 * running, rtol=1e-9)
            pop = run.advance(pop, index)
            resampled |= bool((pop.parent != torch.arange(16)).any())
            kept = running[pop.parent]
    assert resampled


def test_apg_without_its_changes_is_cfg():
    for scale in (3.0, lambda t: 1 + 2 * t):
        one = gk.sample(model(), 8, steps=6, cond=2, guides=[APG(scale, eta=1.0)])
        two = gk.sample(model(), 8, steps=6, cond=2, guides=[gk.CFG(scale)])
        assert torch.allclose(one.x, two.x, rtol=1e-10)


def test_cfg_zero_by_hand():
    for schedule in (gk.schedules.Flow(), gk.schedules.Cosine()):
        run, pop, x, t, c, u = state([CFGZero(4.0)], 6, 3, schedule=schedule)
        alpha, sigma = run.model.process.scales(t)
        vc, vu = (((x - alpha * d) / sigma - d) for d in (c, u))  # noise minus data
        star = inner(vc, vu) / inner(vu, vu)
        v = star * vu + 4.0 * (vc - star * vu)
        z = v + pop.predictions[0].numpy()  # a velocity and a clean mean that belong together make x_t
        assert np.allclose(alpha * pop.predictions[0].numpy() + sigma * z, x, rtol=1e-9)


def test_cfg_zero_stands_still_at_first_and_fits_its_scale():
    """The fitted scale makes the difference orthogonal to the unconditional velocity."""
    result, seen = None, []
    solver = gk.solvers.Euler()
    result = gk.sample(
        model(),
        6,
        steps=10,
        cond=2,
        guides=[CFGZero(4.0, zero=0.2)],
        solver=solver,
        callbacks=[lambda p, s: seen.append(p.x)],
    )
    assert torch.allclose(seen[1], result.noise, rtol=1e-10)  # two steps of ten
    assert not torch.allclose(seen[2], result.noise, rtol=1e-2)


def test_tcfg_by_hand_with_numpys_decomposition():
    run, pop, x, t, c, u = state([TCFG(4.0)], 6, 3, schedule=gk.schedules.Cosine())
    alpha, sigma = run.model.process.scales(t)
    ec, eu = ((x - alpha * d) / sigma for d in (c, u))
    wanted = []
    for a, b in zip(ec, eu, strict=True):
        v = np.linalg.svd(np.stack([a, b]), full_matrices=False)[2][0]
        b = (b @ v) * v
        wanted.append(b + 4.0 * (a - b))
    e = (x - alpha * pop.predictions[0].numpy()) / sigma
    assert np.allclose(e, np.array(wanted), rtol=1e-8)


def test_magnitude_aware_by_hand():
    run, pop, x, t, c, u = state([MagnitudeAware(4.0, damping=2.0)], 6, 3)
    alpha, sigma = run.model.process.scales(t)
    vc, vu = (((x - alpha * d) / sigma - d) for d in (c, u))
    r = np.linalg.norm(vc - vu, axis=1, keepdims=True) / np.linalg.norm(vu, axis=1, keepdims=True)
    w = 1 + 3.0 * np.exp(-2.0 * r)
    assert np.ptp(w) > 0.1
    assert np.allclose(pop.predictions[0].numpy(), u + w * (c - u), rtol=1e-10)


@pytest.mark.parametrize("solver", [gk.solvers.DDIM(), gk.solvers.DDIM(eta=0.6), gk.solvers.DDPM()], ids=str)
@pytest.mark.parametrize("schedule", [gk.schedules.Flow(), gk.schedules.Cosine(), gk.schedules.EDM()], ids=str)
def test_cfgpp_by_hand(solver, schedule):
    """The guided clean mean with the unconditional noise, over whole steps."""
    run, pop, x, t, c, u = state([CFGpp(0.6)], 6, 3, solver=solver, schedule=schedule)
    move = run.moves[3]
    (a_t, s_t), (a_s, s_s) = (run.model.process.scales(v) for v in (t, move.s))
    z = run.noise(pop, 4).numpy().copy()
    with torch.no_grad():
        moved = run.move(pop, 3).x.numpy()
    guided, noise = u + 0.6 * (c - u), (x - a_t * u) / s_t
    wanted = a_s * guided + np.sqrt(s_s**2 - move.c**2) * noise + move.c * z
    assert np.allclose(moved, wanted, rtol=1e-9)


def by_hand(lam: float, steps: int, seen: list, noises, schedule) -> np.ndarray:
    """The loop of the paper's Algorithm in numpy, with DDPM's noise; `seen` collects d_g."""
    net, moves = Net(), gk.Run(model(schedule), 1, steps=steps, cond=2).moves
    scales = model(schedule).process.scales
    x = scales(moves[0].t)[1] * noises[0]
    for move, z in zip(moves, noises[1:], strict=True):
        (a_t, s_t), (a_s, s_s) = scales(move.t), scales(move.s)
        t = torch.full((len(x),), move.t, dtype=torch.float64)
        with torch.no_grad():
            c, u = (net(torch.from_numpy(x), t, torch.full((len(x),), k)).numpy() for k in (2, 4))
        guided = u + lam * (c - u)
        std = s_s * np.sqrt(1 - (a_t * s_s / (a_s * s_t)) ** 2)
        seen.append(guided)
        x = a_s * guided + np.sqrt(s_s**2 - std**2) * (x - a_t * u) / s_t + std * z
    return x


@pytest.mark.parametrize("schedule", [gk.schedules.Flow(), gk.schedules.Cosine()], ids=str)
def test_rewards_are_shown_the_guided_mean_of_cfgpp_and_samples_are_those_of_a_loop_by_hand(schedule):
    steps, n, told, seen = 12, 5, [], []

    def reward(x):
        told.append(x.detach().numpy().copy())
        return x[:, 0]

    run = gk.Run(model(schedule), n, steps=steps, cond=2)
    with torch.no_grad():
        noises = run.noise(run.born(), 0), *(run.noise(run.born(), i + 1) for i in range(steps))
    x = by_hand(0.6, steps, seen, [z.numpy() for z in noises], schedule)
    for value in (None, gk.values.Tweedie(reward)):
        told.clear()
        guides = [CFGpp(0.6), gk.FKSteering(reward, 1e9, ess=0.0, value=value)]
        result = gk.sample(model(schedule), n, steps=steps, cond=2, guides=guides)
        assert np.allclose(result.x.numpy(), x, rtol=1e-9)
        assert len(told) == steps and np.allclose(told, [*seen[1:], x], rtol=1e-9)  # it begins after pure noise
        assert np.allclose(gk.sample(model(schedule), n, steps=steps, cond=2, guides=guides[:1]).x, x, rtol=1e-9)


def test_cfgpp_moves_by_the_ordinary_step_bit_for_bit_and_other_guides_are_shown_its_guided_mean():
    @dataclass(frozen=True)
    class Ordinary(Contrast):
        def tilt(self, view):
            c, u, move = view.evals[gk.Cond()], view.evals[gk.Null()], view.step.move
            a_t, a_s = (view.model.process.scales(v)[0] for v in (move.t, move.s))
            return (a_s * (u + self.scale * (c - u)) - move.a * a_t * u) / move.b[0] - c

    @dataclass(frozen=True)
    class Witness(gk.Guide):
        grad = True

        def tilt(self, view):
            shown("tilt", view)
            return torch.full_like(view.x, 0.1)

        def finish(self, view, prediction):
            shown("finish", view)
            return 1.01 * prediction

        def log_weight(self, view, memo):
            if not view.step.last:
                shown("log_weight", view)
            return 0.0, memo

    def shown(hook, view):
        c, u = view.evals[gk.Cond()], view.evals[gk.Null()]
        tilted = u + 0.6 * (c - u) + (0.0 if hook == "tilt" else 0.1)
        wanted = 1.01 * tilted if hook == "log_weight" else tilted
        hooks.add(hook)
        assert torch.allclose(view.clean, wanted, rtol=1e-10) and torch.equal(view.prediction, view.clean)
        assert torch.equal(view.take(torch.tensor([1, 0])).clean, view.clean[[1, 0]])

    hooks: set[str] = set()
    for guides in ([], [gk.APG(1.1, steer=True)]):
        one, two = (
            gk.sample(model(), 6, steps=8, cond=2, guides=[guide(0.6), *guides]).x for guide in (CFGpp, Ordinary)
        )
        assert torch.equal(one, two)
    one = gk.sample(model(), 6, steps=8, cond=2, guides=[CFGpp(0.6), Witness()], batch_size=5).x
    assert hooks == {"tilt", "finish", "log_weight"}
    shown = lambda hook, view: None  # noqa: E731, F811
    assert torch.allclose(one, gk.sample(model(), 6, steps=8, cond=2, guides=[Ordinary(0.6), Witness()]).x, rtol=1e-9)


def test_recorders_and_path_searches_take_the_guided_mean_of_cfgpp_as_the_estimate(tmp_path):
    """What lineage.json shows of a particle is what its reward was told, and so is what a level of paths ranks by."""
    steps, n, seen, told = 12, 5, [], []
    options = {"steps": steps, "cond": 2, "guides": [CFGpp(0.6)]}
    run = gk.Run(model(), n, steps=steps, cond=2)
    with torch.no_grad():
        noises = run.noise(run.born(), 0), *(run.noise(run.born(), i + 1) for i in range(steps))
    by_hand(0.6, steps, seen, [z.numpy() for z in noises], model().process.schedule)

    def reward(x):
        told.append(x.detach().numpy().copy())
        return x[:, 0]

    found = gk.search.paths(model(), n, reward, levels=3, width=1, branch=1, **options)
    assert np.allclose(told, [seen[4], seen[8], found.x], rtol=1e-9)

    recorder = Recorder(model())
    steering = [CFGpp(0.6), gk.FKSteering(reward, 2.0, ess=1.0)]
    result = gk.sample(model(), n, **options | {"guides": steering}, callbacks=[recorder], batch_size=6)
    moments = json.loads(recorder.save(tmp_path, result).read_text(encoding="utf-8"))["nodes"]
    nodes = [node for moment in moments for node in moment]
    shown = [float(node["text"].split(",")[0].replace("\N{MINUS SIGN}", "-")) for node in nodes]
    assert len(moments) == steps
    assert np.allclose(shown, [node["reward"] for node in nodes], rtol=0.005)  # three digits


def test_an_estimate_apart_follows_its_particle_and_ends_with_the_window():
    run, rows = gk.Run(model(), 4, steps=8, cond=2, guides=[CFGpp(0.6, stop=0.5)]), torch.tensor([2, 0])
    with torch.no_grad():
        pop = run.start()
        for index in range(8):
            if 0 < index < 4:  # before any move the two are the same
                assert torch.equal(pop.take(rows).seen, pop.seen[rows])
                assert not torch.allclose(pop.seen, pop.predictions[0])
            if index >= 4:
                assert pop.shown == () and pop.seen is pop.predictions[0]
            moved = run.move(run.branch(pop, index), index)
            assert moved.shown == ()
            pop = run.select(run.look(moved, index + 1), index + 1)


def test_cfgpp_shows_rewards_estimates_that_are_within_the_data():
    """Clean means of a mixture lie between its components, and so do their interpolations."""
    base, told = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.3, 0.3], labels=[0, 1]), []
    guides = [CFGpp(0.6), gk.FKSteering(lambda x: told.append(x) or x[:, 0], 5.0)]
    gk.sample(base, 200, steps=50, cond=1, guides=guides, solver=gk.solvers.DDPM())
    assert len(told) == 50 and all((x.abs() < 3.5).all() for x in told)


def test_cfgpp_at_zero_is_the_unconditional_model_and_refuses_two_step_solvers():
    null = gk.sample(model(), 8, steps=6, cond=None)
    assert torch.allclose(gk.sample(model(), 8, steps=6, cond=2, guides=[CFGpp(0.0)]).x, null.x, rtol=1e-9)
    with pytest.raises(ValueError, match="solvers of one step"):
        gk.sample(model(), 8, steps=6, cond=2, guides=[CFGpp(0.5)], solver=gk.solvers.DPMpp(order=2))


@pytest.mark.parametrize("guide", [APG, CFGZero, TCFG, MagnitudeAware])
def test_scale_one_is_the_conditional_model_bit_for_bit_and_rows_are_independent(guide):
    plain = gk.sample(model(), 8, steps=6, cond=2)
    assert torch.equal(gk.sample(model(), 8, steps=6, cond=2, guides=[guide(1.0)]).x, plain.x)
    guided = gk.sample(model(), 8, steps=6, cond=2, guides=[guide(3.0)])
    assert guided.cost.network_rows == 2 * plain.cost.network_rows
    assert guided.cost.network_calls == plain.cost.network_calls
    assert (guided.x - plain.x).abs().max() > 1e-3
    parts = gk.sample(model(), 8, steps=6, cond=2, guides=[guide(3.0)], batch_size=4)
    assert torch.allclose(guided.x, parts.x, rtol=1e-10)


@pytest.mark.parametrize("guide", ALL)
def test_they_refuse_tokens_and_models_without_a_null_condition(guide):
    with pytest.raises(ValueError, match="use CFG"):
        gk.Run(gk.analytic.TokenTable(torch.zeros(2, 2), classes=torch.zeros(1, 2, 2)), 4, guides=[guide(2.0)])
    with pytest.raises(ValueError, match="null condition"):
        gk.Run(model(null=None), 4, guides=[guide(2.0)], cond=2)


# CADS ----------------------------------------------------------------------------------------------------------------


def embedded(seen: list) -> gk.GaussianModel:
    def net(x, t, cond):
        seen.append((float(t[0]), {k: v.clone() for k, v in cond.items()}))
        return torch.tanh(x + cond["y"][:, :D])

    codes = torch.randn(3, 40, generator=torch.Generator().manual_seed(1)) * 2 + 1

    def encode(c):
        return {"y": codes[c], "mask": torch.ones(40, dtype=torch.long)}

    null = {"y": torch.zeros(40), "mask": torch.zeros(40, dtype=torch.long)}
    return gk.GaussianModel(net, (D,), gk.schedules.Flow(), predicts="clean", encode_cond=encode, null=null)


def test_cads_noises_the_condition_by_its_schedule_and_keeps_its_moments():
    seen: list = []
    base = embedded(seen)
    y = base.encode(1)["y"]
    gk.sample(base, 4000, steps=10, cond=1, guides=[CADS(0.4, 0.8, noise_scale=0.5, mix=0.0), gk.CFG(2.0)])
    for t, cond in seen:
        own, null = cond["y"].split(4000)
        assert (null == 0).all() and (cond["mask"][:4000] == 1).all()
        g = min(max((0.8 - t) / 0.4, 0), 1)
        # means of 4,000 draws, 40 entries: 5 standard errors
        assert (own.mean(0) - g**0.5 * y).abs().max() <= 5 * 0.5 * (1 - g) ** 0.5 / 4000**0.5 + 1e-5
        assert abs(float((own - g**0.5 * y).std()) - 0.5 * (1 - g) ** 0.5) < 0.01
    assert [t for t, c in seen if torch.equal(c["y"][:4000], y.expand(4000, -1))] == [
        t for t, _ in seen if t <= 0.4 + 1e-6
    ]
    seen.clear()
    gk.sample(base, 500, steps=10, cond=1, guides=[CADS(0.4, 0.8, noise_scale=0.5)])
    for t, cond in seen:
        assert torch.allclose(cond["y"].mean(1), y.mean().expand(500), atol=1e-4)
        assert torch.allclose(cond["y"].std(1), y.std().expand(500), rtol=1e-4)
        assert t <= 0.4 + 1e-6 or not torch.allclose(cond["y"], y.expand(500, -1))


def test_cads_makes_samples_more_diverse_and_rows_stay_independent():
    plain = gk.sample(embedded([]), 300, steps=10, cond=1)
    noised = gk.sample(embedded([]), 300, steps=10, cond=1, guides=[CADS(0.05, 1.0, noise_scale=2.0, mix=0.0)])
    assert noised.x.var(0).sum() > 1.2 * plain.x.var(0).sum()
    parts = gk.sample(
        embedded([]), 300, steps=10, cond=1, guides=[CADS(0.05, 1.0, noise_scale=2.0, mix=0.0)], batch_size=7
    )
    assert torch.allclose(noised.x, parts.x, atol=1e-6)
    idle = gk.sample(embedded([]), 300, steps=10, cond=1, guides=[CADS(0.5, 1.0, stop=0.0)])
    assert torch.equal(idle.x, plain.x)


def test_cads_says_what_it_needs():
    with pytest.raises(ValueError, match="conditions of real numbers"):
        gk.sample(model(), 4, steps=3, cond=2, guides=[CADS()])
    for bad in ({"low": 0.9, "high": 0.6}, {"mix": 2.0}, {"noise_scale": -1.0}):
        with pytest.raises(ValueError, match="low < high"):
            gk.Run(embedded([]), 4, cond=1, guides=[CADS(**bad)])


@pytest.mark.parametrize("solver", [gk.solvers.DDPM(), gk.solvers.DDIM(), gk.solvers.DDIM(0.5)], ids=repr)
def test_cfgpp_takes_times_that_go_up_again(solver):
    """A move up is the forward process, which no guidance changes."""
    base = gk.analytic.GaussianMixture([0.5, 0.5], [-1.0, 2.0], [0.5, 0.4], labels=[0, 1])
    times = [1.0, 0.8, 0.6, 0.4, 0.7, 0.5, 0.3, 0.1, 0.0]
    result = gk.sample(base, 400, steps=times, cond=1, solver=solver, guides=[gk.CFGpp(0.6)])
    assert result.cost.network_calls == 8
    assert float(result.x.mean()) > 1.5  # the condition's mode, which the times up do not lose


def test_cfgpp_refuses_solvers_with_a_memory_before_the_network_is_called():
    base = gk.analytic.GaussianMixture([0.5, 0.5], [-1.0, 2.0], [0.5, 0.4], labels=[0, 1])
    with pytest.raises(ValueError, match="solvers of one step"):
        gk.Run(base, 4, steps=8, cond=1, solver=gk.solvers.SDEDPMpp(2), guides=[gk.CFGpp(0.6)])
