"""Memory of large populations: peak resident size over that of one micro-batch, each case in a process of its own.

    python -m benchmarks.memory

`bytes a particle` is what the peak grows by from one micro-batch to all n particles, by particle: states, predictions,
noise and what selections copy. `state` is x and its prediction alone. The table is written into docs/scaling.md as
well.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import guidekit as gk
from rewards.dna import GC

RESULTS = Path(__file__).parent / "results" / "memory.json"
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"


def dna() -> tuple[Callable[[int], gk.Result], int, int]:
    trained = gk.zoo.load("dna")
    model = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 4), 4, trained.shape[0], decode=trained.decode)
    steering = gk.FKSteering(GC(), 0.1, ess=1.0)
    return lambda n: gk.sample(model, n, steps=2, guides=[steering], batch_size=500), 100_000, 500


def mixture() -> tuple[Callable[[int], gk.Result], int, int]:
    torch.manual_seed(0)
    model = gk.analytic.GaussianMixture(torch.full((8,), 0.125), torch.randn(8, 64), torch.full((8,), 0.5))
    steering = gk.FKSteering(lambda x: x[:, 0], 1.0, ess=1.0)
    return lambda n: gk.sample(model, n, steps=5, guides=[steering], batch_size=1024), 65_536, 1024


def gradient() -> tuple[Callable[[int], gk.Result], int, int]:
    """TDS of a network whose graph holds 64 MB a particle."""
    torch.manual_seed(0)
    layers = [part for _ in range(16) for part in (torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.SiLU())]
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), *layers, torch.nn.Conv2d(16, 3, 3, padding=1))
    model = gk.GaussianModel(lambda x, t, cond: net(x), shape=(3, 176, 176), predicts="clean")
    steering = gk.TDS(lambda x: x.mean((1, 2, 3)), 1.0)
    return lambda n: gk.sample(model, n, steps=2, guides=[steering], batch_size=1), 16, 1


CASES: dict[str, tuple[str, Callable[[], tuple[Callable[[int], gk.Result], int, int]]]] = {
    "dna": ("the DNA model without its network, Feynman-Kac steering by GC", dna),
    "mixture": ("a mixture in 64 dimensions, Feynman-Kac steering", mixture),
    "gradient": ("TDS through a network with 64 MB of activations a particle", gradient),
}


def peak() -> int:
    """Bytes, the largest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(name: str) -> dict[str, Any]:
    """One case, in this process."""
    torch.set_num_threads(1)
    sampled, n, batch = CASES[name][1]()
    few = sampled(batch)
    one = peak()
    many = sampled(n)
    each = few.x[:1].numel() * (few.x.element_size() if few.x.is_floating_point() else 8)
    log_probs = 0 if few.x.is_floating_point() else few.x[:1].numel() * 4 * 4
    state = 2 * each if few.x.is_floating_point() else each + log_probs
    return {
        "n": n, "batch": batch, "peak": peak(), "peak of one batch": one, "bytes": round((peak() - one) / (n - batch)),
        "state": state, "rows": many.cost.network_rows,
    }  # fmt: skip


def main() -> None:
    found = {}
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.memory", name]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), table(found)), encoding="utf-8")
    print(table(found))


def table(found: dict[str, Any]) -> str:
    """The lines of docs/scaling.md."""
    rows = [
        "| population | particles | rows in a forward | peak of one batch | peak | bytes a particle | of it state |"
    ]
    rows.append("|---|---|---|---|---|---|---|")
    for name, row in found.items():
        one, most = (f"{row[k] / 1e9:.2f} GB" for k in ("peak of one batch", "peak"))
        rows.append(
            f"| {CASES[name][0]} | {row['n']:,} | {row['batch']} | {one} | {most} | {row['bytes']:,} | "
            f"{row['state']:,} |"
        )
    return "\n".join(rows)


def filled(page: str, lines: str) -> str:
    """The page with these lines between its marks."""
    return re.sub(r"(?<=<!-- memory -->\n).*?(?=<!-- end of memory -->)", lambda _: f"{lines}\n", page, flags=re.DOTALL)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measured(sys.argv[1])))
    else:
        main()
