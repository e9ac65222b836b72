"""Masked models whose lengths are drawn first: laws by enumeration, with guides, kept parts and starts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.process import Lengths
from guidekit.solvers import Move

V, L, END = 3, 3, 0  # two letters and the end
P = (0.2, 0.5, 0.3)
G = torch.Generator().manual_seed(3)
TABLES = [torch.randn(2**n, generator=G, dtype=torch.float64).mul(1.3).softmax(0) for n in range(1, L + 1)]
ALPHA = 0.6


def texts(n: int) -> Tensor:
    return torch.tensor(list(product((1, 2), repeat=n)))


def predicted(x: Tensor, n: int) -> Tensor:
    """Exact logits of texts of n letters, of states (rows, n); and something for the end, which is left out."""
    fits = ((x[:, None] == texts(n)) | (x == V)[:, None]).all(-1) * TABLES[n - 1]
    hot = torch.nn.functional.one_hot(texts(n), V).double()
    p = torch.einsum("rs,snv->rnv", fits / fits.sum(1, keepdim=True), hot)
    p[..., END] = 0.4
    return p.clamp(min=1e-300).log()


def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """Whole rows, whose length the ends show."""
    out = torch.full((*x.shape, V), 0.0, dtype=torch.float64)
    for n in range(1, L + 1):
        row = ((x != END).sum(1) == n).nonzero()[:, 0]
        out[row, :n] = predicted(x[row, :n], n)
    return out


def short(x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """Rows without ends."""
    return predicted(x, x.shape[1])


def model(cut: bool = False) -> gk.MaskedModel:
    return gk.MaskedModel(short if cut else net, V, L, end=END, lengths=P, cut=cut, dtype=torch.float64)


def law() -> dict[tuple[int, ...], float]:
    """p(l) p(x | l) of every sample."""
    rows = [
        (P[n - 1] * p, x)
        for n in range(1, L + 1)
        for p, x in zip(TABLES[n - 1].tolist(), texts(n).tolist(), strict=True)
    ]
    return {(*x, *[END] * (L - len(x))): p for p, x in rows}


STATES = torch.tensor(list(law()))


def reward(x: Tensor) -> Tensor:
    return (x != END).sum(1).double() - 0.8 * (x[:, 0] == 2) + 0.5 * (x == 1).sum(1)


def found(result: gk.Result) -> np.ndarray:
    """The weighted law of a result, in the order of STATES."""
    w = result.log_weights.softmax(0)
    same = (result.x[:, None] == STATES).all(-1)
    assert bool(same.any(1).all())  # no sample has an end within, or a letter behind it
    return (same * w[:, None]).sum(0).numpy()


def target(f: Callable[[Tensor], Tensor]) -> tuple[np.ndarray, float]:
    """The law times f, normalised, and log Z."""
    w = torch.tensor(list(law().values()), dtype=torch.float64) * f(STATES)
    return (w / w.sum()).numpy(), float(w.sum().log())


def distance(p: np.ndarray, q: np.ndarray) -> float:
    return 0.5 * float(np.abs(p - q).sum())


@pytest.mark.parametrize("cut", [False, True])
def test_samples_have_the_law_of_lengths_and_of_texts_given_them(cut: bool):
    n = 20_000
    x = gk.sample(model(cut), n, steps=L, solver=gk.solvers.FirstHitting(), seed=1)
    exact = target(lambda x: torch.ones(len(x)))[0]
    chi = n * ((found(x) - exact) ** 2 / exact).sum()
    assert chi < 34.5  # 13 degrees of freedom: P = 1e-3


def test_guides_steer_the_length_and_log_z_is_the_mean_over_all_lengths():
    exact, log_z = target(lambda x: (reward(x) / ALPHA).exp())
    guides = [gk.FKSteering(reward, ALPHA)]
    result = gk.sample(model(), 20_000, steps=L, solver=gk.solvers.FirstHitting(), guides=guides, seed=2)
    assert distance(found(result), exact) < 0.025
    p, w = torch.tensor(list(law().values())), (reward(STATES) / ALPHA).exp()
    error = float(((p * w**2).sum() / (p * w).sum() ** 2 - 1) / 20_000) ** 0.5  # of importance sampling
    assert abs(float(result.log_z) - log_z) < 3.5 * error < 0.06
    mean = [float((p * (STATES != END).sum(1).numpy()).sum()) for p in (exact, target(lambda x: x[:, 0] * 0 + 1.0)[0])]
    assert mean[0] > mean[1] + 0.3


@pytest.mark.parametrize(
    "template", [[None, {1}, None], [{2}, None, {0, 1}], [None, {0}, None], [{1}, {2, 0}, {0}]], ids=str
)
def test_kept_parts_condition_texts_and_lengths(template: list[set[int] | None]):
    allowed = torch.tensor([[v in (t or range(V)) for v in range(V)] for t in template])
    exact, log_z = target(lambda x: allowed[torch.arange(L), x].all(1).double())
    result = gk.sample(
        model(), 10_000, steps=L, solver=gk.solvers.FirstHitting(), guides=[gk.Keep(template=template)], seed=4
    )
    assert distance(found(result), exact) < 0.03
    assert abs(float(result.log_z) - log_z) < 0.03


def test_what_is_masked_again_is_the_text_alone_and_starts_keep_their_lengths():
    process: Any = model().process
    x = torch.tensor([[2, 0, 0], [1, 2, 1]])
    up = process.kernel(x, (), Move(0.2, 0.6)).log_probs.exp()[..., V]
    torch.testing.assert_close(up, torch.tensor([[0.5, 0, 0], [0.5, 0.5, 0.5]], dtype=torch.float64))
    again = process.kernel(x, (torch.zeros(2, L, V),), gk.solvers.ReMDM(0.5).move(0.5, 0.25)).log_probs.exp()[..., V]
    assert (again[x == END] == 0).all() and (again[x != END] > 0).all()
    steered = gk.sample(model(), 64, steps=L, guides=[gk.StartFrom(torch.tensor([2, 1, 0]), 0.9)], seed=3).x
    assert ((steered == END).sum(1) == 1).all() and len(steered.unique(dim=0)) == 4


def test_texts_without_their_ends_cost_their_own_length(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def counted(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        seen.append(x.numel())
        assert bool((x != END).all())
        return short(x, t, cond)

    counted.timed = False  # type: ignore[attr-defined]  # or every row is asked at a time of its own
    m = gk.MaskedModel(counted, V, L, end=END, lengths=P, cut=True, dtype=torch.float64)
    result = gk.sample(m, 500, steps=L, solver=gk.solvers.FirstHitting(), seed=1)
    assert seen[:3] == [1, 2, 3]  # equal rows are one, of each length
    assert result.cost.network_rows * 1 < sum(seen) < result.cost.network_rows * L
    whole = gk.sample(model(), 500, steps=L, solver=gk.solvers.FirstHitting(), seed=1)
    assert torch.equal(whole.x, result.x)


def test_bad_lengths_are_refused():
    def make(**options: Any) -> gk.MaskedModel:
        return gk.MaskedModel(net, V, L, **options)

    with pytest.raises(ValueError, match=r"lengths=... is for models that draw in any order, and needs end=..."):
        make(lengths=P)
    with pytest.raises(ValueError, match=r"lengths=... is for models that draw in any order"):
        make(lengths=P, end=0, ordered=True)
    with pytest.raises(ValueError, match=r"lengths of shape \(2,\): 3 probabilities are needed"):
        make(lengths=P[:2], end=0)
    with pytest.raises(ValueError, match="cut=True is for models with lengths"):
        make(cut=True)
    with pytest.raises(ValueError, match="it has tokens behind its end, which is 0"):
        model().read([[1, 0, 2]])
    with pytest.raises(ValueError, match="is for texts of one length"):
        gk.sample(model(), 2, steps=L, guides=[gk.Sites(required=[(1, 2)])])
    process = model().process
    assert isinstance(process, Lengths) and process.lengths == P
    with pytest.raises(ValueError, match="no length fits"):
        gk.sample(model(), 2, steps=L, guides=[gk.Keep(template=[{0}, None, None])])
