"""The weights of a steered guide are Girsanov's: the noise along the drift, and half of the drift's square."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import guidekit as gk


@dataclass(frozen=True)
class Drift(gk.Guide):
    """A drift that bends, with the state and the time."""

    def tilt(self, view: Any) -> Tensor:
        return 0.05 * view.x.tanh() + 0.1 * view.t

    steer: bool = True


@pytest.mark.parametrize("solver", [gk.solvers.DDPM(), gk.solvers.DDIM(0.6)])
def test_path_space_weights_of_any_drift(solver: gk.Solver):
    """log w = -sum_j (<u_j, z_j> + |u_j|^2/2), u_j = b_j (the drift's change of the clean mean)/c_j, z_j the noise."""
    base = gk.analytic.GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [1.0, 2.0]], [0.6, 0.4])
    noise = torch.randn(7, 5, 2, generator=torch.Generator().manual_seed(3))
    result = gk.sample(base, 5, steps=6, guides=[Drift()], noise=noise, solver=solver)
    moves = base.moves(6, solver)
    x, log_w = noise[0], torch.zeros(5, dtype=torch.float64)
    for move, z in zip(moves, noise[1:], strict=True):
        shift = 0.05 * x.tanh() + 0.1 * move.t
        d = base(x, move.t, None)
        if move.c:
            u = (move.b[0] / move.c * shift).double()
            log_w -= (u * z).sum(1) + u.square().sum(1) / 2
        x = move.a * x + move.b[0] * (d + shift * (move.c > 0)) + move.c * z
    assert torch.allclose(result.log_weights, log_w, atol=1e-4)
    assert log_w.std() > 0.05
