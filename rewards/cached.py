r"""Cached scores, in memory or in a file that several processes may share.

Samples are compared by their content: molecules by canonical SMILES, sequences in upper case, images at eight bits per
channel, everything else as it is. Equal samples cost one call. Scores are written as they arrive (in one transaction
per chunk), so none is lost in an interruption; samples without a score are tried again.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Reward, as_reward

Key = Callable[[Any], str]


def caches(reward: Reward) -> list[Cached] | None:
    """The caches of a reward, if everything that it computes goes through one; otherwise None.

    >>> len(caches(-Cached(len))), caches(Cached(len) + as_reward(len))
    (1, None)
    """
    if isinstance(reward, Cached):
        return [reward]
    found = [caches(part) for part in reward.inside()]
    return [cache for own in found for cache in own or ()] if found and None not in found else None


def canonical_smiles(sample: Any) -> str:
    """Canonical SMILES, or the text itself if it is not a molecule."""
    from .molecules.descriptors import canonical

    found = canonical(sample)
    return f"!{sample}" if found is None else found


def sequence(sample: Any) -> str:
    """The sequence in upper case, with T for U."""
    return str(sample).strip().upper().replace("U", "T") if isinstance(sample, str) else content(sample)


def image(sample: Any) -> str:
    """The hash of an image at eight bits per channel; floats are taken to be in [0, 1]."""
    if not isinstance(sample, Tensor):
        return content(sample)
    eight = sample if sample.dtype == torch.uint8 else (sample.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return content(eight)


def content(sample: Any) -> str:
    """A text itself, or the hash of any value that has bytes."""
    if isinstance(sample, str):
        return sample
    if isinstance(sample, Tensor):
        sample = sample.detach().cpu().contiguous().numpy()
    shape = getattr(sample, "shape", getattr(sample, "size", ""))
    kind = getattr(sample, "dtype", getattr(sample, "mode", type(sample).__name__))
    data = sample.tobytes() if hasattr(sample, "tobytes") else repr(sample).encode()
    return f"{kind}{shape}{hashlib.sha256(data).hexdigest()}"


KEYS: dict[str, Key] = {"smiles": canonical_smiles, "sequence": sequence, "image": image, "content": content}


class Cached(Reward):
    """A reward that is called once for each distinct sample.

    path    a file (SQLite) that keeps the scores; several processes may use it at once. None keeps them in memory
    key     how samples are compared: "smiles" | "sequence" | "image" | "content" or a function sample -> text. None is
            the reward's attribute `content` if it has one, otherwise "content"
    name    the reward's name in the file: use another one when the reward has changed
    chunk   number of samples that are sent to the reward, and written, at a time

    `calls` counts the distinct samples sent to the reward, `hits` the others. Scores have no gradients.

    >>> calls = []
    >>> cached = Cached(lambda texts: [calls.append(t) or len(t) for t in texts])
    >>> cached(["CC", "CCO", "CC"]), cached(["CCO"]), calls
    (tensor([2., 3., 2.], dtype=torch.float64), tensor([3.], dtype=torch.float64), ['CC', 'CCO'])
    """

    def __init__(
        self,
        reward: Any,
        path: str | Path | None = None,
        key: str | Key | None = None,
        *,
        name: str | None = None,
        chunk: int = 64,
    ):
        self.reward = as_reward(reward)
        key = getattr(self.reward, "content", "content") if key is None else key
        if not callable(key) and key not in KEYS:
            raise ValueError(f"Cached(key={key!r}): there is {', '.join(KEYS)}, or a function of a sample")
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise ValueError(f"Cached(chunk={chunk!r}): at least 1")
        self.key: Key = key if callable(key) else KEYS[key]
        self.path, self.chunk = None if path is None else Path(path), chunk
        self.name, self.higher_is_better = name or self.reward.name, self.reward.higher_is_better
        self.unit = self.reward.unit
        self.calls = self.hits = 0
        self._memory: dict[str, float] = {}
        if self.path is not None:
            with self._open() as file:
                file.execute("CREATE TABLE IF NOT EXISTS scores (reward, sample, score, PRIMARY KEY (reward, sample))")

    def identity(self) -> Any:
        """What determines the scores, as opposed to which samples have been seen so far."""
        return self.reward

    def score(self, samples: Any) -> list[float]:
        names = [self.key(s) for s in samples]
        new = {name: i for i, name in reversed(list(enumerate(names)))}
        self._recall(list(new))
        places = sorted(i for name, i in new.items() if name not in self._memory)
        self.calls += len(places)
        self.hits += len(names) - len(places)
        unscored: dict[str, float] = {}
        for part, scores in self._scored(samples, places):
            found = {names[i]: float(s) for i, s in zip(part, scores, strict=True)}
            unscored |= {n: s for n, s in found.items() if not math.isfinite(s)}
            self._keep({n: s for n, s in found.items() if math.isfinite(s)})
        return [self._memory.get(name, unscored.get(name, math.nan)) for name in names]

    def _scored(self, samples: Any, places: list[int]) -> Iterator[tuple[list[int], Sequence[float]]]:
        """Places and their scores, as they arrive."""
        pick = lambda part: samples[part] if isinstance(samples, Tensor) else [samples[i] for i in part]  # noqa: E731
        stream = getattr(self.reward, "stream", None)
        if stream is not None and places:
            for part, scores in stream(pick(places)):
                yield [places[i] for i in part], scores
            return
        for i in range(0, len(places), self.chunk):
            part = places[i : i + self.chunk]
            yield part, self.reward(pick(part)).tolist()

    def _recall(self, names: list[str]) -> None:
        """Read the scores that the file has for these samples."""
        if self.path is None:
            return
        asked = [n for n in names if n not in self._memory]
        with self._open() as file:
            for i in range(0, len(asked), 500):
                part = asked[i : i + 500]
                marks = ",".join("?" * len(part))
                query = f"SELECT sample, score FROM scores WHERE reward = ? AND sample IN ({marks})"
                self._memory |= dict(file.execute(query, (self.name, *part)).fetchall())

    def _keep(self, found: dict[str, float]) -> None:
        self._memory |= found
        if self.path is not None and found:
            with self._open() as file:
                rows = [(self.name, n, s) for n, s in found.items()]
                file.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)

    def _open(self) -> _File:
        assert self.path is not None
        return _File(self.path)


class _File:
    """A connection for one transaction; other processes wait for their turn."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> sqlite3.Connection:
        try:
            self.connection = sqlite3.connect(self.path, timeout=60.0)
            self.connection.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"Cached(path={str(self.path)!r}): {error}; give a file of its own") from error
        return self.connection

    def __exit__(self, kind: Any, *error: Any) -> None:
        self.connection.commit() if kind is None else self.connection.rollback()
        self.connection.close()
