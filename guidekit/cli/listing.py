"""`guidekit list`: models, guides, rewards, solvers and searches, one line each."""

from __future__ import annotations

import inspect

from ..guides import catalog
from ..jobs import names
from ..jobs.specs import parameters
from .answers import lines

# Options that every maker of a section has, or that the run fills in.
_FILLED_IN = {
    "guides": ("reward", "steer", "start", "stop"), "searches": ("model", "n", "reward"),
    "solvers": ("times", "length"), "rewards": ("seed",),
}  # fmt: skip


def sections() -> dict[str, list[dict[str, str]]]:
    """All names, by section."""
    return {
        "models": [{"name": name, "about": about} for name, about in names.models().items()],
        "guides": [_guide(name) for name in names.guides()],
        "rewards": [_reward(name) for name in names.rewards_of()] + _networks(),
        "solvers": [_made(name, make, "solvers") for name, make in names.solvers().items()],
        "searches": [_made(name, make, "searches") for name, make in names.strategies().items()],
    }


def _guide(name: str) -> dict[str, str]:
    entry = catalog.GUIDES[name.split(".")[0]]
    about = entry.about if "." not in name else names.about(names.guides()[name])
    return {"name": name, "about": about, "options": _options(names.guides()[name], "guides")}


def _reward(name: str) -> dict[str, str]:
    domain, make = names.rewards_of()[name]
    lower = getattr(make, "higher_is_better", True) is False
    about = names.about(make) + (" (lower is better)" if lower else "")
    return {"name": name, "domain": domain, "about": about, "options": _options(make, "rewards")}


def _networks() -> list[dict[str, str]]:
    found = [
        {
            "name": name,
            "domain": names.domain_of(name),
            "about": f"Bundled classifier of {', '.join(classes)}",
            "options": "label",
        }
        for name, classes in names.classifiers().items()
    ]
    prompted = {"domain": "images", "about": "Bundled CLIP: similarity to a text", "options": "prompt"}
    return found + [{"name": name, **prompted} for name in names.clips()]


def _made(name: str, make: object, section: str) -> dict[str, str]:
    return {"name": name, "about": names.about(make), "options": _options(make, section)}


def _options(make: object, section: str) -> str:
    """Options with their defaults, without those that the run fills in."""
    found = parameters(make) if callable(make) else {}
    return ", ".join(option(p) for k, p in found.items() if k not in _FILLED_IN[section])


def option(parameter: inspect.Parameter) -> str:
    """An option in written form: its name, with its default if that can be written."""
    default = parameter.default
    hidden = default is parameter.empty or repr(default).startswith("<")
    return parameter.name if hidden else f"{parameter.name}={default!r}"


def shown(sections: dict[str, list[dict[str, str]]], options: bool) -> str:
    """The sections as text."""
    return "\n\n".join(f"{name}\n{lines([_line(e, options) for e in found])}" for name, found in sections.items())


def _line(entry: dict[str, str], options: bool) -> tuple[str, str]:
    domain = f"{entry['domain']:9}  " if "domain" in entry else ""
    given = f" [{entry['options']}]" if options and entry.get("options") else ""
    return entry["name"], domain + entry["about"] + given
