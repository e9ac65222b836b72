"""Error against network calls: our solvers, tables fitted to the model, and the schedulers of diffusers.

    python -m benchmarks.solvers [--only 2-D 64-D fashion law parallel] [--solvers UCGM "DPMv3(2)" ...]

On two mixtures of Gaussians with their exact denoisers, in 2 and 64 dimensions, and on the bundled image model: the
root mean square distance of samples to the probability flow from the same noise in many steps (UniPC of order 3).
"law" is for runs with weights: how far log E[exp(r)] of samples of stochastic solvers is from the exact log Z of the
2-D mixture. "parallel" is gk.parallel beside gk.sample, for one image. Tables, ratios and statistics are fitted on
other noises than those on which they are compared. Written to benchmarks/results/solvers.json, and the figure to
docs/solvers.png. With --solvers only the rows of these are made, and take the place of those in the file.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guidekit as gk
from guidekit.solvers import (
    BDIA,
    BELM,
    CPS,
    DDIM,
    DDPM,
    DEIS,
    ERSDE,
    GHVB,
    PNDM,
    UCGM,
    AcceleratedDDIM,
    AcceleratedDDPM,
    AnalyticDPM,
    Churn,
    DPMpp,
    DPMv3,
    DualFast,
    ExponentialHeun,
    HeavyBall,
    Heun,
    Langevin,
    PseudoHeun,
    SASolver,
    SDEDPMpp,
    Solver,
    UniPC,
    compensated,
    fit,
    searched,
    statistics,
)

OUT = Path(__file__).parent / "results" / "solvers.json"
FIGURE = Path(__file__).parent.parent / "docs" / "solvers.png"
CALLS = (5, 8, 12, 20, 35, 50)
VP = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
PEERS = {
    "diffusers DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    "diffusers DPM-Solver++ 2M, Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "diffusers UniPC": ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
    "diffusers DEIS": ("DEISMultistepScheduler", {"timestep_spacing": "trailing", "solver_order": 3}),
}
OURS: dict[str, Callable[[str], Solver]] = {
    "DDIM": lambda grid: DDIM(times=grid),
    "DPMpp(2)": lambda grid: DPMpp(2, times=grid),
    "DPMpp(3)": lambda grid: DPMpp(3, times=grid),
    "UniPC(2)": lambda grid: UniPC(2, times=grid),
    "UniPC(3)": lambda grid: UniPC(3, times=grid),
    "DEIS(3)": lambda grid: DEIS(3, times=grid),
    "PNDM": lambda grid: PNDM(times=grid),
    "PseudoHeun": lambda grid: PseudoHeun(times=grid),
    "Heun": lambda grid: Heun(times=grid),
    "UCGM": lambda grid: UCGM(times=grid),
    "AcceleratedDDIM": lambda grid: AcceleratedDDIM(times=grid),
    "ExponentialHeun": lambda grid: ExponentialHeun(times=grid),
    "GHVB(2)": lambda grid: GHVB(2, times=grid),
    "HeavyBall(2)": lambda grid: HeavyBall(DPMpp(2, times=grid)),
    "DualFast(1)": lambda grid: DualFast(DDIM(times=grid)),
    "DualFast(2)": lambda grid: DualFast(DPMpp(2, times=grid)),
    "BELM": lambda grid: BELM(times=grid),
    "BDIA": lambda grid: BDIA(times=grid),
}
MEASURED: dict[str, Callable[..., Solver]] = {  # on the model, for so many calls
    "DPMv3(2)": lambda model, grid, calls, known, **options: DPMv3(known(), times=grid),
    "DCSolver(2)": lambda model, grid, calls, known, **options: compensated(model, calls, times=grid, **options),
    "USF": lambda model, grid, calls, known, **options: searched(model, calls, times=grid, **options),
}
NOISY: dict[str, Solver] = {
    "DDPM": DDPM(),
    "DDIM(0.5)": DDIM(0.5),
    "SDEDPMpp(2)": SDEDPMpp(2),
    "ERSDE(2)": ERSDE(2),
    "ERSDE(3)": ERSDE(3),
    "SASolver(1)": SASolver(1.0),
    "CPS(0.5)": CPS(0.5),
    "AcceleratedDDPM": AcceleratedDDPM(),
    "UCGM(0.1, 0.3)": UCGM(0.1, 0.3),
    "Churn": Churn(),
    "Langevin": Langevin(),
}


def mixture(d: int) -> gk.Model:
    """Five components of different weights and widths."""
    generator = torch.Generator().manual_seed(d)
    means = 2.0 * torch.randn(5, d, generator=generator, dtype=torch.float64) / d**0.25
    weights = torch.tensor([0.35, 0.25, 0.2, 0.15, 0.05], dtype=torch.float64)
    return gk.analytic.GaussianMixture(weights, means, torch.tensor([0.5, 0.3, 0.6, 0.2, 0.4], dtype=torch.float64))


def compared(
    model: gk.Model,
    noises: int,
    cond: Any,
    plans: dict[str, tuple[str, ...]],
    budgets: tuple[int, ...] = CALLS,
    fits: tuple[int, ...] = (5, 8, 12, 20),
    everything: bool = False,
    only: Collection[str] | None = None,
    reference: int = 120,
    **size: int,
) -> list[dict[str, Any]]:
    """Rows of errors on so many noises, against a solution in `reference` steps: of our solvers on these grids, of the
    peers and of fitted tables (of coefficients alone for all budgets, where there is everything); or of only these."""
    dtype, groups = model.dtype, 1 if cond is None else len(cond)
    noise = torch.randn(noises, *model.shape, generator=torch.Generator().manual_seed(77), dtype=dtype)
    run = {"noise": noise, "cond": cond}

    def sampled(solver: Solver, steps: int) -> Tensor:
        return gk.sample(model, noises // groups, steps=steps, solver=solver, **run).x

    fine = sampled(UniPC(3), reference)

    def row(name: str, calls: int, x: Tensor) -> dict[str, Any]:
        error = float((x - fine).double().square().mean().sqrt())
        print(f"{name:40} {calls:4d} {error:.5f}", flush=True)
        return {"solver": name, "calls": calls, "error": round(error, 6)}

    def wanted(name: str) -> bool:
        return only is None or name in only

    rows, options = [], {"cond": cond, "seed": 1, "n": size["n"]}
    known = cache(lambda: statistics(model, **options))  # once for all calls
    for name, grid in [(name, grid) for name, grids in plans.items() for grid in grids if wanted(name)]:
        for calls in budgets:
            if name in OURS:
                solver = OURS[name](grid)
                rows.append(row(f"{name}, {grid}", calls, sampled(solver, steps_of(model, solver, calls))))
            elif calls in fits:
                solver = MEASURED[name](model, grid, calls, known, **options)
                rows.append(row(f"{name}, {grid}", calls, sampled(solver, calls)))
    for what, base in (("times", DPMpp(2)), ("coefficients", DPMpp(2)), ("both", DPMpp(2))):
        for calls in budgets if what == "coefficients" else fits:
            if wanted("fit") and (what == "both" or everything):
                start = time.process_time()
                table = fit(model, base, calls, what, cond=cond, seed=1, **size)  # type: ignore[arg-type]
                found = row(f"fitted {what}", calls, sampled(table, calls))
                rows.append(found | {"seconds to fit": round(time.process_time() - start, 1)})
    for name in filter(wanted, PEERS):
        rows += [row(name, calls, peer(model, name, calls, noise, cond)) for calls in budgets]
    return rows


def steps_of(model: gk.Model, solver: Solver, calls: int) -> int:
    """The most steps of a solver that take at most so many calls, one for each row that has a prediction."""
    return max(
        steps for steps in range(2, calls + 1) if sum(bool(v.b) for v in model.process.moves(steps, solver)) <= calls
    )


def peer(model: gk.Model, name: str, calls: int, noise: Tensor, cond: Any) -> Tensor:
    """Samples by a diffusers scheduler, whose levels are those of the model's cosine schedule at other times."""
    import diffusers

    plan, options = PEERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, plan)(**VP, **options)
        scheduler.set_timesteps(calls)
        scheduler.set_begin_index(0)
    groups = 1 if cond is None else len(cond)
    encoded = model.encode_all([cond] if cond is None else cond)
    encoded = None if encoded is None else encoded[torch.arange(len(noise)) * groups // len(noise)]
    x, flat = noise, (len(noise), -1, 1, 1)
    for t, ratio in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        alpha, sigma = 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
        with torch.no_grad():
            d = model(x, 2 / math.pi * math.atan(ratio), encoded)
        e = (x - alpha * d) / sigma
        x = scheduler.step(e.reshape(flat), t, x.reshape(flat)).prev_sample.reshape(x.shape)
    return x


def law(only: Collection[str] | None = None) -> list[dict[str, Any]]:
    """|log E[exp(r)] - log Z| for r = x_0 of the 2-D mixture, with 40,000 samples, and its standard error."""
    model, n = mixture(2), 40_000
    b = torch.tensor([1.0, 0.0], dtype=torch.float64)
    exact, rows = float(model.log_z(linear=b)), []  # type: ignore[attr-defined]
    for name, solver in {**NOISY, "AnalyticDPM": AnalyticDPM(statistics(model))}.items():
        for calls in CALLS if only is None or name in only else ():
            w = gk.sample(model, n, steps=steps_of(model, solver, calls), solver=solver, seed=3).x[:, 0].exp()
            rows.append({
                "solver": name, "calls": calls, "error": round(abs(float(w.mean().log()) - exact), 5),
                "standard error": round(float(w.std() / w.mean()) / n**0.5, 5),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def parallel() -> list[dict[str, Any]]:
    """One image by gk.sample and by gk.parallel: forwards one after the other, rows, and seconds of one core."""
    model, rows = gk.zoo.load("fashion"), []
    for solver, steps in ((DDIM(), 100), (DDPM(), 200), (DDIM(), 400)):
        run = {"steps": steps, "solver": solver, "cond": 3}
        start = time.process_time()
        plain = gk.sample(model, 1, **run)  # type: ignore[arg-type]
        alone = time.process_time() - start
        for tolerance in (0.001, 0.01):
            start = time.process_time()
            found = gk.parallel(model, 1, tolerance=tolerance, **run)  # type: ignore[arg-type]
            rows.append({
                "solver": f"{type(solver).__name__}()", "steps": steps, "tolerance": tolerance,
                "rounds": found.config["parallel"]["rounds"], "rows": found.cost.network_rows,
                "error": round(float((found.x - plain.x).square().mean().sqrt()), 5),
                "seconds": round(time.process_time() - start, 2), "seconds of gk.sample": round(alone, 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def draw(found: dict[str, Any]) -> None:
    """Error against calls, one panel per model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {
        "DDIM, uniform": ("0.6", "-"), "DPMpp(2), uniform": ("tab:blue", "--"), "DPMpp(2), log_snr": ("tab:blue", "-"),
        "UniPC(3), log_snr": ("tab:green", "-"), "DEIS(3), uniform": ("tab:purple", "-"),
        "diffusers DPM-Solver++ 2M": ("tab:orange", "--"), "diffusers DPM-Solver++ 2M, Karras": ("tab:orange", "-"),
        "diffusers UniPC": ("tab:brown", "--"), "fitted both": ("tab:red", "-"),
    }  # fmt: skip
    panels = [k for k in ("2-D", "64-D", "fashion") if k in found]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.6), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for name, (color, line) in shown.items():
            points = [(r["calls"], r["error"]) for r in found[panel] if r["solver"] == name]
            if points:
                axis.loglog(*zip(*points, strict=True), line, color=color, marker=".", label=name)
        axis.set(title=panel, xlabel="network calls", xticks=CALLS, xticklabels=CALLS)
        axis.minorticks_off()
    axes[0][0].set_ylabel("distance to the fine solution")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=3, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.2, 1, 1))
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", nargs="+", choices=("2-D", "64-D", "fashion", "law", "parallel"))
    parser.add_argument("--solvers", nargs="+", choices=(*OURS, *MEASURED, *NOISY, "AnalyticDPM", *PEERS, "fit"))
    only, solvers = vars(parser.parse_args()).values()
    torch.set_num_threads(1)
    found = json.loads(OUT.read_text()) if (only or solvers) and OUT.exists() else {}
    every: dict[str, tuple[str, ...]] = dict.fromkeys((*OURS, *MEASURED), ("uniform", "log_snr", "karras"))
    few: dict[str, tuple[str, ...]] = {
        "DDIM": ("uniform",), "DPMpp(2)": ("uniform", "log_snr"), "UniPC(2)": ("uniform", "log_snr"),
        "UniPC(3)": ("log_snr",), "DEIS(3)": ("uniform",), "UCGM": ("uniform",), "DPMv3(2)": ("uniform", "log_snr"),
        "DCSolver(2)": ("uniform", "log_snr"), "USF": ("log_snr",), "GHVB(2)": ("uniform",),
        "HeavyBall(2)": ("uniform",), "DualFast(1)": ("uniform",), "DualFast(2)": ("uniform",), "BELM": ("uniform",),
        "BDIA": ("uniform",),
    }  # fmt: skip
    todo: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "2-D": lambda: compared(
            mixture(2), 500, None, every, everything=True, only=solvers, reference=400, n=1024, points=40
        ),
        "64-D": lambda: compared(
            mixture(64), 500, None, every, everything=True, only=solvers, reference=400, n=256, points=40, inside=8
        ),
        "law": lambda: law(solvers),
        "parallel": lambda: [] if solvers else parallel(),
        "fashion": lambda: compared(
            gk.zoo.load("fashion"), 20, list(range(10)), few, CALLS[:4], CALLS[:3], only=solvers, n=20, points=16
        ),
    }
    for name, make in todo.items():
        if not only or name in only:
            rows = make()
            made = {(row["solver"], row.get("calls")) for row in rows} if solvers else set()
            before = (
                [row for row in found.get(name, []) if (row["solver"], row.get("calls")) not in made] if solvers else []
            )
            found[name] = before + rows
            OUT.write_text(json.dumps(found, indent=1) + "\n")
    draw(found)


if __name__ == "__main__":
    main()
