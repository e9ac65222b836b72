r"""A list of guides as the guider of a modular pipeline of diffusers.

    pipe.update_components(guider=guider([gk.CFG(5.0), gk.PAG(3.0, layers="mid_block")]))

A guider is shown what the denoiser returns, and neither the state x_t nor what that output means: noise, a velocity, a
clean mean. One of these is an affine map of the other, the same for all evaluations at x_t, so those guides serve that
commute with such maps,

    F(a e_1 + b, ..., a e_k + b) = a F(e_1, ..., e_k) + b,

like every combination whose coefficients add up to one. That is tried out on random numbers when the guider is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import nn

from rewards.base import needs

from ...engine.guide import Guide
from ...engine.view import Step
from ...models.evaluations import Cond, Null
from .clock import Clock
from .perturbing import Perturbing, Whole
from .shown import Shown, combined, evaluations, refused, step_of

if TYPE_CHECKING:
    from diffusers.guiders.guider_utils import BaseGuidance as _Base
else:
    _Base = object  # diffusers is imported when a guider is made


def guider(guides: Iterable[Guide], scheduler: Any = None) -> Any:
    """A diffusers guider, for `pipe.update_components(guider=...)`, that does what these guides do.

    guides      CFG, PAG, SEG, SLG..., with `start` and `stop` as ever; those that cannot serve are refused
    scheduler   the pipeline's, where scales are functions of t
    """
    needs("diffusers", "diffusers", "a guider of a modular pipeline")
    if isinstance(guides, (str, Guide)) or not isinstance(guides, Iterable):
        raise TypeError(f"guider({guides!r}): a list of guides is needed, like [gk.CFG(5.0)]")
    listed = tuple(guides)
    for why in (refused(guide, scheduler is not None) for guide in listed):
        if why is not None:
            raise ValueError(why)
    return _kind()(listed, scheduler)


@lru_cache(1)
def _kind() -> Any:
    from diffusers.guiders.guider_utils import BaseGuidance

    return type("Guider", (Guider, BaseGuidance), {"_input_predictions": ["pred_cond"]})


class Guider(_Base):
    """Guides in the protocol of diffusers: one forward of the denoiser for each evaluation that they need."""

    def __init__(self, guides: tuple[Guide, ...], scheduler: Any = None):
        super().__init__()
        if not all(isinstance(g, Guide) for g in guides):
            raise TypeError("guides are not stored with a pipeline: make its guider again with guider([...])")
        self.guides, self._clock, self._model = guides, Clock(scheduler), Shown(len)
        self._denoiser: nn.Module | None = None
        self._at: Step | None = None
        self._perturbing: Perturbing | None = None
        self.register_to_config(guides=[repr(g) for g in guides])

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        super().set_state(step, num_inference_steps, timestep)
        self.cleanup_models(None)  # what an interruption has left
        if step >= num_inference_steps and any(g.start > 0 or g.stop < 1 for g in self.guides):
            raise ValueError(
                f"evaluation {step} of a run of {num_inference_steps} steps: the scheduler evaluates more than once a "
                "step, so start and stop of a guide have no place. Take another scheduler, or gk.from_diffusers"
            )
        self._at = step_of(step, max(num_inference_steps, step + 1), self._clock(step, float(timestep)))

    @property
    def active(self) -> tuple[Guide, ...]:
        """The guides of this step."""
        at = self._at
        return tuple(g for g in self.guides if self._enabled and at is not None and g.active(at))

    @property
    def wanted(self) -> tuple[Cond, ...]:
        """The evaluations of this step."""
        return evaluations(self.active)

    @property
    def num_conditions(self) -> int:
        """2 where a step of the run needs the negative prompt: encoders ask before there is a step."""
        return len({self._model.place(need) for need in evaluations(self.guides if self._enabled else ())})

    @property
    def is_conditional(self) -> bool:
        return self._model.place(self.wanted[max(self._count_prepared, 1) - 1]) == 0

    # the protocol, in the order of its calls ---------------------------------------------------------------------

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        return self._told([self._prepare_batch(data, *where) for where in self._places()])

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        make = self._prepare_batch_from_block_state
        return self._told([make(input_fields, data, *where) for where in self._places()])

    def _places(self) -> list[tuple[int, str]]:
        return [(self._model.place(need), f"pred_{i}") for i, need in enumerate(self.wanted)]

    def _told(self, batches: list[Any]) -> list[Any]:
        """The batches, if they differ where they must."""
        first = batches[0].as_dict()
        for batch, (place, _) in zip(batches, self._places(), strict=True):
            given = {k: v for k, v in batch.as_dict().items() if k != self._identifier_key}
            missing = [k for k, v in given.items() if v is None and first[k] is not None]
            if place == 1 and (missing or all(v is first[k] for k, v in given.items())):
                raise ValueError("a guide needs the model at a negative prompt: give the pipeline negative_prompt=''")
        return batches

    def prepare_models(self, denoiser: nn.Module) -> None:
        super().prepare_models(denoiser)
        self.cleanup_models(denoiser)
        if self._denoiser is not denoiser or (self._step == 0 and self._count_prepared == 1):
            self._denoiser, self._model = denoiser, Shown(Whole(denoiser))
            for guide in self.guides:
                guide.card.refuse(type(guide).__name__, self._model.process)
                guide.check(self._model, self._num_inference_steps)
        need = self.wanted[self._count_prepared - 1]
        if type(need).during is not Cond.during:
            self._perturbing = Perturbing(denoiser, self._model, need)

    def cleanup_models(self, denoiser: Any) -> None:
        if self._perturbing is not None:
            self._perturbing.end()
        self._perturbing = None

    def __call__(self, data: list[Any]) -> Any:
        from diffusers.guiders.guider_utils import GuiderOutput

        assert self._at is not None
        out, wanted = data[0].noise_pred, self.wanted
        evals = {need: batch.noise_pred.double() for need, batch in zip(wanted, data, strict=True)}
        self._model.out = out.dtype
        pred = combined(self.active, self._model, self._at, evals).to(out.dtype)
        nulls = (batch.noise_pred for need, batch in zip(wanted, data, strict=True) if need == Null())
        return GuiderOutput(pred=pred, pred_cond=out, pred_uncond=next(nulls, None))
