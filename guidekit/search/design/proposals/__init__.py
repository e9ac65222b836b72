"""Where the samples come from that a design loop may ask: one proposal a file."""

from .base import Candidates, Proposal
from .crossover import Crossover
from .fresh import Fresh
from .graph_operators import GraphOperators
from .informed import Informed
from .regrow import Regrow

USUAL = (GraphOperators(), Crossover(), Informed(), Regrow(), Fresh())  # those that serve a model are taken

__all__ = ["USUAL", "Candidates", "Crossover", "Fresh", "GraphOperators", "Informed", "Proposal", "Regrow"]
