"""`guidekit reconstruct`: measurements of files, their posterior, what is written of it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result as Answer

import guidekit as gk
from guidekit.cli.app import app
from guidekit.jobs import measuring
from guidekit.jobs.config import Config
from guidekit.jobs.job import prepare
from guidekit.jobs.specs import ConfigError
from guidekit.measurements import Blur, Poisson, Quantised
from guidekit.report.images import png

MINE = """
import torch
import guidekit as gk

CALLS = []

def net(x, t, cond):
    CALLS.append(len(x))
    return torch.cos(torch.pi * t / 2).view(-1, 1, 1, 1) * x  # x_0 ~ N(0, 1)

def load():
    return gk.GaussianModel(net, (1, 6, 6), predicts="clean", decode=lambda x: x / 4 + 0.5)

def latent():
    return gk.GaussianModel(net, (1, 6, 6), predicts="clean", decode=lambda x: (x + x.roll(1, -1)) / 4 + 0.5)

def chains():
    letters = lambda x: ["".join("ACGT"[v] for v in row) for row in x.tolist()]
    return gk.MaskedModel(lambda x, t, c: torch.zeros(*x.shape, 4), vocab_size=4, length=3, decode=letters)

def squares(pictures):
    return pictures.flatten(1)[:, :3] ** 2

def rounded(pictures):
    return pictures.detach().flatten(1).round()

def purines(texts):
    return torch.tensor([[float(sum(c in "AG" for c in s))] for s in texts])

class Rows:
    def __init__(self, count=2, sign=1):
        self.count, self.sign = count, sign
    def A(self, x):
        return x[..., : self.count, :]
    def adjoint(self, y):
        return self.sign * torch.nn.functional.pad(y, (0, 0, 0, 6 - self.count))
"""
BASE = ("mine.py:load", "--steps", "3", "-n", "2", "--no-progress")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A directory with a file of the user's, two measurements, a picture and a mask."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    for folder in ("y", "pictures"):
        Path(folder).mkdir()
    for i in range(2):
        np.save(f"y/{'ab'[i]}.npy", 0.5 + 0.2 * torch.randn(1, 6, 6, generator=g).numpy())
    Path("pictures/leaf.png").write_bytes(png((255 * torch.rand(1, 6, 6, generator=g)).to(torch.uint8)))
    left = torch.zeros(1, 6, 6, dtype=torch.uint8)
    left[..., :2] = 255
    Path("mask.png").write_bytes(png(left))
    np.save("rows.npy", np.eye(36, dtype=np.float32)[:2])
    return tmp_path


def ask(*args: str) -> Answer:
    return CliRunner().invoke(app, ["reconstruct", *args], prog_name="guidekit")


def arrays(folder: str, name: str) -> dict[str, torch.Tensor]:
    parts = ("y", "mean", "spread", "residual")
    return {part: torch.as_tensor(np.load(f"{folder}/reconstructions/{name}.{part}.npy")) for part in parts}


def test_files_of_measurements_become_samples_of_their_posteriors():
    """PiGDM is exact for this model: states are a ridge regression on the kernel's matrix, per measurement."""
    noise, n = 0.1, 200
    found = ask(
        "mine.py:load", "--measure", "blur:sigma=0.6", "--y", "y", "--noise", str(noise), "--method", "pigdm",
        "-n", str(n), "--steps", "40", "--out", "out", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    M = Blur(0.6).A(torch.eye(36).view(36, 1, 6, 6)).flatten(1).T.double()
    r = 4 * noise  # of the noise in states, which are (sample - 1/2) 4
    C = torch.linalg.inv(torch.eye(36) + M.T @ M / r**2)
    rows = json.loads(found.stdout)["reconstructed"]
    assert [row["name"] for row in rows] == ["a", "b"]
    for row in rows:
        known = arrays("out", row["name"])
        y = torch.as_tensor(np.load(f"y/{row['name']}.npy")).double()
        mean = (C @ M.T @ (4 * (y - 0.5)).flatten()) / r**2
        std = C.diagonal().sqrt()
        # 36 means of 200 draws, and 40 steps
        assert ((4 * (known["mean"].double() - 0.5)).flatten() - mean).abs().max() < 4.5 * std.max() / n**0.5 + 0.03
        assert (4 * known["spread"].flatten() / std).sub(1).abs().mean() < 0.1
        assert torch.allclose(known["y"].double(), y, atol=1e-6)
        assert torch.allclose(known["residual"], known["y"] - Blur(0.6).A(known["mean"][None])[0], atol=1e-5)
        expected = ((y.flatten() - M @ (mean / 4 + 0.5)).square().mean() + (M @ C @ M.T).trace() / 36 / 16).sqrt()
        assert row["residual / noise"] == pytest.approx(float(expected) / noise, rel=0.05)  # 40 steps
        assert row["spread"] == pytest.approx(float(std.square().mean().sqrt()) / 4, rel=0.08)
    page = Path("out/report.html").read_text()
    for told in (
        "<h1>mine.py:load: blur:sigma=0.6</h1>",
        "400 samples of 2 measurements in 40 steps, guided by pigdm",
        "Reconstructions",
        "measurement",
        "spread, white is",
        "residual of the mean",
        "sample, row 200",
        "log p(y",
    ):
        assert told in page
    assert Path("out/reconstructions/a.mean.png").read_bytes()[:4] == b"\x89PNG"
    assert "a," in Path("out/samples.csv").read_text() and "log Z" not in rows[0]


def test_pictures_are_measured_with_the_noise_of_the_seed_and_compared_with():
    found = ask(
        *BASE, "--measure", "mask:where=mask.png", "--truth", "pictures", "--seed", "3", "--out", "out", "--json"
    )
    assert found.exit_code == 0, found.output
    truth = measuring.array(Path("pictures/leaf.png"), (1, 6, 6))
    mask = torch.arange(6) < 2
    assert truth.min() > 0 and truth.max() <= 1
    left = gk.Measurement(gk.measurements.Mask(mask.expand(1, 6, 6)), torch.zeros(1, 6, 6), 0.05)
    known = arrays("out", "leaf")
    assert torch.allclose(known["y"], left.simulate(truth[None], 3)[0], atol=1e-6)
    assert not known["y"][..., 2:].any() and not known["residual"][..., 2:].any()
    (row,) = json.loads(found.stdout)["reconstructed"]
    assert row["PSNR"] == pytest.approx(float(-10 * (known["mean"] - truth).square().mean().log10()), abs=1e-3)


def test_what_was_stopped_is_written_again_and_what_is_finished_is_not_repeated(here):
    command = (*BASE, "--measure", "mask:where=mask.png", "--y", "y", "--out", "out", "--method")
    assert ask(*command, "tds").exit_code == 0
    before, rows = arrays("out", "b"), json.loads(Path("out/summary.json").read_text())["reconstructed"]
    assert all("log Z" in row for row in rows)  # weighted, so it has an evidence
    Path("out/summary.json").unlink()
    shutil.rmtree("out/reconstructions")
    assert ask(*command, "tds").exit_code == 0
    assert all(torch.equal(v, before[k]) for k, v in arrays("out", "b").items())
    assert json.loads(Path("out/summary.json").read_text())["reconstructed"] == rows
    assert "already holds this run" in ask(*command, "tds").output
    other = ask(*command, "ddrm")
    assert other.exit_code == 2 and "holds another run: method was 'tds'" in other.output
    loaded = Config.load("out/run.toml")
    assert loaded.measure == f"mask:where={here / 'mask.png'}" and loaded.y == str(here / "y")
    assert ask(*command, "ddrm", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    "spec, shape",
    [
        ("blur:sigma=0.5", (1, 6, 6)), ("mask:where=mask.png", (1, 6, 6)), ("mask:mask.png", (1, 6, 6)),
        ("downsample:3", (1, 2, 2)), ("mine.py:squares", (3,)), ("mine.py:Rows(count=4)", (1, 4, 6)),
        ("mine.py:Rows", (1, 2, 6)), ("matrix:matrix=rows.npy,shape=[1,6,6]", (2,)),
    ],
)  # fmt: skip
def test_an_operator_is_one_of_ours_or_the_users_own(spec: str, shape: tuple):
    operator = measuring.make_operator(spec)
    x = torch.rand(1, 1, 6, 6)
    assert gk.Measurement(operator, 0.0).operator(x).shape[1:] == shape


def test_noise_is_a_number_or_a_likelihood():
    assert measuring.make_noise(None) == 0.05 and measuring.make_noise("0") == 0.0
    assert measuring.make_noise("poisson:gain=100") == Poisson(100)
    assert measuring.make_noise("quantised:step=0.1,noise=0.05") == Quantised(0.1, 0.05)
    assert Config("m", measure="downsample:2", y="y", noise=0.3).noise == "0.3"  # as in a TOML file


@pytest.mark.parametrize(
    "model, measure, noise, kind",
    [
        ("load", "downsample:2", "0.05", gk.TMPD), ("load", "downsample:2", "0", gk.DDNM),
        ("load", "mine.py:squares", "0.05", gk.DAPS), ("latent", "downsample:2", "0.05", gk.DAPS),
        ("load", "downsample:2", "poisson:gain=9", gk.DAS),
    ],
)  # fmt: skip
def test_the_method_is_that_of_the_table(model: str, measure: str, noise: str, kind: type):
    made = prepare(Config(f"mine.py:{model}", measure=measure, truth="pictures", noise=noise, device="cpu"))
    assert type(made.guides[-1]) is kind
    assert (made.reward is None) == (noise == "0")


def test_tds_knows_how_uncertain_the_estimate_is_where_it_can():
    of = lambda model: prepare(Config(f"mine.py:{model}", measure="downsample:2", truth="pictures", method="tds"))  # noqa: E731
    assert isinstance(of("load").guides[-1].value, gk.values.Likelihood) and of("load").guides[-1].alpha == 1.0
    assert of("latent").guides[-1].value is None


def test_sequences_are_measured_and_weighed():
    np.save("purine.npy", np.array([3.0]))
    given = ("mine.py:chains", "--domain", "dna", "--steps", "6", "-n", "300", "--no-report")
    found = ask(*given, "--measure", "mine.py:purines", "--noise", "0.5", "--y", "purine.npy", "--out", "out", "--json")
    assert found.exit_code == 0, found.output
    (row,) = json.loads(found.stdout)["reconstructed"]
    counts = torch.arange(4.0)
    chances = torch.tensor([1.0, 3, 3, 1]) / 8
    evidence = (chances * torch.distributions.Normal(counts, 0.5).log_prob(torch.tensor(3.0)).exp()).sum().log()
    assert row["log Z"] == pytest.approx(float(evidence), abs=0.3) and "spread" not in row


DIFFERENT = ("--measure", "blur:sigma=0.5", "--y")
BAD = [
    (("--measure", "downsample:2", "--y", "y"), "y/a.npy has shape (1, 6, 6), and (1, 3, 3) is needed"),
    (("--measure", "downsample:4", "--y", "y"), "blocks of 4 x 4 do not fill samples of (1, 6, 6)"),
    (("--measure", "blur:sigma=0.5"), "either y=FOLDER"),
    ((*DIFFERENT, "y", "--truth", "pictures"), "either y=FOLDER"),
    ((*DIFFERENT, "nowhere"), "there is no such file or folder"),
    ((*DIFFERENT, "empty"), "and there are none"),
    ((*DIFFERENT, "twice"), "two files are named a"),
    ((*DIFFERENT, "holes"), "not finite"),
    ((*DIFFERENT, "broken.npy"), "broken.npy cannot be read"),
    ((*DIFFERENT, "y", "--noise", "-1"), "a number of at least 0"),
    ((*DIFFERENT, "y", "--noise", "loud"), "there is no noise 'loud'"),
    ((*DIFFERENT, "y", "--method", "cfg:3"), "takes no measurement"),
    ((*DIFFERENT, "y", "--method", "tds", "--noise", "0"), "has no density"),
    ((*DIFFERENT, "y", "-c", "1", "-c", "2", "-c", "3"), "3 conditions and 2 measurements"),
    (("--measure", "blurr:sigma=1", "--y", "y"), "there is no operator 'blurr'; did you mean 'Blur'?"),
    (("--measure", "mine.py:rounded", "--truth", "pictures"), "none passes through the operator"),
    (("--measure", "mine.py:Rows(sign=-1)", "--truth", "pictures"), "the operator's adjoint is none"),
    (("--measure", "mine.py:squares", "--truth", "pictures", "--method", "ddrm"), "DDRM needs a linear operator"),
    (("--measure", "mine.py:Rows", "--truth", "pictures", "--method", "ddrm"), "singular values"),
]  # fmt: skip


@pytest.mark.parametrize("given, told", BAD)
def test_what_is_wrong_is_said_before_the_network_is_called(given, told: str):
    for folder in ("empty", "twice", "holes"):
        Path(folder).mkdir()
    shutil.copy("y/a.npy", "twice/a.npy")
    shutil.copy("mask.png", "twice/a.png")
    np.save("holes/a.npy", np.full((6, 6), np.nan))
    Path("broken.npy").write_text("no array")
    answer = ask(*BASE, *given, "--out", "out")
    assert answer.exit_code == 2 and told in answer.output, answer.output
    from guidekit.jobs.names import import_object

    assert not import_object("mine.py:CALLS") and not Path("out").exists()


def test_a_config_says_what_does_not_go_with_a_measurement():
    with pytest.raises(ConfigError, match="rewards does not go with it"):
        Config("m", measure="downsample:2", y="y", rewards=("qed",))
    with pytest.raises(ConfigError, match="noise is of a measurement"):
        Config("m", noise="0.1")
    with pytest.raises(ConfigError, match="texts: give y"):
        prepare(Config("mine.py:chains", measure="mine.py:purines", truth="pictures", domain="dna"))
