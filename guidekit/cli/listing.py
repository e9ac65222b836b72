"""`guidekit list`: models, guides, rewards, solvers and searches, one line each."""

from __future__ import annotations

import inspect

from ..guides import catalog
from ..jobs import names as sources
from ..jobs.specs import parameters
from .answers import lines


def sections() -> dict[str, list[dict[str, str]]]:
    """What there is, by section."""
    return {
        "models": [{"name": name, "about": about} for name, about in sources.models().items()],
        "guides": [_guide(name) for name in sources.guides()],
        "rewards": [_reward(name) for name in sources.rewards_of()] + _networks(),
        "solvers": [_made(name, make) for name, make in sources.solvers().items()],
        "searches": [_made(name, make) for name, make in sources.strategies().items()],
    }


def _guide(name: str) -> dict[str, str]:
    entry = catalog.GUIDES[name.split(".")[0]]
    about = entry.about if "." not in name else sources.about(sources.guides()[name])
    return {"name": name, "about": about, "options": _options(sources.guides()[name])}


def _reward(name: str) -> dict[str, str]:
    domain, make = sources.rewards_of()[name]
    lower = getattr(make, "higher_is_better", True) is False
    about = sources.about(make) + (" (less is better)" if lower else "")
    return {"name": name, "domain": domain, "about": about, "options": _options(make)}


def _networks() -> list[dict[str, str]]:
    found = [
        {"name": name, "domain": sources.domain_of(name), "about": f"bundled: {', '.join(classes)}", "options": "label"}
        for name, classes in sources.classifiers().items()
    ]
    prompted = {"domain": "images", "about": "bundled CLIP: likeness to a text", "options": "prompt"}
    return found + [{"name": name, **prompted} for name in sources.clips()]


def _made(name: str, make: object) -> dict[str, str]:
    return {"name": name, "about": sources.about(make), "options": _options(make)}


def _options(make: object) -> str:
    """Options with their defaults, without those that every guide has or that the run fills in."""
    hidden = ("model", "n", "reward", "steer", "start", "stop", "times", "seed")
    found = parameters(make) if callable(make) else {}
    return ", ".join(
        k if p.default is inspect.Parameter.empty or repr(p.default).startswith("<") else f"{k}={p.default!r}"
        for k, p in found.items()
        if k not in hidden
    )


def shown(sections: dict[str, list[dict[str, str]]], options: bool) -> str:
    """The sections as text."""
    return "\n\n".join(f"{name}\n{lines([_line(e, options) for e in found])}" for name, found in sections.items())


def _line(entry: dict[str, str], options: bool) -> tuple[str, str]:
    domain = f"{entry['domain']:9}  " if "domain" in entry else ""
    given = f" [{entry['options']}]" if options and entry.get("options") else ""
    return entry["name"], domain + entry["about"] + given
