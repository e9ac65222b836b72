"""Completion in the shell: names of models, guides and rewards."""

from __future__ import annotations

import json
from pathlib import Path

WEIGHTS = Path(__file__).parent.parent / "zoo" / "weights"


def models(incomplete: str) -> list[str]:
    """Bundled base models, read from their cards, since importing torch would take seconds."""
    cards = (json.loads(file.read_text(encoding="utf-8")) for file in sorted(WEIGHTS.glob("*.json")))
    return [c["name"] for c in cards if c["kind"].endswith(" model") and c["name"].startswith(incomplete)]


def guides(incomplete: str) -> list[str]:
    """Names of guides in the catalogue."""
    from ..guides.catalog import GUIDES

    return _like(list(GUIDES), incomplete)


def rewards(incomplete: str) -> list[str]:
    """Rewards of all domains; this imports them."""
    from ..jobs import names

    return _like([*names.rewards_of(), *names.classifiers(), *names.clips()], incomplete)


def _like(names: list[str], incomplete: str) -> list[str]:
    """Names with this beginning; in lower case, which is equivalent, if the beginning is in lower case."""
    small = [name.lower() if incomplete.islower() else name for name in names]
    return [name for name in small if name.startswith(incomplete)]
