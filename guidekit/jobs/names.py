"""The objects behind the names in a run: models, guides, rewards, solvers and searches.

No names are listed here: guides come from the catalogue, rewards from the package of each domain, models and
classifiers from the cards of the zoo, searches from their signatures.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module, util
from pathlib import Path
from typing import Any

from torch import Tensor

import rewards
from rewards import Reward, as_reward, transforms

from .. import guides as guide_classes, search as searches, solvers as solver_classes, zoo
from ..engine.guide import Guide
from ..guides import catalog
from ..models.base import Model
from ..solvers import Solver, Table
from .specs import (
    Call,
    ConfigError,
    Spec,
    arguments,
    call,
    displayed,
    find,
    kinds,
    listed,
    literal,
    nearest,
    parameters,
    parse,
)
from .watched import Watched

DOMAINS = ("molecules", "dna", "images", "other")
KINDS = {"molecule model": "molecules", "fragment model": "molecules", "DNA model": "dna", "image model": "images"}
_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)", re.S)


# tables --------------------------------------------------------------------------------------------------------------


def models() -> dict[str, str]:
    """Bundled base models, with a short description of each."""
    cards = [zoo.card(name) for name in zoo.entries()]
    return {c["name"]: f"{c['kind']}, {c['parameters'] / 1e6:.1f}M parameters" for c in cards if c["kind"] in KINDS}


def classifiers() -> dict[str, list[str]]:
    """Bundled classifiers, with their classes."""
    cards = [zoo.card(name) for name in zoo.entries()]
    return {c["name"]: c["classes"] for c in cards if c["kind"] == "classifier"}


def clips() -> list[str]:
    """Bundled CLIP models: rewards of a prompt."""
    return [name for name in zoo.entries() if zoo.card(name)["kind"] == "CLIP"]


def domain_of(classifier: str) -> str:
    """The domain of a bundled classifier."""
    return "dna" if zoo.card(classifier)["network"].startswith("DNA") else "images"


@lru_cache(1)
def guides() -> dict[str, Callable[..., Guide]]:
    """Makers of guides by name: classes, and the functions of classes with several forms."""
    found: dict[str, Callable[..., Guide]] = {}
    for name in catalog.GUIDES:
        make = getattr(guide_classes, name)
        forms = {k: getattr(make, k) for k, v in vars(make).items() if isinstance(v, staticmethod)}
        plain = not isinstance(make, type) or issubclass(make, Guide)
        found |= {name: make} if plain else {f"{name}.{k}": form for k, form in forms.items()}
    return found


@lru_cache(1)
def solvers() -> dict[str, type[Solver]]:
    """Solvers by name; fitted tables are files."""
    every = vars(solver_classes).items()
    return {k: v for k, v in every if isinstance(v, type) and issubclass(v, Solver) and v not in (Solver, Table)}


@lru_cache(1)
def strategies() -> dict[str, Callable[..., Any]]:
    """Searches: functions whose required arguments are a model, n and a reward."""
    found = {}
    for name in searches.__all__:
        make = getattr(searches, name)
        if inspect.isfunction(make):
            required = [k for k, p in parameters(make).items() if p.default is p.empty]
            found |= {name: make} if required == ["model", "n", "reward"] else {}
    return found


@lru_cache(1)
def rewards_of() -> dict[str, tuple[str, Callable[..., Reward]]]:
    """Domain and maker of every bundled reward, by name."""
    found: dict[str, tuple[str, Callable[..., Reward]]] = {}
    for domain in DOMAINS[:3]:
        package = import_module(f"rewards.{domain}")
        found |= {name: (domain, getattr(package, name)) for name in package.__all__ if _makes(getattr(package, name))}
    return found


def _makes(value: Any) -> bool:
    """Whether a value is a reward class, but not a base class, or a function that returns a reward."""
    if inspect.isfunction(value):
        kind = typing.get_type_hints(value).get("return")
        return isinstance(kind, type) and issubclass(kind, Reward)
    if not isinstance(value, type) or not issubclass(value, Reward):
        return False
    return value.score is not Reward.score and not any(value is b for b in _bases())


def _bases() -> tuple[type[Reward], ...]:
    """Base classes, which are not rewards by themselves."""
    from rewards.dna import Network
    from rewards.images import Classifier, Frames, ImageScore
    from rewards.molecules import Molecule

    return Molecule, ImageScore, Network, Classifier, Frames


def about(make: Any) -> str:
    """The first sentence of a docstring, without references."""
    text = " ".join((inspect.getdoc(make) or "").split("\n\n")[0].split())
    text = re.sub(r" \([A-Z][^()]*\d{4}\)|,? https?://[^\s,;]*[^\s,;:.]", "", text)
    return re.split(r"(?<=[a-z)\]0-9])[.;:] (?!al)", text + " ")[0].rstrip(". ")


# the user's own objects ----------------------------------------------------------------------------------------------


def import_object(text: str) -> Any:
    """The object of `file.py:name` or `package.module:name`. The file is run."""
    match = _FILE.fullmatch(text)
    place, _, name = text.rpartition(":")
    try:
        module = _import_file(Path(match["file"])) if match else import_module(place)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{text}: {place} cannot be imported ({type(error).__name__}: {error}){_hidden_by_ours(match)}"
        ) from error
    if not hasattr(module, name):
        own = [k for k, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        raise ConfigError(f"{text}: there is no {name!r} in {place}{nearest(name, own[:12]) if own else ''}")
    return getattr(module, name)


def _hidden_by_ours(match: re.Match[str] | None) -> str:
    """The end of a message: a neighbouring file that cannot be imported, because a package of guidekit has its name."""
    beside = Path(match["file"]).parent if match else Path.cwd()
    found = [f"{name}.py" for name in ("rewards", "guidekit") if (beside / f"{name}.py").exists()]
    return f"; {beside / found[0]} has the name of a package of guidekit, so rename it" if found else ""


def _import_file(path: Path) -> Any:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    name = f"guidekit_user_{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return sys.modules[name]
    spec = util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that the user's files do not hide a package
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def is_reference(text: Any) -> bool:
    """Whether a text names an object, as file.py:name or module:name."""
    return (
        isinstance(text, str)
        and re.fullmatch(r"[^=(,:]+\.py:[A-Za-z_]\w*|[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) is not None
    )


# making objects ------------------------------------------------------------------------------------------------------


def make_model(text: str, device: str | None = None, ahead: bool = True) -> tuple[Model, str | None]:
    """Make a base model; also returns its domain if that is known.

    ahead   whether anything may read predictions of more than the next token; without it, bundled models that draw from
            the left take less time for the same samples
    """
    spec = parse(text, models())
    if not is_reference(spec.name):
        names = list(models())
        if spec.name in classifiers():
            raise ConfigError(f"{spec.name!r} is a classifier and not a base model; choose from {', '.join(names)}")
        if spec.args or spec.options:
            raise ConfigError(f"{text!r}: bundled models have no options")
        name = find(spec.name, names, "model")
        return zoo.load(name, device, ahead or not zoo.continues(name)), KINDS[zoo.card(name)["kind"]]
    found = import_object(spec.name)
    if not isinstance(found, Model):
        if not callable(found):
            raise ConfigError(f"{spec.name} must be a base model or a function that returns one, not {_kind(found)}")
        given = {"device": device} if "device" in parameters(found) and device is not None else {}
        found = call(found, Call(spec.name, spec.args, given | spec.options))
    if not isinstance(found, Model):
        raise ConfigError(
            f"{spec.name} must return a base model, like gk.GaussianModel(...), and returned {_kind(found)}"
        )
    return found, None


def make_solver(text: str) -> Solver:
    """Make a solver, or read the table in a .json file."""
    if text.strip().endswith(".json"):
        return _read_table(Path(text.strip()))
    spec = parse(text, solvers())
    name = find(spec.name, list(solvers()), "solver")
    return construct(solvers()[name], Call(name, spec.args, spec.options))


def _read_table(file: Path) -> Table:
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file")
    try:
        return Table.load(file)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_guide(text: str, reward: Reward | None) -> Guide:
    """Make a guide; if it needs a reward, it gets this one."""
    spec = parse(text, guides())
    if is_reference(spec.name):
        found = import_object(spec.name)
        made = construct(found, spec, {"reward": reward}) if callable(found) and not isinstance(found, Guide) else found
        if not isinstance(made, Guide):
            raise ConfigError(f"{spec.name} must be a Guide or return one, not {_kind(made)}")
        return made
    name = find(spec.name, list(guides()), "guide")
    return construct(guides()[name], Call(name, spec.args, spec.options), {"reward": reward})


def make_search(text: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A search of `gk.search`, and its options."""
    spec = parse(text, strategies())
    name = find(spec.name, list(strategies()), "search")
    given = {"model": 0, "n": 0, "reward": 0}
    options = arguments(strategies()[name], Call(name, spec.args, spec.options), given, _convert, ["over"])
    return strategies()[name], {k: v for k, v in options.items() if k not in given}


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"


def construct(make: Callable[..., Any], spec: Call, given: dict[str, Any] | None = None) -> Any:
    """What a maker makes of the options of a spec; `given` is for required ones that the spec does not name."""
    try:
        return call(make, spec, given, _convert)
    except ConfigError:
        raise
    except (ValueError, TypeError, LookupError) as error:
        raise ConfigError(str(error)) from error


def _convert(name: str, kind: Any, text: str) -> Any:
    """The value that a text stands for, given the type of the parameter."""
    members = kinds(kind)
    if any(isinstance(k, type) and issubclass(k, Model) for k in members):
        return make_model(text)[0]
    if any(isinstance(k, type) and issubclass(k, Solver) for k in members):
        return make_solver(text)
    if name == "reward" and str not in members:
        return good(make_components([text])[0])
    if name in ("conditions", "label", "own"):
        return literal(text)
    if (str not in members or name == "value") and is_reference(text):
        return import_object(text)
    return text


# rewards -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Component:
    """One of the rewards of a run.

    name     of its column
    raw      the reward itself
    weight   its weight in the sum, in which larger is better
    domain   of its samples, or None
    own      whether it is bundled, so that it can be tried before a run
    """

    name: str
    raw: Reward
    weight: float
    domain: str | None
    own: bool
    spec: str


def make_components(specs: Sequence[str]) -> list[Component]:
    """Make the rewards with their weights, under distinct names."""
    found = [_make_component(text) for text in specs]
    names = [c.name for c in found]
    taken = {"row", "condition", "sample", "reward", "holdout", "log_weight", "weight", ""}
    unclear = [c.name in taken or names.count(c.name) > 1 for c in found]
    named = [replace(c, name=displayed(c.spec)) if u else c for c, u in zip(found, unclear, strict=True)]
    for name in [c.name for c in named]:
        if [c.name for c in named].count(name) > 1:
            raise ConfigError(f"the reward {name!r} is given twice")
    return named


def _make_component(text: str) -> Component:
    known = [*rewards_of(), *classifiers(), *clips()]
    spec = parse(text, known, weights=True)
    domain, own = None, True
    if is_reference(spec.name):
        raw, own = _make_own_reward(spec), False
    else:
        spec = replace(spec, name=find(spec.name, known, "reward"))
        domain, raw = _make_bundled(spec)
    watched = Watched.of(raw)
    for step in spec.then:
        watched = watched.transformed(_make_transform(step, spec.text))
    name = raw.name if not spec.then else displayed(spec.text)
    return Component(name, watched, 1.0 if spec.weight is None else spec.weight, domain, own, spec.text)


def _make_own_reward(spec: Spec) -> Reward:
    found = import_object(spec.name)
    if isinstance(found, type) or spec.args or spec.options:
        found = construct(found, spec)
    try:
        return as_reward(found)
    except TypeError as error:
        raise ConfigError(f"{spec.name}: {error}") from error


def _make_bundled(spec: Spec) -> tuple[str, Reward]:
    """Make a bundled reward; also returns its domain."""
    if spec.name in classifiers():
        return _make_classifier_reward(spec)
    if spec.name in clips():
        from rewards.images import ClipScore

        scored = Call("ClipScore", spec.args, {"model": zoo.clip(spec.name), **spec.options})
        return "images", construct(ClipScore, scored)
    domain, make = rewards_of()[spec.name]
    return domain, construct(make, Call(spec.name, spec.args, spec.options))


def _make_classifier_reward(spec: Spec) -> tuple[str, Reward]:
    """log p(class) of an image, or the log-odds of a cell type, from a bundled classifier."""
    classes = classifiers()[spec.name]

    def reward(label: str | int) -> Reward:
        place = label if isinstance(label, int) else classes.index(find(label, classes, f"class of {spec.name}"))
        if not 0 <= place < len(classes):
            raise ConfigError(f"{spec.name}:{label}: classes are numbered from 0 to {len(classes) - 1}")
        if domain_of(spec.name) == "dna":
            return rewards_of()["CellType"][1](classes[place], oracle=spec.name).named(f"{spec.name} {classes[place]}")
        from rewards.images import Classifier

        return Classifier(zoo.network(spec.name), place).named(f"{spec.name} {classes[place]}")

    if not spec.args and "label" not in spec.options:
        raise ConfigError(f"{spec.name} needs a class, like {spec.name}:{classes[0]}; choose from {listed(classes)}")
    return domain_of(spec.name), construct(reward, spec)


def _make_transform(step: Call, text: str) -> Callable[[Tensor], Tensor]:
    from rewards.molecules import objectives

    every = {k: v for k, v in vars(transforms).items() if not k.startswith("_") and callable(v)}
    own = {k: v for k, v in every.items() if v.__module__ == transforms.__name__}
    shapes = ("Gaussian", "MaxGaussian", "MinGaussian", "Clipped", "Thresholded")
    own |= {k: getattr(objectives, k) for k in shapes}
    name = find(step.name, list(own), f"transform (in {text!r})")
    return construct(own[name], Call(name, step.args, step.options))


def good(component: Component) -> Reward:
    """The reward in the direction in which larger is better, as guides maximise it.

    A reward for which lower is better counts negatively. SA, which runs from 10 (hard) to 1 (easy), counts as
    (10 - SA)/9, so that it can be added to others between 0 and 1.
    """
    from rewards.molecules import SA, objectives

    raw = component.raw
    if raw.higher_is_better:
        return raw.named(component.name)
    if isinstance(raw, Watched) and isinstance(raw.reward, SA):
        return raw.transformed(objectives.Clipped(upper=1.0, lower=10.0), "(10 - SA)/9")
    return (-raw).named(f"-{component.name}")


def total(parts: Iterable[Component]) -> Reward | None:
    """sum_i w_i r_i over the rewards, where larger is better; a reward of weight 0 is only reported."""
    counted = [(good(c), c.weight) for c in parts if c.weight != 0]
    if not counted:
        return None
    signed = [(r if w > 0 else -r, abs(w)) for r, w in counted]
    if len(signed) == 1 and signed[0][1] == 1:
        return signed[0][0]
    return rewards.weighted_sum([r for r, _ in signed], [w for _, w in signed]).named(_formula(counted))


def summed(parts: Sequence[Component], scores: Mapping[str, Tensor]) -> Tensor:
    """The sum of `total` for samples of which the scores of each reward are known, (rows,)."""
    known = [replace(c, raw=_Known(c.raw, scores[c.name])) for c in parts]
    reward = total(known)
    if reward is None:
        raise ConfigError("all rewards have a weight of 0: there is nothing to sum")
    return reward(range(len(scores[parts[0].name])))


class _Known(Watched):
    """A reward whose scores of all samples are known."""

    def __init__(self, reward: Reward, scores: Tensor):
        super().__init__(reward.reward if isinstance(reward, Watched) else reward)  # type: ignore[arg-type]
        self.scores = scores

    def score(self, samples: Any) -> Tensor:
        return self.scores


def _formula(counted: Sequence[tuple[Reward, float]]) -> str:
    text = ""
    for reward, weight in counted:
        minus = (weight < 0) != reward.name.startswith("-")
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        text += f"{' -' if minus else ' +'} {size}{reward.name.removeprefix('-')}"
    return f"-{text[3:]}" if text.startswith(" -") else text[3:]
