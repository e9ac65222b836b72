"""The loop does not wait for an accelerator, as far as that can be seen without one.

Gaussian processes run on a device of `FakeTensorMode`: tensors have shapes, types and a device, "cuda", but no values,
so that `.item()`, `bool()`, `nonzero()` and any other question to the values raises, and so does mixing devices. Of
tokens the network is asked for the rows alone that need it, whose number the host has to know: there the places that
wait are counted on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode

import guidekit as gk
from guidekit import random

STEPS = 4
QUESTIONS = {
    *("item", "tolist", "numpy", "nonzero", "unique", "equal", "allclose", "masked_select"),
    *("__bool__", "__int__", "__float__", "__index__", "__contains__"),
}


class Net(nn.Module):
    """A linear map with a block of attention; of tokens, logits."""

    def __init__(self, tokens: bool):
        super().__init__()
        self.into = nn.Embedding(4, 16) if tokens else nn.Linear(4, 16)
        self.cond, self.qkv, self.out = nn.Embedding(3, 16), nn.Linear(16, 48), nn.Linear(16, 3 if tokens else 4)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        h = self.into(x) + self.cond(cond)[:, None] + t[:, None, None]
        q, k, v = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in self.qkv(h).chunk(3, -1))
        return self.out(h + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def model(tokens: bool, device: str) -> gk.Model:
    with torch.device(device):
        net, codes = Net(tokens), torch.arange(3)
    options = {"encode_cond": lambda c: codes[c], "null": codes[0], "device": device}
    return gk.MaskedModel(net, 3, 6, **options) if tokens else gk.GaussianModel(net, (6, 4), **options)


def reward(x: Tensor) -> Tensor:
    return x.double().flatten(1).sum(1)


class Waiting(gk.Guide):
    """Asks for a value in the middle of a step."""

    def tilt(self, view: gk.View) -> Tensor:
        return view.x * float(view.x.mean())


GUIDES: dict[str, list[gk.Guide]] = {
    "none": [],
    "CFG": [gk.CFG(2.0)],
    "PAG": [gk.PAG(1.0)],
    "FK": [gk.CFG(2.0), gk.FKSteering(reward, 1.0)],
    "SVDD": [gk.SVDD(reward, 0.5, candidates=2)],
    "beam": [gk.BeamSearch(reward, width=2, branch=2)],
}


@pytest.fixture(scope="module")
def device() -> Iterator[FakeTensorMode]:
    mode = FakeTensorMode()
    yield mode
    random._counter.cache_clear()  # which holds tensors without values now


def stepped(run: gk.Run) -> gk.Population:
    with run.borrowed():
        population = run.start()
        for index in range(len(run.moves)):
            population = run.advance(population, index)
    return population


@pytest.mark.parametrize("name", GUIDES)
def test_a_step_of_a_gaussian_process_asks_nothing_of_the_device(name, device):
    islands = gk.Islands(2, 3) if name == "FK" else None
    with device:
        run = gk.Run(model(False, "cuda"), 8, steps=STEPS, guides=GUIDES[name], cond=[1, 2], islands=islands)
        population = stepped(run)
    assert population.x.device.type == "cuda" and population.x.shape == (16, 6, 4)


@pytest.mark.parametrize("guide", [gk.FKSteering, gk.SVDD])
def test_the_network_is_asked_for_the_next_rows_before_rewards_of_these(guide):
    """By the order of calls, on a host that takes itself for a device; the run stays the same to the last bit."""
    calls, base = "", model(False, "cpu")
    base.net.register_forward_hook(lambda net, given, out: note("n"))

    def note(what: str) -> None:
        nonlocal calls
        calls += what

    def scored(x: Tensor) -> Tensor:
        note("r")
        return reward(x)

    found = []
    for ahead in (False, True):
        calls = ""
        run = gk.Run(base, 6, steps=3, guides=[guide(scored, 0.5)], cond=1, batch_size=2)
        run.overlaps = ahead
        found.append((stepped(run), calls))
    (one, after), (two, before) = found
    assert torch.equal(one.x, two.x) and torch.equal(one.log_w, two.log_w)
    parts = 3 if guide is gk.FKSteering else 30
    assert "nrnrnr" in after and "nnr" not in after.lstrip("n")
    assert "nn" + "rn" * (parts - 2) + "rr" in before


def test_a_guide_that_waits_is_noticed(device):
    with device, pytest.raises(DataDependentOutputException):
        stepped(gk.Run(model(False, "cuda"), 8, steps=STEPS, guides=[Waiting()], cond=1))


class Asked(TorchFunctionMode):
    """Where the library asks for values: the functions, by file."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        masked = name == "__getitem__" and isinstance(args[1], Tensor) and args[1].dtype == torch.bool
        if name in QUESTIONS or masked:
            frame = sys._getframe(1)
            while frame is not None and not self.ours(frame.f_code):
                frame = frame.f_back
            if frame is not None:
                self.places.add(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
        return func(*args, **(kwargs or {}))

    @staticmethod
    def ours(code: CodeType) -> bool:
        return "guidekit" in Path(code.co_filename).parts and not code.co_name.startswith("<")


ROWS = {  # the number of rows or places that a forward or a draw is made for, which the host has to know
    "evaluations.evaluate", "evaluations.distinct", "independent.revealed", "independent.hidden",
}  # fmt: skip
ON_THE_HOST = {
    "run._sound",
    "run.verify",
    "resampling.resample",
    "scoring._distinct",
    "scoring._names",
}  # on the CPU alone


def test_of_tokens_only_the_rows_to_evaluate_and_to_draw_are_counted():
    with Asked() as asked:
        for name in ("none", "CFG", "FK", "SVDD"):
            stepped(gk.Run(model(True, "cpu"), 8, steps=STEPS, guides=GUIDES[name], cond=1))
    assert asked.places - ON_THE_HOST == ROWS
