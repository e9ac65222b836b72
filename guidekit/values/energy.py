r"""The energy of `gk.EDLM` by noise contrast: what a masked model's prediction lacks, fitted to data.

A prediction draws the tokens of x_0 independently of each other, p(x_0 | x_t) = prod_i p_i(x_0^i | x_t); in data they
depend on each other. The energy is the ratio of the two laws,

    q(x_0 | x_t) = p(x_0 | x_t) exp(-E(x_0, x_t, t)).

Data x_0 are noised to x_t, and a second completion x_0' of the same x_t is drawn from the prediction. A network that
tells them apart,

    minimise  E[-log sigmoid(-E(x_0, x_t, t)) - log sigmoid(E(x_0', x_t, t))],

has its minimum where q sigmoid(E) = p sigmoid(-E), which is E = log p - log q (Gutmann and Hyvarinen, 2010). So the
energy needs no normalising constant, and at its minimum has none.

Reference: Xu et al. (2024), https://arxiv.org/abs/2410.21357, whose energy is a copy of the denoiser; here it is any
network of x_0 and x_t, by default a small one.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import softplus

from .. import random
from ..engine.checks import conditions
from ..engine.describe import describe, difference, weights
from ..engine.whole import check_writable, whole
from ..errors import CheckpointError, is_count
from ..models.base import Encoded, Model
from ..models.evaluations import rows_of
from ..models.networks import lent, networks_in
from ..process import Masked

NOTHING = 2 * math.log(2)  # the loss of E = 0
_ROUNDS = 20  # after each of which the energy is measured on held-out data, and saved
_TIMES = 4  # at which it is measured
_FEWEST = 20  # samples


@dataclass(frozen=True)
class Energy:
    """An energy E(x_0, x_t, t) of completions of masked sequences, for `gk.EDLM(energy)`.

    net    (x_0, x_t, t, cond) -> (rows,): sequences without masks and with them, both (rows, length), times (rows,) and
           encoded conditions with one entry per row, or None
    loss   that of noise contrast on held-out data, or None; of E = 0 it is 2 log 2

    >>> import torch, guidekit as gk
    >>> table = gk.analytic.TokenTable(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)))
    >>> alike = Energy(lambda x_0, x_t, t, cond: (x_0[:, 0] != x_0[:, 1]).double())
    >>> gk.sample(table, 4, steps=2, guides=[gk.EDLM(alike)]).x.shape
    torch.Size([4, 3])
    """

    net: Callable[[Tensor, Tensor, Tensor, Encoded], Tensor]
    loss: float | None = field(default=None, compare=False, repr=False)
    digest: str = field(init=False, compare=False, repr=False)  # of the weights, for checkpoints

    def __post_init__(self) -> None:
        if not callable(self.net):
            raise TypeError(
                f"Energy(net) takes a network (x_0, x_t, t, cond) -> (rows,), not {type(self.net).__name__}"
            )
        object.__setattr__(self, "digest", weights(networks_in(self.net)))

    def __call__(self, x_0: Tensor, x_t: Tensor, t: float | Tensor, cond: Encoded) -> Tensor:
        times = t.float() if isinstance(t, Tensor) else torch.full((len(x_0),), t, device=x_0.device)
        with torch.no_grad():
            return self.net(x_0, x_t, times, cond)


class Pairs(nn.Module):
    """A network of tokens that reads pairs (x_0, x_t): a token that x_t masks is another one than where it is known."""

    def __init__(self, net: Any, V: int):
        super().__init__()
        self.net, self.V = net, V

    def forward(self, x_0: Tensor, x_t: Tensor, t: Tensor, cond: Encoded) -> Tensor:
        return self.net(x_0 + self.V * (x_t == self.V), t, cond)


class Contrast(NamedTuple):
    """Data x_0, noised x_t, completions `other` of x_t by the prediction, times (rows,), and conditions."""

    x_0: Tensor
    x_t: Tensor
    other: Tensor
    t: Tensor
    cond: Encoded


@dataclass(frozen=True)
class Options:
    """The numbers of a fit, checked."""

    updates: int
    batch_size: int
    rate: float
    holdout: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("updates", "batch_size"):
            if not is_count(getattr(self, name)):
                raise ValueError(f"fit_energy({name}={getattr(self, name)!r}): an int of at least 1")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"fit_energy(rate={self.rate!r}): the learning rate of Adam, a positive number")
        if not 0 < self.holdout < 1:
            raise ValueError(f"fit_energy(holdout={self.holdout!r}): the share of the data to measure on, in (0, 1)")

    def sizes(self) -> list[int]:
        """The updates of each round."""
        rounds = min(_ROUNDS, self.updates)
        return [self.updates // rounds + (i < self.updates % rounds) for i in range(rounds)]


def fit_energy(
    model: Model,
    data: Any,
    net: nn.Module | None = None,
    *,
    cond: Any = None,
    updates: int = 2000,
    batch_size: int = 256,
    rate: float = 3e-3,
    holdout: float = 0.1,
    file: str | Path | None = None,
    seed: int = 0,
) -> Energy:
    """Fit the energy of `gk.EDLM` for a masked model to data, by noise contrast.

    model        a masked model that draws in any order, with one mask
    data         samples as `model.read` takes them, or states (rows, length), that the model should have learned
    net          a torch module (x_0, x_t, t, cond) -> (rows,), see `Energy`; a copy is trained. None builds that of
                 `gk.values.fit` for tokens, of pairs (x_0, x_t): a linear path of places and words, and attention
                 beside it from the middle of the fit on. It starts from E = 0
    cond         the condition of all data, or a list of those of each row
    updates      of Adam, at a rate that falls to 0, each with `batch_size` rows at one time, on which the model is
                 evaluated once
    holdout      the share of the data that is not trained on. The energy that is best there is returned
    file         keeps the state of the fit (safetensors), twenty times: the same call goes on with an interrupted one
                 and ends with the same weights, and returns those of a finished one
    seed         decides everything; torch's generator is left as it was

    A UserWarning says so if the energy tells held-out data and completions apart no better than E = 0.

    >>> import torch, guidekit as gk
    >>> twins = torch.tensor([[0, 0], [1, 1]]).repeat(50, 1)  # of which a network has learned the tokens one by one
    >>> apart = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 2), 2, 2)
    >>> energy = fit_energy(apart, twins, updates=60, batch_size=32, rate=0.1)
    >>> x = gk.sample(apart, 100, steps=1, guides=[gk.EDLM(energy)]).x
    >>> bool((x[:, 0] == x[:, 1]).double().mean() > 0.9)
    True
    """
    options = Options(updates, batch_size, rate, holdout, seed)
    if not isinstance(model.process, Masked) or model.process.places:
        raise ValueError(f"fit_energy: a masked model with one mask, that draws in any order, is needed, not {model!r}")
    x, conds = _data(model, data, cond)
    key = random.fold(random.key(seed, model.device), "energy")
    order = random.uniform(random.fold(key, "order"), (len(x),)).argsort()
    held, train = order.split([max(1, round(holdout * len(x))), len(x) - max(1, round(holdout * len(x)))])
    with torch.inference_mode(False), torch.random.fork_rng(), lent(model.modules()), model.lent():
        fit = _Fit(_net(net, model, x, conds, seed), options)
        drawn = _Draws(model, x, conds, key)
        measured = [drawn.some(held, batch_size, -1 - i) for i in range(_TIMES)]
        fit.run(drawn, train, measured, None if file is None else Path(file), _config(model, x, conds, net, options))
        each = torch.cat([_losses(fit.best, of) for of in measured])
    if not NOTHING - float(each.mean()) > 2 * float(each.std()) / len(held) ** 0.5:
        warnings.warn(
            f"the energy tells held-out data and the model's completions apart no better than E = 0: its loss is "
            f"{float(each.mean()):.4f}, and that of E = 0 {NOTHING:.4f}. Either the prediction lacks nothing, or more "
            "data, more updates or another net are needed",
            stacklevel=2,
        )
    return Energy(fit.best, float(each.mean()))


def _data(model: Model, data: Any, cond: Any) -> tuple[Tensor, Encoded]:
    """The states, and the encoded condition of each."""
    x = model.as_states(data).to(model.device)
    x = x if x.dim() == 2 else x[None]
    if len(x) < _FEWEST:
        raise ValueError(f"fit_energy(data): {len(x)} samples, and at least {_FEWEST} are needed")
    if bool(((x < 0) | (x >= model.process.V)).any()):  # type: ignore[attr-defined]
        raise ValueError("fit_energy(data): tokens of this model without masks are needed")
    each = conditions(model, cond)
    if len(each) not in (1, len(x)):
        raise ValueError(f"fit_energy(cond): {len(each)} conditions for {len(x)} samples; give one, or one for each")
    of = torch.arange(len(x), device=model.device) if len(each) > 1 else torch.zeros(len(x), dtype=torch.long)
    return x, rows_of(model.encode_all(each), of.to(model.device))


def _net(net: nn.Module | None, model: Model, x: Tensor, conds: Encoded, seed: int) -> nn.Module:
    if net is None:
        from .nets import Context, Tokens

        torch.manual_seed(seed)
        V = model.process.V  # type: ignore[attr-defined]
        return Pairs(Tokens(2 * V, model.shape[0], Context(conds, 64)), V).to(model.device)
    if not isinstance(net, nn.Module) or not any(p.requires_grad for p in net.parameters()):
        raise TypeError(
            f"fit_energy(net=...) takes a torch.nn.Module with parameters to train, not {type(net).__name__}"
        )
    rows = torch.zeros(2, dtype=torch.long, device=x.device)
    found = net(x[:2], x[:2], torch.ones(2, device=x.device), rows_of(conds, rows))
    if not isinstance(found, Tensor) or tuple(found.shape) != (2,):
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"fit_energy(net=...) returned {given} for two rows: one number for each, (2,), is needed")
    return copy.deepcopy(net)


def _config(model: Model, x: Tensor, conds: Encoded, net: Any, options: Options) -> str:
    """What decides the weights, as JSON."""
    of = {"model": describe(model), "data": describe(x), "cond": describe(conds), "net": describe(net)}
    return json.dumps(of | {"options": asdict(options), "weights": weights([*model.modules(), *networks_in(net)])})


class _Draws:
    """Data and completions, by address."""

    def __init__(self, model: Model, x: Tensor, conds: Encoded, key: Tensor):
        self.model, self.x, self.conds, self.key = model, x, conds, key

    def some(self, rows: Tensor, size: int, number: int) -> Contrast:
        """So many of these rows, at one time. Times are even in (0, 1.1), and those above 1 are 1, where runs begin."""
        keys = random.fold(random.fold(self.key, number), torch.arange(size, device=self.x.device))
        row = rows[(random.uniform(random.fold(keys, "row"), ()) * len(rows)).long()]
        t = min(1.0, 1.1 * (1 - number * (math.sqrt(5) - 1) / 2 % 1))
        x_0, cond, process = self.x[row], rows_of(self.conds, row), self.model.process
        noise = process.noise(random.fold(keys, "noise"), process.noise_shape(self.model.shape), self.model.dtype)
        x_t = process.noised(x_0, noise, t)
        with torch.no_grad():
            log_p = self.model(x_t, t, cond).double()
        drawn = (log_p + random.gumbel(random.fold(keys, "other"), tuple(log_p.shape[1:]))).argmax(-1)
        other = torch.where(x_t == process.V, drawn, x_t)  # type: ignore[attr-defined]
        return Contrast(x_0, x_t, other, torch.full((size,), t, device=x_0.device), cond)


def contrast(net: Callable, of: Contrast) -> Tensor:
    """The loss of each row, (rows,)."""
    ours, theirs = (net(x, of.x_t, of.t, of.cond) for x in (of.x_0, of.other))
    return softplus(ours) + softplus(-theirs)


def _losses(net: nn.Module, of: Contrast) -> Tensor:
    """The losses of rows that are not trained on."""
    net.eval()
    with torch.no_grad():
        return contrast(net, of).double()


class _Fit:
    """The network, that which was best so far, and the state of Adam."""

    def __init__(self, net: nn.Module, options: Options):
        self.net, self.best, self.options = net, copy.deepcopy(net).eval().requires_grad_(False), options
        self.adam = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], options.rate)
        self.best_loss, self.done = math.inf, 0

    def run(self, drawn: _Draws, rows: Tensor, held: list[Contrast], file: Path | None, config: str) -> None:
        sizes = self.options.sizes()
        if file is not None:
            check_writable(file)
            self.load(file, config)
        if self.done == len(sizes):
            return
        self.measure(held)
        while self.done < len(sizes):
            self.train(drawn, rows, range(sum(sizes[: self.done]), sum(sizes[: self.done + 1])))
            self.done += 1
            self.measure(held)
            if file is not None:
                self.save(file, config)

    def train(self, drawn: _Draws, rows: Tensor, updates: range) -> None:
        torch.manual_seed(int(random.fold(random.key(self.options.seed), self.done)))  # for dropout
        self.net.train()
        if isinstance(self.net, Pairs):
            self.net.net.joined.fill_(2 * updates.start >= self.options.updates)
        with torch.enable_grad():
            for update in updates:
                for group in self.adam.param_groups:
                    group["lr"] = self.options.rate * (1 - update / self.options.updates)
                self.adam.zero_grad()
                contrast(self.net, drawn.some(rows, self.options.batch_size, update)).mean().backward()
                self.adam.step()

    def measure(self, held: list[Contrast]) -> None:
        loss = float(torch.cat([_losses(self.net, of) for of in held]).mean())
        if not math.isfinite(loss):
            raise RuntimeError(f"the fit of the energy diverged: its loss is {loss}; take a smaller rate")
        if loss < self.best_loss:
            self.best_loss = loss
            self.best.load_state_dict(self.net.state_dict())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All state, by name."""
        for name, net in {"net": self.net, "best": self.best}.items():
            yield from ((f"{name}.{k}", v) for k, v in net.state_dict().items())
        for i, state in self.adam.state_dict()["state"].items():
            yield from ((f"adam.{i}.{k}", torch.as_tensor(v)) for k, v in state.items())

    def save(self, file: Path, config: str) -> None:
        held = {k: v.detach().cpu().contiguous() for k, v in self.tensors()}
        with whole(file) as part:
            save_file(held, part, {"guidekit": config, "done": str(self.done), "loss": repr(self.best_loss)})

    def load(self, file: Path, config: str) -> None:
        if not file.exists():
            return
        try:
            with safe_open(str(file), "pt") as tensors:
                about, found = tensors.metadata(), {k: tensors.get_tensor(k) for k in list(tensors.keys())}
            before, self.done, self.best_loss = json.loads(about["guidekit"]), int(about["done"]), float(about["loss"])
        except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file} is truncated or was not written by guidekit ({error}); delete it to start anew"
            ) from error
        if other := difference(before, json.loads(config)):
            raise CheckpointError(f"{file} is of another fit: {other[0]} differs; give this one another file")
        for name, net in {"net": self.net, "best": self.best}.items():
            net.load_state_dict({k: found[f"{name}.{k}"] for k in net.state_dict()})
        adam = self.adam.state_dict()
        for name in (k for k in found if k.startswith("adam.")):
            _, i, what = name.split(".", 2)
            adam["state"].setdefault(int(i), {})[what] = found[name]
        self.adam.load_state_dict(adam)
