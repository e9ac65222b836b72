"""Causal language models in the style of Hugging Face as base models, with their keys and values kept.

Such a module maps token ids to logits of the next token, and returns keys and values, `past_key_values`, from which it
goes on. Positions are unmasked from the left, one in a step; see `guidekit.models.prefixes` for what is kept and where.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..models import MaskedModel
from ..models.prefixes import NONE, Prefixes


class Causal(nn.Module):
    """A causal language model as a network that continues texts. Conditions are what stands before them: rows of ids,
    -1 where there is nothing."""

    def __init__(self, net: nn.Module, vocab: int):
        super().__init__()
        self.net, self.vocab = net, vocab
        self.takes = "cache" if "cache" in inspect.signature(net.forward).parameters else "past_key_values"

    def begin(self, cond: Tensor, rows: int) -> Tensor:
        return cond

    def extend(self, tokens: Tensor, kept: Tensor | None, cond: Any) -> tuple[Tensor, Tensor]:
        """States are keys and values of all layers, (rows, k, layers, 2, heads, width of a head)."""
        from transformers import DynamicCache

        layers = () if kept is None else kept.permute(2, 3, 0, 4, 1, 5)
        cache = DynamicCache([(k, v) for k, v in layers] or None)
        out = self.net(input_ids=tokens, use_cache=True, **{self.takes: cache})
        every: list[Any] = list(cache.layers)
        own = [torch.stack([v.keys, v.values])[..., -tokens.shape[1] :, :] for v in every]
        return out.logits[:, -1, : self.vocab], torch.stack(own).permute(2, 4, 0, 1, 3, 5)


def from_causal(
    net: nn.Module,
    length: int,
    *,
    start: int | None = None,
    end: int | None = None,
    prompt: int = 64,
    tokenizer: Any = None,
    limit: int = 1 << 30,
) -> MaskedModel:
    """A base model around a causal language model of transformers. A condition is a prompt, which samples continue.

    length      tokens of a sample at most; runs need as many steps
    start       id that stands before texts without a prompt; None is the config's bos_token_id
    end         id that ends a text, which no network sees; None is the config's eos_token_id
    prompt      tokens of a prompt at most
    tokenizer   reads prompts and decodes samples. Without one, prompts are tuples of ids and samples are ids
    limit       bytes of keys and values that are kept; see `guidekit.models.prefixes.Prefixes`
    """
    config = getattr(net, "config", None)
    vocab = getattr(config, "vocab_size", None)
    if not isinstance(net, nn.Module) or vocab is None:
        raise TypeError(f"from_causal takes a causal language model of transformers, not {type(net).__name__}")
    start = getattr(config, "bos_token_id", None) if start is None else start
    end = getattr(config, "eos_token_id", None) if end is None else end
    if start is None:
        raise ValueError("the network does not say what stands before a text: give start=..., the id of such a token")

    def encode(given: Any) -> Tensor:
        ids = list(given if tokenizer is None else tokenizer(given)["input_ids"])
        if not 0 < len(ids) <= prompt:
            raise ValueError(f"the prompt {given!r} has {len(ids)} tokens, and 1 to {prompt} are taken: see prompt=")
        return torch.tensor([*ids, *[NONE] * (prompt - len(ids))])

    null = torch.tensor([start, *[NONE] * (prompt - 1)])
    return MaskedModel(
        Prefixes(Causal(net, vocab), end, limit), vocab, length, None if tokenizer is None else Decode(tokenizer, end),
        encode, null, read=Reader(length, end, tokenizer), ordered=True, end=end, alone=True,
    )  # fmt: skip


class Decode:
    """Texts of rows of ids, up to their end."""

    def __init__(self, tokenizer: Any, end: int | None):
        self.tokenizer, self.end = tokenizer, end

    def __call__(self, x: Tensor) -> list[str]:
        rows = (row[: row.index(self.end)] if self.end in row else row for row in x.tolist())
        return self.tokenizer.batch_decode(list(rows), skip_special_tokens=True)


class Reader:
    """Texts, or ids where there is no tokenizer, as rows that are filled up with the end."""

    def __init__(self, length: int, end: int | None, tokenizer: Any):
        self.length, self.end, self.tokenizer = length, end, tokenizer

    @property
    def takes(self) -> str:
        return f"{'ids' if self.tokenizer is None else 'texts'} of at most {self.length} tokens"

    def __call__(self, samples: Any) -> Tensor:
        return torch.tensor([self._row(sample) for sample in samples])

    def _row(self, sample: Any) -> list[int]:
        ids = sample if self.tokenizer is None else self.tokenizer(sample, add_special_tokens=False)["input_ids"]
        ids = [int(v) for v in ids]
        if len(ids) > self.length or (len(ids) < self.length and self.end is None):
            raise ValueError(f"it has {len(ids)} tokens, and samples have {self.length}")
        return [*ids, *[self.end] * (self.length - len(ids))]  # type: ignore[list-item]
