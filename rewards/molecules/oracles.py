r"""Activity models of PMO (Gao et al., 2022), https://arxiv.org/abs/2206.12411: probabilities that a molecule is
active, by classifiers that their authors published and many papers optimise. They say little about molecules unlike
those that they were trained on.

    DRD2     dopamine receptor: a support vector machine on 2048 counts of circular features, radius 3 (Olivecrona et
             al., 2017, https://doi.org/10.1186/s13321-017-0235-x):  f = sum_i c_i exp(-gamma |x - x_i|^2) + b,
             p = 1 - 1/(1 + exp(A f + B))
    GSK3B    glycogen synthase kinase 3 beta: 100 trees on 2048 bits of circular fragments, radius 2 (Li et al., 2018,
             https://doi.org/10.1186/s13321-018-0287-6); p is the mean of their leaves
    JNK3     c-Jun N-terminal kinase 3: the same

The arrays are those of the scikit-learn models in molscore 1.9.5 (MIT), which are TDC's. They were converted by
`benchmarks/convert_oracles.py` and are read without scikit-learn. The forests give what the originals give;
scikit-learn finds p of DRD2 by an iteration that it ends early, and differs from the formula by up to .002.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .descriptors import Molecule

SIZE = 2048
FOLDER = Path(__file__).parent / "oracles_data"


class Oracle(Molecule):
    """Base of the activity models."""

    unit = "probability"


class DRD2(Oracle):
    """Probability that a molecule is active at the dopamine receptor DRD2.

    >>> (DRD2()(["Fc1ccc(cc1)C(=O)CCCN1CCC(O)(CC1)c1ccc(Cl)cc1", "CCO"]) > 0.99).tolist()  # haloperidol, ethanol
    [True, False]
    """

    name = "DRD2"

    def of(self, mol: Any) -> float:
        m = arrays("drd2")
        apart = m["own"] + (x := counts(mol).astype(float)) @ x - 2 * (m["vectors"] @ x)
        f = float(np.exp(-m["gamma"][0] * apart) @ m["coefficients"] + m["intercept"][0])
        return float(1 - 1 / (1 + np.exp(m["sigmoid"][0] * f + m["sigmoid"][1])))


class Forest(Oracle):
    """Base of the forests."""

    def of(self, mol: Any) -> float:
        m, x = arrays(self.name.lower()), bits(mol)
        node = m["roots"].copy()
        while (inner := m["feature"][node] >= 0).any():
            step = np.where(x[m["feature"][node]] > 0, m["right"][node], node + 1)
            node = np.where(inner, step, node)
        return float(m["leaves"][m["right"][node]].mean())


class GSK3B(Forest):
    """Probability that a molecule inhibits glycogen synthase kinase 3 beta."""

    name = "GSK3B"


class JNK3(Forest):
    """Probability that a molecule inhibits c-Jun N-terminal kinase 3."""

    name = "JNK3"


def counts(mol: Any) -> np.ndarray:
    """Counts of circular features of radius 3, their numbers modulo 2048."""
    found = np.zeros(SIZE, np.int32)
    for number, count in _features().GetSparseCountFingerprint(mol).GetNonzeroElements().items():
        found[number % SIZE] += count
    return found


def bits(mol: Any) -> np.ndarray:
    """Bits of circular fragments of radius 2."""
    return _fragments().GetFingerprintAsNumPy(mol)


@lru_cache(3)
def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of a model; those of DRD2's support vectors are dense."""
    from safetensors.numpy import load_file

    found = load_file(FOLDER / f"{name}.safetensors")
    if name == "drd2":
        dense = np.zeros((len(found["coefficients"]), SIZE))
        dense[found.pop("rows"), found.pop("columns")] = found.pop("values")
        found |= {"vectors": dense, "own": (dense**2).sum(1)}
    return found


@lru_cache(1)
def _features() -> Any:
    from rdkit.Chem import rdFingerprintGenerator as make

    return make.GetMorganGenerator(radius=3, atomInvariantsGenerator=make.GetMorganFeatureAtomInvGen())


@lru_cache(1)
def _fragments() -> Any:
    from rdkit.Chem import rdFingerprintGenerator as make

    return make.GetMorganGenerator(radius=2, fpSize=SIZE)
