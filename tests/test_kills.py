"""Killed by signal 9 at a random point and called again: the bytes of a run that nobody killed."""

from __future__ import annotations

import os

import pytest

from benchmarks import kills
from guidekit.engine import checkpoint


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the value is no better")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", ["sample", "search", "evolve", "fit", "two"])
def test_a_killed_run_goes_on_to_the_same_bytes(name: str, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SHARE", 1e9)  # write after every step, so that there is something to tear
    found = kills.kills(name, 2)
    assert found["killed"] >= 2 and found["of other bytes"] == 0
