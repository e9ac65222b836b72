"""Learned values of the bundled models, for look-aheads without evaluations: `gk.zoo.value("dna-value")`.

    python -m guidekit.zoo.values dna-value

draws rollouts of the model, trains the soft value alpha log E[exp(r/alpha) | x_t] of one reward (`gk.values.fit`), and
writes the weights with their card. It resumes from --folder if it was interrupted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import values
from ..models import Model
from ..models.base import stack
from . import WEIGHTS, card, load, network, written
from .data import CLASSES


@dataclass(frozen=True)
class Task:
    """The model, the reward with its description for the card, and the temperature."""

    model: str
    reward: Callable[[], Any]
    words: str
    alpha: float
    rollouts: int = 2000
    steps: int = 40


def _cell() -> Any:
    from rewards.dna import CellType

    return CellType("HepG2")


def _logp() -> Any:
    from rewards.molecules import LogP

    return LogP()


def _bag() -> Any:
    from rewards.images import Classifier

    return Classifier(network("fashion-classifier"), CLASSES.index("bag"))


TASKS = {
    "dna-value": Task("dna", _cell, "rewards.dna.CellType('HepG2'), log-odds by dna-oracle", 4),
    "fashion-value": Task("fashion", _bag, "log-probability of a bag by fashion-classifier", 2),
    "molecules-value": Task("molecules", _logp, "rewards.molecules.LogP()", 0.5, 4000, 20),
}  # fmt: skip


def blank(model: Model) -> nn.Module:
    """The network of a value without a condition, untrained."""
    from ..values.learned import Scaled
    from ..values.nets import default

    dtype = model.dtype if model.dtype.is_floating_point else torch.float32
    return Scaled(default(model, torch.zeros(2, *model.shape, dtype=dtype), stack([model.encode(None)])))


def load_value(name: str, device: torch.device | str | None = None) -> values.Learned:
    """A bundled value."""
    from . import state

    own = card(name)
    if own["kind"] != "value":
        raise ValueError(f"zoo: {name!r} is a {own['kind']}, and no value")
    net = blank(load(own["model"]))
    net.load_state_dict(state(name))
    return values.Learned(net.eval().requires_grad_(False).to(device or "cpu"))


def train(name: str, folder: Path, weights: Path = WEIGHTS, progress: bool = True) -> None:
    """Fit a value and write it with its card."""
    task, began = TASKS[name], time.perf_counter()
    model, reward = load(task.model), task.reward()
    value = values.fit(
        model, reward, alpha=task.alpha, rollouts=task.rollouts, steps=task.steps, batch_size=256, epochs=60,
        folder=folder / name, progress=progress,
    )  # fmt: skip
    found = value.calibration
    assert isinstance(value.net, nn.Module) and found is not None
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
