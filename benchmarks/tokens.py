"""Token solvers against the number of evaluations: total variation between samples and a table of known probabilities.

    python benchmarks/tokens.py

writes benchmarks/results/tokens.json. Of n samples even exact ones are at some distance: `floor` is the mean of that.
Noise is masked unless a row says otherwise; `EDLM` is a guide, here with the exact law as its energy, and with one that
is fitted to 20,000 samples by noise contrast.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import guidekit as gk

OUT = Path(__file__).parent / "results" / "tokens.json"
V, L, STEPS, DATA = 2, 6, (4, 8, 16, 64), 20_000
SOLVERS = {
    "Ancestral()": gk.solvers.Ancestral(),
    "EDLM(energy, residual=True)": None,
    "EDLM(gk.values.fit_energy(model, data, net))": None,
    "FirstHitting()": gk.solvers.FirstHitting(),
    "FirstHitting(tokens=2)": gk.solvers.FirstHitting(tokens=2),
    "gk.search.joint(model, tokens=2)": None,
    "Confidence()": gk.solvers.Confidence(),
    "Margin()": gk.solvers.Margin(),
    "Entropy()": gk.solvers.Entropy(),
    "Blocks(3)": gk.solvers.Blocks(3),
    "Saber()": gk.solvers.Saber(),
    "ReMDM(0.1)": gk.solvers.ReMDM(0.1),
    "TauLeaping()": gk.solvers.TauLeaping(),
    "Ancestral() with uniform noise": gk.solvers.Ancestral(),
    "TauLeaping() with uniform noise": gk.solvers.TauLeaping(),
    "FSDFM() with uniform noise": gk.solvers.FSDFM(),
}


def table(noising: str = "masked") -> gk.analytic.TokenTable:
    """A law of six bits in which all depend on each other."""
    generator = torch.Generator().manual_seed(0)
    return gk.analytic.TokenTable(1.5 * torch.randn((V,) * L, generator=generator, dtype=torch.float64), noising)


def distance(model: gk.analytic.TokenTable, x: torch.Tensor) -> float:
    """Half the L1 distance between the frequencies of samples and the table."""
    place = (x * V ** torch.arange(L - 1, -1, -1)).sum(1)
    found = place.bincount(minlength=V**L).double() / len(x)
    return float((found - model.table[0].exp()).abs().sum() / 2)


def floor(model: gk.analytic.TokenTable, n: int) -> float:
    """The mean distance of n exact samples."""
    p = model.table[0].exp()
    draws = torch.multinomial(p, 20 * n, replacement=True, generator=torch.Generator().manual_seed(1)).view(20, n)
    return sum(distance(model, model.states[row]) for row in draws) / len(draws)


class Numbers(torch.nn.Module):
    """An energy with one number for each pair of a sequence and a masked one that it fits to."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros((2 * V) ** L))

    def forward(self, x_0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        return self.table[((x_0 + V * (x_t == V)) * (2 * V) ** torch.arange(L, device=x_0.device)).sum(1)]


def edlm(model: gk.analytic.TokenTable, fitted: bool) -> gk.EDLM:
    """The guide with the exact law as its energy, or with an energy that is fitted to samples of it."""
    if not fitted:
        return gk.EDLM(lambda x: -model.log_probs(x), residual=True)
    generator = torch.Generator().manual_seed(3)
    data = model.states[torch.multinomial(model.table[0].exp(), DATA, replacement=True, generator=generator)]
    return gk.EDLM(gk.values.fit_energy(model, data, Numbers(), updates=600, rate=0.1))


def measured(n: int, only: str = "") -> dict:
    masked, uniform, rows = table(), table("uniform"), {}
    for name, solver in SOLVERS.items():
        if only not in name:
            continue
        model = uniform if "uniform" in name else masked
        guides = [edlm(masked, "fit" in name)] if name.startswith("EDLM") else []
        solver = gk.search.joint(masked, 2) if "joint" in name else solver
        runs = {steps: gk.sample(model, n, steps=steps, solver=solver, guides=guides, seed=2) for steps in STEPS}
        rows[name] = {
            str(steps): {"evaluations": run.cost.network_calls, "distance": round(distance(model, run.x), 4)}
            for steps, run in runs.items()
        }
    return {"n": n, "floor": round(floor(model, n), 4), "solvers": rows}


def lines(found: dict) -> list[str]:
    """The table of docs/solvers.md."""
    head = ["| solver | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |", "|---" * (len(STEPS) + 1) + "|"]
    cells = {
        name: [f"{row[str(s)]['distance']:.3f} ({row[str(s)]['evaluations']})" for s in STEPS]
        for name, row in found["solvers"].items()
    }
    return head + [f"| {label(name)} | {' | '.join(row)} |" for name, row in cells.items()]


def label(name: str) -> str:
    """The name of a row: code, and in words what else is special."""
    code, _, words = name.partition(" with ")
    return f"`{code}` with {words}" if words else f"`{code}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--only", default="", help="rows whose name holds this; the others stay as they are")
    options = parser.parse_args()
    found = measured(options.n, options.only)
    if options.only and OUT.exists():
        before = json.loads(OUT.read_text(encoding="utf-8"))
        found["solvers"] = {k: v for k, v in {**before["solvers"], **found["solvers"]}.items() if k in SOLVERS}
    found["solvers"] = {name: found["solvers"][name] for name in SOLVERS if name in found["solvers"]}
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join([*lines(found), f"exact samples: {found['floor']:.3f}"]))


if __name__ == "__main__":
    main()
