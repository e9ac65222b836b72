r"""gk.Measurement: y = A(x_0) + noise, as a reward, log p(y | x_0), and as what posterior samplers need to know.

Tilting a model by it at alpha = 1 gives the posterior,

    p(x_0 | y) = p(x_0) p(y | x_0)/p(y),

and since the likelihood is normalised, log Z is the log evidence log p(y) of the model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewards import ByGroup, Reward

from .. import random
from ..models.base import Model
from ..models.networks import lent
from ..process import Gaussian as GaussianProcess
from .noise import Correlated, Gaussian, Noise, Poisson
from .operators import Blur, Downsample, Linear, Mask, Matrix, Whitened, as_operator

if TYPE_CHECKING:
    from typing_extensions import Self


class Measurement(Reward):
    """y = operator(x) + noise: a reward, log p(y | x), which is normalised, and what posterior samplers take.

    operator  a linear operator (`gk.measurements.Mask`, `Blur`, `Downsample`, `Matrix`), a matrix (m, d), an object
              with `A` and `adjoint` (and `pinv`, where it has one), a physics of deepinv, or any function of a batch of
              samples that returns a tensor
    y         what was measured of one sample, with the shape of operator(x) without its row axis
    noise     the standard deviation of Gaussian noise, or `gk.measurements.Correlated(covariance)`, `Poisson(gain)` or
              `Quantised(step, noise)`. 0 is allowed for methods that take exact measurements. Noise that has a model
              of its own is `gk.measurements.Structured`

    The operator takes samples, as rewards do: pictures between 0 and 1 for the bundled model of images. For a batch of
    measurements made with one operator, `of` makes the measurement of each, and `rewards.ByGroup` holds them.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    >>> measured = gk.Measurement(torch.tensor([[1.0, 1.0]]), torch.tensor([2.0]), noise=1.0)
    >>> result = gk.sample(base, 2000, steps=30, guides=[gk.FKSteering(measured, 1.0)])
    >>> exact = torch.distributions.Normal(0.0, 3**0.5).log_prob(torch.tensor(2.0))  # y ~ N(0, 1 + 1 + 1)
    >>> bool((result.log_z - exact).abs() < 0.1)
    True
    """

    name = "log p(y | x)"

    def __init__(self, operator: Any, y: Any, noise: float | Noise = 0.05):
        self.operator = as_operator(operator)
        self.y = torch.as_tensor(y)
        if isinstance(noise, Model):
            raise TypeError(
                "Measurement(noise=a model): noise with a model of its own is drawn beside the signal, by "
                "gk.measurements.Structured(signal, noise) and its `measurement(operator, y)`"
            )
        likelihood = Gaussian(float(noise)) if isinstance(noise, Real) else noise
        if not isinstance(likelihood, Noise):
            raise TypeError(
                f"noise={noise!r}: the standard deviation of Gaussian noise is needed, or a likelihood like "
                "gk.measurements.Poisson(gain)"
            )
        self.noise: Noise = likelihood
        if isinstance(likelihood, Correlated) and getattr(self.operator, "measured", None) is not None:
            raise ValueError(
                "Correlated noise is that of all entries of y, and a mask leaves some out: give the rows that it "
                "measures as a matrix"
            )
        self.differentiable = True if self.linear else None
        self._check()

    @property
    def linear(self) -> bool:
        """Whether the operator is known to be linear, and has an adjoint."""
        return isinstance(self.operator, Linear)

    @property
    def exact(self) -> bool:
        """Whether there is no noise, and so no likelihood."""
        return isinstance(self.noise, Gaussian) and self.noise.std == 0

    def score(self, samples: Any) -> Tensor:
        u = self.operator(samples)
        if u.shape[1:] != self.y.shape:
            raise ValueError(self.misfit(u))
        return self._summed(self.noise.log_prob(self.y.to(u), u))

    def rest(self, samples: Any) -> Tensor:
        """y - A(x) of each sample, 0 where nothing is measured."""
        u = self.operator(samples)
        where = self._measured(u)
        e = self.y.to(u) - u
        return e if where is None else torch.where(where, e, 0.0)

    def residual(self, samples: Any) -> Tensor:
        """The root mean square of y - A(x) of each sample: the standard deviation of the noise, if A(x) is right."""
        e = self.rest(samples)
        where = self._measured(e)
        return (self._summed(e.square()) / (e[0].numel() if where is None else where.sum())).sqrt()

    def of(self, y: Any) -> Self:
        """The same measurement with another outcome y."""
        other = copy.copy(self)
        other.y = torch.as_tensor(y)
        other._check()
        return other

    def simulate(self, samples: Any, seed: int = 0) -> Tensor:
        """A measurement y of each sample, with noise: what this seed gives to sample i does not depend on the
        others."""
        u = self.operator(samples)
        keys = random.fold(
            random.fold(random.key(seed, u.device), "measurement"), torch.arange(len(u), device=u.device)
        )
        y = self.noise.draw(u, keys)
        where = self._measured(u)
        return y if where is None else torch.where(where, y, 0.0)

    def fits(self, model: Model, gradient: bool = False) -> None:
        """Raise ValueError where there is no likelihood, where samples of the model cannot be measured or y has another
        shape than their measurements, or where a gradient is needed and does not exist. Samples of tokens, which
        cannot be made up, are left to the first score."""
        if self.exact:
            raise ValueError(
                "Measurement(noise=0) has no density p(y | x) to weigh or steer by; give its noise a value"
            )
        if getattr(model.process, "V", None) is not None and isinstance(
            self.operator, (Mask, Blur, Downsample, Matrix)
        ):
            raise ValueError(
                f"Measurement: {type(self.operator).__name__} measures numbers, and this model makes tokens: give a "
                "function of a batch of its samples that returns a tensor"
            )
        if isinstance(model.process, GaussianProcess):
            with torch.set_grad_enabled(gradient):
                self.probe(model, gradient)

    def probe(self, model: Model, gradient: bool = False) -> Tensor:
        """The measurement of one made-up sample; ValueError where y has another shape, or where a gradient is
        needed and does not exist."""
        u = tried(self.operator, model, gradient)
        if u.shape[1:] != self.y.shape:
            raise ValueError(self.misfit(u))
        if gradient and not u.requires_grad:
            raise ValueError(
                "the guide takes gradients, and none passes through the operator of Measurement (numpy, .item(), "
                "detach(), rounding): use FKSteering or SVDD, which need none"
            )
        return u

    def misfit(self, u: Tensor) -> str:
        """What to say of a y with another shape than measurements u."""
        return (
            f"Measurement(y of shape {tuple(self.y.shape)}): the operator makes {tuple(u.shape[1:])} of each "
            "sample, and y "
            "is that of one sample, without a row axis"
        )

    def _check(self) -> None:
        """Raise where y holds, among what is measured, numbers that cannot have been measured."""
        where, y = getattr(self.operator, "measured", None), self.y
        if where is not None and y.shape[y.dim() - where.dim() :] == where.shape:
            y = y[..., where.to(y.device)]
        if not bool(y.isfinite().all()):
            raise ValueError(
                "Measurement(y): it holds numbers that are not finite; what is not measured belongs in a Mask"
            )
        if isinstance(self.noise, Poisson) and bool((y < 0).any()):
            raise ValueError(
                f"Measurement(y, Poisson): counts of photons are not negative, and y goes down to {float(y.min()):g}"
            )

    def _measured(self, u: Tensor) -> Tensor | None:
        """Which entries of one measurement are measured."""
        where = getattr(self.operator, "measured", None)
        return None if where is None else where.to(u.device).expand(u.shape[1:])

    def _summed(self, v: Tensor) -> Tensor:
        where = self._measured(v)
        v = v if where is None else torch.where(where, v, 0.0)
        return v.flatten(1).sum(1, dtype=torch.float64)


def of_groups(y: Tensor, group: Tensor) -> Tensor:
    """y of each row, (1 or groups, ...), given the rows' groups."""
    return y.expand(len(group), *y.shape[1:]) if len(y) == 1 else y[group]


def numbers(operator: Any, y: Tensor) -> int:
    """How many numbers are measured, given measurements y (groups, ...)."""
    where = getattr(operator, "measured", None)
    return y[0].numel() if where is None else int(where.expand(y.shape[1:]).sum())


def tried(operator: Any, model: Model, gradient: bool = False) -> Tensor:
    """What the operator makes of one made-up sample of the model; ValueError where it does not take it."""
    x = torch.zeros(1, *model.shape, dtype=model.dtype, device=model.device, requires_grad=gradient)
    with lent(model.modules()), model.lent():
        samples = model.decode(x)
    try:
        u = operator(samples)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        shape = tuple(samples.shape[1:]) if isinstance(samples, Tensor) else type(samples).__name__
        raise ValueError(f"Measurement: the operator does not take samples of this model, {shape}: {error}") from error
    if not isinstance(u, Tensor) or u.dim() < 1 or len(u) != 1:
        what = f"shape {tuple(u.shape)}" if isinstance(u, Tensor) else type(u).__name__
        raise ValueError(
            f"Measurement: the operator returned {what} for one sample; a tensor with a row axis is needed"
        )
    return u


@dataclass(frozen=True)
class Problem:
    """A linear measurement with Gaussian noise, in the coordinates of states: y = A x + noise z.

    y        (1 or groups, ...)
    noise    standard deviation
    """

    operator: Linear
    y: Tensor
    noise: float

    def of(self, group: Tensor) -> Tensor:
        """y of each row, given the rows' groups."""
        return of_groups(self.y, group)

    def rest(self, x: Tensor, group: Tensor) -> Tensor:
        """y - A x."""
        return self.of(group).to(x) - self.operator.A(x)

    def gain(self, e: Tensor, variance: float) -> Tensor:
        """variance A^T (variance A A^T + noise^2)^-1 e = (A^T A + noise^2/variance)^-1 A^T e, and A^+ e without
        noise: what moves the mean of x_0 ~ N(d, variance) to that of its posterior, for e = y - A d. A ridge below
        1e-6 counts as that much."""
        if self.noise == 0:
            return self.operator.pinv(e)
        return self.operator.solve(self.operator.adjoint(e), max(self.noise**2 / variance, 1e-6))


@dataclass(frozen=True)
class Decoded:
    """Any differentiable measurement with Gaussian noise, in the coordinates of states: y = A(decode(x)) + noise z.

    y        (1 or groups, ...)
    noise    standard deviation
    """

    operator: Any
    y: Tensor
    noise: float
    model: Model

    def rest(self, x: Tensor, group: Tensor) -> Tensor:
        """y - A(decode(x)), 0 where nothing is measured."""
        u = self.operator(self.model.decode(x))
        y = of_groups(self.y, group)
        where = getattr(self.operator, "measured", None)
        return y.to(u) - u if where is None else torch.where(where.to(u.device), y.to(u) - u, 0.0)


def problem(name: str, measurement: Any, model: Model) -> Problem:
    """The linear measurements of all groups in the coordinates of this model's states, after all checks; `name` is that
    of the method which needs them."""
    each = listed(measurement)
    if not each[0].linear:
        raise ValueError(
            f"{name} needs a linear operator with an adjoint, and Measurement holds a function: give an object with "
            "A and "
            "adjoint, or take TDS, DPS or DAPS, which differentiate through any function"
        )
    with torch.no_grad():
        _fitting(each, model)
        each = _alike(name, each)
        found = affine(model)
        if found is None:
            raise ValueError(
                f"{name} measures states, and this model decodes them by more than one factor and one offset, as "
                "latent models do: take ReSample, TDS, DPS or DAPS, which differentiate through the decoder"
            )
        return _in_states(name, each, model, *found)


def of_samples(name: str, measurement: Any, model: Model) -> tuple[Problem, bool]:
    """The linear measurements of all groups, and whether they are of states; else they are of decoded samples, for a
    method that reads samples back."""
    each = listed(measurement)
    with torch.no_grad():
        if not each[0].linear or affine(model) is not None:
            return problem(name, measurement, model), True
        _fitting(each, model)
        each = _alike(name, each)
        samples = model.decode(torch.zeros(1, *model.shape, dtype=model.dtype, device=model.device))
        try:
            model.read(samples)
        except ValueError as error:
            raise ValueError(f"{name} changes samples and reads them back, and cannot: {error}") from error
        return _with_y(name, each, torch.zeros_like(samples), 1.0), False


def decoded(name: str, measurement: Any, model: Model) -> Problem | Decoded:
    """The measurements of all groups, for a method that differentiates through operator and decoder: linear in the
    states where they are, so that no clamp of the decoder cuts the gradient."""
    each = listed(measurement)
    _fitting(each, model, gradient=True)
    with torch.no_grad():
        each = _alike(name, each)
        found = affine(model) if each[0].linear else None
    if found is not None:
        with torch.no_grad():
            return _in_states(name, each, model, *found)
    assert isinstance(each[0].noise, Gaussian)
    return Decoded(each[0].operator, torch.stack([m.y for m in each]).to(model.device), each[0].noise.std, model)


def _alike(name: str, each: Sequence[Measurement]) -> Sequence[Measurement]:
    """The measurements with independent noise, by one operator; raise unless all groups have one operator and one
    Gaussian noise."""
    first = each[0]
    if not isinstance(first.noise, (Gaussian, Correlated)):
        raise ValueError(
            f"{name} is made for Gaussian noise, and this is {type(first.noise).__name__}: TDS, DPS, DAPS and "
            "FKSteering "
            "take any likelihood"
        )
    if any(m.operator is not first.operator or m.noise != first.noise for m in each):
        raise ValueError(f"{name}(ByGroup([...])): all measurements have one operator and one noise; make them by `of`")
    return each if isinstance(first.noise, Gaussian) else _white(each, first.operator, first.noise)


def _white(each: Sequence[Measurement], A: Any, noise: Correlated) -> Sequence[Measurement]:
    """L^-1 y = L^-1 A(x) + z."""
    if isinstance(A, Matrix):
        white: Any = Matrix(noise.white(A.matrix.double().mT).mT, A.shape)
    elif isinstance(A, Linear):
        white = Whitened(A, noise.root)
    else:
        white = lambda samples: noise.white(A(samples))  # noqa: E731
    first = Measurement(white, noise.white(each[0].y.double()[None])[0], 1.0)
    return [first, *(first.of(noise.white(m.y.double()[None])[0]) for m in each[1:])]


def _fitting(each: Sequence[Measurement], model: Model, gradient: bool = False) -> None:
    """Raise unless every y has the shape of what is measured of the model's samples."""
    u = each[0].probe(model, gradient)
    for m in each:
        if m.y.shape != u.shape[1:]:
            raise ValueError(m.misfit(u))


def _in_states(name: str, each: Sequence[Measurement], model: Model, scale: float, offset: float) -> Problem:
    """With sample = scale x + offset, (y - A offset)/scale = A x + noise/scale z."""
    return _with_y(name, each, torch.full((1, *model.shape), offset, dtype=model.dtype, device=model.device), scale)


def _with_y(name: str, each: Sequence[Measurement], zero: Tensor, scale: float) -> Problem:
    """The problem whose samples are zero + scale x."""
    A, noise = each[0].operator.at(zero), each[0].noise
    assert isinstance(noise, Gaussian)
    y = torch.stack([m.y for m in each]).to(zero)
    y = (y - A.A(zero)) / scale if scale != 1 or bool(zero.any()) else y
    _check_adjoint(name, A, zero, y)
    y = y if A.measured is None else torch.where(A.measured.to(y.device), y, 0.0)
    return Problem(A, y, noise.std / scale)


def listed(measurement: Any) -> Sequence[Measurement]:
    """The measurement of each group, or the one of all."""
    each: list[Any] = list(measurement.rewards) if isinstance(measurement, ByGroup) else [measurement]
    if not all(isinstance(m, Measurement) for m in each):
        found = next(type(m).__name__ for m in each if not isinstance(m, Measurement))
        raise TypeError(f"a gk.Measurement(operator, y, noise) is needed, or a ByGroup of them, not {found}")
    return each


def affine(model: Model) -> tuple[float, float] | None:
    """(scale, offset) with sample = scale state + offset, where no clamp acts; None where samples are anything else."""
    if not model.decodes:
        return 1.0, 0.0
    z = random.normal(random.key([1], model.device), model.shape, model.dtype) * 1e-2
    for centre in (0.0, 0.5):
        with lent(model.modules()), model.lent():
            low, high = model.decode(torch.full_like(z, centre)), model.decode(z + centre)
        if not isinstance(low, Tensor) or low.shape != z.shape:
            break
        scale, offset = float(((high - low) * z).sum() / z.square().sum()), float(low.mean())
        if scale > 0 and bool((scale * z + offset - high).abs().max() < 1e-2 * scale * z.std()):
            return scale, offset - scale * centre
    return None


def _check_adjoint(name: str, A: Linear, x: Tensor, y: Tensor) -> None:
    """<A x, y> = <x, A^T y> for random x and y."""
    x = random.normal(random.key([2], x.device), x.shape[1:], x.dtype)
    y = random.normal(random.key([3], x.device), y.shape[1:], x.dtype)
    u, v = A.A(x), A.adjoint(y)
    if v.shape != x.shape:
        raise ValueError(
            f"{name}: the operator's adjoint makes {tuple(v.shape[1:])} of y, and x is {tuple(x.shape[1:])}"
        )
    left, right = float((u * y).double().sum()), float((x * v).double().sum())
    size = float(u.double().norm() * y.double().norm()) + math.ulp(1.0)
    if abs(left - right) > 1e-4 * size:
        raise ValueError(
            f"{name}: the operator's adjoint is none, since <A x, y> = {left:.6g} and <x, A^T y> = {right:.6g} for "
            "random "
            "x and y; is the operator linear, and its adjoint made for it?"
        )
