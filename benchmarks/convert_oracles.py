"""The activity models of PMO, from the scikit-learn pickles in the wheel of molscore to the arrays that
`rewards.molecules.oracles` reads. Only a maintainer runs this, once, and apart from guidekit's own environment, since
to open a pickle is to run what is in it:

    python -m benchmarks.convert_oracles prints out/oracles.npz     # with guidekit: the molecules of the check
    python3.8 -m venv out/old
    out/old/bin/pip install scikit-learn==0.23.2 safetensors
    pip download --no-deps molscore==1.9.5
    unzip molscore-1.9.5-py3-none-any.whl 'molscore/data/models/molopt/*' -d out
    out/old/bin/python benchmarks/convert_oracles.py convert out/oracles.npz out/molscore/data/models/molopt

It writes the arrays into rewards/molecules/oracles_data/, and what the original models say of the molecules of the
check into tests/data/oracles.json, with which a test compares them.
"""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
DATA = ROOT / "rewards" / "molecules" / "oracles_data"
SAID = ROOT / "tests" / "data" / "oracles.json"


def prints(file):
    """Fingerprints of molecules from all over the data of fragments.csv and of GuacaMol's objectives."""
    import csv

    from rewards.molecules import objectives, oracles
    from rewards.molecules.descriptors import parsed

    with (ROOT / "benchmarks" / "data" / "fragments.csv").open(encoding="utf-8", newline="") as text:
        found = [value for row in csv.DictReader(text) for value in row.values()]
    found += [value for value in vars(objectives).values() if isinstance(value, str)]
    found += ["Fc1ccc(cc1)C(=O)CCCN1CCC(O)(CC1)c1ccc(Cl)cc1", "CCO", "c1ccc2c(c1)[nH]c1ccccc12"]
    found += ["CN1CCN(CC1)C1=Nc2cc(Cl)ccc2Nc2ccccc12", "O=C1NC(=O)C(c2c[nH]c3ccccc23)=C1c1c[nH]c2ccccc12"]
    smiles = sorted({s for s in found if len(s) > 2 and "*" not in s and parsed(s) is not None})
    mols = [parsed(s) for s in smiles]
    counts = np.stack([oracles.counts(m) for m in mols])
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, smiles=np.array(smiles), counts=counts, bits=np.stack([oracles.bits(m) for m in mols]))


def machine(model):
    """A support vector machine of two classes, as libsvm has it: its first class is that of positive f."""
    vectors = model.support_vectors_
    vectors = vectors.toarray() if hasattr(vectors, "toarray") else np.asarray(vectors)
    assert model.kernel == "rbf" and (vectors == vectors.round()).all() and vectors.min() >= 0 and vectors.max() < 256
    coefficients = model._dual_coef_.toarray() if hasattr(model._dual_coef_, "toarray") else model._dual_coef_
    rows, columns = vectors.nonzero()
    return {
        "rows": rows.astype(np.int32), "columns": columns.astype(np.int16),
        "values": vectors[rows, columns].astype(np.uint8), "coefficients": np.asarray(coefficients).ravel(),
        "intercept": np.asarray(model._intercept_, float), "gamma": np.array([model._gamma]),
        "sigmoid": np.array([model.probA_[0], model.probB_[0]]),
    }  # fmt: skip


def forest(model):
    """Trees one after the other. A left child follows its parent; of a leaf, `right` is its place in `leaves`."""
    features, rights, chances, roots = [], [], [], []
    for tree in (estimator.tree_ for estimator in model.estimators_):
        inner, start = tree.children_left >= 0, sum(map(len, features))
        assert (tree.threshold[inner] == 0.5).all()
        assert (tree.children_left[inner] == inner.nonzero()[0] + 1).all()
        value = tree.value[:, 0]
        roots.append(start)
        features.append(np.where(inner, tree.feature, -1).astype(np.int16))
        rights.append(np.where(inner, tree.children_right + start, -1).astype(np.int32))
        chances.append(value[:, 1] / value.sum(1))
    feature, right, chance = map(np.concatenate, (features, rights, chances))
    leaves, place = np.unique(chance[feature < 0], return_inverse=True)
    right[feature < 0] = place
    return {"roots": np.array(roots, np.int32), "feature": feature, "right": right, "leaves": leaves}


def convert(file, folder):
    from safetensors.numpy import save_file

    check, said = np.load(file), {}
    DATA.mkdir(exist_ok=True)
    for name in ("drd2", "gsk3b", "jnk3"):
        with (folder / f"{name}.pkl").open("rb") as data:
            model = pickle.load(data)
        save_file(machine(model) if name == "drd2" else forest(model), str(DATA / f"{name}.safetensors"))
        found = model.predict_proba(check["counts" if name == "drd2" else "bits"].astype(float))[:, 1]
        said[name] = dict(zip(check["smiles"].tolist(), found.tolist()))  # noqa: B905 (Python 3.8)
        if name == "drd2":
            sure = model.decision_function(check["counts"].astype(float))
            said["drd2 decision"] = dict(zip(check["smiles"].tolist(), sure.tolist()))  # noqa: B905
        print(name, (DATA / f"{name}.safetensors").stat().st_size, found.min(), found.max())
    SAID.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prints", "convert"))
    parser.add_argument("file", type=Path, help="the fingerprints of the check")
    parser.add_argument("folder", type=Path, nargs="?", help="of the pickles")
    args = parser.parse_args()
    prints(args.file) if args.what == "prints" else convert(args.file, args.folder)


if __name__ == "__main__":
    main()
