r"""A whole run as one value and one file.

    model = "molecules"
    rewards = ["qed", "sa:0.5"]
    guides = ["svdd:candidates=10"]
    n = 64
    steps = 100

`Config.load` reads such a file, `.save` writes it and `.run` executes it. Texts are specs (`guidekit.jobs.specs`), as
on the command line. Paths of Python files in them are relative to the folder of the file, or to the working directory
if the config does not come from a file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .specs import ConfigError, nearest, relative, rooted, seen_from, with_arrays

if TYPE_CHECKING:
    from .folder import Outcome

_TEXTS = ("rewards", "guides", "cond")  # lists
_WHOLE = ("n", "steps", "batch_size", "islands", "exchange_every")  # of at least 1
_OPEN = _WHOLE[2:]  # of which None is one
DOMAINS = ("molecules", "dna", "images", "other")


def is_picture(text: str) -> bool:
    """Whether a text is the path of a picture."""
    return text.lower().endswith((".png", ".jpg", ".jpeg"))


@dataclass(frozen=True)
class Config:
    """One run.

    model        a bundled model, or file.py:name of a base model or of a function that returns one
    rewards      specs with weights; the guides steer by their weighted sum
    guides       specs
    n            samples for each condition
    steps, seed, batch_size   as in gk.sample
    cond         conditions; without any, the unconditional model is sampled
    solver       a spec
    holdout      a reward that no guide sees, to detect over-optimisation
    search       a spec: the run is this search over the sampler's noise
    budget       of the search, like "rows=20000,calls=500"
    compare      also sample without the rewards, and best-of-N with about as many network evaluations
    device       like "cpu" or "cuda"; None takes a GPU if there is one
    domain       "molecules", "dna", "images" or "other"; None infers it from the model, the rewards or the samples
    title        of the report; runs that differ only in their title are the same run
    start        a file of samples to start from: SMILES, SDF, FASTA or CSV, a PNG image or a folder of them
    level        with start: the time in (0, 1] up to which its samples are noised; None is 0.5
    keep         what every sample keeps: letters by position, like "NNAGATAANN"; or a black-and-white PNG, white where
                 the one image of start stays as it is
    unique       samples that differ, as in gk.sample
    islands      parts of a population that select by themselves, and all together at every so many steps
                 (exchange_every; None is 10): gk.Islands
    compile      have torch.compile make the networks fast, as in gk.sample
    measure      what was measured of a sample, like "blur:sigma=2": the run draws n samples for each measurement, from
                 the posterior (`guidekit.jobs.measuring`)
    y            the measurements: a folder of PNG or NPY files, or one file
    truth        instead of y: samples, which are measured with simulated noise
    noise        of the measurements: a standard deviation, or like "poisson:gain=100"; None is 0.05
    method       the guide that takes the measurements, a spec; None chooses by the operator and the noise

    >>> Config("dna", rewards=("gc",), guides=("svdd:candidates=4",)).n
    16
    """

    model: str
    rewards: tuple[str, ...] = ()
    guides: tuple[str, ...] = ()
    n: int = 16
    steps: int = 50
    seed: int = 0
    cond: tuple[str | int, ...] = ()
    solver: str | None = None
    holdout: str | None = None
    search: str | None = None
    budget: str | None = None
    compare: bool = False
    batch_size: int | None = None
    device: str | None = None
    domain: str | None = None
    title: str | None = None
    start: str | None = None
    level: float | None = None
    keep: str | None = None
    unique: bool = False
    islands: int | None = None
    exchange_every: int | None = None
    compile: bool = False
    measure: str | None = None
    y: str | None = None
    truth: str | None = None
    noise: str | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.noise, (int, float)) and not isinstance(self.noise, bool):
            object.__setattr__(self, "noise", str(self.noise))
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in _TEXTS:
                self._check_texts(f.name, value)
            elif f.name in (*_WHOLE, "seed"):
                self._check_whole(f.name, value)
            elif f.name in ("compare", "unique", "compile"):
                _expect(isinstance(value, bool), f.name, value, "true or false")
            elif f.name == "level":
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                _expect(value is None or (number and 0 < value <= 1), f.name, value, "a number in (0, 1]")
            else:
                _expect(isinstance(value, str) or (value is None and f.name != "model"), f.name, value, "a text")
        _expect(bool(self.model.strip()), "model", self.model, "the name of a model")
        if self.domain is not None and self.domain not in DOMAINS:
            raise ConfigError(f"domain must be one of {', '.join(DOMAINS)}, not {self.domain!r}")
        if self.budget is not None and self.search is None:
            raise ConfigError("budget limits a search: give search as well")
        if self.level is not None and self.start is None:
            raise ConfigError("level says how far the samples of a start are noised: give start=FILE as well")
        if self.keep is not None and is_picture(self.keep) and self.start is None:
            raise ConfigError(f"keep {self.keep!r} is a mask of an image: give that image as start=FILE")
        if self.unique and self.search is not None:
            raise ConfigError(
                "unique is of samples that are drawn, and a search looks for the best ones: leave one out"
            )
        if self.islands is not None and self.search is not None:
            raise ConfigError("islands are of a population that is sampled, and a search has none: leave one out")
        if self.exchange_every is not None and self.islands is None:
            raise ConfigError("exchange_every says how often islands meet: give islands as well")
        self._check_measured()
        if self.compare and not self.guides and self.search is None:
            raise ConfigError("compare needs something to compare with the unguided model: give a guide")

    def _check_measured(self) -> None:
        """Check that a run has all of a measurement, and nothing that does not go with one, or none of it."""
        given = [k for k in ("y", "truth", "noise", "method") if getattr(self, k) is not None]
        if self.measure is None:
            if given:
                raise ConfigError(f"{given[0]} is of a measurement: give measure='blur:sigma=2' as well")
            return
        if (self.y is None) == (self.truth is None):
            raise ConfigError(
                "measure needs either y=FOLDER, the measurements, or truth=FOLDER, what is to be measured"
            )
        others = [k for k in ("rewards", "search", "compare", "start", "keep", "unique") if getattr(self, k)]
        if others:
            raise ConfigError(
                f"measure draws from the posterior of each measurement, and {others[0]} does not go with it"
            )

    def _check_texts(self, name: str, value: Any) -> None:
        """Check that a value is a list of texts, or a single text, and keep it as a tuple."""
        listed: Any = [value] if isinstance(value, (str, int)) and not isinstance(value, bool) else value
        kinds = (str, int) if name == "cond" else str
        good = isinstance(listed, (list, tuple)) and all(
            isinstance(v, kinds) and not isinstance(v, bool) for v in listed
        )
        _expect(good, name, value, "a list of texts" + (" or numbers" if name == "cond" else ""))
        object.__setattr__(self, name, tuple(listed))

    def _check_whole(self, name: str, value: Any) -> None:
        """Check that a value is a whole number of the right size."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        least = 1 if name in _WHOLE else -(2**63)
        fits = (whole and least <= value < 2**63) or (value is None and name in _OPEN)
        _expect(fits, name, value, "a whole number" + (f" of at least {least}" if name in _WHOLE else ""))

    @staticmethod
    def load(path: str | Path) -> Config:
        """Read a file. An unknown key or a wrong value raises an error that names it."""
        path = Path(path)
        try:
            found = parse_toml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise ConfigError(f"{path} is not a valid TOML file: {error}") from error
        known = [f.name for f in fields(Config)]
        for key in found:
            if key not in known:
                raise ConfigError(f"{path}: there is no key {key!r}{nearest(key, known)}")
        if "model" not in found:
            raise ConfigError(f"{path}: the key 'model' is missing")
        try:
            return Config(**found).rooted(path.resolve().parent)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def rooted(self, folder: Path) -> Config:
        """The config with absolute paths of its files, which were relative to a folder."""
        return self._with_files(lambda path: os.path.normpath(folder / path), lambda text: rooted(text, folder))

    def relative(self, folder: Path) -> Config:
        """The config with paths of its files relative to a folder."""
        folder = folder.resolve()
        return self._with_files(lambda path: seen_from(folder, path), lambda text: relative(text, folder))

    def _with_files(self, move: Callable[[str], str], change: Callable[[str], str]) -> Config:
        files = {k: move(v) for k in ("start", "y", "truth") if (v := getattr(self, k)) is not None}
        if self.keep is not None and is_picture(self.keep):
            files["keep"] = move(self.keep)
        if self.measure is not None:
            files["measure"] = with_arrays(change(self.measure), move)
        return replace(self._with_specs(change), **files)

    def _with_specs(self, change: Callable[[str], str]) -> Config:
        texts = {
            k: v for k in ("model", "solver", "holdout", "search", "method") if (v := getattr(self, k)) is not None
        }
        lists = {k: tuple(map(change, getattr(self, k))) for k in ("rewards", "guides")}
        return replace(self, **{k: change(v) for k, v in texts.items()}, **lists)

    def save(self, path: str | Path) -> Path:
        """Write the file that `load` reads back as the same config."""
        path = Path(path)
        path.write_text(self.text(), encoding="utf-8")
        return path

    def text(self) -> str:
        """The content of the file."""
        given = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) not in (None, ())}
        return "".join(f"{name} = {_format(value)}\n" for name, value in given.items())

    def run(self, out: str | Path | None = None, **options: Any) -> Outcome:
        """Execute the run; with `out`, everything is written there. Options as in `guidekit.jobs.execute.run`."""
        from .execute import run

        return run(self, None if out is None else Path(out), **options)


def _expect(good: bool, name: str, value: Any, what: str) -> None:
    if not good:
        raise ConfigError(f"{name} must be {what}, not {value!r}")


def _format(value: Any) -> str:
    """A value in TOML. Its texts are written as in JSON, which TOML shares except for DEL."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_format, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower()


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a TOML text."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore
    return tomllib.loads(text)
