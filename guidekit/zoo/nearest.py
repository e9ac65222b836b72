"""The nearest molecule, or part of one, that a model can write, for the error where it cannot write what it was given.

Changes are tried alone, then two together, and so on; of equally many those that a chemist would miss least come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import Any

from rewards.molecules.descriptors import blocked, canonical, parsed

# Elements that small models seldom know, and the nearest one of their group that they do.
SWAPS = {"Si": "C", "Ge": "C", "Sn": "C", "As": "P", "Se": "S", "Te": "S", "I": "Br"}
TOGETHER = 3  # changes

Change = Callable[[Any], Any]  # of a molecule that is its own to change


def nearest(smiles: str, writes: Callable[[str], bool]) -> str:
    """The end of an error: which molecule, or part with open bonds, can be written in place of this one; empty if none
    of these changes makes one.

    >>> nearest("[13CH3][Si](C)(C)C", lambda smiles: "[" not in smiles)
    '; the nearest that can be written is CC(C)(C)C, without isotopes, with C for Si'
    """
    with blocked():
        for other, told in _changed(smiles):
            if writes(other):
                return f"; the nearest that can be written is {other}, {told}"
    return ""


def _changed(smiles: str) -> Iterator[tuple[str, str]]:
    """Other molecules and what was changed, the least first."""
    mol = parsed(smiles)
    if mol is None:
        return
    changes, seen = _changes(mol), {canonical(smiles)}
    some = (c for count in range(1, TOGETHER + 1) for c in combinations(changes.items(), count))
    for named in (*some, *([bond] for bond in _open_bonds(mol).items())):
        other = _after(mol, [change for _, change in named])
        if other is not None and other not in seen:
            seen.add(other)
            yield other, ", ".join(name for name, _ in named)


def _changes(mol: Any) -> dict[str, Change]:
    """The changes that this molecule allows, by what is said of them."""
    elements = dict.fromkeys(atom.GetSymbol() for atom in mol.GetAtoms())
    found: dict[str, Change] = {"without isotopes": _without_isotopes}
    found |= {"without the stereo of double bonds": _without_double_bond_stereo, "without stereo": _without_stereo}
    found |= {"without charges": _without_charges}
    found |= {f"with {SWAPS[own]} for {own}": partial(_swapped, own=own) for own in elements if own in SWAPS}
    last = {"by single bonds to the open ends": _by_single_bonds} if "*" in elements else {"without its salt": _largest}
    return found | last


def _open_bonds(mol: Any) -> dict[str, Change]:
    """Fewer and fewer open bonds of a part."""
    count = sum(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms())
    return {f"with {left} of its open bonds": partial(_closed, left=left) for left in range(count - 1, 0, -1)}


def _after(mol: Any, changes: list[Change]) -> str | None:
    """Canonical SMILES after these changes, one after the other; None where there is no such molecule."""
    from rdkit import Chem

    own = Chem.RWMol(mol)
    try:
        for change in changes:
            own = Chem.RWMol(change(own))
            Chem.SanitizeMol(own)
    except (ValueError, RuntimeError):
        return None
    return canonical(Chem.MolToSmiles(own))


def _without_isotopes(mol: Any) -> Any:
    """Of atoms, not of the dummies, whose isotope is their number."""
    from rdkit import Chem

    for atom in mol.GetAtoms():
        if atom.GetAtomicNum():
            atom.SetIsotope(0)
    return Chem.RemoveHs(mol)


def _without_double_bond_stereo(mol: Any) -> Any:
    from rdkit import Chem

    for bond in mol.GetBonds():
        bond.SetStereo(Chem.BondStereo.STEREONONE)
        bond.SetBondDir(Chem.BondDir.NONE)
    return mol


def _without_stereo(mol: Any) -> Any:
    from rdkit import Chem

    Chem.RemoveStereochemistry(mol)
    return mol


def _without_charges(mol: Any) -> Any:
    """By hydrogens, where that is possible."""
    from rdkit.Chem.MolStandardize import rdMolStandardize

    return rdMolStandardize.Uncharger().uncharge(mol)


def _swapped(mol: Any, own: str) -> Any:
    from rdkit import Chem

    for atom in mol.GetAtoms():
        if atom.GetSymbol() == own:
            atom.SetAtomicNum(Chem.GetPeriodicTable().GetAtomicNumber(SWAPS[own]))
    return mol


def _largest(mol: Any) -> Any:
    from rdkit.Chem.MolStandardize import rdMolStandardize

    return rdMolStandardize.LargestFragmentChooser().choose(mol)


def _by_single_bonds(mol: Any) -> Any:
    from rdkit import Chem

    for bond in mol.GetBonds():
        if not (bond.GetBeginAtom().GetAtomicNum() and bond.GetEndAtom().GetAtomicNum()):
            bond.SetBondType(Chem.BondType.SINGLE)
    return mol


def _closed(mol: Any, left: int) -> Any:
    """With hydrogen at all open bonds but the first ones."""
    from rdkit import Chem

    for atom in [atom for atom in mol.GetAtoms() if not atom.GetAtomicNum()][left:]:
        atom.SetAtomicNum(1)
        atom.SetIsotope(0)
        atom.SetAtomMapNum(0)
    return Chem.RemoveHs(mol)
