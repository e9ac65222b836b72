"""Masked diffusion language models in the style of Hugging Face as base models.

Such a module maps token ids to logits over its vocabulary, in which one id is the mask: MDLM checkpoints, or any masked
language model read as one. In guidekit the mask comes last and has no logit, so ids are translated both ways.

Reference: Sahoo et al. (2024), https://arxiv.org/abs/2406.07524.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..models import MaskedModel


class Logits:
    """The module with guidekit's tokens: `ids` has the module's id of every token, that of the mask last."""

    def __init__(self, net: nn.Module, ids: Tensor, times: str | None, time: Callable[[Tensor], Tensor]):
        self.net, self.ids, self.times, self.time = net, ids, times, time
        self.timed = times is not None

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        ids = self.ids.to(x.device)
        extra = {} if self.times is None else {self.times: self.time(t)}
        out = self.net(ids[x], **extra, **(cond if isinstance(cond, dict) else {}))
        logits = out if isinstance(out, Tensor) else out.logits if hasattr(out, "logits") else out[0]
        if logits.dim() != 3 or logits.shape[-1] <= int(self.ids.max()):
            raise ValueError(
                f"the module returned {tuple(logits.shape)}; logits (rows, length, vocabulary) are needed, with one of "
                f"them for each of the ids up to {int(self.ids.max())}"
            )
        return logits[..., ids[:-1]]


def log_noise(t: Tensor) -> Tensor:
    """What MDLM's networks call the time: sigma = -log(1 - t), the total noise of the log-linear schedule."""
    return -torch.log1p(-(1 - 1e-3) * t)


def from_mdlm(
    net: nn.Module,
    length: int,
    *,
    mask: int | None = None,
    vocab_size: int | None = None,
    forbidden: Iterable[int] = (),
    tokenizer: Any = None,
    decode: Callable[[Tensor], Any] | None = None,
    time: Callable[[Tensor], Tensor] = log_noise,
) -> MaskedModel:
    """A base model around a module that returns logits, or an output that has `logits`.

    length      tokens of a sample
    mask        id of the mask; None is the tokenizer's mask_token_id, or the config's
    vocab_size  of the module, the mask included; None is the config's
    forbidden   ids that are never drawn, like those of padding
    tokenizer   decodes samples to text; or `decode`, from the module's ids (rows, length)
    time        what the module is told of t, where its forward has `timesteps` or `sigma`
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"from_mdlm takes a torch.nn.Module, not {type(net).__name__}")
    config = getattr(net, "config", None)
    size = vocab_size or getattr(config, "vocab_size", None)
    named = (getattr(tokenizer, "mask_token_id", None), getattr(config, "mask_token_id", None))
    mask = next((v for v in (mask, *named) if v is not None), None)
    if size is None or mask is None:
        missing = "vocab_size" if size is None else "mask"
        raise ValueError(f"the module does not say its {missing}: give {missing}=...")
    never = {int(v) for v in forbidden}
    if not 0 <= mask < size or not all(0 <= v < size for v in never):
        raise ValueError(f"mask={mask}, forbidden={sorted(never)}: ids of a vocabulary of {size} are needed")
    kept = [v for v in range(size) if v != mask and v not in never]
    ids = torch.tensor([*kept, mask])
    takes = inspect.signature(net.forward).parameters
    wrapped = Logits(net, ids, next((n for n in ("timesteps", "sigma") if n in takes), None), time)
    read = decode or (None if tokenizer is None else _text(tokenizer))
    translated = None if read is None else lambda x: read(ids.to(x.device)[x])
    return MaskedModel(
        wrapped, len(kept), length, decode=translated or (lambda x: ids.to(x.device)[x]),
        read=None if decode is not None else Reader(ids[:-1].tolist(), length, tokenizer),
    )  # fmt: skip


def _text(tokenizer: Any) -> Callable[[Tensor], list[str]]:
    return lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True)


class Reader:
    """Texts, or the module's ids where there is no tokenizer, as guidekit's tokens."""

    def __init__(self, ids: list[int], length: int, tokenizer: Any):
        self.places, self.length, self.tokenizer = {v: i for i, v in enumerate(ids)}, length, tokenizer

    @property
    def takes(self) -> str:
        return f"{'ids' if self.tokenizer is None else 'texts'} of exactly {self.length} tokens of the module"

    def __call__(self, samples: Any) -> Tensor:
        return torch.tensor([self._row(sample) for sample in samples])

    def _row(self, sample: Any) -> list[int]:
        ids = sample if self.tokenizer is None else self.tokenizer(sample, add_special_tokens=False)["input_ids"]
        ids = [int(v) for v in ids]
        if len(ids) != self.length:
            raise ValueError(f"it has {len(ids)} tokens, and samples have {self.length}")
        strange = [v for v in ids if v not in self.places]
        if strange:
            raise ValueError(f"it holds the id {strange[0]}, which is never drawn")
        return [self.places[v] for v in ids]
