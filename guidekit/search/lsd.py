"""The fit of `gk.solvers.LSD` to a model: how uncertain its prediction is, by the number of masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.run import Run
from ..models.base import Model
from ..solvers import FirstHitting
from ..solvers.lsd import LSD


def lsd(model: Model, n: int = 64, *, cond: Any = None, seed: int = 0, batch_size: int | None = None) -> LSD:
    """The solver `LSD` for a masked model, from n samples (of each condition) that are revealed one position at a time.

    The samples cost n rows of the network for each position, once; the fit serves every number of steps.

    >>> import torch, guidekit as gk
    >>> table = gk.analytic.TokenTable(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    >>> solver = lsd(table, 200)
    >>> len(solver.entropies), solver.loss(1) > solver.loss(2)
    (2, True)
    """
    if getattr(model.process, "lengths", ()):
        raise ValueError("lsd: this model draws lengths, and rows have different numbers of masks: take FirstHitting()")
    run = Run(model, n, steps=model.shape[0], solver=FirstHitting(), cond=cond, seed=seed, batch_size=batch_size)
    found: list[float] = []
    with run.borrowed():
        population = run.start()
        for index in range(len(run.moves)):
            masked = population.x == model.process.V  # type: ignore[attr-defined]
            found.append(float(_entropy(population.predictions[0])[masked].mean()))
            population = run.advance(population, index)
    return LSD(tuple(reversed(found)))


def _entropy(prediction: Tensor) -> Tensor:
    return torch.special.entr(prediction.double().softmax(-1)).sum(-1)
