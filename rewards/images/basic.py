r"""Rewards computed from pixels alone, and what all image rewards have in common.

Samples are a float tensor (rows, C, H, W) with C = 1 or 3, a NumPy array (rows, H, W) or (rows, H, W, C), or a list of
PIL images, arrays (H, W[, C]) and tensors (C, H, W), of any sizes. Floats are clamped to [0, 1], because models
overshoot; 8-bit integers are divided by 255. Transparent images are composited on white. A sample with a pixel that is
not finite is NaN, and so is a list item that is not an image.

Y = 0.299 R + 0.587 G + 0.114 B is the luma of ITU-R BT.601, and the image itself if C = 1.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base import Reward, RewardWarning, needs


class ImageScore(Reward):
    """Base of all rewards of images: a subclass implements `measure`, the score of images of one size."""

    differentiable = True
    content = "image"  # by which `rewards.Cached` tells samples apart

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        """The scores (n,) of x (n, C, H, W) in [0, 1]; `rows` are their indices among the samples."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to measure images")

    def check(self, count: int) -> None:
        """Raise if the reward cannot score this many samples."""

    def score(self, samples: Any) -> Tensor:
        self.check(len(samples))
        parts, order = [], []
        for rows, x in by_size(samples, self.name):
            good, clean = without_nan(x)
            parts.append(torch.where(good, self.measure(clean, rows), math.nan) if rows else x.new_zeros(0))
            order += rows
        lost = sorted(set(range(len(samples))) - set(order))
        device = parts[0].device if parts else None
        scores = torch.cat([part.to(device) for part in (*parts, torch.full((len(lost),), math.nan))])
        return scores[torch.as_tensor(order + lost, dtype=torch.long).argsort().to(device)]


def image_batch(samples: Any) -> Tensor:
    """Samples of one size as a float tensor (rows, C, H, W) in [0, 1], C = 1 or 3, on their device.

    >>> image_batch(np.full((2, 4, 5, 3), 255, dtype=np.uint8)).shape
    torch.Size([2, 3, 4, 5])
    """
    if isinstance(samples, (list, tuple)):
        return torch.stack([_one(sample) for sample in samples])
    x = _channels_first(samples, 4)
    if x.dim() != 4 or x.shape[1] not in (1, 3) or 0 in x.shape[2:]:
        raise ValueError(
            f"images of shape {tuple(samples.shape)}: a tensor (rows, C, H, W) or an array (rows, H, W) or "
            "(rows, H, W, C) is needed, with C = 1 or 3"
        )
    return _unit(x)


def pil_images(samples: Any) -> list[Any]:
    """The samples as 8-bit PIL images, values rounded: mode L if C = 1, otherwise RGB. NaN becomes black."""
    Image = needs("PIL.Image", "images", "a PIL image")
    batches = samples if isinstance(samples, (list, tuple)) else image_batch(samples)
    arrays = [(_one(x).detach().nan_to_num() * 255).round().to(torch.uint8).cpu().numpy() for x in batches]
    return [Image.fromarray(a[0] if len(a) == 1 else np.ascontiguousarray(a.transpose(1, 2, 0))) for a in arrays]


def by_size(samples: Any, name: str) -> Iterator[tuple[list[int], Tensor]]:
    """The samples in batches of one size, with their indices. List items that are not images are left out, with a
    warning."""
    if not isinstance(samples, (list, tuple)):
        if not isinstance(samples, (Tensor, np.ndarray)):
            raise TypeError(f"images are a tensor, an array or a list of PIL images, not {type(samples).__name__}")
        yield list(range(len(samples))), image_batch(samples)
        return
    groups: dict[tuple, list[tuple[int, Tensor]]] = {}
    errors = []
    for row, sample in enumerate(samples):
        try:
            x = _one(sample)
            groups.setdefault((x.shape, x.dtype, x.device), []).append((row, x))
        except Exception as error:
            errors.append(error)
    if errors:
        told = f"reward {name!r}: {len(errors)} of {len(samples)} samples are no images, first {errors[0]!s:.300}"
        warnings.warn(told, RewardWarning, stacklevel=4)
    for group in groups.values():
        rows, images = zip(*group, strict=True)
        yield list(rows), torch.stack(images)


def without_nan(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which images (n, C, H, W) have no NaN, (n,), and the batch with the other images replaced by grey, so that no NaN
    reaches networks or the gradients of good images."""
    good = x.detach().flatten(1).sum(1).isfinite()
    return good, x if good.all() else torch.where(good[:, None, None, None], x, 0.5)


def device_of(network: Any, default: torch.device) -> torch.device:
    """The device of the network, or the default if it has no tensors."""
    tensors = [*network.parameters(), *network.buffers()] if isinstance(network, nn.Module) else []
    return tensors[0].device if tensors else default


def luma(x: Tensor) -> Tensor:
    """Y of images (n, C, H, W): (n, H, W)."""
    return x[:, 0] if x.shape[1] == 1 else (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)


@dataclass(frozen=True, eq=False, repr=False)
class JPEGSize(ImageScore):
    """Size of the image as a JPEG file, in kB = 1000 bytes: a reward of DDPO, https://arxiv.org/abs/2305.13301.

    NaN beyond 65500 pixels per side, which no JPEG file can hold.

    quality   of the file, 1 to 100
    sign      +1 rewards images that are hard to compress, -1 images that are easy to compress
    """

    quality: int = 95
    _: KW_ONLY
    sign: int = 1

    differentiable = False
    unit = "kB"

    def __post_init__(self) -> None:
        if isinstance(self.quality, bool) or not isinstance(self.quality, int) or not 1 <= self.quality <= 100:
            raise ValueError(f"JPEGSize(quality={self.quality!r}): a whole number from 1 to 100 is needed")
        if self.sign not in (1, -1):
            raise ValueError(f"JPEGSize(sign={self.sign!r}): +1 for large files, -1 for small ones")
        object.__setattr__(self, "name", "JPEG size" if self.sign == 1 else "-JPEG size")

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        if max(x.shape[2:]) > 65500:
            return x.new_full((len(x),), math.nan)
        sizes = [self.sign * self._bytes(image) / 1000 for image in pil_images(x)]
        return torch.tensor(sizes, dtype=torch.float64).to(x.device)

    def _bytes(self, image: Any) -> int:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.quality)
        return file.tell()


class Brightness(ImageScore):
    """Mean luma Y."""

    name = "brightness"

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        return luma(x).flatten(1).mean(1)


class Contrast(ImageScore):
    """Root mean square contrast: the standard deviation of Y over the pixels.

    Peli (1990), https://doi.org/10.1364/JOSAA.7.002032.
    """

    name = "contrast"

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        variance = luma(x).flatten(1).var(1, correction=0)
        return torch.where(variance > 0, torch.where(variance > 0, variance, 1).sqrt(), 0.0)


@dataclass(frozen=True, eq=False, repr=False)
class Color(ImageScore):
    """-mean (x - rgb)^2 over pixels and channels: 0 for an image of that colour, at worst -1."""

    rgb: Sequence[float]

    name = "color"

    def __post_init__(self) -> None:
        rgb = tuple(float(v) for v in self.rgb)
        if len(rgb) != 3 or not all(0 <= v <= 1 for v in rgb):
            raise ValueError(f"Color(rgb={self.rgb!r}): three numbers in [0, 1] are needed: red, green, blue")
        object.__setattr__(self, "rgb", rgb)

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        return -(x - x.new_tensor(self.rgb)[:, None, None]).square().flatten(1).mean(1)


class Saturation(ImageScore):
    """Mean HSV saturation, (max - min)/max over the channels of a pixel; 0 for black."""

    name = "saturation"

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        top, bottom = x.amax(1), x.amin(1)
        return torch.where(top > 0, (top - bottom) / torch.where(top > 0, top, 1), 0.0).flatten(1).mean(1)


class Sharpness(ImageScore):
    """Variance of the Laplacian of Y over the inner pixels.

    Pech-Pacheco et al. (2000), https://doi.org/10.1109/ICPR.2000.903548. On a scale of 0 to 255 it is 255^2 times as
    large.

        L_ij = Y_i-1,j + Y_i+1,j + Y_i,j-1 + Y_i,j+1 - 4 Y_ij

    NaN for images smaller than 3 x 3 pixels.
    """

    name = "sharpness"

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        if min(x.shape[2:]) < 3:
            return x.new_full((len(x),), math.nan)
        y = luma(x)
        around = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:]
        return (around - 4 * y[:, 1:-1, 1:-1]).flatten(1).var(1, correction=0)


class TotalVariation(ImageScore):
    """Anisotropic total variation per value; high for noisy images.

    sum (|x_i+1,j - x_ij| + |x_i,j+1 - x_ij|) / (C H W), Rudin et al. (1992),
    https://doi.org/10.1016/0167-2789(92)90242-F.
    """

    name = "total variation"
    higher_is_better = False

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        down, right = x.diff(dim=2).abs().flatten(1).sum(1), x.diff(dim=3).abs().flatten(1).sum(1)
        return (down + right) / math.prod(x.shape[1:])


def check_prompt(prompt: Any, who: str) -> str | tuple[str, ...]:
    """One prompt for all samples, or a tuple with one per sample."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Sequence) or not prompt or not all(isinstance(p, str) for p in prompt):
        raise TypeError(f"{who}(prompt={prompt!r:.80}): a text is needed, or a list with one for each sample")
    return tuple(prompt)


def check_count(given: Any, count: int, what: str) -> None:
    """Raise if `what` is given per sample, for another number of samples."""
    if isinstance(given, tuple) and len(given) != count:
        raise ValueError(
            f"{len(given)} {what}s for {count} samples: give one for all, or a list with one for each sample"
        )


def of_rows(given: Any, rows: list[int]) -> list[Any]:
    """The value for each of the rows: its own, or the one given for all."""
    return [given[row] for row in rows] if isinstance(given, tuple) else [given] * len(rows)


def _one(sample: Any) -> Tensor:
    """One image as a float tensor (C, H, W) in [0, 1]."""
    x = _channels_first(sample if isinstance(sample, (Tensor, np.ndarray)) else _array(sample), 3)
    if x.dim() != 3 or x.shape[0] not in (1, 3) or 0 in x.shape:
        raise ValueError(f"an image of shape {tuple(x.shape)}: (C, H, W) is needed, with C = 1 or 3")
    return _unit(x)


def _array(image: Any) -> np.ndarray:
    """A PIL image with 8 bits, grey or RGB, on white."""
    Image = needs("PIL.Image", "images", "a PIL image")
    if not isinstance(image, Image.Image):
        raise TypeError(f"{type(image).__name__} is no image: a PIL image, an array or a tensor is needed")
    if image.mode[0] in "IF":
        raise ValueError(f"a PIL image of mode {image.mode} has no known range: convert it to L or RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _channels_first(x: Any, dims: int) -> Tensor:
    """A tensor as it is; an array (..., H, W[, C]) as a tensor (..., C, H, W)."""
    if isinstance(x, Tensor):
        return x
    if not isinstance(x, np.ndarray):
        raise TypeError(f"images are a tensor, an array or a list of PIL images, not {type(x).__name__}")
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise TypeError(f"images of {x.dtype}: uint8, or floats in [0, 1], are needed")
    t = torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
    return t.unsqueeze(-3) if t.dim() == dims - 1 else t.movedim(-1, -3) if t.dim() == dims else t


def _unit(x: Tensor) -> Tensor:
    """8-bit integers or floats as floats in [0, 1], in at least single precision; NaN where not finite."""
    if x.dtype == torch.uint8:
        return x.float() / 255
    if not x.is_floating_point():
        raise TypeError(f"images of {x.dtype}: floats in [0, 1], or uint8, are needed")
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    low, high = x.detach().aminmax() if x.numel() else (0, 0)
    return x if low >= 0 and high <= 1 else torch.where(x.isfinite(), x, math.nan).clamp(0, 1)
