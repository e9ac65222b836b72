"""Kill -9 at random points, and go on: the results must be those of a run that nobody killed, byte for byte.

    python -m benchmarks.kills [POINTS] [RUN ...]

Every run is a forked process, or two that share a population; the moment of death is drawn uniformly from the time that
the whole run takes. Of two processes one is killed, and the other has to end by itself. Then the same call continues,
and is killed again half of the times, until it ends. The clock starts when the processes have met: one that waits in
init_process_group for a dead one does so until its timeout, unless torchrun ends it. A checkpoint is written after
every step, so that there is something to tear. The outcome is written to results/kills.json and as a table into
docs/scaling.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[reportPrivateImportUsage]

import guidekit as gk
from guidekit.engine import checkpoint

RESULTS = Path(__file__).parent / "results" / "kills.json"
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
PATIENCE = 600.0  # seconds that a process may take to end

PLANE = gk.analytic.GaussianMixture([0.7, 0.3], [[-1.0, 0.5], [2.0, 1.0]], [0.5, 0.8])
TABLE = gk.analytic.TokenTable(torch.linspace(-1, 1, 3**4).view(3, 3, 3, 3))


def reward(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0].double() - 0.2 * x[:, -1].double() ** 2


def sampled(folder: Path, steps: int = 40, **options: Any) -> list[torch.Tensor]:
    guides = [gk.FKSteering(reward, 0.5, ess=1.0)]
    found = gk.sample(PLANE, 32, steps=steps, guides=guides, checkpoint=folder / "run.ckpt", **options)
    return [found.x, found.log_weights, found.ancestors]


def shared(folder: Path) -> list[torch.Tensor]:
    return sampled(folder, steps=10, world="auto", batch_size=8)


def searched(folder: Path) -> list[torch.Tensor]:
    found = gk.search.evolution(PLANE, 4, reward, rounds=8, steps=6, folder=folder / "search")
    assert found.noise is not None and found.rewards is not None
    return [found.x, found.noise, found.rewards]


def evolved(folder: Path) -> list[torch.Tensor]:
    budget = gk.search.Budget(calls=60)
    found = gk.evolve(TABLE, 4, reward, budget=budget, population=10, checkpoint=folder / "evolve")
    assert found.rewards is not None
    return [found.x, found.rewards]


def fitted(folder: Path) -> list[torch.Tensor]:
    value = gk.values.fit(PLANE, reward, rollouts=32, steps=6, epochs=3, folder=folder / "fit")
    return list(value.net.state_dict().values())


RUNS: dict[str, tuple[str, Callable[[Path], list[torch.Tensor]], int]] = {
    "sample": ("`gk.sample`, a checkpoint", sampled, 1),
    "search": ("`gk.search.evolution`, a folder", searched, 1),
    "evolve": ("`gk.evolve`, the design loop", evolved, 1),
    "fit": ("`gk.values.fit`, a folder", fitted, 1),
    "two": ("`gk.sample` on two processes, of which one is killed", shared, 2),
}


def child(name: str, folder: Path, rank: int, size: int, number: int) -> int:
    """A process that makes the run and writes what came out; its id."""
    if pid := os.fork():
        return pid
    try:
        os.dup2(os.open(folder / f"log.{number}.{rank}", os.O_WRONLY | os.O_CREAT), 2)
        torch.set_num_threads(1)
        if size > 1:
            store = FileStore(str(folder / f"store.{number}"), size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
            dist.barrier()
        (folder / f"ready.{number}.{rank}").touch()
        found = RUNS[name][1](folder)
        digest = hashlib.sha256(b"".join(v.contiguous().numpy().tobytes() for v in found)).hexdigest()
        (folder / f"found.{rank}").write_text(digest)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def attempt(name: str, folder: Path, number: int, after: float | None) -> tuple[bool, bool]:
    """One sitting, in which the last process is killed after so many seconds; whether all ended well, and whether the
    kill came in time."""
    size = RUNS[name][2]
    pids = [child(name, folder, rank, size, number) for rank in range(size)]
    began, codes, ready = time.monotonic(), dict[int, int](), False
    while len(codes) < size:
        if not ready and all((folder / f"ready.{number}.{rank}").exists() for rank in range(size)):
            began, ready = time.monotonic(), True
        spent = time.monotonic() - began
        if ready and after is not None and spent >= after and pids[-1] not in codes:
            os.kill(pids[-1], signal.SIGKILL)
        if spent > PATIENCE:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"{name}: a process has not ended in {PATIENCE:g} s")
        for pid in pids:
            done, code = os.waitpid(pid, os.WNOHANG) if pid not in codes else (0, 0)
            if done:
                codes[pid] = code
        time.sleep(0.002)
    return not any(codes.values()), codes[pids[-1]] == signal.SIGKILL


def result(folder: Path, name: str) -> list[str]:
    return [(folder / f"found.{rank}").read_text() for rank in range(RUNS[name][2])]


def kills(name: str, points: int, seed: int = 0) -> dict[str, Any]:
    """The run as it is, and killed until that has happened so often: at which shares of its time, in how many runs, and
    how many of them had other bytes."""
    draw, runs, other, shares = random.Random(seed), 0, 0, list[float]()
    with tempfile.TemporaryDirectory() as kept:
        whole, warm = Path(kept, "whole"), Path(kept, "warm")
        whole.mkdir()
        if RUNS[name][2] == 1:
            RUNS[name][1](warm)  # loads what every fork would load again
        began = time.monotonic()
        if not attempt(name, whole, 0, None)[0]:
            raise RuntimeError((whole / "log.0.0").read_text())
        seconds, truth = time.monotonic() - began, result(whole, name)
        while len(shares) < points:
            folder = Path(kept, str(runs))
            folder.mkdir()
            sitting, share = 0, draw.random()
            while not (ended := attempt(name, folder, sitting, None if share is None else share * seconds))[0]:
                if share is None or not ended[1]:  # nobody was killed: it failed by itself
                    raise RuntimeError((folder / f"log.{sitting}.0").read_text())
                shares.append(round(share, 3))
                sitting, share = sitting + 1, draw.random() if draw.random() < 0.5 else None
            runs, other = runs + 1, other + (result(folder, name) != truth)
            shutil.rmtree(folder)
    return {
        "killed": len(shares), "runs": runs, "of other bytes": other, "seconds of a run": round(seconds, 2),
        "points": sorted(shares),
    }  # fmt: skip


def main(points: int = 20, *names: str) -> None:
    checkpoint._SHARE = 1e9  # write after every step, so that there is something to tear
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in names or RUNS:
        before[name] = kills(name, points)
        print(name, json.dumps(before[name]), flush=True)
        found = {name: before[name] for name in RUNS if name in before}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), table(found)), encoding="utf-8")


def table(found: dict[str, Any]) -> str:
    """The lines of docs/scaling.md."""
    rows = ["| run | killed | between | runs | of them with other bytes |", "|---|---|---|---|---|"]
    for name, row in found.items():
        between = f"{row['points'][0]:.0%} and {row['points'][-1]:.0%} of its time"
        rows.append(f"| {RUNS[name][0]} | {row['killed']} | {between} | {row['runs']} | {row['of other bytes']} |")
    return "\n".join(rows)


def filled(page: str, lines: str) -> str:
    """The page with these lines between its marks."""
    return re.sub(r"(?<=<!-- kills -->\n).*?(?=<!-- end of kills -->)", lambda _: f"{lines}\n", page, flags=re.DOTALL)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 20, *sys.argv[2:])
