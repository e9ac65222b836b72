"""Bundled models: they load offline, unpickle nothing, sample what they are asked for, and can be trained."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import guidekit as gk
from guidekit import zoo
from guidekit.zoo import cards, data, nets, tokens, train

ROOT = Path(__file__).parent.parent
MODELS = [name for name in zoo.entries() if "model" in zoo.card(name)["kind"]]


def test_names_are_those_of_base_models():
    assert zoo.names() == MODELS and set(MODELS) < set(zoo.entries())


def test_the_page_is_made_of_the_cards():
    assert (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8") == cards.page()


def test_files_are_small_and_have_cards():
    files = sorted(zoo.WEIGHTS.glob("*.safetensors"))
    assert sorted(f.stem for f in files) == zoo.entries() and len(files) >= 4
    assert max(f.stat().st_size for f in files) <= 12e6
    assert sum(f.stat().st_size for f in files) <= 45e6
    for name in zoo.entries():
        own = zoo.card(name)
        assert own["bytes"] == (zoo.WEIGHTS / f"{name}.safetensors").stat().st_size
        if own["kind"] != "value":
            assert own["parameters"] == sum(p.numel() for p in zoo.network(name).parameters())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.endswith("-weak") else []) for name in MODELS]
)
def test_a_model_samples_offline(name: str):
    """In a process of its own, in which nothing may be unpickled and no connection opened."""
    code = f"""
import pickle, socket
def never(*a, **k): raise AssertionError("not allowed")
import guidekit as gk
pickle.load = pickle.loads = pickle.Unpickler = socket.socket.connect = never
model = gk.zoo.load({name!r})
steps = model.length if getattr(model, "alone", False) else 3
result = gk.sample(model, 2, steps=steps, guides=[gk.CFG(1.5)], cond=[0, None])
assert len(result.samples) == 4 and result.x.isfinite().all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_conditions_are_names_or_numbers():
    model = zoo.load("fashion")
    by_name, by_number = (gk.sample(model, 2, steps=3, cond=c).x for c in ("sneaker", 7))
    assert torch.equal(by_name, by_number)
    assert not torch.equal(by_name, gk.sample(model, 2, steps=3).x)
    with pytest.raises(ValueError, match="'hat' is none of 't-shirt', 'trouser'"):
        gk.sample(model, 2, steps=3, cond="hat")
    with pytest.raises(ValueError, match="10 is none of"):
        gk.sample(model, 2, steps=3, cond=10)


@pytest.mark.slow
def test_samples_are_of_their_class():
    """Of eight classes at CFG 2; the classifier is the other network that judges."""
    model, judge = zoo.load("fashion"), zoo.network("fashion-judge")
    labels = [1, 5, 7, 8, 9]
    result = gk.sample(model, 8, steps=20, guides=[gk.CFG(2.0)], cond=labels)
    with torch.no_grad():
        right = judge(result.samples).argmax(1) == torch.tensor(labels)[result.group]
    assert right.double().mean() > 0.6
    assert result.samples.min() >= 0 and result.samples.max() <= 1


def test_attention_guidance_works_on_them():
    for name in MODELS:
        model = zoo.load(name)
        assert gk.attention_layers(model)
        steps = model.length if getattr(model, "alone", False) else 3
        plain = gk.sample(model, 2, steps=steps, cond=1)
        guided = gk.sample(model, 2, steps=steps, cond=1, guides=[gk.PAG(1.0)])
        assert not torch.equal(plain.x, guided.x)


def test_errors_say_what_there_is(tmp_path: Path, monkeypatch):
    with pytest.raises(ValueError, match=r"there is no 'fashon'; there is .*fashion"):
        zoo.load("fashon")
    with pytest.raises(ValueError, match=r"is a classifier, which network\(\) loads"):
        zoo.load("fashion-classifier")
    name = "fashion-judge"
    for file in zoo.WEIGHTS.glob(f"{name}.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    weights = tmp_path / f"{name}.safetensors"
    broken = bytearray(weights.read_bytes())
    broken[-1] ^= 1
    weights.write_bytes(broken)
    with pytest.raises(gk.CheckpointError, match="not the file that its card was written for"):
        zoo.network(name)
    weights.unlink()
    with pytest.raises(gk.CheckpointError, match="missing"):
        zoo.network(name)


# what steers ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_clip_knows_captions_of_images():
    """Of samples, through open_clip's own loading, with a template's first words or without."""
    from rewards.images import ClipScore

    labels = ["sneaker", "trouser", "bag", "sandal"]
    images = gk.sample(zoo.load("fashion"), 8, steps=15, guides=[gk.CFG(2.0)], cond=labels)
    for template in ("a photo of a {}", "{}"):
        scores = torch.stack([ClipScore(template.format(c), model=zoo.clip())(images.samples) for c in labels])
        assert (scores.argmax(0) == images.group).double().mean() > 0.7
    with pytest.raises(ValueError, match="'fashion' is a image model, and no CLIP"):
        zoo.clip("fashion")


@pytest.mark.slow
def test_minority_guidance_by_the_bundled_classifier_makes_samples_rarer():
    model, rare = zoo.load("fashion"), zoo.network("fashion-minority")
    scores = []
    for bin in (0, -1):
        x = gk.sample(model, 16, steps=20, guides=[gk.MinorityGuidance(rare, 2.5, bin=bin)], cond="bag").x
        scores.append(gk.minority_score(model, x, noises=2).median())
    assert scores[1] > 1.2 * scores[0]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "dna-value" else pytest.mark.slow)
        for name in zoo.entries()
        if zoo.card(name)["kind"] == "value"
    ],
)
@pytest.mark.usefixtures("every_row")
def test_a_bundled_value_steers_and_costs_a_row_for_each_state_that_is_read(name: str):
    from guidekit.zoo.values import TASKS

    task, model = TASKS[name], zoo.load(zoo.card(name)["model"])
    reward = task.reward()
    n, steps = (12, 8) if name == "dna-value" else (48, 20)  # LogP moves by less than it varies
    plain = gk.sample(model, n, steps=steps, reward=reward)
    value = zoo.value(name)
    steered = gk.sample(model, n, steps=steps, guides=[gk.SVDD(reward, candidates=3, value=value)])
    assert steered.cost.network_rows <= n + 3 * n * (steps - 1)  # of children, where the value sees the prediction
    assert value.sees_prediction or steered.cost.network_rows == n * steps
    assert (
        reward(steered.samples).nanmean() > plain.rewards.nanmean() + 0.3 * plain.rewards[~plain.rewards.isnan()].std()
    )
    with pytest.raises(ValueError, match="is a value, which"):
        zoo.network(name)


LEAST = {"dna-value": 0.25, "molecules-value": 0.5}  # explained at t = .25, well below what more rollouts say


@pytest.mark.parametrize("name", [pytest.param("dna-value", marks=pytest.mark.slow), "molecules-value"])
def test_a_bundled_value_predicts_the_rewards_of_new_rollouts(name: str):
    from guidekit.zoo.values import explained

    (row,) = explained(name, 60, seed=11, times=[0.25])
    assert row.t == pytest.approx(0.25)
    assert LEAST[name] < row.explained[0] < row.possible + 0.25  # four standard errors, of the two together


def test_a_value_that_predicts_nothing_is_not_written(tmp_path: Path, monkeypatch):
    from guidekit.zoo import values

    task = replace(values.TASKS["molecules-value"], reward=lambda: _same, rollouts=20, steps=2, head=0)
    monkeypatch.setitem(values.TASKS, "molecules-value", task)
    message = "no better than a constant"
    with pytest.warns(UserWarning, match=message), pytest.raises(RuntimeError, match=message):
        values.train("molecules-value", tmp_path / "fit", tmp_path / "weights", progress=False)
    assert not (tmp_path / "weights").exists()


def _same(samples: list[str]) -> Tensor:
    """A constant, of which nothing can be better than a constant."""
    return torch.ones(len(samples))


@pytest.mark.skipif("molecules" not in zoo.entries(), reason="no molecule model in the box")
def test_molecules_are_molecules_and_follow_their_bins():
    from rewards.molecules import QED, LogP, metrics

    model = zoo.load("molecules")
    samples = gk.sample(model, 40, steps=20).samples
    assert metrics.validity(samples) >= 0.95 and metrics.uniqueness(samples) >= 0.95
    result = gk.sample(model, 40, steps=20, cond=["low QED, low logP", "high QED, high logP"], guides=[gk.CFG(1.5)])
    low, high = (result.samples[40 * g : 40 * g + 40] for g in (0, 1))
    assert QED()(high).nanmean() > QED()(low).nanmean() + 0.05
    assert LogP()(high).nanmean() > LogP()(low).nanmean() + 1.0


# molecules as tokens -------------------------------------------------------------------------------------------------

SMILES = [
    "CCO",
    "CC(=O)Oc1ccccc1C(=O)O",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "c1ccccc1",
    "CCCCCCCC",
    "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
]


def test_merging_goes_from_the_left_and_not_over_breaks():
    flat = np.array([-1, 1, 1, 1, 2, -1, 1, 1, 1, 1, -1, 1, -1, 1, 2])
    assert tokens.merged(flat, 1, 1, 9).tolist() == [-1, 9, 1, 2, -1, 9, 9, -1, 1, -1, 1, 2]
    assert tokens.merged(flat, 1, 2, 9).tolist() == [-1, 1, 1, 9, -1, 1, 1, 1, 1, -1, 1, -1, 9]
    assert tokens.merged(flat, 2, 1, 9).tolist() == flat.tolist()


def test_the_most_frequent_pair_is_merged_first():
    own = tokens.learned(["CCCCO", "CCCCN"], 6, progress=False)
    assert own.symbols == ("[C]", "[N]", "[O]")
    assert own.merges == ((1, 1), (4, 4))  # CC, then CCCC
    assert own.encode(["CCCCO", "CCO", "CO"], 3).tolist() == [[5, 3, 0], [4, 3, 0], [1, 3, 0]]
    rows, kept = own.encode_each(["CCCCO", "CCCCCCCCCCCCCCCCCC", "CBr", "N"], 2)
    assert rows.tolist() == [[5, 3], [2, 0]] and kept.tolist() == [0, 3]  # too long, and another symbol


def test_molecules_come_back_as_they_were():
    from rdkit import Chem

    own = tokens.Tokens.of(json.loads(json.dumps(tokens.learned(SMILES * 3, 40, progress=False).card())))
    rows = own.encode(SMILES, 30)
    assert own.vocab == 40 and rows.shape == (6, 30) and (rows[:, -1] == 0).all()
    assert [Chem.CanonSmiles(s) for s in own.decode(rows)] == [Chem.CanonSmiles(s) for s in SMILES]
    anything = np.random.default_rng(0).integers(0, 41, (200, 12))  # the mask too
    assert all(Chem.MolFromSmiles(s) is not None for s in own.decode(anything))


# networks and their losses -------------------------------------------------------------------------------------------


def test_networks_see_time_and_class():
    torch.manual_seed(0)
    net = nets.UNet(widths=(16, 16, 32))
    nn.init.normal_(net.out.weight)
    x, t, c = torch.randn(2, 1, 28, 28), torch.tensor([0.3, 0.3]), torch.tensor([1, 1])
    out = net(x, t, c)
    assert out.shape == x.shape
    assert not torch.allclose(out, net(x, t + 0.4, c)) and not torch.allclose(out, net(x, t, c + 1))
    tokens = nets.TokenNet(4, 20, 3, width=64, depth=2, patch=4, letters=16, wide=16, grams=())
    x = torch.randint(0, 5, (2, 20))
    logits = tokens(x, t, c)
    assert logits.shape == (2, 20, 4)
    assert not torch.allclose(logits, tokens(x, t, c + 1))
    other = x.clone()
    other[:, 0] = (x[:, 0] + 1) % 5
    assert (logits - tokens(other, t, c)).abs()[:, -1].max() > 0  # far letters are seen
    tokens.grams = nets.Grams(4, 3, (3,))
    nn.init.normal_(tokens.grams.tables[0].weight)
    assert torch.allclose(tokens(x, t, c), logits + tokens.grams(x, c), atol=1e-5)  # tables are added


def test_tables_of_n_grams_against_loops():
    """Each place by the words around it, without itself; the class adds its own tables, and no class adds none."""
    torch.manual_seed(0)
    net = nets.Grams(4, 3, (2, 3))
    for table in net.tables:
        nn.init.normal_(table.weight)
    x, cond = torch.randint(0, 5, (4, 9)), torch.tensor([0, 2, 3, 1])
    expected = torch.zeros(4, 9, 4)
    for row in range(4):
        for i in range(9):
            for n, table in zip((2, 3), net.tables, strict=True):
                for o in range(n):  # where in the word the place is
                    others = [x[row, j] if 0 <= j < 9 else 4 for j in range(i - o, i - o + n) if j != i]
                    word = o * 5 ** (n - 1) + sum(int(v) * 5**k for k, v in enumerate(others))
                    shared, *own = table.weight[word].view(4, 4)
                    expected[row, i] += 3 * shared + (3 * own[cond[row]] if cond[row] < 3 else 0)
    assert torch.allclose(net(x, cond), expected, atol=1e-5)


def test_the_gaussian_loss_is_that_of_the_velocity():
    """A network that knows the answer has none: x_0 is constant, so z and the velocity follow from x_t."""

    class Exact(nn.Module):
        def forward(self, x, t, cond):
            angle = (t * torch.pi / 2).view(-1, 1, 1, 1)
            z = (x - angle.cos() * 0.5) / angle.sin().clamp(min=1e-3)
            return angle.cos() * z - angle.sin() * 0.5

    batch = (torch.full((64, 1, 4, 4), 0.5), torch.zeros(64, dtype=torch.long))
    torch.manual_seed(0)
    assert float(train.gaussian(10)(Exact(), batch, True)) < 1e-4
    assert float(train.gaussian(10)(lambda x, t, c: torch.zeros_like(x), batch, True)) > 0.3


def test_the_masked_loss_is_the_entropy_of_what_is_hidden():
    torch.manual_seed(0)
    x = torch.randint(0, 4, (256, 50))
    seen: dict[str, float] = {}

    def net(tokens, t, cond):
        hidden = tokens == 4
        seen["hidden"] = float(hidden.double().mean())
        assert ((hidden.double().mean(1) - t).abs() < 0.4).all()
        assert torch.equal(tokens[~hidden], x[~hidden])
        seen["dropped"] = float((cond == 7).double().mean())
        return torch.zeros(*tokens.shape, 4)

    same = lambda x, training: x  # noqa: E731
    loss = train.masked(4, 7, same)(net, (x, torch.zeros(256, dtype=torch.long)), True)
    assert abs(float(loss) - torch.tensor(4.0).log()) < 1e-6
    assert abs(seen["hidden"] - 0.5) < 0.05 and 0.03 < seen["dropped"] < 0.2
    train.masked(4, 7, same)(net, (x, torch.zeros(256, dtype=torch.long)), False)
    assert seen["dropped"] == 0


def test_sequences_weigh_the_same_in_the_masked_loss_however_much_of_them_is_hidden():
    x = torch.randint(0, 4, (256, 400), generator=torch.Generator().manual_seed(0))
    knows = lambda tokens, t, cond: 50.0 * F.one_hot(x, 4) * (t > 0.5)[:, None, None]  # noqa: E731
    torch.manual_seed(0)
    loss = train.masked(4, 7, lambda x, training: x)(knows, (x, torch.zeros(256, dtype=torch.long)), True)
    assert abs(float(loss) - 0.5 * math.log(4)) < 0.01  # a mean of all hidden letters would be half of that


def test_half_of_the_sequences_are_seen_from_the_other_strand():
    from rewards.dna.sequence import reverse_complement

    x = data.encoded(["ACGTTTGA"]).expand(1000, -1)
    torch.manual_seed(0)
    seen = {"".join("ACGT"[i] for i in row) for row in train._strands(x, True).tolist()}
    assert seen == {"ACGTTTGA", reverse_complement("ACGTTTGA")}
    assert 400 < int((train._strands(x, True) == x).all(1).sum()) < 600
    assert torch.equal(train._strands(x, False), x)


@pytest.mark.filterwarnings("ignore")
def test_training_resumes_and_writes_a_card(tmp_path: Path, monkeypatch):
    """The whole route on made-up images: a stripe for each class."""
    torch.manual_seed(0)
    y = torch.randint(0, 10, (640,))
    x = torch.zeros(640, 1, 28, 28)
    for i, label in enumerate(y.tolist()):
        x[i, :, 2 * label : 2 * label + 3] = 1.0
    task = train.Task(
        "ImageClassifier", {"widths": [8, 8, 8]}, lambda: ((x[:512], y[:512]), (x[512:], y[512:])), train.labels(),
        {"kind": "classifier", "classes": [str(i) for i in range(10)], "data": "stripes"}, batch=64, rate=1e-2,
    )  # fmt: skip
    monkeypatch.setitem(train.TASKS, "stripes", task)
    file = tmp_path / "weights" / "stripes.json"
    train.train("stripes", 5.0, tmp_path / "run", tmp_path / "weights", 2, progress=False)
    first = json.loads(file.read_text()) | {"metrics": {"test accuracy": 0.5}}
    file.write_text(json.dumps(first))
    train.train("stripes", 5.0, tmp_path / "run", tmp_path / "weights", 8, progress=False)
    state = torch.load(tmp_path / "run" / "stripes" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 8 * 512 // 64
    own = json.loads(file.read_text())
    assert "metrics" not in own  # of the weights before
    assert own["earlier"] == [{"minutes": first["training"]["minutes"], "test accuracy": 0.5}]
    assert own["training"]["epochs"] == 8.0 and own["training"]["validation loss"] < 1.0
    assert own["training"]["command"] == "python -m guidekit.zoo.train stripes --minutes 1 --epochs 8"
    seen = []
    for k in range(2):  # each run has its log
        with open(tmp_path / "run" / "stripes" / f"version_{k}" / "metrics.csv", newline="") as file:
            seen.append({int(row["epoch"]) for row in csv.DictReader(file) if row["validation"]})
    assert min(seen[0]) == 0 and max(seen[0]) < max(seen[1]) and max(seen[1]) >= 7
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    net = zoo.network("stripes")
    with torch.no_grad():
        assert (net(x).argmax(1) == y).double().mean() > 0.7


def test_data_is_asked_for_by_name(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("GUIDEKIT_DATA", str(tmp_path))
    for read in (data.molecules, data.dna, data.fashion):
        with pytest.raises(ValueError, match="there is '"):
            read("everything")
    monkeypatch.setattr(data, "_WHEELS", data._WHEELS)
    monkeypatch.setattr(data.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", "no network"))
    with pytest.raises(ConnectionError, match=r"molsets==0.3.1 could not be fetched by .*no network"):
        data.molecules()
    assert list(tmp_path.iterdir()) == []
    assert data.encoded(["ACGT", "TTAA"]).tolist() == [[0, 1, 2, 3], [3, 3, 0, 0]]
