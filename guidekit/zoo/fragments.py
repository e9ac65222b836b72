r"""Molecules as fragments in any order, joined by numbered open bonds, as in SAFE (Noutahi et al., 2024,
https://doi.org/10.1039/D4DD00019F):

    CC(=O)Nc1ccccc1   is   .CC%10=O .N%10%10 .c%101ccccc1      (spaces added for reading)

Single bonds that BRICS cuts (Degen et al., 2008, https://doi.org/10.1002/cmdc.200800178) are written as ring closures
%10, %11, ... between fragments, so that any SMILES reader joins them again. A label becomes free when its bond is
closed, and a new bond takes the lowest free label: the N above closes one bond %10 and opens another. Every fragment,
including the first, begins with a dot, and a token contains a dot only at its beginning. So whole fragments are whole
tokens, and since any fragments of a molecule can come first, fragments to be kept are a prefix of the row. Token 0 is
the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from .tokens import Merged, merges

_SYMBOL = re.compile(r"\[[^]]+]|%\d\d|Br|Cl|.")
_OPEN = "%99"  # an open bond without a number yet
FIRST, LABELS = 10, 16  # the open bonds are %10 to %25
MATCHES = 100  # places of a part in a molecule that are tried
EXTRA = 0.15  # fraction of other bonds that are cut in addition to those of BRICS, if cuts are random


def split(text: str) -> list[str]:
    """The symbols of a SMILES text.

    >>> split(".c%11c[nH]1")
    ['.', 'c', '%11', 'c', '[nH]', '1']
    """
    return _SYMBOL.findall(text)


def text(smiles: str, rng: np.random.Generator | None = None) -> str:
    """The molecule as a text of fragments, or "" if it is invalid or needs more than 16 labels.

    Dummy atoms stand for fragments still to come: bonds to them stay open, so the text is the beginning of a molecule.
    With `rng`, fragments are in random order, each begins at a random atom, and the choice of cut bonds varies a
    little; without it, the text depends on the molecule alone.

    >>> text("CC(=O)Nc1ccccc1")
    '.CC%10=O.N%10%10.c%101ccccc1'
    >>> text("[*:1]Nc1ccccc1")
    '.c1ccc%10cc1.N%10%10'
    """
    from rdkit import Chem

    mol = Chem.MolFromSmiles(smiles)
    if mol is None or not mol.GetNumAtoms():
        return ""
    mol = _joined(mol if rng is not None else Chem.MolFromSmiles(Chem.MolToSmiles(mol)))
    if mol is None:
        return ""
    cuts = _cuts(mol, rng)
    parts = [part for part in _parts(mol, cuts) if mol.GetAtomWithIdx(part[0]).GetAtomicNum()]
    symbols = [_symbol(a) + _OPEN * len(cuts.get(a.GetIdx(), ())) for a in mol.GetAtoms()]
    pieces = [_piece(mol, parts[i], symbols, rng) for i in _order(parts, cuts, rng)]
    written, ends = _numbered(pieces, cuts, {})
    return _stereo(written, mol, [a for _, atoms in pieces for a in atoms], ends)


def _unnumbered(part: str) -> str:
    """The canonical SMILES of a part whose dummy atoms are all alike."""
    from rdkit import Chem

    mol = Chem.MolFromSmiles(part)
    for atom in mol.GetAtoms():
        if not atom.GetAtomicNum():
            atom.SetAtomMapNum(0)
            atom.SetIsotope(0)
    return Chem.CanonSmiles(Chem.MolToSmiles(mol))


@lru_cache(maxsize=1 << 14)
def begun(molecule: str, first: str) -> str:
    """The molecule as a text that begins with these fragments; or "", if it does not hold them as they are written,
    with their stereo, and with other atoms at their open bonds alone.

    >>> begun("CC(=O)Nc1ccccc1", ".c1ccc%10cc1")
    '.c1ccc%10cc1.CC%11=O.N%10%11'
    >>> begun("Cc1ccccc1N", ".c1ccc%10cc1")
    ''
    """
    from rdkit import Chem

    from rewards.molecules.descriptors import canonical, grown

    wanted, labels = canonical(molecule), list(open_labels(first).values())
    if not wanted:
        return ""
    mol, query = Chem.MolFromSmiles(wanted), grown(_ended(first, labels)[1:])
    for match in mol.GetSubstructMatches(query, useChirality=True, uniquify=False, maxMatches=MATCHES):
        text = _continued(mol, first, match, labels)
        if text.startswith(first) and smiles(text) == wanted:
            return text
    return ""


@lru_cache(maxsize=1 << 16)
def smiles(text: str) -> str:
    """Canonical SMILES of a text of fragments, or "" if it is not a molecule.

    Bonds that are still open, as in the first fragments of a molecule, are closed by hydrogen.

    >>> smiles(".CC%10=O.N%10%10")
    'CC(N)=O'
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(without_open(text.removeprefix(".")))
        return "" if mol is None else Chem.MolToSmiles(mol)


def without_open(text: str) -> str:
    """The text without the labels of bonds that are still open at its end.

    >>> without_open("C%10%11.O%10%10")
    'C%10.O%10'
    """
    opened = open_labels(text)
    return "".join(s for i, s in enumerate(split(text)) if i not in opened)


def open_labels(text: str) -> dict[int, int]:
    """The numbers of the bonds that are open at the end of a text, by the places of the symbols that open them.

    >>> open_labels("C%10%11.O%10%10")
    {2: 11, 6: 10}
    """
    opened: dict[str, int] = {}
    for i, symbol in enumerate(split(text)):
        if symbol[0] == "%" and opened.pop(symbol, None) is None:
            opened[symbol] = i
    return {i: int(symbol[1:]) for symbol, i in opened.items()}


@dataclass(frozen=True)
class Fragments(Merged):
    """The tokens of fragment texts."""

    def encode(self, smiles: Sequence[str], length: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Rows (molecules, length), 0 after the end, of the molecules that fit; with `rng`, in random order."""
        return self.rows([split(text(s, rng)) for s in smiles], length)[0]

    def read(self, smiles: Sequence[str], length: int) -> np.ndarray:
        """Rows (molecules, length) that decode to these molecules; ValueError where there is none."""
        return np.stack([self._read(s, length) for s in smiles])

    def _read(self, smiles: str, length: int) -> np.ndarray:
        from rewards.molecules.descriptors import canonical

        wanted, written = canonical(smiles), text(smiles)
        if not wanted:
            raise ValueError("it is no SMILES of a molecule")
        if "*" in wanted:
            raise ValueError("it has open bonds: as a part to keep it is read by gk.Keep(template=...)")
        if "." in wanted:
            raise ValueError("it has several parts, as salts have")
        if not written:
            raise ValueError(f"it needs more than {LABELS} bonds between fragments, or ten rings, open at once")
        row = self.row(split(written), length)
        if (found := canonical(self.decode(row[None])[0])) != wanted:
            raise ValueError(f"it comes back as {found}, another molecule")
        return row

    def beginning(self, part: str, length: int) -> np.ndarray:
        """The first tokens of all molecules that hold this part, whose open bonds lead to dummy atoms."""
        written = text(part) if "*" in part else ""
        if not written:
            raise ValueError(
                f"{part!r} is no part of a molecule that can be kept: give its SMILES with [*:1], [*:2], ... where it "
                "goes on by single bonds"
            )
        if smiles(_ended(written, [*open_labels(written).values()])) != _unnumbered(part):
            raise ValueError(
                f"{part!r} cannot be kept as it is: an open bond decides the stereo of a double bond; write this one "
                "without / and \\, or add the next atom to the part"
            )
        row = self.row(split(written), length)
        row = row[row > 0]
        if len(row) + 2 > length:
            raise ValueError(f"{part!r} takes {len(row)} of {length} tokens, which leaves no room for the rest")
        return row

    def decode(self, tokens: Any) -> list[str]:
        """SMILES of rows, up to their first end or mask; "" for rows that are not molecules."""
        return [smiles(t) for t in self.texts(tokens)]


def learned(texts: Sequence[str], vocab: int, progress: bool = True) -> Fragments:
    """Learn `vocab` tokens from fragment texts: pairs inside a fragment are merged, the most frequent first.

    The symbols are those of the texts, their mirror images, and all labels.
    """
    parts = [split("." + part) for each in texts for part in each[1:].split(".")]
    seen = {s for part in parts for s in part}
    seen |= {s.replace("@@", "@") for s in seen} | {f"%{FIRST + i}" for i in range(LABELS)}
    seen |= {s.replace("@", "@@") for s in seen if "@" in s and "@@" not in s}
    symbols = tuple(sorted(seen))
    return Fragments(symbols, merges(parts, symbols, vocab, progress))


# from a molecule to its text ------------------------------------------------------------------------------------------

Cuts = dict[int, list[int]]  # atoms at the other end of the cut bonds of an atom


def _joined(mol: Any) -> Any:
    """The molecule. Several components are joined at one dummy of each; None if a component has no dummy."""
    from rdkit import Chem

    components = Chem.GetMolFrags(mol)
    if len(components) == 1:
        return mol
    dummies = [a for c in components for a in [a for a in c if not mol.GetAtomWithIdx(a).GetAtomicNum()][:1]]
    if len(dummies) < len(components):
        return None
    whole = Chem.RWMol(mol)
    for a, b in pairwise(dummies):
        whole.AddBond(a, b, Chem.BondType.SINGLE)
    Chem.SanitizeMol(whole)
    return whole.GetMol()


def _cuts(mol: Any, rng: np.random.Generator | None) -> Cuts:
    from rdkit.Chem import BRICS, BondType

    chosen = {tuple(sorted(ends)) for ends, _ in BRICS.FindBRICSBonds(mol)}
    bonds = [mol.GetBondBetweenAtoms(*ends) for ends in sorted(chosen)]
    bonds = [b for b in bonds if b.GetBondType() == BondType.SINGLE and not _ends(b)]
    if rng is not None and rng.random() < 0.5:
        bonds = [b for b in bonds if rng.random() < 0.9] + [b for b in _others(mol, chosen) if rng.random() < EXTRA]
    bonds = [b for b in bonds if not _directed(b)]
    bonds += [b for b in mol.GetBonds() if _ends(b) and b.GetBondType() == BondType.SINGLE]
    cuts: Cuts = {}
    for a, b in (ends for bond in bonds for ends in _both(bond)):
        cuts.setdefault(a, []).append(b)
    return cuts


def _both(bond: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    return (a, b), (b, a)


def _ends(bond: Any) -> bool:
    """Whether the bond ends in a dummy atom."""
    return not (bond.GetBeginAtom().GetAtomicNum() and bond.GetEndAtom().GetAtomicNum())


def _others(mol: Any, chosen: set[tuple[int, ...]]) -> list[Any]:
    """Single bonds between a ring and its surroundings that BRICS does not cut."""
    from rdkit.Chem import BondType

    single = [b for b in mol.GetBonds() if b.GetBondType() == BondType.SINGLE and not (b.IsInRing() or _ends(b))]
    return [
        b for b in single
        if tuple(sorted(_both(b)[0])) not in chosen and (b.GetBeginAtom().IsInRing() or b.GetEndAtom().IsInRing())
    ]  # fmt: skip


def _directed(bond: Any) -> bool:
    """Whether the bond is next to a double bond with stereo, whose geometry it then encodes."""
    from rdkit.Chem import BondStereo

    ends = (bond.GetBeginAtom(), bond.GetEndAtom())
    return any(b.GetStereo() > BondStereo.STEREOANY for atom in ends for b in atom.GetBonds())


def _parts(mol: Any, cuts: Cuts) -> list[list[int]]:
    """Atoms of each fragment."""
    near: list[list[int]] = [[] for _ in range(mol.GetNumAtoms())]
    for bond in mol.GetBonds():
        for a, b in _both(bond):
            if b not in cuts.get(a, ()):
                near[a].append(b)
    return _components(near)


def _components(near: Sequence[Iterable[int]]) -> list[list[int]]:
    left, found = set(range(len(near))), []
    for start in range(len(near)):
        todo, part = [start] if start in left else [], []
        left.discard(start)
        while todo:
            part.append(todo.pop())
            new = left.intersection(near[part[-1]])
            left -= new
            todo.extend(sorted(new))
        if part:
            found.append(sorted(part))
    return found


def _order(parts: list[list[int]], cuts: Cuts, rng: np.random.Generator | None) -> list[int]:
    """The order of fragments: as given, or with `rng` random, sometimes such that each is bound to an earlier one."""
    if rng is None:
        return list(range(len(parts)))
    order = rng.permutation(len(parts)).tolist()
    if rng.random() < 0.5:
        return order
    place = {a: i for i, part in enumerate(parts) for a in part}
    near = [{place[b] for a in part for b in cuts.get(a, ()) if b in place} for part in parts]
    grown = order[:1]
    while len(grown) < len(parts):
        bound = [i for i in order if i not in grown and near[i].intersection(grown)]
        grown.append(bound[0] if bound else next(i for i in order if i not in grown))
    return grown


def _piece(mol: Any, part: list[int], symbols: list[str], rng: np.random.Generator | None) -> tuple[str, list[int]]:
    """SMILES of a fragment with open bonds not yet numbered, and its atoms in the order in which they are written."""
    from rdkit import Chem

    root = part[0] if rng is None else part[int(rng.integers(len(part)))]
    piece = Chem.MolFragmentToSmiles(mol, part, atomSymbols=symbols, rootedAtAtom=root)
    return piece, [int(i) for i in mol.GetProp("_smilesAtomOutputOrder").strip("[],").split(",")]


def _symbol(atom: Any) -> str:
    """The atom's symbol in SMILES, with every stereo centre written as anticlockwise."""
    return atom.GetSmarts().replace("@@", "@")


def _numbered(
    pieces: list[tuple[str, list[int]]], cuts: Cuts, used: dict[tuple[int, int], int]
) -> tuple[str, dict[int, int]]:
    """The text with numbered labels, always the lowest free one after those in use; and the labels of the atoms behind
    open bonds. Empty where no text can be: ten rings open at once, a dummy in a chain, too many labels."""
    if any("%1" in piece or "*" in piece for piece, _ in pieces):
        return "", {}
    used, out = dict(used), []
    for piece, atoms in pieces:
        bonds = ((a, b) for a in atoms for b in _closing_first(a, cuts, used))
        rest = piece.split(_OPEN)
        out.append("." + rest[0])
        for after, (a, b) in zip(rest[1:], bonds, strict=True):
            free = [label for label in range(LABELS) if label not in used.values()]
            if (b, a) in used:
                label = used.pop((b, a))
            elif free:
                label = used[a, b] = free[0]
            else:
                return "", {}
            out.append(f"%{FIRST + label}{after}")
    return "".join(out), {b: label for (_, b), label in used.items()}


def _closing_first(a: int, cuts: Cuts, used: dict[tuple[int, int], int]) -> list[int]:
    """The other ends of an atom's cut bonds: those already open, by label, then new ones."""
    return sorted(cuts.get(a, ()), key=lambda b: (used.get((b, a), LABELS), b))


def _stereo(text: str, mol: Any, atoms: list[int], ends: dict[int, int]) -> str:
    """The text with the chirality of every centre corrected to that in the molecule."""
    from rdkit import Chem

    if "@" not in text:
        return text
    closed = _ended(text, [FIRST + label for label in ends.values()])
    read, place = Chem.MolFromSmiles(closed[1:], sanitize=False), {a: i for i, a in enumerate([*atoms, *ends])}
    symbols = split(text)
    for i, a in zip((i for i, s in enumerate(symbols) if s[0].isalpha() or s[0] == "["), atoms, strict=True):
        if "@" in symbols[i]:
            own, other = mol.GetAtomWithIdx(a), read.GetAtomWithIdx(place[a])
            wanted = [place[b.GetIdx()] for b in own.GetNeighbors()]
            odd = _odd([wanted.index(b.GetIdx()) for b in other.GetNeighbors()])
            if odd == (own.GetChiralTag() == other.GetChiralTag()):
                symbols[i] = symbols[i].replace("@", "@@")
    return "".join(symbols)


def _ended(text: str, labels: Sequence[int]) -> str:
    """The text with a dummy atom at each of these open bonds."""
    return text + "".join(f".*%{label}" for label in labels)


def _continued(mol: Any, first: str, match: Sequence[int], labels: Sequence[int]) -> str:
    """The text of a molecule after its first fragments. The match are the atoms of these in the order in which they are
    written, then those behind their open bonds."""
    kept, behind = match[: len(match) - len(labels)], match[len(match) - len(labels) :]
    bonds = [(_neighbour(mol, b, kept), b) for b in behind]
    cuts = {a: [b for b in ends if b not in kept] for a, ends in _cuts(mol, None).items() if a not in kept}
    for a, b in (ends for bond in bonds for ends in (bond, bond[::-1])):
        cuts.setdefault(a, []).append(b)
    symbols = [_symbol(a) + _OPEN * len(cuts.get(a.GetIdx(), ())) for a in mol.GetAtoms()]
    pieces = [_piece(mol, part, symbols, None) for part in _parts(mol, cuts) if part[0] not in kept]
    written, _ = _numbered(pieces, cuts, {bond: label - FIRST for bond, label in zip(bonds, labels, strict=True)})
    return _stereo(first + written, mol, [*kept, *(a for _, atoms in pieces for a in atoms)], {})


def _neighbour(mol: Any, atom: int, of: Sequence[int]) -> int:
    """The neighbour of an atom among these."""
    return next(n.GetIdx() for n in mol.GetAtomWithIdx(atom).GetNeighbors() if n.GetIdx() in of)


def _odd(order: Sequence[int]) -> bool:
    """Whether a permutation is odd."""
    return sum(a > b for i, a in enumerate(order) for b in order[i + 1 :]) % 2 == 1
