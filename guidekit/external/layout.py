"""Weights of checkpoints: found in whatever wraps them, and fitted to a network of the same layout."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .packages import weights

WRAPS = ("state_dict", "model_state_dict", "model")  # under which trainers keep the weights
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.backbone.", "score_model.")  # that they put before names
SHOWN = 6  # names that an error gives
WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEX = "model.safetensors.index.json"


def state(path: str | Path, ema: bool = True) -> dict[str, Tensor]:
    """The weights in a file, or in a folder of the Hugging Face layout: those of the moving average, if there is one.

    A moving average is a list without names, `shadow_params`, beside the weights or among them: it has those of the
    weights that are trained, in order.
    """
    stored = _stored(Path(path))
    among = next((stored[name] for name in WRAPS if isinstance(stored.get(name), dict)), stored)
    found = {_bare(k): v for k, v in among.items() if isinstance(v, Tensor)}
    beside = stored.get("ema")
    shadow = beside.get("shadow_params") if isinstance(beside, dict) else among.get("ema.shadow_params")
    return found | _averaged(found, shadow) if ema and shadow is not None else found


def config(path: str | Path) -> dict[str, Any]:
    """The config.json beside the weights; empty where there is none."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    file = folder / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def fitted(net: nn.Module, given: dict[str, Tensor], kind: str, free: Iterable[str] = ()) -> nn.Module:
    """The network with these weights, in evaluation mode; ValueError says which names and shapes differ.

    free   names that either side may lack, such as buffers that follow from others
    """
    own, free = net.state_dict(), set(free)
    lacking = [k for k in own if k not in given and k not in free]
    strange = [k for k in given if k not in own and k not in free]
    other = [f"{k} {tuple(given[k].shape)} for {tuple(own[k].shape)}" for k in own
             if k in given and given[k].shape != own[k].shape]  # fmt: skip
    faults = [("lacks", lacking), ("has besides", strange), ("has in another shape", other)]
    if any(names for _, names in faults):
        said = "; ".join(f"it {what} {_some(names)}" for what, names in faults if names)
        raise ValueError(f"this checkpoint is not of kind={kind!r}: {said}")
    net.load_state_dict({k: v for k, v in given.items() if k in own}, strict=False)
    return net.eval()


def needed(given: dict[str, Tensor], names: Iterable[str], kind: str) -> None:
    """Raise where weights are missing from which the sizes of the network are read."""
    lacking = [name for name in names if name not in given]
    if lacking:
        raise ValueError(
            f"this checkpoint is not of kind={kind!r}: it lacks {_some(lacking)}; it has {_some(list(given))}"
        )


def depth(given: dict[str, Tensor], before: str) -> int:
    """How many numbered parts there are behind a prefix."""
    return 1 + max((int(k[len(before) :].split(".")[0]) for k in given if k.startswith(before)), default=-1)


def _stored(path: Path) -> dict[str, Any]:
    if path.is_dir():
        if (path / INDEX).is_file():
            files = set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
            return {k: v for file in sorted(files) for k, v in weights(path / file).items()}
        whole = [path / name for name in WHOLE if (path / name).is_file()]
        if not whole:
            raise FileNotFoundError(f"{path} has none of {', '.join((INDEX, *WHOLE))}")
        path = whole[0]
    try:
        return weights(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} holds more than tensors, and what it holds is not run. If you trust it, write its weights "
            "once to a file of their own: torch.save(torch.load(path, weights_only=False)['state_dict'], 'weights.pt')"
        ) from error


def _bare(name: str) -> str:
    cut = next((p for p in PREFIXES if name.startswith(p)), None)
    return name if cut is None else _bare(name[len(cut) :])


def _averaged(found: dict[str, Tensor], shadow: list[Tensor]) -> dict[str, Tensor]:
    """The averages by name; weights that share their memory are one."""
    first: dict[int, str] = {}
    same = {k: first.setdefault(v.data_ptr(), k) for k, v in found.items() if v.is_floating_point()}
    trained = [k for k, of in same.items() if k == of and not k.endswith(("inv_freq", ".W"))]
    if [v.shape for v in shadow] != [found[k].shape for k in trained]:
        raise ValueError(
            f"the moving average has {len(shadow)} tensors that are not those of the {len(trained)} weights in order: "
            "give ema=False, and the weights of the last step are taken"
        )
    average = dict(zip(trained, shadow, strict=True))
    return {k: average[of] for k, of in same.items() if of in average}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def sized(count: Any, what: str) -> int:
    """A number that the weights do not say and the user has to."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{what}={count!r}: the weights do not say it; give an int of at least 1")
    return count
