"""Rewards and metrics of molecules given as SMILES strings: descriptors, objectives, docking, ADMET, routes.

>>> QED()(["CCO", "not a molecule"])
tensor([0.4068,    nan], dtype=torch.float64)
"""

from . import admet, descriptors, docking, metrics, objectives, oracles, routes
from .admet import ADMET
from .descriptors import (
    HBA,
    HBD,
    QED,
    SA,
    TPSA,
    Alerts,
    Fsp3,
    HeavyAtoms,
    Lipinski,
    LogP,
    Molecule,
    MolWt,
    NPLikeness,
    Part,
    PenalizedLogP,
    Rings,
    RotatableBonds,
    Scaffold,
    Similarity,
    Substructure,
    Validity,
)
from .docking import Docking
from .objectives import objective
from .oracles import DRD2, GSK3B, JNK3
from .routes import Routes

__all__ = [
    "ADMET",
    "DRD2",
    "GSK3B",
    "HBA",
    "HBD",
    "JNK3",
    "QED",
    "SA",
    "TPSA",
    "Alerts",
    "Docking",
    "Fsp3",
    "HeavyAtoms",
    "Lipinski",
    "LogP",
    "MolWt",
    "Molecule",
    "NPLikeness",
    "Part",
    "PenalizedLogP",
    "Rings",
    "RotatableBonds",
    "Routes",
    "Scaffold",
    "Similarity",
    "Substructure",
    "Validity",
    "admet",
    "descriptors",
    "docking",
    "metrics",
    "objective",
    "objectives",
    "oracles",
    "routes",
]
