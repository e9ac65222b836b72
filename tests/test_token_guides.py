"""Temperature, nucleus and typical set of tokens: the law of one token, and what is refused."""

import pytest
import torch

import guidekit as gk

P = torch.tensor([0.1, 0.4, 0.15, 0.35], dtype=torch.float64)
ONE = gk.analytic.TokenTable(P.log())


def frequencies(*guides: gk.Guide, n: int = 20_000) -> torch.Tensor:
    x = gk.sample(ONE, n, steps=1, guides=guides, seed=4).x
    return x[:, 0].bincount(minlength=4).double() / n


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_token_has_its_probability_to_the_power_of_one_over_the_temperature(scale: float):
    law = P ** (1 / scale) / (P ** (1 / scale)).sum()
    chi = (20_000 * (frequencies(gk.Temperature(scale)) - law).square() / law).sum()
    assert chi < 21  # 3 degrees of freedom: once in 10^4


def test_temperature_follows_all_tilts_and_may_be_a_proposal():
    both = gk.sample(ONE, 4000, steps=3, guides=[gk.Temperature(0.5, steer=True)])
    found = torch.zeros(4, dtype=torch.float64).index_add_(0, both.x[:, 0], both.weights)
    assert (found - P).abs().max() < 0.04  # the target itself; .57 of the proposals are token 1


@pytest.mark.parametrize(
    ("p", "kept"), [(0.39, [1]), (0.41, [1, 3]), (0.74, [1, 3]), (0.8, [1, 2, 3]), (0.95, [0, 1, 2, 3])]
)
def test_the_nucleus_is_the_smallest_set_with_this_share(p: float, kept: list[int]):
    law = torch.zeros(4, dtype=torch.float64)
    law[kept] = P[kept] / P[kept].sum()
    found = frequencies(gk.TopP(p))
    assert not found[law == 0].any()
    assert (found - law).abs().max() < 0.016  # 4.5 standard errors


@pytest.mark.parametrize("p", [0.1, 0.3, 0.45, 0.7, 0.95])
def test_the_typical_set_is_nearest_to_the_entropy_and_the_smallest_with_this_share(p: float):
    entropy = -(P * P.log()).sum()
    order = sorted(range(4), key=lambda v: abs(float(-P[v].log() - entropy)))
    kept = next(order[:k] for k in range(1, 5) if P[order[:k]].sum() >= p)
    assert order == [3, 1, 2, 0]  # the most probable token is not the most typical one
    law = torch.zeros(4, dtype=torch.float64)
    law[kept] = P[kept] / P[kept].sum()
    found = frequencies(gk.Typical(p))
    assert not found[law == 0].any()
    assert (found - law).abs().max() < 0.016  # 4.5 standard errors


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (gk.Temperature(0.0), r"scale=0\.0.*above 0"),
        (gk.TopP(0.0), r"p=0\.0.*\(0, 1\]"),
        (gk.TopP(1.1), r"p=1\.1.*\(0, 1\]"),
        (gk.Typical(0.0), r"p=0\.0.*\(0, 1\]"),
        (gk.Typical(0.5, steer=True), r"steer=True.*leaves out tokens.*Temperature"),
        (gk.TopP(0.5, steer=True), r"steer=True.*leaves out tokens.*Temperature"),
    ],
)
def test_settings_that_mean_nothing_are_errors(guide: gk.Guide, message: str):
    with pytest.raises(ValueError, match=message):
        gk.Run(ONE, 4, guides=[guide])
