"""Samples of files: to be measured, or to start from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..guides.keep import Keep
from ..models.base import Model
from ..report import export
from .config import Config, is_picture
from .specs import ConfigError


def read(path: Path, domain: str) -> Any:
    """The samples of a file or folder: a list of texts, or images."""
    try:
        samples = export.read(path, domain)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if not len(samples):
        raise ConfigError(f"{path} holds no samples")
    if isinstance(samples, list):
        _check_fits(path, samples, domain)
    return samples


def kept(config: Config, domain: str | None, model: Model) -> Keep:
    """The guide that keeps what a run is told to keep; parts of images by RePaint, since the exact weights of a few
    particles would leave one of them."""
    assert config.keep is not None
    if not is_picture(config.keep):
        return Keep(template=config.keep)
    assert config.start is not None
    images = read(Path(config.start), domain or "images")
    if len(images) != 1:
        raise ConfigError(f"keep {config.keep!r}: one image is kept, and start {config.start!r} holds {len(images)}")
    with Image.open(config.keep) as picture:
        return Keep(list(images), picture.convert("L"), method="repaint", recur=4, jump=5)


def states(path: Path, domain: str | None, model: Model, what: str) -> Tensor:
    """States of the samples of a file, which an error calls `what`."""
    if domain not in ("molecules", "dna", "images"):
        raise ConfigError(
            f"{what} {str(path)!r}: what its samples are is known for models of molecules, dna and images; for a model "
            "of your own give --domain (domain=...)"
        )
    try:
        return model.read(read(path, domain))
    except ValueError as error:
        raise ConfigError(f"{what} {str(path)!r}: {error}") from error


def starts(path: Path, domain: str | None, model: Model, n: int, groups: int) -> Tensor:
    """States of the samples of a file, for n rows of every condition: where there are fewer, they take turns."""
    x = states(path, domain, model, "start")
    if len(x) > n:
        raise ConfigError(
            f"start {str(path)!r} holds {len(x)} samples, and n={n}: give -n {len(x)} or more (n=...), or a file with "
            "fewer"
        )
    return x[torch.arange(n, device=x.device) % len(x)].repeat(groups, *[1] * (x.dim() - 1))


def _check_fits(path: Path, samples: list[str], domain: str) -> None:
    """Raise where most samples cannot be what the domain says."""
    odd = [text for text in samples if text and _is_dna(text) != (domain == "dna")]
    if domain == "molecules":  # CCN and the like are molecules that look like DNA
        odd = [text for text in odd if re.search("[AGTagt]", text) and len(text) >= 4]
    if 2 * len(odd) > len(samples):
        other = "DNA: give --domain dna" if domain == "molecules" else "no DNA; for molecules give --domain molecules"
        raise ConfigError(f"{path} does not hold {domain}: {odd[0][:40]!r} is {other}")


def _is_dna(text: str) -> bool:
    """Whether a text has only letters of nucleotides, ambiguous ones and gaps included."""
    return re.fullmatch("[ACGTURYSWKMBDHVN.*-]+", text.upper()) is not None
