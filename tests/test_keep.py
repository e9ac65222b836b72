"""Keep, Sites and MaxEdits: conditional distributions, their log Z, and constraints that no sample breaks."""

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

import guidekit as gk
from guidekit.guides.shared.language import avoiding, containing, near

from .problems import PROBLEMS, STEPS, deviations, estimates, populations

V, L = 3, 3
TOKENS = ("masked", "uniform")
REFERENCE = torch.tensor([2, 0, 1])
pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")

SETS = [[{0, 2}, None, None], [None, {1, 2}, {0, 1}], [{0, 1}, {0, 2}, {1, 2}]]
CONSTRAINTS = {
    **{f"sets {i}": gk.Keep(template=sets) for i, sets in enumerate(SETS)},
    "letter": gk.Keep(template=[None, 2, None]),
    "sites": gk.Sites(forbidden=[[0, 1], [2, {1, 2}]]),
    "required": gk.Sites(required=[[1], [2]]),
    "both": gk.Sites(forbidden=[[0, 0]], required=[[{1, 2}, 0]]),
    "edits": gk.MaxEdits(REFERENCE, 1),
}


def fits(name: str, x: list[int]) -> bool:
    """Whether a sequence keeps a constraint, said independently."""
    text = "".join(map(str, x))
    if name.startswith("sets"):
        return all(s is None or v in s for v, s in zip(x, SETS[int(name[-1])], strict=True))
    return {
        "letter": x[1] == 2,
        "sites": not any(site in text for site in ("01", "21", "22")),
        "required": "1" in text and "2" in text,
        "both": "00" not in text and ("10" in text or "20" in text),
        "edits": sum(a != b for a, b in zip(x, REFERENCE.tolist(), strict=True)) <= 1,
    }[name]


def truth(problem, name: str, reward: bool = False) -> np.ndarray:
    """E[f 1{constraint} exp(r/alpha)] under the chain of the sampler."""
    states, p = problem.law()
    x = torch.as_tensor(states)
    w = p * np.array([fits(name, row) for row in x.tolist()])
    if reward:
        w = w * np.exp(problem.reward(x).double().numpy() / problem.alpha)
    return (w[:, None] * problem.features(x).double().numpy()).sum(0)


# tokens, by enumeration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", TOKENS)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constrained_tokens_follow_the_conditional_law_and_z_is_unbiased(name: str, process: str):
    """E[mean of w f] = E[f 1{constraint}] under the unguided chain, for all N, so also for N = 4."""
    if (name, process) == ("letter", "masked"):
        pytest.skip("a known letter is there from the start, which is another chain: see the next tests")
    problem = PROBLEMS[process]
    result = populations(problem, 4000, 4, [CONSTRAINTS[name]])
    assert all(fits(name, row) for row in result.x.tolist())
    found = estimates(problem, result)
    # 4 features of 4,000 independent populations: 4.5 standard errors fail by chance once in 10^4 runs
    assert np.abs(deviations(found, truth(problem, name), np.zeros(4))).max() < 4.5


@pytest.mark.parametrize("process", TOKENS)
@pytest.mark.parametrize(
    "guides",
    [
        lambda p: [gk.FKSteering(p.reward, p.alpha, ess=0.9)],
        lambda p: [gk.SVDD(p.reward, p.alpha, candidates=3)],
    ],
    ids=["FK", "SVDD"],
)
def test_a_constraint_beside_a_reward(process: str, guides):
    problem = PROBLEMS[process]
    for order in (1, -1):
        both = [CONSTRAINTS["both"], *guides(problem)][::order]
        result = populations(problem, 2000, 4, both)
        found = estimates(problem, result)
        assert all(fits("both", row) for row in result.x.tolist())
        assert np.abs(deviations(found, truth(problem, "both", reward=True), np.zeros(4))).max() < 4.5


@pytest.mark.parametrize("process", TOKENS)
def test_constraints_intersect(process: str):
    problem = PROBLEMS[process]
    guides = [CONSTRAINTS[name] for name in ("sets 0", "sites", "edits")]
    result = populations(problem, 4000, 4, guides)
    states, p = problem.law()
    own = p * [all(fits(name, row) for name in ("sets 0", "sites", "edits")) for row in states.tolist()]
    expected = (own[:, None] * problem.features(torch.as_tensor(states)).double().numpy()).sum(0)
    assert np.abs(deviations(estimates(problem, result), expected, np.zeros(4))).max() < 4.5


@pytest.mark.slow
@pytest.mark.parametrize("process", TOKENS)
def test_times_that_go_up_again_leave_the_conditional_law(process: str):
    """From a chain at t = 1/2 up to 3/4 and down again: each move is a kernel of p, so the law is that of p."""
    table = PROBLEMS[process].model.table[1]
    model = gk.analytic.TokenTable(table.view(V, V, V), process)
    down = list(np.linspace(1, 0, 41))
    times = [*down[:21], *np.linspace(0.75, 0, 31)]
    name, n = "letter", 40_000
    result = gk.sample(model, n, steps=times, guides=[CONSTRAINTS[name]], seed=3)
    own = table.exp().numpy() * [fits(name, row) for row in model.states.tolist()]
    place = V ** torch.arange(L - 1, -1, -1)
    found = np.bincount((result.x * place).sum(1).numpy(), weights=result.weights.numpy(), minlength=V**L)
    # 40 steps factorise; half the L1 distance to the table itself was .012 (masked) and .03 (uniform)
    assert 0.5 * np.abs(found - own / own.sum()).sum() < 0.045
    assert float(result.log_z) == pytest.approx(math.log(own.sum()), abs=0.05)


def table(noising: str) -> gk.analytic.TokenTable:
    generator = torch.Generator().manual_seed(5)
    return gk.analytic.TokenTable(torch.randn((3,) * 4, generator=generator, dtype=torch.float64) * 1.3, noising)


@pytest.mark.parametrize("noising", ["masked", "ordered"])
@pytest.mark.parametrize(
    "where",
    [(1, 1, 0, 0), (0, 1, 0, 1), *(pytest.param(w, marks=pytest.mark.slow) for w in ((1, 0, 0, 0), (0, 0, 1, 1)))],
)
def test_known_tokens_of_masked_models_give_the_exact_conditional_and_its_probability(noising: str, where):
    """Hardly any two positions are drawn in one step, so that chains are nearly exact."""
    model, known, n = table(noising), torch.tensor([2, 0, 1, 1]), 4000
    mask = torch.tensor(where).bool()
    steps = 4 if noising == "ordered" else 150
    result = gk.sample(model, n, steps=steps, guides=[gk.Keep(known, mask)], seed=1)
    assert torch.equal(result.x[:, mask], known[mask].expand(n, -1))
    own = model.table[0].exp() * (model.states == known)[:, mask].all(1)
    place = 3 ** torch.arange(3, -1, -1)
    found = np.bincount((result.x * place).sum(1).numpy(), weights=result.weights.numpy(), minlength=81) * n
    expected, some = (own / own.sum()).numpy() * n, own.numpy() > 0
    chi = ((found - expected)[some] ** 2 / expected[some]).sum()
    weighted = noising == "ordered" and where not in ((1, 1, 0, 0), (1, 0, 0, 0))
    # chi-square of 8 or 26 degrees of freedom: 36 and 66 are met by chance once in 10^5; resampling adds to it
    assert chi < (40 if sum(where) == 2 else 70) * (3 if weighted else 1)
    assert float(result.log_z) == pytest.approx(float(own.sum().log()), abs=0.05 if weighted else 1e-9)
    assert bool(result.trace["ess"].amin() > n - 1e-3) == (not weighted)


def test_few_particles_of_an_ordered_model_estimate_the_probability_of_a_kept_end():
    model, known, mask = table("ordered"), torch.tensor([2, 0, 1, 1]), torch.tensor([False, False, True, True])
    result = gk.sample(model, 2, steps=4, cond=[None] * 4000, seed=list(range(4000)), guides=[gk.Keep(known, mask)])
    own = float((model.table[0].exp() * (model.states == known)[:, mask].all(1)).sum())
    z = result.log_z.exp()
    assert abs(float(z.mean()) - own) < 4.5 * float(z.std()) / 4000**0.5


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.usefixtures("every_row")
def test_the_probability_of_what_is_known_takes_a_row_of_the_network_for_each_token(batch_size):
    model, known, mask = table("masked"), torch.tensor([2, 0, 1, 1]), torch.tensor([True, True, False, True])
    for n in (1, 2, 9):
        result = gk.sample(model, n, steps=5, guides=[gk.Keep(known, mask)], batch_size=batch_size)
        assert result.cost.network_rows == 5 * n + 3
        own = (model.table[0].exp() * (model.states == known)[:, mask].all(1)).sum().log()
        assert float(result.log_z) == pytest.approx(float(own), abs=1e-9)


def test_children_of_one_particle_count_what_is_known_once():
    model, known, mask = table("masked"), torch.tensor([2, 0, 1, 1]), torch.tensor([True, True, False, True])
    guides = [gk.Keep(known, mask), gk.SVDD(lambda x: 0.0 * x[:, 0], 1.0, candidates=3)]
    result = gk.sample(model, 2, steps=5, guides=guides)
    own = (model.table[0].exp() * (model.states == known)[:, mask].all(1)).sum().log()
    assert float(result.log_z) == pytest.approx(float(own), abs=1e-9)


@pytest.mark.usefixtures("every_row")
def test_a_known_beginning_of_an_ordered_model_saves_its_steps():
    model, mask = table("ordered"), torch.tensor([True, True, False, False])
    result = gk.sample(model, 8, steps=8, guides=[gk.Keep(torch.tensor([2, 0, 1, 1]), mask)])
    assert len(result.trace) == 4
    assert result.cost.network_rows == 4 * 8 + 2


@pytest.mark.parametrize("noising", ["masked", "uniform", "ordered"])
def test_a_constraint_that_excludes_nothing_gives_the_plain_sampler_bit_for_bit(noising: str):
    model = table(noising)
    plain = gk.sample(model, 500, steps=6)
    for guide in (
        gk.MaxEdits(torch.tensor([2, 0, 1, 1]), 4),
        gk.Sites(forbidden=[[0] * 5]),
        gk.Keep(template=[None] * 4),
    ):
        free = gk.sample(model, 500, steps=6, guides=[guide])
        assert torch.equal(plain.x, free.x)
        assert float(free.log_weights.abs().max()) < 1e-9


def test_conditions_have_templates_of_their_own():
    model = PROBLEMS["masked"].model
    known = torch.tensor([[2, 0, 1], [0, 1, 2]])
    guide = gk.Keep(known, torch.tensor([True, False, True]))
    both = gk.sample(model, 50, steps=6, cond=[0, None], guides=[guide])
    for g, cond in enumerate((0, None)):
        alone = gk.sample(model, 50, steps=6, cond=cond, guides=[gk.Keep(known[g], torch.tensor([True, False, True]))])
        assert torch.equal(both.x[both.group == g], alone.x)
        assert float(both.log_z[g]) == pytest.approx(float(alone.log_z), abs=1e-9)


class Letters(nn.Module):
    """A network of no particular meaning over four letters."""

    def __init__(self, length: int):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Embedding(5, 16), nn.Conv1d(length, length, 5, padding=2), nn.Linear(16, 4))

    def forward(self, x, t, cond):
        return 3 * self.net(x)


@lru_cache
def dna(kind=gk.MaskedModel, length: int = 24, **options) -> gk.Model:
    letters = "ACGT"
    return kind(
        Letters(length).eval(), 4, length, decode=lambda x: ["".join(letters[v] for v in row) for row in x.tolist()],
        read=lambda texts: torch.tensor([[letters.index(c) for c in text] for text in texts]), **options,
    )  # fmt: skip


def gc(texts: list[str]) -> torch.Tensor:
    return torch.tensor([float(sum(c in "GC" for c in s)) for s in texts])


@pytest.mark.parametrize("kind", [gk.MaskedModel, gk.UniformModel])
@pytest.mark.parametrize("steps", [1, 2, pytest.param(12, marks=pytest.mark.slow)])
def test_no_sample_of_ten_thousand_breaks_a_constraint_however_short_the_run(kind, steps: int):
    guides = [
        gk.Keep(template="NNRACNNNNNNNNNNNNNNNNNYY", ess=0.0),
        gk.Sites(forbidden=["GAATTC", "GANTC", "AAA", "CC"], required=["TATAW"], ess=0.0),
    ]
    samples = gk.sample(dna(kind), 10_000, steps=steps, guides=guides).samples
    for s in samples:
        assert s[2] in "AG"
        assert s[3:5] == "AC"
        assert set(s[-2:]) <= set("CT")
        assert "TATAA" in s or "TATAT" in s
        assert not any(site in s for site in ("GAATTC", "GAATC", "GACTC", "GAGTC", "GATTC", "AAA", "CC"))


def test_at_most_so_many_edits_in_ten_thousand_samples_and_in_refinement():
    model, reference = dna(), "ACGTACGTACGTACGTACGTACGT"
    guide = gk.MaxEdits(reference, 3, ess=0.0)

    def edits(texts):
        return [sum(a != b for a, b in zip(s, reference, strict=True)) for s in texts]

    found = edits(gk.sample(model, 10_000, steps=3, guides=[guide]).samples)
    assert max(found) == 3
    start = model.read([reference] * 40)
    better = gk.refine(model, start, gc, rounds=4, level=0.3, steps=6, guides=[guide])
    assert max(edits(better.samples)) <= 3
    assert float(better.rewards.mean()) > 12.5


@pytest.mark.parametrize("kind", [gk.MaskedModel, gk.UniformModel])
def test_without_weights_constraints_hold_in_searches_too(kind):
    model, reference = dna(kind), "ACGTACGTACGTACGTACGTACGT"
    guides = [
        gk.Keep(template="NNR" + "N" * 21, method="replace"),
        gk.Sites(forbidden=["CG", "GC"], required=["TATA"], method="replace"),
        gk.MaxEdits(reference, 14, method="replace"),
    ]
    for result in (
        gk.sample(model, 200, steps=6, guides=guides),
        gk.search.random(model, 4, gc, rounds=2, candidates=3, steps=4, guides=guides),
    ):
        assert float(result.log_weights.abs().max()) == 0
        for s in result.samples:
            assert s[2] in "AG" and "CG" not in s and "GC" not in s and "TATA" in s
            assert sum(a != b for a, b in zip(s, reference, strict=True)) <= 14
    with pytest.raises(ValueError, match="have weights or have none"):
        gk.sample(model, 4, steps=2, guides=[guides[0], gk.Sites(forbidden=["CG"])])


def test_refinement_evolution_and_searches_keep_what_is_kept():
    model, keep = dna(), gk.Keep(template="NNNNGATAANNNNNNNNNNNNNNN")
    options = {"guides": [keep], "seed": 1}
    results = [
        gk.refine(model, 16, gc, rounds=2, steps=4, **options),
        gk.evolve(model, 16, gc, rounds=2, steps=4, **options),
        gk.search.random(model, 4, gc, rounds=2, candidates=3, steps=4, **options),
        gk.search.zero_order(model, 4, gc, rounds=2, neighbours=3, steps=4, **options),
    ]
    for result in results:
        assert all(s[4:9] == "GATAA" for s in result.samples)
        assert len(set(result.samples)) > 1


# Gaussian processes ------------------------------------------------------------------------------------------------

MEANS = torch.tensor([[-1.0, 0.5, 0.0], [1.2, -0.3, 0.8], [0.3, 1.0, -1.0]], dtype=torch.float64)
PI, STD = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.4, 0.3, 0.5]).double()
K, M = torch.tensor([0.2, 0.0, -0.3]).double(), torch.tensor([True, False, True])
SCHEDULES = {"vp": gk.schedules.Cosine(), "ve": gk.schedules.EDM(), "flow": gk.schedules.Flow()}


def mixture(schedule: str) -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture(PI, MEANS, STD, schedule=SCHEDULES[schedule])


def conditional() -> tuple[float, float, float]:
    """Mean and variance of x_1 given the others, and the log-density of those."""
    square = ((K - MEANS)[:, M] / STD[:, None]).square().sum(1)
    log_w = PI.log() - 0.5 * square - 2 * STD.log() - math.log(2 * math.pi)
    w = log_w.softmax(0)
    mean = (w * MEANS[:, 1]).sum()
    return float(mean), float((w * (STD**2 + MEANS[:, 1] ** 2)).sum() - mean**2), float(log_w.logsumexp(0))


@pytest.mark.parametrize(
    ("schedule", "solver", "steps"),
    [
        pytest.param("vp", gk.solvers.DDPM(), 200, marks=pytest.mark.slow),
        ("vp", gk.solvers.SDEDPMpp(2), 80),
        ("ve", gk.solvers.SDEDPMpp(2, times="karras"), 80),
        pytest.param("flow", gk.solvers.DDPM(), 200, marks=pytest.mark.slow),
        pytest.param("flow", gk.solvers.DDIM(0.7), 200, marks=pytest.mark.slow),
    ],
)
def test_the_rest_follows_the_conditional_law_and_z_is_the_density_of_what_is_kept(schedule: str, solver, steps: int):
    result = gk.sample(mixture(schedule), 20_000, steps=steps, solver=solver, guides=[gk.Keep(K, M)])
    assert torch.equal(result.x[:, M], K[M].expand(20_000, 2))
    mean, var, log_z = conditional()
    x, w = result.x[:, 1], result.weights
    found = float((w * x).sum())
    # the steps leave a bias of .01 to .02; a wrong sign or factor moves these by .2 and more
    assert found == pytest.approx(mean, abs=0.035)
    assert float((w * (x - found) ** 2).sum()) == pytest.approx(var, abs=0.03)
    assert float(result.log_z) == pytest.approx(log_z, abs=0.06)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_few_particles_are_unbiased(schedule: str):
    """E[mean of w f] for N = 4 is that of N = 20,000 at the same steps: the weights are exact for the chain."""
    options = {"steps": 40, "solver": gk.solvers.DDPM(times="karras"), "guides": [gk.Keep(K, M)]}
    few = gk.sample(mixture(schedule), 4, cond=[None] * 5000, seed=list(range(5000)), **options)
    many = gk.sample(mixture(schedule), 50_000, **options)
    for f in (torch.ones_like, lambda x: x, lambda x: (x > 0.8).to(x)):
        w = few.log_weights.exp() * f(few.x[:, 1])
        own, truth = w.view(5000, 4).mean(1), float((many.log_weights.exp() * f(many.x[:, 1])).mean())
        error = float(own.std()) / 5000**0.5 + 0.01 * abs(truth)  # many has errors of about one per cent itself
        assert abs(float(own.mean()) - truth) < 4.5 * error


@pytest.mark.parametrize(
    "guides",
    [
        lambda r: [gk.FKSteering(r, 1.0)],
        lambda r: [gk.SVDD(r, 1.0, candidates=3)],
        lambda r: [gk.TDS(r, 1.0)],
    ],
    ids=["FK", "SVDD", "TDS"],
)
def test_together_with_a_reward_the_law_is_the_tilted_conditional(guides):
    """r = x_1, linear, so that the tilted conditional is a mixture with means m + s^2."""
    square = ((K - MEANS)[:, M] / STD[:, None]).square().sum(1)
    log_w = PI.log() - 0.5 * square - 2 * STD.log() - math.log(2 * math.pi) + MEANS[:, 1] + 0.5 * STD**2
    mean = float((log_w.softmax(0) * (MEANS[:, 1] + STD**2)).sum())
    for order in (1, -1):
        both = [gk.Keep(K, M), *guides(lambda x: x[:, 1])][::order]
        result = gk.sample(mixture("vp"), 4000, steps=200, guides=both, seed=order + 3)
        assert torch.equal(result.x[:, M], K[M].expand(4000, 2))
        assert float((result.weights * result.x[:, 1]).sum()) == pytest.approx(mean, abs=0.07)
        assert float(result.log_z) == pytest.approx(float(log_w.logsumexp(0)), abs=0.15)


@pytest.mark.slow
def test_with_guidance_the_law_is_that_of_the_guided_chain():
    """CFG changes p; Keep then conditions the chain of the changed p, as importance sampling of it does."""
    problem = PROBLEMS["flow-2d"]
    options = {"steps": STEPS, "cond": problem.cond}
    k, where = torch.tensor([0.4, 0.0]).double(), torch.tensor([True, False])
    kept = gk.sample(problem.model, 20_000, guides=[gk.CFG(1.8), gk.Keep(k, where)], **options)
    free = gk.sample(problem.model, 400_000, guides=[gk.CFG(1.8)], seed=1, **options)
    near_k = (free.x[:, 0] - 0.4).abs() < 0.03
    share = float(near_k.double().mean()) / 0.06
    # the last step is given noise, and six steps are coarse: mean within .1, density within a fifth
    assert float((kept.weights * kept.x[:, 1]).sum()) == pytest.approx(float(free.x[near_k, 1].mean()), abs=0.1)
    assert float(kept.log_z) == pytest.approx(math.log(share), abs=0.2)


@pytest.mark.slow
def test_times_that_go_up_again_leave_the_gaussian_law():
    times = [*np.linspace(1, 0.25, 121), *np.linspace(0.5, 0, 81)]
    result = gk.sample(mixture("vp"), 20_000, steps=times, guides=[gk.Keep(K, M)])
    mean, _, log_z = conditional()
    assert float((result.weights * result.x[:, 1]).sum()) == pytest.approx(mean, abs=0.04)
    assert float(result.log_z) == pytest.approx(log_z, abs=0.08)


def test_starts_that_hold_the_kept_part_stay_in_the_conditional_law():
    """Samples of p(x | k), noised a little and denoised. Their weights at the start are not known and are taken to be
    equal, which is a bias that vanishes with the level: .005 at .02, and .08 at 1/2."""
    mean, _, _ = conditional()
    square = ((K - MEANS)[:, M] / STD[:, None]).square().sum(1)
    own = (PI.log() - 0.5 * square - 2 * STD.log()).softmax(0)
    generator = torch.Generator().manual_seed(0)
    part = torch.multinomial(own, 20_000, True, generator=generator)
    x = K.repeat(20_000, 1)
    x[:, 1] = MEANS[part, 1] + STD[part] * torch.randn(20_000, generator=generator).double()
    result = gk.sample(mixture("vp"), 20_000, steps=60, guides=[gk.StartFrom(x, level=0.02), gk.Keep(K, M)])
    assert torch.equal(result.x[:, M], K[M].expand(20_000, 2))
    assert float((result.weights * result.x[:, 1]).sum()) == pytest.approx(mean, abs=0.015)


@pytest.mark.parametrize("solver", [None, gk.solvers.DDIM(), gk.solvers.Heun()], ids=repr)
def test_replacement_keeps_without_weights_for_every_solver(solver):
    result = gk.sample(mixture("vp"), 500, steps=20, solver=solver, guides=[gk.Keep(K, M, method="replace")])
    assert torch.equal(result.x[:, M], K[M].expand(500, 2))
    assert float(result.log_weights.abs().max()) == 0
    assert result.x[:, 1].std() > 0.2


def test_repaint_comes_nearer_to_the_conditional_than_replacement():
    mean, _, _ = conditional()
    found = {}
    for method in ("replace", "repaint"):
        result = gk.sample(mixture("vp"), 4000, steps=40, guides=[gk.Keep(K, M, method=method, recur=10, jump=2)])
        assert torch.equal(result.x[:, M], K[M].expand(4000, 2))
        found[method] = abs(float(result.x[:, 1].mean()) - mean)
    assert found["repaint"] < 0.5 * found["replace"]
    assert len(result.trace) > 150


# errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gk.Keep(K), "boolean mask"),
        (lambda: gk.Keep(), "either known"),
        (lambda: gk.Keep(K, M, method="paste"), "weighted, replace, repaint"),
        (lambda: gk.Keep(K, M, stop=0.5), "throughout the run"),
        (lambda: gk.Sites(), "forbidden"),
        (lambda: gk.Sites(forbidden=[""]), "empty site"),
        (lambda: gk.MaxEdits("ACGT", -1), "number of positions"),
    ],
)
def test_wrong_options_are_refused_when_the_guide_is_made(make, words: str):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("model", "guide", "words"),
    [
        (lambda: mixture("vp"), gk.Keep(K, torch.tensor([1.0, 0.0, 1.0])), "boolean mask of shape"),
        (lambda: mixture("vp"), gk.Keep(K[:2], M), "shape"),
        (lambda: mixture("vp"), gk.Keep(template=[0, 1, None]), "for tokens"),
        (lambda: mixture("vp"), gk.Sites(forbidden=["A"]), "is for tokens"),
        (dna, gk.Keep(template="NNN"), "3 positions and samples have 24"),
        (
            dna,
            gk.Keep(template="NNNNNNNNNNNNNNNNNNNNNNNX"),
            "'X' is not one token of this model, which writes A, C, G and T; .* IUPAC",
        ),
        (dna, gk.Sites(forbidden=["A"], required=["GATA"]), "no sequence of 24 tokens"),
        (dna, gk.Sites(required=[[7]]), "token 7"),
        (dna, gk.MaxEdits(torch.zeros(5).long(), 1), "MaxEdits.reference"),
    ],
)
def test_what_a_model_cannot_keep_is_refused_before_the_network_is_called(model, guide, words: str):
    with pytest.raises(ValueError, match=words):
        gk.Run(model(), 4, guides=[guide])


def test_processes_of_ones_own_that_are_masked_are_constrained_too():
    class Own(gk.process.Masked):
        pass

    model = gk.MaskedModel(Letters(24).eval(), 4, 24)
    model.process = Own(4)
    x = gk.sample(model, 50, steps=4, guides=[gk.Sites(forbidden=[[0, 0]], method="replace")]).x
    assert not bool(((x[:, 1:] == 0) & (x[:, :-1] == 0)).any())


def test_particles_that_meet_a_kept_part_without_probability_on_their_way_have_weight_zero():
    """Whether token 2 may follow token 1 shows only once token 1 is there; before that, nothing is refused."""
    law = torch.full((3, 3, 3), -1.0, dtype=torch.float64)
    law[:, 1, 2] = -torch.inf
    model = gk.analytic.TokenTable(law, "ordered")
    with pytest.raises(gk.RewardError, match="all 8 particles of group 0 have weight zero"):
        gk.sample(model, 8, steps=6, guides=[gk.Keep(template=[None, 1, 2])])
    kept = gk.sample(model, 8, steps=6, guides=[gk.Keep(template=[None, {0, 1}, 2])])
    assert kept.log_weights.isfinite().any() and not (kept.x[kept.weights > 0][:, 1] == 1).any()


def test_states_with_nan_are_refused_before_the_first_network_call():
    model = gk.GaussianModel(lambda x, t, cond: 1 / 0, (2,), predicts="clean")
    nan = torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])
    for call in (
        lambda: gk.sample(model, 2, steps=3, guides=[gk.Keep(nan, torch.tensor([True, False]))]),
        lambda: gk.sample(model, 2, steps=3, guides=[gk.StartFrom(nan, 0.5)]),
        lambda: gk.invert(model, nan),
    ):
        with pytest.raises(ValueError, match="NaN or infinity"):
            call()


def test_contradicting_constraints_say_so():
    two = [gk.Keep(template="A" * 24), gk.Sites(forbidden=["AAA"])]
    with pytest.raises(ValueError, match="no sequence satisfies both"):
        gk.Run(dna(), 4, steps=3, guides=two)
    three = [gk.Keep(template="A" + "N" * 23), gk.Keep(template="N" * 23 + "A"), gk.MaxEdits("C" * 24, 1)]
    with pytest.raises(ValueError, match="contradict each other"):
        gk.sample(dna(), 4, steps=3, guides=three)


def test_a_part_without_probability_is_named():
    table = torch.zeros(3, 3, 3)
    table[:, 2] = -1e4
    for noising in ("masked", "uniform"):
        model = gk.analytic.TokenTable(table, noising)
        with pytest.raises(ValueError, match=r"position 1 \(counted from 0\)"):
            gk.sample(model, 4, steps=3, guides=[gk.Keep(template=[None, {2}, {0, 1}])])


def test_a_deterministic_solver_is_refused_where_weights_are_needed():
    with pytest.raises(ValueError, match="deterministic"):
        gk.Run(mixture("vp"), 4, solver=gk.solvers.DDIM(), guides=[gk.Keep(K, M)])


# automata ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "accepts"),
    [
        (lambda: avoiding([(0, 1, 0), (1, 1)], 6, 2, torch.device("cpu")), lambda s: "010" not in s and "11" not in s),
        (lambda: containing([(0, 0, 1), (1, 0, 1, 0)], 6, 2, torch.device("cpu")), lambda s: "001" in s or "1010" in s),
        (lambda: near(torch.tensor([0, 1, 1, 0, 1, 0]), 2, 2), lambda s: sum(map(str.__ne__, s, "011010")) <= 2),
        (
            lambda: (
                avoiding([(1, 1, 1)], 6, 2, torch.device("cpu")) & containing([(1, 0, 1)], 6, 2, torch.device("cpu"))
            ),
            lambda s: "111" not in s and "101" in s,
        ),
    ],
)
def test_automata_accept_what_they_say(language, accepts):
    automaton = language()
    for code in range(64):
        text = format(code, "06b")
        hot = nn.functional.one_hot(torch.tensor([[int(c) for c in text]]), 2).double()
        assert bool(automaton.backward(hot)[0].exp() > 0.5) == accepts(text), text
