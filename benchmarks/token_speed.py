"""What sampling of tokens costs beside the network: time over a plain loop, memory, and time beside another checkout.

    python benchmarks/token_speed.py [--beside ANOTHER_CHECKOUT]

writes benchmarks/results/token_speed.json. Times are processor time on one thread, and the least of several; what is
compared takes turns. The plain loop is ancestral sampling in float64 with torch's generator, as short as it can be
written: it draws the next state of every position at every step, and keeps that of the masked ones. The network of both
is a table, which costs nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guidekit as gk

OUT = Path(__file__).parent / "results" / "token_speed.json"
ROWS, LENGTH = 32, 200
CASES = [(V, steps) for V in (4, 20, 59) for steps in (50, 200, 1000)]


class Table:
    """A network that says the same of every state."""

    def __init__(self, V: int):
        self.logits = torch.randn(LENGTH, V, generator=torch.Generator().manual_seed(0))

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.logits.expand(len(x), -1, -1)


def plain(net: Table, V: int, steps: int) -> Tensor:
    """The loop that one would write."""
    generator = torch.Generator().manual_seed(0)
    x = torch.full((ROWS, LENGTH), V)
    for t, s in pairwise(1 - k / steps for k in range(steps + 1)):
        p = net(x, torch.full((ROWS,), t), None).double().softmax(-1)
        p = torch.cat([(1 - s / t) * p, torch.full((ROWS, LENGTH, 1), s / t, dtype=torch.float64)], -1)
        gumbel = -(-torch.rand(p.shape, generator=generator, dtype=torch.float64).log()).log()
        x = torch.where(x == V, (p.log() + gumbel).argmax(-1), x)
    return x


def seconds(run: Callable[[], Any]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def ratio(V: int, steps: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a step of both loops, and our time over that of the plain loop."""
    net = Table(V)
    model = gk.MaskedModel(net, V, LENGTH)
    gk.sample(model, ROWS, steps=3)
    turns = [
        (seconds(lambda: gk.sample(model, ROWS, steps=steps)), seconds(lambda: plain(net, V, steps)))
        for _ in range(repeats)
    ]
    ours, theirs = (1e3 * min(times) / steps for times in zip(*turns, strict=True))
    return {"ours, ms": round(ours, 3), "plain, ms": round(theirs, 3), "ratio": round(ours / theirs, 3)}


def molecules(n: int, candidates: int, steps: int = 50) -> dict[str, float]:
    """Seconds and network rows of n molecules, with that many candidates of SVDD, or without it."""
    from rewards.molecules import QED

    model = gk.zoo.load("molecules")
    guides = [gk.SVDD(QED(), 0.1, candidates)] if candidates else []
    gk.sample(model, 2, steps=2, guides=guides)
    began = time.process_time()
    run = gk.sample(model, n, steps=steps, guides=guides, seed=1)
    return {"seconds": round(time.process_time() - began, 2), "rows": run.cost.network_rows}


def dna(steps: int, n: int = 8) -> int:
    """Network rows of one sample of the bundled DNA model, on average."""
    return round(gk.sample(gk.zoo.load("dna"), n, steps=steps, seed=1).cost.network_rows / n)


def memory(particles: int, batch_size: int | None) -> float:
    """GiB at the peak of a process that samples so many particles in the form of the bundled DNA model."""
    gk.sample(gk.MaskedModel(Table(4), 4, LENGTH), particles, steps=2, batch_size=batch_size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def elsewhere(folder: Path, call: str) -> Any:
    """What a function of this file returns in a process of its own, with the packages of this folder."""
    script = (
        f"import json, runpy, sys, torch; sys.path.insert(0, {str(folder)!r}); torch.set_num_threads(1); "
        f"print(json.dumps(eval('{call}', runpy.run_path({str(Path(__file__).resolve())!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def beside(other: Path, rounds: int) -> dict[str, Any]:
    """Molecules of this checkout and of another, in turn: the least time of each."""
    found: dict[str, Any] = {"the other": commit(other)}
    for name, call in {"64 molecules": "64, 0", "64 molecules, SVDD of 10 candidates": "64, 10"}.items():
        turns = [
            [elsewhere(folder, f"molecules({call})") for folder in (Path(__file__).parent.parent, other)]
            for _ in range(rounds)
        ]
        ours, theirs = (min(side, key=lambda run: run["seconds"]) for side in zip(*turns, strict=True))
        found[name] = {"ours": ours, "other": theirs, "times faster": round(theirs["seconds"] / ours["seconds"], 2)}
    return found


def commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def loops(repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {f"V = {V}, {steps} steps": ratio(V, steps, repeats if steps < 1000 else 2) for V, steps in CASES}


def memories() -> dict[str, float]:
    here = Path(__file__).parent.parent
    calls = {"the packages alone": "1, None", "batch_size=2048": "100_000, 2048", "at once": "100_000, None"}
    return {name: round(elsewhere(here, f"memory({call})"), 2) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, help="another checkout of guidekit, measured in turn with this one")
    parser.add_argument("--rounds", type=int, default=1, help="how often the two checkouts take turns")
    parser.add_argument("--repeats", type=int, default=3, help="how often the two loops take turns")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    parts: dict[str, Callable[[], Any]] = {
        "a step of 32 x 200 tokens": lambda: loops(options.repeats),
        "100,000 particles of 200 letters, GiB": memories,
        "network rows of a DNA sequence": lambda: {f"{steps} steps": dna(steps) for steps in (50, 200, 1000)},
    }
    if options.beside is not None:
        parts = {"molecules": lambda: beside(options.beside.resolve(), options.rounds)} | parts
    for name, part in parts.items():
        found[name] = part()
        OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({name: found[name]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
