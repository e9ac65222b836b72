"""Whether a molecule can be made from what can be bought: routes by AiZynthFinder (Genheden et al., 2020,
https://doi.org/10.1186/s13321-020-00472-1), which searches for reactions that take a molecule apart.

It needs `aizynthfinder` and its data, a policy network and a stock, which `download_public_data FOLDER` of that package
fetches with a configuration file that names them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..base import needs
from .descriptors import Molecule, canonical


@dataclass(frozen=True, eq=False, repr=False)
class Routes(Molecule):
    """1 if a route from the stock to the molecule was found, otherwise 0. Seconds to minutes for each molecule.

    config   the configuration file of AiZynthFinder, in which policies and stocks have names
    policy   the expansion policy
    stock    what can be bought
    filter   the filter policy, or None
    """

    config: str
    policy: str = "uspto"
    stock: str = "zinc"
    filter: str | None = None

    name = "routes"

    def __post_init__(self) -> None:
        if not Path(self.config).is_file():
            raise ValueError(
                f"Routes({self.config!r}): there is no such file; it is the configuration of AiZynthFinder, which "
                "`download_public_data FOLDER` of that package writes"
            )

    def score(self, samples: Any) -> list[float]:
        if len(samples):
            _finder(self.config, self.policy, self.stock, self.filter)  # what fails here is the fault of no sample
        return super().score(samples)

    def one(self, sample: Any) -> float:
        smiles = canonical(sample)
        if smiles is None:
            return math.nan
        finder = _finder(self.config, self.policy, self.stock, self.filter)
        finder.target_smiles = smiles
        finder.tree_search()
        finder.build_routes()
        return float(finder.extract_statistics()["number_of_solved_routes"] > 0)  # "is_solved" is of the best-ranked


@lru_cache(1)
def _finder(config: str, policy: str, stock: str, filter: str | None) -> Any:
    """The search with its networks, once per process."""
    finder = needs("aizynthfinder.aizynthfinder", "routes", "finding routes").AiZynthFinder(configfile=config)
    finder.stock.select(stock)
    finder.expansion_policy.select(policy)
    if filter is not None:
        finder.filter_policy.select(filter)
    return finder
