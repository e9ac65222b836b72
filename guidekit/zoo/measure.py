r"""Measure the model of fragments during training: sample molecules from the moving average in the last checkpoint, and
add a line of figures to druglike-figures.jsonl, to be plotted against the minutes of training:

    python -m guidekit.zoo.measure --n 1000 --folder out/zoo --tasks fragments.csv

Molecules are sampled given their source alone, and compared with the same number of held-out ones from that source.
`--tasks` names a table of parts to keep, with a column for each task (linker_design, motif_extension ...) and dummy
atoms at open bonds, as in the benchmark of SAFE; quality is the fraction of samples that are valid, unique, and have a
QED of at least .6 and a synthetic accessibility of at most 4.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import data, druglike, nets
from .fragments import Fragments
from .grammar import Grammar
from .grammatical import likely

NONE = torch.tensor(druglike.CLASSES)  # no condition


@torch.no_grad()
def draw(
    net: Any, grammar: Grammar, cond: Tensor, begun: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Rows (conditions, length) of tokens, sampled one after the other from the model, restricted to the grammar.

    begun   prefixes, rows of tokens up to their first 0
    """
    rows = torch.zeros(len(cond), net.place.shape[0], dtype=torch.long) if begun is None else begun.clone()
    first = int((rows > 0).sum(1).min())
    state, going = grammar.read(rows[:, :first]), torch.arange(len(cond))
    for i in range(first, rows.shape[1]):
        seen, fixed = torch.cat([rows[going, :i], rows.new_full((len(going), 1), net.vocab)], 1), rows[going, i]
        logits = net(seen, None, cond[going])[:, -1].float()
        logits = logits.masked_fill(~likely(grammar, state, logits.softmax(1), rows.shape[1] - i)[0], -torch.inf)
        new = fixed.where(fixed > 0, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0])
        rows[going, i] = new
        going, state = going[new != 0], grammar.after(state, new)[new != 0]
        if not len(going):
            break
    return rows


def averaged(checkpoint: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """The network with the moving average of its weights in a checkpoint."""
    head, net = "average.module.", nets.PrefixNet(**options)
    net.load_state_dict({k[len(head) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(head)})
    return net.eval()


def figures(net: Any, tokens: Fragments, n: int, seed: int = 0) -> dict[str, Any]:
    """Validity, uniqueness, novelty, means and Frechet ChemNet distance of n molecules of each source."""
    from rewards.molecules.metrics import fcd, internal_diversity, novelty, uniqueness, validity

    from .evaluate import alike

    grammar, generator = Grammar.of(tokens), torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {"samples of each": n}
    real = {"MOSES": data.molecules("test"), "ZINC": data.zinc("test")}
    known = {"MOSES": data.molecules("train"), "ZINC": data.zinc("train")}
    for i, source in enumerate(druglike.SOURCES):
        cond = NONE.repeat(n, 1)
        cond[:, -1] = i
        own = tokens.decode(torch.cat([draw(net, grammar, part, None, generator) for part in cond.split(500)]))
        some = [real[source][j] for j in torch.randperm(len(real[source]), generator=generator)[:n].tolist()]
        found[source] = {
            "validity": validity(own), "uniqueness": uniqueness(own),
            "novelty": novelty(own, alike([s for s in own if s], known[source])),
            "diversity": internal_diversity(own[:1000]), "diversity of real": internal_diversity(some[:1000]),
            **_means("mean", [s for s in own if s]), **_means("mean real", some),
            "FCD": fcd([s for s in own if s], some),
        }  # fmt: skip
    found["conditions"] = {
        f"{k}, {level}": _answer(net, grammar, tokens, i, j, n // 10, generator)
        for i, k in enumerate(druglike.PROPERTIES) for j, level in enumerate(druglike.THIRDS)
    }  # fmt: skip
    return found


def _means(name: str, smiles: list[str]) -> dict[str, float]:
    return {f"{name} {k}": float(v.double().mean()) for k, v in druglike.properties(smiles).items()}


def _answer(net: Any, grammar: Grammar, tokens: Fragments, i: int, j: int, n: int, generator: torch.Generator) -> float:
    """Mean of property i of molecules sampled under the condition of its j-th third."""
    cond = NONE.repeat(n, 1)
    cond[:, i] = j
    smiles = [s for s in tokens.decode(draw(net, grammar, cond, None, generator)) if s]
    return float(druglike.properties(smiles)[druglike.PROPERTIES[i]].mean())


def kept(net: Any, tokens: Fragments, file: Path, n: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Validity, uniqueness and quality of n samples of each row of a table of parts to keep, by task."""
    with file.open(newline="", encoding="utf-8") as lines:
        table = list(csv.DictReader(lines))
    tasks = [k for k in table[0] if all("*" in row[k] for row in table)]
    grammar, generator = Grammar.of(tokens), torch.Generator().manual_seed(seed)
    own = {k: [_judged(_complete(net, grammar, tokens, row[k], n, generator)) for row in table] for k in tasks}
    return {k: {name: sum(f[name] for f in v) / len(v) for name in v[0]} for k, v in own.items()}


def _complete(
    net: Any, grammar: Grammar, tokens: Fragments, part: str, n: int, generator: torch.Generator
) -> list[str]:
    """Molecules that contain a part, each time written in another order; "" if it does not fit."""
    begun = tokens.encode([part] * n, net.place.shape[0], np.random.default_rng(0))
    rows = draw(net, grammar, NONE.repeat(len(begun), 1), torch.from_numpy(begun).long(), generator)
    return tokens.decode(rows) + [""] * (n - len(begun))


def _judged(found: list[str]) -> dict[str, float]:
    from rewards.molecules import QED, SA

    different = sorted({s for s in found if s})
    good = (QED()(different) >= 0.6) & (SA()(different) <= 4) if different else torch.zeros(0)
    valid, n = sum(map(bool, found)), len(found)
    return {"validity": valid / n, "uniqueness": len(different) / max(1, valid), "quality": float(good.sum()) / n}


def _rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {k: _rounded(v) for k, v in found.items()}
    return round(found, 4) if isinstance(found, float) else found


def main() -> None:
    from .train import TASKS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="molecules of each source")
    parser.add_argument("--folder", type=Path, default=Path("out/zoo"), help="where training keeps its checkpoint")
    parser.add_argument("--tasks", type=Path, help="a table of parts to keep")
    args = parser.parse_args()
    checkpoint = torch.load(args.folder / "druglike" / "last.ckpt", weights_only=True, map_location="cpu")
    tokens = Fragments.of(druglike.about()["tokens"])
    net = averaged(checkpoint, TASKS["druglike"].options)
    line = {
        "minutes": checkpoint["callbacks"]["Clock"]["seconds"] / 60, "steps": checkpoint["global_step"],
        **figures(net, tokens, args.n), **({"kept": kept(net, tokens, args.tasks, 100)} if args.tasks else {}),
    }  # fmt: skip
    with (args.folder / "druglike-figures.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(_rounded(line)) + "\n")
    print(json.dumps(_rounded(line), indent=1))


if __name__ == "__main__":
    main()
