"""What sampling of tokens costs beside the network: time over a plain loop, memory, and time beside an earlier commit.

    python benchmarks/token_speed.py [--parts loops dna memory molecules] [--molecules 64] [--candidates 0 10]

writes benchmarks/results/token_speed.json, each part as soon as it is there. Times are processor time on one thread,
and the least of several; what is compared takes turns. The plain loop is ancestral sampling in float64 with torch's
generator, as short as it can be written: it draws the next state of every position at every step, and keeps that of the
masked ones. The bare loop is what would be left if nothing were left to decide: it is told beforehand which positions
each step reveals and their Gumbel numbers, and only asks the network and draws the letters. The network of all is a
table, which costs nothing.

The earlier commit is the last one before tokens were evaluated no more than is needed. It is checked out into a
temporary worktree, which needs git and a clone with its history.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guidekit as gk

OUT = Path(__file__).parent / "results" / "token_speed.json"
ROOT, BEFORE = Path(__file__).resolve().parent.parent, "91a6854"
ROWS, LENGTH = 32, 200
STEPS = (50, 200, 1000)


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


def bare(net: Table, V: int, steps: int) -> Callable[[], Tensor]:
    """A loop of those operations alone without which no step can be: rows, network, normalising, letters, states."""
    generator = torch.Generator().manual_seed(0)
    when = torch.randint(0, steps, (ROWS * LENGTH,), generator=generator)
    gumbel = -(-torch.rand(ROWS * LENGTH, V, generator=generator, dtype=torch.float64).log()).log()
    cells = when.argsort().split(when.bincount(minlength=steps).tolist())
    shown = []
    for k, cell in enumerate(cells):
        rows, which = (cell // LENGTH).unique(return_inverse=True)
        shown.append((cell, rows, which, cell % LENGTH, gumbel[cell], torch.full((len(rows),), 1 - k / steps)))

    def loop() -> Tensor:
        x = torch.full((ROWS, LENGTH), V)
        for cell, rows, which, place, g, t in shown:
            if t.numel():
                logits = net(x.index_select(0, rows), t, None)[which, place]
                log_p = (logits - logits.logsumexp(-1, keepdim=True)).double()
                x.view(-1).index_copy_(0, cell, (log_p + g).argmax(-1))
        return x

    return loop


def ratio(V: int, steps: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a step of the loops, and what ours and the bare one take of the time of the plain one."""
    net = Table(V)
    model = gk.MaskedModel(net, V, LENGTH)
    gk.sample(model, ROWS, steps=3)
    loops = [lambda: gk.sample(model, ROWS, steps=steps), bare(net, V, steps), lambda: plain(net, V, steps)]
    turns = [[seconds(loop) for loop in loops] for _ in range(repeats)]
    ours, least, theirs = (1e3 * min(times) / steps for times in zip(*turns, strict=True))
    found = {"ours, ms": ours, "bare, ms": least, "plain, ms": theirs, "ratio": ours / theirs, "bare": least / theirs}
    return {name: round(v, 3) for name, v in found.items()}


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


@contextmanager
def before() -> Iterator[Path]:
    """The earlier commit, checked out for a while."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "before"
        git("worktree", "add", "--detach", str(other), BEFORE)
        try:
            yield other
        finally:
            git("worktree", "remove", "--force", str(other))


def git(*words: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True)


def beside(n: int, candidates: list[int], rounds: int) -> dict[str, Any]:
    """Molecules of this checkout and of the earlier commit, in turn: the least time of each."""
    found: dict[str, Any] = {"the other": BEFORE}
    with before() as other:
        for k in candidates:
            name = f"{n} molecules" + (f", SVDD of {k} candidates" if k else "")
            turns = [[elsewhere(folder, f"molecules({n}, {k})") for folder in (ROOT, other)] for _ in range(rounds)]
            ours, theirs = (min(side, key=lambda run: run["seconds"]) for side in zip(*turns, strict=True))
            found[name] = {"ours": ours, "other": theirs, "times faster": round(theirs["seconds"] / ours["seconds"], 2)}
    return found


def loops(letters: list[int], repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    cases = [(V, steps) for V in letters for steps in STEPS]
    return {f"V = {V}, {steps} steps": ratio(V, steps, repeats if steps < 1000 else 2) for V, steps in cases}


def memories() -> dict[str, float]:
    calls = {"the packages alone": "1, None", "batch_size=2048": "100_000, 2048", "at once": "100_000, None"}
    return {name: round(elsewhere(ROOT, f"memory({call})"), 2) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--letters", nargs="+", type=int, default=[4, 20, 59], help="of the loops; others stay")
    parser.add_argument("--molecules", type=int, default=64, help="how many, by each commit")
    parser.add_argument("--candidates", nargs="+", type=int, default=[0, 10], help="of SVDD; 0 is without it")
    parser.add_argument("--rounds", type=int, default=1, help="how often the two commits take turns")
    parser.add_argument("--repeats", type=int, default=3, help="how often the loops take turns")
    options = parser.parse_args()
    for part in options.parts:
        name, make = PARTS[part]
        made = make(options)
        found: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
        found[name] = found.get(name, {}) | made
        OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({name: found[name]}, indent=1), flush=True)


PARTS: dict[str, tuple[str, Callable[[argparse.Namespace], Any]]] = {
    "loops": ("a step of 32 x 200 tokens", lambda options: loops(options.letters, options.repeats)),
    "dna": ("network rows of a DNA sequence", lambda options: {f"{n} steps": dna(n) for n in STEPS}),
    "memory": ("100,000 particles of 200 letters, GiB", lambda options: memories()),
    "molecules": ("molecules", lambda options: beside(options.molecules, options.candidates, options.rounds)),
}


if __name__ == "__main__":
    main()
