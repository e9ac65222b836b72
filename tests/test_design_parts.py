"""The parts of the design loop, each against a direct computation: kernels, surrogate, bandit, graph operators."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit.search.design import bandit, graph
from guidekit.search.design.domain import Domain
from guidekit.search.design.kernels import Counts, Numbers, as_features
from guidekit.search.design.surrogate import Posterior, chosen, rank_correlation
from rewards.molecules.descriptors import parsed

from .test_design import DRUGS

# kernels --------------------------------------------------------------------------------------------------------------


def test_the_kernel_of_molecules_is_the_tanimoto_coefficient_of_rdkit():
    from rdkit import DataStructs
    from rdkit.Chem import rdFingerprintGenerator as generators

    features = Domain("smiles").features(DRUGS)
    prints = [generators.GetMorganGenerator(radius=2).GetSparseCountFingerprint(parsed(s)) for s in DRUGS]
    wanted = np.array([[DataStructs.TanimotoSimilarity(a, b) for b in prints] for a in prints])
    found = features.kernel(features).numpy()
    assert np.abs(found - wanted).max() < 1e-12 and 0.05 < np.median(wanted) < 0.5
    part = features.take([3, 7]).join(features.take([1]))
    assert np.allclose(part.kernel(features), found[[3, 7, 1]])
    assert np.linalg.eigvalsh(found).min() > 0


def words(text: str, sizes: tuple[int, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for k in sizes:
        for i in range(len(text) - k + 1):
            found[text[i : i + k]] = found.get(text[i : i + k], 0) + 1
    return found


def tanimoto(a: dict, b: dict) -> float:
    keys = {*a, *b}
    low = sum(min(a.get(k, 0), b.get(k, 0)) for k in keys)
    return low / sum(max(a.get(k, 0), b.get(k, 0)) for k in keys)


def test_the_kernel_of_texts_counts_words_and_letters_by_place():
    rng = random.Random(0)
    texts = ["".join(rng.choice("ACGT") for _ in range(40)) for _ in range(12)]
    texts.append(texts[0][1:] + "A")  # shifted by one
    counts = [words(t, (3, 4, 5, 6)) for t in texts]
    features = Domain("sequence").features(texts)
    found = features.kernel(features).numpy()
    assert np.allclose(found, [[tanimoto(a, b) for b in counts] for a in counts])
    placed = [dict.fromkeys([*enumerate(t), *enumerate(map("".join, itertools.pairwise(t)))], 1) for t in texts]
    features = Domain("text").features(texts)
    own = features.kernel(features).numpy()
    assert np.allclose(own, [[tanimoto(a, b) for b in placed] for a in placed])
    assert found[0, 12] > 0.9 > own[0, 12]  # the same words in other places
    tokens = torch.tensor([[ord(c) for c in t] for t in texts])
    again = Domain("tokens").features(tokens)
    assert np.allclose(again.kernel(again), own)


def test_the_kernel_of_numbers_has_the_median_distance_as_its_length():
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * torch.tensor([1, 2, 5.0])
    distance = (x[:, None] - x).square().sum(-1).sqrt()
    length = distance[distance > 0].median()
    assert torch.allclose(Numbers(x).kernel(Numbers(x)), (-(distance**2) / (2 * length**2)).exp(), atol=1e-9)


def test_features_of_ones_own_are_counts_or_numbers():
    assert isinstance(as_features(torch.tensor([[1, 0, 2]]), 1), Counts)
    assert isinstance(as_features(np.array([[1.5, 0]]), 1), Numbers)
    found = as_features(torch.tensor([[1, 0, 2], [1, 1, 1]]), 2)
    assert torch.allclose(found.kernel(found), torch.tensor([[1, 0.5], [0.5, 1]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"features returned shape \(3,\) for 3 samples"):
        as_features(torch.zeros(3), 3)


# surrogate ------------------------------------------------------------------------------------------------------------


def problem() -> tuple[Counts, Counts, torch.Tensor]:
    domain = Domain("smiles")
    return domain.features(DRUGS[:20]), domain.features(DRUGS[20:]), torch.linspace(0, 2, 20).double().cos()


def test_the_posterior_is_that_of_the_formulas():
    known, new, y = problem()
    k, ks, kss = (a.kernel(b).numpy() for a, b in ((known, known), (new, known), (new, new)))
    mean, scale = y.numpy().mean(), y.numpy().std()
    inverse = np.linalg.inv(k + 0.03 * np.eye(20))
    wanted = mean + ks @ inverse @ (y.numpy() - mean)
    covariance = scale**2 * (kss - ks @ inverse @ ks.T)
    posterior = Posterior.of(known, y, 0.03)
    found = posterior.at(new)
    assert np.allclose(found[0], wanted) and np.allclose(found[1], covariance)
    left_out = []
    for i in range(20):
        rest = np.arange(20) != i
        part = np.linalg.inv(k[np.ix_(rest, rest)] + 0.03 * np.eye(19))
        left_out.append(mean + k[i, rest] @ part @ (y.numpy() - mean)[rest])
    assert np.allclose(posterior.left_out(), left_out)


def test_a_batch_is_chosen_as_if_all_before_were_known():
    known, new, y = problem()
    posterior = Posterior.of(known, y, 0.03)
    mean, covariance = posterior.at(new)
    noise, taken = 0.03 * posterior.scale**2, list[int]()
    for _ in range(5):  # each time from the joint covariance of all chosen
        c = covariance.numpy()
        part = c[np.ix_(taken, taken)] + noise * np.eye(len(taken))
        left = np.diag(c) - np.einsum("ij,jk,ik->i", c[:, taken], np.linalg.inv(part), c[:, taken])
        score = mean.numpy() + 2.0 * np.sqrt(np.maximum(left, 0))
        score[taken] = -np.inf
        taken.append(int(score.argmax()))
    assert chosen(mean, covariance, 5, 2.0, noise) == taken
    # of two equal candidates the second one teaches nothing
    twice = new.take([0, 0, 1])
    assert chosen(torch.zeros(3).double(), posterior.at(twice)[1], 2, 1.0, noise) in ([0, 2], [2, 0])


@pytest.mark.parametrize("kappa", [0.3, 1.0, 2.0])
def test_kappa_says_how_like_a_good_sample_the_next_one_is(kappa: float):
    """Of a sample one deviation above the mean and one below that shares nothing, mean k and variance 1 - k^2."""
    n, good, bad = 200, dict.fromkeys(range(200), 1), dict.fromkeys(range(1000, 1200), 1)
    shared = [{**dict.fromkeys(range(s), 1), **dict.fromkeys(range(10**4 * s + s, 10**4 * s + n), 1)} for s in range(n)]
    posterior = Posterior.of(Counts.of([good, bad]), torch.tensor([1.0, -1.0]), 1e-6)
    first = chosen(*posterior.at(Counts.of(shared)), 1, kappa, 0.0)[0]
    assert first / (2 * n - first) == pytest.approx(1 / (1 + kappa**2) ** 0.5, abs=0.01)  # two steps of the grid


def test_rank_correlation_leaves_out_what_is_unknown():
    a = torch.tensor([1.0, 2.0, 3.0, 10.0, torch.nan])
    b = torch.tensor([5.0, 6.0, 7.0, 100.0, 0.0])
    from scipy.stats import spearmanr

    ties = torch.randint(0, 6, (2, 40), generator=torch.Generator().manual_seed(2)).double()
    assert rank_correlation(*ties) == pytest.approx(spearmanr(*ties.numpy()).statistic)
    assert rank_correlation(a, b) == pytest.approx(1) and rank_correlation(a, -b) == pytest.approx(-1)
    assert np.isnan(rank_correlation(a[:2], b[:2])) and np.isnan(rank_correlation(a, torch.ones(5)))


def test_a_surrogate_that_predicts_nothing_is_not_trusted():
    """A reward without any relation to the sample: most rounds choose at random."""
    table = torch.rand(1 << 14, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 2, dtype=torch.float64), 2, 14)
    noise = lambda x: table[(x * 2 ** torch.arange(14)).sum(1)]  # noqa: E731
    budget = gk.search.Budget(calls=300)
    blind = gk.evolve(model, 5, noise, budget=budget, population=100)
    total = lambda x: x.double() @ torch.arange(1.0, 15.0).double()  # noqa: E731
    seen = gk.evolve(model, 5, total, budget=budget, population=100)
    assert blind.trace["trusted"][1:].double().mean() < 0.5 and seen.trace["trusted"][1:].double().mean() > 0.9
    assert seen.trace["correlation"][1:6].min() > 0.5


# bandit ---------------------------------------------------------------------------------------------------------------


def test_the_bandit_prefers_what_improves_and_drops_nobody():
    shares = bandit.shares([30, 5, 0], [70, 95, 100], seed=1)
    assert shares.sum() == pytest.approx(1) and shares[0] > 0.85 and shares.min() >= 0.05
    even = bandit.shares([0, 0, 0, 0], [0, 0, 0, 0], seed=2)
    assert np.abs(even - 0.25).max() < 0.1
    # P(theta_0 > theta_1) by a fine grid, for two arms
    a = np.random.default_rng(0).beta(4, 8, 10**6) > np.random.default_rng(1).beta(2, 6, 10**6)
    assert abs(bandit.shares([3, 1], [7, 5], seed=3, floor=0.0)[0] - a.mean()) < 4 * 0.5 / bandit.DRAWS**0.5


def test_old_rounds_count_less():
    assert bandit.discounted([(5, 10), (0, 10)], memory=0.5) == (2.5, 12.5)
    assert bandit.discounted([(5, 2), (0, 10)], memory=0.5) == (2.5, 10)  # more calls than slots


def test_a_round_is_divided_with_the_shares_as_means():
    parts, rng = np.array([0.55, 0.39, 0.06]), np.random.default_rng(0)
    for total, portion in ((1, 1), (10, 5), (20, 5)):
        found = np.array([bandit.divided(total, parts, u) for u in rng.random(10_000)])
        assert (found.sum(1) == total).all() and (found % portion == 0).all() and found.min() >= 0
        assert np.abs(found.mean(0) - total * parts).max() < 4 * 0.5 * portion / 10_000**0.5
    for total in (7, 23, 48):
        found = np.array([bandit.divided(total, parts, u) for u in rng.random(2000)])
        assert (found.sum(1) == total).all() and np.abs(found.mean(0) - total * parts).max() < 0.5


def test_in_a_loop_the_proposal_that_improves_gets_most_calls():
    from .test_design import LENGTH, landscape, letters

    class Noise(gk.search.Proposal):
        """Texts of A and B alone, at random: never good for much here."""

        def propose(self, study, count, key):
            u = gk.random.uniform(gk.random.fold(key, torch.arange(count)), (LENGTH,))
            x = (u < 0.5).long()
            return gk.search.Candidates(study.model.decode(x), x)

    result = gk.evolve(
        letters(), 8, landscape, budget=gk.search.Budget(calls=260), surrogate=False,
        proposals=[gk.search.Crossover(), Noise()],
    )  # fmt: skip
    late = [row["shares"] for row in result.trace[-8:]]
    assert sum(s["Crossover"] for s in late) > 3 * sum(s["Noise"] for s in late) > 0


# graph operators ------------------------------------------------------------------------------------------------------


def test_every_operator_makes_molecules_and_does_what_it_says():
    from rdkit import Chem

    before = {s: parsed(s) for s in DRUGS}
    atoms = {"append_atom": 1, "insert_atom": 1, "delete_atom": -1}
    rings = {"open_ring": (-1, -1), "close_ring": (1, 1)}
    for operator in graph.MUTATIONS:
        done = 0
        for i, (smiles, mol) in enumerate(before.items()):
            edited = graph.editable(smiles)
            if not operator(edited, random.Random(i)) or (new := graph.finished(edited)) is None:
                continue
            child = Chem.MolFromSmiles(new)
            name = operator.__name__
            assert "." not in new and new == Chem.MolToSmiles(child)
            assert child.GetNumAtoms() - mol.GetNumAtoms() == atoms.get(name, 0)
            low, high = rings.get(name, (-9, 9))
            cycles = [m.GetNumBonds() - m.GetNumAtoms() for m in (mol, child)]
            assert low <= cycles[1] - cycles[0] <= high
            assert max([len(r) for r in child.GetRingInfo().AtomRings()] or [0]) <= graph.LARGEST_RING
            assert not child.HasSubstructMatch(Chem.MolFromSmarts("[R]=[R]=[R]"))
            assert sum(a.GetNumRadicalElectrons() for a in child.GetAtoms()) == 0
            done += 1
        assert done >= 4, operator.__name__


def test_a_crossover_has_pieces_of_both_parents():
    from rdkit import Chem

    chlorine, sulphur = "Clc1ccc(C2CCNCC2)cc1", "NS(=O)(=O)c1ccc(N)cc1"
    found = {graph.crossed(chlorine, sulphur, random.Random(i)) for i in range(60)} - {None}
    both = [s for s in found if "Cl" in s and "S" in s]
    assert len(found) > 15 and len(both) >= 3
    assert not found & {chlorine, sulphur}
    heavy = parsed(chlorine).GetNumAtoms() + parsed(sulphur).GetNumAtoms()
    assert all(Chem.MolFromSmiles(s).GetNumAtoms() <= heavy for s in found)


def test_no_child_is_larger_than_asked_unless_its_larger_parent_is():
    """Chains of 12 and 18 atoms, without a limit and with one."""
    size = lambda found: max(parsed(s).GetNumHeavyAtoms() for s in found)  # noqa: E731
    short, long = "CCOCCNCCOCCN", "CCOCCNCCOCCNCCOCCN"
    pairs, seeds = [(short, "CCNCCOCCNCCO")] * 60, range(60)
    assert size(graph.offspring(pairs, 0.3, seeds)) > 14
    assert size(graph.offspring(pairs, 0.3, seeds, 14)) == 14
    assert size(graph.offspring([(short, long), (long, short)] * 30, 0.3, seeds, 14)) == 18
    assert size(graph.offspring([(short, long)] * 60, 1.0, seeds, 6)) == 12  # a mutation has one parent


def test_children_are_the_same_for_the_same_seed_alone():
    pairs = list(zip(DRUGS, DRUGS[::-1], strict=True))
    one = graph.offspring(pairs, 0.3, range(len(pairs)))
    assert one == graph.offspring(pairs, 0.3, range(len(pairs)))
    assert one != graph.offspring(pairs, 0.3, range(1, len(pairs) + 1))
    assert len(one) > 25
