"""What it saves to go on from kept keys and values: the bundled models that draw from left to right, with and without.

    python benchmarks/prefixes.py

writes benchmarks/results/prefixes.json. Times are processor time on one thread, and the least of several that take
turns; the samples are compared, and the memory of what is kept is in MB.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

import guidekit as gk
from guidekit.models.prefixes import Prefixes

OUT = Path(__file__).parent / "results" / "prefixes.json"
ROWS, REPEATS = 64, 2


def run(model: gk.Model, kept: Prefixes | None) -> tuple[float, gk.Result]:
    """Seconds of one run that begins with nothing kept, and its samples."""
    if kept is not None:
        kept.forget()
    began = time.process_time()
    found = gk.sample(model, ROWS, steps=model.shape[0], seed=1)
    return time.process_time() - began, found


def measured(name: str) -> dict[str, Any]:
    whole, short = (gk.zoo.load(name, ahead=ahead) for ahead in (True, False))
    kept = next(m for net in short.modules() for m in net.modules() if isinstance(m, Prefixes))
    turns = [(run(whole, None), run(short, kept)) for _ in range(REPEATS)]
    before, after = (min(turn[side][0] for turn in turns) for side in (0, 1))
    a, b = turns[0][0][1], turns[0][1][1]
    return {
        "seconds": round(before, 2),
        "seconds, ahead=False": round(after, 2),
        "times faster": round(before / after, 2),
        "network rows": a.cost.network_rows,
        "equal samples": int((a.x == b.x).all(1).sum()),
        "samples": ROWS,
        "kept, MB": round(kept.bytes / 1e6, 1),
    }


def main() -> None:
    torch.set_num_threads(1)
    found = {name: measured(name) for name in ("molecules", "druglike")}
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
