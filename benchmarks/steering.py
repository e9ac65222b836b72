r"""What reuse of the survivors' predictions saves: SVDD and Feynman-Kac steering beside plain loops of the same law.

    python benchmarks/steering.py [--out benchmarks/results/steering.json] [--pairs 15] [--runs 40]

The plain loops are in torch alone, as they are usually written. With N particles and M candidates:

    svdd         evaluate the parents, draw M children of each, evaluate these for the clean estimates that the reward
                 sees, keep one of each parent, and evaluate it again as a parent of the next step: N (M + 1) rows a
                 step
    fk           evaluate x_t and move, evaluate x_s for the clean estimate, weigh, resample: 2 N rows a step
    fk_lagged    what the code published with Feynman-Kac steering does: the reward sees the clean estimate of x_t, and
                 what is resampled by it is x_s. N rows a step, and weights that come a step late

They carry their weights properly, evaluate all children in one batch and ask the reward once about each row, so they
are better than some published ones. Their laws are compared with guidekit's, and on a mixture with that of the same
chain by importance sampling. Times are of small networks on one thread, in pairs of runs that alternate. Ratios are
guidekit over plain within a pair, and the median of them is reported.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import guidekit as gk

LETTERS = "ACGT"
MASK = len(LETTERS)


# base models: a plain one and guidekit's of each kind share a network and a reward, which count ----------------------


@dataclass
class Counted:
    """A network and a reward, with counts of what they are asked."""

    net: Callable[[Tensor, Tensor, Any], Tensor]
    score: Callable[[Any], Any]
    network_rows: int = 0
    network_calls: int = 0
    reward_calls: int = 0

    def network(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.network_rows, self.network_calls = self.network_rows + len(x), self.network_calls + 1
        return self.net(x, t, cond)

    def reward(self, samples: Any) -> Tensor:
        self.reward_calls += len(samples)
        return torch.as_tensor(self.score(samples), dtype=torch.float64)


@dataclass
class Images:
    """Ancestral sampling with a network that predicts x_0, on the cosine schedule."""

    counted: Counted
    shape: tuple[int, ...]
    steps: int
    last_move_is_random = False

    def start(self, n: int) -> Tensor:
        return torch.randn(n, *self.shape)

    def predict(self, x: Tensor, i: int) -> Tensor:
        return self.counted.network(x, torch.full((len(x),), 1 - i / self.steps))

    def clean(self, x: Tensor, prediction: Tensor) -> Tensor:
        return prediction

    def samples(self, x: Tensor) -> Tensor:
        return x

    def move(self, x: Tensor, prediction: Tensor, i: int) -> Tensor:
        """From step i to i + 1 by the posterior of the forward process."""
        if i + 1 == self.steps:
            return prediction
        u, v = (math.pi / 2 * (1 - j / self.steps) for j in (i, i + 1))
        a_t, s_t, a_s, s_s = math.cos(u), math.sin(u), math.cos(v), math.sin(v)
        rest = s_t**2 - (a_t / a_s * s_s) ** 2
        mean = a_t / a_s * (s_s / s_t) ** 2 * x + a_s * rest / s_t**2 * prediction
        return mean + s_s / s_t * rest**0.5 * torch.randn(x.shape)

    def model(self) -> gk.Model:
        return gk.GaussianModel(self.counted.network, self.shape, predicts="clean")


@dataclass
class Strings:
    """Masked tokens, decoded to strings."""

    counted: Counted
    length: int
    steps: int
    last_move_is_random = True

    def start(self, n: int) -> Tensor:
        return torch.full((n, self.length), MASK)

    def predict(self, x: Tensor, i: int) -> Tensor:
        return self.counted.network(x, torch.full((len(x),), 1 - i / self.steps))

    def clean(self, x: Tensor, prediction: Tensor) -> list[str]:
        return self.samples(torch.where(x == MASK, prediction.argmax(-1), x))

    def samples(self, x: Tensor) -> list[str]:
        return ["".join(LETTERS[v] for v in row) for row in x.tolist()]

    def move(self, x: Tensor, prediction: Tensor, i: int) -> Tensor:
        """A masked position is filled with probability 1/(steps left)."""
        drawn = torch.distributions.Categorical(logits=prediction.double()).sample()
        return torch.where((x == MASK) & (torch.rand(x.shape) < 1 / (self.steps - i)), drawn, x)

    def model(self) -> gk.Model:
        return gk.MaskedModel(self.counted.network, len(LETTERS), self.length, decode=self.samples)


Base = Images | Strings


# the plain loops ---------------------------------------------------------------------------------------------------


@dataclass
class Weighted:
    """The rewards of a run's samples, with their weights."""

    rewards: Tensor
    log_w: Tensor

    @property
    def mean(self) -> float:
        return float(self.log_w.softmax(0) @ self.rewards)

    @property
    def sd(self) -> float:
        return float((self.log_w.softmax(0) @ (self.rewards - self.mean).square()).sqrt())

    @property
    def log_z(self) -> float:
        return float(self.log_w.logsumexp(0)) - math.log(len(self.log_w))


def resampled(log_w: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """The population, resampled (systematic) where its effective sample size is below half of it."""
    n = len(log_w)
    if 1 / log_w.softmax(0).square().sum() >= 0.5 * n:
        return log_w, *state
    u = (torch.arange(n, dtype=torch.float64) + torch.rand((), dtype=torch.float64)) / n
    index = torch.searchsorted(log_w.softmax(0).cumsum(0), u).clamp(max=n - 1)
    return (log_w.logsumexp(0) - math.log(n)).expand(n), *(v[index] for v in state)


def svdd(base: Base, n: int, alpha: float, candidates: int) -> Weighted:
    """alpha = 0: argmax. alpha > 0: nested importance sampling, and resampling of the parents."""
    x, log_w, before = base.start(n), torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    value, row = before, torch.arange(n)
    for i in range(base.steps):
        last = i + 1 == base.steps
        m = 1 if last and not base.last_move_is_random else candidates
        prediction = base.predict(x, i)
        x = base.move(x.repeat_interleave(m, 0), prediction.repeat_interleave(m, 0), i)
        value = base.counted.reward(base.samples(x) if last else base.clean(x, base.predict(x, i + 1))).view(n, m)
        child = value.argmax(1)
        if alpha > 0:
            log_w = log_w + (value / alpha).logsumexp(1) - math.log(m) - before
            child = torch.multinomial((value / alpha).softmax(1), 1)[:, 0]
        x, value = x.view(n, m, *x.shape[1:])[row, child], value[row, child]
        if alpha > 0:
            log_w, x, value = resampled(log_w, x, value)
            before = value / alpha
    return Weighted(value, log_w)


def fk(base: Base, n: int, alpha: float) -> Weighted:
    """Difference potential; the network is asked twice about every state."""
    x, log_w, before = base.start(n), torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for i in range(base.steps):
        x = base.move(x, base.predict(x, i), i)
        last = i + 1 == base.steps
        value = base.counted.reward(base.samples(x) if last else base.clean(x, base.predict(x, i + 1)))
        log_w, x, before = resampled(log_w + (value - before) / alpha, x, value)
    return Weighted(before, log_w)


def fk_lagged(base: Base, n: int, alpha: float) -> Weighted:
    """The same with the value of x_t as that of x_s; the samples themselves are scored at the end."""
    x, log_w, before = base.start(n), torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for i in range(base.steps):
        prediction = base.predict(x, i)
        value = base.counted.reward(base.clean(x, prediction))
        x = base.move(x, prediction, i)
        log_w, x, before = resampled(log_w + (value - before) / alpha, x, value)
    value = base.counted.reward(base.samples(x))
    log_w, value = resampled(log_w + (value - before) / alpha, value)
    return Weighted(value, log_w)


def unguided(base: Base, n: int) -> Tensor:
    """Rewards without steering."""
    torch.manual_seed(0)
    x = base.start(n)
    for i in range(base.steps):
        x = base.move(x, base.predict(x, i), i)
    return base.counted.reward(base.samples(x))


# cases -------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One method on one base."""

    method: str
    base: Base
    particles: int
    alpha: float
    candidates: int | None
    plain: Callable[[], Weighted]
    guides: Sequence[gk.Guide]

    def run(self, side: str, seed: int) -> Weighted:
        if side == "plain":
            torch.manual_seed(seed)
            with torch.no_grad():
                return self.plain()
        found = gk.sample(self.base.model(), self.particles, steps=self.base.steps, guides=self.guides, seed=seed)
        assert found.rewards is not None
        return Weighted(found.rewards, found.log_weights)

    def described(self) -> dict[str, Any]:
        """What it is, and what one run of each side asks of network and reward."""
        row: dict[str, Any] = {k: getattr(self, k) for k in ("method", "particles", "alpha", "candidates")}
        row["steps"] = self.base.steps
        names = ("network_rows", "network_calls", "reward_calls")
        for side in ("guidekit", "plain"):
            for name in names:
                setattr(self.base.counted, name, 0)
            self.run(side, 0)
            row[side] = {name: getattr(self.base.counted, name) for name in names}
        row["ratio"] = {name: row["guidekit"][name] / row["plain"][name] for name in names}
        return row


def svdd_case(base: Base, n: int, alpha: float, m: int) -> Case:
    guides = [gk.SVDD(base.counted.reward, alpha, m)] + ([gk.Resample()] if alpha else [])
    name = f"SVDD, {'nested, resampled' if alpha else 'greedy'}, M = {m}"
    return Case(name, base, n, alpha, m, lambda: svdd(base, n, alpha, m), guides)


def fk_case(base: Base, n: int, alpha: float, lagged: bool = False) -> Case:
    plain, name = (fk_lagged, "FK steering, beside the lagged loop") if lagged else (fk, "FK steering")
    return Case(name, base, n, alpha, None, lambda: plain(base, n, alpha), [gk.FKSteering(base.counted.reward, alpha)])


class ConvNet(nn.Module):
    """The denoiser of images of independent N(0, 1/4) pixels, and an untrained residual network on top."""

    def __init__(self, channels: int = 32, blocks: int = 3):
        super().__init__()
        self.first, self.last = nn.Conv2d(4, channels, 3, padding=1), nn.Conv2d(channels, 3, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        h = self.first(torch.cat([x, t.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1))
        for block in self.blocks:
            h = h + block(nn.functional.silu(h))
        alpha, sigma = (f(math.pi / 2 * t).view(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
        var = alpha.square() / 4 + sigma.square()
        return alpha / 4 / var * x + sigma / 4 / var.sqrt() * torch.tanh(self.last(nn.functional.silu(h)))


class TokenNet(nn.Module):
    """An untrained transformer; it returns logits."""

    def __init__(self, length: int, width: int = 96):
        super().__init__()
        self.token, self.place = nn.Embedding(MASK + 1, width), nn.Parameter(torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 3), nn.Linear(width, len(LETTERS))

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return 2 * self.head(self.body(self.token(x) + self.place))


def mixture_base(steps: int) -> Images:
    """A mixture of three Gaussians on the line, r(x) = x."""
    mixture = gk.analytic.GaussianMixture([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])
    return Images(Counted(lambda x, t, cond: mixture(x, float(t[0]), None), lambda x: x[:, 0]), (1,), steps)


def image_base(steps: int) -> Images:
    """16 x 16 images; the reward is how much brighter the left half is than the right one."""
    torch.manual_seed(0)
    net = ConvNet().eval().requires_grad_(False)
    return Images(Counted(net, lambda x: (x[..., :8] - x[..., 8:]).mean((1, 2, 3))), (3, 16, 16), steps)


def string_base(steps: int, length: int = 24) -> Strings:
    """DNA of 24 letters; the reward is the share of G and C, and half a point for every CG."""
    torch.manual_seed(0)
    net = TokenNet(length).eval().requires_grad_(False)
    score = lambda strings: [(s.count("G") + s.count("C")) / len(s) + s.count("CG") / 2 for s in strings]  # noqa: E731
    return Strings(Counted(net, score), length, steps)


def law_cases(n: int = 500, steps: int = 50) -> list[Case]:
    base = mixture_base(steps)
    return [svdd_case(base, n, 0.5, 4), svdd_case(base, n, 0.0, 4), fk_case(base, n, 0.5), fk_case(base, n, 0.5, True)]


def network_cases(base: Base, n: int = 16) -> list[Case]:
    """At the temperature that is the standard deviation of the unguided reward."""
    alpha = float(unguided(base, 256).std())
    cases = [svdd_case(base, n, alpha, 4), svdd_case(base, n, 0.0, 4), svdd_case(base, n, 0.0, 10)]
    return [*cases, fk_case(base, 4 * n, alpha), fk_case(base, 4 * n, alpha, True)]


# measuring ---------------------------------------------------------------------------------------------------------


def by_weighing(base: Base, alpha: float, n: int = 1_000_000) -> dict[str, float]:
    """Mean reward and log Z of the chain's own tilted law, from n unguided samples, and the error of log Z."""
    run = Weighted(rewards := unguided(base, n), rewards / alpha)
    w = run.log_w.softmax(0) * n
    return {"mean": run.mean, "sd": run.sd, "log_z": run.log_z, "log_z_error": float(w.std()) / n**0.5, "samples": n}


def laws(runs: dict[str, list[Weighted]], weighted: bool) -> dict[str, Any]:
    """Means over independent runs with standard errors, and how many of these the two sides are apart."""
    found: dict[str, Any] = {"runs": len(runs["plain"])}
    for name in ("mean", "sd", "log_z") if weighted else ("mean", "sd"):
        row: dict[str, Any] = {}
        for side, some in runs.items():
            values = [getattr(run, name) for run in some]
            row[side] = {"mean": statistics.mean(values), "error": statistics.stdev(values) / len(values) ** 0.5}
        apart = row["guidekit"]["mean"] - row["plain"]["mean"]
        row["difference_in_errors"] = apart / math.hypot(row["guidekit"]["error"], row["plain"]["error"])
        found[name] = row
    return found


def compare(case: Case, count: int) -> dict[str, Any]:
    """The laws, over many runs; nothing is timed."""
    runs = {side: [case.run(side, seed) for seed in range(count)] for side in ("guidekit", "plain")}
    return case.described() | {"law": laws(runs, case.alpha > 0)}


def timed(case: Case, pairs: int) -> dict[str, Any]:
    """Pairs of runs in alternating order, after one that is thrown away."""
    clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
    took: dict[str, dict[str, list[float]]] = {name: {"guidekit": [], "plain": []} for name in clocks}
    runs: dict[str, list[Weighted]] = {"guidekit": [], "plain": []}
    row = case.described()
    for pair in range(pairs + 1):
        for side in ("guidekit", "plain") if pair % 2 else ("plain", "guidekit"):
            start = {name: clock() for name, clock in clocks.items()}
            run = case.run(side, pair)
            if pair > 0:
                runs[side].append(run)
                for name, clock in clocks.items():
                    took[name][side].append(clock() - start[name])
    for name, sides in took.items():
        row["guidekit"][name], row["plain"][name] = (statistics.median(sides[side]) for side in ("guidekit", "plain"))
        ratios = [ours / theirs for ours, theirs in zip(sides["guidekit"], sides["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        row["ratio"] |= {name: middle, f"{name}_quartiles": [low, high]}
    return row | {"pairs": pairs, "law": laws(runs, case.alpha > 0)}


def network_ms(base: Base, rows: int) -> float:
    """Median time of a forward."""
    x, took = base.start(rows), []
    for _ in range(20):
        start = time.perf_counter()
        base.predict(x, base.steps // 2)
        took.append(1e3 * (time.perf_counter() - start))
    return statistics.median(took[3:])


def measure(pairs: int, runs: int) -> dict[str, Any]:
    started = time.perf_counter()
    torch.set_num_threads(1)  # two that wait for each other, and for other work, say nothing about either side
    found: dict[str, Any] = {
        "command": f"python benchmarks/steering.py --pairs {pairs} --runs {runs}",
        "machine": {"cores": os.cpu_count(), "threads": 1, "accelerator": None},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "guidekit": gk.__version__},
        "ratios": f"guidekit over plain; of times the median of {pairs} pairs of runs that alternate, while other work "
        "may share the machine",
        "laws": "means over runs and their standard errors; of images and strings the runs are the timed ones",
        "mixture": {
            "chain": by_weighing(mixture_base(50), 0.5),
            "methods": [compare(case, runs) for case in law_cases()],
        },
    }
    for name, base in {"images": image_base(20), "strings": string_base(20)}.items():
        methods = [timed(case, pairs) for case in network_cases(base)]
        found[name] = {"ms_of_a_forward_of_64_rows": network_ms(base, 64), "methods": methods}
    return found | {"seconds_in_all": time.perf_counter() - started}


def cost_table(found: dict[str, Any]) -> list[list[str]]:
    """Ratios of rows, calls and times, guidekit over plain."""
    table = [
        ["base", "method", "N", "rows", "network calls", "reward calls", "time", "its quartiles", "processor time"]
    ]
    for kind in ("images", "strings"):
        for row in found[kind]["methods"]:
            ratio = row["ratio"]
            counts = [f"{ratio[k]:.2f}" for k in ("network_rows", "network_calls", "reward_calls")]
            low, high = ratio["seconds_quartiles"]
            times = [f"{ratio['seconds']:.2f}", f"{low:.2f} to {high:.2f}", f"{ratio['cpu_seconds']:.2f}"]
            table.append([kind, row["method"], str(row["particles"]), *counts, *times])
    return table


def law_table(found: dict[str, Any]) -> list[list[str]]:
    """Means over runs with their standard errors."""

    def shown(law: dict[str, Any], side: str) -> list[str]:
        some = [law[k][side] for k in ("mean", "sd", "log_z") if k in law]
        return [f"{v['mean']:.3f} ± {v['error']:.3f}" for v in some] + [""] * (3 - len(some))

    table = [["mixture", "by", "mean", "sd", "log Z"]]
    for row in found["mixture"]["methods"]:
        sides = ("plain",) if "lagged" in row["method"] else ("guidekit", "plain")  # guidekit's are the line before
        table += [[row["method"], side, *shown(row["law"], side)] for side in sides]
    chain = found["mixture"]["chain"]
    exact = [f"{chain['mean']:.3f}", f"{chain['sd']:.3f}", f"{chain['log_z']:.3f} ± {chain['log_z_error']:.3f}"]
    return [*table, ["exp(r/alpha) of the same chain", "weighing", *exact]]


def text(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/steering.json"))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()
    found = measure(options.pairs, options.runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(text(law_table(found)), text(cost_table(found)), sep="\n\n")


if __name__ == "__main__":
    main()
