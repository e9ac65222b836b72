"""What `import guidekit` does and does not do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(code: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Python in a folder, whose files come first, as they do for a script or a notebook there."""
    given = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.run([sys.executable, *options, "-c", code], cwd=folder, env=given, capture_output=True, text=True)


def test_the_import_is_light(tmp_path: Path):
    done = python(
        "import sys, guidekit; print([m for m in ('torch', 'numpy', 'rewards') if m in sys.modules])", tmp_path
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("name", ["rewards.py", "rewards/__init__.py"])
def test_a_file_of_the_users_that_hides_our_package_is_named_with_what_to_do(name: str, tmp_path: Path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("def score(samples):\n    return samples\n")
    done = python("import guidekit", tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().split("\n")[-1]
    hidden = file if name == "rewards.py" else file.parent
    assert last.startswith(f"ImportError: {hidden} hides the package 'rewards'")
    assert "my_rewards" in last
    file.rename(tmp_path / "my_rewards.py")
    if file.parent != tmp_path:
        file.parent.rmdir()
    assert python("import guidekit, my_rewards", tmp_path).returncode == 0


def test_a_folder_of_the_users_without_an_init_hides_nothing(tmp_path: Path):
    (tmp_path / "rewards").mkdir()
    assert python("import guidekit", tmp_path).returncode == 0


def test_rewards_may_be_imported_first(tmp_path: Path):
    assert python("import rewards, guidekit", tmp_path).returncode == 0
