r"""A classifier as a reward: log p(label | image) of any torch network.

log_prob   z_y - log sum_j exp z_j,        z = network(image)
logit      z_y
margin     z_y - max_{j != y} z_j          positive where the label wins
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..base import evaluating
from .basic import ImageScore, check_count, device_of, of_rows

MODES = ("log_prob", "logit", "margin")


@dataclass(frozen=True, eq=False, repr=False)
class Classifier(ImageScore):
    """Log-probability, logit or margin of a label under your own classifier.

    network      images (n, C, H, W) in [0, 1] -> logits (n, classes); runs in evaluation mode on its own device and is
                 left as it was
    label        one for all samples, or a list with one per sample; counted from 0
    mode         "log_prob", "logit" or "margin"
    preprocess   images -> what the network takes, with gradients; None passes the images unchanged
    batch        number of images per pass

    >>> from rewards.images import Classifier
    >>> first = Classifier(lambda x: x.mean((2, 3)), label=0, mode="logit")
    >>> first(torch.ones(2, 3, 8, 8) * torch.tensor([0.25, 0.5])[:, None, None, None])
    tensor([0.2500, 0.5000])
    """

    network: Callable[[Tensor], Tensor]
    label: int | Sequence[int]
    _: KW_ONLY
    mode: str = "log_prob"
    preprocess: Callable[[Tensor], Tensor] | None = None
    batch: int = 256

    name = "classifier"

    def __post_init__(self) -> None:
        if not callable(self.network):
            raise TypeError(f"Classifier(network): a torch network is needed, not {type(self.network).__name__}")
        if self.mode not in MODES or self.batch < 1:
            raise ValueError(f"Classifier(mode={self.mode!r}, batch={self.batch}): mode is one of {MODES}, batch >= 1")
        given = torch.as_tensor(self.label).tolist()
        labels = given if isinstance(given, list) else [given]
        if not all(type(v) is int and v >= 0 for v in labels):
            raise ValueError(f"Classifier(label={self.label!r:.80}): whole numbers from 0 are needed")
        object.__setattr__(self, "label", tuple(given) if isinstance(given, list) else given)

    def check(self, count: int) -> None:
        check_count(self.label, count, "label")

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        labels = torch.tensor(of_rows(self.label, rows), dtype=torch.long, device=x.device)
        with evaluating(self.network), torch.set_grad_enabled(x.requires_grad):
            parts = zip(x.split(self.batch), labels.split(self.batch), strict=True)
            return torch.cat([self._scores(self._logits(part), label) for part, label in parts])

    def _logits(self, x: Tensor) -> Tensor:
        own = x.to(device_of(self.network, x.device))
        logits: Any = self.network(own if self.preprocess is None else self.preprocess(own))
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the network returned {shape} for {len(x)} images; logits (images, classes) are needed")
        return logits.to(x.device)

    def _scores(self, logits: Tensor, label: Tensor) -> Tensor:
        if len(label) and int(label.max()) >= logits.shape[1]:
            raise ValueError(f"label {int(label.max())}: the network has {logits.shape[1]} classes, from 0")
        z = (logits.log_softmax(-1) if self.mode == "log_prob" else logits).gather(1, label[:, None])[:, 0]
        if self.mode != "margin":
            return z
        return z - logits.scatter(1, label[:, None], -math.inf).amax(1)
