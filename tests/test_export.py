"""Files that other programs read."""

from __future__ import annotations

import csv
import gzip
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit.cli import evaluation
from guidekit.jobs.specs import ConfigError
from guidekit.report import export
from rewards import dna
from rewards.molecules import metrics
from rewards.molecules.descriptors import canonical


def measured(*given) -> dict:
    return evaluation.evaluated(*given)[0]


def result(samples, rewards=None):
    """A result with these samples."""
    n = len(samples)
    found = gk.sample(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), n, steps=2)
    known = None if rewards is None else torch.tensor(rewards, dtype=torch.float64)
    return replace(found, samples=samples, rewards=known)


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_table_has_every_number_of_every_sample(tmp_path):
    found = replace(
        gk.sample(gk.analytic.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.5, 0.5], labels=[0, 1]), 2, steps=2,
                  cond=[0, 1]), samples=["A", "C", "G", "T"], rewards=torch.tensor([1.0, 2.0, math.nan, 4.0]),
        log_weights=torch.tensor([0.0, math.log(3), 0.0, 0.0]), holdout=torch.tensor([9.0, 8.0, 7.0, 6.0]),
    )  # fmt: skip
    export.table(tmp_path / "t.csv", found, "dna", {"GC": [0.0, 1.0, 1.0, math.nan]}, ["HepG2", "K562"])
    rows = read(tmp_path / "t.csv")
    assert list(rows[0]) == ["row", "condition", "sample", "reward", "GC", "holdout", "log_weight", "weight"]
    assert [r["condition"] for r in rows] == ["HepG2", "HepG2", "K562", "K562"]
    assert [r["reward"] for r in rows] == ["1.0", "2.0", "", "4.0"]
    assert [r["GC"] for r in rows] == ["0.0", "1.0", "1.0", ""]
    assert [float(r["weight"]) for r in rows] == pytest.approx([0.25, 0.75, 0.5, 0.5])
    assert [r["holdout"] for r in rows] == ["9.0", "8.0", "7.0", "6.0"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", '=HYPERLINK("http://x")', "=a,b\nc"])
def test_no_text_of_a_table_is_a_formula(tmp_path, text):
    export.table(tmp_path / "t.csv", result([text]), "other", {text: [-1.0]}, [text])
    with (tmp_path / "t.csv").open(newline="") as file:
        head, row = list(csv.reader(file))
    assert head[3] == "'" + text
    assert row[1] == row[2] == "'" + text
    assert row[3] == "-1.0"


def test_molecules_are_written_so_that_rdkit_reads_them_back(tmp_path):
    from rdkit import Chem

    smiles = ["CCO", "C1CC", "c1ccccc1", ""]
    numbers = {"QED": [0.4, math.nan, 0.5, math.nan], "odd\n>name": [1.0] * 4}
    export.write(tmp_path, result(smiles, [1.0, math.nan, 2.0, math.nan]), "molecules", numbers, [None])
    assert (tmp_path / "samples.smi").read_text() == "CCO 00000\nc1ccccc1 00002\n"
    mols = list(Chem.SDMolSupplier(str(tmp_path / "samples.sdf")))
    assert [Chem.MolToSmiles(m) for m in mols] == ["CCO", "c1ccccc1"]
    assert [m.GetProp("_Name") for m in mols] == ["00000", "00002"]
    assert [m.GetPropsAsDict()["QED"] for m in mols] == [0.4, 0.5]
    assert [m.GetPropsAsDict()["reward"] for m in mols] == [1.0, 2.0]
    assert mols[1].GetConformer().GetPositions().std() > 0.5


def test_molecules_have_their_canonical_smiles_in_all_files(tmp_path):
    from rdkit import Chem

    export.write(tmp_path, result(["OCC", "C1=CC=CC=C1", "C1CC"]), "molecules", {}, [None])
    assert (tmp_path / "samples.smi").read_text() == "CCO 00000\nc1ccccc1 00001\n"
    assert [row["sample"] for row in read(tmp_path / "samples.csv")] == ["CCO", "c1ccccc1", "C1CC"]
    mols = list(Chem.SDMolSupplier(str(tmp_path / "samples.sdf")))
    assert [m.GetProp("SMILES") for m in mols] == ["CCO", "c1ccccc1"]


def test_what_held_out_rewards_say_is_in_the_files_of_the_domain(tmp_path):
    found = replace(result(["ACGT", "GGGG"], [1.0, 2.0]), holdout=torch.tensor([0.25, math.nan]).double())
    export.write(tmp_path, found, "dna", {"GC": [0.5, 1.0]}, [None])
    heads = [line for line in (tmp_path / "samples.fasta").read_text().splitlines() if line.startswith(">")]
    assert heads == [">00000 GC=0.5 reward=1 holdout=0.25", ">00001 GC=1 reward=2"]


def test_sequences_are_written_so_that_they_are_read_back(tmp_path):
    samples = ["ACGT" * 50, "AC>\nGT"]
    export.fasta(tmp_path / "s.fasta", samples, {"GC": [0.5, math.nan]}, ["a\n>b", None])
    text = (tmp_path / "s.fasta").read_text().split("\n")
    assert text[0] == ">00000 condition=a_>b GC=0.5"
    assert [len(line) for line in text[1:4]] == [80, 80, 40]
    assert export.read(tmp_path / "s.fasta", "dna") == ["ACGT" * 50, "ACNNGT"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_written_so_that_pil_reads_the_same_pixels(tmp_path, channels):
    image = pytest.importorskip("PIL.Image")
    x = torch.rand(3, channels, 5, 7, generator=torch.Generator().manual_seed(0))
    export.write(tmp_path, result(x), "images", {}, [None])
    expected = (x[2] * 255).round().byte().permute(1, 2, 0).numpy()
    with image.open(tmp_path / "images" / "00002.png") as found:
        assert (np.asarray(found).reshape(5, 7, channels) == expected).all()
    with image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (2 * 9 + 2, 2 * 7 + 2)
        pixels = np.asarray(grid).reshape(16, 20, channels)
    assert (pixels[9:14, 2:9] == expected).all()
    assert (pixels[9:14, 11:18] == 255).all()
    assert [r["sample"] for r in read(tmp_path / "samples.csv")][2] == "images/00002.png"
    torch.testing.assert_close(export.read(tmp_path / "images", "images"), x, atol=0.5 / 255 + 1e-6, rtol=0)


def test_files_of_every_kind_are_read(tmp_path):
    files = {
        "a.smi": "CCO ethanol\n\n# note\nC\n",
        "a.csv": "id,SMILES\n1,CCO\n2,C\n",
        "b.csv": "row,sample\n0,'=x\n",
        "a.fa": ">one\nAC\nGT\n>two\nA\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    got = {name: export.read(tmp_path / name, "molecules") for name in files}
    assert got == {"a.smi": ["CCO", "C"], "a.csv": ["CCO", "C"], "b.csv": ["=x"], "a.fa": ["ACGT", "A"]}
    (tmp_path / "c.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="a column sample"):
        export.read(tmp_path / "c.csv", "dna")


def test_molecules_of_an_sdf_are_read_as_they_were_written(tmp_path):
    smiles = ["CCO", "c1ccccc1O", "CC(=O)Nc1ccc(O)cc1"]
    export.molecules(tmp_path, smiles, {})
    assert export.read(tmp_path / "samples.sdf", "molecules") == [canonical(s) for s in smiles]
    found, same = (measured(tmp_path / f"samples.{v}", "molecules", None, ["qed"]) for v in ("sdf", "smi"))
    assert found == same and found["samples"] == 3 and found["validity"] == 1.0
    text = (tmp_path / "samples.sdf").read_text()
    broken = text.replace(" O   0", " Xx  0", 1)  # an atom that is none
    (tmp_path / "broken.sdf").write_text(broken)
    assert export.read(tmp_path / "broken.sdf", "molecules") == ["", *(canonical(s) for s in smiles[1:])]
    (tmp_path / "one.mol").write_text(text.split("M  END")[0] + "M  END\n")
    assert export.read(tmp_path / "one.mol", "molecules") == ["CCO"]
    with pytest.raises(ConfigError, match="an SDF file holds molecules, not dna"):
        measured(tmp_path / "samples.sdf", "dna", None, [])


def test_an_sdf_is_known_by_its_content_and_files_may_be_compressed(tmp_path):
    smiles = ["CCO", "c1ccccc1O"]
    export.molecules(tmp_path, smiles, {}, "designs", [1, 0])
    data = (tmp_path / "designs.sdf").read_bytes()
    for name, content in (("a.txt", data), ("b.SDF", data.replace(b"\n", b"\r\n")), ("c.sdf.gz", gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        assert export.read(tmp_path / name, "molecules") == [canonical("c1ccccc1O"), "CCO"], name
    assert (tmp_path / "designs.smi").read_text() == "Oc1ccccc1 00001\nCCO 00000\n"
    (tmp_path / "d.smi.gz").write_bytes(b"CCO")
    with pytest.raises(ValueError, match="not a gzip file"):
        export.read(tmp_path / "d.smi.gz", "molecules")


def test_tables_without_a_name_for_their_molecules_are_read(tmp_path):
    tables = {
        "structure.csv": "Structure,id\nCCO,1\nCC,2\n",
        "bare.csv": "ethanol,CCO\nethane,CC\n",
        "commas.smi": "CCO,ethanol\nCC;ethane\n",
        "ragged.csv": "id,smiles\n1,CCO\n2,CC,more\n",
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
        assert export.read(tmp_path / name, "molecules") == ["CCO", "CC"], name
    (tmp_path / "odd.csv").write_text("id,what\n1,CCO\n2,no molecule\n")
    with pytest.raises(ValueError, match="a column sample, smiles or sequence is needed"):
        export.read(tmp_path / "odd.csv", "molecules")


@pytest.mark.parametrize(
    "text",
    [
        "id,SMILES\n1,CCO\n2,c1ccccc1\n",
        "\ufeffsmiles\nCCO\nc1ccccc1\n",
        "name;Canonical_SMILES;x\n'a;b';CCO;1\nb;c1ccccc1;2\n",
        "name\tsmiles\na\tCCO\nb\tc1ccccc1\n",
        'name,smiles\n"two\nlines",CCO\nb,c1ccccc1\n',
        "sequence,smiles\nACGT,CCO\nACGT,c1ccccc1\n",
    ],
    ids=["upper case", "byte order mark", "semicolons", "tabs", "quoted lines", "both"],
)
def test_a_table_is_read_by_its_column_of_smiles(tmp_path, text):
    if text.startswith("name;"):
        text = text.replace("'a;b'", '"a;b"')
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert export.read(tmp_path / "a.csv", "molecules") == ["CCO", "c1ccccc1"]


def test_a_line_that_names_the_column_is_no_molecule(tmp_path):
    (tmp_path / "a.smi").write_text("smiles name\nCCO ethanol\n")
    assert export.read(tmp_path / "a.smi", "molecules") == ["CCO"]


@pytest.mark.parametrize(
    ("name", "text", "domain", "said"),
    [
        ("a.csv", "smiles\nCCO\nCCN\n", "dna", "its column 'smiles' holds molecules, not dna"),
        ("a.csv", "sequence\nACGT\n", "molecules", "its column 'sequence' holds DNA, not molecules"),
        ("a.csv", "sample\nCCO\nc1ccccc1\n", "dna", "'CCO' is no DNA; for molecules give --domain molecules"),
        ("a.smi", "CC(=O)O\nCCO\nCCN\n", "dna", r"'CC\(=O\)O' is no DNA"),
        ("a.fa", ">x\nMKVLAAGIVE\n", "dna", "'MKVLAAGIVE' is no DNA"),
        ("a.fa", ">x\nACGTACGT\n>y\nGGCATT\n", "molecules", "'ACGTACGT' is DNA: give --domain dna"),
    ],
)
def test_a_file_of_another_domain_is_refused(tmp_path, name, text, domain, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        measured(tmp_path / name, domain, None, [])


def test_molecules_that_could_be_letters_of_dna_and_ambiguous_dna_are_evaluated(tmp_path):
    (tmp_path / "a.smi").write_text("CCN\nCNC\nCCCCCC\nCS\n")
    assert measured(tmp_path / "a.smi", "molecules", None, [])["validity"] == 1.0
    (tmp_path / "a.fa").write_text(">x\nACGTNRYK\n>y\nacgu-acgu\n")
    assert measured(tmp_path / "a.fa", "dna", None, [])["samples"] == 2


def test_metrics_of_a_file_are_those_of_the_rewards(tmp_path):
    smiles, known = ["CCO", "OCC", "c1ccccc1", "C1CC"], ["CCO", "CCC"]
    (tmp_path / "a.smi").write_text("\n".join(smiles))
    (tmp_path / "b.smi").write_text("\n".join(known))
    found = measured(tmp_path / "a.smi", "molecules", tmp_path / "b.smi", ["qed"])
    assert found["samples"] == 4
    assert found["validity"] == 0.75
    assert found["diversity"] == metrics.internal_diversity(smiles)
    assert found["novelty"] == metrics.novelty(smiles, known) == 0.5
    assert found["mean QED"] == pytest.approx((2 * 0.4068 + 0.4426) / 3, abs=1e-3)


def test_metrics_of_sequences_compare_with_a_reference(tmp_path):
    rng = np.random.default_rng(0)
    mine, theirs = (
        ["".join(rng.choice(list("ACGT"), 30, p=p)) for _ in range(6)] for p in ([0.1, 0.4, 0.4, 0.1], None)
    )
    for name, sequences in (("a.fa", mine), ("b.fa", theirs)):
        (tmp_path / name).write_text("".join(f">x\n{s}\n" for s in sequences))
    found = measured(tmp_path / "a.fa", "dna", tmp_path / "b.fa", [])
    assert found["3-mer correlation"] == dna.kmer_correlation(mine, theirs, 3)
    assert found["6-mer correlation"] == dna.kmer_correlation(mine, theirs, 6)
    assert found["GC"] == pytest.approx(sum(s.count("G") + s.count("C") for s in mine) / 180)
    assert found["novelty"] == 1.0
    assert found["diversity"] == dna.edit_distance_diversity(mine) != dna.edit_distance_diversity(theirs)


def test_metrics_of_images_tell_sets_apart(tmp_path):
    pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    sets = {"a": torch.rand(8, 1, 16, 16, generator=generator), "b": torch.rand(8, 1, 16, 16, generator=generator) / 4}
    for name, x in sets.items():
        (tmp_path / name).mkdir()
        export.images(tmp_path / name, x)
    same = measured(tmp_path / "a" / "images", "images", tmp_path / "a" / "images", [])
    other = measured(tmp_path / "a" / "images", "images", tmp_path / "b" / "images", ["brightness"])
    key = "Frechet distance of 8 x 8 pixels"
    assert same[key] < 1e-3 < other[key]
    assert (same["precision"], same["recall"]) == (1.0, 1.0)
    assert other["precision"] == 0.0
    assert other["mean brightness"] == pytest.approx(float(sets["a"].mean()), abs=1e-2)


def test_what_cannot_be_evaluated_is_told(tmp_path):
    (tmp_path / "a.smi").write_text("C\n")
    (tmp_path / "empty.smi").write_text("")
    (tmp_path / "x.png").write_text("no image")
    for path, domain, reward, said in [
        ("a.smi", "cats", "qed", "molecules, dna or images"),
        ("a.smi", "other", "qed", "molecules, dna or images"),
        ("none.smi", "molecules", "qed", "no such file"),
        ("empty.smi", "molecules", "qed", "no samples"),
        ("a.smi", "molecules", "gc", "scores dna"),
        (".", "images", "brightness", "not an image"),
        ("a.smi", "images", "brightness", "not an image"),
    ]:
        with pytest.raises(ConfigError, match=said):
            measured(tmp_path / path, domain, None, [reward])
