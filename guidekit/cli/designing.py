"""What `guidekit design` does: the design loop of `gk.evolve`, from a file of leads to a table of the best."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..jobs import inputs, names
from ..jobs.specs import ConfigError
from ..search import Budget
from ..search.refine import evolve


def designed(
    model: str,
    rewards: Sequence[str],
    calls: int,
    n: int,
    out: Path | None,
    *,
    start: Path | None = None,
    require: Sequence[str] = (),
    guides: Sequence[str] = (),
    device: str | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """The best samples as rows of a table, with every component of the reward; also written to `out`."""
    made, domain = names.make_model(model, device)
    parts = names.make_components(rewards)
    reward = names.total(parts)
    if reward is None:
        raise ConfigError("a design needs a reward: give one with --reward")
    for part in parts:
        if None not in (part.domain, domain) and part.domain != domain:
            raise ConfigError(f"the reward {part.name!r} scores {part.domain}, and the model {model!r} makes {domain}")
    if start is not None and domain is None:
        raise ConfigError(f"--start {start}: what the file holds is known for bundled models only")
    given = n if start is None else inputs.read(start, domain or "")
    try:
        found = evolve(
            made,
            given,
            reward,
            n=n,
            budget=Budget(calls=calls),
            guides=[names.make_guide(text, reward) for text in guides],
            require=_required(require),
            checkpoint=out,
            **options,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    texts = isinstance(found.samples, list)
    columns = {part.name: part.raw(found.samples).tolist() for part in parts}
    rewards_of = found.rewards.tolist() if found.rewards is not None else []
    rows = [
        {"sample": found.samples[i] if texts else i, "reward": rewards_of[i], "proposal": source}
        | {name: values[i] for name, values in columns.items()}
        for i, source in enumerate(found.config["design"]["proposals"])
    ]
    if out is not None:
        found.save(out / "result")
        _write(out / "designs.csv", rows)
    return rows


def _required(specs: Sequence[str]) -> Callable[[Any], Any] | None:
    """A predicate that is true where all of these rewards are above 0."""
    parts = names.make_components(specs) if specs else []

    def fine(samples: Any) -> torch.Tensor:
        return torch.stack([part.raw(samples).nan_to_num(0.0) > 0 for part in parts]).all(0)

    return fine if parts else None


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
