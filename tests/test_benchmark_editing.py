"""The table of docs/edit.md is that of the stored results."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOUND = json.loads((ROOT / "benchmarks" / "results" / "editing.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "edit.md").read_text(encoding="utf-8")


def cells(domain: str, method: str) -> list[str]:
    line = re.search(rf"^\| {domain} \| `?{method}`? \|(.*)\|$", PAGE, re.M)
    assert line is not None, (domain, method)
    return [cell.strip() for cell in line[1].split("|")]


def test_the_page_says_what_was_measured():
    assert f"{FOUND['n']} samples and {FOUND['steps']} steps" in PAGE
    few = f"fashion, {FOUND['few'][0]['steps']} steps"
    tables = (("fashion", FOUND["images"]), ("dna", FOUND["dna"]), (few, FOUND["few"]))
    for domain, rows, kept in ((name, rows, "kept" if name == "dna" else "distance") for name, rows in tables):
        for row in rows:
            error, edited, last = cells(domain, row["method"])
            assert (float(error) if error else None) == (None if row["error"] is None else float(f"{row['error']:.2g}"))
            assert edited == f"{row['edited']:.0%}".replace("%", " %")
            own = f"{row[kept]:.2f}" if kept == "distance" else f"{row[kept]:.0%}".replace("%", " %")
            assert last.startswith(own)
