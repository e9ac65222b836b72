"""From an output directory to a single, self-contained HTML file: `write`."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import guidekit as gk
from rewards.base import needs

from ..engine.result import Result
from . import compared, designed, figures, reconstructed, samples
from .reading import Output, read, value
from .recorder import replaced
from .rounds import rounds
from .svg import number

ROWS = 500  # of the table of samples
_LONG = 60  # most characters of a reward in a title


def write(folder: str | Path, title: str | None = None) -> Path:
    """Write report.html into an output directory, from its result/ and, if they exist, base/, best_of_n/, summary.json,
    samples.csv, lineage.json, check.json and run.toml. Returns the file.

    title   of this page; None is that of summary.json, or, if it has none, the model and the reward
    """
    needs("jinja2", "report", "a report")
    out = read(folder)
    return replaced(out.path / "report.html", render(out, title))


def render(out: Output, title: str | None = None) -> str:
    """The HTML of the page."""
    template = _environment().get_template("page.html.jinja")
    script, style = _file("page.js"), _file("page.css")
    return template.render(
        **_context(out, title),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _context(out: Output, title: str | None) -> dict[str, Any]:
    """Everything that the template shows; pictures are markup, everything else is text."""
    result, summary = out.result, out.summary
    domain = samples.domain(result, summary.get("domain"))
    measured, rows = summary.get("reconstructed", []), compared.rows(out)
    names = [row["name"] for row in measured] or samples.conditions(result)
    return {
        "title": title or summary.get("title") or _title(summary),
        "subtitle": _subtitle(result, summary),
        "rewards": _rewards(summary),
        "version": summary.get("version") or gk.__version__,
        "tiles": _tiles(out),
        "columns": compared.columns(out, rows),
        "comparison": rows,
        "own": len(rows) - 1,
        "constant": summary.get("constant", []),
        "warnings": [str(w) for w in summary.get("warnings", [])] + _broken(out),
        "laws": out.laws,
        "groups": _groups(result, names) if result.groups > 1 else [],
        "searched": bool(rounds(result)),
        "designed": bool(designed.rounds(result)),
        "over_time": figures.over_time(out, names),
        "lineage": figures.lineage(out, domain),
        "distributions": figures.distributions(out),
        "plane": figures.plane(out) if domain == "other" else None,
        "reconstructed": reconstructed.shown(out.path, result, measured),
        "shown": samples.shown(out, domain, names),
        "table": _table(out, names),
        "cost": _cost(result),
        "config": out.config,
        "arguments": "" if out.config else json.dumps(result.config, indent=1, ensure_ascii=False)[:20000],
        "bibtex": summary.get("bibtex", ""),
    }


def _broken(out: Output) -> list[str]:
    return [f"The law {row['law']!r} fails: {row['found']}" for row in out.laws if row["verdict"] == "fails"]


def _title(summary: dict[str, Any]) -> str:
    """The model and the names of the rewards that steer, without their formula."""
    weights = summary.get("weights", {})
    steering = [str(name) for name in summary.get("components", []) if weights.get(name, 1) != 0]
    reward = summary.get("measure") or _listed(steering) or summary.get("reward", "")
    reward = reward if len(reward) <= _LONG else reward[: _LONG - 1] + "…"
    return ": ".join(v for v in (summary.get("model"), reward) if v) or "Steered samples"


def _listed(names: Sequence[str]) -> str:
    """Up to three names, or two and the number of others."""
    shown = list(names) if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _rewards(summary: dict[str, Any]) -> str:
    """The complete formula of the reward, and of the held-out one."""
    named = (("Reward", summary.get("reward")), ("held-out reward", summary.get("holdout")))
    return "; ".join(f"{what}: {name}" for what, name in named if name)


def _subtitle(result: Result, summary: dict[str, Any]) -> str:
    what = "measurements" if summary.get("reconstructed") else "conditions"
    groups = f" of {result.groups} {what}" if result.groups > 1 else ""
    guides = f", guided by {', '.join(map(str, summary['guides']))}" if summary.get("guides") else ""
    found = f", found by {summary['search']}" if summary.get("search") else ""
    if steps := designed.rounds(result):
        return f"The best {_count(len(result), 'sample')} of {steps[-1]['calls']:,} reward calls{guides}"
    return f"{_count(len(result), 'sample')}{groups} in {_count(len(result.ancestors), 'step')}{guides}{found}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _tiles(out: Output) -> list[tuple[str, str, str]]:
    """Name, value and remark of each figure at the top."""
    if designed.rounds(out.result):
        return designed.tiles(out.result, out.screened)
    result, tiles = out.result, []
    size = len(result) // result.groups
    base = None if out.base is None else figures.mean(out.base)
    if result.rewards is not None:
        remark = "" if base is None else f"{number(base)} unguided"
        tiles.append(("mean reward", number(figures.mean(result)), remark))
        tiles.append(("best reward", number(figures.greatest(result.rewards)), ""))
    if result.holdout is not None:
        other = None if out.base is None or out.base.holdout is None else figures.mean(out.base, "holdout")
        remark = "" if other is None else f"{number(other)} unguided"
        tiles.append(("held-out reward", number(figures.mean(result, "holdout")), remark))
    if found := rounds(result):
        return tiles + _effort(result, found)
    if result.strength is not None:
        tiles.append(
            ("alpha", number(result.strength["alpha"]), f"KL {number(result.strength['kl'], 2)} from the model")
        )
    tiles.append(("effective samples", number(float(result.ess.mean())), f"of {size}{_each(result)}"))
    tiles.append(("starting particles", number(figures.ancestors(result)), "with descendants"))
    if result.log_weights.unique().numel() > 1 or bool(result.log_z.abs().max() > 0):
        error = float(result.log_z_error.nanmean())
        tiles.append(("log Z", number(float(result.log_z.mean())), f"standard error {number(error, 2)}{_each(result)}"))
    return tiles


def _effort(result: Result, found: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The figures for the cost of a search."""
    cost, shared = result.cost, any("conditions" in row for row in found)
    remark = "" if shared else f"{number(sum(row['candidates'] for row in found))} candidates for each sample"
    return [
        ("rounds", number(len(found)), remark),
        ("reward calls", number(cost.reward_calls), ""),
        ("network rows", number(cost.network_rows), ""),
    ]


def _each(result: Result) -> str:
    return ", mean of the conditions" if result.groups > 1 else ""


def _groups(result: Result, names: Sequence[str]) -> list[dict[str, Any]]:
    """The diagnostics of each condition."""
    columns = {"reward": "mean reward", "holdout": "held-out", "ess": "effective samples", "ancestors": "ancestors",
               "distinct": "distinct", "log_z": "log Z", "log_z_error": "error of log Z"}  # fmt: skip
    rows = result.summary()
    return [
        {"name": name} | {title: row[key] for key, title in columns.items() if key in row}
        for name, row in zip(names, rows, strict=True)
    ]


def _cost(result: Result) -> list[tuple[str, str]]:
    cost, n = result.cost, len(result)
    return [
        ("network rows", f"{cost.network_rows:,}, {number(cost.network_rows / n)} per sample"),
        ("network calls", f"{cost.network_calls:,}"),
        ("reward calls", f"{cost.reward_calls:,}, one per distinct sample"),
        ("scores that failed", f"{cost.unscored:,}"),
        ("time", f"{number(cost.seconds)} s"),
    ]


def _table(out: Output, names: Sequence[str]) -> dict[str, Any]:
    """The samples as rows of a table, best first."""
    result = out.result
    order = samples.ranked(result)[:ROWS]
    extra = list(next(iter(out.table.values()), {}))
    columns: dict[str, Any] = {"row": range(len(result))}
    if result.groups > 1:
        columns["condition"] = [names[g] for g in result.group.tolist()]
    columns["sample"] = samples.texts(result)
    for name, values in (("reward", result.rewards), ("holdout", result.holdout), ("weight", result.weights)):
        if values is not None:
            columns[name] = values.tolist()
    rows = [[columns[c][i] for c in columns] + [value(out.table[i][c]) for c in extra] for i in order]
    return {"columns": [*columns, *extra], "rows": rows, "left_out": len(result) - len(order)}


@lru_cache(1)
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("guidekit.report"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters["number"] = lambda v: number(v) if isinstance(v, (int, float)) else str(v)
    environment.filters["value"] = value
    environment.tests["number"] = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)
    return environment


def _file(name: str) -> str:
    return (files("guidekit.report") / "templates" / name).read_text(encoding="utf-8")
