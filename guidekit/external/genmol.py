"""GenMol (Lee et al., 2025, https://arxiv.org/abs/2501.06158): a masked language model of molecules as SAFE texts.

The network is BERT, by transformers, and takes no time. It stands between the tokens that begin and end a text, so that
samples have exactly `length` tokens between them. Texts are SAFE; `safe.decode` of safe-mol makes SMILES of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewards.base import needs

from ..integrations.mdlm import from_mdlm
from ..models import MaskedModel
from . import layout
from .rxnmapper import Bracketed

READ = ("bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight",
        "bert.encoder.layer.0.intermediate.dense.weight", "cls.predictions.bias")  # fmt: skip
TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "bert.embeddings.position_ids")


def genmol(
    path: str | Path, length: int, *, tokenizer: Any, heads: int = 12, ema: bool = True
) -> MaskedModel:  # fmt: skip
    """GenMol's networks, with its tokenizer, which says the ids of the mask and of what begins and ends a text."""
    ids: dict[str, Any] = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("mask", "bos", "eos", "pad")}
    lacking = [name for name in ("mask", "bos", "eos") if ids[name] is None]
    if lacking:
        raise ValueError(f"the tokenizer has no {lacking[0]}_token_id, and GenMol needs those of mask, bos and eos")
    given = layout.state(path, ema)
    layout.needed(given, READ, "genmol")
    bert = needs("transformers", "images", "from_checkpoint(kind='genmol')")
    states, d = given[READ[0]].shape
    places = len(given[READ[1]])
    if not 0 < length <= places - 2:
        raise ValueError(f"length={length}: 1 to {places - 2} tokens are possible")
    net = bert.BertForMaskedLM(
        bert.BertConfig(
            vocab_size=states, hidden_size=d, num_attention_heads=layout.sized(heads, "heads"),
            num_hidden_layers=layout.depth(given, "bert.encoder.layer."), intermediate_size=len(given[READ[2]]),
            max_position_embeddings=places, type_vocab_size=len(given["bert.embeddings.token_type_embeddings.weight"]),
        )
    )  # fmt: skip
    layout.fitted(net, given, "genmol", free=TIED)
    never = {v for name, v in ids.items() if name != "mask" and v is not None}
    return from_mdlm(
        Bracketed(net, int(ids["bos"]), int(ids["eos"])).eval(), length, mask=ids["mask"], vocab_size=states,
        forbidden=never, tokenizer=tokenizer,
    )  # fmt: skip
