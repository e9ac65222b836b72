"""The fit of EDLM's energy by noise contrast, against ratios of laws that are enumerated."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guidekit as gk
from guidekit.values import energy as module
from guidekit.values.energy import Contrast, contrast, fit_energy

V, L = 2, 3
P = torch.tensor([[[8.0, 1.0], [1.0, 3.0]], [[1.0, 6.0], [4.0, 0.5]]], dtype=torch.float64)
P = P / P.sum()  # a law of three tokens that depend on each other
CLEAN = torch.tensor(list(product(range(V), repeat=L)))
MASKED = torch.tensor(list(product(range(V + 1), repeat=L)))
ONES = torch.stack([P.sum([j for j in range(L) if j != i]) for i in range(L)])  # the law of each token alone


def apart() -> gk.MaskedModel:
    """A denoiser that knows the law of each token and nothing of the others."""
    return gk.MaskedModel(lambda x, t, cond: ONES.log().expand(len(x), L, V), V, L, dtype=torch.float64)


def pairs() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Every x_t with a mask, with the x_0 that fit to it, and q(x_0 | x_t) and p(x_0 | x_t) of these."""
    found = []
    for x_t in MASKED:
        fits = CLEAN[((x_t == CLEAN) | (x_t == V)).all(1)]
        q = P[tuple(fits.T)]
        p = torch.stack([ONES[i][fits[:, i]] for i in range(L) if x_t[i] == V] or [torch.ones(1)]).prod(0)
        if len(fits) > 1:
            found.append((x_t, fits, q / q.sum(), p))
    return found


class Numbers(nn.Module):
    """One number for each pair (x_0, x_t), which start at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(V, V + 1, V, V + 1, V, V + 1, dtype=torch.float64))

    def forward(self, x_0: Tensor, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.table[tuple(torch.stack([x_0, x_t], 2).flatten(1).T)]


def drawn(n: int, law: Tensor = P, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return CLEAN[torch.multinomial(law.flatten(), n, replacement=True, generator=generator)]


def test_the_loss_is_least_at_the_log_of_the_ratio():
    """Its expected gradient is zero at E = log p - log q, and nowhere else: the loss is convex."""
    for x_t, fits, q, p in pairs():
        i, j = torch.cartesian_prod(torch.arange(len(fits)), torch.arange(len(fits))).T
        of = Contrast(fits[i], x_t.expand(len(i), L), fits[j], torch.ones(len(i)), None)
        for off, least in ((0.0, True), (0.5, False)):
            net = Numbers()
            with torch.no_grad():
                net.table[tuple(torch.stack([fits, x_t.expand_as(fits)], 2).flatten(1).T)] = p.log() - q.log() + off
            (q[i] * p[j] * contrast(net, of)).sum().backward()
            assert (float(net.table.grad.abs().max()) < 1e-14) is least


@pytest.fixture(scope="module")
def fitted() -> gk.values.Energy:
    return fit_energy(apart(), drawn(5000), Numbers(), updates=160, batch_size=256, rate=0.2)


def test_the_fitted_energy_is_the_log_of_the_ratio(fitted: gk.values.Energy):
    """Root mean square over data and the seven patterns of masks. Frequencies of 8 sequences in 4,500 samples are off
    by sqrt(8/4500) = .04 in it; a pattern has 3,000 of 40,000 pairs at least, which leaves sqrt(4 * 8/3000) = .10."""
    total, nothing = 0.0, 0.0
    for x_t, fits, q, p in pairs():
        seen = P[tuple(fits.T)].sum() / 7
        exact, found = p.log() - q.log(), fitted.net(fits, x_t.expand_as(fits), torch.ones(len(fits)), None)
        total += float(seen * (q * (found - exact).square()).sum())
        nothing += float(seen * (q * exact.square()).sum())
    assert total**0.5 < 0.2 and nothing**0.5 > 0.5


def test_with_it_samples_of_one_step_come_near_the_law(fitted: gk.values.Energy):
    """Of 4,000 exact samples of 8 states the total variation is sqrt(8/(2 pi 4000)) = .018 at most on average."""
    far = []
    for guides in ([], [gk.EDLM(fitted, 48)]):
        x = gk.sample(apart(), 4000, steps=1, guides=guides, seed=2).x
        found = (x * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8) / 4000
        far.append(float((found - P.flatten()).abs().sum()) / 2)
    assert far[0] > 0.3 and far[1] < 0.06
    assert fitted.loss is not None and fitted.loss < module.NOTHING - 0.1


def test_a_fit_that_is_interrupted_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "energy.safetensors"
    options: dict[str, Any] = {"updates": 25, "batch_size": 16, "rate": 0.1}
    whole = fit_energy(apart(), drawn(300), Numbers(), **options)
    train, rounds = module._Fit.train, []

    def torn(self: Any, *given: Any) -> None:
        if len(rounds) == 7:
            rounds.append(0)
            raise KeyboardInterrupt
        rounds.append(1)
        train(self, *given)

    monkeypatch.setattr(module._Fit, "train", torn)
    with pytest.raises(KeyboardInterrupt):
        fit_energy(apart(), drawn(300), Numbers(), file=file, **options)
    found = [fit_energy(apart(), drawn(300), Numbers(), file=file, **options) for _ in range(2)]
    assert len(rounds) == 21  # seven, the torn one, thirteen more, and none for the second call
    for again in found:
        assert torch.equal(again.net.table, whole.net.table) and again.loss == whole.loss
    with pytest.raises(gk.CheckpointError, match=r"another fit: options.*another file"):
        fit_energy(apart(), drawn(300), Numbers(), file=file, **{**options, "rate": 0.2})
    with pytest.raises(gk.CheckpointError, match="another fit: data"):
        fit_energy(apart(), drawn(300, seed=1), Numbers(), file=file, **options)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(gk.CheckpointError, match="truncated"):
        fit_energy(apart(), drawn(300), Numbers(), file=file, **options)


def test_the_generator_and_the_networks_stay_as_they_were():
    net, before = Numbers(), torch.get_rng_state()
    fit_energy(apart(), drawn(300), net, updates=20, batch_size=16, rate=0.1)
    assert torch.equal(torch.get_rng_state(), before) and (net.table == 0).all() and net.training


def test_a_condition_of_each_row_reaches_the_model_and_the_energy():
    """The model draws what the condition says, and so do the data: completions are the data of their own row."""
    seen = []

    class Watch(Numbers):
        def forward(self, x_0: Tensor, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            seen.append((x_0, x_t, cond))
            return super().forward(x_0, x_t, t, cond)

    def net(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return torch.where(torch.arange(V) == cond[:, None, None], 0.0, -1e3).expand(-1, L, -1)

    model = gk.MaskedModel(net, V, L, encode_cond=torch.tensor)
    data = torch.tensor([[0, 0, 0], [1, 1, 1]]).repeat(30, 1)
    with pytest.warns(UserWarning, match="no better than E = 0"):  # data and completions are the same
        fit_energy(model, data, Watch(), cond=[0, 1] * 30, updates=20, batch_size=16)
    for x_0, x_t, cond in seen[1:]:  # but the first, in which the shape of its answer is checked
        assert (x_0 == cond[:, None]).all() and ((x_t == V) | (x_t == x_0)).all()


@pytest.mark.slow
def test_the_network_that_is_built_learns_the_ratio():
    data = drawn(5000)
    energy = fit_energy(apart(), data, updates=120, batch_size=128, rate=0.05)
    x = gk.sample(apart(), 4000, steps=1, guides=[gk.EDLM(energy, 48)], seed=2).x
    found = (x * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8) / 4000
    assert float((found - P.flatten()).abs().sum()) / 2 < 0.06


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit_energy(apart(), drawn(300), updates=0), ValueError, "updates=0.*at least 1"),
        (lambda: fit_energy(apart(), drawn(300), rate=0), ValueError, "rate=0.*positive"),
        (lambda: fit_energy(apart(), drawn(300), holdout=1), ValueError, r"holdout=1.*\(0, 1\)"),
        (lambda: fit_energy(apart(), drawn(10)), ValueError, "10 samples, and at least 20"),
        (lambda: fit_energy(apart(), drawn(300) + 1), ValueError, "without masks"),
        (lambda: fit_energy(apart(), drawn(300), cond=[0, 1]), ValueError, "2 conditions for 300 samples"),
        (lambda: fit_energy(apart(), drawn(300), lambda *v: v[0]), TypeError, "a torch.nn.Module.*function"),  # type: ignore
        (
            lambda: fit_energy(gk.analytic.TokenTable(P.log(), "ordered"), drawn(300)),
            ValueError,
            "draws in any order",
        ),
        (lambda: fit_energy(gk.analytic.TokenTable(P.log(), "uniform"), drawn(300)), ValueError, "a masked model"),
        (lambda: gk.values.Energy(3.0), TypeError, r"\(rows,\), not float"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
