"""Reward against network rows: searches over noise beside steering, on problems without a trained network.

    python -m benchmarks.search

Every sample may cost so many rows, those of the last run of a search's winners included. Steering gets as many
particles or candidates for each sample as the rows pay for; of FK steering's particles the best one counts. Besides the
mean reward there is the mean log-probability of the samples under the base model: what is far below that of unguided
samples has left the data. Writes benchmarks/results/search.json and docs/search.png. Rewards do not depend on the
machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__" and Path(sys.path[0]) == Path(__file__).parent:
    sys.path.pop(0)  # this folder, in which `rewards` is a benchmark

import torch
from torch import Tensor

import guidekit as gk

ROOT = Path(__file__).parent.parent
STEPS, N = 16, 32
ROWS = (8, 32, 128)  # of one sample, in whole runs
S = gk.search


def mixture() -> tuple[Any, Callable, Callable]:
    """Five components in eight dimensions; the reward is largest beside the data."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(5, 8, generator=draw, dtype=torch.float64)
    base = gk.analytic.GaussianMixture([0.3, 0.25, 0.2, 0.15, 0.1], means, [0.5] * 5)
    aim = torch.randn(8, generator=draw, dtype=torch.float64)
    return base, lambda x: -(x - aim).square().sum(-1) + (3 * x).sin().sum(-1), base.log_prob


def table() -> tuple[Any, Callable, Callable]:
    """Four letters of four; the reward has a value for each pair of neighbours and one for each end."""
    draw = torch.Generator().manual_seed(0)
    base = gk.analytic.TokenTable(1.5 * torch.randn((4,) * 4, generator=draw, dtype=torch.float64))
    pairs, ends = torch.randn(4, 4, generator=draw).double(), torch.randn(4, 4, generator=draw).double()
    reward = lambda x: pairs[x[:, :-1], x[:, 1:]].sum(-1) + ends[x[:, 0], x[:, -1]]  # noqa: E731
    return base, reward, base.log_probs


PROBLEMS = {"mixture": mixture, "tokens": table}


def best_particles(base: Any, reward: Callable, k: int, seed: int) -> tuple[gk.Result, Tensor]:
    """The best of k particles, for N groups of them."""
    seeds, guides = [1000 * seed + i for i in range(N)], [gk.FKSteering(reward, alpha=0.2)]
    result = gk.sample(base, k, steps=STEPS, guides=guides, cond=[None] * N, seed=seeds, reward=reward)
    return result, result.best(1).x


def searched(name: str, **setting: Any) -> Callable:
    def go(base: Any, reward: Callable, k: int, seed: int) -> tuple[gk.Result, Tensor]:
        budget = S.Budget(rows=k * STEPS * N)
        found = getattr(S, name)(base, N, reward, budget=budget, steps=STEPS, seed=seed, **setting)
        return found, found.x

    return go


def paths(base: Any, reward: Callable, k: int, seed: int) -> tuple[gk.Result, Tensor]:
    width = {8: 1, 32: 4, 128: 8}[k]
    found = S.paths(base, N, reward, width=width, branch=(k - 1) // width, steps=STEPS, seed=seed)
    return found, found.x


def halving(base: Any, reward: Callable, k: int, seed: int) -> tuple[gk.Result, Tensor]:
    width = [max(1, int(1.9 * (k - 1)) >> level) for level in range(4)]
    found = S.paths(base, N, reward, width=width, branch=1, steps=STEPS, seed=seed)
    return found, found.x


def sampled(make: Callable[[Callable, int], gk.Guide]) -> Callable:
    def go(base: Any, reward: Callable, k: int, seed: int) -> tuple[gk.Result, Tensor]:
        result = gk.sample(base, N, steps=STEPS, guides=[make(reward, k)], seed=seed)
        return result, result.x

    return go


METHODS: dict[str, Callable] = {
    "random": searched("random", candidates=4),
    "zero_order": searched("zero_order", neighbours=4, shrink=0.95),
    "evolution": searched("evolution", population=6),
    "cma": searched("cma", candidates=6),
    "paths": paths,
    "paths, halving": halving,
    "gradient": searched("gradient"),
    "BestOfN": sampled(lambda reward, k: gk.BestOfN(reward, k)),
    "SVDD, greedy": sampled(lambda reward, k: gk.SVDD(reward, candidates=k)),
    "FKSteering, alpha=.2": best_particles,
}


def measure(seeds: int) -> list[dict[str, Any]]:
    rows = []
    for problem, make in PROBLEMS.items():
        base, reward, log_p = make()
        for method, run in METHODS.items():
            if problem == "tokens" and method == "gradient":
                continue
            for k in ROWS:
                began, parts = time.perf_counter(), []
                for seed in range(seeds):
                    result, x = run(base, reward, k, seed)
                    cost = result.cost
                    parts.append(
                        [
                            v / N
                            for v in (
                                float(reward(x).sum()),
                                float(log_p(x).sum()),
                                cost.network_rows,
                                cost.reward_calls,
                            )
                        ]
                    )
                value = torch.tensor(parts, dtype=torch.float64)
                mean = dict(zip(("reward", "log_p", "rows", "calls"), value.mean(0).tolist(), strict=True))
                sd = float(value[:, 0].std()) if seeds > 1 else 0.0
                rows.append(
                    {
                        "problem": problem,
                        "method": method,
                        "k": k,
                        **mean,
                        "reward_sd": sd,
                        "seconds": time.perf_counter() - began,
                    }
                )
                print(" ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in rows[-1].values()))
    return rows


def unguided() -> dict[str, dict[str, float]]:
    found = {}
    for problem, make in PROBLEMS.items():
        base, reward, log_p = make()
        x = gk.sample(base, 2000, steps=STEPS).x
        found[problem] = {"reward": float(reward(x).mean()), "log_p": float(log_p(x).mean())}
    return found


def picture(text: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for axis, problem in zip(axes, PROBLEMS, strict=True):
        for i, method in enumerate(METHODS):
            rows = [r for r in text["rows"] if r["problem"] == problem and r["method"] == method]
            if rows:
                style = {"marker": "o" if i < 7 else "s", "ls": "-" if i < 7 else "--", "color": f"C{i}", "ms": 4}
                x, y, sd = ([r[key] for r in rows] for key in ("rows", "reward", "reward_sd"))
                axis.errorbar(x, y, sd, label=method, capsize=2, lw=1.2, **style)
        axis.axhline(text["unguided"][problem]["reward"], color="grey", lw=0.8, ls=":")
        axis.set(title=problem, xscale="log", xlabel="network rows a sample", ylabel="mean reward")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[1].legend(handles, labels, fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "search.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "search.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gk.CollapseWarning)
        text = {"command": "python -m benchmarks.search", "n": N, "steps": STEPS, "seeds": args.seeds}
        text |= {"unguided": unguided(), "rows": measure(args.seeds)}
    args.out.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    picture(text, args.picture)


if __name__ == "__main__":
    main()
