"""The house: every module is in a room, rooms import downwards only, and none reaches into private parts of another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "guidekit"
# from the ground up: a room imports from those before it
ROOMS = (
    "errors", "random", "solvers", "process", "models", "measurements", "engine", "values", "guides", "edits", "search",
    "report", "zoo", "integrations", "external", "jobs", "cli", "__main__",
)  # fmt: skip
LOOSE = {"__init__", "__main__", "errors", "random"}
STANDARD = {"_replace", "_version"}  # of named tuples and tensors: public by their documentation
# Imports inside functions that go upwards or would close a circle, each with its reason.
LATE = {
    ("guidekit.jobs.config", "guidekit.jobs.execute"): "Config.run is a shortcut for execute.run, which reads a Config",
    ("guidekit.jobs.config", "guidekit.jobs.folder"): "the type of what Config.run returns",
    ("guidekit.solvers.fitting", "guidekit.engine.world"): "ranks share the rows of a fit; the engine knows solvers",
    ("guidekit.solvers.fitting", "guidekit.engine.describe"): "what they must agree on: the same model, by its weights",
    ("guidekit.zoo", "guidekit.zoo.values"): "zoo.value is a shortcut; the values are made from the models of the zoo",
}


@cache
def modules() -> dict[str, Path]:
    """All modules of the package by their dotted names."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str, node: ast.stmt) -> set[str]:
    """The modules of the package that an import statement of a module names."""
    if isinstance(node, ast.Import):
        return {a.name for a in node.names if a.name in modules()}
    if not isinstance(node, ast.ImportFrom):
        return set()
    parts = name.split(".") if modules()[name].stem == "__init__" else name.split(".")[:-1]
    base = parts[: len(parts) - node.level + 1] if node.level else []
    whole = ".".join([*base, *([node.module] if node.module else [])])
    if whole != "guidekit" and not whole.startswith("guidekit."):
        return set()
    return {f"{whole}.{a.name}" if f"{whole}.{a.name}" in modules() else whole for a in node.names}


def statements(body: list[ast.stmt], late: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """All statements, and whether they run later than the import of their module: in functions, for type checkers."""
    for node in body:
        yield node, late
        inner = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        typed = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for field in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, field, []), inner or (typed and field == "body"))
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body, inner)


@cache
def graph(late: bool) -> dict[str, set[str]]:
    """What each module imports at once, or later."""
    found = {}
    for name, file in modules().items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found[name] = {m for node, when in statements(tree.body) if when is late for m in imported(name, node)} - {name}
    return found


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def floor(name: str) -> int:
    return ROOMS.index(room(name)) if room(name) else -1


def reachable(start: str) -> set[str]:
    seen, todo = set(), [start]
    while todo:
        for other in graph(False).get(todo.pop(), ()):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


def test_nothing_is_loose_and_every_room_is_known():
    assert {file.stem for file in ROOT.glob("*.py")} == LOOSE
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"} <= set(ROOMS)


def test_no_import_goes_upwards():
    wrong = [(a, b) for a, others in graph(False).items() for b in others if floor(b) > floor(a)]
    assert not [pair for pair in wrong if pair[0] != "guidekit"]


def test_no_circle():
    assert not [name for name in modules() if name in reachable(name)]


def test_imports_that_wait_are_few_and_have_reasons():
    """Heavy packages may be imported late; of the package itself only what would go up or in a circle, with reasons."""
    pairs = [(a, b) for a, others in graph(True).items() for b in others if b != "guidekit"]
    needed = {(a, b) for a, b in pairs if floor(b) > floor(a) or a in reachable(b)}
    assert needed == set(LATE)


def private(node: ast.AST) -> str | None:
    """The private name that an expression or an import asks of another object or module."""
    if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        return None if own else node.attr
    return None


def defined(tree: ast.AST) -> set[str]:
    """Private names that a module gives to something: functions, classes, variables, attributes, fields."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if name.startswith("_")}


def test_no_room_touches_a_private_name_of_another():
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in modules().items()}
    own: dict[str, set[str]] = {}
    for name, tree in trees.items():
        own.setdefault(room(name), set()).update(defined(tree))
    every, wrong = set().union(*own.values()), []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            asked = private(node)
            if asked is not None and asked in every - own[room(name)] - STANDARD:
                wrong.append(f"{name}:{node.lineno} {asked}")  # type: ignore[attr-defined]
            if isinstance(node, ast.ImportFrom):
                others = {room(m) for m in imported(name, node)} - {room(name)}
                names = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
                wrong += [f"{name}:{node.lineno} {n}" for n in names if others]
    assert not wrong


@pytest.mark.parametrize("name", sorted(set(modules()) - {"guidekit"}))
def test_a_module_has_a_docstring_and_no_star_import(name: str):
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    if name.split(".")[-1] != "__main__":
        assert ast.get_docstring(tree)
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]
