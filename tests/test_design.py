"""The design loop of gk.evolve: what it asks, what it remembers, and that its parts are worth having."""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.search.design import Design
from guidekit.search.design.memory import measured
from rewards import Reward, RewardError
from rewards.molecules import objective
from rewards.molecules.descriptors import canonical

S = gk.search
Budget = S.Budget

LENGTH, LONG, LETTERS = 14, 30, "ABCD"
_WEIGHTS = torch.rand(LONG, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
_PAIRS = torch.rand(LONG, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
asked: list[str] = []  # by the rewards of these tests
broken: list[int] = []  # calls after which `fragile` stops


def flat(x: Tensor, t: Tensor, cond: object) -> Tensor:
    """A model that knows nothing but that A is a little more likely."""
    return torch.tensor([0.3, 0.0, 0.0, 0.0], dtype=torch.float64).expand(*x.shape, 4)


def spelled(x: Tensor) -> list[str]:
    return ["".join(LETTERS[v] for v in row) for row in x.tolist()]


def numbered(texts: list[str]) -> Tensor:
    if any(set(text) - set(LETTERS) for text in texts):
        raise ValueError(f"letters are {LETTERS}")
    return torch.tensor([[LETTERS.index(c) for c in text] for text in texts])


def letters(length: int = LENGTH) -> gk.MaskedModel:
    return gk.MaskedModel(flat, 4, length, decode=spelled, read=numbered)


def landscape(texts: list[str]) -> Tensor:
    """Letters by place, and neighbours by place: no symmetry, one maximum that is hard to find by chance."""
    asked.extend(texts)
    x = numbered(list(texts))
    place = torch.arange(x.shape[1])
    pairs = _PAIRS[place[:-1], x[:, :-1], x[:, 1:]].sum(1)
    return _WEIGHTS[place, x].sum(1) + pairs


def fragile(texts: list[str]) -> Tensor:
    if broken and len(asked) + len(texts) > broken[0]:
        raise KeyboardInterrupt
    return landscape(texts)


@pytest.fixture(autouse=True)
def clean():
    asked.clear()
    broken.clear()


def same(a: gk.Result, b: gk.Result) -> None:
    """All that two results should have in common, to the last bit; times are their own."""
    assert torch.equal(a.x, b.x) and torch.equal(a.rewards, b.rewards)
    assert torch.equal(a.samples, b.samples) if isinstance(a.samples, Tensor) else a.samples == b.samples
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.trace] for r in (a, b)]
    assert repr(rows[0]) == repr(rows[1])  # repr, as NaN is not equal to itself
    costs = [{k: v for k, v in vars(r.cost).items() if k != "seconds"} for r in (a, b)]
    assert costs[0] == costs[1]


# the budget, and the memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [50, 51, 97])
def test_the_budget_is_spent_to_the_last_call_on_samples_that_are_all_different(calls: int):
    result = gk.evolve(letters(), 8, landscape, budget=Budget(calls=calls))
    assert len(asked) == len(set(asked)) == result.cost.reward_calls == calls
    assert result.trace[-1]["calls"] == calls and result.config["design"]["ended"] == f"calls={calls} are spent"
    best = sorted(landscape(list(asked)).tolist(), reverse=True)[:8]
    assert result.rewards.tolist() == best
    assert len(set(result.samples)) == 8
    assert torch.equal(numbered(result.samples), result.x)
    assert "8 samples" in repr(result) and result._repr_html_()


def test_molecules_are_the_same_if_their_canonical_smiles_are():
    model = gk.zoo.load("molecules")
    start = ["OCC", "CCO", "C(O)C", "c1ccccc1O", "Oc1ccccc1"]

    def count(smiles: list[str]) -> list[float]:
        asked.extend(smiles)
        return [float(len(s)) for s in smiles]

    result = gk.evolve(
        model, start, count, n=5, population=2, budget=Budget(calls=12), proposals=[S.GraphOperators()], seed=1
    )
    assert asked[:2] == ["CCO", "Oc1ccccc1"] and len(asked) == 12
    assert len({canonical(s) for s in asked}) == 12 and all(s == canonical(s) for s in result.samples)


def test_a_space_that_is_exhausted_ends_the_loop():
    model = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 2, dtype=torch.float64), 2, 3)
    with pytest.warns(UserWarning, match="only 8 distinct samples were found, 20 were wanted"):
        result = gk.evolve(model, 20, lambda x: x.double().sum(1), budget=Budget(calls=60))
    assert len(result) == result.cost.reward_calls == 8
    assert "brought no new sample" in result.config["design"]["ended"]
    assert result.rewards.tolist() == [3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0]


def test_a_target_ends_the_loop_when_every_sample_reaches_it():
    result = gk.evolve(letters(), 4, landscape, budget=Budget(calls=400, target=14.0))
    assert (result.rewards >= 14).all() and result.cost.reward_calls < 400
    assert result.config["design"]["ended"] == "every sample has reached target=14"


# files ----------------------------------------------------------------------------------------------------------------


def test_every_call_is_in_the_log(tmp_path: Path):
    gk.evolve(letters(), 8, landscape, budget=Budget(calls=90), checkpoint=tmp_path / "run")
    with (tmp_path / "run" / "calls.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sample"] for row in rows] == asked
    assert [float(row["value"]) for row in rows] == landscape([row["sample"] for row in rows]).tolist()
    assert [int(row["call"]) for row in rows] == list(range(90))


@pytest.mark.parametrize("after", [30, 64, 75])
def test_an_interrupted_loop_resumes_to_the_same_bytes_and_asks_nothing_twice(after: int, tmp_path: Path):
    options = {"budget": Budget(calls=100), "seed": 2}
    whole = gk.evolve(letters(), 8, fragile, **options)
    asked.clear()
    broken.append(after)
    with pytest.raises(KeyboardInterrupt):
        gk.evolve(letters(), 8, fragile, checkpoint=tmp_path / "run", **options)
    broken.clear()
    same(whole, gk.evolve(letters(), 8, fragile, checkpoint=tmp_path / "run", **options))
    assert len(asked) == len(set(asked)) == 100
    same(whole, gk.evolve(letters(), 8, fragile, checkpoint=tmp_path / "run", **options))
    assert len(asked) == 100


@pytest.mark.parametrize("calls", [60, 73])
def test_a_loop_is_extended_to_the_result_of_the_larger_budget(calls: int, tmp_path: Path):
    whole = gk.evolve(letters(), 8, landscape, budget=Budget(calls=110))
    asked.clear()
    folder = tmp_path / "run"
    gk.evolve(letters(), 3, landscape, budget=Budget(calls=calls), checkpoint=folder)
    assert len(asked) == calls
    same(whole, gk.evolve(letters(), 8, landscape, budget=Budget(calls=110), checkpoint=folder))
    assert len(asked) == len(set(asked)) == 110


def test_points_are_remembered_too(tmp_path: Path):
    base = gk.analytic.GaussianMixture([0.4, 0.6], [[-2.0, 0.0], [2.0, 1.0]], [0.5, 0.7])
    reward = far
    options = {"steps": 8, "seed": 1}
    whole = gk.evolve(base, 4, reward, budget=Budget(calls=85), **options)
    gk.evolve(base, 4, reward, budget=Budget(calls=65), checkpoint=tmp_path / "run", **options)
    same(whole, gk.evolve(base, 4, reward, budget=Budget(calls=85), checkpoint=tmp_path / "run", **options))
    assert whole.rewards.min() > gk.sample(base, 85, steps=8, reward=reward, seed=5).rewards.sort().values[-10]


def far(x: Tensor) -> Tensor:
    return x[:, 0] - (x[:, 1] - 2).square()


def test_a_folder_of_another_loop_is_refused_and_a_cut_line_is_dropped(tmp_path: Path):
    options = {"budget": Budget(calls=60), "checkpoint": tmp_path / "run"}
    whole = gk.evolve(letters(), 4, landscape, **options)
    with pytest.raises(gk.CheckpointError, match="of another search: seed was 0 and is 1 now"):
        gk.evolve(letters(), 4, landscape, seed=1, **options)
    log = tmp_path / "run" / "calls.csv"
    log.write_text(log.read_text(encoding="utf-8") + "60,2,Reg", encoding="utf-8")
    same(whole, gk.evolve(letters(), 4, landscape, **options))
    log.write_text("\n".join(log.read_text(encoding="utf-8").splitlines()[:30]) + "\n", encoding="utf-8")
    with pytest.raises(gk.CheckpointError, match="has 29 calls, and"):
        gk.evolve(letters(), 4, landscape, **options)


def test_what_was_measured_before_is_learnt_from_and_not_asked(tmp_path: Path):
    first = gk.evolve(letters(), 8, landscape, budget=Budget(calls=120), checkpoint=tmp_path / "run")
    before = set(asked)
    asked.clear()
    file = tmp_path / "run" / "calls.csv"
    second = gk.evolve(letters(), 8, landscape, budget=Budget(calls=40), known=file, seed=7)
    assert len(asked) == 40 and not before & set(asked)
    assert second.rewards[0] >= first.rewards[0] and second.trace[0]["calls"] == 0
    assert landscape(asked).mean() > landscape(sorted(before)).mean() + 1  # it begins where the first one ended
    pair = ([*before], landscape([*before]).tolist())
    third = gk.evolve(letters(), 8, landscape, budget=Budget(calls=40), known=pair, seed=7)
    assert third.cost.reward_calls == 40


# rewards that fail, and what is required ------------------------------------------------------------------------------


def test_a_reward_that_fails_costs_its_sample_only():
    def picky(texts: list[str]) -> Tensor:
        values = landscape(texts)
        return torch.where(torch.tensor([t[0] == "A" for t in texts]), torch.nan, values)

    result = gk.evolve(letters(), 8, picky, budget=Budget(calls=120))
    lost = sum(t[0] == "A" for t in asked)
    assert len(asked) == 120 and result.cost.unscored == lost > 10
    assert all(s[0] != "A" for s in result.samples) and result.rewards.isfinite().all()

    def mostly(texts: list[str]) -> Tensor:
        return torch.where(torch.tensor([t[0] != "B" for t in texts]), torch.nan, landscape(texts))

    with pytest.warns(UserWarning, match=r"the reward scored \d+ of 90 samples only"):
        result = gk.evolve(letters(), 4, mostly, budget=Budget(calls=90), seed=1)
    assert all(s[0] == "B" for s in result.samples)


def test_a_lead_on_which_the_reward_raises_costs_one_call_and_a_reward_that_always_raises_is_an_error():
    def raises(texts: list[str]) -> Tensor:
        if any(t[0] != "B" for t in texts):
            raise RuntimeError("did not converge")
        return landscape(texts)

    def never(texts: list[str]) -> Tensor:
        raise RuntimeError("the licence has expired")

    lead = torch.zeros(1, LENGTH, dtype=torch.long)
    with pytest.warns(UserWarning, match=r"raised on \d+ of 20 samples, first RuntimeError: did not converge"):
        found = gk.evolve(letters(), lead, raises, n=3, population=20, budget=Budget(calls=60))
    assert found.cost.reward_calls == 60 and found.samples[0][0] == "B" and found.rewards[0].isfinite()
    with pytest.raises(RewardError, match="licence"):
        gk.evolve(letters(), 4, never, population=20, budget=Budget(calls=60))


def test_what_is_not_as_required_is_never_asked():
    def fine(texts: list[str]) -> list[bool]:
        return ["AB" not in t and t[3] != "A" for t in texts]

    result = gk.evolve(letters(), 8, landscape, budget=Budget(calls=100), require=fine)
    assert all(fine(asked)) and len(asked) == 100
    free = gk.evolve(letters(), 8, landscape, budget=Budget(calls=100))
    assert not all(fine(free.samples)) and all(fine(result.samples))
    with pytest.raises(ValueError, match="none of the samples fulfils require"):
        gk.evolve(letters(), 8, landscape, budget=Budget(calls=60), require=lambda texts: [False] * len(texts))
    with pytest.raises(ValueError, match=r"require returned shape \(1,\) for"):
        gk.evolve(letters(), 8, landscape, budget=Budget(calls=60), require=lambda texts: [True])
    start = ["D" * LENGTH, "A" * LENGTH, "D" * LENGTH]
    with pytest.warns(UserWarning, match="of 2 samples of start 1 are asked: they do not fulfil require"):
        gk.evolve(letters(), start, landscape, population=3, budget=Budget(calls=3), require=fine)


def test_constraints_of_guides_hold_in_all_that_is_asked():
    keep = gk.Keep(template=[None, None, 1, 2, *[None] * 10])
    result = gk.evolve(letters(), 8, landscape, budget=Budget(calls=90), guides=[keep])
    assert all(t[2:4] == "BC" for t in asked) and len(asked) == 90
    assert "Crossover" not in result.trace[-1]["shares"]


def test_graph_operators_are_left_out_where_a_guide_holds_a_part():
    model = gk.zoo.load("molecules")
    keep = gk.Keep(model.read(["CCO"])[0], torch.arange(20) < 1)
    names = [p.name for p in Design(model, 4, objective("isomers_c11h24"), Budget(calls=60), guides=(keep,)).sources]
    assert names == ["Regrow", "Fresh"]
    with pytest.raises(ValueError, match="graph operators do not know the constraint of Keep: give require="):
        gk.evolve(model, 4, len, budget=Budget(calls=60), guides=[keep], proposals=[S.GraphOperators()])


def test_no_scaffold_is_asked_more_often_than_diversity_says():
    from rewards.molecules.descriptors import scaffold

    def size(smiles: list[str]) -> list[float]:
        asked.extend(smiles)
        return [float(s.count("N")) for s in smiles]

    options = {"population": 6, "budget": Budget(calls=70), "proposals": [S.GraphOperators()], "n": 5}
    gk.evolve(gk.zoo.load("molecules"), DRUGS[:6], size, **options)
    free = max(map([scaffold(s) for s in asked].count, {scaffold(s) for s in asked}))
    asked.clear()
    gk.evolve(gk.zoo.load("molecules"), DRUGS[:6], size, diversity=4, **options)
    held = max(map([scaffold(s) for s in asked].count, {scaffold(s) for s in asked}))
    assert held == 4 < free and len(asked) == 70


# samples that the model cannot write ----------------------------------------------------------------------------------


def test_every_sample_is_read_once_also_where_the_model_cannot_write_it():
    read: list[str] = []

    def reader(samples: list[str]) -> Tensor:
        read.extend(samples)
        if "B" in samples:
            raise ValueError("no B")
        return torch.zeros(len(samples), 1)

    model = SimpleNamespace(read=reader, shape=(1,), dtype=torch.float32, process=SimpleNamespace())
    memory = S.design.Memory(S.design.domain.Domain("text"), model)  # type: ignore[arg-type]
    memory.add(["A", "B", "C"], [None] * 3, [S.design.memory.Call(0, "Fresh", 1.0, math.nan)] * 3)
    for _ in range(2):
        assert memory.state([0, 1, 1, 2])[1].tolist() == [True, False, False, True]
    assert read == ["A", "B", "C"]


def test_molecules_outside_the_vocabulary_are_samples_with_a_state_of_masks():
    model = gk.zoo.load("molecules")
    boron = "OB(O)c1ccccc1"
    with pytest.raises(ValueError, match="cannot be read"):
        model.read([boron])
    result = gk.evolve(
        model, [boron, "CCO"], lambda s: [float(len(t)) for t in s], population=2, budget=Budget(calls=2)
    )
    assert result.samples == ["OB(O)c1ccccc1", "CCO"]
    assert result.config["design"]["written"] == [False, True]
    assert (result.x[0] == model.vocab_size).all() and canonical(model.decode(result.x[1:])[0]) == "CCO"


# proposals ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reversed(S.Proposal):
    """Parents, back to front."""

    def propose(self, study: S.Study, count: int, key: Tensor) -> S.Candidates:
        parents = study.memory.batch(study.memory.parents(count, key))
        return S.Candidates([s[::-1] for s in parents])


def test_a_proposal_of_ones_own_takes_part():
    result = gk.evolve(letters(), 8, landscape, budget=Budget(calls=80), proposals=[Reversed(), S.Fresh()])
    assert sum(row["shares"]["Reversed"] for row in result.trace) > 0
    late = [t for t in asked[50:] if t[::-1] in asked[:50]]
    assert late


@dataclass(frozen=True)
class Known(S.Proposal):
    """What was asked already, so that none of it is asked."""

    def propose(self, study: S.Study, count: int, key: Tensor) -> S.Candidates:
        return S.Candidates(study.memory.batch(study.memory.parents(count, key)))


def test_a_proposal_that_brings_no_calls_gets_few_slots():
    result = gk.evolve(letters(), 8, landscape, budget=Budget(calls=200), proposals=[Known(), S.Crossover()])
    late = [row["slots"] for row in result.trace][-8:]
    assert sum(row["Known"] for row in late) < 0.15 * sum(map(sum, (row.values() for row in late)))
    assert all(row["shares"].get("Known", 0) == 0 for row in result.trace)


def test_children_of_a_crossover_have_the_letters_of_their_parents_in_their_places():
    design = Design(letters(), ["AAAAAAAAAAAAAA", "BBBBBBBBBBBBBB"], landscape, Budget(calls=60), population=2)
    design.memory.add(
        ["A" * 14, "B" * 14], [None, None], [S.design.memory.Call(0, "start", v, math.nan) for v in (1, 2)]
    )
    children = S.Crossover(mutations=0.0).propose(design.study, 400, gk.random.key(1)).samples
    assert {c for s in children for c in s} == {"A", "B"}
    changes = [sum(a != b for a, b in itertools.pairwise(s)) for s in children]
    assert max(changes) == 2 and min(changes) == 0  # one segment
    more = S.Crossover(mutations=3.0).propose(design.study, 400, gk.random.key(1)).samples
    foreign = sum(c in "CD" for s in more for c in s) / 400
    assert abs(foreign - 1.5) < 4 * (1.5 / 400) ** 0.5  # half of three letters a child; a Poisson number, 4 deviations


def test_parents_are_drawn_from_every_order_of_magnitude_of_ranks():
    design = Design(letters(), 8, landscape, Budget(calls=60))
    texts = spelled(torch.arange(1000)[:, None] // 4 ** torch.arange(14) % 4)
    calls = [S.design.memory.Call(0, "start", float(i), math.nan) for i in range(1000)]
    design.memory.add(texts, [None] * 1000, calls)
    ranks = 999 - torch.tensor(design.memory.parents(20_000, gk.random.key(0)))
    # P(rank < r) is the mean over u of P(rank < r | the best share 10^-u); 20,000 draws have an error of .0035
    for r in (1, 10, 100):
        u = torch.linspace(0, 3, 30_001)
        truth = float((r / (1000 * 10**-u).clamp(min=1)).clamp(max=1).mean())
        assert abs(float((ranks < r).double().mean()) - truth) < 0.014


def test_what_is_wrong_is_said_before_the_first_call():
    calls: list[int] = []

    def net(x: Tensor, t: Tensor, cond: object) -> Tensor:
        calls.append(1)
        return flat(x, t, cond)

    model = gk.MaskedModel(net, 4, LENGTH, decode=spelled, read=numbered)
    for match, options in (
        (r"Budget\(calls=20\) is below the population of 50", {"budget": Budget(calls=20)}),
        ("n=0", {"n": 0}),
        ("70 samples are wanted of Budget", {"n": 70, "budget": Budget(calls=60)}),
        ("the loop might never end", {"budget": Budget(target=1.0)}),
        ("cond is a list", {"cond": [1, 2]}),
        ("StartFrom", {"guides": [gk.StartFrom(torch.zeros(14).long())]}),
        ("Crossover of tokens|GraphOperators is for molecules", {"proposals": [S.GraphOperators()]}),
        ("two are called alike", {"proposals": [S.Fresh(), S.Fresh(screen=3)]}),
        ("content='words'", {"content": "words"}),
        ("population=0", {"population": 0}),
        ("diversity=3 counts scaffolds of molecules, and these samples are text", {"diversity": 3}),
        ("belong to the design loop", {"rounds": 3, "known": "x.csv"}),
        ("level go without a budget", {"budget": Budget(calls=60), "level": 0.5}),
    ):
        with pytest.raises(ValueError, match=match):
            gk.evolve(model, 4, landscape, **options)
    for match, options in (
        ("budget=3", {"budget": 3}),
        ("surrogate=1", {"surrogate": 1}),
        ("proposals=", {"proposals": [1]}),
        ("require=1", {"require": 1}),
        ("seed='a'", {"seed": "a"}),
        ("proposals=", {"proposals": 1}),
    ):
        with pytest.raises(TypeError, match=match):
            gk.evolve(model, 4, landscape, **options)
    for start in (None, True, 2.5, 0, {}):
        with pytest.raises(TypeError, match="start="):
            gk.evolve(model, start, landscape, budget=Budget(calls=60))
    with pytest.raises(
        ValueError, match=r"SVDD asks the reward on the way too, at up to 14 steps of each of 50 samples"
    ):
        gk.evolve(model, 4, landscape, budget=Budget(calls=600), guides=[gk.SVDD(landscape)])
    with pytest.raises(ValueError, match=r"start: sample 1 of 2 \('C1CC'\) is no molecule"):
        gk.evolve(gk.zoo.load("molecules"), ["CC", "C1CC"], landscape)
    assert not calls and not asked


def test_known_files_are_checked(tmp_path: Path):
    file = tmp_path / "a.csv"
    for text, match in (
        ("molecule,y\nCC,1\n", "has the columns molecule, y"),
        ("sample,value\nABCDABCDABCDAB,high\n", "something that is no number"),
        ("", r"has the columns \(none\)"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=match):
            gk.evolve(letters(), 4, landscape, known=file)
    with pytest.raises(ValueError, match=r"nofile\.csv' cannot be read"):
        gk.evolve(letters(), 4, landscape, known="nofile.csv")
    file.write_text("\ufeffsequence;y\nABCDABCDABCDAB;1.5\n", encoding="utf-8")  # as spreadsheets write it
    assert measured(file) == (["ABCDABCDABCDAB"], [1.5])
    with pytest.raises(ValueError, match="2 samples and 1 values"):
        gk.evolve(letters(), 4, landscape, known=(["A", "B"], [1.0]))
    assert not asked


# what it is worth -----------------------------------------------------------------------------------------------------


def test_the_surrogate_finds_more_than_the_same_loop_without_it():
    """Nine seeds each; the smallest of the one is above the mean of the other, and the means are 4 errors apart."""
    found, model = {}, letters(LONG)
    options = {"budget": Budget(calls=200), "proposals": [S.Crossover()], "steps": 10}
    for surrogate in (True, False):
        runs = [gk.evolve(model, 10, landscape, surrogate=surrogate, seed=i, **options) for i in range(9)]
        found[surrogate] = torch.stack([r.rewards.mean() for r in runs])
    screened, plain = found[True], found[False]
    error = ((screened.var() + plain.var()) / 9).sqrt()
    assert screened.mean() - plain.mean() > 4 * error and screened.min() > plain.mean()
    random = gk.sample(model, 200, steps=30, reward=landscape).rewards.topk(10).values.mean()
    assert plain.mean() > random  # and what evolves finds more than what is drawn


@pytest.mark.slow
def test_the_surrogate_finds_better_molecules():
    """The worst of three runs with it is above the best of three without."""
    model, reward = gk.zoo.load("molecules"), objective("celecoxib_rediscovery")
    options = {"n": 10, "budget": Budget(calls=300), "proposals": [S.GraphOperators()], "population": len(DRUGS)}
    found = {
        surrogate: [
            float(gk.evolve(model, DRUGS, reward, surrogate=surrogate, seed=i, **options).rewards.mean())
            for i in range(3)
        ]
        for surrogate in (True, False)
    }
    assert min(found[True]) > max(found[False]), found


DRUGS = [
    "CC(=O)Nc1ccc(O)cc1", "CC(C)Cc1ccc(C(C)C(=O)O)cc1", "CC(=O)Oc1ccccc1C(=O)O", "CN1CCC(c2ccccc2)CC1",
    "CCN(CC)CC(=O)Nc1c(C)cccc1C", "CC(C)NCC(O)COc1cccc2ccccc12", "CN(C)CCOC(c1ccccc1)c1ccccc1",
    "COc1ccc2cc(C(C)C(=O)O)ccc2c1", "CCCCNC(=O)NS(=O)(=O)c1ccc(C)cc1", "O=C(O)Cc1ccccc1Nc1c(Cl)cccc1Cl",
    "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1", "CCOC(=O)c1ccc(N)cc1", "NS(=O)(=O)c1ccc(N)cc1", "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "CC(N)Cc1ccccc1", "OC(c1ccccc1)C1CCCCN1", "O=C1CCC(N2C(=O)c3ccccc3C2=O)C(=O)N1", "CCC(=O)N(c1ccccc1)C1CCNCC1",
    "CC1CCCN1C(=O)C(C)N", "CCCCC(NC(C)C(=O)O)C(=O)OCC", "O=C(O)C1CC2CCCCC2N1", "c1ccc(CN2CCNCC2)cc1",
    "CC(Cc1ccccc1)NC(=O)CN", "COc1cc(CC(N)C(=O)O)ccc1O", "Clc1ccc(C2CCNCC2)cc1", "CC(=O)N1CCN(c2ccc(O)cc2)CC1",
    "Oc1ccc(CCN)cc1O", "CNCCC(Oc1ccccc1)c1ccccc1", "CCN1CCCC1CNC(=O)c1cc(S(N)(=O)=O)ccc1OC", "NC(=O)c1cccnc1",
]  # fmt: skip


# informed moves as a proposal ----------------------------------------------------------------------------------------


class Smooth(Reward):
    """The landscape, of texts and of one-hot rows."""

    differentiable = True

    def score(self, samples):
        if not isinstance(samples, Tensor):
            return landscape(samples)
        hot = samples.double()
        length = hot.shape[1]
        pairs = torch.einsum("ria,rib,iab->r", hot[:, :-1], hot[:, 1:], _PAIRS[: length - 1])
        return (hot * _WEIGHTS[:length]).sum((1, 2)) + pairs


def test_informed_moves_find_more_than_crossovers_for_the_same_calls():
    """Mean of the best ten after 200 calls, gradients included."""
    found = {}
    for proposal in (S.Informed(), S.Crossover()):
        options = {"budget": Budget(calls=200), "proposals": [proposal], "steps": 10, "surrogate": False}
        result = gk.evolve(letters(LONG), 10, Smooth(), **options)
        assert result.cost.reward_calls == 200
        found[proposal.name] = result.trace[-1]["top10"]
    assert found["Informed"] > found["Crossover"] + 1


def test_gradients_are_calls_of_the_budget_and_a_loop_with_them_can_be_extended(tmp_path: Path):
    options = {"proposals": [S.Informed(children=3), S.Crossover()], "steps": 5, "surrogate": False, "population": 20}
    run = lambda calls, folder=None: gk.evolve(  # noqa: E731
        letters(), 5, Smooth(), budget=Budget(calls=calls), checkpoint=folder, **options
    )
    for calls in (37, 60):
        assert run(calls).cost.reward_calls == calls > len(set(asked))
        asked.clear()
    run(37, tmp_path / "loop")
    same(run(60, tmp_path / "loop"), run(60))


def test_informed_moves_keep_the_constraints_of_the_guides():
    keep = gk.Keep(template=[None] * 2 + [3] * 3 + [None] * 9)
    options = {"budget": Budget(calls=80), "proposals": [S.Informed()], "guides": [keep], "steps": 5}
    found = gk.evolve(letters(), 5, Smooth(), **options)
    assert all(text[2:5] == "DDD" for text in found.samples) and found.rewards.std() > 0


def test_informed_moves_say_what_they_do_not_serve():
    ordered = gk.MaskedModel(flat, 4, LENGTH, decode=spelled, read=numbered, ordered=True)
    for message, model, reward, guides in (
        ("fills its places in any order", ordered, Smooth(), []),
        ("does not say it is differentiable", letters(), landscape, []),
        ("constraints alone, and the guides have SVDD", letters(), Smooth(), [gk.SVDD(landscape, candidates=2)]),
    ):
        with pytest.raises(ValueError, match=message):
            gk.evolve(model, 5, reward, budget=Budget(calls=60), proposals=[S.Informed()], guides=guides)
    assert "Informed" in gk.evolve(letters(), 5, Smooth(), budget=Budget(calls=70), steps=5).trace[-1]["shares"]
    assert "Informed" not in gk.evolve(letters(), 5, landscape, budget=Budget(calls=70), steps=5).trace[-1]["shares"]


def test_distinct_designs_differ_as_much_as_asked_and_the_loop_looks_for_them():
    """The best ten of a loop are relatives; ten that differ at eight of thirty places are worth more if it says so from
    the start, and are not less than eight apart."""
    options = {"budget": Budget(calls=200), "steps": 10, "proposals": [S.Crossover()], "surrogate": False, "seed": 1}
    plain = gk.evolve(letters(LONG), 200, landscape, **options)
    assert _apart(plain.x[:10]) < 8
    best: list[int] = []
    for i in range(len(plain)):
        if len(best) < 10 and (not best or int((plain.x[i] != plain.x[best]).sum(1).min()) >= 8):
            best.append(i)
    found = gk.evolve(letters(LONG), 10, landscape, distinct=8, **options)
    assert len(found) == 10 and _apart(found.x) >= 8
    assert found.rewards.mean() > plain.rewards[best].mean()  # type: ignore[union-attr, index]
    assert (found.rewards.diff() <= 0).all()  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="samples differ at 29 places or more, 10 were wanted"):
        few = gk.evolve(letters(LONG), 10, landscape, distinct=29, **options | {"budget": Budget(calls=60)})
    assert 0 < len(few) < 10
    with pytest.raises(ValueError, match="distinct=3 counts places at which tokens differ"):
        gk.evolve(gk.zoo.load("molecules"), 5, landscape, distinct=3)


def _apart(x: Tensor) -> int:
    """The smallest number of places at which two rows differ."""
    pairs = (x[:, None] != x).sum(-1)
    return int(pairs[~torch.eye(len(x), dtype=torch.bool)].min())
