"""The grids of one scheduler: for every number of steps its timesteps, levels and moves, and where each belongs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...solvers import Move
from .schedule import Table, table
from .stepping import Stepper

Place = tuple[Stepper, int]  # a step of a grid


class Grids:
    """All that a process asks of the scheduler; a copy is worked on and the pipeline's own is never touched.

    prepare   (scheduler, steps): set its timesteps as the pipeline does
    options   of every scheduler.step, like eta
    dtype     of the pipeline's states; `out` that of its network's output
    """

    def __init__(self, scheduler: Any, prepare: Callable[[Any, int], None], options: dict[str, Any]):
        name = type(scheduler).__name__
        if name.startswith("KDPM2"):
            raise ValueError(
                f"{name} evaluates between its noise levels and is not supported; take HeunDiscreteScheduler"
            )
        self.name, self.options, self.prepare = name, options, prepare
        self.scheduler = copy.deepcopy(scheduler)
        self.dtype = self.out = torch.float32
        self._steppers: dict[int, Stepper] = {}
        self._rows: dict[tuple, Place] = {}
        self._times: dict[float, Place] = {}
        self._starts: set[float] = set()
        first = self.stepper(10)
        self.table: Table = table(self.scheduler, *first.levels[0])
        self.predicts = _predicts(self.scheduler, self.table)
        self.spreads = first.neutral is not None
        self.noisy = any(c > 0 for *_, c in first.affine)

    def identity(self) -> dict[str, Any]:
        """What decides its numbers."""
        config = {k: repr(v) for k, v in sorted(self.scheduler.config.items()) if not k.startswith("_")}
        return {"scheduler": self.name, "config": config, "options": repr(sorted(self.options.items()))}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grids) and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash(json.dumps(self.identity(), sort_keys=True))

    def stepper(self, steps: int) -> Stepper:
        """The grid of so many steps."""
        if steps not in self._steppers:
            other = copy.deepcopy(self.scheduler)
            try:
                self.prepare(other, steps)
                self._steppers[steps] = Stepper(other, self.options)
            except (AttributeError, RuntimeError, NotImplementedError, TypeError, IndexError) as error:
                raise ValueError(f"{self.name} is not supported in {steps} steps: {error}") from error
        return self._steppers[steps]

    def times(self, steps: int) -> list[float]:
        """The times of the grid, with the 0 at its end."""
        return [*(self.table.time(*level) for level in self.stepper(steps).levels), 0.0]

    def moves(self, steps: int) -> list[Move]:
        """The scheduler's own rows of the table, which `place` then knows."""
        stepper, times = self.stepper(steps), self.times(steps)
        rows = [self._row(times[i], times[i + 1], stepper, i) for i in range(len(stepper.points))]
        self._rows |= {tuple(row): (stepper, i) for i, row in enumerate(rows)}
        self.know(steps)
        return rows

    def know(self, steps: int) -> None:
        """Times of this grid have, from now on, the timesteps and the start that the scheduler gives them."""
        times = self.times(steps)
        for i in reversed(range(len(times) - 1)):
            self._times[times[i]] = (self.stepper(steps), i)
        self._starts.add(times[0])

    def place(self, move: Move) -> Place | None:
        """Where a row stands, if it is the scheduler's."""
        return self._rows.get(tuple(move))

    def start(self, noise: Tensor, t: float) -> Tensor | None:
        """The first state, as pipelines make it; None where no grid starts there."""
        if t not in self._starts:
            return None
        scale = getattr(self._times[t][0].scheduler, "init_noise_sigma", 1.0)
        return (noise.to(self.dtype) * scale).to(noise.dtype)

    def seen(self, x: Tensor, t: float) -> tuple[Tensor, float]:
        """What the network sees of x, and the timestep."""
        if t in self._times:
            stepper, i = self._times[t]
            return stepper.scale(i, x.to(self.dtype)), float(stepper.timesteps[i])
        alpha, sigma = (float(v) for v in self.table(torch.tensor(t, dtype=torch.float64)))
        size = (alpha**2 + sigma**2) ** 0.5 if self.table.kind == "ve" else 1.0
        return x.to(self.dtype) / size, self.table.timestep(t, self.scheduler.config.num_train_timesteps)

    def weights(self, t: float) -> tuple[float, float]:
        """A and B in d = A x + B out."""
        alpha, sigma = (float(v) for v in self.table(torch.tensor(t, dtype=torch.float64)))
        if self.predicts == "sample":
            return 0.0, 1.0
        if self.predicts == "v_prediction":
            square = alpha**2 + sigma**2
            return alpha / square, -sigma / square**0.5
        if self.predicts == "epsilon" and alpha < 1e-6:
            raise ValueError("a network that predicts noise says nothing where the schedule ends in noise alone")
        return (1.0, -sigma) if self.predicts == "flow_prediction" else (1 / alpha, -sigma / alpha)

    def _row(self, t: float, s: float, stepper: Stepper, index: int) -> Move:
        a, b, more, c = stepper.affine[index]
        A, B = self.weights(t)
        return Move(t, s, a - b * A / B, (b / B, *more), c)


def _predicts(scheduler: Any, levels: Table) -> str:
    """What the network predicts, by the scheduler."""
    kind = scheduler.config.get("prediction_type", "flow_prediction" if levels.kind == "flow" else "epsilon")
    known = ("flow_prediction",) if levels.kind == "flow" else ("epsilon", "v_prediction", "sample")
    if kind not in known:
        raise ValueError(
            f"{type(scheduler).__name__}: prediction_type={kind!r} is not supported; {', '.join(known)} are"
        )
    return kind
