r"""The molecules of MOSES and ZINC250k as rows of fragments with their conditions, prepared once, in shards, in the
folder of the data.

    python -m guidekit.zoo.druglike --shards 40

Every shard has the same number of molecules from each source and continues where the last one ended. When a source is
used up it starts again, with a new random order of fragments in each molecule.

    QED, logP, size    the third among all molecules: low, middle or high
    source             MOSES or ZINC
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from . import data
from .fragments import Fragments, learned, split, text

PROPERTIES, SOURCES = ("QED", "logP", "size"), ("MOSES", "ZINC")
THIRDS = ("low", "middle", "high")
CLASSES = (len(THIRDS), len(THIRDS), len(THIRDS), len(SOURCES))
VOCAB, LENGTH = 800, 32
EACH, SAMPLE, VALID = 10_000, 20_000, 2_000  # molecules of each source: in a shard, for learning tokens, for validation


def sources(held_out: bool = False) -> tuple[list[str], list[str]]:
    """SMILES of MOSES and of ZINC, in a fixed random order; or some of each that are never used in training."""
    moses = data.molecules("train")
    moses = [moses[i] for i in np.random.default_rng(2).permutation(len(moses))]
    if held_out:
        return moses[:VALID], data.zinc("validation")[:VALID]
    return moses[VALID:], data.zinc("train")


def prepared() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Rows and conditions for training and for validation: all existing shards, of which there is at least one."""
    if not _shard(0).exists():
        write(1)
    found = [load_file(file) for file in sorted(data.folder().glob(_shard(0).name.replace("0000", "*")))]
    own = about()
    valid = load_file(data.folder() / f"{_name()}-validation.safetensors")
    return _set(found, own), _set([valid], own)


def _set(found: Sequence[dict[str, Tensor]], own: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return torch.cat([f["rows"] for f in found]), torch.cat([conditions(f, own["edges"]) for f in found])


def conditions(found: dict[str, Tensor], edges: dict[str, list[float]]) -> Tensor:
    """(molecules, 4): the thirds of QED, logP and size, and the source."""
    thirds = [torch.bucketize(found[k].double(), torch.tensor(edges[k]).double()) for k in PROPERTIES]
    return torch.stack([*thirds, found["source"].long()], 1)


def about() -> dict[str, Any]:
    """Tokens, and the edges between the thirds of each property."""
    file = data.folder() / f"{_name()}.json"
    if not file.exists():
        chosen, rng = [s for each in sources() for s in each[:SAMPLE]], np.random.default_rng(1)
        tokens = learned([t for s in tqdm(chosen, desc="texts") if (t := text(s, rng))], VOCAB)
        values = properties(chosen[:: 1 + len(chosen) // 10_000])
        edges = {k: v.double().quantile(torch.tensor([1 / 3, 2 / 3]).double()).tolist() for k, v in values.items()}
        _whole(file, lambda part: part.write_text(json.dumps({"tokens": tokens.card(), "edges": edges}), "utf-8"))
    return json.loads(file.read_text(encoding="utf-8"))


def properties(smiles: Sequence[str]) -> dict[str, Tensor]:
    """QED, logP and heavy atoms of each molecule."""
    from rdkit.Chem import Crippen, MolFromSmiles
    from rdkit.Chem.QED import qed

    mols = [MolFromSmiles(s) for s in smiles]
    each = ([qed(m) for m in mols], [Crippen.MolLogP(m) for m in mols], [m.GetNumHeavyAtoms() for m in mols])  # type: ignore[attr-defined]
    return {k: torch.tensor(v, dtype=torch.float32) for k, v in zip(PROPERTIES, each, strict=True)}


def write(shards: int) -> None:
    """Write the missing ones of the first `shards` shards, and the validation rows."""
    tokens, file = Fragments.of(about()["tokens"]), data.folder() / f"{_name()}-validation.safetensors"
    if not file.exists():
        _rows(file, tokens, sources(held_out=True), 0)
    left = [i for i in range(shards) if not _shard(i).exists()]
    every = sources() if left else ()
    for i in tqdm(left, desc="shards"):
        _rows(_shard(i), tokens, [_turn(each, i * EACH) for each in every], i + 1)


def _turn(every: list[str], start: int) -> list[str]:
    """The next EACH items from `start` on, beginning again after the last."""
    return [every[i % len(every)] for i in range(start, start + EACH)]


def _rows(file: Path, tokens: Fragments, of_sources: Sequence[list[str]], seed: int) -> None:
    """Write rows with their properties and source, of the molecules that fit."""
    rng, smiles = np.random.default_rng(seed), [s for each in of_sources for s in each]
    source = torch.arange(len(of_sources)).repeat_interleave(torch.tensor([len(each) for each in of_sources]))
    rows, kept = tokens.rows([split(text(s, rng)) for s in smiles], LENGTH)
    found = properties([smiles[i] for i in kept]) | {
        "rows": torch.from_numpy(rows), "source": source[torch.from_numpy(kept)].to(torch.int8),
    }  # fmt: skip
    _whole(file, lambda part: save_file(found, part))


def _whole(file: Path, write: Any) -> None:
    """Write a file completely or not at all."""
    part = file.with_name(file.name + ".part")
    write(part)
    part.replace(file)


def _name() -> str:
    return f"druglike-{VOCAB}-{LENGTH}"


def _shard(i: int) -> Path:
    return data.folder() / f"{_name()}-shard{i:04d}.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=40, help=f"each of {2 * EACH:,} molecules")
    write(parser.parse_args().shards)


if __name__ == "__main__":
    main()
