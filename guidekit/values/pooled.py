r"""What a model of tokens says, pooled: the numbers that a linear head reads.

A network of tokens ends in log p_i = W h_i + b - log sum_v exp(W h_i + b)_v, with h_i its last hidden state at position
i. Their mean over the open positions O of x_t (the masks; with uniform noise all positions) is

    m = 1/|O| sum_{i in O} log p_i = W h + b - c,       h = 1/|O| sum_{i in O} h_i,

with c one number for each state, the same for all tokens. So m is a linear image of the pooled hidden state, and every
linear head a . h on this is one on m: with W^T w = a and sum(w) = 0 it is w . m - w . b. Such a w exists for every a if
W and the column of ones have full rank together, which is the usual case where the tokens outnumber the width. So the
head on the hidden state is read off the prediction that the run makes anyway: nothing is hooked, and a state that the
run goes on from is evaluated once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.view import View
from ..process import Masked, Uniform

_FLOOR = -20.0  # of log-probabilities, so that tokens that cannot be do not decide the mean


@dataclass(frozen=True)
class Pooled:
    """The mean over open positions of log p(x_0^i = v | x_t), (rows, width) for the `width` tokens v; NaN in rows that
    nothing is left to draw in. It is no value by itself: `gk.values.fit` finds what the numbers are worth.

    >>> import torch, guidekit as gk
    >>> table = gk.analytic.TokenTable(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)))
    >>> twos = lambda x: (x == 2).sum(1)
    >>> looks = [gk.values.Rollout(twos, k=8), Pooled(3)]
    >>> value = gk.values.fit(table, twos, looks=looks, rollouts=200, steps=6, epochs=0)
    >>> value.sees_prediction
    True
    """

    width: int

    def __call__(self, view: View) -> Tensor:
        process, x, size = view.model.process, view.x, self.width
        if not isinstance(process, (Masked, Uniform)) or size != process.V:
            raise ValueError(f"Pooled({size}) reads the log-probabilities of {size} tokens, not of {process}")
        if view.prediction is None:
            raise ValueError("Pooled reads the prediction, and the guide that asks says sees_prediction = False")
        open = x == size if isinstance(process, Masked) else torch.ones_like(x, dtype=torch.bool)
        if (decided := process.decided(x)) is not None:
            open = open & ~decided[:, None]
        log_p = view.prediction.double().log_softmax(-1).clamp(min=_FLOOR)
        return (log_p * open[..., None]).sum(1) / open.sum(1, keepdim=True)
