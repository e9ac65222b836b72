"""One population over several processes.

Every process, or rank, of a torch.distributed group holds a share of the particles: numbers [r N/K, (r + 1) N/K) on
rank r of K, with their children. Moves and evaluations concern single rows, so each rank makes its own. Where guides
weight by the whole population or select, what they read of it is sent to all ranks (log-weights, rewards, lineage, and
the memos of those guides: a few bytes per particle), every rank takes the same decision from the same numbers, and only
the particles that change their rank are sent, with everything that belongs to them. Random numbers have addresses, so
the result does not depend on the number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, fields, replace
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rewards.base import Listener

from .. import errors
from . import tree
from .cost import Cost
from .population import Population
from .tree import Tree

_LIGHT = ("log_w", "group", "slot", "parent", "root", "rewards")  # what every rank knows of all particles
_HEAVY = tuple(f.name for f in fields(Population) if f.name not in (*_LIGHT, "memos", "groups", "branch"))

Selection = Callable[[Population], Population]
Made = TypeVar("Made")
Rows = TypeVar("Rows", Tensor, Tensor | None)


class Hearing(Protocol):
    """A `Scorer`, as far as the processes are concerned."""

    @property
    def listeners(self) -> list[Listener]: ...

    def listen(self) -> None: ...


class Alone:
    """A population in one process: every share is the whole."""

    rank, size = 0, 1

    def share(self, rows: int) -> slice:
        """The particles that are here, of so many."""
        return slice(0, rows)

    def over(self, rows: int) -> Alone:
        """The world of so many rows: this one, or every process for itself where there is not one row for each."""
        return self

    @contextmanager
    def together(self, *scorers: Hearing) -> Iterator[None]:
        """Work of this rank. What it raises is raised on all ranks. Where a plain reward has raised on all samples of a
        rank and scores others, and that rank can score one of these too, the samples are lost and nothing else."""
        yield
        for scorer in scorers:
            scorer.listen()

    def agree(self, about: Any) -> None:
        """Raise unless all ranks say the same."""

    def told(self, *values: int) -> list[int]:
        """What rank 0 says."""
        return list(values)

    def first(self, make: Callable[[], Made]) -> Made:
        """What this makes on every rank, on rank 0 before the others."""
        return make()

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite these with those of rank 0."""

    def selected(self, selection: Selection, pop: Population, read: frozenset[int], parents: int) -> Population:
        """The particles that are here after a selection of the whole population, which reads the memos of the guides in
        the places `read`; the whole has the children of so many parents."""
        return selection(pop)

    def whole(self, pop: Population) -> Population:
        """The population with all its particles, on every rank."""
        return pop

    def rows(self, v: Rows) -> Rows:
        """A tensor of all rows, or none, given that of the rows here."""
        return v

    def samples(self, samples: Any) -> Any:
        """All samples, given those here; None where they cannot be sent."""
        return samples

    def cost(self, cost: Cost) -> Cost:
        """What all ranks have spent, in the time of the slowest."""
        return cost


class Shared(Alone):
    """A population over the ranks of a process group."""

    def __init__(self, group: Any, device: torch.device):
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        self.device = device
        self.wire = device if dist.get_backend(group) == "nccl" else torch.device("cpu")

    def share(self, rows: int) -> slice:
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def over(self, rows: int) -> Alone:
        return self if rows >= self.size else Alone()

    @contextmanager
    def together(self, *scorers: Hearing) -> Iterator[None]:
        error, heard = None, list[Listener]()
        try:
            yield
        except Exception as raised:
            error = raised
        else:
            heard = [listener for scorer in scorers for listener in scorer.listeners]
        silent = any(listener.error is not None and not listener.answered for listener in heard)
        found = self._gathered(torch.tensor([2 if error is not None else int(silent)]), [1] * self.size)
        if bool((found == 2).any()):
            self._raise(error)
        elif found.any():
            self._excuse(heard)
        for scorer in scorers:
            scorer.listen()

    def _raise(self, error: Exception | None) -> NoReturn:
        """Raise this rank's own error, or what the first rank that has one says of it."""
        texts = self._texts(["" if error is None else _said(error)])
        if error is not None:
            raise error
        first = next(r for r, text in enumerate(texts) if text)
        kind = getattr(errors, texts[first].split(":")[0], RuntimeError)
        raise kind(f"rank {first} of {self.size} failed: {texts[first]}")

    def _excuse(self, heard: list[Listener]) -> None:
        """Plain rewards have raised on all samples of a rank: these cannot be scored, or this rank cannot score. It is
        asked for a sample that another rank has scored, and if it fails there, too, that is an error on all."""
        told = [json.loads(text) for text in self._texts([json.dumps([_sent(v.scored) for v in heard])])]
        for i, listener in enumerate(heard):
            scored = next((row[i] for row in told if i < len(row) and row[i] is not None), None)
            if listener.error is not None and not listener.answered and scored is not None:
                listener.answered = listener.works(_received(scored, self.device))
        own = next((v.error for v in heard if v.error is not None and not v.answered), None)
        if self._gathered(torch.tensor([own is not None]), [1] * self.size).any():
            self._raise(own)

    def agree(self, about: Any) -> None:
        text = json.dumps(about, sort_keys=True, default=str)
        own = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.int64).copy()
        found = self._gathered(torch.from_numpy(own), [1] * self.size)
        other = (found != found[0]).nonzero()[:, 0].tolist()
        if other:
            raise ValueError(
                f"rank {', '.join(map(str, other))} of {self.size} is about to make another run than rank 0: in one "
                "population over several processes, the model and its weights, n, steps, guides, conditions, rewards, "
                "solver, noise, seed and checkpoint must be the same on all ranks"
            )

    def first(self, make: Callable[[], Made]) -> Made:
        made = None
        for turn in (self.rank == 0, self.rank != 0):
            with self.together():
                made = make() if turn else made
        return made  # type: ignore[return-value]

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        for v in tensors:
            self._call(dist.broadcast, sent := v.to(self.wire).contiguous(), dist.get_global_rank(self.group, 0))
            v.copy_(sent)

    def told(self, *values: int) -> list[int]:
        return self._gathered(torch.tensor([values]), [1] * self.size)[0].tolist()

    def selected(self, selection: Selection, pop: Population, read: frozenset[int], parents: int) -> Population:
        counts = [(share.stop - share.start) * pop.branch for share in self._shares(parents)]
        chosen = _without_states(selection, self._light(pop, counts, read))
        *memos, source = chosen.memos
        here = self.share(len(chosen))
        heavy = (*(getattr(pop, k) for k in _HEAVY), *(None if i in read else m for i, m in enumerate(pop.memos)))
        *states, moved = _split(self._moved(heavy, source, counts), len(_HEAVY))
        own = tree.take(tuple(memos), here)
        kept = tuple(mine if i in read else other for i, (mine, other) in enumerate(zip(own, moved, strict=True)))
        light = {k: getattr(chosen, k)[here] for k in _LIGHT}
        return replace(chosen, **light, **dict(zip(_HEAVY, states, strict=True)), memos=kept)

    def whole(self, pop: Population) -> Population:
        names = (*_LIGHT, *_HEAVY, "memos")
        of = tuple(getattr(pop, k) for k in names)
        return replace(pop, **dict(zip(names, self._all(of, self._counts(len(pop))), strict=True)))

    def rows(self, v: Rows) -> Rows:
        return v if v is None else self._all(v, self._counts(len(v)))  # type: ignore[return-value]

    def samples(self, samples: Any) -> Any:
        if isinstance(samples, Tensor):
            return self.rows(samples)
        if isinstance(samples, np.ndarray):
            return self.rows(torch.from_numpy(samples)).numpy()
        texts = torch.tensor([all(isinstance(s, str) for s in samples)])
        return self._texts(samples) if bool(self._gathered(texts, [1] * self.size).all()) else None

    def cost(self, cost: Cost) -> Cost:
        spent = torch.tensor([astuple(cost)], dtype=torch.float64)
        found = self._gathered(spent, [1] * self.size)
        return Cost(*found[:, :-1].sum(0).long().tolist(), seconds=float(found[:, -1].max()))

    # what is sent ------------------------------------------------------------------------------------------------

    def _light(self, pop: Population, counts: Sequence[int], read: frozenset[int]) -> Population:
        """The whole population without its states, whose last memos are the numbers of its particles."""
        memos = tuple(memo if i in read else None for i, memo in enumerate(pop.memos))
        *light, memos = self._all((*(getattr(pop, k) for k in _LIGHT), memos), counts)
        rows = sum(counts)
        absent = {k: tree.map(partial(_absent, rows), getattr(pop, k)) for k in _HEAVY}
        number = torch.arange(rows, device=pop.x.device)
        return replace(pop, **dict(zip(_LIGHT, light, strict=True)), **absent, memos=(*memos, number))

    def _moved(self, of: Tree, source: Tensor, counts: Sequence[int]) -> Tree:
        """The rows `source` (numbers in the whole) of a tree whose rows are spread by `counts`, spread anew."""
        source, ends = source.cpu(), torch.tensor(counts).cumsum(0)
        if counts == [share.stop - share.start for share in self._shares(len(source))] and _in_order(source):
            return of
        first = int(ends[self.rank]) - counts[self.rank]
        owner = torch.bucketize(source, ends, right=True)
        shares = self._shares(len(source))
        home = torch.cat([torch.full((share.stop - share.start,), r) for r, share in enumerate(shares)])
        from_, stays = owner[mine := shares[self.rank]], (owner == home)[mine]
        kept = tree.take(of, torch.where(stays, source[mine] - first, 0).to(self.device))
        if bool((owner == home).all()):
            return kept  # nobody leaves
        leaves = (owner == self.rank) & (home != self.rank)
        gone, got = (torch.bincount(v, minlength=self.size).tolist() for v in (home[leaves], from_[~stays]))
        tensors, new = dict[str, Tensor](), dict[str, Tensor]()
        tree.flatten(tree.take(of, (source[leaves] - first).to(self.device)), "", tensors)
        form = tree.flatten(kept, "", new)
        sent = _packed(tensors).to(self.wire)
        found = sent.new_empty(sum(got), sent.shape[1])
        self._call(dist.all_to_all_single, found, sent, got, gone)
        place = (~stays).nonzero()[:, 0][from_[~stays].argsort(stable=True)].to(self.device)
        came = _unpacked(found.to(self.device), new)
        return tree.unflatten(form, {name: v.index_copy_(0, place, came[name]) for name, v in new.items()})

    def _all(self, of: Tree, counts: Sequence[int]) -> Tree:
        """A tree of all rows, given that of the rows here."""
        tensors: dict[str, Tensor] = {}
        form = tree.flatten(of, "", tensors)
        found = self._gathered(_packed(tensors), counts).to(self.device)
        return tree.unflatten(form, _unpacked(found, tensors))

    def _gathered(self, v: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all ranks, which have so many each."""
        most = max(counts)
        padded = v.new_zeros(most, *v.shape[1:])
        padded[: len(v)] = v
        parts = [torch.empty_like(padded, device=self.wire) for _ in counts]
        self._call(dist.all_gather, parts, padded.to(self.wire))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def _texts(self, texts: Sequence[str]) -> list[str]:
        """The texts of all ranks."""
        own = torch.frombuffer(bytearray(json.dumps(list(texts)).encode()), dtype=torch.uint8)
        sizes = self._gathered(torch.tensor([len(own)]), [1] * self.size).tolist()
        data = self._gathered(own, sizes).split(sizes)
        return [text for part in data for text in json.loads(part.cpu().numpy().tobytes())]

    def _shares(self, rows: int) -> list[slice]:
        return [slice(rows * r // self.size, rows * (r + 1) // self.size) for r in range(self.size)]

    def _counts(self, here: int) -> list[int]:
        """How many rows each rank has, where `here` are on this one."""
        return self._gathered(torch.tensor([here]), [1] * self.size).tolist()

    def _call(self, collective: Callable[..., Any], *args: Any) -> None:
        try:
            collective(*args, group=self.group)
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self.rank} of {self.size} has lost another rank, which failed or was killed: its own message "
                "says why. With checkpoint=, the same call continues from the last saved step, on any number of ranks"
            ) from error


def world_of(given: Any, device: torch.device) -> Alone:
    """The processes of a run: this one for None; for "auto" all of torch.distributed's, where it is initialised."""
    if given is None or isinstance(given, Alone):
        return given or Alone()
    if isinstance(given, str) and given == "auto":
        ready = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return Shared(dist.group.WORLD, device) if ready else Alone()
    if dist.is_available() and isinstance(given, dist.ProcessGroup):
        return Shared(given, device) if dist.get_world_size(given) > 1 else Alone()
    if dist.is_available() and given is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("world= is a process group that this process is not in: only its members make this call")
    raise TypeError(f'world={given!r}: None (this process), "auto" or a process group of torch.distributed is needed')


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _sent(sample: Any) -> Any:
    """One sample, in a batch, as JSON has it; None where that is not known."""
    if isinstance(sample, Tensor):
        return {"dtype": str(sample.dtype).removeprefix("torch."), "values": sample.tolist()}
    return sample if isinstance(sample, list) and all(isinstance(s, str) for s in sample) else None


def _received(sent: Any, device: torch.device) -> Any:
    """The sample that was sent."""
    if isinstance(sent, list):
        return sent
    return torch.tensor(sent["values"], dtype=getattr(torch, sent["dtype"]), device=device)


def _without_states(selection: Selection, light: Population) -> Population:
    """The selection, which may read what is known of all particles. What it makes of the absent states has no data."""
    error = None
    try:
        chosen = selection(light)
        if not any(v.is_meta for v in (chosen.log_w, chosen.slot, chosen.memos[-1])):
            return chosen
    except (NotImplementedError, RuntimeError) as raised:
        if "meta" not in str(raised):
            raise
        error = raised
    raise ValueError(
        "a guide reads states or predictions in its selection, and those of other processes are not here: have its "
        "log_weight put what it needs into its memo, or leave world=None"
    ) from error


def _split(values: Sequence[Any], count: int) -> tuple[Any, ...]:
    """The first values one by one, and the rest as a tuple."""
    return (*values[:count], tuple(values[count:]))


def _absent(rows: int, v: Tensor) -> Tensor:
    """What stands for the rows of all ranks where they are not sent: a tensor without data."""
    return v.new_empty((rows, *v.shape[1:]), device="meta")


def _in_order(source: Tensor) -> bool:
    """Whether every particle stays where it is."""
    return torch.equal(source, torch.arange(len(source)))


def _packed(tensors: dict[str, Tensor]) -> Tensor:
    """All of them as bytes, (rows, bytes of a row)."""
    rows = [v.contiguous().reshape(len(v), math.prod(v.shape[1:])) for v in tensors.values()]
    return torch.cat([v.view(torch.uint8) for v in rows], 1)


def _unpacked(data: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that were packed, with another number of rows."""
    sizes = [v[:1].numel() * v.element_size() if len(v) else 0 for v in like.values()]
    parts = data.split(sizes, 1)
    return {
        name: part.contiguous().view(v.dtype).reshape(len(data), *v.shape[1:])
        for (name, v), part in zip(like.items(), parts, strict=True)
    }
