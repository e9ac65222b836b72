r"""A prefix cache: networks that go on with a text from what they have kept of its beginning.

A causal network computes keys and values for each token from this token and those before it. So the states of a text
are those of its beginning and one more, and the next token needs one position of the network and not all of them. A
network offers this by two methods (`Continues`); `Prefixes` makes of it a network for `MaskedModel(ordered=True,
alone=True)`, which is asked about the first mask of each row alone. Of what follows it nothing is said: it is taken to
be the end, where texts have one, so that look-aheads see the text as it stands with one more token.

States are kept by content and not by row. Beginnings of texts form a tree, in which a node is a token that follows
another node, or a condition. A row finds its nodes by the tokens that it holds, wherever selections have put it, and
rows that begin alike share them. So nothing is gathered with the particles, and no row can meet states of another text.
What is not found is computed again: the limit of memory costs time, and changes no result.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import random
from ..errors import NetworkError
from .evaluations import bits, rows_of

NONE = -1  # no node, no token
SURE = -1e4  # the logit of tokens that cannot be


class Continues(Protocol):
    """What a network offers that goes on with texts. `vocab` is its number of tokens, and the id of the mask."""

    vocab: int

    def begin(self, cond: Any, rows: int) -> Tensor:
        """What stands before the first token of each text, (rows, any number): a start, a prompt; -1 where there is
        nothing. Ids may be such as texts have not."""
        ...

    def extend(self, tokens: Tensor, kept: Tensor | None, cond: Any) -> tuple[Tensor, Tensor]:
        r"""Logits (rows, vocab) of the token that follows `tokens` (rows, k), and their states (rows, k, \*size).

        `kept` are the states of the tokens before them, (rows, m, \*size), None where there are none."""
        ...


class Prefixes(nn.Module):
    """A network that continues texts, as one of `MaskedModel(ordered=True, alone=True)`: (tokens, t, cond) -> logits.

    net     a module with the methods of `Continues`
    end     the token that ends texts, as the model has it
    limit   bytes of states that are kept; a run has at most one state for each token that it draws. What is full is
            emptied, and what is still needed is computed again

    Changed weights are noticed, and nothing is kept of those before.
    """

    def __init__(self, net: Any, end: int | None = None, limit: int = 1 << 30):
        super().__init__()
        self.net, self.vocab, self.end, self.limit = net, net.vocab, end, limit
        self.tree, self._mark, self._lock = Tree(limit), None, Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Copies keep nothing."""
        return {k: v for k, v in vars(self).items() if k not in ("tree", "_mark", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.tree, self._mark, self._lock = Tree(self.limit), None, Lock()

    def forget(self) -> None:
        """Keep nothing of what was met so far."""
        self.tree = Tree(self.limit)

    @property
    def bytes(self) -> int:
        """The memory of what is kept."""
        return self.tree.bytes

    @torch.no_grad()
    def verify(self, tokens: Tensor, cond: Any = None, tolerance: float = 1e-3) -> None:
        """Raise NetworkError if what is kept gives other logits than the whole text does: a check of a network of your
        own, which reads these texts (rows, length) one token after the other, as a run does.

        cond        encoded conditions, one for each row, or None
        tolerance   by how much logits may differ, which are rounded in another way
        """
        t = torch.ones(len(tokens), device=tokens.device)
        for n in range(tokens.shape[1]):
            x = tokens.clone()
            x[:, n:] = self.vocab
            found, whole = self(x, t, cond), Prefixes(self.net, self.end)(x, t, cond)
            off = (found - whole).abs().flatten(1).amax(1)
            bad = (~(off <= tolerance)).nonzero()[:, 0].tolist()
            if bad:
                raise NetworkError(
                    f"kept states do not belong to their text: before token {n} of row {', '.join(map(str, bad[:8]))} "
                    f"(counted from 0) the logits are off by {float(off[bad].max()):.2g}. `extend` must return the "
                    "states of the tokens that it was given, and logits that depend on these and on `kept` alone"
                )

    def forward(self, tokens: Tensor, t: Tensor, cond: Any) -> Tensor:
        with self._lock:
            self._check()
            return self._logits(tokens, cond)

    def _logits(self, tokens: Tensor, cond: Any) -> Tensor:
        masked = tokens == self.vocab
        hidden, first = masked.cumsum(1) > 0, masked.int().argmax(1)
        root, text = self.tree.roots(cond, len(tokens), tokens.device), self._text(tokens, hidden, cond)
        size, names = (text != NONE).sum(1), self.tree.names(root, text)
        path = self.tree.find(root, text, names)
        known = torch.minimum((path != NONE).sum(1), size - 1).clamp(min=0)
        ended = torch.zeros_like(masked) if self.end is None else (tokens == self.end) & ~hidden
        open, found = masked.any(1) & ~ended.any(1), []
        for m, n in torch.stack([known, size], 1)[open].unique(dim=0).tolist():
            row = (open & (known == m) & (size == n)).nonzero()[:, 0]
            of = root[row], text[row], names[row], path[row, :m], rows_of(cond, row)
            found.append((row, self._extended(*of, n)))
        out = self._told(tokens, hidden, found[0][1].dtype if found else torch.float32)
        for row, logits in found:
            out[row, first[row]] = logits
        return out

    def _text(self, tokens: Tensor, hidden: Tensor, cond: Any) -> Tensor:
        """What is known of each row, from the left and without gaps, then -1."""
        whole = torch.cat([self.net.begin(cond, len(tokens)), tokens.masked_fill(hidden, NONE)], 1)
        return whole.gather(1, (whole == NONE).int().argsort(dim=1, stable=True))

    def _extended(self, root: Tensor, text: Tensor, names: Tensor, path: Tensor, cond: Any, n: int) -> Tensor:
        """The logits that follow the first n tokens of rows, of which those on the path are kept."""
        m = path.shape[1]
        logits, states = self.net.extend(text[:, m:n], self.tree.of(path), cond)
        node, found = path[:, -1] if m else root, self.tree.find(root, text, names)
        for j in range(m, n):
            node = self.tree.add(node, text[:, j], names[:, j], states[:, j - m], found[:, j])
        self.tree.settle()
        return logits

    def _told(self, tokens: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """Logits of the tokens that are there, and of what may follow: the end, or anything."""
        sure = tokens.masked_fill(hidden, self.end or 0)[..., None]
        out = torch.full((*tokens.shape, self.vocab), SURE, dtype=dtype, device=tokens.device).scatter_(-1, sure, 0.0)
        return out if self.end is not None else out.masked_fill_(hidden[..., None], 0.0)

    def _check(self) -> None:
        """Forget what other weights have computed, and all where there is no room."""
        held = [*self.net.parameters(), *self.net.buffers()]
        mark = (torch.is_inference_mode_enabled(), self.net.training)
        mark += tuple((v.data_ptr(), 0 if v.is_inference() else v._version) for v in held)
        if mark != self._mark or self.tree.full:
            self.forget()
        self._mark = mark


class Tree:
    """States of beginnings of texts, in at most `limit` bytes. A node has the node before it (a number below -1 for its
    condition, if it is a first token), its token and its states, and is found by a name."""

    def __init__(self, limit: int):
        self.limit, self.count, self.full = limit, 0, False
        self.states: Tensor | None = None  # (capacity, *size)
        self.columns = torch.empty(3, 0, dtype=torch.long)  # name, node before, token
        self.conds: dict[bytes, int] = {}

    @property
    def bytes(self) -> int:
        return 0 if self.states is None else self.states.numel() * self.states.element_size()

    def roots(self, cond: Any, rows: int, device: torch.device) -> Tensor:
        """A number for the condition of each row, below -1: the same for equal ones, and for no others."""
        if cond is None:
            return torch.full((rows,), NONE - 1, device=device)
        parts = cond.values() if isinstance(cond, dict) else (cond,)
        kinds, place = torch.cat([bits(v) for v in parts], 1).unique(dim=0, return_inverse=True)
        known = [self.conds.setdefault(row.tobytes(), len(self.conds)) for row in kinds.cpu().numpy()]
        return (NONE - 2 - torch.tensor(known, device=device))[place]

    def names(self, root: Tensor, text: Tensor) -> Tensor:
        """A name for each beginning of each row, (rows, width): equal ones have one, and others hardly ever."""
        place = random.fold(random.key(0, text.device), torch.arange(text.shape[1], device=text.device))
        return random.fold(random.fold(place, text).cumsum(1), root[:, None])

    def find(self, root: Tensor, text: Tensor, names: Tensor) -> Tensor:
        """The nodes of each row, (rows, width), -1 from the first one on that is not kept. A name alone finds nothing:
        the token must be the row's, and the node before it the one that was found there."""
        if not self.count:
            return torch.full_like(text, NONE)
        node = self.order[torch.searchsorted(self.sorted, names).clamp(max=self.count - 1)]
        name, before, token = self.columns[:, node]
        there = torch.cat([root[:, None], node[:, :-1]], 1)
        same = (name == names) & (token == text) & (before == there)
        return torch.where(same.cumprod(1).bool(), node, NONE)

    def of(self, path: Tensor) -> Tensor | None:
        """The states of nodes (rows, m)."""
        return self.states[path] if self.states is not None and path.shape[1] else None

    def add(self, before: Tensor, token: Tensor, name: Tensor, states: Tensor, found: Tensor) -> Tensor:
        """The nodes of tokens that follow nodes, one a row: those that were `found`, or new ones; -1 where there is no
        room, or two share a name."""
        new = ((found == NONE) & (before != NONE)).nonzero()[:, 0]
        if not len(new):
            return found
        kinds, place = name[new].unique(return_inverse=True)
        rank = torch.arange(len(new), device=new.device)
        first = new[torch.full_like(kinds, len(new)).scatter_reduce(0, place, rank, "amin")]
        if not self._room(len(kinds), states):
            return found
        ids = torch.arange(self.count, self.count + len(kinds), device=new.device)
        self.states[ids] = states[first].detach()  # type: ignore[index]
        self.columns[:, ids] = torch.stack([kinds, before[first], token[first]])
        self.count += len(kinds)
        own = (before[new] == before[first][place]) & (token[new] == token[first][place])
        return found.index_put((new,), torch.where(own, ids[place], NONE))

    def settle(self) -> None:
        """Make what was added findable."""
        self.sorted, self.order = self.columns[0, : self.count].sort()

    def _room(self, more: int, states: Tensor) -> bool:
        """Set memory aside for more nodes, if the limit allows it."""
        size = states[0].numel() * states.element_size()
        most, need = self.limit // size, self.count + more
        self.full = self.full or need > most
        held = self.columns.shape[1]
        if need > held and not self.full:
            wide = min(max(need, 2 * held, 256), most)
            old, columns = self.states, self.columns.to(states.device)
            self.states = states.new_empty(wide, *states.shape[1:])
            self.columns = columns.new_empty(3, wide)
            self.columns[:, :held] = columns
            if old is not None:
                self.states[:held] = old
        return not self.full
