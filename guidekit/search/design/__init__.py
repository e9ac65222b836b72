"""The design loop of `gk.evolve`: proposals, a surrogate, and one memory of all calls."""

from .loop import Design
from .memory import Memory
from .proposals import Candidates, Crossover, Fresh, GraphOperators, Informed, Proposal, Regrow
from .study import Study
from .surrogate import Surrogate

__all__ = [
    "Candidates",
    "Crossover",
    "Design",
    "Fresh",
    "GraphOperators",
    "Informed",
    "Memory",
    "Proposal",
    "Regrow",
    "Study",
    "Surrogate",
]
