"""What models, guides and results say of themselves when they are printed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import guidekit as gk
from guidekit.engine.brief import brief
from rewards.molecules import QED, SA


def score(x):
    return x[:, 0]


def model(**options) -> gk.GaussianModel:
    return gk.GaussianModel(lambda x, t, cond: x, (2,), **options)


# guides ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guide", "text"),
    [
        (gk.CFG(3.0), "CFG(scale=3.0)"),
        (gk.CFG(3, rescale=0.0, start=0.0, stop=0.8), "CFG(scale=3, stop=0.8)"),
        (gk.SVDD(QED(), candidates=4), "SVDD(reward=QED, candidates=4)"),
        (gk.SVDD(QED() - 0.05 * SA(), 0.1), "SVDD(reward='QED - (0.05 * SA)', alpha=0.1)"),
        (gk.FKSteering(score, 1.0, every=[3, 5]), "FKSteering(reward=score, alpha=1.0, every=[3, 5])"),
        (gk.CFG(lambda t: t, steer=True), "CFG(scale=<lambda>, steer=True)"),
        (gk.StartFrom(torch.zeros(64, 3)), "StartFrom(x=<tensor of shape (64, 3)>)"),
        (gk.StartFrom(torch.zeros(2)), "StartFrom(x=tensor([0.0, 0.0]))"),
        (gk.AutoGuidance(model(), 2.0), "AutoGuidance(weak=GaussianModel(...), scale=2.0)"),
        (gk.Resample(), "Resample()"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_guide_names_what_differs_from_its_defaults(guide, text):
    assert repr(guide) == str(guide) == text


def test_a_guide_of_ones_own_has_the_same_kind_of_repr_or_its_own():
    @dataclass(frozen=True)
    class Mine(gk.Guide):
        weights: torch.Tensor
        by: float = 1.0

    @dataclass(frozen=True)
    class Named(Mine):
        def __repr__(self):
            return "mine"

    assert repr(Mine(torch.ones(9, 9))) == "Mine(weights=<tensor of shape (9, 9)>)"
    assert repr(Named(torch.ones(9))) == "mine"


def test_every_guide_of_the_package_has_it():
    kinds = [v for v in vars(gk.guides).values() if isinstance(v, type)]
    guides = [kind for kind in kinds if issubclass(kind, gk.Guide)]
    assert len(guides) > 30
    assert all(kind.__repr__ is gk.Guide.__repr__ for kind in guides)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((3, 3)), "<array of shape (3, 3)>"),
        (list(range(100)), "[0, 1, 2, 3, ... 100 in all]"),
        ({"a": torch.zeros(9)}, "{'a': <tensor of shape (9,)>}"),
        ((1,), "(1,)"),
        (nn.Linear(2, 2), "Linear(...)"),
        (partial(score, 1), "partial of score"),
        (object(), "object(...)"),
        (gk.Cond(), "Cond()"),
        ("x" * 100, f"'{'x' * 56}..."),
    ],
    ids=lambda v: "",
)
def test_values_are_told_in_a_few_words(value, text):
    assert brief(value) == text


# models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: model(), "GaussianModel(shape=(2,), predicts='noise', schedule=Cosine(), no condition declared)"),
        (lambda: model(encode_cond=int), "GaussianModel(shape=(2,), predicts='noise', schedule=Cosine(), conditional)"),
        (
            lambda: gk.MaskedModel(nn.Linear(10, 100), 4, 6, null=3, ordered=True),
            "MaskedModel(vocab_size=4, length=6, ordered=True, conditional, with a null condition, 1.1k parameters)",
        ),
        (lambda: gk.UniformModel(score, 4, 6), "UniformModel(vocab_size=4, length=6, no condition declared)"),
    ],
    ids=["gaussian", "encoding", "masked", "uniform"],
)
def test_a_model_says_what_it_makes_and_how_large_it_is(made, text):
    assert repr(made()) == text


def test_every_kind_of_model_can_be_printed():
    kinds = [gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), gk.analytic.TokenTable(torch.zeros(2, 2))]
    net = gk.GaussianModel(nn.Sequential(nn.Linear(2, 2)), (2,))
    kinds += [gk.Stitched(kinds[0], kinds[0], 0.5), gk.weakened(net, drop=["0"])]
    assert [repr(v).split("(")[0] for v in kinds] == ["GaussianMixture", "TokenTable", "Stitched", "Weakened"]
    assert all(len(repr(v)) < 150 for v in kinds)


@pytest.mark.parametrize("name", ["noise", "velocity", "clean", "flow"])
def test_predictions_have_the_names_of_diffusers_too(name):
    other = {"noise": "epsilon", "velocity": "v_prediction", "clean": "sample", "flow": "flow_prediction"}[name]
    assert model(predicts=other).predicts == name
    x = torch.tensor([[1.0, 2.0]])
    assert torch.equal(model(predicts=other)(x, 0.5, None), model(predicts=name)(x, 0.5, None))


# results -----------------------------------------------------------------------------------------------------------


def result(n: int = 8, **options) -> gk.Result:
    base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5], labels=[0, 1])
    found = gk.sample(base, n, steps=4, **options)
    return replace(found, cost=replace(found.cost, seconds=1.5))


def test_a_result_says_how_many_samples_what_they_are_worth_and_what_they_cost():
    assert repr(result()) == "Result(8 samples, ESS 8 of 8, 32 network rows, 1.5 s)"
    assert repr(result(1)) == "Result(1 sample, ESS 1 of 1, 4 network rows, 1.5 s)"


def test_rewards_are_told_under_the_weights():
    found = result(200, guides=[gk.FKSteering(score, 1.0, ess=0.0)], holdout=lambda x: -x[:, 0], cond=[0, None])
    mean = float((found.weights * found.rewards).sum() / 2)
    best = float(found.rewards.max())
    low, high = (f"{v:.3g}" for v in sorted(found.ess.tolist()))
    assert repr(found) == (
        f"Result(400 samples in 2 groups, mean reward {mean:.4g} under the weights (best {best:.4g}), "
        f"mean held-out reward {-mean:.4g} under the weights, ESS {low} to {high} of 200, "
        "1,600 network rows, 1,600 reward calls, 1.5 s)"
    )


@pytest.mark.filterwarnings("ignore:.*could not be scored")
def test_unknown_rewards_are_left_out():
    found = result(reward=lambda x: torch.where(x[:, 0] < 0, torch.nan, 1.0))
    assert "mean reward 1 (best 1)" in repr(found)
    assert "reward" not in repr(replace(found, rewards=found.rewards * torch.nan)).replace("reward calls", "")


def test_a_result_without_samples_and_one_of_a_search_can_be_printed():
    empty = replace(result(), x=torch.zeros(0, 1))
    assert repr(empty) == "Result(no samples)"
    base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    found = gk.search.random(base, 4, score, rounds=2, steps=4)
    assert repr(found).startswith("Found(4 samples, mean reward ")
    assert len(repr(found)) < 200


# names of elsewhere ------------------------------------------------------------------------------------------------

CALLED = {
    "num_inference_steps": "steps=50",
    "guidance_scale": r"guides=\[gk\.CFG\(scale\)\]",
    "prompt": r"cond=\.\.\.",
    "negative_prompt": r"from_diffusers\(pipe, negative_prompt",
    "generator": "seed=0",
    "num_images_per_prompt": "n, the number of samples for each condition",
    "callback_on_step_end": r"callbacks=\[f\]",
    "latents": r"noise=\.\.\.",
    "scheduler": r"solver=\.\.\.",
    "strength": r"StartFrom\(x, level=strength\)",
    "batchsize": "did you mean 'batch_size'",
    "callbaks": "did you mean 'callbacks'",
    "xyz": "it has model, n, steps",
}


@pytest.mark.parametrize("name", CALLED)
def test_an_option_of_another_sampler_is_an_error_that_says_what_it_is_here(name):
    with pytest.raises(TypeError, match=rf"gk\.sample has no option '{name}'.*{CALLED[name]}"):
        gk.sample(model(), 4, **{name: 1})


def test_all_unknown_options_are_told_at_once_and_before_what_is_missing():
    with pytest.raises(TypeError, match=r"'prompt': use cond=\.\.\.; no option 'num_images_per_prompt': use n"):
        gk.sample(model(), prompt="a cat", num_images_per_prompt=4)  # type: ignore[call-arg]


def test_what_is_to_be_used_instead_is_there():
    import inspect

    from guidekit.engine.elsewhere import NAMES

    known = inspect.signature(gk.sample).parameters
    told = [name for names in NAMES.values() for name in names]
    assert len(told) == len(set(told))
    assert not set(told) & set(known)
    assert {here.split("=")[0].split(",")[0] for here in NAMES} & set(known) == {
        "steps", "n", "guides", "cond", "seed", "noise", "callbacks", "solver", "reward", "progress",
    }  # fmt: skip
