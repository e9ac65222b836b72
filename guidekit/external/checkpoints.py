"""gk.from_checkpoint: files that others have trained, as base models, by networks of the same layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..models import Model
from . import adm, bidirectional, dit, dnacnn, genmol

KINDS: dict[str, Callable[..., Model]] = {
    "adm": adm.adm,
    "dream": bidirectional.dream,
    "drakes": dnacnn.drakes,
    "genmol": genmol.genmol,
    "llada": bidirectional.llada,
    "mdlm": dit.mdlm,
    "sedd": dit.sedd,
}


def from_checkpoint(path: str | Path, kind: str, **options: Any) -> Model:
    """A file of weights, or a folder of the Hugging Face layout, as a base model.

    kind      "mdlm", "sedd", "drakes", "llada", "dream", "genmol" or "adm": whose network it is
    length    tokens of a sample (of "drakes", 200); of "adm" it is size, the side of a picture
    ema       the moving average of the weights, where the file has one; ema=False takes those of the last step
    options   of the kind: see the functions in `guidekit.external.dit`, `dnacnn`, `bidirectional`, `genmol` and
              `adm`, and the page [models of others](external.md)

    Files are .safetensors, or what torch.load reads without running code that lies in them. ValueError says which names
    of weights differ from those of the kind.
    """
    if kind not in KINDS:
        raise ValueError(f"from_checkpoint(kind={kind!r}): there is {', '.join(KINDS)}")
    return KINDS[kind](path, **options)
