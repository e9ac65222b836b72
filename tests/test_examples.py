"""Every example runs at small size and says what it should."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

import guidekit as gk
from guidekit.external import dnacnn

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "enhancers": ["--n", "4", "--steps", "8", "--out", "out"],
    "external_reward": ["--n", "3", "--steps", "6", "--out", "out"],
    "images": ["--n", "4", "--steps", "6", "--out", "out"],
    "inverse": ["--n", "200", "--steps", "20"],
    "learned_value": ["--n", "4", "--steps", "6", "--rollouts", "20", "--epochs", "1", "--folder", "out"],
    "minority": ["--n", "4", "--steps", "8"],
    "molecules": ["--n", "4", "--candidates", "3", "--top", "2", "--out", "out"],
    "own_model": ["--train-steps", "30", "--n", "50"],
    "particles": ["--n", "32", "--steps", "8", "--checkpoint", "run.ckpt"],
}
LINES = {
    "enhancers": ["unguided", "best of 4", "SVDD", "held-out oracle"],
    "external_reward": ["CG pairs", "failed 0"],
    "images": ["CFG + PAG + CLIP", "judged sneaker", "images.png"],
    "inverse": ["inpainting  TDS", "deblurring  DPS"],
    "learned_value": ["SVDD, learned value", "explained variance"],
    "minority": ["minority guidance, rarest bin", "boost and skip"],
    "molecules": ["best of N", "SVDD", "QED", "best.csv"],
    "own_model": ["unguided", "steered"],
    "particles": ["log Z", "rows a second", "held-out oracle"],
}


def ran(name: str, arguments: list[str], monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
@pytest.mark.filterwarnings("ignore::rewards.RewardWarning")
@pytest.mark.filterwarnings("ignore:the value is no better than a constant")  # of twenty rollouts
@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs(name: str, tmp_path, monkeypatch, capsys):
    if name == "molecules" and "molecules" not in gk.zoo.names():
        pytest.skip("no molecule model in the box")
    monkeypatch.chdir(tmp_path)
    out = ran(name, SMALL[name], monkeypatch, capsys)
    for line in LINES[name]:
        assert line in out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_physics_of_deepinv_fit_a_model_of_diffusers(monkeypatch, capsys):
    pytest.importorskip("deepinv")
    pytest.importorskip("diffusers")
    out = ran("deepinv_physics", ["--n", "2", "--steps", "8"], monkeypatch, capsys)
    residual = {tuple(line.split()[:2]): float(line.split()[2]) for line in out.splitlines()[1:]}
    assert len(residual) == 9
    for method in ("DiffPIR", "TMPD"):
        assert residual["inpainting", method] < 1.5 < 4 < residual["inpainting", "unguided"]
        for physics in ("deblurring", "super-resolution"):
            assert residual[physics, method] < residual[physics, "unguided"] - 0.4


ORACLE = """
import torch
class Net(torch.nn.Module):
    def forward(self, x):  # one-hot DNA: the shares of A, C and G
        assert x.shape[1:] == (4, 200)
        return x.mean(2)[:, :3]
"""


@pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
def test_the_task_of_drakes_runs_with_files_of_its_layout(tmp_path, monkeypatch, capsys):
    """Random weights; the oracle of K562 is the share of C, which its own column is about."""
    torch.manual_seed(0)
    torch.save({"state_dict": dnacnn.CNN(8, 1).state_dict()}, tmp_path / "mdlm.ckpt")
    (tmp_path / "mine.py").write_text(ORACLE)
    monkeypatch.chdir(tmp_path)
    given = ["--model", "mdlm.ckpt", "--oracle", "mine.py:Net", "--judge", "mine.py:Net", "--cell", "K562"]
    given += ["--n", "8", "--steps", "6", "--candidates", "6", "--alpha", "0.01"]
    out = ran("drakes", given, monkeypatch, capsys)
    found = {line[:12].strip(): line[12:].split() for line in out.splitlines()}
    shares = {name: float(words[1]) for name, words in found.items()}
    assert [*shares] == ["unguided", "best of 6", "SVDD", "FK steering"]
    assert min(shares["SVDD"], shares["best of 6"]) > shares["unguided"] and found["SVDD"][3] == found["SVDD"][1]
    assert found["unguided"][7] == "1.000" and int(found["SVDD"][-1]) > int(found["unguided"][-1])


def test_a_target_that_cannot_be_docked_is_told_before_the_sampling(monkeypatch, capsys):
    pytest.importorskip("dockstring")
    monkeypatch.setattr(gk.zoo, "load", lambda *a: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as caught:
        ran("molecules", ["--dock", "2ITO"], monkeypatch, capsys)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "'2ITO'" in told and "EGFR" in told and "Traceback" not in told


def test_examples_are_short():
    long = {p.name: n for p in EXAMPLES.glob("*.py") if (n := len(p.read_text(encoding="utf-8").splitlines())) > 80}
    assert not long


def test_steering_the_inverse_problem_nears_the_exact_posterior(monkeypatch, capsys):
    out = ran("inverse", ["--n", "500", "--steps", "40"], monkeypatch, capsys)
    found = {tuple(line.split()[:2]): float(line.split("mean ")[1].split()[0]) for line in out.splitlines()}
    for problem in ("inpainting", "deblurring"):
        assert found[problem, "TDS"] < 0.3 < found[problem, "unguided"]
