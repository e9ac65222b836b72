"""Samples in the formats of their fields: CSV of everything, SMILES and SDF, FASTA, PNG and a sheet of images."""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.result import Result

SHEET = 64  # largest number of images on a sheet
_SMALL = 16  # largest number of entries of a sample that are written into one cell


def write(
    folder: Path, result: Result, domain: str, columns: dict[str, list[float]], conditions: Sequence[Any]
) -> None:
    """Write samples.csv and the files of the domain; `columns` are further numbers of each sample by name."""
    table(folder / "samples.csv", result, domain, columns, conditions)
    scores = {"reward": result.rewards, "holdout": result.holdout}
    numbers = columns | {name: v.tolist() for name, v in scores.items() if v is not None}
    if domain == "molecules":
        molecules(folder, list(result.samples), numbers)
    elif domain == "dna":
        fasta(folder / "samples.fasta", list(result.samples), numbers, [conditions[g] for g in result.group.tolist()])
    elif domain == "images":
        images(folder, result.samples)


def table(path: Path, result: Result, domain: str, columns: dict[str, list[float]], conditions: Sequence[Any]) -> None:
    """One row per sample: row, condition, sample, reward, columns, holdout, log_weight, weight. Empty if unknown."""
    found: dict[str, list[Any]] = {"row": list(range(len(result)))}
    found |= {"condition": ["" if conditions[g] is None else conditions[g] for g in result.group.tolist()]}
    found |= {"sample": texts(result.samples, domain)}
    found |= {} if result.rewards is None else {"reward": result.rewards.tolist()}
    found |= columns
    found |= {} if result.holdout is None else {"holdout": result.holdout.tolist()}
    found |= {"log_weight": result.log_weights.tolist(), "weight": result.weights.tolist()}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(cell, found))
        writer.writerows([map(cell, row) for row in zip(*found.values(), strict=True)])


def cell(value: Any) -> Any:
    """A value that no spreadsheet evaluates as a formula: texts that begin like one get an apostrophe in front.

    >>> cell("=1+1"), cell(-1.5), cell(float("nan"))
    ("'=1+1", -1.5, '')
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else "" if math.isnan(value) else str(value)
    if isinstance(value, int):
        return value
    text = str(value)
    return f"'{text}" if text[:1] in "=+-@\t\r\n" and text else text


def texts(samples: Any, domain: str) -> list[str]:
    """The text that represents each sample in a table."""
    if domain == "images":
        return [image_name(i) for i in range(len(samples))]
    if domain == "molecules":
        from rewards.molecules.descriptors import canonical

        return [canonical(s) or str(s) for s in samples]
    if isinstance(samples, (Tensor,)) or not isinstance(samples, list):
        rows = torch.as_tensor(samples).flatten(1) if len(samples) else torch.zeros(0, 1)
        return [" ".join(f"{v:.6g}" for v in r) if len(r) <= _SMALL else "" for r in rows.tolist()]
    return [str(s) for s in samples]


def image_name(row: int) -> str:
    return f"images/{row:05d}.png"


def molecules(folder: Path, smiles: Sequence[str], numbers: dict[str, list[float]]) -> None:
    """Write samples.smi, with canonical SMILES, and samples.sdf, with 2D coordinates; titles are row numbers. Invalid
    samples are left out."""
    from rdkit import Chem
    from rdkit.Chem import rdDepictor

    from rewards.molecules.descriptors import canonical, parsed

    found = [
        (row, canonical(text) or text, mol) for row, text in enumerate(smiles) if (mol := parsed(text)) is not None
    ]
    (folder / "samples.smi").write_text("".join(f"{t} {row:05d}\n" for row, t, _ in found), encoding="utf-8")
    with Chem.SDWriter(str(folder / "samples.sdf")) as writer:
        for row, text, mol in found:
            mol = Chem.Mol(mol)
            rdDepictor.Compute2DCoords(mol)
            mol.SetProp("_Name", f"{row:05d}")
            mol.SetProp("SMILES", text)
            for name, values in numbers.items():
                if math.isfinite(values[row]):
                    mol.SetProp(_field(name), f"{values[row]:.6g}")
            writer.write(mol)


def _field(name: str) -> str:
    """A valid name for a data field of an SDF file."""
    return re.sub(r"[^\w .()+*/-]", "_", name)


def fasta(path: Path, samples: Sequence[str], numbers: dict[str, list[float]], conditions: Sequence[Any]) -> None:
    """Write sequences, 80 letters per line; headers have the row number, the condition and the scores."""
    lines = []
    for row, sequence in enumerate(samples):
        known = {"condition": conditions[row]} if conditions[row] is not None else {}
        known |= {k: f"{v[row]:.6g}" for k, v in numbers.items() if math.isfinite(v[row])}
        head = " ".join(f"{k}={v}".replace(" ", "_") for k, v in known.items())
        letters = re.sub(r"[^A-Za-z*-]", "N", sequence)
        lines += [f">{row:05d} {re.sub(r'[^ -~]', '_', head)}".rstrip()]
        lines += [letters[i : i + 80] for i in range(0, len(letters), 80)]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def images(folder: Path, samples: Any) -> None:
    """Write images/00000.png... and grid.png with the first of them."""
    from .images import pixels, png

    batch = pixels(samples)
    if batch is None:
        raise ValueError(f"images are a tensor (rows, 1 or 3, H, W), not {type(samples).__name__}")
    (folder / "images").mkdir(exist_ok=True)
    for row, image in enumerate(batch):
        (folder / image_name(row)).write_bytes(png(image))
    (folder / "grid.png").write_bytes(png(sheet(batch[:SHEET])))


def sheet(batch: Tensor, gap: int = 2) -> Tensor:
    """8-bit images (n, C, H, W) side by side on white, row by row: (C, ...)."""
    n, c, h, w = batch.shape
    across = math.ceil(n**0.5)
    down = math.ceil(n / across)
    out = batch.new_full((c, down * (h + gap) + gap, across * (w + gap) + gap), 255)
    for i, image in enumerate(batch):
        top, left = gap + i // across * (h + gap), gap + i % across * (w + gap)
        out[:, top : top + h, left : left + w] = image
    return out


# reading -------------------------------------------------------------------------------------------------------------


def read(path: Path, domain: str) -> Any:
    """The samples in a file or folder of any of these kinds.

    .smi, .txt       SMILES (or sequences) at the beginning of each line
    .sdf, .mol       molecules, as canonical SMILES; a record that cannot be read is an empty text
    .csv, .tsv       a column named sample, smiles or sequence, or with such a word in its name
    .fasta, .fa...   sequences
    a folder         of PNG images

    The samples are a list of texts, or images (rows, C, H, W).
    """
    if domain == "images":
        return _read_images(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of {domain}")
    kind = path.suffix.lower()
    if kind in (".sdf", ".sd", ".mol"):
        return _read_sdf(path, domain)
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if kind in (".csv", ".tsv"):
        return _read_table(path, text, domain)
    if kind in (".fasta", ".fa", ".fna") or text.lstrip().startswith(">"):
        records = re.split(r"^>.*$", text, flags=re.M)[1:]
        return ["".join(record.split()) for record in records]
    words = [line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return words[1:] if words and words[0].lower() in _HEADS else words


_HEADS = ("smiles", "canonical_smiles", "sequence", "sample")  # first words that mark a header and not a sample


def _read_sdf(path: Path, domain: str) -> list[str]:
    """Canonical SMILES of the records of an SDF file."""
    if domain != "molecules":
        raise ValueError(f"{path}: an SDF file holds molecules, not {domain}")
    from rdkit import Chem

    from rewards.molecules.descriptors import blocked

    with blocked():
        found = Chem.SDMolSupplier(str(path)) if path.suffix.lower() != ".mol" else [Chem.MolFromMolFile(str(path))]
        return ["" if mol is None else Chem.MolToSmiles(mol) for mol in found]


def _read_table(path: Path, text: str, domain: str) -> list[str]:
    """The column of samples. Its name may reveal that the file is from another domain, which is an error."""
    head = text.split("\n", 1)[0]
    mark = max(",;\t", key=head.count)
    rows = list(csv.DictReader(io.StringIO(text), delimiter=mark))
    names = list(rows[0]) if rows else head.strip().split(mark)
    own, others = ("smiles", "sequence") if domain == "molecules" else ("sequence", "smiles")
    column = _column(names, own)
    if column is None and (other := _column(names, others)) is not None:
        kind = "DNA" if others == "sequence" else "molecules"
        raise ValueError(f"{path}: its column {other!r} holds {kind}, not {domain}")
    if column is None:
        raise ValueError(f"{path}: a column sample, smiles or sequence is needed; it has {names}")
    return [re.sub(r"^'(?=[=+\-@])", "", row[column] or "") for row in rows]


def _column(names: Sequence[str], kind: str) -> str | None:
    """The column of samples: named like their kind, or `sample`, or with the kind in its name."""
    plain = {name: name.strip().lower() for name in names if name}
    tests: list[Callable[[str], bool]] = [lambda n: n == kind, lambda n: n == "sample", lambda n: kind in n]
    return next((name for test in tests for name, lower in plain.items() if test(lower)), None)


def _read_images(path: Path) -> Tensor:
    from rewards.base import needs
    from rewards.images import image_batch

    opened = needs("PIL.Image", "images", "reading images").open
    files: Iterable[Path] = sorted(path.glob("*.png")) if path.is_dir() else [path] if path.is_file() else []
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a decompression bomb is not an image
        for file in files:
            try:
                with opened(file) as image:
                    found.append(image.convert("L" if image.mode in ("1", "L") else "RGB"))
            except Exception as error:
                raise ValueError(f"{file}: not an image that can be read ({error})") from error
    if not found:
        raise ValueError(f"{path}: a folder of PNG images is needed, and there are none")
    if len({(i.size, i.mode) for i in found}) > 1:
        raise ValueError(f"{path}: the images have different sizes or modes; they are compared pixel by pixel")
    return image_batch(found)
