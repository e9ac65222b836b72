"""Reward against network rows: searches over noise beside steering.

    python -m benchmarks.search [--problems mixture tokens dna] [--seeds 3]

Two problems have no trained network, and one is DNA by the bundled model. Every sample may cost so many rows, those of
the last run of a search's winners included. Steering gets as many particles or candidates for each sample as the rows
pay for; of FK steering's particles the best one counts. Beside the mean reward there is what nobody asked: the mean
log-probability of the samples under the base model, where what is far below that of unguided samples has left the data,
and of DNA the log-probability of the cell type by a judge that was trained apart. Writes
benchmarks/results/search.json and docs/search.png; problems that are not asked for keep the results that they have
there. Rewards do not depend on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guidekit as gk
from rewards.dna import Network

ROOT = Path(__file__).parent.parent
S = gk.search


@dataclass
class Problem:
    """A base model, a reward, and another score that takes no part; both of samples as the model decodes them.

    rows    of one sample, in whole runs
    leave   methods that are left out
    """

    base: Any
    reward: Callable
    other: Callable
    other_name: str = "log_p"
    n: int = 32
    steps: int = 16
    rows: tuple[int, ...] = (8, 32, 128)
    leave: tuple[str, ...] = ()


def mixture() -> Problem:
    """Five components in eight dimensions; the reward is largest beside the data."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(5, 8, generator=draw, dtype=torch.float64)
    base = gk.analytic.GaussianMixture([0.3, 0.25, 0.2, 0.15, 0.1], means, [0.5] * 5)
    aim = torch.randn(8, generator=draw, dtype=torch.float64)
    return Problem(base, lambda x: -(x - aim).square().sum(-1) + (3 * x).sin().sum(-1), base.log_prob)


def table() -> Problem:
    """Four letters of four; the reward has a value for each pair of neighbours and one for each end."""
    draw = torch.Generator().manual_seed(0)
    base = gk.analytic.TokenTable(1.5 * torch.randn((4,) * 4, generator=draw, dtype=torch.float64))
    pairs, ends = torch.randn(4, 4, generator=draw).double(), torch.randn(4, 4, generator=draw).double()
    reward = lambda x: pairs[x[:, :-1], x[:, 1:]].sum(-1) + ends[x[:, 0], x[:, -1]]  # noqa: E731
    return Problem(base, reward, base.log_probs, leave=("gradient",))


def dna() -> Problem:
    """200 letters of the bundled model without a condition; the reward is log p of the cell type HepG2."""
    reward, judge = (
        Network(gk.zoo.network(name), LogProb(gk.zoo.card(name)["classes"].index("HepG2")), strand_average=True)
        for name in ("dna-oracle", "dna-judge")
    )
    leave = ("gradient", "evolution", "paths, halving")
    return Problem(gk.zoo.load("dna"), reward, judge, "judge", n=8, rows=(8, 32), leave=leave)


@dataclass(frozen=True)
class LogProb:
    """log p of a class, from logits."""

    label: int

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1)[:, self.label]


PROBLEMS = {"mixture": mixture, "tokens": table, "dna": dna}
Found = tuple[gk.Result, Any]  # a run, for its cost, and the samples


def best_particles(p: Problem, k: int, seed: int) -> Found:
    """The best of k particles, for n groups of them."""
    seeds, guides = [1000 * seed + i for i in range(p.n)], [gk.FKSteering(p.reward, alpha=0.2)]
    result = gk.sample(p.base, k, steps=p.steps, guides=guides, cond=[None] * p.n, seed=seeds, reward=p.reward)
    return result, result.best(1).samples


def searched(name: str, **setting: Any) -> Callable:
    def go(p: Problem, k: int, seed: int) -> Found:
        budget = S.Budget(rows=k * p.steps * p.n)
        found = getattr(S, name)(p.base, p.n, p.reward, budget=budget, steps=p.steps, seed=seed, **setting)
        return found, found.samples

    return go


def subspace(p: Problem, k: int, seed: int) -> Found:
    return searched("subspace", candidates=3, dims={8: 4, 32: 8, 128: 16}[k])(p, k, seed)


def paths(p: Problem, k: int, seed: int) -> Found:
    width = {8: 1, 32: 4, 128: 8}[k]
    found = S.paths(p.base, p.n, p.reward, width=width, branch=(k - 1) // width, steps=p.steps, seed=seed)
    return found, found.samples


def halving(p: Problem, k: int, seed: int) -> Found:
    width = [max(1, int(1.9 * (k - 1)) >> level) for level in range(4)]
    found = S.paths(p.base, p.n, p.reward, width=width, branch=1, steps=p.steps, seed=seed)
    return found, found.samples


def sampled(make: Callable[[Callable, int], gk.Guide]) -> Callable:
    def go(p: Problem, k: int, seed: int) -> Found:
        result = gk.sample(p.base, p.n, steps=p.steps, guides=[make(p.reward, k)], seed=seed)
        return result, result.samples

    return go


METHODS: dict[str, Callable] = {
    "random": searched("random", candidates=4),
    "zero_order": searched("zero_order", neighbours=4, shrink=0.95),
    "evolution": searched("evolution", population=6),
    "cma": searched("cma", candidates=6),
    "subspace": subspace,
    "paths": paths,
    "paths, halving": halving,
    "gradient": searched("gradient"),
    "BestOfN": sampled(lambda reward, k: gk.BestOfN(reward, k)),
    "SVDD, greedy": sampled(lambda reward, k: gk.SVDD(reward, candidates=k)),
    "FKSteering, alpha=.2": best_particles,
}


def measure(name: str, p: Problem, seeds: int) -> list[dict[str, Any]]:
    """A row for each method and budget: means over samples and seeds."""
    rows = []
    for method, k in itertools.product([m for m in METHODS if m not in p.leave], p.rows):
        began, parts = time.perf_counter(), []
        for seed in range(seeds):
            result, samples = METHODS[method](p, k, seed)
            sums = float(p.reward(samples).sum()), float(p.other(samples).sum())
            parts.append([v / p.n for v in (*sums, result.cost.network_rows, result.cost.reward_calls)])
        value = torch.tensor(parts, dtype=torch.float64)
        mean = dict(zip(("reward", p.other_name, "rows", "calls"), value.mean(0).tolist(), strict=True))
        sd = float(value[:, 0].std()) if seeds > 1 else 0.0
        seconds = time.perf_counter() - began
        rows.append({"problem": name, "method": method, "k": k, **mean, "reward_sd": sd, "seconds": seconds})
        print(" ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in rows[-1].values()), flush=True)
    return rows


def unguided(p: Problem, n: int) -> dict[str, float]:
    samples = gk.sample(p.base, n, steps=p.steps, batch_size=500).samples
    return {"reward": float(p.reward(samples).mean()), p.other_name: float(p.other(samples).mean())}


def picture(text: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    problems = [name for name in PROBLEMS if name in text["unguided"]]
    figure, axes = pyplot.subplots(
        1, len(problems), figsize=(2 + 4 * len(problems), 4.2), squeeze=False, layout="constrained"
    )
    for axis, problem in zip(axes[0], problems, strict=True):
        for i, method in enumerate(METHODS):
            rows = [r for r in text["rows"] if r["problem"] == problem and r["method"] == method]
            if rows:
                style = {"marker": "o" if i < 8 else "s", "ls": "-" if i < 8 else "--", "ms": 4}
                style |= {"color": pyplot.get_cmap("tab20")(2 * i % 20 + i // 10)}
                x, y, sd = ([r[key] for r in rows] for key in ("rows", "reward", "reward_sd"))
                axis.errorbar(x, y, sd, label=method, capsize=2, lw=1.2, **style)
        axis.axhline(text["unguided"][problem]["reward"], color="grey", lw=0.8, ls=":")
        axis.set(title=problem, xscale="log", xlabel="network rows a sample", ylabel="mean reward")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)


def lines(text: dict[str, Any], problem: str) -> list[str]:
    """The table of a problem in docs/search.md."""
    rows = {(r["method"], r["k"]): r for r in text["rows"] if r["problem"] == problem}
    runs, methods = sorted({k for _, k in rows}), dict.fromkeys(m for m, _ in rows)
    other = next(k for k in ("log_p", "judge") if k in next(iter(rows.values())))
    head = ["method", *(f"{k} runs" for k in runs), f"{other.replace('_', ' ')} at {runs[-1]}", f"calls at {runs[-1]}"]
    body = [
        [m, *(f"{rows[m, k]['reward']:.2f} ± {rows[m, k]['reward_sd']:.2f}" for k in runs)]
        + [f"{rows[m, runs[-1]][other]:.1f}", f"{rows[m, runs[-1]]['calls']:.0f}"]
        for m in methods
    ]
    return ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument(
        "--small", action="store_true", help="two samples, four steps, 8 runs each: to see that it works"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "search.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "search.png")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"unguided": {}, "rows": []}
    text |= {"command": "python -m benchmarks.search", "seeds": args.seeds}
    for name in args.problems:
        p = PROBLEMS[name]()
        p = replace(p, n=2, steps=4, rows=(8,)) if args.small else p
        with warnings.catch_warnings(), torch.no_grad() if "gradient" in p.leave else nullcontext():
            warnings.simplefilter("ignore", gk.CollapseWarning)
            text["unguided"][name] = unguided(p, 4 if args.small else 2000 if name != "dna" else 200)
            text["rows"] = [r for r in text["rows"] if r["problem"] != name] + measure(name, p, args.seeds)
        text.setdefault("settings", {})[name] = {"n": p.n, "steps": p.steps}
        args.out.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        print("\n".join(lines(text, name)), flush=True)
    picture(text, args.picture)


if __name__ == "__main__":
    main()
