"""Docking with real Vina into small receptors: the score of a molecule is its own, and failures are NaN."""

from __future__ import annotations

import math
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

pytest.importorskip("vina")
pytest.importorskip("meeko")
pytest.importorskip("dockstring")

from rewards import RewardError, RewardWarning
from rewards.molecules import Docking, docking

PARACETAMOL = "CC(=O)Nc1ccc(O)cc1"
BOX = ([0.0, 0.0, 0.0], [10.0, 10.0, 10.0])


@pytest.fixture(scope="module")
def found():
    """Scores of one batch with all kinds of failures in it."""
    batch = [
        "CCO",
        "C1CC",
        PARACETAMOL,
        "",
        "CCO.Cl",
        "[Na+]",
        "OB(O)c1ccccc1",
        "*CC",
        None,
        "CCO",
        "Oc1ccc(NC(C)=O)cc1",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Docking("CA2", processes=1)(batch)


def test_what_cannot_be_docked_is_nan(found):
    assert found.isnan().nonzero().flatten().tolist() == [1, 3, 4, 5, 6, 7, 8]


def test_energies_are_negative_and_a_drug_binds_better_than_ethanol(found):
    ethanol, paracetamol = found[0].item(), found[2].item()
    assert -4 < ethanol < -1.5 and -8 < paracetamol < -4


def test_the_same_molecule_has_the_same_score_in_any_batch_and_spelling(found):
    assert found[0] == found[9] and found[2] == found[10]
    reward = pickle.loads(pickle.dumps(Docking("CA2")))
    assert torch.equal(reward([PARACETAMOL]), found[2:3])
    assert not reward.higher_is_better and reward.unit == "kcal/mol" and reward.name == "docking to CA2"


def test_a_path_with_the_box_of_a_target_is_that_target(found):
    centre, edges = docking._conf(docking._resources() / "CA2_conf.txt")
    path = docking._resources() / "CA2_target.pdbqt"
    assert torch.equal(Docking(str(path), box=(centre, edges))(["CCO"]), found[:1])
    elsewhere = Docking(str(path), box=([c + 300 for c in centre], [12.0, 12.0, 12.0]))
    assert elsewhere(["CCO"]).item() > found[0].item() + 1  # nothing to bind to


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_and_its_end_costs_one_sample(found):
    reward = Docking("CA2", timeout=60)
    assert torch.equal(reward([PARACETAMOL, "C1CC"])[:1], found[2:3]) and reward([]).tolist() == []
    worker = docking._worker(reward._receptor)
    worker.energy = lambda *_: worker.process.kill() or worker.answer()  # type: ignore[method-assign]
    with pytest.warns(RewardWarning, match="the process that runs Vina ended"):
        scores = reward([PARACETAMOL, "CCO"])
    assert scores[0].isnan() and scores[1] == found[0]
    assert Docking("CA2", timeout=0.01)([PARACETAMOL]).isnan().all()


@pytest.mark.slow
def test_processes_share_a_batch_and_the_end_of_one_costs_one_sample(found):
    reward = Docking("CA2", processes=2)
    batch = [PARACETAMOL, "CCO", "C1CC", "CCO", PARACETAMOL]
    assert torch.equal(reward(batch).nan_to_num(9), found[[2, 0, 1, 0, 2]].nan_to_num(9))
    docking._worker(reward._receptor, 1).process.kill()
    with pytest.warns(RewardWarning, match="raised on 1 of 5 samples"):
        scores = reward(batch)
    assert scores.isnan().sum() == 2 and torch.equal(reward(batch).nan_to_num(9), found[[2, 0, 1, 0, 2]].nan_to_num(9))


def test_a_worker_of_a_pool_docks_by_itself():
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(docking._cores).result() == 1 <= docking._cores()
    with pytest.raises(ValueError, match="processes"):
        Docking("CA2", processes=0)


def test_vina_prints_nothing(capfd):
    Docking("CA2", seed=1)(["C"])
    assert capfd.readouterr() == ("", "")


def test_targets_are_those_of_dockstring():
    assert len(docking.targets()) == 58 and {"CA2", "DRD2", "KIT", "F2"} < {*docking.targets()}


def test_the_box_is_read_from_the_target():
    reward = Docking("DRD2")  # as in dockstring's file
    assert reward._receptor.centre == (9.25, 6.167, -7.0) and reward._receptor.edges == (30, 30, 32)
    assert Docking("DRD2", box=BOX)._receptor.edges == (10, 10, 10)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"target": "nothing"}, ValueError, "DRD2"),
        ({"target": "missing.pdbqt", "box": BOX}, ValueError, "no such file"),
        ({"target": 3}, TypeError, "int"),
        ({"target": "DRD2", "box": (1, 2)}, ValueError, "centre"),
        ({"target": "DRD2", "box": ([0, 0, 0], [10, 10, -1])}, ValueError, "centre"),
        ({"target": "DRD2", "box": ([0, 0, math.nan], [10, 10, 10])}, ValueError, "centre"),
        ({"target": "DRD2", "exhaustiveness": 0}, ValueError, "exhaustiveness"),
        ({"target": "DRD2", "seed": -1}, ValueError, "seed"),
        ({"target": "DRD2", "seed": 2**31}, ValueError, "seed"),
        ({"target": "DRD2", "cpu": 1.5}, TypeError, "cpu"),
        ({"target": "DRD2", "timeout": 0}, ValueError, "timeout"),
    ],
)
def test_wrong_arguments_are_told_at_once(arguments, error, text):
    with pytest.raises(error, match=text):
        Docking(**arguments)


def test_a_path_needs_a_box():
    with pytest.raises(ValueError, match="the centre and the edges"):
        Docking(str(docking._resources() / "CA2_target.pdbqt"))


def test_a_receptor_that_is_none_fails_the_batch_and_not_its_samples(tmp_path):
    path = tmp_path / "broken.pdbqt"
    path.write_text("ATOM nonsense\n")
    for timeout in (None, 60):
        with pytest.raises(RewardError, match="PDBQT"):
            Docking(str(path), box=BOX, timeout=timeout)(["CCO"])


def test_without_vina_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vina", None)
    with pytest.raises(RewardError, match=r"pip install 'guidekit\[docking\]'"):
        Docking("CA2")(["CCO"])
