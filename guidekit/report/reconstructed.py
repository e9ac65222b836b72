"""Reconstructions: what the samples of a run say of each measurement, as files and in the report.

OUT/reconstructions.csv            a row for each measurement: its residual, spread and evidence
OUT/reconstructions/NAME.y.npy     the measurement; with .mean, .spread and .residual, all at full precision,
                                   and PNG files where these are pictures
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.result import Result
from ..measurements import Gaussian, Measurement
from . import export, images
from .recorder import replaced
from .svg import number

FOLDER, TABLE = "reconstructions", "reconstructions.csv"
MOST, SAMPLES, _SIDE = 24, 6, 256  # measurements and samples of each that a page shows, and pixels along a picture
PARTS = ("y", "mean", "spread", "residual")


@dataclass(frozen=True)
class Found:
    """What the samples say of one measurement: a row of numbers, and arrays by the names of `PARTS`."""

    row: dict[str, Any]
    arrays: dict[str, Tensor]


def found(result: Result, each: Sequence[Measurement], names: Sequence[str], truth: Tensor | None) -> list[Found]:
    """Of each measurement, one to a group of the result; truth are the samples that were measured, if they are
    known."""
    size = len(result) // len(each)
    weighed = bool((result.log_weights != result.log_weights[0]).any() or result.log_z.abs().max() > 0)
    listed = []
    for g, measurement in enumerate(each):
        rows = slice(g * size, (g + 1) * size)
        one = _found(measurement, result.samples[rows], result.weights[rows].cpu(), None if truth is None else truth[g])
        row = {"name": names[g], **one.row, **({"log Z": float(result.log_z[g])} if weighed else {})}
        listed.append(Found(row, one.arrays))
    return listed


def _found(measurement: Measurement, samples: Any, weights: Tensor, truth: Tensor | None) -> Found:
    noise = measurement.noise.std if isinstance(measurement.noise, Gaussian) and not measurement.exact else None
    residual = float((weights * measurement.residual(samples).cpu()).sum())
    row = {"residual": residual} if noise is None else {"residual / noise": residual / noise}
    arrays = {"y": measurement.y}
    if not isinstance(samples, Tensor):
        return Found(row, arrays)
    x = samples.cpu().double()
    mean = torch.tensordot(weights.double(), x, 1)
    spread = torch.tensordot(weights.double(), (x - mean).square(), 1).sqrt()
    row["spread"] = float(spread.square().mean().sqrt())
    if truth is not None:
        row["PSNR"] = float(-10 * (mean - truth.cpu().double()).square().mean().log10())
    rest = measurement.rest(mean.to(samples)[None])[0]
    return Found(row, arrays | {"mean": mean, "spread": spread, "residual": rest})


# files ---------------------------------------------------------------------------------------------------------------


def write(out: Path, listed: Sequence[Found]) -> None:
    """Write the files of the reconstructions into an output folder, each completely or not at all."""
    (out / FOLDER).mkdir(exist_ok=True)
    for one in listed:
        for part, array in one.arrays.items():
            file = out / FOLDER / f"{one.row['name']}.{part}.npy"
            replaced(file, _npy(array))
            if (picture := drawn(part, array)) is not None:
                replaced(file.with_suffix(".png"), images.png(picture))
    export.rows(out / TABLE, [one.row for one in listed])


def _npy(array: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, array.cpu().float().numpy())
    return file.getvalue()


def drawn(part: str, array: Tensor) -> Tensor | None:
    """An 8-bit picture (1 or 3, H, W) of an array; None where it is none. Spreads are drawn from 0 to their maximum,
    residuals from minus to plus three root mean squares."""
    x = array[None] if array.dim() == 2 else array
    if x.dim() != 3 or len(x) not in (1, 3) or 1 in x.shape[1:]:
        return None
    x = x.double().cpu()
    if part == "spread":
        x = x / x.max().clamp(min=1e-12)
    elif part == "residual":
        x = 0.5 + x / (6 * x.square().mean().sqrt()).clamp(min=1e-12)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def rows(listed: Sequence[Found]) -> list[dict[str, Any]]:
    """The numbers of all measurements for summary.json, None where they are not finite."""
    bad = (math.inf, -math.inf)
    return [{k: None if v != v or v in bad else v for k, v in one.row.items()} for one in listed]


# the report ----------------------------------------------------------------------------------------------------------


def shown(out: Path, result: Result, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers and pictures of each measurement for the page; `rows` are those of summary.json."""
    size, pixels = len(result) // max(1, len(rows)), images.pixels(result.samples)
    weights = result.weights.tolist()
    listed = []
    for g, row in enumerate(rows[:MOST]):
        arrays = {p: torch.as_tensor(np.load(f)) for p in PARTS if (f := _file(out, row["name"], p)).exists()}
        pictures = [(_caption(p, a), _uri(v)) for p, a in arrays.items() if (v := drawn(p, a)) is not None]
        best = sorted(range(g * size, (g + 1) * size), key=lambda i: -weights[i])[:SAMPLES]
        pictures += [] if pixels is None else [(f"sample, row {i}", _uri(pixels[i])) for i in best]
        numbers = [(name, value) for name, value in row.items() if name != "name"]
        listed.append({"name": row["name"], "numbers": numbers, "pictures": pictures})
    return listed


def _file(out: Path, name: str, part: str) -> Path:
    return out / FOLDER / f"{name}.{part}.npy"


def _caption(part: str, array: Tensor) -> str:
    if part == "spread":
        return f"spread, white is {number(float(array.max()))}"
    if part == "residual":
        return f"residual of the mean, grey is 0, black and white ±{number(3 * float(array.square().mean().sqrt()))}"
    return {"y": "measurement", "mean": "mean"}[part]


def _uri(picture: Tensor) -> str:
    return images.png_uri(images.fitted(picture[None], _SIDE)[0])
