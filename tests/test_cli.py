"""The command line, through its entry point."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result as Answer

import guidekit as gk
from guidekit.cli import main
from guidekit.cli.app import app
from guidekit.cli.stopping import seconds
from rewards import dna

ROOT = Path(__file__).parent.parent
ENTRY = [sys.executable, "-c", "from guidekit.cli import main; main()"]  # what the installed script does
MINE = """
import time
from pathlib import Path
import guidekit as gk
import torch

def load():
    return gk.analytic.GaussianMixture([0.7, 0.3], [[-1.0, 0.0], [2.0, 1.0]], [0.5, 0.4])

def score(samples):
    return samples[:, 0]

def wrong():
    return gk.GaussianModel(lambda x, t, c: load()(x, float(t[0]), None) - x.mean(0), (2,), predicts="clean")

def dna():
    net = lambda x, t, c: (torch.arange(4.0) / 2).expand(*x.shape, 4)
    decode = lambda x: ["".join("ACGTN"[v] for v in row) for row in x.tolist()]
    read = lambda samples: torch.tensor([["ACGT".index(v) for v in s] for s in samples])
    return gk.MaskedModel(net, 4, 6, decode, read=read)

def slow(samples):
    if Path("hold").exists():  # the fourth call waits to be stopped
        with open("hold", "a") as file:
            file.write("x")
        if Path("hold").stat().st_size >= 4:
            Path("held").touch()
            time.sleep(60)
    return samples[:, 0]

def broken(samples):
    raise KeyError("no such thing")
"""
# a job that a shell has in the background is deaf to SIGINT
HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
SAMPLE = ("sample", "mine.py:load", "-r", "mine.py:score", "-n", "4", "--steps", "5", "--no-report")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A directory with a file of the user's."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*args: str) -> Answer:
    return CliRunner().invoke(app, list(args), prog_name="guidekit")


def entry(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = {"PYTHONPATH": str(ROOT), **{k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}, **env}
    return subprocess.run([*ENTRY, *args], capture_output=True, text=True, env=given, timeout=120)


def test_the_installed_script_is_this_entry_point():
    from guidekit.jobs.config import parse_toml

    text = parse_toml((ROOT / "pyproject.toml").read_text())
    assert text["project"]["scripts"] == {"guidekit": "guidekit.cli:main"}
    assert callable(main)


def test_help_comes_at_once_and_imports_nothing_heavy():
    code = (
        "import sys; from guidekit.cli.app import app; from typer.testing import CliRunner;"
        "out = CliRunner().invoke(app, ['--help']).output; print(out);"
        "print([m for m in ('torch', 'numpy', 'rewards', 'rdkit') if m in sys.modules])"
    )
    begun = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert time.perf_counter() - begun < 10  # on a busy machine; about a quarter of a second on an idle one
    assert found.stdout.rstrip().endswith("[]")
    for command in ("list", "sample", "search", "run", "report", "compare", "evaluate", "bench", "design"):
        assert f"\n  {command} " in found.stdout


def test_the_entry_point_answers_with_json_alone_and_a_code():
    done = entry(*SAMPLE, "-g", "fk_steering:alpha=1", "--json", "-o", "out")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads(Path("out/summary.json").read_text())
    assert "\x1b" not in done.stdout + done.stderr
    assert "step" not in done.stderr  # no bar where nobody watches
    module = entry(*SAMPLE[:3], "mine:score", *SAMPLE[4:], "--json")
    assert json.loads(module.stdout)["reward"] == "score"
    wrong = entry("sample", "dan")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: there is no model 'dan'; did you mean 'dna'?\n"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("sample", "dna", "-r", "qed"), 2, "scores molecules"),
        (("sample", "dna", "-g", "svdd"), 2, "SVDD needs a reward"),
        (("sample", "dna", "-r", "gc", "-g", "svd"), 2, "did you mean 'SVDD'"),
        (("sample", "dna", "-n", "0"), 2, "-n"),
        (("sample", "dna", "--compare"), 2, "give a guide"),
        (("sample", "mine.py:load", "-r", "mine.py:broken", "--steps", "2"), 1, "'broken' raised KeyError"),
        (("search", "dna", "--strategy", "rando", "-r", "gc"), 2, "did you mean 'random'"),
        (("search", "dna", "--strategy", "paths", "--rounds", "2", "-r", "gc"), 2, "paths has no option 'rounds'"),
        (("run", "none.toml"), 2, "none.toml cannot be read"),
        (("report", "none"), 2, "not an output folder"),
        (("compare", "none"), 2, "no finished run"),
        (("evaluate", "none.smi", "--domain", "molecules"), 2, "no such file"),
        (("list", "guide"), 2, "did you mean 'guides'"),
        (("bench", "dna", "-g", "nothing_like"), 2, "guidekit list"),
        (("design", "dna"), 2, "a design needs a reward"),
        (("design", "dna", "-r", "qed"), 2, "scores molecules"),
        (("design", "dna", "-r", "gc", "--budget", "20"), 2, "Budget(calls=20) is below the population of 50"),
        (("nothing",), 2, "No such command"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_code(args, code, said):
    answer = ask(*args)
    assert answer.exit_code == code
    assert said in answer.stderr
    assert "Traceback" not in answer.output
    assert answer.stdout == ""


def test_debug_shows_the_traceback():
    answer = ask("sample", "mine.py:load", "-r", "mine.py:broken", "--steps", "2", "--debug")
    assert isinstance(answer.exception, gk.RewardError)
    assert isinstance(answer.exception.__cause__, KeyError)


def test_list_tells_of_everything():
    answer = ask("list", "--json")
    found = json.loads(answer.stdout)
    assert list(found) == ["models", "guides", "rewards", "solvers", "searches"]
    named = {section: {e["name"] for e in entries} for section, entries in found.items()}
    assert {"SVDD", "FKSteering", "FKC.cfg", "CFG"} <= named["guides"]
    assert {"QED", "SA", "GC", "CellType", "Brightness", "dna-judge", "objective"} <= named["rewards"]
    assert not {"Reward", "Molecule", "ImageScore", "Network", "Clip"} & named["rewards"]
    assert named["models"] <= set(gk.zoo.names())
    assert all(e["about"] for entries in found.values() for e in entries)
    text = ask("list", "rewards", "--options").stdout
    assert "SVDD" not in text
    assert "lower is better" in next(line for line in text.split("\n") if line.split()[:1] == ["SA"])
    assert "oracle='dna-oracle'" in text


@pytest.mark.usefixtures("every_row")
def test_sample_writes_the_files_of_its_domain():
    args = (
        "sample",
        "dna",
        "-r",
        "gc",
        "-g",
        "svdd:candidates=2",
        "-n",
        "2",
        "--steps",
        "4",
        "-c",
        "HepG2",
        "-c",
        "K562",
    )
    answer = ask(*args, "--holdout", "dna-judge:HepG2", "-o", "out", "--no-report")
    assert answer.exit_code == 0, answer.output
    names = {p.name for p in Path("out").iterdir()}
    assert {"run.toml", "result", "samples.csv", "samples.fasta", "summary.json", "lineage.json", "run.log"} <= names
    assert not {"checkpoint", "base", "report.html"} & names
    result = gk.load_result("out/result")
    expected = gk.sample(
        gk.zoo.load("dna"), 2, steps=4, guides=[gk.SVDD(dna.GC(), candidates=2)],
        cond=["HepG2", "K562"],
    )  # fmt: skip
    assert result.samples == expected.samples
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["columns"] == [
        "mean", "top 10%", "holdout mean", "uniqueness", "diversity", "network rows", "reward calls", "seconds",
    ]  # fmt: skip
    assert summary["rows"][0]["mean"] == pytest.approx(float(expected.rewards.mean()))  # type: ignore[union-attr]
    assert summary["rows"][0]["network rows"] == expected.cost.network_rows == 2 * (2 + 3 * 4)
    again = ask(*args, "--holdout", "dna-judge:HepG2", "-o", "out", "--no-report")
    assert again.exit_code == 0
    assert "nothing was done" in again.stderr
    assert again.stdout == answer.stdout
    other = ask(*args, "-o", "out")
    assert other.exit_code == 2
    assert "holdout was 'dna-judge:HepG2' and is now None" in other.stderr


def test_sample_of_images_writes_pictures_and_the_table_of_a_comparison():
    answer = ask(
        "sample", "fashion", "-r", "fashion-classifier:bag", "-g", "svdd:candidates=2", "-n", "2", "--steps", "3",
        "-c", "8", "--compare", "-o", "out", "--no-report",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert len(list(Path("out/images").glob("*.png"))) == 2
    assert Path("out/grid.png").read_bytes().startswith(b"\x89PNG")
    rows = {line.split("  ")[0]: line for line in answer.stdout.split("\n") if line}
    assert [name.strip() for name in rows][1:] == ["unguided", "best of 2", "steered"]
    assert json.loads(Path("out/summary.json").read_text())["domain"] == "images"


def test_without_a_folder_the_best_samples_are_printed_and_nothing_is_written(here):
    before = sorted(here.iterdir())
    answer = ask("sample", "dna", "-r", "gc", "-n", "3", "--steps", "3")
    result = gk.sample(
        gk.zoo.load("dna"), 3, steps=3, reward=lambda s: [(v.count("G") + v.count("C")) / 200 for v in s]
    )
    assert [line.split()[-1] for line in answer.stdout.strip().split("\n")[-3:]] == result.best(3).samples
    assert [p for p in sorted(here.iterdir()) if p.name != "__pycache__"] == before


def test_islands_are_told_on_the_command_line():
    options = ("-g", "fk_steering:alpha=0.1", "--islands", "2", "--exchange-every", "3", "-o", "apart")
    answer = ask(*SAMPLE, *options)
    assert answer.exit_code == 0, answer.output
    assert "islands = 2\nexchange_every = 3\n" in Path("apart/run.toml").read_text()
    assert gk.load_result("apart/result").config["islands"]["count"] == 2
    refused = ask(*SAMPLE, "--compile")
    assert refused.exit_code == 2 and "GaussianMixture has no network to compile" in refused.stderr


def test_run_does_what_a_file_says_and_writes_it_again():
    Path("a.toml").write_text(
        "model = 'mine.py:load'\nrewards = ['mine.py:score']\nguides = ['svdd:candidates=2']\nn = 3\nsteps = 4\n"
    )
    assert ask("run", "a.toml", "-o", "one", "--no-report").exit_code == 0
    assert ask("run", "one/run.toml", "-o", "two", "--no-report").exit_code == 0
    assert Path("one/run.toml").read_text() == Path("two/run.toml").read_text()
    assert torch.equal(gk.load_result("one/result").x, gk.load_result("two/result").x)
    table = ask("compare", "one", "two")
    assert "one: steered" in table.stdout
    assert "two: steered" in table.stdout
    rows = json.loads(ask("compare", "one", "two", "--json").stdout)["rows"]
    assert rows[0]["mean"] == rows[1]["mean"]
    assert "different rewards" not in table.stderr


def test_compare_warns_where_rewards_differ():
    ask(*SAMPLE, "-o", "one")
    ask(*SAMPLE[:3], "mine.py:score:2", *SAMPLE[4:], "-o", "two")
    answer = ask("compare", "one", "two")
    assert "different rewards" in answer.stderr
    rows = json.loads(ask("compare", "one", "two", "--json").stdout)["rows"]
    assert rows[1]["mean"] == pytest.approx(2 * rows[0]["mean"])


def test_search_runs_a_strategy_within_its_budget():
    args = ("search", "mine.py:load", "-r", "mine.py:score", "-n", "2", "--steps", "4", "--no-report")
    answer = ask(*args, "--strategy", "random:candidates=3", "--rounds", "2", "--compare", "-o", "out", "--json")
    assert answer.exit_code == 0, answer.output
    rows = {r["name"]: r for r in json.loads(answer.stdout)["rows"]}
    assert rows["steered"]["network rows"] == 2 * 4 * (3 * 2 + 1)
    assert rows["best of N"]["network rows"] == rows["steered"]["network rows"]
    assert rows["steered"]["mean"] > rows["unguided"]["mean"]
    assert Path("out/search/evaluations.jsonl").exists()
    assert 'search = "random:candidates=3,rounds=2"' in Path("out/run.toml").read_text()
    limited = ask(*args, "--strategy", "random:candidates=3", "--budget", "calls=9", "--json")
    assert json.loads(limited.stdout)["rows"][0]["reward calls"] <= 9


def test_evaluate_gives_the_metrics_of_a_file():
    Path("a.smi").write_text("CCO\nOCC\nC1CC\n")
    found = json.loads(ask("evaluate", "a.smi", "--domain", "molecules", "--json").stdout)
    assert found["validity"] == pytest.approx(2 / 3)
    assert found["uniqueness"] == 0.5
    assert "validity" in ask("evaluate", "a.smi", "--domain", "molecules").stdout


def test_evaluate_compares_with_a_reference_by_chemnet_when_asked():
    pytest.importorskip("fcd_torch")
    Path("a.smi").write_text("CCO\nCCN\nCCC\n")
    Path("b.smi").write_text("c1ccccc1\nc1ccccc1O\nc1ccccc1C\n")
    args = ("evaluate", "a.smi", "--domain", "molecules", "--json")
    own, far = (json.loads(ask(*args, "--fcd", "--reference", f).stdout)["FCD"] for f in ("a.smi", "b.smi"))
    assert abs(own) < 1e-3 and far > 10
    assert "FCD" not in json.loads(ask(*args, "--reference", "b.smi").stdout)
    refused = ask(*args, "--fcd")
    assert refused.exit_code == 2 and "--reference FILE" in refused.stderr


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("guidekit sample fashion-", ["fashion-weak"]),
        ("guidekit sample dna --guide sv", ["svdd"]),
        ("guidekit sample dna --guide SV", ["SVDD"]),
        ("guidekit sample dna --reward mel", ["meltingtemperature"]),
    ],
)
def test_the_shell_completes_names(words, found):
    env = {"_GUIDEKIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(ENTRY, env=dict(os.environ) | env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == found, done.stderr


def test_bench_gives_rows_over_unguided():
    found = json.loads(
        ask(
            "bench", "mine.py:load", "-r", "mine.py:score", "-g", "svdd:candidates=3", "-g", "fk_steering:alpha=1",
            "-n", "4", "--steps", "5", "--repeats", "1", "--json",
        ).stdout
    )  # fmt: skip
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["unguided"]["times unguided"] == 1.0
    assert rows["svdd:candidates=3"]["network rows"] == 4 * (1 + 3 * 4)
    assert rows["svdd:candidates=3"]["rows over unguided"] == pytest.approx(13 / 5)
    assert rows["fk_steering:alpha=1"]["rows over unguided"] == 1.0


def test_check_prints_the_laws_and_a_report_of_the_run_shows_them():
    answer = ask("check", "mine.py:load", "-g", "svdd:candidates=3", "-r", "mine.py:score", "--draws", "4", "-o", "out")
    rows = [line.split()[:2] for line in answer.stdout.splitlines()]
    assert answer.exit_code == 0 and rows[0] == ["law", "verdict"] and ["acts", "holds"] in rows
    assert ["coverage", "holds"] in rows and "written to out" in answer.stderr
    assert ask(*SAMPLE, "-o", "run").exit_code == 0
    told = json.loads((bad := ask("check", "mine.py:wrong", "-o", "run", "--json")).stdout)
    assert bad.exit_code == 1 and not told["passed"]
    assert {row["law"] for row in told["laws"] if row["verdict"] == "fails"} == {"rows"}
    page = Path("run/report.html").read_text()
    assert 'id="laws"' in page and "The law &#39;rows&#39; fails: alone and in a batch" in page
    (Path("run") / "check.json").write_text('[{"law": "rows"}]')
    broken = ask("report", "run")
    assert broken.exit_code == 1 and "check.json is broken" in broken.stderr


def test_check_reads_data_of_a_file_in_the_domain_of_the_model():
    """The network says p(v) proportional to e^{v/2}: data of these frequencies pass, and of the opposite ones fail."""
    share = torch.softmax(torch.arange(4.0) / 2, 0)
    drawn = torch.multinomial(share.repeat(300, 1), 6, True, generator=torch.Generator().manual_seed(1))
    for letters, code in (("ACGT", 0), ("TGCA", 1)):
        rows = ["".join(letters[v] for v in row) for row in drawn.tolist()]
        Path("data.fasta").write_text("".join(f">{i}\n{s}\n" for i, s in enumerate(rows)))
        answer = ask("check", "mine.py:dna", "--domain", "dna", "--data", "data.fasta")
        assert answer.exit_code == code, answer.output
    Path("few.fasta").write_text(">a\nACGTAC\n")
    few = ask("check", "mine.py:dna", "--domain", "dna", "--data", "few.fasta")
    assert few.exit_code == 2 and "holds 1 samples: 8 are needed" in few.stderr
    unknown = ask("check", "mine.py:load", "--data", "few.fasta")
    assert unknown.exit_code == 2 and "data 'few.fasta': what its samples are is known for" in unknown.stderr


def test_report_is_written_by_its_module(monkeypatch):
    import guidekit.report

    asked = []
    monkeypatch.setattr(guidekit.report, "write", lambda folder: asked.append(folder) or Path(folder) / "report.html")
    assert ask(*SAMPLE, "-o", "out").exit_code == 0
    assert asked == []
    answer = ask("report", "out")
    assert answer.stdout.strip() == str(Path("out/report.html"))
    assert ask(*SAMPLE[:-1], "-o", "out").exit_code == 0  # finished, but without its page
    assert asked == [Path("out")] * 2


def test_bars_are_shown_where_they_are_asked_for():
    loud, quiet = ask(*SAMPLE, "--progress"), ask(*SAMPLE)
    assert "5/5" in loud.stderr
    assert "mean=" not in quiet.stderr
    assert "5/5" not in quiet.stderr


def test_a_bar_is_wanted_by_terminals_and_not_in_ci(monkeypatch):
    from guidekit.jobs import watched

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("CI", raising=False)
    assert watched.wanted()
    monkeypatch.setenv("CI", "true")
    assert not watched.wanted()
    monkeypatch.delenv("CI")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert not watched.wanted()


@pytest.mark.parametrize(
    "limit, code, why",
    [
        ((), 130, "stopped; "),
        pytest.param((), 143, "stopped by SIGTERM; ", marks=pytest.mark.slow),
        pytest.param(("--time-limit", "25s"), 75, "stopped at the time limit of 25s; ", marks=pytest.mark.slow),
    ],
)
def test_after_a_stop_the_same_command_goes_on_to_the_same_bytes(limit: tuple[str, ...], code: int, why: str):
    args = ["sample", "mine.py:load", "-r", "mine.py:slow", "-g", "fk_steering:alpha=1", "-n", "3", "--steps", "8"]
    args += ["--no-report"]
    Path("hold").touch()
    heard = [*ENTRY[:2], HEARD + ENTRY[2]]
    running = subprocess.Popen(
        [*heard, *args, *limit, "-o", "out"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while not Path("held").exists() and running.poll() is None:
        time.sleep(0.05)
    if not limit:
        running.send_signal(signal.SIGINT if code == 130 else signal.SIGTERM)
    told = running.communicate(timeout=60)[1]
    Path("hold").unlink()
    assert running.returncode == code
    assert Path("out/checkpoint").exists()
    assert f"{why}progress is saved in out, and the same command resumes there" in told
    assert "Traceback" not in told
    assert not Path("out/result").exists()
    assert ask(*args, "-o", "out").exit_code == 0
    assert ask(*args, "-o", "whole").exit_code == 0
    one, two = (Path(d) / "result" / "tensors.safetensors" for d in ("out", "whole"))
    assert one.read_bytes() == two.read_bytes()
    assert not Path("out/checkpoint").exists()


@pytest.mark.parametrize("text, told", [("90", 90), ("1.5m", 90), ("11h30m", 41400), ("2d1s", 172801)])
def test_times_are_read(text: str, told: float):
    assert seconds(text) == told


@pytest.mark.parametrize("text", ["", "soon", "1 h", "-5", "5x", "h"])
def test_what_is_not_a_time_is_refused_before_the_run(text: str):
    for command in (SAMPLE, ("design", "dna", "-r", "gc")):
        answer = ask(*command, "--time-limit", text)
        assert answer.exit_code == 2
        assert "is not a time: 90s, 30m or 11h30m is" in answer.stderr


def test_runs_with_different_seeds_are_merged(tmp_path):
    for seed in ("1", "2"):
        assert ask(*SAMPLE, "--seed", seed, "-g", "fk_steering:alpha=1", "-o", f"run{seed}").exit_code == 0
    answer = ask("merge", "run1", "run2", "--out", "both")
    assert answer.exit_code == 0, answer.stderr
    parts = [gk.load_result(f"run{seed}/result") for seed in (1, 2)]
    whole = gk.load_result("both/result")
    assert torch.equal(whole.log_weights, torch.cat([part.log_weights for part in parts]))
    assert len(Path("both/samples.csv").read_text().splitlines()) == 9
    assert f"log Z {float(whole.log_z[0]):.4g} ±" in answer.stdout
    again = ask("merge", "run1", "run1", "--out", "other")
    assert again.exit_code == 2
    assert "runs 0 and 1 have the same seed" in again.stderr
    assert "0 is run1, 1 is run1" in again.stderr
    assert ask("merge", "run1", "run2", "--out", "both").exit_code == 2
    assert ask("report", "both").exit_code == 0
    assert Path("both/report.html").exists()


def test_a_merge_that_cannot_be_written_leaves_nothing_behind(monkeypatch):
    for seed in ("1", "2"):
        assert ask(*SAMPLE, "--seed", seed, "-o", f"run{seed}").exit_code == 0

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("guidekit.report.export.write", full)
    answer = ask("merge", "run1", "run2", "--out", "both")
    assert answer.exit_code == 1 and "both could not be written ([Errno 28] No space left" in answer.stderr
    assert not Path("both").exists()


@pytest.mark.parametrize("args", [("merge", "a", "b", "--out", "c"), ("report", "a"), ("compare", "a", "b")])
def test_commands_of_one_process_are_refused_under_torchrun(args: tuple[str, ...], monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = ask(*args)
    assert answer.exit_code == 2
    assert f"guidekit {args[0]} works in one process, and torchrun has started 2" in answer.stderr
