"""Descriptors of single molecules as rewards: samples are SMILES strings, scores are computed by RDKit.

Each sample is parsed once, however many rewards use it. A sample is NaN if RDKit cannot parse it, if it has no atoms,
is not a string, has white space inside or is longer than `LONGEST` characters. For descriptors of which neither high
nor low values are good in themselves, such as logP, `higher_is_better` is True and means nothing: say what you want
with `.transformed`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from ..base import Each, needs

LONGEST = 1000  # characters; the scaffold of a chain of 2000 carbons takes 18 seconds

_CATALOGS = ("PAINS", "PAINS_A", "PAINS_B", "PAINS_C", "BRENK", "NIH", "ZINC", "CHEMBL", "ALL", "MCF")


@lru_cache(1)
def _reader() -> Any:
    return needs("rdkit.Chem", "all", "reading SMILES").MolFromSmiles


@lru_cache(4096)
def _parsed(text: str) -> Any:
    try:
        mol = _reader()(text)
    except (ValueError, RuntimeError):  # text that cannot be encoded in UTF-8, or on which RDKit fails
        return None
    return mol if mol is not None and mol.GetNumAtoms() else None


def parsed(smiles: Any) -> Any:
    """The RDKit molecule of a SMILES string, or None. It is shared, so do not change it.

    >>> parsed("CCO").GetNumAtoms(), parsed("not a molecule")
    (3, None)
    """
    with blocked():
        return _read(smiles)


def _read(smiles: Any) -> Any:
    """The molecule, when logging is blocked already."""
    words = smiles[: LONGEST + 1].split() if isinstance(smiles, str) else []
    return _parsed(words[0]) if len(words) == 1 and len(smiles) <= LONGEST else None


def canonical(smiles: Any) -> str | None:
    """The canonical SMILES, or None. Molecules are the same if their canonical SMILES are.

    >>> canonical("OCC"), canonical("C1CC")
    ('CCO', None)
    """
    return _canonical(smiles) if isinstance(smiles, str) else None


@lru_cache(1 << 14)
def _canonical(smiles: str) -> str | None:
    from rdkit import Chem

    mol = parsed(smiles)
    return None if mol is None else Chem.MolToSmiles(mol)


def scaffold(smiles: Any) -> str | None:
    """Canonical SMILES of the Bemis-Murcko scaffold, the rings and their linkers (https://doi.org/10.1021/jm9602928).

    Empty if there is no ring, None if there is no molecule.

    >>> scaffold("CC(=O)Oc1ccccc1C(=O)O"), scaffold("CCO")
    ('c1ccccc1', '')
    """
    from rdkit.Chem.Scaffolds import MurckoScaffold

    mol = parsed(smiles)
    return None if mol is None else MurckoScaffold.MurckoScaffoldSmiles(mol=mol)


def fingerprint(mol: Any, radius: int = 2, bits: int = 2048) -> Any:
    """Morgan fingerprint, folded to a bit vector."""
    return _morgan(radius, bits).GetFingerprint(mol)


def blocked() -> Any:
    """A context in which RDKit logs nothing."""
    return needs("rdkit.rdBase", "all", "scoring molecules").BlockLogs()


class Molecule(Each):
    """Base of rewards of single molecules: a subclass implements `of`, the score of a parsed molecule."""

    content = "smiles"  # by which `rewards.Cached` tells samples apart

    def of(self, mol: Any) -> float:
        """The score of an RDKit molecule."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it measures")

    def one(self, sample: Any) -> float:
        mol = _read(sample)
        return math.nan if mol is None else self.of(mol)

    def score(self, samples: Any) -> list[float]:
        with blocked():
            return super().score(samples)


class Validity(Molecule):
    """1 if RDKit parses the sample as a molecule with atoms, otherwise 0. Never NaN.

    >>> Validity()(["CCO", "C1CC", ""]).tolist()
    [1.0, 0.0, 0.0]
    """

    name = "validity"

    def one(self, sample: Any) -> float:
        return float(parsed(sample) is not None)


class QED(Molecule):
    """Quantitative estimate of drug-likeness, 0 to 1.

    exp(sum_i w_i ln d_i / sum_i w_i) over desirabilities d_i of eight descriptors (Bickerton et al., 2012),
    https://doi.org/10.1038/nchem.1243.

    >>> QED()(["CC(=O)Oc1ccccc1C(=O)O", "C1CC"])
    tensor([0.5501,    nan], dtype=torch.float64)
    """

    name = "QED"

    def of(self, mol: Any) -> float:
        from rdkit.Chem import QED

        return QED.qed(mol)


class SA(Molecule):
    """Synthetic accessibility, 1 (easy) to 10 (hard).

    Rarity of its fragments, with penalties for size, rings, stereocentres and macrocycles (Ertl and Schuffenhauer,
    2009), https://doi.org/10.1186/1758-2946-1-8.
    """

    name = "SA"
    higher_is_better = False

    def of(self, mol: Any) -> float:
        return needs("rdkit.Contrib.SA_Score.sascorer", "all", "the SA score").calculateScore(mol)


class NPLikeness(Molecule):
    """Likeness to natural products, about -5 to 5.

    Log-odds of the molecule's fragments among natural products, per atom (Ertl, Roggo and Schuffenhauer, 2008),
    https://doi.org/10.1021/ci700286x.
    """

    name = "NP likeness"

    def of(self, mol: Any) -> float:
        return _scorer().scoreMol(mol, _natural())


class LogP(Molecule):
    """log10 of the octanol-water partition coefficient.

    A sum of contributions of atoms (Wildman and Crippen, 1999), https://doi.org/10.1021/ci990307l.
    """

    name = "logP"

    def of(self, mol: Any) -> float:
        return _numbers().CalcCrippenDescriptors(mol)[0]


class TPSA(Molecule):
    """Topological polar surface area of N and O (Ertl, Rohde and Selzer, 2000), https://doi.org/10.1021/jm000942e."""

    name, unit = "TPSA", "A^2"

    def of(self, mol: Any) -> float:
        return _numbers().CalcTPSA(mol)


class MolWt(Molecule):
    """Molecular weight, with natural isotope abundances and including hydrogens."""

    name, unit = "molecular weight", "Da"

    def of(self, mol: Any) -> float:
        from rdkit.Chem import Descriptors

        return Descriptors.MolWt(mol)  # type: ignore[attr-defined]


class HeavyAtoms(Molecule):
    """Number of non-hydrogen atoms."""

    name = "heavy atoms"

    def of(self, mol: Any) -> float:
        return mol.GetNumHeavyAtoms()


class RotatableBonds(Molecule):
    """Number of rotatable bonds, by RDKit's strict definition: amides and the like do not count."""

    name = "rotatable bonds"

    def of(self, mol: Any) -> float:
        return _numbers().CalcNumRotatableBonds(mol)


class HBA(Molecule):
    """Number of hydrogen-bond acceptors, by RDKit's pattern."""

    name = "H-bond acceptors"

    def of(self, mol: Any) -> float:
        return _numbers().CalcNumHBA(mol)


class HBD(Molecule):
    """Number of hydrogen-bond donors, by RDKit's pattern."""

    name = "H-bond donors"

    def of(self, mol: Any) -> float:
        return _numbers().CalcNumHBD(mol)


class Fsp3(Molecule):
    """Fraction of carbons that are sp3 (Lovering, Bikker and Humblet, 2009), https://doi.org/10.1021/jm901241e.

    NaN if there is no carbon.
    """

    name = "Fsp3"

    def of(self, mol: Any) -> float:
        carbons = any(atom.GetAtomicNum() == 6 for atom in mol.GetAtoms())
        return _numbers().CalcFractionCSP3(mol) if carbons else math.nan


class Lipinski(Molecule):
    """How many of Lipinski's four rules the molecule obeys, 0 to 4.

    Weight up to 500, logP up to 5, at most 5 NH and OH, at most 10 N and O (Lipinski et al., 1997),
    https://doi.org/10.1016/S0169-409X(96)00423-1.

    >>> Lipinski()(["CCO", "C" * 40]).tolist()
    [4.0, 2.0]
    """

    name = "Lipinski"

    def of(self, mol: Any) -> float:
        donors, acceptors = _numbers().CalcNumLipinskiHBD(mol), _numbers().CalcNumLipinskiHBA(mol)
        return sum((MolWt().of(mol) <= 500, LogP().of(mol) <= 5, donors <= 5, acceptors <= 10))


class PenalizedLogP(Molecule):
    """logP - SA - max(0, L - 6), where L is the size of the largest ring in the smallest set of smallest rings.

    Gomez-Bombarelli et al. (2018), https://arxiv.org/abs/1610.02415, and Jin, Barzilay and Jaakkola (2018),
    https://arxiv.org/abs/1802.04364. Some papers standardise the three terms over ZINC first; here they are not
    standardised. It grows without bound with the length of a carbon chain.
    """

    name = "penalized logP"

    def of(self, mol: Any) -> float:
        largest = max((len(ring) for ring in mol.GetRingInfo().AtomRings()), default=0)
        return LogP().of(mol) - SA().of(mol) - max(0, largest - 6)


@dataclass(frozen=True, eq=False, repr=False)
class Rings(Molecule):
    """Number of rings of one kind: "all", "aromatic" or "aliphatic" (with at least one non-aromatic bond).

    >>> [float(Rings(kind)(["C1CCc2ccccc2C1"])) for kind in ("all", "aromatic", "aliphatic")]
    [2.0, 1.0, 1.0]
    """

    kind: str = "all"

    def __post_init__(self) -> None:
        _check("Rings", "kind", self.kind, ("all", "aromatic", "aliphatic"))
        object.__setattr__(self, "name", "rings" if self.kind == "all" else f"{self.kind} rings")

    def of(self, mol: Any) -> float:
        name = {"all": "CalcNumRings", "aromatic": "CalcNumAromaticRings", "aliphatic": "CalcNumAliphaticRings"}
        return getattr(_numbers(), name[self.kind])(mol)


@dataclass(frozen=True, eq=False, repr=False)
class Similarity(Molecule):
    """Similarity of the sample to a query molecule, 0 to 1.

    With Morgan fingerprints A and B of the two (Rogers and Hahn, 2010), https://doi.org/10.1021/ci100050t:

        tanimoto   |A and B| / |A or B|
        dice       2 |A and B| / (|A| + |B|)

    query    a SMILES string
    radius   of the neighbourhoods, in bonds; 2 is known as ECFP4, 3 as ECFP6
    bits     length of the folded fingerprint

    >>> Similarity("CCO")(["OCC", "CCCO"])
    tensor([1.0000, 0.5556], dtype=torch.float64)
    """

    query: str
    radius: int = 2
    bits: int = 2048
    metric: str = "tanimoto"

    name = "similarity"

    def __post_init__(self) -> None:
        check_molecule("Similarity", self.query)
        check_whole("Similarity", radius=(self.radius, 0), bits=(self.bits, 1))
        _check("Similarity", "metric", self.metric, ("tanimoto", "dice"))

    def of(self, mol: Any) -> float:
        from rdkit import DataStructs

        compare = DataStructs.TanimotoSimilarity if self.metric == "tanimoto" else DataStructs.DiceSimilarity
        return compare(fingerprint(mol, self.radius, self.bits), _query(self.query, self.radius, self.bits))


@dataclass(frozen=True, eq=False, repr=False)
class Scaffold(Molecule):
    """Tanimoto similarity of the sample's Bemis-Murcko scaffold to that of a query molecule.

    In Morgan fingerprints of radius 2 and 2048 bits. A molecule without a ring has no scaffold and scores 0.

    >>> Scaffold("Cc1ccccc1")(["CCCc1ccccc1O", "CCO"]).tolist()
    [1.0, 0.0]
    """

    query: str

    name = "scaffold similarity"

    def __post_init__(self) -> None:
        check_molecule("Scaffold", self.query)
        if not scaffold(self.query):
            raise ValueError(f"Scaffold({self.query!r}): the query has no ring and so no scaffold; give one that has")

    def of(self, mol: Any) -> float:
        from rdkit import DataStructs
        from rdkit.Chem.Scaffolds import MurckoScaffold

        own = MurckoScaffold.GetScaffoldForMol(mol)
        if not own.GetNumAtoms():
            return 0.0
        return DataStructs.TanimotoSimilarity(fingerprint(own), _query(scaffold(self.query) or "", 2, 2048))


@dataclass(frozen=True, eq=False, repr=False)
class Substructure(Molecule):
    """1 if a SMARTS pattern occurs in the molecule, otherwise 0.

    With `count`, the number of places where it occurs (different sets of atoms, at most 1000).

    >>> Substructure("[OH]", count=True)(["OCCO", "CC"]).tolist()
    [2.0, 0.0]
    """

    smarts: str
    count: bool = False

    def __post_init__(self) -> None:
        check_smarts("Substructure", self.smarts)
        object.__setattr__(self, "name", f"has {self.smarts}" if not self.count else f"number of {self.smarts}")

    def of(self, mol: Any) -> float:
        query = pattern(self.smarts)
        return len(mol.GetSubstructMatches(query)) if self.count else mol.HasSubstructMatch(query)


@dataclass(frozen=True, eq=False, repr=False)
class Part(Molecule):
    """1 if the molecule holds this part and goes on at its open bonds alone, otherwise 0.

    part   SMILES in which dummy atoms like [*:1] mark the open bonds; several pieces are separated by dots. No other
           atom of the part has a further heavy neighbour in the molecule

    >>> Part("[*:1]c1ccccc1")(["CCc1ccccc1", "CCc1ccccc1C", "CCO"]).tolist()
    [1.0, 0.0, 0.0]
    """

    part: str

    def __post_init__(self) -> None:
        check_molecule("Part", self.part)
        object.__setattr__(self, "name", f"holds {self.part}")

    def of(self, mol: Any) -> float:
        return mol.HasSubstructMatch(grown(self.part), useChirality=True)


@dataclass(frozen=True, eq=False, repr=False)
class Alerts(Molecule):
    """Number of different structural alerts of a catalogue that a molecule raises; fewer is better.

    catalog   BRENK, reactive and toxic groups (Brenk et al., 2008), https://doi.org/10.1002/cmdc.200700139; PAINS,
              pan-assay interference (Baell and Holloway, 2010), https://doi.org/10.1021/jm901137j; MCF, the 22
              medicinal chemistry filters of MOSES (Polykovskiy et al., 2020), https://arxiv.org/abs/1811.12823; or
              NIH, ZINC, CHEMBL

    >>> Alerts("BRENK")(["CCO", "CC=O"]).tolist()
    [0.0, 1.0]
    """

    catalog: str = "BRENK"

    higher_is_better = False

    def __post_init__(self) -> None:
        _check("Alerts", "catalog", self.catalog, _CATALOGS)
        object.__setattr__(self, "name", f"{self.catalog} alerts")

    def of(self, mol: Any) -> float:
        return len({match.GetDescription() for match in _catalog(self.catalog).GetMatches(mol)})


def check_molecule(who: str, query: Any) -> None:
    """Raise unless `query` is one SMILES string."""
    if not isinstance(query, str):
        raise TypeError(f"{who}(query) is one SMILES string, not {type(query).__name__}")
    if parsed(query) is None:
        raise ValueError(f"{who}({query[:100]!r}): the query is not a molecule that RDKit reads; give a valid SMILES")


def check_smarts(who: str, smarts: Any) -> None:
    """Raise unless `smarts` is a SMARTS pattern with atoms."""
    if not isinstance(smarts, str):
        raise TypeError(f"{who}(smarts) is a SMARTS string, not {type(smarts).__name__}")
    if pattern(smarts) is None:
        raise ValueError(f"{who}({smarts[:100]!r}): not a pattern that RDKit reads; give a valid SMARTS")


def check_whole(who: str, **given: tuple[Any, int]) -> None:
    """Raise unless each of `name=(value, least)` is a whole number and at least that."""
    for name, (value, least) in given.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{who}({name}={value!r}): a whole number is needed")
        if value < least:
            raise ValueError(f"{who}({name}={value}): at least {least} is needed")


@lru_cache(256)
def pattern(smarts: str) -> Any:
    """The RDKit query of a SMARTS pattern, or None."""
    from rdkit import Chem

    with blocked():
        query = Chem.MolFromSmarts(smarts)
    return query if query is not None and query.GetNumAtoms() else None


@lru_cache(256)
def grown(part: str) -> Any:
    """The RDKit query of a part: dummy atoms are any atom, and all others have as many neighbours as they have here."""
    from rdkit import Chem

    mol = Chem.Mol(parsed(part))
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
        atom.SetIsotope(0 if atom.GetAtomicNum() == 0 else atom.GetIsotope())
    how = Chem.AdjustQueryParameters.NoAdjustments()
    how.makeDummiesQueries = how.adjustDegree = True
    how.adjustDegreeFlags = Chem.AdjustQueryWhichFlags.ADJUST_IGNOREDUMMIES
    return Chem.AdjustQueryProperties(mol, how)


def _check(who: str, name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{who}({name}={value!r}): it is one of {', '.join(known)}")


def _numbers() -> Any:
    return needs("rdkit.Chem.rdMolDescriptors", "all", "scoring molecules")


@lru_cache(16)
def _morgan(radius: int, bits: int) -> Any:
    from rdkit.Chem import rdFingerprintGenerator

    return rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)


@lru_cache(256)
def _query(smiles: str, radius: int, bits: int) -> Any:
    return fingerprint(parsed(smiles), radius, bits)


@lru_cache(16)
def _catalog(name: str) -> Any:
    from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogEntry, FilterCatalogParams, SmartsMatcher

    if name == "MCF":
        catalog = FilterCatalog()
        text = (files("rewards.molecules") / "mcf.csv").read_text(encoding="utf-8")
        for row in csv.DictReader(io.StringIO(text)):
            catalog.AddEntry(FilterCatalogEntry(row["name"], SmartsMatcher(row["name"], row["smarts"], 1)))
        return catalog
    return FilterCatalog(FilterCatalogParams(getattr(FilterCatalogParams.FilterCatalogs, name)))


def _scorer() -> Any:
    return needs("rdkit.Contrib.NP_Score.npscorer", "all", "likeness to natural products")


@lru_cache(1)
def _natural() -> Any:
    with contextlib.redirect_stderr(io.StringIO()):  # it reports what it reads
        return _scorer().readNPModel()
