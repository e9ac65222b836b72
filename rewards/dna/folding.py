r"""Thermodynamics of strands: the melting temperature of a duplex, and the energy of the best fold of one strand.

Nearest neighbours, SantaLucia (1998), https://doi.org/10.1073/pnas.95.4.1460 (unified parameters, 1 M NaCl):

    dH = sum over steps dH_{b_i b_i+1} + ends,      dS likewise, with 0.368 (L - 1) ln[Na+] for salt,
    T_m = 1000 dH / (dS + R ln(C_T/4)) - 273.15,    R = 1.987 cal/(mol K),

dH in kcal/mol, dS in cal/(mol K). For a self-complementary strand, C_T/4 is replaced by C_T and dS has a term of -1.4.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..base import Reward, needs
from .sequence import OTHER, OfBases, as_batch, texts, warn_failures

# dH and dS of the step from A, C, G, T (rows) to A, C, G, T, row by row, then 0 for no step; below, those of the ends
_DH = [-7.9, -8.4, -7.8, -7.2, -8.5, -8.0, -10.6, -7.8, -8.2, -9.8, -8.0, -8.4, -7.2, -8.2, -8.5, -7.9, 0.0]
_DS = [
    -22.2,
    -22.4,
    -21.0,
    -20.4,
    -22.7,
    -19.9,
    -27.2,
    -21.0,
    -22.2,
    -24.4,
    -19.9,
    -22.4,
    -21.3,
    -22.2,
    -22.7,
    -22.2,
    0.0,
]
_TABLES = (_DH, _DS, [2.3, 0.1, 0.1, 2.3, 0.0], [4.1, -2.8, -2.8, 4.1, 0.0])


@dataclass(frozen=True, eq=False, repr=False)
class MeltingTemperature(OfBases):
    """Melting temperature, in degrees Celsius, of the DNA duplex of a strand and its complement.

    sodium    [Na+] in mmol/l, or all monovalent cations
    strands   C_T in nmol/l: both strands together, in equal parts

    The formula is in the module's docstring. It is a two-state model for oligonucleotides: beyond about 60 bases a
    duplex melts in parts. Fewer than two bases, or a letter inside that is not a base, give NaN; such letters at the
    ends are dropped.

    >>> MeltingTemperature()(["GTCTACTTACGTAGCTAGCC", "A"]).round(decimals=1)
    tensor([48.9000,     nan], dtype=torch.float64)
    """

    sodium: float = 50.0
    strands: float = 50.0

    name = "melting temperature"
    unit = "degrees C"

    def __post_init__(self) -> None:
        if not 0 < self.sodium < math.inf or not 0 < self.strands < math.inf:
            raise ValueError(
                f"MeltingTemperature(sodium={self.sodium}, strands={self.strands}): concentrations above 0 are needed, "
                "in mmol/l and nmol/l"
            )

    def of(self, x: Tensor) -> Tensor:
        base, at = x < OTHER, torch.arange(x.shape[1], device=x.device)
        first, last = at.where(base, x.shape[1] - 1).amin(1), at.where(base, 0).amax(1)
        steps = last - first
        dh, ds = _sums(x, base, first, last)
        own = _own_complement(x, base, first, last)
        ds = ds + 0.368 * steps * math.log(1e-3 * self.sodium) - 1.4 * own
        concentration = torch.where(own, 1.0, 0.25).double() * self.strands * 1e-9
        t = 1000 * dh / (ds + 1.987 * concentration.log()) - 273.15
        return t.where((base.sum(1) == steps + 1) & (steps > 0), math.nan)


def _sums(x: Tensor, base: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """dH and dS of the steps and the two ends."""
    a, b = x[:, :-1].long(), x[:, 1:].long()
    pair = (4 * a + b).where(base[:, :-1] & base[:, 1:], 16)
    ends = x.long().gather(1, torch.stack([first, last], 1))
    dh, ds, end_dh, end_ds = (torch.tensor(v, dtype=torch.float64, device=x.device) for v in _TABLES)
    return dh[pair].sum(1) + end_dh[ends].sum(1), ds[pair].sum(1) + end_ds[ends].sum(1)


def _own_complement(x: Tensor, base: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Whether each strand is its own reverse complement, (rows,)."""
    mirrored = (first + last)[:, None] - torch.arange(x.shape[1], device=x.device)
    other = x.gather(1, mirrored.clamp(0, x.shape[1] - 1))
    return ((x + other == 3) | ~base).all(1)


@dataclass(frozen=True, eq=False, repr=False)
class FoldingEnergy(Reward):
    """Free energy, in kcal/mol, of the best fold of a single strand; 0 is the open chain, and higher is less folded.

    molecule      "dna" or "rna": which energies to use, whatever letters are given
    temperature   in degrees Celsius
    backend       "seqfold" (Zuker and Stiegler (1981), https://doi.org/10.1093/nar/9.1.133), or, for RNA, "vienna"
                  if ViennaRNA is installed (Lorenz et al. (2011), https://doi.org/10.1186/1748-7188-6-26)
    longest       longer sequences are NaN, with a `RewardWarning`: the time is cubic in the length

    A letter inside that is not a base gives NaN; such letters at the ends are dropped. Equal samples are folded once.

    >>> FoldingEnergy("rna")(["GGGGAAAACCCCU", "AAAAAAAA"])
    tensor([-6.6000,  0.0000], dtype=torch.float64)
    """

    molecule: str = "dna"
    _: KW_ONLY
    temperature: float = 37.0
    backend: str = "seqfold"
    longest: int = 500

    name = "folding energy"
    content = "sequence"
    unit = "kcal/mol"

    def __post_init__(self) -> None:
        if self.molecule not in ("dna", "rna") or self.backend not in ("seqfold", "vienna"):
            raise ValueError(
                f"FoldingEnergy(molecule={self.molecule!r}, backend={self.backend!r}): dna or rna, seqfold or vienna"
            )
        if self.backend == "vienna" and self.molecule == "dna":
            raise ValueError("FoldingEnergy(backend='vienna') has the energies of RNA; give molecule='rna', or seqfold")
        if not -273.15 < self.temperature < math.inf or self.longest < 1:
            raise ValueError(
                f"FoldingEnergy(temperature={self.temperature}, longest={self.longest}): degrees Celsius, and at least "
                "one base, are needed"
            )

    def score(self, samples: Any) -> Tensor:
        batch = as_batch(samples)
        sequences, found, errors = texts(batch), {}, {}
        fold = _vienna if self.backend == "vienna" else _seqfold
        needs("RNA" if self.backend == "vienna" else "seqfold", "dna", f"FoldingEnergy(backend={self.backend!r})")
        for s in dict.fromkeys(sequences):
            try:
                self._check(s)
                found[s] = math.nan if "N" in s or not s else min(fold(s, self.molecule, self.temperature), 0.0)
            except Exception as error:
                found[s] = math.nan
                errors[s] = error
        warn_failures(self.name, [errors[s] for s in sequences if s in errors], len(sequences))
        device = batch.device if isinstance(batch, Tensor) else None
        return torch.tensor([found[s] for s in sequences], dtype=torch.float64, device=device)

    def _check(self, s: str) -> None:
        if len(s) > self.longest:
            raise ValueError(f"{len(s)} bases are more than longest={self.longest}; raise it if you have the time")


def _seqfold(s: str, molecule: str, temperature: float) -> float:
    """The energy by seqfold; where it finds no pair its energy is infinite, and the strand is the open chain."""
    if molecule == "dna" and "T" not in s and {"C", "G"} <= set(s):
        raise ValueError("seqfold takes a strand without T for RNA, so its DNA energy cannot be had")
    energy = needs("seqfold", "dna", "FoldingEnergy").dg(s.replace("T", "U") if molecule == "rna" else s, temperature)
    return energy if math.isfinite(energy) else 0.0


def _vienna(s: str, molecule: str, temperature: float) -> float:
    vienna = needs("RNA", "dna", "FoldingEnergy(backend='vienna')")
    details = vienna.md()
    details.temperature = temperature
    return vienna.fold_compound(s.replace("T", "U"), details).mfe()[1]
