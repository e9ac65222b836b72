r"""Mutations and crossovers of molecular graphs, after the graph-based genetic algorithm of Jensen (2019),
https://doi.org/10.1039/C8SC05372C.

Mutations: append, insert, delete or change an atom; change the order of a bond; open or close a ring. Crossovers: each
of two parents is cut at a single bond outside of rings, or at two bonds of one ring, and a piece of one is joined to a
piece of the other. What comes out must be one molecule that rdkit accepts, without rings of more than six atoms,
without cumulated double bonds in rings, and without double bonds in rings of three or four; and no larger than is
asked, for rewards that rise with size are else followed to molecules of hundreds of atoms.

A molecule is edited as a graph with alternating single and double bonds, with hydrogens left to the valences.
"""

from __future__ import annotations

import math
import random as python
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rewards.molecules.descriptors import blocked, parsed

SINGLE, DOUBLE, TRIPLE = ("C", "N", "O", "F", "S", "Cl", "Br"), ("C", "N", "O"), ("C", "N")
ORDERS = (0.6, 0.35, 0.05)  # of single, double and triple bonds to new atoms
LARGEST_RING = 6
RINGS = {3: 0.05, 4: 0.05, 5: 0.45, 6: 0.45}  # sizes of rings that are closed
TRIES = 20
PARENTS, CUTS = 1 << 10, 1 << 12  # that are remembered: good parents are drawn again and again


def mutated(smiles: str, rng: python.Random, atoms: float = math.inf) -> str | None:
    """Canonical SMILES of the molecule after one random mutation, or None if none of some tries is one of at most
    so many heavy atoms, or as many as it has itself."""
    with blocked():
        return _tried(lambda: _mutation(smiles, rng), {smiles}, atoms)


def crossed(first: str, second: str, rng: python.Random, atoms: float = math.inf) -> str | None:
    """Canonical SMILES of a molecule made of a piece of each, or None if none of some tries is a molecule of at most so
    many heavy atoms, or as many as the larger one has."""
    with blocked():
        return _tried(lambda: _crossover(first, second, rng), {first, second}, atoms)


def _tried(make: Callable[[], Any], parents: set[str], atoms: float) -> str | None:
    most = max(atoms, *(_graph(s).GetNumHeavyAtoms() for s in parents))
    for _ in range(TRIES):
        mol = make()
        found = finished(mol) if mol is not None and mol.GetNumHeavyAtoms() <= most else None
        if found is not None and found not in parents:
            return found
    return None


def editable(smiles: str) -> Any:
    """A graph of one's own whose hydrogens follow from the valences."""
    from rdkit import Chem

    return Chem.RWMol(_graph(smiles))


@lru_cache(PARENTS)
def _graph(smiles: str) -> Any:
    """The same, shared."""
    from rdkit import Chem

    mol = Chem.RWMol(parsed(smiles))
    Chem.Kekulize(mol, clearAromaticFlags=True)
    for atom in mol.GetAtoms():
        if not atom.GetNumRadicalElectrons():
            atom.SetNoImplicit(False)
            atom.SetNumExplicitHs(0)
    mol.UpdatePropertyCache(strict=False)
    return mol


def finished(mol: Any) -> str | None:
    """Canonical SMILES of an edited graph, or None where it is no acceptable molecule."""
    from rdkit import Chem

    try:
        Chem.SanitizeMol(mol)
        smiles = Chem.MolToSmiles(mol)
    except (ValueError, RuntimeError):
        return None
    again = None if "." in smiles else parsed(smiles)  # what is written must be read as the same molecule
    return Chem.MolToSmiles(again) if again is not None and _rings_are_sound(again) else None


def _rings_are_sound(mol: Any) -> bool:
    sizes = list(map(len, mol.GetRingInfo().AtomRings()))
    if not sizes:
        return True
    return max(sizes) <= LARGEST_RING and not any(mol.HasSubstructMatch(p) for p in _strained())


def _strained() -> list[Any]:
    return [_pattern("[R]=[R]=[R]"), _pattern("[r3,r4]=[r3,r4]")]


_patterns: dict[str, Any] = {}


def _pattern(smarts: str) -> Any:
    from rdkit import Chem

    if smarts not in _patterns:
        _patterns[smarts] = Chem.MolFromSmarts(smarts)
    return _patterns[smarts]


# mutations ------------------------------------------------------------------------------------------------------------


def _mutation(smiles: str, rng: python.Random) -> Any:
    mol = editable(smiles)
    return mol if rng.choice(MUTATIONS)(mol, rng) else None


def _drawn(rng: python.Random) -> tuple[int, str]:
    """The order of a new bond, and the element at its end."""
    order = rng.choices((1, 2, 3), ORDERS)[0]
    return order, rng.choice((SINGLE, DOUBLE, TRIPLE)[order - 1])


def _bond(order: int) -> Any:
    from rdkit.Chem import BondType

    return (BondType.SINGLE, BondType.DOUBLE, BondType.TRIPLE)[order - 1]


def _atom(element: str) -> Any:
    from rdkit import Chem

    return Chem.Atom(element)


def append_atom(mol: Any, rng: python.Random) -> bool:
    """A new atom, bonded to one that has enough hydrogens."""
    order, element = _drawn(rng)
    places = [a.GetIdx() for a in mol.GetAtoms() if a.GetTotalNumHs() >= order]
    if not places:
        return False
    mol.AddBond(rng.choice(places), mol.AddAtom(_atom(element)), _bond(order))
    return True


def insert_atom(mol: Any, rng: python.Random) -> bool:
    """A new atom in the middle of a bond."""
    order = rng.choices((1, 2), ORDERS[:2])[0]
    ends = _random_bond(mol, rng)
    if ends is None:
        return False
    new = mol.AddAtom(_atom(rng.choice(("C", "N", "O", "S") if order == 1 else ("C", "N"))))
    mol.RemoveBond(*ends)
    mol.AddBond(ends[0], new, _bond(order))
    mol.AddBond(new, ends[1], _bond(1))
    return True


def delete_atom(mol: Any, rng: python.Random) -> bool:
    """One atom less; its neighbours are bonded to one of them."""
    atom = mol.GetAtomWithIdx(rng.randrange(mol.GetNumAtoms()))
    around = [a.GetIdx() for a in atom.GetNeighbors()]
    if mol.GetNumAtoms() < 2:
        return False
    centre, *others = rng.sample(around, len(around))
    for other in others:
        if mol.GetBondBetweenAtoms(centre, other) is None:
            mol.AddBond(centre, other, _bond(1))
    mol.RemoveAtom(atom.GetIdx())
    return True


def change_atom(mol: Any, rng: python.Random) -> bool:
    """Another element in the place of an atom."""
    atom = mol.GetAtomWithIdx(rng.randrange(mol.GetNumAtoms()))
    new = _atom(rng.choice([e for e in SINGLE if e != atom.GetSymbol()]))
    atom.SetAtomicNum(new.GetAtomicNum())
    atom.SetFormalCharge(0)
    return True


def change_bond(mol: Any, rng: python.Random) -> bool:
    """Another order of a bond."""
    ends = _random_bond(mol, rng)
    if ends is None:
        return False
    bond = mol.GetBondBetweenAtoms(*ends)
    orders = [o for o in (1, 2, 3) if bond.GetBondType() != _bond(o)]
    bond.SetBondType(_bond(rng.choices(orders, [9 if o < 3 else 1 for o in orders])[0]))
    return True


def open_ring(mol: Any, rng: python.Random) -> bool:
    """One bond of a ring less."""
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds() if b.IsInRing()]
    if not bonds:
        return False
    mol.RemoveBond(*rng.choice(bonds))
    return True


def close_ring(mol: Any, rng: python.Random) -> bool:
    """A bond between two atoms with hydrogens that are at the distance of a ring of three to six."""
    from rdkit import Chem

    size = rng.choices(list(RINGS), list(RINGS.values()))[0]
    free = [a.GetIdx() for a in mol.GetAtoms() if a.GetTotalNumHs() and not a.IsInRing()]
    far = Chem.GetDistanceMatrix(mol)
    pairs = [(a, b) for i, a in enumerate(free) for b in free[:i] if far[a, b] == size - 1]
    if not pairs:
        return False
    mol.AddBond(*rng.choice(pairs), _bond(1))
    return True


MUTATIONS = (append_atom, insert_atom, delete_atom, change_atom, change_bond, open_ring, close_ring)


def _random_bond(mol: Any, rng: python.Random) -> tuple[int, int] | None:
    if not mol.GetNumBonds():
        return None
    bond = mol.GetBondWithIdx(rng.randrange(mol.GetNumBonds()))
    ends = [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()]
    return tuple(rng.sample(ends, 2))  # type: ignore[return-value]


# crossovers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Piece:
    """A part of a molecule, and the atoms of it that lost a bond: twice if they lost two."""

    mol: Any
    open: tuple[int, ...]


def _crossover(first: str, second: str, rng: python.Random) -> Any:
    cut = rng.choice((_acyclic_cut, _ring_cut))
    pieces = [_pieces(smiles, cut(smiles, rng)) for smiles in (first, second)]
    return _joined(rng.choice(pieces[0]), rng.choice(pieces[1]), rng) if all(pieces) else None


def _acyclic_cut(smiles: str, rng: python.Random) -> tuple[int, ...]:
    single = _acyclic_bonds(smiles)
    return (rng.choice(single),) if single else ()


def _ring_cut(smiles: str, rng: python.Random) -> tuple[int, ...]:
    """Two bonds of one ring, with one or two atoms of the ring between them."""
    rings = _graph(smiles).GetRingInfo().BondRings()
    if not rings:
        return ()
    ring = rng.choice(rings)
    first = rng.randrange(len(ring))
    return ring[first], ring[(first + rng.choice((1, 2))) % len(ring)]


@lru_cache(PARENTS)
def _acyclic_bonds(smiles: str) -> list[int]:
    """Single bonds outside of rings."""
    return [b.GetIdx() for b in _graph(smiles).GetBonds() if b.GetBondType() == _bond(1) and not b.IsInRing()]


@lru_cache(CUTS)
def _pieces(smiles: str, bonds: tuple[int, ...]) -> list[_Piece]:
    """The two pieces into which a molecule falls without these bonds, or none."""
    from rdkit import Chem

    if not bonds:
        return []
    mol = editable(smiles)
    ends = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in map(mol.GetBondWithIdx, bonds)]
    for pair in ends:
        if mol.GetBondBetweenAtoms(*pair) is not None:
            mol.RemoveBond(*pair)
    atoms: list[tuple[int, ...]] = []
    found = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False, fragsMolAtomMapping=atoms)
    if len(found) != 2:
        return []
    lost = [a for pair in ends for a in pair]
    return [_Piece(m, tuple(own.index(a) for a in lost if a in own)) for m, own in zip(found, atoms, strict=True)]


def _joined(a: _Piece, b: _Piece, rng: python.Random) -> Any:
    """Both pieces, bonded where they are open."""
    from rdkit import Chem

    if len(a.open) != len(b.open):
        return None
    mol = Chem.RWMol(Chem.CombineMols(a.mol, b.mol))
    shift = a.mol.GetNumAtoms()
    for left, right in zip(a.open, rng.sample(b.open, len(b.open)), strict=True):
        if mol.GetBondBetweenAtoms(left, right + shift) is not None:
            return None
        order = 1 if len(a.open) == 1 else rng.choice((1, 2))
        mol.AddBond(left, right + shift, _bond(order))
    return mol


def offspring(
    parents: Sequence[tuple[str, str]], mutation: float, seeds: Sequence[int], atoms: float = math.inf
) -> list[str]:
    """One child of each pair where it gave one: by a mutation of the first with this probability, or by crossover."""
    found = []
    for (first, second), seed in zip(parents, seeds, strict=True):
        rng = python.Random(seed)
        alone = first == second or rng.random() < mutation
        found.append(mutated(first, rng, atoms) if alone else crossed(first, second, rng, atoms))
    return [s for s in found if s is not None]
