"""One thread for each test process, if OMP_NUM_THREADS says nothing else: on small tensors, threads that wait for each
other cost more than they save."""

import os

import pytest
import torch

from guidekit.models import evaluations
from guidekit.process import Masked

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


@pytest.fixture
def every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are evaluated, equal ones and decided ones too: the evaluations that a method declares."""
    monkeypatch.setattr(Masked, "decided", lambda self, x: None)
    monkeypatch.setattr(Masked, "apart", lambda self, move: False)
    monkeypatch.setattr(evaluations, "distinct", lambda x, cond: None)
    monkeypatch.setattr(evaluations, "_remembered", lambda memory, *of: evaluations._evaluated(*of))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Names are the same in every process, or workers would disagree on what is to be done."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid}: an address is in the name of this test: give it an id")
