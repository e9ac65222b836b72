"""Look-aheads by a flow map, and by the prediction of the parent."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.jobs.names import make_guide
from rewards import as_reward

from .problems import PROBLEMS, deviations, estimates, populations

first = lambda x: x[:, 0]  # noqa: E731


class Asked(gk.FKSteering):
    """Keeps what it was shown at the third step, and what its value says of it."""

    def log_weight(self, view: Any, memo: Any) -> Any:
        if view.step.index == 3:
            seen.append((view, self.value(view)))  # type: ignore[misc]
        return super().log_weight(view, memo)


seen: list[tuple[Any, Tensor]] = []


def asked(model: gk.Model, value: Any, **options: Any) -> tuple[Any, Tensor, gk.Result]:
    seen.clear()
    result = gk.sample(model, 60, guides=[Asked(value.reward, 1.0, value=value, ess=0.0)], steps=5, **options)
    return *seen[0], result


def flow(model: gk.Model, x: Tensor, t: float, steps: int) -> Tensor:
    """x_s = alpha_s d + sigma_s/sigma_t (x_t - alpha_t d), evenly spaced to 0."""
    times = np.linspace(t, 0, steps + 1)
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = model.process.scales(float(t)), model.process.scales(float(s))
        d = model(x, float(t), None)
        x = a_s * d + s_s / s_t * (x - a_t * d)
    return x


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("who", ["own", "student", "function"])
def test_a_flow_map_is_the_reward_at_the_end_of_the_flow(who: str, steps: int):
    base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 1.0], [0.5, 0.9])
    other = gk.analytic.GaussianMixture([0.3, 0.7], [-1.0, 2.0], [0.4, 0.8])
    who_flows = base if who == "own" else other
    student: Any = {"own": None, "student": other, "function": lambda x, t: flow(other, x, t, steps)}[who]
    view, found, result = asked(base, gk.values.FlowMap(first, student, 1 if who == "function" else steps))
    assert torch.allclose(found, flow(who_flows, view.x, view.t, steps)[:, 0].double(), atol=1e-5)
    looks = 5 + 1  # its value is asked at four inner steps, and once more by the test
    calls = {"own": steps - 1, "student": steps, "function": 1}[who]
    assert result.cost.network_rows == 60 * (5 + (looks - 1) * calls)


def test_the_first_step_of_the_models_own_flow_takes_the_guided_prediction():
    base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 1.0], [0.5, 0.9], labels=[0, 1])
    view, found, _ = asked(base, gk.values.FlowMap(first), cond=1)
    assert torch.equal(found, view.prediction[:, 0].double())


@pytest.mark.parametrize("steps", [1, 3])
def test_steering_by_a_flow_map_is_exact(steps: int):
    p = PROBLEMS["vp-1d"]
    student = gk.analytic.GaussianMixture([0.6, 0.4], [-1.0, 2.0], [0.8, 0.6], p.model.process.schedule)  # type: ignore
    value = gk.values.FlowMap(p.reward, student, steps)
    result = populations(p, 500, 4, [gk.FKSteering(p.reward, p.alpha, ess=0.8, value=value)])
    assert np.abs(deviations(estimates(p, result), *p.tilted())).max() < 4.5


def test_a_child_is_scored_with_what_was_said_of_its_parent():
    """Masked positions are filled by the mode of the parent's prediction; those drawn since keep their token."""
    p = PROBLEMS["masked"]
    value = gk.values.Resubstitution(p.reward)
    view, found, _ = asked(p.model, value, cond=0)
    filled = torch.where(view.x == 3, view.before.argmax(-1), view.x)
    assert torch.equal(found, p.reward(filled).double())
    assert (view.x == 3).any() and not torch.equal(filled, torch.where(view.x == 3, view.clean, view.x))


class Children(gk.SVDD):
    """Keeps the children that it was shown at the third step, and what its value says of them."""

    def log_weight(self, view: Any, memo: Any) -> Any:
        if view.step.index == 3:
            seen.append((view, self.value(view)))  # type: ignore[misc]
        return super().log_weight(view, memo)


def test_each_child_is_completed_by_its_own_parent():
    """The network asked again about the survivors of the step before says what the children were scored with."""
    p, before = PROBLEMS["masked"], {}
    seen.clear()
    guide = Children(p.reward, 0.0, 3, value=gk.values.Resubstitution(p.reward))
    keep = lambda population, step: before.setdefault(step.index, (population.x, step.t))  # noqa: E731
    gk.sample(p.model, 50, steps=5, cond=0, guides=[guide], callbacks=[keep], batch_size=20)
    views, values = zip(*seen, strict=True)
    x, found = torch.cat([v.x for v in views]), torch.cat(values)
    parents, t = before[2]
    said = p.model(parents, t, p.model.encode_all([0] * 50)).argmax(-1).repeat_interleave(3, 0)
    filled = torch.where(x == 3, said, x)
    assert torch.equal(found, p.reward(filled).double())
    assert not torch.equal(found, p.reward(torch.where(x == 3, said.roll(3, 0), x)).double())


@pytest.mark.parametrize("solver", [None, gk.solvers.FirstHitting()])
@pytest.mark.parametrize("alpha", [0.7, 0.0])
@pytest.mark.usefixtures("every_row")
def test_children_cost_no_evaluation_and_the_law_is_exact(alpha: float, solver: Any):
    p = PROBLEMS["masked"]
    guide = gk.SVDD(p.reward, alpha, 3, value=gk.values.Resubstitution(p.reward))
    result = populations(p, 1500, 2, [guide], solver=solver)
    assert result.cost.network_rows == 3000 * (6 if solver is None else 3)
    plain = populations(p, 1500, 2, [], solver=solver)
    if alpha:
        assert np.abs(deviations(estimates(p, result), *p.tilted())).max() < 4.5
    else:
        assert p.reward(result.x).double().mean() > p.reward(plain.x).double().mean() + 0.05


def test_guides_and_the_command_line_take_look_aheads_by_name():
    p = PROBLEMS["masked"]
    own = gk.values.Resubstitution(p.reward)
    assert gk.SVDD(p.reward, 0.7, 3, value="parent") == gk.SVDD(p.reward, 0.7, 3, value=own)
    reward = as_reward(p.reward)
    guide = make_guide("svdd:candidates=3,value=parent", reward)
    assert guide == gk.SVDD(reward, candidates=3, value=gk.values.Resubstitution(reward))
    with pytest.raises(ValueError, match=r"SVDD.*'best'.*'parent'"):
        gk.SVDD(p.reward, value="best")


def test_bad_look_aheads_say_what_to_do():
    masked, mixture = PROBLEMS["masked"], PROBLEMS["vp-1d"]
    with pytest.raises(ValueError, match="at least 1"):
        gk.values.FlowMap(first, steps=0)
    with pytest.raises(ValueError, match="one step"):
        gk.values.FlowMap(first, lambda x, t: x, 2)
    with pytest.raises(ValueError, match="Rollout"):
        gk.values.FlowMap(first, masked.model)
    for p, value, match in (
        (masked, gk.values.FlowMap(first), "has no flow"),
        (mixture, gk.values.Resubstitution(first), "has none"),
        (mixture, gk.values.FlowMap(first, PROBLEMS["flow-2d"].model), "two models"),
    ):
        with pytest.raises(ValueError, match=match):
            gk.sample(p.model, 2, steps=3, cond=p.cond, guides=[gk.FKSteering(first, 1.0, value=value)])
