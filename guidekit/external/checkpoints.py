"""gk.from_checkpoint: files that others have trained, as base models, by networks of the same layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..models import Model
from . import adm, bidirectional, d3, dit, dnacnn, edm2, genmol

KINDS: dict[str, Callable[..., Model]] = {
    "adm": adm.adm,
    "d3": d3.d3,
    "dream": bidirectional.dream,
    "drakes": dnacnn.drakes,
    "edm2": edm2.edm2,
    "genmol": genmol.genmol,
    "llada": bidirectional.llada,
    "mdlm": dit.mdlm,
    "sedd": dit.sedd,
}


def from_checkpoint(path: str | Path, kind: str, **options: Any) -> Model:
    """A file of weights, or a folder of the Hugging Face layout, as a base model.

    kind      "mdlm", "sedd", "d3", "drakes", "llada", "dream", "genmol", "adm" or "edm2": whose network it is
    length    tokens of a sample (of "drakes", 200); of "adm" it is size, the side of a picture, and "edm2" knows it
    ema       the moving average of the weights, where the file has one; ema=False takes those of the last step
    options   of the kind: see the functions in `guidekit.external.dit`, `d3`, `dnacnn`, `bidirectional`, `genmol`,
              `adm` and `edm2`, and the page [models of others](external.md)

    Files are .safetensors, or what torch.load reads without running code that lies in them. ValueError says which names
    of weights differ from those of the kind.
    """
    if kind not in KINDS:
        raise ValueError(f"from_checkpoint(kind={kind!r}): there is {', '.join(KINDS)}")
    return KINDS[kind](path, **options)
