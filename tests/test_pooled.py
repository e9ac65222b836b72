"""Rewards scored by real workers: processes, threads, loky and dask; workers that die, hang and raise."""

from __future__ import annotations

import os
import shutil
import signal
import textwrap
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import guidekit as gk
from rewards import Cached, Each, Pooled, Reward, RewardError, RewardWarning, pooled

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
TEXTS = [f"{'C' * (i % 7)}{i}" for i in range(60)]
LENGTHS = torch.tensor([float(len(t)) for t in TEXTS], dtype=torch.float64)


class Length(Reward):
    name = "length"

    def score(self, samples):
        return [float(len(s)) for s in samples]


class Moody(Each):
    """What a text says happens to its worker."""

    name = "moody"

    def one(self, sample: str) -> float:
        if sample.startswith("exit"):
            os._exit(3)
        if sample.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if sample.startswith("sleep"):
            time.sleep(30)
        if sample.startswith("raise"):
            raise ValueError("I do not like this one")
        return float(len(sample))


class Strict(Reward):
    """A batch with a bad sample raises as a whole."""

    name = "strict"

    def score(self, samples):
        if any("bad" in s for s in samples):
            raise RuntimeError("a bad sample in the batch")
        return [float(len(s)) for s in samples]


class Stuck(Reward):
    """Deaf to alarms, as code in C is."""

    name = "stuck"

    def score(self, samples):
        if any("stuck" in s for s in samples):
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(60)
        return [float(len(s)) for s in samples]


class Flaky(Each):
    """Fails at the first try of each sample; a folder remembers."""

    name = "flaky"

    def __init__(self, folder: Path):
        self.folder = folder

    def one(self, sample: str) -> float:
        mark = self.folder / sample
        if not mark.exists():
            mark.touch()
            raise OSError("try again")
        return float(len(sample))


class Missing(Reward):
    name = "missing"

    def score(self, samples):
        raise ImportError("no module named nothing")


class Prepared(Reward):
    """Only scores where a worker was prepared."""

    name = "prepared"

    def score(self, samples):
        return [float(os.environ["GUIDEKIT_TEST_READY"])] * len(samples)


def prepare() -> None:
    os.environ["GUIDEKIT_TEST_READY"] = str(float(os.environ.get("GUIDEKIT_TEST_READY", "6")) + 1)


def dim_sum(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).sum(1)


def loky_pool():
    return pytest.importorskip("loky").get_reusable_executor(max_workers=2)


EXECUTORS = {
    "own": lambda: 2,
    "factory": lambda: lambda: ProcessPoolExecutor(2),
    "processes": lambda: ProcessPoolExecutor(2),
    "threads": lambda: ThreadPoolExecutor(2),
    "loky": loky_pool,
}


@pytest.mark.parametrize("kind", EXECUTORS)
@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_scores_come_in_order_from_every_executor(kind: str, chunk_size: int):
    with Pooled(Length(), EXECUTORS[kind](), chunk_size) as pooled:
        assert torch.equal(pooled(TEXTS), LENGTHS)
        assert torch.equal(pooled(TEXTS[::-1]), LENGTHS.flip(0))  # the same workers again
        assert pooled([]).shape == (0,)
        assert pooled.failed == 0 and pooled.name == "length"


def test_threads_score_what_cannot_be_pickled_each_pool_its_own():
    with ThreadPoolExecutor(2) as threads:
        for factor in (1, 2):
            pooled = Pooled(lambda texts, factor=factor: [factor * len(v) for v in texts], threads, 7)
            assert torch.equal(pooled(TEXTS), factor * LENGTHS)


def test_tensors_are_sent_as_tensors():
    x = torch.arange(24.0).view(8, 3)
    with Pooled(dim_sum, 2, 3) as pooled:
        assert torch.equal(pooled(x), x.sum(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, death", [("own", "exit"), ("own", "kill"), ("processes", "exit"), ("factory", "kill"), ("loky", "kill")]
)
def test_a_worker_that_dies_costs_its_own_sample_and_the_pool_comes_back(kind: str, death: str):
    texts = [*TEXTS[:20], death, *TEXTS[20:40], f"{death} too", *TEXTS[40:]]
    expected = torch.cat(
        [LENGTHS[:20], torch.tensor([torch.nan]), LENGTHS[20:40], torch.tensor([torch.nan]), LENGTHS[40:]]
    )
    with Pooled(Moody(), EXECUTORS[kind](), 4) as pooled:
        with pytest.warns(RewardWarning, match="failed on 2 of 62 samples, first its worker died"):
            scores = pooled(texts)
        assert torch.equal(scores.nan_to_num(-1), expected.nan_to_num(-1))
        assert pooled.failed == 2
        assert torch.equal(pooled(TEXTS), LENGTHS)


@pytest.mark.parametrize("kind", ["own", "threads", "loky"])
def test_what_raises_costs_its_own_sample(kind: str):
    texts = ["C", "bad", "CCC", "worse bad", "CCCC", "CC"]
    with Pooled(Strict(), EXECUTORS[kind](), 3) as pooled:
        with pytest.warns(RewardWarning, match="2 of 6 samples, first RewardError: .*bad sample in the batch"):
            scores = pooled(texts)
        assert scores.nan_to_num(-1).tolist() == [1, -1, 3, -1, 4, 2]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pooled(["C", "CC"]).tolist() == [1, 2]


def test_a_sample_that_takes_too_long_is_given_up():
    texts = ["C", "sleep", "CCC", "CC"]
    began = time.monotonic()
    with (
        Pooled(Moody(), 2, 2, timeout=0.5) as pooled,
        pytest.warns(RewardWarning, match=r"1 of 4 samples, first .*no score in 0\.5 s"),
    ):
        scores = pooled(texts)
    assert scores.nan_to_num(-1).tolist() == [1, -1, 3, 2]
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_worker_that_is_deaf_is_stopped_from_outside():
    with (
        Pooled(Stuck(), 2, 2, timeout=0.3) as pooled,
        pytest.warns(RewardWarning, match="1 of 4 samples"),
    ):
        scores = pooled(["C", "stuck", "CCC", "CC"])
    assert scores.nan_to_num(-1).tolist() == [1, -1, 3, 2]


def test_failures_are_tried_again_as_often_as_asked(tmp_path: Path):
    texts = ["a", "bb", "ccc"]
    with Pooled(Flaky(tmp_path), 2, 1, retries=1) as pooled, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pooled(texts).tolist() == [1, 2, 3]
    with Pooled(Flaky(tmp_path), 2, 1) as pooled, pytest.warns(RewardWarning, match=r"1 of 2 samples.*try again"):
        assert pooled(["a", "dddd"]).nan_to_num(-1).tolist() == [1, -1]


def test_a_package_that_workers_miss_is_an_error():
    with (
        Pooled(Missing(), 2) as pooled,
        pytest.raises(RewardError, match=r"no sample can be scored by the workers.*nothing"),
    ):
        pooled(["C", "CC"])


def test_workers_are_prepared_once():
    with Pooled(Prepared(), 1, 2, initializer=prepare) as pooled:
        assert pooled(TEXTS).tolist() == [7.0] * 60


def test_scores_arrive_in_a_file_chunk_by_chunk(tmp_path: Path):
    """Cached over Pooled: what workers have finished is on disk before the others are."""
    file = tmp_path / "scores.db"
    with Pooled(Moody(), 2, 2, timeout=3) as pooled:
        cached = Cached(pooled, file)
        with pytest.warns(RewardWarning):
            scores = cached([*TEXTS[:10], "exit", *TEXTS[:10]])
    assert scores[:10].tolist() == LENGTHS[:10].tolist() and scores[11:].tolist() == LENGTHS[:10].tolist()
    assert cached.calls == 11
    again = Cached(Moody(), file)
    assert torch.equal(again(TEXTS[:10]), LENGTHS[:10]) and again.calls == 0


@pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
def test_a_run_is_scored_by_workers():
    table = gk.analytic.TokenTable(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    with Pooled(first_token, 2, 4) as pooled:
        guided = gk.sample(table, 12, steps=4, guides=[gk.FKSteering(pooled, 0.5)])
    plain = gk.sample(table, 12, steps=4, guides=[gk.FKSteering(first_token, 0.5)])
    assert torch.equal(guided.x, plain.x) and torch.equal(guided.log_weights, plain.log_weights)


def first_token(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0].double()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"executor": 0}, "executor=0"),
        ({"executor": "two"}, "executor='two'"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 0}, "timeout=0"),
    ],
)
def test_arguments_are_checked(options, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        Pooled(Length(), **options)


def test_what_cannot_be_sent_is_said_at_once():
    with pytest.raises(ValueError, match=r"'<lambda>' cannot be sent to a worker .*top of a module"):
        Pooled(lambda texts: [1.0 for _ in texts], 2)


def _used(executor: Any) -> None:
    """Scores, and a sample that raises, through an executor."""
    assert torch.equal(Pooled(Length(), executor, 7)(TEXTS), LENGTHS)
    assert Pooled(Strict(), executor, 2)(["C", "bad", "CCC"]).nan_to_num(-1).tolist() == [1, -1, 3]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="needs an MPI")
def test_a_pool_of_mpi():
    futures = pytest.importorskip("mpi4py.futures")
    with futures.MPIPoolExecutor(2) as executor:
        _used(executor)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_the_executor_of_ray_that_is_written_out():
    """The lines in the text of `rewards.pooled`, as they stand there."""
    ray = pytest.importorskip("ray")
    names: dict[str, Any] = {"ray": ray}
    exec(textwrap.dedent("    class Ray:" + (pooled.__doc__ or "").split("class Ray:")[1]), names)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        _used(names["Ray"]())
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a busy machine its workers may not come up
@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster():
    distributed = pytest.importorskip("dask.distributed")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        pooled = Pooled(Length(), client.get_executor(), 7)
        assert torch.equal(pooled(TEXTS), LENGTHS)
        strict = Pooled(Strict(), client.get_executor(), 2)
        assert strict(["C", "bad", "CCC"]).nan_to_num(-1).tolist() == [1, -1, 3]
        moody = Pooled(Moody(), client.get_executor(), 2)
        assert moody(["C", "exit", "CCC", "CC"]).nan_to_num(-1).tolist() == [1, -1, 3, 2]
        assert moody(TEXTS[:5]).tolist() == LENGTHS[:5].tolist()
