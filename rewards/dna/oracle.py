"""Networks that predict the function of sequences, as rewards for strings, tokens and one-hot tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..base import Reward, RewardWarning, evaluating, needs
from .sequence import ALPHABET, as_batch, codes_of_tensor, counted, encode, one_hot, present, warn_failures


@dataclass(frozen=True)
class LogOdds:
    """Log-odds of class c, l_c - log sum_{b != c} exp(l_b), of logits l (rows, classes): an `output` of `Network`.

    >>> LogOdds(0)(torch.tensor([[1.0, 0.0]]))
    tensor([1.])
    """

    c: int

    def __call__(self, logits: Tensor) -> Tensor:
        if logits.dim() != 2 or not -logits.shape[1] <= self.c < logits.shape[1] or logits.shape[1] < 2:
            raise ValueError(f"LogOdds({self.c}) takes logits (rows, classes), not shape {tuple(logits.shape)}")
        own = torch.arange(logits.shape[1], device=logits.device) == self.c % logits.shape[1]
        return logits[:, self.c] - logits.masked_fill(own, -math.inf).logsumexp(1)


@dataclass(frozen=True, eq=False, repr=False)
class Network(Reward):
    """Your own network as a reward: it scores one-hot sequences.

    module           takes (rows, 4, length), or (rows, length, 4) with channels_last; other letters are zeros
    output           None if the module returns one number per row, an index along dimension 1 (a task, a class), or a
                     function of what it returns, like `LogOdds(2)` or a mean over the bins of Enformer
    strand_average   use the mean of f(x) and f(reverse complement of x)
    batch            number of rows in one call of the module
    length           number of bases that it was trained on: other lengths are scored with a `RewardWarning`

    It runs in evaluation mode, on the device and in the precision of its parameters, and is left as it was. Gradients
    reach one-hot samples, never its parameters. Strings of equal length are batched, so none is padded. If it raises
    for a length, strings of that length are NaN, with a `RewardWarning`.
    """

    module: nn.Module
    output: int | Callable[[Any], Tensor] | None = None
    strand_average: bool = False
    batch: int = 256
    _: KW_ONLY
    channels_last: bool = False
    length: int | None = None

    differentiable = True

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            given = type(self.module).__name__
            raise TypeError(
                f"Network(module) is a torch module, not {given}; a function of samples is a reward as it is"
            )
        number = isinstance(self.output, int) and not isinstance(self.output, bool)
        if self.output is not None and not number and not callable(self.output):
            raise TypeError(f"Network(output={self.output!r}): None, an index or a function of what the module returns")
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise ValueError(f"Network(batch={self.batch!r}): a whole number of rows, 1 or more, is needed")
        object.__setattr__(self, "name", type(self.module).__name__)

    def score(self, samples: Any) -> Tensor:
        batch = as_batch(samples)
        self._check_length({batch.shape[1]} if isinstance(batch, Tensor) else {len(s) for s in batch})
        if not isinstance(batch, Tensor):
            return self._of_strings(batch)
        return self._of_rows(batch if batch.dim() == 3 else one_hot(codes_of_tensor(batch), torch.float32))

    def _check_length(self, lengths: set[int]) -> None:
        """Warn about sequences of other lengths than the network was trained on."""
        other = max(lengths - {self.length, 0}, default=0)
        if self.length is not None and other:
            text = (
                f"reward {self.name!r} was trained on {self.length} bases; its score of {other} bases may mean little"
            )
            warnings.warn(text, RewardWarning, stacklevel=4)

    def _of_strings(self, samples: list[str]) -> Tensor:
        scores, errors, groups = torch.full((len(samples),), math.nan, dtype=torch.float64), [], {}
        for i, s in enumerate(samples):
            groups.setdefault(len(s), []).append(i)
        groups.pop(0, None)
        for rows in groups.values():
            try:
                scores[rows] = self._of_rows(one_hot(encode([samples[i] for i in rows]), torch.float32)).double().cpu()
            except Exception as error:
                errors.append((error, len(rows)))
        if errors and len(errors) == len(groups):
            raise errors[0][0]
        warn_failures(self.name, [error for error, count in errors for _ in range(count)], len(samples))
        return scores

    def _of_rows(self, x: Tensor) -> Tensor:
        """Scores of one-hot rows, on their device."""
        if not len(x):
            return torch.zeros(0, device=x.device)
        with evaluating(self.module), torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            scores = torch.cat([self._strands(part) for part in x.split(self.batch)]).to(x.device)
        return scores.where(counted(present(x.detach(), ALPHABET)) > 0, math.nan)

    def _strands(self, x: Tensor) -> Tensor:
        own = next((p for p in self.module.parameters() if p.is_floating_point()), torch.zeros(()).to(x.device))
        x = x.to(own.device, own.dtype)
        forward = self._forward(x)
        return (forward + self._forward(x.flip(1, 2))) / 2 if self.strand_average else forward

    def _forward(self, x: Tensor) -> Tensor:
        value: Any = self.module(x if self.channels_last else x.transpose(1, 2))
        if self.output is not None:
            value = self.output(value) if callable(self.output) else value[:, self.output]
        if not isinstance(value, Tensor) or value.shape[:1] != x.shape[:1] or value.numel() != len(x):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{self.name} gave {shape} for {len(x)} rows, and one number for each is needed; "
                "say output=, an index of dimension 1 or a function of what the module returns"
            )
        return value.reshape(len(x))


def CellType(name: str, oracle: str = "dna-oracle") -> Network:
    """Log-odds that a sequence of 200 bp is accessible in a cell type, by a bundled oracle; the mean of both strands.

    name     GM12878, HepG2, K562 or hESCT0
    oracle   of guidekit.zoo; "dna-judge" is an independent one, for evaluating samples guided by the first
    """
    zoo = needs("guidekit.zoo", "dna", f"CellType({name!r})")
    classes: list[str] = zoo.card(oracle)["classes"]
    if name not in classes:
        raise ValueError(f"CellType({name!r}): the oracle knows {', '.join(classes)}")
    reward = Network(zoo.network(oracle), LogOdds(classes.index(name)), strand_average=True, length=200)
    object.__setattr__(reward, "name", f"{name} log-odds")
    return reward
