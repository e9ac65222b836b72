r"""Linear operators of measurements, y = A x: on a batch of samples, (rows, ...), rows being independent.

    Mask         A = diag(m), m in {0, 1}                                          singular values m
    Blur         A = F^* H F, F the unitary Fourier transform: circular            singular values |H|
    Downsample   means over f x f blocks                                           singular values 1/f and 0
    Matrix       any matrix, of the flattened sample                               by a singular value decomposition

With A = U S V^T, what methods ask for is `spectral(g, x)` = V g(S) V^T x for a function g of the singular values, in
which the zeros of the null space are counted:

    (A^T A + rho)^-1 v = spectral(1/(s^2 + rho), v),        A^+ y = spectral(1/s^2 where s > cut, A^T y).

An operator without a decomposition solves both by conjugate gradients, which take A and A^T alone.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gain = Callable[[Tensor], Tensor]


class Linear:
    """Base of linear operators: a subclass has A and its adjoint, and `spectral` where it knows its singular values.

    cut       singular values up to this one count as zero in pseudo-inverses
    iters     iterations of conjugate gradients, where there is no decomposition
    measured  which entries of y are measured, a boolean tensor that broadcasts to it; None is all
    """

    cut: float = 1e-3
    iters: int = 30
    decomposed: bool = False
    measured: Tensor | None = None

    def A(self, x: Tensor) -> Tensor:
        """y = A x of every row."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it measures")

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y of every row."""
        raise NotImplementedError(f"{type(self).__name__} has no adjoint")

    def spectral(self, g: Gain, x: Tensor) -> Tensor:
        """V g(S) V^T x."""
        raise NotImplementedError(f"{type(self).__name__} does not know its singular values")

    def __call__(self, x: Tensor) -> Tensor:
        return self.A(x)

    def solve(self, v: Tensor, ridge: float, start: Tensor | None = None, iters: int | None = None) -> Tensor:
        """(A^T A + ridge)^-1 v; by so many iterations of conjugate gradients from `start`, where these are given."""
        if self.decomposed and iters is None:
            return self.spectral(lambda s: 1 / (s.square() + ridge), v)
        return gradients(lambda x: self.adjoint(self.A(x)) + ridge * x, v, start, iters or self.iters)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the shortest x among those for which |y - A x| is least."""
        v = self.adjoint(y)
        if self.decomposed:
            return self.spectral(lambda s: torch.where(s > self.cut, s, torch.inf).square().reciprocal(), v)
        return gradients(lambda x: self.adjoint(self.A(x)), v, None, self.iters)

    def at(self, like: Tensor) -> Linear:
        """The operator for numbers like these: its tensors where these are, and of their precision if it has one."""
        far = {k: v for k, v in vars(self).items() if isinstance(v, Tensor) and v.device != like.device}
        other = copy.copy(self) if far else self
        vars(other).update({k: v.to(like.device) for k, v in far.items()})
        return other

    def known(self, s: Tensor) -> Tensor:
        """Which singular values count as measured."""
        return s > self.cut


class Mask(Linear):
    """Inpainting: the entries of x where the mask is True; y has the shape of x, and its other entries are not read.

    >>> Mask(torch.tensor([True, False])).A(torch.tensor([[3.0, 4.0]]))
    tensor([[3., 0.]])
    """

    decomposed = True

    def __init__(self, where: Any):
        self.where = torch.as_tensor(where)
        if self.where.dtype != torch.bool or not self.where.any():
            given = "one that is False everywhere" if self.where.dtype == torch.bool else str(self.where.dtype)
            raise ValueError(
                f"Mask(where): a boolean tensor with some True, which are measured, is needed, not {given}"
            )
        self.measured = self.where

    def A(self, x: Tensor) -> Tensor:
        return x * self.where.to(x.device)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.A(y)

    def spectral(self, g: Gain, x: Tensor) -> Tensor:
        return x * g(self.where.to(x))


class Blur(Linear):
    """Convolution of the last two axes, circular: the picture goes on at the opposite edge.

    sigma    standard deviation of a Gaussian kernel, in pixels
    kernel   or any kernel (height, width), which is used as it is

    >>> picture = torch.zeros(1, 8, 8)
    >>> picture[0, 4, 4] = 1.0
    >>> blurred = Blur(sigma=1.0).A(picture)
    >>> round(float(blurred.sum()), 4), bool(blurred[0, 4, 4] == blurred.max())
    (1.0, True)
    """

    decomposed = True

    def __init__(self, sigma: float | None = None, kernel: Any = None, cut: float = 0.03):
        if (sigma is None) == (kernel is None):
            raise ValueError("Blur needs either sigma=..., in pixels, or kernel=..., a tensor (height, width)")
        if sigma is not None and not sigma > 0:
            raise ValueError(f"Blur(sigma={sigma}): a standard deviation above 0, in pixels, is needed")
        self.kernel = _gaussian(float(sigma)) if sigma is not None else torch.as_tensor(kernel).double()
        if self.kernel.dim() != 2:
            raise ValueError(f"Blur(kernel of shape {tuple(self.kernel.shape)}): a tensor (height, width) is needed")
        self.cut = cut

    def A(self, x: Tensor) -> Tensor:
        return self._filtered(x, self.response(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filtered(y, self.response(y).conj())

    def spectral(self, g: Gain, x: Tensor) -> Tensor:
        return self._filtered(x, g(self.response(x).abs()))

    def response(self, x: Tensor) -> Tensor:
        """H, the Fourier transform of the kernel with its centre at the origin."""
        size = x.shape[-2:]
        if x.dim() < 3 or any(k > n for k, n in zip(self.kernel.shape, size, strict=True)):
            raise ValueError(
                f"a kernel of {tuple(self.kernel.shape)} does not fit into samples of {tuple(x.shape[1:])}"
            )
        whole = torch.zeros(size, dtype=torch.float64, device=self.kernel.device)
        whole[: self.kernel.shape[0], : self.kernel.shape[1]] = self.kernel
        centred = whole.roll([-(n // 2) for n in self.kernel.shape], (0, 1))
        return torch.fft.rfft2(centred.to(x))

    def _filtered(self, x: Tensor, gain: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=x.shape[-2:])


class Downsample(Linear):
    """Super-resolution: means over blocks of factor x factor pixels of the last two axes.

    >>> Downsample(2).A(torch.arange(4.0).view(1, 2, 2))
    tensor([[[1.5000]]])
    """

    decomposed = True

    def __init__(self, factor: int):
        if not isinstance(factor, int) or isinstance(factor, bool) or factor < 2:
            raise ValueError(f"Downsample(factor={factor!r}): an int of at least 2 is needed")
        self.factor = factor

    def A(self, x: Tensor) -> Tensor:
        f = self.factor
        if x.dim() < 3 or x.shape[-1] % f or x.shape[-2] % f:
            raise ValueError(f"blocks of {f} x {f} do not fill samples of {tuple(x.shape[1:])}")
        return x.unflatten(-1, (-1, f)).unflatten(-3, (-1, f)).mean((-1, -3))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._spread(y) / self.factor**2

    def spectral(self, g: Gain, x: Tensor) -> Tensor:
        seen, unseen = g(torch.stack([x.new_full((), 1 / self.factor), x.new_zeros(())]))
        return unseen * x + (seen - unseen) * self._spread(self.A(x))

    def _spread(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)


class Matrix(Linear):
    """A matrix (m, d) for samples of d numbers, whatever their shape; y has m of them.

    >>> Matrix([[1.0, 1.0]]).A(torch.tensor([[2.0, 3.0]]))
    tensor([[5.]])
    """

    decomposed = True

    def __init__(self, matrix: Any, shape: Sequence[int] | None = None):
        self.matrix = torch.as_tensor(matrix)
        if self.matrix.dim() != 2 or not self.matrix.is_floating_point():
            raise ValueError(
                f"Matrix(matrix of shape {tuple(self.matrix.shape)}, {self.matrix.dtype}): real numbers (m, d) are "
                "needed"
            )
        self.shape = (self.matrix.shape[1],) if shape is None else tuple(shape)
        if math.prod(self.shape) != self.matrix.shape[1]:
            raise ValueError(f"Matrix(shape={self.shape}): the matrix has {self.matrix.shape[1]} columns")
        _, s, v = torch.linalg.svd(self.matrix.double(), full_matrices=False)
        self.s, self.v = s, v.mT  # (k,), (d, k)
        self.cut = 1e-6 * float(s[0])

    def A(self, x: Tensor) -> Tensor:
        if x[0].numel() != self.matrix.shape[1]:
            raise ValueError(
                f"a matrix with {self.matrix.shape[1]} columns, and samples of {tuple(x.shape[1:])}, which are "
                f"{x[0].numel()} numbers"
            )
        return x.flatten(1) @ self.matrix.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).unflatten(1, self.shape)

    def spectral(self, g: Gain, x: Tensor) -> Tensor:
        v, flat, none = self.v.to(x), x.flatten(1), g(x.new_zeros(()))
        return (none * flat + ((flat @ v) * (g(self.s.to(x)) - none)) @ v.mT).unflatten(1, self.shape)


class Given(Linear):
    """A linear operator of the user's: an object with `A` and `adjoint`, or a physics of deepinv with `A` and
    `A_adjoint`; its own `pinv` or `A_dagger`, and the decomposition of deepinv's DecomposablePhysics, are used."""

    def __init__(self, operator: Any, dtype: torch.dtype | None = None):
        self.operator, self.dtype = operator, dtype
        self._adjoint = getattr(operator, "adjoint", None) or operator.A_adjoint
        self._pinv = getattr(operator, "pinv", None) or getattr(operator, "A_dagger", None)
        self.decomposed = all(hasattr(operator, name) for name in ("V", "V_adjoint", "mask"))

    def at(self, like: Tensor) -> Linear:
        return Given(self.operator, like.dtype)

    def A(self, x: Tensor) -> Tensor:
        return self._cast(self.operator.A, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._cast(self._adjoint, y)

    def pinv(self, y: Tensor) -> Tensor:
        return super().pinv(y) if self._pinv is None else self._cast(self._pinv, y)

    def spectral(self, g: Gain, x: Tensor) -> Tensor:
        s = torch.as_tensor(self.operator.mask).to(x.device).abs()
        return self._cast(lambda x: self.operator.V(self.operator.V_adjoint(x) * g(s)), x)

    def _cast(self, f: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """f(v) in the precision of the operator, which predictions of pipelines exceed."""
        return f(v) if self.dtype is None else f(v.to(self.dtype)).to(v.dtype)


class Whitened(Linear):
    """W A, for an operator A and a triangular L with W = L^-1: what A measures with noise of the covariance L L^T is
    measured by this one with noise of 1."""

    def __init__(self, operator: Linear, root: Tensor):
        self.operator, self.root = operator, root

    def at(self, like: Tensor) -> Linear:
        return Whitened(self.operator.at(like), self.root.to(like.device))

    def A(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.root.to(x), self.operator.A(x).flatten(1).mT, upper=False).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(torch.linalg.solve_triangular(self.root.to(y).mT, y.mT, upper=True).mT)


def as_operator(operator: Any) -> Any:
    """A Linear where the operator is one, or has an adjoint, or is a matrix; else the function of samples itself. Of a
    physics of deepinv that is not linear it is A, without the noise that a call adds: what it names A_adjoint is none.
    """
    if isinstance(operator, Linear):
        return operator
    deepinv = sys.modules.get("deepinv")  # whoever has a physics has imported it
    if deepinv and isinstance(operator, deepinv.physics.Physics):
        return Given(operator) if isinstance(operator, deepinv.physics.LinearPhysics) else operator.A
    if hasattr(operator, "A") and (hasattr(operator, "adjoint") or hasattr(operator, "A_adjoint")):
        return Given(operator)
    if isinstance(operator, Tensor) or hasattr(operator, "__array_interface__"):
        return Matrix(operator)
    if not callable(operator):
        raise TypeError(
            f"operator={type(operator).__name__}: a function of samples is needed, a matrix, or an object with A and "
            "adjoint, like gk.measurements.Mask(where)"
        )
    return operator


def gradients(M: Callable[[Tensor], Tensor], v: Tensor, start: Tensor | None, iters: int) -> Tensor:
    """M^-1 v for a positive (semi)definite M, by so many steps of conjugate gradients; rows are independent."""
    x = torch.zeros_like(v) if start is None else start
    r = v if start is None else v - M(start)
    p, square = r, _dot(r, r)
    least = torch.finfo(v.dtype).eps ** 2 * _dot(v, v)
    for _ in range(iters):
        q = M(p)
        curve = _dot(p, q)
        going = (square > least) & (curve > 0)
        step = torch.where(going, square / curve, 0.0)
        x, r = x + step * p, r - step * q
        before, square = square, _dot(r, r)
        p = r + torch.where(going, square / before, 0.0) * p
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The product of each row, shaped to multiply it."""
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.dim() - 1))


def _gaussian(sigma: float) -> Tensor:
    """A Gaussian kernel up to three standard deviations, whose sum is 1."""
    reach = math.ceil(3 * sigma)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma).square())
    return torch.outer(line, line) / line.sum() ** 2
