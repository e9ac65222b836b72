r"""Terrain of a given difficulty, by a consistency U-Net (the package `adaptive-terrain-diffusion`, MIT, onnx).

The network maps x_t = x_0 + sigma z, of sigma between .002 and 80, to a clean map in one step. It is a consistency
model and no mean, and so `gk.solvers.Consistency` is the solver of its runs. States are maps of 128 x 128 in [-1, 1],
samples heights in [0, 22.2]:

    height = .1 sinh((x + 1)/2 asinh(22.2/.1))

A condition is the difficulty, 1 to 100, and 50 where none is given; there is no null condition. onnxruntime computes
the network, so nothing has a gradient through it: use searches, and guides that score samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models import GaussianModel
from ..solvers import Consistency
from ..solvers.schedules import EDM
from . import packages

PACKAGE, VERSION = "adaptive-terrain-diffusion", "0.4.2"
FILE = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
SIZE, HIGHEST, KNEE = 128, 22.16864013671875, 0.1
RANGE = math.asinh(HIGHEST / KNEE)
LEVELS, USUAL = 100, 50

Denoise = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # (x_t, sigma, difficulty from 0 to 1) -> x_0


class Network:
    """(x, t, cond) -> the clean map."""

    def __init__(self, denoise: Denoise):
        self.denoise = denoise

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        cond = encode(USUAL).expand(len(x)) if cond is None else cond
        sigma = EDM()(t.double())[1]
        given = (v.detach().cpu().float().numpy() for v in (x, sigma, cond))
        return torch.from_numpy(self.denoise(*given)).to(x)


class Heights:
    """Heights as states."""

    takes = f"maps of {SIZE} x {SIZE} heights from 0 to {HIGHEST:.1f}"

    def __call__(self, samples: Any) -> Tensor:
        heights = torch.stack([torch.as_tensor(v) for v in samples]).float()
        if tuple(heights.shape[1:]) != (SIZE, SIZE) or float(heights.min()) < 0 or float(heights.max()) > HIGHEST:
            raise ValueError(f"it is no map of {SIZE} x {SIZE} heights from 0 to {HIGHEST:.1f}")
        return (2 * (heights / KNEE).asinh() / RANGE - 1)[:, None]


def decode(x: Tensor) -> Tensor:
    """Heights (rows, 128, 128)."""
    return KNEE * ((x[:, 0] / 2 + 0.5).clamp(0, 1) * RANGE).sinh()


def encode(difficulty: Any) -> Tensor:
    if difficulty not in range(1, LEVELS + 1):
        raise ValueError(f"cond={difficulty!r}: a difficulty is a whole number from 1 to {LEVELS}")
    return torch.tensor((difficulty - 1) / (LEVELS - 1), dtype=torch.float32)


def terrain() -> GaussianModel:
    """The model of the package, on the host."""
    file = packages.inside(PACKAGE, VERSION, FILE, "its own requirements are onnxruntime-gpu on Linux")
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("external.load('terrain') computes by onnxruntime: pip install onnxruntime") from error
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return model(lambda x, sigma, hard: session.run(["denoised"], {"noisy": x, "sigma": sigma, "difficulty": hard})[0])


def model(denoise: Denoise) -> GaussianModel:
    """The base model of a denoiser of this package's interface."""
    found = GaussianModel(
        Network(denoise), (1, SIZE, SIZE), EDM(), "clean", decode=decode, encode_cond=encode, read=Heights()
    )
    found.solver = Consistency()
    return found
