"""Informed moves on DNA: what the reward gains and the samples lose, by temperature, beside the edits of ledidi.

    python -m benchmarks.informed [--n 64] [--rounds 100] [--only NAME ...] [--peer 8]

From unguided samples of the bundled model, the guiding classifier's log-odds of HepG2 are raised by
`gk.search.informed`; an independent classifier judges. Beside the rewards stand the correlation of 3-mers with other
unguided samples, the mean log-probability that the model gives a masked base (15 % masked), the mean edit distance of
pairs, and the share of bases that differ from the start. `--peer` runs ledidi 2 towards log-odds of 10 on so many of
the sequences, if it is installed, with its defaults but for batches of 8 and at most 200 iterations. Written to
benchmarks/results/informed.json; with --only, rows of these names are measured anew and the others stay.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guidekit as gk
from rewards.dna import CellType, edit_distance_diversity, kmer_correlation

OUT = Path(__file__).parent / "results" / "informed.json"
MASKED = 0.15
TARGET = 10.0  # of ledidi, whose loss is the squared distance to it
SETTINGS: dict[str, dict[str, Any]] = {
    "alpha 0.8": {"alpha": 0.8},
    "alpha 0.65": {"alpha": 0.65},
    "alpha 0.5": {"alpha": 0.5},
    "at most 22 edits": {"alpha": 0.3, "share": 0.2, "max_edits": 22},
}


@dataclass
class Study:
    """The model, its rewards, the sequences to start from and as many others to compare with."""

    n: int
    cell: str = "HepG2"

    @cached_property
    def model(self) -> gk.Model:
        return gk.zoo.load("dna")

    @cached_property
    def drawn(self) -> Tensor:
        return gk.sample(self.model, 2 * self.n, steps=50, seed=1).x

    @cached_property
    def guide(self) -> Any:
        return CellType(self.cell)

    @cached_property
    def judge(self) -> Any:
        return CellType(self.cell, "dna-judge")

    def measured(self, x: Tensor) -> dict[str, Any]:
        """What samples are worth, and how natural and how different they are."""
        texts, others = self.model.decode(x), self.model.decode(self.drawn[self.n :])
        return {
            "n": len(x),
            "guide": float(self.guide(texts).mean()),
            "held_out": float(self.judge(texts).mean()),
            "kmers": kmer_correlation(texts, others),
            "log_prob": self.log_prob(x),
            "distance": edit_distance_diversity(texts),
            "changed": float((x != self.drawn[: len(x)]).double().mean()),
        }

    def log_prob(self, x: Tensor) -> float:
        """The mean log-probability of masked bases."""
        u = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
        masked = u < MASKED
        with torch.no_grad():
            log_p = self.model(torch.where(masked, 4, x), MASKED, self.model.encode(None).expand(len(x)))
        return float(log_p.gather(-1, x[..., None])[..., 0][masked].mean())

    def moved(self, rounds: int, **options: Any) -> dict[str, Any]:
        found = gk.search.informed(self.model, self.drawn[: self.n], self.guide, rounds=rounds, **options)
        cost = {"rows": found.cost.network_rows / self.n, "calls": found.cost.reward_calls / self.n}
        return self.measured(found.x) | options | {"rounds": rounds} | cost

    def edited(self, count: int, iterations: int = 200, batch: int = 8) -> dict[str, Any]:
        """The same with ledidi, sequence by sequence: of each batch the best by the guide."""
        from ledidi import Ledidi  # type: ignore[import-not-found]

        class Guide(torch.nn.Module):
            def __init__(self, score: Callable[[Tensor], Tensor]):
                super().__init__()
                self.score = score

            def forward(self, x: Tensor) -> Tensor:
                return self.score(x.transpose(1, 2))[:, None]

        best = []
        for x in self.drawn[:count]:
            hot = torch.nn.functional.one_hot(x, 4).float().T[None]
            designer = Ledidi(
                Guide(self.guide), shape=(4, len(x)), batch_size=batch, max_iter=iterations, verbose=False
            )
            edits = designer.fit_transform(hot, torch.tensor([[TARGET]])).argmax(1)
            best.append(edits[self.guide(edits).argmax()])
        before = kmer_correlation(self.model.decode(self.drawn[:count]), self.model.decode(self.drawn[self.n :]))
        return self.measured(torch.stack(best)) | {"calls": iterations * batch, "kmers_before": before}


HEAD = ("", "guide", "held out", "3-mers", "log p", "edit distance", "changed", "reward calls")


def lines(found: dict[str, Any]) -> list[str]:
    """The table of the page on DNA."""
    table = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for name, row in found["rows"].items():
        label = f"{name} ({row['n']} sequences)" if name == "ledidi" else name
        cells = [f"{row['guide']:.1f}", f"{row['held_out']:.1f}", f"{row['kmers']:.3f}", f"{row['log_prob']:.3f}"]
        cells += [f"{row['distance']:.3f}", f"{row['changed']:.0%}", f"{row.get('calls', 0):.0f}"]
        table.append("| " + " | ".join([label, *cells]) + " |")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--peer", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(OUT.read_text())["rows"] if given.only is not None and OUT.exists() else {}
    study = Study(given.n)
    todo: dict[str, Callable[[], dict[str, Any]]] = {
        "unguided": lambda: study.measured(study.drawn[: study.n]),
        **{name: lambda own=own: study.moved(given.rounds, **own) for name, own in SETTINGS.items()},
    }
    if given.peer:
        todo["ledidi"] = lambda: study.edited(given.peer)
    for name, measure in todo.items():
        if given.only is None or name in given.only:
            began = time.process_time()
            rows[name] = {k: round(v, 3) if isinstance(v, float) else v for k, v in measure().items()}
            rows[name]["cpu_seconds"] = round(time.process_time() - began, 1)
            about = {"command": "python -m benchmarks.informed", "reward": "HepG2 log-odds", "judge": "dna-judge"}
            OUT.write_text(json.dumps(about | {"masked": MASKED, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
