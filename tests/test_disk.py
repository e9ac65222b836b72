"""What cannot be written is said clearly, before the run where that can be known, and loses nothing that was saved."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import guidekit as gk
from guidekit.engine import checkpoint
from guidekit.search import rounds

PLANE = gk.analytic.GaussianMixture([0.7, 0.3], [[-1.0, 0.5], [2.0, 1.0]], [0.5, 0.8])
TABLE = gk.analytic.TokenTable(torch.linspace(-1, 1, 3**4).view(3, 3, 3, 3))
calls: list[int] = []


def reward(x: torch.Tensor) -> torch.Tensor:
    calls.append(len(x))
    return x[:, 0].double() - 0.2 * x[:, -1].double() ** 2


def design(folder: Path, calls: int = 40) -> gk.Result:
    return gk.evolve(TABLE, 3, reward, budget=gk.search.Budget(calls=calls), population=10, checkpoint=folder)


RUNS: dict[str, Callable[[Path], gk.Result]] = {
    "sample": lambda f: gk.sample(PLANE, 40, steps=12, guides=[gk.FKSteering(reward, 0.5)], checkpoint=f),
    "search": lambda f: gk.search.random(PLANE, 4, reward, rounds=4, candidates=20, steps=4, folder=f),
    "refine": lambda f: gk.refine(PLANE, 64, reward, rounds=3, steps=3, checkpoint=f),
    "design": design,
}


@contextmanager
def full(size: int) -> Iterator[None]:
    """Files cannot grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name, size", [("sample", 10000), ("search", 12000), ("refine", 4600), ("design", 2000)])
def test_on_a_full_disk_what_is_saved_stays_and_the_same_call_goes_on(name, size, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SHARE", 1e9)  # write after every step
    make, place = RUNS[name], tmp_path / "kept"
    whole = make(tmp_path / "whole")
    with full(size), pytest.raises(gk.CheckpointError, match=r"could not be written .*is the disk full") as told:
        make(place)
    assert str(tmp_path) in str(told.value)
    assert place.exists()  # something was saved before
    assert not list(tmp_path.rglob("*.part"))
    before = len(calls)
    again = make(place)
    assert torch.equal(again.x, whole.x) and torch.equal(again.rewards, whole.rewards)
    assert len(calls) > before  # it had not been finished


def fitted(folder: Path) -> gk.values.Learned:
    return gk.values.fit(PLANE, reward, rollouts=16, steps=4, epochs=1, folder=folder)


@pytest.mark.slow  # Lightning is imported
@pytest.mark.filterwarnings("ignore:the value is no better")
def test_a_fit_on_a_full_disk_keeps_its_rollouts_and_goes_on(tmp_path):
    place = tmp_path / "kept"
    with full(20000), pytest.raises(gk.CheckpointError, match=r"last\.ckpt could not be written .*is the disk full"):
        fitted(place)
    before = (place / "rollouts.safetensors").read_bytes()
    again, whole = fitted(place), fitted(tmp_path / "whole")
    assert (place / "rollouts.safetensors").read_bytes() == before
    assert [p.name for p in sorted(place.iterdir())] == ["last.ckpt", "rollouts.safetensors"]
    assert all(torch.equal(v, whole.net.state_dict()[k]) for k, v in again.net.state_dict().items())


@pytest.mark.parametrize("name", [*RUNS, "fit"])
def test_a_folder_that_cannot_be_written_is_noticed_before_anything_is_scored(name, tmp_path):
    (tmp_path / "file").write_text("no folder")
    calls.clear()
    with pytest.raises(gk.CheckpointError, match="could not be written"):
        (RUNS | {"fit": fitted})[name](tmp_path / "file" / "inside" / "run")
    assert not calls


@pytest.mark.parametrize("name", ["design.json", "rounds.json", "states-0000.safetensors"])
def test_a_file_of_a_design_that_is_cut_off_says_how_no_call_is_lost(name, tmp_path):
    design(tmp_path / "d", 12)
    data = (tmp_path / "d" / name).read_bytes()
    (tmp_path / "d" / name).write_bytes(data[: len(data) // 2])
    calls.clear()
    with pytest.raises(
        gk.CheckpointError, match=rf"{name} is missing or truncated.*calls\.csv of its folder as known="
    ):
        design(tmp_path / "d", 20)
    assert not calls
    known = tmp_path / "d" / "calls.csv"
    gk.evolve(TABLE, 3, reward, budget=gk.search.Budget(calls=8), population=10, known=known)
    assert sum(calls) == 8  # and not those ten, nor the two, once more


def test_a_search_with_settings_that_are_cut_off_is_refused(tmp_path):
    RUNS["search"](tmp_path / "s")
    text = (tmp_path / "s" / "search.json").read_text()
    (tmp_path / "s" / "search.json").write_text(text[:-20])
    with pytest.raises(gk.CheckpointError, match=r"search\.json is truncated; delete the folder"):
        RUNS["search"](tmp_path / "s")


def test_a_kill_between_two_names_of_a_folder_loses_no_round(tmp_path, monkeypatch):
    """The old folder has moved aside, and the new one is not in its place yet."""
    whole, rename, seen = RUNS["refine"](tmp_path / "whole"), Path.rename, []

    def dies(self: Path, target: Any) -> Path:
        seen.append(self.name)
        if seen.count("kept.part") == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        RUNS["refine"](tmp_path / "kept")
    monkeypatch.setattr(Path, "rename", rename)
    assert not (tmp_path / "kept").exists()
    started = []
    monkeypatch.setattr(rounds.Rounds, "first", lambda *args: started.append(args))  # a search from the start
    again = RUNS["refine"](tmp_path / "kept")
    assert torch.equal(again.x, whole.x) and not started


def test_the_error_of_the_system_is_named(tmp_path):
    with full(10), pytest.raises(gk.CheckpointError, match=os.strerror(errno.EFBIG)):
        RUNS["search"](tmp_path / "s")
