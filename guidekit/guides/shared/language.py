r"""Languages of token sequences: what an automaton accepts, for constraints that always hold.

An automaton reads x_1 ... x_L from the left, begins in state 0, goes from state c at position i by the token v to
next[i, c, v], and accepts if it ends in one of the states `ends`. Tokens outside allowed[i] are never taken. Languages
are intersected by `&`; the states of an intersection are pairs.

With independent tokens of probabilities f_i(v), the probability that the rest of a sequence is accepted follows from

    beta_L(c) = [c in ends],        beta_{i-1}(c) = sum_v f_i(v) [v in allowed_i] beta_i(next[i, c, v]),

and A = beta_0(0) is that of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import product

import torch
from torch import Tensor

MOST = 4096  # states of an automaton
Word = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Language:
    """The sequences that an automaton accepts.

    allowed   the tokens that each position may have, bool (1 or groups, L, V)
    next      the states after a token, (L, states, V)
    ends      the accepted states, bool (states,)
    """

    allowed: Tensor
    next: Tensor
    ends: Tensor

    def __and__(self, other: Language) -> Language:
        """What both accept."""
        return _product(self, other)

    @property
    def length(self) -> int:
        return len(self.next)

    @property
    def free(self) -> bool:
        """Whether positions do not depend on each other."""
        return len(self.ends) == 1

    @cached_property
    def possible(self) -> bool:
        """Whether it accepts any sequence, in every group."""
        return bool((self.backward(self.allowed.double())[0] > -torch.inf).all())

    @cached_property
    def kinds(self) -> list[tuple[Tensor, Tensor]]:
        """Tokens that lead from every state to the same one are of a kind: of each position the states after a token of
        each kind, (kinds, states), and the kind of each token, (V,)."""
        return [after.T.unique(dim=0, return_inverse=True) for after in self.next]

    def backward(self, f: Tensor) -> tuple[Tensor, list[Tensor]]:
        """log A of each row, (rows,), and beta_0 ... beta_L, (rows, states), each up to a factor; f (rows, L, V) is
        zero where a token is not allowed."""
        if self.free:
            return f.sum(-1).log().sum(-1), [f.new_ones(len(f), 1)] * (self.length + 1)
        # states come first, so that those that follow are whole rows of memory
        f, total = f.permute(1, 2, 0).contiguous(), f.new_zeros(len(f))
        beta = self.ends.to(f)[:, None].expand(-1, len(total))
        betas = [beta.T]
        for i in reversed(range(self.length)):
            after, kind = self.kinds[i]
            sums = f.new_zeros(len(after), f.shape[-1]).index_add_(0, kind, f[i])
            beta = reduce(Tensor.add_, (beta[states].mul_(p) for states, p in zip(after, sums, strict=True)))
            top = beta.amax(0)
            beta, total = beta / top, total + top.log()
            betas.append(beta.T)
        return total + betas[-1][:, 0].log(), betas[::-1]


@lru_cache(maxsize=32)  # every step of a run asks for the same
def _product(one: Language, other: Language) -> Language:
    size = len(other.ends)
    if len(one.ends) * size > MOST:
        raise ValueError(
            f"constraints of {len(one.ends)} times {size} states together; at most {MOST} are served. Take fewer "
            "or shorter sites, or a smaller number of edits"
        )
    pairs = one.next[:, :, None] * size + other.next[:, None]
    ends = one.ends[:, None] & other.ends
    return Language(one.allowed & other.allowed, pairs.flatten(1, 2), ends.flatten())


def letters(allowed: Tensor) -> Language:
    """A set of tokens for each position, bool (L, V) or (groups, L, V)."""
    allowed = allowed if allowed.dim() == 3 else allowed[None]
    _, L, V = allowed.shape
    return Language(allowed, allowed.new_zeros(L, 1, V, dtype=torch.long), allowed.new_ones(1))


def avoiding(words: Iterable[Word], L: int, V: int, device: torch.device) -> Language:
    """No word occurs anywhere."""
    table, hit = _searched(words, V)
    return _everywhere(table, [c != hit for c in range(len(table))], L, device)


def containing(words: Iterable[Word], L: int, V: int, device: torch.device) -> Language:
    """At least one of the words occurs."""
    table, hit = _searched(words, V)
    return _everywhere(table, [c == hit for c in range(len(table))], L, device)


def near(reference: Tensor, edits: int, V: int) -> Language:
    """At most so many positions differ from the reference, (L,)."""
    differs = reference[:, None] != torch.arange(V, device=reference.device)  # (L, V)
    count = torch.arange(edits + 2, device=reference.device)  # the last state is: too many
    after = (count[:, None] + differs[:, None]).clamp(max=edits + 1)
    return Language(torch.ones_like(differs)[None], after, count <= edits)


def both(languages: Sequence[Language]) -> Language:
    """What all of them accept."""
    return reduce(Language.__and__, languages)


def spelled(site: Sequence[Collection[int]]) -> list[Word]:
    """All words with one token of each set."""
    return list(product(*[sorted(tokens) for tokens in site]))


def _everywhere(table: list[list[int]], ends: list[bool], L: int, device: torch.device) -> Language:
    """An automaton that is the same at every position."""
    after = torch.tensor(table, device=device)
    allowed = torch.ones(1, L, after.shape[1], dtype=torch.bool, device=device)
    return Language(allowed, after.expand(L, -1, -1), torch.tensor(ends, device=device))


def _searched(words: Iterable[Word], V: int) -> tuple[list[list[int]], int]:
    """The automaton of Aho and Corasick (1975), whose states are the prefixes of the words, and its state "found",
    which it never leaves."""
    known = set(words)
    prefixes = {word[:k] for word in known for k in range(len(word))}
    states = {prefix: i for i, prefix in enumerate(sorted(prefixes, key=lambda p: (len(p), p)))}
    found = len(states)

    def after(prefix: Word, v: int) -> int:
        ends = [(*prefix, v)[k:] for k in range(len(prefix) + 2)]  # from the whole to the empty suffix
        return found if any(end in known for end in ends) else next(states[end] for end in ends if end in states)

    return [[after(prefix, v) for v in range(V)] for prefix in states] + [[found] * V], found
