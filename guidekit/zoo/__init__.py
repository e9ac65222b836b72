"""Bundled models: `gk.zoo.load("fashion")` works offline, at once, on CPU and GPU.

Every entry is a pair of files in guidekit/zoo/weights: NAME.safetensors, and NAME.json, its card, which says what it
is, how and on what it was trained, and how good it is. Loading checks the SHA-256 of the weights and unpickles nothing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as read, save
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models import GaussianModel, MaskedModel, Model
from ..models.prefixes import Prefixes
from ..solvers.schedules import Cosine
from . import nets, readers

WEIGHTS = Path(__file__).parent / "weights"


def names() -> list[str]:
    """The names of the base models, for `load`.

    >>> set(names()) >= {"dna", "fashion", "molecules"}
    True
    """
    return [name for name in entries() if card(name)["kind"] in _MODELS]


def entries() -> list[str]:
    """The names of all entries: base models, classifiers, a CLIP and learned values.

    >>> "fashion-clip" in entries()
    True
    """
    return sorted(file.stem for file in WEIGHTS.glob("*.json"))


def card(name: str) -> dict[str, Any]:
    """The card of an entry: what it is, how it was trained, and how good it is."""
    file = WEIGHTS / f"{name}.json"
    if name not in entries():
        raise ValueError(f"zoo: there is no {name!r}; there is {', '.join(entries())}")
    return json.loads(file.read_text(encoding="utf-8"))


def network(name: str, device: torch.device | str | None = None) -> nn.Module:
    """The network of an entry, in evaluation mode and float32."""
    own = card(name)
    if own["kind"] == "value":
        raise ValueError(f"zoo: {name!r} is a value, which gk.zoo.value() loads")
    net = getattr(nets, own["network"])(**own["options"])
    net.load_state_dict(state(name))
    return net.eval().requires_grad_(False).to(device or "cpu")


def state(name: str) -> dict[str, Tensor]:
    """The weights of an entry, after checking that they belong to its card."""
    file = WEIGHTS / f"{name}.safetensors"
    data = file.read_bytes() if file.exists() else b""
    if hashlib.sha256(data).hexdigest() != card(name)["sha256"]:
        raise CheckpointError(f"{file} is missing or not the file that its card was written for: install guidekit anew")
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in read(data).items()}


def written(name: str, net: nn.Module, about: dict[str, Any], folder: Path = WEIGHTS) -> None:
    """Write weights in half precision and their card, which keeps measurements made after less training."""
    file = folder / f"{name}.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    earlier = old.get("earlier", [])
    if "metrics" in old and old["training"] != about["training"]:
        earlier = [*earlier, {"minutes": old["training"]["minutes"], **old["metrics"]}]
    halved = {k: (v.half() if v.dtype == torch.float32 else v).contiguous() for k, v in net.state_dict().items()}
    blob = save(halved)
    own = about | {
        "sha256": hashlib.sha256(blob).hexdigest(), "bytes": len(blob),
        "parameters": sum(p.numel() for p in net.parameters()),
        **({"earlier": earlier} if earlier else {}),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(blob)
    file.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")


def value(name: str, device: torch.device | str | None = None) -> Any:
    """A learned value for look-aheads, as in gk.SVDD(reward, value=gk.zoo.value("dna-value"))."""
    from .values import load_value

    return load_value(name, device)


def continues(name: str) -> bool:
    """Whether a model draws tokens from the left, each by what it keeps of those before: `load(name, ahead=False)`.

    >>> continues("druglike"), continues("dna")
    (True, False)
    """
    return hasattr(getattr(nets, card(name)["network"], None), "extend")


def load(name: str, device: torch.device | str | None = None, ahead: bool = True) -> Model:
    """A base model with its decoder, conditions and null condition; see docs/zoo.md.

    ahead   of molecules, whose tokens are drawn from the left: whether predictions say something of all tokens to come,
            which look-aheads at the reward read. Without it the network is asked for the next token alone and keeps its
            states of those before (`guidekit.models.prefixes`), which takes less time; look-aheads then see the
            molecule so far. Samples have the same law
    """
    own = card(name)
    if own["kind"] not in _MODELS:
        raise ValueError(f"zoo: {name!r} is a {own['kind']}, which network() loads; models are {', '.join(names())}")
    if not ahead and not continues(name):
        raise ValueError(f"zoo: ahead=False is for models that draw from the left, and {name!r} draws in any order")
    net = network(name, device)
    return _MODELS[own["kind"]](net if ahead else Prefixes(net, end=0), own)


def clip(name: str = "fashion-clip", device: str | None = None) -> Any:
    """A CLIP for the rewards of images, loaded by open_clip: `rewards.images.ClipScore("a photo of a bag", clip())`."""
    from rewards.images import Clip

    own = card(name)
    if own["kind"] != "CLIP":
        raise ValueError(f"zoo: {name!r} is a {own['kind']}, and no CLIP")
    return Clip(own["options"], WEIGHTS / f"{name}.safetensors", preprocess=own["preprocess"], device=device)


def _images(net: nn.Module, own: dict[str, Any]) -> Model:
    classes: list[str] = own["classes"]
    mean, std = own["mean"], own["std"]

    def decode(x: Tensor) -> Tensor:
        return (x * std + mean).clamp(0, 1)

    return GaussianModel(
        net, own["shape"], Cosine(), "velocity", decode, lambda c: torch.tensor(_label(c, classes)), len(classes),
        read=readers.Images(tuple(own["shape"]), mean, std),
    )  # fmt: skip


def _dna(net: nn.Module, own: dict[str, Any]) -> Model:
    classes, length = own["classes"], own["options"]["length"]
    return MaskedModel(
        net, 4, length, _sequences, lambda c: torch.tensor(_label(c, classes)), len(classes),
        read=readers.Sequences(length),
    )  # fmt: skip


def _molecules(net: nn.Module, own: dict[str, Any]) -> Model:
    from .tokens import Tokens

    classes, tokens, options = own["classes"], Tokens.of(own["tokens"]), own["options"]
    return MaskedModel(
        net, options["vocab"], options["length"], lambda x: tokens.decode(x.cpu()),
        lambda c: torch.tensor(_label(c, classes)), len(classes), read=readers.Molecules(tokens, options["length"]),
        ordered=own["network"] == "OrderedNet", end=0 if own["network"] == "OrderedNet" else None,
        alone=isinstance(net, Prefixes),
    )  # fmt: skip


def _fragments(net: nn.Module, own: dict[str, Any]) -> Model:
    from .fragments import Fragments
    from .grammar import Grammar
    from .grammatical import Grammatical

    tokens, options = Fragments.of(own["tokens"]), own["options"]
    factors: dict[str, list[str]] = dict.fromkeys(own["properties"], own["thirds"])  # type: ignore[assignment]
    factors["source"] = own["sources"]
    return MaskedModel(
        Grammatical(net, Grammar.of(tokens)), options["vocab"], options["length"], lambda x: tokens.decode(x.cpu()),
        lambda c: _classes(c, factors, own["classes"]), torch.tensor(options["classes"]),
        read=readers.Parts(tokens, options["length"]), ordered=True, end=0, alone=True,
    )  # fmt: skip


def _classes(condition: Any, factors: dict[str, list[str]], names: list[str]) -> Tensor:
    """The class of each factor, the last one for none: of a dict, a text like "high QED, low logP, ZINC", or the number
    of one of these words."""
    number = isinstance(condition, int) and not isinstance(condition, bool) and 0 <= condition < len(names)
    text = names[condition] if number else condition
    given = _told(text, factors) if isinstance(text, str) else text
    if not isinstance(given, dict) or any(v not in factors.get(k, ()) for k, v in given.items()):
        known = "; ".join(f"{name}: {', '.join(values)}" for name, values in factors.items())
        raise ValueError(f'the condition {condition!r} is no dict or text like "high QED, ZINC" of these: {known}')
    return torch.tensor([v.index(given[k]) if k in given else len(v) for k, v in factors.items()])


def _told(text: str, factors: dict[str, list[str]]) -> dict[str, str] | None:
    """The factors in a text, None where a part of it says nothing."""
    words = {f"{v} {k}".lower(): (k, v) for k, values in factors.items() for v in values}
    words |= {v.lower(): ("source", v) for v in factors["source"]}
    parts = [part.strip().lower() for part in text.split(",")]
    return dict(words[part] for part in parts) if all(part in words for part in parts) else None


_MODELS = {"fragment model": _fragments, "image model": _images, "DNA model": _dna, "molecule model": _molecules}


def _sequences(x: Tensor) -> list[str]:
    return ["".join(readers.LETTERS[v] for v in row) for row in x.tolist()]


def _label(condition: Any, classes: list[str]) -> int:
    """The number of a class, given by name or number."""
    if isinstance(condition, str) and condition in classes:
        return classes.index(condition)
    if isinstance(condition, int) and not isinstance(condition, bool) and 0 <= condition < len(classes):
        return condition
    known = ", ".join(map(repr, classes))  # names may hold commas
    raise ValueError(f"the condition {condition!r} is none of {known}, nor a number below {len(classes)}")
