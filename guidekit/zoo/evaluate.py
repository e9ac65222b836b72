"""Measure the bundled models on held-out data and write the figures to their cards:

    python -m guidekit.zoo.evaluate fashion --n 2000

Every figure is accompanied by the same one for real data, and by the number of samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.sample import sample
from ..guides import CFG, PAG, AutoGuidance, MinorityGuidance
from . import WEIGHTS, card, data, load, network

Figures = dict[str, Any]
DOCS = WEIGHTS.parents[2] / "docs"


def _in_parts(f: Callable[[Tensor], Tensor], x: Tensor, size: int = 1000) -> Tensor:
    with torch.no_grad():
        return torch.cat([f(part) for part in x.split(size)])


def classifier(name: str, n: int, steps: int) -> Figures:
    """Accuracy on the test set."""
    if name.startswith("dna"):
        texts, y = data.dna("test")
        x = torch.nn.functional.one_hot(data.encoded(texts), 4).float().mT
    else:
        x, y = data.fashion("test")
    correct = _in_parts(network(name), x).argmax(1) == y
    return {"test accuracy": round(float(correct.float().mean()), 4), "test samples": len(y)}


def fashion(name: str, n: int, steps: int) -> Figures:
    """Accuracy of conditional samples by the classifier, Frechet distances in features of the judge, rareness."""
    from rewards.images import frechet_distance

    from ..guides.minority_guidance import minority_score

    model, guess, judge = load(name), network("fashion-classifier"), network("fashion-judge")
    x, y = data.fashion("test")
    half = len(x) // 2
    features = _in_parts(judge.features, x)  # type: ignore[operator,arg-type]
    others, few = data.fashion("train")[0], min(n, GUIDED)
    others = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:n]]

    def frechet(images: Tensor) -> float:
        return round(float(frechet_distance(_in_parts(judge.features, images), features)), 4)  # type: ignore[arg-type]

    found: Figures = {
        "samples": n, "samples with guidance": few, "steps": steps,
        "accuracy of real images": round(float((_in_parts(guess, x).argmax(1) == y).float().mean()), 4),
        "Frechet distance of two real halves": round(float(frechet_distance(features[:half], features[half:])), 4),
        f"Frechet distance of {n} training images": frechet(others),
        f"Frechet distance of {few} training images": frechet(others[:few]),
    }  # fmt: skip
    for title, guides in _EFFECTS.items() if name == "fashion" else [("", list)]:
        each = (few if title else n) // 10
        result = sample(model, each, steps=steps, guides=guides(), cond=list(range(10)), batch_size=500, progress=True)
        images: Tensor = result.samples
        if name == "fashion" and not title:
            picture(images, result.group, DOCS / "zoo-fashion.png")
        right = _in_parts(guess, images).argmax(1) == result.group
        found[f"accuracy{title}"] = round(float(right.float().mean()), 4)
        found[f"Frechet distance{title}"] = frechet(images)
        if each > few // 10:
            found[f"Frechet distance of {few}"] = frechet(
                images.view(10, each, *images.shape[1:])[:, : few // 10].flatten(0, 1)
            )
        chosen = torch.arange(0, len(images), max(1, len(images) // 200))
        rare = minority_score(model, result.x[chosen], noises=4, batch_size=400)
        found[f"minority score of {len(chosen)}{title}"] = round(float(rare.mean()), 4)
    return found


def picture(images: Tensor, group: Tensor, file: Path) -> None:
    """Draw ten samples of each class, one row per class, if there is a docs folder."""
    from ..report.export import sheet
    from ..report.images import pixels, png

    rows = [images[group == g][:10] for g in group.unique().tolist()]
    if file.parent.is_dir() and (batch := pixels(torch.cat(rows))) is not None:
        file.write_bytes(png(sheet(batch)))


GUIDED = 400  # samples with each kind of guidance
_EFFECTS: dict[str, Callable[[], list[Any]]] = {
    "": list,
    ", CFG 2": lambda: [CFG(2.0)],
    ", PAG 1": lambda: [PAG(1.0)],
    ", autoguidance 1.2": lambda: [AutoGuidance(load("fashion-weak"), 1.2)],
    ", minority guidance 1": lambda: [MinorityGuidance(network("fashion-minority"), 1.0)],
}


def dna(name: str, n: int, steps: int) -> Figures:
    """k-mers compared with held-out sequences, cell types according to the judge, and distances to the training set."""
    from rewards.dna import kmer_correlation, nearest_edit_distance, uniqueness

    model, judge = load(name), network("dna-judge")
    real, labels = data.dna("test")
    known = data.dna("training")[0]

    def types(texts: list[str]) -> Tensor:
        x = torch.nn.functional.one_hot(data.encoded(texts), 4).float().mT
        return _in_parts(judge, x).argmax(1)

    found: Figures = {
        "samples": n, "steps": steps,
        "cell type of real sequences": round(float((types(real) == labels).float().mean()), 4),
        "3-mer correlation of two real halves": round(kmer_correlation(real[::2], real[1::2], 3), 4),
        "6-mer correlation of two real halves": round(kmer_correlation(real[::2], real[1::2], 6), 4),
    }  # fmt: skip
    for title, guides in (("", []), (", CFG 2", [CFG(2.0)]), (", CFG 4", [CFG(4.0)])):
        options = {"steps": steps, "cond": list(range(4)), "batch_size": 500, "progress": True}
        result = sample(model, n // 4, guides=guides, **options)
        own: list[str] = result.samples
        found[f"3-mer correlation{title}"] = round(kmer_correlation(own, real, 3), 4)
        found[f"6-mer correlation{title}"] = round(kmer_correlation(own, real, 6), 4)
        found[f"cell type{title}"] = round(float((types(own) == result.group).float().mean()), 4)
        found[f"unique{title}"] = round(uniqueness(own), 4)
        if not title:
            near = nearest_edit_distance(own[:100], known)
            found["least edit distance of 100 to the training set"] = int(min(near))
    return found


def clip(name: str, n: int, steps: int) -> Figures:
    """Fraction of test images whose nearest caption, of ten, is that of their class; loaded as the rewards load it."""
    from . import clip as load_clip
    from .train import TEMPLATES

    own, (x, y) = load_clip(name), data.fashion("test")
    found: Figures = {"test images": len(y)}
    for template in TEMPLATES[:3]:
        texts = own.texts([template.format(c) for c in data.CLASSES], x.device)
        right = _in_parts(own.images, x) @ texts.T
        found[f"top-1 of ten captions, {template.format('...')!r}"] = round(
            float((right.argmax(1) == y).float().mean()), 4
        )
    return found


def noisy(name: str, n: int, steps: int) -> Figures:
    """Rank correlation of the expected quantile with the actual score of test images, at several noise levels."""
    from scipy.stats import spearmanr

    from ..guides import minority_guidance as minority
    from .train import MEAN, STD

    x = (data.fashion("test")[0][:1000] - MEAN) / STD
    scores, net = minority.minority_score(load("fashion"), x, noises=4, batch_size=400), network(name)
    found: Figures = {"test images": len(x)}
    for t in (0.05, 0.3, 0.6, 0.8):
        angle = torch.tensor(t * torch.pi / 2)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        logits = _in_parts(lambda v, t=t: net(v, torch.full((len(v),), t)), angle.cos() * x + angle.sin() * noise)
        expected = logits.softmax(1) @ torch.arange(logits.shape[1]).float()
        found[f"rank correlation with the score, t = {t}"] = round(float(np.asarray(spearmanr(expected, scores))[0]), 3)
    return found


PROPERTIES = ("QED", "LogP", "HeavyAtoms", "Rings", "aromatic atoms")


def properties(smiles: list[str]) -> dict[str, Tensor]:
    """Descriptors of the valid molecules."""
    from rdkit import Chem

    from rewards import molecules as m

    mols = [mol for s in smiles if s and (mol := Chem.MolFromSmiles(s)) is not None]
    texts = [Chem.MolToSmiles(mol) for mol in mols]
    found = {k: getattr(m, k)()(texts).double() for k in PROPERTIES[:-1]}
    aromatic = [sum(a.GetIsAromatic() for a in mol.GetAtoms()) for mol in mols]
    return found | {PROPERTIES[-1]: torch.tensor(aromatic, dtype=torch.float64)}


def alike(texts: list[str], known: list[str]) -> list[str]:
    """The known molecules that could equal one of the texts: they have the same atoms and number of rings."""

    def formula(s: str) -> str:
        return "".join(sorted(c.lower() for c in s if c.isalnum() and c not in "Hh"))

    def counted(s: str) -> str:
        return "".join("0" if c.isdigit() else c for c in formula(s))

    wanted = {counted(s) for s in texts}
    return [s for s in known if counted(s) in wanted]


def molecules(name: str, n: int, steps: int) -> Figures:
    """Validity, uniqueness, novelty, descriptor means and FCD, compared with as many molecules of MOSES' test set."""
    from rewards.molecules.descriptors import canonical
    from rewards.molecules.metrics import fcd, internal_diversity, novelty, uniqueness, validity

    model = load(name)
    known, real = data.molecules("train"), data.molecules("test")
    pick = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:n].tolist()
    real = [real[i] for i in pick]
    own: list[str] = sample(model, n, steps=steps, batch_size=1000, progress=True).samples
    texts = [c for s in own if (c := canonical(s))]
    found: Figures = {
        "samples": n, "steps": steps,
        "validity": round(validity(own), 4), "uniqueness": round(uniqueness(own), 4),
        "novelty": round(novelty(own, alike(texts, known)), 4), "diversity": round(internal_diversity(own[:1000]), 4),
        "diversity of real molecules": round(internal_diversity(real[:1000]), 4),
    }  # fmt: skip
    ours, theirs = properties(own), properties(real)
    for k in PROPERTIES:
        found[f"mean {k}"] = round(float(ours[k].mean()), 3)
        found[f"mean {k} of real molecules"] = round(float(theirs[k].mean()), 3)
    valid = [s for s in own if s]
    train = [known[i] for i in torch.randperm(len(known), generator=torch.Generator().manual_seed(1))[:n].tolist()]
    found["FCD"] = round(fcd(valid, real), 3)
    found["FCD of as many training molecules"] = round(fcd(train, real), 3)
    low, high = (
        sample(model, 300, steps=steps, cond=c, guides=[CFG(1.5)]).samples
        for c in ("low QED, low logP", "high QED, high logP")
    )
    for label, texts in (("low QED, low logP", low), ("high QED, high logP", high)):
        means = properties(texts)
        found[f"QED and logP of 300, {label}, CFG 1.5"] = [round(float(means[k].mean()), 3) for k in ("QED", "LogP")]
    if name == "molecules":
        plot_properties(ours, theirs, DOCS / "zoo-molecules.png")
    return found


def plot_properties(ours: dict[str, Tensor], theirs: dict[str, Tensor], file: Path) -> None:
    """Draw histograms side by side, if there is a docs folder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if not file.parent.is_dir():
        return
    figure, axes = plt.subplots(1, len(ours), figsize=(15, 3), layout="constrained")
    for axis, (k, v) in zip(axes, ours.items(), strict=True):
        both = torch.cat([v, theirs[k]])
        whole = bool((both == both.round()).all())
        low, high = float(both.min()), float(both.max())
        edges = torch.arange(low - 0.5, high + 1).tolist() if whole else torch.linspace(low, high, 40).tolist()
        for values, label in ((theirs[k], "MOSES test set"), (v, "samples")):
            axis.hist(values.numpy(), edges, density=True, histtype="step", linewidth=1.6, label=label)
        axis.set_title(k)
        axis.set_yticks([])
    axes[0].legend(frameon=False, loc="upper left")
    figure.savefig(file, dpi=110)


def evaluate(name: str, n: int, steps: int, weights: Path = WEIGHTS) -> Figures:
    """Measure an entry and write the figures to its card."""
    own = card(name)
    measure = _MEASURES[own["kind"]]
    own["metrics"] = measure(name, n, steps)
    (weights / f"{name}.json").write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
    return own["metrics"]


def value(name: str, n: int, steps: int) -> Figures:
    """What the fit measured, and the same on new rollouts; and what SVDD reaches with the value and without."""
    from .values import measured

    fitted = {k: v for k, v in card(name)["metrics"].items() if " on " not in k and "network rows" not in k}
    return fitted | measured(name, n)


def fragments(name: str, n: int, steps: int) -> Figures:
    """Of n molecules of each source, sampled one token at a time: `steps` are as many as tokens."""
    from . import druglike, measure
    from .fragments import Fragments

    found = measure.figures(network(name), Fragments.of(card(name)["tokens"]), n)
    answers = found.pop("conditions")
    flat = {f"{k}, {source}": v for source in druglike.SOURCES for k, v in found.pop(source).items()}
    flat |= {f"mean {k.split(', ')[0]} given {k.split(', ')[1]}": v for k, v in answers.items()}
    return found | {k: round(float(v), 4) for k, v in flat.items()}


_MEASURES = {
    "fragment model": fragments,
    "value": value,
    "classifier": classifier,
    "image model": fashion,
    "DNA model": dna,
    "molecule model": molecules,
    "CLIP": clip,
    "classifier of noised images": noisy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--n", type=int, default=2000, help="samples of a model")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    print(json.dumps(evaluate(args.name, args.n, args.steps), indent=1))


if __name__ == "__main__":
    main()
