"""Measurements of a run: what `measure`, `noise`, `y`, `truth` and `method` of a config stand for.

    measure = "blur:sigma=2"            or "mask:where=mask.png", "downsample:4", "matrix:A.npy", "mine.py:operator"
    noise = "0.05"                      or "poisson:gain=100", "quantised:step=0.1,noise=0.05"
    y = "measured"                      a folder of PNG or NPY files, one for each measurement, or one such file
    truth = "pictures"                  or samples, which are measured with noise that the seed of the run gives
    method = "TMPD"                     a guide; None is the one that docs/inverse.md recommends

All measurements are those of one operator, so that they run side by side, one condition each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards import ByGroup, Reward
from rewards.base import needs

from .. import measurements
from ..engine.guide import Guide
from ..guides.tds import TDS
from ..measurements import Gaussian as Normal, Measurement
from ..measurements.measurement import affine, tried
from ..measurements.operators import as_operator
from ..models.base import Model
from ..process import Gaussian
from ..values import Likelihood
from . import names
from .config import Config
from .specs import Call, ConfigError, call, find, literal, parameters, parse

OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(measurements, name) for name in ("Mask", "Blur", "Downsample", "Matrix")
}
NOISES: dict[str, Callable[..., Any]] = {name: getattr(measurements, name) for name in ("Poisson", "Quantised")}
ENDS = (".png", ".npy")


@dataclass(frozen=True)
class Measured:
    """The measurements of a run, by name, and the samples that they were simulated from, if they were."""

    names: tuple[str, ...]
    each: tuple[Measurement, ...]
    truth: Tensor | None

    @property
    def likelihood(self) -> Reward:
        """log p(y | x) of each condition's measurement."""
        return ByGroup(self.each).named(self.each[0].name)

    @property
    def reward(self) -> Reward | None:
        """The same; None where there is no noise, and so no density."""
        return None if self.each[0].exact else self.likelihood

    def conditions(self, given: Sequence[Any]) -> list[Any]:
        """The condition of each measurement."""
        if len(given) > 1 and len(given) != len(self.each):
            raise ConfigError(
                f"{len(given)} conditions and {len(self.each)} measurements: give one condition, or one for each"
            )
        return list(given) if len(given) == len(self.each) else [given[0] if given else None] * len(self.each)


def read(config: Config, model: Model) -> Measured:
    """The measurements that a config names."""
    assert config.measure is not None
    operator, noise = as_operator(make_operator(config.measure)), make_noise(config.noise)
    shape = tuple(tried(operator, model).shape[1:]) if isinstance(model.process, Gaussian) else None
    first = Measurement(operator, 0.0, noise)
    if config.y is not None:
        found = {name: _seen(operator, array(file, shape), file) for name, file in _files("y", config.y).items()}
        return Measured(tuple(found), tuple(first.of(y) for y in found.values()), None)
    assert config.truth is not None
    files = _files("truth", config.truth)
    truth = torch.stack([array(file, _shape(model)) for file in files.values()])
    return Measured(tuple(files), tuple(first.of(y) for y in first.simulate(truth, config.seed)), truth)


def make_method(text: str | None, measured: Measured, model: Model) -> Guide:
    """The guide that takes the measurements; weighted ones at alpha = 1, for which they sample the posterior."""
    spec = parse(text or usual(measured.each[0], model), names.guides())
    name = find(spec.name, list(names.guides()), "guide")
    make = names.guides()[name]
    own = parameters(make)
    if not {"measurement", "reward"} & set(own):
        raise ConfigError(f"method {text!r} takes no measurement: TMPD, DDRM, DDNM, DAPS, TDS and others do")
    given = {"measurement": measured.likelihood, "reward": measured.likelihood, "alpha": 1.0}
    guide = names.construct(make, Call(name, spec.args, spec.options), given)
    if isinstance(guide, TDS) and guide.value is None and _gaussian(measured.each[0]) and affine(model) is not None:
        return replace(guide, value=Likelihood(measured.likelihood))
    return guide


def usual(measurement: Measurement, model: Model) -> str:
    """The method for a measurement, by the table of docs/inverse.md."""
    if not isinstance(model.process, Gaussian):
        return "FKSteering"
    if not isinstance(measurement.noise, Normal):
        return "DAS"
    if not measurement.linear or affine(model) is None:
        return "DAPS"
    return "DDNM" if measurement.exact else "TMPD"


def _gaussian(measurement: Measurement) -> bool:
    return measurement.linear and isinstance(measurement.noise, Normal) and not measurement.exact


def make_operator(text: str) -> Any:
    """The operator of a spec. An object of the user's is taken as it is if it has an `adjoint` or no options are
    given, and called with the options otherwise."""
    spec = parse(text, OPERATORS)
    if names.is_reference(spec.name):
        found = names.import_object(spec.name)
        return names.construct(found, spec) if isinstance(found, type) or spec.args or spec.options else found
    name = find(spec.name, list(OPERATORS), "operator")
    arrays = [_loaded(v) for v in spec.args], {k: _loaded(v) for k, v in spec.options.items()}
    if name == "Mask":
        arrays = [_white(v) for v in arrays[0]], {k: _white(v) for k, v in arrays[1].items()}
    return names.construct(OPERATORS[name], Call(name, tuple(arrays[0]), arrays[1]))


def make_noise(text: str | None) -> Any:
    """A standard deviation, or another likelihood."""
    value = literal("0.05" if text is None else text)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    spec = parse(str(text), NOISES)
    return call(NOISES[find(spec.name, list(NOISES), "noise")], spec)


def _loaded(value: Any) -> Any:
    return array(Path(value), None) if isinstance(value, str) and value.lower().endswith(ENDS) else value


def _white(value: Any) -> Any:
    return value > 0.5 if isinstance(value, Tensor) and value.is_floating_point() else value


def _shape(model: Model) -> tuple[int, ...]:
    """The shape of a sample of a model of real numbers."""
    if not isinstance(model.process, Gaussian):
        raise ConfigError("truth holds pictures or arrays, and the samples of this model are texts: give y=... instead")
    return tuple(tried(lambda x: x, model).shape[1:])


def _files(what: str, place: str) -> dict[str, Path]:
    """The PNG and NPY files of a folder by their names without an end, or the one file."""
    path = Path(place)
    if not path.exists():
        raise ConfigError(f"{what} {place!r}: there is no such file or folder")
    entries = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in entries if file.suffix.lower() in ENDS]
    if not files:
        raise ConfigError(
            f"{what} {place!r}: PNG or NPY files are needed, one for each measurement, and there are none"
        )
    stems = [file.stem for file in files]
    if twice := [stem for stem in dict.fromkeys(stems) if stems.count(stem) > 1]:
        raise ConfigError(f"{what} {place!r}: two files are named {twice[0]}, and names tell measurements apart")
    return dict(zip(stems, files, strict=True))


def array(file: Path, shape: tuple[int, ...] | None) -> Tensor:
    """The numbers of a file: a picture's are between 0 and 1. With a shape, leading axes of one are added or taken."""
    try:
        x = _picture(file, shape) if file.suffix.lower() == ".png" else torch.as_tensor(np.load(file))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    x = x if x.dtype == torch.bool else x.to(torch.get_default_dtype())
    if shape is None:
        return x
    if tuple(v for v in x.shape if v != 1) != tuple(v for v in shape if v != 1):
        raise ConfigError(f"{file} has shape {tuple(x.shape)}, and {shape} is needed")
    return x.reshape(shape)


def _picture(file: Path, shape: tuple[int, ...] | None) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a decompression bomb is not a picture
        with needs("PIL.Image", "images", "reading images").open(file) as image:
            deep = image.mode.startswith("I")  # 16 bits
            colour = shape is not None and len(shape) == 3 and shape[0] == 3
            found = torch.as_tensor(np.array(image if deep else image.convert("RGB" if colour else "L")))
    found = found.double() / (65535 if deep else 255)
    return found.movedim(-1, 0) if found.dim() == 3 else found


def _seen(operator: Any, y: Tensor, file: Path) -> Tensor:
    """y with zeros where nothing is measured; all other numbers must be finite."""
    where = getattr(operator, "measured", None)
    y = y if where is None else torch.where(where, y, 0.0)
    if not bool(y.isfinite().all()):
        raise ConfigError(f"{file} holds numbers that are not finite; what is not measured belongs into a mask")
    return y
