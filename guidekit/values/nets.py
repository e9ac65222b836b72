"""What `fit` works with: the recorder of rollouts, the default networks, and the Lightning module that trains them.

`fit` imports this file only when it is called, because Lightning is slow to import.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from .. import random
from ..engine.guide import Guide
from ..engine.tree import Tree
from ..engine.view import View
from ..engine.whole import unwritten
from ..models.base import Encoded, Model
from ..process import Gaussian, Masked, Uniform
from .learned import Look, Scaled, call, seen, wide

if TYPE_CHECKING:
    from .fit import Options

_WIDTH = 128
_FREQUENCIES = 3  # few, so that the value is smooth between the times of the rollouts
_ROWS, _PLACES, _LONGEST = 2**14, 2**12, 6  # of a table of words and of one of places at most, letters of a word
_LONG = 64  # sequences above are pooled
_DECAY = 0.99  # of the moving average of the weights, a step


@dataclass(frozen=True)
class Record(Guide):
    """Records `count` states of every particle's path, at random steps other than the last, with what look-aheads see
    in them, and does nothing else.

    The memo is (steps (rows, count), states (rows, count, *shape), seen (rows, count, numbers)), and follows the
    particle through selections.
    """

    count: int
    looks: tuple[Look, ...] = ()

    @property
    def sees_prediction(self) -> bool:  # type: ignore[override]
        return any(getattr(look, "sees_prediction", True) for look in self.looks)

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        if memo is None:
            drawn = random.uniform(view.key, (view.step.total,)).argsort(1)[:, : self.count]
            states = view.x.new_zeros(len(view.x), drawn.shape[1], *view.x.shape[1:])
            numbers = sum(wide(look) or 1 for look in self.looks)
            memo = drawn.sort(1).values, states, view.zeros().new_zeros(*drawn.shape, numbers)
        steps, states, known = memo
        due = steps == view.step.index
        states = torch.where(due[(..., *[None] * (view.x.dim() - 1))], view.x.detach()[:, None], states)
        rows = due.any(1).nonzero()[:, 0] if self.looks else due.new_zeros(0, dtype=torch.long)
        if len(rows):
            own = seen(self.looks, view.take(rows))
            assert own is not None
            known = known.index_put((rows,), torch.where(due[rows][..., None], own.detach()[:, None], known[rows]))
        return 0.0, (steps, states, known)


def default(model: Model, clean: Tensor, conds: Encoded) -> nn.Module:
    """A network for the model's states: residual layers for vectors, convolutions for images, attention for tokens.

    clean   final states of rollouts, whose mean and standard deviation standardise the inputs
    conds   encoded conditions, one row each, that the network will know
    """
    if isinstance(model.process, Gaussian) and len(model.shape) in (1, 3):
        inputs = Standard(model.process.schedule, clean)
        return (Vectors if len(model.shape) == 1 else Images)(inputs, model.shape[0], Context(conds, _WIDTH))
    if isinstance(model.process, (Masked, Uniform)):
        return Tokens(model.process.states, model.shape[0], Context(conds, _WIDTH // 2))
    raise ValueError(
        f"there is no default network for states of shape {model.shape} under {type(model.process).__name__}; give fit "
        "a net (x, t, cond) -> (rows,) of your own"
    )


# default networks --------------------------------------------------------------------------------------------------


class Standard(nn.Module):
    """(x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2), with m and s of each feature or channel of the clean data."""

    mean: Tensor
    std: Tensor

    def __init__(self, schedule: Callable[[Tensor], tuple[Tensor, Tensor]], clean: Tensor):
        super().__init__()
        self.schedule = schedule
        axes = [0, *range(2, clean.dim())]
        self.register_buffer("mean", clean.mean(axes, keepdim=True)[0].float())
        self.register_buffer("std", clean.std(axes, keepdim=True, correction=0)[0].float().clamp(min=1e-3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v.to(x).view(-1, *[1] * (x.dim() - 1)) for v in self.schedule(t))
        return (x - alpha * self.mean) / ((alpha * self.std) ** 2 + sigma**2).sqrt()


class Context(nn.Module):
    """A vector for each row from its time and condition.

    A floating-point condition enters as it is. Integer conditions (labels) are one-hot encoded over those known from
    `conds`, so an unknown label looks like no label.
    """

    frequencies: Tensor
    known: Tensor

    def __init__(self, conds: Encoded, width: int):
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(_FREQUENCIES))
        parts = _parts(conds)
        labels = [p.unique() for p in parts if not p.is_floating_point()]
        self.register_buffer("known", torch.cat([*labels, torch.zeros(0, dtype=torch.long)]).unique())
        size = 1 + 2 * _FREQUENCIES + sum(self._cond(p).shape[1] for p in parts)
        self.layers = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, cond: Encoded) -> Tensor:
        t = t.to(self.frequencies)[:, None]
        waves = t * self.frequencies
        return self.layers(torch.cat([t, waves.sin(), waves.cos(), *map(self._cond, _parts(cond))], 1))

    def _cond(self, cond: Tensor) -> Tensor:
        flat = cond.reshape(len(cond), -1)
        return (flat if cond.is_floating_point() else (flat[..., None] == self.known).flatten(1)).to(self.frequencies)


class Vectors(nn.Module):
    """Three residual layers for x of shape (rows, d)."""

    def __init__(self, inputs: Standard, size: int, context: Context):
        super().__init__()
        self.inputs, self.context = inputs, context
        self.enter = nn.Linear(size, _WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH))
            for _ in range(3)
        )
        self.leave = _head(_WIDTH)

    def forward(self, x: Tensor, t: Tensor, cond: Encoded) -> Tensor:
        context = self.context(t, cond)
        h = self.enter(self.inputs(x, t))
        for block in self.blocks:
            h = h + block(h + context)
        return self.leave(h)[:, 0]


class Images(nn.Module):
    """Convolutions for x of shape (rows, C, H, W), each of which halves the size as long as it is above 4."""

    def __init__(self, inputs: Standard, channels: int, context: Context, width: int = 32):
        super().__init__()
        self.inputs, self.context = inputs, context
        widths = [width, 2 * width, _WIDTH, _WIDTH]
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, b, 3, padding=1))
            for a, b in zip([width, *widths], widths, strict=False)
        )
        self.shifts = nn.ModuleList(nn.Linear(_WIDTH, b) for b in widths)
        self.leave = _head(_WIDTH)

    def forward(self, x: Tensor, t: Tensor, cond: Encoded) -> Tensor:
        context = self.context(t, cond)
        h = self.enter(self.inputs(x, t))
        for block, shift in zip(self.blocks, self.shifts, strict=True):
            h = block(h) + shift(context)[..., None, None]
            h = F.avg_pool2d(h, 2, ceil_mode=True) if min(h.shape[-2:]) > 4 else h
        return self.leave(F.silu(h).mean((2, 3)))[:, 0]


class Nothing(nn.Module):
    """0 for every row: the network of a value that is look-aheads alone."""

    def forward(self, x: Tensor, t: Tensor, cond: Encoded) -> Tensor:
        return torch.zeros(len(x), device=x.device)


class Words(nn.Module):
    r"""The linear path of tokens: tables of the tokens at their places and of the words anywhere, which start at zero,

        sum over i of (P[i, x_i] + sum over n of W_n[x_i x_i+1 ... x_i+n-1]) . (1, t, t^2) / sqrt(length)

    with words of n = 1 to 6 letters where their table has at most 2^14 rows, and places where it has at most 2^12. The
    mask is one more letter.
    """

    def __init__(self, states: int, length: int):
        super().__init__()
        self.states = states
        self.sizes = [n for n in range(1, min(_LONGEST, length) + 1) if n == 1 or states**n <= _ROWS]
        self.words = nn.ModuleList(nn.EmbeddingBag(states**n, 3, mode="sum") for n in self.sizes)
        self.places = nn.EmbeddingBag(length * states, 3, mode="sum") if length * states <= _PLACES else None
        for table in self.parameters():
            nn.init.zeros_(table)

    def forward(self, x: Tensor, t: Tensor, cond: Encoded = None) -> Tensor:
        total = sum(table(self._words(x, n)) for n, table in zip(self.sizes, self.words, strict=True))
        if self.places is not None:
            total = total + self.places(x + self.states * torch.arange(x.shape[1], device=x.device))
        t = t.to(total)
        return (total * torch.stack([torch.ones_like(t), t, t.square()], 1)).sum(1) / x.shape[1] ** 0.5

    def _words(self, x: Tensor, n: int) -> Tensor:
        """The number of the word that begins at each place, (rows, length - n + 1)."""
        return (x.unfold(1, n, 1) * self.states ** torch.arange(n, device=x.device)).sum(2)


class Tokens(nn.Module):
    """The linear path of words for x of shape (rows, length), and, once `joined`, a network beside it.

    The network is a convolution over neighbours, of which long sequences keep the largest value in every four places,
    two layers of attention, and the mean and the maximum over positions. It learns what the linear path leaves over.
    """

    joined: Tensor

    def __init__(self, states: int, length: int, context: Context, width: int = _WIDTH // 2, heads: int = 4):
        super().__init__()
        self.register_buffer("joined", torch.tensor(False))
        self.linear, self.context, self.heads = Words(states, length), context, heads
        self.token, self.pool = nn.Embedding(states, width), 4 if length > _LONG else 1
        self.near = nn.Conv1d(width, width, 9 if length > _LONG else 3, padding="same")
        self.place = nn.Embedding(-(-length // self.pool), width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mixes = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.leave = _head(2 * width)

    def forward(self, x: Tensor, t: Tensor, cond: Encoded) -> Tensor:
        linear = self.linear(x, t)
        return linear.detach() + self._beside(x, t, cond) if self.joined else linear

    def _beside(self, x: Tensor, t: Tensor, cond: Encoded) -> Tensor:
        h = self.token(x) + self.context(t, cond)[:, None]
        h = F.max_pool1d((h.mT + F.silu(self.near(h.mT))), self.pool, ceil_mode=True).mT + self.place.weight
        for norm, mix, feed in zip(self.norms, self.mixes, self.feeds, strict=True):
            parts = mix(norm(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            h = h + F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
            h = h + feed(h)
        return self.leave(torch.cat([h.mean(1), h.amax(1)], 1))[:, 0]


def _head(width: int) -> nn.Sequential:
    """The last layers, initialised at zero, so that training starts from the best constant."""
    last = nn.Linear(width, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(width), nn.SiLU(), last)


def _parts(cond: Encoded) -> list[Tensor]:
    if isinstance(cond, dict):
        return [cond[k] for k in sorted(cond)]
    return [] if cond is None else [cond]


# training ----------------------------------------------------------------------------------------------------------

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (value, target, weight) -> one number for each row


class Regression(pl.LightningModule):
    """Trains `net`. `slow` is its exponential moving average, which is what is measured, and `best` its best state.

    A network with a linear path trains that first, and once it makes no progress for `patience` epochs, or half of the
    `epochs` are over, goes on from its best state with what is beside it: so the best state may be the linear path
    alone. All this is in the checkpoint, which is all that is needed to resume.
    """

    best_loss: Tensor
    waited: Tensor

    def __init__(self, net: Scaled, copies: tuple[Scaled, Scaled], loss: Loss, options: Options, config: str):
        super().__init__()
        self.net = net.train()
        self.slow, self.best = (copy.eval().requires_grad_(False) for copy in copies)
        self.register_buffer("best_loss", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("waited", torch.tensor(0))
        self.loss, self.options, self.config = loss, options, config

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.net.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.options.lr, weight_decay=self.options.decay)

    def on_train_start(self) -> None:
        """A fit that has stopped early stays stopped when it is resumed."""
        self._stop()

    def on_train_epoch_start(self) -> None:
        """Seed dropout and the like by the epoch, so that training can be interrupted after any of them."""
        seed_all((self.options.seed, self.current_epoch), self.device)
        self.trainer.train_dataloader.epoch = self.current_epoch  # type: ignore[union-attr]

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        target = batch["reward"]
        if "next" in batch:
            with torch.no_grad():
                ahead = call(self.slow, *batch["next"])
            target = torch.where(batch["final"], target, ahead)
        loss = self.loss(call(self.net, *batch["state"]), target, batch["weight"]).mean()
        if self.trainer.loggers:
            self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(target))
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """slow <- decay slow + (1 - decay) net, with a smaller decay at first."""
        decay = min(_DECAY, self.global_step / (self.global_step + 10))
        with torch.no_grad():
            for mine, theirs in zip(self.slow.parameters(), self.net.parameters(), strict=True):
                mine.lerp_(theirs, 1 - decay)
            for mine, theirs in zip(self.slow.buffers(), self.net.buffers(), strict=True):
                mine.copy_(theirs)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        losses = self.loss(call(self.slow, *batch["state"]), batch["reward"], batch["weight"])
        self.log("held_out_loss", losses.mean(), batch_size=len(losses), on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics["held_out_loss"]
        if not loss.isfinite():
            raise RuntimeError(
                f"training diverged: the loss on held-out rollouts is {float(loss)} after {self.current_epoch + 1} "
                "epochs; take a smaller lr or a larger alpha, or mend the network"
            )
        self.waited += 1
        if loss < self.best_loss:
            self.waited.zero_()
            self.best_loss.copy_(loss)
            self.best.load_state_dict(self.slow.state_dict())
        if isinstance(self.net.net, Tokens) and not self.net.net.joined:
            self._join(self.net.net)
        self._stop()

    def _stop(self) -> None:
        if int(self.waited) >= self.options.patience:
            self.trainer.should_stop = True

    def _join(self, net: Tokens) -> None:
        """Go on from the best linear path with the network beside it, if it is time to."""
        if int(self.waited) >= self.options.patience or 2 * (self.current_epoch + 1) >= self.options.epochs:
            for one in (self.net, self.slow):
                one.load_state_dict(self.best.state_dict())
            net.joined.fill_(True)
            self.waited.zero_()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["guidekit"] = self.config


class Last(ModelCheckpoint):
    """Keeps the state after the latest epoch, in one file."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            super().on_train_epoch_end(trainer, pl_module)
        except OSError as error:
            raise unwritten(Path(self.dirpath or ".", "last.ckpt"), error) from error


def seed_all(address: tuple[int, ...], device: torch.device) -> None:
    """Seed the generators of the host and of one device from an address."""
    key = random.key(address[0])
    for part in address[1:]:
        key = random.fold(key, part)
    torch.default_generator.manual_seed(int(key))
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(int(key))
