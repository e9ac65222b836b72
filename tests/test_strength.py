"""The temperature that a budget allows, against closed forms and enumeration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import guidekit as gk
from guidekit.cli.app import app
from rewards import as_reward

BASE = gk.analytic.GaussianMixture([1.0], [0.7], [1.5])
first = lambda x: x[:, 0]  # noqa: E731


def test_of_a_gaussian_and_a_linear_reward_it_is_the_closed_form():
    """KL = (std/alpha)^2/2, ESS/n -> exp(-(std/alpha)^2), E[r] = mean + std^2/alpha. Six runs of 2000 samples; the
    tolerance is 4.5 standard errors of their mean, measured between the runs."""
    for limit, alpha in (({"kl": 0.5}, 1.5), ({"ess": 0.5}, 1.5 / math.log(2) ** 0.5)):
        runs = [gk.search.strength(BASE.exact(), first, n=2000, steps=4, seed=i, **limit) for i in range(6)]
        found = torch.tensor([[s.alpha, s.reward, s.kl, s.ess] for s in runs], dtype=torch.float64)
        error = 4.5 * found.std(0) / 6**0.5
        truth = torch.tensor([alpha, 0.7 + 1.5**2 / alpha, 0.5 * (1.5 / alpha) ** 2, math.exp(-((1.5 / alpha) ** 2))])
        assert ((found.mean(0) - truth).abs() < error + 0.01).all()
        assert float(error[0]) < 0.12 * alpha
        assert runs[0].before == pytest.approx(float(runs[0].pilot.rewards.mean()))  # type: ignore[union-attr]


def test_samples_steered_at_this_temperature_are_as_far_from_the_model_as_allowed():
    """By enumeration of a table, whose tilted law has a KL that can be summed."""
    table = gk.analytic.TokenTable(
        torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    reward = lambda x: 0.7 * x[:, 0].double() - 0.4 * (x[:, 1] == 2)  # noqa: E731
    found = gk.search.strength(table, reward, kl=0.25, n=4000, steps=9)
    p, r = table.log_probs(table.states), reward(table.states)
    q = (p + r / found.alpha).log_softmax(0)
    assert float((q.exp() * (q - p)).sum()) == pytest.approx(0.25, abs=0.04)  # 4,000 samples: about 0.01
    assert found.kl == pytest.approx(0.25, abs=1e-6)
    assert found.reward == pytest.approx(float(q.exp() @ r), abs=0.05)
    steered = gk.sample(table, 2000, steps=9, guides=[gk.FKSteering(reward, found.alpha)])
    assert float(steered.weights @ steered.rewards) == pytest.approx(found.reward, abs=0.08)  # type: ignore[operator]


def test_a_pilot_run_resumes_and_its_cost_is_counted(tmp_path: Path):
    options = {"kl": 0.3, "n": 200, "steps": 5, "checkpoint": tmp_path / "pilot.safetensors"}
    one, two = (gk.search.strength(BASE, first, **options) for _ in range(2))
    assert one.alpha == two.alpha and one.pilot.cost.network_rows == 1000 and one.pilot.cost.reward_calls == 200


def test_what_cannot_be_told_is_an_error_before_the_run():
    calls = []
    model = gk.GaussianModel(lambda x, t, cond: calls.append(1) or x, (1,), predicts="clean")
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("either kl=", {}),
        ("either kl=", {"kl": 1.0, "ess": 0.5}),
        ("kl=-1", {"kl": -1}),
        ("ess=1.5", {"ess": 1.5}),
        ("at least 549 are needed", {"kl": 4.005}),
        ("at least 1000 are needed", {"ess": 0.01}),
    )
    for message, options in wrong:
        with pytest.raises(ValueError, match=message):
            gk.search.strength(model, first, **options)
    assert not calls
    with pytest.raises(gk.RewardError, match="the same for all 256"):
        gk.search.strength(BASE, lambda x: x[:, 0] * 0, kl=1.0, steps=2)
    with pytest.raises(ValueError, match="no temperature reaches this limit"):
        gk.search.strength(BASE, lambda x: (x[:, 0] > 0).double(), kl=2.0, steps=2)
    with pytest.raises(ValueError, match="the pilot run has weights"):
        gk.search.strength(BASE, first, kl=1.0, steps=4, guides=[gk.FKSteering(first, 1.0, ess=0.0)])


def auto(alpha: Any, runs: int = 8, n: int = 2, guide: Any = gk.FKSteering, **options: Any) -> list[gk.Result]:
    return [gk.sample(BASE.exact(), n, steps=3, seed=i, guides=[guide(first, alpha)], **options) for i in range(runs)]


def found(results: list[gk.Result], name: str) -> torch.Tensor:
    return torch.tensor([r.strength[name] for r in results], dtype=torch.float64)  # type: ignore[index]


def test_a_budget_in_place_of_alpha_is_the_closed_form_also_beyond_what_one_pilot_run_tells(tmp_path: Path):
    """alpha = std/sqrt(2 KL). For 4.5 nats the tilted law lies three standard deviations out, where few unguided
    samples are: a second pilot run, guided at the first one's temperature, is needed. Eight seeds, 4.5 standard
    errors."""
    for kl, stages in ((1.0, 1), (4.5, 2)):
        runs = auto(f"kl={kl}")
        alpha = found(runs, "alpha")
        truth = 1.5 / (2 * kl) ** 0.5
        assert float((alpha.mean() - truth).abs()) < 4.5 * float(alpha.std()) / 8**0.5 + 0.02 * truth
        assert float(alpha.std()) < 0.2 * truth
        assert float(found(runs, "kl").mean()) == pytest.approx(kl, abs=1e-6)
        calls = torch.tensor([r.strength["cost"]["network_calls"] for r in runs])  # type: ignore[index]
        assert float(calls.double().median()) == 3 * stages
        assert all(r.config["guides"][0]["alpha"] == r.strength["alpha"] for r in runs)  # type: ignore[index]
    assert gk.load_result(runs[0].save(tmp_path / "saved")).strength == runs[0].strength


def test_the_cost_of_the_pilot_run_is_in_that_of_the_run_which_is_as_with_the_number():
    run, *_ = auto(gk.Auto(ess=0.3, n=100), runs=1, n=6)
    assert run.strength is not None and run.strength["ess"] == pytest.approx(0.3) and run.strength["n"] == 100
    plain = gk.sample(BASE.exact(), 6, steps=3, guides=[gk.FKSteering(first, run.strength["alpha"])])
    assert torch.equal(run.x, plain.x) and torch.equal(run.log_weights, plain.log_weights)
    assert run.cost.network_rows == plain.cost.network_rows + 300 and f"alpha {run.strength['alpha']:.3g}" in repr(run)


def test_the_pilot_run_has_the_guides_of_the_model_and_other_noise():
    """The base is what the others make of the model: the reward of another weighted guide moves its mean by std^2/2."""
    other = gk.FKSteering(lambda x: x[:, 0] / 2, 1.0)
    run = gk.sample(BASE.exact(), 4, steps=3, guides=[other, gk.FKSteering(first, gk.Auto(kl=0.5, n=2000))])
    assert run.strength is not None
    assert run.strength["before"] == pytest.approx(0.7 + 1.5**2 / 2, abs=0.2)
    seen: list[torch.Tensor] = []
    gk.sample(BASE, 40, steps=2, guides=[gk.FKSteering(lambda x: seen.append(x) or x[:, 0], gk.Auto(n=40), every=2)])
    assert len(seen) == 2 and not torch.isin(seen[0], seen[1]).any()


def test_a_second_reward_stops_it_where_its_mean_turns():
    """-(x - 2)^2 has its largest mean where the tilted mean .7 + 1.5^2/alpha is 2."""
    other = lambda x: -((x[:, 0] - 2.0) ** 2)  # noqa: E731
    runs = auto(gk.Auto(kl=3.0, until=other, n=400), runs=4)
    alpha = found(runs, "alpha")
    assert {r.strength["why"] for r in runs} == {"turn"}  # type: ignore[index]
    assert float((1 / alpha).mean()) == pytest.approx((2 - 0.7) / 1.5**2, abs=4.5 * float((1 / alpha).std()) / 2 + 0.01)
    with pytest.raises(ValueError, match="falls from the first on"):
        auto(gk.Auto(until=lambda x: -x[:, 0]), runs=1)


def test_of_every_weighted_guide():
    table = gk.analytic.TokenTable(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    hot = lambda x: (x.double() if x.dim() == 2 else x @ torch.arange(3.0).to(x)).sum(1)  # noqa: E731
    hot = rewards_of(hot)
    makes = (gk.FKSteering, gk.TDS, gk.DAS, gk.FKC.tilt, lambda r, alpha: gk.SVDD(r, alpha, 2))
    each = [gk.sample(BASE, 8, steps=4, guides=[make(first, "auto")]) for make in makes]
    each.append(gk.sample(table, 8, steps=2, guides=[gk.TaylorSMC(hot, "auto")]))
    alphas = found(each, "alpha")
    assert (alphas[:5] == alphas[0]).all() and bool(alphas[5] > 0)
    both = [gk.SVDD(first, "auto", 2), gk.FKSteering(first, "auto")]
    assert gk.sample(BASE, 8, steps=4, guides=both).strength["alpha"] == float(alphas[0])  # type: ignore[index]


def rewards_of(function: Any) -> Any:
    """A reward that says of itself that it is differentiable."""
    reward = as_reward(function)
    reward.differentiable = True
    return reward


def test_what_is_wrong_with_a_budget_is_said_before_the_first_call():
    calls = []
    model = gk.GaussianModel(lambda x, t, cond: calls.append(1) or x, (1,), predicts="clean")
    for text in ("often", "kl=", "kl=-1", "ess=0.3.2", "at=2"):
        with pytest.raises(ValueError, match='a number, "auto", or a budget'):
            gk.FKSteering(first, text)
    for message, make in (
        ("a pilot run of at least 32", lambda: gk.Auto(n=10)),
        ("a pilot run of at least 100", lambda: gk.Auto(ess=0.1, n=99)),
        ("either kl=", lambda: gk.Auto(1.0, 0.5)),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    guide = gk.FKSteering(first, "auto")
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("cond is a list of 2", {"guides": [guide], "cond": [None, None]}),
        ("Give numbers to all but one", {"guides": [guide, gk.FKSteering(first, "kl=2")]}),
        ("is deterministic", {"guides": [guide], "solver": gk.solvers.DDIM()}),
    )
    for message, options in wrong:
        with pytest.raises(ValueError, match=message):
            gk.sample(model, 4, **options)
    with pytest.raises(ValueError, match=r"which gk\.sample makes"):
        gk.Run(model, 4, guides=[guide]).start()
    assert not calls


def test_a_run_with_a_budget_resumes_to_the_same_bytes(tmp_path: Path):
    one, two = (auto("auto", 1, checkpoint=tmp_path / "run")[0] for _ in range(2))
    assert (
        torch.equal(one.x, two.x)
        and (found([one], "alpha") == found([two], "alpha")).all()
        and (tmp_path / "run.pilot0").exists()
    )


def test_the_command_line_says_which_temperature_it_took(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import guidekit as gk\n\nmodel = gk.analytic.GaussianMixture([1.0], [0.7], [1.5])\n\n\n"
        "def reward(x):\n    return x[:, 0]\n"
    )
    mine, out = f"{tmp_path}/mine.py", tmp_path / "out"
    command = ["sample", f"{mine}:model", "-r", f"{mine}:reward", "-g", "fk_steering:alpha=kl=0.5", "-n", "4"]
    told = CliRunner().invoke(app, [*command, "--steps", "3", "-o", str(out)])
    strength = gk.load_result(out / "result").strength
    assert told.exit_code == 0 and strength is not None and strength["kl"] == pytest.approx(0.5)
    assert f"alpha {strength['alpha']:.4g}, by a pilot run" in told.output
    assert "KL 0.5 from the model" in (out / "report.html").read_text()
