"""The guides under the common laws. A new guide is tested by adding it here.

make      the guide at a usual strength, for a problem
idle      the same guide at settings at which it must do nothing at all; None where there are none
processes the problems (tests/problems.py) that it says it serves
target    "base": it moves or weighs without changing p; "tilted": weighted particles follow p exp(r/alpha)/Z;
          "own": another law, which its own test file checks
rows      network rows of a run, from the particles N and the steps M
calls     reward calls of a run
forwards  of a run: one a step for each distinct network
with_     what is done to the problem first
memory    its tilt reads what it remembers of the look before
seldom    in the default run it meets one in so many of the other guides
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

import guidekit as gk

from ..problems import PROBLEMS, Problem, attending, embedding, on

ALL = tuple(PROBLEMS)
TOKENS = ("masked", "uniform")
GAUSSIAN = tuple(p for p in ALL if p not in TOKENS)


N = 12  # particles where a bit-for-bit law is asked


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Problem], gk.Guide]
    idle: Callable[[Problem], gk.Guide] | None
    target: str
    processes: tuple[str, ...] = ALL
    rows: Callable[[int, int], int] = lambda n, m: n * m
    calls: Callable[[int, int], int] = lambda n, m: 0
    forwards: Callable[[int], int] = lambda m: m
    memory: bool = False
    with_: Callable[[Problem], Problem] = lambda p: p
    seldom: int = 1

    def on(self, name: str) -> Problem:
        return self.with_(PROBLEMS[name])


def constant(x):
    """A reward that says nothing."""
    return x.flatten(1)[:, 0] * 0.0 + 0.25


def _fk(**options) -> Callable[[Problem], gk.Guide]:
    return lambda p: gk.FKSteering(p.reward, p.alpha, **options)


def _idle_fk(**options) -> Callable[[Problem], gk.Guide]:
    return lambda p: gk.FKSteering(p.reward, float("inf"), **options)


def _svdd(**options) -> Callable[[Problem], gk.Guide]:
    return lambda p: gk.SVDD(p.reward, p.alpha, **{"candidates": 3} | options)


def _idle_svdd(**options) -> Callable[[Problem], gk.Guide]:
    return lambda p: gk.SVDD(p.reward, float("inf"), **{"candidates": 3} | options)


def _tds(guide, **options) -> Callable[[Problem], gk.Guide]:
    return lambda p: guide(p.reward, p.alpha, **options)


def _idle_tds(guide, **options) -> Callable[[Problem], gk.Guide]:
    return lambda p: guide(p.reward, float("inf"), **options)


def tripled(n: int, m: int) -> int:
    """Rows with three candidates: the start, and every look but the last."""
    return n + 3 * n * (m - 1)


def plain(p: Problem) -> gk.Model:
    """The model of the problem without what has been done to it, on the same device."""
    return on(p.name, p.model.device)


@lru_cache
def _other(name: str, device: torch.device) -> gk.Model:
    base = on(name, device)
    if isinstance(base, gk.analytic.TokenTable):
        tables = base.table.flip(1).view(-1, *(base.vocab_size,) * base.length)
        noising = "masked" if isinstance(base.process, gk.process.Masked) else "uniform"
        return gk.analytic.TokenTable(tables[0], noising, classes=tables[1:])
    return gk.analytic.GaussianMixture([0.6, 0.4], base.means[:2] + 0.7, base.stds[1:3], base.schedule)


def other(p: Problem) -> gk.Model:
    """Another model of the same noising law."""
    return _other(p.name, p.model.device)


def target(p: Problem) -> torch.Tensor:
    """One state."""
    return torch.tensor([[0, 2, 1]]) if p.name in TOKENS else torch.full((1, *p.model.shape), 0.8, dtype=torch.float64)


def one(p: Problem) -> torch.Tensor:
    """A mask of the first entry."""
    return torch.arange(p.model.shape[0]) == 0


def measured(p: Problem, noise: float = 0.5) -> gk.Measurement:
    """A combination of the entries of a state."""
    row = torch.tensor([[0.8, -0.5]], dtype=torch.float64)[:, : p.model.shape[0]]
    return gk.Measurement(row, torch.tensor([0.6]), noise)


def masked(p: Problem) -> gk.Measurement:
    """The first entry, without noise."""
    return gk.Measurement(gk.measurements.Mask(one(p)), target(p)[0], 0.0)


@lru_cache
def shown() -> gk.Measurement:
    """How many tokens are 1 in one-hot rows, squared."""
    return gk.Measurement(lambda hot: hot[..., 1].sum(1, keepdim=True).square(), torch.tensor([1.5]), 1.0)


def shifted(p: Problem, by: float) -> gk.Guide:
    """A calibration by a line in t."""
    shifts = torch.tensor([0.0, by], dtype=torch.float64).view(2, *[1] * len(p.model.shape)).expand(2, *p.model.shape)
    return gk.ScoreCalibration((0.0, 1.0), shifts)


def painted(p: Problem, level: float) -> gk.Guide:
    """A start by the flow of a Gaussian."""
    x = torch.randn(50, *p.model.shape, generator=torch.Generator().manual_seed(1), dtype=p.model.dtype)
    return gk.GaussianStart(0.4 + 1.5 * x, level)


def below(m: int, level: float) -> int:
    """Steps of an even grid that begin at or below this time."""
    return sum(1 - i / m <= level + 1e-9 for i in range(m))


def once(m: int) -> int:
    return m


def twice(m: int) -> int:
    return 2 * m


def both(n: int, m: int) -> int:
    """Rows of two evaluations a particle and step."""
    return 2 * n * m


def recurring(n: int, m: int) -> int:
    """Rows where every step but that from pure noise is taken twice."""
    return n * (2 * m - 1)


def component(p: Problem) -> Callable:
    """The exact classifier of a mixture's components."""
    base = plain(p)
    return lambda x, t: base.responsibilities(x, float(t[0])).log()  # type: ignore[attr-defined]


def condition(p: Problem) -> Callable:
    """The exact classifier of a mixture's labels; of tokens a smooth function of them."""
    if p.name in TOKENS:
        return lambda x, t: torch.stack([x.double().sum(1).cos(), x[:, 0].double() - 1], 1)
    base = plain(p)
    labels = torch.nn.functional.one_hot(base.labels).double()  # type: ignore[attr-defined]
    return lambda x, t: (base.responsibilities(x, float(t[0])) @ labels).clamp(min=1e-300).log()  # type: ignore


def hot(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """log p(y | x_t) of one-hot states, up to a constant."""
    return (x[:, :, :3] * torch.tensor([0.2, -0.7, 0.9]).to(x)).sum((1, 2)) * x[:, 0, 1].add(1.0)


def word(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The same of tokens."""
    return hot(torch.nn.functional.one_hot(x, 4).double(), t)


def graded(p: Problem) -> Callable:
    """The same of tokens, which at time t is worth (1 - t) of it."""
    return lambda x, t: (1 - t.double()) * word(x, t)


@lru_cache
def attended(name: str) -> Problem:
    return attending(PROBLEMS[name])


def with_attention(p: Problem) -> Problem:
    return attended(p.name) if p.model is PROBLEMS[p.name].model else attending(p)


@lru_cache
def _bent(name: str, device: torch.device) -> gk.Couplings:
    net, generator = gk.Couplings(PROBLEMS[name].model.shape, 2, 4).double(), torch.Generator().manual_seed(5)
    for p in net.requires_grad_(False).parameters():
        p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return net.to(device)


def bent(p: Problem) -> gk.Couplings:
    """A network of noise that was not trained."""
    return _bent(p.name, p.model.device)


def identity(p: Problem) -> gk.Couplings:
    """A network of noise that leaves it as it is."""
    return gk.Couplings(p.model.shape).double().to(p.model.device)


def region(p: Problem) -> torch.Tensor:
    """A mask for one condition."""
    return torch.tensor([[1.0, 0.0, 0.5]]) if p.name in TOKENS else torch.full((1, *p.model.shape), 0.7)


TFG = {"rho": 0.3, "mu": 0.2, "sigma": 0.1, "recur": 2, "iters": 2, "draws": 2}
HALF = ("vp-1d", "flow-2d")  # alpha = 0 at the start, where there is no gradient through the network

CASES = [
    Case("CFG", lambda p: gk.CFG(2.5), lambda p: gk.CFG(1.0), "own", rows=lambda n, m: 2 * n * m),
    Case(
        "CFG interval",
        lambda p: gk.CFG(lambda t: 1 + t, start=0.3, stop=0.8),  # 6 steps: fractions 1/3, 1/2, 2/3
        lambda p: gk.CFG(7.5, start=0.5, stop=0.5),
        "own",
        rows=lambda n, m: n * (m + 3),
    ),
    Case(
        "CFG steer", lambda p: gk.CFG(1.5, steer=True), lambda p: gk.CFG(1.0, steer=True), "base",
        rows=lambda n, m: 2 * n * m,
    ),
    *(
        Case(guide.__name__, make, idle, "own", GAUSSIAN, lambda n, m: 2 * n * m, memory=guide is gk.APG)
        for guide, make, idle in (
            (gk.APG, lambda p: gk.APG(2.5, eta=0.3, radius=2.0, momentum=-0.4), lambda p: gk.APG(1.0)),
            (gk.CFGZero, lambda p: gk.CFGZero(2.5, zero=0.1), lambda p: gk.CFGZero(1.0)),
            (gk.TCFG, lambda p: gk.TCFG(2.5), lambda p: gk.TCFG(1.0)),
            (gk.MagnitudeAware, lambda p: gk.MagnitudeAware(2.5, damping=1.0), lambda p: gk.MagnitudeAware(1.0)),
            (gk.CFGpp, lambda p: gk.CFGpp(0.6), None),
        )
    ),
    *(
        Case(
            guide.__name__, make, idle, "own", where, both, memory=guide in (gk.FeedbackGuidance, gk.APGMix), seldom=15
        )
        for guide, make, idle, where in (
            (
                gk.FrequencyDecoupled, lambda p: gk.FrequencyDecoupled((2.5, lambda t: 1 + t)),
                lambda p: gk.FrequencyDecoupled((1.0, 1)), ("vp-1d", "flow-2d"),
            ),
            (gk.FreSca, lambda p: gk.FreSca(2.5, 0.7, 1.4, cutoff=0), None, ("vp-1d", "flow-2d")),
            (
                gk.APGMix, lambda p: gk.APGMix(2.5, 0.3, momentum=-0.4, before=1.7, switch=0.4),
                lambda p: gk.APGMix(1.0, before=1.0), ("vp-1d",),
            ),
            (
                gk.FeedbackGuidance, lambda p: gk.FeedbackGuidance(pi=0.85), lambda p: gk.FeedbackGuidance(0.0),
                ("vp-1d", "edm-1d"),
            ),
        )
    ),
    *(
        Case(guide.__name__, make, idle, "own", where, both, forwards=twice, seldom=15)
        for guide, make, idle, where in (
            (
                gk.AdaptiveGuidance, lambda p: gk.AdaptiveGuidance(2.5, 1.0), lambda p: gk.AdaptiveGuidance(1.0),
                ("vp-1d",),
            ),
            (
                gk.ICG, lambda p: gk.ICG(2.5, [p.cond, None]), lambda p: gk.ICG(1.0, [None]),
                ("vp-1d", "masked", "uniform"),
            ),
        )
    ),
    *(
        # far from all data predictions agree to rounding, and the direction of their difference is rounding too
        Case(guide.__name__, make, None, "own", ("vp-1d", "edm-1d"), lambda n, m: 3 * n * m, seldom=15)
        for guide, make in (
            (gk.PerpNeg, lambda p: gk.PerpNeg(1.4, 0, 0.3)),
            (gk.ContrastiveCFG, lambda p: gk.ContrastiveCFG(1.4, 0, 0.3)),
        )
    ),
    Case(
        "Intersection", lambda p: gk.Intersection(other(p)), None, "own", ("vp-1d", "flow-2d"), both, forwards=twice,
        memory=True, seldom=15,
    ),
    Case("EpsilonScaling", lambda p: gk.EpsilonScaling(1.1), lambda p: gk.EpsilonScaling(1.0), "own", GAUSSIAN),
    Case(
        "DynamicThresholding", lambda p: gk.DynamicThresholding(0.5, 2.0),
        lambda p: gk.DynamicThresholding(0.5, 1e9), "own", GAUSSIAN, seldom=25,
    ),
    Case("ScoreCalibration", lambda p: shifted(p, 0.4), lambda p: shifted(p, 0.0), "own", GAUSSIAN, seldom=25),
    Case("CADS", lambda p: gk.CADS(0.2, 0.9), lambda p: gk.CADS(stop=0.0), "own", with_=embedding),
    Case(
        "Keep", lambda p: gk.Keep(target(p), one(p)), lambda p: gk.Keep(target(p), ~one(p) & one(p)), "own", GAUSSIAN,
    ),
    Case(  # a known token takes a row of its own
        "Keep masked", lambda p: gk.Keep(target(p), one(p)), lambda p: gk.Keep(template=[None] * 3), "own", ("masked",),
        lambda n, m: n * m + 1, forwards=lambda m: m + 1,
    ),
    Case(
        "Keep set", lambda p: gk.Keep(template=[{0, 2}, None, {1, 2}]), lambda p: gk.Keep(template=[None] * 3), "own",
        TOKENS,
    ),
    Case(
        "Sites", lambda p: gk.Sites(forbidden=[[0, 1]], required=[[2]]), lambda p: gk.Sites(forbidden=[[0] * 4]), "own",
        TOKENS,
    ),
    Case(
        "MaxEdits", lambda p: gk.MaxEdits(target(p), 1), lambda p: gk.MaxEdits(target(p), 3), "own", TOKENS,
    ),
    Case("Resample", lambda p: gk.Resample(), lambda p: gk.Resample(ess=0.0), "base"),
    Case("EntropicAnnealing", lambda p: gk.EntropicAnnealing(), lambda p: gk.EntropicAnnealing(0.0), "base", seldom=10),
    Case(
        "Funnel", lambda p: gk.Funnel((3, 1)), lambda p: gk.Funnel((1, 1), ess=0.0), "base",
        rows=lambda n, m: 3 * n + sum(round(n * (3 - 2 * i / m)) for i in range(m - 1)), seldom=10,
    ),
    Case("FK adaptive", _fk(), _idle_fk(), "tilted", calls=lambda n, m: n * m),
    Case("FK never", _fk(ess=0.0), _idle_fk(ess=0.0), "tilted", calls=lambda n, m: n * m),
    Case("FK always", _fk(ess=1.0), _idle_fk(ess=1.0), "tilted", calls=lambda n, m: n * m),
    Case("FK every 4", _fk(every=4, ess=1.0), _idle_fk(every=4), "tilted", calls=lambda n, m: 2 * n),
    Case("FK constant", _fk(ess=0.9), lambda p: gk.FKSteering(constant, 0.1), "tilted", calls=lambda n, m: n * m),
    *(
        Case(f"FK {name}", _fk(ess=0.9, resampler=name), _idle_fk(resampler=name), "tilted", calls=lambda n, m: n * m)
        for name in ("multinomial", "stratified", "residual", "ssp")
    ),
    Case("FK max", _fk(potential="max", ess=0.9), _idle_fk(potential="max"), "tilted", calls=lambda n, m: n * m),
    Case(  # at full strength its weights have tails that 4,000 populations do not meet
        "FK sum", _fk(potential="sum", ess=0.9, tempering=0.2), _idle_fk(potential="sum"), "tilted",
        calls=lambda n, m: n * m,
    ),
    Case("FK final", _fk(potential="final"), _idle_fk(potential="final"), "tilted", calls=lambda n, m: n),
    Case("FK at steps", _fk(every=[2, 3]), _idle_fk(every=[2, 3]), "tilted", calls=lambda n, m: 3 * n),
    Case(
        "FK tempered", _fk(tempering=lambda t: (1 - t) ** 2, ess=0.9), _idle_fk(tempering=0.3), "tilted",
        calls=lambda n, m: n * m,
    ),
    Case(  # 3 + 1 looks at the start, of two steps each
        "PsiSampler", lambda p: gk.PsiSampler(p.reward, p.alpha, levels=3, flow=2),
        lambda p: gk.PsiSampler(p.reward, float("inf"), levels=0), "tilted", GAUSSIAN, lambda n, m: n * (m + 8),
        lambda n, m: 5 * n, lambda m: m + 8, seldom=15,
    ),
    Case(
        "PsiSampler steps", lambda p: gk.PsiSampler(p.reward, p.alpha, "difference", ess=0.5, levels=2, gradient=False),
        lambda p: gk.PsiSampler(p.reward, float("inf"), "difference", ess=0.5, levels=0), "tilted", ("vp-1d", "edm-1d"),
        lambda n, m: n * (m + 12), lambda n, m: n * (m + 3), lambda m: m + 12, seldom=15,
    ),
    Case(
        "Amortised", lambda p: gk.Amortised(p.reward, p.alpha, net=bent(p)),
        lambda p: gk.Amortised(p.reward, float("inf"), net=identity(p)), "tilted", GAUSSIAN,
        calls=lambda n, m: n, seldom=15,
    ),
    # the last move of a Gaussian process is deterministic, and then there is one child
    Case("SVDD", _svdd(), _idle_svdd(), "tilted", GAUSSIAN, tripled, lambda n, m: 3 * n * (m - 1) + n),
    Case("SVDD tokens", _svdd(), _idle_svdd(), "tilted", TOKENS, tripled, lambda n, m: 3 * n * m),
    Case("SVDD one", _svdd(candidates=1), _idle_svdd(candidates=1), "tilted", calls=lambda n, m: n * m),
    Case(
        "CoDe", lambda p: gk.CoDe(p.reward, p.alpha, 3, block=2), lambda p: gk.CoDe(p.reward, torch.inf, 1, block=2),
        "tilted", ALL, tripled, lambda n, m: 3 * n * ((m + 1) // 2), seldom=10,
    ),
    Case(  # moves 1/6 to 3/6 branch, and steps 2, 3, 4 and the last are scored
        "SVDD interval", _svdd(start=0.1, stop=0.6), _idle_svdd(stop=0.6), "tilted",
        rows=lambda n, m: n * (m - 3) + 3 * n * 3, calls=lambda n, m: 3 * n * 3 + n,
    ),
    Case(
        "SVDD greedy", lambda p: gk.SVDD(p.reward, candidates=3), lambda p: gk.SVDD(constant, candidates=3), "own",
        GAUSSIAN, tripled, lambda n, m: 3 * n * (m - 1) + n,
    ),
    Case(
        "SVDD greedy tokens", lambda p: gk.SVDD(p.reward, candidates=3), lambda p: gk.SVDD(p.reward, candidates=1),
        "own", TOKENS, tripled, lambda n, m: 3 * n * m,
    ),
    Case("TDS", _tds(gk.TDS, scale=0.5), _idle_tds(gk.TDS), "tilted", GAUSSIAN, calls=lambda n, m: n * (m + 1)),
    Case(
        "TDS scheduled", _tds(gk.TDS, scale=lambda t: 1 - t, ess=0.9), _idle_tds(gk.TDS), "tilted", GAUSSIAN,
        calls=lambda n, m: n * (m + 1),
    ),
    Case(
        "TaylorSMC", _tds(gk.TaylorSMC, scale=0.8), _idle_tds(gk.TaylorSMC), "tilted", TOKENS,
        calls=lambda n, m: n * (m + 1),
    ),
    *(
        Case(
            f"DAS {name}", _tds(gk.DAS, tempering=tempering, scale=0.5, ess=0.95),
            _idle_tds(gk.DAS, tempering=tempering), "tilted", GAUSSIAN, calls=lambda n, m: n * (m + 1),
            memory=tempering == "adaptive",
        )
        for name, tempering in (
            ("adaptive", "adaptive"), ("exponential", "exponential"), ("power", "power"), ("function", lambda f: f**2),
        )
    ),
    Case(
        "FKC cfg", lambda p: gk.FKC.cfg(1.7), lambda p: gk.FKC.cfg(1.0), "own", (*GAUSSIAN, "masked"),
        rows=lambda n, m: 2 * n * m,
    ),
    Case("FKC anneal", lambda p: gk.FKC.anneal(1.6), lambda p: gk.FKC.anneal(1.0), "own", ("edm-1d", "masked")),
    Case(
        "FKC product", lambda p: gk.FKC.product(other(p)), lambda p: gk.FKC.product(other(p), power=0.0), "own",
        ("edm-1d", "masked"), lambda n, m: 2 * n * m, forwards=twice,
    ),
    Case(
        "FKC tilt", lambda p: gk.FKC.tilt(p.reward, p.alpha), lambda p: gk.FKC.tilt(p.reward, float("inf")), "own",
        ("vp-1d", "flow-2d"), calls=lambda n, m: n * m,
    ),
    Case(  # where the start is x_0 plus noise, it is scored
        "FKC tilt edm", lambda p: gk.FKC.tilt(p.reward, p.alpha), lambda p: gk.FKC.tilt(p.reward, float("inf")), "own",
        ("edm-1d",), calls=lambda n, m: n * (m + 1),
    ),
    Case(
        "DriftLite cfg", lambda p: gk.DriftLite.cfg(1.7), lambda p: gk.DriftLite.cfg(1.0), "own", GAUSSIAN, both,
        seldom=10,
    ),
    Case(
        "DriftLite tilt", lambda p: gk.DriftLite.tilt(p.reward, p.alpha),
        lambda p: gk.DriftLite.tilt(p.reward, float("inf")), "own", ("vp-1d", "flow-2d"), calls=lambda n, m: n * m,
        seldom=10,
    ),
    Case(
        "BestOfN", lambda p: gk.BestOfN(p.reward, 3), lambda p: gk.BestOfN(p.reward, 1), "own",
        rows=lambda n, m: 3 * n * m, calls=lambda n, m: 3 * n,
    ),
    Case(
        "BeamSearch", lambda p: gk.BeamSearch(p.reward, 4, 2), lambda p: gk.BeamSearch(constant, N, 2), "own", GAUSSIAN,
        lambda n, m: n + 2 * n * (m - 1), lambda n, m: 2 * n * (m - 1) + n,
    ),
    Case(
        "BeamSearch tokens", lambda p: gk.BeamSearch(p.reward, 18, 2), lambda p: gk.BeamSearch(constant, N, 2), "own",
        TOKENS, lambda n, m: 18 + 2 * 18 * (m - 1), lambda n, m: 2 * 18 * m,
    ),
    Case(  # rows 24, 22, 20, 18, 16, 14 with round(48 / rows) = 2, 2, 2, 3, 3, 3 children
        "DSearch", lambda p: gk.DSearch(p.reward, (24, 12), 2), lambda p: gk.DSearch(constant, (N, N), 2), "own",
        TOKENS, lambda n, m: 24 + 48 + 44 + 40 + 54 + 48, lambda n, m: 48 + 44 + 40 + 54 + 48 + 42,
    ),
    Case("DDCM", lambda p: gk.DDCM(8, target=target(p)), None, "own", ("vp-1d", "flow-2d")),
    *(
        Case(f"{guide.__name__}{' steer' * steer}", make(guide, steer), idle, "base" if steer else "own", where, both,
             with_=with_attention)
        for guide, idle, where in (
            (gk.PAG, lambda p: gk.PAG(0.0, "block"), ALL),
            (gk.SEG, lambda p: gk.SEG(2.0, "block", sigma=0.0), ALL),
            (gk.SLG, lambda p: gk.SLG(0.0, "block"), ALL),
        )
        for steer in (False, True)
        for make in [lambda guide, steer: lambda p: guide(0.2 if steer else 1.5, "block", steer=steer)]
    ),
    *(
        Case(
            guide.__name__, make, idle, "own", ("vp-1d", "masked", "uniform"), rows, forwards=forwards,
            with_=with_attention, seldom=15,
        )
        for guide, make, idle, rows, forwards in (
            (gk.ERG, lambda p: gk.ERG(0.4, "blocks.0", tau=0.3, gamma=0.8), lambda p: gk.ERG(2.0, tau=1.0), both, once),
            (gk.TPG, lambda p: gk.TPG(0.4, "blocks.1"), lambda p: gk.TPG(0.0), both, twice),
            (gk.TSG, lambda p: gk.TSG(0.4, "blocks.0"), lambda p: gk.TSG(1.0, "blocks.0", std=0.0), both, twice),
            (gk.S2Guidance, lambda p: gk.S2Guidance(0.4), lambda p: gk.S2Guidance(0.0), both, twice),
            (gk.NAG, lambda p: gk.NAG(4.0), lambda p: gk.NAG(1.0), lambda n, m: 3 * n * m, twice),
        )
    ),
    Case(  # one forward after the other
        "SAG", lambda p: gk.SAG(0.3, "block"), lambda p: gk.SAG(0.0, "block"), "own", ("flow-2d",),
        lambda n, m: 3 * n * m, forwards=lambda m: 3 * m, with_=with_attention, seldom=15,
    ),
    Case(
        "PAG heads", lambda p: gk.PAG(3.0, heads={"block": [1]}, strength=0.7), lambda p: gk.PAG(3.0, heads=[]), "own",
        ("vp-1d", "masked"), both, with_=with_attention,
    ),
    Case(
        "AutoGuidance", lambda p: gk.AutoGuidance(other(p), 1.8), lambda p: gk.AutoGuidance(other(p), 1.0), "own",
        rows=both, forwards=twice,
    ),
    Case(
        "AutoGuidance steer", lambda p: gk.AutoGuidance(other(p), 1.3, steer=True), None, "base", rows=both,
        forwards=twice,
    ),
    Case(  # acts at fractions 0, 1/6 and 2/6
        "Distillation", lambda p: gk.Distillation(other(p), 0.4), lambda p: gk.Distillation(other(p), 0.0), "own",
        GAUSSIAN, lambda n, m: n * (m + 3), forwards=lambda m: m + 3,
    ),
    Case("HiGS", lambda p: gk.HiGS(1.75, t_min=0.1, eta=0.5), lambda p: gk.HiGS(0.0), "own", GAUSSIAN, memory=True),
    Case(
        "MinorityGuidance", lambda p: gk.MinorityGuidance(component(p), 1.0, bin=4),
        lambda p: gk.MinorityGuidance(component(p), 0.0), "own", GAUSSIAN,
    ),
    Case(  # at steps 0, 2 and 4
        "SelfGuidedMinority", lambda p: gk.SelfGuidedMinority(0.8, interval=2), lambda p: gk.SelfGuidedMinority(0.0),
        "own", GAUSSIAN, lambda n, m: n * (m + 3), forwards=lambda m: m + 3,
    ),
    Case(
        "GaussianStart", lambda p: painted(p, 0.6), lambda p: painted(p, 1.0), "own", GAUSSIAN,
        lambda n, m: n * below(m, 0.6), forwards=lambda m: below(m, 0.6), seldom=25,
    ),
    Case("BoostAndSkip", lambda p: gk.BoostAndSkip(1.5), lambda p: gk.BoostAndSkip(1.0), "own", GAUSSIAN),
    Case(
        "BoostAndSkip skip", lambda p: gk.BoostAndSkip(1.5, 2), lambda p: gk.BoostAndSkip(1.0, 0), "own", GAUSSIAN,
        lambda n, m: n * (m - 2), forwards=lambda m: m - 2,
    ),
    Case(  # 11 looks of 6 calls each, but 4 in the first, which has no gradient through the network; and the samples
        "TFG", lambda p: gk.TFG(p.reward, **TFG), lambda p: gk.TFG(p.reward, rho=0.0, mu=0.0), "own", HALF, recurring,
        lambda n, m: n * (6 * (2 * m - 2) + 4 + 1), lambda m: 2 * m - 1,
    ),
    Case(
        "TFG edm", lambda p: gk.TFG(p.reward, **TFG), lambda p: gk.TFG(p.reward, rho=0.0, mu=0.0), "own", ("edm-1d",),
        both, lambda n, m: n * (6 * 2 * m + 1), twice,
    ),
    Case(
        "UGD", lambda p: gk.UGD(p.reward, 0.3, 0.2, recur=2), lambda p: gk.UGD(p.reward, 0.0, 0.0), "own", HALF,
        recurring, lambda n, m: n * 2 * m, lambda m: 2 * m - 1,
    ),
    Case(
        "FreeDoM", lambda p: gk.FreeDoM(p.reward, 0.5), lambda p: gk.FreeDoM(p.reward, 0.0), "own", HALF,
        recurring, lambda n, m: n * (2 * m - 1), lambda m: 2 * m - 1,
    ),
    Case(
        "DPS", lambda p: gk.DPS(p.reward, 1.0), lambda p: gk.DPS(p.reward, 0.0), "own", HALF, calls=lambda n, m: n * m
    ),
    Case("DPS steer", lambda p: gk.DPS(p.reward, 0.5, steer=True), None, "base", HALF, calls=lambda n, m: n * m),
    Case(
        "LGD", lambda p: gk.LGD(p.reward, 1.0, sigma=0.3, draws=3), lambda p: gk.LGD(p.reward, 0.0), "own", HALF,
        calls=lambda n, m: n * (3 * (m - 1) + 1),
    ),
    Case(
        "MPGD", lambda p: gk.MPGD(p.reward, 0.5), lambda p: gk.MPGD(p.reward, 0.0), "own", HALF,
        calls=lambda n, m: n * (m + 1),
    ),
    Case(
        "ClassifierGuidance", lambda p: gk.ClassifierGuidance(component(p), 1.0, 3),
        lambda p: gk.ClassifierGuidance(component(p), 0.0, 3), "own", GAUSSIAN,
    ),
    Case(
        "ClassifierGuidance steer", lambda p: gk.ClassifierGuidance(component(p), 0.3, 3, steer=True), None, "base",
        ("vp-1d",),
    ),
    Case(
        "AdvDiff", lambda p: gk.AdvDiff(component(p), 1.0, 2, start=0.2),
        lambda p: gk.AdvDiff(component(p), 0.0, 2), "own", GAUSSIAN,
    ),
    Case(
        "GFCG", lambda p: gk.GFCG(condition(p), 1.0, p.cond, [0, None]),
        lambda p: gk.GFCG(condition(p), 0.0, p.cond, [0, None]), "own", rows=both, forwards=twice,
    ),
    Case("Temperature", lambda p: gk.Temperature(0.6), lambda p: gk.Temperature(1.0), "own", TOKENS),
    Case("Temperature steer", lambda p: gk.Temperature(0.8, steer=True), None, "base", TOKENS),
    Case("TopP", lambda p: gk.TopP(0.6), lambda p: gk.TopP(1.0), "own", TOKENS),
    Case("Typical", lambda p: gk.Typical(0.6), lambda p: gk.Typical(1.0), "own", TOKENS),
    Case("EDLM", lambda p: gk.EDLM(lambda x: x.double().sum(1).cos(), 3), None, "own", ("masked",)),
    Case("DCBG", lambda p: gk.DCBG(word, 1.0), lambda p: gk.DCBG(word, 0.0), "own", ("masked",)),
    Case("DCBG steer", lambda p: gk.DCBG(word, 0.5, steer=True), None, "base", ("masked",)),
    Case(
        "DCBG posterior", lambda p: gk.DCBG(graded(p), 1.0, posterior=True),
        lambda p: gk.DCBG(graded(p), 0.0, posterior=True), "own", TOKENS,
    ),
    Case("DCBG posterior steer", lambda p: gk.DCBG(word, 0.4, posterior=True, steer=True), None, "base", TOKENS),
    Case("TAG posterior", lambda p: gk.TAG(hot, 0.5, posterior=True), None, "own", TOKENS),
    Case(
        "PredictorGuidance", lambda p: gk.PredictorGuidance(word, 0.5), lambda p: gk.PredictorGuidance(word, 0.0),
        "own", TOKENS,
    ),
    Case("PredictorGuidance steer", lambda p: gk.PredictorGuidance(word, 0.4, steer=True), None, "base", TOKENS),
    Case("DCFG", lambda p: gk.DCFG(2.0), lambda p: gk.DCFG(1.0), "own", TOKENS, both),
    Case("DCFG steer", lambda p: gk.DCFG(1.5, steer=True), None, "base", TOKENS, both),
    Case(
        "APS", lambda p: gk.APS(shown(), iters=2, rate=0.5), lambda p: gk.APS(shown(), scale=0.0), "own", TOKENS,
        calls=lambda n, m: 2 * n * m, seldom=20,
    ),
    Case(
        "APS steer", lambda p: gk.APS(shown(), iters=2, rate=0.5, steer=True), None, "base", TOKENS,
        calls=lambda n, m: 2 * n * m, seldom=20,
    ),
    Case("TAG", lambda p: gk.TAG(hot, 1.0), lambda p: gk.TAG(hot, 0.0), "own", ("masked",)),
    Case(
        "Compose", lambda p: gk.Compose([other(p), None], [0.6, -0.4], own=1.2),
        lambda p: gk.Compose(other(p), 0.0), "own", rows=lambda n, m: 3 * n * m, forwards=twice,
    ),
    Case(
        "Mixture", lambda p: gk.Mixture(other(p), [0.7, 0.3]), lambda p: gk.Mixture(other(p), [1.0, 0.0]), "own",
        rows=both, forwards=twice, memory=True,
    ),
    Case(
        "Views", lambda p: gk.Views(gk.views.Negate()), lambda p: gk.Views(gk.views.Negate(), weights=[1, 0]), "own",
        GAUSSIAN, both, forwards=twice,
    ),
    Case("Switch", lambda p: gk.Switch(None), lambda p: gk.Switch(p.cond), "own"),
    Case(
        "MagicMix", lambda p: gk.MagicMix(target(p), 0.5, stop=0.6), lambda p: gk.MagicMix(target(p), 1.0), "own",
        GAUSSIAN,
    ),
    Case(
        "Regions", lambda p: gk.Regions(None, region(p)), lambda p: gk.Regions(None, 0 * region(p)), "own", rows=both,
    ),
    Case(
        "Hallucination", lambda p: gk.Hallucination(4, alpha=0.05), lambda p: gk.Hallucination(4), "own", GAUSSIAN,
        memory=True,
    ),
    Case("StartFrom", lambda p: gk.StartFrom(target(p), level=1.0), None, "own"),
    Case("DDNM", lambda p: gk.DDNM(measured(p, 0.0)), None, "own", GAUSSIAN, seldom=8),
    Case("DDNM noise", lambda p: gk.DDNM(measured(p)), None, "own", ("flow-2d",), seldom=8),
    Case("DDRM", lambda p: gk.DDRM(measured(p)), None, "own", GAUSSIAN, seldom=8),
    Case("PiGDM", lambda p: gk.PiGDM(measured(p)), lambda p: gk.PiGDM(measured(p), 0.0), "own", HALF, seldom=8),
    Case("DDS", lambda p: gk.DDS(measured(p), iters=2), None, "own", HALF, seldom=8),
    Case("DiffPIR", lambda p: gk.DiffPIR(measured(p)), None, "own", HALF, seldom=8),
    Case("TMPD", lambda p: gk.TMPD(measured(p), iters=1), lambda p: gk.TMPD(measured(p), 0.0), "own", HALF, seldom=8),
    Case(
        "DAPS", lambda p: gk.DAPS(measured(p), inner=3, iters=2), None, "own", HALF, lambda n, m: 3 * n * m,
        lambda n, m: 2 * n * m, lambda m: 3 * m, seldom=8,
    ),
    Case("ReSample", lambda p: gk.ReSample(measured(p), iters=2), None, "own", GAUSSIAN, seldom=30),
    Case(  # the start, in pure noise, has no gradient
        "STSL", lambda p: gk.STSL(measured(p)), lambda p: gk.STSL(measured(p), 0.0), "own", HALF,
        lambda n, m: n * (2 * m - 1), forwards=lambda m: 2 * m - 1, seldom=30,
    ),
    Case("TReg", lambda p: gk.TReg(measured(p), 2.0), None, "own", HALF, both, seldom=30),
    Case("CDDB", lambda p: gk.CDDB(measured(p), 0.6), None, "own", HALF, seldom=30),
    Case("ScoreSDE", lambda p: gk.ScoreSDE(measured(p, 0.0)), None, "own", HALF, seldom=30),
    Case(  # of three stretches of two steps the second is made again, after a move up; the first starts in pure noise
        "RePaint", lambda p: gk.RePaint(masked(p), recur=2, jump=2), None, "own", HALF, lambda n, m: n * (m + 3),
        forwards=lambda m: m + 3, seldom=8,
    ),
]  # fmt: skip
