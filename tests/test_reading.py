"""Samples as states, the inverse of decoding: of bundled models, of one's own, and of pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import guidekit as gk
from guidekit.integrations.mdlm import from_mdlm
from guidekit.models import reading
from rewards.molecules.descriptors import canonical

LEADS = ["CC(C)Cc1ccc(cc1)C(C)C(=O)O", "Cc1ccc(cc1)S(=O)(=O)N", "COc1ccccc1OCC(O)CO", "CC(=O)Nc1ccc(O)cc1"]

WORDS = ["ab", "ba", "cc", "ac", "bb", "ca"]


def spelled(read: Any = None, **options: Any) -> gk.MaskedModel:
    """Words of the letters a, b and c."""

    def decode(x: Tensor) -> list[str]:
        return ["".join("abc"[v] for v in row) for row in x.tolist()]

    return gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 3), 3, 2, decode, read=read, **options)


def letters(words: list[str]) -> list[list[int]]:
    for word in words:
        if set(word) - set("abc"):
            raise ValueError(f"it has letters other than a, b and c: {word}")
    return [["abc".index(v) for v in word] for word in words]


def test_a_reader_of_ones_own_is_the_inverse_of_decode():
    model = spelled(letters)
    x = model.read(WORDS)
    assert x.dtype == torch.long and x.tolist()[:3] == [[0, 1], [1, 0], [2, 2]]
    assert model.decode(x) == WORDS
    assert model.decode(model.read("ca")) == ["ca"]  # one text alone
    states = torch.tensor([[2, 1]])
    assert model.as_states(states) is states
    assert torch.equal(model.as_states(["cb"]), states)


def test_every_sample_that_cannot_be_read_is_named_and_five_are_explained():
    words = ["ab", "xx", *WORDS, "abc", "y", "z", "q", "w", "v"]
    with pytest.raises(ValueError) as found:
        spelled(letters).read(words)
    told = str(found.value)
    assert told.startswith("samples 1, 8, 9, 10, 11, 12 and 13 of 14 (counted from 0) cannot be read: 1 ('xx'): ")
    assert "it has shape (3,); states of this model have shape (2,)" in told
    assert told.count("it has letters other than") == 4 and "11 ('q')" in told and "12 ('w')" not in told
    assert told.endswith("; and 2 more")


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (lambda words: [[0, 3]] * len(words), "a token 3, and the vocabulary is 0 to 2"),
        (lambda words: torch.zeros(len(words), 2), "tokens are whole numbers, not torch.float32"),
        (lambda words: [[0]] * len(words), r"it has shape \(1,\); states of this model have shape \(2,\)"),
    ],
    ids=["vocabulary", "floats", "shape"],
)
def test_what_a_reader_returns_is_checked(read: Any, why: str):
    with pytest.raises(ValueError, match=rf"samples 0 and 1 of 2 .*{why}"):
        spelled(read).read(["ab", "ba"])


def test_a_model_without_a_reader_says_how_to_make_one():
    with pytest.raises(ValueError, match="does not read samples, as it was made without read=: give it a function"):
        spelled().read(["ab"])
    with pytest.raises(ValueError, match="there are no samples to read"):
        spelled(letters).read([])


def test_where_samples_are_states_reading_checks_their_shape():
    base = gk.analytic.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    x = base.read([[1.0, 2.0], [3.0, 4.0]])
    assert x.dtype == base.dtype and x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert torch.equal(base.read(x.double().numpy()), x)
    with pytest.raises(ValueError, match=r"it has shape \(3,\); states of this model have shape \(2,\)"):
        base.read(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"sample 1 of 2 .* NaN or infinity"):
        base.read([[0.0, 0.0], [0.0, float("nan")]])
    table = gk.analytic.TokenTable(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="a token 3"):  # the mask is no token of a sample
        table.read(torch.tensor([[0, 1], [0, 3]]))


@pytest.mark.parametrize("name", ["molecules", "molecules-weak"])
def test_molecules_of_the_model_are_read_as_they_are(name: str):
    model = gk.zoo.load(name)
    smiles = [s for s in gk.sample(model, 60, steps=20).samples if canonical(s)]
    assert len(smiles) > 50
    read = model.decode(model.read(smiles))
    assert [canonical(s) for s in read] == [canonical(s) for s in smiles]


def test_molecules_of_ones_own_are_read_or_named():
    model = gk.zoo.load("molecules")
    x = model.read(LEADS)
    assert [canonical(s) for s in model.decode(x)] == [canonical(s) for s in LEADS]
    long = "C" * 120 + "(C)(C)C"
    with pytest.raises(ValueError) as found:
        model.read(["CCO", "not one", long, "C[Se]C", "O"])
    told = str(found.value)
    assert told.startswith("samples 1, 2 and 3 of 5")
    assert "it is no SMILES" in told and "it holds [Se], which the model does not know" in told
    assert "tokens, and the model has 20" in told and "SELFIES have at most 20 tokens" in told


FOREIGN = [
    ("druglike", "[2H]C([2H])([2H])NC(=O)c1ccccc1", "CNC(=O)c1ccccc1, without isotopes"),
    ("druglike", "C[Si](Cn1cncn1)(c1ccc(F)cc1)c1ccc(F)cc1", "CC(Cn1cncn1)(c1ccc(F)cc1)c1ccc(F)cc1, with C for Si"),
    ("druglike", "O=c1[se]n(-c2ccccc2)c2ccccc12", "O=c1sn(-c2ccccc2)c2ccccc12, with S for Se"),
    ("druglike", "[Na+].O=C([O-])Cc1ccccc1Nc1c(Cl)cccc1Cl", "O=C([O-])Cc1ccccc1Nc1c(Cl)cccc1Cl, without its salt"),
    ("molecules", "C/C=C/C(=O)N[C@@H](C)c1ccccc1", "CC=CC(=O)NC(C)c1ccccc1, without stereo"),
    ("molecules", "C[NH2+]Cc1ccc(I)cc1", "CNCc1ccc(Br)cc1, without charges, with Br for I"),
]  # fmt: skip


@pytest.mark.parametrize("name", ["druglike", "molecules"])
def test_the_nearest_molecule_that_the_model_writes_is_named(name: str):
    """Of real drugs: deuterated, with silicon (flusilazole) or selenium (ebselen), a salt (diclofenac). There is none
    near to boron, and none for what is no molecule."""
    model = gk.zoo.load(name)
    for own, smiles, other in FOREIGN:
        if own == name:
            with pytest.raises(ValueError) as found:
                model.read([smiles])
            assert f"; the nearest that can be written is {other}. What can" in str(found.value), found.value
            assert model.read([other.split(",")[0]]).shape == (1, *model.shape)
    with pytest.raises(ValueError) as found:
        model.read(["CC(C)C[C@H](NC(=O)c1cnccn1)B(O)O", "CCX"])
    assert "nearest" not in str(found.value) and "samples 0 and 1" in str(found.value)


def test_what_is_written_first_comes_first():
    model = gk.zoo.load("molecules")
    x = model.read(["c1ccccc1CCO", "OCCc1ccccc1"])
    assert not torch.equal(x[0], x[1])
    assert len({canonical(s) for s in model.decode(x)}) == 1


def test_sequences_are_read_letter_by_letter():
    model = gk.zoo.load("dna")
    x = torch.randint(4, (200, 200), generator=torch.Generator().manual_seed(0))
    sequences = model.decode(x)
    assert torch.equal(model.read(sequences), x)
    assert torch.equal(model.read([s.lower().replace("t", "u") for s in sequences[:3]]), x[:3])
    with pytest.raises(ValueError, match=r"samples 0 and 2 of 3 .*it has 'N' at position 7.*199 letters, and the mod"):
        model.read(["ACGTACGN" + "A" * 192, sequences[0], sequences[1][1:]])


def test_images_are_read_from_tensors_arrays_pictures_and_files(tmp_path: Path):
    model = gk.zoo.load("fashion")
    pixels = torch.randint(256, (60, 28, 28), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images = pixels[:, None] / 255
    x = model.read(images)
    assert x.shape == (60, 1, 28, 28) and float(x.min()) < 0
    assert torch.allclose(model.decode(x), images, atol=1e-6)
    assert torch.equal((model.decode(x) * 255).round(), pixels[:, None].float())
    pictures = [Image.fromarray(p.numpy()) for p in pixels[:3]]
    pictures[0].save(tmp_path / "a.png")
    for given in (pixels[:3].numpy(), pictures, [tmp_path / "a.png", str(tmp_path / "a.png"), images[0]]):
        read = model.read(given)
        assert torch.allclose(read[0], x[0], atol=1e-6) and read.shape == (3, 1, 28, 28)
    wrong = [pictures[0], Image.new("RGB", (28, 28)), Image.new("L", (32, 28)), tmp_path / "none.png"]
    with pytest.raises(ValueError) as found:
        model.read(wrong)
    told = str(found.value)
    assert told.startswith("samples 1, 2 and 3 of 4") and "a colour image" in told and "28 x 32" in told
    assert "No such file" in told and "grey images of 28 x 28 pixels" in told


def test_stitched_and_weakened_models_read_like_the_model_they_are_made_of():
    large, small = gk.zoo.load("dna"), gk.zoo.load("dna-weak")
    sequence = ["ACGT" * 50]
    for model in (gk.Stitched(small, large, at=0.6), gk.weakened(large, drop=[_first_linear(large)])):
        assert torch.equal(model.read(sequence), large.read(sequence))


def _first_linear(model: gk.Model) -> str:
    net = model.modules()[0]
    return next(name for name, module in net.named_modules() if isinstance(module, torch.nn.Linear))


class Embedded(torch.nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, 7)


class Tokenizer:
    """Letters a, b, c... are the ids 1, 2, 3...; 0 is the mask."""

    mask_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": ["_abcdef".index(v) for v in text]}

    def batch_decode(self, ids: Tensor, skip_special_tokens: bool) -> list[str]:
        return ["".join("_abcdef"[v] for v in row) for row in ids.tolist()]


def test_language_models_read_texts_of_their_length():
    model = from_mdlm(Embedded(), 3, vocab_size=7, tokenizer=Tokenizer(), forbidden=[6])
    assert model.decode(model.read(["abc", "eda"])) == ["abc", "eda"]
    with pytest.raises(ValueError, match=r"samples 1 and 2 of 3 .*2 tokens, and samples have 3.*the id 6, which"):
        model.read(["abc", "ab", "abf"])
    plain = from_mdlm(Embedded(), 3, vocab_size=7, mask=0)
    assert plain.decode(plain.read([[1, 2, 6]])).tolist() == [[1, 2, 6]]


def test_a_tensor_in_the_shape_of_states_is_states_and_images_are_told_from_them():
    model = gk.zoo.load("fashion")
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(3)).round()
    with pytest.warns(UserWarning, match=r"if they are images, give model.read\(images\)"):
        assert model.as_states(images) is images
    x = model.read(images)
    assert model.as_states(x) is x


def test_one_sample_is_a_list_of_one_and_a_number_is_none():
    assert reading.listed("CCO") == ["CCO"] and reading.listed(("a", "b")) == ["a", "b"]
    with pytest.raises(ValueError, match="samples are a number"):
        reading.listed(torch.tensor(3.0))
