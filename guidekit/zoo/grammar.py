r"""Which tokens may follow in a row of fragments, for it to be valid: an automaton for SMILES with open bonds.

It tracks the open branches and rings, the bonds that each atom has left, and which open bonds lead to the same
connected part. It forbids what SMILES readers reject (a ring closed at the atom that opened it or at a neighbour, a
branch that is not closed, a label open at the end) and what fragment texts do not contain (a bond between two parts
that are already connected, an atom with more bonds than its valence, a branch at the end of a chain). Every row that it
allows can be completed. It does not know which rings can be aromatic.

The states of many rows are one tensor of small integers (rows, SIZE), so that they are gathered like particles. The
symbols of all tokens form a prefix tree, along which the allowed tokens are found for all rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .fragments import FIRST, LABELS, Fragments, split

END, ATOM, BOND, OPEN, CLOSE, RING, LABEL, DOT = range(8)  # kinds of symbols
# the last symbol; bonds are told apart after an atom, at the beginning of a branch, and after a branch
BEGIN, START, AFTER_ATOM, AFTER_BOND, AFTER_OPEN, AFTER_CLOSE, BRANCH_BOND, CHAIN_BOND, ENDED, BROKEN = range(10)
DEPTH, RINGS, MOST = 8, 9, 100  # limits: of branches and of rings open at once; of atoms in a fragment and fragments

# the columns of a state
LAST, ORDER, ATOMS, CURRENT, FREE, AROMATIC, NESTED, HERE, PARTS = range(9)
NEAR = slice(9, 13)  # atoms bound to the current one: the one before it, and those with which it closed rings
STACK, STACK_FREE, STACK_AROMATIC = (slice(13 + i * DEPTH, 13 + (i + 1) * DEPTH) for i in range(3))
OPENER = slice(13 + 3 * DEPTH, 13 + 3 * DEPTH + RINGS)  # the atom that opened each ring, or -1
PART = slice(OPENER.stop, OPENER.stop + LABELS)  # the connected part to which each open bond leads, or 0
SIZE = PART.stop

_UNANSWERED = (AFTER_BOND, AFTER_OPEN, AFTER_CLOSE, BRANCH_BOND, CHAIN_BOND)  # an atom must follow
_ORDERS = {"-": 1, "=": 2, "#": 3, ":": 1, "/": 1, "\\": 1}
_VALENCES = {5: 3, 6: 4, 7: 3, 8: 2, 9: 1, 14: 4, 15: 5, 16: 6, 17: 1, 34: 6, 35: 1, 53: 1}


@dataclass(frozen=True)
class Grammar:
    """The automaton. tokens: the symbols of each token; the end has none."""

    tokens: tuple[tuple[str, ...], ...]

    @staticmethod
    def of(fragments: Fragments) -> Grammar:
        return Grammar(tuple(tuple(split(word)) for word in fragments.words()))

    def start(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """The state of empty rows."""
        state = torch.zeros(rows, SIZE, dtype=torch.int8, device=device)
        state[:, OPENER] = -1
        return state

    def after(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The states after one more token. A row that breaks the grammar stays broken, and only the end may follow."""
        symbols, lengths = (v.to(state.device) for v in self._tables)
        state = state.clone()
        for j in range(symbols.shape[1]):
            at = (j < lengths[tokens]).nonzero()[:, 0]
            new, fine = self._step(state[at], symbols[tokens[at], j])
            new[:, LAST] = torch.where(fine, new[:, LAST], BROKEN)
            state[at] = new
        return state

    def read(self, tokens: Tensor) -> Tensor:
        """The states after whole rows (rows, positions)."""
        state = self.start(len(tokens), tokens.device)
        for column in tokens.unbind(1):
            state = self.after(state, column)
        return state

    def allowed(self, state: Tensor, left: int | None = None) -> Tensor:
        """Which tokens may follow, (rows, tokens).

        With `left`, the number of tokens for which there is room, only those after which the row can still be completed
        by tokens of one symbol; this also forbids a few rows that only longer tokens could complete in time.
        """
        nodes, first, count, own = (v.to(state.device) for v in self._tree)
        fine = torch.zeros(len(state), len(nodes), dtype=torch.bool, device=state.device)
        row = torch.arange(len(state), device=state.device)
        at = torch.zeros_like(row)
        while len(row):
            many = count[at]
            parent = torch.arange(len(row), device=row.device).repeat_interleave(many)
            offset = torch.arange(len(parent), device=row.device) - (many.cumsum(0) - many)[parent]
            at = first[at][parent] + offset
            state, ok = self._step(state[parent], nodes[at])
            state, row, at = state[ok], row[parent][ok], at[ok]
            fine[row, at] = True if left is None else self.need(state) <= left - 1
        fine = fine[:, own]
        fine[:, 0] |= ~fine.any(1)
        return fine

    def alive(self, state: Tensor) -> Tensor:
        """Whether rows have kept to the grammar so far."""
        return state[:, LAST] != BROKEN

    def need(self, state: Tensor) -> Tensor:
        """A number of symbols, not counting the end, that complete the row; some next symbol always reduces it.

        It counts carbons: one if an atom must follow, one after every branch, one for every ring (and one more if the
        last atom opened it), and a fragment .C%10 for every open bond.
        """
        rings, labels = state[:, OPENER] >= 0, state[:, PART] > 0
        nested, many, last = state[:, NESTED].long(), rings.sum(1), _is(state, AFTER_ATOM) & (state[:, FREE] >= 2)
        own = (state[:, OPENER] == state[:, [CURRENT]]) & rings
        bound = (state[:, OPENER, None] == state[:, None, NEAR]).any(2) | own | (state[:, [NEAR.stop - 1]] >= 0)
        close = last & (rings & ~bound).any(1)
        alone = last & (nested == 0) & (many == 0) & (labels & (state[:, PART] != state[:, [HERE]])).any(1)
        join = (_is(state, START) & labels.any(1)) | alone
        far = (many > 0) & (own.any(1) | (nested > 0))
        return _is(state, START, *_UNANSWERED) + 2 * (nested + many) + far - 1 * close + 3 * labels.sum(1) - 2 * join

    # one symbol -------------------------------------------------------------------------------------------------------

    def _step(self, state: Tensor, symbol: Tensor) -> tuple[Tensor, Tensor]:
        """The states after one symbol per row, and whether it is allowed; `state` is overwritten."""
        kind, argument, aromatic = (v.to(state.device)[symbol] for v in self._symbols)
        fine = torch.zeros(len(state), dtype=torch.bool, device=state.device)
        for k, move in enumerate((_end, _atom, _bond, _open, _close, _ring, _label, _dot)):
            at = (kind == k).nonzero()[:, 0]
            if len(at):
                part = state[at]
                fine[at] = move(part, argument[at], aromatic[at]) & _lives(part)
                state[at] = part
        return state, fine

    @cached_property
    def _names(self) -> list[str]:
        return ["", *sorted({s for token in self.tokens for s in token})]

    @cached_property
    def _symbols(self) -> tuple[Tensor, Tensor, Tensor]:
        """For each symbol its kind, its valence, order or number, and whether it is an aromatic atom."""
        each = [_meaning(s) for s in self._names]
        kind, argument, aromatic = (torch.tensor(v) for v in zip(*each, strict=True))
        return kind, argument.to(torch.int8), aromatic.to(torch.int8)

    @cached_property
    def _rows(self) -> list[tuple[int, ...]]:
        ids = {s: i for i, s in enumerate(self._names)}
        return [tuple(ids[s] for s in token) or (0,) for token in self.tokens]

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """The symbols of each token, and their number."""
        longest = max(map(len, self._rows))
        symbols = torch.tensor([[*row, *[0] * (longest - len(row))] for row in self._rows])
        return symbols, torch.tensor([len(row) for row in self._rows])

    @cached_property
    def _tree(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The prefix tree, level by level: symbol, first child and number of children; and the nodes of the tokens."""
        prefixes = {row[:i] for row in self._rows for i in range(1, len(row) + 1)}
        order = [(), *sorted(prefixes, key=lambda p: (len(p), p))]
        place = {p: i for i, p in enumerate(order)}
        children: list[list[int]] = [[] for _ in order]
        for p in order[1:]:
            children[place[p[:-1]]].append(place[p])
        columns = (
            [p[-1] if p else 0 for p in order], [c[0] if c else 0 for c in children], [len(c) for c in children],
            [place[row] for row in self._rows],
        )  # fmt: skip
        nodes, first, count, own = (torch.tensor(c) for c in columns)
        return nodes, first, count, own


def _meaning(symbol: str) -> tuple[int, int, bool]:
    fixed = {"": END, "(": OPEN, ")": CLOSE, ".": DOT}
    if symbol in fixed:
        return fixed[symbol], 0, False
    if symbol in _ORDERS:
        return BOND, _ORDERS[symbol], False
    if symbol.isdigit():
        return RING, int(symbol) - 1, False
    if symbol[0] == "%":
        return LABEL, int(symbol[1:]) - FIRST, False
    return ATOM, *_valence(symbol)


def _valence(symbol: str) -> tuple[int, bool]:
    """Bonds that an atom can form besides its hydrogens, and whether it is aromatic; then every bond counts as one."""
    from rdkit import Chem

    atom = Chem.MolFromSmiles(symbol, sanitize=False).GetAtomWithIdx(0)
    most = _VALENCES.get(atom.GetAtomicNum() - atom.GetFormalCharge(), 0)
    if not atom.GetIsAromatic():
        return max(0, most - atom.GetNumExplicitHs()), False
    return (3 if most in (3, 4) else 2) - atom.GetNumExplicitHs(), True


# how a symbol of each kind changes states, and whether it is allowed --------------------------------------------------


def _lives(s: Tensor) -> Tensor:
    """Whether the row can be completed: if the last atom of a chain has no bonds left, nothing may be left open."""
    stuck = (s[:, LAST] == AFTER_ATOM) & (s[:, NESTED] == 0) & (s[:, FREE] == 0)
    return ~stuck | (s[:, OPENER] < 0).all(1) & (_own(s) | (s[:, PART] == 0).all(1))


def _own(s: Tensor) -> Tensor:
    """Whether the current connected part has an open bond."""
    return ((s[:, PART] > 0) & (s[:, PART] == s[:, [HERE]])).any(1)


def _is(s: Tensor, *last: int) -> Tensor:
    return torch.isin(s[:, LAST], s.new_tensor(last))


def _cost(order: Tensor, aromatic: Tensor) -> Tensor:
    return torch.where(aromatic > 0, 1, order.clamp(min=1)).to(torch.int8)


def _top(s: Tensor) -> Tensor:
    """The column of the innermost branch."""
    return (s[:, NESTED].long() - 1).clamp(min=0)[:, None]


def _end(s: Tensor, argument: Tensor, aromatic: Tensor) -> Tensor:
    whole = (s[:, NESTED] == 0) & (s[:, OPENER] < 0).all(1) & (s[:, PART] == 0).all(1)
    fine = _is(s, AFTER_ATOM) & whole | _is(s, ENDED)
    s[:, LAST] = ENDED
    return fine


def _dot(s: Tensor, argument: Tensor, aromatic: Tensor) -> Tensor:
    closed = (s[:, NESTED] == 0) & (s[:, OPENER] < 0).all(1) & (s[:, PARTS] < MOST)
    fine = _is(s, BEGIN) | _is(s, AFTER_ATOM) & closed & _own(s)
    s[:, [ATOMS, ORDER, FREE]], s[:, LAST] = 0, START
    s[:, PARTS] += 1
    s[:, HERE] = s[:, PARTS]
    return fine


def _atom(s: Tensor, valence: Tensor, aromatic: Tensor) -> Tensor:
    first = _is(s, START)
    fine = (first | _is(s, AFTER_ATOM, *_UNANSWERED)) & (s[:, ATOMS] < MOST)
    old, new = _cost(s[:, ORDER], s[:, AROMATIC]), _cost(s[:, ORDER], aromatic)
    rest = torch.where(first, 0, s[:, FREE] - old)
    free = valence - torch.where(first, 0, new)
    branch, top = _is(s, AFTER_OPEN, BRANCH_BOND), _top(s)
    held = s[:, STACK_FREE].gather(1, top)
    s[:, STACK_FREE] = s[:, STACK_FREE].scatter(1, top, torch.where(branch[:, None], rest[:, None], held).to(s.dtype))
    s[:, NEAR] = -1
    s[:, NEAR.start] = torch.where(first, -1, s[:, CURRENT])
    s[:, CURRENT], s[:, FREE], s[:, AROMATIC] = s[:, ATOMS], free.to(s.dtype), aromatic
    s[:, ATOMS] += 1
    s[:, ORDER], s[:, LAST] = 0, AFTER_ATOM
    return fine & (rest >= 0) & (free >= 0)


def _bond(s: Tensor, order: Tensor, aromatic: Tensor) -> Tensor:
    branch = _is(s, AFTER_OPEN)
    fine = branch | _is(s, AFTER_ATOM, AFTER_CLOSE)
    enough = s[:, FREE] >= _cost(order, s[:, AROMATIC]) + branch.to(torch.int8)
    after = torch.where(branch, BRANCH_BOND, torch.where(_is(s, AFTER_ATOM), AFTER_BOND, CHAIN_BOND))
    s[:, ORDER], s[:, LAST] = order, after.to(s.dtype)
    return fine & enough


def _open(s: Tensor, argument: Tensor, aromatic: Tensor) -> Tensor:
    fine = _is(s, AFTER_ATOM, AFTER_CLOSE) & (s[:, FREE] >= 2) & (s[:, NESTED] < DEPTH)
    s[:, NESTED] = (s[:, NESTED] + 1).clamp(max=DEPTH)
    top = _top(s)
    for columns, value in ((STACK, CURRENT), (STACK_FREE, FREE), (STACK_AROMATIC, AROMATIC)):
        s[:, columns] = s[:, columns].scatter(1, top, s[:, [value]])
    s[:, LAST] = AFTER_OPEN
    return fine


def _close(s: Tensor, argument: Tensor, aromatic: Tensor) -> Tensor:
    fine, top = _is(s, AFTER_ATOM) & (s[:, NESTED] > 0), _top(s)
    for columns, value in ((STACK, CURRENT), (STACK_FREE, FREE), (STACK_AROMATIC, AROMATIC)):
        s[:, [value]] = s[:, columns].gather(1, top)
    s[:, NESTED] -= 1
    s[:, LAST] = AFTER_CLOSE
    return fine


def _ring(s: Tensor, number: Tensor, aromatic: Tensor) -> Tensor:
    """Close the ring of this number if it is open, possibly with a bond order; otherwise open it."""
    column = number.long()[:, None]
    opener = s[:, OPENER].gather(1, column)
    closes, free = opener[:, 0] >= 0, s[:, FREE] - _cost(s[:, ORDER], s[:, AROMATIC])
    bound = (opener == s[:, [CURRENT]])[:, 0] | (s[:, NEAR] == opener).any(1)
    fine = _is(s, AFTER_ATOM) | _is(s, AFTER_BOND) & closes
    fine &= (free >= 0) & ~(closes & bound) & ~(closes & (s[:, NEAR.stop - 1] >= 0))
    s[:, OPENER] = s[:, OPENER].scatter(1, column, torch.where(closes[:, None], -1, s[:, [CURRENT]]).to(s.dtype))
    near = torch.cat([s[:, [NEAR.start]], opener, s[:, NEAR.start + 1 : NEAR.stop - 1]], 1)
    s[:, NEAR] = torch.where(closes[:, None], near, s[:, NEAR])
    s[:, FREE], s[:, ORDER], s[:, LAST] = free, 0, AFTER_ATOM
    return fine


def _label(s: Tensor, number: Tensor, aromatic: Tensor) -> Tensor:
    """Close an open bond, which joins the part at its other end to this one; or open a new bond."""
    column, here = number.long()[:, None], s[:, [HERE]]
    part = s[:, PART].gather(1, column)
    fine = _is(s, AFTER_ATOM) & (s[:, FREE] >= 1) & (part != here)[:, 0]
    joined = torch.where((part > 0) & (s[:, PART] == part), here, s[:, PART])
    s[:, PART] = joined.scatter(1, column, torch.where(part > 0, 0, here).to(s.dtype))
    s[:, FREE] -= 1
    return fine
