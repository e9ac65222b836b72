"""`guidekit list NAME`: all about one name, from its card or its docstring and signature."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from .. import zoo
from ..engine.card import Paper
from ..guides import catalog
from ..jobs import names
from ..jobs.specs import ConfigError, among, nearest, parameters
from ..solvers.token_solver import TokenSolver
from .answers import lines
from .listing import option, sections

# Common options, explained here if a docstring does not explain them.
_USUAL = {
    "reward": "what to maximise; on the command line the sum of the --reward options",
    "alpha": "temperature: the target distribution is p exp(reward/alpha)",
    "value": "the look-ahead at rewards still to come; None means the reward of the clean estimate",
    "steer": "True: only the proposal is bent, and weights correct for it, so that the target stays the same",
    "start": "the guide acts from this fraction of the run on",
    "stop": "the guide acts before this fraction of the run",
    "scale": "the strength, a number or a function of t",
    "ess": "resample a group when its effective sample size is below this share of it (0 never, 1 always)",
    "resampler": "'multinomial', 'stratified', 'systematic', 'residual', 'ssp' or a function (weights, n, key)",
    "times": "the time grid: 'uniform', 'cosine', 'log_snr', 'karras' or a function (schedule, steps, t_max)",
    "rounds": "rounds of proposing and scoring",
    "candidates": "candidates of each sample in a round",
    "seed": "of its randomness",
}
# Values in examples: of any parameter of that name, or of one maker's. Others are taken from a file of the user's.
_VALUES: dict[str, Any] = {
    "alpha": 0.1, "scale": 2, "beta": 1.5, "width": 16, "branch": 4, "n": 4, "gamma": 2.5, "candidates": 8,
    "CFGpp.scale": 0.6, "Distillation.scale": 0.5, "SelfGuidedMinority.scale": 0.4, "DSearch.width": "(16, 4)",
    "CellType.name": "HepG2", "Kmer.kmers": "{'CG': 1}", "Forbidden.sites": "GAATTC", "Motif.motif": "MA0139.1",
    "Sites.forbidden": "GAATTC", "Keep.known": None, "Keep.where": None,
    "Similarity.query": "CC(=O)Oc1ccccc1C(=O)O", "Scaffold.query": "c1ccccc1", "Substructure.smarts": "c1ccccc1",
    "Docking.target": "EGFR", "ADMET.endpoint": "hERG", "objective.name": "osimertinib", "Color.rgb": "(1, 0, 0)",
    "Routes.config": "config.yml",
}  # fmt: skip
_MODELS = {"molecules": "molecules", "dna": "dna -c HepG2", "images": "fashion -c bag"}
_REWARDS = {"molecules": "qed", "dna": "dna-oracle:HepG2", "images": "fashion-classifier:bag"}


def explained(name: str) -> dict[str, Any]:
    """Everything about a name: its description, options, paper, and an example command."""
    found = sections()
    meant = among(name, [entry["name"] for entries in found.values() for entry in entries])
    for kind, entries in found.items():
        for entry in entries:
            if entry["name"] == meant:
                return {"name": entry["name"], "kind": kind.removesuffix("es" if kind == "searches" else "s")} | (
                    _EXPLAIN[kind](entry["name"])
                )
    known = [*found, *(entry["name"] for entries in found.values() for entry in entries)]
    raise ConfigError(f"there is no section and nothing else named {name!r}{nearest(name, known)}")


def _model(name: str) -> dict[str, Any]:
    card = zoo.card(name)
    domain = names.KINDS[card["kind"]]
    classes = ", ".join(map(repr, card.get("classes", [])))
    return {
        "about": f"A bundled {card['kind']} of {card['parameters'] / 1e6:.1f} million parameters; see docs/zoo.md."
        + (f"\n\nConditions (-c): {classes}, or none." if classes else ""),
        "command": f"guidekit sample {name} -r {_REWARDS[domain]} -g svdd -n 16",
        "python": f'gk.sample(gk.zoo.load("{name}"), 16)',
    }


def _guide(name: str) -> dict[str, Any]:
    make, card = names.guides()[name], catalog.GUIDES[name.split(".")[0]]
    domain = "molecules" if "masked" in card.kinds else "images"
    domain = "dna" if domain == "molecules" and "reward" not in parameters(make) else domain
    given, written = _example(name, make, domain)
    model = (
        _MODELS[domain] if "reward" not in parameters(make) else f"{_MODELS[domain].split()[0]} -r {_REWARDS[domain]}"
    )
    return _described(name, make) | {
        "paper": "" if card.paper is None else _reference(card.paper),
        "processes": ", ".join(card.kinds),
        "extra NFE": f"{card.rows} (network evaluations per particle and step, beyond the model's own)",
        "exact": card.exact,
        "command": f"guidekit sample {model} -g {_spec(name, given)}",
        "python": f"gk.sample(model, 16, guides=[gk.{name}({written})])",
    }


def _reward(name: str) -> dict[str, Any]:
    if name in names.classifiers():
        return _classifier(name)
    if name in names.clips():
        return {
            "about": "A bundled CLIP: the similarity of an image to a text.",
            "command": f"guidekit sample fashion -r {name}:'a photo of a bag' -g svdd",
            "python": f'rewards.images.ClipScore("a photo of a bag", model=gk.zoo.clip("{name}"))',
        }
    domain, make = names.rewards_of()[name]
    given, written = _example(name, make, domain)
    lower = getattr(make, "higher_is_better", True) is False
    return _described(name, make) | {
        "domain": domain,
        "better": "lower (it counts negatively, unless a transform says what is good)" if lower else "",
        "command": f"guidekit sample {_MODELS[domain].split()[0]} -r {_spec(name, given)} -g svdd",
        "python": f"from rewards.{domain} import {name}; reward = {name}({written})",
    }


def _classifier(name: str) -> dict[str, Any]:
    classes, domain = names.classifiers()[name], names.domain_of(name)
    what = "the log-odds of a cell type" if domain == "dna" else "the log-probability of a class"
    example = "HepG2" if domain == "dna" else "bag"
    return {
        "about": f"A bundled classifier, as a reward {what}.\n\nClasses: {', '.join(map(repr, classes))}.",
        "domain": domain,
        "command": f"guidekit sample {_MODELS[domain].split()[0]} -r {name}:{example} -g svdd",
        "python": f'rewards.dna.CellType("{example}", oracle="{name}")'
        if domain == "dna"
        else f'rewards.images.Classifier(gk.zoo.network("{name}"), {classes.index(example)})',
    }


def _solver(name: str) -> dict[str, Any]:
    make = names.solvers()[name]
    needed = [k for k, p in parameters(make).items() if p.default is p.empty]
    options, values = (":" + ",".join(f"{k}=1" for k in needed) if needed else ""), ", ".join("1" for _ in needed)
    model = _MODELS["dna" if issubclass(make, TokenSolver) else "images"]
    return _described(name, make) | {
        "paper": _links(make),
        "command": f"guidekit sample {model} --solver {name.lower()}{options}",
        "python": f"gk.sample(model, 16, solver=gk.solvers.{name}({values}))",
    }


def _search(name: str) -> dict[str, Any]:
    make = names.strategies()[name]
    rounds = " --rounds 4" if "rounds" in parameters(make) else ""
    return _described(name, make) | {
        "paper": _links(make),
        "command": f"guidekit search fashion --strategy {name}{rounds} -r {_REWARDS['images']} -n 4",
        "python": f"gk.search.{name}(model, 4, reward{', rounds=4' if rounds else ''})",
    }


_EXPLAIN: dict[str, Callable[[str], dict[str, Any]]] = {
    "models": _model, "guides": _guide, "rewards": _reward, "solvers": _solver, "searches": _search,
}  # fmt: skip


# docstrings and signatures -------------------------------------------------------------------------------------------


def _described(name: str, make: Callable[..., Any]) -> dict[str, Any]:
    """The docstring without examples, and the options with their defaults and meanings."""
    known = dict(sorted(parameters(make).items(), key=lambda item: item[0] in ("steer", "start", "stop")))
    prose, meanings = _read(inspect.getdoc(make) or "", list(known))
    options = [
        {"name": option(p), "about": meanings.get(k) or _USUAL.get(k, "")}
        for k, p in known.items()
        if k not in ("model", "n") or inspect.isclass(make)
    ]
    return {"about": prose, "options": options}


def _read(doc: str, known: list[str]) -> tuple[str, dict[str, str]]:
    """The prose of a docstring, and the meaning of each parameter from lines like `name   meaning`."""
    prose, meanings = [], {}
    for paragraph in doc.split("\n\n"):
        if paragraph.startswith(">>>"):
            continue
        found = _meanings(paragraph, known)
        meanings |= found
        if not found:
            prose.append(paragraph.strip("\n"))
    return "\n\n".join(prose), meanings


def _meanings(paragraph: str, known: list[str]) -> dict[str, str]:
    """Parameters and their meanings; empty if the paragraph does not list them."""
    found: dict[str, str] = {}
    names_: list[str] = []
    for line in paragraph.split("\n"):
        head = re.match(r"(\w+(?:, \w+)*) +(\S.*)", line)
        if line.startswith("  ") and names_:
            found |= {name: f"{found[name]} {line.strip()}" for name in names_}
        elif head and set(names_ := head[1].split(", ")) <= {*known, "reward"}:
            found |= dict.fromkeys(names_, head[2])
        else:
            return {}
    return found


def _reference(paper: Paper) -> str:
    """Title, authors, year and place."""
    last = [author.split(",")[0] for author in paper.authors.split(" and ")]
    who = " and ".join(last) if len(last) < 3 and last[-1] != "others" else f"{last[0]} et al."
    return f"{paper.title} ({who}, {paper.year}), {paper.url or paper.where}"


def _links(make: Callable[..., Any]) -> str:
    """The links in the docstring of a maker's module."""
    doc = sys.modules[make.__module__].__doc__ or ""
    return ", ".join(dict.fromkeys(re.findall(r"https?://[^\s,;)]*[^\s,;).:]", doc)))


def _example(name: str, make: Callable[..., Any], domain: str) -> tuple[dict[str, Any], str]:
    """The required options for a spec, those that have an example of their own, and the same in Python."""
    given, written = {}, []
    for k, p in parameters(make).items():
        if p.default is not p.empty and f"{name}.{k}" not in _VALUES:
            continue
        if k == "reward":
            written.append("reward")
            continue
        value = _VALUES.get(f"{name}.{k}", _VALUES.get(k))
        model = k in ("weak", "other", "teacher")
        if model:
            value = f"{_MODELS[domain].split()[0]}{'' if k == 'teacher' else '-weak'}"
        given[k] = f"mine.py:{k}" if value is None else value
        word = isinstance(value, str) and not value.startswith(("(", "{"))
        text = f'gk.zoo.load("{value}")' if model else k if value is None else repr(value) if word else str(value)
        written.append(f"{k}={text}")
    return given, ", ".join(written)


def _spec(name: str, given: dict[str, Any]) -> str:
    """A name with options, quoted for the shell."""
    text = ",".join(f"{k}={v}" for k, v in given.items())
    name = re.sub(r"(?<=[a-z])(?=[A-Z][a-z]{2})|(?<=[A-Z]{2})(?=[A-Z][a-z]{2,}[a-z])", "_", name).lower()
    spec = f"{name}:{text}" if text else name
    return spec if re.fullmatch(r"[\w=,.:-]*", spec) else f'"{spec}"'


# as text -------------------------------------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    """The explanation as text."""
    facts = [(k, found[k]) for k in ("paper", "processes", "domain", "better", "extra NFE", "exact") if found.get(k)]
    parts = [f"{found['name']} ({found['kind']})", found["about"]]
    if facts:
        parts.append(_wrapped(facts, ""))
    if found.get("options"):
        parts.append("Options\n" + _wrapped([(o["name"], o["about"]) for o in found["options"]], "  "))
    parts.append("Examples\n" + lines([("command line", found["command"]), ("Python", found["python"])]))
    return "\n\n".join(parts)


def _wrapped(pairs: list[tuple[str, str]], indent: str) -> str:
    """Names with their descriptions; long descriptions are wrapped below their beginning."""
    width = max(len(name) for name, _ in pairs)
    below = " " * (len(indent) + width + 2)
    return "\n".join(
        textwrap.fill(f"{indent}{name.ljust(width)}  {about}".rstrip(), 110, subsequent_indent=below) or indent
        for name, about in pairs
    )
