r"""CLIP rewards, with an open_clip model and weights from a local file. Nothing is downloaded.

    score = scale cos(f(image), g(prompt)),        f, g the towers of the model

Radford et al. (2021), https://arxiv.org/abs/2103.00020; as a score of images Hessel et al. (2021) (CLIPScore, scale 2.5
and no negative values), https://arxiv.org/abs/2104.08718.

Pixels are resized and normalised by torch, with gradients, in the way open_clip does it with PIL: the shorter side is
resized and the centre cropped, or both sides are resized, depending on the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import needs
from .basic import ImageScore, check_count, check_prompt, of_rows

LONGEST = 2000  # characters of a prompt that are read; tokenizers keep fewer than 100 tokens


@dataclass(frozen=True, eq=False)
class Clip:
    """An open_clip model with weights from a local file. Loaded on first use, once per process.

    model        a name of open_clip.list_models(), a configuration like those in open_clip/model_configs as a dict,
                 or the path of a JSON file with one (an `open_clip_config.json` also sets the preprocessing)
    checkpoint   path of the weights, a safetensors file or a state dict of torch; no code in the file is run
    preprocess   {"mean": ..., "std": ..., "size": ..., "interpolation": ..., "resize_mode": ...}, as far as it differs,
                 or a tag of open_clip.list_pretrained() whose settings to use, like "openai"; None uses those that all
                 tags of the model have in common
    tokenizer    texts -> token tensor, for models whose tokenizer is not open_clip's own
    device       None is that of the images
    half         use half precision on CUDA when the images need no gradients
    batch        number of images per pass
    """

    model: str | Mapping[str, Any] | Path = "ViT-B-32"
    checkpoint: str | Path | None = None
    _: KW_ONLY
    preprocess: str | Mapping[str, Any] | None = None
    tokenizer: Callable[[list[str]], Tensor] | None = None
    device: str | None = None
    half: bool = True
    batch: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.model, (str, Path, Mapping)):
            raise TypeError(f"Clip(model) is a name, a dict or a path, not {type(self.model).__name__}")
        if self.checkpoint is None or not Path(self.checkpoint).is_file():
            raise ValueError(
                f"Clip(checkpoint={str(self.checkpoint)!r}): the path of a file with weights is needed, nothing is "
                "downloaded. Get one once, where there is a network: model = open_clip.create_model('ViT-B-32', "
                "pretrained='laion2b_s34b_b79k'); torch.save(model.state_dict(), 'clip.pt')"
            )
        if self.batch < 1:
            raise ValueError(f"Clip(batch={self.batch}): at least 1 is needed")
        object.__setattr__(self, "checkpoint", str(Path(self.checkpoint).resolve()))

    def images(self, x: Tensor) -> Tensor:
        """Unit features (n, D) in float32 of images (n, C, H, W) in [0, 1], with gradients."""
        network = self._loaded(x.device)
        device = network.logit_scale.device
        half = self.half and device.type == "cuda" and not x.requires_grad
        with torch.set_grad_enabled(x.requires_grad), torch.autocast(device.type, torch.float16, enabled=half):
            pixels = (prepared(part.to(device).float(), network.visual.preprocess_cfg) for part in x.split(self.batch))
            found = torch.cat([network.encode_image(part).float() for part in pixels])
        return F.normalize(found, dim=-1)

    def texts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Unit features (n, D) of texts in float32, each computed once."""
        key = self._key(device)
        return torch.stack([_text(key, self.tokenizer, prompt) for prompt in prompts])

    def _key(self, device: torch.device) -> tuple:
        """What identifies the network: configuration, weights, their time stamp, preprocessing, device."""
        model = self.model if isinstance(self.model, (str, Path)) else json.dumps(dict(self.model), sort_keys=True)
        given = self.preprocess
        settings = given if given is None or isinstance(given, str) else json.dumps(dict(given), sort_keys=True)
        assert self.checkpoint is not None
        changed = os.stat(self.checkpoint).st_mtime_ns
        return str(model), str(self.checkpoint), changed, settings, str(self.device or device), self.tokenizer is None

    def _loaded(self, device: torch.device) -> Any:
        return _network(*self._key(device))


@dataclass(frozen=True, eq=False, repr=False)
class ClipScore(ImageScore):
    """Similarity of an image to a prompt: scale cos(image, prompt) in the features of CLIP.

    prompt                           one text for all samples, or a list with one per sample; 2000 characters are read
    model, checkpoint, preprocess    as in `Clip`; or a `Clip` as the model, and no checkpoint
    scale                            1 returns the cosine; models are trained with about 100
    """

    prompt: str | Sequence[str]
    _: KW_ONLY
    model: str | Mapping[str, Any] | Path | Clip = "ViT-B-32"
    checkpoint: str | Path | None = None
    preprocess: str | Mapping[str, Any] | None = None
    scale: float = 1.0

    name = "CLIP score"

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", check_prompt(self.prompt, "ClipScore"))
        if not isinstance(self.model, Clip):
            object.__setattr__(self, "model", Clip(self.model, self.checkpoint, preprocess=self.preprocess))
        elif self.checkpoint is not None or self.preprocess is not None:
            raise ValueError("ClipScore(model=Clip(...)): checkpoint and preprocess are those of the Clip")

    def check(self, count: int) -> None:
        check_count(self.prompt, count, "prompt")

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        assert isinstance(self.model, Clip)
        texts = self.model.texts(of_rows(self.prompt, rows), x.device)
        return self.scale * (self.model.images(x) * texts).sum(-1).to(x.device)


@dataclass(frozen=True, eq=False, repr=False)
class Aesthetic(ImageScore):
    """LAION's aesthetic score: linear layers on the unit image features of CLIP, fitted to human ratings from 1 to 10.

    clip   a `Clip`; both heads of LAION are for OpenAI's ViT-L-14, which is model="ViT-L-14-quickgelu"
    head   path of the head: safetensors, or a state dict of torch; no code in it is run. The layers are applied in the
           order of their numbers, with nothing between them, as in https://github.com/LAION-AI/aesthetic-predictor (one
           layer) and https://github.com/christophschuhmann/improved-aesthetic-predictor (five)
    """

    clip: Clip
    _: KW_ONLY
    head: str | Path

    name = "aesthetic score"

    def __post_init__(self) -> None:
        if not isinstance(self.clip, Clip):
            raise TypeError(f"Aesthetic(clip, head) takes a Clip(model, checkpoint), not {type(self.clip).__name__}")
        if not Path(self.head).is_file():
            raise ValueError(f"Aesthetic(head={str(self.head)!r}): the path of a file with the layers is needed")
        object.__setattr__(self, "head", str(Path(self.head).resolve()))

    def measure(self, x: Tensor, rows: list[int]) -> Tensor:
        y = self.clip.images(x)
        for weight, bias in _head(str(self.head), os.stat(self.head).st_mtime_ns, y.shape[1]):
            y = F.linear(y, weight.to(y.device), bias.to(y.device))
        return y[:, 0].to(x.device)


def prepared(x: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Images in [0, 1] as the model takes them: RGB, resized, cropped and normalised, with gradients."""
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    tall, wide = _resized(x.shape[2:], (height, width), settings["resize_mode"])
    mode = settings["interpolation"]
    x = x.expand(-1, 3, -1, -1)
    if (tall, wide) != tuple(x.shape[2:]):
        x = F.interpolate(x, (tall, wide), mode=mode, antialias=True, align_corners=False).clamp(0, 1)
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    x = x[:, :, top : top + height, left : left + width]
    mean, std = (x.new_tensor(settings[key])[:, None, None] for key in ("mean", "std"))
    return (x - mean) / std


def _resized(given: Sequence[int], wanted: tuple[int, int], mode: str) -> tuple[int, int]:
    """Height and width after resizing, before cropping."""
    if mode == "squash":
        return wanted
    if mode != "shortest" or wanted[0] != wanted[1]:
        raise ValueError(f"resize_mode {mode!r} to {wanted}: 'squash', or 'shortest' to a square, is needed")
    (tall, wide), short = given, wanted[0]
    return (short, int(short * wide / tall)) if tall <= wide else (int(short * tall / wide), short)


@lru_cache(maxsize=4)
def _network(model: str, checkpoint: str, changed: int, settings: str | None, device: str, own: bool) -> Any:
    """The model with its weights, frozen, in evaluation mode."""
    open_clip = needs("open_clip", "images", "CLIP")
    name, preprocess = _registered(open_clip, model)
    config = open_clip.get_model_config(name)
    _check_offline(name, config["text_cfg"], own)
    preprocess = {**preprocess, **_settings(open_clip, name, settings)}
    made = open_clip.create_model(name, pretrained=checkpoint, device=device, force_preprocess_cfg=preprocess)
    return made.eval().requires_grad_(False)


def _registered(open_clip: Any, model: str) -> tuple[str, dict]:
    """Name of the model in open_clip, and its preprocessing as far as a configuration sets it."""
    if model.replace("/", "-") in open_clip.list_models():  # open_clip would download other names that are addresses
        return model.replace("/", "-"), {}
    if model.lstrip().startswith("{"):
        config = json.loads(model)
    elif Path(model).is_file():
        config = json.loads(Path(model).read_text(encoding="utf-8"))
    else:
        raise ValueError(f"Clip(model={model!r}) is no model of open_clip.list_models() and no JSON file")
    body, preprocess = config.get("model_cfg", config), config.get("preprocess_cfg", {})
    text = json.dumps(body, sort_keys=True)
    name = f"guidekit-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not all(key in body for key in ("embed_dim", "vision_cfg", "text_cfg")):
        raise ValueError(f"Clip(model): a configuration has embed_dim, vision_cfg and text_cfg, not {sorted(body)}")
    if name not in open_clip.list_models():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.json"
            path.write_text(text, encoding="utf-8")
            open_clip.add_model_config(path)
    return name, preprocess


def _settings(open_clip: Any, name: str, settings: str | None) -> dict:
    """The preprocessing, given as JSON or as a tag, or common to all tags of the model."""
    if settings is not None and settings.startswith("{"):
        return json.loads(settings)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if settings is not None and settings not in tags:
        raise ValueError(f"Clip(preprocess={settings!r}) is no tag of {name}; open_clip knows {tags}")
    keys = ("mean", "std", "interpolation", "resize_mode")
    known = [open_clip.get_pretrained_cfg(name, tag) for tag in ([settings] if settings else tags)]
    found = [{key: config[key] for key in keys if config.get(key) is not None} for config in known]
    if any(one != found[0] for one in found):
        raise ValueError(
            f"the checkpoints of {name} differ in their preprocessing: give Clip(preprocess=...) the tag of yours, "
            f"one of {tags}, or its settings"
        )
    return found[0] if found else {}


def _check_offline(name: str, text: Mapping[str, Any], own: bool) -> None:
    """Refuse anything that open_clip would download."""
    tower, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    if tower and not Path(tower).is_dir():
        raise ValueError(
            f"open_clip would download the text tower {tower!r} of {name}; put a local folder in its config"
        )
    if own and ((tokenizer and not Path(tokenizer).is_dir()) or "siglip" in name.lower()):
        raise ValueError(
            f"open_clip would download the tokenizer {tokenizer!r} of {name}: give Clip(tokenizer=...), for example "
            "open_clip.HFTokenizer(folder, context_length=64)"
        )


@lru_cache(maxsize=10_000)
def _text(key: tuple, tokenizer: Callable[[list[str]], Tensor] | None, prompt: str) -> Tensor:
    network, made = _network(*key), tokenizer or _tokenizer(key[0])
    readable = prompt[:LONGEST].encode("utf-8", "replace").decode()
    with torch.no_grad():
        tokens = made([readable]).to(network.logit_scale.device)
        return F.normalize(network.encode_text(tokens).float(), dim=-1)[0]


@lru_cache(maxsize=4)
def _tokenizer(model: str) -> Any:
    open_clip = needs("open_clip", "images", "CLIP")
    return open_clip.get_tokenizer(_registered(open_clip, model)[0])


@lru_cache(maxsize=8)
def _head(path: str, changed: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """The layers of a head, checked to map `width` features to 1."""
    if path.endswith(".safetensors"):
        state = needs("safetensors.torch", "images", "a head in safetensors").load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    names = sorted((k[:-6] for k in state if k.endswith("weight")), key=_number)
    layers = [(state[f"{n}weight"].float(), state[f"{n}bias"].float()) for n in names]
    widths = [width, *(len(weight) for weight, _ in layers)]
    if not layers or widths[-1] != 1 or any(w.shape[1] != n for (w, _), n in zip(layers, widths, strict=False)):
        shapes = [tuple(weight.shape) for weight, _ in layers]
        raise ValueError(f"head {path}: layers {shapes} do not lead from {width} features of CLIP to 1 score")
    return layers


def _number(name: str) -> int:
    digits = [part for part in name.split(".") if part.isdigit()]
    return int(digits[-1]) if digits else 0
