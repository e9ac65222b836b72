r"""Addressed randomness: a random number is a function of *where* it is used, not of what ran before it.

A **key** is an int64 tensor, one entry per row. `fold(key, data)` derives a new key (for a stream, a step, a
row), and `uniform`, `normal`, `gumbel` turn keys of shape (rows,) into numbers of shape (rows, \*shape):

    bits(key, j) = mix(key xor mix(G j + c)),    j = 0, 1, ...

`mix` is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014) with arithmetic shifts, which cost one pass less
than logical ones and a bit: words are 63 bits, never negative. G is the golden ratio times 2^64. Row i therefore has
the same numbers alone, in a batch of ten thousand, in the second micro-batch, on a second call and after a restart.
Everything is tensor arithmetic on the key's device, without a host synchronisation; nobody's global random state is
read or moved.

    >>> import torch
    >>> rows = fold(key(0), torch.arange(4))
    >>> torch.equal(normal(rows, (3,))[2:], normal(rows[2:], (3,)))
    True
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_G, _M1, _M2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SEED, _FOLD, _DRAW = 0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7, 0xAEF17502108EF2D9  # keep the three uses apart
_WORD = 1 << 64
_BLOCK = 1 << 16  # words at a time on the host, so that they stay in its cache


def _signed(z: int) -> int:
    """The int64 with the same 64 bits."""
    z %= _WORD
    return z - _WORD if z >= _WORD >> 1 else z


def _mix(z: Tensor, spare: Tensor | None = None) -> Tensor:
    """The finaliser; overwrites its arguments. `spare` is memory of its form: to allocate costs more than to mix."""
    spare = torch.empty_like(z) if spare is None else spare
    z.bitwise_xor_(torch.bitwise_right_shift(z, 30, out=spare)).mul_(_signed(_M1))
    z.bitwise_xor_(torch.bitwise_right_shift(z, 27, out=spare)).mul_(_signed(_M2))
    return z.bitwise_xor_(torch.bitwise_right_shift(z, 31, out=spare))


def _mix_int(z: int) -> int:
    """The same for one Python number."""
    z = _signed(z)
    z = _signed((z ^ z >> 30) * _M1)
    z = _signed((z ^ z >> 27) * _M2)
    return z ^ z >> 31


def key(seed: int | Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """The key of a seed: shape () for an int, (groups,) for a sequence of ints."""
    if isinstance(seed, Sequence):
        return torch.stack([key(s, device) for s in seed])
    return torch.full((), _mix_int(seed * _G + _SEED), dtype=torch.int64, device=device)


def fold(key: Tensor, data: int | str | Tensor) -> Tensor:
    """A new key from a key and an address: a number, a name, or a tensor of numbers (broadcast against key)."""
    if isinstance(data, str):
        data = int.from_bytes(hashlib.blake2b(data.encode(), digest_size=8).digest(), "little")
    if isinstance(data, Tensor):
        return _mix(key ^ _mix(data.to(torch.int64) * _signed(_G) + _signed(_FOLD)))
    return _mix(key ^ _mix_int(data * _G + _FOLD))


def address(slot: Tensor, n: int) -> Tensor:
    """The address of slot i + c n, child c of parent i of n: it does not depend on n, and is i where c = 0."""
    return slot % n + (slot // n << 32)


def _bits(key: Tensor, count: int, spare: Tensor | None = None) -> Tensor:
    r"""`count` words for each key, shape (\*key.shape, count)."""
    return _mix(key[..., None] ^ _counter(count, key.device), spare)


@lru_cache(maxsize=8)
def _counter(count: int, device: torch.device) -> Tensor:
    return _mix(torch.arange(count, device=device) * _signed(_G) + _signed(_DRAW))


def uniform(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    r"""Uniform numbers in the open interval (0, 1), float64, shape (\*key.shape, \*shape)."""
    return _uniform(_bits(key, math.prod(shape))).view(*key.shape, *shape)


def _uniform(words: Tensor) -> Tensor:
    u = torch.bitwise_right_shift(words, 10, out=words).to(torch.float64)
    return u.add_(0.5).mul_(2.0**-53).clamp_(max=1 - 2.0**-53)


def gumbel(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Standard Gumbel numbers, float64: in float32 their cut tail would lower the temperature of a draw."""
    return _gumbel(uniform(key, shape))


def _gumbel(u: Tensor) -> Tensor:
    return u.log_().neg_().log_().neg_()


class Gumbels:
    r"""The numbers of `gumbel(key, shape)`, of which none is drawn before it is read; `shape` is (length, states).

    It is read as a tensor is, at one state of every place or at chosen places of chosen rows:

        >>> late, now = Gumbels(fold(key(0), torch.arange(4)), (3, 2)), gumbel(fold(key(0), torch.arange(4)), (3, 2))
        >>> rows, places = torch.tensor([0, 3]), torch.tensor([2, 1])
        >>> torch.equal(late[..., 1], now[..., 1]), torch.equal(late[rows, places], now[rows, places])
        (True, True)
        >>> torch.equal(late[1:].drawn(), now[1:])
        True
    """

    def __init__(self, key: Tensor, shape: Sequence[int]):
        self.key, self.each = key, tuple(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.key.shape, *self.each)

    @property
    def device(self) -> torch.device:
        return self.key.device

    @property
    def flat(self) -> Gumbels:
        """The same with all keys in one row."""
        return Gumbels(self.key.flatten(), self.each)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, tuple):
            return Gumbels(self.key[index], self.each)
        return _gumbel(_uniform(self.words(index)))

    def words(self, index: tuple) -> Tensor:
        """The words of which these Gumbel numbers are made. Where keys are (moves, rows), those of all moves."""
        counter = _counter(math.prod(self.each), self.device).view(self.each)
        if index[0] is ...:
            counter, key = counter[..., index[1]], self.key[..., None]
        else:
            counter, key = counter[index[1:]], self.key.gather(-1, index[0].expand(*self.key.shape[:-1], -1))
            key = key.view(*key.shape, *[1] * (counter.dim() - 1))
        return _mix(key ^ counter)

    def drawn(self) -> Tensor:
        """All of them."""
        return gumbel(self.key, self.each)


def below(noise: Any, index: tuple, p: Tensor) -> Tensor:
    """Where Gumbel numbers g have exp(-exp(-g)) < p, which is so with probability p."""
    if isinstance(noise, Gumbels):
        return noise.words(index) <= (p * 2.0**62).long() * 2 - 1  # p = 1, where this is 2^63 - 1, is all words
    return noise[index] < -(-p.log()).log()


def drawn(noise: Any) -> Tensor:
    """The tensor that noise is, also where it has not been drawn yet."""
    return noise.drawn() if isinstance(noise, Gumbels) else noise


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by Box and Muller, two from each word; float32 and float64 share their bits.

    A word's halves are 31 and 32 bits. Their size is uniform on [0, 2^31), for the radius, and so is their value
    over one or two turns, for the angle.
    """
    count = math.prod(shape)
    half = (count + 1) // 2
    flat = key.reshape(-1)
    z = torch.empty(len(flat), 2 * half, dtype=dtype, device=key.device)
    rows = len(flat) if key.device.type != "cpu" else max(1, _BLOCK // max(half, 1))
    parts = ((z, flat),) if rows >= len(flat) else zip(z.split(rows), flat.split(rows), strict=True)
    for part, keys in parts:
        _box_muller(part, _bits(keys, half, part.view(torch.int64)[..., :half]))
    return z[..., :count].reshape(*key.shape, *shape)


def _box_muller(z: Tensor, words: Tensor) -> None:
    """Fill z with normal numbers; overwrites the words."""
    half = words.shape[-1]
    z.copy_(words.view(torch.int32))
    radius, angle = z[..., :half], z[..., half:]
    radius.add_(0.5).abs_().mul_(2.0**-31).log_().mul_(-2).sqrt_()
    cosine = torch.cos(angle.mul_(2 * math.pi * 2.0**-31), out=words.view(z.dtype)[..., :half])
    angle.sin_().mul_(radius)
    radius.mul_(cosine)
