"""What the engine costs beside the network: time over a hand-written loop, and memory over the particles' own state.

    python benchmarks/overhead.py [--out benchmarks/results/overhead.json] [--beside ANOTHER_CHECKOUT]

Times are ratios within one run: the two loops alternate, and the median of the pairwise ratios is reported. The
hand-written loop is ancestral sampling with torch.randn, as short as it can be written.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guidekit as gk

SHAPE = (3, 64, 64)


def hand_written(net, noise: Tensor, moves) -> Tensor:
    """DDPM with a network that predicts x_0."""
    x = noise
    for move in moves:
        t = torch.full((len(x),), move.t)
        d = net(x, t, None)
        x = move.a * x + move.b[0] * d
        if move.c > 0:
            x = x + move.c * torch.randn(x.shape)
    return x


class Sleepy:
    """A network that takes a given time."""

    def __init__(self, milliseconds: float):
        self.seconds = milliseconds / 1000

    def __call__(self, x: Tensor, t: Tensor, cond) -> Tensor:
        end = time.perf_counter() + self.seconds
        out = x * 0.5
        while time.perf_counter() < end:
            pass
        return out


def ratio(net, rows: int, steps: int, repeats: int) -> dict[str, float]:
    """Median over pairs of (gk.sample / hand-written loop)."""
    model = gk.GaussianModel(net, SHAPE, predicts="clean")
    moves = model.process.moves(steps, None)
    pairs = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            hand_written(net, torch.randn(rows, *SHAPE), moves)
            middle = time.perf_counter()
            gk.sample(model, rows, steps=steps)
            pairs.append((time.perf_counter() - middle, middle - start))
    ratios = [ours / theirs for ours, theirs in pairs[1:]]
    return {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "hand_written_ms_per_step": 1e3 * statistics.median(t for _, t in pairs[1:]) / steps,
    }


def peak_memory(rows: int, batch_size: int | None) -> float:
    """Megabytes that a run adds at its peak, in a process of its own."""
    code = f"from benchmarks.overhead import memory_run; memory_run({rows}, {batch_size})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, check=True
    )
    return float(done.stdout)


def memory_run(rows: int, batch_size: int | None) -> None:
    """A network with wide activations (64 channels) on 16 x 16 images, CFG and FK steering."""
    wide = torch.nn.Conv2d(3, 256, 1)
    narrow = torch.nn.Conv2d(256, 3, 1)
    model = gk.GaussianModel(lambda x, t, c: narrow(wide(x)), (3, 16, 16), predicts="clean", null=torch.tensor(0))
    guides = [gk.CFG(2.0), gk.FKSteering(lambda x: x.mean((1, 2, 3)), alpha=1.0)]
    gk.sample(model, 4, steps=2, guides=guides, cond=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gk.sample(model, rows, steps=3, guides=guides, cond=1, batch_size=batch_size)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


CASES: dict[str, tuple[Any, int]] = {
    "trivial network, 64x3x64x64": (lambda x, t, c: x * 0.5, 64),
    "network of 5 ms, 64x3x64x64": (Sleepy(5), 64),
    "network of 5 ms, 4x3x64x64": (Sleepy(5), 4),
    "network of 20 ms, 4x3x64x64": (Sleepy(20), 4),
}


MEASURE = """
import json, sys, types
bench = types.ModuleType("bench")
bench.__file__ = sys.argv[1]
exec(open(sys.argv[1], encoding="utf-8").read(), bench.__dict__)
ratios = {name: bench.ratio(*case, 50, int(sys.argv[2]))["ratio"] for name, case in bench.CASES.items()}
print(json.dumps(ratios))
"""


def beside(other: Path, rounds: int, repeats: int) -> dict[str, dict[str, float]]:
    """Ratios of this checkout and another, by this script, in processes that take turns; medians over the rounds."""
    found: dict[str, dict[str, list[float]]] = {name: {"this": [], "other": []} for name in CASES}
    for _ in range(rounds):
        for label, folder in (("this", Path(__file__).parent.parent), ("other", other)):
            command = [sys.executable, "-c", MEASURE, str(Path(__file__).resolve()), str(repeats)]
            done = subprocess.run(command, cwd=folder, capture_output=True, check=True, text=True)
            for name, value in json.loads(done.stdout).items():
                found[name][label].append(value)
    return {name: {label: statistics.median(v) for label, v in sides.items()} for name, sides in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--beside", type=Path, help="another checkout of guidekit, measured in turn with this one")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **{name: ratio(*case, 50, options.repeats) for name, case in CASES.items()},
    }
    state = 10_000 * 3 * 16 * 16 * 4 / 2**20
    found["memory"] = {
        "state of 10,000 particles (x or prediction), MB": state,
        "10,000 particles, batch_size=256, MB": peak_memory(10_000, 256),
        "10,000 particles at once, MB": peak_memory(10_000, None),
        "256 particles at once, MB": peak_memory(256, None),
    }
    if options.beside is not None:
        commit = subprocess.run(
            ["git", "-C", options.beside, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        found["this checkout and another, in turn"] = beside(options.beside, 5, options.repeats)
        found["the other"] = commit.stdout.strip()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
