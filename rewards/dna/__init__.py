"""Rewards of DNA and RNA: composition, motifs, thermodynamics, networks, and metrics of sets of sequences."""

from .folding import FoldingEnergy, MeltingTemperature
from .metrics import (
    edit_distance_diversity,
    gc_distribution,
    kmer_correlation,
    kmer_counts,
    levenshtein,
    motif_correlation,
    nearest_edit_distance,
    novelty,
    uniqueness,
)
from .motifs import Motif, MotifScan, jaspar, jaspar_collection, log_odds
from .oracle import CellType, LogOdds, Network
from .sequence import GC, CpG, Forbidden, Homopolymer, Kmer, Length, encode, reverse_complement, texts

__all__ = [
    "GC",
    "CellType",
    "CpG",
    "FoldingEnergy",
    "Forbidden",
    "Homopolymer",
    "Kmer",
    "Length",
    "LogOdds",
    "MeltingTemperature",
    "Motif",
    "MotifScan",
    "Network",
    "edit_distance_diversity",
    "encode",
    "gc_distribution",
    "jaspar",
    "jaspar_collection",
    "kmer_correlation",
    "kmer_counts",
    "levenshtein",
    "log_odds",
    "motif_correlation",
    "nearest_edit_distance",
    "novelty",
    "reverse_complement",
    "texts",
    "uniqueness",
]
