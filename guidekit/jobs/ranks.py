"""A run on several processes that torchrun has started: rank 0 leads and writes, the others make their share of it.

Before each call of `gk.sample` the leader says which stage of the run it is, and the others make the same call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist

from ..engine.world import Alone, world_of

STAGES = ("end", "result", "base", "best_of_n", "design", "screening")


class Ranks:
    """The processes of a run."""

    def __init__(self, world: Alone):
        self.world, self.ready, self.ended = world, True, False

    @property
    def leads(self) -> bool:
        return self.world.rank == 0

    @contextmanager
    def stage(self, name: str, number: int = 0) -> Iterator[None]:
        """A stage, which the leader begins on all ranks; what is raised in it is raised on all."""
        self.world.told(STAGES.index(name), number)
        self.ready = False
        yield
        self.ready = True

    def stages(self) -> Iterator[tuple[str, int]]:
        """For the others: the stages that the leader begins, with their numbers."""
        while True:
            stage, number = self.world.told(0, 0)
            if stage == 0:
                break
            yield STAGES[stage], number
        with self.world.together():
            pass

    def end(self, error: Exception | None = None) -> None:
        """The leader has no further stage, or failed between two of them, which the others raise as well. They need
        not wait while it writes its files."""
        if not self.leads or not self.ready or self.ended:
            return
        self.ended = True
        self.world.told(0, 0)
        with self.world.together():
            if error is not None:
                raise error


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun has started, those of torch.distributed where it is initialised already, or this
    one."""
    launched = _launched() and dist.is_available()
    begun = launched and not dist.is_initialized()
    if begun:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    ranks = Ranks(world_of("auto", torch.device(device())))
    try:
        yield ranks
        ranks.end()
    except Exception as error:
        with suppress(Exception):  # where the others are lost, too, this one says what it knows
            ranks.end(error)
        raise
    finally:
        if begun:
            dist.destroy_process_group()


def _launched() -> bool:
    """Whether torchrun has started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def device() -> str:
    """The device of this process: its own one among those of the machine."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
