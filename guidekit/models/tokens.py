"""Discrete base models around any network that returns logits of clean tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import is_count
from ..process import LOG_ZERO, Blackout, Lengths, ManyMasks, Masked, Uniform
from .base import Encoded, Mixed, Model
from .evaluations import rows_of

_FEW = 16  # letters below which torch's log_softmax costs more than the sum of exponentials by itself


def normalised(logits: Tensor) -> Tensor:
    """log-probabilities, at least LOG_ZERO."""
    few = logits.shape[-1] < _FEW
    return (logits - logits.logsumexp(-1, keepdim=True) if few else logits.log_softmax(-1)).clamp(min=LOG_ZERO)


class _TokenModel(Model):
    def __init__(
        self,
        net: Callable[[Tensor, Tensor, Any], Tensor],
        vocab_size: int,
        length: int,
        decode: Callable[[Tensor], Any] | None = None,
        encode_cond: Callable[[Any], Any] | None = None,
        null: Any = None,
        *,
        read: Callable[[Any], Any] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        self.vocab_size, self.length = vocab_size, length
        super().__init__(net, self._process(), (length,), decode, encode_cond, null, dtype, device, read)

    def _process(self) -> Masked | ManyMasks | Uniform | Blackout:
        raise NotImplementedError(f"{type(self).__name__} does not say what its noise is")

    def facts(self) -> list[str]:
        return [f"vocab_size={self.vocab_size}", f"length={self.length}"]

    def __call__(self, x: Tensor, t: float | Mixed, cond: Encoded) -> Tensor:
        return normalised(self.logits(x, t, cond))

    def mixed(self, x: Tensor, times: Mixed, cond: Encoded) -> Tensor:
        return self(x, times, cond)

    def at_places(self, x: Tensor, t: float, cond: Encoded, rows: Tensor, places: Tensor) -> Tensor:
        if type(self).__call__ is not _TokenModel.__call__:
            return super().at_places(x, t, cond, rows, places)
        return normalised(self.logits(x, t, cond)[rows, places])

    def logits(self, x: Tensor, t: float | Mixed, cond: Encoded) -> Tensor:
        """What the network says, which is not normalised yet."""
        return self._forward(x, t, cond, (self.length, self.vocab_size))


class MaskedModel(_TokenModel):
    """`net(tokens, t, cond) -> logits (rows, length, vocab_size)` as a masked (absorbing) base model.

    The mask has the id vocab_size. t, cond, decode, encode_cond, null and read are as in `GaussianModel`; a network
    that takes no time ignores t. Predictions are log p(x_0^i = v | x_t).

    ordered   positions are unmasked one after the other, from the left, as in an autoregressive model: for networks
              trained that way. With at least `length` steps, samples follow exactly that model.
    end       of an ordered model whose texts are padded: the token that follows the last one of a text, so that runs
              that start from samples noise a share of the text, and not of the padding. What follows it is taken to be
              the end again, and is not evaluated
    alone     of such a model whose texts follow a grammar: no two tokens are drawn at once, so that runs need at least
              `length` steps, and a share of all positions is noised
    masks     how many masks the network was trained with, and tells apart; they have the ids vocab_size, vocab_size + 1
              and so on. `gk.solvers.ReDDiT()` draws them anew in every move
    lengths   of a model that is not ordered: the probabilities of texts of 1, 2 ... `length` tokens. The length is
              drawn first, what lies behind it is the `end` from the start on, and no text has the end within
    cut       of such a model: the network gets texts without their ends, those of one length together, and must take
              rows of any length. Otherwise it sees rows of `length` tokens, with their ends

    >>> import torch, guidekit as gk
    >>> model = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 4), vocab_size=4, length=6)
    >>> gk.sample(model, 2, steps=6).x.shape
    torch.Size([2, 6])
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor, Any], Tensor],
        vocab_size: int,
        length: int,
        decode: Callable[[Tensor], Any] | None = None,
        encode_cond: Callable[[Any], Any] | None = None,
        null: Any = None,
        *,
        read: Callable[[Any], Any] | None = None,
        ordered: bool = False,
        end: int | None = None,
        alone: bool = False,
        lengths: Sequence[float] | Tensor | None = None,
        cut: bool = False,
        masks: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        if alone and not ordered:
            raise ValueError("alone=True is for models with ordered=True, which draw one token after the other")
        if end is not None and not ((ordered or lengths is not None) and end in range(vocab_size)):
            raise ValueError(
                f"end={end!r}: a token below {vocab_size} that ends the texts of a model with ordered=True, or lengths"
            )
        self.lengths = None if lengths is None else _probabilities(lengths, length, ordered, end)
        if cut and lengths is None:
            raise ValueError("cut=True is for models with lengths=..., whose texts have an end that is known")
        if not is_count(masks) or (masks > 1 and (ordered or lengths is not None)):
            raise ValueError(
                f"masks={masks!r}: how many masks a network has, an int of at least 1; models with ordered=True or "
                "lengths have one"
            )
        self.ordered, self.end, self.alone, self.cut, self.masks = ordered, end, alone, cut, masks
        super().__init__(net, vocab_size, length, decode, encode_cond, null, read=read, dtype=dtype, device=device)

    def facts(self) -> list[str]:
        return [*super().facts(), *(["ordered=True"] if self.ordered else [])]

    def _process(self) -> Masked | ManyMasks:
        if self.masks > 1:
            return ManyMasks(self.vocab_size, self.masks)
        if self.lengths is not None:
            return Lengths(self.vocab_size, end=self.end, lengths=self.lengths)
        return Masked(self.vocab_size, self.length if self.ordered else 0, self.end, self.alone)

    def logits(self, x: Tensor, t: float | Mixed, cond: Encoded) -> Tensor:
        logits = self._cut(x, t, cond) if self.cut else super().logits(x, t, cond)
        if self.lengths is None:
            return logits
        return torch.where(torch.arange(self.vocab_size, device=x.device) == self.end, -torch.inf, logits)

    def _cut(self, x: Tensor, t: float | Mixed, cond: Encoded) -> Tensor:
        """Logits of rows without their ends, one forward pass for each length."""
        out = torch.zeros(*x.shape, self.vocab_size, dtype=self.dtype, device=x.device)
        size = (x != self.end).sum(1)
        for n in size[size > 0].unique().tolist():
            row = (size == n).nonzero()[:, 0]
            at = t.take(row) if isinstance(t, Mixed) else t
            out[row, :n] = self._forward(x[row, :n], at, rows_of(cond, row), (n, self.vocab_size))
        return out

    def state(self, x: Tensor) -> Tensor:
        x = super().state(x)
        if self.lengths is not None and bool(((x == self.end)[:, :-1] & (x != self.end)[:, 1:]).any()):
            raise ValueError(f"it has tokens behind its end, which is {self.end}")
        return x


def _probabilities(lengths: Any, length: int, ordered: bool, end: int | None) -> tuple[float, ...]:
    """The probabilities of lengths, normalised."""
    p = torch.as_tensor(lengths, dtype=torch.float64).cpu()
    if ordered or end is None:
        raise ValueError(
            "lengths=... is for models that draw in any order, and needs end=..., the token behind a text; texts of an "
            "ordered model end where they draw it"
        )
    if tuple(p.shape) != (length,) or not bool((p >= 0).all()) or not 0 < float(p.sum()) < float("inf"):
        raise ValueError(
            f"lengths of shape {tuple(p.shape)}: {length} probabilities are needed, of 1 to {length} tokens"
        )
    return tuple((p / p.sum()).tolist())


class UniformModel(_TokenModel):
    """`net(tokens, t, cond) -> logits (rows, length, vocab_size)` as a base model with uniform noise.

    Every token may change at every step. Arguments are as in `MaskedModel`; there is no mask.
    """

    def _process(self) -> Uniform:
        return Uniform(self.vocab_size)


class BlackoutModel(_TokenModel):
    """A network of counts, 0 to vocab_size - 1, as a base model whose noise is the death of their units.

    predicts   "counts": net(x, t, cond) -> logits of the clean counts (rows, length, vocab_size). "births": the mean of
               x_0 - x_t, (rows, length), which is taken to be that of a binomial of what may still come; it decides the
               rates of births, and so the samples in the limit of many steps

    Other arguments are as in `MaskedModel`; see `guidekit.process.blackout`.

    >>> import torch, guidekit as gk
    >>> model = gk.BlackoutModel(lambda x, t, cond: 3.0 * t[:, None].expand(x.shape), 8, 4, predicts="births")
    >>> gk.sample(model, 2, steps=6).x.shape
    torch.Size([2, 4])
    """

    def __init__(self, net: Callable[[Tensor, Tensor, Any], Tensor], vocab_size: int, length: int, *args: Any,
                 predicts: str = "counts", **options: Any):  # fmt: skip
        if predicts not in ("counts", "births"):
            raise ValueError(f"predicts={predicts!r}: there is 'counts' and 'births'")
        self.predicts = predicts
        super().__init__(net, vocab_size, length, *args, **options)

    def _process(self) -> Blackout:
        return Blackout(self.vocab_size)

    def __call__(self, x: Tensor, t: float | Mixed, cond: Encoded) -> Tensor:
        if self.predicts == "counts":
            return super().__call__(x, t, cond)
        most = (self.vocab_size - 1 - x).double()[..., None]  # that may still come
        mean = self._forward(x, t, cond, (self.length,)).double()[..., None]
        share = torch.where(most > 0, mean / most, 0.0).clamp(0, 1)
        n = torch.arange(self.vocab_size, device=x.device) - x[..., None]
        k = n.clamp(min=0).minimum(most)
        log_p = (most + 1).lgamma() - (k + 1).lgamma() - (most - k + 1).lgamma()
        log_p = log_p + torch.xlogy(k, share) + torch.xlogy(most - k, 1 - share)
        return torch.where(n < 0, LOG_ZERO, log_p).clamp(min=LOG_ZERO).to(self.dtype)
