r"""Diffusion tree sampling and search (Jain et al., 2025), https://arxiv.org/abs/2506.20701: a tree of states that
grows as long as one lets it, and remembers every reward.

A node is a state x_t, its children are draws x_s ~ p(x_s | x_t), its leaves are samples. A simulation

    goes down      from the root, at each node to child c with probability ~ exp(V_c/alpha)   (sampling), or
                   to the child with the largest V_c/alpha + c sqrt(log N / N_c)               (greedy search),
    expands        the first node of N visits that has fewer than first N^power children, by one,
    rolls out      that child to a sample x_0 by the model's own moves, all of which become nodes,
    backs up       V = r(x_0) at the leaf, and exp(V/alpha) = mean of exp(V_c/alpha) over the children above it.

All nodes are visited, and widened, without end, so that every V tends to the soft value alpha log E[exp(r/alpha) |
x_t], and a walk down the tree to a sample of p exp(r/alpha)/Z. The walk ends at a leaf with the probability

    exp(r/alpha) / (prod of the numbers of children above it) / exp(V_root/alpha),

so the tree is a weighted population as it is: leaves with these weights, exp(V_root/alpha) the estimate of Z. n leaves
of it are drawn, each once at most, by the unbiased rule of `guidekit.engine.unique`. The tree goes on where values are
high, which corrects those that are too high and leaves those that are too low: log Z is too low at first, and a level l
below the root has N^(power^l) visits a node, so that this takes the longer the more steps a run has.
`gk.search.particle_gibbs` has the target for any number of steps. The greedy search ends in the leaves of the highest
rewards, which have equal weights that mean nothing.

A node keeps its prediction, so that another child costs one evaluation, and a simulation as many as it makes nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .. import random
from ..engine.describe import describe
from ..engine.population import Population
from ..engine.result import Result
from ..engine.run import Run
from ..engine.unique import thinned
from ..engine.world import world_of
from ..errors import is_count
from ..guides import Guide
from ..models import Model
from ..process import Masked
from .rounds import as_result


def tree(model: Model, n: int, reward: Any, *, alpha: float, simulations: int = 200, **options: Any) -> Result:
    """n weighted samples of a `Tree` that has grown by so many simulations per condition.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> found = gk.search.tree(base, 8, lambda x: x[:, 0], alpha=0.5, simulations=64, steps=4)
    >>> bool((found.weights * found.x[:, 0]).sum() > 1)
    True
    """
    return Tree(model, reward, alpha=alpha, **options).grow(simulations).result(n)


@dataclass(eq=False)
class _Node:
    """A state with all that belongs to it (None: the root, and leaves that have been read), and what is known of it.

    index     moves behind it; -1 at the root
    value     V/alpha
    coming    children that are on their way
    """

    index: int
    parent: _Node | None = None
    pop: Population | None = None
    value: float = -math.inf
    visits: int = 0
    coming: int = 0
    children: list[_Node] = field(default_factory=list)


class Tree:
    """A tree for each condition, which `grow` makes larger as often as one likes.

    alpha           the temperature
    greedy          search for the highest reward: alpha then only scales what the values say against `explore`
    first, power    a node of N visits has first N^power children at most, power in (0, 1)
    explore         c of the greedy search
    parallel        simulations of each tree at a time, so that a forward has more than one row
    guides          that bend the prediction (CFG); steps, cond, solver, seed, batch_size as in gk.sample
    """

    def __init__(
        self,
        model: Model,
        reward: Any,
        *,
        alpha: float,
        greedy: bool = False,
        first: float = 2.0,
        power: float = 0.5,
        explore: float = 1.0,
        parallel: int = 8,
        steps: int | Sequence[float] = 50,
        guides: Iterable[Guide] = (),
        **options: Any,
    ):
        if not isinstance(alpha, (int, float)) or not alpha > 0:
            raise ValueError(f"alpha={alpha!r}: a positive temperature, in units of the reward")
        if not (first >= 1 and 0 < power < 1 and explore >= 0 and is_count(parallel)):
            raise ValueError(
                f"first={first!r}, power={power!r}, explore={explore!r}, parallel={parallel!r}: at least 1, between 0 "
                "and 1, at least 0, and a number of simulations"
            )
        if world_of(options.get("world"), model.device).size > 1:
            raise ValueError("a tree grows in one process: leave out world=, and grow one of another seed on each rank")
        self.run = Run(model, parallel, steps=steps, guides=guides, reward=reward, **options)
        _check(self.run)
        self.reward, self.alpha, self.greedy, self.parallel = reward, float(alpha), greedy, parallel
        self.first, self.power, self.explore = first, power, explore
        self.roots = [_Node(-1) for _ in range(self.run.groups)]
        self.fresh: list[list[Population]] = [[] for _ in self.roots]  # starts that no tree has used
        self.leaves: list[list[_Node]] = [[] for _ in self.roots]
        self._drawn = torch.zeros(len(self.run.steps), self.run.groups, dtype=torch.long, device=model.device)
        self._rngs = [np.random.default_rng(int(key) % (1 << 63)) for key in random.fold(self.run.keys, "tree")]
        self.run.noise = self._noise
        self.alike = isinstance(model.process, Masked)  # whose runs all start from one state
        draws = map(model.process.draws, self.run.moves)
        self.last = max(i + 1 for i, drawn in enumerate(draws) if drawn)  # moves, after which nothing is drawn

    def grow(self, simulations: int) -> Tree:
        """So many simulations more for each condition."""
        if not is_count(simulations):
            raise ValueError(f"simulations={simulations!r}: at least 1")
        with self.run.borrowed():
            for done in range(0, simulations, self.parallel):
                self._round(min(self.parallel, simulations - done))
            self.run.settle()
        self.run.cost.seconds = self.run.seconds
        return self

    def result(self, n: int) -> Result:
        """n leaves of each tree, each at most once, with their weights; in a greedy search the best ones."""
        known = [[leaf for leaf in leaves if leaf.value > -math.inf] for leaves in self.leaves]
        fewest = min(map(len, known))
        if not is_count(n) or n > fewest:
            raise ValueError(f"n={n!r}: between 1 and {fewest}, the samples with a score that each tree has; grow it")
        picked = [self._picked(g, leaves, n) for g, leaves in enumerate(known)]
        rows = [leaf for leaves, _ in picked for leaf in leaves]
        pop = Population.cat([leaf.pop for leaf in rows if leaf.pop is not None])
        rewards = torch.tensor([leaf.value * self.alpha for leaf in rows], dtype=torch.float64, device=pop.x.device)
        with self.run.borrowed():
            samples = self.run.decode(pop.x, pop.group)
        sizes = {"alpha": self.alpha, "greedy": self.greedy, "simulations": [root.visits for root in self.roots]}
        config = self.run.describe() | {"search": "tree", "n": n, "setting": describe(sizes)}
        found = as_result(pop.x, samples, rewards, self.run.groups, replace(self.run.cost), config)
        return replace(found, log_weights=torch.cat([log_w for _, log_w in picked]))

    @property
    def log_z(self) -> Tensor:
        """The estimate of log Z of each tree: the value of its root."""
        return torch.tensor([root.value for root in self.roots], dtype=torch.float64)

    # a round ------------------------------------------------------------------------------------------------------

    def _round(self, count: int) -> None:
        """Simulations of all trees, side by side: rows that stand at the same time move together."""
        at = [self._selected(root, rng) for root, rng in zip(self.roots, self._rngs, strict=True) for _ in range(count)]
        groups = [g for g in range(len(self.roots)) for _ in range(count)]
        self._begin(at, groups)
        for index in range(len(self.run.moves)):
            here = [i for i, node in enumerate(at) if node.index == index]
            if here:
                pop = Population.cat([pop for i in here if (pop := at[i].pop) is not None])
                self._attach(at, here, self._moved(pop, index))
        for node, reward in zip(at, self._scores(at), strict=True):
            node.value = reward / self.alpha if math.isfinite(reward) else -math.inf
            _back_up(node)
        for g, node in zip(groups, at, strict=True):
            self.leaves[g].append(node)

    def _selected(self, node: _Node, rng: np.random.Generator) -> _Node:
        """The node that is to have another child, on the way from the root."""
        while True:
            node.visits += 1
            most = self.first * node.visits**self.power
            ready = [child for child in node.children if child.value > -math.inf and child.index < self.last]
            single = node.index < 0 and self.alike
            if not ready or (len(node.children) + node.coming < most and not single):
                node.coming += 1
                return node
            node = self._child(node, ready, rng)

    def _child(self, node: _Node, children: list[_Node], rng: np.random.Generator) -> _Node:
        values = np.array([child.value for child in children])
        if self.greedy:
            visits = np.array([max(child.visits, 1) for child in children])
            return children[int((values + self.explore * np.sqrt(math.log(node.visits) / visits)).argmax())]
        return children[int((values + rng.gumbel(size=len(values))).argmax())]

    def _begin(self, at: list[_Node], groups: list[int]) -> None:
        """New children of roots, which stand at the start of the run."""
        for i, node in enumerate(at):
            if node.index < 0 and self.alike and node.children:
                at[i] = node.children[0]
                at[i].visits, at[i].coming = at[i].visits + 1, at[i].coming + 1
            elif node.index < 0:
                while not self.fresh[groups[i]]:
                    pop = self.run.start()
                    for row, g in enumerate(pop.group.tolist()):
                        self.fresh[g].append(pop.take(torch.tensor([row], device=pop.x.device)))
                at[i] = _grown(node, self.fresh[groups[i]].pop(0))

    def _moved(self, pop: Population, index: int) -> Population:
        """One move of rows, and their look, in micro-batches."""
        rows = torch.arange(len(pop), device=pop.x.device).split(self.run.batch_size or len(pop))
        return Population.cat([self.run.look(self.run.move(pop.take(part), index), index + 1) for part in rows])

    def _attach(self, at: list[_Node], here: list[int], pop: Population) -> None:
        for row, i in enumerate(here):
            at[i] = _grown(at[i], pop.take(torch.tensor([row], device=pop.x.device)))

    def _scores(self, at: list[_Node]) -> list[float]:
        """Rewards of the leaves of this round."""
        pop = Population.cat([node.pop for node in at if node.pop is not None])
        scores = self.run.score(self.reward, self.run.decode(pop.x, pop.group), pop.group)
        self.run.score.forget()
        return scores.tolist()

    def _noise(self, pop: Population, index: int) -> Any:
        """Noise by the group, the move, and how many rows of that group have made it before."""
        mine = one_hot(pop.group, self.run.groups)
        number = self._drawn[index][pop.group] + (mine.cumsum(0) - 1).gather(1, pop.group[:, None])[:, 0]
        self._drawn[index] += mine.sum(0)
        keys = random.fold(random.fold(random.fold(self.run.keys, "tree noise")[pop.group], index), number)
        process, model = self.run.model.process, self.run.model
        return process.late_noise(keys, process.noise_shape(model.shape), model.dtype)

    def _picked(self, g: int, leaves: list[_Node], n: int) -> tuple[list[_Node], Tensor]:
        """n leaves, and their log-weights, whose mean is the estimate of Z."""
        if self.greedy:
            best = sorted(leaves, key=lambda leaf: -leaf.value)[:n]
            return best, torch.zeros(n, dtype=torch.float64, device=self._drawn.device)
        log_w = torch.tensor([_log_weight(leaf) for leaf in leaves], dtype=torch.float64, device=self._drawn.device)
        key = random.fold(random.fold(self.run.keys[g : g + 1], "leaves"), self.roots[g].visits)
        place, kept = thinned(log_w.log_softmax(0)[None], n, key)
        return [leaves[i] for i in place[0].tolist()], kept[0] + log_w.logsumexp(0) + math.log(n)


def _grown(node: _Node, pop: Population) -> _Node:
    """A new child of the node. What stands above a leaf need not remember more than its own state."""
    child = _Node(node.index + 1, node, pop, visits=1)
    node.children.append(child)
    node.coming = max(node.coming - 1, 0)
    return child


def _back_up(leaf: _Node) -> None:
    """exp(V) = the mean of exp(V) over the children that have been finished, all the way up."""
    node = leaf.parent
    while node is not None:
        values = np.array([child.value for child in node.children])
        most = values.max()
        node.value = most + math.log(np.exp(values - most).mean()) if most > -math.inf else -math.inf
        node = node.parent


def _log_weight(leaf: _Node) -> float:
    """log of exp(r/alpha) over the product of the numbers of children."""
    return leaf.value - sum(math.log(len(node.children)) for node in _above(leaf))


def _above(node: _Node) -> Iterator[_Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def _check(run: Run) -> None:
    """Raise unless every move draws, but for the last, and every particle lives on its own."""
    for guide in run.guides:
        if not guide.independent:
            raise ValueError(
                f"guides holds {type(guide).__name__}, which weighs, branches or selects particles, and the tree does "
                "so itself. Take guides that bend the prediction"
            )
    if not any(map(run.model.process.draws, run.moves)):
        advice = run.solver.advice if run.solver is not None else ""
        raise ValueError(f"{run.solver!r} draws nothing on the way, so that a node has one child: {advice}")
