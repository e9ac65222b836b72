r"""Specs: how the command line and run files name a guide, a reward, a solver or a search with its options.

    svdd                       a name; case, - and _ are ignored
    svdd:candidates=4          a name with an option
    cfg:3  cell_type:HepG2     positional options
    sa:0.5                     a reward and its weight
    cell_type(HepG2):0.5       options and a weight; or cell_type:HepG2:0.5
    sa.reverse_sigmoid(2,5)    a reward passed through a transform of `rewards.transforms`
    mine.py:score              an object of a Python file, or of a module: package.module:score

Values are Python literals or plain words; texts that contain commas, = or : are quoted. Only literals are evaluated.
Options are checked against the signature of what is called.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import os
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
_BARE_FILE = re.compile(r"[^=(,:]+\.py(?!\w)")
_DOTTED = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_HEAD = re.compile(r"([^=(,:]+\.py)(:[A-Za-z_].*)", re.S)
_OPTION = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)(.*)", re.S)
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_CONSTANTS = {"true": True, "false": False, "none": None}


class ConfigError(ValueError):
    """A request that cannot be carried out; raised before the first network call."""


@dataclass(frozen=True)
class Call:
    """A name and the options that follow it."""

    name: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec(Call):
    """A parsed spec: the call, the transforms that its value passes through, and a weight."""

    then: tuple[Call, ...] = ()
    weight: float | None = None
    text: str = ""  # without the weight


def plain(name: str) -> str:
    """A name in lower case, without the characters that are ignored.

    >>> plain("FK-Steering") == plain("fk_steering")
    True
    """
    return re.sub(r"[-_\s]", "", name).lower()


def parse(text: str, known: Iterable[str] = (), weights: bool = False) -> Spec:
    """Read a spec. `known` are the existing names; without `weights` a single number is an option.

    >>> parse("svdd:candidates=4,alpha=0.1", ["SVDD"]).options
    {'candidates': 4, 'alpha': 0.1}
    >>> parse("cell_type(HepG2):0.5", ["CellType"], weights=True).weight
    0.5
    """
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
        raise ConfigError(f"{str(text)[:60]!r}: a name is needed, optionally followed by options: svdd:candidates=4")
    text = text.strip()
    name, rest = _split_name(text, {plain(v) for v in known})
    args, rest = _split_brackets(rest, text)
    then = []
    while rest.startswith("."):
        match = re.match(r"\.([A-Za-z_]\w*)", rest)
        if match is None:
            raise ConfigError(f"{text!r}: a name must follow the dot")
        more, rest = _split_brackets(rest[match.end() :], text)
        then.append(Call(match[1], *_parse_options(more, text)))
    if rest and not rest.startswith(":"):
        raise ConfigError(f"{text!r}: cannot read {rest[:30]!r}; options follow a colon or are put in brackets")
    tail, weight = _split_weight(split(rest[1:], ":", text) if rest else [], weights, text)
    if tail and (args or then):
        raise ConfigError(f"{text!r}: {tail[:30]!r} is not a weight, and the options were given in brackets already")
    whole = text[: len(text) - len(rest)] + (f":{tail}" if tail else "")
    return Spec(name, *_parse_options(args or tail, text), tuple(then), weight, whole)


def _split_name(text: str, known: set[str]) -> tuple[str, str]:
    """The name at the front, and the rest."""
    if file := _FILE.match(text):
        return file["name"], text[file.end() :]
    if file := _BARE_FILE.match(text):
        raise ConfigError(f"{text!r}: say what to take from the file, as {file[0]}:NAME{_names_in(Path(file[0]))}")
    dotted = _DOTTED.match(text)
    if dotted is None:
        raise ConfigError(f"{text!r}: a name must come first")
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


def _names_in(file: Path) -> str:
    """The end of a message: the names that a Python file defines. The file is read but not run."""
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return ""
    names = [v.name for v in body if isinstance(v, (ast.FunctionDef, ast.ClassDef)) and not v.name.startswith("_")]
    return f" (it defines {', '.join(names[:12])})" if names else ""


def _module(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return "." in name  # importing it will raise an error that says so


def _split_brackets(rest: str, text: str) -> tuple[str, str]:
    """The content of the brackets at the front, and the text that follows them."""
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
    """Each position with the bracket depth after it, and whether it is inside quotes."""
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
    """Split at the marks outside brackets and quotes.

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


def _split_weight(parts: list[str], weights: bool, text: str) -> tuple[str, float | None]:
    """Options and weight, from the parts that follow the name."""
    if weights and parts and _NUMBER.fullmatch(parts[-1]):
        *parts, last = parts
        if abs(float(last)) == float("inf"):
            raise ConfigError(f"{text!r}: the weight is not a finite number")
        return ":".join(parts), float(last)
    return ":".join(parts), None


def _parse_options(part: str, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, options = [], {}
    for piece in split(part, ",", text) if part.strip() else []:
        if not piece.strip():
            raise ConfigError(f"{text!r}: an option is empty")
        match = _OPTION.fullmatch(piece)
        if match is None:
            if options:
                raise ConfigError(f"{text!r}: {piece!r} follows a named option, so it needs a name too: name={piece}")
            args.append(literal(piece))
        elif match[1] in options:
            raise ConfigError(f"{text!r}: {match[1]} is given twice")
        else:
            options[match[1]] = literal(match[2])
    return tuple(args), options


def parse_options(text: str) -> dict[str, Any]:
    """Options alone, like `rows=1000,calls=50`."""
    args, options = _parse_options(text, text)
    if args:
        raise ConfigError(f"{text!r}: write {args[0]!r} as name=value")
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
    """A spec with absolute paths of its Python files, which were relative to a folder.

    >>> rooted("svdd:value=../mine.py:value", Path("/home/me"))
    'svdd:value=/home/mine.py:value'
    """
    head, rest = _split_head(text)
    inner = r"(?<![\w/\\.~-])(?!/)([\w./~-]+\.py)(?=:[A-Za-z_])"
    rest = re.sub(inner, lambda m: os.path.normpath(folder / m[1]), rest)
    return (os.path.normpath(folder / head) if head else "") + rest


def relative(text: str, folder: Path) -> str:
    """The inverse: a spec with paths relative to a folder, so that both can be moved together.

    >>> relative("svdd:value=/home/mine.py:value", Path("/home/me"))
    'svdd:value=../mine.py:value'
    """
    head, rest = _split_head(text)
    rest = re.sub(r"(?<=[=(,\s])/[^=(,:'\"]*\.py(?=:[A-Za-z_])", lambda m: seen_from(folder, m[0]), rest)
    return (seen_from(folder, head) if os.path.isabs(head) else head) + rest


def with_arrays(text: str, move: Callable[[str], str]) -> str:
    """A spec with other paths of its PNG and NPY files.

    >>> with_arrays("mask:where=a b/mask.png", lambda path: f"/home/{path}")
    'mask:where=/home/a b/mask.png'
    """
    return re.sub(
        r"(?<=[=:(,'\"])([^=:(),'\"]+\.(?:png|npy))(?=$|[,)'\"])", lambda m: move(m[1].strip()), text, flags=re.I
    )


def _split_head(text: str) -> tuple[str, str]:
    """The Python file at the front of a spec, or "", and the rest."""
    head = _HEAD.match(text)
    return (head[1], head[2]) if head else ("", text)


def seen_from(folder: Path, file: str) -> str:
    """The path of a file from a folder."""
    try:
        return os.path.relpath(file, folder).replace(os.sep, "/")
    except ValueError:  # on another drive
        return file


def displayed(text: str) -> str:
    """A spec without the folders of its Python files.

    >>> displayed("svdd:value=/home/me/mine.py:value")
    'svdd:value=mine.py:value'
    """
    return re.sub(r"[^=(,:]*/([^/=(,:]+\.py:)", r"\1", text)


def find(name: str, known: Sequence[str], what: str) -> str:
    """The known name that is meant; otherwise an error that suggests the nearest."""
    meant = among(name, known)
    if meant is not None:
        return meant
    raise ConfigError(f"there is no {what} {name!r}{nearest(name, known)}")


def among(name: str, known: Iterable[str]) -> str | None:
    """The known name that is meant, or None. Of names that differ in capitals alone it is the one that is spelled so,
    or that has its words apart where this one has.

    >>> both = ["ReSample", "Resample"]
    >>> among("Resample", both), among("resample", both), among("re_sample", both)
    ('Resample', 'Resample', 'ReSample')
    """
    same = [v for v in known if plain(v) == plain(name)]
    words = re.sub(r"[-\s]", "_", name).lower()
    apart = [v for v in same if re.sub(r"(?<=[a-z])(?=[A-Z])", "_", v).lower() == words]
    return name if name in same else next(iter(apart or same), None)


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message: the names that resemble this one, otherwise all names, or where to find them.

    >>> nearest("fk", ["SVDD", "FKSteering", "FKC.cfg"])
    "; did you mean 'FKSteering' or 'FKC.cfg'?"
    """
    close = _resembling(plain(name), {plain(v): v for v in known})
    if close:
        return f"; did you mean {' or '.join(', '.join(map(repr, close)).rsplit(', ', 1))}?"
    return f"; choose from {listed(known)}" if len(known) <= 12 else "; `guidekit list` shows all"


def listed(names: Sequence[str]) -> str:
    """Names in a message, quoted if one of them is more than a word."""
    return ", ".join(names if all(re.fullmatch(r"[\w.-]+", name) for name in names) else map(repr, names))


def _resembling(name: str, known: dict[str, str]) -> list[str]:
    """The most similar name; if none is similar, up to three that begin with this one or contain it."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    if len(name) < 2 or close:
        return [known[v] for v in close]
    inside = [v for v in known if v.startswith(name)] or [v for v in known if name in v]
    return [known[v] for v in inside[:3]]


# calling ---------------------------------------------------------------------------------------------------------


def call(
    make: Callable[..., Any],
    spec: Call,
    given: dict[str, Any] | None = None,
    convert: Callable[[str, Any, str], Any] = lambda name, hint, text: text,
    more: Iterable[str] = (),
) -> Any:
    """make(*args, **options), after each option has been checked against the signature.

    given     values for required parameters that the spec does not name; None marks a missing one
    convert   (parameter, its type hint, a text) -> what the text stands for, or the text
    more      names of options that make accepts through its **options
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
        taken = f"at most {len(places)} positional values ({', '.join(places)})" if places else "no positional values"
        raise ConfigError(f"{spec.name} takes {taken}, and {len(spec.args)} were given")
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
    """The parameters of a maker that can be given by name."""
    found = inspect.signature(make).parameters
    return {k: p for k, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _missing(what: str, name: str, given: dict[str, Any]) -> str:
    if name in given:
        return f"{what} needs a {name}: add one with --{name}, or give it as an option of {what}"
    return f"{what} needs {name}: write {what}:{name}=..."


def hint(make: Any, parameter: inspect.Parameter) -> Any:
    """The type of a parameter; Any if it is unknown."""
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
        needed = " or ".join(dict.fromkeys(_word(k) for k in kinds(kind)))
        raise ConfigError(f"{what}: {name}={value!r} must be {needed}")
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
    """The value converted to this type, or _NO if it does not fit."""
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
