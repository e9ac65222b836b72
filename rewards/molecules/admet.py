"""Absorption, distribution, metabolism, excretion and toxicity, predicted by ADMET-AI (Swanson et al., 2024),
https://doi.org/10.1093/bioinformatics/btae416: graph networks trained on data of the Therapeutics Data Commons.

It needs `admet-ai`, which requires an older rdkit and therefore an environment of its own.
"""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..base import Reward, needs
from .descriptors import blocked, check_whole, parsed

_TOXIC = (
    "AMES Carcinogens_Lagunin ClinTox DILI Skin_Reaction hERG NR-AR-LBD NR-AR NR-AhR NR-Aromatase NR-ER-LBD NR-ER "
    "NR-PPAR-gamma SR-ARE SR-ATAD5 SR-HSE SR-MMP SR-p53"
)
_PROBABILITIES = (
    "BBB_Martins Bioavailability_Ma CYP1A2_Veith CYP2C19_Veith CYP2C9_Substrate_CarbonMangels CYP2C9_Veith "
    "CYP2D6_Substrate_CarbonMangels CYP2D6_Veith CYP3A4_Substrate_CarbonMangels CYP3A4_Veith HIA_Hou PAMPA_NCATS "
    "Pgp_Broccatelli"
)
_REGRESSIONS = (
    "Caco2_Wang Clearance_Hepatocyte_AZ Clearance_Microsome_AZ Half_Life_Obach HydrationFreeEnergy_FreeSolv LD50_Zhu "
    "Lipophilicity_AstraZeneca PPBR_AZ Solubility_AqSolDB VDss_Lombardo"
)


def endpoints() -> list[str]:
    """The names of the endpoints that can be predicted."""
    return sorted(f"{_TOXIC} {_PROBABILITIES} {_REGRESSIONS}".split())


@dataclass(frozen=True, eq=False, repr=False)
class ADMET(Reward):
    """One endpoint of ADMET-AI: a probability, or a number in the unit of its data set.

    endpoint   one of `endpoints()`
    members    how many of the five networks to average. None is all, by the package's own `predict`; a smaller number
               calls the networks directly, which is faster

    `higher_is_better` is False for toxicities, whose score is the probability of harm. For other endpoints it is True,
    and what is good depends on your purpose.
    """

    endpoint: str
    members: int | None = None

    def __post_init__(self) -> None:
        if self.endpoint not in endpoints():
            raise ValueError(f"ADMET({self.endpoint!r}): it is one of {', '.join(endpoints())}")
        if self.members is not None:
            check_whole("ADMET", members=(self.members, 1))
        object.__setattr__(self, "name", f"ADMET {self.endpoint}")
        object.__setattr__(self, "higher_is_better", self.endpoint not in _TOXIC.split())
        object.__setattr__(self, "unit", "" if self.endpoint in _REGRESSIONS.split() else "probability")

    def score(self, samples: Any) -> list[float]:
        if isinstance(samples, str):
            raise TypeError(f"a list of samples is needed, not the text {samples[:40]!r}")
        samples = list(samples)
        valid = list(dict.fromkeys(s.strip() for s in samples if parsed(s) is not None))
        model = _model()
        predict = self._whole if self.members is None else self._few
        found = predict(model, valid) if valid else {}
        return [found.get(s.strip(), math.nan) if isinstance(s, str) else math.nan for s in samples]

    def _whole(self, model: Any, smiles: list[str]) -> dict[str, float]:
        """The predictions by SMILES; the table lacks rows of molecules that ADMET-AI does not accept."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), blocked():
            table = model.predict(smiles=smiles)
        return {str(s): float(value) for s, value in zip(table.index, table[self.endpoint], strict=True)}

    def _few(self, model: Any, smiles: list[str]) -> dict[str, float]:
        """The mean over the first networks of the group that predicts the endpoint."""
        import torch

        group = next(i for i, tasks in enumerate(model.task_lists) if self.endpoint in tasks)
        column, networks = list(model.task_lists[group]).index(self.endpoint), model.model_lists[group][: self.members]
        batches = [smiles[i : i + 250] for i in range(0, len(smiles), 250)]
        with torch.no_grad():
            means = [sum(n.eval()(*_graphs(b))[:, column] for n in networks) / len(networks) for b in batches]
        return dict(zip(smiles, torch.cat(means).tolist(), strict=True))  # type: ignore[arg-type]


@lru_cache(1)
def _model() -> Any:
    admet = needs("admet_ai", "admet", "predicting ADMET")
    return admet.ADMETModel(num_workers=0, include_physchem=False, drugbank_path=None)


def _graphs(smiles: list[str]) -> tuple[Any, Any, Any]:
    data = needs("chemprop.data", "admet", "predicting ADMET")
    collate = needs("chemprop.data.collate", "admet", "predicting ADMET").collate_batch
    points = data.MoleculeDataset([data.MoleculeDatapoint(mol=parsed(s)) for s in smiles])
    batch = collate([points[i] for i in range(len(points))])
    return batch.bmg, batch.V_d, batch.X_d
