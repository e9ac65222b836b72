"""`guidekit evaluate`: the metrics of any file of samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..jobs import names
from ..jobs.inputs import read
from ..jobs.specs import ConfigError
from ..models.networks import lent, networks_in
from ..report import export, table as comparison


def evaluated(
    path: Path, domain: str, reference: Path | None, specs: list[str], fcd: bool = False, top: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics of a set of samples by name, None if one is undefined; and the `top` best samples with their scores."""
    if top and not specs:
        raise ConfigError("--top lists the samples of highest reward: give one with --reward")
    if fcd and (domain != "molecules" or reference is None):
        raise ConfigError("--fcd compares molecules with known ones: give --domain molecules and --reference FILE")
    if domain not in comparison.OF_DOMAIN or domain == "other":
        raise ConfigError(f"--domain must be molecules, dna or images, not {domain!r}")
    parts = names.make_components(specs)
    for part in parts:
        if part.domain not in (None, domain):
            raise ConfigError(f"the reward {part.name!r} scores {part.domain}, not {domain}")
    samples, known = read(path, domain), None if reference is None else read(reference, domain)
    found: dict[str, Any] = {"samples": len(samples)}
    found |= {"molecules": _molecules, "dna": _dna, "images": _images}[domain](samples, known)
    if fcd and known is not None:
        from rewards.molecules.metrics import fcd as distance

        found["FCD"] = distance(samples, known)
    with torch.no_grad(), lent(networks_in(*(part.raw for part in parts))):
        scores = {part.name: part.raw(samples).double().cpu() for part in parts}
    total = names.summed(parts, scores) if top else torch.zeros(0)
    found |= {f"mean {name}": float(values.nanmean()) for name, values in scores.items()}
    return _known(found), _best(export.texts(samples, domain), total, scores, top)


def _known(found: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def _best(samples: list[str], total: Tensor, scores: dict[str, Tensor], top: int) -> list[dict[str, Any]]:
    """The samples of highest reward as rows; equal ones once, and none without a score."""
    order = total.nan_to_num(-math.inf).argsort(descending=True, stable=True).tolist()
    first = {samples[i]: i for i in reversed(order) if math.isfinite(total[i])}
    columns, best = {"reward": total} | scores, sorted(first.values(), key=order.index)[:top]
    return [_known({"row": i, "sample": samples[i]} | {k: float(v[i]) for k, v in columns.items()}) for i in best]


_FILTERS = ("PAINS", "MCF")


def _molecules(samples: list[str], known: list[str] | None) -> dict[str, Any]:
    from rewards.molecules import metrics as of

    found = comparison.metrics(samples, "molecules") | {"scaffold diversity": of.scaffold_diversity(samples)}
    found |= {"circles": of.circles(samples)} | {f"without {k}": of.without_alerts(samples, k) for k in _FILTERS}
    if known is None:
        return found
    return found | {"novelty": of.novelty(samples, known), "nearest similarity": of.snn(samples, known)}


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
    """Metrics of pixels; to compare images with a reference, they are resized to 8 x 8."""
    from rewards import images as of

    found = comparison.metrics(samples, "images")
    if known is None:
        return found
    if known.shape[1] != samples.shape[1]:
        raise ConfigError(f"the reference has {known.shape[1]} channels, and the images have {samples.shape[1]}")
    mine, theirs = (torch.nn.functional.adaptive_avg_pool2d(x, 8).flatten(1) for x in (samples, known))
    if min(len(mine), len(theirs)) < 5:
        raise ConfigError("at least 5 images and 5 reference images are needed to compare them")
    both = of.precision_recall(theirs, mine)
    return found | {
        "Frechet distance of 8 x 8 pixels": float(of.frechet_distance(mine, theirs)),
        "precision": float(both[0]),
        "recall": float(both[1]),
    }
