"""From samples to states, the inverse of decoding, with an error that names every sample that cannot be read.

A reader is a function of samples, like the `read=` of a base model. It raises ValueError (or TypeError, or OSError of a
file) where one of its samples cannot be read; then the samples are read one by one, to find out which ones and why. Its
attribute `takes`, if it has one, says in words what can be read, and `nearest` of a sample what could be in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Reader = Callable[[Any], Any]

FAULTS = (ValueError, TypeError, OSError)
SPELLED = 5  # reasons that an error gives; it names all samples


class Unread(ValueError):
    """Samples that cannot be read. The text is made when it is asked for, since loops that only try do without it."""

    def __init__(self, told: Callable[[], str]):
        super().__init__()
        self.told = told

    def __str__(self) -> str:
        return self.told()


def listed(samples: Any) -> Any:
    """Samples with a row axis: one text, file or image alone is a list of one."""
    if isinstance(samples, (Tensor, np.ndarray)):
        if samples.ndim == 0:
            raise ValueError("samples are a number: a list, or a tensor with one row for each sample, is needed")
        return samples
    if isinstance(samples, Sequence) and not isinstance(samples, (str, bytes)):
        return list(samples)
    return [samples]


def states(read: Reader, samples: Any, shape: tuple[int, ...], state: Callable[[Tensor], Tensor]) -> Tensor:
    """The states that `read` makes of samples; ValueError names all that it cannot read. `state` checks numbers."""
    samples = listed(samples)
    if not len(samples):
        raise ValueError("there are no samples to read: the list is empty")

    def one(part: Any) -> Tensor:
        return state(_stacked(read(part), len(part), shape))

    try:
        return one(samples)
    except FAULTS as error:
        found: dict[int, Exception] = _faults(one, samples) if len(samples) > 1 else {0: error}
        if not found:
            raise  # each of them can be read alone
        raise Unread(lambda: _told(found, samples, read)) from error


def identity(samples: Any) -> Tensor:
    """Samples that are states."""
    if isinstance(samples, Tensor):
        return samples
    return torch.as_tensor(np.stack([np.asarray(s.cpu() if isinstance(s, Tensor) else s) for s in samples]))


def cells(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The parts of a state of this shape that belong to True parts of a mask of samples alone: blocks of the sample. Of
    three axes and more the first are channels, of which both may have as many as they like."""
    if mask.dim() == len(shape) > 2 and mask.shape[0] != shape[0]:
        return blocks(mask.all(0), shape[1:]).expand(shape)
    return blocks(mask, shape)


def blocks(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Whether all of a block is True, where the axes of this shape divide those of the mask.

    >>> blocks(torch.tensor([True, True, True, False]), (2,))
    tensor([ True, False])
    """
    if mask.dim() != len(shape) or any(of % by for of, by in zip(mask.shape, shape, strict=True)):
        raise ValueError(
            f"samples have shape {tuple(mask.shape)} and states {shape}, so that no part of a state is known to belong "
            "to a part of a sample"
        )
    for axis, by in enumerate(shape):
        mask = mask.unflatten(axis, (by, -1)).all(axis + 1)
    return mask


def images(samples: Any, channels: int, height: int, width: int) -> Tensor:
    """Images of one size as floats (rows, channels, height, width) in [0, 1]: tensors, arrays, PIL images or files."""
    from rewards.images import image_batch

    if isinstance(samples, list):
        samples = [_opened(s) if isinstance(s, (str, Path)) else s for s in samples]
    x = image_batch(samples)
    if tuple(x.shape[1:]) != (channels, height, width):
        kinds = {1: "grey", 3: "colour"}
        raise ValueError(
            f"a {kinds[x.shape[1]]} image of {x.shape[2]} x {x.shape[3]} pixels; needed is a {kinds.get(channels)} one "
            f"of {height} x {width}: resize or convert it first"
        )
    return x


def tokens(x: Tensor, vocab: int | None) -> Tensor:
    """Rows of token ids, checked."""
    if x.is_floating_point() or x.dtype == torch.bool:
        raise ValueError(f"tokens are whole numbers, not {x.dtype}")
    if vocab is not None and len(wrong := x[(x < 0) | (x >= vocab)]):
        raise ValueError(f"a token {int(wrong[0])}, and the vocabulary is 0 to {vocab - 1}")
    return x.long()


def _opened(path: str | Path) -> Any:
    from rewards.base import needs

    with needs("PIL.Image", "images", "reading images").open(path) as image:
        return image.convert("L" if image.mode in ("1", "L") else "RGB" if image.mode == "P" else image.mode)


def _stacked(found: Any, rows: int, shape: tuple[int, ...]) -> Tensor:
    """What a reader returned, as a tensor of the right shape."""
    x = identity(found)
    if tuple(x.shape) != (rows, *shape):
        given = tuple(x.shape[1:]) if len(x) == rows else tuple(x.shape)
        raise ValueError(f"it has shape {given}; states of this model have shape {shape}")
    return x


def _faults(read: Reader, samples: Any) -> dict[int, Exception]:
    """Why each of the samples cannot be read, of those that cannot."""
    found: dict[int, Exception] = {}
    for row in range(len(samples)):
        try:
            read(samples[row : row + 1])
        except FAULTS as error:
            found[row] = error
    return found


def _told(found: dict[int, Exception], samples: Any, read: Reader) -> str:
    """The error: all numbers, the first few reasons with the nearest that can be read, and what can be."""
    takes, nearest = getattr(read, "takes", ""), getattr(read, "nearest", lambda sample: "")
    rows = [str(row) for row in found]
    named = f"sample {rows[0]}" if len(rows) == 1 else f"samples {', '.join(rows[:-1])} and {rows[-1]}"
    spelled = [f"{row}{_quoted(samples[row])}: {found[row]}{nearest(samples[row])}" for row in list(found)[:SPELLED]]
    more = f"; and {len(rows) - SPELLED} more" if len(rows) > SPELLED else ""
    can = f". What can be read: {takes}" if takes else ""
    return f"{named} of {len(samples)} (counted from 0) cannot be read: {'; '.join(spelled)}{more}{can}"


def _quoted(sample: Any) -> str:
    """A text or path in a message."""
    return f" ({str(sample)[:60]!r})" if isinstance(sample, (str, Path)) else ""
