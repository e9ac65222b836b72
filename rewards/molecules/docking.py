"""Docking scores by AutoDock Vina, https://doi.org/10.1021/acs.jcim.1c00203: how tightly a molecule binds to a protein.

A sample is embedded in 3D (ETKDG, https://doi.org/10.1021/acs.jcim.5b00654, relaxed by MMFF94), prepared by meeko, and
docked into a rigid receptor. The score is the energy of the best pose in kcal/mol; lower (more negative) is tighter.
Receptors are those of dockstring (Garcia-Ortegon et al., 2022), https://arxiv.org/abs/2110.15486, or your own.
It needs `vina`, `meeko`, `gemmi` and `dockstring`; the last is not imported, only its files are read. The protonation
state is that of the SMILES.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from multiprocessing import parent_process
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ..base import needs
from .descriptors import Molecule, blocked, canonical, check_whole, parsed

_ELEMENTS = {1, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53}  # for which Vina has atom types
Box = tuple[Sequence[float], Sequence[float]]  # centre and edges, in Angstrom


def targets() -> list[str]:
    """The names of the receptors that the installed dockstring contains."""
    return sorted(path.name.removesuffix("_target.pdbqt") for path in _resources().glob("*_target.pdbqt"))


@dataclass(frozen=True, eq=False, repr=False)
class Docking(Molecule):
    """Energy of the best pose in kcal/mol; lower is better. Small molecules take half a second, large ones ten.

    target           a name of `targets()`, or the path of a receptor in PDBQT
    exhaustiveness   number of searches per molecule; Vina's own default is 8
    seed             of the embedding and of the search: a molecule has the same score in any batch
    cpu              threads per docking
    box              (centre, edges) in Angstrom, three numbers each; needed with a path
    timeout          seconds for one molecule, or None. With a timeout Vina runs in a process of its own, which can be
                     killed
    processes        that share the molecules of a batch; None is one for each core, and none more in a worker of
                     `rewards.Pooled`. A batch of one, or processes=1, is docked in this process

    A sample is NaN if it is not a molecule, has several parts (salts), cannot be embedded, has atoms that Vina does not
    know, or takes longer than `timeout`. Maps of a receptor are computed on first use, once per process, and processes
    stay for later batches.
    """

    target: str
    exhaustiveness: int = 1
    seed: int = 0
    cpu: int = 1
    box: Box | None = None
    timeout: float | None = None
    processes: int | None = None
    _receptor: _Receptor = field(init=False)

    higher_is_better = False
    unit = "kcal/mol"

    def __post_init__(self) -> None:
        check_whole("Docking", exhaustiveness=(self.exhaustiveness, 1), seed=(self.seed, 0), cpu=(self.cpu, 1))
        if self.seed >= 2**31 - 1:
            raise ValueError(f"Docking(seed={self.seed}): less than 2^31 - 1 is needed")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise ValueError(f"Docking(timeout={self.timeout}): seconds above 0, or None")
        if self.processes is not None:
            check_whole("Docking", processes=(self.processes, 1))
        path, centre, edges = _located(self.target, self.box)
        object.__setattr__(self, "_receptor", _Receptor(path, centre, edges, self.seed, self.cpu))
        object.__setattr__(self, "name", f"docking to {Path(path).stem.removesuffix('_target')}")

    def score(self, samples: Any) -> list[float]:
        for module in ("vina", "meeko", "gemmi"):  # a missing package is not the fault of a sample
            needs(module, "docking", "docking")
        count = min(len(samples), self.processes or _cores())
        if count > 1 and not isinstance(samples, str):
            return self._spread(samples, count)
        if len(samples):
            (_vina if self.timeout is None else _worker)(self._receptor)
        return super().score(samples)

    def _spread(self, samples: Sequence[Any], count: int) -> list[float]:
        """The scores by so many processes, each of which has one thread here."""
        _worker(self._receptor)  # a receptor that Vina does not take is an error of the batch
        free: SimpleQueue[int] = SimpleQueue()
        for number in range(count):
            free.put(number)
        with ThreadPoolExecutor(count) as threads:
            return super().score([threads.submit(self._by_worker, sample, free) for sample in samples])

    def _by_worker(self, sample: Any, free: SimpleQueue[int]) -> float:
        number = free.get()
        try:
            return self._docked(sample, number)
        finally:
            free.put(number)

    def one(self, sample: Any) -> float:
        return sample.result() if isinstance(sample, Future) else self._docked(sample, None)

    def _docked(self, sample: Any, number: int | None) -> float:
        """The energy, by a process of this number if one is given or needed."""
        smiles = canonical(sample)
        if smiles is None or "." in smiles:
            return math.nan
        if number is None and self.timeout is None:
            return _energy(self._receptor, smiles, self.exhaustiveness)
        return _worker(self._receptor, number or 0).energy(smiles, self.exhaustiveness, self.timeout)


@dataclass(frozen=True)
class _Receptor:
    """Everything that the maps and random numbers of a docking depend on; the key of the caches."""

    path: str
    centre: tuple[float, ...]
    edges: tuple[float, ...]
    seed: int
    cpu: int


def _resources() -> Path:
    try:
        found = metadata.distribution("dockstring").locate_file("dockstring/resources/targets")
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            "receptors by name are files of dockstring: pip install 'guidekit[docking]', or give the path of a "
            "receptor and a box"
        ) from error
    return Path(str(found))


def _located(target: Any, box: Any) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Path of a receptor, with the centre and the edges of its box."""
    if not isinstance(target, (str, os.PathLike)):
        raise TypeError(f"Docking(target) is a name or a path, not {type(target).__name__}")
    if str(target).lower().endswith(".pdbqt"):
        if not Path(target).is_file():
            raise ValueError(f"Docking({str(target)!r}): there is no such file")
        return str(Path(target).resolve()), *_checked_box(target, box)
    if target not in targets():
        raise ValueError(f"Docking({target!r}): a path to a .pdbqt file, or one of {', '.join(targets())}")
    path = _resources() / f"{target}_target.pdbqt"
    return str(path), *_checked_box(target, _conf(_resources() / f"{target}_conf.txt") if box is None else box)


def _conf(path: Path) -> Box:
    """The box in a configuration of Vina, with lines like `center_x = 9.25`."""
    pairs = (line.split("=") for line in path.read_text(encoding="utf-8").splitlines() if "=" in line)
    values = {name.strip(): float(value) for name, value in pairs}
    return [values[f"center_{axis}"] for axis in "xyz"], [values[f"size_{axis}"] for axis in "xyz"]


def _checked_box(target: Any, box: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        centre, edges = (tuple(float(number) for number in part) for part in box)
    except (TypeError, ValueError):
        centre = edges = ()
    if len(centre) != 3 or len(edges) != 3 or not all(map(math.isfinite, centre + edges)) or min(edges) <= 0:
        raise ValueError(
            f"Docking({str(target)!r}, box={box!r}): box=((x, y, z), (a, b, c)) is needed, the centre and the edges "
            "of the space to search, in Angstrom"
        )
    return centre, edges


def _energy(receptor: _Receptor, smiles: str, exhaustiveness: int) -> float:
    ligand = _ligand(smiles, receptor.seed)
    if ligand is None:
        return math.nan
    vina = _vina(receptor)
    with _silent():
        vina.set_ligand_from_string(ligand)
        vina.dock(exhaustiveness=exhaustiveness, n_poses=1)
        return float(vina.energies(n_poses=1)[0][0])


def _ligand(smiles: str, seed: int) -> str | None:
    """The molecule in PDBQT, or None if it cannot be embedded or Vina has no types for its atoms."""
    meeko = needs("meeko", "docking", "preparing molecules for Vina")
    from rdkit import Chem
    from rdkit.Chem import AllChem

    with blocked():
        mol = Chem.AddHs(parsed(smiles))
        if not {atom.GetAtomicNum() for atom in mol.GetAtoms()} <= _ELEMENTS:
            return None
        options = AllChem.ETKDGv3()  # type: ignore[attr-defined]
        options.randomSeed = seed
        if AllChem.EmbedMolecule(mol, options) != 0:  # type: ignore[attr-defined]
            return None
        AllChem.MMFFOptimizeMolecule(mol)  # type: ignore[attr-defined]
        text, ready, _ = meeko.PDBQTWriterLegacy.write_string(meeko.MoleculePreparation().prepare(mol)[0])
    return text if ready else None


@lru_cache(8)
def _vina(receptor: _Receptor) -> Any:
    """Vina with the maps of a receptor."""
    vina = needs("vina", "docking", "docking").Vina(
        sf_name="vina",
        cpu=receptor.cpu,
        seed=receptor.seed + 1,  # a seed of 0 means any seed to Vina
        verbosity=0,
    )
    with _silent():
        vina.set_receptor(receptor.path)
        vina.compute_vina_maps(center=list(receptor.centre), box_size=list(receptor.edges))
    return vina


_SILENCE = threading.RLock()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """A context in which standard output and error of this process are discarded; one thread at a time."""
    with _SILENCE, open(os.devnull, "w") as away:
        kept = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for stream, (number, _) in zip((sys.stdout, sys.stderr), kept, strict=True):
                stream.flush()
                os.dup2(away.fileno(), number)
            yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)


class _Worker:
    """A process that docks into one receptor. It answers each line of input with one line of output."""

    def __init__(self, receptor: _Receptor):
        call = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        call += "from rewards.molecules.docking import _serve, _Receptor; _serve(_Receptor(*json.loads(sys.argv[2])))"
        facts = (receptor.path, receptor.centre, receptor.edges, receptor.seed, receptor.cpu)
        self.process = subprocess.Popen(
            [sys.executable, "-c", call, json.dumps(sys.path), json.dumps(facts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.lock, self.late = threading.Lock(), False
        failure = self.answer()
        if failure is not None:
            self.close()
            raise RuntimeError(f"Vina did not take the receptor: {failure}")

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line and not self.late:
            self.close()
            raise RuntimeError("the process that runs Vina ended")
        return json.loads(line) if line else math.nan

    def end(self) -> None:
        self.late = True
        self.process.kill()

    def energy(self, smiles: str, exhaustiveness: int, timeout: float | None) -> float:
        assert self.process.stdin is not None
        with self.lock:
            timer = threading.Timer(threading.TIMEOUT_MAX if timeout is None else timeout, self.end)
            timer.start()
            try:
                self.process.stdin.write(json.dumps([smiles, exhaustiveness]) + "\n")
                self.process.stdin.flush()
                answer = self.answer()
            except BaseException:  # a late answer would be taken for that of the next sample
                self.end()
                raise
            finally:
                timer.cancel()
                timer.join()
        if isinstance(answer, str):
            raise RuntimeError(f"docking failed with {answer}")
        return answer

    def close(self) -> None:
        self.end()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


# by process, because a fork does not own its parent's, receptor and number
_WORKERS: dict[tuple[int, _Receptor, int], _Worker] = {}


def _cores() -> int:
    """The cores for a batch; one where this process is itself one of several that share it."""
    if parent_process() is not None:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _worker(receptor: _Receptor, number: int = 0) -> _Worker:
    key = (os.getpid(), receptor, number)
    worker = _WORKERS.get(key)
    if worker is not None and worker.late:
        worker.close()
    if worker is None or worker.late:
        _WORKERS[key] = worker = _Worker(receptor)
    return worker


@atexit.register
def _close() -> None:
    for (process, *_), worker in _WORKERS.items():
        if process == os.getpid():
            worker.close()


def _serve(receptor: _Receptor) -> None:
    """Answer null once the maps are computed, then each line [smiles, exhaustiveness] with an energy or an error."""
    receptor = _Receptor(receptor.path, tuple(receptor.centre), tuple(receptor.edges), receptor.seed, receptor.cpu)
    print(_answered(_vina, receptor), flush=True)
    for line in sys.stdin:
        print(_answered(_energy, receptor, *json.loads(line)), flush=True)


def _answered(function: Callable[..., Any], *arguments: Any) -> str:
    try:
        value = function(*arguments)
        return json.dumps(value if isinstance(value, float) else None)
    except Exception as error:
        return json.dumps(f"{type(error).__name__}: {error}")
