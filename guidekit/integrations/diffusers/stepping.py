r"""A diffusers scheduler as a table of moves and as kernels, without ever stepping the pipeline's own scheduler.

Every scheduler moves by an affine map

    x_s = a' x_t + b' out + sum_k b_k h_k + c z

of the state, the network's output, what the scheduler remembers of the particle (h: earlier outputs, the last sample),
and noise. `Stepper` finds the coefficients by driving a copy along its grid on unit vectors; in coordinates of the
clean mean d = A x + B out they are a row `Move` of the table, a = a' - b' A/B, b_0 = b'/B.

The kernel of a row is the scheduler's own arithmetic: a copy in the state in which it is before that step, with the
memory of these particles put in. So it is right to the last bit, may be pushed as often as one likes, and what is
remembered follows its particle through every selection.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NEUTRAL = {"learned": 1.0, "learned_range": 0.0}  # of kinds of variance that the network says
_UNIT = 1e-6  # what is small enough for no clipping


class Slot(NamedTuple):
    """Stands in a scheduler's variables for the k-th tensor that it remembers of the particles."""

    k: int


class Point(NamedTuple):
    """A step of the grid: its timestep, the variables before it, how many tensors are remembered, and what it draws."""

    timestep: Tensor
    variables: dict[str, Any]
    memory: int
    draws: torch.dtype | None


class Noise(TorchFunctionMode):
    """torch.randn inside gives this noise, once; None gives zeros. `drawn` is the precision that was asked for."""

    def __init__(self, noise: Tensor | None):
        super().__init__()
        self.noise, self.count, self.drawn = noise, 0, None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.randn, torch.randn_like):
            return func(*args, **kwargs)
        self.count += 1
        with torch._C.DisableTorchFunction():
            out = torch.zeros_like(args[0]) if func is torch.randn_like else torch.zeros(*args, **_plain(kwargs))
            self.drawn = out.dtype
            return out if self.noise is None else self.noise.to(out)


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if k != "generator"}


class Stepper:
    """The grid of one scheduler and number of steps."""

    def __init__(self, scheduler: Any, options: dict[str, Any]):
        self.scheduler, self.options = scheduler, options  # a copy with its timesteps set
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True
        self.timesteps = list(scheduler.timesteps)
        # stands for what the network says of the variance, where that does not matter; None where it says nothing
        self.neutral = _NEUTRAL.get(str(scheduler.config.get("variance_type")))
        self.points: list[Point] = []
        self._drive()
        self.levels = [self._level(i) for i in range(len(self.points))]
        self.affine = [self._affine(i) for i in range(len(self.points))]
        if not any(b for _, _, more, _ in self.affine for b in more):  # a solver of order 1 looks at no memory
            self.points = [p._replace(memory=0) for p in self.points]
            self.affine = [(a, b, (), c) for a, b, _, c in self.affine]

    def copy(self, index: int, memory: tuple[Tensor, ...] = ()) -> Any:
        """The scheduler before step `index`, remembering this."""
        point, other = self.points[index], copy.copy(self.scheduler)
        if len(memory) < point.memory:
            raise ValueError(
                f"step {index} of {type(other).__name__} continues from steps before it, which this run left out; give "
                "gk.sample a solver, like gk.solvers.DDPM(), or take a one-step scheduler"
            )
        other.__dict__.update(_filled(point.variables, memory))
        return other

    def step(
        self,
        index: int,
        x: Tensor,
        out: Tensor,
        memory: tuple[Tensor, ...],
        noise: Tensor | None,
        spread: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x_s, and what the scheduler then remembers."""
        worker, out = self.copy(index, memory), self._whole(out, spread)
        with Noise(noise):
            x_s = worker.step(out, self.timesteps[index], x, return_dict=False, **self.options)[0]
        kept: list[Tensor] = []
        if index + 1 < len(self.points) and self.points[index + 1].memory:
            _emptied(vars(worker), x.shape, kept)
        return x_s, tuple(kept)

    def deviation(self, index: int, spread: Tensor) -> Tensor:
        """The standard deviation of a step, for each number of the state, in float64."""
        spread = spread.double()
        zeros = torch.zeros_like(spread)
        return self.step(index, zeros, zeros, (), torch.ones_like(zeros), spread)[0]

    def _whole(self, out: Tensor, spread: Tensor | None) -> Tensor:
        """What a network returns: its prediction, and behind its channels what it says of the variance, if it does."""
        if self.neutral is None:
            return out
        return torch.cat([out, torch.full_like(out, self.neutral) if spread is None else spread.to(out)], 1)

    def scale(self, index: int, x: Tensor) -> Tensor:
        """What the network sees of x."""
        worker = copy.copy(self.scheduler)
        worker.__dict__.update({k: v for k, v in self.points[index].variables.items() if k.endswith("step_index")})
        return worker.scale_model_input(x, self.timesteps[index]) if hasattr(worker, "scale_model_input") else x

    def _level(self, index: int) -> tuple[float, float]:
        """alpha and sigma of a step, by noising a one and a zero."""
        worker, one = copy.copy(self.scheduler), torch.tensor([[[[1.0]]], [[[0.0]]]], dtype=torch.float64)
        t = self.timesteps[index].reshape(1).expand(2)
        if hasattr(worker, "scale_noise"):
            noised = worker.scale_noise(one, t, 1 - one)
        else:
            noised = worker.add_noise(one, 1 - one, t)
        alpha, sigma = noised.flatten().tolist()
        return alpha, sigma

    def _drive(self) -> None:
        """Record the state before every step, with particles that are all zero."""
        worker = copy.copy(self.scheduler)
        x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        for t in self.timesteps:
            kept: list[Tensor] = []
            before = _emptied(vars(worker), x.shape, kept)
            with Noise(None) as drawn:
                worker.step(self._whole(x, None), t, x, return_dict=False, **self.options)
            if drawn.count > 1:
                raise ValueError(f"{type(worker).__name__} draws noise {drawn.count} times a step; take another")
            self.points.append(Point(t, before, len(kept), drawn.drawn))

    def _affine(self, index: int) -> tuple[float, float, tuple[float, ...], float]:
        """a', b', [b_1, ...], c of a step, by the images of unit vectors.

        What is below 1e-9 is taken as 0: DDPM's noise at timestep 1 (1e-10) would make any two means incomparable.
        """
        memory = self.points[index].memory
        basis = _UNIT * torch.eye(3 + memory, dtype=torch.float64).reshape(3 + memory, 3 + memory, 1, 1, 1)
        x, out, z, *kept = basis
        image = self.step(index, x, out, tuple(kept), z)[0].double().flatten() / _UNIT
        a, b, c, *more = (v if abs(v) > 1e-9 else 0.0 for v in image.tolist())
        return a, b, tuple(more), abs(c)


def _emptied(value: Any, shape: torch.Size, kept: list[Tensor]) -> Any:
    """A scheduler's variables with slots for the tensors of the particles, which are put into `kept`."""
    if isinstance(value, Tensor) and value.shape == shape:
        kept.append(value)
        return Slot(len(kept) - 1)
    if isinstance(value, dict):
        return {k: _emptied(v, shape, kept) for k, v in value.items() if k not in ("_internal_dict", "config")}
    if isinstance(value, list) and any(v is None or isinstance(v, Tensor) for v in value):
        return [_emptied(v, shape, kept) for v in value]
    return list(value) if isinstance(value, list) else value


def _filled(value: Any, memory: tuple[Tensor, ...]) -> Any:
    """The inverse."""
    if isinstance(value, Slot):
        return memory[value.k] if memory else None
    if isinstance(value, dict):
        return {k: _filled(v, memory) for k, v in value.items()}
    return [_filled(v, memory) for v in value] if isinstance(value, list) else value
