"""The example of a search over noise, small."""

from __future__ import annotations

import re
import runpy
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch

import guidekit as gk

ROOT = Path(__file__).parent.parent


class Walk:
    """Stands for pycma's strategy: as many normal vectors as asked for, by its seed, and the losses it was told."""

    made: ClassVar[list[Walk]] = []

    def __init__(self, start: list[float], sigma: float, options: dict):
        assert sigma == 1 and options["seed"] > 0
        self.size, self.k, self.losses = len(start), options["popsize"], []
        self.draw = torch.Generator().manual_seed(options["seed"])
        self.made.append(self)

    def ask(self) -> list:
        return list(torch.randn(self.k, self.size, generator=self.draw).double().numpy())

    def tell(self, vectors: list, losses: list[float]) -> None:
        assert len(vectors) == len(losses) == self.k and len(vectors[0]) == self.size == 28 * 28
        self.losses += losses


@pytest.fixture
def example():
    return runpy.run_path(str(ROOT / "examples" / "noise_search.py"))["main"]


@pytest.mark.slow
def test_searches_raise_the_reward_at_equal_rows_and_draw_their_images(example, tmp_path, capsys, monkeypatch):
    cma = ModuleType("cma")
    cma.CMAEvolutionStrategy = Walk  # type: ignore[attr-defined]
    cma.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "cma", cma)
    monkeypatch.setattr(Walk, "made", [])
    arguments = ["--n", "3", "--rounds", "2", "--candidates", "4", "--steps", "3", "--pycma", "--out"]
    example([*arguments, str(tmp_path)])
    lines = re.findall(r"^(\S+) +reward +(\S+) +judge +(\S+) +rows (\d+)$", capsys.readouterr().out, re.M)
    rewards = {name: float(reward) for name, reward, _, _ in lines}
    rows = {name: int(count) for name, _, _, count in lines}
    assert list(rewards) == ["plain", "random", "subspace", "CMA-ES", "pycma"]
    assert rows.pop("plain") == 3 * 3 and set(rows.values()) == {3 * 3 * (2 * 4 + 1)}
    assert min(rewards[name] for name in rows if name != "pycma") > rewards["plain"]
    assert len(Walk.made) == 3 and all(len(walk.losses) == 8 for walk in Walk.made)
    assert rewards["pycma"] == pytest.approx(-sum(min(w.losses) for w in Walk.made) / 3, abs=0.01)
    picture = (tmp_path / "grid.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000


def test_what_is_missing_is_said_at_once(example, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cma", None)
    for arguments, message in ((["--pycma"], "pip install cma"), (["--label", "hat"], "ankle boot")):
        with pytest.raises(SystemExit):
            example(arguments)
        assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pycma_itself_climbs_higher_than_random_search():
    pytest.importorskip("cma")
    pycma = runpy.run_path(str(ROOT / "examples" / "noise_search.py"))["pycma"]
    base = gk.analytic.GaussianMixture([1.0], [[0.0] * 12], [1.0])
    both = gk.search.Each(partial(pycma, candidates=8)), gk.search.Random(8)
    cma, random = (
        gk.search.run(base, 4, lambda x: x.sum(1), strategy, rounds=15, steps=5, solver=gk.solvers.DDIM()).rewards
        for strategy in both
    )
    assert (cma > random + 1).all()
