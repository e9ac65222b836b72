"""Record how samples came about: the clean estimates of the survivors' ancestors during the run.

    recorder = Recorder(model)
    result = gk.sample(model, 64, guides=guides, callbacks=[recorder])
    recorder.save(folder, result)

It only reads the outcome of each step: it never calls the network, and the run is bit for bit the same without it.
During the run it keeps the clean estimates of all particles at up to `MOMENTS` steps in host memory; only those of the
ancestors of `SURVIVORS` samples are decoded and written.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.population import Population
from ..engine.result import Result
from ..engine.view import Step
from ..models.base import Model
from ..models.networks import lent
from .images import fitted, pixels, png_uri
from .svg import number

MOMENTS, SURVIVORS = 12, 64
FORMAT = "guidekit-lineage-1"
_TEXT, _SIDE = 600, 64  # largest number of characters of a text, and of pixels along an image


def moments(total: int, every: int = 1, most: int = MOMENTS) -> list[int]:
    """Steps at which a run of `total` steps is recorded: every `every`-th and the last, thinned to at most `most`.

    >>> moments(10, 4), moments(100, 1, most=5)
    ([4, 8, 10], [1, 26, 51, 75, 100])
    """
    every_so_many = sorted({*range(every, total + 1, every), total})
    if len(every_so_many) <= most:
        return every_so_many
    last = len(every_so_many) - 1
    return [every_so_many[round(i * last / (most - 1))] for i in range(most)]


def survivors(result: Result, most: int = SURVIVORS) -> list[int]:
    """Rows of the result with the highest rewards, equally many per group; without rewards, the first ones."""
    size = len(result) // result.groups
    each = max(1, most // result.groups)
    scores = torch.zeros(len(result)) if result.rewards is None else result.rewards.nan_to_num(-torch.inf)
    order = scores.view(result.groups, size).argsort(dim=1, descending=True, stable=True)[:, :each]
    rows = order + torch.arange(result.groups, device=order.device)[:, None] * size
    return rows.flatten().tolist()[:most]


class Recorder:
    """A callback of gk.sample that records the clean estimates of the particles every few steps.

    model   the base model of the run, which decodes the estimates
    every   steps from one moment to the next; the last step is always a moment
    """

    def __init__(self, model: Model, every: int = 1):
        if not isinstance(model, Model):
            raise TypeError(f"Recorder(model) takes the base model of the run, not {type(model).__name__}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"Recorder(every={every!r}): a whole number of steps, at least 1, is needed")
        self.model, self.every = model, every
        self._total = 0
        self._kept: dict[int, tuple[float, Tensor, Tensor]] = {}

    def __call__(self, pop: Population, step: Step) -> None:
        if self._kept and step.index <= max(self._kept):  # another run has begun
            self._kept.clear()
        self._total = step.total
        if step.index in moments(step.total, self.every):
            clean = pop.x if step.last else self.model.process.clean(pop.seen, pop.x)
            self._kept[step.index] = (step.t, _copy(clean), _copy(pop.rewards))

    def save(self, folder: str | Path, result: Result) -> Path:
        """Write lineage.json into the folder: the ancestor of each survivor at every moment, and its reward."""
        self._check(result)
        rows = survivors(result)
        lineage = result.lineage().cpu()[:, rows]
        nodes, places = [], []
        for index in self._kept:
            unique, place = lineage[index].unique(return_inverse=True)
            nodes.append(self._nodes(index, unique))
            places.append(place.tolist())
        text = {
            "format": FORMAT,
            "total": self._total,
            "steps": list(self._kept),
            "t": [t for t, _, _ in self._kept.values()],
            "nodes": nodes,
            "rows": {str(row): [place[i] for place in places] for i, row in enumerate(rows)},
        }
        file = Path(folder) / "lineage.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        return replaced(file, json.dumps(text, allow_nan=False))

    def _check(self, result: Result) -> None:
        if not self._kept:
            raise ValueError("the recorder saw no step: give it to gk.sample(..., callbacks=[recorder])")
        _, x, _ = self._kept[max(self._kept)]
        same = len(result.ancestors) == self._total == max(self._kept) and int(result.row.max()) < len(x)
        if not same or not torch.equal(x[result.row.cpu()].nan_to_num(), result.x.detach().cpu().nan_to_num()):
            raise ValueError("the recorder saw another run than the one that made this result")

    def _nodes(self, index: int, rows: Tensor) -> list[dict[str, Any]]:
        _, clean, rewards = self._kept[index]
        with lent(self.model.modules()), torch.no_grad():
            shown = _shown(self.model.decode(clean[rows].to(self.model.device)), len(self._kept))
        known = [v if math.isfinite(v) else None for v in rewards[rows].tolist()]
        return [
            {"row": row, "reward": reward, kind: what}
            for row, reward, (kind, what) in zip(rows.tolist(), known, shown, strict=True)
        ]


def _copy(v: Tensor) -> Tensor:
    return v.detach().to("cpu", copy=True)


def replaced(file: Path, content: str | bytes) -> Path:
    """Write a file atomically: it is either complete or unchanged."""
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, file)
    return file


def _shown(samples: Any, moments: int) -> list[tuple[str, str]]:
    """Samples as text, or images as data URIs."""
    images = pixels(samples)
    if images is not None:
        return [("image", png_uri(v)) for v in fitted(images, _SIDE, 1_500_000 // moments)]
    return [("text", plain(v)) for v in samples]


def plain(sample: Any) -> str:
    """A sample as text: itself, or its first numbers."""
    if isinstance(sample, str):
        return sample if len(sample) <= _TEXT else sample[:_TEXT] + "…"
    values = torch.as_tensor(sample).flatten() if hasattr(sample, "__len__") else torch.tensor([float(sample)])
    return ", ".join(number(v) for v in values[:8].tolist()) + (", …" if len(values) > 8 else "")
