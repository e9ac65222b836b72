"""DNA rewards say what their formulas say: by hand, by plain Python, and by other packages."""

from __future__ import annotations

import math
import pickle
import random
import sys
import time
import types
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from rewards import RewardError, RewardWarning, as_reward, dna
from rewards.dna import sequence

NAN = math.nan
LETTERS = "ACGT"
MATRIX = [[8, 0, 3, 0], [1, 9, 3, 0], [1, 0, 3, 2], [0, 1, 3, 8]]
COMPLEMENT = str.maketrans("ACGT", "TGCA")


def drawn(rows: int, length: int, seed: int = 0, letters: str = LETTERS) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choice(letters) for _ in range(length)) for _ in range(rows)]


def codes(samples: list[str]) -> torch.Tensor:
    return torch.tensor([[LETTERS.index(v) if v in LETTERS else 7 for v in s] for s in samples])


def hot(samples: list[str]) -> torch.Tensor:
    return torch.tensor([[[float(v == b) for b in LETTERS] for v in s] for s in samples], dtype=torch.float64)


def flipped(s: str) -> str:
    return s.translate(COMPLEMENT)[::-1]


def close(found: torch.Tensor, wanted: list[float], atol: float = 1e-9) -> None:
    wanted_ = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found.double(), wanted_, atol=atol, rtol=1e-9, equal_nan=True)


SMOOTH = [
    dna.GC(),
    dna.GC(0.6, 0.7),
    dna.GC(0.2, 0.4, window=5),
    dna.Kmer({"AC": 1.0, "GTN": -2.0}, both_strands=True),
    dna.Forbidden(["GRC", "ACGT"]),
    dna.CpG(),
    *(dna.Motif(MATRIX, how=how) for how in ("max", "sum", "logsumexp")),
    dna.Motif(MATRIX, threshold=-2.0, both_strands=False),
]
HARD = [dna.Homopolymer(), dna.Length(), dna.MeltingTemperature()]
ALL = [*SMOOTH, *HARD]


# composition


def test_gc_is_the_share_of_g_and_c_and_falls_off_linearly_outside_its_window():
    samples = ["GGCA", "gguu", "AAAA", "NGNN", "CCCC"]
    close(dna.GC()(samples), [0.75, 0.5, 0.0, 1.0, 1.0])
    close(dna.GC(0.8)(samples), [0.75 / 0.8, 0.5 / 0.8, 0.0, 1.0, 1.0])
    close(dna.GC(high=0.4)(samples), [0.25 / 0.6, 0.5 / 0.6, 1.0, 0.0, 0.0])
    close(dna.GC(0.5, 0.6)(samples), [0.25 / 0.4, 1.0, 0.0, 0.0, 0.0])


def test_the_worst_window_counts_and_windows_with_other_letters_do_not():
    reward = dna.GC(0.5, 1.0, window=4)
    close(reward(["GGGGAAAGCC", "GGGGCAANAAGGGGGG", "GGA", "ANANGNC"]), [0.5, 1.0, 1.0, 1.0])
    close(dna.GC(0.0, 0.5, window=2)(["ATGCAT"]), [0.0])
    for s in drawn(5, 60, 1):
        shares = [sum(v in "GC" for v in s[i : i + 7]) / 7 for i in range(54)]
        close(dna.GC(0.5, 0.6, window=7)([s]), [min(min(1, f / 0.5, (1 - f) / 0.4) for f in shares)])


def test_the_longest_run_is_broken_by_other_letters():
    close(dna.Homopolymer()(["ACCCT", "TTTTT", "AANAAA", "A", "NNNN", "aAaC"]), [3, 5, 3, 1, NAN, 3])
    for s in drawn(20, 80, 2, "AC"):
        close(dna.Homopolymer()([s]), [max(n for n in range(1, 81) if "A" * n in s or "C" * n in s)])
    assert not dna.Homopolymer().higher_is_better


def test_kmers_are_counted_with_overlaps_for_each_place():
    close(dna.Kmer("AA")(["AAAA", "AANAA", "CC", "A"]), [1.0, 1.0, 0.0, 0.0])
    close(dna.Kmer({"ACG": 2.0, "G": -1.0})(["ACGACG"]), [2 * 2 / 4 - 2 / 6])
    close(dna.Kmer("AC", both_strands=True)(["ACGT"]), [2 / 3])  # AC, and GT on the other strand
    close(dna.Kmer("AT", both_strands=True)(["ATAT"]), [2 / 3])  # a palindrome is one site
    close(dna.Kmer("TAR")(["UAAUAG", "TACTAN"]), [2 / 4, 0.0])
    close(dna.Kmer(["A", "C"])(["AACG"]), [0.75])


def test_forbidden_sites_are_found_on_both_strands():
    reward = dna.Forbidden(["GAATTC", "GGTCTC", "GCNGC"])
    close(reward(["AGAATTCA", "GGTCTC", "GAGACC", "GCAGCAGC", "GCNGC", "ACGT"]), [1, 1, 1, 2, 0, 0])
    close(dna.Forbidden("GGTCTC", both_strands=False)(["GAGACC"]), [0])
    assert not reward.higher_is_better


def test_length_and_cpg_are_those_of_the_bases():
    close(dna.Length()(["ACGT", "AC-GT\n", "NN", "acgu"]), [4, 4, NAN, 4])
    close(dna.CpG()(["CGCG", "ACGTCG", "GGCC", "AAC", "TTT"]), [2 * 4 / 4, 2 * 6 / 4, 0, NAN, NAN])


def test_ten_thousand_sequences_take_a_fraction_of_a_second():
    samples = drawn(10_000, 200)
    gc, kmer, counts = dna.GC(), dna.Kmer("ACG"), []
    for _ in range(5):
        start = time.perf_counter()
        gc(samples), kmer(samples)
        counts.append(time.perf_counter() - start)
    assert min(counts) < 0.3  # some 0.05 s on an idle core


# kinds of samples


@pytest.mark.parametrize("reward", ALL, ids=lambda r: r.name)
def test_strings_codes_and_one_hot_rows_have_the_same_score(reward):
    samples = [*drawn(6, 30, 3), *drawn(6, 30, 4, "ACGTN"), "N" * 30, "ACGT" + "N" * 26]
    wanted = reward(samples)
    assert wanted[:6].isfinite().all() and wanted[12].isnan()
    close(reward([s.lower().replace("t", "u") for s in samples]), wanted.tolist())
    close(reward(codes(samples)), wanted.tolist())
    close(reward(codes(samples).numpy()), wanted.tolist())
    close(reward(hot(samples)), wanted.tolist())
    close(reward(hot(samples).float()), wanted.tolist(), atol=2e-5)
    close(reward(hot(samples).long()), wanted.tolist())


@pytest.mark.parametrize("reward", SMOOTH, ids=lambda r: r.name)
def test_gradients_are_those_of_finite_differences(reward):
    assert reward.differentiable
    x = hot(drawn(3, 12, 5)) * 0.7 + 0.3 * torch.rand(3, 12, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(reward(x).sum(), x)
    for index in [(0, 1, 2), (1, 5, 1), (2, 7, 0), (0, 11, 3), (1, 3, 3)]:
        step = torch.zeros_like(x)
        step[index] = 1e-6
        slope = (reward(x + step) - reward(x - step)).sum() / 2e-6
        torch.testing.assert_close(grad[index], slope.detach(), atol=1e-6, rtol=1e-5)
    if reward.name != "GC" or reward.low is None:
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("reward", [*ALL, dna.FoldingEnergy()], ids=lambda r: r.name)
def test_a_pickled_reward_scores_the_same_and_an_empty_batch_has_no_scores(reward):
    samples = drawn(4, 40, 6)
    close(pickle.loads(pickle.dumps(reward))(samples), reward(samples).tolist())
    assert reward([]).shape == (0,) and reward(torch.zeros(0, 5, dtype=torch.long)).shape == (0,)
    assert reward(torch.zeros(2, 0, dtype=torch.long)).isnan().all()
    assert reward(torch.zeros(2, 0, 4)).isnan().all()


def test_samples_of_other_kinds_are_errors_that_say_what_is_needed():
    for samples in ("ACGT", torch.zeros(3, 5), torch.zeros(3, 4, 5), torch.zeros(3, 5, dtype=torch.bool)):
        with pytest.raises(RewardError, match=r"list of sequences|one-hot tensor"):
            dna.GC()(samples)


JUNK = st.one_of(
    st.text(max_size=30), st.text("acgtunNACGTU-", max_size=30), st.none(), st.integers(), st.binary(), st.floats()
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(JUNK, max_size=8))
def test_each_sample_has_its_own_score_in_order_whatever_is_beside_it(samples):
    for reward in ALL:
        alone = [float(reward([s])[0]) for s in samples]
        close(reward(samples), alone)
        readable = [isinstance(s, str) and any(v in "ACGTUacgtu" for v in s) for s in samples]
        assert not any(not math.isnan(v) and not r for v, r in zip(alone, readable, strict=True))
    assert dna.texts(samples)[::-1] == dna.texts(samples[::-1])


def test_hostile_samples_cost_only_themselves():
    samples = [
        "",
        "\ud800\u00e9\u4e2d",
        "ACGU" * 250_000,
        "acgtacgtta",
        None,
        b"ACGT",
        3.5,
        ["ACGT"],
        "N" * 1000,
        "\0\n",
    ]
    for reward in ALL:
        scores = reward(samples)
        close(scores[[3]], [float(reward(["ACGTACGTTA"]))])
        assert scores.isnan().tolist() == [True, True, False, False, *[True] * 6], reward.name


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: dna.GC(0.7, 0.2),
        lambda: dna.GC(-0.1),
        lambda: dna.GC(window=10),
        lambda: dna.GC(0.5, window=0),
        lambda: dna.Kmer(""),
        lambda: dna.Kmer([]),
        lambda: dna.Kmer("AXC"),
        lambda: dna.Kmer({"A": NAN}),
        lambda: dna.Forbidden([3]),
        lambda: dna.Motif(MATRIX, how="mean"),
        lambda: dna.Motif(MATRIX, how="logsumexp", threshold=1.0),
        lambda: dna.Motif(np.transpose(MATRIX)[:3]),
        lambda: dna.Motif(MATRIX, background=(1, 1, 1, 1)),
        lambda: dna.Motif(MATRIX, pseudocount=0),
        lambda: dna.Motif(MATRIX, pseudocount=-1),
        lambda: dna.Motif("no such factor"),
        lambda: dna.Motif("MA9999.1"),
        lambda: dna.Motif("GATA1", release=1999),
        lambda: dna.Motif("GATA1", tax_group="martians"),
        lambda: dna.Motif("CTCF"),
        lambda: dna.MotifScan({}),
        lambda: dna.MotifScan({"a": MATRIX}, threshold=0),
        lambda: dna.MeltingTemperature(0),
        lambda: dna.FoldingEnergy("protein"),
        lambda: dna.FoldingEnergy("dna", backend="vienna"),
        lambda: dna.FoldingEnergy(temperature=NAN),
        lambda: dna.Network(nn.Flatten(), batch=0),
    ],
)
def test_wrong_arguments_are_errors_at_construction(wrong):
    with pytest.raises(ValueError):
        wrong()


def test_wrong_types_are_errors_at_construction():
    for wrong in (lambda: dna.Network(len), lambda: dna.Network(nn.Flatten(), output="a"), lambda: dna.Motif(None)):
        with pytest.raises(TypeError):
            wrong()


# motifs


def plain_sites(s: str, counts, pseudocount=1.0, q=(0.25,) * 4) -> list[float]:
    """Log-odds at every place of both strands."""
    columns, found = list(zip(*counts, strict=True)), []
    for strand in (s, flipped(s)):
        for i in range(len(s) - len(columns) + 1):
            total = 0.0
            for letter, column in zip(strand[i : i + len(columns)], columns, strict=True):
                b = LETTERS.index(letter)
                p = (column[b] + pseudocount * q[b]) / (sum(column) + pseudocount)
                total += math.log2(p / q[b])
            found.append(total)
    return found


@pytest.mark.parametrize("motif", ["MA0035.4", "MA0139.1"])
def test_jaspar_motifs_score_as_plain_log_odds(motif):
    import pyjaspar

    own = pyjaspar.jaspardb().fetch_motif_by_id(motif)
    counts, samples = [own.counts[b] for b in LETTERS], drawn(8, 60, 7)
    q, s = (0.3, 0.2, 0.2, 0.3), 4.0
    sites = [plain_sites(v, counts, s, q) for v in samples]
    options = {"pseudocount": s, "background": q}
    close(dna.Motif(motif, **options)(samples), [max(v) for v in sites], 1e-8)
    close(dna.Motif(motif, how="sum", **options)(samples), [sum(max(u, 0) for u in v) for v in sites], 1e-8)
    wanted = [sum(max(u + 5, 0) for u in v) for v in sites]
    close(dna.Motif(motif, how="sum", threshold=-5.0, **options)(samples), wanted, 1e-8)
    wanted = [math.log2(sum(2**u for u in v)) for v in sites]
    close(dna.Motif(motif, how="logsumexp", **options)(samples), wanted, 1e-8)
    forward = [max(v[: len(v) // 2]) for v in sites]
    close(dna.Motif(motif, both_strands=False, **options)(samples), forward, 1e-8)
    close(dna.Motif(motif, threshold=3.0, **options)(samples), [max(max(v) - 3, 0) for v in sites], 1e-8)


def test_log_odds_are_those_of_biopython():
    import pyjaspar

    own = pyjaspar.jaspardb().fetch_motif_by_id("MA0035.4")
    own.pseudocounts, own.background = 0.5, None
    w = dna.log_odds([own.counts[b] for b in LETTERS], pseudocount=2.0)  # four of a half
    np.testing.assert_allclose(w, [own.pssm[b] for b in LETTERS], rtol=1e-12)
    consensus = str(own.consensus)
    close(dna.Motif("MA0035.4", pseudocount=2.0)([f"CC{consensus}AA"]), [own.pssm.max], 1e-9)


def test_names_and_ids_lead_to_profiles():
    assert dna.jaspar("MA0035")[0] == dna.jaspar("GATA1", tax_group="vertebrates")[0]
    assert dna.jaspar("gata1", 2020)[:2] == ("MA0035.4", "GATA1") and dna.jaspar("CTCF", "JASPAR2020", "vertebrates")
    with pytest.raises(ValueError, match=r"3 profiles .*MA0139.2 \(15 bp\).*give the id"):
        dna.jaspar("CTCF", 2024, "vertebrates")
    assert dna.Motif("GATA1").name == "GATA1" and dna.Motif("GATA1").unit == "bits"


def test_both_strands_read_the_same():
    samples = drawn(20, 50, 8)
    reverse = [flipped(s) for s in samples]
    for reward in (dna.Motif(MATRIX), dna.Motif(MATRIX, how="logsumexp"), dna.Kmer("ACG", True), dna.GC(), dna.CpG()):
        close(reward(reverse), reward(samples).tolist())
    one_way = dna.Motif(MATRIX, both_strands=False)
    assert (one_way(reverse) - one_way(samples)).abs().max() > 0.5
    assert dna.reverse_complement("ACGRYKMBDHVNSW") == "WSNBDHVKMRYCGT"


def test_no_site_reaches_over_a_letter_that_is_no_base():
    reward = dna.Motif(MATRIX)
    close(reward(["ACN", "ACNA", "ACG"]), [NAN, NAN, NAN])
    close(reward(["GGGGNACAT"]), [max(plain_sites("GGGG", MATRIX) + plain_sites("ACAT", MATRIX))])


@pytest.fixture(scope="module")
def scan():
    return dna.MotifScan(["MA0035.4", "MA0139.1"], threshold=1e-3)


@pytest.mark.slow
def test_counted_sites_are_those_beyond_the_p_value(scan):
    """Hits are windows whose log-odds pass a threshold, found here by enumeration: P(score >= it) < p."""
    samples = [*drawn(150, 100, 9), "TTCTTATCTGT", "A"]
    counts = dna.jaspar("MA0035.4")[2]
    w = dna.log_odds(counts).numpy()
    scores = w[:, 0]
    for column in w.T[1:]:
        scores = (scores[:, None] + column).ravel()  # of all 4^11 words
    wanted, unsure = [], []
    level = np.quantile(scores, 1 - 1e-3)
    for s in samples:
        sites = np.array(plain_sites(s, counts) if len(s) >= 11 else [])
        wanted.append(int((sites > level).sum()))
        unsure.append(int((np.abs(sites - level) < 0.6).sum()))  # FIMO has bins of 0.1 for each position
    found = scan.counts(samples)
    assert list(scan.matrices) == ["MA0035.4 GATA1", "MA0139.1 CTCF"] and sum(wanted) > 5
    assert all(abs(a - b) <= u for a, b, u in zip(found[:, 0].tolist(), wanted, unsure, strict=True))
    assert sum(u == 0 and w > 0 for u, w in zip(unsure, wanted, strict=True)) > 3
    close(scan(samples), found.sum(1).tolist())


@pytest.mark.slow
def test_scores_of_fimo_are_those_of_motif(scan):
    from memelite import fimo

    samples = drawn(30, 80, 10)
    for (name, p), reward in zip(scan.matrices.items(), (dna.Motif("MA0035.4"), dna.Motif("MA0139.1")), strict=True):
        hits = fimo({name: p}, hot(samples).transpose(1, 2).numpy().astype(np.int8), threshold=1e-2, eps=1e-12)[0]
        best = hits.groupby("sequence_name")["score"].max()
        assert len(best) > 5
        close(reward([samples[i] for i in best.index]), best.tolist(), 1e-4)


@pytest.mark.slow  # the scan is compiled first
def test_hits_over_letters_that_are_no_base_are_none_and_both_strands_count(scan):
    site = "TTCTTATCTGT"
    found = scan.counts([site, flipped(site), f"CC{site}", f"{site[:10]}N", "N", None, site])[:, 0]
    close(found, [1, 1, 1, 0, NAN, NAN, 1])
    one_way = dna.MotifScan({"m": dna.jaspar("MA0035.4")[2]}, both_strands=False)
    assert one_way([site, flipped(site)]).tolist() in ([1.0, 0.0], [0.0, 1.0])


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(JUNK, max_size=6))
def test_a_scan_keeps_order_and_gives_nan_to_junk(scan, samples):
    close(scan(samples), [float(scan([s])[0]) for s in samples])


# thermodynamics


def test_melting_temperatures_are_those_of_biopython():
    from Bio.SeqUtils import MeltingTemp

    rng = random.Random(11)
    samples = ["".join(rng.choice(LETTERS) for _ in range(rng.randint(8, 40))) for _ in range(50)]
    close(dna.MeltingTemperature()(samples), [MeltingTemp.Tm_NN(s) for s in samples], 1e-6)
    wanted = [MeltingTemp.Tm_NN(s, Na=300, dnac1=400, dnac2=400) for s in samples]
    close(dna.MeltingTemperature(300, strands=800)(samples), wanted, 1e-6)
    own = MeltingTemp.Tm_NN("GGACGTCC", selfcomp=True, dnac1=100)
    close(dna.MeltingTemperature(strands=100)(["GGACGTCC", "NGGACGTCCNN", "GGANGTCC", "G"]), [own, own, NAN, NAN], 1e-6)


def test_a_duplex_by_hand():
    """CGTTGA: the example of the unified parameters, five steps and the ends."""
    dh = -10.6 - 8.4 - 7.9 - 8.5 - 8.2 + 0.1 + 2.3
    ds = -27.2 - 22.4 - 22.2 - 22.7 - 22.2 - 2.8 + 4.1
    t = 1000 * dh / (ds + 1.987 * math.log(1e-6 / 4)) - 273.15
    close(dna.MeltingTemperature(sodium=1000, strands=1000)(["CGTTGA"]), [t], 1e-9)
    assert dh - 310.15 * ds / 1000 == pytest.approx(-5.35, abs=0.1)  # of the published dG, rounded by step


def test_folding_energies_are_those_of_seqfold_and_the_open_chain_is_zero():
    import seqfold

    hairpin = "GGGGCAAAAAGCCCCT"
    close(dna.FoldingEnergy()([hairpin, "AAAATTT", "N", f"N{hairpin}NN"]), [e := seqfold.dg(hairpin), 0.0, NAN, e])
    rna = seqfold.dg(hairpin.replace("T", "U"))
    close(dna.FoldingEnergy("rna")([hairpin, "AAAA", "ACNGT"]), [rna, 0.0, NAN])
    close(dna.FoldingEnergy(temperature=60.0)([hairpin]), [seqfold.dg(hairpin, 60.0)])
    assert e < -1 and rna != e and seqfold.dg(hairpin, 60.0) > e
    assert seqfold.dg("GCAAAAGC") > 0 and dna.FoldingEnergy("rna")(["GCAAAAGC"]).item() == 0
    close(dna.FoldingEnergy()(codes([hairpin])), [e])


def test_strands_that_cannot_be_folded_are_nan_and_told():
    with pytest.warns(RewardWarning, match="raised on 3 of 5 samples, first ValueError: 600 bases"):
        scores = dna.FoldingEnergy()(["ACGT" * 150, "GGGGAAAACCCC", "AATT", None, "ACGU" * 150])
    assert scores.isnan().tolist() == [True, True, False, True, True]


def test_vienna_is_asked_for_rna_at_the_temperature(monkeypatch):
    asked = []

    def compound(s, details):
        asked.append((s, details.temperature))
        return types.SimpleNamespace(mfe=lambda: ("...", -len(s) / 4))

    monkeypatch.setitem(sys.modules, "RNA", types.SimpleNamespace(md=types.SimpleNamespace, fold_compound=compound))
    reward = dna.FoldingEnergy("rna", backend="vienna", temperature=25.0)
    close(reward(["ACGT", "AC", "acgu"]), [-1.0, -0.5, -1.0])
    assert asked == [("ACGU", 25.0), ("AC", 25.0)]
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.raises(RewardError, match="needs RNA"):
        reward(["ACGT"])


# networks


class Net(nn.Module):
    """sum_j w_j x_{b_j, j} through dropout, two tasks."""

    def __init__(self, length: int = 6):
        super().__init__()
        self.layer, self.dropout = nn.Linear(4 * length, 2), nn.Dropout(0.5)
        nn.init.normal_(self.layer.weight, generator=torch.manual_seed(1))
        self.rows: list[int] = []

    def forward(self, x):
        self.rows.append(len(x))
        return self.dropout(self.layer(x.flatten(1)))


def test_a_network_is_asked_in_batches_and_left_as_it_was():
    net, samples = Net(), drawn(5, 6, 12)
    net.layer.bias.requires_grad_(False)
    net.dropout.eval()
    wanted = net.layer(hot(samples).float().transpose(1, 2).flatten(1))[:, 1].tolist()
    net.dropout.train()
    net.layer.eval()
    reward = dna.Network(net, output=1, batch=2)
    close(reward(samples), wanted, 1e-6)
    close(reward(hot(samples)), wanted, 1e-6)
    close(reward(codes(samples)), wanted, 1e-6)
    assert net.rows == [2, 2, 1] * 3
    assert net.training and net.dropout.training and not net.layer.training
    assert net.layer.weight.requires_grad and not net.layer.bias.requires_grad


def test_gradients_of_a_network_reach_samples_and_not_its_parameters():
    net = Net()
    x = hot(drawn(2, 6, 13)).float().requires_grad_()
    dna.Network(net, output=lambda y: y[:, 0])(x).sum().backward()
    torch.testing.assert_close(x.grad[1], net.layer.weight[0].detach().view(4, 6).T)
    assert net.layer.weight.grad is None
    with torch.no_grad():
        assert not dna.Network(net, output=0)(x).requires_grad


def test_strands_are_averaged_and_channels_may_come_last():
    net, samples = Net(), drawn(4, 6, 14)
    plain, both = dna.Network(net, output=0), dna.Network(net, output=0, strand_average=True)
    reverse = [flipped(s) for s in samples]
    close(both(samples), ((plain(samples) + plain(reverse)) / 2).tolist(), 1e-6)
    assert (plain(samples) - plain(reverse)).abs().max() > 0.1
    close(both(reverse), both(samples).tolist(), 1e-6)
    last = dna.Network(net, output=0, channels_last=True)
    wanted = net.eval().layer(hot(samples).float().flatten(1))[:, 0].tolist()
    close(last(samples), wanted, 1e-6)


def test_lengths_that_a_network_cannot_take_are_nan_and_told():
    net = Net()
    reward = dna.Network(net, output=0)
    with pytest.warns(RewardWarning, match="raised on 2 of 5 samples"):
        scores = reward(["ACGTAC", "ACG", "", "NNNNNN", "TTA"])
    alone = float(reward(["ACGTAC"]))  # in another batch, and so with other rounding on some processors
    assert float(scores[0]) == pytest.approx(alone, rel=1e-6) and scores[1:].isnan().all()
    with pytest.raises(RewardError, match=r"\(2, 2\) for 2 rows.*output="):
        dna.Network(net)(["ACGTAC", "AAAAAA"])
    assert reward([]).shape == (0,)


def test_sequences_of_another_length_than_a_network_was_trained_on_are_scored_and_told():
    reward = dna.Network(Net(), output=0, length=6)
    reward(["ACGTAC", ""])  # warnings are errors here
    with pytest.warns(RewardWarning, match="trained on 4 bases; its score of 6 bases may mean little"):
        scores = dna.Network(reward.module, output=0, length=4)(["ACGTAC"])
    close(scores, reward(["ACGTAC"]).tolist())


def test_a_bare_network_that_is_given_texts_is_told_what_to_take():
    with pytest.raises(RewardError, match=r"a network was given texts.*rewards\.dna\.Network\(network\)"):
        as_reward(torch.nn.Conv1d(4, 1, 3))(["ACGTAC"])


def test_the_score_of_a_band_does_not_go_by_the_name_of_the_content():
    assert [dna.GC().name, dna.GC(0.4, 0.6).name, dna.GC(high=0.5).name] == [
        "GC",
        "GC within 0.4 to 0.6",
        "GC within 0 to 0.5",
    ]
    assert float(dna.GC(0.4, 0.6)(["ACGT"])) == 1.0 and float(dna.GC()(["ACGT"])) == 0.5


def test_log_odds_of_a_class_and_the_missing_oracle():
    logits = torch.tensor([[0.2, -1.0, 2.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    p = logits.softmax(1)[:, 1]
    close(dna.LogOdds(1)(logits), (p / (1 - p)).log().tolist())
    close(dna.LogOdds(-1)(logits), dna.LogOdds(2)(logits).tolist())
    with pytest.raises(ValueError, match="classes"):
        dna.LogOdds(3)(logits)


def test_cell_types_are_the_log_odds_of_the_bundled_oracle_on_both_strands():
    zoo = pytest.importorskip("guidekit.zoo")
    samples, net = drawn(6, 200, 3, "ACGT"), zoo.network("dna-oracle")
    classes = zoo.card("dna-oracle")["classes"]
    x = torch.nn.functional.one_hot(dna.encode(samples).long(), 4).float().mT
    for name in ("HepG2", "hESCT0"):
        c = classes.index(name)
        both = []
        for strand in (x, x.flip(1, 2)):
            p = net(strand).double().softmax(1)
            both.append((p[:, c] / (1 - p[:, c])).log())
        reward = dna.CellType(name)
        assert (reward(samples) - (both[0] + both[1]) / 2).abs().max() < 1e-4
        assert reward.name == f"{name} log-odds"
    assert torch.allclose(reward(samples), reward([dna.reverse_complement(s) for s in samples]), atol=1e-4)
    with pytest.raises(ValueError, match="the oracle knows GM12878, HepG2, K562, hESCT0"):
        dna.CellType("HeLa")


# metrics


def test_kmer_counts_and_their_correlation():
    samples = drawn(50, 60, 15, "ACGTN")
    words = [a + b + c for a in LETTERS for b in LETTERS for c in LETTERS]
    wanted = [[sum(s[i : i + 3] == w for i in range(58)) for w in words] for s in samples]
    torch.testing.assert_close(dna.kmer_counts(samples), torch.tensor(wanted).double())
    assert dna.kmer_counts(["AC", None]).nansum() == 0 and dna.kmer_counts(["AC", ""]).isnan().sum() == 64
    rich, poor = drawn(50, 60, 16, "ACCGGT"), drawn(50, 60, 17, "AACGTT")
    a, b = (dna.kmer_counts(s).sum(0).numpy() for s in (rich, poor))
    assert dna.kmer_correlation(rich, rich) == pytest.approx(1)
    assert dna.kmer_correlation(rich, poor) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert dna.kmer_correlation(rich, drawn(50, 60, 18, "ACCGGT")) > 0.8 > 0 > dna.kmer_correlation(rich, poor)
    assert math.isnan(dna.kmer_correlation([], rich)) and math.isnan(dna.kmer_correlation(["ACGT"], ["A"], k=1))
    with pytest.raises(ValueError, match="from 1 to 8"):
        dna.kmer_counts(rich, k=0)


def test_motif_correlation_is_spearmans_of_mean_counts():
    from scipy.stats import spearmanr

    motifs = {w: [[20.0 * (v == b) for v in w] for b in LETTERS] for w in ("GATAAG", "ACGTGC", "TTTTTT", "GGCGGA")}
    scan = dna.MotifScan(motifs, threshold=1e-2)
    a, b = drawn(30, 100, 19), drawn(40, 100, 20, "AACGTTTT")
    means = [scan.counts(s).mean(0) for s in (a, b)]
    assert dna.motif_correlation(a, b, scan) == pytest.approx(spearmanr(*means).statistic)
    assert dna.motif_correlation(a, [*a, ""], scan) == pytest.approx(1)


def plain_levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


def test_levenshtein_by_hand_and_by_the_table_of_distances():
    pairs = [
        ("", "", 0),
        ("A", "", 1),
        ("", "ACG", 3),
        ("ACGT", "AGT", 1),
        ("GATTACA", "GCATGCT", 4),
        ("AAAA", "TTTT", 4),
    ]
    pairs += [("A" * 64, "A" * 65, 1), ("A" * 129, "A" * 64, 65), ("ACGT" * 32, "CGTA" * 32, 2)]
    a, b, wanted = zip(*pairs, strict=True)
    assert dna.levenshtein(a, b).tolist() == list(wanted)
    rng = random.Random(21)
    a, b = (["".join(rng.choice("ACGTN") for _ in range(rng.randint(0, 150))) for _ in range(40)] for _ in range(2))
    b[:10] = [s[:20] + s[25:] + "GG" for s in a[:10]]
    assert dna.levenshtein(a, b, rows=7).tolist() == [plain_levenshtein(x, y) for x, y in zip(a, b, strict=True)]
    assert dna.levenshtein([], []).tolist() == []
    with pytest.raises(ValueError, match="pairs; given 1 and 0"):
        dna.levenshtein(["A"], [])


def test_diversity_is_a_mean_over_pairs_and_nearest_distances_a_least():
    assert dna.edit_distance_diversity(["ACGT"] * 5) == 0 and math.isnan(dna.edit_distance_diversity(["A", None]))
    assert dna.edit_distance_diversity(["AAAA", "AATTTTTT"]) == 6 / 8
    three = ["AAAA", "AATT", "GGGG"]  # distances 2, 4 and 4 of 4
    assert dna.edit_distance_diversity(three, pairs=4000) == pytest.approx(10 / 12, abs=0.02)  # sd 0.25/sqrt(4000)
    assert dna.edit_distance_diversity(three, 50, seed=1) == dna.edit_distance_diversity(three, 50, seed=1)
    close(dna.nearest_edit_distance(["AAAT", None, "aagg", "GGGG"], [*three, ""]), [1, NAN, 2, 0])
    close(dna.nearest_edit_distance(["A"], []), [NAN])
    with pytest.warns(RewardWarning, match="1 of 3 sequences have more than longest=5"):
        close(dna.nearest_edit_distance(["AAAT", "A" * 6, "C"], ["A"], longest=5), [3, NAN, 1])


def test_uniqueness_novelty_and_gc():
    samples = ["ACGT", "acgu", "GGC", "ACGTN", None, "N"]
    assert dna.uniqueness(samples) == 2 / 4
    assert dna.novelty(samples, ["acgt"]) == 1 / 4
    assert math.isnan(dna.uniqueness([""])) and math.isnan(dna.novelty([], ["A"]))
    found = dna.gc_distribution(["GGCC", "AATT", "GCAT", "", "GGGT"])
    wanted = {"mean": 0.5625, "sd": np.std([1, 0, 0.5, 0.75]), "min": 0, "median": 0.625, "max": 1}
    assert found == pytest.approx(wanted)
    assert all(math.isnan(v) for v in dna.gc_distribution([]).values())
    assert dna.uniqueness(codes(["ACG", "ACG", "ACT"])) == 2 / 3


# encoding


def test_one_long_sequence_does_not_widen_the_others():
    batch = ["ACGT"] * 1000 + ["A" * 100_000]
    parts = list(sequence.blocks(batch, cells=200_000))
    assert sorted(i for rows, _ in parts for i in rows.tolist()) == list(range(1001))
    assert max(x.numel() for _, x in parts) <= 200_000
    assert dna.encode(["ACGTUacgtun\u00e9"]).tolist() == [[0, 1, 2, 3, 3, 0, 1, 2, 3, 3, 4, 4]]
    assert dna.texts(codes(["NAGNN", "NNNNN"])) == ["AG", ""]
    soft = torch.tensor([[[0.2, 0.6, 0.1, 0.1], [0.25] * 4, [0.0] * 4, [0, 0, 0, 1.0]]])
    assert dna.encode(soft).tolist() == [[1, 4, 4, 3]]


def test_importing_brings_nothing_heavy():
    import subprocess

    heavy = "{'pyjaspar', 'memelite', 'seqfold', 'Bio', 'numba', 'pandas', 'scipy', 'guidekit'}"
    code = f"import sys, rewards.dna; assert not {heavy} & set(sys.modules)"
    with warnings.catch_warnings():
        subprocess.run([sys.executable, "-c", code], check=True)
