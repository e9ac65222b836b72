"""The progress bar of a run: step, effective sample size, best and mean reward, rows a second and time left."""

from __future__ import annotations

from typing import Any

from .population import Population
from .run import Run


class Bar:
    """A tqdm bar, or nothing. Reading the numbers waits for the device, so it is done only when tqdm draws."""

    def __init__(self, run: Run, shown: bool):
        self.run, self.bar = run, None
        if shown:
            from tqdm.auto import tqdm

            self.bar = tqdm(
                **{"total": len(run.moves), "unit": "step", "desc": "sample", "dynamic_ncols": True} | run.model.bar
            )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, pop: Population, done: int) -> None:
        """Show the state after `done` moves; the numbers are read only when the bar is drawn."""
        if self.bar is not None and (self.bar.update(done - self.bar.n) or done == len(self.run.moves)):
            self.bar.set_postfix(self._numbers(pop))

    def _numbers(self, pop: Population) -> dict[str, str]:
        shown = {"ess": f"{float(pop.ess.min()):.0f}"}
        known = pop.rewards[~pop.rewards.isnan()]
        if len(known):
            shown |= {"best": f"{float(known.max()):.3g}", "mean": f"{float(known.mean()):.3g}"}
        return shown | {"rows/s": f"{self.run.cost.network_rows / max(self.run.seconds, 1e-9):.0f}"}
