r"""Specs: how the command line and run files name a guide, a reward, a solver or a search with its options.

    svdd                       a name; upper and lower case, - and _ do not matter
    svdd:candidates=4          with options
    cfg:3  cell_type:HepG2     options by their place
    sa:0.5                     a reward and its weight
    cell_type(HepG2):0.5       options and weight; or cell_type:HepG2:0.5
    sa.reverse_sigmoid(2,5)    a reward through a transform of `rewards.transforms`
    mine.py:score              a name in a Python file, or in a module: package.module:score

Values are Python literals, or words that stand for themselves; texts with commas, = or : in them go in quotes. Nothing
is evaluated but literals. Options are checked against the signature of what is called.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import sys
import types
import typing
import warnings
from collections import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Any

LONGEST = 10_000  # characters of a spec
_WORD = r"[A-Za-z_][\w-]*"
_FILE = re.compile(r"(?P<name>[^=(,:]+\.py:[A-Za-z_]\w*)")
_DOTTED = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_OPTION = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)(.*)", re.S)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_CONSTANTS = {"true": True, "false": False, "none": None}


class ConfigError(ValueError):
    """A run that was asked for in a way that cannot be: found before the first network call."""


@dataclass(frozen=True)
class Call:
    """A name and the options that stand behind it."""

    name: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec(Call):
    """A parsed spec: the call, what its value goes through then, and a weight."""

    then: tuple[Call, ...] = ()
    weight: float | None = None
    text: str = ""  # without the weight


def plain(name: str) -> str:
    """What of a name counts.

    >>> plain("FK-Steering") == plain("fk_steering")
    True
    """
    return re.sub(r"[-_\s]", "", name).lower()


def parse(text: str, known: Iterable[str] = (), weights: bool = False) -> Spec:
    """Read a spec. `known` are the names that there are; without `weights` a number alone is an option.

    >>> parse("svdd:candidates=4,alpha=0.1", ["SVDD"]).options
    {'candidates': 4, 'alpha': 0.1}
    >>> parse("cell_type(HepG2):0.5", ["CellType"], weights=True).weight
    0.5
    """
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
        raise ConfigError(f"{str(text)[:60]!r}: a name is needed, with options behind it like svdd:candidates=4")
    text = text.strip()
    name, rest = _named(text, {plain(v) for v in known})
    args, rest = _bracketed(rest, text)
    then = []
    while rest.startswith("."):
        match = re.match(r"\.([A-Za-z_]\w*)", rest)
        if match is None:
            raise ConfigError(f"{text!r}: a name is needed behind the dot")
        more, rest = _bracketed(rest[match.end() :], text)
        then.append(Call(match[1], *_options(more, text)))
    if rest and not rest.startswith(":"):
        raise ConfigError(f"{text!r}: what is {rest[:30]!r}? Options follow a colon or stand in brackets")
    tail, weight = _weighed(split(rest[1:], ":", text) if rest else [], weights, text)
    if tail and (args or then):
        raise ConfigError(f"{text!r}: {tail[:30]!r} is no weight, and the options stand in the brackets already")
    whole = text[: len(text) - len(rest)] + (f":{tail}" if tail else "")
    return Spec(name, *_options(args or tail, text), tuple(then), weight, whole)


def _named(text: str, known: set[str]) -> tuple[str, str]:
    """The name at the front, and what is left."""
    if file := _FILE.match(text):
        return file["name"], text[file.end() :]
    dotted = _DOTTED.match(text)
    if dotted is None:
        raise ConfigError(f"{text!r}: a spec begins with a name")
    name, rest = dotted[0], text[dotted.end() :]
    if plain(name) in known:
        return name, rest
    first = name.split(".")[0]
    if plain(first) in known:
        return first, text[len(first) :]
    inside = re.match(r":([A-Za-z_]\w*)", rest)
    if inside and _module(name):
        return name + inside[0], rest[inside.end() :]
    return name, rest


def _module(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return "." in name  # it will be said that there is no such module


def _bracketed(rest: str, text: str) -> tuple[str, str]:
    """What is in the brackets at the front, and what follows them."""
    if not rest.startswith("("):
        return "", rest
    end = _closing(rest, text)
    return rest[1:end], rest[end + 1 :]


def _closing(rest: str, text: str) -> int:
    for place, depth, quoted in _depths(rest):
        if place and depth == 0 and not quoted:
            return place
    raise ConfigError(f"{text!r}: a bracket or a quote is not closed")


def _depths(text: str) -> Iterable[tuple[int, int, bool]]:
    """Every place with the depth of brackets behind it, and whether it is in quotes."""
    depth, quote, skip = 0, "", False
    for i, c in enumerate(text):
        if skip:
            skip = False
        elif quote:
            skip, quote = c == "\\", "" if c == quote else quote
        elif c in "\"'":
            quote = c
        else:
            depth += (c in "([{") - (c in ")]}")
        yield i, depth, bool(quote)


def split(part: str, mark: str, text: str) -> list[str]:
    """At the marks that are in no bracket and no quote.

    >>> split("a,(b,c),'d,e'", ",", "")
    ['a', '(b,c)', "'d,e'"]
    """
    found, start, depth, quoted = [], 0, 0, False
    for i, depth, quoted in _depths(part):
        if part[i] == mark and depth == 0 and not quoted:
            found.append(part[start:i])
            start = i + 1
    if depth or quoted:
        raise ConfigError(f"{text!r}: a bracket or a quote is not closed")
    return [*found, part[start:]]


def _weighed(parts: list[str], weights: bool, text: str) -> tuple[str, float | None]:
    """Options and weight of what stands behind the name."""
    if weights and parts and _NUMBER.fullmatch(parts[-1]):
        *parts, last = parts
        if abs(float(last)) == float("inf"):
            raise ConfigError(f"{text!r}: the weight is no finite number")
        return ":".join(parts), float(last)
    return ":".join(parts), None


def _options(part: str, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, options = [], {}
    for piece in split(part, ",", text) if part.strip() else []:
        if not piece.strip():
            raise ConfigError(f"{text!r}: an option is empty")
        match = _OPTION.fullmatch(piece)
        if match is None:
            if options:
                raise ConfigError(f"{text!r}: {piece!r} stands behind named options; say which it is: name={piece}")
            args.append(literal(piece))
        elif match[1] in options:
            raise ConfigError(f"{text!r}: {match[1]} is given twice")
        else:
            options[match[1]] = literal(match[2])
    return tuple(args), options


def options_of(text: str) -> dict[str, Any]:
    """Options alone, like `rows=1000,calls=50`."""
    args, options = _options(text, text)
    if args:
        raise ConfigError(f"{text!r}: name=value is needed for {args[0]!r}")
    return options


def literal(text: str) -> Any:
    """A Python literal, true, false or none, or the text itself.

    >>> literal("1e-3"), literal("HepG2"), literal("[1, 2]")
    (0.001, 'HepG2', [1, 2])
    """
    text = text.strip()
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def rooted(text: str, folder: Path) -> str:
    """A spec whose Python files are looked for in a folder."""
    if head := re.match(r"([^=(,:]+\.py)(:[A-Za-z_].*)", text, re.S):
        return f"{folder / head[1]}{head[2]}"
    return re.sub(r"(?<![\w/\\.~-])(?!/)([\w./~-]+\.py)(?=:[A-Za-z_])", lambda m: str(folder / m[1]), text)


def displayed(text: str) -> str:
    """A spec without the folders of its Python files.

    >>> displayed("svdd:value=/home/me/mine.py:value")
    'svdd:value=mine.py:value'
    """
    return re.sub(r"[^=(,:]*/([^/=(,:]+\.py:)", r"\1", text)


def find(name: str, known: Sequence[str], what: str) -> str:
    """The one of the known names that is meant, or an error with the nearest."""
    by = {plain(v): v for v in known}
    if plain(name) in by:
        return by[plain(name)]
    raise ConfigError(f"there is no {what} {name!r}{nearest(name, known)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message."""
    by = {plain(v): v for v in known}
    close = difflib.get_close_matches(plain(name), by, 1, 0.5)
    if close:
        return f"; is it {by[close[0]]!r}?"
    return f"; there is {', '.join(known)}" if len(known) <= 12 else "; guidekit list shows what there is"


# calling ---------------------------------------------------------------------------------------------------------


def call(
    make: Callable[..., Any],
    spec: Call,
    given: dict[str, Any] | None = None,
    convert: Callable[[str, Any, str], Any] = lambda name, hint, text: text,
    more: Iterable[str] = (),
) -> Any:
    """make(*args, **options), every option checked against the signature first.

    given     values for required parameters that the spec does not name; None is one that is missing
    convert   (parameter, its hint, a text) -> what the text stands for, or the text
    more      names of options that reach make by its **options
    """
    return make(**arguments(make, spec, given, convert, more))


def arguments(
    make: Callable[..., Any],
    spec: Call,
    given: dict[str, Any] | None = None,
    convert: Callable[[str, Any, str], Any] = lambda name, hint, text: text,
    more: Iterable[str] = (),
) -> dict[str, Any]:
    """The options of a spec as arguments; see `call`."""
    known = parameters(make)
    offered = [*(k for k in known if k not in (given or {}) or k == "reward"), *more]
    places = [k for k, p in known.items() if p.kind is p.POSITIONAL_OR_KEYWORD and k not in (given or {})]
    if len(spec.args) > len(places):
        raise ConfigError(f"{spec.name} takes {_listed(places)} by place, and {len(spec.args)} values are given")
    options = dict(zip(places, spec.args, strict=False))
    for name, value in spec.options.items():
        if name not in known and name not in more:
            raise ConfigError(f"{spec.name} has no option {name!r}{nearest(name, offered)}")
        if name in options:
            raise ConfigError(f"{spec.name}: {name} is given twice")
        options[name] = value
    for name, parameter in known.items():
        if name not in options and parameter.default is parameter.empty:
            if (given or {}).get(name) is None:
                raise ConfigError(_missing(spec.name, name, given or {}))
            options[name] = (given or {})[name]
        elif name in options:
            options[name] = _checked(spec.name, name, hint(make, parameter), options[name], convert)
    return options


def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What may be given by name."""
    found = inspect.signature(make).parameters
    return {k: p for k, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _missing(what: str, name: str, given: dict[str, Any]) -> str:
    if name in given:
        return f"{what} needs a {name}: give one, like --{name} ..., or in its options"
    return f"{what} needs {name}: write {what}:{name}=..."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def hint(make: Any, parameter: inspect.Parameter) -> Any:
    """The type of a parameter; Any where it cannot be told."""
    if not isinstance(parameter.annotation, str):
        return Any if parameter.annotation is parameter.empty else parameter.annotation
    owner = next((c for c in getattr(make, "__mro__", ()) if parameter.name in inspect.get_annotations(c)), make)
    names = getattr(make, "__globals__", None) or vars(sys.modules[owner.__module__])
    try:
        own = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
        return typing.get_type_hints(own, names)["it"]
    except (NameError, TypeError):
        return Any


def _checked(what: str, name: str, kind: Any, value: Any, convert: Callable[[str, Any, str], Any]) -> Any:
    if isinstance(value, str):
        value = convert(name, kind, value)
    found = [v for k in kinds(kind) if (v := _as(k, value)) is not _NO]
    if not found:
        shown = " or ".join(dict.fromkeys(_word(k) for k in kinds(kind)))
        raise ConfigError(f"{what}: {name}={value!r} is {_word(type(value))}, and {shown} is needed")
    return found[0]


_NO = object()
_WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none",
    tuple: "a tuple like (4, 2)", list: "a list like [1, 2]", abc.Sequence: "a list like [1, 2]",
}  # fmt: skip


def _word(kind: Any) -> str:
    kind = typing.get_origin(kind) or kind
    return _WORDS.get(kind) or f"{getattr(kind, '__name__', str(kind))} (file.py:name)"


def kinds(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return tuple(m for k in typing.get_args(kind) for m in kinds(k)) if union else (kind,)


def _as(kind: Any, value: Any) -> Any:
    """The value as one of this type, or _NO."""
    if kind is Any:
        return value
    if kind is float:
        if value in ("inf", "-inf"):
            return float(value)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else _NO
    if kind is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else _NO
    if typing.get_origin(kind) is typing.Literal:
        return value if value in typing.get_args(kind) else _NO
    base = typing.get_origin(kind) or kind
    if base in (Callable, typing.Callable):
        return value if callable(value) else _NO
    if base in (Sequence, list, tuple) and isinstance(value, (list, tuple)):
        return tuple(value) if base is tuple else list(value)
    if isinstance(value, str) and base is not str:
        return _NO
    return value if not isinstance(base, type) or isinstance(value, base) else _NO
