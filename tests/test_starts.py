"""Starting from samples: in every run that takes states, and from files on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import guidekit as gk
from guidekit.cli.app import app

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
LEADS = ["CC(C)Cc1ccc(cc1)C(C)C(=O)O", "Cc1ccc(cc1)S(=O)(=O)N", "COc1ccccc1OCC(O)CO"]
calls: list[int] = []


def letters(uniform: bool = False) -> gk.MaskedModel | gk.UniformModel:
    """Words of six letters, all equally likely."""

    def net(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.zeros(*x.shape, 3)

    def decode(x: Tensor) -> list[str]:
        return ["".join("abc_"[v] for v in row) for row in x.tolist()]

    def read(words: list[str]) -> list[list[int]]:
        return [["abc".index(v) for v in word] for word in words]

    return (gk.UniformModel if uniform else gk.MaskedModel)(net, 3, 6, decode, read=read)


def count(words: list[str]) -> Tensor:
    return torch.tensor([float(word.count("a")) for word in words])


WORDS = ["aaaaaa", "bbbbbb", "cccccc", "abcabc"]


@pytest.mark.parametrize("uniform", [False, True], ids=["masked", "uniform"])
def test_a_run_from_samples_is_the_run_from_their_states(uniform: bool):
    model = letters(uniform)
    x = model.read(WORDS)
    options = {"steps": 8, "seed": 3}
    from_samples = gk.sample(model, 4, guides=[gk.StartFrom(WORDS, 0.3)], **options)
    from_states = gk.sample(model, 4, guides=[gk.StartFrom(x, 0.3)], **options)
    assert torch.equal(from_samples.x, from_states.x)
    assert from_samples.config == from_states.config
    one = gk.sample(model, 4, guides=[gk.StartFrom("aaaaaa", 0.1)], **options)
    same = gk.sample(model, 4, guides=[gk.StartFrom(x[0], 0.1)], **options)
    assert torch.equal(one.x, same.x)


def test_samples_are_read_once_and_each_condition_starts_from_its_own():
    model = letters()
    guide = gk.StartFrom(WORDS[:2], 0.2)
    run = gk.Run(model, 1, guides=[guide], steps=10)
    bound = run.guides[0]
    assert torch.equal(bound.x, model.read(WORDS[:2])) and bound.bind(model) is bound
    assert guide.x == WORDS[:2]  # a guide does not change
    for given in (guide, bound):
        assert torch.equal(given.regrouped(model, [1, 0, 1], 2).x, model.read(WORDS[:2])[[1, 0, 1]])


def test_refining_and_evolving_samples_equals_doing_so_with_their_states():
    model = letters()
    x = model.read(WORDS)
    for search in (gk.refine, gk.evolve):
        options = {"rounds": 3, "level": 0.4, "steps": 5, "seed": 2}
        read, given = (search(model, start, count, **options) for start in (WORDS, x))
        assert torch.equal(read.x, given.x) and torch.equal(read.rewards, given.rewards)
        assert read.config == given.config and read.rewards.sum() > count(WORDS).sum()


def test_a_checkpoint_of_samples_is_continued_with_the_same_samples(tmp_path: Path):
    model = letters()
    options = {"level": 0.4, "steps": 5}
    whole = gk.refine(model, WORDS, count, rounds=4, **options)
    gk.refine(model, WORDS, count, rounds=2, checkpoint=tmp_path / "run", **options)
    resumed = gk.refine(model, WORDS, count, rounds=4, checkpoint=tmp_path / "run", **options)
    assert torch.equal(whole.x, resumed.x)
    with pytest.raises(gk.CheckpointError, match="of another search: start"):
        gk.refine(model, WORDS[::-1], count, rounds=4, checkpoint=tmp_path / "run", **options)


def test_searches_start_from_samples_and_regroup_them():
    model = letters()
    options = {"steps": 6, "rounds": 2, "candidates": 3, "seed": 1}
    found = gk.search.random(model, 4, count, guides=[gk.StartFrom(WORDS, 0.3)], **options)
    given = gk.search.random(model, 4, count, guides=[gk.StartFrom(model.read(WORDS), 0.3)], **options)
    assert torch.equal(found.x, given.x)
    kept = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(found.samples, WORDS, strict=True)]
    assert sum(kept) > 12  # of 24 letters; 8 by chance


def test_flowopt_finds_the_noise_of_samples():
    base = gk.GaussianModel(
        lambda x, t, cond: torch.zeros_like(x), (2,), gk.schedules.Cosine(), "clean", decode=lambda x: 10 * x,
        read=lambda samples: torch.as_tensor(samples) / 10,
    )  # fmt: skip
    assert base.read([[10.0, 0.0]]).tolist() == [[1.0, 0.0]]
    mixture = gk.analytic.GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 1.0]], [0.5, 0.5])
    options = {"steps": 10, "solver": gk.solvers.DDIM(), "rounds": 30}
    source = mixture.exact_sample(3)
    found = gk.search.flowopt(mixture, source.tolist(), **options)
    assert torch.equal(found.x, gk.search.flowopt(mixture, source, **options).x)
    assert float((found.x - source).abs().max()) < 0.02


def test_samples_that_cannot_be_read_are_named_before_the_first_network_call():
    model = letters()
    calls.clear()
    with pytest.raises(ValueError, match=r"StartFrom\(x=\.\.\.\): samples 1 and 3 of 4 .*1 \('xx'\)"):
        gk.sample(model, 4, guides=[gk.StartFrom(["aaaaaa", "xx", "bbbbbb", "y"])])
    for search in (gk.refine, gk.evolve):
        with pytest.raises(ValueError, match=r"start: sample 0 of 1 .*\('ab'\)"):
            search(model, ["ab"], count)
    with pytest.raises(ValueError, match="does not read samples"):
        gk.refine(gk.MaskedModel(model.net, 3, 6, decode=model.decode), WORDS, count)
    assert not calls


def test_a_hook_binds_a_guide_to_its_model_before_everything_else():
    """A guide of one's own that knows its model from the start."""
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Named(gk.Guide):
        words: tuple[str, ...] = ()

        def bind(self, model):
            return self.having(words=model.read(list(self.words))) if isinstance(self.words, tuple) else self

        def check(self, model, steps):
            assert isinstance(self.words, Tensor)

        def clashes(self, other, after):
            return None if isinstance(self.words, Tensor) else "not bound"

    run = gk.Run(letters(), 2, guides=[Named(words=("aaaaaa",)), Named(words=("bbbbbb",))])
    assert [guide.words.tolist() for guide in run.guides] == [[[0] * 6], [[1] * 6]]


# files ---------------------------------------------------------------------------------------------------------------


def answer(*args: str) -> str:
    result = CliRunner().invoke(app, list(args), prog_name="guidekit")
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: str) -> str:
    result = CliRunner().invoke(app, list(args), prog_name="guidekit")
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_molecules_of_a_file_are_where_a_run_starts(here: Path):
    from rdkit import Chem

    Path("leads.smi").write_text("".join(f"{s} lead{i}\n" for i, s in enumerate(LEADS)))
    Path("leads.csv").write_text("name,smiles\n" + "".join(f"lead{i},{s}\n" for i, s in enumerate(LEADS)))
    with Chem.SDWriter("leads.sdf") as writer:
        for s in LEADS:
            writer.write(Chem.MolFromSmiles(s))
    model, found = gk.zoo.load("molecules"), {}
    for kind in ("smi", "csv", "sdf"):
        told = answer(
            "sample", "molecules", "--start", f"leads.{kind}", "--level", "0.001", "-n", "6", "--steps", "40", "--json",
            "--out", f"out/{kind}", "--no-report", "-r", "qed",
        )  # fmt: skip
        assert json.loads(told)
        found[kind] = gk.load_result(f"out/{kind}/result").x
    wanted = model.read(LEADS * 2)  # they take turns; so little noise masks the last token at most, and what follows it
    assert torch.equal(found["smi"], found["csv"])
    assert torch.equal(found["smi"][:, :3], wanted[:, :3])
    assert found["sdf"].shape == wanted.shape and not torch.equal(found["sdf"][0], found["sdf"][1])
    config = gk.Config.load("out/smi/run.toml")
    assert config.level == 0.001 and Path(config.start) == here / "leads.smi"
    assert 'start = "../../leads.smi"' in Path("out/smi/run.toml").read_text()
    again = config.run().result
    assert again.samples == gk.load_result("out/smi/result").samples


def test_sequences_and_images_too(here: Path):
    sequence = "ACGT" * 50
    Path("one.fasta").write_text(f">mine\n{sequence[:100]}\n{sequence[100:]}\n")
    told = json.loads(answer(
        "sample", "dna", "--start", "one.fasta", "--level", "0.1", "-n", "4", "--steps", "20", "--json", "-r", "gc",
        "--out", "out/dna", "--no-report", "-c", "HepG2", "-c", "K562",
    ))  # fmt: skip
    assert told
    samples = gk.load_result("out/dna/result").samples
    assert len(samples) == 8
    assert all(sum(a == b for a, b in zip(s, sequence, strict=True)) > 165 for s in samples)
    Path("images").mkdir()
    for i in range(2):
        Image.new("L", (28, 28), 255 * i).save(f"images/{i}.png")
    for start, shades in (("images", [0.0, 1.0, 0.0]), ("images/1.png", [1.0] * 3)):
        out = f"out/{Path(start).stem}"
        answer("sample", "fashion", "--start", start, "--level", "0.1", "-n", "3", "--steps", "10", "--out", out,
               "--no-report", "--json")  # fmt: skip
        means = gk.load_result(f"{out}/result").samples.mean((1, 2, 3))
        assert torch.allclose(means, torch.tensor(shades), atol=0.15)


def test_what_a_mask_keeps_of_an_image_is_in_all_samples_bit_for_bit(here: Path):
    """Also with the weights that make the rest follow it, and with a level from which the whole image is noised."""
    shoe = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    white = torch.zeros(28, 28, dtype=torch.bool)
    white[:, :9] = True
    Image.fromarray(shoe).save("shoe.png")
    Image.fromarray(white.numpy()).save("mask.png")
    for out, more in (("plain", []), ("level", ["--level", "0.5"])):
        answer("sample", "fashion", "--start", "shoe.png", "--keep", "mask.png", "-n", "4", "--steps", "8", *more,
               "--out", out, "--no-report", "--json")  # fmt: skip
        samples = gk.load_result(f"{out}/result").samples
        read = torch.as_tensor(shoe).float()[None, None] / 255
        assert torch.equal(samples[..., white], read[..., white].expand(4, 1, -1))
        assert not torch.isclose(samples[..., ~white], read[..., ~white]).all()


def test_the_start_is_shared_by_what_a_run_is_compared_with(here: Path):
    Path("one.txt").write_text("ACGT" * 50 + "\n")
    config = gk.Config(
        "dna", rewards=("gc",), guides=("svdd:candidates=2",), n=2, steps=10, start="one.txt", level=0.1, compare=True,
    )  # fmt: skip
    outcome = config.run()
    assert outcome.base is not None
    for result in (outcome.result, outcome.base):
        assert all(sum(a == b for a, b in zip(s, "ACGT" * 50, strict=True)) > 165 for s in result.samples)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["molecules", "--start", "none.smi"], "there is no such file of molecules"),
        (["molecules", "--start", "some.smi", "-n", "1"], "holds 2 samples, and n=1: give -n 2 or more"),
        (["molecules", "--start", "odd.smi"], "sample 1 of 2 (counted from 0) cannot be read: 1 ('C[Se]C')"),
        (["molecules", "--level", "0.5"], "give start=FILE as well"),
        (["molecules", "--start", "some.smi", "--level", "1.5"], "level must be a number in (0, 1], not 1.5"),
        (["dna", "--start", "some.smi"], "it has 'N' at position 2"),
        (["fashion", "--start", "small.png", "--keep", "wide.png"], "a boolean mask of shape (1, 28, 28) is needed"),
        (["fashion", "--start", "two", "--keep", "small.png"], "small.png': one image is kept, and start"),
        (["fashion", "--start", "wide.png"], "a grey image of 20 x 30 pixels; needed is a grey one of 28 x 28"),
    ],
    ids=["missing", "too many", "unreadable", "level alone", "level", "domain", "mask", "two", "size"],
)
def test_what_is_wrong_with_a_start_is_one_line(here: Path, options: list[str], why: str):
    Path("some.smi").write_text("CCO\nCCN\n")
    Path("odd.smi").write_text("CCO\nC[Se]C\n")
    Image.new("L", (30, 20)).save("wide.png")
    Path("two").mkdir()
    for name in ("small", "two/0", "two/1"):
        Image.new("L", (28, 28)).save(f"{name}.png")
    told = refused("sample", *options)
    assert why in told and len(told.strip().splitlines()) == 1


# times and levels ----------------------------------------------------------------------------------------------------


def begins(steps, level=None, **options) -> float:
    return gk.Run(letters(), 4, steps=steps, guides=[gk.StartFrom(WORDS, level)], **options).moves[0].t


@pytest.mark.usefixtures("every_row")
def test_a_run_begins_at_its_level_also_with_times_of_its_own():
    assert begins(10) == 0.5
    assert begins([1.0, 0.8, 0.6, 0.4, 0.2, 0.0]) == 0.4
    assert begins([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], 0.6) == 0.6
    assert begins([0.8, 0.4, 0.0]) == 0.8  # times that do not begin in noise say the level themselves
    assert begins([0.8, 0.4, 0.0], 0.4) == 0.4
    assert begins([1.0, 0.35, 0.0], 0.3) == 0.35  # close to it
    late = gk.sample(letters(), 4, steps=[0.95, 0.5, 0.0], guides=[gk.StartFrom(WORDS)])
    assert late.cost.network_rows == 8


@pytest.mark.parametrize(
    ("steps", "level", "t"),
    [(1, None, "1"), (1, 0.5, "1"), (2, 0.2, "0.5"), ([1.0, 0.9, 0.0], 0.5, r"0\.9"), ([1.0, 0.9, 0.0], None, r"0\.9"),
     ([0.8, 0.0], 0.3, r"0\.8")],
)  # fmt: skip
def test_a_run_that_would_forget_its_start_is_an_error_before_the_first_call(steps, level, t):
    calls.clear()
    with pytest.raises(ValueError, match=rf"StartFrom\(level=.*would begin at t={t}, above the level, and forget"):
        begins(steps, level)
    for search in (gk.search.random, gk.search.zero_order):
        with pytest.raises(ValueError, match="and forget most of its samples"):
            search(letters(), 4, count, steps=steps, guides=[gk.StartFrom(WORDS, level)], rounds=1)
    assert not calls


def test_a_guide_that_moves_the_beginning_up_again_does_not_pass_either():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Earlier(gk.Guide):
        def moves(self, model, moves):
            return [moves[0]._replace(t=1.0, s=moves[0].t), *moves]

    calls.clear()
    for level in (None, 0.4):
        with pytest.raises(ValueError, match="would begin at t=1, above the level"):
            gk.sample(letters(), 4, steps=10, guides=[gk.StartFrom(WORDS, level), Earlier()])
    assert not calls


def test_on_the_command_line_too(here: Path):
    Path("leads.smi").write_text("CCO\n")
    told = refused("sample", "molecules", "--start", "leads.smi", "--level", "0.3", "--steps", "1")
    assert "would begin at t=1, above the level" in told
