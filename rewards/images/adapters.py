"""Thin adapters to rewards of other packages, which you install yourself and whose weights you provide.

Packages are imported and weights loaded on first use, once per process. Weights are given as paths, and the adapters
download nothing. A package may download files by itself; HF_HUB_OFFLINE=1 prevents most of that.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .basic import ImageScore, check_count, check_prompt, of_rows, pil_images


class _Prompted(ImageScore):
    """A reward of PIL images and prompts: a subclass implements the score of images for one prompt."""

    differentiable = False
    prompt: str | Sequence[str]

    def of_prompt(self, images: list[Any], prompt: str) -> Sequence[float]:
        """One number for each image."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to score the images of a prompt")

    def check(self, count: int) -> None:
        check_count(self.prompt, count, "prompt")

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        images, prompts = [image.convert("RGB") for image in pil_images(x)], of_rows(self.prompt, rows)
        scores = torch.full((len(rows),), math.nan, dtype=torch.float64)
        for prompt in dict.fromkeys(prompts):
            places = [i for i, p in enumerate(prompts) if p == prompt]
            found = self.of_prompt([images[i] for i in places], prompt)
            scores[places] = torch.as_tensor(found, dtype=torch.float64).reshape(len(places))
        return scores.to(x.device)

    def _checked(self, *paths: str) -> None:
        name = type(self).__name__
        object.__setattr__(self, "prompt", check_prompt(self.prompt, name))
        for path in paths:
            if not Path(getattr(self, path)).exists():
                raise ValueError(f"{name}({path}={str(getattr(self, path))!r}): a local path is needed, there is none")
            object.__setattr__(self, path, str(getattr(self, path)))


@dataclass(frozen=True, eq=False, repr=False)
class PickScore(_Prompted):
    """PickScore (Kirstain et al., 2023), https://arxiv.org/abs/2305.01569, with the package transformers.

    scale cos(image, prompt) of a CLIP model trained on human preferences, with its own scale (about 100).

    model, processor   folders with yuvalkirstain/PickScore_v1 and laion/CLIP-ViT-H-14-laion2B-s32B-b79K; a processor
                       of None is in the model's folder
    batch              number of images per pass
    """

    prompt: str | Sequence[str]
    _: KW_ONLY
    model: str | Path
    processor: str | Path | None = None
    device: str = "cpu"
    batch: int = 32

    name = "PickScore"

    def __post_init__(self) -> None:
        if self.processor is None:
            object.__setattr__(self, "processor", self.model)
        self._checked("model", "processor")

    def of_prompt(self, images: list[Any], prompt: str) -> list[float]:
        network, processor = _pickscore(str(self.model), str(self.processor), self.device)
        scores = []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            inputs = processor(text=[prompt], images=part, padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                found = network(**inputs.to(self.device))
            scores += found.logits_per_image[:, 0].tolist()
        return scores


@dataclass(frozen=True, eq=False, repr=False)
class HPS(_Prompted):
    """Human Preference Score v2 (Wu et al., 2023), https://arxiv.org/abs/2306.09341, with the package hpsv2.

    The cosine of image and prompt in a CLIP model (ViT-H-14) trained on human preferences.

    checkpoint   path of the weights, HPS_v2.1_compressed.pt or HPS_v2_compressed.pt

    The package reads its file at each call, so there is one call per prompt and image size.
    """

    prompt: str | Sequence[str]
    _: KW_ONLY
    checkpoint: str | Path

    name = "HPS"

    def __post_init__(self) -> None:
        self._checked("checkpoint")

    def of_prompt(self, images: list[Any], prompt: str) -> list[float]:
        found = package("hpsv2.img_score", "hpsv2", "HPS").score(images, prompt, cp=self.checkpoint)
        return [float(v) for v in found]


@dataclass(frozen=True, eq=False, repr=False)
class ImageReward(_Prompted):
    """ImageReward (Xu et al., 2023), https://arxiv.org/abs/2304.05977, with the package image-reward.

    A BLIP model trained on human rankings; scores are about 0 on average with a standard deviation of about 1.

    checkpoint, config   paths of ImageReward.pt and med_config.json
    """

    prompt: str | Sequence[str]
    _: KW_ONLY
    checkpoint: str | Path
    config: str | Path
    device: str = "cpu"

    name = "ImageReward"

    def __post_init__(self) -> None:
        self._checked("checkpoint", "config")

    def of_prompt(self, images: list[Any], prompt: str) -> Any:
        with torch.no_grad():
            return _image_reward(str(self.checkpoint), str(self.config), self.device).score(prompt, images)


STATISTICS = ("total_variation", "gradient")


@dataclass(frozen=True, eq=False, repr=False)
class Statistics(ImageScore):
    """Statistics of torchmetrics for single images that need no weights and no reference.

    total_variation   sum of the absolute differences of neighbours (`TotalVariation` times C H W)
    gradient          mean over pixels and channels of sqrt(dy^2 + dx^2), the differences to the next pixel
    """

    statistic: str

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise ValueError(f"Statistics({self.statistic!r}): one of {STATISTICS} is needed")
        object.__setattr__(self, "name", self.statistic.replace("_", " "))
        object.__setattr__(self, "higher_is_better", self.statistic != "total_variation")

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        metrics = package("torchmetrics.functional.image", "torchmetrics", "Statistics")
        if self.statistic == "total_variation":
            return metrics.total_variation(x, reduction="none")
        dy, dx = metrics.image_gradients(x)
        squares = dy.square() + dx.square()
        roots = torch.where(squares > 0, torch.where(squares > 0, squares, 1).sqrt(), 0.0)
        return roots.flatten(1).mean(1)


def package(module: str, install: str, who: str) -> Any:
    """Import something from another package, or raise an error that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{who} needs the package {install}: pip install {install} ({error})") from error


@lru_cache(maxsize=2)
def _pickscore(model: str, processor: str, device: str) -> tuple[Any, Any]:
    transformers = package("transformers", "transformers", "PickScore")
    made = transformers.AutoModel.from_pretrained(model, local_files_only=True).eval().to(device)
    return made, transformers.AutoProcessor.from_pretrained(processor, local_files_only=True)


@lru_cache(maxsize=2)
def _image_reward(checkpoint: str, config: str, device: str) -> Any:
    return package("ImageReward", "image-reward", "ImageReward").load(checkpoint, device=device, med_config=config)
