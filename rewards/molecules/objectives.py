"""The goal-directed objectives of GuacaMol (Brown et al., 2019), https://arxiv.org/abs/1811.09621, from 0 to 1.

An objective is a mean of modified descriptors and similarities of a molecule m,

    (prod_i f_i(d_i(m)))^(1/n)      or      sum_i f_i(d_i(m)) / n,

with modifiers f such as exp(-(d - mu)^2 / (2 sigma^2)). Similarities are Tanimoto coefficients of counts,
sum_k min(a_k, b_k) / sum_k max(a_k, b_k), without folding. `names` lists the named tasks; tasks with free arguments are
functions. The definitions are those of the second version of the suite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..base import Reward
from .descriptors import TPSA, LogP, Molecule, Rings, Substructure, check_molecule, parsed

LARGEST = 100  # heavy atoms of a pharmacophore fingerprint, which takes a minute for a chain of 250 carbons
_FINGERPRINTS = ("ECFP4", "ECFP6", "FCFP4", "FCFP6", "AP", "PHCO")


@dataclass(frozen=True)
class Gaussian:
    """exp(-(x - mu)^2 / (2 sigma^2)): best at mu.

    >>> Gaussian(2.0, 0.5)(torch.tensor([2.0, 2.5]))
    tensor([1.0000, 0.6065])
    """

    mu: float
    sigma: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.mu) or not 0 < self.sigma < math.inf:
            raise ValueError(f"{type(self).__name__}({self.mu}, {self.sigma}): a number, and a width above 0")

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp(-0.5 * ((x - self.mu) / self.sigma) ** 2)


class MaxGaussian(Gaussian):
    """1 from mu upwards, and a Gaussian below it: as large as possible, up to mu."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.clamp(max=self.mu))


class MinGaussian(Gaussian):
    """1 up to mu, and a Gaussian above it: as small as possible, down to mu."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.clamp(min=self.mu))


@dataclass(frozen=True)
class Clipped:
    """Linear from `low` at `lower` to `high` at `upper`, and constant outside; decreasing if upper < lower."""

    upper: float
    lower: float = 0.0
    high: float = 1.0
    low: float = 0.0

    def __post_init__(self) -> None:
        if self.upper == self.lower or not self.low < self.high:
            raise ValueError(f"{self}: two different ends are needed, and low < high")

    def __call__(self, x: Tensor) -> Tensor:
        share = (x - self.lower) / (self.upper - self.lower)
        return self.low + (self.high - self.low) * share.clamp(0, 1)


@dataclass(frozen=True)
class Thresholded:
    """min(x, threshold) / threshold."""

    threshold: float

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"Thresholded({self.threshold}): a number above 0 is needed")

    def __call__(self, x: Tensor) -> Tensor:
        return x.clamp(max=self.threshold) / self.threshold


@dataclass(frozen=True, eq=False, repr=False)
class Mean(Reward):
    """Mean of rewards: "geometric", for non-negative scores, or "arithmetic". NaN if one of them is.

    >>> Mean([Rings(), Rings("aromatic")], "geometric")(["C1CCc2ccccc2C1"])
    tensor([1.4142], dtype=torch.float64)
    """

    parts: Sequence[Reward]
    kind: str = "geometric"

    def __post_init__(self) -> None:
        if isinstance(self.parts, Reward) or not self.parts or not all(isinstance(p, Reward) for p in self.parts):
            raise TypeError("Mean(parts) takes a list of one or more rewards; wrap functions with as_reward")
        if self.kind not in ("geometric", "arithmetic"):
            raise ValueError(f"Mean(kind={self.kind!r}): it is geometric or arithmetic")
        object.__setattr__(self, "name", f"{self.kind} mean")

    def score(self, samples: Any) -> Tensor:
        scores = torch.stack([part(samples).double() for part in self.parts])
        return scores.mean(0) if self.kind == "arithmetic" else scores.prod(0) ** (1 / len(self.parts))


@dataclass(frozen=True, eq=False, repr=False)
class CountSimilarity(Molecule):
    """Tanimoto similarity to a query molecule in count fingerprints.

    ECFP4, ECFP6, FCFP4, FCFP6, AP (atom pairs up to 10 bonds apart) or PHCO (pharmacophores; NaN above `LARGEST` heavy
    atoms).
    """

    query: str
    kind: str = "ECFP4"

    def __post_init__(self) -> None:
        check_molecule("CountSimilarity", self.query)
        if self.kind not in _FINGERPRINTS:
            raise ValueError(f"CountSimilarity(kind={self.kind!r}): it is one of {', '.join(_FINGERPRINTS)}")
        object.__setattr__(self, "name", f"{self.kind} similarity")

    def of(self, mol: Any) -> float:
        from rdkit import DataStructs

        if self.kind == "PHCO" and mol.GetNumHeavyAtoms() > LARGEST:
            return math.nan
        return DataStructs.TanimotoSimilarity(_counts(mol, self.kind), _query(self.query, self.kind))


@dataclass(frozen=True, eq=False, repr=False)
class AtomCount(Molecule):
    """Number of atoms of one element, or of all elements (None), including hydrogens.

    >>> AtomCount("H")(["CCO"]), AtomCount()(["CCO"])
    (tensor([6.], dtype=torch.float64), tensor([9.], dtype=torch.float64))
    """

    element: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.element or 'all'} atoms")

    def of(self, mol: Any) -> float:
        from rdkit import Chem

        atoms = [atom.GetSymbol() for atom in Chem.AddHs(mol).GetAtoms()]
        return len(atoms) if self.element is None else atoms.count(self.element)


class BertzCT(Molecule):
    """Complexity of the molecular graph (Bertz, 1981), https://doi.org/10.1021/ja00402a071."""

    name = "Bertz complexity"

    def of(self, mol: Any) -> float:
        from rdkit.Chem.GraphDescriptors import BertzCT

        return BertzCT(mol)


def rediscovery(smiles: str) -> Reward:
    """Rediscover a molecule: ECFP4 similarity to it."""
    return CountSimilarity(smiles, "ECFP4").named("rediscovery")


def similarity(smiles: str, kind: str = "ECFP4", threshold: float = 0.75) -> Reward:
    """Similarity to a molecule up to a threshold: min(similarity, threshold) / threshold."""
    return CountSimilarity(smiles, kind).transformed(Thresholded(threshold), "similarity")


def isomers(formula: str, kind: str = "geometric") -> Reward:
    """Match a molecular formula.

    The mean of a Gaussian (sigma 1) of the number of atoms of each element, and one (sigma 2) of the number of all.

    >>> isomers("C2H6O")(["CCO", "COC", "CC"])
    tensor([1.0000, 1.0000, 0.8553], dtype=torch.float64)
    """
    counts = _formula(formula)
    parts = [AtomCount(element).transformed(Gaussian(n, 1.0)) for element, n in counts.items()]
    total = AtomCount().transformed(Gaussian(sum(counts.values()), 2.0))
    return Mean([*parts, total], kind).named(f"isomers of {formula}")


def median(first: str, second: str, kind: str = "ECFP4") -> Reward:
    """Similarity to two molecules at once: the geometric mean of both similarities."""
    return Mean([CountSimilarity(first, kind), CountSimilarity(second, kind)]).named("median")


def names() -> list[str]:
    """The names that `objective` knows."""
    return sorted(_OBJECTIVES)


def objective(name: str) -> Reward:
    """One of the named tasks.

    >>> objective("celecoxib_rediscovery")(["CC1=CC=C(C=C1)C1=CC(=NN1C1=CC=C(C=C1)S(N)(=O)=O)C(F)(F)F"]).tolist()
    [1.0]
    """
    if name not in _OBJECTIVES:
        raise ValueError(f"objective({name!r}): it is one of {', '.join(names())}")
    return _OBJECTIVES[name]().named(name)


_OSIMERTINIB = "COc1cc(N(C)CCN(C)C)c(NC(=O)C=C)cc1Nc2nccc(n2)c3cn(C)c4ccccc34"
_FEXOFENADINE = "CC(C)(C(=O)O)c1ccc(cc1)C(O)CCCN2CCC(CC2)C(O)(c3ccccc3)c4ccccc4"
_RANOLAZINE = "COc1ccccc1OCC(O)CN2CCN(CC(=O)Nc3c(C)cccc3C)CC2"
_PERINDOPRIL = "O=C(OCC)C(NC(C(=O)N1C(C(=O)O)CC2CCCCC12)C)CCC"
_AMLODIPINE = r"Clc1ccccc1C2C(=C(/N/C(=C2/C(=O)OCC)COCCN)C)\C(=O)OC"
_SITAGLIPTIN = "Fc1cc(c(F)cc1F)CC(N)CC(=O)N3Cc2nnc(n2CC3)C(F)(F)F"
_ZALEPLON = "O=C(C)N(CC)C1=CC=CC(C2=CC=NC3=C(C=NN23)C#N)=C1"
_VALSARTAN_PART = "CN(C=O)Cc1ccc(c2ccccc2)cc1"
_HOP_START = "CCCOc1cc2ncnc(Nc3ccc4ncsc4c3)c2cc1S(=O)(=O)C(C)(C)C"
_HOP_SCAFFOLD = "[#7]-c1n[c;h1]nc2[c;h1]c(-[#8])[c;h0][c;h1]c12"
_HOP_DECORATION = "[#6]-[#6]-[#6]-[#8]-[#6]~[#6]~[#6]~[#6]~[#6]-[#7]-c1ccc2ncsc2c1"


def _osimertinib() -> Reward:
    """Like osimertinib in its features but not in detail, and more polar."""
    return Mean(
        [
            similarity(_OSIMERTINIB, "FCFP4", 0.8),
            CountSimilarity(_OSIMERTINIB, "ECFP6").transformed(MinGaussian(0.85, 0.1)),
            TPSA().transformed(MaxGaussian(100, 10)),
            LogP().transformed(MinGaussian(1, 1)),
        ]
    )


def _fexofenadine() -> Reward:
    """Like fexofenadine, less lipophilic."""
    polar, greasy = TPSA().transformed(MaxGaussian(90, 10)), LogP().transformed(MinGaussian(4, 1))
    return Mean([similarity(_FEXOFENADINE, "AP", 0.8), polar, greasy])


def _ranolazine() -> Reward:
    """Like ranolazine, more polar, with one fluorine."""
    return Mean(
        [
            similarity(_RANOLAZINE, "AP", 0.7),
            LogP().transformed(MaxGaussian(7, 1)),
            TPSA().transformed(MaxGaussian(95, 20)),
            AtomCount("F").transformed(Gaussian(1, 1)),
        ]
    )


def _perindopril() -> Reward:
    """Like perindopril, with two aromatic rings."""
    return Mean([CountSimilarity(_PERINDOPRIL), Rings("aromatic").transformed(Gaussian(2, 0.5))])


def _amlodipine() -> Reward:
    """Like amlodipine, with three rings."""
    return Mean([CountSimilarity(_AMLODIPINE), Rings().transformed(Gaussian(3, 0.5))])


def _sitagliptin() -> Reward:
    """Another molecule with the formula, the logP and the TPSA of sitagliptin."""
    other = CountSimilarity(_SITAGLIPTIN).transformed(Gaussian(0, 0.1))
    return Mean([other, *_like(_SITAGLIPTIN), isomers("C16H15F6N5O")])


def _zaleplon() -> Reward:
    """Like zaleplon, with another formula."""
    return Mean([CountSimilarity(_ZALEPLON), isomers("C19H17N3O2")])


def _valsartan() -> Reward:
    """A part of valsartan in a molecule with the logP, TPSA and complexity of sitagliptin."""
    bertz = BertzCT().transformed(Gaussian(BertzCT().of(parsed(_SITAGLIPTIN)), 30))
    return Mean([Substructure(_VALSARTAN_PART), *_like(_SITAGLIPTIN), bertz])


def _deco_hop() -> Reward:
    """Keep the scaffold and the pharmacophores, change the decoration."""
    others = [_absent("CS([#6])(=O)=O"), _absent("[#7]-c1ccc2ncsc2c1"), Substructure(_HOP_SCAFFOLD)]
    return Mean([similarity(_HOP_START, "PHCO", 0.85), *others], "arithmetic")


def _scaffold_hop() -> Reward:
    """Keep the decoration and the pharmacophores, change the scaffold."""
    others = [Substructure(_HOP_DECORATION), _absent(_HOP_SCAFFOLD)]
    return Mean([similarity(_HOP_START, "PHCO", 0.75), *others], "arithmetic")


def _like(smiles: str) -> list[Reward]:
    mol = parsed(smiles)
    return [LogP().transformed(Gaussian(LogP().of(mol), 0.2)), TPSA().transformed(Gaussian(TPSA().of(mol), 5))]


def _absent(smarts: str) -> Reward:
    return 1 - Substructure(smarts)


def _formula(formula: str) -> dict[str, int]:
    """Atoms of each element in a formula such as C9H10N2O2PF2Cl."""
    from rdkit import Chem

    found = re.findall(r"([A-Z][a-z]?)(\d*)", formula) if isinstance(formula, str) else []
    counts: dict[str, int] = {}
    for element, n in found:
        counts[element] = counts.get(element, 0) + int(n or 1)
    known = {Chem.GetPeriodicTable().GetElementSymbol(z) for z in range(1, 119)}
    if not found or "".join(map("".join, found)) != formula or not set(counts) <= known:
        raise ValueError(f"isomers({formula!r}): a formula such as 'C9H10N2O2PF2Cl' is needed")
    return counts


def _counts(mol: Any, kind: str) -> Any:
    if kind == "PHCO":
        from rdkit.Chem.Pharm2D import Generate, Gobbi_Pharm2D

        return Generate.Gen2DFingerprint(mol, Gobbi_Pharm2D.factory)
    return _generator(kind).GetSparseCountFingerprint(mol)


@lru_cache(16)
def _generator(kind: str) -> Any:
    from rdkit.Chem import rdFingerprintGenerator as generators

    if kind == "AP":
        return generators.GetAtomPairGenerator(maxDistance=10)
    features = {"atomInvariantsGenerator": generators.GetMorganFeatureAtomInvGen()} if kind[0] == "F" else {}
    return generators.GetMorganGenerator(radius=int(kind[-1]) // 2, **features)


@lru_cache(256)
def _query(smiles: str, kind: str) -> Any:
    return _counts(parsed(smiles), kind)


_CELECOXIB = "CC1=CC=C(C=C1)C1=CC(=NN1C1=CC=C(C=C1)S(N)(=O)=O)C(F)(F)F"
_TROGLITAZONE = "Cc1c(C)c2OC(C)(COc3ccc(CC4SC(=O)NC4=O)cc3)CCc2c(C)c1O"
_THIOTHIXENE = "CN(C)S(=O)(=O)c1ccc2Sc3ccccc3C(=CCCN4CCN(C)CC4)c2c1"
_ARIPIPRAZOLE = "Clc4cccc(N3CCN(CCCCOc2ccc1c(NC(=O)CC1)c2)CC3)c4Cl"
_ALBUTEROL = "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1"
_MESTRANOL = "COc1ccc2[C@H]3CC[C@@]4(C)[C@@H](CC[C@@]4(O)C#C)[C@@H]3CCc2c1"
_CAMPHOR, _MENTHOL = "CC1(C)C2CCC1(C)C(=O)C2", "CC(C)C1CCC(C)CC1O"
_TADALAFIL = "O=C1N(CC(N2C1CC3=C(C2C4=CC5=C(OCO5)C=C4)NC6=C3C=CC=C6)=O)C"
_SILDENAFIL = "CCCC1=NN(C2=C1N=C(NC2=O)C3=C(C=CC(=C3)S(=O)(=O)N4CCN(CC4)C)OCC)C"

_OBJECTIVES: dict[str, Callable[[], Reward]] = {
    "celecoxib_rediscovery": partial(rediscovery, _CELECOXIB),
    "troglitazone_rediscovery": partial(rediscovery, _TROGLITAZONE),
    "thiothixene_rediscovery": partial(rediscovery, _THIOTHIXENE),
    "aripiprazole_similarity": partial(similarity, _ARIPIPRAZOLE, "ECFP4"),
    "albuterol_similarity": partial(similarity, _ALBUTEROL, "FCFP4"),
    "mestranol_similarity": partial(similarity, _MESTRANOL, "AP"),
    "isomers_c7h8n2o2": partial(isomers, "C7H8N2O2"),
    "isomers_c9h10n2o2pf2cl": partial(isomers, "C9H10N2O2PF2Cl"),
    "isomers_c11h24": partial(isomers, "C11H24"),
    "median_1": partial(median, _CAMPHOR, _MENTHOL, "ECFP4"),
    "median_2": partial(median, _TADALAFIL, _SILDENAFIL, "ECFP6"),
    "osimertinib_mpo": _osimertinib,
    "fexofenadine_mpo": _fexofenadine,
    "ranolazine_mpo": _ranolazine,
    "perindopril_mpo": _perindopril,
    "amlodipine_mpo": _amlodipine,
    "sitagliptin_mpo": _sitagliptin,
    "zaleplon_mpo": _zaleplon,
    "valsartan_smarts": _valsartan,
    "deco_hop": _deco_hop,
    "scaffold_hop": _scaffold_hop,
}
