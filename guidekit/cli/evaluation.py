"""`guidekit evaluate`: the metrics of any file of samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..jobs import names as sources
from ..jobs.specs import ConfigError
from ..report import export, table as comparison


def metrics(path: Path, domain: str, reference: Path | None, specs: list[str], fcd: bool = False) -> dict[str, Any]:
    """Numbers of a set of samples by name; None where there is nothing to take one of."""
    if fcd and (domain != "molecules" or reference is None):
        raise ConfigError("--fcd compares molecules with those of --reference FILE")
    if domain not in comparison.OF_DOMAIN or domain == "other":
        raise ConfigError(f"--domain {domain!r}: it is molecules, dna or images")
    parts = sources.components(specs)
    for part in parts:
        if part.domain not in (None, domain):
            raise ConfigError(f"the reward {part.name!r} scores {part.domain}, not {domain}")
    samples, known = _read(path, domain), None if reference is None else _read(reference, domain)
    found: dict[str, Any] = {"samples": len(samples)}
    found |= {"molecules": _molecules, "dna": _dna, "images": _images}[domain](samples, known)
    if fcd and known is not None:
        from rewards.molecules.metrics import fcd as distance

        found["FCD"] = distance(samples, known)
    with torch.no_grad():
        found |= {f"mean {part.name}": float(part.raw(samples).double().nanmean()) for part in parts}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def _read(path: Path, domain: str) -> Any:
    try:
        samples = export.read(path, domain)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if not len(samples):
        raise ConfigError(f"{path} holds no samples")
    return samples


def _molecules(samples: list[str], known: list[str] | None) -> dict[str, Any]:
    from rewards.molecules import metrics as of

    found = comparison.metrics(samples, "molecules") | {"scaffold diversity": of.scaffold_diversity(samples)}
    more = (
        {} if known is None else {"novelty": of.novelty(samples, known), "nearest similarity": of.snn(samples, known)}
    )
    return found | more


def _dna(samples: list[str], known: list[str] | None) -> dict[str, Any]:
    from rewards import dna

    found = comparison.metrics(samples, "dna") | {"GC": dna.gc_distribution(samples)["mean"]}
    if known is None:
        return found
    return found | {
        "novelty": dna.novelty(samples, known),
        "3-mer correlation": dna.kmer_correlation(samples, known, 3),
        "6-mer correlation": dna.kmer_correlation(samples, known, 6),
    }


def _images(samples: Tensor, known: Tensor | None) -> dict[str, Any]:
    """Of pixels, made 8 x 8 for what compares with a reference."""
    from rewards import images as of

    found = comparison.metrics(samples, "images")
    if known is None:
        return found
    if known.shape[1] != samples.shape[1]:
        raise ConfigError(f"the reference has {known.shape[1]} channels, and the images have {samples.shape[1]}")
    mine, theirs = (torch.nn.functional.adaptive_avg_pool2d(x, 8).flatten(1) for x in (samples, known))
    if min(len(mine), len(theirs)) < 5:
        raise ConfigError("at least 5 images on both sides are needed to compare them")
    both = of.precision_recall(theirs, mine)
    return found | {
        "Frechet distance of 8 x 8 pixels": float(of.frechet_distance(mine, theirs)),
        "precision": float(both[0]),
        "recall": float(both[1]),
    }
