"""Backbones of proteins, from files in PDB format."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NAMES = {
    "ALA": "A", "CYS": "C", "ASP": "D", "GLU": "E", "PHE": "F", "GLY": "G", "HIS": "H", "ILE": "I", "LYS": "K",
    "LEU": "L", "MET": "M", "ASN": "N", "PRO": "P", "GLN": "Q", "ARG": "R", "SER": "S", "THR": "T", "VAL": "V",
    "TRP": "W", "TYR": "Y", "MSE": "M",
}  # fmt: skip
ATOMS = ("N", "CA", "C", "O")


@dataclass(frozen=True, eq=False)
class Backbone:
    """Residues with all of N, CA, C and O.

    x         their places in Angstrom, (L, 4, 3)
    number    that of every residue in its chain, (L,); residues of one number (insertions) count on
    chain     the place of its chain in `chains`, (L,)
    sequence  the native letters
    """

    x: Tensor
    number: Tensor
    chain: Tensor
    sequence: str
    chains: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sequence)

    def recovery(self, samples: Sequence[str]) -> Tensor:
        """The share of the residues of each sequence that are the native ones."""
        return torch.tensor(
            [sum(a == b for a, b in zip(s, self.sequence, strict=True)) / len(self) for s in samples],
            dtype=torch.float64,
        )


def read(file: str | Path, chains: Sequence[str] | None = None) -> Backbone:
    """The backbone in a PDB file (or PDBQT, whose columns are the same): of its first model, all chains or those named.

    Residues that lack an atom of the backbone are left out, with a warning, and others keep their numbers. Of alternate
    places the first counts; selenomethionine is methionine.
    """
    path = Path(file)
    if path.suffix.lower() in (".cif", ".mmcif", ".bcif"):
        raise ValueError(f"{path.name} is mmCIF, and a file in PDB format is needed")
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    names: dict[tuple[str, str], str] = {}
    for place, residue, atom, xyz in _atoms(path):
        if (chains is None or place[0] in chains) and residue in NAMES and atom in ATOMS:
            names.setdefault(place, residue)
            found.setdefault(place, {}).setdefault(atom, xyz)
    whole = [place for place, atoms in found.items() if len(atoms) == 4]
    if not whole:
        among = "" if chains is None else f" in chains {', '.join(chains)}"
        raise ValueError(f"{path.name} has no residue with the atoms {', '.join(ATOMS)}{among}: is it a PDB file?")
    lacking = [f"{chain}{number.strip()}" for chain, number in found if len(found[chain, number]) < 4]
    if lacking:
        warnings.warn(
            f"{path.name}: residues without a whole backbone are left out: {', '.join(lacking)}", stacklevel=2
        )
    order = tuple(dict.fromkeys(chain for chain, _ in whole))
    return Backbone(
        torch.tensor([[found[place][atom] for atom in ATOMS] for place in whole]),
        torch.tensor(_numbers([int(number[:4]) for _, number in whole])),
        torch.tensor([order.index(chain) for chain, _ in whole]),
        "".join(NAMES[names[place]] for place in whole),
        order,
    )


def _atoms(path: Path) -> Iterator[tuple[tuple[str, str], str, str, list[float]]]:
    """(chain, number), residue, atom and place of every atom of the first model."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("ENDMDL"):
            return
        if line.startswith("ATOM") or (line.startswith("HETATM") and line[17:20] == "MSE"):
            try:
                xyz = [float(line[i : i + 8]) for i in (30, 38, 46)]
                int(line[22:26])
            except ValueError as error:
                raise ValueError(f"{path.name} is no PDB file: it has the line {line.strip()[:60]!r}") from error
            yield (line[21], line[22:27]), line[17:20].strip(), line[12:16].strip(), xyz


def _numbers(given: list[int]) -> list[int]:
    """Numbers, of which equal ones that follow each other count on."""
    more, found = 0, []
    for i, number in enumerate(given):
        more += i > 0 and number == given[i - 1]
        found.append(number + more)
    return found
