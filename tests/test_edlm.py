"""EDLM against an enumeration of its chain with two candidates, and of the clean law with many."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

import guidekit as gk

from .problems import PROBLEMS, L, V, chain_of_moves, deviations, estimates, marginals_of_tokens, populations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
MASKED = PROBLEMS["masked"]
STATES = MASKED.model.states
OWN = MASKED.model.table[1].exp().numpy()
STEPS = 2


def energy(x: torch.Tensor) -> torch.Tensor:
    """Pulls neighbours together."""
    return 0.8 * (x[:, 0] - x[:, 1]).abs() - 1.1 * (x[:, 1] == x[:, 2]).double() + 0.3 * x[:, 2]


def clean(x: torch.Tensor) -> torch.Tensor:
    """-log p of the exact law, up to a constant."""
    return 5.0 - MASKED.model.log_probs(x, cond=0)


def of_two(p: np.ndarray, log_w: np.ndarray) -> np.ndarray:
    """The law of the one that is taken of two independent draws of p."""
    w = np.exp(log_w)
    with np.errstate(invalid="ignore"):
        first = np.nan_to_num(w[:, None] / (w[:, None] + w))
    return 2 * p * (first @ p)


def of_state(x_0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    """An energy of the masked sequence, the time and the condition too."""
    hidden = (x_t == V).double()
    known = 2 * (1 - hidden[:, 0]) * (x_0[:, 1] == 1) + 2 * hidden[:, 1] * (x_0[:, 2] == 0)
    return (0.3 + t) * energy(x_0) + known + 0.6 * hidden.sum(1) * (x_0[:, 0] == cond)


KINDS = {
    "energy": (energy, False),
    "residual": (clean, True),
    "of the state": (gk.values.Energy(of_state), False),
}


def energies_at(kind: str, x: np.ndarray, t: float) -> np.ndarray:
    """The energies of all clean sequences at x_t."""
    found, n = KINDS[kind][0], len(STATES)
    if kind == "of the state":
        own = MASKED.model.encode(0).expand(n)
        return of_state(STATES, torch.tensor(x).expand(n, L), torch.full((n,), t), own).double().numpy()
    return found(STATES).double().numpy()


@lru_cache
def law(kind: str) -> np.ndarray:
    residual = KINDS[kind][1]

    def moved(states: np.ndarray, x: np.ndarray, t: float, s: float) -> np.ndarray:
        marginals = marginals_of_tokens(OWN, x, t, uniform=False)
        fits = ((STATES.numpy() == x) | (x == V)).all(1)
        p = np.prod([marginals[i][STATES[:, i]] if x[i] == V else np.ones(len(STATES)) for i in range(L)], 0) * fits
        with np.errstate(divide="ignore", invalid="ignore"):
            log_w = np.where(p > 0, -energies_at(kind, x, t) - (np.log(p) if residual else 0), -np.inf)
        found = np.zeros(len(states))
        for x_0, chance in zip(STATES.numpy(), of_two(p, log_w), strict=True):
            if chance > 0:
                kernels = [
                    np.append((1 - s / t) * np.eye(V)[x_0[i]], s / t) if x[i] == V else np.eye(V + 1)[x[i]]
                    for i in range(L)
                ]
                found += chance * np.prod([kernels[i][states[:, i]] for i in range(L)], 0)
        return found

    return chain_of_moves(False, STEPS, moved)


def counted(x: torch.Tensor) -> np.ndarray:
    return np.bincount((x * V ** torch.arange(L - 1, -1, -1)).sum(1).numpy(), minlength=V**L)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_enumerated_chain_of_two_candidates(kind: str):
    n, guide = 10_000, gk.EDLM(KINDS[kind][0], 2, KINDS[kind][1])
    x = gk.sample(MASKED.model, n, steps=STEPS, cond=0, guides=[guide], seed=4).x
    expected = n * law(kind)
    assert ((counted(x) - expected) ** 2 / expected).sum() < 66  # of 26 degrees of freedom: by chance once in 2 10^4


@pytest.mark.parametrize("kind", KINDS)
def test_weights_tilt_that_law_exactly(kind: str):
    guides = [gk.EDLM(KINDS[kind][0], 2, KINDS[kind][1]), gk.FKSteering(MASKED.reward, 0.7, ess=0.9)]
    found = estimates(MASKED, populations(MASKED, 800, 4, guides, steps=STEPS))
    w = law(kind) * np.exp(MASKED.reward(STATES).double().numpy() / 0.7)
    truth = (w[:, None] * MASKED.features(STATES).double().numpy()).sum(0)
    assert np.abs(deviations(found, truth, np.zeros(4))).max() < 4.5


def test_many_candidates_come_near_the_clean_law_in_one_step():
    """Total variation, of which 4,000 exact samples have .029: independent tokens, then 16 and 100 candidates."""
    n = 4000
    far = []
    for guides in ([], [gk.EDLM(clean, 16, True)], [gk.EDLM(clean, 100, True)]):
        x = gk.sample(MASKED.model, n, steps=1, cond=0, guides=guides).x
        far.append(np.abs(counted(x) / n - OWN).sum() / 2)
    assert far[0] > 0.2 > 0.1 > far[1] and far[2] < 0.045


def test_one_candidate_is_the_plain_chain_in_law():
    n = 6000
    both = [gk.sample(MASKED.model, n, steps=3, cond=0, guides=g).x for g in ([], [gk.EDLM(energy, 1)])]
    a, b = map(counted, both)
    assert ((a - b) ** 2 / (a + b)).sum() < 66


def test_energies_see_whole_sequences_in_parts_and_keep_what_is_known():
    seen = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return energy(x)

    whole = gk.sample(MASKED.model, 30, steps=4, cond=0, guides=[gk.EDLM(energy, 5)])
    parts = gk.sample(MASKED.model, 30, steps=4, cond=0, guides=[gk.EDLM(watch, 5)], batch_size=8)
    assert torch.equal(whole.x, parts.x)
    assert max(map(len, seen)) <= 8 and all((x < V).all() for x in seen)
    assert sum(map(len, seen)) == 5 * 30 * 4
    keep = gk.Keep(torch.tensor([1, 0, 2]), torch.tensor([False, True, False]), method="replace")
    kept = gk.sample(MASKED.model, 30, steps=4, cond=0, guides=[gk.EDLM(energy, 5), keep])
    assert (kept.x[:, 1] == 0).all()


def test_energies_of_infinity_exclude_sequences_where_they_can():
    def never(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] == x[:, 1], torch.inf, 0.0)

    x = gk.sample(MASKED.model, 400, steps=1, cond=0, guides=[gk.EDLM(never, 64)]).x
    assert (x[:, 0] != x[:, 1]).all()
    nothing = gk.EDLM(lambda x: torch.full((len(x),), torch.nan), 3)
    assert (gk.sample(MASKED.model, 40, steps=2, cond=0, guides=[nothing]).x < V).all()


@pytest.mark.parametrize(
    ("guides", "message"),
    [
        ([gk.EDLM(energy, steer=True)], "steer=False"),
        ([gk.EDLM(energy), gk.Sites(forbidden=[[0, 1]])], r"Sites.*EDLM.*energy be infinite"),
        ([gk.EDLM(energy), gk.CFG(2.0, steer=True)], r"CFG\(steer=True\).*one clean sequence"),
    ],
)
def test_proposals_and_constraints_are_refused(guides, message: str):
    with pytest.raises(ValueError, match=message):
        gk.Run(MASKED.model, 4, steps=2, cond=0, guides=guides)


def test_what_means_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"candidates=0.*at least 1"):
        gk.EDLM(energy, 0)
    with pytest.raises(ValueError, match=r"residual=True.*what the prediction lacks.*residual=False"):
        gk.EDLM(gk.values.Energy(of_state), residual=True)
    with pytest.raises(TypeError, match="function of tokens"):
        gk.EDLM(3.0)  # type: ignore[arg-type]
    ordered = gk.analytic.TokenTable(torch.zeros(2, 2), "ordered")
    with pytest.raises(ValueError, match="ordered model predicts the next one"):
        gk.Run(ordered, 4, guides=[gk.EDLM(energy)])
    with pytest.raises(ValueError, match=r"completions of masked sequences.*FKSteering"):
        gk.Run(PROBLEMS["uniform"].model, 4, guides=[gk.EDLM(energy)])
    with pytest.raises(gk.NetworkError, match=r"\(4, 3\).*\(rows,\)"):
        gk.sample(MASKED.model, 2, steps=2, guides=[gk.EDLM(lambda x: x.double(), 2)])
