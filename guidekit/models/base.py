"""A base model: a noising process, a trained network, and how to encode conditions and decode samples.

The engine calls a model as `model(x, t, cond)` and receives predictions in the coordinates in which guidance is linear
(see `guidekit.process`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NetworkError
from ..process import Gaussian, Process
from ..solvers import Move, Solver
from ..solvers.token_solver import sized
from . import likelihood, reading
from .compiled import called
from .networks import kind_of, lent, networks_in

Condition = Any  # what the user gives for one group: "HepG2", a prompt, 3, a tensor
Encoded = Any  # None, a tensor, or a dict of tensors


@dataclass(frozen=True)
class Mixed:
    """The times of rows of one forward that stand at several: so many rows at each, one after the other."""

    spans: tuple[tuple[float, int], ...]

    @staticmethod
    def of(times: Tensor) -> Mixed:
        """The times of rows each of which stands at its own."""
        return Mixed(tuple((t, 1) for t in times.tolist()))

    def __mul__(self, times: int) -> Mixed:
        return Mixed(self.spans * times)

    def take(self, rows: Tensor) -> Mixed:
        """The times of the rows of an index."""
        each = [t for t, count in self.spans for _ in range(count)]
        return Mixed(tuple((each[row], 1) for row in rows.tolist()))

    def parts(self) -> Iterator[tuple[float, slice]]:
        """Each time with its rows."""
        start = 0
        for t, rows in self.spans:
            yield t, slice(start, start + rows)
            start += rows

    def tensor(self, **like: Any) -> Tensor:
        """One time for each row."""
        return torch.tensor([t for t, rows in self.spans for _ in range(rows)], **like)


class Model:
    """Base of all base models. Subclasses say in `__call__` how a network's output becomes a prediction."""

    process: Process
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype  # of the state x of Gaussian processes and of its noise
    net: Callable
    null: Encoded
    timed: bool = True  # whether the network reads t; a network says that it does not by `timed = False`
    compiles: bool = True  # whether it has a network of its own that torch.compile can make fast
    solver: Solver | None = None  # of its runs, where none is given; None is the process's own

    def __init__(
        self, net, process, shape, decode=None, encode_cond=None, null=None, dtype=None, device=None, read=None
    ):  # fmt: skip
        if not callable(net):
            raise TypeError(f"net is a callable (x, t, cond) -> tensor, not {type(net).__name__}")
        if not isinstance(shape, Sequence):
            raise TypeError(f"shape={shape!r}: the shape of one sample is needed, like (3, 64, 64) or (2,)")
        self.net, self.process, self.shape = net, process, tuple(shape)
        self._decode, self._encode, self._read = decode, encode_cond, read
        self.timed = getattr(net, "timed", True)
        self.net_dtype, found = kind_of(networks_in(net))
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: the state is float32 or float64; a network may be in half precision")
        self.dtype = dtype or (torch.float64 if self.net_dtype == torch.float64 else torch.float32)
        self.device = torch.device(device or found)
        self.null = None if null is None else as_encoded(null, self.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join([*self.facts(), *_usual_facts(self)])})"

    def facts(self) -> list[str]:
        """What a repr says first: what a sample is, and which noise it gets."""
        return [f"shape={self.shape}", f"{type(self.process).__name__} process"]

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        """The prediction at x_t, by one forward pass of the network. cond has one entry per row, or is None."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its network predicts")

    def predicted(self, x: Tensor, t: float, cond: Encoded) -> tuple[Tensor, Tensor | None]:
        """The prediction, and what the same forward pass says of the variance of the step, where the network does."""
        return self(x, t, cond), None

    def mixed(self, x: Tensor, times: Mixed, cond: Encoded) -> Tensor:
        """The predictions of rows that stand at several times, by one forward pass of the network."""
        raise ValueError(f"{type(self).__name__} evaluates its network at one time in each forward")

    def at_places(self, x: Tensor, t: float, cond: Encoded, rows: Tensor, places: Tensor) -> Tensor:
        """The same of tokens at some places of some of the rows alone, (places, V)."""
        return self(x, t, cond)[rows, places]

    def encode(self, cond: Condition) -> Encoded:
        """One condition as the network takes it, without a row axis; None is the null condition."""
        if cond is None:
            return self.null
        return as_encoded(cond if self._encode is None else self._encode(cond), self.device)

    def encode_all(self, conds: Sequence[Condition]) -> Encoded:
        """The conditions of all groups, with a group axis."""
        return stack([self.encode(c) for c in conds])

    def moves(self, steps: int | Sequence[float], solver: Solver | None) -> list[Move]:
        """The moves of a run."""
        return self.process.moves(steps, sized(solver, self.shape))

    def nulled(self, cond: Encoded) -> Encoded:
        """The null condition of every row, given the rows' conditions."""
        return map_cond(lambda v, rows: v.expand(len(rows), *v.shape), self.null, cond)

    def guided(self, x: Tensor, t: float, cond: Tensor, null: Tensor, scale: float | Tensor) -> Tensor:
        """The tilt of classifier-free guidance, (scale - 1) (cond - null), from the two predictions at x_t. A scale for
        each row is shaped to multiply them."""
        return (scale - 1) * (cond - null)

    @property
    def bar(self) -> dict[str, Any]:
        """Further numbers to show in the progress bar of a run."""
        return {}

    def lent(self) -> AbstractContextManager:
        """A context manager that is entered while a run uses the model."""
        return nullcontext()

    @property
    def encodes(self) -> bool:
        """Whether conditions have to be encoded for the network."""
        return self._encode is not None

    @property
    def decodes(self) -> bool:
        """Whether samples differ from states, and so have to be decoded."""
        return self._decode is not None

    def decode(self, x: Tensor) -> Any:
        """Samples as the user wants them: a tensor, or a list with one entry per row."""
        if self._decode is None:
            return x
        samples = self._decode(x if x.requires_grad else x.clone())  # its own, to do with as it likes
        if len(samples) != len(x):
            raise ValueError(f"decode returned {len(samples)} samples for {len(x)} rows; it must return one for each")
        return samples

    @property
    def content(self) -> str | None:
        """What samples are, if the reader of the model says so: "smiles", "sequence" or "image"."""
        return getattr(self._read, "content", None)

    def read(self, samples: Any) -> Tensor:
        """The states of samples, (rows, *shape): the inverse of `decode`. One text, file or image alone is one row.

        Where samples are not decoded they are the states, and their shape is checked. Otherwise the model needs a
        `read=`. ValueError names every sample that cannot be read, and says why.
        """
        if self._read is None and self.decodes:
            raise ValueError(
                f"this {type(self).__name__} does not read samples, as it was made without read=: give it a function "
                f"of samples that returns states (rows, {', '.join(map(str, self.shape))}), the inverse of decode, or "
                "give states"
            )
        read = reading.identity if self._read is None else self._read
        with torch.no_grad(), self.lent(), lent(self.modules()):
            return reading.states(read, samples, self.shape, self.state)

    def log_prob(
        self,
        samples: Any,
        cond: Condition = None,
        *,
        steps: int | None = None,
        draws: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        errors: bool = False,
    ) -> Any:
        """log p of samples, or of states, under the unguided model: one float64 for each.

        Gaussian models: the density of states by the probability-flow ODE, in nats. Tokens: exact if they are ordered,
        else a lower bound, by random draws. See `guidekit.models.likelihood`.

        samples     as `read` takes them, or states (rows, *shape)
        cond        the condition, or a list with one for each group of samples; None is the null condition
        steps       of the ODE (50), or of the chain of uniform tokens (1000)
        draws       random signs by which the divergence of the ODE is estimated. None is 8 of them, and for samples of
                    at most 64 numbers the exact divergence, by a gradient for each number. Of masked and uniform
                    tokens, draws of the bound (64), each one evaluation
        seed        of the draws, which have an address: a sample has the same in any batch
        batch_size  most samples in one forward pass
        errors      also return the standard error of each number, 0 where it is exact

        >>> import torch, guidekit as gk
        >>> base = gk.analytic.TokenTable(torch.tensor([[0.1, 0.2], [0.3, 0.4]]).log(), "ordered")
        >>> gk.Model.log_prob(base, torch.tensor([[1, 0], [1, 1]])).exp()
        tensor([0.3000, 0.4000], dtype=torch.float64)
        """
        value, error = likelihood.log_prob(self, samples, cond, steps, draws, seed, batch_size)
        return (value, error) if errors else value

    def seen(self, samples: Any) -> Tensor:
        """Samples, as `read` takes them, in the form in which they come out of `decode`: what the `seen` of the reader
        makes of them, if it has one, else numbers as they are."""
        return getattr(self._read, "seen", reading.identity)(reading.listed(samples))

    def template(self, text: str) -> Tensor | None:
        """The tokens that each position may have in samples with a part that is told in words of the field, by the
        reader's `template`; None where it has none."""
        read = getattr(self._read, "template", None)
        return None if read is None else read(text).to(self.device)

    def begun(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """States of the same samples that begin with these tokens, and which rows have one, by the reader's `begun`; of
        a reader without it, those that begin so already."""
        read = getattr(self._read, "begun", None)
        return (x, (x[:, : len(first)] == first).all(1)) if read is None else read(x, first)

    def cells(self, mask: Tensor) -> Tensor:
        """The parts of a state that belong to True parts alone of a mask in the shape of a sample: by the reader's
        `cells`, if it has them, else by blocks of the sample, one for each part of the state."""
        return getattr(self._read, "cells", lambda mask: reading.cells(mask, self.shape))(mask)

    def state(self, x: Tensor) -> Tensor:
        """Numbers as a state has them: of its precision, on its device; ValueError where they cannot be a state."""
        if not isinstance(self.process, Gaussian):
            return reading.tokens(x, getattr(self, "vocab_size", None)).to(self.device)
        if not bool(x.isfinite().all()):
            raise ValueError("it has NaN or infinity")
        return x.to(self.device, self.dtype)

    def as_states(self, given: Any) -> Tensor:
        """States as they are, (rows, *shape) or one of them, and the states of samples.

        A tensor that has the shape and the kind of numbers of a state is one: images given as a tensor of that shape
        have to be read by `read`.
        """
        fits = isinstance(given, Tensor) and self.shape in (tuple(given.shape), tuple(given.shape[1:]))
        if not (fits and given.is_floating_point() == isinstance(self.process, Gaussian)):
            return self.read(given)
        if given.is_floating_point() and not bool(given.isfinite().all()):
            bad = (~given.isfinite()).reshape(-1, *self.shape).flatten(1).any(1).nonzero()[:, 0].tolist()
            raise ValueError(f"states have NaN or infinity in rows {', '.join(map(str, bad[:8]))} (counted from 0)")
        if self.decodes and given.is_floating_point() and given.aminmax() == (0, 1):
            warnings.warn(
                f"a tensor of shape {tuple(given.shape)} is taken as states of the network, and its values lie between "
                "0 and 1 as those of images do: if they are images, give model.read(images)",
                stacklevel=4,
            )
        return given

    def modules(self) -> list[nn.Module]:
        """The networks that a run puts into evaluation mode and restores afterwards."""
        return networks_in(self.net, self._decode, self._encode, self._read)

    def _forward(self, x: Tensor, t: float | Mixed, cond: Encoded, shape: tuple[int, ...]) -> Tensor:
        """Call the network with one t per row, in its own precision, and check what it returns."""
        like = {"dtype": self.dtype, "device": x.device}
        times = t.tensor(**like) if isinstance(t, Mixed) else torch.full((len(x),), t, **like)
        if x.is_floating_point():
            x = x.to(self.net_dtype or x.dtype)
        version = None if x.is_inference() else x._version
        out = called(self.net, x, times, cond)
        if version is not None and x._version != version:
            raise NetworkError(
                "the network works on its input x in place; it must leave x as it is (x = x + ..., not +=)"
            )
        given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if given != (len(x), *shape):
            raise NetworkError(
                f"the network returned {given} for an input of shape {tuple(x.shape)}; "
                f"{type(self).__name__} needs a tensor of shape {(len(x), *shape)}"
            )
        return out.to(self.dtype)


def _usual_facts(model: Model) -> list[str]:
    """What the repr of any model says: conditions, size and device."""
    known = "conditional" if model.null is not None or model.encodes else "no condition declared"
    known += ", with a null condition" if model.null is not None else ""
    count = sum(p.numel() for p in {p for net in model.modules() for p in net.parameters()})
    size = [f"{_count(count)} parameters"] if count else []
    where = [f"on {model.device}"] if model.device.type != "cpu" else []
    return [known, *size, *where]


def _count(n: int) -> str:
    """A number of parameters, to three digits.

    >>> _count(950), _count(1_234_567)
    ('950', '1.23M')
    """
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)


def stack(encoded: Sequence[Encoded]) -> Encoded:
    """The conditions of all groups, stacked along a group axis."""
    if encoded[0] is None:
        return None
    if isinstance(encoded[0], dict):
        return {k: stack([e[k] for e in encoded]) for k in encoded[0]}
    shapes = {tuple(e.shape) for e in encoded}
    if len(shapes) > 1:
        raise ValueError(f"the conditions encode to different shapes, {shapes}; encode_cond must pad them to one")
    return torch.stack(list(encoded))


def map_cond(f: Callable[[Tensor, Tensor], Tensor], encoded: Encoded, like: Encoded) -> Encoded:
    """f(encoded tensor, row tensor) for a tensor or for every entry of a dict."""
    if isinstance(encoded, dict):
        return {k: f(v, like[k]) for k, v in encoded.items()}
    return f(encoded, like)


def as_encoded(value: Any, device: torch.device) -> Encoded:
    """What encode_cond returned, as a tensor or a dict of tensors."""
    if isinstance(value, dict):
        return {k: torch.as_tensor(v, device=device) for k, v in value.items()}
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the condition {value!r} is no tensor or dict of tensors; give the model an encode_cond that makes it one"
        ) from error
