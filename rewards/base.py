"""Rewards map a batch of samples to one float per sample, in order, with NaN for a sample that cannot be scored.

Plain functions are rewards too; `as_reward` wraps them. What the user's code returns is checked once, here. If a plain
function raises on a batch it is called again sample by sample, and only the samples on which it raises are lost.
Rewards can be added, multiplied and transformed, and sent to other processes.
"""

from __future__ import annotations

import copy
import math
import operator
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class RewardError(RuntimeError):
    """A reward raised, returned the wrong length or type, or scored nothing at all."""

    name: str = "?"  # of the reward, where it raised


class RewardWarning(UserWarning):
    """A reward failed on some samples for an unexpected reason; their scores are NaN."""


class Reward:
    """Base of all rewards: a subclass implements `score`.

    name               its name in tables and errors
    differentiable     whether gradients flow from the scores to the samples; None if unknown
    higher_is_better   whether reports treat high scores as good; guides always maximise, so steer by -reward if False
    unit               of the scores, or ""

    >>> length = as_reward(lambda samples: [len(s) for s in samples])
    >>> (2 * length + 1)(["CC", "CCO"])
    tensor([5., 7.], dtype=torch.float64)
    """

    name: str = "reward"
    differentiable: bool | None = False
    higher_is_better: bool = True
    unit: str = ""

    def score(self, samples: Any) -> Any:
        """One number per sample, in order; NaN for a sample that cannot be scored."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to score")

    def inside(self) -> tuple[Reward, ...]:
        """The rewards that this one is made of; none if it scores by itself."""
        return ()

    def __call__(self, samples: Any) -> Tensor:
        """The scores as a float tensor of shape (len(samples),)."""
        watched = isinstance(samples, Tensor) and not samples.is_inference()
        version = samples._version if watched else 0
        try:
            scores = self.score(samples)
        except Exception as error:
            raise _raised(self.name, error) from error
        if watched and samples._version != version:
            raise RewardError(f"reward {self.name!r} works on its samples in place; it must leave them as they are")
        return _checked(scores, len(samples), self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    def named(self, name: str) -> Reward:
        """The same reward under another name."""
        other = copy.copy(self)
        object.__setattr__(other, "name", name)
        return other

    def transformed(self, transform: Callable[[Tensor], Tensor], name: str | None = None) -> Reward:
        """transform(score), for example one of `rewards.transforms`; NaN stays NaN."""
        return Transformed(self, transform, name)

    def __add__(self, other: Any) -> Reward:
        return _combined("+", self, other)

    def __radd__(self, other: Any) -> Reward:
        return _combined("+", other, self)

    def __sub__(self, other: Any) -> Reward:
        return _combined("-", self, other)

    def __rsub__(self, other: Any) -> Reward:
        return _combined("-", other, self)

    def __mul__(self, other: Any) -> Reward:
        return _combined("*", self, other)

    def __rmul__(self, other: Any) -> Reward:
        return _combined("*", other, self)

    def __truediv__(self, other: Any) -> Reward:
        return _combined("/", self, other)

    def __neg__(self) -> Reward:
        return _combined("*", -1, self).named(f"-{self.name}")


strict = threading.local()  # strict.on: in this thread Each passes on the errors of samples, so that a caller can count


@dataclass
class Listener:
    """Collects the failures of rewards that are called many times, as in a run.

    told       names of rewards that have already warned of failures, so that each warns once
    answered   whether a plain function has scored anything
    error      the first error of a plain function that raised on every sample of a call; without a listener it is
               raised at once
    scored     a sample that a plain function has scored, by itself in a batch
    function   the one that has raised
    """

    told: set[str] = field(default_factory=set)
    answered: bool = False
    error: RewardError | None = None
    scored: Any = None
    function: Callable[[Any], Any] | None = None

    def hear(self, scored: Any) -> None:
        """A plain function has scored the first of these samples."""
        self.answered = True
        if self.scored is None:
            self.scored = scored[:1].detach().clone() if isinstance(scored, Tensor) else scored[:1]

    def works(self, scored: Any) -> bool:
        """Whether the function that has raised scores a sample that is scored elsewhere: then it was the samples."""
        try:
            return self.function is not None and len(self.function(scored)) == 1
        except Exception:
            return False

    def settle(self) -> None:
        """Raise the error if no plain function has scored anything so far, otherwise warn about it."""
        error, self.error = self.error, None
        if error is not None and not self.answered:
            raise error
        if error is not None:
            with listening(self):
                _warn(error.name, f"raised on all samples of a call, {_text(error.__cause__)}")


_listening = threading.local()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """A context in which plain functions report their failures to the listener, in this thread."""
    before, _listening.now = getattr(_listening, "now", None), listener
    try:
        yield
    finally:
        _listening.now = before


def _warn(name: str, text: str) -> None:
    """Warn that samples could not be scored; with a listener only the first time."""
    listener = getattr(_listening, "now", None)
    if listener is not None and name in listener.told:
        return
    if listener is not None:
        listener.told.add(name)
    warnings.warn(f"reward {name!r} {text}", RewardWarning, stacklevel=4)


def _text(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}"[:300]


class Each(Reward):
    """A reward that scores samples one by one: a subclass implements `one`. A sample on which it raises is NaN, and a
    single `RewardWarning` says how many there were."""

    def one(self, sample: Any) -> float:
        """The score of one sample, or NaN."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to score one sample")

    def score(self, samples: Any) -> list[float]:
        if isinstance(samples, str):
            raise TypeError(f"a list of samples is needed, not the text {samples[:40]!r}")
        scores, errors = [], []
        for sample in samples:
            try:
                scores.append(float(self.one(sample)))
            except ImportError:
                raise  # it would be the same for all
            except Exception as error:
                scores.append(math.nan)
                errors.append(error)
        if errors and getattr(strict, "on", False):
            raise errors[0]
        if errors:
            _warn(self.name, f"raised on {len(errors)} of {len(scores)} samples, first {_text(errors[0])}")
        return scores


class Function(Reward):
    """A plain function of samples as a reward. If it raises on a batch it is called again sample by sample; the samples
    on which it raises are NaN, with a `RewardWarning`. If it raises on all of them, the error is raised."""

    def __init__(self, function: Callable[[Any], Any], name: str | None = None, differentiable: bool | None = None):
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.differentiable = differentiable

    def score(self, samples: Any) -> Any:
        listener = getattr(_listening, "now", None)
        try:
            found = self._asked(samples)
            found = list(found) if isinstance(found, Iterator) else found
        except ImportError:
            raise  # it would be the same for all
        except Exception as error:
            if getattr(strict, "on", False):
                raise
            return self._one_by_one(samples, error, listener)
        if listener is not None:
            listener.hear(samples)
        return found

    def _asked(self, samples: Any) -> Any:
        """What the function returns. If a network is given texts, the error says so, since its own would not."""
        try:
            return self.function(samples)
        except Exception as error:
            if isinstance(self.function, nn.Module) and isinstance(samples, list):
                raise TypeError(
                    f"a network was given texts and raised {type(error).__name__}; wrap it in a function that encodes "
                    "them, or for DNA in rewards.dna.Network(network)"
                ) from error
            raise

    def _one_by_one(self, samples: Any, error: Exception, listener: Listener | None) -> Tensor:
        """Score the samples one by one, given the error that the function raised on the whole batch."""
        count = len(samples)
        found = [self._alone(samples, i) for i in range(count)] if count > 1 else [error]
        errors = [v for v in found if isinstance(v, Exception)]
        known = next((v for v in found if isinstance(v, Tensor)), None)
        if known is None and listener is None:
            raise error
        if known is None and listener is not None:
            listener.error, listener.function = listener.error or _raised(self.name, error), self._asked
        elif errors:
            _warn(self.name, f"raised on {len(errors)} of {count} samples, first {_text(errors[0])}")
        else:
            _warn(self.name, f"raised {_text(error)} for {count} samples together, and was asked one by one")
        if listener is not None and known is not None:
            listener.hear(samples[next(i for i, v in enumerate(found) if v is known) :])
        lost = _unknown(samples) if known is None else known.detach().new_full((1,), math.nan)
        return torch.cat([v if isinstance(v, Tensor) else lost for v in found])

    def _alone(self, samples: Any, i: int) -> Tensor | Exception:
        """The score of one sample, or the error that the function raised on it."""
        try:
            return _checked(self._asked(samples[i : i + 1]), 1, self.name)
        except Exception as error:
            return error


def _unknown(samples: Any) -> Tensor:
    """NaN as the score of one sample, connected to the graph of the samples if they have one."""
    if isinstance(samples, Tensor) and samples.requires_grad:
        return samples.flatten()[:1] * 0 + math.nan
    return torch.full((1,), math.nan, dtype=torch.float64)


def _raised(name: str, error: Exception) -> RewardError:
    """The RewardError to raise for an error inside a reward."""
    told = RewardError(f"reward {name!r} raised {type(error).__name__}: {error}")
    told.__cause__, told.name = error, name
    return told


class Transformed(Reward):
    """A function of a reward's scores."""

    def __init__(self, reward: Reward, transform: Callable[[Tensor], Tensor], name: str | None = None):
        if not callable(transform):
            raise TypeError(f"transformed(...) takes a function of tensors, not {type(transform).__name__}")
        self.reward, self.transform = reward, transform
        self.name = name or f"{type(transform).__name__}({reward.name})"
        self.differentiable = reward.differentiable
        self.higher_is_better = getattr(transform, "higher_is_better", True)

    def inside(self) -> tuple[Reward, ...]:
        return (self.reward,)

    def score(self, samples: Any) -> Tensor:
        scores = self.reward(samples)
        return torch.where(scores.isnan(), scores, self.transform(scores))


_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


class Combined(Reward):
    """Two rewards, or a reward and a number, in one formula."""

    def __init__(self, symbol: str, left: Reward | float, right: Reward | float):
        self.symbol, self.left, self.right = symbol, left, right
        parts = [p for p in (left, right) if isinstance(p, Reward)]
        gradients = [p.differentiable for p in parts]
        self.differentiable = False if False in gradients else None if None in gradients else True
        self.name = " ".join((_shown(left, symbol), symbol, _shown(right, symbol)))
        flipped = symbol in "*/" and any(not isinstance(p, Reward) and p < 0 for p in (left, right))
        self.higher_is_better = parts[0].higher_is_better != (flipped or (symbol == "-" and parts[0] is right))

    def inside(self) -> tuple[Reward, ...]:
        return tuple(p for p in (self.left, self.right) if isinstance(p, Reward))

    def score(self, samples: Any) -> Tensor:
        left, right = (p(samples) if isinstance(p, Reward) else p for p in (self.left, self.right))
        return _OPERATIONS[self.symbol](left, right)


def _shown(part: Reward | float, symbol: str) -> str:
    if not isinstance(part, Reward):
        return f"{part:g}"
    simple = not isinstance(part, Combined) or (symbol == "+" and part.symbol in "+*")
    return part.name if simple else f"({part.name})"


def _combined(symbol: str, left: Any, right: Any) -> Reward:
    parts = []
    for part in (left, right):
        number = isinstance(part, (int, float)) and not isinstance(part, bool)
        if not number and not isinstance(part, Reward) and not callable(part):
            return NotImplemented
        parts.append(float(part) if number else as_reward(part))  # type: ignore[arg-type]
    return Combined(symbol, *parts)


def as_reward(reward: Reward | Callable[[Any], Any]) -> Reward:
    """The reward itself, or a function wrapped as one.

    >>> as_reward(lambda samples: [len(s) for s in samples])(["CC", "CCO"])
    tensor([2., 3.], dtype=torch.float64)
    """
    if isinstance(reward, Reward):
        return reward
    if not callable(reward):
        raise TypeError(f"a reward is a Reward or a function of samples, not {type(reward).__name__}")
    return Function(reward)


_lent: dict[int, list[Any]] = {}  # by id, for each network in use: the number of users, and its modes as they were
_lending = threading.Lock()


@contextmanager
def evaluating(network: Any) -> Iterator[None]:
    """A context with a network in evaluation mode and constant parameters; restored when no thread uses it any more."""
    if not isinstance(network, nn.Module):
        yield
        return
    with _lending:
        modules = [(module, module.training) for module in network.modules()]
        lent = _lent.setdefault(id(network), [0, modules, [(p, p.requires_grad) for p in network.parameters()]])
        lent[0] += 1
        network.eval().requires_grad_(False)
    try:
        yield
    finally:
        with _lending:
            lent[0] -= 1
            if lent[0] == 0:
                del _lent[id(network)]
                for module, training in lent[1]:
                    module.training = training
                for parameter, wanted in lent[2]:
                    parameter.requires_grad_(wanted)


def needs(module: str, extra: str, why: str) -> Any:
    """Import an optional package on first use, or raise an error that says which extra of guidekit installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{why} needs {module}: pip install 'guidekit[{extra}]' ({error})") from error


def _checked(scores: Any, count: int, name: str) -> Tensor:
    """The scores as a float tensor, or an error that says what was returned instead."""
    if not isinstance(scores, Tensor):
        try:
            if isinstance(scores, (Mapping, Set, str)):
                raise TypeError("it has no order of samples")
            scores = torch.as_tensor(scores if isinstance(scores, Sequence) else list(scores), dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RewardError(
                f"reward {name!r} returned {type(scores).__name__} for {count} samples; "
                "it must return a tensor, array or list with one number for each"
            ) from error
    if tuple(scores.shape) != (count,) or scores.is_complex():
        raise RewardError(
            f"reward {name!r} returned shape {tuple(scores.shape)} and {scores.dtype} for {count} samples; "
            f"it must return one real number for each, shape ({count},)"
        )
    return scores if scores.is_floating_point() else scores.double()
