"""The networks of the bundled models: a U-Net for images, a transformer for tokens, and classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def frequencies(t: Tensor, count: int = 16) -> Tensor:
    """cos and sin of t in [0, 1] at rising frequencies, (rows, 2 count)."""
    angle = t.float()[:, None] * torch.logspace(0, 3, count, device=t.device) * math.pi / 2
    return torch.cat([angle.cos(), angle.sin()], 1)


class Context(nn.Module):
    """Embedding of time and class for all blocks, (rows, width). The last class stands for no class."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)

    def forward(self, t: Tensor, cond: Tensor) -> Tensor:
        time = self.time(frequencies(t).to(self.label.weight))
        return F.silu(time + self.label(cond))


class Attention(nn.Module):
    """Self-attention over (rows, tokens, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        return self._looked(self._split(self.qkv(x).chunk(3, -1)), seen)

    def extend(self, x: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """Causal attention of tokens that follow others, of which keys and values are kept, (rows, m, 2 width); and
        those of these tokens."""
        q, own = self.qkv(x).tensor_split([x.shape[-1]], -1)
        every = own if kept is None else torch.cat([kept, own], 1)
        place = torch.arange(every.shape[1], device=x.device)
        seen = place <= place[-x.shape[1] :, None]
        return self._looked(self._split((q, *every.chunk(2, -1))), seen), own

    def _split(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [v.unflatten(-1, (self.heads, -1)).transpose(1, 2) for v in parts]

    def _looked(self, qkv: Sequence[Tensor], seen: Tensor | None) -> Tensor:
        q, k, v = qkv
        return self.out(F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2))


# images ----------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two convolutions, with scale and shift from the context in between."""

    def __init__(self, before: int, after: int, width: int):
        super().__init__()
        self.norm, self.first = nn.GroupNorm(8, before), nn.Conv2d(before, after, 3, padding=1)
        self.middle, self.second = nn.GroupNorm(8, after), nn.Conv2d(after, after, 3, padding=1)
        self.context = nn.Linear(width, 2 * after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.middle(self.first(F.silu(self.norm(x))))
        scale, shift = self.context(context)[..., None, None].chunk(2, 1)
        return self.skip(x) + self.second(F.silu(h * (1 + scale) + shift))


class Looking(nn.Module):
    """Self-attention of pixels, with a residual connection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm, self.attention = nn.GroupNorm(8, width), Attention(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).mT
        return x + self.attention(tokens).mT.unflatten(2, x.shape[2:])


class UNet(nn.Module):
    """U-Net that predicts the velocity of images (rows, channels, side, side), with side divisible by 4."""

    def __init__(self, channels: int = 1, classes: int = 10, widths: Sequence[int] = (32, 64, 128), heads: int = 2):
        super().__init__()
        a, b, c = widths
        self.context = Context(classes, c)
        self.into = nn.Conv2d(channels, a, 3, padding=1)
        self.down = nn.ModuleList([Residual(a, a, c), Residual(a, b, c), Residual(b, c, c)])
        self.middle = nn.ModuleList([Residual(c, c, c), Residual(c, c, c)])
        self.looks = nn.ModuleList([Looking(c, heads), Looking(c, heads)])
        self.up = nn.ModuleList([Residual(2 * c, c, c), Residual(c + b, b, c), Residual(b + a, a, c)])
        self.norm, self.out = nn.GroupNorm(8, a), nn.Conv2d(a, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        context = self.context(t, cond)
        h, kept = self.into(x), []
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, context)
            kept.append(h)
        for block, look in zip(self.middle, self.looks, strict=True):
            h = look(block(h, context))
        for i, block in enumerate(self.up):
            h = F.interpolate(h, scale_factor=2.0) if i else h
            h = block(torch.cat([h, kept.pop()], 1), context)
        return self.out(F.silu(self.norm(h)))


# tokens ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention and a perceptron over (rows, tokens, width), with scale and shift from the context."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width, elementwise_affine=False), Attention(width, heads)
        self.middle = nn.LayerNorm(width, elementwise_affine=False)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.context = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor, context: Tensor, seen: Tensor | None = None) -> Tensor:
        scale, shift, scale_, shift_ = self.context(context)[:, None].chunk(4, -1)
        x = x + self.attention(self.norm(x) * (1 + scale) + shift, seen)
        return x + self.narrow(F.relu(self.wide(self.middle(x) * (1 + scale_) + shift_)))

    def extend(self, x: Tensor, context: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same for tokens that follow others, as in `Attention.extend`."""
        scale, shift, scale_, shift_ = self.context(context)[:, None].chunk(4, -1)
        looked, own = self.attention.extend(self.norm(x) * (1 + scale) + shift, kept)
        x = x + looked
        return x + self.narrow(F.relu(self.wide(self.middle(x) * (1 + scale_) + shift_))), own


def extended(blocks: nn.ModuleList, h: Tensor, context: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens that follow others through blocks: the last one's output (rows, width), and the states of all of them,
    (rows, k, blocks, 2 width)."""
    states = []
    for i, block in enumerate(blocks):
        h, own = block.extend(h, context, None if kept is None else kept[:, :, i])  # type: ignore[operator]
        states.append(own)
    return h[:, -1], torch.stack(states, 2)


class Local(nn.Module):
    """A convolution over (rows, places, letters), with scale and shift from the context."""

    def __init__(self, letters: int, wide: int, width: int, kernel: int = 11):
        super().__init__()
        self.norm, self.near = nn.LayerNorm(letters), nn.Conv1d(letters, wide, kernel, padding=kernel // 2)
        self.context, self.back = nn.Linear(width, 2 * wide), nn.Linear(wide, letters)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        scale, shift = self.context(context)[:, None].chunk(2, -1)
        return x + self.back(F.relu(self.near(self.norm(x).mT).mT * (1 + scale) + shift))


class Grams(nn.Module):
    r"""Logits at each position from tables of the n-grams around it, (rows, length, vocab):

        logits_i = sum over n and o of  S_no[w] + C_no[w, class],    w the other letters of the n-gram whose o-th is x_i

    with S shared by all classes and C specific to each class, absent for no class. The mask is one more letter.
    """

    def __init__(self, vocab: int, classes: int, sizes: Sequence[int], scale: float = 3.0):
        super().__init__()
        self.vocab, self.classes, self.sizes, self.scale = vocab, classes, tuple(sizes), scale
        self.tables = nn.ModuleList(nn.Embedding(n * (vocab + 1) ** (n - 1), vocab * (classes + 1)) for n in sizes)
        for table in self.tables:
            nn.init.zeros_(table.weight)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, cond: Tensor) -> Tensor:
        each = [table(self._words(tokens, n)).sum(2) for n, table in zip(self.sizes, self.tables, strict=True)]
        shared, own = (self.scale * torch.stack(each).sum(0)).unflatten(2, (-1, self.vocab)).split([1, self.classes], 2)
        own = own[torch.arange(len(own), device=own.device), :, cond.clamp(max=self.classes - 1)]
        return shared[:, :, 0] + own * (cond < self.classes)[:, None, None]

    def _words(self, tokens: Tensor, n: int) -> Tensor:
        """Indices into the table of n-grams, (rows, length, n): one for each place of the position in its n-gram."""
        base = self.vocab + 1
        around = F.pad(tokens, (n - 1, n - 1), value=self.vocab).unfold(1, 2 * n - 1, 1)  # (rows, length, 2n - 1)
        digits = base ** torch.arange(n - 1, device=tokens.device)
        words = []
        for o in range(n):
            first = n - 1 - o
            others = torch.cat([around[..., first : n - 1], around[..., n : first + n]], 2)
            words.append((others * digits).sum(2) + o * base ** (n - 1))
        return torch.stack(words, 2)


class TokenNet(nn.Module):
    """Logits (rows, length, vocab) of clean tokens. The mask has the id vocab.

    patch     letters per token of the transformer; convolutions before and after it see each letter
    letters   width of a letter; `wide` is that inside a convolution
    grams     sizes of the n-grams with tables
    """

    def __init__(
        self, vocab: int, length: int, classes: int, width: int = 192, depth: int = 2, patch: int = 4,
        letters: int = 64, wide: int = 192, grams: Sequence[int] = (3, 5),
    ):  # fmt: skip
        super().__init__()
        if length % patch:
            raise ValueError(f"TokenNet(length={length}, patch={patch}): the patch must divide the length")
        self.patch = patch
        self.embed, self.context = nn.Embedding(vocab + 1, letters), Context(classes, width)
        self.place = nn.Parameter(0.02 * torch.randn(length // patch, width))
        self.before, self.after = Local(letters, wide, width), Local(letters, wide, width)
        self.into, self.back = nn.Linear(patch * letters, width), nn.Linear(width, patch * letters)
        self.blocks = nn.ModuleList(Block(width, width // 64) for _ in range(depth))
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(letters)
        self.out = nn.Linear(letters, vocab)
        self.grams = Grams(vocab, classes, grams) if grams else None

    def forward(self, tokens: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        context = self.context(t, cond)
        letters = self.before(self.embed(tokens), context)
        h = self.into(letters.unflatten(1, (-1, self.patch)).flatten(2)) + self.place
        for block in self.blocks:
            h = block(h, context)
        letters = letters + self.back(self.norm(h)).unflatten(2, (self.patch, -1)).flatten(1, 2)
        logits = self.out(self.last(self.after(letters, context)))
        return logits if self.grams is None else logits + self.grams(tokens, cond)


class OrderedNet(nn.Module):
    """Logits (rows, length, vocab) of clean tokens, for positions that are unmasked in order. The mask has the id
    vocab.

    A token attends to itself and earlier tokens, a mask also to itself: the prediction at position i, given the first k
    tokens, is p(x_i | x_1..k), whatever the other masks. So one pass over the tokens and as many masks, each with its
    own k (`taught`), trains all positions of a sequence at once. Token 0 ends a sequence; only it may follow.
    """

    timed = False

    def __init__(self, vocab: int, length: int, classes: int, width: int = 256, depth: int = 4):
        super().__init__()
        self.vocab, self.length = vocab, length
        self.embed, self.label = nn.Embedding(vocab + 1, width), nn.Embedding(classes + 1, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, width // 64) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocab)

    def forward(self, tokens: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        place = torch.arange(self.length, device=tokens.device)
        seen = (tokens != self.vocab)[:, None] & (place <= place[:, None]) | (place == place[:, None])
        logits = self._logits(self.embed(tokens) + self.place, seen, cond)
        end = torch.full_like(logits[0, 0], -1e4)
        end[0] = 0
        return torch.where(((tokens == 0).cumsum(1) > 0)[..., None], end, logits)

    def begin(self, cond: Tensor, rows: int) -> Tensor:
        """Nothing stands before a text; this and `extend` are for `guidekit.models.prefixes`."""
        return torch.empty(rows, 0, dtype=torch.long, device=cond.device)

    def extend(self, tokens: Tensor, kept: Tensor | None, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the token that follows, read off a mask behind the tokens, and the states of these."""
        first = 0 if kept is None else kept.shape[1]
        h = self.embed(F.pad(tokens, (0, 1), value=self.vocab)) + self.place[first : first + tokens.shape[1] + 1]
        last, states = extended(self.blocks, h, F.silu(self.label(cond)), kept)
        return self.out(self.norm(last)), states[:, :-1]

    def taught(self, tokens: Tensor, known: Tensor, cond: Tensor) -> Tensor:
        """Logits at position i given the tokens before known[:, i], which is at most i. Rows may be truncated."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        own = (place == place[:, None]).expand(len(tokens), -1, -1)
        before = (place <= place[:, None]).expand_as(own)
        text = torch.cat([before, torch.zeros_like(own)], 2)
        masks = torch.cat([place < known[..., None], own], 2)
        x = torch.cat([self.embed(tokens), self.embed(torch.full_like(tokens, self.vocab))], 1)
        return self._logits(x + self.place[: len(place)].repeat(2, 1), torch.cat([text, masks], 1), cond, len(place))

    def _logits(self, h: Tensor, seen: Tensor, cond: Tensor, first: int = 0) -> Tensor:
        context, seen = F.silu(self.label(cond)), seen[:, None]
        for block in self.blocks:
            h = block(h, context, seen)
        return self.out(self.norm(h[:, first:]))


class PrefixNet(nn.Module):
    """Logits (rows, length, vocab) of clean tokens, for positions unmasked in order. The mask has the id vocab.

    Position i sees what is before it, tokens or masks. So one pass gives p(x_i | x_1..i-1) at all positions, and after
    a first mask at k the prediction from the first k tokens. Token 0 is the end, and only it may follow. cond (rows,
    factors) holds a class for each factor, or its number of classes for none: any may be left out. Rows may be
    truncated.
    """

    timed = False

    def __init__(self, vocab: int, length: int, classes: Sequence[int], width: int = 256, depth: int = 4):
        super().__init__()
        self.vocab, self.length, self.classes = vocab, length, tuple(classes)
        self.embed, self.start = nn.Embedding(vocab + 1, width), nn.Parameter(0.02 * torch.randn(width))
        self.labels = nn.ModuleList(nn.Embedding(n + 1, width) for n in self.classes)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, width // 64) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocab)

    def forward(self, tokens: Tensor, t: Tensor | None, cond: Tensor) -> Tensor:
        size = tokens.shape[1]
        before = torch.cat([self.start.expand(len(tokens), 1, -1), self.embed(tokens[:, :-1])], 1)
        seen = torch.ones(size, size, dtype=torch.bool, device=tokens.device).tril()
        h, context = before + self.place[:size], self._context(cond)
        for block in self.blocks:
            h = block(h, context, seen)
        logits = self.out(self.norm(h))
        end = torch.full_like(logits[0, 0], -1e4)
        end[0] = 0
        ended = ((tokens == 0).cumsum(1) > 0).roll(1, 1)
        ended[:, 0] = False
        return torch.where(ended[..., None], end, logits)

    def begin(self, cond: Tensor, rows: int) -> Tensor:
        """A start stands before every text, with the id of the mask; see `guidekit.models.prefixes`."""
        return torch.full((rows, 1), self.vocab, device=cond.device)

    def extend(self, tokens: Tensor, kept: Tensor | None, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the token that follows, and the states of the tokens."""
        first = 0 if kept is None else kept.shape[1]
        h = torch.where((tokens == self.vocab)[..., None], self.start, self.embed(tokens))
        h = h + self.place[first : first + tokens.shape[1]]
        last, states = extended(self.blocks, h, self._context(cond), kept)
        return self.out(self.norm(last)), states

    def _context(self, cond: Tensor) -> Tensor:
        return F.silu(torch.stack([label(c) for label, c in zip(self.labels, cond.unbind(1), strict=True)]).sum(0))


# oracles ---------------------------------------------------------------------------------------------------------


class ImageClassifier(nn.Module):
    """Logits of images in [0, 1], from three stages of two convolutions with these widths."""

    def __init__(self, channels: int = 1, classes: int = 10, widths: Sequence[int] = (32, 64, 128), kernel: int = 3):
        super().__init__()
        stages, before = [], channels
        for width in widths:
            for _ in range(2):
                stages += [nn.Conv2d(before, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            stages += [nn.MaxPool2d(2)]
        self.stages = nn.Sequential(*stages)
        self.out = nn.Linear(before, classes)

    def features(self, x: Tensor) -> Tensor:
        """Features (rows, width of the last stage)."""
        return self.stages(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(self.features(x), 0.2, self.training))


class ImagePerceptron(nn.Module):
    """Logits of images in [0, 1], without convolutions: a different kind of network, as an independent judge."""

    def __init__(self, pixels: int = 784, classes: int = 10, width: int = 512):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3),
        )  # fmt: skip
        self.out = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Features (rows, width)."""
        return self.layers(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


class DNAClassifier(nn.Module):
    """Logits of one-hot sequences (rows, 4, length): convolutions, then maxima and means over positions."""

    def __init__(self, classes: int = 4, width: int = 96, kernels: Sequence[int] = (11, 7, 7), dilated: bool = False):
        super().__init__()
        layers, before = [], 4
        for i, kernel in enumerate(kernels):
            dilation = 2**i if dilated else 1
            layers += [
                nn.Conv1d(before, width, kernel, padding=dilation * (kernel // 2), dilation=dilation),
                nn.BatchNorm1d(width), nn.GELU() if dilated else nn.ReLU(),
            ]  # fmt: skip
            layers += [] if dilated else [nn.MaxPool1d(2)]
            before = width
        self.layers = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, classes))

    def features(self, x: Tensor) -> Tensor:
        """Features (rows, 2 width)."""
        h = self.layers(x)
        return torch.cat([h.amax(2), h.mean(2)], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


class NoisyClassifier(nn.Module):
    """Logits (rows, classes) of noised images at their times: a convolution, then blocks as in the encoder of the
    U-Net."""

    def __init__(self, channels: int = 1, classes: int = 20, widths: Sequence[int] = (24, 48, 96)):
        super().__init__()
        a, b, c = widths
        self.context = Context(1, c)
        self.into = nn.Conv2d(channels, a, 3, padding=1)
        self.down = nn.ModuleList([Residual(a, a, c), Residual(a, b, c), Residual(b, c, c), Residual(c, c, c)])
        self.norm, self.out = nn.GroupNorm(8, c), nn.Linear(c, classes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        context, h = self.context(t, torch.zeros(len(x), dtype=torch.long, device=x.device)), self.into(x)
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i in (1, 2) else h, context)
        return self.out(F.silu(self.norm(h)).mean((2, 3)))


def Clip(**config: Any) -> nn.Module:
    """A CLIP of open_clip."""
    from open_clip.model import CLIP

    return CLIP(**config)
