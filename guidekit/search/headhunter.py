"""HeadHunter (Ahn et al., 2025), https://arxiv.org/abs/2506.10978: choose attention heads to perturb by a reward.

    S <- {}
    each round:   for every head h not in S    r_h = mean reward of samples guided by PAG on S and h
                  S <- S united with the `top` heads of highest r_h

All trials use the same noise, so their differences are due to the heads alone. A round costs one run for each remaining
head, and one more for S. Heads that achieve little alone may help others; further rounds find these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..engine.guide import Guide, Scale
from ..engine.run import Run
from ..engine.sample import sample
from ..guides.pag import PAG
from ..models.attention import Layers, Span, attention_layers, counting
from ..models.base import Model
from ..solvers import Solver

Head = tuple[str, int]


class Row(NamedTuple):
    """One head: the mean reward with its standard error, and its gain over no guidance from the same noise."""

    layer: str
    head: int
    reward: float
    error: float
    gain: float
    gain_error: float


class Selection(NamedTuple):
    """The first `heads` of the selection together."""

    heads: int
    reward: float
    error: float


@dataclass(frozen=True)
class Hunt:
    """What `headhunter` found.

    ranking    a row for every head, the best on its own first
    selected   the heads in the order in which they were selected
    rounds     the reward without guidance (0 heads) and after every round
    """

    ranking: tuple[Row, ...]
    selected: tuple[Head, ...]
    rounds: tuple[Selection, ...]

    def best(self, k: int | None = None) -> dict[str, tuple[int, ...]]:
        """The first k heads, in the form that PAG takes: the selected ones, then the next in the ranking.

        Without k, the number of heads whose joint reward was highest.
        """
        if k is None:
            k = max(self.rounds[1:], key=lambda r: -math.inf if math.isnan(r.reward) else r.reward).heads
        every = list(dict.fromkeys([*self.selected, *((row.layer, row.head) for row in self.ranking)]))
        if not 1 <= k <= len(every):
            raise ValueError(f"best({k}): there are {len(every)} heads")
        return _mapping(every[:k])

    def table(self, most: int | None = None) -> str:
        """The ranking and the rounds as text."""
        wide = max(len(row.layer) for row in self.ranking)
        lines = [f"{'layer':{wide}}  head    reward     error      gain     error"]
        for row in self.ranking[:most]:
            numbers = "".join(f"{v:10.4g}" for v in row[2:])
            lines.append(f"{row.layer:{wide}}  {row.head:4d}{numbers}")
        lines += ["", "heads together    reward     error"]
        return "\n".join([*lines, *(f"{r.heads:14d}{r.reward:10.4g}{r.error:10.4g}" for r in self.rounds)])

    def __str__(self) -> str:
        return self.table(20)


def headhunter(
    model: Model,
    reward: Any,
    *,
    layers: Layers = None,
    n: int = 16,
    steps: int | Sequence[float] = 25,
    scale: Scale = 3.0,
    cond: Any = None,
    seed: int | Sequence[int] = 0,
    top: int = 3,
    rounds: int = 2,
    strength: float = 1.0,
    tokens: Span | None = None,
    guides: Iterable[Guide] = (),
    solver: Solver | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Hunt:
    """Rank attention heads by the reward of samples guided by PAG on them, and select heads that work well together.

    layers           names of modules; None is every layer with self-attention
    n, cond, seed    samples of each trial: n per condition, from the same noise in all trials
    scale, strength, tokens   of PAG; search at full strength, and lower it afterwards
    top, rounds      heads added per round, and rounds; the paper takes 24 and 1 for quality, 3 and 5 for styles
    guides           other guides in the list, such as CFG

    >>> hunt = headhunter(model, reward, layers="blocks", cond="HepG2")             # doctest: +SKIP
    >>> gk.sample(model, 64, guides=[gk.PAG(3.0, heads=hunt.best(4), strength=0.5)])  # doctest: +SKIP
    """
    from tqdm.auto import tqdm

    if top < 1 or rounds < 1:
        raise ValueError(f"top={top}, rounds={rounds}: at least 1 each")
    options = {"steps": steps, "cond": cond, "seed": seed, "solver": solver, "batch_size": batch_size}
    left = _heads(model, layers, cond)
    runs = 1 + sum(len(left) - r * top + 1 for r in range(rounds) if len(left) > r * top)
    with tqdm(total=runs, unit="run", desc="headhunter", disable=not progress) as bar:

        def trial(heads: Sequence[Head]) -> Tensor:
            pag = [PAG(scale, heads=_mapping(heads), strength=strength, tokens=tokens)] if heads else []
            result = sample(model, n, guides=[*guides, *pag], reward=reward, **options)
            bar.update()
            assert result.rewards is not None
            return result.rewards.cpu()

        plain = trial([])
        ranking: list[Row] = []
        selected: list[Head] = []
        found = [Selection(0, *_mean(plain))]
        while left and len(found) <= rounds:
            scores = {head: trial([*selected, head]) for head in left}
            left = sorted(left, key=lambda head: _order(scores[head]))
            ranking = ranking or [Row(*h, *_mean(scores[h]), *_mean(scores[h] - plain)) for h in left]
            selected, left = selected + left[:top], left[top:]
            found.append(Selection(len(selected), *_mean(trial(selected))))
    return Hunt(tuple(ranking), tuple(selected), tuple(found))


def _heads(model: Model, layers: Layers, cond: Any) -> list[Head]:
    """Every head of these layers, found in one forward pass that is only observed."""
    known = attention_layers(model)
    asked = known if layers is None else [layers] if isinstance(layers, str) else list(layers)
    names = [n for p in asked for n in ([m for m in known if m == p or m.startswith(p + ".")] or [p])]
    run = Run(model, 1, steps=1, cond=cond[0] if isinstance(cond, list) else cond)
    with counting(model, list(dict.fromkeys(names))) as count, run.borrowed():
        run.start()
    return [(name, head) for name in dict.fromkeys(names) for head in range(count.get(name, 0))]


def _mapping(heads: Iterable[Head]) -> dict[str, tuple[int, ...]]:
    layers: dict[str, tuple[int, ...]] = {}
    for layer, head in heads:
        layers[layer] = (*layers.get(layer, ()), head)
    return {layer: tuple(sorted(own)) for layer, own in layers.items()}


def _mean(rewards: Tensor) -> tuple[float, float]:
    """Mean and standard error of the rewards of samples that could be scored."""
    scored = rewards[rewards.isfinite()]
    error = float(scored.std()) / math.sqrt(len(scored)) if len(scored) > 1 else math.nan
    return float(scored.mean()) if len(scored) else math.nan, error


def _order(rewards: Tensor) -> float:
    mean, _ = _mean(rewards)
    return math.inf if math.isnan(mean) else -mean
