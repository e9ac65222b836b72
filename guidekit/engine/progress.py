"""The progress bar of a run: step, effective sample size, best and mean reward, rows a second and time left."""

from __future__ import annotations

from typing import Any

from .population import effective_size
from .run import Run
from .trace import Record


class Bar:
    """A tqdm bar, or nothing. Reading the numbers waits for the device, so it is done only when tqdm draws."""

    def __init__(self, run: Run, shown: bool):
        self.run, self.bar = run, None
        if shown and run.world.rank == 0:
            from tqdm.auto import tqdm

            self.bar = tqdm(
                **{"total": len(run.moves), "unit": "step", "desc": "sample", "dynamic_ncols": True} | run.model.bar
            )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, done: int) -> None:
        """Show the state after `done` moves; the numbers are read only when the bar is drawn."""
        if self.bar is not None and (self.bar.update(done - self.bar.n) or done == len(self.run.moves)):
            self.bar.set_postfix(self._numbers(self.run.records[-1]))

    def _numbers(self, record: Record) -> dict[str, str]:
        shown = {"ess": f"{float(effective_size(record.left.view(self.run.groups, -1)).min()):.0f}"}
        known = record.rewards[~record.rewards.isnan()]
        if len(known):
            shown |= {"best": f"{float(known.max()):.3g}", "mean": f"{float(known.mean()):.3g}"}
        return shown | {"rows/s": f"{self.run.cost.network_rows / max(self.run.seconds, 1e-9):.0f}"}
