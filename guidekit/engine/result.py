"""What a run returns: samples with their weights, where they came from and what they cost."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import random
from ..errors import CheckpointError
from . import resampling, tree
from .cost import Cost
from .population import effective_size, entropy, log_mean_exp
from .shown import rendered
from .tree import Tree

_ROWS = ("x", "group", "log_weights", "rewards", "noise", "row", "holdout")
_TENSORS = (*_ROWS, "ancestors")
_FORMAT = "guidekit-result-1"
_FILES = ("result.json", "tensors.safetensors")


class Trace(list):
    """One dict per step; `trace["ess"]` is a column, as a tensor (steps,) or (steps, groups)."""

    def __getitem__(self, key: Any) -> Any:
        return torch.tensor([row[key] for row in self]) if isinstance(key, str) else super().__getitem__(key)


@dataclass(frozen=True)
class Result:
    """Samples of a run, row by row; groups of n rows each, one for every condition.

    x            final states (groups*n, *shape)
    samples      decoded: a tensor, or a list with one entry per row
    rewards      float64 (groups*n,), NaN where a sample could not be scored, or None where there was no reward
    group        index of the row's condition
    log_weights  unnormalised, float64: exp(log_weights - log_z) has mean 1 in every group
    ancestors    (steps, rows of the run): for each step and row, the row of the step before from which it descends
    row          the row of the run that each sample is, for ancestors and noise; see `lineage`
    trace        one dict per step with t, ess, entropy (of the weights, in nats), resampled, distinct, mean_reward,
                 max_reward, log_z_error (a list with one entry per group) and seconds; distinct counts the starting
                 particles that still have descendants, log_z_error is of the mean weight up to there
    cost         .network_rows, .network_calls, .reward_calls (distinct samples scored), .unscored, .seconds
    noise        the starting noise of each sample
    holdout      what a reward that took no part in the run says of the samples, or None
    memos        what each guide of the list remembers of the samples
    config       the arguments of the run, as plain values
    """

    x: Tensor
    samples: Any
    rewards: Tensor | None
    group: Tensor
    log_weights: Tensor
    ancestors: Tensor
    trace: Trace
    cost: Cost
    row: Tensor
    noise: Tensor | None = None
    holdout: Tensor | None = None
    memos: tuple[Tree, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        """How many samples, what they are worth, how far the weights can be trusted, and the cost."""
        if not len(self):
            return f"{type(self).__name__}(no samples)"
        count = f"{len(self)} sample{'' if len(self) == 1 else 's'}"
        count += f" in {self.groups} groups" if self.groups > 1 else ""
        facts = [count, *_found(self), *_worth(self), _sizes(self.ess, len(self)), *_spent(self.cost)]
        return f"{type(self).__name__}({', '.join(facts)})"

    @property
    def groups(self) -> int:
        return int(self.group.max()) + 1 if len(self) else 0

    @property
    def log_z(self) -> Tensor:
        """Estimate of log E[exp(r/alpha)] for each group; exp of it is unbiased."""
        return log_mean_exp(self._by_group(self.log_weights))

    @property
    def ess(self) -> Tensor:
        """Effective sample size of each group."""
        return effective_size(self._by_group(self.log_weights))

    @property
    def strength(self) -> dict[str, Any] | None:
        """What `alpha="auto"` has found: alpha, kl, ess, reward and before as in `gk.search.strength`, why it stopped,
        and the size n and the cost of its pilot runs (which `cost` contains). None where guides had numbers."""
        return self.config.get("strength")

    @property
    def weights(self) -> Tensor:
        """Normalised weights, summing to 1 in every group."""
        return self._by_group(self.log_weights).softmax(-1).flatten()

    @property
    def log_z_error(self) -> Tensor:
        """Standard error of log_z for each group by this one run, whatever the resampler, local selections included.

        A family is what descends from one starting particle, and dM_b what its share of the weight changes by in a
        move. Var(Z^)/Z^2 is estimated by the sum over families of (sum over moves of sqrt(c) dM_b)^2: the jumps that
        resampling makes are left out, and c is N/(N - 1), and more after each resampling. The derivation is in
        `guidekit.engine.variance`, after Lee and Whiteley (2018), https://arxiv.org/abs/1509.00394.

        NaN where fewer than five families are left, and for one particle. Like log_z it is too small where the run met
        too few of the rare particles that make up most of Z. That of the whole run, also after `best` and `resample`.
        """
        found = self.trace[-1].get("log_z_error") if self.trace else None
        found = [torch.nan] * self.groups if found is None else found
        return torch.tensor(found, dtype=torch.float64, device=self.log_weights.device)

    def summary(self, base: Result | None = None) -> list[dict[str, float]]:
        """One row of diagnostics for each group; against an unguided result also the gains, in its standard deviations.

        ancestors   starting particles that have descendants among the samples
        distinct    different samples
        entropy     of the weights, in nats; log n where all weigh alike
        spread      root mean square distance of two samples (tensors of numbers)
        reward and holdout: means under the weights. A reward that gains much more than the holdout is over-optimised
        """
        return [self._row(g, base) for g in range(self.groups)]

    def _row(self, g: int, base: Result | None) -> dict[str, float]:
        mine = (self.group == g).nonzero()[:, 0]
        w = self.weights[mine]
        part = picked(self.samples, mine)
        row: dict[str, float] = {
            "group": g,
            "n": len(mine),
            "ess": float(self.ess[g]),
            "entropy": float(entropy(self.log_weights[mine])),
            "ancestors": len(self.lineage()[0][mine].unique()),
            "distinct": len(set(part)) if isinstance(part, list) else len(self.x[mine].unique(dim=0)),
            "log_z": float(self.log_z[g]),
            "log_z_error": float(self.log_z_error[g]),
        }
        if self.x.is_floating_point():
            x = self.x[mine].flatten(1).double()
            row["spread"] = float((2 * x.var(0, correction=0).sum()).sqrt())
        for name in ("rewards", "holdout"):
            v, short = getattr(self, name), name.removesuffix("s")
            if v is None:
                continue
            row[short] = _mean(v[mine], w)
            other = getattr(base, name) if base is not None else None
            if other is not None and base is not None:
                theirs = other[base.group == min(g, base.groups - 1)]
                theirs = theirs[theirs.isfinite()]
                row[f"{short}_gain"] = (row[short] - float(theirs.mean())) / float(theirs.std())
        return row

    def lineage(self) -> Tensor:
        """(steps + 1, samples): the row of the run from which each sample descends, at every step and the start."""
        rows = [self.row]
        for parent in reversed(self.ancestors.unbind(0)):
            rows.append(parent[rows[-1]])
        return torch.stack(rows[::-1])

    def best(self, k: int = 1) -> Result:
        """The k samples of highest reward in every group, best first."""
        if self.rewards is None:
            raise ValueError("best(k) needs rewards: give gk.sample a reward=..., or a guide that has one")
        size = len(self) // self.groups
        if not 1 <= k <= size:
            raise ValueError(f"best({k}): every group has {size} samples")
        order = self._by_group(self.rewards).nan_to_num(-torch.inf).topk(k, -1).indices
        return self.select(order)

    def resample(self, seed: int = 0) -> Result:
        """Equally weighted samples, drawn from the weighted ones group by group (systematic)."""
        log_w = self._by_group(self.log_weights)
        keys = random.fold(random.key([seed] * self.groups, log_w.device), "result")
        chosen = self.select(resampling.systematic(log_w.softmax(-1), log_w.shape[1], keys))
        return replace(chosen, log_weights=self.log_z.repeat_interleave(log_w.shape[1]))

    def to_frame(self):
        """A pandas DataFrame with sample (or x), group, weight, reward and holdout."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame() needs pandas: pip install 'guidekit[report]'") from error
        samples = self.samples if isinstance(self.samples, list) else list(self.x.cpu().numpy())
        columns = {"sample": samples, "group": self.group.tolist(), "weight": self.weights.tolist()}
        if self.rewards is not None:
            columns["reward"] = self.rewards.tolist()
        if self.holdout is not None:
            columns["holdout"] = self.holdout.tolist()
        return pandas.DataFrame(columns)

    def plot(self):
        """Two matplotlib axes: the rewards of the samples, weighted, and the effective sample size over the steps."""
        return rendered("plot", self)

    def _repr_html_(self) -> str:
        return rendered("result_html", self)

    def save(self, path: str | Path) -> Path:
        """Write tensors.safetensors and result.json into the folder `path`; samples are tensors or plain values."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {k: v for k in _TENSORS if (v := getattr(self, k)) is not None}
        text: dict[str, Any] = {"format": _FORMAT, "cost": asdict(self.cost), "trace": without_nan(list(self.trace))}
        text |= {"config": self.config, "memos": tree.flatten(self.memos, "memos", tensors)}
        if isinstance(self.samples, (Tensor, np.ndarray)):
            tensors |= {} if self.samples is self.x else {"samples": torch.as_tensor(self.samples)}
        else:
            text["samples"] = list(self.samples)
        try:
            encoded = json.dumps(text, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"samples that are neither tensors nor plain values cannot be saved: {error}") from error
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            path / "tensors.safetensors",
        )
        (path / "result.json").write_text(encoded, encoding="utf-8")
        shutil.copymode(path / "result.json", path / "tensors.safetensors")  # which was written for its owner alone
        return path

    def _by_group(self, v: Tensor) -> Tensor:
        return v.view(self.groups, -1)

    def select(self, order: Tensor) -> Result:
        """Rows by their place within each group, order (groups, k)."""
        size = len(self) // self.groups
        rows = (order + torch.arange(self.groups, device=order.device)[:, None] * size).flatten()
        single = self.x.dim() + (not self.x.is_floating_point())  # tokens have noise for each value that they may take
        chain = self.noise is not None and self.noise.dim() > single  # of all moves, (moves + 1, rows, ...)
        kept = {
            k: v[:, rows] if chain and k == "noise" else v[rows] for k in _ROWS if (v := getattr(self, k)) is not None
        }
        return replace(self, **kept, samples=picked(self.samples, rows), memos=tree.take(self.memos, rows))


def load_result(path: str | Path) -> Result:
    """Read what `Result.save` wrote."""
    path = Path(path)
    try:
        text = json.loads((path / "result.json").read_text(encoding="utf-8"))
        tensors = load_file(path / "tensors.safetensors")
        if text["format"] != _FORMAT:
            raise CheckpointError(f"{path}: format {text['format']!r}, this version reads {_FORMAT!r}")
        samples = text["samples"] if "samples" in text else tensors.get("samples", tensors["x"])
        fields: dict[str, Any] = {k: tensors[k] for k in _TENSORS if k in tensors}
        fields = {"rewards": None} | fields
        return Result(
            **fields,
            samples=samples,
            trace=Trace(with_nan(text["trace"])),
            cost=Cost(**text["cost"]),
            config=text["config"],
            memos=tree.unflatten(text["memos"], tensors),
        )
    except FileNotFoundError as error:
        missing = [name for name in _FILES if not (path / name).exists()]
        raise FileNotFoundError(f"{path} holds no saved result: {' and '.join(missing)} missing") from error
    except CheckpointError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a result that guidekit saved, or is truncated: {error}") from error


def _worth(result: Result) -> list[str]:
    """Rewards, in words."""
    weighted = " under the weights" if len(result.log_weights.unique()) > 1 else ""
    found = []
    for name, v in (("reward", result.rewards), ("held-out reward", result.holdout)):
        if v is not None and bool(v.isfinite().any()):
            best = f" (best {float(v.nan_to_num(-torch.inf).max()):.4g})" if name == "reward" else ""
            found.append(f"mean {name} {_mean(v, result.weights):.4g}{weighted}{best}")
    return found


def _found(result: Result) -> list[str]:
    """The temperature that was found, in words."""
    found = result.strength
    return [] if found is None else [f"alpha {found['alpha']:.3g} (KL {found['kl']:.3g} nats from the model)"]


def _sizes(ess: Tensor, count: int) -> str:
    """The effective sample sizes of the groups, in words."""
    low, high = (f"{float(v):.3g}" for v in (ess.min(), ess.max()))
    return f"ESS {low if low == high else f'{low} to {high}'} of {count // len(ess)}"


def _spent(cost: Cost) -> list[str]:
    """The cost, in words."""
    counts = [(cost.network_rows, "network rows"), (cost.reward_calls, "reward calls")]
    return [*(f"{n:,} {what}" for n, what in counts if n), f"{cost.seconds:.3g} s"]


def _mean(v: Tensor, w: Tensor) -> float:
    """The weighted mean of what is known."""
    known = v.isfinite()
    return float((w[known] * v[known]).sum() / w[known].sum())


def picked(samples: Any, rows: Tensor) -> Any:
    if isinstance(samples, np.ndarray):
        return samples[rows.cpu().numpy()]
    return samples[rows] if isinstance(samples, Tensor) else [samples[i] for i in rows.tolist()]


def without_nan(value: Any) -> Any:
    """NaN as null, which is what JSON has."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def with_nan(value: Any) -> Any:
    """The inverse."""
    if isinstance(value, dict):
        return {k: with_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_nan(v) for v in value]
    return math.nan if value is None else value
