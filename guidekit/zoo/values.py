"""Learned values of the bundled models, as look-aheads: `gk.zoo.value("dna-value")`.

    python -m guidekit.zoo.values dna-value

draws rollouts of the model, fits the soft value alpha log E[exp(r/alpha) | x_t] of one reward (`gk.values.fit`), and
writes the weights with their card, unless the value is no better than a constant. Of tokens it is the mean reward of a
few completions, corrected at each time, of molecules together with a linear head on what the model says; of images it
is a network. It resumes from --folder if it was interrupted. `python -m guidekit.zoo.evaluate dna-value --n 400`
measures it on new rollouts, and steers by it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import values
from ..engine.sample import sample
from ..guides import SVDD, BestOfN
from ..models import Model
from ..models.base import stack
from ..values.learned import Correction, Scaled
from . import WEIGHTS, card, load, network, written
from .data import CLASSES


@dataclass(frozen=True)
class Task:
    """The model, the reward with its description for the card, another to judge by, and how the value is fitted.

    A value with `completions` is the mean reward of so many, corrected: by what the network said of the parent, at no
    evaluation of its own; or, with a `head` of so many tokens, of the state itself, and together with a linear
    head that reads the same prediction.
    """

    model: str
    reward: Callable[[], Any]
    words: str
    judge: Callable[[], Any]
    judged: str
    alpha: float
    rollouts: int = 2000
    steps: int = 40
    completions: int = 0
    head: int = 0
    fit: dict[str, Any] = field(default_factory=lambda: {"epochs": 60})

    @property
    def looks(self) -> tuple[values.Value, ...]:
        """The look-aheads that the value corrects."""
        if not self.completions:
            return ()
        own = values.Rollout(self.reward(), k=self.completions, alpha=self.alpha, shared=True, parent=not self.head)
        return (own, values.Pooled(self.head)) if self.head else (own,)


def _cell(oracle: str = "dna-oracle") -> Any:
    from rewards.dna import CellType

    return CellType("HepG2", oracle)


def _molecule(name: str) -> Any:
    from rewards import molecules

    return getattr(molecules, name)()


def _bag(name: str = "fashion-classifier") -> Any:
    from rewards.images import Classifier

    return Classifier(network(name), CLASSES.index("bag"))


TASKS = {
    "dna-value": Task(
        "dna", _cell, "rewards.dna.CellType('HepG2'), log-odds by dna-oracle", partial(_cell, "dna-judge"),
        "the same by dna-judge", 4, 512, 20, 8, 0, {"per_rollout": 4, "epochs": 0},
    ),
    "fashion-value": Task(
        "fashion", _bag, "log-probability of a bag by fashion-classifier", partial(_bag, "fashion-judge"),
        "the same by fashion-judge", 2,
    ),
    "molecules-value": Task(
        "molecules", partial(_molecule, "LogP"), "rewards.molecules.LogP()", partial(_molecule, "QED"), "QED",
        1, 6000, 20, 8, 512, {"per_rollout": 6, "epochs": 0},
    ),
}  # fmt: skip


def blank(name: str, model: Model) -> Scaled:
    """The network of a value without a condition, untrained."""
    from ..values.nets import Nothing, default

    if TASKS[name].completions:
        head = TASKS[name].head
        return Scaled(Nothing(), path=Correction(1 + head, many=head))
    dtype = model.dtype if model.dtype.is_floating_point else torch.float32
    return Scaled(default(model, torch.zeros(2, *model.shape, dtype=dtype), stack([model.encode(None)])))


def load_value(name: str, device: torch.device | str | None = None) -> values.Learned:
    """A bundled value."""
    from . import state

    own = card(name)
    if own["kind"] != "value":
        raise ValueError(f"zoo: {name!r} is a {own['kind']}, and no value")
    net = blank(name, load(own["model"]))
    net.load_state_dict(state(name))
    return values.Learned(net.eval().requires_grad_(False).to(device or "cpu"), looks=TASKS[name].looks)


def train(name: str, folder: Path, weights: Path = WEIGHTS, progress: bool = True) -> None:
    """Fit a value and write it with its card; one that is no better than a constant is not written."""
    task, began = TASKS[name], time.perf_counter()
    model = load(task.model)
    value = values.fit(
        model, task.reward(), alpha=task.alpha, rollouts=task.rollouts, steps=task.steps,
        batch_size=256, looks=task.looks, folder=folder / name, progress=progress, **task.fit,
    )  # fmt: skip
    found = value.calibration
    assert isinstance(value.net, torch.nn.Module) and found is not None
    if not found.useful:
        raise RuntimeError(f"{name} is not written, for it predicts no better than a constant:\n{found}")
    epochs = card(task.model)["training"]["epochs"]
    about = {
        "name": name, "network": "values", "kind": "value", "model": task.model, "options": {}, "classes": [],
        "data": f"{task.rollouts} rollouts of {task.model}, trained for {epochs} epochs, {task.steps} steps; "
        f"reward {task.words}; "
        f"soft value at alpha = {task.alpha:g}, without a condition",
        "training": {
            "command": f"python -m guidekit.zoo.values {name}",
            "minutes": round((time.perf_counter() - began) / 60, 1),
            "epochs": found.epochs, "validation loss": round(found.loss, 4),
        },
        "metrics": {
            "held-out rollouts": found.held_out, "loss of the best constant": round(found.constant, 4),
            "explained variance": round(found.explained_variance, 3), "calibration error": round(found.error, 4),
            "calibration error by chance alone": round(found.noise, 4),
        },
    }  # fmt: skip
    written(name, value.net, about, weights)


def explained(name: str, n: int, seed: int = 1, **options: Any) -> tuple[values.Explained, ...]:
    """What the value explains of the reward at each time, and what can be explained, over n new rollouts; `options` as
    in `gk.values.explained`."""
    task, model = TASKS[name], load(TASKS[name].model)
    return values.explained(
        model, task.reward(), load_value(name), n=n, steps=task.steps, batch_size=256, seed=seed, **options
    )


def measured(name: str, n: int) -> dict[str, Any]:
    """Figures for the card: explained variance on fresh rollouts, and what SVDD reaches with the value and without."""
    task, value = TASKS[name], load_value(name)
    reward, judge, few = task.reward(), task.judge(), max(8, n // 8)
    found: dict[str, Any] = {
        f"explained variance at t = {row.t:.3g} on {n} new rollouts, and the most that is possible": [
            round(row.explained[0], 3), round(row.possible, 3)
        ] for row in explained(name, n)
    }  # fmt: skip
    learned = SVDD(reward, candidates=4, value=value)
    for words, guides in {
        "unguided": [],
        "SVDD of 4 with this value": [learned],
        "SVDD of 4 with this value, best of 4": [learned, BestOfN(reward, 4)],
        "SVDD of 4 with the default look-ahead": [SVDD(reward, candidates=4)],
    }.items():
        result = sample(load(task.model), few, steps=task.steps, guides=guides, seed=2, batch_size=256)
        scores = (round(float(f(result.samples).nanmean()), 3) for f in (reward, judge))
        found[f"{words}: reward, {task.judged}, network rows"] = [*scores, result.cost.network_rows]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TASKS)
    parser.add_argument("--folder", type=Path, default=Path("out/zoo"), help="rollouts and checkpoints")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    train(args.name, args.folder, args.weights, not args.quiet)


if __name__ == "__main__":
    main()
