"""Molecules as fragments in any order are read back, their prefixes are whole tokens, and the grammar is exact."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem, rdBase

from guidekit.zoo import data, druglike, fragments, grammar, measure, nets, syntax, tokens, train
from guidekit.zoo.fragments import FIRST, LABELS, split
from guidekit.zoo.grammatical import likely
from rewards.molecules import Part

FILE = data.folder() / "zinc250k.smiles"
SMILES = [
    "CC(=O)Nc1ccccc1", "C[C@@H]1CC(Nc2cncc(-c3nncn3C)c2)C[C@@H](C)C1", "CCOC(=O)[C@@H]1CCCN(C(=O)c2nc(C)n(C)c2C)C1",
    "N#CC1=C(SCC(=O)Nc2cccc(Cl)c2)N=C([O-])[C@H](C#N)C12CCCCC2", "C[NH+](C)CC(=O)N/N=C(\\C)c1ccc(Br)cc1",
    "O=[N+]([O-])c1ccc(S(=O)(=O)N2CCOCC2)cc1F", "CC[S@](=O)c1ccc(OCC(=O)NCP(=O)(OC)OC)cc1", "C1CC12CC2",
    "FC(F)(F)c1cc2[nH]c(SC)nc2cc1I", "CC/C=C/C(=O)N[C@H](C)c1ccc2c(c1)OCO2", "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "c1ccc2c(c1)ccc1c2ccc2ccccc21", "COc1ccc([C@@]2(O)CC[NH2+]C[C@H]2c2cccs2)cc1", "C", "O=c1cc[nH]c(=O)[n-]1",
]  # fmt: skip
CANONICAL = [Chem.CanonSmiles(s) for s in SMILES]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def many(count: int) -> list[str]:
    """Real molecules where the data is here, else those above again and again."""
    real = data.zinc("validation")[:count] if FILE.exists() else []
    return [*SMILES, *real][:count] if real else (SMILES * (count // len(SMILES) + 1))[:count]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [fragments.text(s, rng(i)) for i, s in enumerate(many(600))]


@pytest.fixture(scope="module")
def own(texts) -> fragments.Fragments:
    card = fragments.learned(texts, 160, progress=False).card()
    return fragments.Fragments.of(json.loads(json.dumps(card)))


# texts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_molecules_come_back_with_their_charges_and_stereo_from_any_order_of_fragments(seed):
    found = [fragments.smiles(fragments.text(s, None if seed is None else rng(seed))) for s in SMILES]
    assert found == CANONICAL


def test_no_real_molecule_is_changed():
    smiles = many(300)
    assert [fragments.smiles(fragments.text(s, rng(i))) for i, s in enumerate(smiles)] == [
        Chem.CanonSmiles(s) for s in smiles
    ]


def test_without_randomness_the_text_depends_on_the_molecule_alone():
    for smiles in SMILES:
        mol = Chem.MolFromSmiles(smiles)
        others = {Chem.MolToSmiles(mol, doRandom=True) for _ in range(5)}
        assert {fragments.text(s) for s in others} == {fragments.text(smiles)}


def test_the_same_seed_writes_the_same_text_and_another_seed_another():
    write = lambda seed: [fragments.text(s, r) for r in [rng(seed)] for s in SMILES]  # noqa: E731
    assert write(3) == write(3) != write(4)


def test_every_fragment_is_first_in_some_order():
    whole = fragments.text("CC(=O)Nc1ccccc1")
    count = whole.count(".")
    firsts = {frozenset(split(fragments.text("CC(=O)Nc1ccccc1", rng(i))[1:].split(".")[0])) for i in range(60)}
    elements = lambda f: "".join(sorted(s for s in f if s.isalpha()))  # noqa: E731
    assert count == 3 and {elements(f) for f in firsts} >= {"N", "c", "CO"}


def test_labels_are_the_lowest_free_and_each_is_closed(texts):
    for text in texts:
        opened: set[int] = set()
        for symbol in split(text):
            if symbol[0] == "%":
                label = int(symbol[1:]) - FIRST
                assert label in opened or opened.issuperset(range(label))
                opened ^= {label}
        assert not opened


def test_the_first_fragments_of_a_molecule_are_a_part_of_it_with_hydrogens_at_its_open_bonds():
    text = ".c%101ccccc1.N%10%11.CC%11=O"
    assert fragments.smiles(text) == "CC(=O)Nc1ccccc1"
    assert fragments.smiles(".c%101ccccc1.N%10%11") == "Nc1ccccc1"
    assert fragments.smiles(".c%101ccccc1") == "c1ccccc1"


KEPT = [
    "[*:1]c1ccccc1", "[*:1]N1CC([*:2])(n2cccn2)C1", "*[C@H](F)[C@@H](*)O",
    "[11*][C@@]1(F)CCN(C)C1.[13*]c1ncnc2[nH]ccc12",
]  # fmt: skip


@pytest.mark.parametrize("part", KEPT)
@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_a_part_with_dummies_is_the_beginning_of_every_molecule_that_has_it(part, seed):
    """Whatever closes the open bonds, here oxygen, is where the dummies were, and stereo is as it was."""
    text = fragments.text(part, None if seed is None else rng(seed))
    ends = sorted({s for s in split(text) if s[0] == "%" and split(text).count(s) % 2})
    wanted = Chem.MolFromSmiles(re.sub(r"\[[^]]*\*[^]]*]|\*", "O", part))
    assert len(ends) == part.count("*")
    assert fragments.smiles(text + "".join(f".O{end}" for end in ends)) == Chem.MolToSmiles(wanted)


def drugs() -> list[tuple[str, str, bool]]:
    """Ten drugs and the parts of them that are kept in the benchmark of fragments, and whether they hold these: where
    two pieces are bound to each other alone, nothing lies between them."""
    with (Path(__file__).parent.parent / "benchmarks" / "data" / "fragments.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds = ("linker_design", "motif_extension", "scaffold_decoration")
    apart = {("CYCLOTHIAZIDE", "linker_design"), ("MARIBAVIR", "linker_design")}
    return [(row["smiles"], row[kind], (row["name"], kind) not in apart) for row in rows for kind in kinds]


def test_drugs_are_written_with_the_kept_part_first():
    """The same molecule, stereo and all, in labels that are closed; its part is the text of the part alone."""
    for smiles, part, held in drugs():
        first = fragments.text(part)
        text = fragments.begun(smiles, first)
        assert bool(text) is held is bool(Part(part)([smiles])[0]), (smiles, part)
        if held:
            assert text.startswith(first) and fragments.smiles(text) == Chem.CanonSmiles(smiles)
            assert not fragments.open_labels(text) and text[len(first)] == "."
            whole = Chem.MolFromSmiles(text[1:], sanitize=False)
            assert len(Chem.GetMolFrags(whole)) == 1


def test_a_part_of_the_other_hand_or_with_a_further_neighbour_is_not_held():
    first = fragments.text("[*:1][C@H](C)O")
    assert fragments.begun("C[C@H](O)c1ccccc1", first) and not fragments.begun("C[C@@H](O)c1ccccc1", first)
    assert not fragments.begun("CC(O)c1ccccc1", first) and not fragments.begun("CC(C)(O)c1ccccc1", ".CC%10O")
    assert not fragments.begun("C1CC", first) and not fragments.begun("CC", ".C%10%11")


@pytest.mark.parametrize("part", ["*=C", "CC.[*:1]C", "*.*"])
def test_a_part_that_cannot_begin_a_molecule_has_no_text(part):
    assert fragments.text(part) == ""


@pytest.mark.parametrize("bad", ["", "C1CC", "no molecule", "C(C)(C)(C)(C)C"])
def test_what_is_no_molecule_has_no_text(bad):
    with rdBase.BlockLogs():
        assert fragments.text(bad) == "" == fragments.smiles("." + bad)


def test_a_molecule_that_needs_more_labels_than_there_are_has_no_text():
    ring = lambda n: "C1" + "C(OC)" * n + "C1"  # noqa: E731
    assert fragments.text(ring(LABELS)) and fragments.text(ring(LABELS + 2)) == ""


# tokens --------------------------------------------------------------------------------------------------------------


def test_tokens_hold_a_dot_at_their_beginning_alone(own):
    assert all("." not in word[1:] for word in own.words())
    assert any(len(split(word)) > 3 and word[0] == "." for word in own.words())


def test_a_row_of_whole_fragments_is_a_row_of_whole_tokens(own, texts):
    for text in texts[:200]:
        parts = text[1:].split(".")
        row = [v for v in own.rows([split(text)], 200)[0][0].tolist() if v]
        for k in range(1, len(parts)):
            first = own.rows([split("." + ".".join(parts[:k]))], 200)[0][0].tolist()
            first = [v for v in first if v]
            assert row[: len(first)] == first


def test_encoding_is_deterministic_and_decodes_to_the_same_molecules(own):
    rows = own.encode(SMILES, 60)
    assert np.array_equal(rows, own.encode(SMILES, 60)) and own.decode(rows) == CANONICAL
    random = own.encode(SMILES, 60, rng(1))
    assert np.array_equal(random, own.encode(SMILES, 60, rng(1))) and own.decode(random) == CANONICAL
    assert not np.array_equal(rows, random)


def test_molecules_with_foreign_symbols_or_too_many_tokens_are_left_out(own):
    assert len(own.encode(["[Na+]", "CCO"], 60)) == 1
    assert len(own.encode(["CCO", SMILES[1]], 3)) == 1


def test_both_mirror_images_and_all_labels_are_symbols(own):
    symbols = set(own.symbols)
    assert symbols >= {f"%{FIRST + i}" for i in range(LABELS)}
    assert {s.replace("@@", "@") for s in symbols if "@@" in s} == {s for s in symbols if "@" in s and "@@" not in s}


# grammar -------------------------------------------------------------------------------------------------------------


def test_every_text_of_a_molecule_is_allowed_token_by_token(own, texts):
    rows = torch.from_numpy(own.rows([split(t) for t in texts], 100)[0]).long()
    rules = grammar.Grammar.of(own)
    assert rules.alive(rules.read(rows)).all()
    rows, state = rows[:40], rules.start(40)
    for column in rows.unbind(1):
        assert rules.allowed(state)[torch.arange(len(rows)), column].all()
        state = rules.after(state, column)
    assert (rules.need(state) == 0).all() and rules.alive(state).all()


@pytest.mark.parametrize("length", [6, 30])
def test_whatever_is_allowed_can_be_read_is_one_molecule_and_ends_in_time(own, length):
    """Of eight tokens at random, and of all where none of these is allowed."""
    rules, generator, n = grammar.Grammar.of(own), torch.Generator().manual_seed(length), 20
    state, rows = rules.start(n), torch.zeros(n, length, dtype=torch.long)
    for i in range(length):
        some = torch.randint(0, own.vocab, (n, 8), generator=generator)
        allowed = likely(rules, state, torch.zeros(n, own.vocab).scatter(1, some, 1.0), length - i)[0]
        rows[:, i] = torch.multinomial(allowed.float(), 1, generator=generator)[:, 0]
        state = rules.after(state, rows[:, i])
    assert rules.alive(state).all()
    assert (rules.need(state) == 0).all()
    found = [Chem.MolFromSmiles(text[1:]) for text in own.texts(rows.numpy())]
    assert all(mol is not None and len(Chem.GetMolFrags(mol)) == 1 for mol in found)


FORBIDDEN = {
    "a label used three times": ".C%10.C%10.C%10", "an open bond at the end": ".C%10.C",
    "an open ring at a dot": ".C1CC%10.C%10", "an open branch at a dot": ".C(C%10.C%10",
    "a ring at its own atom": ".C11", "a ring at a neighbour": ".C1C1", "a halogen in a chain": ".CFC",
    "two bonds between two fragments": ".C%10C%11.C%10C%11", "an atom of five bonds": ".C(C)(C)(C)(C)C",
    "a fragment bound to nothing": ".CC.CC", "a branch at the end": ".CC(C)", "a bond to nothing": ".CC=",
    "two rings between the same atoms": ".C12CC12", "a fragment without atoms": ".", "a text without a dot": "CC",
    "a branch that nobody opened": ".CC)C", "a double bond that opens a ring": ".C=1CC1",
    "a ring open at the end of its branch": ".C(C1)CC", "a ring closed after its branch": ".C(C1)CC1",
    "a double bond that closes a ring at a full atom": ".C1(C)(C)CCC=1",
    "five aromatic carbons": ".c1cccc1", "a ring without room for its double bonds": ".c1(C)nc2n(C)ccn2c(=O)n1C",
    "an aromatic atom in no ring": ".CC(C)=cC", "a nitrogen with two neighbours in pyrrole": ".c1ccnc1",
    "a nitrogen with three neighbours in pyridine": ".n1(C)ccccc1", "two carbonyls in benzene": ".O=c1cc(=O)ccc1",
    "a double bond across a bond in no ring": ".c1ccc(cc1)c1cccc1", "an aromatic chain": ".cc",
    "an aromatic carbon of two neighbours with a double bond to one": ".c1cc=CCcc1",
}  # fmt: skip
AROMATIC = [
    ".c1ccccc1", ".c1ccc2ccccc2c1", ".c1ccc2cccc2cc1", ".c1cc[nH]c1", ".n1(C)cccc1",
    ".O=c1cc(C)n(C)cn1", ".Cn1ccccc1=O",
    ".c1ccc(cc1)c1ccccc1", ".O=C1Cc2ccccc2N1", ".c1ccn2cccc2c1", ".C[n+]1ccccc1", ".c1c[n-]nn1",
    ".O=c1[nH]c(=O)c2nc[nH]c2n1C",
    ".c1ccsc1", ".c1ccc2c(c1)C(=O)c1ccccc1C2=O", ".c1cc2ccc1CC2", ".O=c1ccc2ccccc2o1", ".c1ccc2c(c1)[nH]c1ccccc12",
]  # fmt: skip


def plain(*texts: str) -> tuple[grammar.Grammar, dict[str, int]]:
    """The grammar of the symbols of these texts, and their numbers."""
    symbols = sorted({s for t in texts for s in split(t)})
    return grammar.Grammar.of(fragments.Fragments(tuple(symbols), ())), {s: i for i, s in enumerate(symbols, 1)}


@pytest.mark.parametrize("text", AROMATIC)
def test_aromatic_rings_whose_double_bonds_can_be_placed_are_allowed(text):
    """Also where a double bond that is not there must be found between atoms that were written long before."""
    rules, ids = plain(*AROMATIC)
    assert Chem.MolFromSmiles(text[1:]) is not None
    assert rules.alive(rules.read(torch.tensor([[*(ids[s] for s in split(text)), 0]])))[0]


def test_aromatic_rings_are_allowed_as_rdkit_allows_them():
    """Random rings of four to six atoms, and two that share a bond: where RDKit finds double bonds, and only there."""
    atoms = ["c", "n", "o", "[nH]", "c(=O)", "n(C)"]
    rules, ids = plain(".c1ccc2ccccc2c1", *(f".{a}" for a in atoms))
    pick = np.random.default_rng(0)
    texts: list[str] = []
    for _ in range(400):
        a, b = (pick.choice(atoms, int(pick.integers(2, 5)), p=[0.5, 0.2, 0.06, 0.08, 0.08, 0.08]) for _ in range(2))
        texts += [f".c1{''.join(a)}c1", f".c1{''.join(a)}c2{''.join(b)}c12", f".c1{''.join(a)}n2{''.join(b)}c12"]
    with rdBase.BlockLogs():
        wanted = [Chem.MolFromSmiles(t[1:]) is not None for t in texts]
    longest = max(len(split(t)) for t in texts)
    rows = torch.tensor([[ids[s] for s in split(t)] + [0] * (longest + 1 - len(split(t))) for t in texts])
    found = rules.alive(rules.read(rows)).tolist()
    assert 0.1 < sum(wanted) / len(wanted) < 0.9
    assert [t for t, a, b in zip(texts, found, wanted, strict=True) if a != b] == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_grammar_forbids(what):
    rules, ids = plain(*FORBIDDEN.values(), "C1=CC(F)CC1.O", ".C1CC%10C%111.O%10.C(F)(C)C%11")

    def broken(text: str) -> bool:
        state = rules.read(torch.tensor([[*(ids[s] for s in split(text)), 0]]))
        return not rules.alive(state)[0]

    assert broken(FORBIDDEN[what])
    assert not broken(".C1CC%10C%111.O%10.C(F)(C)C%11")


def test_a_fragment_that_can_join_nothing_more_must_have_joined_all():
    """F closes the only bond of the first part; the second has one too, and nothing can be bound to F any more."""
    rules, ids = plain(".C%10.C%11.F%10", ".C%10%11.F%10.N%11%12")
    read = lambda text: rules.read(torch.tensor([[ids[s] for s in split(text)]]))  # noqa: E731
    assert not rules.alive(read(".C%10.C%11.F%10"))[0] and rules.alive(read(".C%10.C%11.C%10"))[0]
    assert rules.alive(read(".C%10%11.F%10"))[0] and rules.alive(read(".C%10.C%11.F%12"))[0]


@pytest.mark.parametrize("text, fine", [(".c1=C", ".c1(=C"), (".C1(C)(CC=1", ".C1(C)(CC1")])
def test_the_beginning_of_a_text_that_cannot_be_completed_is_forbidden(text, fine):
    """An aromatic atom that needs a third bond, and a branch at an atom to which nothing more can be bound."""
    rules, ids = plain(text, fine, ".O")
    read = lambda text: rules.read(torch.tensor([[ids[s] for s in split(text)]]))  # noqa: E731
    assert rules.alive(read(fine))[0] and not rules.alive(read(text))[0]


def test_no_state_is_a_dead_end_and_no_completion_takes_more_symbols_than_are_allowed_for():
    """After random symbols of which each is allowed, kinds with equal probability."""
    rules, _ = plain("C1=CN(C#CO)CC1", ".c2cc(nosc2)n[nH]F%10", "[NH+]S%11")
    states, pick = rules._syntax, np.random.default_rng(0)
    for i in range(300):
        state = syntax.NOTHING
        for _ in range(int(pick.choice([4, 8, 16]))):
            fine = [j for j in range(1, len(states.symbols)) if states._follow(state, j) != syntax.BROKEN]
            kind = pick.choice(sorted({states.symbols[j].kind for j in fine}))
            state = states._follow(state, pick.choice([j for j in fine if states.symbols[j].kind == kind]))
        here = torch.tensor([state])
        rough, closed = int(states.rough(here)[0]), syntax.final(states._states[state])
        need = [int(states.need(here, mode)) for mode in (0, 1, 2)]
        assert need[0] <= rough, (i, need, states._states[state])
        assert closed or max(need) <= rough, (i, need, states._states[state])


def test_rows_that_are_not_worth_a_search_fit_where_there_is_room_for_sure(own):
    """Of beginnings of real texts: with a search, as many as need no more than is left; without one, some of these."""
    rules = grammar.Grammar.of(own)
    rows = torch.from_numpy(own.rows([split(fragments.text(s, rng(i))) for i, s in enumerate(SMILES)], 60)[0]).long()
    state = rules.read(rows[:, :5])
    need, none = rules.need(state), torch.zeros(len(rows), dtype=torch.bool)
    for left in range(1, 30):
        searched, sure = rules.fits(state, left, ~none), rules.fits(state, left, none)
        assert torch.equal(searched, need <= left) and not (sure & ~searched).any()
    counts = [int(rules.fits(state, left, none).sum()) for left in (1, 8, 30)]
    assert counts[0] < counts[2] == len(rows) and counts[1] < int((need <= 8).sum())


@pytest.mark.slow
def test_a_row_is_completed_by_as_many_tokens_as_it_needs(own):
    """From the beginning of real texts, always by a token after which less is needed."""
    rules = grammar.Grammar.of(own)
    rows = torch.from_numpy(own.rows([split(fragments.text(s, rng(i))) for i, s in enumerate(SMILES)], 60)[0]).long()
    state = rules.read(rows[:, :6])
    need = rules.need(state)
    assert need.max() > 6
    for left in range(int(need.max()), 0, -1):
        at = need == left
        token = rules.allowed(state[at], left)
        token[:, 0] = False
        state[at] = rules.after(state[at], token.int().argmax(1))
        need = rules.need(state)
        assert (need[at] < left).all()


def test_a_broken_row_may_only_end(own):
    rules = grammar.Grammar.of(own)
    state = rules.read(torch.full((1, 1), own.symbols.index("C") + 1))
    assert rules.allowed(state)[0].nonzero().flatten().tolist() == [0]


# network, training and sampling --------------------------------------------------------------------------------------

CLASSES = (3, 2)


def small(vocab: int = 12, length: int = 6) -> nets.PrefixNet:
    torch.manual_seed(0)
    return nets.PrefixNet(vocab, length, CLASSES, width=64, depth=2).eval()


def test_a_place_sees_what_is_before_it_and_each_condition():
    net, x, cond = small(), torch.randint(1, 12, (3, 6)), torch.tensor([[0, 1]] * 3)
    out, other = net(x, None, cond), x.clone()
    other[:, 3] = 12
    changed = (net(other, None, cond) - out).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False] * 4 + [True] * 2
    for another in ([1, 1], [0, 0], [3, 1], [0, 2]):
        assert not torch.allclose(net(x, None, torch.tensor([another] * 3)), out)
    assert torch.allclose(net(x[:, :4], None, cond), out[:, :4], atol=1e-6)


def test_only_the_end_follows_the_end():
    x = torch.tensor([[3, 0, 12, 12, 12, 12]])
    p = small()(x, None, torch.tensor([[3, 2]])).softmax(2)
    assert (p[0, 2:, 0] == 1).all() and (p[0, :2, 0] < 1).all()


def test_the_loss_of_prefixes_is_that_of_each_token_up_to_the_first_end():
    net, x = small(), torch.tensor([[3, 5, 0, 0, 0, 0], [4, 4, 7, 2, 0, 0]])
    own = torch.tensor([[0, 1], [2, 0]])
    p = net(x, None, own).log_softmax(2)
    expected = -(p[0, 0, 3] + p[0, 1, 5] + p[0, 2, 0] + p[1, 0, 4] + p[1, 1, 4] + p[1, 2, 7] + p[1, 3, 2] + p[1, 4, 0])
    assert torch.allclose(train.prefixes(CLASSES)(net, (x, own), False), expected / 8)


@pytest.mark.slow
def test_drawn_molecules_keep_what_they_begin_with_and_can_be_read(own):
    net = small(own.vocab, 40)
    begun = torch.from_numpy(own.encode([KEPT[0]] * 10 + [KEPT[1]] * 10, 40, rng())).long()
    rows = measure.draw(net, grammar.Grammar.of(own), torch.tensor([[3, 2]] * len(begun)), begun)
    assert len(begun) == 20 and len(set((begun > 0).sum(1).tolist())) > 1
    assert (rows == begun)[begun > 0].all()
    for text in own.texts(rows):
        mol = Chem.MolFromSmiles(text[1:], sanitize=False)
        assert mol is not None and len(Chem.GetMolFrags(mol)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_an_untrained_network_writes_molecules_too(own, seed):
    """It takes any way that is allowed, so it would find those that lead nowhere: bonds that nothing can follow."""
    torch.manual_seed(seed)
    net = nets.PrefixNet(own.vocab, 40, CLASSES, width=64, depth=2).eval()
    generator = torch.Generator().manual_seed(seed)
    rows = measure.draw(net, grammar.Grammar.of(own), torch.tensor([[3, 2]] * 60), None, generator)
    assert [text for text in own.texts(rows) if Chem.MolFromSmiles(text[1:]) is None] == []


class Killed(BaseException):
    pass


@pytest.mark.filterwarnings("ignore")
def test_training_goes_on_after_a_kill_with_a_rate_that_stays_and_then_falls(tmp_path: Path, monkeypatch):
    x, y = torch.randint(1, 12, (64, 6)).short(), torch.zeros(64, 2, dtype=torch.long)
    rates, plain, limit = [], train.prefixes(CLASSES), [30]

    def loss(net, batch, training):
        if training and len(rates) == limit[0]:
            raise Killed
        if training:
            rates.append(0)
        return plain(net, batch, training)

    options = {"vocab": 12, "length": 6, "classes": CLASSES, "width": 64, "depth": 1}
    task = train.Task("PrefixNet", options, lambda: ((x, y), (x, y)), loss, {"kind": "test"}, 16, constant=True)
    monkeypatch.setitem(train.TASKS, "tiny", task)
    monkeypatch.setattr(train, "SAVED", 0)
    folder, step = tmp_path / "run", lambda: torch.load(tmp_path / "run/tiny/last.ckpt", weights_only=True)
    with pytest.raises(Killed):
        train.train("tiny", 5.0, folder, tmp_path, progress=False)
    assert step()["global_step"] == 30 and step()["cooling"] is None
    limit[0] = 40
    with pytest.raises(Killed):
        train.train("tiny", 5.0, folder, tmp_path, progress=False, cool=20)
    assert step()["cooling"] == (30, 20) and step()["global_step"] == 40
    assert step()["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(task.rate / 2)
    limit[0] = -1
    train.train("tiny", 5.0, folder, tmp_path, progress=False)  # it goes on cooling unasked
    assert len(rates) == step()["global_step"] == 50
    lines = [json.loads(line) for line in (folder / "tiny.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in lines] == sorted(line["steps"] for line in lines)
    assert json.loads((tmp_path / "tiny.json").read_text())["training"]["batch"] == 16


# data ----------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not FILE.exists(), reason="the data is not here")
def test_zinc_is_split_without_overlap_and_nothing_is_lost():
    parts = [data.zinc(split) for split in ("train", "validation", "test")]
    assert [len(p) for p in parts] == [236_984, 6236, 6236] and len({s for p in parts for s in p}) == 249_456


def test_conditions_are_thirds_and_the_source():
    found = {k: torch.tensor([0.0, 1.0, 2.0]) for k in druglike.PROPERTIES} | {"source": torch.tensor([0, 1, 1])}
    edges = {k: [0.5, 1.5] for k in druglike.PROPERTIES}
    assert druglike.conditions(found, edges).tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 1]]


def test_shards_go_on_where_the_one_before_stopped(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("GUIDEKIT_DATA", str(tmp_path))
    monkeypatch.setattr(druglike, "EACH", 3)
    monkeypatch.setattr(druglike, "sources", lambda held_out=False: (SMILES[:5], SMILES[5:12]))
    monkeypatch.setattr(druglike, "VOCAB", 120)
    monkeypatch.setattr(druglike, "LENGTH", 60)
    druglike.write(2)
    own = fragments.Fragments.of(druglike.about()["tokens"])
    (x, y), _ = druglike.prepared()
    expected = [*CANONICAL[:3], *CANONICAL[5:8], *CANONICAL[3:5], CANONICAL[0], *CANONICAL[8:11]]
    assert own.decode(x) == expected and y[:, 3].tolist() == [0, 0, 0, 1, 1, 1] * 2


def test_a_pair_is_never_merged_across_texts():
    assert tokens.merges([["a", "b"], ["a", "b"], ["b", "a"]], ("a", "b"), 4, progress=False) == ((1, 2),)
