"""A model of fragments: rows follow the grammar, a kept part is the beginning of every sample, SMILES are read."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from rdkit import Chem

import guidekit as gk
import guidekit.zoo as zoo
from guidekit.search.design.study import Study
from guidekit.zoo import fragments, nets
from guidekit.zoo.grammar import Grammar
from guidekit.zoo.grammatical import LEAST, Grammatical, likely

SMILES = [
    "CC(=O)Nc1ccccc1", "CCOC(=O)[C@@H]1CCCN(C(=O)c2nc(C)n(C)c2C)C1", "C[NH+](C)CC(=O)N/N=C(\\C)c1ccc(Br)cc1",
    "O=[N+]([O-])c1ccc(S(=O)(=O)N2CCOCC2)cc1F", "COc1ccc(CN2CCNCC2)cc1", "Cn1cnc2ccccc21", "CCN(CC)C(=O)c1ccco1",
]  # fmt: skip
LENGTH = 24


@pytest.fixture(scope="module")
def tokens() -> fragments.Fragments:
    texts = [fragments.text(s, np.random.default_rng(i)) for i in range(40) for s in SMILES]
    return fragments.learned(texts, 90, progress=False)


@pytest.fixture(scope="module")
def card(tokens: fragments.Fragments) -> dict:
    options = {"vocab": tokens.vocab, "length": LENGTH, "classes": [3, 2], "width": 64, "depth": 1}
    return {
        "options": options, "tokens": tokens.card(), "properties": ["QED"], "thirds": ["low", "middle", "high"],
        "classes": ["low QED", "middle QED", "high QED", "MOSES", "ZINC"],
        "sources": ["MOSES", "ZINC"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def model(card: dict) -> gk.Model:
    torch.manual_seed(0)
    return zoo._fragments(nets.PrefixNet(**card["options"]).eval().requires_grad_(False), card)


def whole(x: torch.Tensor, tokens: fragments.Fragments) -> list[Chem.Mol]:
    return [Chem.MolFromSmiles(text[1:], sanitize=False) for text in tokens.texts(x)]


def test_every_sample_is_one_molecule(model, tokens):
    x = gk.sample(model, 20, steps=LENGTH, seed=1).x
    found = [Chem.MolFromSmiles(text[1:]) for text in tokens.texts(x)]
    assert all(mol is not None and len(Chem.GetMolFrags(mol)) == 1 for mol in found)
    assert len({Chem.MolToSmiles(mol) for mol in found}) > 10


def test_the_next_token_is_drawn_from_the_network_among_what_the_grammar_allows(model, tokens):
    """Also where the states of the grammar are remembered: against reading each row from its beginning."""
    net, whole_rows, k = model.net, gk.sample(model, 12, steps=LENGTH, seed=2).x, 4
    x = torch.where(torch.arange(LENGTH) < k, whole_rows, tokens.vocab)
    x = x[(x[:, :k] > 0).all(1)]
    cond = torch.tensor([[3, 2]]).repeat(len(x), 1)
    for again in (net, Grammatical(net.net, Grammar.of(tokens))):
        p = again(x, None, cond)[:, k].softmax(-1)
        free = net.net(x, None, cond)[:, k].softmax(-1)
        grammar = Grammar.of(tokens)
        allowed = grammar.allowed(grammar.read(x[:, :k]), LENGTH - k) & (free >= LEAST)
        expected = (free * allowed) / (free * allowed).sum(1, keepdim=True)
        assert (allowed.sum(1) > 1).all() and not allowed.all()
        assert torch.allclose(p, expected, atol=1e-6)


def test_a_full_table_of_the_grammar_is_emptied_and_samples_stay_the_same(model, monkeypatch):
    x, met = gk.sample(model, 8, steps=LENGTH, seed=4).x, model.net.grammar.met
    monkeypatch.setattr("guidekit.zoo.grammatical.MET", 50)
    assert torch.equal(gk.sample(model, 8, steps=LENGTH, seed=4).x, x)
    assert model.net.grammar.met < met / 2


def test_where_no_likely_token_is_allowed_all_that_are_allowed_are(model, tokens):
    grammar = Grammar.of(tokens)
    states = grammar.read(torch.as_tensor(tokens.read(SMILES[:2], LENGTH)[:, :1]).long())
    p = torch.zeros(2, tokens.vocab)
    p[:, 0] = 1.0  # the end, which would leave a fragment open
    assert not grammar.allowed(states, LENGTH - 2)[:, 0].any()
    allowed, asked = likely(grammar, states, p, LENGTH - 2)
    assert torch.equal(allowed, grammar.allowed(states, LENGTH - 2)) and asked.all()


def test_a_rare_token_is_never_drawn_and_can_be_kept(model, tokens):
    """Its log-probability is that of the network less 25, and the others share what is left."""
    first = int(gk.sample(model, 1, steps=LENGTH, seed=1).x[0, 0])
    net = lambda x, t, cond: model.net.net(x, t, cond) - 20.0 * (torch.arange(tokens.vocab) == first)  # noqa: E731
    net.vocab = tokens.vocab
    lawful, x = Grammatical.__new__(Grammatical), torch.full((1, LENGTH), tokens.vocab)
    torch.nn.Module.__init__(lawful)
    lawful.net, lawful.grammar, lawful._known = net, Grammar.of(tokens), {}
    cond = torch.tensor([[3, 2]])
    free, p = (f(x, None, cond)[0, 0].double().log_softmax(-1) for f in (net, lawful))
    assert free[first].exp() < LEAST and p[first] < -40
    best = int(p.argmax())
    assert float(p[first] - p[best]) == pytest.approx(float(free[first] - free[best]) - 25, abs=1e-4)


@pytest.mark.parametrize("part", ["[*:1]c1ccccc1", "[*:1]N1CCN([*:2])CC1"])
def test_a_kept_part_is_in_every_molecule_and_log_z_is_its_probability(model, tokens, part: str):
    result = gk.sample(model, 30, steps=LENGTH, guides=[gk.Keep(template=part)], seed=3)
    query = Chem.MolFromSmarts(re.sub(r"\[\*:\d]", "*", part))
    found = whole(result.x, tokens)
    for mol in found:
        mol.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(mol)
    assert all(mol.HasSubstructMatch(query) for mol in found)
    assert len({Chem.MolToSmiles(mol) for mol in found}) > 15
    first = tokens.beginning(part, LENGTH)
    assert torch.equal(result.x[:, : len(first)], torch.as_tensor(first).long().expand(30, -1))
    log_p, words = 0.0, Grammar.of(tokens).tokens
    ends = torch.tensor([not word or word[0] == "." for word in words])  # the last atom of the part does not go on
    for k in range(len(first) + 1):
        x = torch.full((1, LENGTH), tokens.vocab)
        x[0, :k] = torch.as_tensor(first[:k]).long()
        each = model.net(x, None, torch.tensor([[3, 2]]))[0, k].double().log_softmax(-1)
        log_p += float(each[int(first[k])] if k < len(first) else each[ends].logsumexp(0))
    assert ends[result.x[:, len(first)]].all()
    assert float(result.log_z) == pytest.approx(log_p, abs=1e-6) and float(result.ess) == pytest.approx(30)


def test_molecules_are_read_and_come_back(model):
    x = model.read(SMILES)
    assert model.decode(x) == [Chem.CanonSmiles(s) for s in SMILES]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("CCX", "no SMILES of a molecule"), ("[*:1]CC", "open bonds"),
        ("C[Si](C)(C)C", "which the model does not know"),
        ("C" * 60, "tokens, and the model has"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error_that_says_why(model, bad: str, why: str):
    with pytest.raises(ValueError, match=why):
        model.read([bad])


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("c1ccccc1", "where it goes on by single bonds"), ("[*:1]=CC", "no part of a molecule"),
        ("[*:1]C[Si](C)(C)C", "which the model does not know"), ("[*:1]" + "CN" * 40, "tokens"),
        ("[*:1]/C=C/c1ccccc1", "an open bond decides the stereo of a double bond"),
        ("[*:1]C([*:2])([*:3])C([*:4])([*:5])C([*:6])([*:7])C([*:8])([*:9])[*:10]", "cannot be kept: it takes"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_be_kept_is_an_error_before_the_first_network_call(model, part: str, why: str):
    called = []
    with pytest.raises(ValueError, match=why):
        gk.sample(model, 2, steps=LENGTH, guides=[gk.Keep(template=part)], callbacks=[lambda p, s: called.append(1)])
    assert not called


PART = "[*:1]N1CCCC1"
LEADS = ["CCN(CC)C(=O)c1ccco1", "O=C(Nc1ccccc1)N1CCCC1", "CC(=O)N1CCCC1"]


def test_samples_are_written_so_that_the_kept_part_comes_first(model, tokens):
    """The same molecules; those that do not hold the part, or begin with it already, are left as they are."""
    x, first = model.read(LEADS), torch.as_tensor(tokens.beginning(PART, LENGTH)).long()
    keep = gk.Keep(template=PART).bind(model)
    own, fine = keep.admits(model, x)
    assert fine.tolist() == [False, True, True] and model.decode(own) == [Chem.CanonSmiles(s) for s in LEADS]
    assert (own[1:, : len(first)] == first).all() and not (x[1:, : len(first)] == first).all(1).any()
    again, fine = keep.admits(model, own[1:])
    assert torch.equal(again, own[1:]) and fine.all()
    parents = Study(model, None, (gk.Keep(template=PART),)).admitted(x)  # type: ignore[arg-type]
    assert torch.equal(parents, own[1:])
    ring = gk.Keep(template="[*:1]c1ccccc1[*:2]").bind(model)  # which one fragment would close twice
    assert ring.admits(model, model.read(["C1CCc2ccccc2C1"]))[1].tolist() == [False]
    each = gk.Keep(known=own[1:], where=torch.arange(LENGTH) < len(first)).bind(model)  # one for each condition
    assert torch.equal(each.admits(model, x[1:])[0], own[1:])


def test_a_run_from_leads_keeps_the_part_and_what_the_level_leaves(model, tokens):
    guides = [gk.StartFrom(LEADS[1:], 0.3), gk.Keep(template=PART)]
    found = gk.sample(model, 6, steps=LENGTH, guides=guides, seed=5)
    own, _ = gk.Keep(template=PART).bind(model).admits(model, model.read(LEADS[1:]))
    kept = ((own > 0).sum(1) * 0.7).floor().long()
    for row, i in zip(found.x, found.memos[0].tolist(), strict=True):
        most = max(int(kept[i]), len(tokens.beginning(PART, LENGTH)))
        assert torch.equal(row[:most], own[i, :most])


def test_regrown_parents_keep_the_part(model):
    """Of a loop that begins with leads in another order of fragments, one of which does not hold the part."""
    size = lambda smiles: [float(len(s)) for s in smiles]  # noqa: E731
    options = {"guides": [gk.Keep(template=PART)], "proposals": [gk.search.Regrow()], "surrogate": False}
    budget = gk.search.Budget(calls=20)
    found = gk.evolve(model, LEADS, size, n=20, population=6, budget=budget, steps=LENGTH, **options)
    about = found.config["design"]["proposals"]
    held = [Chem.MolFromSmiles(s).HasSubstructMatch(Chem.MolFromSmarts("N1CCCC1")) for s in found.samples]
    assert about.count("Regrow") == 14 and about.count("start") == 3
    assert all(h or source == "start" for h, source in zip(held, about, strict=True))


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("[*:1][Si](C)(C)C", "CC(C)(C)[*:1], with C for Si"), ("[*:1]=CC", "CC[*:1], by single bonds to the open ends"),
        ("[*:1][13c]1ccccc1", "c1ccc([*:1])cc1, without isotopes"),
        ("[*:1]C([*:2])([*:3])C([*:4])([*:5])C([*:6])([*:7])C([*:8])([*:9])[*:10]", ", with 7 of its open bonds"),
    ],
)  # fmt: skip
def test_the_nearest_part_that_can_be_kept_is_named(model, tokens, part: str, other: str):
    with pytest.raises(ValueError) as found:
        gk.Keep(template=part).bind(model)
    assert other in str(found.value), found.value
    near = str(found.value).split("can be written is ")[1].split(",")[0]
    assert len(tokens.beginning(near, LENGTH)) and gk.Keep(template=near).bind(model)


def test_conditions_are_texts_or_dicts(model):
    for condition, expected in (
        ("high QED, zinc", [2, 1]), ("MOSES", [3, 0]), ({"QED": "low"}, [0, 2]), (None, [3, 2]), ("middle qed", [1, 2]),
        (0, [0, 2]), (4, [3, 1]),
    ):  # fmt: skip
        assert model.encode(condition).tolist() == expected
    for wrong in ("high logP", {"QED": "best"}, "no such thing", 5, True):
        with pytest.raises(ValueError, match="QED: low, middle, high; source: MOSES, ZINC"):
            model.encode(wrong)


def test_a_level_is_a_share_of_a_molecules_tokens_and_one_token_is_drawn_at_a_time(model, tokens):
    """Rows that use fewer positions begin with more masks, and the run so early that each mask has its own move."""
    x = model.read(SMILES)
    used, seen = (x > 0).sum(1), []
    result = gk.sample(
        model, 7, steps=LENGTH, guides=[gk.StartFrom(x, 0.3)], seed=4, callbacks=[lambda p, s: seen.append(p.x.clone())]
    )
    kept = (used * 0.7).floor().long()
    for row, first, own in zip(result.x, kept.tolist(), x, strict=True):
        assert torch.equal(row[:first], own[:first])
    masks = [(v == tokens.vocab).sum(1) for v in seen]
    assert max(int((a - b).max()) for a, b in pairwise(masks)) == 1
    assert len(seen) == LENGTH - int(kept.min())
    assert all(len(Chem.GetMolFrags(mol)) == 1 for mol in whole(result.x, tokens))
    better = gk.refine(model, x, lambda smiles: [float(len(s)) for s in smiles], rounds=2, level=0.5, steps=LENGTH)
    assert (better.trace["changed"] > 0).any() and (
        better.rewards >= torch.tensor([len(s) for s in model.decode(x)])
    ).all()


def test_fewer_steps_than_tokens_and_samples_without_the_kept_part_are_errors(model):
    with pytest.raises(ValueError, match=f"10 steps: this model draws one token at a time, and has {LENGTH}"):
        gk.sample(model, 2, steps=10)
    guides = [gk.StartFrom(model.read(["CCN(CC)C(=O)c1ccco1"])), gk.Keep(template="[*:1]c1ccccc1")]
    with pytest.raises(ValueError, match=r"sample 0 \(counted from 0\) does not hold what Keep keeps"):
        gk.sample(model, 2, steps=LENGTH, guides=guides)
    with pytest.raises(ValueError, match="alone=True is for models with ordered=True"):
        gk.MaskedModel(model.net, 4, 5, alone=True)
