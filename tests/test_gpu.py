"""On an accelerator: the same laws, the same noise, and no waiting for the device inside the loop.

Every test runs on a pretended device (tests/pretended.py) as well, which any host has, but those of compiled networks.
GUIDEKIT_TEST_DEVICE=cpu runs what needs an accelerator on the host, to see that it can run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature

import pytest
import torch

import guidekit as gk
from guidekit import random
from guidekit.solvers.token_solver import TokenSolver

from .conformance.cases import CASES, TOKENS, Case
from .pretended import NAME, USERS, Seen, device
from .problems import PROBLEMS, STEPS, Problem, on

GIVEN = os.environ.get("GUIDEKIT_TEST_DEVICE", "cuda")
MISSING = pytest.mark.skipif(GIVEN == "cuda" and not torch.cuda.is_available(), reason="no accelerator")
REAL = pytest.param(GIVEN, marks=[pytest.mark.gpu, MISSING])
pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")

ROWS = {  # of tokens: how many rows or places a forward or a draw is made for, which the host has to know
    "evaluations.evaluate", "evaluations.distinct",
    "independent.revealed", "independent.hidden", "independent.log_prob",
}  # fmt: skip
CHOSEN = {"token_solver._block_of", "revealing.log_probs", "base.of"}  # solvers that choose where tokens are revealed
GIVEN = gk.solvers.Blocks(1), gk.solvers.ReMDM(0.1), gk.solvers.USF((gk.solvers.DPMpp(2),) * 3)
OWN = {
    "AdaptiveGuidance": {"adaptive_guidance.make"},  # the number of rows that it still asks for
    "DCBG": {"dcbg.ratios"}, "PredictorGuidance": {"dcbg.ratios"},  # that of the neighbours that it classifies
    "DAPS": {"operators.A", "measurement.score"}, "APS": {"measurement.score"},  # what is measured is on the host
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A device, and what is seen of it where it is pretended."""

    name: str
    seen: Seen | None

    @contextmanager
    def working(self) -> Iterator[set[str]]:
        """A context in which the host is not to wait for the device; in the end, where it did so all the same. An
        accelerator raises at once."""
        if self.seen is not None:
            self.seen.waits.clear()
            yield self.seen.waits
        elif self.name == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield set()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        else:
            yield set()


@pytest.fixture(params=[pytest.param("pretended"), REAL])
def place(request) -> Iterator[Place]:
    if request.param != "pretended":
        yield Place(request.param, None)
        return
    with device() as seen:
        yield Place(NAME, seen)


def there(problem: Problem, place: Place) -> Problem:
    return replace(problem, model=on(problem.name, torch.device(place.name)))


def advanced(run: gk.Run, population: gk.Population) -> gk.Population:
    for index in range(len(run.moves)):
        population = run.advance(population, index)
    return population


def assert_same(host: gk.Result, found: gk.Result) -> None:
    assert torch.equal(host.ancestors, found.ancestors.cpu())
    assert torch.allclose(host.x.double(), found.x.double().cpu(), atol=1e-7)
    assert torch.allclose(host.log_weights, found.log_weights.cpu(), atol=1e-7)


def test_noise_has_the_same_bits_as_on_the_host(place: Place):
    keys = random.fold(random.key(5), torch.arange(100))
    assert torch.equal(random._bits(keys.to(place.name), 33).cpu(), random._bits(keys, 33))
    assert torch.allclose(random.normal(keys.to(place.name), (7,)).cpu(), random.normal(keys, (7,)), atol=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("resampler", ["multinomial", "stratified", "systematic", "residual", "ssp"])
def test_a_steered_run_equals_the_host(name: str, resampler: str, place: Place):
    problem = PROBLEMS[name]
    guides = [gk.CFG(1.5), gk.FKSteering(problem.reward, problem.alpha, ess=0.8, resampler=resampler)]
    host, found = (
        gk.sample(p.model, 64, steps=STEPS, guides=guides, cond=problem.cond) for p in (problem, there(problem, place))
    )
    assert_same(host, found)


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-1d"])
def test_the_loop_does_not_wait_for_the_device(name: str, place: Place):
    """Of tokens it waits for the number of rows to evaluate and to draw: see tests/test_no_waiting.py."""
    problem = there(PROBLEMS[name], place)
    guides = [gk.CFG(1.5), gk.FKSteering(problem.reward, problem.alpha)]
    run = gk.Run(problem.model, 64, steps=STEPS, guides=guides, cond=problem.cond)
    with run.borrowed():
        population = run.start()  # caches what it needs
        with place.working() as waits:
            advanced(run, population)
    assert not waits


def test_nan_is_reported_at_the_end_with_its_step_and_rows(place: Place):
    def net(x, t, cond):
        bad = (t < 0.5)[:, None] & (torch.arange(len(x), device=x.device) == 3)[:, None]
        return torch.where(bad, torch.nan, x * 0.5)

    model = gk.GaussianModel(net, (2,), predicts="clean", device=place.name)
    with pytest.raises(gk.NetworkError, match=r"step 3 of 5 .*1 rows: 3"):
        gk.sample(model, 6, steps=5)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("name", [REAL])
def test_compiled_networks_give_the_same(tokens: bool, name: str):
    """Of Gaussian processes they are replayed as CUDA graphs, whose results are overwritten by the next replay."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.Tanh(), torch.nn.Linear(32, 18 if tokens else 6))
    net = net.requires_grad_(False).to(name)

    def logits(x, t, cond):
        return net(x.float()).view(-1, 6, 3)

    def clean(x, t, cond):
        return net(x * (1 + t[:, None]))

    model = gk.MaskedModel(logits, 3, 6, device=name) if tokens else gk.GaussianModel(clean, (6,), device=name)
    steering = gk.FKSteering(lambda x: x.double().sum(1), 0.5)
    backend = True if name == "cuda" else "aot_eager"
    plain, fast, again = (
        gk.sample(model, 16, steps=6, guides=[steering], batch_size=8, compile=how) for how in (False, backend, backend)
    )
    assert torch.equal(plain.ancestors, fast.ancestors) and torch.equal(fast.x, again.x)
    assert torch.allclose(plain.x.double(), fast.x.double(), atol=1e-5)


def test_rewards_of_the_host_are_asked_while_the_device_works(place: Place):
    """The next micro-batch is begun before this one is scored, and the samples are those of the host."""
    problem = PROBLEMS["vp-1d"]
    steering = gk.FKSteering(lambda x: torch.as_tensor(x.cpu().numpy()[:, 0]), 0.5)
    options = {"steps": STEPS, "guides": [steering], "cond": problem.cond, "batch_size": 4}
    assert_same(*(gk.sample(p.model, 12, **options) for p in (problem, there(problem, place))))


def bare(kind: type) -> bool:
    """Whether a solver needs no arguments. ReDDiT waits for a network of its own."""
    given = signature(kind).parameters.values()
    return kind not in (gk.solvers.Solver, gk.solvers.ReDDiT) and all(v.default is not v.empty for v in given)


def solvers() -> Iterator:
    """All solvers; by default every sixth one alone."""
    kinds = [v for v in vars(gk.solvers).values() if isinstance(v, type) and issubclass(v, gk.solvers.Solver)]
    for number, solver in enumerate([*(v() for v in kinds if bare(v)), *GIVEN]):
        yield pytest.param(solver, marks=[pytest.mark.slow] * (number % 6 > 0), id=type(solver).__name__)


@pytest.mark.parametrize("solver", list(solvers()))
def test_no_solver_waits_for_the_device(solver: gk.solvers.Solver):
    """Of tokens, those who choose where to reveal count what is left to be revealed, besides the rows."""
    problem = PROBLEMS["masked" if isinstance(solver, TokenSolver) else "vp-1d"]
    host = gk.sample(problem.model, 6, steps=4, solver=solver, cond=problem.cond)
    with device() as seen:
        far = on(problem.name, torch.device(NAME))
        run = gk.Run(far, 6, steps=4, solver=solver, cond=problem.cond)
        with run.borrowed():
            population = run.start()
            seen.waits.clear()
            population = advanced(run, population)
            waits, found = seen.waits - {USERS}, run.result(population)
    assert_same(host, found)
    assert not (waits - ROWS - CHOSEN if problem.name in TOKENS else waits), waits


def placed() -> Iterator:
    """Every guide; on the pretended device by default every ninth one alone, on one of its processes."""
    for number, case in enumerate(CASES):
        for i, name in enumerate(case.processes):
            marks = [pytest.mark.slow] * (i > 0 or number % 9 > 0)
            yield pytest.param("pretended", case, name, marks=marks, id=f"{case.name}-{name}-pretended")
            yield pytest.param(GIVEN, case, name, marks=[pytest.mark.gpu, MISSING], id=f"{case.name}-{name}-{GIVEN}")


@pytest.mark.parametrize("place, case, name", list(placed()), indirect=["place"])
def test_every_guide_gives_the_same_on_host_and_device(place: Place, case: Case, name: str):
    """And makes the host wait for nothing but how many rows of tokens there are."""
    problem, steps = case.with_(PROBLEMS[name]), 4
    far = case.with_(there(PROBLEMS[name], place))
    host = gk.sample(problem.model, 12, steps=steps, guides=[case.make(problem)], cond=problem.cond)
    run = gk.Run(far.model, 12, steps=steps, guides=[case.make(far)], cond=far.cond)
    with run.borrowed():
        population = run.start()
        if place.seen is not None:
            place.seen.waits.clear()
        population = advanced(run, population)
        waits = set() if place.seen is None else set(place.seen.waits)
        found = run.result(population)
    assert_same(host, found)
    waits -= {USERS} | OWN.get(case.name.split()[0], set()) | (ROWS if name in TOKENS else set())
    assert not waits, waits
