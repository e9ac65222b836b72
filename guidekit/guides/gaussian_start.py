r"""A start in closed form that skips the first steps (Wang and Vastola, 2023), "Diffusion models generate images like
painters", https://arxiv.org/abs/2303.02490.

Early on, all that a network says is what it would of one Gaussian with the mean mu and the covariance S of the data.
Its probability flow is known: along an eigenvector u_k of S with eigenvalue l_k, from t_max to t,

    u_k.(x_t - alpha_t mu) = sqrt((alpha_t^2 l_k + sigma_t^2)/(alpha_T^2 l_k + sigma_T^2)) u_k.(x_T - alpha_T mu).

So a run begins at `level` with states that cost no evaluation, from the noise of the same seed. For Gaussian data that
is exact for every level; the paper skips 10 to 30 % of the steps of image models. mu and S are those of given samples;
with fewer samples than numbers in one, S has no rank in the other directions, where l = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, linalg

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.view import View
from ..models.base import Model
from ..process import Gaussian
from ..solvers import Move, starting_at
from .boost_and_skip import BoostAndSkip
from .shared.training_free import TrainingFree
from .start_from import StartFrom


@dataclass(frozen=True, eq=False)
class GaussianStart(Guide):
    """Begin at a level with what the flow of a Gaussian makes of the noise. It saves the steps above.

    samples   data, as `model.read` takes them, or states: their mean and covariance are those of the Gaussian
    level     the time in (0, 1] at which the run begins: the first of its times there or below; at 1 it does nothing
    """

    samples: Any
    level: float = 0.8

    card = Card(
        about="skips the first steps, in which data are as good as one Gaussian",
        section="Starts, noise and resampling",
        processes=(Gaussian,),
        refusal="needs the flow of a Gaussian, and tokens have none: use it with a Gaussian process",
        rows="0, and one less for each step above the level",
        exact="p, for Gaussian data",
        changes="start",
        paper=Paper(
            "wang2023painters",
            "Wang, Binxu and Vastola, John J.",
            "Diffusion Models Generate Images Like Painters: an Analytical Theory of Outline First, Details Later",
            2023,
            "2303.02490",
        ),
        example="gk.GaussianStart(other.exact_sample(100), 0.7)",
    )

    def bind(self, model: Model) -> Guide:
        try:
            return self.having(samples=model.as_states(self.samples))
        except ValueError as error:
            raise ValueError(f"GaussianStart(samples=...): {error}") from error

    def clashes(self, other: Guide, after: bool) -> str | None:
        if isinstance(other, (GaussianStart, StartFrom, BoostAndSkip)):
            return "both say where the run starts, and one would overwrite the other; take one of them"
        if not after and isinstance(other, TrainingFree):
            return f"{type(other).__name__} makes rows of the steps that are skipped: put GaussianStart before it"
        return None

    def check(self, model: Model, steps: int) -> None:
        if not 0 < self.level <= 1:
            raise ValueError(f"GaussianStart(level={self.level!r}): a time in (0, 1], where 1 is pure noise")
        if len(self.samples.view(-1, *model.shape)) < 2:
            raise ValueError("GaussianStart(samples=...): the covariance needs at least 2 samples, and more are better")

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        downs = [i for i, move in enumerate(moves) if move.s < move.t]  # the corrections of Heun belong to a step
        below = next((i for i in downs if moves[i].t <= self.level + 1e-9), None)
        if below is None:
            raise ValueError(
                f"GaussianStart(level={self.level}): the run has no step that begins at or below the level; take more "
                "steps or a higher level"
            )
        return starting_at(moves, below) if below else moves

    def begin(self, view: View, noise: Tensor) -> Tensor:
        top = view.model.process.t_max
        return (
            view.x
            if view.step.t == top
            else flowed(view.model.process, self.samples, view.model.process.prior(noise, top), top, view.step.t)
        )


def flowed(process: Any, samples: Tensor, x: Tensor, t: float, s: float) -> Tensor:
    """The states at time s to which the flow of the samples' Gaussian leads from x at time t."""
    data = samples.reshape(-1, *x.shape[1:]).flatten(1).to(x.device).double()
    mean = data.mean(0)
    _, singular, axes = linalg.svd((data - mean) / (len(data) - 1) ** 0.5, full_matrices=False)
    (a_t, s_t), (a_s, s_s) = process.scales(t), process.scales(s)
    gain = (((a_s * singular) ** 2 + s_s**2) / ((a_t * singular) ** 2 + s_t**2)).sqrt()
    away = x.flatten(1).double() - a_t * mean
    moved = a_s * mean + (s_s / s_t) * away + (away @ axes.T * (gain - s_s / s_t)) @ axes
    return moved.view(x.shape).to(x)
