"""docs/add_a_method.md is true: its steps, taken literally in a copy of the package, add a method."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import guidekit as gk
from guidekit.cli.app import app
from guidekit.engine.seats import HOOKS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
PACKAGE = PAGE.split("## A method of the package")[1].split("\n## ")[0]
PLACES = {
    "guidekit/guides/pull.py",
    "guidekit/guides/__init__.py",
    "tests/conformance/cases.py",
    "tests/test_pull.py",
}
WRITTEN = {"docs/guides.md"}  # by a command


def fences(text: str) -> list[tuple[str, str]]:
    """Language and text of every block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)


def patched(text: str, lines: list[str]) -> str:
    """The text with the lines of a diff that begin with + added to those that begin with a space."""
    old = "".join(line[1:] for line in lines if line[0] == " ")
    assert text.count(old) == 1, old
    return text.replace(old, "".join(line[1:] for line in lines))


def run(folder: Path, line: str) -> None:
    """A command of the page, which imports the copy; the picture is drawn with few samples."""
    command, _, out = line.partition(" > ")
    quick = " --n 4 --steps 8 --train 5" if "gallery" in command else ""
    words = [sys.executable if word == "python" else word for word in shlex.split(command + quick)]
    env = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    if out:
        (folder / out).write_text(done.stdout, encoding="utf-8")


def take(folder: Path, language: str, text: str) -> None:
    """One step of the page."""
    lines = text.splitlines(keepends=True)
    if language == "sh":
        for line in lines:
            run(folder, line.strip())
    elif language == "diff":
        file = folder / lines[0].removeprefix("--- ").strip()
        file.write_text(patched(file.read_text(encoding="utf-8"), lines[1:]), encoding="utf-8")
    else:
        (folder / lines[0].removeprefix("# ").strip()).write_text(text, encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """The steps of the page, without the tests that it ends with."""
    found = fences(PACKAGE)
    assert [language for language, _ in found] == ["sh", "diff", "diff", "python", "sh", "sh", "sh"][: len(found)]
    return found[:5]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("guidekit", "rewards", "tests", "docs", "benchmarks", "skeletons"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_steps_of_the_page_touch_four_places_and_what_its_commands_write(copy: Path, steps):
    before = contents(copy)
    for language, text in steps:
        take(copy, language, re.sub(r"^python benchmarks/gallery.*\n", "", text, flags=re.M))  # see below
    after = contents(copy)
    assert {name for name in after if after[name] != before.get(name)} == PLACES | WRITTEN
    assert "| `Pull` | pulls samples towards a point |" in (copy / "docs" / "guides.md").read_text(encoding="utf-8")
    code = (
        "import guidekit as gk; from guidekit.jobs import names; guide = names.make_guide('pull:1,scale=0.5', None);"
        "assert guide == gk.Pull(1, 0.5) and 'key2026pull' in gk.cite(guide)"
    )
    run(copy, f"python -c {shlex.quote(code)}")


@pytest.mark.slow
def test_the_skeleton_becomes_a_guide_that_passes_the_catalogue_and_conformance_tests(copy: Path, steps):
    for step in fences(PACKAGE):
        take(copy, *step)  # the picture is drawn, and the last steps are tests
    assert (copy / "docs" / "guides.png").stat().st_size > 10_000


def test_a_guide_of_ones_own_needs_no_package(tmp_path: Path, monkeypatch):
    """The first file and the first command of the page, as they are written there."""
    (_, mine), (_, command) = (next(f for f in fences(PAGE) if f[0] == language) for language in ("python", "sh"))
    assert mine.startswith("# mine.py\n")
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(mine, encoding="utf-8")
    answer = CliRunner().invoke(app, shlex.split(command)[1:], prog_name="guidekit")
    assert answer.exit_code == 0, answer.output
    rows = Path("out/clipped/samples.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 501


def test_the_page_lists_every_hook():
    table = PAGE.split("## The hooks")[1].split("\n**The window.**")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.M))
    public = {name for name in vars(gk.Guide) if not name.startswith("_")}
    # by the engine and by searches, and answered by the class itself
    asked = {"active", "has", "judge", "tilts", "having"}
    keywords = {"steer", "start", "stop"}
    assert named == public - asked - keywords
    assert named > set(HOOKS)
