"""How a notebook displays a result or a population, and the plot of a result."""

from __future__ import annotations

from html import escape
from typing import Any

from ..engine.population import Population
from ..engine.result import Result
from . import figures, images, molecules, samples
from .recorder import plain
from .svg import number

SHOWN = 8  # number of samples that are drawn
_CUT = "display:block;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;font-size:11px;background:none"


def result_html(result: Result) -> str:
    """A small table of a result and its best samples; HTML without scripts."""
    if not len(result):
        return "<p>Result without samples</p>"
    facts = [("samples", f"{len(result)}"), *_groups(result.groups)]
    if result.rewards is not None:
        best = figures.greatest(result.rewards)
        facts += [("mean reward, weighted", number(figures.mean(result))), ("best reward", number(best))]
    if result.holdout is not None:
        facts.append(("held-out reward, weighted", number(figures.mean(result, "holdout"))))
    facts += [
        ("effective samples", _each(result.ess.tolist()) + f" of {len(result) // result.groups}"),
        ("log Z", _each(result.log_z.tolist())),
        ("cost", f"{result.cost.network_rows:,} network rows, {result.cost.reward_calls:,} reward calls, "
                 f"{number(result.cost.seconds)} s"),
    ]  # fmt: skip
    return _table("Result", facts) + _best(result)


def population_html(population: Population) -> str:
    """A small table of a population."""
    pop = population
    facts = [("particles", f"{len(pop)} of shape {tuple(pop.x.shape[1:])}"), *_groups(pop.groups)]
    if bool(pop.rewards.isfinite().any()):
        known = pop.rewards.nanmean()
        best = figures.greatest(pop.rewards)
        facts += [("mean reward of the clean estimates", number(float(known))), ("best reward", number(best))]
    facts += [
        ("effective samples", _each(pop.ess.tolist()) + f" of {len(pop) // pop.groups}"),
        ("log Z", _each(pop.log_z.tolist())),
        ("starting particles with descendants", f"{len(pop.root.unique())}"),
    ]
    return _table("Population", facts)


def plot(result: Result) -> Any:
    """Two matplotlib axes: the weighted rewards of the samples, and the effective sample size by step."""
    from rewards.base import needs

    plt = needs("matplotlib.pyplot", "report", "result.plot()")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    _histogram(left, result)
    _sizes(right, result)
    return figure.axes


def _histogram(ax: Any, result: Result) -> None:
    ax.set(xlabel="reward", ylabel="share of samples", title="Rewards, under the weights")
    if result.rewards is None:
        ax.text(0.5, 0.5, "no reward", transform=ax.transAxes, ha="center")
        return
    known = result.rewards.isfinite().cpu()
    values, weights = result.rewards.cpu()[known].numpy(), result.weights.cpu()[known].numpy()
    ax.hist(values, bins=24, weights=weights / (weights.sum() or 1.0), color="#0072b2", alpha=0.75)


def _sizes(ax: Any, result: Result) -> None:
    ax.set(xlabel="step", ylabel="effective sample size", title="Effective sample size")
    names = samples.conditions(result)
    steps = range(1, len(result.trace) + 1)
    for g, sizes in enumerate(result.trace["ess"].T.tolist() if len(result.trace) else []):
        ax.plot(steps, sizes, color=None if result.groups > 1 else "#0072b2", label=names[g])
    if 1 < result.groups <= 10:
        ax.legend()
    ax.set_ylim(bottom=0)


def _groups(groups: int) -> list[tuple[str, str]]:
    return [("groups", f"{groups}")] if groups > 1 else []


def _each(values: list[float]) -> str:
    """The values of the groups; only the first four if there are more."""
    return ", ".join(number(v) for v in values[:4]) + (", …" if len(values) > 4 else "")


def _table(title: str, facts: list[tuple[str, str]]) -> str:
    cell = "text-align:left;padding:2px 14px 2px 0;font-weight:normal"
    rows = "".join(
        f'<tr style="background:none"><th style="{cell};opacity:.75">{escape(name)}</th>'
        f'<td style="{cell}">{escape(value)}</td></tr>'
        for name, value in facts
    )
    head = f'<caption style="text-align:left;font-weight:bold">{title}</caption>'
    return f'<table style="border-collapse:collapse">{head}<tbody>{rows}</tbody></table>'


def _best(result: Result) -> str:
    """The best distinct samples, drawn if possible."""
    kind = samples.domain(result)
    rows: dict[Any, int] = {}
    for row in samples.ranked(result):
        rows.setdefault(samples.key(result, kind, row), row)
        if len(rows) == SHOWN:
            break
    drawn = "".join(_cell(result, kind, row) for row in rows.values())
    return f'<div style="display:flex;flex-wrap:wrap;gap:10px;margin-top:6px">{drawn}</div>'


def _cell(result: Result, kind: str, row: int) -> str:
    picture = _picture(result, kind, row)
    text = plain(result.samples[row]) if kind != "images" else ""
    reward = "" if result.rewards is None else f"<b>{number(float(result.rewards[row]))}</b> "
    words = f'<code style="{_CUT}" title="{escape(text)}">{escape(text)}</code>' if text else ""
    return f'<div style="width:{110 if kind == "images" else 180}px">{picture}<div>{reward}</div>{words}</div>'


def _picture(result: Result, kind: str, row: int) -> str:
    if kind == "molecules":
        return molecules.draw(str(result.samples[row])) or ""
    pixels = images.pixels(result.samples[row : row + 1]) if kind == "images" else None
    if pixels is None:
        return ""
    uri = images.png_uri(images.fitted(pixels, 128)[0])
    return f'<img src="{uri}" alt="row {row}" style="width:110px;image-rendering:pixelated">'
