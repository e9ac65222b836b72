r"""Motifs: how well a sequence contains binding sites of transcription factors.

A motif has counts n_ib of base b at position i. With pseudocounts s and a background q, in bits,

    p_ib = (n_ib + s q_b) / (sum_b n_ib + s),      w_ib = log2(p_ib / q_b),      score of a site = sum_i w_{i, b_i},

see Stormo (2000), https://doi.org/10.1093/bioinformatics/16.1.16. The other strand is scanned with w reversed and
complemented. A window with a letter that is not a base is not a site. Names and ids are looked up in JASPAR,
Rauluseviciute et al. (2024), https://doi.org/10.1093/nar/gkad1059, in the copy contained in pyjaspar.
"""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import needs
from .sequence import ALPHABET, OTHER, OfBases, as_batch, blocks, counted, one_hot, present

UNIFORM = (0.25, 0.25, 0.25, 0.25)
_ID = re.compile(r"[A-Z]{2}\d{4}(\.\d+)?", re.IGNORECASE)
_HOW = ("max", "sum", "logsumexp")


def log_odds(counts: Any, pseudocount: float = 1.0, background: Sequence[float] = UNIFORM) -> Tensor:
    """Log-odds w in bits, float64 (4, width), of counts (4, width) in the order ACGT; see the module's docstring.

    >>> log_odds([[7], [1], [0], [0]], pseudocount=4)
    tensor([[ 1.4150],
            [-0.5850],
            [-1.5850],
            [-1.5850]], dtype=torch.float64)
    """
    n, q = _counts(counts), _background(background)
    if pseudocount < 0 or not math.isfinite(pseudocount):
        raise ValueError(f"pseudocount={pseudocount}: a number of sites, 0 or more, is needed")
    return (_frequencies(n, pseudocount, q) / q[:, None]).log2()


@dataclass(frozen=True, eq=False, repr=False)
class Motif(OfBases):
    """Score of the sites of one motif, in bits. With s_j the score of the site at position and strand j:

        max         max_j s_j                       or max(max_j s_j - threshold, 0)
        sum         sum_j max(s_j - threshold, 0)   threshold 0 if none is given
        logsumexp   log2 sum_j 2^s_j                the log of the expected occupancy of a weak binder

    motif         a JASPAR id ("MA0035.4"; "MA0035" is its latest version), a name ("GATA1") if exactly one profile of
                  the release has it, or counts (4, width) in the order ACGT
    release       of JASPAR, like 2024; None is the latest in pyjaspar
    threshold     in bits
    both_strands  False scans the given strand only
    tax_group     of the profiles among which names are looked up; None is all
    pseudocount, background   s and q above; s counts sites, so choose it small if a matrix contains frequencies

    A sequence that is too short for the motif is NaN.

    >>> reward = Motif([[9, 0, 9], [0, 0, 0], [0, 9, 0], [0, 0, 0]], pseudocount=1)
    >>> reward(["TTAGA", "TCT", "AG"])
    tensor([5.6626, 5.6626,    nan], dtype=torch.float64)
    """

    motif: Any
    release: str | int | None = None
    threshold: float | None = None
    how: str = "max"
    _: KW_ONLY
    both_strands: bool = True
    tax_group: str | None = "vertebrates"
    pseudocount: float = 1.0
    background: Sequence[float] = UNIFORM

    differentiable = True
    unit = "bits"

    def __post_init__(self) -> None:
        if self.how not in _HOW or (self.how == "logsumexp" and self.threshold is not None):
            raise ValueError(
                f"Motif(how={self.how!r}, threshold={self.threshold}): how is one of {', '.join(_HOW)}, and "
                "logsumexp goes without a threshold"
            )
        profile = self.motif if not isinstance(self.motif, str) else jaspar(self.motif, self.release, self.tax_group)
        name, counts = profile[1:] if isinstance(self.motif, str) else ("motif", profile)
        w = log_odds(counts, self.pseudocount, self.background)
        if not w.isfinite().all():
            raise ValueError(f"Motif: {name} has a count of 0, whose log-odds are infinite; give a pseudocount above 0")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "weights", torch.stack([w, w.flip(0, 1)] if self.both_strands else [w]))

    def sites(self, x: Any) -> Tensor:
        """s_j of codes or one-hot rows, (rows, strands, positions); -inf where a window has a letter that is not a
        base."""
        w: Tensor = self.weights  # type: ignore[attr-defined]
        bases = present(x, ALPHABET)
        x = one_hot(x) if x.dim() == 2 else x
        w, width = w.to(x), w.shape[2]
        if x.shape[1] < width:
            return x.new_empty(len(x), len(w), 0)
        scores = F.conv1d(x.transpose(1, 2), w)
        whole = F.conv1d(bases[:, None].to(x), w.new_ones(1, 1, width)) > width - 0.5
        return scores.where(whole, -math.inf)

    def of(self, x: Tensor) -> Tensor:
        s = self.sites(x).flatten(1)
        if not s.shape[1]:
            return s.new_full((len(s),), math.nan)
        return self._summary(s).where((s > -math.inf).any(1), math.nan)

    def _summary(self, s: Tensor) -> Tensor:
        if self.how == "logsumexp":
            return (s * math.log(2)).logsumexp(1) / math.log(2)
        if self.how == "sum":
            return (s - (self.threshold or 0.0)).clamp(min=0).sum(1)
        best = s.amax(1)
        return best if self.threshold is None else (best - self.threshold).clamp(min=0)


@dataclass(frozen=True, eq=False, repr=False)
class MotifScan(OfBases):
    """Number of sites of a whole collection of motifs.

    A site is a window whose log-odds have a p-value below `threshold` under random sequences of uniform bases, on each
    strand (a palindrome counts twice). FIMO, Grant, Bailey and Noble (2011),
    https://doi.org/10.1093/bioinformatics/btr064, as implemented in memelite. For one or a few motifs see `Motif`.

    motifs      JASPAR names or ids, a mapping of names to counts (4, width), or None: all CORE profiles of `tax_group`
    threshold   p-value of one site
    pseudocount as in `Motif`; the background is uniform, because FIMO's is

    The first call compiles memelite's code, which takes seconds.
    """

    motifs: Sequence[str] | Mapping[str, Any] | None = None
    threshold: float = 1e-4
    release: str | int | None = None
    _: KW_ONLY
    both_strands: bool = True
    tax_group: str | None = "vertebrates"
    pseudocount: float = 1.0

    unit = "sites"

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"MotifScan(threshold={self.threshold}): a p-value between 0 and 1 is needed")
        q, profiles = _background(UNIFORM), self._profiles()
        if not profiles:
            raise ValueError(
                f"MotifScan(motifs={self.motifs}) has no motif; give names, ids or counts, or None for all"
            )
        matrices = {n: _frequencies(_counts(c), self.pseudocount, q).numpy() for n, c in profiles.items()}
        object.__setattr__(self, "matrices", matrices)
        object.__setattr__(self, "name", f"sites of {len(matrices)} motifs")

    def _profiles(self) -> dict[str, Any]:
        if isinstance(self.motifs, Mapping):
            return dict(self.motifs)
        if self.motifs is None:
            return {f"{i} {name}": n for i, name, n in jaspar_collection(self.release, self.tax_group)}
        names = [self.motifs] if isinstance(self.motifs, str) else self.motifs
        found = (jaspar(name, self.release, self.tax_group) for name in names)
        return {f"{i} {name}": n for i, name, n in found}

    def counts(self, samples: Any) -> Tensor:
        """Number of sites of each motif in each sample, float64 (samples, motifs), in the order of `matrices`; NaN for
        samples without a base."""
        batch = as_batch(samples)
        found = torch.full((len(batch), len(self._matrices)), math.nan, dtype=torch.float64)
        for rows, codes in blocks(batch):
            found[rows.cpu()] = self._hits(codes.cpu())
        return found

    def of(self, x: Tensor) -> Tensor:
        return self._hits(x.cpu()).sum(1).to(x.device)

    @property
    def _matrices(self) -> dict[str, np.ndarray]:
        return self.matrices  # type: ignore[attr-defined]

    def _hits(self, codes: Tensor) -> Tensor:
        """(rows, motifs) of codes, without the hits of FIMO that contain a letter that is not a base."""
        fimo = needs("memelite", "dna", "MotifScan").fimo
        widest = max(m.shape[1] for m in self._matrices.values())
        padded = F.pad(codes, (0, max(0, widest - codes.shape[1])), value=OTHER)
        x = one_hot(padded, torch.int8).transpose(1, 2).contiguous().numpy()
        options = {"threshold": self.threshold, "reverse_complement": self.both_strands, "eps": 1e-12}
        tables = fimo(self._matrices, x, **options) if len(x) and codes.shape[1] else []
        holes = F.pad((padded == OTHER).cumsum(1), (1, 0)).numpy()
        found = np.full((len(codes), len(self._matrices)), np.nan)
        for column, hits in enumerate(tables):
            row, start, end = (hits[c].to_numpy(np.int64) for c in ("sequence_name", "start", "end"))
            whole = holes[row, end] == holes[row, start]
            found[:, column] = np.bincount(row[whole], minlength=len(codes))
        return torch.from_numpy(found).where(counted(codes < OTHER)[:, None] > 0, math.nan)


def jaspar(motif: str, release: str | int | None = None, tax_group: str | None = None) -> tuple[str, str, np.ndarray]:
    """Id, name and counts (4, width) of a JASPAR profile, given its id or name."""
    if not _ID.fullmatch(motif):
        return _by_name(motif, release, tax_group)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is none; said below
        found = _database(release).fetch_motif_by_id(motif.upper())
    if found is None:
        raise ValueError(f"JASPAR has no profile {motif!r}; see https://jaspar.elixir.no for ids and names")
    return _profile(found)


def _by_name(name: str, release: str | int | None, tax_group: str | None) -> tuple[str, str, np.ndarray]:
    found = [p for p in _profiles(release, tax_group, name) if p[1].upper() == name.upper()]
    if len(found) != 1:
        where = "all tax groups" if tax_group is None else tax_group
        ids = ", ".join(f"{i} ({n.shape[1]} bp)" for i, _, n in found)
        raise ValueError(
            f"JASPAR CORE ({_release(release)}, {where}) has {len(found)} profiles of the name {name!r}"
            + (f": {ids}; give the id of one" if found else "; see https://jaspar.elixir.no for ids and names")
        )
    return found[0]


@functools.lru_cache(8)
def jaspar_collection(release: str | int | None = None, tax_group: str | None = None) -> tuple[Any, ...]:
    """(id, name, counts) of all CORE profiles of a group, sorted by id. The first call takes seconds."""
    found = _profiles(release, tax_group)
    if not found:
        raise ValueError(f"JASPAR CORE has no tax group {tax_group!r}; vertebrates, plants, insects ... are some")
    return found


def _profiles(release: str | int | None, tax_group: str | None, name: str | None = None) -> tuple[Any, ...]:
    options = {"tax_group": tax_group and [tax_group], "tf_name": name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are none; callers say so
        found = _database(release).fetch_motifs(collection="CORE", **{k: v for k, v in options.items() if v})
    return tuple(sorted((_profile(m) for m in found), key=lambda profile: profile[0]))


def _database(release: str | int | None) -> Any:
    return needs("pyjaspar", "dna", "looking up JASPAR motifs").jaspardb(release=_release(release))


@functools.lru_cache(32)
def _release(release: str | int | None) -> str:
    """The full name of a release, like JASPAR2024."""
    known = needs("pyjaspar", "dna", "looking up JASPAR motifs").jaspardb().get_releases()
    name = known[0] if release is None else f"JASPAR{str(release).upper().removeprefix('JASPAR')}"
    if name not in known:
        years = ", ".join(v.removeprefix("JASPAR") for v in known)
        raise ValueError(f"release={release!r}: this pyjaspar has the JASPAR releases {years}")
    return name


def _profile(motif: Any) -> tuple[str, str, np.ndarray]:
    return motif.matrix_id, motif.name, np.array([motif.counts[b] for b in ALPHABET], dtype=np.float64)


def _counts(counts: Any) -> Tensor:
    try:
        n = torch.as_tensor(counts, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"a motif is a JASPAR name or id, or counts (4, width), not {type(counts).__name__}") from error
    good = n.dim() == 2 and n.shape[0] == 4 and n.shape[1] > 0
    if not good or not n.isfinite().all() or (n < 0).any() or (n.sum(0) == 0).any():
        raise ValueError(
            f"a motif is counts of shape (4, width), rows ACGT, none negative and no empty column; "
            f"given shape {tuple(n.shape)}" + ("; transpose it" if n.dim() == 2 and n.shape[1] == 4 else "")
        )
    return n


def _background(background: Sequence[float]) -> Tensor:
    q = torch.as_tensor(background, dtype=torch.float64)
    if q.shape != (4,) or not (q > 0).all() or abs(float(q.sum()) - 1) > 1e-6:
        raise ValueError(f"background={background}: four positive shares of A, C, G, T with sum 1 are needed")
    return q


def _frequencies(n: Tensor, s: float, q: Tensor) -> Tensor:
    return (n + s * q[:, None]) / (n.sum(0) + s)
