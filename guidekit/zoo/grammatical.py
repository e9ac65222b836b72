"""A network of fragment texts that follows their grammar: the next token is one of those that the grammar allows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .grammar import Grammar

IMPOSSIBLE = -1e4
LEAST, RARE = 1e-5, -25.0  # tokens of less probability are not asked about, and their logits lowered by so much
WORTH = 1e-3  # probability of a token that is worth a search for a completion where there is little room
REMEMBERED, MET = 1 << 16, 1 << 17  # most prefixes, and states of fragments in the grammar's table (some 300 MB)


class Grammatical(nn.Module):
    """Logits of a network for positions unmasked in order, (tokens, t, cond) -> (rows, length, vocab), where at the
    first mask of each row only those tokens are possible after which the row can still be completed. The grammar is
    asked about tokens with a probability of at least 1e-5 (about all, where it allows none of these); those of less are
    all but impossible, so that they are never drawn, and parts that are kept may hold them. Whether there is room for a
    completion is looked at more closely for tokens of at least 1e-3.

    Behind the first mask the grammar says nothing, so at least as many steps as positions are needed for all samples to
    follow it. The states of the grammar after prefixes are remembered, since most prefixes are longer by one token than
    one that was met a step before.
    """

    timed = False

    def __init__(self, net: Any, grammar: Grammar):
        super().__init__()
        self.net, self.grammar = net, grammar
        self._known: dict[bytes, Tensor] = {}

    def forward(self, tokens: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        logits, length = self.net(tokens, t, cond), tokens.shape[1]
        masked = tokens == self.net.vocab
        first = torch.where(masked.any(1), masked.int().argmax(1), length).cpu()
        ended = ((tokens == 0).cumsum(1) > 0).any(1).cpu()
        for k in first[~ended].unique().tolist():
            if k < length:
                row = ((first == k) & ~ended).nonzero()[:, 0]
                states, row = self.states(tokens[row.to(tokens.device), :k].cpu()), row.to(tokens.device)
                p = logits[row, k].float().softmax(-1).cpu()
                allowed, asked = likely(self.grammar, states, p, length - k)
                lowered = torch.where(allowed, 0.0, torch.where(asked, IMPOSSIBLE, RARE))
                logits[row, k] = logits[row, k] + lowered.to(logits)
        return logits

    def states(self, prefixes: Tensor) -> Tensor:
        """The states of the grammar after these rows of tokens, each computed once."""
        names = [row.tobytes() for row in prefixes.contiguous().numpy()]
        if full := self.grammar.met > MET:
            self.grammar.forget()
        if full or len(self._known) > REMEMBERED:
            self._known.clear()
        new = {name: i for i, name in enumerate(names) if name not in self._known}
        if new:
            rows = prefixes[list(new.values())]
            self._known |= zip(new, self._after(rows), strict=True)
        return torch.stack([self._known[name] for name in names])

    def _after(self, rows: Tensor) -> Tensor:
        """One token after states that are known, or the whole rows read from their beginning."""
        before = [row.tobytes() for row in rows[:, :-1].contiguous().numpy()] if rows.shape[1] else []
        if before and all(name in self._known for name in before):
            return self.grammar.after(torch.stack([self._known[name] for name in before]), rows[:, -1])
        return self.grammar.read(rows)


def likely(grammar: Grammar, states: Tensor, p: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Which tokens may follow, and which ones the grammar was asked about, both (rows, tokens): those with a
    probability p that is worth it, and all in rows where it allows none of these."""
    asked = p >= LEAST
    row, token = asked.nonzero().unbind(1)
    after = grammar.after(states[row], token)
    fine = grammar.fits(after, left - 1, p[row, token] >= WORTH)
    allowed = torch.zeros_like(asked).index_put((row, token), fine)
    none = (~allowed.any(1)).nonzero()[:, 0]
    if len(none):
        allowed[none], asked[none] = grammar.allowed(states[none], left), True
    return allowed, asked
