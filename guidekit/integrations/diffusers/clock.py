"""The t of guidekit at the steps of a diffusers loop."""

from __future__ import annotations

import math
from typing import Any

from .grids import Grids


class Clock:
    """(step, timestep) -> t, by the levels of the scheduler that the loop steps; NaN without one."""

    def __init__(self, scheduler: Any):
        self.scheduler, self.times = scheduler, dict[float, float]()

    def __call__(self, step: int, timestep: float) -> float:
        if self.scheduler is None:
            return math.nan
        known = self.scheduler
        steps, begin = known.timesteps.tolist(), getattr(known, "begin_index", None) or 0
        unset = getattr(known, "num_inference_steps", None) is None
        if unset or timestep not in steps or getattr(known, "step_index", None) not in (None, begin + step):
            raise ValueError("guider(scheduler=...) is not the scheduler that the pipeline runs; give pipe.scheduler")
        if step == 0 or timestep not in self.times:
            grids = Grids(known, lambda scheduler, steps: None, {})  # its timesteps are set
            self.times = dict(zip(steps, grids.times(len(steps)), strict=False))
        return self.times[timestep]
