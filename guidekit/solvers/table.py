r"""A solver that is a given table: its times and rows are stored, and so it serves one model and one number of steps.

`gk.solvers.fit` makes them. A table can be printed, saved as JSON and read again, in Python by `Table.load` and on the
command line by the name of its file (`--solver fashion-8.json`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from .base import Move, Solver
from .schedules import Schedule, scales
from .times import Grid

_FORMAT = "guidekit-solver-1"


@dataclass(frozen=True)
class Points:
    """The times of a table as a grid, which has one number of steps."""

    points: tuple[float, ...]

    def __call__(self, schedule: Schedule | None, steps: int, t_max: float) -> list[float]:
        if steps != len(self.points) - 1:
            raise ValueError(f"steps={steps}: this table was fitted for steps={len(self.points) - 1}")
        return list(self.points)


@dataclass(frozen=True, repr=False)
class Table(Solver):
    """A stored table. `rows` are its moves, one for each step of its grid; `levels` the (alpha, sigma) of its times,
    which have to be those of the model's schedule; `about` says how it was made.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> fitted = gk.solvers.fit(base, gk.solvers.DPMpp(), steps=5)
    >>> gk.sample(base, 4, steps=5, solver=fitted).x.shape
    torch.Size([4, 1])
    """

    table: tuple[Move, ...]
    levels: tuple[tuple[float, float], ...]
    about: dict[str, Any] = field(default_factory=dict, compare=False)
    _: KW_ONLY
    times: str | Grid = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", Points((*(move.t for move in self.table), self.table[-1].s)))

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return any(move.c > 0 for move in self.table)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(steps={len(self.table)}, {', '.join(f'{k}={v}' for k, v in self.about.items())})"

    def __str__(self) -> str:
        """The rows, one a line."""
        lines = [f"{self!r}\n{'t':>9} {'s':>9} {'a':>10}   b"]
        for move in self.table:
            b = " ".join(f"{v:10.6f}" for v in move.b)
            lines.append(f"{move.t:9.6f} {move.s:9.6f} {move.a:10.6f}   {b}" + (f"   c={move.c:.6f}" if move.c else ""))
        return "\n".join(lines)

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        own = Points.__call__(self.times, schedule, len(times) - 1, times[0])  # type: ignore[arg-type]
        if any(abs(t - s) > 1e-6 for t, s in zip(times, own, strict=True)):
            raise ValueError(f"{self!r} has times of its own: give steps={len(self.table)}, not a list of times")
        for t, level in zip(own, self.levels, strict=True):
            if any(abs(v - w) > 1e-6 * max(1.0, abs(w)) for v, w in zip(scales(schedule, t), level, strict=True)):
                raise ValueError(
                    f"{self!r} was fitted on another noise schedule: at t={t:.4g} it has alpha and sigma {level}, and "
                    f"this model {scales(schedule, t)}"
                )
        return list(self.table)

    def save(self, file: str | Path) -> Path:
        """Write the table as JSON, whole or not at all."""
        file = Path(file)
        text = {"format": _FORMAT, "about": self.about, "levels": self.levels, "moves": [list(m) for m in self.table]}
        part = file.with_name(file.name + ".part")
        part.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        os.replace(part, file)
        return file

    @classmethod
    def load(cls, file: str | Path) -> Table:
        """Read a table that `save` has written."""
        try:
            text = json.loads(Path(file).read_text(encoding="utf-8"))
            if text["format"] != _FORMAT:
                raise ValueError(f"its format is {text['format']!r}, not {_FORMAT!r}")
            moves = tuple(_move(*row) for row in text["moves"])
            return cls(moves, tuple((a, s) for a, s in text["levels"]), text["about"])
        except (json.JSONDecodeError, KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"{file} is not a table of gk.solvers.fit: {error}") from error


def _move(
    t: float, s: float, a: float, b: list[float], c: float, keep: list[list[float]] | None, early: float = 0.0
) -> Move:
    return Move(t, s, a, tuple(b), c, None if keep is None else tuple(tuple(line) for line in keep), early)
