r"""What may follow inside a fragment: an automaton of SMILES that counts bonds and knows which aromatic rings can be.

A state holds the atoms to which something may still be bound, in a path: those that carry a branch or an open ring, and
the last one. Rings are opened and closed along this path alone, as RDKit writes them.

An aromatic text is a molecule if its double bonds can be placed: each aromatic atom that needs one is matched with a
neighbour over an aromatic bond of a ring, and all others are in a ring. Carbons need one unless they have a double bond
to the outside, nitrogens where they have two neighbours, oxygen, sulfur and [nH] need none. Which atoms are matched is
decided later than they are written, so a state holds all ways in which the atoms before can be matched among
themselves, as far as these differ for what follows; a state without any way is forbidden. A bond that is promised to be
part of a ring, before that ring is closed, is `due`.

States are found when they are first asked for, numbered, and kept in a table, as in the lazy automata of text search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import count, product
from typing import NamedTuple

import torch
from torch import Tensor

END, ATOM, BOND, OPEN, CLOSE, RING, LABEL, DOT = range(8)  # kinds of symbols
# the last symbol; bonds are told apart after an atom, at the beginning of a branch, and after a branch
BEGIN, START, AFTER_ATOM, AFTER_BOND, AFTER_OPEN, AFTER_CLOSE, BRANCH_BOND, CHAIN_BOND, ENDED = range(9)
_UNANSWERED = (AFTER_BOND, AFTER_OPEN, AFTER_CLOSE, BRANCH_BOND, CHAIN_BOND)  # an atom must follow
DEPTH = 8  # branches open at once

PLAIN, CARBON, NITROGEN, CATION, FULL = range(5)  # atoms: not aromatic; aromatic, and how they come to a double bond
ALONE, INSIDE, DOUBLE = range(3)  # an aromatic atom: in no ring so far; in a ring, without a double bond; with one

BROKEN, NOTHING, UNKNOWN = 0, 1, -1  # states by number: that of forbidden texts, that of the empty text, not yet asked
FAR = 10_000  # symbols to complete what cannot be completed
SPARE = 4  # symbols, by which the number of those that complete a text is overestimated where there is room
TRIED = 300  # states that are looked at in search of a completion


class Symbol(NamedTuple):
    """kind: one of END to DOT; number: of a ring or label, the order of a bond, the bonds of an atom; ring: PLAIN..."""

    kind: int
    number: int = 0
    ring: int = PLAIN


class Atom(NamedTuple):
    """An atom of the path. free: bonds that it has left; near: whether it is bound to the last atom."""

    free: int
    ring: int
    branch: bool = False
    rings: tuple[int, ...] = ()
    near: bool = False

    @property
    def open(self) -> bool:
        return self.branch or bool(self.rings)


Way = tuple[tuple[int, bool], ...]  # of each atom of the path, what it is, and whether a bond before it is due


class State(NamedTuple):
    last: int
    order: int = 0  # of the bond before the next atom, 0 where none is written
    path: tuple[Atom, ...] = ()
    ways: frozenset[Way] = frozenset([()])


def step(state: State, symbol: Symbol) -> State | None:
    """The state after one more symbol, None where it is forbidden."""
    after = _MOVES[symbol.kind](state, symbol)
    if after is None or not (ways := _possible(after)):
        return None
    close = after.last in (AFTER_ATOM, AFTER_BOND)  # elsewhere no ring is closed
    path = (*(_alike(a, close) for a in after.path[:-1]), *after.path[-1:])
    return State(after.last, after.order, path, ways)


def final(state: State) -> bool:
    """Whether the fragment is whole, and nothing more can be bound to it."""
    return whole(state) and state.last == AFTER_ATOM and all(_full(state.path[0], way[0][0]) for way in state.ways)


def _alike(atom: Atom, close: bool) -> Atom:
    """An atom before the last one, without what makes no difference: how many bonds are left where only a ring can be
    closed, with a bond of order 2 at most, and what is near where none can be."""
    free = atom.free if atom.branch or atom.ring else min(1, atom.free)
    return Atom(free, atom.ring, atom.branch, atom.rings, atom.near and close)


def whole(state: State) -> bool:
    """Whether the fragment may end here."""
    if state.last == ENDED:
        return bool(state.ways)
    return state.last == AFTER_ATOM and len(state.path) == 1 and not state.path[0].open and _left(state, 0) is not None


# one symbol -----------------------------------------------------------------------------------------------------------


def _end(s: State, symbol: Symbol) -> State | None:
    return State(ENDED) if whole(s) else None


def _dot(s: State, symbol: Symbol) -> State | None:
    return State(START) if s.last == BEGIN or (s.last != ENDED and whole(s)) else None


def _atom(s: State, symbol: Symbol) -> State | None:
    atom = Atom(symbol.number, symbol.ring)
    if s.last == START:
        return State(AFTER_ATOM, 0, (atom,), frozenset([((ALONE, False),)]))
    if s.last not in (AFTER_ATOM, *_UNANSWERED):
        return None
    before, atom = _bound(s.path[-1], s.order), _bound(atom, s.order)
    if before is None or atom is None:
        return None
    ways = frozenset(
        (*way[:-1], (a, way[-1][1]), (b, due))
        for way in s.ways for a, b, due in _roles(before, way[-1][0], atom, ALONE, s.order)
    )  # fmt: skip
    rest = tuple(a._replace(near=False) for a in s.path[:-1])
    after = State(AFTER_ATOM, 0, (*rest, before._replace(near=True), atom), ways)
    return after if before.open else _left(after, len(rest))


def _bond(s: State, symbol: Symbol) -> State | None:
    after = {AFTER_ATOM: AFTER_BOND, AFTER_OPEN: BRANCH_BOND, AFTER_CLOSE: CHAIN_BOND}.get(s.last)
    bound = None if after is None else _bound(s.path[-1], symbol.number)
    if after is None or bound is None or bound.free < (s.last == AFTER_OPEN):
        return None
    return s._replace(last=after, order=symbol.number)


def _open(s: State, symbol: Symbol) -> State | None:
    if s.last not in (AFTER_ATOM, AFTER_CLOSE) or s.path[-1].free < 2 or sum(a.branch for a in s.path) == DEPTH:
        return None
    return s._replace(last=AFTER_OPEN, path=_changed(s.path, -1, branch=True))


def _close(s: State, symbol: Symbol) -> State | None:
    if s.last != AFTER_ATOM or len(s.path) < 2 or not s.path[-2].branch or s.path[-1].rings:
        return None
    after = _left(s._replace(ways=frozenset(w for w in s.ways if not w[-1][1])), -1)
    return after and after._replace(last=AFTER_CLOSE, path=_changed(after.path, -1, branch=False))


def _label(s: State, symbol: Symbol) -> State | None:
    atom = _bound(s.path[-1], 0) if s.last == AFTER_ATOM else None
    return atom and s._replace(path=(*s.path[:-1], atom))


def _ring(s: State, symbol: Symbol) -> State | None:
    """Close the ring of this number if it is open, possibly with a bond order; otherwise open it."""
    if s.last not in (AFTER_ATOM, AFTER_BOND):
        return None
    place = next((i for i, a in enumerate(s.path) if symbol.number in a.rings), None)
    return _opened(s, symbol.number) if place is None else _closed(s, symbol.number, place)


def _opened(s: State, number: int) -> State | None:
    atom = _bound(s.path[-1], 0) if s.last == AFTER_ATOM else None
    if atom is None:
        return None
    ways = frozenset((*way[:-1], (a, way[-1][1])) for way in s.ways for a in _insides(atom, way[-1][0]))
    return s._replace(path=(*s.path[:-1], atom._replace(rings=(*atom.rings, number))), ways=ways)


def _closed(s: State, number: int, i: int) -> State | None:
    opener, last = s.path[i], len(s.path) - 1
    first, atom = _bound(opener._replace(free=opener.free + 1), s.order), _bound(s.path[-1], s.order)
    if i == last or opener.near or first is None or atom is None:
        return None
    first = first._replace(rings=tuple(r for r in first.rings if r != number), near=True)
    ways = frozenset(
        (*way[:i], (a, way[i][1]), *((role, False) for role, _ in way[i + 1 : -1]), (b, False))
        for way in s.ways for a, b, _ in _roles(first, way[i][0], atom, way[-1][0], s.order)
    )  # fmt: skip
    after = State(AFTER_ATOM, 0, (*s.path[:i], first, *s.path[i + 1 : -1], atom), ways)
    return after if first.open else _left(after, i)


_MOVES = (_end, _atom, _bond, _open, _close, _ring, _label, _dot)


def _bound(atom: Atom, order: int) -> Atom | None:
    """The atom with one more bond of this order; to an aromatic one every bond counts as one."""
    if atom.ring and order > 1 and (atom.ring != CARBON or order > 2):
        return None
    free = atom.free - (1 if atom.ring else max(1, order))
    return None if free < 0 else atom._replace(free=free, ring=FULL if atom.ring and order == 2 else atom.ring)


def _changed(path: tuple[Atom, ...], i: int, branch: bool) -> tuple[Atom, ...]:
    return (*path[:i], path[i]._replace(branch=branch))


# aromatic atoms -------------------------------------------------------------------------------------------------------


def _roles(a: Atom, is_a: int, b: Atom, is_b: int, order: int) -> Iterator[tuple[int, int, bool]]:
    """What two atoms can be after they are bound, and whether that bond must then be part of a ring."""
    for now in product(_insides(a, is_a), _insides(b, is_b)):
        yield *now, now != (is_a, is_b)
    if order == 0 and is_a == is_b == ALONE and {a.ring, b.ring} <= {CARBON, NITROGEN, CATION}:
        yield DOUBLE, DOUBLE, True


def _insides(atom: Atom, role: int) -> tuple[int, ...]:
    return (role, INSIDE) if role == ALONE and atom.ring in (CARBON, NITROGEN, FULL) else (role,)


def _fits(atom: Atom, role: int) -> bool:
    """Whether an atom can still be done with what it is."""
    never = (None, None if atom.free else INSIDE, DOUBLE if atom.branch or not atom.free else None, INSIDE, DOUBLE)
    return role != never[atom.ring]


def _full(atom: Atom, role: int) -> bool:
    """Whether nothing more can be bound to an atom."""
    return not atom.free or (atom.free == 1 and atom.ring == NITROGEN and role == DOUBLE)


def _done(atom: Atom, role: int) -> bool:
    """Whether nothing needs to be bound to an atom any more."""
    if atom.ring == NITROGEN:
        return role == (INSIDE, DOUBLE, None, None)[atom.free]
    if atom.ring == FULL:
        return role == INSIDE and not atom.free
    return role == (ALONE, DOUBLE, None, DOUBLE)[atom.ring]


def _left(s: State, i: int) -> State | None:
    """The state when nothing more can be bound to an atom of the path. What is due before it is due before the next."""
    i %= len(s.path)
    ways = frozenset(
        (*way[:i], *((role, due or way[i][1]) for role, due in way[i + 1 : i + 2]), *way[i + 2 :])
        for way in s.ways if _done(s.path[i], way[i][0])
    )  # fmt: skip
    return s._replace(path=s.path[:i] + s.path[i + 1 :], ways=ways) if ways else None


def _possible(s: State) -> frozenset[Way]:
    """The ways that can still come true, without those that promise more than others that are alike."""
    fine = [way for way in s.ways if _lives(s, way)]
    if len(fine) < 2:
        return frozenset(fine)
    return frozenset(way for way in fine if not any(other != way and _better(s.path, other, way) for other in fine))


def _lives(s: State, way: Way) -> bool:
    first = next((i for i, a in enumerate(s.path) if a.rings), len(s.path))  # before it, nothing comes into a ring
    for i, (atom, (role, due)) in enumerate(zip(s.path, way, strict=True)):
        ahead = i + 1 < len(s.path)
        alone = i < first and atom.ring and role == ALONE and (ahead or s.last != AFTER_ATOM or atom.free < 2)
        short = ahead and not atom.branch and atom.ring == FULL and atom.free  # nothing more can be bound to it
        spent = atom.branch and not atom.free  # nothing can follow its branch
        if alone or short or spent or (due and i <= first) or not _fits(atom, role):
            return False
    if not s.path or not _full(s.path[-1], way[-1][0]):
        return not s.order or s.path[-1].ring not in (CARBON, CATION) or _goes_on(s.path[-1], way[-1][0], s.order)
    ends = not s.path[-1].rings and (len(s.path) == 1 or s.path[-2].branch)
    return s.last == AFTER_ATOM and ends and not way[-1][1] and _done(s.path[-1], way[-1][0])


def _goes_on(atom: Atom, role: int, order: int) -> bool:
    """Whether a written bond can follow: a double one if the atom has none, another one if it leaves room for that."""
    return role != DOUBLE if order == 2 else role == DOUBLE or atom.free > 1


def _better(path: tuple[Atom, ...], one: Way, other: Way) -> bool:
    """Whether the first way leaves open what the other does, and has done as much."""
    return all(
        due <= late and (a == b or ((a, b) == (INSIDE, ALONE) and (atom.ring == FULL or not atom.free)))
        for atom, (a, due), (b, late) in zip(path, one, other, strict=True)
    )


# the states by number -------------------------------------------------------------------------------------------------


class Syntax:
    """The states that were met, and what follows them. words: rows of symbols, by number, that are read at once."""

    def __init__(self, symbols: Sequence[Symbol], words: Sequence[Sequence[int]]):
        self.symbols, self.words = symbols, words
        usual = [i for i, s in enumerate(symbols) if s.kind in _USUAL or s in _ATOMS]
        self._usual = sorted(usual, key=lambda i: _promise(symbols[i]))
        self._answers = [i for i, s in enumerate(symbols) if s.kind in (ATOM, RING)]
        self._label = next((i for i, s in enumerate(symbols) if s.kind == LABEL), None)
        self.forget()

    def __len__(self) -> int:
        return len(self._states)

    def forget(self) -> None:
        """Begin anew: numbers that were given so far mean nothing afterwards."""
        self._states: list[State] = []
        self._ids: dict[State, int] = {}
        self._moves: dict[tuple[int, int], int] = {}
        self._known: tuple[dict[int, int], ...] = ({}, {}, {})
        self._after = torch.empty(0, len(self.words), dtype=torch.int32)  # of states from which words are read
        self._row, self._rows = torch.empty(0, dtype=torch.int32), 0
        self._need = torch.empty(0, 3, dtype=torch.int32)
        self._rough = torch.empty(0, 2, dtype=torch.int32)
        for state in (_NONE, State(BEGIN)):
            self._number(state)

    def read(self, states: Tensor, words: Tensor) -> Tensor:
        """The numbers of the states after one more word each."""
        for i in states[self._row[states] == UNKNOWN].unique().tolist():
            self._row[i] = self._rows
            self._rows += 1
        if self._rows > len(self._after):
            more = max(256, 2 * self._rows - len(self._after))
            self._after = torch.cat([self._after, self._after.new_full((more, len(self.words)), UNKNOWN)])
        row = self._row[states]
        found = self._after[row, words]
        unknown = found == UNKNOWN
        if unknown.any():
            for i, j in {*zip(states[unknown].tolist(), words[unknown].tolist(), strict=True)}:
                self._after[self._row[i], j] = self._spelled(i, j)
            found = self._after[row, words]
        return found

    def _spelled(self, i: int, word: int) -> int:
        for j in self.words[word]:
            i = self._follow(i, j)
            if i == BROKEN:
                break
        return i

    def rough(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """More symbols than complete the fragment; and how many more with one or several labels."""
        rough = self._rough[states]
        return rough[:, 0], rough[:, 1]

    def need(self, states: Tensor, mode: int) -> Tensor:
        """How many symbols complete the fragment (0); how many with a label among them (1); and how many with a label
        after which its last atom has bonds left (2). Some next symbol always reduces it."""
        found = self._need[states, mode]
        unknown = found == UNKNOWN
        if unknown.any():
            for i in {*states[unknown].tolist()}:
                self._need[i, mode] = self._needed(i, mode)
            found = self._need[states, mode]
        return found

    def _follow(self, i: int, j: int) -> int:
        """The number of the state after one more symbol."""
        if (i, j) not in self._moves:
            after = step(self._states[i], self.symbols[j])
            number = BROKEN if after is None else self._number(after)
            if after is not None and self.symbols[j].kind == BOND and not self._answered(number):
                number = BROKEN
            self._moves[i, j] = number
        return self._moves[i, j]

    def _answered(self, i: int) -> bool:
        """Whether anything can follow a written bond."""
        return any(self._follow(i, j) != BROKEN for j in self._answers)

    def _number(self, state: State) -> int:
        if state not in self._ids:
            i = self._ids[state] = len(self._states)
            self._states.append(state)
            if i == len(self._row):
                more = max(1024, i)
                self._row = torch.cat([self._row, self._row.new_full((more,), UNKNOWN)])
                self._need = torch.cat([self._need, self._need.new_full((more, 3), UNKNOWN)])
                self._rough = torch.cat([self._rough, self._rough.new_full((more, 2), FAR)])
            if state == _NONE:
                self._need[i] = FAR
            else:
                self._rough[i, 0], self._rough[i, 1] = _guess(state) + SPARE, FAR if final(state) else SPARE
        return self._ids[state]

    def _needed(self, start: int, mode: int) -> int:
        """The number of symbols of a completion, one step of which is the first of a short completion of each state. It
        depends on the state alone, not on what was asked before, and falls by one with every step."""
        known, way = self._known[mode], dict[int, None]()
        while start not in known and start not in way:
            if (ends := self._ends(start, mode)) < FAR:
                known[start] = ends
            elif (after := self._first(start, mode)) is None:
                known[start] = FAR
            else:
                way[start], start = None, after
        need = known.get(start, FAR)  # unknown only where the steps go round in a circle
        for state in reversed(way):
            need = known[state] = min(need + 1, FAR)
        return need

    def _first(self, start: int, mode: int) -> int | None:
        """The first step of the first completion that is found, the most promising beginnings first."""
        queue: list[tuple[int, int, tuple[int, ...], Iterator[int]]] = [(0, 0, (start,), self._next(start))]
        seen, number = {start}, count(1)
        while queue and len(seen) < TRIED:
            guess, _, way, rest = heappop(queue)
            if len(way) > 1 and self._ends(way[-1], mode) < FAR:
                return way[1]
            for after in rest:
                if after not in seen:
                    seen.add(after)
                    now = len(way) + _guess(self._states[after])
                    heappush(queue, (now, next(number), (*way, after), self._next(after)))
                    if now <= guess:  # the others wait until this has been tried
                        heappush(queue, (guess + 1, next(number), way, rest))
                        break
        return None

    def _ends(self, i: int, mode: int) -> int:
        """With how many symbols the text is complete, if at once."""
        if mode == 0:
            return 0 if whole(self._states[i]) else FAR
        after = BROKEN if self._label is None else self._follow(i, self._label)
        if after == BROKEN:
            return FAR
        if mode == 1:
            return min(FAR, 1 + int(self.need(torch.tensor([after]), 0)))
        state = self._states[after]
        return 1 if whole(state) and state.path[-1].ring == PLAIN and state.path[-1].free else FAR

    def _next(self, i: int) -> Iterator[int]:
        """The states after the symbols that complete texts."""
        state = self._states[i]
        opened, aromatic = {r for a in state.path for r in a.rings}, bool(state.path and state.path[-1].ring)
        new = next(n for n in count() if n not in opened)
        for j in self._usual:
            kind, number, _ = self.symbols[j]
            useful = (
                number in opened or (aromatic and number == new) if kind == RING else kind != DOT or state.last == BEGIN
            )
            if useful and (after := self._follow(i, j)) != BROKEN:
                yield after


_NONE = State(ENDED, ways=frozenset())  # of texts that are forbidden
_ATOMS = (Symbol(ATOM, 3, CARBON), Symbol(ATOM, 4), Symbol(ATOM, 3, NITROGEN), Symbol(BOND, 2), Symbol(ATOM, 2, FULL))
_USUAL = (RING, CLOSE, DOT)


def _promise(symbol: Symbol) -> tuple[int, Symbol]:
    """The order in which symbols are tried in search of a completion."""
    return (_USUAL.index(symbol.kind) if symbol.kind in _USUAL else 3 + _ATOMS.index(symbol)), symbol


def _guess(s: State) -> int:
    """About how many symbols are missing."""
    undone = [sum(not _done(a, role) for a, (role, _) in zip(s.path, way, strict=True)) for way in s.ways]
    opened = sum(2 * len(a.rings) + 2 * a.branch for a in s.path)
    return min(undone, default=0) + opened + (s.last in (BEGIN, START, *_UNANSWERED))
