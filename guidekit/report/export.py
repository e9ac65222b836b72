"""Samples in the formats of their fields: CSV of everything, SMILES and SDF, FASTA, PNG and a sheet of images."""

from __future__ import annotations

import csv
import gzip
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
    rows(path, [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)], list(found))


def rows(path: Path, listed: Sequence[dict[str, Any]], names: Sequence[str] = ()) -> None:
    """Write rows of a table, with these columns, or those of the first row."""
    names = names or list(listed[0])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(cell, names))
        writer.writerows([[cell(row[name]) for name in names] for row in listed])


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


def molecules(
    folder: Path,
    smiles: Sequence[str],
    numbers: dict[str, list[float]],
    stem: str = "samples",
    order: Sequence[int] | None = None,
) -> None:
    """Write samples.smi, with canonical SMILES, and samples.sdf, with 2D coordinates; titles are row numbers. Invalid
    samples are left out.

    stem    of the names of the files
    order   rows in the order of the files; None is that of the samples
    """
    from rdkit import Chem
    from rdkit.Chem import rdDepictor

    from rewards.molecules.descriptors import canonical, parsed

    found = [
        (row, canonical(smiles[row]) or smiles[row], mol)
        for row in (range(len(smiles)) if order is None else order)
        if (mol := parsed(smiles[row])) is not None
    ]
    (folder / f"{stem}.smi").write_text("".join(f"{t} {row:05d}\n" for row, t, _ in found), encoding="utf-8")
    with Chem.SDWriter(str(folder / f"{stem}.sdf")) as writer:
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
    .csv, .tsv       a column named sample, smiles or sequence, or with such a word in its name; of molecules also
                     another one, if all that it holds are SMILES
    .fasta, .fa...   sequences
    .gz              any of these, compressed
    a folder         of PNG images

    An SDF or FASTA file is known by what is in it, whatever it is called. The samples are a list of texts, or images
    (rows, C, H, W).
    """
    if domain == "images":
        return _read_images(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of {domain}")
    text, kind = _content(path)
    if kind in (".sdf", ".sd", ".mol") or re.search(r"^M  END\s*$", text, re.M):
        return _read_sdf(path, text, domain)
    if kind in (".csv", ".tsv"):
        return _read_table(path, text, domain)
    if kind in (".fasta", ".fa", ".fna") or text.lstrip().startswith(">"):
        records = re.split(r"^>.*$", text, flags=re.M)[1:]
        return ["".join(record.split()) for record in records]
    lines = (line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    words = [re.split(r"[\s,;]", line)[0] for line in lines]
    return words[1:] if words and words[0].lower() in _HEADS else words


_HEADS = ("smiles", "canonical_smiles", "sequence", "sample")  # first words that mark a header and not a sample


def _content(path: Path) -> tuple[str, str]:
    """The text of a file, and the end of its name in lower case."""
    data, name = path.read_bytes(), path.name.lower()
    if name.endswith(".gz"):
        try:
            data, name = gzip.decompress(data), name.removesuffix(".gz")
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: not a gzip file that can be read ({error})") from error
    return data.decode("utf-8-sig", "replace").replace("\r\n", "\n"), Path(name).suffix


def _read_sdf(path: Path, text: str, domain: str) -> list[str]:
    """Canonical SMILES of the records of an SDF file."""
    if domain != "molecules":
        raise ValueError(f"{path}: an SDF file holds molecules, not {domain}")
    from rdkit import Chem

    from rewards.molecules.descriptors import blocked

    with blocked():
        supplier = Chem.SDMolSupplier()
        supplier.SetData(text)
        return ["" if mol is None else Chem.MolToSmiles(mol) for mol in supplier]


def _read_table(path: Path, text: str, domain: str) -> list[str]:
    """The column of samples. Its name may reveal that the file is from another domain, which is an error."""
    head = text.split("\n", 1)[0]
    mark = max(",;\t", key=head.count)
    names, *rows = [row for row in csv.reader(io.StringIO(text), delimiter=mark) if row] or [[]]
    own, others = ("smiles", "sequence") if domain == "molecules" else ("sequence", "smiles")
    column = _column(names, own)
    if column is None and domain == "molecules":
        column, rows = _unnamed(names, rows)
    if column is None and (other := _column(names, others)) is not None:
        kind = "DNA" if others == "sequence" else "molecules"
        raise ValueError(f"{path}: its column {names[other]!r} holds {kind}, not {domain}")
    if column is None:
        raise ValueError(f"{path}: a column sample, smiles or sequence is needed; it has {names}")
    return [re.sub(r"^'(?=[=+\-@])", "", row[column]) if column < len(row) else "" for row in rows]


def _column(names: Sequence[str], kind: str) -> int | None:
    """The column of samples: named like their kind, or `sample`, or with the kind in its name."""
    plain = [name.strip().lower() for name in names]
    tests: list[Callable[[str], bool]] = [lambda n: n == kind, lambda n: n == "sample", lambda n: kind in n]
    return next((i for test in tests for i, name in enumerate(plain) if test(name)), None)


def _unnamed(names: list[str], rows: list[list[str]]) -> tuple[int | None, list[list[str]]]:
    """The first column of which every cell is a molecule, and all rows; the first row counts if it is one itself."""
    from rewards.molecules.descriptors import parsed

    for i, name in enumerate(names):
        if rows and all(i < len(row) and parsed(row[i]) is not None for row in rows):
            return i, [names, *rows] if parsed(name) is not None else rows
    return None, rows


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
