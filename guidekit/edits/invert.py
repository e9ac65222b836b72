"""gk.invert: the noise from which the sampler makes a given sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from ..engine.guide import Guide
from ..models.base import Model
from ..process import Gaussian
from ..solvers import BELM, DDIM, DDPM, Solver
from . import chain, deterministic, reversible, tokens
from .walk import Walk

METHODS: dict[str, type[Solver]] = {  # and the solver of each, if none is given
    "ddim": DDIM,
    "fixed_point": DDIM,
    "renoise": DDIM,
    "reversible": BELM,
    "chain": DDPM,
    "edit_friendly": DDPM,
}


def invert(
    model: Model,
    samples: Any,
    cond: Any = None,
    method: str = "ddim",
    steps: int | Sequence[float] = 50,
    *,
    guides: Iterable[Guide] = (),
    solver: Solver | None = None,
    iterations: int = 8,
    shift: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """The noise of these samples, for gk.sample(model, n, noise=noise, steps=steps, cond=..., solver=...).

    At the same condition the samples come back, at another one they are edited.

    samples      as `model.read` takes them, or states (groups*n, *shape)
    cond         the condition that describes the samples, or a list with one for each group of them
    method       of a deterministic sampler, the starting noise: "ddim", "fixed_point" (closer, for `iterations` times
                 the evaluations), "renoise" (their average, where they do not settle). Of BELM() or BDIA(), both parts
                 of its starting noise: "reversible", up to rounding. Of a stochastic one, the noise of its whole chain:
                 "chain" or "edit_friendly". Tokens have one method, "chain", which is also taken where none is named
    steps, guides, solver, batch_size   as in gk.sample, and the same there. The solver is DDIM() by default, BELM() for
                 "reversible", and DDPM() for chains
    iterations   evaluations of each step that is solved by iteration
    shift        of "edit_friendly", in time: states have the noise of so much earlier a time (0.2 for models of a few
                 steps, as in TurboEdit)
    seed         of the noise of chains

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 1.0]], [0.5, 0.5])
    >>> x = base.exact_sample(4)
    >>> noise = gk.invert(base, x, method="fixed_point", steps=20)
    >>> again = gk.sample(base, 4, noise=noise, steps=20, solver=gk.solvers.DDIM())
    >>> bool((again.x - x).abs().max() < 0.01)
    True
    """
    if not isinstance(model, Model):
        raise TypeError(f"a base model is needed, not {type(model).__name__}")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations={iterations!r}: a number of evaluations of each step, at least 1")
    if not 0 <= shift < 1 or (shift and method != "edit_friendly"):
        raise ValueError(f"shift={shift}: a difference of times in [0, 1), which method='edit_friendly' takes alone")
    x = _states(model, samples)
    gaussian = isinstance(model.process, Gaussian)
    method = _method(method, gaussian)
    if gaussian and solver is None:
        solver = METHODS[method]()
    walk = Walk.of(model, x, cond, guides, solver, steps, seed, batch_size)
    with walk.run.borrowed():
        found = _found(walk, x, method, iterations, shift)
        walk.run.settle()
    return found


def _found(walk: Walk, x: Tensor, method: str, iterations: int, shift: float) -> Tensor:
    if not isinstance(walk.run.model.process, Gaussian):
        tokens.check(walk)
        return tokens.noise(walk, x)
    if method == "reversible":
        reversible.check(walk)
        return reversible.noise(walk, x, iterations)
    if METHODS[method] is DDIM:
        deterministic.check(walk)
        state = deterministic.start(walk, x, 0 if method == "ddim" else iterations, method == "renoise")
        return chain.first(walk, state)
    chain.check(walk)
    return chain.noise(walk, x, iterations, method == "edit_friendly", shift)


def _states(model: Model, samples: Any) -> Tensor:
    x = model.as_states(samples)
    return model.state(x.view(-1, *model.shape))


def _method(method: str, gaussian: bool) -> str:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: there is {', '.join(METHODS)}")
    if not gaussian and method not in ("ddim", "chain"):
        raise ValueError(f"method={method!r}: tokens have one method, 'chain'")
    return method if gaussian else "chain"
