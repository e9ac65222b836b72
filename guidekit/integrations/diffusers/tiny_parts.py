"""Small parts of pipelines, with random weights: VAEs, text encoders and a tokenizer."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

_CHAT = "{% set told = messages[-1].content %}{{ told if told is string else told[0].text }}"  # the last message


def vae(d: Any, **extra: Any) -> Any:
    return d.AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        **{"latent_channels": 4} | extra,
    )  # fmt: skip


def clip(projected: bool = False) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=514, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def t5(many: bool = False) -> Any:
    """`many` languages: UMT5."""
    import transformers

    size: dict[str, Any] = {"vocab_size": 514, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    if many:
        return transformers.UMT5EncoderModel(transformers.UMT5Config(**size))
    return transformers.T5EncoderModel(transformers.T5Config(**size))


def language_model(kind: str) -> Any:
    """A decoder of this family of transformers."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=514, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    return getattr(transformers, f"{kind}Model")(config)


def tokenizer(told: bool = False) -> Any:
    """Letters as tokens, each with and without the end of a word; `told` is for prompts that come as messages."""
    import transformers

    letters = [*(c for i, c in sorted(_letters().items()))]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({w: i for i, w in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        token = transformers.CLIPTokenizer(str(vocab), str(merges), model_max_length=77)
    if told:
        token.chat_template = _CHAT
    return token


def _letters() -> dict[int, str]:
    """A printable letter for every byte."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = (b for b in range(256) if b not in plain)
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
