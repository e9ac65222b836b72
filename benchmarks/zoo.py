"""Steering compared with best-of-N on the bundled models, at equal network evaluations, by held-out judges.

    python benchmarks/zoo.py --n 100          # writes benchmarks/results/zoo.json
    python benchmarks/zoo.py --new            # only the methods that are not in it, in the same setting
    python benchmarks/zoo.py --page           # docs/results.md from it

All methods get K = 4 times the network evaluations of the unguided run: best-of-4 draws four times as many samples,
SVDD draws four children of each particle, and Feynman-Kac steering runs four times as many particles, from which as
many samples as the others return are drawn by weight. Beside them stand best-of-8, and
for tokens SVDD whose four or ten candidates are scored with what was said of their parent, which takes the evaluations
of the unguided run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import guidekit as gk

K = 4
PARENT = "SVDD by the parent"
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "zoo.json"


@dataclass
class Domain:
    """What is steered by what, and how it is judged: `judges` are functions of samples and of unguided ones."""

    model: str
    title: str
    reward: Any
    alpha: float
    steps: int
    judges: dict[str, Callable[[Any, Any], float]]


def dna() -> Domain:
    from rewards.dna import CellType, edit_distance_diversity, kmer_correlation, uniqueness

    judge = CellType("HepG2", "dna-judge")
    return Domain(
        "dna", "Enhancers of HepG2: log-odds of the cell type by `dna-oracle`", CellType("HepG2"), 1.0, 50,
        {
            "held-out oracle": lambda s, _: float(judge(s).mean()),
            "3-mers as unguided": lambda s, plain: kmer_correlation(s, plain, 3),
            "edit distance": lambda s, _: edit_distance_diversity(s),
            "unique": lambda s, _: uniqueness(s),
        },
    )  # fmt: skip


def fashion() -> Domain:
    from rewards.images import Classifier, frechet_distance

    label = gk.zoo.card("fashion")["classes"].index("sandal")
    guide, judge = gk.zoo.network("fashion-classifier"), gk.zoo.network("fashion-judge")
    held_out = Classifier(judge, label)
    with torch.no_grad():
        drawn = gk.sample(gk.zoo.load("fashion"), 300, steps=40, cond=label, seed=7, batch_size=300)
        natural = judge.features(drawn.samples)  # type: ignore[operator]

    def distance(s: torch.Tensor, _: Any) -> float:
        with torch.no_grad():
            return float(frechet_distance(judge.features(s), natural))  # type: ignore[operator]

    return Domain(
        "fashion", "Sandals from the unconditional model: log-probability by `fashion-classifier`",
        Classifier(guide, label), 1.0, 40,
        {
            "held-out oracle": lambda s, _: float(held_out(s).mean()),
            "judged a sandal": lambda s, _: float((held_out(s).exp() > 0.5).double().mean()),
            "distance to conditional samples": distance,
            "pixel distance": lambda s, _: float(torch.pdist(s.flatten(1)).mean()),
        },
    )  # fmt: skip


def molecules() -> Domain:
    from rewards import geometric_mean
    from rewards.molecules import QED, SA, Alerts, LogP, metrics
    from rewards.transforms import ReverseSigmoid

    alerts = Alerts("BRENK")
    return Domain(
        "molecules", "Drug-like and easy to make: geometric mean of QED and of SA through a sigmoid",
        geometric_mean([QED(), SA().transformed(ReverseSigmoid(2.0, 4.0))]), 0.05, 20,
        {
            "QED": lambda s, _: float(QED()(s).nanmean()),
            "SA": lambda s, _: float(SA()(s).nanmean()),
            "free of BRENK alerts (held out)": lambda s, _: float((alerts(s) == 0).double().mean()),
            "logP": lambda s, _: float(LogP()(s).nanmean()),
            "valid": lambda s, _: metrics.validity(s),
            "unique": lambda s, _: metrics.uniqueness(s),
            "diversity": lambda s, _: metrics.internal_diversity(s),
        },
    )  # fmt: skip


DOMAINS = {"molecules": molecules, "dna": dna, "fashion": fashion}


def methods(reward: Any, n: int, alpha: float, tokens: bool) -> dict[str, tuple[int, list[gk.Guide]]]:
    """Samples to draw, and guides."""
    own = {PARENT: K, f"{PARENT}, 10": 10}
    parent: dict[str, tuple[int, list[gk.Guide]]] = {
        name: (n, [gk.SVDD(reward, 0.0, m, value="parent")]) for name, m in own.items()
    }
    return {
        "unguided": (n, []),
        f"best of {K}": (n, [gk.BestOfN(reward, K)]),
        f"best of {2 * K}": (n, [gk.BestOfN(reward, 2 * K)]),
        "SVDD": (n, [gk.SVDD(reward, 0.0, K)]),
        "SVDD, weighted": (n, [gk.SVDD(reward, alpha, K), gk.Resample()]),
        "FK steering": (K * n, [gk.FKSteering(reward, alpha)]),
        **(parent if tokens else {}),
    }


def measured(domain: Domain, n: int, seeds: int, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each method: means over seeds. Those that are known are not measured again."""
    model = gk.zoo.load(domain.model)
    plain: dict[int, Any] = {}
    tokens = isinstance(model, gk.MaskedModel)
    for name, (count, guides) in methods(domain.reward, n, domain.alpha, tokens).items():
        if name != "unguided" and any(row["method"] == name for row in known):
            continue
        found = []
        for seed in range(seeds):
            result = gk.sample(
                model, count, steps=domain.steps, guides=guides, seed=seed, batch_size=500, progress=True
            )
            result = result.resample(seed=seed) if guides else result
            samples = result.samples[:n]
            plain.setdefault(seed, samples)
            found.append(
                {"guiding reward": float(domain.reward(samples).nanmean())}
                | {k: f(samples, plain[seed]) for k, f in domain.judges.items()}
                | {"network rows": result.cost.network_rows, "reward calls": result.cost.reward_calls}
            )
        means = {k: sum(f[k] for f in found) / seeds for k in found[0]}
        if any(row["method"] == name for row in known):
            continue
        yield {"method": name} | {k: round(v, 3) for k, v in means.items()}


_HEAD = """\
# Steering compared with best-of-N

Does steering give better samples than drawing more and keeping the best? This page compares them on the
[bundled models](zoo.md) at equal cost: every method gets four times the network evaluations (NFE) of the unguided run.
Two stand beside them: best-of-8 with eight times, and, for tokens, "SVDD by the parent" with those of the unguided run.
Of molecules the NFE are fewer than that: rows that are equal, or in which nothing is left to draw, are not evaluated.
`python benchmarks/zoo.py` runs the comparison, writes `benchmarks/results/zoo.json` and makes this page from it.

The guiding reward says little by itself, because it is what the method optimises. Look at the held-out measures, which
took no part in steering: a second DNA oracle, a second image classifier, and structural alerts of molecules. Means are
over equally weighted samples, after resampling by weight where a method returns weights. FK steering uses its budget on
four times as many particles, of which the first quarter is measured; relatives stand next to each other there, so its
diversity is understated. The sample sizes are small: do not read much into the second digit.

"""

_TAIL = """\

* **DNA: steering pays.** Every steered run goes far beyond best-of-4, and the held-out oracle agrees. Methods that
  resample the population pay with diversity, and their 3-mer frequencies drift from those of the model. The best row
  costs least: SVDD with `value="parent"` completes every child by what the network said of its parent, so that ten
  candidates take the network evaluations of one. A likely reason: all children are completed alike, so that what is
  compared is what was drawn, and not how the rest of the estimate changes.
* **Images: it depends on the method.** With weights and resampling, SVDD draws what the judge takes for sandals in two
  samples of three. Plain SVDD convinces the classifier that guides it much more than the one that judges. FK steering
  collapses onto near copies of a few images, most of which the judge does not take for sandals.
* **Molecules: mostly it does not pay.** The unguided model draws good molecules often enough that best-of-4 beats plain
  SVDD. Weighted SVDD and FK steering are slightly better than best-of-4, but about half of their molecules are
  duplicates. By the parent, SVDD needs a third of its evaluations for about the same reward, and is still behind
  best-of-4, which needs few reward calls.

Steering also needs many more reward calls than best-of-4, as the last column shows. If your reward costs as much as the
network, that matters more than the network evaluations."""

# What the short table shows: a measure of a domain, in whose runs it took no part.
_SHORT = (
    ("DNA: log-odds of HepG2 by a held-out oracle", "dna", "held-out oracle"),
    ("DNA: share of distinct sequences", "dna", "unique"),
    ("images: share that a held-out classifier takes for a sandal", "fashion", "judged a sandal"),
    ("images: mean pixel distance between two samples", "fashion", "pixel distance"),
    ("molecules: share without structural alerts", "molecules", "free of BRENK alerts (held out)"),
    ("molecules: share of distinct molecules", "molecules", "unique"),
)

# Columns as the page names them.
_NAMES = {
    "3-mers as unguided": "3-mer correlation with unguided",
    "edit distance": "mean edit distance",
    "unique": "distinct",
    "network rows": "NFE",
}


def summary(found: dict[str, Any]) -> list[str]:
    """The short table, which the README shows too."""
    methods = [row["method"] for row in found["domains"]["dna"]["rows"]]
    lines = ["| higher is better | " + " | ".join(methods) + " |", "|" + "---|" * (1 + len(methods))]
    for text, domain, column in _SHORT:
        by_method = {row["method"]: f"{row[column]:.3g}" for row in found["domains"][domain]["rows"]}
        lines.append(f"| {text} | " + " | ".join(by_method.get(m, "") for m in methods) + " |")
    return lines


def page(found: dict[str, Any]) -> str:
    """docs/results.md."""
    lines = [_HEAD + "\n".join(summary(found)), _TAIL]
    for own in (found["domains"][name] for name in DOMAINS if name in found["domains"]):
        columns = list(own["rows"][0])
        seeds = "1 seed" if own["seeds"] == 1 else f"means of {own['seeds']} seeds"
        lines += ["", f"## {own['title']}", ""]
        lines += [f"{own['n']} samples, {own['steps']} steps, alpha = {own['alpha']:g}, {seeds}.", ""]
        lines += ["| " + " | ".join(str(_NAMES.get(c, c)) for c in columns) + " |", "|" + "---|" * len(columns)]
        lines += [
            "| " + " | ".join(f"{row[c]:g}" if c != "method" else str(row[c]) for c in columns) + " |"
            for row in own["rows"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=DOMAINS, nargs="*", default=list(DOMAINS))
    parser.add_argument("--new", action="store_true", help="measure what the stored results lack, in their setting")
    parser.add_argument("--page", action="store_true", help="write docs/results.md from the stored results alone")
    args = parser.parse_args()
    if not args.page:
        for name in args.only:
            d = DOMAINS[name]()
            found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"domains": {}}
            old = found["domains"].get(name, {}) if args.new else {}
            n, seeds = old.get("n", args.n), old.get("seeds", args.seeds)
            rows = list(old.get("rows", []))
            own = {"title": d.title, "alpha": d.alpha, "steps": d.steps, "n": n, "seeds": seeds, "rows": rows}
            found["domains"][name] = own
            for row in measured(d, n, seeds, old.get("rows", [])):
                print(row, flush=True)
                rows.append(row)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = page(json.loads(RESULTS.read_text(encoding="utf-8")))
    (HERE.parent / "docs" / "results.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
