"""RXNMapper's masked language model of reactions (Schwaller et al., 2021, https://doi.org/10.1126/sciadv.abe4166).

An ALBERT of .9 M parameters that was trained to fill in 15 % of the tokens of a reaction, reactants >> product. Read as
a masked model it draws what is left open of a reaction of a given number of tokens: a product, or a reagent. It was not
trained to write whole reactions from nothing, and is no judge of chemistry.

The weights are those of the package `rxnmapper` (MIT), which is not imported, as it wants an older transformers.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from torch import Tensor, nn

from rewards.base import needs

from ..integrations.mdlm import from_mdlm
from ..models import MaskedModel
from . import packages

PACKAGE, VERSION = "rxnmapper", "0.4.3"
FOLDER = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
# one token of a SMILES or a reaction
TOKEN = re.compile(r"\[[^\]]+\]|>>?|Br|Cl|%\d\d|[BCNOSPFIbcnosp]|[().=#\-+\\/:~@?*$]|\d")


class Bracketed(nn.Module):
    """The network with the tokens that begin and end a text around it."""

    def __init__(self, net: nn.Module, first: int, last: int):
        super().__init__()
        self.net, self.first, self.last = net, first, last

    def forward(self, ids: Tensor) -> Tensor:
        ends = [torch.full_like(ids[:, :1], v) for v in (self.first, self.last)]
        return self.net(input_ids=torch.cat([ends[0], ids, ends[1]], 1)).logits[:, 1:-1]


class Reactions:
    """A tokenizer of reactions, as `from_mdlm` asks for one."""

    def __init__(self, vocabulary: list[str]):
        self.words, self.ids = vocabulary, {w: i for i, w in enumerate(vocabulary)}
        self.mask_token_id = self.ids["[MASK]"]

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        words = TOKEN.findall(text)
        if "".join(words) != text:
            raise ValueError("it is not made of the tokens of SMILES and >>")
        strange = [w for w in words if w not in self.ids]
        if strange:
            raise ValueError(f"it has the token {strange[0]!r}, which the network does not know")
        return {"input_ids": [self.ids[w] for w in words]}

    def batch_decode(self, ids: Tensor, **_: Any) -> list[str]:
        return ["".join(self.words[v] for v in row) for row in ids.tolist()]


def rxnmapper(length: int) -> MaskedModel:
    """A masked model of reactions of exactly `length` tokens."""
    why = "its own requirements pin an older transformers"
    folder = {
        name: packages.inside(PACKAGE, VERSION, f"{FOLDER}/{name}", why)
        for name in ("config.json", "vocab.txt", "pytorch_model.bin")
    }
    given = json.loads(folder["config.json"].read_text(encoding="utf-8"))
    words = folder["vocab.txt"].read_text(encoding="utf-8").splitlines()
    return masked(length, given, words, packages.weights(folder["pytorch_model.bin"]))


def masked(length: int, config: dict[str, Any], words: list[str], state: dict[str, Tensor]) -> MaskedModel:
    """The model of a configuration, a vocabulary and weights."""
    albert = needs("transformers", "images", "rxnmapper")
    kept = ("embedding_size", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings",
            "num_attention_heads", "num_hidden_layers", "type_vocab_size", "vocab_size", "hidden_act")  # fmt: skip
    if not 0 < length <= config["max_position_embeddings"] - 2:
        raise ValueError(f"length={length}: 1 to {config['max_position_embeddings'] - 2} tokens are possible")
    net = albert.AlbertForMaskedLM(albert.AlbertConfig(**{k: config[k] for k in kept})).eval()
    lacking = set(net.state_dict()) - set(state) - {"predictions.decoder.bias", "albert.embeddings.position_ids"}
    if lacking:
        raise ValueError(f"the weights lack {', '.join(sorted(lacking)[:5])}")
    net.load_state_dict({k: v for k, v in state.items() if k in net.state_dict()}, strict=False)
    tokenizer = Reactions(words)
    special = [i for i, w in enumerate(words) if w.startswith("[unused") or w in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")]
    return from_mdlm(
        Bracketed(net, tokenizer.ids["[CLS]"], tokenizer.ids["[SEP]"]), length,
        vocab_size=len(words), forbidden=special, tokenizer=tokenizer,
    )  # fmt: skip
