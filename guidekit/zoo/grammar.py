r"""Which tokens may follow in a row of fragments, for it to be valid: an automaton for SMILES with open bonds.

What may follow inside a fragment is in `syntax`. Between fragments, it is tracked which open bonds lead to the same
connected part. Forbidden is what SMILES readers reject (a ring closed at the atom that opened it or at a neighbour, a
branch that is not closed, aromatic atoms among which no double bonds can be placed, a label open at the end) and what
fragment texts do not contain (a bond between two parts that are already connected, an atom with more bonds than its
valence, a branch at the end of a chain). Every row that is allowed can be completed.

The states of many rows are one tensor of integers (rows, SIZE), so that they are gathered like particles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from . import syntax
from .fragments import FIRST, LABELS, Fragments, split
from .syntax import FAR, Symbol, Syntax

# the columns of a state: that of the fragment, the connected part of which it is one, and the number of fragments
FRAGMENT, HERE, PARTS = range(3)
PART = slice(3, 3 + LABELS)  # the connected part to which each open bond leads, or 0
SIZE = PART.stop

_ORDERS = {"-": 1, "=": 2, "#": 3, ":": 1, "/": 1, "\\": 1}
_VALENCES = {5: 3, 6: 4, 7: 3, 8: 2, 9: 1, 14: 4, 15: 5, 16: 6, 17: 1, 34: 6, 35: 1, 53: 1}


@dataclass(frozen=True)
class Grammar:
    """The automaton. tokens: the symbols of each token; the end has none."""

    tokens: tuple[tuple[str, ...], ...]

    @staticmethod
    def of(fragments: Fragments) -> Grammar:
        return Grammar(tuple(tuple(split(word)) for word in fragments.words()))

    def start(self, rows: int) -> Tensor:
        """The state of empty rows."""
        state = torch.zeros(rows, SIZE, dtype=torch.int32)
        state[:, FRAGMENT] = syntax.NOTHING
        return state

    def after(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The states after one more token. A row that breaks the grammar stays broken, and only the end may follow."""
        dot, labels = (v[tokens] for v in self._tables)
        fine = ~dot | _own(state) | (state[:, FRAGMENT] == syntax.NOTHING)
        fine &= (tokens != 0) | (state[:, PART] == 0).all(1)
        state = state.clone()
        state[:, FRAGMENT] = self._syntax.read(state[:, FRAGMENT], tokens)
        state[:, PARTS] += dot
        state[:, HERE] = torch.where(dot, state[:, PARTS], state[:, HERE])
        for number in labels.unbind(1):
            at = (number >= 0).nonzero()[:, 0]
            if len(at):
                state[at, PART], new = _labelled(state[at, PART], state[at, HERE], number[at])
                fine[at] &= new
        fine &= self.fits(state, FAR)
        state[~fine, FRAGMENT] = syntax.BROKEN
        return state

    def read(self, tokens: Tensor) -> Tensor:
        """The states after whole rows (rows, positions)."""
        state = self.start(len(tokens))
        for column in tokens.unbind(1):
            state = self.after(state, column)
        return state

    def allowed(self, state: Tensor, left: int | None = None) -> Tensor:
        """Which tokens may follow, (rows, tokens).

        With `left`, the number of tokens for which there is room, only those after which the row can be completed by as
        many as it `need`s; this also forbids a few rows that only longer tokens could complete in time.
        """
        rows, words = len(state), len(self.tokens)
        after = self.after(state.repeat_interleave(words, 0), torch.arange(words).repeat(rows))
        fine = self.fits(after, FAR if left is None else left - 1).view(rows, words)
        fine[:, 0] |= ~fine.any(1)
        return fine

    def alive(self, state: Tensor) -> Tensor:
        """Whether rows have kept to the grammar so far."""
        return state[:, FRAGMENT] != syntax.BROKEN

    def fits(self, state: Tensor, left: int, worth: Tensor | None = None) -> Tensor:
        """Whether rows can be completed by so many tokens, or by any number of them where `left` is FAR.

        Those that they `need` are counted only where there might be too few, as that takes a search. `worth` says of
        which rows it is worth one; others do not fit then.
        """
        rough, bound = self._syntax.rough(state[:, FRAGMENT])
        labels = (state[:, PART] > 0).sum(1)
        most = rough + self._each * labels + torch.where(_own(state) | (labels == 0), 0, bound)
        fine = most < FAR
        close = fine & (most > left)
        at = (close if worth is None else close & worth).nonzero()[:, 0]
        fine &= ~close
        if len(at):
            fine[at] = self.need(state[at]) <= left
        return fine

    def need(self, state: Tensor) -> Tensor:
        """A number of tokens, not counting the end, that complete the row; some next token always reduces it.

        Those of one symbol inside the fragment, and a fragment .C%10 for every open bond. A fragment whose part has no
        open bond, while others have some, must be bound to them: to all of them, if its last atom has bonds left; or to
        one of a part with several, or to the only one; or by a new open bond.
        """
        fragment, parts, each = state[:, FRAGMENT], state[:, PART].sort(1).values, self._each
        need, labels = self._syntax.need(fragment, 0).long(), (parts > 0).sum(1)
        at = (~_own(state) & (labels > 0)).nonzero()[:, 0]
        if len(at):
            one, more = (self._syntax.need(fragment[at], mode).long() for mode in (1, 2))
            several = ((parts > 0)[at, 1:] & (parts[at, 1:] == parts[at, :-1])).any(1)
            close = torch.where(several | (labels[at] == 1), one, FAR)
            new = torch.where(labels[at] < LABELS, one, FAR)
            need[at] = torch.minimum(torch.minimum(more, close) - each, new + each)
        return need + each * labels

    @property
    def met(self) -> int:
        """How many states of fragments are kept in the table."""
        return len(self._syntax)

    def forget(self) -> None:
        """Empty the table. States from before mean nothing afterwards."""
        self._syntax.forget()

    @cached_property
    def _syntax(self) -> Syntax:
        ids = {s: i for i, s in enumerate(self._names)}
        return Syntax([_meaning(s) for s in self._names], [tuple(ids[s] for s in t) or (0,) for t in self.tokens])

    @cached_property
    def _each(self) -> int:
        """How many tokens the fragment .C%10 has at most."""
        return 2 if (".", "C") in self.tokens else 3

    @cached_property
    def _names(self) -> list[str]:
        return ["", *sorted({s for token in self.tokens for s in token})]

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """Of each token, whether a dot is its first symbol, and its labels, -1 where there are no more."""
        kinds = [[self._syntax.symbols[i] for i in word] for word in self._syntax.words]
        labels = [[s.number for s in word if s.kind == syntax.LABEL] for word in kinds]
        most = max(1, *map(len, labels))
        padded = torch.tensor([[*own, *[-1] * (most - len(own))] for own in labels])
        return torch.tensor([word[0].kind == syntax.DOT for word in kinds]), padded


def _own(state: Tensor) -> Tensor:
    """Whether the current connected part has an open bond."""
    return ((state[:, PART] > 0) & (state[:, PART] == state[:, [HERE]])).any(1)


def _labelled(parts: Tensor, here: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of the open bonds after closing one, which joins the part at its other end to this one, or opening a
    new one; and whether that is allowed."""
    column, here = number[:, None], here[:, None]
    part = parts.gather(1, column)
    joined = torch.where((part > 0) & (parts == part), here, parts)
    return joined.scatter(1, column, torch.where(part > 0, 0, here)), (part != here)[:, 0]


def _meaning(symbol: str) -> Symbol:
    fixed = {"": syntax.END, "(": syntax.OPEN, ")": syntax.CLOSE, ".": syntax.DOT}
    if symbol in fixed:
        return Symbol(fixed[symbol])
    if symbol in _ORDERS:
        return Symbol(syntax.BOND, _ORDERS[symbol])
    if symbol.isdigit():
        return Symbol(syntax.RING, int(symbol) - 1)
    if symbol[0] == "%":
        return Symbol(syntax.LABEL, int(symbol[1:]) - FIRST)
    return _atom(symbol)


def _atom(symbol: str) -> Symbol:
    """The bonds that an atom can form besides its hydrogens, and how an aromatic one comes to a double bond; then every
    bond counts as one."""
    from rdkit import Chem

    atom = Chem.MolFromSmiles(symbol, sanitize=False).GetAtomWithIdx(0)
    most, hydrogens = _VALENCES.get(atom.GetAtomicNum() - atom.GetFormalCharge(), 0), atom.GetNumExplicitHs()
    if not atom.GetIsAromatic():
        return Symbol(syntax.ATOM, max(0, most - hydrogens))
    free = (3 if most in (3, 4) else 2) - hydrogens
    if most == 4:
        ring = syntax.CARBON if not atom.GetFormalCharge() else syntax.CATION
    else:
        ring = syntax.NITROGEN if free == 3 else syntax.FULL
    return Symbol(syntax.ATOM, free, ring)
