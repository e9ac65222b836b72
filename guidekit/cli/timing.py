"""`guidekit bench`: the cost of guides, as the time of guided sampling relative to unguided sampling."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from ..engine.sample import sample
from ..jobs.config import Config
from ..jobs.job import Job, prepare

REWARDS = {"molecules": "qed", "dna": "gc", "images": "brightness"}
GUIDES = ("cfg:2", "fk_steering:alpha=1", "svdd:candidates=4")


def ratios(model: str, guides: Sequence[str], rewards: Sequence[str], repeats: int, **given: Any) -> dict[str, Any]:
    """One row for the unguided sampler and each guide: median seconds, and seconds and network rows relative to the
    unguided sampler. The samplers take turns, so that other load on the machine affects all of them equally."""
    plain = prepare(Config(model, **given))
    rewards = rewards or ([REWARDS[plain.domain]] if plain.domain in REWARDS else [])
    jobs = {"unguided": plain} | {g: prepare(Config(model, tuple(rewards), (g,), **given)) for g in guides}
    for job in jobs.values():
        _seconds(job)  # a first call is slow
    times = {name: [0.0] * repeats for name in jobs}
    rows: dict[str, int] = {}
    for i in range(repeats):
        for name, job in jobs.items():
            times[name][i], rows[name] = _seconds(job)
    base = times["unguided"]
    lines = [
        {
            "name": name,
            "seconds": statistics.median(taken),
            "times unguided": statistics.median(a / b for a, b in zip(taken, base, strict=True)),
            "network rows": rows[name],
            "rows over unguided": rows[name] / rows["unguided"],
        }
        for name, taken in times.items()
    ]
    return {"model": model, "rewards": list(rewards), **given, "repeats": repeats, "rows": lines}


def _seconds(job: Job) -> tuple[float, int]:
    """The seconds of one run, and its network rows."""
    begun = time.perf_counter()
    result = sample(job.model, job.config.n, **job.given, guides=job.guides)
    if result.x.is_cuda:
        import torch

        torch.cuda.synchronize()
    return time.perf_counter() - begun, result.cost.network_rows
