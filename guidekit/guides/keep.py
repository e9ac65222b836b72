r"""Keeping a part of a sample while the rest is drawn: the conditional distribution p(x_0 | x_0^M = k) of the model,
with the log-probability (density) of the kept part, log p(x_0^M = k), as log Z.

Gaussian processes (SMCDiff, Trippe et al., 2023, https://arxiv.org/abs/2206.04119; in the twisted form of Wu et al.,
2023, https://arxiv.org/abs/2306.17775). The kept part follows the forward process of its known value k, backwards:

    x_t^M ~ N(alpha_t k, sigma_t^2) at the start,
    x_s^M = alpha_s k + (sigma_s^2 - c^2)^1/2 (x_t^M - alpha_t k)/sigma_t + c z,

with c and z of the solver, and every particle has its own path. The rest moves as the model says. The target at time t
is p(x_t) h(x_t), h = N(x_t^M; alpha_t k, sigma_t^2), so that the weights move by

    p(x_s^M | x_t)/q(x_s^M | x_t^M, k) * h(x_s)/h(x_t),       at the end  N(k; d^M, sigma_t^2/alpha_t^2)/h(x_t),

where d is the last clean mean, and the last step, which has no noise, is given that of x_t.

Tokens. A kept token is a set of one letter, and a template has a set of letters for each position. Particles move by
the kernel within these sets, and the weights take the probability of what was forced (see `shared/constrained`). In a
masked process the known tokens are there from the start, and the network conditions on them. That is exact, with equal
weights, for a network of any order, and for an ordered one where they are its first tokens; there the next position may
have a set too, since all rows reach it alike.

    method = "replace"   no weights: parts are put in place and the rest is left to the network's attention to them
                         (Song et al., 2021, https://arxiv.org/abs/2011.13456); a heuristic, biased even in the limit
             "repaint"   the same, and each `jump` steps are undone by noising and made again, `recur` times in all
                         (Lugmayr et al., 2022, https://arxiv.org/abs/2201.09865)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..errors import is_count
from ..models.analytic import ExactReverse
from ..models.base import Model
from ..models.evaluations import Cond
from ..models.networks import lent
from ..process import Gaussian, Lengths, Masked
from ..solvers import Move, starting_at
from ..solvers.base import Point, noised
from .shared.constrained import LEAST, Within
from .shared.language import letters
from .shared.sites import template


@dataclass(frozen=True, eq=False)
class Keep(Within):
    """Keep a part of the sample. No NFE beyond one row for each known token at the start of a masked run.

    known      a state, or a sample that the model can read; one for all rows, or one for each condition
    where      what of it is kept: a boolean mask of the state's shape, or one that broadcasts to it. Of a sample also
               one of the sample's shape, or a black-and-white PIL picture, white where it stays: parts of the state
               to which only kept parts of the sample belong are kept in the run, and what is kept of the sample is
               pasted into the samples
    template   of tokens, instead: a letter or a set of letters for each position. For DNA a text like "NNAGATAANN" in
               IUPAC letters; else a list of None (any), letters, token numbers or sets of them; or bool (length, V)
    method     "weighted" (exact), "replace" or "repaint" (heuristics, without weights)
    ess        weighted particles are resampled when the effective sample size falls below this fraction of them
    recur      "repaint": how often each stretch is made
    jump       "repaint": steps of a stretch

    The kept part of `result.x` equals `known` bit for bit, and so does that of `result.samples` if the mask is one of
    samples. With `StartFrom`, the given samples should hold the kept part already; their weights are then taken to be
    equal at the start, which is exact for small levels only.
    """

    known: Any = None
    where: Any = None
    _: KW_ONLY
    template: Any = None
    method: str = "weighted"
    ess: float = 0.5
    recur: int = 10
    jump: int = 10

    isotropic = True
    card = Card(
        "keeps a part of the sample, and draws the rest given it",
        section="Constraints",
        exact='p(x | kept part)/Z with method="weighted"',
        changes="weights",
        paper=Paper(
            "trippe2023smcdiff",
            "Trippe, Brian L. and Yim, Jason and Tischer, Doug and Baker, David and Broderick, Tamara and "
            "Barzilay, Regina and Jaakkola, Tommi",
            "Diffusion probabilistic modeling of protein backbones in 3D for the motif-scaffolding problem",
            2023,
            "2206.04119",
        ),
        example="gk.Keep(point, torch.tensor([True, False]))",
    )

    methods = ("weighted", "replace", "repaint")
    picture: ClassVar[Any] = None  # of what parts are pasted into samples, (1 or groups, ...)
    pixels: ClassVar[Any] = None  # which parts, bool
    even = False  # whether all weights are equal, since every kept token is there from the start
    apart = False  # whether the probability of the kept tokens differs between rows, as their lengths do

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.known is None) == (self.template is None):
            raise ValueError("Keep needs either known=... and where=..., or template=... of tokens")
        if self.known is not None and self.where is None:
            raise ValueError("Keep(known, where): a boolean mask `where` says which part of `known` is kept")
        for name in ("recur", "jump"):
            if not is_count(getattr(self, name)):
                raise ValueError(f"Keep({name}={getattr(self, name)!r}): an int of at least 1 is needed")

    # before the run ----------------------------------------------------------------------------------------------

    def bind(self, model: Model) -> Guide:
        if isinstance(model.process, Gaussian):
            if self.template is not None:
                raise ValueError("Keep(template=...) is for tokens; give known=... and where=... for this model")
            return self._bound(model)
        allowed = self._allowed(model) if self.template is None else template(model, self.template)
        language = letters(allowed)
        apart = isinstance(model.process, Lengths)
        own = self.having(template=allowed, known=None, where=None, language=language, apart=apart)
        return own.having(even=not apart and bool((own._shared(model) | language.allowed.all(-1)).all()))

    def _bound(self, model: Model) -> Guide:
        """With states, their mask and, if the mask is of samples, what of these is pasted."""
        known, where = _states(model, self.known), _bools(model, self.where)
        picture = _picture(model, self.known, known, where)
        if picture is None:
            return self.having(known=known, where=_mask(model, where))
        pixels = where.expand(picture.shape[1:])
        _check_pasted(model, known, picture)
        return self.having(known=known, where=_cells(model, pixels), picture=picture, pixels=pixels)

    def _allowed(self, model: Model) -> Tensor:
        """The tokens that each position may have, (1 or groups, length, V)."""
        known, where = _states(model, self.known), _mask(model, _bools(model, self.where))
        V = model.vocab_size  # type: ignore[attr-defined]
        if not bool(((known >= 0) & (known < V))[:, where].all()):
            raise ValueError(f"Keep(known): the kept tokens are numbers from 0 to {V - 1}")
        return torch.nn.functional.one_hot(known.clamp(0, V - 1), V).bool() | ~where[:, None]

    def admits(self, model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
        if not getattr(model.process, "alone", False) or len(x) % len(self._held(model)):
            return super().admits(model, x)
        parts = [self._begun(model, own, g) for g, own in enumerate(x.chunk(len(self._held(model))))]
        x, fine = (torch.cat(v) for v in zip(*parts, strict=True))
        return x, fine

    def _begun(self, model: Model, x: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """States of the same samples that begin with what is kept."""
        held = self._held(model)[group]
        first = self._known(torch.tensor([group], device=held.device))[0, held].to(x)
        other = (x[:, held.to(x.device)] != first).any(1)
        if not bool(other.any()):
            return x, ~other
        found, fine = model.begun(x[other], first)
        return x.index_put((other,), found.to(x)), (~other).index_put((other,), fine.to(x.device))

    def check(self, model: Model, steps: int) -> None:
        if not isinstance(model.process, Gaussian):
            super().check(model, steps)
            if isinstance(process := model.process, Lengths) and bool(
                process.chances(*self._lengths(process)).isneginf().all(-1).any()
            ):
                raise ValueError("Keep: no length fits what is kept and has a probability; see lengths= of the model")
        elif isinstance(model.process, ExactReverse):
            raise ValueError("Keep replaces a part of a Gaussian kernel, and the exact reverse process has another one")

    def regrouped(self, model: Model, groups: Sequence[int], of: int) -> Guide:
        dims = {"known": len(model.shape), "template": 2, "picture": 0}
        own = {k: v for k in dims if isinstance(v := getattr(self, k), Tensor) and len(v) == of > 1}
        shaped = {k: v[list(groups)] for k, v in own.items() if v.dim() > dims[k]}
        return self.having(**shaped)

    @property
    def independent(self) -> bool:
        return self.even or not self.weighted

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        moves = super().moves(model, moves)
        if isinstance(model.process, Masked) and model.process.places:
            moves = self._after_prefix(model, moves)
        return moves if self.method != "repaint" else _repeated(model, moves, self.recur, self.jump)

    def _after_prefix(self, model: Model, moves: list[Move]) -> list[Move]:
        """Without the moves of an ordered model in which only tokens that are known would be drawn."""
        length = model.shape[0]
        begins = 1 - int(self._held(model).all(0).sum()) / length
        first = next((i for i, m in enumerate(moves) if m.s < begins - 1e-9), len(moves) - 1)
        return starting_at(moves, first) if first else moves

    # in the run --------------------------------------------------------------------------------------------------

    def begin(self, view: View, noise: Tensor) -> Tensor:
        if isinstance(view.model.process, Gaussian):
            k = _of_group(self.known, view.group)
            return torch.where(self.where, view.model.process.noised(k, noise.to(k), view.step.t), view.x)
        held, known = _of_group(self._held(view.model), view.group), self._known(view.group)
        if isinstance(view.model.process, Lengths):
            low, high = (_of_group(v, view.group) for v in self._lengths(view.model.process))
            return torch.where(held, known, view.model.process.within(noise, low, high))
        other = held & (view.x != known) & (view.x < view.model.vocab_size)  # type: ignore[attr-defined]
        if getattr(view.model.process, "alone", False) and bool(other.any()):
            raise ValueError(
                "the samples from which the run starts do not begin with the kept part, and the rest of them would not "
                "fit to it: leave StartFrom (start) or Keep (keep) away"
            )
        return torch.where(held, known, view.x)

    def propose(self, model: Model, population: Population, kernel: Any, step: Step) -> Any:
        assert step.move is not None
        if isinstance(model.process, Gaussian):
            if step.move.s > step.move.t:
                return kernel
            k = _of_group(self.known, population.group)
            return Held(kernel, population.x, k, self.where, step.move, model.process, self.weighted)
        if step.move.s > step.move.t and isinstance(model.process, Masked):
            held = _of_group(self._held(model), population.group)
            return Still(kernel, held, population.x)
        return super().propose(model, population, kernel, step)

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        if not self.weighted:
            return 0.0, memo
        if isinstance(view.model.process, Gaussian):
            return self._path(view, memo)
        increment, accepted = super().log_weight(view, None if memo is None else memo[0])
        return increment, (accepted, self._log_known(view) if memo is None else memo[1])

    def weigh(self, population: Population, step: Step) -> Population:
        memo = population.memos[step.place]
        if step.index != 1 or not isinstance(memo, tuple):
            return population
        each = memo[1]
        if not self.apart:
            known = population.by_group(each).sum(1) / population.branch  # siblings hold their parent's part
            each = known[population.group]
        return population.weighed(step.place, each, memo)

    def paste(self, samples: Any, group: Tensor) -> Any:
        if self.picture is None:
            return samples
        return torch.where(self.pixels, _of_group(self.picture, group).to(samples), samples)

    def further(self, step: Step) -> int:
        known = 0 if step.index or not isinstance(self.template, Tensor) else int((self.template.sum(-1) == 1).sum())
        return known if self.weighted else 0

    # Gaussian ----------------------------------------------------------------------------------------------------

    def _path(self, view: View, memo: Tree) -> tuple[Tensor, Tree]:
        """log h(x_s)/h(x_t), and at the start log p(x_t^M) of the prior."""
        if view.step.last:
            return -memo, view.zeros()
        alpha, sigma = view.model.process.scales(view.t)
        h = _log_normal(view.x, alpha * _of_group(self.known, view.group), sigma, self.where)
        if memo is not None:
            return h - memo, h
        prior = view.t >= view.model.process.t_max
        return _log_normal(view.x, torch.zeros_like(view.x), sigma, self.where) if prior else view.zeros(), h

    # tokens ------------------------------------------------------------------------------------------------------

    def _held(self, model: Model) -> Tensor:
        """The positions that are known from the start of a masked run, bool (groups or 1, length)."""
        assert self.language is not None
        one = self.language.allowed.sum(-1) == 1
        if not isinstance(model.process, Masked):
            return torch.zeros_like(one)
        return one.cumprod(-1).bool() if model.process.places else one

    def _shared(self, model: Model) -> Tensor:
        """The positions whose tokens are forced with the same probability in all rows: those that are known, and the
        next one of an ordered text, which all rows reach with the same tokens before it."""
        held = self._held(model)
        if not (isinstance(model.process, Masked) and model.process.places):
            return held
        return held | (held.cumprod(-1).bool().roll(1, -1).index_fill(-1, torch.tensor([0], device=held.device), True))

    def _known(self, group: Tensor) -> Tensor:
        """The one letter of each position that has one."""
        assert self.language is not None
        return _of_group(self.language.allowed.long().argmax(-1), group)

    def _lengths(self, process: Lengths) -> tuple[Tensor, Tensor]:
        """The least and the largest length that fits, (1 or groups,): what cannot be the end lies within the text, and
        what can be nothing else behind it."""
        assert self.language is not None
        allowed = self.language.allowed
        place = torch.arange(1, self.language.length + 1, device=allowed.device)
        end = allowed[..., process.end]
        low = torch.where(end, 1, place).amax(-1)
        high = torch.where(end & (allowed.sum(-1) == 1), place - 1, len(place)).amin(-1)
        return low, high

    def _log_known(self, view: View) -> Tensor:
        """Of log p of the tokens that are known from the start, each row's part. By the chain rule, from the left, each
        of them takes one row of the network; the particles of a group share them, if they do not differ in length."""
        total, held = view.zeros(), _of_group(self._held(view.model), view.group).expand(len(view.x), -1)
        letter, open = self._known(view.group), view.model.process.V  # type: ignore[attr-defined]
        if isinstance(process := view.model.process, Lengths):
            chances = _of_group(process.chances(*self._lengths(process)).logsumexp(-1), view.group)
            total, held = total + chances, held & (letter != process.end)
            open = torch.where(view.x == process.end, view.x, open)
        rank, count = held.cumsum(-1) - 1, held.sum(-1)
        for first in range(0, int(count.max()), 1 if self.apart else view.step.n):
            own = first + view.slot * (not self.apart)
            row = (own < count).nonzero()[:, 0]
            if not len(row):
                break
            before, here = (held & (rank < own[:, None]))[row], (held & (rank == own[:, None]))[row].int().argmax(-1)
            x = torch.where(before, letter.expand_as(view.x)[row], open[row] if self.apart else open)
            log_p = view.take(row).evaluate(x, view.t)[Cond()].double().log_softmax(-1)
            each = torch.arange(len(row), device=x.device)
            found = log_p[each, here, letter.expand_as(view.x)[row, here]]
            if bool((found < math.log(LEAST)).any()):
                self.refuse(here[found < math.log(LEAST)].tolist())
            total[row] += found
        return total


@dataclass(frozen=True)
class Held:
    """The kernel of a move with the kept part on its own path."""

    inner: Any
    x: Tensor
    k: Tensor
    where: Tensor
    move: Move
    process: Gaussian
    weighted: bool

    @property
    def random(self) -> bool:
        return self.inner.random

    @property
    def history(self) -> tuple[Tensor, ...]:
        return self.inner.history

    @property
    def mean(self) -> Tensor:
        """Where kept, alpha_s k + (sigma_s^2 - c^2)^1/2 (x_t - alpha_t k)/sigma_t; else that of the other kernel."""
        (a_t, s_t), (a_s, s_s) = self.process.scales(self.move.t), self.process.scales(self.move.s)
        rest = max(s_s**2 - self.move.c**2, 0.0) ** 0.5
        return torch.where(self.where, a_s * self.k + rest / s_t * (self.x - a_t * self.k), self.inner.mean)

    def push(self, noise: Tensor | None) -> Tensor:
        mine = self.mean if noise is None else self.mean + self.move.c * noise
        x = torch.where(self.where, mine, self.inner.push(noise))
        return torch.where(self.where, self.k, x) if self.move.s == 0 else x

    def log_prob(self, x: Tensor) -> Tensor:
        return _log_normal(x, self.mean, self.move.c)

    def correction(self, p: Any, x: Tensor) -> Tensor:
        if not self.weighted:
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if self.move.s == 0:
            alpha, sigma = self.process.scales(self.move.t)
            return _log_normal(self.k, p.mean, sigma / alpha, self.where)
        return p.log_prob(x) - self.log_prob(x)


@dataclass(frozen=True)
class Still:
    """A move up in time that masks no kept token."""

    inner: Any
    held: Tensor
    x: Tensor
    random = True
    history = ()

    def push(self, noise: Any) -> Tensor:
        return torch.where(self.held, self.x, self.inner.push(noise))

    def correction(self, p: Any, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)


def _log_normal(x: Tensor, mean: Tensor, std: float, where: Tensor | None = None) -> Tensor:
    """log N(x; mean, std^2) of the entries `where`, one float64 per row."""
    z = ((x - mean) / std).double()
    square = z.square() if where is None else torch.where(where, z.square(), 0.0)
    count = x[0].numel() if where is None else where.sum(dtype=torch.float64)
    return -0.5 * square.flatten(1).sum(1) - count * (math.log(std) + 0.5 * math.log(2 * math.pi))


def _states(model: Model, known: Any) -> Tensor:
    """States (1 or groups, *shape) of states or samples."""
    try:
        x = model.as_states(_listed(model, known))
    except ValueError as error:
        raise ValueError(f"Keep(known=...): {error}") from error
    x = x if x.dim() > len(model.shape) else x[None]
    return x.to(model.device, model.dtype) if isinstance(model.process, Gaussian) else x.to(model.device)


def _listed(model: Model, known: Any) -> Any:
    """With a row axis: of one picture as a tensor that is no state too."""
    if isinstance(known, Tensor):
        one = known.dim() == 3 and known.is_floating_point() and isinstance(model.process, Gaussian) and model.decodes
        return known[None] if one and model.shape not in (known.shape, known.shape[1:]) else known
    return known if isinstance(known, (list, tuple)) else [known]


def _picture(model: Model, given: Any, known: Tensor, where: Tensor) -> Tensor | None:
    """The samples of which this is a mask, (1 or groups, ...) as they come out of decoding; None if it is of states."""
    fits = isinstance(given, Tensor) and model.shape in (given.shape, given.shape[1:])
    if fits or not model.decodes:
        return None
    picture = model.seen(_listed(model, given)).to(known.device)
    return picture if _broadcasts(where, picture.shape[1:]) else None


def _check_pasted(model: Model, known: Tensor, picture: Tensor) -> None:
    """Decoded samples have the form of what is to be pasted into them."""
    with torch.no_grad(), model.lent(), lent(model.modules()):
        samples = model.decode(known[:1])
    given = tuple(samples.shape[1:]) if isinstance(samples, Tensor) else type(samples).__name__
    if given != picture.shape[1:]:
        raise ValueError(
            f"Keep(where): the mask is of a sample of shape {tuple(picture.shape[1:])}, and this model decodes to "
            f"{given}, into which it cannot be pasted; give a mask of states, of shape {model.shape}"
        )


def _cells(model: Model, pixels: Tensor) -> Tensor:
    """What of a state is kept if these parts of a sample are."""
    try:
        held = model.cells(pixels)
    except ValueError as error:
        raise ValueError(f"Keep(where): {error}; give a mask of states, of shape {model.shape}") from error
    if pixels.any() and not held.any():
        raise ValueError(
            f"Keep(where): of no part of a state, of shape {model.shape}, all of the sample is kept, so that the "
            "network would not know of what is kept; widen the mask"
        )
    return held


def _broadcasts(mask: Tensor, shape: torch.Size) -> bool:
    sides = zip(mask.shape[::-1], shape[::-1], strict=False)
    return mask.dtype == torch.bool and mask.dim() <= len(shape) and all(a in (1, b) for a, b in sides)


def _bools(model: Model, where: Any) -> Tensor:
    """The mask as a tensor: of a PIL picture, where it is white."""
    white = where.convert("L").point(lambda v: v > 127 and 255) if hasattr(where, "convert") else None
    return torch.as_tensor(where if white is None else np.asarray(white) > 0, device=model.device)


def _mask(model: Model, mask: Tensor) -> Tensor:
    """The mask in the state's shape."""
    try:
        if mask.dtype != torch.bool:
            raise RuntimeError
        return mask.expand(model.shape)
    except RuntimeError as error:
        raise ValueError(
            f"Keep(where of shape {tuple(mask.shape)}, {mask.dtype}): a boolean mask of shape {model.shape} is needed, "
            "or one that broadcasts to it; True is what is kept"
        ) from error


def _of_group(v: Tensor, group: Tensor) -> Tensor:
    return v if len(v) == 1 else v[group]


def _repeated(model: Model, moves: list[Move], recur: int, jump: int) -> list[Move]:
    """Every stretch of `jump` steps `recur` times, with the forward process in between."""
    if any(len(m.b) > 1 for m in moves):
        raise ValueError('Keep(method="repaint") repeats steps; take a solver without memory, such as DDPM()')
    table: list[Move] = []
    for start in range(0, len(moves), jump):
        stretch = moves[start : start + jump]
        last = stretch[-1].s == 0 or model.process.scales(stretch[0].t)[0] == 0
        back = [] if last else [_back(model, stretch[-1].s, stretch[0].t)]
        table += [*stretch, *([*back, *stretch] * (recur - 1) if back else [])]
    return table


def _back(model: Model, s: float, t: float) -> Move:
    """The forward process from s up to t."""
    if not isinstance(model.process, Gaussian):
        return Move(s, t)
    return noised(Point(s, *model.process.scales(s)), Point(t, *model.process.scales(t)))
