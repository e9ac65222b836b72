"""Images as PNG in data URIs, written with nothing but zlib."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import torch
from torch import Tensor

BUDGET = 1_500_000  # pixel values in all images of a page


def pixels(samples: Any) -> Tensor | None:
    """Samples as 8-bit images (rows, C, H, W), C = 1 or 3; for videos (rows, frames, C, H, W) the first, middle and
    last frame side by side; None if they are not images."""
    from rewards.images import image_batch

    if not hasattr(samples, "shape") or len(samples.shape) not in (4, 5) or 0 in samples.shape:
        return None
    if len(samples.shape) == 5:
        count = samples.shape[1]
        samples = torch.cat([torch.as_tensor(samples[:, i]) for i in sorted({0, count // 2, count - 1})], 3)
    try:
        return (image_batch(samples).detach().cpu().nan_to_num() * 255).round().to(torch.uint8)
    except (ValueError, TypeError):
        return None


def fitted(images: Tensor, most: int, budget: int = BUDGET) -> Tensor:
    """The images shrunk, by averaging areas, until no side exceeds `most` and all together keep the budget."""
    n, channels, height, width = images.shape
    side = max(height, width)
    least = int((budget / max(1, n * channels)) ** 0.5)
    scale = min(1.0, most / side, max(least, 16) / side)
    if scale == 1.0:
        return images
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = torch.nn.functional.interpolate(images.float(), size, mode="area")
    return small.round().to(torch.uint8)


def png(image: Tensor) -> bytes:
    """A PNG file of an 8-bit image (1 or 3, H, W)."""
    channels, height, width = image.shape
    rows = image.movedim(0, -1).reshape(height, width * channels).contiguous().numpy()
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))


def png_uri(image: Tensor) -> str:
    """The PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    kind, data = part
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
