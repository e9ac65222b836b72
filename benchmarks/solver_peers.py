"""Our solvers and a fitted table beside those of azula and diffusers: error, and Frechet distance of images.

    pip install azula; python -m benchmarks.solver_peers [--only 2-D 64-D fashion]

All start from the same noise, on the mixtures and the image model of `benchmarks.solvers`. The error is the root mean
square distance to the probability flow in many steps. The Frechet distance, of images alone, is in the features of the
bundled judge, between the samples and other samples of the fine solution; "fine" is the distance that these have among
themselves. azula's samplers take its cosine schedule, from alpha = 0.001 to sigma = 0.001, as it comes. Written to
benchmarks/results/solver_peers.json. Where azula is not installed its rows are left out, and the program says so.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guidekit as gk
from benchmarks.solvers import mixture, peer
from guidekit.solvers import BELM, DDIM, DEIS, DPMpp, DualFast, UniPC, fit
from rewards.images import frechet_distance

OUT = Path(__file__).parent / "results" / "solver_peers.json"
OURS = {
    "DDIM()": DDIM(), "DPMpp(2)": DPMpp(2), 'DPMpp(2, times="log_snr")': DPMpp(2, times="log_snr"),
    'UniPC(3, times="log_snr")': UniPC(3, times="log_snr"), "DEIS(3)": DEIS(3), "BELM()": BELM(),
    "DualFast(DPMpp(2))": DualFast(DPMpp(2)),
}  # fmt: skip
AZULA = {
    "azula DDIM": ("DDIMSampler", {}), "azula xEAB(2)": ("xEABSampler", {"order": 2}),
    "azula zEAB(2)": ("zEABSampler", {"order": 2}), "azula zAB(3)": ("zABSampler", {"order": 3}),
}  # fmt: skip
DIFFUSERS = ("diffusers DPM-Solver++ 2M", "diffusers UniPC")


def by_azula(model: gk.Model, name: str, calls: int, noise: Tensor, cond: Any) -> Tensor:
    """Samples by a sampler of azula, which sees the model's clean prediction."""
    from azula import sample  # type: ignore[import-not-found]
    from azula.denoise import Denoiser, DiracPosterior  # type: ignore[import-not-found]
    from azula.noise import CosineSchedule  # type: ignore[import-not-found]

    encoded = encoded_rows(model, cond, len(noise))

    class Own(Denoiser):
        schedule = CosineSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
            alpha, sigma = (float(v) for v in self.schedule(t))
            size = math.hypot(alpha, sigma)
            return DiracPosterior(model((x_t / size).to(noise), 2 / math.pi * math.atan2(sigma, alpha), encoded))

    kind, options = AZULA[name]
    sampler = getattr(sample, kind)(Own(), steps=calls, silent=True, dtype=torch.float64, **options)
    return sampler(noise.double()).to(noise)


def encoded_rows(model: gk.Model, cond: Any, rows: int) -> Any:
    """The condition of every row: as many rows for each."""
    conds = cond if isinstance(cond, list) else [cond]
    encoded = model.encode_all(conds)
    return None if encoded is None else encoded[torch.arange(rows) * len(conds) // rows]


def compared(
    model: gk.Model, count: int, cond: Any, budgets: tuple[int, ...], steps: int, features: Any = None, **size: int
) -> list[dict[str, Any]]:
    """Errors, and Frechet distances where there are features, of so many noises."""
    groups = len(cond) if isinstance(cond, list) else 1

    def noises(seed: int) -> Tensor:
        return torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(seed), dtype=model.dtype)

    def ours(solver: Any, calls: int, noise: Tensor) -> Tensor:
        return gk.sample(model, count // groups, steps=calls, solver=solver, noise=noise, cond=cond).x

    noise = noises(77)
    fine = ours(UniPC(3), steps, noise)
    other = None if features is None else features(model.decode(ours(UniPC(3), steps, noises(78))))
    rows = []

    def add(name: str, calls: int, x: Tensor) -> None:
        found = {"solver": name, "calls": calls, "error": round(float((x - fine).double().square().mean().sqrt()), 5)}
        if features is not None:
            found["frechet"] = round(frechet_distance(features(model.decode(x)), other), 3)
        rows.append(found)
        print(found, flush=True)

    add("fine", steps, fine)
    for calls in budgets:
        for name, solver in OURS.items():
            add(name, calls, ours(solver, calls, noise))
        table = fit(model, DPMpp(2), calls, cond=cond, seed=1, **size)  # type: ignore[arg-type]
        add("fit(model, DPMpp(2), steps)", calls, ours(table, calls, noise))
        for name in DIFFUSERS:
            add(name, calls, peer(model, name, calls, noise, cond))
        for name in AZULA if find_spec("azula") else ():
            add(name, calls, by_azula(model, name, calls, noise, cond))
    return rows


def judged(x: Tensor) -> Tensor:
    """Features of images by the bundled judge."""
    with torch.no_grad():
        return gk.zoo.network("fashion-judge").features(x)  # type: ignore[operator]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", nargs="+", choices=("2-D", "64-D", "fashion"))
    only = parser.parse_args().only
    torch.set_num_threads(1)
    if not find_spec("azula"):
        print("azula is not installed: its rows are left out")
    found = json.loads(OUT.read_text()) if only and OUT.exists() else {}
    todo: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "2-D": lambda: compared(mixture(2), 500, None, (5, 8, 12, 20), 400, n=1024, points=40),
        "64-D": lambda: compared(mixture(64), 500, None, (5, 8, 12, 20), 400, n=256, points=40),
        "fashion": lambda: compared(
            gk.zoo.load("fashion"), 200, list(range(10)), (5, 8), 30, judged, n=20, points=16
        ),
    }  # fmt: skip
    for name, make in todo.items():
        if not only or name in only:
            found[name] = make()
            OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
