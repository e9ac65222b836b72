r"""Tangential damping, TCFG (Kwon et al., 2025), https://arxiv.org/abs/2503.18137.

The two noise predictions of each sample are the rows of a matrix. With its singular value decomposition,

    (e_cond; e_null) = U S V^T,      e_null <- <e_null, V_1> V_1,      e <- e_null + w (e_cond - e_null),

the unconditional prediction keeps only its component along the first right singular vector, on which both predictions
agree most. V_1 follows from the 2 x 2 matrix of inner products. Predictions are compared as noise,
e = (x_t - alpha d)/sigma, which carries no information on the data where alpha = 0: there nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.view import View
from .shared.contrast import Contrast, along, both, dot


@dataclass(frozen=True)
class TCFG(Contrast):
    """CFG in which the unconditional prediction loses its tangential component. One extra NFE per particle and step.

    scale   w, a number or a function of t; 1 does nothing
    """

    card = replace(
        Contrast.card,
        about="CFG without the tangential component of the unconditional prediction",
        paper=Paper(
            "kwon2025tcfg",
            "Kwon, Mingi and others",
            "TCFG: Tangential Damping Classifier-free Guidance",
            2025,
            "2503.18137",
        ),
        example="gk.TCFG(2.5)",
    )

    def tilt(self, view: View) -> Tensor | float:
        alpha, sigma = view.model.process.scales(view.t)
        if alpha < 1e-3:
            return 0.0
        cond, null = ((view.x - alpha * d) / sigma for d in both(view))
        normal = along(view, null, _leading(view, cond, null))
        return -sigma / alpha * (at(self.scale, view.t) - 1) * (cond - normal)


def _leading(view: View, a: Tensor, b: Tensor) -> Tensor:
    """The first right singular vector of the two rows (a; b), up to its length: u_1 a + u_2 b."""
    gram = torch.stack([torch.stack([dot(a, a), dot(a, b)], -1), torch.stack([dot(a, b), dot(b, b)], -1)], -2)
    u = torch.linalg.eigh(gram).eigenvectors[..., -1]
    return view.rows(u[:, 0]) * a + view.rows(u[:, 1]) * b
