r"""Addressed randomness: a random number is a function of *where* it is used, not of what ran before it.

A **key** is an int64 tensor, one entry per row. `fold(key, data)` derives a new key (for a stream, a step, a
row), and `uniform`, `normal`, `gumbel` turn keys of shape (rows,) into numbers of shape (rows, \*shape):

    bits(key, j) = mix(key xor mix(G j)),    j = 0, 1, ...

`mix` is the 64-bit finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection; G is the golden ratio
times 2^64. Row i therefore has the same numbers alone, in a batch of ten thousand, in the second micro-batch,
on a second call and after a restart. Everything is tensor arithmetic on the key's device, without a host
synchronisation; nobody's global random state is read or moved.

    >>> import torch
    >>> rows = fold(key(0), torch.arange(4))
    >>> torch.equal(normal(rows, (3,))[2:], normal(rows[2:], (3,)))
    True
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_G, _M1, _M2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 1 << 64


def _signed(z: int) -> int:
    """The int64 with the same 64 bits."""
    z %= _WORD
    return z - _WORD if z >= _WORD >> 1 else z


def _shift(z: Tensor, k: int) -> Tensor:
    """Logical right shift (torch's is arithmetic)."""
    return (z >> k).bitwise_and_((1 << (64 - k)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; overwrites its argument."""
    z.bitwise_xor_(_shift(z, 30)).mul_(_signed(_M1))
    z.bitwise_xor_(_shift(z, 27)).mul_(_signed(_M2))
    return z.bitwise_xor_(_shift(z, 31))


def _mix_int(z: int) -> int:
    z %= _WORD
    z = (z ^ z >> 30) * _M1 % _WORD
    z = (z ^ z >> 27) * _M2 % _WORD
    return _signed(z ^ z >> 31)


def key(seed: int | Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """The key of a seed: shape () for an int, (groups,) for a sequence of ints."""
    if isinstance(seed, Sequence):
        return torch.stack([key(s, device) for s in seed])
    return torch.full((), _mix_int(seed + _G), dtype=torch.int64, device=device)


def fold(key: Tensor, data: int | str | Tensor) -> Tensor:
    """A new key from a key and an address: a number, a name, or a tensor of numbers (broadcast against key)."""
    if isinstance(data, str):
        data = int.from_bytes(hashlib.blake2b(data.encode(), digest_size=8).digest(), "little")
    if isinstance(data, Tensor):
        return _mix(key ^ _mix(data.to(torch.int64) * _signed(_G) + 1))
    return _mix(key ^ _mix_int(data * _G + 1))


def _bits(key: Tensor, count: int) -> Tensor:
    """`count` words for each key, shape (\\*key.shape, count)."""
    j = torch.arange(count, device=key.device) * _signed(_G)
    return _mix(key[..., None] ^ _mix(j))


def uniform(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float64, shape (\\*key.shape, \\*shape)."""
    words = _shift(_bits(key, math.prod(shape)), 11)
    u = words.to(torch.float64).add_(0.5).mul_(2.0**-53).clamp_(max=1 - 2.0**-53)
    return u.view(*key.shape, *shape)


def gumbel(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Standard Gumbel numbers, float64: in float32 their cut tail would lower the temperature of a draw."""
    return uniform(key, shape).log_().neg_().log_().neg_()


def normal(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers by Box and Muller, two from each word; float32 and float64 share their bits."""
    count = math.prod(shape)
    half = (count + 1) // 2
    words = _bits(key, half)
    radius = _shift(words, 32).to(dtype).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = words.bitwise_and_(0xFFFFFFFF).to(dtype).mul_(2 * math.pi * 2.0**-32)
    z = torch.empty(*key.shape, 2 * half, dtype=dtype, device=key.device)
    torch.mul(radius, angle.cos(), out=z[..., :half])
    torch.mul(radius, angle.sin_(), out=z[..., half:])
    return z[..., :count].reshape(*key.shape, *shape)
