"""The cards of the bundled models as a page: `python -m guidekit.zoo.cards > docs/zoo.md`."""

from __future__ import annotations

import sys
from typing import Any

from . import card, entries

_HEAD = """\
# The bundled models

Written by `python -m guidekit.zoo.cards` from the cards in `guidekit/zoo/weights`; a test holds it against them.

```python
import guidekit as gk

print(gk.zoo.names(), gk.zoo.entries())
model = gk.zoo.load("fashion")  # a base model: offline, at once
images = gk.sample(model, 4, steps=10, guides=[gk.CFG(2.0)], cond="sneaker").samples
judge = gk.zoo.network("fashion-judge")  # a classifier
print(images.shape, judge(images).argmax(1))
value = gk.zoo.value("fashion-value")  # learned: how likely a bag, read off x_t alone; for value= of SVDD and others
```

`gk.zoo.card(name)` is what stands below. Weights are half precision in safetensors; loading checks their SHA-256. Every
entry is trained by the command on its card, from data that `guidekit.zoo.data` reads out of packages of public
registries, and measured by `python -m guidekit.zoo.evaluate NAME`.

These are small models, trained for minutes to hours on a processor, to try methods on. The figures say how far they are
from the data.
"""

_PICTURES = {
    "molecules": "histograms of properties of samples and of MOSES' test set",
    "fashion": "ten samples of each class, a row for each",
}

_FIXED = ("steps", "diversity", "novelty", "unique", "validity", "least", "QED and", "FCD of as many", "minority")


def page() -> str:
    """docs/zoo.md."""
    return "\n".join([_HEAD, *(_entry(card(name)) for name in entries())])


def _entry(own: dict[str, Any]) -> str:
    training = own["training"]
    lines = [
        f"## {own['name']}",
        "",
        f"{own['kind'][0].upper()}{own['kind'][1:]}: `{own['network']}`, {own['parameters'] / 1e6:.2f} million "
        f"parameters, {own['bytes'] / 1e6:.1f} MB."
        + (f" Classes: {'; '.join(own['classes'])}." if own["classes"] else f" For `{own['model']}`."),
        "",
        f"* data: {own['data']}",
        f"* training: `{training['command']}`, {training['minutes']} minutes, {training['epochs']} epochs, "
        f"validation loss {training['validation loss']}",
        *(f"* {k}: {v}" for k, v in own.get("metrics", {"metrics": "not measured"}).items()),
    ]
    if own.get("earlier"):
        lines += ["", "Figures against training time:", "", *_curve(own)]
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
