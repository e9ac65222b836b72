"""What there is: one line for every guide, for the documentation and the command line.

python -m guidekit.guides.catalog > docs/guides.md
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from .cite import PAPERS

G, M, U = "Gaussian", "masked", "uniform"
ALL = (G, M, U)


class Entry(NamedTuple):
    """One guide.

    about      what it does
    processes  that it serves
    rows       network rows of a particle and step beyond the one of the model
    exact      what is exact about the law of its samples, or ""
    changes    "target" | "weights" | "selection" | "start" | "noise" | "condition" | "nothing"
    """

    about: str
    processes: tuple[str, ...]
    rows: str
    exact: str
    changes: str


TILTED = "p exp(r/alpha)/Z, under the weights"
ONE = "1, in a forward of the other network"

GROUPS: dict[str, dict[str, Entry]] = {
    "Steering with rewards": {
        "SVDD": Entry("one of several children lives", ALL, "candidates - 1", f"{TILTED}; alpha = 0 is greedy", "weights"),
        "FKSteering": Entry("resampling by potentials", ALL, "0", TILTED, "weights"),
        "TDS": Entry("climbs the reward's gradient, corrected", (G,), "0, and a backward pass", TILTED, "weights"),
        "DAS": Entry("the same with tempering", (G,), "0, and a backward pass", TILTED, "weights"),
        "FKC": Entry("products of powers, corrected", (G, M), "1 for each factor but the first", "the product, for small steps; for tokens, one at a time", "target"),
        "BeamSearch": Entry("the best of all children live", ALL, "branch - 1", "", "selection"),
        "DSearch": Entry("a beam that narrows", ALL, "branch - 1", "", "selection"),
        "BestOfN": Entry("the best of n chains", ALL, "n - 1", "N p F^(N-1)", "selection"),
        "Resample": Entry("resampling by the weights of other guides", ALL, "0", "leaves the weighted law as it is", "selection"),
        "DDCM": Entry("noise from a codebook; a sample is a short code", (G,), "0", "", "noise"),
        "StartFrom": Entry("begins at given samples, noised", ALL, "0", "p, where the samples follow p", "start"),
    },
    "Classifier-free guidance and its relatives": {
        "CFG": Entry("away from the model without its condition", ALL, "1", "", "target"),
        "APG": Entry("across the prediction, with momentum", (G,), "1", "", "target"),
        "CFGZero": Entry("with a fitted scale, and zero at first", (G,), "1", "", "target"),
        "TCFG": Entry("the unconditional part that both share", (G,), "1", "", "target"),
        "MagnitudeAware": Entry("less of it where it is large", (G,), "1", "", "target"),
        "CFGpp": Entry("with the noise of the unconditional model", (G,), "1", "", "target"),
        "CADS": Entry("noise on the condition, for diversity", ALL, "0", "", "condition"),
    },
    "Perturbed networks": {
        "PAG": Entry("away from the model with attention made the identity", ALL, "1", "", "target"),
        "SEG": Entry("away from the model with blurred attention", ALL, "1", "", "target"),
        "SLG": Entry("away from the model with layers skipped", ALL, "1", "", "target"),
    },
    "Weaker and stronger models": {
        "AutoGuidance": Entry("away from a weaker model", ALL, ONE, "", "target"),
        "Distillation": Entry("a teacher corrects a student's first steps", (G,), "1 of the teacher (2 with cfg), while it acts", "", "target"),
        "HiGS": Entry("away from what was predicted before", (G,), "0", "", "target"),
    },
    "Rare samples": {
        "MinorityGuidance": Entry("a classifier of how rare a sample is", (G,), "0", "p given the quantile, for the exact classifier and small steps", "target"),
        "SelfGuidedMinority": Entry("towards what the model does not reconstruct", (G,), "1 in every interval-th step, and a backward pass", "", "target"),
        "BoostAndSkip": Entry("more noise at first, some steps left out", (G,), "0", "the deviation of Gaussian data", "start"),
    },
    "Training-free guidance": {
        "TFG": Entry("gradients of a reward at x_t and at the estimate", (G,), "recur - 1, and a backward pass", "", "target"),
        "DPS": Entry("the gradient through the network", (G,), "0, and a backward pass", "", "target"),
        "LGD": Entry("the same, of a smoothed reward", (G,), "0, and a backward pass", "", "target"),
        "MPGD": Entry("the gradient at the estimate", (G,), "0", "", "target"),
        "FreeDoM": Entry("DPS with recurrences", (G,), "recur - 1, and a backward pass", "", "target"),
        "UGD": Entry("both gradients, with recurrences", (G,), "recur - 1, and a backward pass", "", "target"),
    },
    "Guidance by classifiers": {
        "ClassifierGuidance": Entry("the gradient of a classifier of noisy states", (G,), "0", "p given the label, for the exact classifier and small steps", "target"),
        "GFCG": Entry("away from the classes it is confused with", ALL, "references", "as above where references are all", "target"),
        "AdvDiff": Entry("towards a class that is wrong", (G,), "0", "", "target"),
        "DCBG": Entry("a classifier, token by token", (M,), "0", "p given the label, for the exact classifier and many steps", "target"),
        "TAG": Entry("the same to first order", (M,), "0", "where log p(y given x) is linear", "target"),
    },
    "Composition": {
        "Compose": Entry("products and contrasts of conditions and models", ALL, "1 for each expert and null condition", "Gaussians of one width; see `exact()`", "target"),
        "Mixture": Entry("a mixture of conditions and models", ALL, "1 for each expert", "for small steps; for tokens, one at a time", "target"),
        "Views": Entry("one sample, several views of it", (G,), "1 for each view", "", "target"),
        "Switch": Entry("other conditions from a point of the run on", ALL, "0", "", "condition"),
        "MagicMix": Entry("keeps the layout of a sample", (G,), "0", "", "target"),
        "Regions": Entry("a condition in every region", ALL, "1 for each condition", "", "target"),
    },
    "Diagnosis": {
        "Hallucination": Entry("tells samples between modes by their unsteady estimates", (G,), "0", "", "nothing, or weights"),
    },
}  # fmt: skip

GUIDES = {name: entry for group in GROUPS.values() for name, entry in group.items()}
_CITED_AS = {"FKC": "Corrector", "DSearch": "BeamSearch"}

_COLUMNS = "| guide | | paper | processes | rows | exact | changes |"
_HEAD = """\
# The guides

Written by `python -m guidekit.guides.catalog`; a test holds it against the classes. *Rows* are network rows of a particle and
step beyond the model's own; guides that read the same evaluation share it. *Exact* says for which law of the samples
there is a closed form, up to the error of the steps; the others are heuristics. A guide that changes the target can be
given `steer=True`: it then bends the proposal only, and weights correct for it, so that the law stays that of the
others. `gk.cite(guides)` prints the papers as BibTeX.

![One panel for every guide: samples of a mixture in two dimensions](guides.png)

The picture is made by `python benchmarks/gallery.py --out docs/guides.png`. Grey lines are the law of the model at its
condition, dots are samples, as dark as they weigh.
"""


def table() -> str:
    """docs/guides.md."""
    parts = [_HEAD]
    for title, entries in GROUPS.items():
        rows = [_line(name, entry) for name, entry in entries.items()]
        parts.append("\n".join([f"## {title}\n", _COLUMNS, "|---" * 7 + "|", *rows]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _line(name: str, entry: Entry) -> str:
    _, _, title, year, where = PAPERS[_CITED_AS.get(name, name)]
    paper = f"[{title}, {year}](https://arxiv.org/abs/{where})" if where[-1].isdigit() else f"{title}, {where}, {year}"
    cells = (f"`{name}`", entry.about, paper, ", ".join(entry.processes), entry.rows, entry.exact, entry.changes)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.write(table())
