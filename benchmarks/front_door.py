"""The two commands with which the pages begin: `make demo`, and the lead of docs/improve_a_lead.md.

    python -m benchmarks.front_door [demo] [lead]

Each runs in an empty folder, in a process of its own, with one thread. benchmarks/results/front_door.json has the
command, the seconds of processor time, the numbers at the end and the designs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "front_door.json"
COMMANDS = {
    "demo": "guidekit design molecules --reward objective:perindopril_mpo --require 'alerts.left_step(0)' "
    "--require 'sa.left_step(4)' --diversity 10 --budget 400 --compare --out out/demo",
    "lead": "guidekit design molecules --start lead.smi --reward qed --reward sa:0.5 "
    "--reward \"similarity('CC(=O)Nc1ccc(S(N)(=O)=O)cc1'):0.5\" --require \"substructure('S([NH2])(=O)=O')\" "
    "--budget 200 -n 20 --dock-top 5 --dock-target CA2 --out out/lead",
}
LEAD = "CC(=O)Nc1ccc(S(N)(=O)=O)cc1 lead\n"


def run(name: str) -> dict[str, Any]:
    """One command, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "lead.smi").write_text(LEAD, encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "guidekit.cli", *shlex.split(COMMANDS[name])[1:]]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=folder, env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return collected(name, Path(folder) / "out" / name, round(seconds))


def collected(name: str, folder: Path, seconds: int) -> dict[str, Any]:
    """What is kept of a run."""
    with (folder / "designs.csv").open(encoding="utf-8", newline="") as file:
        designs = list(csv.DictReader(file))
    last = {}
    for what, place in (("designs", folder), ("screening", folder / "screening")):
        if (place / "rounds.json").exists():
            trace = json.loads((place / "rounds.json").read_text(encoding="utf-8"))[-1]["trace"]
            last[what] = {key: trace[key] for key in ("calls", "best", "top10")}
    return {"command": COMMANDS[name], "processor seconds": seconds, "last": last, "designs": designs}


def lines(found: dict[str, Any], count: int = 5) -> list[str]:
    """The first designs as a table."""
    names = [k for k in found["designs"][0] if k not in ("row", "proposal", "sample")]
    cells = [[*names, "molecule"], ["---"] * (len(names) + 1)]
    for row in found["designs"][:count]:
        cells.append([*(f"{float(row[k]):.2f}" if row[k] else "" for k in names), f"`{row['sample']}`"])
    return ["| " + " | ".join(row) + " |" for row in cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*COMMANDS, []], default=list(COMMANDS))
    found = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    for name in parser.parse_args().names:
        found[name] = run(name)
        OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print("\n".join(lines(found[name])))


if __name__ == "__main__":
    main()
