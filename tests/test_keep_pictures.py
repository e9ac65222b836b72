"""Keep with masks of samples: parts of states are kept in the run, and samples come out with the kept part pasted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import guidekit as gk

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
calls: list[int] = []


def doubling(decode: Any = None) -> gk.GaussianModel:
    """States (1, 4, 4) and samples (1, 8, 8): twice as many cells, and reading takes their means."""

    def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        calls.append(len(x))
        return x - 0.3 * x.mean((1, 2, 3), keepdim=True)

    def up(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2) + 1

    def down(samples: Any) -> Tensor:
        return torch.nn.functional.avg_pool2d(torch.as_tensor(samples) - 1, 2)

    return gk.GaussianModel(net, (1, 4, 4), decode=decode or up, read=down)


def sample(seed: int = 0, rows: int = 1) -> Tensor:
    return torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[:, :5] = True  # two whole columns of cells, and a half of the third
WHOLE = torch.tensor([True, True, False, False]).expand(1, 4, 4)


def test_what_is_kept_of_a_sample_comes_out_bit_for_bit_and_whole_cells_are_kept_in_the_run():
    model, given = doubling(), sample()
    result = gk.sample(model, 8, steps=6, guides=[gk.Keep(given, MASK)])
    assert torch.equal(result.samples[..., MASK], given[..., MASK].expand(8, -1, -1))
    assert torch.equal(result.x[:, WHOLE], model.read(given)[:, WHOLE].expand(8, -1))
    plain = model.decode(result.x)
    assert torch.equal(result.samples[..., ~MASK], plain[..., ~MASK])
    assert not torch.equal(result.samples[..., MASK], plain[..., MASK])  # means of cells say less than their parts
    assert (result.x[:, ~WHOLE] != model.read(given)[:, ~WHOLE]).all()


@pytest.mark.parametrize("batch_size", [None, 3])
def test_the_run_is_that_of_the_known_states_with_their_mask(batch_size: int | None):
    model, given = doubling(), sample()
    options = {"steps": 6, "batch_size": batch_size}
    ours = gk.sample(model, 8, guides=[gk.Keep(given, MASK)], **options)
    theirs = gk.sample(model, 8, guides=[gk.Keep(model.read(given), WHOLE)], **options)
    assert torch.equal(ours.x, theirs.x) and torch.equal(ours.log_weights, theirs.log_weights)
    assert torch.equal(theirs.samples, model.decode(theirs.x))  # a mask of states pastes nothing


def test_pictures_are_masks_where_they_are_white():
    picture = Image.fromarray(MASK.numpy())
    grey = Image.fromarray(MASK.numpy() * np.uint8(200) + np.uint8(20)).convert("RGB")
    model, given = doubling(), sample()
    expected = gk.sample(model, 3, steps=5, guides=[gk.Keep(given, MASK)])
    for mask in (picture, grey, MASK.numpy()):
        assert torch.equal(gk.sample(model, 3, steps=5, guides=[gk.Keep(given, mask)]).samples, expected.samples)
    one = gk.sample(model, 3, steps=5, guides=[gk.Keep(given[0], MASK)])  # a sample alone
    assert torch.equal(one.samples, expected.samples)


@pytest.mark.parametrize("score", ["reward", "guide"])
def test_rewards_score_the_samples_with_what_is_pasted(score: str):
    model, given, seen = doubling(), sample(), []

    def left(samples: Tensor) -> Tensor:
        seen.append(bool((samples[..., MASK] == given[..., MASK]).all()))
        return samples.mean((1, 2, 3))

    guides = [gk.Keep(given, MASK), *([gk.FKSteering(left, alpha=1.0)] if score == "guide" else [])]
    result = gk.sample(model, 6, steps=5, guides=guides, reward=left, batch_size=4)
    assert result.rewards is not None and torch.equal(result.rewards, result.samples.mean((1, 2, 3)).double())
    assert seen and all(seen)


def test_each_condition_keeps_its_own_sample_in_runs_and_searches():
    model, given = doubling(), sample(rows=2)
    guide, options = gk.Keep(given, MASK, method="replace"), {"cond": [torch.zeros(1), torch.ones(1)], "steps": 5}

    def held(result: gk.Result) -> bool:
        return torch.equal(result.samples[..., MASK], given[result.group][..., MASK])

    assert held(gk.sample(model, 3, guides=[guide], **options))
    scored: list[bool] = []

    def bright(samples: Tensor) -> Tensor:
        each = [bool((samples[..., MASK] == one[..., MASK]).flatten(1).all(1).any()) for one in given]
        scored.append(any(each))
        return samples.mean((1, 2, 3))

    for search in (gk.search.random, gk.search.zero_order):
        solver = {"solver": gk.solvers.DDIM()}
        assert held(search(model, 2, bright, guides=[guide], rounds=2, **solver, **options))
    start = model.read(given).repeat_interleave(2, 0)
    assert held(gk.refine(model, start, bright, rounds=2, guides=[guide], **options))
    assert all(scored)


def test_gradients_reach_what_is_free_alone():
    model, given = doubling(), sample()
    guides = [gk.Keep(given, MASK, method="replace"), gk.DPS(lambda s: s[..., :5].sum((1, 2, 3)), 1.0)]
    options = {"steps": 5, "solver": gk.solvers.DDIM()}
    pushed, plain = gk.sample(model, 2, guides=guides, **options), gk.sample(model, 2, guides=guides[:1], **options)
    assert torch.allclose(pushed.samples, plain.samples)  # the reward sees kept pixels alone


@pytest.mark.parametrize(
    ("where", "model", "words"),
    [
        (torch.ones(7, 8).bool(), doubling(), r"where of shape \(7, 8\).*a boolean mask of shape \(1, 4, 4\)"),
        (torch.ones(8, 8), doubling(), "boolean mask"),
        (MASK, doubling(lambda x: ["text"] * len(x)), "decodes to list, into which it cannot be pasted"),
        (torch.arange(64).view(8, 8) % 3 == 0, doubling(), "of no part of a state.* widen the mask"),
    ],
    ids=["size", "numbers", "texts", "scattered"],
)  # fmt: skip
def test_masks_that_fit_nothing_are_errors_before_the_network_is_called(where: Tensor, model: Any, words: str):
    calls.clear()
    with pytest.raises(ValueError, match=words):
        gk.sample(model, 2, guides=[gk.Keep(sample(), where)])
    assert not calls


def test_samples_of_which_states_have_no_known_parts_need_a_mask_of_states():
    model = gk.GaussianModel(
        lambda x, t, cond: x, (3,), decode=lambda x: x.repeat(1, 2)[:, :5], read=lambda s: torch.stack(list(s))[:, :3]
    )
    with pytest.raises(ValueError, match=r"samples have shape \(5,\) and states \(3,\).*give a mask of states"):
        gk.sample(model, 2, guides=[gk.Keep([torch.zeros(5)], torch.ones(5).bool())])
    mask = torch.tensor([True, False, False])
    assert (gk.sample(model, 2, steps=3, guides=[gk.Keep([torch.zeros(5)], mask)]).x[:, 0] == 0).all()
