"""A denoiser that is perturbed between two calls of somebody else's loop."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from ...models.attention import Frame
from ...models.base import Model
from ...models.evaluations import Cond


class Whole(nn.Module):
    """A denoiser once more, under the same names of its parts and with hooks of its own."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self._modules = denoiser._modules


class Perturbing:
    """While this stands, the denoiser is perturbed whenever it is called; an exception in it ends that."""

    def __init__(self, denoiser: nn.Module, model: Model, need: Cond):
        self.denoiser, self.model, self.need = denoiser, model, need
        self.own = vars(denoiser).get("forward")  # what offloading has put there
        self.compiled, denoiser._compiled_call_impl = denoiser._compiled_call_impl, None
        model.net.forward = denoiser.forward  # type: ignore[attr-defined]
        denoiser.forward = self.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        whole = cast(nn.Module, self.model.net)
        try:
            rows = Frame(whole, (), args, kwargs).rows()
            with self.need.during(self.model, slice(0, rows)):
                return whole(*args, **kwargs)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        if vars(self.denoiser).get("forward") != self.forward:
            return
        self.denoiser._compiled_call_impl = self.compiled
        if self.own is None:
            del self.denoiser.forward
        else:
            self.denoiser.forward = self.own
