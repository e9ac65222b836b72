"""Methods of steering by a reward on the bundled models, at equal cost: what `guidekit bench steering` runs.

Each method draws n samples of a task twice: with so many network rows as `size` unguided runs take (by "rows"), and
with `size` calls of the reward a sample (by "calls"). What takes more than its quota has failed. Best-of-N stands
beside each method with the same rows, and with `AHEAD` times as many. Before, each model draws `pilot` unguided
samples, whose rewards say the temperature at which p exp(r/alpha)/Z is `kl` nats from the model, and the highest mean
reward that a KL divergence allows: that of the tilted distribution with this divergence. Their cost is not counted.

A run is a file with one line of JSON, so that runs that were finished before are read and not made again; those that
failed are tried again.

    OUT/runs/TASK/METHOD/BY-SIZE-SEED.json   the numbers of a run, or why it failed
    OUT/pilots/                              unguided samples, and those at the condition of a task
    OUT/results.json, OUT/table.md           all runs, and their tables
    OUT/rewards.png                          a panel for each task, if matplotlib is installed

A method of your own is one more line of `METHODS`, or on the command line `--methods mine.py:NAME`: a function of the
model, the task and the quota that returns a list of guides, which then draw `quota.n` samples, or a Result.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from rewards import as_reward

from .. import guides as g, random as addressed, search, zoo
from ..engine import resampling
from ..engine.guide import Guide
from ..engine.result import Result, load_result, without_nan
from ..engine.sample import sample
from ..engine.strength import strength_of
from ..engine.view import View
from ..models.base import Model
from ..process import Masked
from ..search.refine import evolve, refine
from ..solvers import DDIM, SDEDPMpp
from .names import import_object, is_reference
from .specs import ConfigError, find

AHEAD = 8  # times the rows of a method, with which best-of-N stands beside it
CANDIDATES = 10  # of SVDD where a child costs no network row
FEW = 4  # the same, where a bundled value looks at each
BLOCKS = 4  # of CoDe in a run
CHAIN = 4  # particles of a sweep of particle Gibbs
BATCH = 256  # rows of a forward
PILOT = 10_000  # seed of the pilot runs
SLACK = 1.2  # times its rows that a method may take where the rows of a sample are random
LOSS = 0.1  # of the diversity, that a method may lose against best-of-N
BEST = ("best of N", "best of N, second order")  # the latter beside methods with the same solver
NUMBERS = ("reward", "held_out", "natural", "diversity", "unique", "ess", "of_possible", "rows", "calls", "seconds")


@dataclass(frozen=True)
class Task:
    """A model, a reward that steers it, and what judges the samples.

    model      the name of a bundled model, or a model
    reward     what methods see
    judge      a reward that takes no part; None where the reward is itself what is wanted
    natural    of samples and those of the model at `cond`: how well they fit the model; `better` says which way
    diversity  of samples; higher is better
    cond       the model's own condition that comes nearest to the reward, or None
    value      a bundled value that was learned for the reward or one like it, in its units, or None
    alpha      the temperature, as the pilot run finds it
    """

    about: str
    model: Any
    reward: Any
    natural: Callable[[Any, Any], float]
    nature: str
    diversity: Callable[[Any], float]
    judge: Any = None
    better: str = "higher"
    cond: Any = None
    value: Any = None
    alpha: float = math.nan


@dataclass(frozen=True)
class Quota:
    """What a method may spend on n samples: `size` times the rows of an unguided run, or `size` calls a sample.

    unit   rows of an unguided sample: its steps, or fewer where a model is not asked when nothing is left to draw
    """

    n: int
    steps: int
    by: str
    size: int
    seed: int
    unit: float

    def times(self, rows: float, calls: float, first: tuple[float, float] = (0.0, 0.0), least: int = 1) -> int:
        """How often something fits that takes so many unguided runs' rows, and so many calls a sample, after what was
        spent first."""
        each, begun = (rows, first[0]) if self.by == "rows" else (calls, first[1])
        found = math.floor((self.size - begun) / each + 1e-9)
        if found < least:
            unit = "times the rows of an unguided run" if self.by == "rows" else "reward calls a sample"
            raise ValueError(f"needs at least {begun + least * each:g} {unit}, and has {self.size}")
        return found

    @property
    def whole(self) -> int:
        """The rows or calls of all samples."""
        return math.floor(self.size * self.n * (self.unit if self.by == "rows" else 1))

    def check(self, result: Result) -> None:
        """Raise where a method took more, up to chance if the rows of a sample are random."""
        name = "network rows" if self.by == "rows" else "reward calls"
        spent = result.cost.network_rows if self.by == "rows" else result.cost.reward_calls
        if spent > self.whole * (SLACK if self.by == "rows" and self.unit < self.steps else 1):
            raise ValueError(f"took {spent} {name} and had {self.whole}")

    def draw(
        self, model: Model, guides: Sequence[Guide], particles: int = 1, each: bool = False, **more: Any
    ) -> Result:
        """So many particles for each sample, in one population, or in one for each sample."""
        options = {"steps": self.steps, "guides": guides, "batch_size": BATCH} | more
        if not each:
            return sample(model, self.n * particles, seed=self.seed, **options)
        seeds = [1000 * self.seed + i for i in range(self.n)]
        return sample(model, particles, cond=[None] * self.n, seed=seeds, **options)


Method = Callable[[Model, Task, Quota], "Result | list[Guide]"]


# the methods ---------------------------------------------------------------------------------------------------------


def by_the_parent(model: Model, task: Task, q: Quota, candidates: int = CANDIDATES) -> list[Guide]:
    """By rows, the best of chains whose candidates are free; by calls, one chain, with as many as it may score."""
    if q.by == "calls":
        if candidates != CANDIDATES:
            raise ValueError("has as many candidates as its calls allow: see SVDD by the parent")
        return [g.SVDD(task.reward, 0.0, q.times(1, q.steps), value="parent")]
    return [g.SVDD(task.reward, 0.0, candidates, value="parent"), g.BestOfN(task.reward, q.size)]


def by_value(model: Model, task: Task, q: Quota) -> Result:
    """The best of chains whose candidates a bundled value chooses."""
    chains = _chains_by_value(task, q)
    return q.draw(model, [g.SVDD(task.reward, 0.0, FEW, value=task.value), g.BestOfN(task.reward, chains)])


def by_weighted_value(model: Model, task: Task, q: Quota) -> Result:
    """The same candidates, weighted and resampled in one population."""
    chains = _chains_by_value(task, q)
    return q.draw(model, [g.SVDD(task.reward, task.alpha, FEW, value=task.value), g.Resample()], particles=chains)


def _chains_by_value(task: Task, q: Quota) -> int:
    """The network is not asked about candidates; a value that completes them calls the reward of each."""
    if task.value is None:
        raise ValueError("no bundled value was learned for this reward")
    completions = sum(look.k for look in getattr(task.value, "looks", ()))
    return q.times(1, FEW * (1 + completions * (q.steps - 1)))


def in_blocks(model: Model, task: Task, q: Quota) -> list[Guide]:
    """Children that live side by side for a quarter of the run, of which the best stays."""
    block = math.ceil(q.steps / BLOCKS)
    return [g.CoDe(task.reward, 0.0, q.times(1, math.ceil(q.steps / block), least=2), block=block)]


def funnelled(model: Model, task: Task, q: Quota) -> list[Guide]:
    """FK steering with many particles early, and at the end one for each sample.

    The width falls linearly from F to 1 over T steps. The first move is made by F particles too, so that a sample that
    asks the network U times, T or fewer, takes the rows of U F - (F - 1) (U - 1) (U - 2)/(2 T) unguided steps. Half a
    particle is left for rounding.
    """
    size, late = q.times(1, q.steps), (q.unit - 1) * (q.unit - 2) / (2 * q.unit * q.steps)
    first = max(1.0, (size - late) / (1 - late) - 0.5 / q.n)
    return [g.FKSteering(task.reward, task.alpha), g.Funnel((first, 1))]


def at_its_condition(model: Model, task: Task, q: Quota) -> Result:
    """Classifier-free guidance, where the model knows what is wanted: no reward."""
    if task.cond is None:
        raise ValueError("the model has no condition that means this reward")
    if q.by == "rows":
        q.times(2, 0, least=1)
    return q.draw(model, [g.CFG(2.0)], cond=task.cond)


def refined(model: Model, task: Task, q: Quota) -> Result:
    """Rounds of noising half of the way back."""
    half = q.steps // 2
    rounds = q.times(half / q.steps, 1, first=(1, 1))
    return refine(model, q.n, task.reward, rounds=rounds, steps=half, seed=q.seed, batch_size=BATCH)


def budgeted(model: Model, task: Task, q: Quota) -> Result:
    """Rollover budget forcing: all that is left after the start, in every move that draws."""
    quota = q.times((q.steps - 1) / q.steps, q.steps, first=(1 / q.steps, 1))
    return search.rbf(model, q.n, task.reward, quota=quota, steps=q.steps, seed=q.seed, batch_size=BATCH)


def in_sweeps(model: Model, task: Task, q: Quota) -> Result:
    """A chain of particle Gibbs for each sample, scored half of the way and at the end."""
    sweeps = q.times(CHAIN, 2 * CHAIN, least=2)
    guides = [g.FKSteering(task.reward, task.alpha, every=math.ceil(q.steps / 2))]
    options: dict[str, Any] = {"steps": q.steps, "seed": q.seed, "batch_size": BATCH}
    return search.particle_gibbs(model, q.n, guides, particles=CHAIN, sweeps=sweeps, **options)


def exchanged(model: Model, task: Task, q: Quota) -> Result:
    """A chain for each sample, which exchanges with one of the unguided model."""
    sweeps = q.times(2, 2, first=(2, 2))
    options: dict[str, Any] = {"steps": q.steps, "seed": q.seed, "batch_size": BATCH}
    return search.replica_exchange(model, q.n, task.reward, alphas=[task.alpha], sweeps=sweeps, **options)


def moved(model: Model, task: Task, q: Quota) -> Result:
    """Informed moves from unguided samples."""
    first = sample(model, q.n, steps=q.steps, seed=q.seed, batch_size=BATCH)
    rounds = q.times(1 / q.steps, 1, first=(1, 2))
    options = {"alpha": task.alpha, "rounds": rounds, "seed": q.seed, "batch_size": BATCH}
    found = search.informed(model, first.x, task.reward, **options)
    return replace(found, cost=found.cost + first.cost)


def from_tilted_noise(model: Model, task: Task, q: Quota) -> Result:
    """One particle for each sample, from noise that Metropolis moves have tilted, by a deterministic solver."""
    flow = min(4, q.steps)
    levels = q.times(flow / q.steps, 1, first=(1 + flow / q.steps, 2))
    return q.draw(model, [g.PsiSampler(task.reward, task.alpha, levels=levels, flow=flow)], solver=DDIM())


def from_learned_noise(model: Model, task: Task, q: Quota) -> Result:
    """Particles from noise that a network has learned for the task. Its training is not counted."""
    return q.draw(model, [_learned(model, task)], particles=q.times(1, 1), solver=DDIM())


@lru_cache(maxsize=8)
def _learned(model: Model, task: Task) -> Guide:
    return search.amortise(model, task.reward, task.alpha, flow=2, train=60, rows=32, lr=0.03)


def grown(model: Model, task: Task, q: Quota) -> Result:
    """Diffusion tree sampling, as far as the quota goes."""
    at_once = max(1, min(q.n, 8))
    tree = search.Tree(
        model, task.reward, alpha=task.alpha, parallel=at_once, steps=q.steps, seed=q.seed, batch_size=BATCH
    )
    name, each = ("network_rows", math.ceil(q.unit)) if q.by == "rows" else ("reward_calls", 1)
    while getattr(tree.run.cost, name) + at_once * each <= q.whole:
        tree.grow(at_once)
        if tree.roots[0].visits > q.whole:  # calls of molecules that were met before are free
            break
    return tree.result(q.n)


def turned(model: Model, task: Task, q: Quota) -> Result:
    """Zero-order search over the starting noise."""
    budget = search.Budget(rows=q.whole) if q.by == "rows" else search.Budget(calls=q.whole, rounds=q.size)
    options: dict[str, Any] = {"budget": budget, "steps": q.steps, "seed": q.seed, "batch_size": BATCH}
    return search.zero_order(model, q.n, task.reward, neighbours=max(1, min(4, q.size - 2)), **options)


def designed(model: Model, task: Task, q: Quota) -> Result:
    """The design loop, which spends reward calls."""
    if q.by == "rows":
        raise ValueError("spends reward calls, and few network rows: see the table at equal calls")
    budget = search.Budget(calls=q.whole)
    options: dict[str, Any] = {"population": q.n, "steps": q.steps, "seed": q.seed, "batch_size": BATCH}
    return evolve(model, q.n, task.reward, budget=budget, **options)


def by_ledidi(model: Model, task: Task, q: Quota) -> Result:
    """Edits of unguided sequences by ledidi (Schreiber et al., 2025), a batch of 8 for each, of which the best stays.
    By rows it takes as many calls as steering has with them."""
    if not isinstance(model.process, Masked) or as_reward(task.reward).differentiable is not True:
        raise ValueError("ledidi edits DNA along the gradient of a reward")
    if find_spec("ledidi") is None:
        raise ValueError("ledidi is a package of its own: pip install ledidi")
    from ledidi import Ledidi  # type: ignore[import-not-found]

    class Asked(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return task.reward(x.transpose(1, 2))[:, None]

    first = sample(model, q.n, steps=q.steps, seed=q.seed, batch_size=BATCH)
    calls = q.times(1, 1, first=(1, 0)) * (q.steps if q.by == "rows" else 1)
    rounds, best, goal = max(calls // 8, 1), [], torch.tensor([[_goal(task, first)]])
    torch.manual_seed(q.seed)
    for x in first.x:
        hot = torch.nn.functional.one_hot(x, 4).float().T[None]
        made = Ledidi(Asked(), shape=(4, len(x)), batch_size=8, max_iter=rounds, verbose=False)
        edits = made.fit_transform(hot, goal).argmax(1)
        best.append(edits[task.reward(edits).argmax()])
    x = torch.stack(best)
    cost = replace(first.cost, reward_calls=8 * rounds * q.n)
    return replace(first, x=x, samples=model.decode(x), cost=cost)


def _goal(task: Task, first: Result) -> float:
    """The reward that ledidi is told to reach: five standard deviations of unguided samples above their mean."""
    rewards = task.reward(first.samples).double()
    return float(rewards.nanmean() + 5 * rewards[rewards.isfinite()].std())


METHODS: dict[str, Method] = {
    "unguided": lambda model, task, q: [],
    "best of N": lambda model, task, q: [g.BestOfN(task.reward, q.size)],
    "best of N, second order": lambda model, task, q: q.draw(
        model, [g.BestOfN(task.reward, q.size)], solver=SDEDPMpp(order=2)
    ),
    "CFG": at_its_condition,
    "FK steering": lambda model, task, q: q.draw(
        model, [g.FKSteering(task.reward, task.alpha)], particles=q.times(1, q.steps)
    ),
    "FK steering, one each": lambda model, task, q: q.draw(
        model, [g.FKSteering(task.reward, task.alpha)], particles=q.times(1, q.steps, least=2), each=True
    ),
    "SVDD": lambda model, task, q: [g.SVDD(task.reward, 0.0, q.times(1, q.steps, least=2))],
    "SVDD, weighted": lambda model, task, q: [
        g.SVDD(task.reward, task.alpha, q.times(1, q.steps, least=2)), g.Resample()
    ],
    "SVDD by the parent": by_the_parent,
    "SVDD by the parent, 40 each": partial(by_the_parent, candidates=40),
    "SVDD by a value": by_value,
    "SVDD by a value, weighted": by_weighted_value,
    "CoDe": in_blocks,
    "FK steering, funnel": funnelled,
    "DAS": lambda model, task, q: q.draw(
        model, [g.DAS(task.reward, task.alpha)], particles=q.times(1, q.steps + 1)
    ),
    "DAS, second order": lambda model, task, q: q.draw(
        model, [g.DAS(task.reward, task.alpha)], particles=q.times(1, q.steps + 1), solver=SDEDPMpp(order=2)
    ),
    "TDS": lambda model, task, q: q.draw(
        model, [g.TDS(task.reward, task.alpha)], particles=q.times(1, q.steps + 1)
    ),
    "DriftLite": lambda model, task, q: q.draw(
        model, [g.DriftLite.tilt(task.reward, task.alpha)], particles=q.times(1, q.steps + 1)
    ),
    "Taylor SMC": lambda model, task, q: q.draw(
        model, [g.TaylorSMC(task.reward, task.alpha)], particles=q.times(1, q.steps + 1)
    ),
    "psi-sampler": from_tilted_noise,
    "amortised": from_learned_noise,
    "rbf": budgeted,
    "particle Gibbs": in_sweeps,
    "replica exchange": exchanged,
    "refine": refined,
    "informed": moved,
    "tree": grown,
    "zero order": turned,
    "evolve": designed,
    "ledidi": by_ledidi,
}  # fmt: skip

# The KL divergence to the model of what a method samples, where it is known.
TILTED = (
    "FK steering", "FK steering, funnel", "SVDD, weighted", "SVDD by a value, weighted", "DAS", "DAS, second order",
    "TDS", "DriftLite", "Taylor SMC", "psi-sampler", "amortised", "particle Gibbs", "replica exchange", "informed",
    "tree",
)  # fmt: skip


def divergence(method: str, size: int, kl: float) -> float | None:
    """KL(q || p) in nats: that of best-of-N, log N - (N - 1)/N, and that of the tilted distribution; otherwise None."""
    if method in BEST:
        return math.log(size) - (size - 1) / size
    return kl if method in TILTED else None


# the tasks -----------------------------------------------------------------------------------------------------------


def _dna(about: str, reward: Any, **more: Any) -> Task:
    from rewards.dna import edit_distance_diversity, kmer_correlation

    return Task(about, "dna", reward, kmer_correlation, "3-mers", partial(edit_distance_diversity, pairs=500), **more)


def dna_cell_type() -> Task:
    from rewards.dna import CellType

    judge = CellType("HepG2", "dna-judge")
    own = {"judge": judge, "cond": "HepG2", "value": zoo.value("dna-value")}
    return _dna("log-odds of HepG2 by `dna-oracle`", CellType("HepG2"), **own)


def dna_motif() -> Task:
    """Sites of AP-1, in bits above 6, in a sequence with as many GC as AT."""
    from rewards.dna import GC, Motif

    counts = torch.full((4, 7), 1.0)
    for place, base in enumerate("TGACTCA"):
        counts["ACGT".index(base), place] = 20.0
    sites = Motif(counts, how="sum", threshold=6.0)
    return _dna("sites of AP-1 in bits above 6, less 40 |GC - .5|", sites - 40 * GC().transformed(_off_balance))


def _off_balance(share: Tensor) -> Tensor:
    return (share - 0.5).abs()


def _images(about: str, reward: Any, label: str) -> Task:
    from rewards.images import Classifier, frechet_distance

    judge = zoo.network("fashion-judge")

    def natural(samples: Tensor, others: Tensor) -> float:
        with torch.no_grad():
            return frechet_distance(judge.features(samples), judge.features(others))  # type: ignore[operator]

    held_out = Classifier(judge, zoo.card("fashion")["classes"].index(label))
    return Task(about, "fashion", reward, natural, "Frechet", _spread, held_out, "lower", label)


def _spread(samples: Tensor) -> float:
    return float(torch.pdist(samples.flatten(1)).mean())


def images_class() -> Task:
    from rewards.images import Classifier

    reward = Classifier(zoo.network("fashion-classifier"), zoo.card("fashion")["classes"].index("sandal"))
    return _images("log-probability of a sandal by `fashion-classifier`", reward, "sandal")


def images_caption() -> Task:
    from rewards.images import ClipScore

    reward = ClipScore("a photo of a bag", model=zoo.clip(), scale=10.0)
    task = _images("ten times the score of `fashion-clip` for 'a photo of a bag'", reward, "bag")
    return replace(task, value=Rescaled(zoo.value("fashion-value"), 0.45))


@dataclass(frozen=True)
class Rescaled:
    """A value in another unit. `fashion-value` is of the log-probability of a bag, whose standard deviation over
    unguided samples is 1 / .45 of that of the caption's score. What is added to a value changes no weight."""

    value: Any
    factor: float
    sees_prediction = False

    def __call__(self, view: View) -> Tensor:
        return self.factor * self.value(view)


def _molecules(about: str, reward: Any) -> Task:
    from rewards.molecules import Alerts, metrics

    alerts = Alerts("BRENK")
    free: Callable[[Any, Any], float] = lambda s, _: float((alerts(s) == 0).double().mean())  # noqa: E731
    return Task(about, "molecules", reward, free, "no alerts", metrics.internal_diversity)


def molecules_qed_sa() -> Task:
    from rewards import geometric_mean
    from rewards.molecules import QED, SA
    from rewards.transforms import ReverseSigmoid

    reward = geometric_mean([QED(), SA().transformed(ReverseSigmoid(2.0, 4.0))])
    return _molecules("geometric mean of QED and of SA through a sigmoid", reward)


def molecules_mpo() -> Task:
    from rewards.molecules import objective

    return _molecules("GuacaMol's osimertinib MPO", objective("osimertinib_mpo"))


TASKS: dict[str, Callable[[], Task]] = {
    "dna_cell_type": dna_cell_type,
    "dna_motif": dna_motif,
    "images_class": images_class,
    "images_caption": images_caption,
    "molecules_qed_sa": molecules_qed_sa,
    "molecules_mpo": molecules_mpo,
}


# the runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """A task with what was drawn for it: unguided samples with their rewards, and samples at its condition."""

    task: Task
    model: Model
    pilot: Result
    reference: Any
    kl: float

    @staticmethod
    def of(task: Task, steps: int, n: int, kl: float, folder: Path) -> Study:
        """Draw, or read, n unguided samples, and find the temperature for this divergence."""
        model = zoo.load(task.model) if isinstance(task.model, str) else task.model
        name = task.model if isinstance(task.model, str) else type(model).__name__
        plain = _kept(folder / name, lambda: sample(model, n, steps=steps, seed=PILOT, batch_size=BATCH))
        others = plain
        if task.cond is not None:
            own = {"steps": steps, "cond": task.cond, "seed": PILOT + 1, "batch_size": BATCH}
            others = _kept(folder / f"{name}-{task.cond}", lambda: sample(model, max(n // 4, 2), **own))
        pilot = replace(plain, rewards=_scores(task.reward, plain.samples))
        steered = replace(task, alpha=strength_of(pilot, task.reward, kl, None).alpha)
        return Study(steered, model, pilot, others.samples, kl)

    @property
    def unit(self) -> float:
        """Network rows of an unguided sample."""
        return self.pilot.cost.network_rows / len(self.pilot)

    def possible(self, kl: float) -> float:
        """The highest mean reward that so many nats allow, as the unguided samples have it; NaN if they are too few."""
        if len(self.pilot) < 10 * math.exp(kl):
            return math.nan
        return strength_of(self.pilot, self.task.reward, kl, None).reward

    def measured(self, method: str, result: Result, q: Quota) -> dict[str, Any]:
        """The numbers of a run: its samples, drawn by their weights, and what it spent."""
        drawn = _equally_weighted(result, q.n, q.seed)
        reward = float(_scores(self.task.reward, drawn.samples).nanmean())
        judge = self.task.judge
        spent = divergence(method, q.size, self.kl)
        size = len(result) // result.groups
        return {
            "reward": reward,
            "held_out": reward if judge is None else float(_scores(judge, drawn.samples).nanmean()),
            "natural": float(self.task.natural(drawn.samples, self.reference)),
            "diversity": float(self.task.diversity(drawn.samples)),
            "unique": _distinct(drawn) / len(drawn),
            "ess": float(result.ess.mean()) / size,
            "of_possible": math.nan if spent is None else self.gained(reward, spent),
            "rows": result.cost.network_rows / q.n,
            "calls": result.cost.reward_calls / q.n,
        }

    def gained(self, reward: float, kl: float) -> float:
        """What a mean reward is above the unguided one, as a share of what the divergence allows."""
        assert self.pilot.rewards is not None
        before = float(self.pilot.rewards.nanmean())
        return (reward - before) / (self.possible(kl) - before)


@dataclass(frozen=True)
class Bench:
    """Tasks, methods, quotas and seeds, and the folder of their runs.

    rows, calls   sizes of the quotas: so many times the rows of an unguided run; so many calls a sample
    """

    out: Path
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    n: int = 32
    steps: int = 16
    rows: tuple[int, ...] = (4,)
    calls: tuple[int, ...] = (72,)
    seeds: tuple[int, ...] = (0, 1, 2)
    kl: float = 3.0
    pilot: int = 512
    tell: Callable[[str], Any] = print
    own: dict[str, Method] = field(init=False, default_factory=dict)
    studies: dict[str, Study] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Find the names that are meant, before anything runs."""
        own = {name: import_object(name) for name in self.methods if is_reference(name)}
        known = [*METHODS, *own]
        asked = self.methods or tuple(METHODS)
        object.__setattr__(self, "tasks", tuple(find(name, list(TASKS), "task") for name in self.tasks or TASKS))
        object.__setattr__(self, "methods", tuple(find(name, known, "method") for name in asked))
        object.__setattr__(self, "own", own)
        for name, least in (("n", 2), ("steps", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} {getattr(self, name)}: at least {least}")
        for name in ("rows", "calls"):
            if any(size < 1 for size in getattr(self, name)):
                raise ConfigError(f"--{name} {getattr(self, name)}: sizes of 1 or more")
        if not (self.rows or self.calls) or not self.seeds:
            raise ConfigError("--rows, --calls and --seeds are empty: there is nothing to run")
        fewest = math.ceil(10 * math.exp(self.kl))
        if self.pilot < fewest:
            raise ConfigError(f"--pilot {self.pilot}: {self.kl:g} nats need {fewest} unguided samples; or lower --kl")
        for run in self.kept():
            if (run["n"], run["steps"], run["kl"], run["pilot"]) != (self.n, self.steps, self.kl, self.pilot):
                told = ", ".join(f"{k}={run[k]}" for k in ("n", "steps", "kl", "pilot"))
                raise ConfigError(f"{self.out} has runs of {told}: give the same, or another folder")

    def kept(self) -> list[dict[str, Any]]:
        """All lines of the folder."""
        return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(self.out.glob("runs/*/*/*.json"))]

    def plan(self) -> Iterator[tuple[str, str, str, int, int]]:
        """(task, method, by, size, seed): by rows and then by calls, the seeds one after the other. A best of N is one
        run for both tables."""
        for by, sizes in (("rows", self.rows), ("calls", self.calls)):
            for seed in self.seeds:
                for task in self.tasks:
                    for method in self.methods:
                        for size in self.sizes(method, by, sizes):
                            yield task, method, "rows" if method in ("unguided", *BEST) else by, size, seed

    def sizes(self, method: str, by: str, sizes: Sequence[int]) -> list[int]:
        """The quotas of a method. A best of 1 is the unguided run."""
        if method == "unguided":
            return [1]
        if method in BEST:
            every = {*sizes, *(AHEAD * size for size in sizes)} if by == "rows" else set(sizes)
            return sorted(every - {1})
        return list(sizes)

    def run(self) -> dict[str, Any]:
        """All runs, and what they say. The tables are also written where it is interrupted."""
        try:
            for run in dict.fromkeys(self.plan()):
                self.carry_out(*run)
        finally:
            found = self.found()
            self.write(found)
        return found

    def carry_out(self, task: str, method: str, by: str, size: int, seed: int) -> None:
        """Make a run, unless it was finished before."""
        file = self.file(task, method, by, size, seed)
        if file.exists() and "failed" not in json.loads(file.read_text(encoding="utf-8")):
            return
        record = self.made(task, method, by, size, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(without_nan(record)) + "\n", encoding="utf-8")
        part.replace(file)
        said = record.get("failed") or "reward {reward:.3f}, held out {held_out:.3f}".format(**record)
        self.tell(f"{task}, {method}, {by} {size}, seed {seed}: {said}")

    def file(self, task: str, method: str, by: str, size: int, seed: int) -> Path:
        name = "".join(c if c.isalnum() else "_" for c in method)
        return self.out / "runs" / task / name / f"{by}-{size}-{seed}.json"

    def made(self, task: str, method: str, by: str, size: int, seed: int) -> dict[str, Any]:
        """The numbers of a run, or why it failed."""
        settings = {"n": self.n, "steps": self.steps, "kl": self.kl, "pilot": self.pilot}
        about = {"task": task, "method": method, "by": by, "size": size, "seed": seed} | settings
        try:
            if task not in self.studies:
                self.studies[task] = Study.of(TASKS[task](), self.steps, self.pilot, self.kl, self.out / "pilots")
            study = self.studies[task]
            quota = Quota(self.n, self.steps, by, size, seed, study.unit)
            began = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = (METHODS | self.own)[method](study.model, study.task, quota)
                result = result if isinstance(result, Result) else quota.draw(study.model, result)
            seconds = time.process_time() - began
            if method != "unguided":  # its rows are the unit
                quota.check(result)
            return about | study.measured(method, result, quota) | {"seconds": seconds}
        except Exception as error:  # of any method, also of the user's: the others go on
            return about | {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}

    def found(self) -> dict[str, Any]:
        """All runs of this bench, and means over seeds with their standard deviations."""
        files = dict.fromkeys(self.file(*run) for run in self.plan())
        runs = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
        settings = {"n": self.n, "steps": self.steps, "kl": self.kl, "pilot": self.pilot}
        settings |= {"rows": list(self.rows), "calls": list(self.calls), "seeds": list(self.seeds)}
        about = {name: _about(TASKS[name]()) for name in self.tasks}
        return {"settings": settings, "tasks": about, "rows": summary(runs), "runs": runs}

    def write(self, found: dict[str, Any]) -> None:
        """The files of all runs."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (self.out / "table.md").write_text("\n".join(lines(found)) + "\n", encoding="utf-8")
        if find_spec("matplotlib") is not None:
            draw(found, self.out / "rewards.png")


def _about(task: Task) -> dict[str, Any]:
    return {"about": task.about, "nature": task.nature, "better": task.better, "judged": task.judge is not None}


def _kept(folder: Path, make: Callable[[], Result]) -> Result:
    """The result of this folder, or one that is made and saved there."""
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.part")
        make().save(part)
        part.rename(folder)
    return load_result(folder)


def _scores(reward: Any, samples: Any) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(as_reward(reward)(samples)).double().cpu()


def _equally_weighted(result: Result, n: int, seed: int) -> Result:
    """n samples, drawn by their weights within each group (systematic)."""
    log_w = result.log_weights.view(result.groups, -1)
    if n == len(result) and bool((log_w == log_w[:, :1]).all()):
        return result
    keys = addressed.fold(addressed.key([seed] * result.groups, log_w.device), "bench")
    return result.select(resampling.systematic(log_w.softmax(-1), n // result.groups, keys))


def _distinct(result: Result) -> int:
    own = result.samples
    return len(set(own)) if isinstance(own, list) else len(torch.as_tensor(own).flatten(1).unique(dim=0))


# the numbers ---------------------------------------------------------------------------------------------------------


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task, method and quota: means over the seeds that did not fail, `..._sd` their standard
    deviations, or why it failed."""
    keys = ("task", "method", "by", "size")
    found = []
    for key in dict.fromkeys(tuple(run[k] for k in keys) for run in runs):
        own = [run for run in runs if tuple(run[k] for k in keys) == key]
        good = [run for run in own if "failed" not in run]
        row: dict[str, Any] = dict(zip(keys, key, strict=True)) | {"seeds": len(good)}
        if not good:
            found.append(row | {"failed": own[0]["failed"]})
            continue
        for name in NUMBERS:
            known = [run[name] for run in good if run[name] is not None]
            row[name] = round(mean(known), 4) if known else None
            row[f"{name}_sd"] = round(stdev(known), 4) if len(known) > 1 else None
        found.append(row)
    return found


def ahead(found: dict[str, Any], by: str = "rows") -> list[dict[str, Any]]:
    """Each method beside a best of N, with `AHEAD` times its rows or with as many calls: whether its held-out reward is
    as high, its samples are as natural, and as diverse."""
    compared = []
    for row in found["rows"]:
        if row["by"] != by or row["method"] in ("unguided", *BEST, "CFG") or "failed" in row:
            continue
        other = rival(found, row, by)
        if other is not None:
            own = {k: row[k] for k in ("task", "method", "size")} | {"n": other["size"]}
            natural, diverse = kept(found, row, other)
            reached = _known(row)["held_out"] >= _known(other)["held_out"]
            compared.append(own | {"reached": reached, "natural": natural, "diverse": diverse})
    return compared


def rival(found: dict[str, Any], row: dict[str, Any], by: str) -> dict[str, Any] | None:
    """The best of N with the same solver that a row is compared with."""
    size = row["size"] * (AHEAD if by == "rows" else 1)
    wanted = row["task"], size, BEST[row["method"].endswith("second order")]
    best = (r for r in found["rows"] if (r["task"], r["size"], r["method"]) == wanted and "failed" not in r)
    return next(best, None)


def kept(found: dict[str, Any], row: dict[str, Any], other: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the samples of a row are as natural as those of another, up to the standard deviation of the other over
    seeds, and whether their diversity is at most a tenth less."""
    sign = 1 if found["tasks"][row["task"]]["better"] == "higher" else -1
    row, other = _known(row), _known(other)
    natural = sign * (row["natural"] - other["natural"]) >= -(other["natural_sd"] or 0.0)
    return natural, row["diversity"] >= (1 - LOSS) * other["diversity"]


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """The row with NaN for numbers that are unknown."""
    return row | {k: math.nan for k in ("held_out", "natural", "diversity") if row[k] is None}


HEAD = (
    "method", "reward", "held out", "", "diversity", "unique", "ESS", "of possible", "rows", "calls", "seconds",
    "seeds",
)  # fmt: skip


def lines(found: dict[str, Any]) -> list[str]:
    """Two tables for each task, at equal rows and at equal calls, and what is ahead of best-of-N."""
    text = []
    for task, about in found["tasks"].items():
        for by in ("rows", "calls"):
            rows = _of_table(found, task, by)
            if all(row["method"] == "unguided" for row in rows):
                continue
            arrow = {"higher": "↑", "lower": "↓"}[about["better"]]
            head = [name or f"{about['nature']} {arrow}" for name in HEAD]
            head = [name for name in head if name != "held out" or about["judged"]]
            text += ["", f"{task}, equal {by}: {about['about']}", "", "| " + " | ".join(head) + " |"]
            text += ["|" + "---|" * len(head)]
            text += ["| " + " | ".join(_cells(row, about["judged"])) + " |" for row in rows]
    return [*text[1:], "", *_verdict(found)]


def _of_table(found: dict[str, Any], task: str, by: str) -> list[dict[str, Any]]:
    """The rows of a table: those of its quota, the unguided run, and for calls the best of so many."""
    sizes = found["settings"][by]
    own = [row for row in found["rows"] if row["task"] == task and "failed" not in row]
    return [
        row
        for row in own
        if row["method"] == "unguided"
        or (row["by"] == by and row["method"] not in BEST)
        or (row["method"] in BEST and row["size"] in (sizes if by == "calls" else _of_rows(sizes)))
    ]


def _of_rows(sizes: Sequence[int]) -> set[int]:
    return {*sizes, *(AHEAD * size for size in sizes)}


def _cells(row: dict[str, Any], judged: bool) -> list[str]:
    sized = row["method"] not in ("unguided", "CFG", *BEST)
    name = f"{row['method']}, {row['size']}" if sized else _name(row)
    return [name, *(_cell(row, k) for k in NUMBERS if k != "held_out" or judged), str(row["seeds"])]


def _name(row: dict[str, Any]) -> str:
    return row["method"].replace("N", str(row["size"])) if row["method"] in BEST else row["method"]


def _cell(row: dict[str, Any], name: str) -> str:
    value, spread = row[name], row[f"{name}_sd"]
    if value is None:
        return ""
    if name in ("rows", "calls", "seconds"):
        return f"{value:.0f}"
    digits = 2 if abs(value) < 100 else 0
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread and name != "ess" else "")


def _verdict(found: dict[str, Any]) -> list[str]:
    """For each task, the methods that have the held-out reward of a best-of-N: at an eighth of its rows, and with its
    calls."""
    text = []
    for by, than in (("rows", f"at 1/{AHEAD} of its rows"), ("calls", "with as many calls")):
        compared = ahead(found, by)
        if compared:
            text += [f"As high a held-out reward as best-of-N {than}:", ""]
            text += [_of_task([row for row in compared if row["task"] == task], task) for task in found["tasks"]] + [""]
    return text[:-1]


def _of_task(own: Sequence[dict[str, Any]], task: str) -> str:
    good = [row for row in own if row["reached"] and row["natural"] and row["diverse"]]
    part = [row for row in own if row["reached"] and row not in good]
    said = ", ".join(f"{r['method']} ({r['size']} against {r['n']})" for r in good) or "none"
    less = ", ".join(f"{r['method']} ({r['size']}: {_lost(r)})" for r in part)
    return f"* {task}: {said}" + (f"; as high, but with a loss: {less}" if less else "")


def _lost(row: dict[str, Any]) -> str:
    return " and ".join(name for name, kept in (("natural", row["natural"]), ("diversity", row["diverse"])) if not kept)


COLOURS = {"": "0.2", "rows": "C0", "calls": "C1"}
MARKS = {"": "s", "rows": "o", "calls": "D"}
HEIGHTS = {"": 0.0, "rows": 0.17, "calls": -0.17}  # on the line of a method, so that no dot hides another


@dataclass(frozen=True)
class Dot:
    """A number of the picture: of which method, in which table ("" where it is in both), and whether the samples are
    natural and diverse."""

    name: str
    by: str
    value: float
    spread: float
    whole: bool


def dots(found: dict[str, Any], task: str) -> list[Dot]:
    """All numbers of a task, in the order of its tables."""
    made = {}
    for by in ("rows", "calls"):
        for row in _of_table(found, task, by):
            other = rival(found, row, by) or rival(found, row | {"method": BEST[0]}, by)
            both = row["method"] in ("unguided", "CFG", *BEST)
            whole = both or other is None or all(kept(found, row, other))
            dot = Dot(_name(row), "" if both else by, _known(row)["held_out"], row["held_out_sd"] or 0.0, whole)
            made.setdefault((_name(row), dot.by, row["size"] if dot.by else 0), dot)
    return [dot for dot in made.values() if not math.isnan(dot.value)]


def draw(found: dict[str, Any], file: Path) -> None:
    """A panel for each task: the held-out reward of all methods, at equal rows and at equal calls, the best on top.
    Dots are hollow where samples are less natural or diverse than those of best-of-N."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    own = {task: dots(found, task) for task in found["tasks"]}
    columns = min(2, len(own))
    counts = [len({dot.name for dot in some}) for some in own.values()]
    lines = [max(counts[i : i + columns]) for i in range(0, len(counts), columns)]
    size = (6.5 * columns, 0.2 * sum(lines) + 0.9 * len(lines) + 0.4)
    figure, axes = plt.subplots(
        len(lines), columns, figsize=size, height_ratios=[n + 3 for n in lines], squeeze=False, layout="constrained"
    )
    for panel, task in zip(axes.flat, own, strict=False):
        _panel(panel, own[task], found["tasks"][task], task)
    for panel in axes.flat[len(own) :]:
        panel.set_axis_off()
    figure.legend(handles=_legend(found["settings"]), loc="outside upper center", ncols=4, fontsize="small")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _panel(panel: Any, own: Sequence[Dot], about: dict[str, Any], task: str) -> None:
    """The methods of a task, each on a line, and best-of-N across all lines."""
    top = {dot.name: max(d.value for d in own if d.name == dot.name) for dot in own}
    places = {name: place for place, name in enumerate(sorted(top, key=lambda name: top[name]))}
    for dot in own:
        colour = COLOURS[dot.by]
        panel.errorbar(
            dot.value, places[dot.name] + HEIGHTS[dot.by], xerr=dot.spread, capsize=2, label=dot.name, alpha=0.9,
            color=colour, marker=MARKS[dot.by], markersize=4, markerfacecolor=colour if dot.whole else "white",
        )  # fmt: skip
        if dot.name.startswith("best of"):
            panel.axvline(dot.value, color="0.2", linewidth=0.6, linestyle=":")
    panel.set_yticks(list(places.values()), list(places), fontsize="small")
    panel.set_ylim(-0.7, len(places) - 0.3)
    panel.set_xlabel("held-out reward" if about["judged"] else "reward", fontsize="small")
    panel.set_title(f"{task}: {about['about']}".replace("`", ""), fontsize="small")
    panel.grid(axis="y", alpha=0.3)


def _legend(settings: dict[str, Any]) -> list[Any]:
    from matplotlib.lines import Line2D

    sizes = {k: ", ".join(map(str, settings[k])) for k in ("rows", "calls")}
    said = {"rows": f"with {sizes['rows']} times the rows", "calls": f"with {sizes['calls']} calls a sample"}
    said[""] = "unguided, CFG and best of N"
    shown = [by for by in COLOURS if not by or settings[by]]
    handles = [Line2D([], [], color=COLOURS[by], marker=MARKS[by], linestyle="", label=said[by]) for by in shown]
    less = Line2D(
        [], [], color="0.2", marker="o", markerfacecolor="white", linestyle="", label="less natural or diverse"
    )
    return [*handles, less]
