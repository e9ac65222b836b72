"""Looking ahead through a small decoder, while finished samples are decoded by the pipeline's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...engine.view import View


@dataclass(frozen=True)
class Preview:
    """The reward of the clean estimate as another decoder shows it: a value for guides that weigh.

        small = base.decoder(AutoencoderTiny.from_pretrained(folder))
        gk.FKSteering(reward, alpha=0.1, value=Preview(reward, small), every=5)

    The last weights are by the reward of the samples themselves, so the target does not depend on the small decoder.

    decoder   states -> pictures, or whatever else the reward takes
    """

    reward: Any
    decoder: Callable[[Tensor], Any]

    def __post_init__(self) -> None:
        if not callable(self.decoder):
            what = type(self.decoder).__name__
            raise TypeError(f"Preview(decoder={what}): a function of states is needed, like base.decoder(vae)")

    def __call__(self, view: View) -> Tensor:
        return view.scorer(self.reward, self.decoder(view.clean), view.group)
