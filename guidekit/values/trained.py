"""Training of a small network whose every step is decided by its number, so that it can be interrupted and go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..engine.describe import difference
from ..engine.whole import check_writable, whole
from ..errors import CheckpointError

_EVERY = 200  # steps between two writings of the file


def trained(
    net: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    *,
    file: str | Path | None = None,
    about: dict[str, Any] | None = None,
    progress: bool = False,
) -> list[float]:
    """Train a network in place by Adam, with a rate that falls to 0 like a cosine, and return the losses.

    loss     of step number i, which decides its random numbers
    file     the state of training, by which the same call goes on, and at its end returns at once
    about    what decides the numbers; a file of another training is refused
    """
    from tqdm.auto import tqdm

    adam, losses, file = torch.optim.Adam(net.parameters(), lr), [], None if file is None else Path(file)
    told: dict[str, Any] = json.loads(json.dumps({**(about or {}), "steps": steps, "lr": lr}))
    if file is not None:
        check_writable(file)
        losses = _read(file, net, adam, told) if file.exists() else []
    with torch.inference_mode(False), torch.enable_grad():
        for i in tqdm(range(len(losses), steps), initial=len(losses), total=steps, desc="train", disable=not progress):
            for group in adam.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * i / steps)) / 2
            adam.zero_grad()
            value = loss(i)
            value.backward()
            adam.step()
            losses.append(float(value.detach()))
            if file is not None and ((i + 1) % _EVERY == 0 or i + 1 == steps):
                _write(file, net, adam, told, losses)
    return losses


def _write(file: Path, net: nn.Module, adam: torch.optim.Adam, about: dict[str, Any], losses: list[float]) -> None:
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
    for i, state in adam.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
    held = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with whole(file) as part:
        save_file(held, part, {"guidekit": json.dumps({"about": about, "losses": losses})})


def _read(file: Path, net: nn.Module, adam: torch.optim.Adam, about: dict[str, Any]) -> list[float]:
    with safe_open(file, "pt") as held:
        said = json.loads((held.metadata() or {}).get("guidekit", "{}"))
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    if (other := difference(said.get("about"), about)) is not None:
        raise CheckpointError(
            f"{file} belongs to another training: {other[0]} was {other[1]!r} and is {other[2]!r}; give another folder"
        )
    net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
    state: dict[int, dict[str, Tensor]] = {}
    for k, v in tensors.items():
        if k.startswith("adam."):
            _, i, name = k.split(".")
            state.setdefault(int(i), {})[name] = v
    adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})
    return said["losses"]
