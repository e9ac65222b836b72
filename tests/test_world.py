"""One population over several processes, on torch.distributed with gloo, is that of one process."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import guidekit as gk
from guidekit import random
from guidekit.jobs.ranks import joined

from .conformance.cases import CASES
from .problems import PROBLEMS, STEPS

ROOT = Path(__file__).parents[1]
N = 7  # which two and three processes cannot share evenly


def _main(rank: int, size: int, folder: str, task: Callable[..., Any], args: tuple) -> None:
    """One rank: its answer, or what it raised, is left in a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        answer = task(*args)
    except Exception:
        answer = {"error": traceback.format_exc()}
    Path(folder, f"{rank}.json").write_text(json.dumps(answer))
    dist.destroy_process_group()


def on(size: int, folder: Path, task: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function returns on each of so many ranks."""
    folder.mkdir()
    mp.spawn(_main, (size, str(folder), task, args), nprocs=size)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def differences(a: gk.Result, b: gk.Result) -> list[str]:
    """In what two results differ; float64 throughout, so that other batches round in the last digits."""
    close = {"atol": 1e-11, "rtol": 1e-11, "equal_nan": True}
    found = [k for k in ("ancestors", "group", "row") if not torch.equal(getattr(a, k), getattr(b, k))]
    for k in ("x", "log_weights", "rewards", "noise", "holdout", "log_z", "log_z_error"):
        v, w = getattr(a, k), getattr(b, k)
        if (v is None) != (w is None) or (v is not None and not torch.allclose(v.double(), w.double(), **close)):
            found.append(k)
    if a.cost.network_rows != b.cost.network_rows or a.cost.unscored != b.cost.unscored:
        found.append(f"{a.cost} {b.cost}")
    # equal tokens are scored once on each rank
    if b.cost.reward_calls < a.cost.reward_calls or (
        a.x.is_floating_point() and a.cost.reward_calls != b.cost.reward_calls
    ):
        found.append(f"{a.cost} {b.cost}")
    columns = ("t", "ess", "entropy", "resampled", "distinct", "mean_reward", "max_reward")
    columns = [k for k in columns if all(k in row for row in a.trace)]
    found += [k for k in columns if not torch.allclose(a.trace[k].double(), b.trace[k].double(), **close)]
    flat = [torch.cat([v.double().flatten() for v in leaves(r.memos)] or [torch.zeros(0)]) for r in (a, b)]
    return found if torch.allclose(*flat, **close) else [*found, "memos"]


def leaves(memo: Any) -> list[torch.Tensor]:
    return [v for part in memo for v in leaves(part)] if isinstance(memo, tuple) else [] if memo is None else [memo]


def all_rows() -> None:
    """Equal rows are evaluated once in a forward; which are equal depends on who is in it."""
    from guidekit.models import evaluations
    from guidekit.process import Masked

    evaluations.distinct = lambda x, cond: None
    Masked.decided = lambda self, x: None  # type: ignore[method-assign]
    Masked.apart = lambda self, move: False  # type: ignore[method-assign]


def laws(names: str) -> dict[str, list[str]]:
    """Guides of the conformance suite whose names match, on one problem each in turn, against this process alone."""
    all_rows()
    found = {}
    for i, case in enumerate(c for c in CASES if re.match(names, c.name)):
        for name in [case.processes[i % len(case.processes)]]:
            problem = case.on(name)
            given = {"steps": STEPS, "cond": [problem.cond, None], "seed": [3, 4], "guides": [case.make(problem)]}
            given |= {"holdout": problem.reward}
            try:
                alone = gk.sample(problem.model, N, **given)
            except Exception as error:  # what is refused alone is refused together
                with pytest.raises(type(error)):
                    gk.sample(problem.model, N, **given, world="auto")
                continue
            there = gk.sample(problem.model, N, **given, world="auto")
            found[f"{case.name}-{name}"] = differences(alone, there)
    return found


@pytest.mark.parametrize(
    "size, names, least",
    [
        pytest.param(2, "FK|SVDD|TDS|CFG$|DAS|Beam|BestOf|Keep", 20, id="two"),
        pytest.param(2, "", 0.9 * len(CASES), id="all", marks=pytest.mark.slow),
        pytest.param(4, "FK|SVDD|TDS|CFG$|DAS|Beam|BestOf|Keep", 20, id="four", marks=pytest.mark.slow),
    ],
)
def test_guides_make_the_samples_of_one_process(tmp_path: Path, size: int, names: str, least: float):
    for found in on(size, tmp_path / "world", laws, names):
        assert "error" not in found, found
        assert len(found) >= least
        assert {k: v for k, v in found.items() if v} == {}


def same_batches() -> bool:
    """With equal micro-batches, a network of float32 gives the same bits."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5)).requires_grad_(False)
    model = gk.GaussianModel(lambda x, t, cond: net(x), shape=(5,))
    steering = gk.FKSteering(lambda x: x.sum(1), 0.5, ess=1.0)
    given = {"steps": 12, "guides": [steering], "batch_size": 4, "seed": 1}
    alone, there = gk.sample(model, 16, **given), gk.sample(model, 16, **given, world="auto")
    return torch.equal(alone.x, there.x) and torch.equal(alone.log_weights, there.log_weights)


def seen_and_interrupted(file: str) -> dict[str, Any]:
    """Callbacks see everybody; a run that ends in the middle goes on, here and in one process."""
    problem = PROBLEMS["masked"]
    steering = gk.FKSteering(problem.reward, 0.5)
    given: dict[str, Any] = {"steps": STEPS, "guides": [steering], "seed": 2}
    alone, sizes = gk.sample(problem.model, N, **given), []

    def stop(population: gk.Population, step: gk.Step) -> None:
        sizes.append(len(population))
        if step.index == 3:
            raise KeyboardInterrupt

    saved = {"world": "auto", "checkpoint": file}
    gk.engine.checkpoint._SHARE = 1e9  # write after every step
    try:
        gk.sample(problem.model, N, **given, **saved, callbacks=[stop])
    except KeyboardInterrupt:
        dist.barrier()
    there = gk.sample(problem.model, N, **given, **saved)
    return {"sizes": sizes, "differences": differences(alone, there), "strings": strings()}


def strings() -> list[str]:
    """Samples that are strings, of all ranks."""
    model = PROBLEMS["masked"].model
    model.decode = spelled
    return gk.sample(model, N, steps=3, world="auto").samples


def spelled(x: torch.Tensor) -> list[str]:
    return ["".join("abcd"[letter] for letter in row) for row in x.tolist()]


def reward(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0].double() + 0.3 * x[:, -1] - 0.2 * x[:, 0].double() ** 2


SEARCHES: dict[str, Callable[..., Any]] = {
    "random": lambda **o: gk.search.random(PLANE, 3, reward, rounds=3, candidates=3, **o),
    "tokens": lambda **o: gk.search.random(PROBLEMS["masked"].model, 2, reward, candidates=3, **o),
    "calls": lambda **o: gk.search.random(
        PROBLEMS["masked"].model, 2, reward, candidates=3, budget=gk.search.Budget(calls=14), **o
    ),
    "learns": lambda **o: gk.search.evolution(PLANE, 3, reward, rounds=3, **o),
    "one": lambda **o: gk.search.zero_order(PLANE, 1, reward, rounds=2, neighbours=3, **o),
    "paths": lambda **o: gk.search.paths(PLANE, 3, reward, levels=3, ahead=1, **o),
    "gradient": lambda **o: gk.search.gradient(PLANE, 3, reward, rounds=3, batch_size=2, **DDIM, **o),
    "share": lambda **o: gk.search.share(PLANE, 2, reward, conds=[None, None], candidates=4, **o),
    "inverse": lambda **o: gk.search.flowopt(PLANE, PLANE.exact_sample(3), rounds=3, **DDIM, **o),
    "refine": lambda **o: gk.refine(PLANE, 5, reward, rounds=2, steps=3, **o),
    "evolve": lambda **o: gk.evolve(PLANE, PLANE.exact_sample(5), reward, rounds=2, offspring=2, steps=3, **o),
    "design": lambda **o: design(24, **o),
    "informed": lambda **o: gk.search.informed(TABLE, 5, ones, alpha=0.5, rounds=3, max_edits=2, **o),
    "slopes": lambda **o: gk.search.informed(TABLE, 5, ones, alpha=0.5, rounds=3, gradient=True, exact=True, **o),
    "single": lambda **o: gk.search.informed(TABLE, 1, ones, alpha=0.5, rounds=2, **o),
    "sequential": lambda **o: gk.search.sequential(PLANE, [FAR, FAR], lambda m: [gk.PiGDM(m)], 5, steps=4, **o)[-1],
    "active": lambda **o: (
        gk.search.active(
            PLANE,
            lambda a: torch.tensor([1.0, 0.0]),
            torch.eye(2).bool(),
            lambda m: [gk.PiGDM(m)],
            5,
            budget=1,
            steps=3,
            **o,
        ).result
    ),
    "split": lambda **o: gk.search.split_gibbs(TABLE, 5, TOTAL, rounds=2, moves=2, **o),
    "gibbs": lambda **o: gk.search.particle_gibbs(
        PLANE, 2, [gk.FKSteering(reward, 0.5)], particles=3, sweeps=2, steps=3, **o
    ),
    "replicas": lambda **o: gk.search.replica_exchange(PLANE, 3, reward, alphas=[0.5], sweeps=2, steps=3, **o),
}
ROUNDS = {  # with steps of their own
    "refine", "evolve", "informed", "slopes", "single", "split", "gibbs", "replicas", "sequential", "active",
}  # fmt: skip
FAR = gk.Measurement(torch.tensor([[1.0, 0.0]]), torch.tensor([0.4]), 0.3)
TABLE = gk.analytic.TokenTable(torch.linspace(-1, 1, 81, dtype=torch.float64).sin().view(3, 3, 3, 3))
TOTAL = gk.Measurement(lambda x: x.double().sum(1, keepdim=True), torch.tensor([5.0], dtype=torch.float64), noise=0.3)
LETTERS = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 4, dtype=torch.float64), 4, 6, dtype=torch.float64)
PLANE = gk.analytic.GaussianMixture([0.7, 0.3], [[-1.0, 0.5], [2.0, 1.0]], [0.5, 0.8])
DDIM: dict[str, Any] = {"solver": gk.solvers.DDIM()}


def ones(x: torch.Tensor) -> torch.Tensor:
    """How many letters are 1, of samples and of one-hot rows."""
    return (x[..., 1] if x.dim() == 3 else x == 1).double().sum(1)


ASKED: list[int] = []


def tallied(x: torch.Tensor) -> torch.Tensor:
    ASKED.append(len(x))
    return reward(x)


def design(calls: int, **options: Any) -> gk.Result:
    """A design loop of so many calls, of which the last round is cut short."""
    given: dict[str, Any] = {"population": 12, "batch": 5, "steps": 4, "seed": 3} | options
    return gk.evolve(LETTERS, 4, tallied, budget=gk.search.Budget(calls=calls), **given)


def searched(folder: str) -> dict[str, list[str]]:
    """Searches over ranks find what one process finds, at its cost."""
    found = {}
    for name, search in SEARCHES.items():
        given = {} if name in ROUNDS else {"steps": 4, "seed": 3}
        alone, there = search(**given), search(**given, world="auto")
        found[name] = differences(alone, there)
        if alone.cost.reward_calls != there.cost.reward_calls:
            found[name].append(f"{alone.cost.reward_calls} calls, {there.cost.reward_calls}")
        if isinstance(alone, gk.search.Found):
            found[name] += [] if alone.ended == there.ended else [alone.ended, there.ended]
            same = [
                a | {"worth": 0, "scores": 0} == b | {"worth": 0, "scores": 0}
                for a, b in zip(alone.asked, there.asked, strict=False)
            ]
            found[name] += [] if all(same) and len(alone.asked) == len(there.asked) else ["asked"]
    problem = PROBLEMS["masked"]
    apart = {"steps": STEPS, "guides": [gk.FKSteering(problem.reward, 0.3, ess=1.0)], "islands": gk.Islands(2, every=4)}
    found["islands"] = differences(
        gk.sample(problem.model, 8, **apart), gk.sample(problem.model, 8, **apart, world="auto")
    )
    saved = {"steps": 4, "rounds": 2, "folder": folder, "world": "auto"}
    gk.search.evolution(PLANE, 3, reward, **saved)
    try:
        gk.search.evolution(PLANE, 3, reward, steps=4 + dist.get_rank(), rounds=2, world="auto")
    except ValueError as error:
        found["other"] = [] if "is about to make another run than rank 0" in str(error) else [str(error)]
    ASKED.clear()
    design(19, checkpoint=f"{folder}.design", world="auto")
    found["design"] += [] if 8 <= sum(ASKED) <= 11 else [f"{ASKED} of 19 calls were made here"]
    return found


def refused() -> list[str]:
    """What other ranks do not agree with, or one of them raises, is an error on all."""
    model, texts = PROBLEMS["vp-1d"].model, []
    runs = (
        lambda: gk.sample(model, 1, steps=3, world="auto"),
        lambda: gk.sample(model, 4, steps=3, seed=dist.get_rank(), world="auto"),
        lambda: gk.sample(model, 4, steps=3, guides=[gk.FKSteering(_fails, 1.0)], world="auto"),
        lambda: gk.sample(model, 4, steps=3, world="all"),
        lambda: gk.sample(model, 4, steps=3, guides=[Nosy()], world="auto"),
        lambda: gk.search.tree(PLANE, 2, reward, alpha=1.0, steps=3, world="auto"),
        lambda: gk.search.rbf(PLANE, 2, reward, steps=3, world="auto"),
        lambda: gk.sample(model, 4, steps=3, callbacks=[_shown], world="auto"),
        lambda: gk.sample(model, 4, steps=3, holdout=_knows_nothing, world="auto"),
        lambda: _led(),
    )
    for run in runs:
        try:
            run()
        except Exception as error:
            texts.append(f"{type(error).__name__}: {error}")
    return texts


def _shown(population: gk.Population, step: gk.Step) -> None:
    if dist.get_rank():
        raise OSError("no room for a picture")


def _knows_nothing(x: torch.Tensor) -> torch.Tensor:
    raise LookupError("the tables are missing")


def _led() -> None:
    """The leader of a command fails between two stages."""
    with joined() as ranks:
        if ranks.leads:
            raise FileExistsError("the folder is taken")
        list(ranks.stages())


def staged() -> list[list[Any]]:
    """The stages that the others are told, and that they need not wait for the leader's files after the last one."""
    with joined() as ranks:
        if not ranks.leads:
            stages = [list(stage) for stage in ranks.stages()]
            ranks.world.told(0)
            return stages
        for name, number in (("base", 0), ("best_of_n", 3)):
            with ranks.stage(name, number):
                pass
        ranks.end()
        (ended := ranks.world.told(7))  # the others are out of their stages
    return [ended]


MINE = """
import torch, guidekit as gk

def load():
    return gk.analytic.TokenTable(torch.linspace(-1, 1, 27).sin().view(3, 3, 3))

def score(x):
    return x.double().sum(1)
"""


def written(folder: str) -> list[list[list[float]]]:
    """Runs of a configuration: one that is recorded on its way, and one that is not, as it may take several runs."""
    given = {"rewards": [f"{folder}/mine.py:score"], "guides": ["fk_steering:alpha=1"], "n": 6, "steps": 3}
    runs = [gk.Config(f"{folder}/mine.py:load", **given, unique=unique) for unique in (False, True)]
    size = dist.get_world_size() if dist.is_initialized() else 1
    return [run.run(f"{folder}/{size}{run.unique}").result.x.tolist() for run in runs]


def few_scored(x: torch.Tensor) -> torch.Tensor:
    if bool((x[:, 0] < 0).any()):
        raise ValueError("a sample that cannot be scored")
    return x[:, 0].double()


def unscored() -> list[str]:
    """A rank of whose samples none can be scored loses these samples and no others, as one process does."""
    found = []
    for seed in range(3):  # the last two leave a rank without any score
        given: dict[str, Any] = {"steps": 4, "seed": seed, "reward": few_scored, "holdout": few_scored}
        found += differences(gk.sample(PLANE, 4, **given), gk.sample(PLANE, 4, **given, world="auto"))
        given = {"steps": 4, "seed": seed, "guides": [gk.FKSteering(few_scored, 1.0)]}
        found += differences(gk.sample(PLANE, 4, **given), gk.sample(PLANE, 4, **given, world="auto"))
    return found


def tuned(file: str) -> list[str]:
    """Settings and their metrics, and what the first rank has written of them."""
    given: dict[str, Any] = {"space": {"alpha": 1.0}, "n": 5, "sweeps": 1, "steps": 3}
    again = {} if dist.get_rank() else {"checkpoint": file}  # outside a world a file has one writer
    tables = [
        gk.tune(gk.SVDD(reward, 1.0), PLANE, lambda result: result.x[:, 0], **given, **more).table
        for more in ({}, {"world": "auto", "checkpoint": file}, again)
    ]
    rows = [[(round(row["metric"], 9), row["network_rows"], row["reward_calls"]) for row in t] for t in tables]
    return [f"{rows}"] if rows[1:] != rows[:-1] else []


class Shuffle(gk.Guide):
    """Puts particles into another order, so that half of them change their rank."""

    def select(self, population: gk.Population, step: gk.Step) -> gk.Population:
        order = random.uniform(step.key, (step.n,)).argsort(-1)
        return population.select(order, population.by_group(population.log_w))


class Spreading(gk.process.Gaussian):
    """Moves by what the network says besides its prediction."""

    def kernel(self, x: torch.Tensor, predictions: tuple, move: Any, spread: torch.Tensor) -> Any:  # type: ignore[override]
        return super().kernel(x + 0.1 * spread, predictions, move)


class Telling(gk.analytic.GaussianMixture):
    def predicted(self, x: torch.Tensor, t: float, cond: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self(x, t, cond), x.sin()


def shuffled() -> list[str]:
    given, found = {"steps": 5, "guides": [Shuffle()]}, []
    telling = Telling(PLANE.weights, PLANE.means, PLANE.stds)
    telling.process = Spreading(PLANE.schedule)
    for model in (PLANE, telling):
        found += differences(gk.sample(model, 21, **given), gk.sample(model, 21, **given, world="auto"))
    return found


def odd() -> int:
    """Samples of which one, on one rank alone, cannot be decoded: no text, where all others are."""
    model = gk.analytic.GaussianMixture([1.0], [0.0], [1.0])
    top = float(gk.sample(model, N, steps=2).x.max()) - 1e-4
    model._decode = lambda x: [None if v > top else "" for v in x[:, 0].tolist()]
    return gk.sample(model, N, steps=2, world="auto").samples.count(None)


def fitted(file: str) -> float:
    """The largest difference of the coefficients of two solvers, one of them fitted by all ranks."""
    given: dict[str, Any] = {"n": 9, "points": 6, "inside": 2}
    alone = gk.solvers.fit(PLANE, gk.solvers.DPMpp(), 3, **given)
    there = gk.solvers.fit(PLANE, gk.solvers.DPMpp(), 3, **given, checkpoint=file, world="auto")
    assert not Path(file).exists()
    return max(abs(p - q) for a, b in zip(alone.table, there.table, strict=True) for p, q in zip(a.b, b.b, strict=True))


class Nosy(gk.Guide):
    """Selects by the states of all."""

    def select(self, population: gk.Population, step: gk.Step) -> gk.Population:
        order = population.by_group(population.x[:, 0]).argsort(-1)
        return population.select(order, population.by_group(population.log_w))


def _fails(x: torch.Tensor) -> torch.Tensor:
    if dist.get_rank():
        raise ValueError("no oracle here")
    return x[:, 0]


def killed() -> list[str]:
    """One rank dies in the middle of a run."""
    model = PROBLEMS["vp-1d"].model
    try:
        gk.sample(model, 4, steps=6, guides=[gk.FKSteering(_dies, 1.0)], world="auto")
    except RuntimeError as error:
        return [str(error)]
    return []


def _dies(x: torch.Tensor) -> torch.Tensor:
    if dist.get_rank():
        os._exit(7)
    return x[:, 0]


def several(file: str) -> dict[str, Any]:
    """Many small questions, to processes that are there once."""
    all_rows()
    found = {"bits": same_batches(), "refused": refused(), "searched": searched(f"{file}.search")}
    found["searched"]["shuffled"] = shuffled()
    found["searched"] |= {"unscored": unscored(), "tuned": tuned(f"{file}.tune")}
    found |= {"odd": odd(), "fitted": fitted(f"{file}.fit"), "staged": staged()}
    found["written"] = written(str(Path(file).parent))
    return found | seen_and_interrupted(file)


@pytest.mark.usefixtures("every_row")
def test_bits_callbacks_checkpoints_and_errors(tmp_path: Path):
    file = tmp_path / "run.ckpt"
    (tmp_path / "mine.py").write_text(MINE)
    answers = on(2, tmp_path / "world", several, str(file))
    assert not (lost := [found["error"] for found in answers if "error" in found]), "\n".join(lost)
    for found in answers:
        assert found["bits"]
        assert found["sizes"] == [N, N, N]
        assert found["differences"] == []
        assert found["strings"] == answers[0]["strings"]
        assert {k: v for k, v in found["searched"].items() if v} == {}
        assert {"other", "design", "islands"} < found["searched"].keys()
        few, other, failed, world, nosy, tree, rbf, shown, nothing, led = found["refused"]
        assert "2 processes, and 1 particles" in few
        assert "rank 1 of 2 is about to make another run than rank 0" in other
        assert "no oracle here" in failed
        assert "world='all'" in world
        assert "have its log_weight put what it needs into its memo" in nosy
        assert "a tree grows in one process" in tree
        assert "particles end their search one by one" in rbf
        assert "OSError: no room for a picture" in shown
        assert nothing == "RewardError: reward '_knows_nothing' raised LookupError: the tables are missing"
        assert "FileExistsError: the folder is taken" in led
        assert found["odd"] == 1
        assert found["fitted"] < 1e-9
    assert written(str(tmp_path)) == answers[0]["written"] == answers[1]["written"]
    assert [found["staged"] for found in answers] == [[[7]], [["base", 0], ["best_of_n", 3]]]
    whole = gk.search.evolution(PLANE, 3, reward, steps=4, rounds=4)
    more = gk.search.evolution(PLANE, 3, reward, steps=4, rounds=4, folder=f"{file}.search")  # goes on alone
    assert differences(whole, more) == []
    asked = len(Path(f"{file}.search.design/calls.csv").read_text().splitlines())
    assert asked == 20  # with its header; what two ranks have asked is not asked again
    assert differences(design(24), design(24, checkpoint=f"{file}.search.design")) == []
    problem = PROBLEMS["masked"]
    steering = gk.FKSteering(problem.reward, 0.5)
    here = gk.sample(
        problem.model, N, steps=STEPS, guides=[steering], seed=2, checkpoint=file
    )  # what two processes left
    assert here.ancestors.shape == (STEPS, N)
    assert differences(gk.sample(problem.model, N, steps=STEPS, guides=[steering], seed=2), here) == []
    assert answers[0]["strings"] == spelled(gk.sample(problem.model, N, steps=3).x)


def valued(folder: str) -> dict[str, Any]:
    """A value that all ranks fit, as torchrun starts them, and the same call again."""
    os.environ |= {"RANK": str(dist.get_rank()), "LOCAL_RANK": str(dist.get_rank()), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    given: dict[str, Any] = {"rollouts": 40, "steps": 4, "epochs": 3}
    alone = gk.values.fit(PLANE, tallied, **given).net.state_dict()
    ASKED.clear()
    there = [gk.values.fit(PLANE, tallied, **given, folder=folder, world="auto").net.state_dict() for _ in range(2)]
    same = [all(torch.equal(v, there[1][k]) for k, v in there[0].items())]
    same.append(all(torch.allclose(v, there[0][k], atol=1e-3) for k, v in alone.items()))
    return {"same": same, "asked": sum(ASKED), "weights": [v.double().sum().item() for v in there[0].values()]}


@pytest.mark.slow
def test_a_value_is_fitted_to_rollouts_of_all_ranks_by_the_first_one(tmp_path: Path):
    first, second = on(2, tmp_path / "world", valued, str(tmp_path / "fit"))
    assert "error" not in first, first
    assert first["same"] == second["same"] == [True, True]
    assert first["weights"] == second["weights"]
    assert first["asked"] == second["asked"] == 20


def test_a_rank_that_dies_ends_the_job_with_its_reason(tmp_path: Path):
    (folder := tmp_path / "world").mkdir()
    context = mp.get_context("spawn")
    ranks = [context.Process(target=_main, args=(r, 2, str(folder), killed, ())) for r in range(2)]
    for process in ranks:
        process.start()
    ranks[1].join(120)
    died = time.monotonic()
    ranks[0].join(60)
    assert ranks[1].exitcode == 7
    assert time.monotonic() - died < 50  # and not the half hour for which a rank would be waited for
    (text,) = json.loads((folder / "0.json").read_text())
    assert "rank 0 of 2 has lost another rank" in text


def test_alone_every_world_is_this_process():
    model = PROBLEMS["vp-1d"].model
    plain, auto = gk.sample(model, 3, steps=3), gk.sample(model, 3, steps=3, world="auto")
    assert torch.equal(plain.x, auto.x)
    with pytest.raises(TypeError, match="world=2"):
        gk.sample(model, 3, world=2)


@pytest.mark.parametrize("name", ["world", "memory", "kills", "compiled"])
def test_the_tables_of_the_page_are_those_of_the_stored_runs(name: str):
    module = runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))
    page, file = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8"), module["RESULTS"]
    lines = module["table"](json.loads(file.read_text(encoding="utf-8"))) if file.exists() else ""
    between = page.split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->")[0]
    assert between.strip() == lines.strip()
    assert module["filled"](page, "| new |").count("| new |") == 1


def test_what_many_ranks_send_follows_from_the_lineage_and_the_formula():
    """Of four particles on two ranks one comes from the other one; and the time of a step by hand."""
    module = runpy.run_path(str(ROOT / "benchmarks" / "world.py"))
    assert module["moved"](torch.tensor([[0, 1, 2, 1], [0, 1, 2, 3]]), 2) == 1 / 8
    one = {"seconds": 40.0, "selection": 0.01, "each": 0.02, "heavy": 1e6}
    two = {"gathered": 6000.0, "calls": 5.0, "latency": 0.001}
    found = module["predicted"](4, 0.5, one, two, 100)
    step = 0.02 * 100 / 4 + 0.01 + 5 * 0.001 * 2 + (6000 + 1e6 * 0.5 * 25) / 1.25e9
    assert found["seconds"] == round(20 * step, 3) and found["speed-up"] == round(40 / (20 * step), 2)
    assert found["kB states"] == 12500


@pytest.mark.slow
def test_torchrun_writes_the_folder_of_one_process(tmp_path: Path):
    args = [
        "-m",
        "guidekit",
        "sample",
        "dna",
        "-r",
        "gc",
        "-g",
        "svdd:candidates=3,alpha=0.05",
        "-n",
        "8",
        "--steps",
        "6",
    ]
    args += ["--compare", "--no-report"]
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    subprocess.run([sys.executable, *args, "--out", "one"], **run)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    told = subprocess.run([*launch, *args, "--out", "two"], **run).stdout.decode()
    assert told.count("best of 3") == 1  # the table of rank 0 alone
    for name in ("samples.csv", "samples.fasta"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one, two = (gk.load_result(tmp_path / folder / "best_of_n") for folder in ("one", "two"))
    assert one.samples == two.samples
    search = [
        "-m",
        "guidekit",
        "search",
        "dna",
        "-r",
        "gc",
        "-n",
        "4",
        "--steps",
        "6",
        "--rounds",
        "2",
        "--strategy",
        "random",
        "--no-report",
    ]
    subprocess.run([sys.executable, *search, "--out", "alone"], **run)
    subprocess.run([*launch, *search, "--out", "ranks"], **run)
    assert (tmp_path / "alone" / "samples.csv").read_bytes() == (tmp_path / "ranks" / "samples.csv").read_bytes()
    alone, ranks = (gk.load_result(tmp_path / folder / "result").cost for folder in ("alone", "ranks"))
    assert alone.reward_calls == ranks.reward_calls
    design = ["-m", "guidekit", "design", "dna", "-r", "gc", "-n", "4", "--steps", "4", "--budget", "24"]
    design += ["--population", "14", "--compare", "--no-report"]
    subprocess.run([sys.executable, *design, "--out", "mine"], **run)
    told = subprocess.run([*launch, *design, "--out", "ours"], **run).stdout.decode()
    assert len(told.strip().splitlines()) == 5  # of rank 0 alone: a head and four designs
    for name in ("designs.csv", "calls.csv", "screening/calls.csv"):
        assert (tmp_path / "mine" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
