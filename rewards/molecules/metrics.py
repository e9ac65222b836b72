"""Metrics of sets of generated molecules and of searches: plain functions of lists of SMILES.

Definitions are those of MOSES (Polykovskiy et al., 2020), https://arxiv.org/abs/1811.12823, and of PMO (Gao et al.,
2022), https://arxiv.org/abs/2206.12411. Molecules are the same if their canonical SMILES are. Invalid samples count in
`validity` only. A metric is NaN if there is nothing to compute it from.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from ..base import needs
from .descriptors import (
    HBA,
    HBD,
    QED,
    SA,
    TPSA,
    Alerts,
    Fsp3,
    HeavyAtoms,
    LogP,
    MolWt,
    NPLikeness,
    Rings,
    RotatableBonds,
    blocked,
    canonical,
    check_whole,
    fingerprint,
    parsed,
    scaffold,
)


def validity(samples: Sequence[str]) -> float:
    """Fraction of samples that are valid molecules.

    >>> validity(["CCO", "C1CC"])
    0.5
    """
    return _ratio(len(_valid(samples)), len(samples))


def uniqueness(samples: Sequence[str]) -> float:
    """Fraction of distinct molecules among the valid samples.

    >>> uniqueness(["CCO", "OCC", "C1CC"])
    0.5
    """
    valid = _valid(samples)
    return _ratio(len(set(valid)), len(valid))


def novelty(samples: Sequence[str], reference: Iterable[str]) -> float:
    """Fraction of the distinct valid molecules that are not in the reference.

    >>> novelty(["CCO", "OCC", "CC"], ["C(O)C"])
    0.5
    """
    different, known = set(_valid(samples)), set(_valid(reference))
    return _ratio(len(different - known), len(different))


def internal_diversity(samples: Sequence[str], p: int = 1) -> float:
    """1 - mean Tanimoto similarity over all pairs of valid samples, as in MOSES.

    1 - (1/n^2 sum_ij T(i, j)^p)^(1/p) with p = 1 or 2, in Morgan fingerprints of radius 2 and 1024 bits. Pairs of a
    sample with itself are included, and duplicates count as often as they occur.

    >>> internal_diversity(["CCO", "OCC", "c1ccccc1"])  # 5 of 9 pairs are the same molecule, the others share nothing
    0.4444444444444444
    """
    if p not in (1, 2):
        raise ValueError(f"internal_diversity(p={p!r}): it is 1 or 2")
    prints = _prints(samples)
    total = sum(sum(t**p for t in _similarities(one, prints)) for one in prints)
    return 1 - _ratio(total, len(prints) ** 2) ** (1 / p)


def circles(samples: Sequence[str], distance: float = 0.75) -> int:
    """Number of circles (Xie et al., 2023, https://arxiv.org/abs/2112.12542): how many molecules there are of which no
    two are nearer than this, in Tanimoto distance of the fingerprints of `internal_diversity`.

    The largest such set is hard to find. Here the samples are taken in their order, each that is far enough from those
    taken before, which gives a lower bound; so put the best first.

    >>> circles(["CCO", "OCC", "c1ccccc1", "Cc1ccccc1"], 0.9)
    2
    """
    if not 0 <= distance <= 1:
        raise ValueError(f"circles(distance={distance}): a distance from 0 to 1")
    taken: list[Any] = []
    for one in _prints(list(dict.fromkeys(_valid(samples)))):
        if max(_similarities(one, taken), default=0.0) <= 1 - distance:
            taken.append(one)
    return len(taken)


def without_alerts(samples: Sequence[str], catalog: str = "PAINS") -> float:
    """Fraction of the valid samples that raise no structural alert of a catalogue; see `Alerts`.

    >>> without_alerts(["CCO", "CC=O", "C1CC"], "BRENK")
    0.5
    """
    valid = _valid(samples)
    return _ratio(sum(count == 0 for count in Alerts(catalog)(valid).tolist()), len(valid))


def unique_scaffolds(samples: Sequence[str]) -> int:
    """Number of distinct Bemis-Murcko scaffolds; molecules without a ring have none.

    >>> unique_scaffolds(["Cc1ccccc1", "Oc1ccccc1", "C1CC1C", "CCO"])
    2
    """
    with blocked():
        return len({found for s in _listed(samples) if (found := scaffold(s))})


def scaffold_diversity(samples: Sequence[str]) -> float:
    """Number of distinct scaffolds per valid sample."""
    return _ratio(unique_scaffolds(samples), len(_valid(samples)))


def snn(samples: Sequence[str], reference: Iterable[str]) -> float:
    """Mean similarity to the nearest neighbour in the reference, 1/n sum_i max_j T(i, j).

    Fingerprints are those of `internal_diversity`.
    """
    theirs = _prints(reference)
    nearest = [max(_similarities(one, theirs), default=math.nan) for one in _prints(samples)]
    return _ratio(sum(nearest), len(nearest))


def fcd(samples: Sequence[str], reference: Iterable[str], batch_size: int = 512, device: str = "cpu") -> float:
    """Frechet ChemNet distance (Preuer et al., 2018), https://doi.org/10.1021/acs.jcim.8b00234.

    |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), with the means and covariances of ChemNet's activations on both sets. It
    depends on the number of samples, so compare sets of the same size; papers use 10,000. It needs `fcd_torch`, which
    contains the weights.
    """
    ours, theirs = _valid(samples), _valid(reference)
    if min(len(ours), len(theirs)) < 2:
        return math.nan
    network = _chemnet(batch_size, device)
    with warnings.catch_warnings(), blocked():
        warnings.simplefilter("ignore", DeprecationWarning)  # it calls numpy by an old name
        return float(network(ref=theirs, gen=ours))


def summary(samples: Sequence[str]) -> dict[str, float]:
    """Means of common descriptors over the valid samples, by name, with validity and uniqueness.

    >>> summary(["CCO", "CCO", "C1CC"])["molecular weight"]
    46.069
    """
    valid = [s for s in _listed(samples) if parsed(s) is not None]
    kinds = (QED, SA, NPLikeness, LogP, TPSA, MolWt, HeavyAtoms, Rings, RotatableBonds, HBA, HBD, Fsp3)
    means = {reward.name: _mean(reward(valid).tolist()) for reward in (kind() for kind in kinds)}
    return {"validity": validity(samples), "uniqueness": uniqueness(samples), **means}


def top_k(scores: Iterable[float], k: int = 10) -> float:
    """Mean of the k highest scores, or of all if there are fewer; NaN is left out.

    >>> top_k([0.1, float("nan"), 0.5, 0.3], k=2)
    0.4
    """
    check_whole("top_k", k=(k, 1))
    return _mean(sorted((score for score in map(float, scores) if not math.isnan(score)), reverse=True)[:k])


def auc_top_k(history: Iterable[tuple[str, float]], k: int = 10, budget: int = 10_000, freq: int = 100) -> float:
    """PMO's AUC: area under the curve of `top_k` against oracle calls, divided by the budget.

    It rewards a search for finding good molecules early. For scores in [0, 1] it lies in [0, 1]; higher is better.

    history   (SMILES, score) of each call, in order; higher scores are better
    k         10 in PMO's headline metric
    budget    number of calls allowed; later ones are ignored, and a search that stops early keeps its last value
    freq      calls between two points of the curve, which starts at (0, 0) and is linear in between

    A molecule counts as a call once, and invalid samples do not count. A molecule without a score (NaN) is a call that
    does not enter the mean.

    >>> round(auc_top_k([("C", 0.2), ("CC", 0.6), ("CC", 0.6), ("CCC", 0.4)], k=1, budget=4, freq=1), 3)
    0.425
    """
    check_whole("auc_top_k", k=(k, 1), budget=(budget, 1), freq=(freq, 1))
    calls: dict[str, float] = {}
    for smiles, score in history:
        key = canonical(smiles)
        if key is not None:
            calls.setdefault(key, float(score))
    scores = list(calls.values())[:budget]
    points = sorted({*range(0, len(scores), freq), len(scores), budget})
    if not scores:
        return math.nan
    heights = [0.0 if n == 0 else _or_zero(top_k(scores[:n], k)) for n in points]
    steps = zip(points, points[1:], heights, heights[1:], strict=False)
    return sum((b - a) * (left + right) / 2 for a, b, left, right in steps) / budget


def _listed(samples: Any) -> list[Any]:
    if isinstance(samples, str):
        raise TypeError(f"a list of SMILES is needed, not the text {samples[:40]!r}")
    return list(samples)


def _valid(samples: Any) -> list[str]:
    """Canonical SMILES of the valid samples."""
    return [key for sample in _listed(samples) if (key := canonical(sample)) is not None]


def _prints(samples: Any) -> list[Any]:
    mols = [mol for sample in _listed(samples) if (mol := parsed(sample)) is not None]
    return [fingerprint(mol, 2, 1024) for mol in mols]


def _similarities(one: Any, others: list[Any]) -> list[float]:
    from rdkit import DataStructs

    return DataStructs.BulkTanimotoSimilarity(one, others)


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _mean(values: list[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return _ratio(math.fsum(kept), len(kept))


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


@lru_cache(2)
def _chemnet(batch_size: int, device: str) -> Any:
    return needs("fcd_torch", "molecules", "the Frechet ChemNet distance").FCD(device=device, batch_size=batch_size)
