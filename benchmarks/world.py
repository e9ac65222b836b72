"""One population over several processes: throughput, what is sent, and what that makes of 64 ranks on paper.

    python -m benchmarks.world

Runs FK steering of a network on single-threaded processes, on one, on two, and on two that share nothing with half of
the particles each, in turn, and counts what the two send. What two that share nothing do is the most that the machine
allows. A step of K ranks is predicted as

    T_K = c n/K + s + m l log2(K) + (b n + h v_K n/K)/B

with c the seconds of the network and the moves of one particle, s those of a selection, which every rank makes for all
n, m collective calls of latency l, b bytes of every particle to every rank, and h bytes of a particle that moves. c and
s are measured on one process, l and m on two. v_K, the share of particles that change their rank, follows from the
lineage of the run for any K. B is assumed: 10 Gbit/s. The table is written into docs/scaling.md as well.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[reportPrivateImportUsage]
from torch.multiprocessing import spawn  # type: ignore[reportPrivateImportUsage]

import guidekit as gk

RESULTS = Path(__file__).parent / "results" / "world.json"
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
N, STEPS, SIDE, REPEATS = 4096, 20, 256, 3
RANKS, ISLANDS = (2, 4, 8, 64), 64
BANDWIDTH = 1.25e9  # bytes a second, 10 Gbit/s: assumed


def model(width: int = 768) -> gk.GaussianModel:
    torch.manual_seed(0)
    sizes = [SIDE, *[width] * 7, SIDE]
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    parts = [part for layer in layers for part in (layer, torch.nn.SiLU())][:-1]
    net = torch.nn.Sequential(*parts).requires_grad_(False)
    return gk.GaussianModel(lambda x, t, cond: net(x), shape=(SIDE,))


def guides() -> list[gk.Guide]:
    return [gk.FKSteering(lambda x: x[:, :8].sum(1).tanh(), 0.5, ess=1.0)]  # it selects at every step


def steered(base: gk.Model, n: int, **options: Any) -> gk.Result:
    return gk.sample(base, n, steps=STEPS, guides=guides(), batch_size=256, **options)


# measured -----------------------------------------------------------------------------------------------------------


def rank(number: int, size: int, folder: str, n: int, apart: bool) -> None:
    """One of `size` processes; the first one writes the seconds of a run, and what it receives in a step."""
    torch.set_num_threads(1)
    base = model()
    if size > 1:
        dist.init_process_group("gloo", store=FileStore(f"{folder}/store", size), rank=number, world_size=size)
    world = None if apart else "auto"
    steered(base, 256, world=world)
    if size > 1:
        dist.barrier()
    counts, began, spent = counted() if size > 1 else {}, time.perf_counter(), time.process_time()
    steered(base, n, world=world)
    found = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - spent}
    found |= {k: v / STEPS for k, v in counts.items()}
    if size > 1:
        found["latency"] = latency()
    if number == 0:
        Path(folder, "found").write_text(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()


def counted() -> dict[str, float]:
    """Calls and bytes that this rank receives from now on."""
    counts = {"calls": 0.0, "gathered": 0.0, "moved": 0.0}

    def counting(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def called(into: Any, *args: Any, **options: Any) -> Any:
            counts["calls"] += 1
            counts[name] += sum(v.nbytes for v in (into if isinstance(into, list) else [into]))
            return call(into, *args, **options)

        return called

    dist.all_gather = counting(dist.all_gather, "gathered")
    dist.all_to_all_single = counting(dist.all_to_all_single, "moved")
    return counts


def latency(calls: int = 200) -> float:
    """Seconds of a collective call that sends almost nothing."""
    parts = [torch.zeros(1) for _ in range(dist.get_world_size())]
    began = time.perf_counter()
    for _ in range(calls):
        dist.all_gather(parts, torch.zeros(1))
    return (time.perf_counter() - began) / calls


def measured(size: int, n: int, apart: bool = False) -> dict[str, float]:
    """So many processes with one population of n, or each with its own."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank, (size, folder, n, apart), nprocs=size)
        return json.loads(Path(folder, "found").read_text())


def selection(base: gk.Model, n: int) -> float:
    """Seconds of the selection of n particles in a step."""
    run = gk.Run(base, n, steps=STEPS, guides=guides())
    population, spent = run.born(), []
    memo = torch.zeros(n, dtype=torch.float64)
    for index in range(1, STEPS + 1):
        log_w = torch.linspace(-1, 1, n, dtype=torch.float64)
        given = gk.Population(**vars(population) | {"log_w": log_w, "memos": (memo,)})
        began = time.perf_counter()
        run.select(given, index)
        spent.append(time.perf_counter() - began)
    return sorted(spent)[len(spent) // 2]


# on paper -----------------------------------------------------------------------------------------------------------


def moved(ancestors: torch.Tensor, size: int) -> float:
    """The share of particles that come from another rank, of all and all steps."""
    n = ancestors.shape[1]
    owner = torch.bucketize(torch.arange(n), torch.tensor([n * (r + 1) // size for r in range(size)]), right=True)
    return float((owner[ancestors] != owner).double().mean())


def predicted(size: int, share: float, one: dict[str, float], two: dict[str, float], n: int) -> dict[str, float]:
    """A step of so many ranks, by the formula above; `heavy` are the bytes of a particle that moves."""
    light = two["gathered"] / n
    numbers, states = light * n, one["heavy"] * share * n / size
    waiting = two["calls"] * two["latency"] * math.log2(size)
    step = one["each"] * n / size + one["selection"] + waiting + (numbers + states) / BANDWIDTH
    return {
        "share moved": round(share, 4), "kB numbers": round(numbers / 1e3, 1), "kB states": round(states / 1e3, 1),
        "seconds": round(step * STEPS, 3), "speed-up": round(one["seconds"] / (step * STEPS), 2),
    }  # fmt: skip


def main(n: int = N) -> None:
    times: dict[str, list[dict[str, float]]] = {"1": [], "2": [], "2 apart": []}
    for _ in range(REPEATS):  # in turn, so that all meet the same machine
        times["1"].append(measured(1, n))
        times["2"].append(measured(2, n))
        times["2 apart"].append(measured(2, n // 2, apart=True))
    torch.set_num_threads(1)
    base = model()
    one, two, both = (min(found, key=lambda row: row["seconds"]) for found in times.values())
    plain, apart = (steered(base, n, islands=i) for i in (None, gk.Islands(ISLANDS, every=5)))
    one["selection"] = selection(base, n)
    one["each"] = (one["seconds"] / STEPS - one["selection"]) / n
    one["heavy"] = 2.0 * 4 * SIDE  # x and its prediction
    paper = {
        name: {str(size): predicted(size, moved(run.ancestors, size), one, two, n) for size in RANKS}
        for name, run in (("plain", plain), ("islands", apart))
    }
    found = {
        "n": n, "steps": STEPS, "cores": os.cpu_count(), "torch": torch.__version__, "bandwidth": BANDWIDTH,
        "seconds": {name: [round(row["seconds"], 3) for row in rows] for name, rows in times.items()},
        "cpu": {name: [round(row["cpu"], 3) for row in rows] for name, rows in times.items()},
        "speed-up": round(one["seconds"] / two["seconds"], 3),
        "speed-up of two that share nothing": round(one["seconds"] / both["seconds"], 3),
        "one": one, "two": two, "paper": paper,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), table(found)), encoding="utf-8")
    print(table(found))


def table(found: dict[str, Any]) -> str:
    """The lines of docs/scaling.md."""
    rows = [
        "| processes | speed-up, measured | by the formula | kB received a step | of it states | "
        f"of it states, {ISLANDS} islands |"
    ]
    rows.append("|---|---|---|---|---|---|")
    for size, row in found["paper"]["plain"].items():
        seen = f"{found['speed-up']:.2f}" if size == "2" else ""
        islands, total = found["paper"]["islands"][size], row["kB numbers"] + row["kB states"]
        rows.append(
            f"| {size} | {seen} | {row['speed-up']:.1f} | {total:.0f} | {row['kB states']:.1f} | "
            f"{islands['kB states']:.1f} |"
        )
    one, two = found["one"], found["two"]
    rows += [
        "",
        f"Measured: c = {one['each'] * 1e6:.0f} microseconds, s = {one['selection'] * 1e3:.2f} ms, m = "
        f"{two['calls']:.1f} calls, l = {two['latency'] * 1e3:.2f} ms,",
        f"b = {two['gathered'] / found['n']:.0f} bytes, of which four fifths are the result at the end, spread over "
        f"{found['steps']} steps, h = {one['heavy']:.0f} bytes.",
    ]
    return "\n".join(rows)


def filled(page: str, lines: str) -> str:
    """The page with these lines between its marks."""
    return re.sub(r"(?<=<!-- world -->\n).*?(?=<!-- end of world -->)", lambda _: f"{lines}\n", page, flags=re.DOTALL)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
