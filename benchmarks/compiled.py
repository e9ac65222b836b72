"""What compiling more than the network would save: a step of guided sampling, compiled in four ways, on the CPU.

    python -m benchmarks.compiled [--rounds 15] [--rows 8] [--only NETWORK] [--out FILE]

A step is one forward with and without the condition, the tilt of classifier-free guidance, the kernel of DDPM and the
Feynman-Kac log-weights of a reward. It is written out by hand and computed in these ways, each of which has all times
and coefficients as tensors, so that it is compiled once for the whole grid:

    plain      as it is
    network    the network compiled and the rest as it is: what compile=True does
    whole      torch.compile(step, fullgraph=True, dynamic=False)
    wrapper    the same, with inductor's wrapper in C++ instead of Python
    exported   torch.export of the step, compiled ahead of time by AOTInductor

Networks are the bundled U-Net of images and one that costs nothing, on as many numbers. Ways take turns in every round,
of which the shorter step has twenty times as many, and the median over the rounds of the ratios to `plain`, and to
`network`, is reported. `around` is the share of the plain step that is spent outside the network: where the network is
not made faster, no way can gain more than that. An empty compiled call is one of a function that adds 1 to a number.
`engine` is the same step made by `gk.Run`, without and with compile=True, over `plain`; it draws its noise, too.
Written to results/compiled.json and as a table into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import guidekit as gk

RESULTS = Path(__file__).parent / "results" / "compiled.json"
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
STEPS, SCALE, ALPHA = 10, 2.0, 0.1
NAMES = {"fashion": "the bundled U-Net", "trivial": "a network that costs nothing"}
MORE = {"fashion": 1, "trivial": 20}  # times as many rounds, where a step is short
WAYS = ("network", "whole", "wrapper", "exported")


class Trivial(nn.Module):
    """Half of the state."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return 0.5 * x


class Moved(nn.Module):
    """One step, given times and coefficients as tensors: the next state, its log-weight and reward."""

    def __init__(self, net: Callable[..., Tensor]):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, conds: Tensor, row: Tensor, noise: Tensor, log_w: Tensor, r: Tensor) -> Any:
        p, q, a, b, c = row.unbind()
        out = self.net(torch.cat([x, x]), t, conds)
        own, null = (p * torch.cat([x, x]) + q * out).chunk(2)
        clean = own + (SCALE - 1) * (own - null)
        now = clean.double().flatten(1).mean(1) / ALPHA
        return a * x + b * clean + c * noise, log_w + now - r, now


def networks() -> dict[str, gk.GaussianModel]:
    fashion = gk.zoo.load("fashion")
    assert isinstance(fashion, gk.GaussianModel)
    options: dict[str, Any] = {"predicts": "velocity", "encode_cond": torch.tensor, "null": torch.tensor(10)}
    schedule = fashion.process.schedule  # type: ignore[attr-defined]
    return {"fashion": fashion, "trivial": gk.GaussianModel(Trivial(), fashion.shape, schedule, **options)}


def inputs(model: gk.GaussianModel, rows: int, solver: Any = None) -> list[tuple[Tensor, ...]]:
    """What each step of the grid is given, states and log-weights apart."""
    found = []
    cond = torch.stack([model.encode(3)] * rows + [model.encode(None)] * rows)  # type: ignore[list-item]
    for move in model.moves(STEPS, solver)[:-1]:
        alpha, sigma = model.process.scales(move.t)
        size = alpha**2 + sigma**2
        row = torch.tensor([alpha / size, -sigma / size, move.a, move.b[0], move.c])
        found.append((torch.full((2 * rows,), move.t), cond, row, torch.randn(rows, *model.shape)))
    return found


def walked(step: Callable[..., Any], given: list[tuple[Tensor, ...]]) -> tuple[float, Tensor]:
    """Seconds of a step, and where the particles end."""
    x, log_w = given[0][3].clone(), torch.zeros(len(given[0][3]), dtype=torch.float64)
    r, began = log_w, time.perf_counter()
    for times, conds, row, noise in given:
        x, log_w, r = step(x, times, conds, row, noise, log_w, r)
    return (time.perf_counter() - began) / len(given), x


def example(given: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Arguments of a step, no two of them the same tensor: torch.export would take those for one."""
    times, conds, row, noise = given[0]
    zero = torch.zeros(len(noise), dtype=torch.float64)
    return noise.clone(), times, conds, row, noise, zero, zero.clone()


def exported(step: nn.Module, given: tuple[Tensor, ...], folder: str) -> Callable[..., Any]:
    made = torch.export.export(step, given, strict=False)
    file = torch._inductor.aoti_compile_and_package(made, package_path=f"{folder}/step.pt2")
    return torch._inductor.aoti_load_package(file)


def ways(net: nn.Module, given: list[tuple[Tensor, ...]], folder: str) -> dict[str, Callable[..., Any]]:
    """The step in every way, and the network alone."""
    whole = Moved(net)
    wrapper = torch.compile(Moved(net), fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
    return {
        "plain": whole,
        "net": lambda x, t, conds, row, noise, log_w, r: (net(torch.cat([x, x]), t, conds)[: len(x)], log_w, r),
        "network": Moved(torch.compile(net, dynamic=False)),
        "whole": torch.compile(whole, fullgraph=True, dynamic=False),
        "wrapper": wrapper,
        "exported": exported(whole, example(given), folder),
    }


def engine(model: gk.GaussianModel, rows: int, compiled: bool) -> float:
    """Seconds of a step of the engine, the last one left out."""
    guides = [gk.CFG(SCALE), gk.FKSteering(lambda x: x.double().flatten(1).mean(1), ALPHA, ess=0.0)]
    run = gk.Run(model, rows, steps=STEPS, guides=guides, cond=3, compile=compiled)
    with run.borrowed():
        population, began = run.start(), time.perf_counter()
        for index in range(STEPS - 1):
            population = run.advance(population, index)
        return (time.perf_counter() - began) / (STEPS - 1)


def guards(rounds: int) -> float:
    """Microseconds of a call of a compiled function that adds 1 to a number."""
    one, added = torch.zeros(1), torch.compile(lambda v: v + 1, fullgraph=True, dynamic=False)
    added(one)
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(100):
            added(one)
        spent.append((time.perf_counter() - began) / 100)
    return 1e6 * statistics.median(spent)


def measured(model: gk.GaussianModel, rows: int, rounds: int) -> dict[str, Any]:
    given = inputs(model, rows)
    with torch.no_grad(), model.lent(), tempfile.TemporaryDirectory() as folder:
        steps = ways(model.net, given, folder)  # type: ignore[arg-type]
        ends = {name: walked(step, given)[1] for name, step in steps.items()}  # which compiles
        spent: dict[str, list[float]] = {name: [] for name in (*steps, "engine", "engine, compiled")}
        for _ in range(rounds):
            for name, step in steps.items():
                spent[name].append(walked(step, given)[0])
            spent["engine"].append(engine(model, rows, False))
            spent["engine, compiled"].append(engine(model, rows, True))
    for name in WAYS:
        assert torch.allclose(ends[name], ends["plain"], atol=1e-3), name
    milliseconds = round(1e3 * statistics.median(spent["plain"]), 3)
    return {"rounds": rounds, "milliseconds of a plain step": milliseconds} | ratios(spent)


def ratios(spent: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over the rounds of the times in one round."""

    def over(name: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(spent[name], spent[other], strict=True)), 3)

    return {
        "around": round(1 - over("net", "plain"), 3),
        "over plain": {name: over(name, "plain") for name in WAYS},
        "over network": {name: over(name, "network") for name in WAYS[1:]},
        "engine over plain": {"plain": over("engine", "plain"), "compiled": over("engine, compiled", "plain")},
    }


def table(found: dict[str, Any]) -> str:
    """The lines of docs/scaling.md."""
    heads = ["network", "ms of a step", "of it around the network", *WAYS, "engine", "engine, `compile=True`"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in found["networks"].items():
        each = [row["over plain"][way] for way in WAYS] + list(row["engine over plain"].values())
        first = f"| {NAMES[name]} | {row['milliseconds of a plain step']:.3g} | {row['around']:.0%} |"
        rows.append(f"{first} {' | '.join(f'{v:.2f}' for v in each)} |")
    return "\n".join(rows)


def filled(page: str, lines: str) -> str:
    """The page with these lines between its marks."""
    pattern = r"(?<=<!-- compiled -->\n).*?(?=<!-- end of compiled -->)"
    return re.sub(pattern, lambda _: f"{lines}\n", page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.manual_seed(0)
    found: dict[str, Any] = {
        "torch": torch.__version__, "threads": torch.get_num_threads(), "particles": options.rows,
        "microseconds of an empty compiled call": round(guards(options.rounds), 1),
        "networks": {},
    }  # fmt: skip
    for name, model in networks().items():
        if options.only in (None, name):
            found["networks"][name] = measured(model, options.rows, MORE[name] * options.rounds)
            print(name, json.dumps(found["networks"][name]), flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.out == RESULTS:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), table(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
