r"""T-Stitch, trajectory stitching (Pan et al., 2024), https://arxiv.org/abs/2402.14167: a small model for the early
steps and a large one for the rest,

    d(x_t) = d_early(x_t) for t > at,      d_late(x_t) for t <= at.

Models trained on the same data agree at high noise levels, so the early part can be cheap: the paper replaces 40 % of
the steps of DiT-XL by a network ten times smaller. The two models share one noising process.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..process import Gaussian, Process
from .base import Condition, Encoded, Model


class Stitched(Model):
    """Two base models as one: `early` is called at times above `at`, `late` at and below.

    early, late   base models with the same shape, noising process and precision; samples are decoded by `late`
    at            a time in [0, 1]: with even steps, 0.6 gives the first 40 % to `early`

    Each model encodes the condition itself. If they share encode_cond and null, like two models that take the class as
    a number, the encoded condition is the same for both, and guides with further models can use it too.

    >>> import guidekit as gk
    >>> small, large = (gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 1.0], [s, s]) for s in (0.5, 0.4))
    >>> gk.sample(Stitched(small, large, at=0.6), 8, steps=10).cost.network_rows
    80
    """

    def __init__(self, early: Model, late: Model, at: float):
        for name, model in (("early", early), ("late", late)):
            if not isinstance(model, Model):
                raise TypeError(f"Stitched({name}=...) takes a base model, not {type(model).__name__}")
        if not isinstance(at, (int, float)) or not 0 <= at <= 1:
            raise ValueError(f"Stitched(at={at!r}): the time in [0, 1] at and below which `late` is called")
        for what in ("shape", "dtype", "device"):
            if getattr(early, what) != getattr(late, what):
                raise ValueError(
                    f"Stitched needs two models of one {what}; given {getattr(early, what)} and {getattr(late, what)}"
                )
        if (early.null is None) != (late.null is None):
            raise ValueError(
                "Stitched: one of the models has a null condition and the other none; build both with null=... (any "
                "value where the network takes no condition), or neither"
            )
        self.early, self.late, self.at = early, late, float(at)
        self.shared = _same_encoding(early, late)
        null = late.null if self.shared or late.null is None else _merged(early.null, late.null)
        super().__init__(
            late.net, _process(early, late), late.shape, late._decode, late._encode, null, late.dtype, late.device,
            late._read,
        )  # fmt: skip
        for name in ("vocab_size", "length"):
            if hasattr(late, name):
                setattr(self, name, getattr(late, name))

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        name, model = self.at_time(t)
        return model(x, t, cond if self.shared else _part(cond, name))

    def at_time(self, t: float) -> tuple[str, Model]:
        """Which model is called at a time, "early" or "late", and the model."""
        return ("early", self.early) if t > self.at else ("late", self.late)

    def encode(self, cond: Condition) -> Encoded:
        early, late = self.early.encode(cond), self.late.encode(cond)
        return late if self.shared or (early is None and late is None) else _merged(early, late)

    def decode(self, x: Tensor) -> Any:
        return self.late.decode(x)

    def modules(self) -> list[nn.Module]:
        return list(dict.fromkeys([*self.early.modules(), *self.late.modules()]))


def parts(model: Model) -> list[Model]:
    """The stitched models, one of which is called at each time; or the model itself."""
    if isinstance(model, Stitched):
        return [*parts(model.early), *parts(model.late)]
    inner = getattr(model, "base", None)  # of a model that modifies another one
    return parts(inner) if isinstance(inner, Model) else [model]


def part_at(model: Model, t: float) -> Model:
    """The part that is called at time t."""
    if isinstance(model, Stitched):
        return part_at(model.at_time(t)[1], t)
    inner = getattr(model, "base", None)
    return part_at(inner, t) if isinstance(inner, Model) else model


def _process(early: Model, late: Model) -> Process:
    """The noising process of both; runs start at the largest time that both models allow."""
    a, b = early.process, late.process
    if isinstance(a, Gaussian) and isinstance(b, Gaussian):
        a, b = (replace(p, t_max=min(a.t_max, b.t_max)) for p in (a, b))
    if a != b:
        raise ValueError(f"Stitched needs two models of one noising law; given {early.process} and {late.process}")
    return a


def _same_encoding(early: Model, late: Model) -> bool:
    same = type(early).encode is type(late).encode and early._encode is late._encode
    return same and _equal(early.null, late.null)


def _equal(a: Encoded, b: Encoded) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a is b


def _merged(early: Encoded, late: Encoded) -> Encoded:
    """Both encodings in one dict."""
    parts = (("early", early), ("late", late))
    if any(e is None for _, e in parts):
        missing = "early" if early is None else "late"
        raise ValueError(f"Stitched: the {missing} model encodes this condition as None and the other does not")
    return {f"{name}.{k}": v for name, e in parts for k, v in (e if isinstance(e, dict) else {"": e}).items()}


def _part(cond: Encoded, name: str) -> Encoded:
    """The encoding of one model, taken from that of both."""
    if cond is None:
        return None
    own = {k[len(name) + 1 :]: v for k, v in cond.items() if k.startswith(f"{name}.")}
    return own[""] if own.keys() == {""} else own
