"""Search over the noise of a sampler: the sampler stays as it is, and better noise makes better samples.

A strategy proposes noise and receives the rewards of its samples; `run` drives any strategy, including your own.
"""

from .active import Active, active, information
from .align import align
from .amortise import amortise
from .bank import Bank, bank
from .budget import Budget
from .cma import CMA, cma
from .core import Each, Found, Strategy, run
from .design import Candidates, Crossover, Fresh, GraphOperators, Informed, Memory, Proposal, Regrow, Study, Surrogate
from .evolution import Evolution, evolution
from .flowopt import flowopt
from .gradient import gradient, gradients
from .informed import informed
from .joint import joint
from .lsd import lsd
from .particle_gibbs import particle_gibbs
from .paths import paths
from .random_search import Random, random
from .rbf import rbf
from .replica_exchange import replica_exchange
from .sequential import sequential
from .share import share
from .space import Space
from .split_gibbs import split_gibbs
from .strength import Strength, strength
from .subspace import Subspace, subspace
from .times import Times, times
from .tree import Tree, tree
from .zero_order import ZeroOrder, zero_order

__all__ = [
    "CMA",
    "Active",
    "Bank",
    "Budget",
    "Candidates",
    "Crossover",
    "Each",
    "Evolution",
    "Found",
    "Fresh",
    "GraphOperators",
    "Informed",
    "Memory",
    "Proposal",
    "Random",
    "Regrow",
    "Space",
    "Strategy",
    "Strength",
    "Study",
    "Subspace",
    "Surrogate",
    "Times",
    "Tree",
    "ZeroOrder",
    "active",
    "align",
    "amortise",
    "bank",
    "cma",
    "evolution",
    "flowopt",
    "gradient",
    "gradients",
    "information",
    "informed",
    "joint",
    "lsd",
    "particle_gibbs",
    "paths",
    "random",
    "rbf",
    "replica_exchange",
    "run",
    "sequential",
    "share",
    "split_gibbs",
    "strength",
    "subspace",
    "times",
    "tree",
    "zero_order",
]
