"""Inversion: samples come back, and another condition edits them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import guidekit as gk
from guidekit.edits import tokens
from guidekit.edits.walk import Walk
from guidekit.models.analytic import TokenTable
from guidekit.process import Masked

DDIM = gk.solvers.DDIM()
SCHEDULES = {"cosine": gk.schedules.Cosine(), "flow": gk.schedules.Flow(), "edm": gk.schedules.EDM()}


def mixture(schedule: str = "cosine", labels: Any = None) -> Any:
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]], dtype=torch.float64)
    return gk.analytic.GaussianMixture([0.4, 0.3, 0.3], means, [0.5, 0.4, 0.6], SCHEDULES[schedule], labels)


def error(model: Any, x: Tensor, method: str, steps: int, **options: Any) -> float:
    noise = gk.invert(model, x, method=method, steps=steps, **options)
    return float((gk.sample(model, len(x), noise=noise, steps=steps, solver=DDIM).x - x).square().mean().sqrt())


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_noise_of_one_normal_distribution_is_the_one_of_its_flow(name: str):
    """Of N(m, s^2), DDIM's map is linear: x_0 = m + k z. Solved exactly by fixed points, at any number of steps."""
    model = gk.analytic.GaussianMixture(*(torch.tensor(v).double() for v in ([1.0], [1.5], [0.7])), SCHEDULES[name])
    x = model.exact_sample(20)
    for steps in (6, 20):
        noise = gk.invert(model, x, method="fixed_point", steps=steps, iterations=80)
        basis = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        at = gk.sample(model, 2, noise=basis, steps=steps, solver=DDIM).x[:, 0]
        assert torch.allclose(noise[:, 0], (x[:, 0] - at[0]) / (at[1] - at[0]), atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_fixed_points_come_closer_than_ddim_inversion_and_ddim_gets_better_with_steps(name: str):
    model = mixture(name)
    x = model.exact_sample(100)
    plain = [error(model, x, "ddim", steps) for steps in (8, 24, 72)]
    assert plain[2] < 0.6 * plain[1] and plain[1] < 0.6 * plain[0]
    solved = error(model, x, "fixed_point", 8)
    assert solved < 0.5 * plain[0] and error(model, x, "fixed_point", 24) < 0.3 * plain[1]
    factor = 1.0 if name == "edm" else 0.5  # in so few steps some states of EDM cannot be reached
    assert error(model, x, "fixed_point", 8, iterations=30) < factor * solved
    assert error(model, x, "renoise", 8) < plain[0]


def test_half_of_the_noise_says_where_a_run_may_begin():
    """Times that begin at .6: the state there, and not only noise."""
    model, times = mixture(), [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    x = model.exact_sample(20)
    noise = gk.invert(model, x, method="fixed_point", steps=times, iterations=60)
    again = gk.sample(model, 20, noise=noise, steps=times, solver=DDIM)
    assert torch.allclose(again.x, x, atol=1e-5)


def test_guides_and_groups_take_part():
    model = mixture(labels=[0, 1, 0])
    x, guides = model.exact_sample(12), [gk.CFG(2.0)]
    options = {"cond": [0, 1], "steps": 8, "guides": guides}
    noise = gk.invert(model, x, method="fixed_point", iterations=30, **options)
    again = gk.sample(model, 6, noise=noise, solver=DDIM, **options).x
    assert float((again - x).abs().median()) < 1e-3
    parts = gk.invert(model, x, method="fixed_point", iterations=30, batch_size=5, **options)
    assert torch.allclose(parts, noise, atol=1e-9)


# reversible ----------------------------------------------------------------------------------------------------------


def network(dtype: torch.dtype, predicts: str = "flow", width: int = 6) -> gk.GaussianModel:
    """A network that nobody has trained, with a condition."""
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(width + 2, 64), torch.nn.SiLU(), torch.nn.Linear(64, width)).to(dtype)

    def call(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return net(torch.cat([x, t.to(x).view(-1, 1), torch.as_tensor(cond).to(x).view(-1, 1)], 1))

    return gk.GaussianModel(call, (width,), gk.schedules.Flow(), predicts=predicts, null=0)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("steps", [2, 3, 20])
def test_a_reversible_sampler_brings_any_sample_back_with_any_network_and_any_number_of_steps(dtype, most, steps):
    model, guides = network(dtype), [gk.CFG(3.0)]
    x = 2 * torch.randn(10, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
    options: Any = {"cond": [1, 2], "steps": steps, "guides": guides}
    noise = gk.invert(model, x, method="reversible", **options)
    assert noise.shape == (2, 10, 6) and noise.dtype == dtype
    again = gk.sample(model, 5, noise=noise, solver=gk.solvers.BELM(), **options).x
    assert (again - x).abs().max() < most * x.abs().max()
    parts = gk.invert(model, x, method="reversible", batch_size=6, **options)
    assert torch.allclose(parts, noise, rtol=100 * most, atol=100 * most)
    split = gk.sample(model, 5, noise=noise, solver=gk.solvers.BELM(), batch_size=6, **options).x
    assert (split - x).abs().max() < 2 * most * x.abs().max()
    plain = gk.sample(model, 5, noise=noise[0], solver=gk.solvers.BELM(), **options).x
    assert (plain - x).abs().max() > 10 * (again - x).abs().max()  # the second part of the noise is needed


def test_bdia_brings_any_sample_back_and_amplifies_rounding_as_its_gamma_says():
    """Up, a difference of states is divided by gamma at every step: 0.8^-19 is 70."""
    model, solver = network(torch.float64), gk.solvers.BDIA(0.8)
    x = 2 * torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options: Any = {"cond": [1, 2], "steps": 20, "guides": [gk.CFG(3.0)], "solver": solver}
    noise = gk.invert(model, x, method="reversible", **options)
    assert (gk.sample(model, 5, noise=noise, **options).x - x).abs().max() < 1e-10 * x.abs().max()
    other = gk.sample(model, 5, noise=noise, **options | {"solver": gk.solvers.BELM()}).x
    assert (other - x).abs().max() > 0.01


def test_of_its_own_samples_a_reversible_sampler_finds_their_noise():
    """The second part vanishes as steps grow, for it is what x_T and the state after it lack to a step of DDIM."""
    model = mixture()
    z = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    x = gk.sample(model, 40, noise=z, steps=400, solver=gk.solvers.BELM()).x
    found = [gk.invert(model, x, method="reversible", steps=steps, iterations=30) for steps in (20, 80)]
    off, second = ([float(v.abs().median()) for v in w] for w in zip(*[(f[0] - z, f[1]) for f in found], strict=True))
    assert off[1] < 0.3 * off[0] < 0.1 and second[1] < 0.5 * second[0] < 0.2


def test_a_run_from_both_parts_of_the_noise_survives_an_interruption_bit_for_bit(tmp_path):
    model = network(torch.float32)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    options: Any = {"steps": 8, "cond": 1, "solver": gk.solvers.BELM()}
    options["noise"] = gk.invert(model, x, cond=1, method="reversible", steps=8)
    whole = gk.sample(model, 4, **options).x

    def stop(pop: Any, step: Any) -> None:
        if step.index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gk.sample(model, 4, callbacks=[stop], checkpoint=tmp_path / "run", **options)
    assert torch.equal(gk.sample(model, 4, checkpoint=tmp_path / "run", **options).x, whole)
    other = options | {"noise": options["noise"].flip(1)}
    with pytest.raises(gk.CheckpointError, match="noise"):
        gk.sample(model, 4, checkpoint=tmp_path / "run", **other)


def test_only_a_run_that_recalls_states_from_its_start_takes_two_parts_of_noise():
    model, noise = mixture(), torch.zeros(2, 4, 2, dtype=torch.float64)
    gk.sample(model, 4, steps=5, noise=noise, solver=gk.solvers.BELM())
    later = {"guides": [gk.StartFrom(torch.zeros(2), 0.5)], "solver": gk.solvers.BELM()}
    for options in ({"solver": DDIM}, {"solver": gk.solvers.DPMpp()}, later):
        with pytest.raises(ValueError, match=r"noise is \(2, 4, 2\)"):
            gk.sample(model, 4, steps=5, noise=noise, **options)


# chains --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["chain", "edit_friendly"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_noise_of_a_chain_replays_the_sample(name: str, method: str):
    model = mixture(name)
    x = model.exact_sample(60)
    noise = gk.invert(model, x, method=method, steps=30, iterations=60)
    assert noise.shape == (31, 60, 2)
    again = gk.sample(model, 60, steps=30, noise=noise)
    assert float((again.x - x).abs().max()) < 1e-6
    twice = gk.sample(model, 60, steps=30, noise=noise, seed=5)
    assert torch.equal(twice.x, again.x)  # nothing else is drawn
    assert torch.equal(noise, gk.invert(model, x, method=method, steps=30, iterations=60))
    assert not torch.equal(noise, gk.invert(model, x, method=method, steps=30, iterations=60, seed=1))


def test_states_of_a_replay_are_those_of_the_inversion_bit_for_bit(monkeypatch):
    """Noise is found for the states as the sampler computes them, so rounding does not add up."""
    model, met, plain = mixture("flow"), {}, Walk.seen

    def seen(walk, pop, x, index):
        met[index] = x.clone()  # the last one of each step: earlier ones are iterates
        return plain(walk, pop, x, index)

    monkeypatch.setattr(Walk, "seen", seen)
    noise = gk.invert(model, model.exact_sample(8).float(), method="chain", steps=12)
    states = {}
    gk.sample(model, 8, steps=12, noise=noise, callbacks=[lambda p, s: states.setdefault(s.index, p.x.clone())])
    assert met.keys() == set(range(12)) and states.keys() == set(range(1, 13))
    assert all(torch.equal(met[index], states[index]) for index in range(1, 12))


def test_the_noise_of_samples_of_the_model_is_normal_for_its_exact_chain():
    """Samples of p, noised by the forward process: the noise of the exact reverse kernel of a normal is N(0, 1)."""
    one = gk.analytic.GaussianMixture(*(torch.tensor(v).double() for v in ([1.0], [0.0], [1.0])))
    x = one.exact_sample(4000)
    noise = gk.invert(one, x, method="chain", steps=200)
    for index in (1, 50, 120):
        assert kstest(noise[index, :, 0].numpy(), "norm").pvalue > 1e-4
    wide = gk.invert(one, x, method="edit_friendly", steps=50)
    assert float(wide[10].std()) > 2  # larger, as the paper says


@pytest.mark.parametrize("method", ["ddim", "fixed_point", "reversible", "chain", "edit_friendly"])
def test_another_condition_edits_the_sample_and_keeps_what_it_can(method: str):
    """Two classes, each of which has the same two rows of means: the class is the column, what is kept is the row."""
    means = torch.tensor([[-3.0, 2.0], [-3.0, -2.0], [3.0, 2.0], [3.0, -2.0]], dtype=torch.float64)
    model = gk.analytic.GaussianMixture([0.25] * 4, means, [0.5] * 4, labels=[0, 0, 1, 1])
    x = torch.cat([model.exact_sample(400)])
    x = x[x[:, 0] < 0][:100]
    solver = {"ddim": DDIM, "fixed_point": DDIM, "reversible": gk.solvers.BELM()}.get(method)
    noise = gk.invert(model, x, cond=0, method=method, steps=50)
    edited = gk.sample(model, len(x), noise=noise, cond=1, steps=50, solver=solver).x
    fresh = gk.sample(model, len(x), cond=1, steps=50, solver=solver).x
    assert (edited[:, 0] > 0).double().mean() > 0.98  # what the condition says
    kept, chance = ((v[:, 1] > 0) == (x[:, 1] > 0) for v in (edited, fresh))
    assert kept.double().mean() > 0.9 > 0.7 > chance.double().mean()
    assert (edited - x)[:, 1].abs().mean() < 0.5 * (fresh - x)[:, 1].abs().mean()


def test_a_shift_gives_the_noise_of_few_steps_the_size_that_the_model_expects():
    """For a standard normal the exact mean and c are known: x_s = alpha' x_0 + sigma' z of the time s - shift."""
    one = gk.analytic.GaussianMixture(*(torch.tensor(v).double() for v in ([1.0], [0.0], [1.0])))
    x = one.exact_sample(4000)
    plain, shifted = (gk.invert(one, x, method="edit_friendly", steps=4, shift=s) for s in (0.0, 0.2))
    move = one.moves(4, gk.solvers.DDPM())[1]
    kept = move.a + move.b[0] * one.process.scales(move.t)[0]  # of x_t, in the mean of x_s
    (a, s), (b, r) = (one.process.scales(t - 0.2) for t in (move.t, move.s))
    variance = ((b - kept * a) ** 2 + r**2 + (kept * s) ** 2) / move.c**2
    assert abs(float(shifted[2].var()) / variance - 1) < 0.1
    assert float(plain[2].std()) > 1.4 > 1.3 > float(shifted[2].std())
    for noise in (plain, shifted):
        again = gk.sample(one, len(x), steps=4, noise=noise)
        assert torch.allclose(again.x, x, atol=1e-5)


def test_pseudo_guidance_moves_an_edit_further_and_leaves_a_replay_alone():
    means = torch.tensor([[-1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    model = gk.analytic.GaussianMixture([0.5, 0.5], means, [0.7, 0.7], labels=[0, 1])
    x = model.exact_sample(200)
    x = x[x[:, 0] < 0][:60]
    noise = gk.invert(model, x, cond=0, method="edit_friendly", steps=4, shift=0.2)

    def at(cond: int, w: float) -> torch.Tensor:
        return gk.sample(model, len(x), cond=cond, steps=4, noise=noise, guides=[gk.Compose(0, 1 - w, own=w)]).x

    assert torch.allclose(at(0, 1.5), x, atol=1e-4)
    plain, strong = at(1, 1.0)[:, 0], at(1, 1.5)[:, 0]
    assert (plain > x[:, 0]).all() and (strong > plain).all()


# tokens --------------------------------------------------------------------------------------------------------------

TABLE = torch.randn((3,) * 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def table(noising: str, classes: Any = None) -> TokenTable:
    return TokenTable(TABLE, noising, classes)


@pytest.mark.parametrize("noising", ["masked", "ordered", "uniform"])
@pytest.mark.parametrize("steps", [3, 12])
def test_tokens_are_replayed_bit_for_bit(noising: str, steps: int):
    model = table(noising)
    x = torch.cat([model.states, model.states])[:300]
    noise = gk.invert(model, x, steps=steps)
    assert noise.shape[:3] == (steps + 1, 300, 5)
    assert torch.equal(gk.sample(model, 300, steps=steps, noise=noise, seed=9).x, x)
    assert torch.equal(noise, gk.invert(model, x, method="chain", steps=steps))


def test_texts_with_an_end_are_replayed_too():
    model = table("ordered")
    model.process = Masked(3, 5, 0)
    noise = gk.invert(model, model.states, steps=7)
    assert torch.equal(gk.sample(model, len(model.states), steps=7, noise=noise).x, model.states)


def test_gumbel_noise_given_its_argmax_has_the_law_of_gumbel_noise():
    """Draw v ~ p, then noise given v: together that is plain Gumbel noise, in every place."""
    n, p = 20_000, torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    keys = gk.random.fold(gk.random.key(4), torch.arange(n))
    v = (p.log() + gk.random.gumbel(gk.random.fold(keys, 0), (3,))).argmax(-1)
    g = tokens.given(p.log().expand(n, 3), v, gk.random.gumbel(gk.random.fold(keys, 1), (3,)))
    assert torch.equal((p.log() + g).argmax(-1), v)
    for place in range(3):
        assert kstest(g[:, place].numpy(), "gumbel_r").pvalue > 1e-4
    assert abs(np.corrcoef(g.numpy().T)[0, 1]) < 4.5 / n**0.5


def test_the_noise_of_the_models_own_samples_gives_the_models_own_edits():
    """Under another condition the edits follow that condition's law, and keep more than fresh samples."""
    classes = torch.stack([TABLE, TABLE + 1.5 * (torch.arange(3).double() == 2)[:, None, None, None, None]])
    model, n = table("masked", classes), 6000
    x = gk.sample(model, n, cond=0, steps=20, seed=1).x
    noise = gk.invert(model, x, cond=0, steps=20, seed=2)
    assert torch.equal(gk.sample(model, n, cond=0, steps=20, noise=noise).x, x)
    edited = gk.sample(model, n, cond=1, steps=20, noise=noise).x
    fresh = gk.sample(model, n, cond=1, steps=20, seed=3).x
    law = [float((v[:, 0] == 2).double().mean()) for v in (edited, fresh, x)]
    assert abs(law[0] - law[1]) < 4.5 * (0.5 / n) ** 0.5 and law[0] > law[2] + 0.1
    kept, chance = (float((v == x)[:, 1:].double().mean()) for v in (edited, fresh))
    assert kept > 0.85 > 0.6 > chance


# what is wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"method": "chain", "shift": 0.2}, "shift=0.2: a difference of times"),
        ({"method": "edit_friendly", "shift": 1.0}, "shift=1.0: a difference of times"),
        ({"method": "magic"}, "method='magic': there is ddim, fixed_point, renoise, reversible, chain, edit_friendly"),
        ({"method": "reversible", "solver": DDIM}, r"method='reversible' needs gk.solvers.BELM\(\)"),
        ({"method": "reversible", "steps": 1}, "needs two steps at least"),
        ({"method": "reversible", "guides": [gk.HiGS()]}, "HiGS may remember earlier predictions"),
        ({"guides": [gk.HiGS()]}, "HiGS may remember earlier predictions"),
        ({"solver": gk.solvers.BELM()}, "For BELM.. there is method='reversible'"),
        ({"solver": gk.solvers.DDPM()}, "inversion by moves needs a deterministic solver"),
        ({"solver": gk.solvers.Heun()}, "down in time, each with one evaluation"),
        ({"solver": gk.solvers.DPMpp()}, "without memory"),
        ({"method": "chain", "solver": DDIM}, "needs a stochastic solver"),
        ({"method": "chain", "steps": 1}, "at least two steps"),
        ({"guides": [gk.FKSteering(lambda x: x[:, 0], 1.0)], "method": "chain"}, "FKSteering weighs, selects"),
        ({"steps": gk.times.restart(8)}, "down in time"),
        ({"iterations": 0}, "iterations=0"),
        ({"cond": [None, None, None]}, "4 samples for 3 conditions"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_said_before_the_first_network_call(options: Any, why: str):
    calls = []

    def net(x, t, cond):
        calls.append(1)
        return x

    model = gk.GaussianModel(net, (2,), predicts="clean")
    with pytest.raises(ValueError, match=why):
        gk.invert(model, torch.zeros(4, 2), **options)
    assert not calls


def test_what_is_wrong_with_tokens():
    model = table("masked")
    with pytest.raises(ValueError, match="tokens have one method, 'chain'"):
        gk.invert(model, model.states, method="renoise")
    with pytest.raises(ValueError, match="times of a chain of tokens begin at 1"):
        gk.invert(model, model.states, steps=[0.5, 0.2, 0.0])
    with pytest.raises(ValueError, match="cannot be read"):
        gk.invert(model, ["abc"])
    with pytest.raises(TypeError, match="a base model is needed"):
        gk.invert(lambda x: x, model.states)  # type: ignore[arg-type]


# new noise in a region ---------------------------------------------------------------------------------------------


def test_a_brush_changes_its_region_from_its_start_on():
    """Coordinates of one normal distribution do not see each other, so what is outside replays as it was."""
    base = gk.analytic.GaussianMixture([1.0], [[0.5, -1.0, 2.0]], [0.7])
    x = base.exact_sample(50)
    where = torch.tensor([False, True, False])
    noise = gk.invert(base, x, method="chain", steps=20)
    far = {}
    for start in (0.0, 0.5, 0.9, 1.0):
        again = gk.sample(base, 50, steps=20, noise=gk.brush(base, noise, where, start, seed=3)).x
        assert torch.allclose(again[:, ~where], x[:, ~where], atol=1e-4)
        far[start] = float((again - x)[:, 1].square().mean())
    assert far[0.0] > far[0.5] > far[0.9] > 1e-4 > far[1.0]
    assert far[0.0] == pytest.approx(2 * 0.49, rel=0.5)  # a new draw, independent of the old one


def test_a_brush_on_tokens_keeps_what_its_region_does_not_decide():
    model = gk.MaskedModel(lambda x, t, cond: torch.arange(4.0).expand(*x.shape, 4), 4, 12)
    x = gk.sample(model, 40, steps=6, seed=1).x
    where = torch.arange(12) < 5
    noise = gk.invert(model, x, steps=6)
    again = gk.sample(model, 40, steps=6, noise=gk.brush(model, noise, where)).x
    assert torch.equal(again[:, ~where], x[:, ~where])
    assert (again != x)[:, where].double().mean() > 0.4


def test_what_a_brush_cannot_use_is_an_error():
    base = gk.analytic.GaussianMixture([1.0], [[0.5, -1.0, 2.0]], [0.7])
    chain = torch.zeros(5, 2, 3)
    with pytest.raises(ValueError, match="whole chain"):
        gk.brush(base, chain[0], torch.ones(3).bool())
    with pytest.raises(ValueError, match="boolean mask of shape"):
        gk.brush(base, chain, torch.ones(2).bool())
    with pytest.raises(ValueError, match="fraction"):
        gk.brush(base, chain, torch.ones(3).bool(), 2.0)
