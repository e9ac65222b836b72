"""One population over several processes: throughput, and what is sent.

    python -m benchmarks.world

Runs FK steering of a network on single-threaded processes, on one and on two, in turn, and writes the ratio of
particles a second. What K ranks would send follows from the lineage of the same run, for any K: a particle that
descends from one of another rank is moved, and of every particle some numbers are sent to all.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[reportPrivateImportUsage]
from torch.multiprocessing import spawn  # type: ignore[reportPrivateImportUsage]

import guidekit as gk

RESULTS = Path(__file__).parent / "results" / "world.json"
N, STEPS, SIDE, REPEATS = 64, 20, 256, 3
LIGHT = 6 * 8 + 8  # bytes of every particle that go to all ranks: weights, address, lineage, reward, one memo


def model(width: int = 768) -> gk.GaussianModel:
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(SIDE, width),
        *(torch.nn.Linear(width, width) for _ in range(6)),
        torch.nn.Linear(width, SIDE),
    ]
    net = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.SiLU())))[:-1].requires_grad_(
        False
    )
    return gk.GaussianModel(lambda x, t, cond: net(x), shape=(SIDE,))


def steered(n: int, **options) -> gk.Result:
    guides = [gk.FKSteering(lambda x: x[:, :8].sum(1).tanh(), 0.5)]
    return gk.sample(model(), n, steps=STEPS, guides=guides, batch_size=256, **options)


def rank(number: int, size: int, folder: str, n: int) -> None:
    """One of `size` processes; the first one writes the seconds of a run."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", store=FileStore(f"{folder}/store", size), rank=number, world_size=size)
    steered(n, world="auto")
    if size > 1:
        dist.barrier()
    began = time.perf_counter()
    steered(n, world="auto")
    if number == 0:
        Path(folder, "seconds").write_text(str(time.perf_counter() - began))
    if size > 1:
        dist.destroy_process_group()


def seconds(size: int, n: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank, (size, folder, n), nprocs=size)
        return float(Path(folder, "seconds").read_text())


def moved(ancestors: torch.Tensor, size: int) -> float:
    """The share of particles that come from another rank, of all and all steps."""
    n = ancestors.shape[1]
    owner = torch.bucketize(torch.arange(n), torch.tensor([n * (r + 1) // size for r in range(size)]), right=True)
    return float((owner[ancestors] != owner).double().mean())


def main(n: int = 4096) -> None:
    times = {size: [] for size in (1, 2)}
    for _ in range(REPEATS):  # in turn, so that both meet the same machine
        for size, found in times.items():
            found.append(seconds(size, n))
    result = steered(n)
    state = 3 * SIDE * 4  # x, its prediction, and the noise's copy of the clean estimate at most
    ranks = {}
    for size in (2, 4, 8, 64):
        share = moved(result.ancestors, size)
        ranks[size] = {
            "share of particles moved in a step": round(share, 4),
            "kB a step to each rank, numbers": round(LIGHT * n / 1e3, 1),
            "kB a step to each rank, moved particles": round(share * n / size * state / 1e3, 1),
        }
    best = {size: min(found) for size, found in times.items()}
    found = {
        "n": n, "steps": STEPS, "cores": os.cpu_count(), "torch": torch.__version__,
        "seconds": {str(size): [round(v, 3) for v in values] for size, values in times.items()},
        "throughput of two processes over one": round(best[1] / best[2], 3),
        "sent": {str(size): values for size, values in ranks.items()},
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
