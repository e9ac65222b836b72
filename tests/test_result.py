"""What a run returns: samples, weights, lineage, noise, trace and cost, and that they can be written and read."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

import guidekit as gk
from guidekit.engine.cost import Cost
from guidekit.engine.scoring import Scorer
from rewards import Reward

from .problems import PROBLEMS, STEPS, Problem, deviations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
every = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
VP = PROBLEMS["vp-1d"]
N = 8


def run(problem: Problem = VP, n: int = N, **options) -> gk.Result:
    return gk.sample(problem.model, n, **{"steps": STEPS, "cond": problem.cond} | options)


def steered(problem: Problem = VP, n: int = N, ess: float = 0.9, **options) -> gk.Result:
    return run(problem, n, guides=[gk.FKSteering(problem.reward, 0.4, ess=ess)], **options)


def words(x: torch.Tensor) -> list[str]:
    """Rounded to integers, so that many rows decode to one string."""
    return [f"w{round(float(v))}" for v in x[:, 0]]


def speaker(reward=None) -> gk.Model:
    """A mixture whose samples are strings."""
    base = VP.model

    def net(x, t, cond):
        return base(x, float(t[0]), None)

    return gk.GaussianModel(net, (1,), predicts="clean", decode=words, dtype=torch.float64)


# fields ------------------------------------------------------------------------------------------------------------


@every
@pytest.mark.usefixtures("every_row")
def test_the_fields_are_those_of_the_documentation(problem: Problem):
    result = steered(problem, cond=[problem.cond, None, problem.cond], seed=[1, 2, 3])
    rows = 3 * N
    assert len(result) == rows
    assert result.groups == 3
    assert result.x.shape == (rows, *problem.model.shape)
    assert torch.equal(result.samples, result.x)
    assert torch.equal(result.rewards, problem.reward(result.x).double())
    assert torch.equal(result.group, torch.arange(3).repeat_interleave(N))
    assert result.log_weights.shape == (rows,)
    assert result.log_weights.dtype == torch.float64
    assert result.log_z.shape == result.ess.shape == (3,)
    assert result.ancestors.shape == (STEPS, rows)
    assert result.noise.shape == (rows, *problem.model.process.noise_shape(problem.model.shape))
    assert torch.equal(result.row, torch.arange(rows))
    assert result.cost.network_calls == STEPS
    assert result.cost.network_rows == STEPS * rows
    distinct = problem.name in ("masked", "uniform")  # equal tokens are scored once
    assert 0 < result.cost.reward_calls < STEPS * rows if distinct else result.cost.reward_calls == STEPS * rows
    assert result.cost.unscored == 0
    assert 0 < result.cost.seconds < 60
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.x = result.noise


def test_log_z_ess_and_weights_are_their_formulas_group_by_group():
    result = steered(cond=[1, 0], seed=[1, 2], ess=0.0)
    w = result.log_weights.exp().numpy().reshape(2, N)
    assert w.std() > 0.1
    assert np.allclose(result.log_z, np.log(w.mean(1)), rtol=1e-12)
    assert np.allclose(result.ess, w.sum(1) ** 2 / (w**2).sum(1), rtol=1e-12)
    assert np.allclose(result.weights, (w / w.sum(1, keepdims=True)).ravel(), rtol=1e-12)


def test_weights_survive_values_beyond_the_range_of_exp():
    result = dataclasses.replace(run(), log_weights=torch.arange(N).double() * 1000 - 9000)
    assert float(result.log_z) == pytest.approx(-2000 - math.log(N), abs=1e-9)
    assert float(result.ess) == 1


def test_without_weights_log_z_is_zero_and_ess_is_n():
    result = run()
    assert result.rewards is None
    assert torch.equal(result.log_weights, torch.zeros(N).double())
    assert float(result.log_z) == pytest.approx(0, abs=1e-12)
    assert float(result.ess) == pytest.approx(N)


def test_config_records_the_call_as_plain_values():
    result = steered(seed=5)
    text = json.dumps(result.config)
    assert result.config["n"] == N
    assert result.config["seed"] == 5
    assert len(result.config["moves"]) == STEPS
    assert "FKSteering" in text
    assert "0.4" in text


class Loop(Reward):
    """A reward that holds itself, as objects with a parent do."""

    name = "loop"

    def __init__(self):
        self.me, self.table = self, {"rows": [np.arange(3), np.array(["A", "C"]), np.array([None, self])]}

    def score(self, samples):
        return samples[:, 0]


class Nest:
    """Objects within objects."""

    def __init__(self, depth: int):
        self.inner = Nest(depth - 1) if depth else None

    def __call__(self, samples):
        return samples[:, 0]


@pytest.mark.parametrize("reward", [Loop(), *(Nest(depth) for depth in range(1, 9))])
def test_objects_however_deep_can_be_recorded(reward):
    result = run(reward=reward, guides=[gk.FKSteering(reward, 1.0)])
    assert torch.equal(result.rewards, result.x[:, 0])
    assert type(reward).__name__ in json.dumps(result.config)


# lineage -----------------------------------------------------------------------------------------------------------


@every
def test_ancestors_and_lineage_agree_with_the_populations_and_the_trace(problem: Problem):
    seen: list[gk.Population] = []
    options = {"cond": [problem.cond] * 2, "seed": [1, 2], "callbacks": [lambda pop, step: seen.append(pop)]}
    result = steered(problem, ess=0.6, **options)
    assert torch.equal(result.ancestors, torch.stack([pop.parent for pop in seen]))
    lineage = result.lineage()
    assert lineage.shape == (STEPS + 1, 2 * N)
    assert torch.equal(lineage[-1], torch.arange(2 * N))
    assert torch.equal(lineage[0], seen[-1].root)
    for k, pop in enumerate(seen):
        # what a particle carried then is what its descendants descend from
        assert torch.equal(lineage[k], pop.parent[lineage[k + 1]])
        roots = pop.root.view(2, N).tolist()
        assert result.trace[k]["distinct"] == [len(set(group)) for group in roots]
        own = torch.arange(2 * N).view(2, N)
        assert result.trace[k]["resampled"] == (pop.parent.view(2, N) != own).any(1).tolist()
    assert result.trace["resampled"].any()
    assert not result.trace["resampled"].all()
    assert ((lineage // N) == torch.arange(2 * N) // N).all()  # nobody changes group


@every
def test_noise_is_that_of_the_root_of_each_row(problem: Problem):
    plain, result = run(problem, seed=3), steered(problem, seed=3)
    root = result.lineage()[0]
    assert len(root.unique()) < N
    assert torch.equal(result.noise, plain.noise[root])
    best = result.best(2)
    assert torch.equal(best.noise, plain.noise[best.lineage()[0]])


@pytest.mark.parametrize("solver", [gk.solvers.DDIM(), gk.solvers.DPMpp(order=2), gk.solvers.Heun()], ids=repr)
def test_noise_and_a_deterministic_solver_reproduce_each_sample(solver):
    problem = PROBLEMS["flow-2d"]
    first = run(problem, solver=solver, seed=1)
    again = run(problem, solver=solver, seed=2, noise=first.noise)
    assert torch.equal(again.x, first.x)
    assert torch.equal(again.noise, first.noise)
    assert not torch.equal(run(problem, solver=solver, seed=2).x, first.x)
    one = run(problem, n=1, solver=solver, seed=9, noise=first.noise[5:6])
    assert torch.allclose(one.x, first.x[5:6], rtol=1e-12)


def test_the_noise_of_a_steered_run_leads_a_deterministic_one():
    result = steered(seed=1)
    ours = run(noise=result.noise, solver=gk.solvers.DDIM(), seed=4)
    plain = run(solver=gk.solvers.DDIM(), seed=1)
    assert torch.allclose(ours.x, plain.x[result.lineage()[0]], rtol=1e-12)


def recorded(problem: Problem, n: int = N, **options) -> tuple[gk.Result, torch.Tensor]:
    """A run and the noise of its chain, with NaN for the move that takes none."""
    cond = options.pop("cond", problem.cond)
    chain = gk.Run(problem.model, n, steps=STEPS, cond=cond, **options).chain_noise()
    if isinstance(problem.model.process, gk.process.Gaussian):  # c = 0 in the last move
        chain[-1] = torch.nan
    return run(problem, n, cond=cond, **options), chain


@every
def test_the_best_of_a_search_have_the_noise_of_their_own_chains_however_many_there_are(problem: Problem, tmp_path):
    """As many samples as moves and one: the two axes of the noise are alike in length."""
    n = STEPS + 1
    found = gk.search.random(problem.model, n, problem.reward, rounds=1, candidates=2, steps=STEPS, cond=problem.cond)
    assert found.noise.shape[:2] == (n, n)
    found.save(tmp_path)
    for result in (found, gk.load_result(tmp_path)):
        best = result.best(3)
        again = gk.sample(problem.model, 3, steps=STEPS, cond=problem.cond, noise=best.noise.clone())
        assert torch.equal(again.x, best.x)


@every
def test_the_noise_of_a_whole_chain_reproduces_a_stochastic_run(problem: Problem):
    first, chain = recorded(problem, seed=1)
    kept = chain.clone()
    again = run(problem, seed=2, noise=chain)
    assert torch.equal(again.x, first.x)
    assert torch.equal(again.noise, chain[0])
    assert torch.equal(chain.nan_to_num(), kept.nan_to_num())  # ours is not used up
    parts = run(problem, seed=2, noise=chain, batch_size=3)
    assert torch.allclose(parts.x.double(), first.x.double(), rtol=1e-12)


@every
def test_another_chain_noise_gives_another_run(problem: Problem):
    first, chain = recorded(problem, seed=1, n=64)
    for k in range(STEPS):
        other = chain.clone()
        other[k] = other[k].flip(0)
        x = run(problem, n=64, seed=1, noise=other).x
        # tokens at t = 1 know nothing of x_0, so their first draw is forgotten
        assert torch.equal(x, first.x) == (k == 0 and not x.is_floating_point())


@every
def test_chain_noise_is_addressed_by_row_under_resampling_and_in_groups(problem: Problem):
    options = {
        "guides": [gk.FKSteering(problem.reward, 0.4, ess=1.0)],
        "cond": [problem.cond, None],
        "seed": [4, 5],
    }
    first, chain = recorded(problem, **options)
    again = run(problem, noise=chain, **options)
    assert torch.equal(again.ancestors, first.ancestors)
    assert torch.equal(again.x, first.x)
    assert torch.equal(again.noise, chain[0][first.lineage()[0]])


# best, resample, to_frame ------------------------------------------------------------------------------------------


def known(rewards: list[float]) -> gk.Result:
    """Two groups with these rewards, one per row."""
    result = run(n=len(rewards) // 2, cond=[1, 0], seed=[1, 2])
    log_w = torch.linspace(-1, 2, len(rewards), dtype=torch.float64)
    return dataclasses.replace(result, rewards=torch.tensor(rewards, dtype=torch.float64), log_weights=log_w)


def test_best_takes_the_highest_of_each_group_in_order_with_nan_last():
    nan = math.nan
    result = known([0.5, nan, 3.0, -2.0, nan, 1.0, -7.0, nan])
    order = [[2, 0, 3, 1], [5, 6, 4, 7]]
    for k in (1, 2, 3, 4):
        best = result.best(k)
        rows = torch.tensor([r for group in order for r in group[:k]])
        if k == 4:  # of those without a score no order is promised
            assert set(best.row[6:].tolist()) == {4, 7}
            rows[6:] = best.row[6:]
        for name in ("x", "group", "log_weights", "noise", "row"):
            assert torch.equal(getattr(best, name), getattr(result, name)[rows]), name
        assert torch.equal(best.rewards.nan_to_num(9), result.rewards[rows].nan_to_num(9))
        assert torch.equal(best.samples, result.samples[rows])
        assert len(best) == 2 * k
        assert torch.equal(best.lineage(), result.lineage()[:, rows])


def test_best_of_strings_keeps_sample_and_reward_together():
    result = gk.sample(speaker(), 30, steps=4, reward=lambda s: [float(v[1:]) for v in s])
    best = result.best(5)
    assert best.rewards.tolist() == sorted((float(s[1:]) for s in result.samples), reverse=True)[:5]
    assert [float(s[1:]) for s in best.samples] == best.rewards.tolist()


def test_best_without_rewards_says_how_to_get_them():
    with pytest.raises(ValueError, match="reward="):
        run().best(1)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_best_of_more_or_fewer_than_there_are_is_an_error(k: int):
    with pytest.raises(ValueError, match=rf"best\({k}\): every group has 4 samples"):
        known([0.0] * 8).best(k)


def test_resample_gives_equal_weights_and_leaves_log_z_alone():
    result = known([1.0] * 8)
    even = result.resample(0)
    assert torch.allclose(even.log_z, result.log_z, rtol=1e-12)
    assert torch.allclose(even.ess, torch.tensor([4.0, 4.0]).double())
    assert torch.allclose(even.log_weights, result.log_z.repeat_interleave(4))
    assert len(even) == 8
    assert torch.equal(even.group, result.group)
    for name in ("x", "rewards", "noise"):
        assert torch.equal(getattr(even, name), getattr(result, name)[even.row])


def test_resample_draws_rows_in_proportion_to_their_weights():
    result = known([1.0] * 8)
    seeds = 600
    counts = torch.stack([torch.bincount(result.resample(seed).row, minlength=8) for seed in range(seeds)]).double()
    expected = 4 * result.weights  # of each group's four draws
    assert ((counts >= expected.floor()) & (counts <= expected.ceil())).all()  # systematic
    share = expected - expected.floor()
    error = (share * (1 - share) / seeds).sqrt()
    assert ((counts.mean(0) - expected).abs() < 4.5 * error).all()
    assert (share * (1 - share) > 0.05).sum() >= 4  # or it would have been a test of integers


def test_resample_depends_on_its_seed_alone():
    result = known([1.0] * 8)
    rows = [tuple(result.resample(seed).row.tolist()) for seed in range(20)]
    assert rows[3] == tuple(result.resample(3).row.tolist())
    assert len(set(rows)) > 1


def test_resampled_samples_follow_the_tilted_law():
    result = run(n=20_000, guides=[gk.FKSteering(VP.reward, VP.alpha, ess=0.0)]).resample(1)
    f = VP.features(result.x)
    moments, error = VP.tilted()  # of w, w f...
    truth = moments / moments[0]
    # weights of 20,000 rows have an ESS above 4,000; the truth's own error is that of 400,000 weighted rows
    se = f.std(0).numpy() / 4000**0.5 + error / moments[0]
    assert (np.abs(f.mean(0).numpy() - truth)[1:] < 4.5 * se[1:]).all()
    untilted, _ = VP.tilted(reward=False)
    assert np.abs(untilted - truth)[1] > 9 * se[1]


@pytest.mark.parametrize("model", [speaker(), VP.model], ids=["strings", "tensors"])
def test_to_frame_has_one_line_per_sample(model):
    result = gk.sample(model, 4, steps=3, cond=[None, None], seed=[1, 2], guides=[gk.FKSteering(scored, 1.0, ess=0.0)])
    frame = result.to_frame()
    assert list(frame["sample"]) == list(result.samples)
    assert list(frame["group"]) == [0] * 4 + [1] * 4
    assert np.allclose(frame["weight"], result.weights)
    assert np.allclose(frame["reward"], result.rewards)
    assert set(run().to_frame().columns) == {"sample", "group", "weight"}


def scored(samples):
    """A reward of strings and of tensors."""
    return [float(s[1:]) if isinstance(s, str) else float(s[0]) for s in samples]


# save and load -----------------------------------------------------------------------------------------------------


def same(a, b) -> bool:
    """Equal, with NaN equal to NaN."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def patchy(samples):
    """A reward that cannot score some."""
    return [float("nan") if v < -0.5 else v for v in scored(samples)]


KEPT = {
    "plain": lambda: run(),
    "steered groups": lambda: steered(cond=[1, 0], seed=[1, 2]),
    "tokens": lambda: steered(PROBLEMS["masked"]),
    "strings": lambda: gk.sample(speaker(), 9, steps=3, guides=[gk.FKSteering(scored, 1.0)]),
    "unscored": lambda: gk.sample(speaker(), 9, steps=3, reward=patchy),
    "best": lambda: steered(cond=[1, 0]).best(3),
    "single precision": lambda: gk.sample(
        gk.GaussianModel(lambda x, t, c: x / 2, (2, 3), decode=lambda x: (x * 9).to(torch.uint8)), 4, steps=3
    ),
    "half precision": lambda: dataclasses.replace(run(), samples=torch.arange(8).to(torch.bfloat16)),
}


@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
@pytest.mark.filterwarnings("ignore:.*could not be scored")
def test_a_saved_result_is_read_back_equal_in_all_fields(make, tmp_path):
    result = make()
    folder = result.save(tmp_path / "new" / "folder")
    loaded = gk.load_result(str(folder))
    for field in dataclasses.fields(result):
        assert same(getattr(result, field.name), getattr(loaded, field.name)), field.name
    assert isinstance(loaded.trace, type(result.trace))
    assert same(loaded.trace["ess"], result.trace["ess"])
    assert same(loaded.best(1).x, result.best(1).x) if result.rewards is not None else loaded.rewards is None
    assert torch.equal(loaded.log_z, result.log_z)


def test_the_files_are_safetensors_and_json_and_nothing_else(tmp_path):
    result = steered(cond=[1, 0], seed=[1, 2])
    result.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "tensors.safetensors"]
    tensors = load_file(tmp_path / "tensors.safetensors")
    names = {"x", "rewards", "group", "log_weights", "ancestors", "noise", "row"}
    assert set(tensors) == names | {"memos.0.0", "memos.0.1"}  # samples are x here, and not written twice
    for name in names:
        assert torch.equal(tensors[name], getattr(result, name)), name
    text = json.loads((tmp_path / "result.json").read_text())
    assert repr(text["trace"]).replace("None", "nan") == repr(list(result.trace))  # JSON has no NaN
    assert text["cost"]["network_rows"] == result.cost.network_rows


@pytest.mark.parametrize("make", [KEPT["plain"], KEPT["unscored"], lambda: steered_without_end()])
@pytest.mark.filterwarnings("ignore:.*could not be scored")
def test_the_json_is_that_of_the_standard(make, tmp_path):
    """NaN and Infinity are no JSON: other languages refuse the whole file."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    make().save(tmp_path)
    json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)


def steered_without_end() -> gk.Result:
    return run(guides=[gk.FKSteering(VP.reward, math.inf)])


def test_saving_again_replaces_what_was_there(tmp_path):
    steered(seed=1).save(tmp_path)
    second = gk.sample(speaker(), 5, steps=2)
    second.save(tmp_path)
    loaded = gk.load_result(tmp_path)
    assert loaded.samples == second.samples
    assert loaded.rewards is None


def test_samples_that_are_no_plain_values_cannot_be_saved_and_nothing_is_written(tmp_path):
    result = dataclasses.replace(run(), samples=[object()] * N)
    with pytest.raises(TypeError, match="neither tensors nor plain values"):
        result.save(tmp_path / "a")
    assert list((tmp_path / "a").glob("*")) == []


def cut(path, share: float = 0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def edited(name: str, value):
    def edit(folder):
        file = folder / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))

    return edit


def without(name: str):
    def remove(folder):
        file = folder / "tensors.safetensors"
        save_file({k: v for k, v in load_file(file).items() if k != name}, file)

    return remove


def huge_header(folder):
    """A safetensors file that claims a header of 2^62 bytes."""
    (folder / "tensors.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


HOSTILE = {
    "cut tensors": lambda folder: cut(folder / "tensors.safetensors"),
    "cut header": lambda folder: cut(folder / "tensors.safetensors", 0.01),
    "cut text": lambda folder: cut(folder / "result.json"),
    "empty tensors": lambda folder: (folder / "tensors.safetensors").write_bytes(b""),
    "empty text": lambda folder: (folder / "result.json").write_bytes(b""),
    "huge header": huge_header,
    "a pickle": lambda folder: torch.save({"x": torch.zeros(3)}, folder / "tensors.safetensors"),
    "binary text": lambda folder: (folder / "result.json").write_bytes(b"\xff\xfe\x00\x01"),
    "text that is a list": lambda folder: (folder / "result.json").write_text("[1, 2]"),
    "text that is a number": lambda folder: (folder / "result.json").write_text("3"),
    "deep text": lambda folder: (folder / "result.json").write_text("[" * 100_000),
    "other format": edited("format", "guidekit-result-0"),
    "cost of another kind": edited("cost", {"network_rows": 1, "money": 3}),
    "cost that is a list": edited("cost", [1, 2]),
    "trace that is a number": edited("trace", 3),
    "no x": without("x"),
    "no weights": without("log_weights"),
    "no ancestors": without("ancestors"),
}


@pytest.mark.parametrize("spoil", HOSTILE.values(), ids=HOSTILE)
def test_a_truncated_or_hostile_result_is_a_checkpoint_error_that_names_it(spoil, tmp_path):
    folder = steered().save(tmp_path / "mine")
    assert len(gk.load_result(folder)) == N
    spoil(folder)
    with pytest.raises(gk.CheckpointError, match="mine"):
        gk.load_result(folder)


@pytest.mark.parametrize("name", ["result.json", "tensors.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path):
    folder = steered().save(tmp_path / "mine")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"mine.*{name}"):
        gk.load_result(folder)


def test_a_missing_folder_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        gk.load_result(tmp_path / "nowhere")


# trace and callbacks -----------------------------------------------------------------------------------------------

COLUMNS = {"t", "ess", "entropy", "resampled", "distinct", "mean_reward", "max_reward", "seconds", "log_z_error"}


@every
def test_the_trace_has_a_row_for_every_step(problem: Problem):
    pops: list[gk.Population] = []
    result = steered(problem, cond=[problem.cond] * 2, seed=[1, 2], callbacks=[lambda pop, step: pops.append(pop)])
    assert len(result.trace) == STEPS
    assert all(set(row) == COLUMNS for row in result.trace)
    assert all(len(row[k]) == 2 for row in result.trace for k in COLUMNS - {"t", "seconds"})
    assert result.trace[0]["t"] == pytest.approx(1 - 1 / STEPS)
    assert torch.allclose(result.trace["t"], torch.tensor([1 - k / STEPS for k in range(1, STEPS + 1)]), atol=1e-6)
    assert result.trace["ess"].shape == (STEPS, 2)
    assert result.trace["resampled"].dtype == torch.bool
    seconds = result.trace["seconds"]
    assert (seconds.diff() >= 0).all()
    assert 0 < seconds[0] <= seconds[-1] <= result.cost.seconds
    rewards = torch.stack([pop.rewards for pop in pops]).view(STEPS, 2, N)
    assert torch.allclose(result.trace["mean_reward"].double(), rewards.mean(-1), rtol=1e-6)
    assert torch.allclose(result.trace["max_reward"].double(), rewards.amax(-1), rtol=1e-6)
    assert isinstance(result.trace[0], dict)
    assert result.trace[-1]["t"] == 0


def test_the_ess_of_the_trace_is_that_of_the_weights_that_the_selection_saw():
    pops: list[gk.Population] = []
    never = steered(ess=0.0, callbacks=[lambda pop, step: pops.append(pop)])
    assert torch.allclose(never.trace["ess"][:, 0].double(), torch.stack([pop.ess[0] for pop in pops]), rtol=1e-6)
    assert float(never.trace["ess"][-1, 0]) == pytest.approx(float(never.ess[0]))
    always = steered(ess=1.0)
    assert float(always.ess[0]) == pytest.approx(N)
    assert (always.trace["ess"][:-1] < 0.999 * N).all()  # the last move adds nothing: x_0 is the prediction before


def test_the_rewards_of_the_trace_are_nan_where_nothing_was_scored():
    result = run(guides=[gk.FKSteering(VP.reward, 1.0, every=4)])
    unknown = result.trace["max_reward"].isnan().flatten().tolist()
    assert unknown == [True] * 3 + [False] * 3  # scored at step 4, known since
    assert run().trace["mean_reward"].isnan().all()


def test_an_unknown_column_is_a_key_error():
    with pytest.raises(KeyError, match="enthropy"):
        run().trace["enthropy"]


def test_callbacks_get_population_and_step_after_every_step():
    seen, order = [], []

    def first(population, step):
        seen.append((population, step))
        order.append("first")

    result = steered(callbacks=[first, lambda population, step: order.append("second")])
    assert order == ["first", "second"] * STEPS
    assert [step.index for _, step in seen] == list(range(1, STEPS + 1))
    assert [step.total for _, step in seen] == [STEPS] * STEPS
    assert [step.t for _, step in seen] == pytest.approx([1 - k / STEPS for k in range(1, STEPS + 1)])
    assert [step.last for _, step in seen] == [False] * (STEPS - 1) + [True]
    assert all(isinstance(population, gk.Population) and len(population) == N for population, _ in seen)
    assert torch.equal(seen[-1][0].x, result.x)
    assert torch.equal(seen[-1][0].log_w, result.log_weights)


def test_callbacks_change_nothing():
    assert torch.equal(steered(callbacks=[lambda population, step: "ignored"]).x, steered().x)


def test_the_bar_shows_step_ess_and_best_on_stderr(capfd):
    result = steered(progress=True)
    shown = capfd.readouterr()
    last = shown.err.replace("\r", "\n").strip().splitlines()[-1]
    assert f"{STEPS}/{STEPS}" in last
    assert f"ess={float(result.ess[0]):.0f}" in last
    assert f"best={float(result.rewards.max()):.3g}" in last
    assert shown.out == ""


def test_the_bar_of_a_run_without_rewards_has_no_best(capfd):
    run(progress=True)
    shown = capfd.readouterr().err
    assert f"{STEPS}/{STEPS}" in shown
    assert "best" not in shown


def test_nothing_is_printed_without_a_bar(capfd):
    steered()
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""


# seeds -------------------------------------------------------------------------------------------------------------


@every
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(problem: Problem):
    one, two, other = steered(problem, seed=11), steered(problem, seed=11), steered(problem, seed=12)
    for name in ("x", "log_weights", "noise", "ancestors", "rewards"):
        assert getattr(one, name).numpy().tobytes() == getattr(two, name).numpy().tobytes(), name
    assert not torch.equal(one.noise, other.noise)
    assert not torch.equal(one.x, other.x)


@pytest.mark.parametrize("seeds", [[7, 8, 7], (7, 8, 7), range(7, 10)], ids=repr)
def test_a_sequence_of_seeds_gives_each_group_its_own(seeds):
    result = run(cond=[1, 1, 1], seed=seeds)
    parts = result.x.split(N)
    for part, seed in zip(parts, seeds, strict=True):
        assert torch.allclose(part, run(seed=seed).x, rtol=1e-12)
    assert not torch.equal(parts[0], parts[1])


def test_one_seed_gives_every_group_the_same_noise():
    result = run(cond=[1, 0], seed=7)
    assert torch.equal(result.noise[:N], result.noise[N:])


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**63, 10**30])
def test_every_int_is_a_seed(seed: int):
    assert not torch.equal(run(seed=seed).noise, run(seed=seed + 1).noise)


def test_rows_of_a_run_have_noise_of_their_own():
    assert len(run(n=500).noise.unique()) == 500


# times -------------------------------------------------------------------------------------------------------------

UP = [1.0, 0.6, 0.9, 0.3, 0.7, 0.2, 0.0]


@every
@pytest.mark.usefixtures("every_row")
def test_times_may_go_up_again(problem: Problem):
    result = steered(problem, steps=UP)
    assert torch.allclose(result.trace["t"], torch.tensor(UP[1:]))
    assert result.cost.network_rows == (len(UP) - 1) * N
    assert result.x.double().isfinite().all()
    assert not torch.equal(result.x, steered(problem, steps=[1.0, 0.6, 0.3, 0.2, 0.0]).x)
    if not result.x.is_floating_point():
        assert ((result.x >= 0) & (result.x < problem.model.vocab_size)).all()


@pytest.mark.parametrize("up", [UP, [1.0, 0.5, 1.0, 0.5, 0.0], [0.4, 0.8, 0.0]], ids=["low", "to one", "at once"])
@pytest.mark.parametrize("noising", ["masked", "uniform"])
def test_restarts_leave_the_exact_law_of_one_token(noising: str, up: list[float]):
    """With one position the factorised kernel is the exact reverse, so up and down again changes nothing."""
    p = torch.tensor([0.5, 0.1, 0.25, 0.15], dtype=torch.float64)
    n = 20_000
    if up[0] < 1:  # the prior is that of t = 1: a mask, or an even draw, which then is not the law at t
        up = [1.0, *up]
    x = gk.sample(gk.analytic.TokenTable(p.log(), noising), n, steps=up).x
    found = torch.bincount(x[:, 0], minlength=4) / n
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()


@pytest.mark.parametrize("ess", [0.0, 0.9])
@pytest.mark.parametrize("noising", ["masked", "uniform"])
def test_weights_stay_exact_over_restarts(noising: str, ess: float):
    p = torch.tensor([0.5, 0.1, 0.25, 0.15], dtype=torch.float64)
    r = torch.tensor([0.0, 1.0, 0.3, -0.6], dtype=torch.float64)
    guide = gk.FKSteering(lambda x: r[x[:, 0]], 0.7, ess=ess)
    table = gk.analytic.TokenTable(p.log(), noising)
    groups = 2000
    result = gk.sample(table, 8, steps=UP, guides=[guide], cond=[None] * groups, seed=range(groups))
    hot = torch.nn.functional.one_hot(result.x[:, 0], 4) * result.log_weights.exp()[:, None]
    found = hot.view(groups, 8, 4).mean(1).numpy()  # unbiased for p exp(r/alpha), sum Z
    # 2,000 independent populations, 4 numbers
    assert np.abs(deviations(found, (p * (r / 0.7).exp()).numpy(), np.zeros(4))).max() < 4.5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("up", [UP, [1.0, 0.5, 1.0, 0.3, 0.0]], ids=["low", "to one"])
def test_the_law_of_a_gaussian_chain_with_restarts_is_that_of_its_moves(eta: float, up: list[float]):
    """For one Gaussian every move is linear: mean and variance follow by recursion, written out here."""
    mean, std, n = 1.5, 0.5, 20_000
    base = gk.analytic.GaussianMixture(*(torch.tensor([v], dtype=torch.float64) for v in (1.0, mean, std)))
    x = gk.sample(base, n, steps=up, solver=gk.solvers.DDIM(eta=eta)).x[:, 0].numpy()
    m, v = 0.0, 1.0
    for t, s in pairwise(up):
        (a_t, s_t), (a_s, s_s) = ((math.cos(math.pi * u / 2), math.sin(math.pi * u / 2)) for u in (t, s))
        if s > t:
            a = a_s / a_t
            m, v = a * m, a**2 * v + s_s**2 - (a * s_t) ** 2
            continue
        gain = a_t * std**2 / ((a_t * std) ** 2 + s_t**2)  # E[x_0|x_t] = mean + gain (x_t - a_t mean)
        c = eta * s_s * math.sqrt(1 - (a_t * s_s / (a_s * s_t)) ** 2)
        k = math.sqrt(s_s**2 - c**2) / s_t
        slope = k + (a_s - k * a_t) * gain
        m, v = slope * m + (a_s - k * a_t) * (mean - gain * a_t * mean), slope**2 * v + c**2
    assert stats.kstest(x, stats.norm(m, v**0.5).cdf).pvalue > 1e-4
    assert v > 0.01


@pytest.mark.parametrize("schedule", [gk.schedules.Cosine(), gk.schedules.Flow(), gk.schedules.EDM()], ids=repr)
@pytest.mark.parametrize("up", [[1.0, 0.0], [1.0, 0.5, 0.0], UP], ids=["one step", "two steps", "restarts"])
def test_the_exact_kernels_of_a_mixture_give_its_law_on_any_times(schedule, up: list[float]):
    parts = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6]))
    base = gk.analytic.GaussianMixture(*parts, schedule)
    x = gk.sample(base.exact(), 20_000, steps=up).x[:, 0]

    def cdf(v):
        parts = zip(base.weights.tolist(), base.means[:, 0].tolist(), base.stds.tolist(), strict=True)
        return sum(w * stats.norm(m, s).cdf(v) for w, m, s in parts)

    assert stats.kstest(x.numpy(), cdf).pvalue > 1e-4


# rewards -----------------------------------------------------------------------------------------------------------


@every
def test_reward_scores_the_final_samples_and_steers_nothing(problem: Problem):
    given = []

    def reward(samples):
        given.append(samples.clone())
        return problem.reward(samples)

    result, plain = run(problem, reward=reward), run(problem)
    assert torch.equal(result.x, plain.x)
    assert torch.equal(result.log_weights, plain.log_weights)
    assert len(given) == 1
    assert list(dict.fromkeys(map(str, result.x.tolist()))) == [
        str(row) for row in given[0].tolist()
    ]  # equal ones once
    assert torch.equal(result.rewards, problem.reward(result.x).double())
    assert result.cost.reward_calls == len(given[0])


def test_reward_is_recorded_beside_the_reward_that_steers():
    result = steered(reward=lambda x: x[:, 0] ** 2)
    plain = steered()
    assert torch.equal(result.x, plain.x)
    assert torch.equal(result.rewards, result.x[:, 0] ** 2)
    assert not torch.equal(result.rewards, plain.rewards)
    assert result.cost.reward_calls == plain.cost.reward_calls + N


def test_the_same_reward_for_the_record_is_not_asked_again():
    guide = gk.FKSteering(VP.reward, 0.4)
    result = run(guides=[guide], reward=guide.reward)
    assert result.cost.reward_calls == STEPS * N
    assert torch.equal(result.rewards, VP.reward(result.x))


def test_equal_strings_are_scored_once_and_the_scores_spread_back_in_order():
    given: list[list[str]] = []

    def reward(samples):
        given.append(list(samples))
        return [float(s[1:]) + 0.5 for s in samples]

    result = gk.sample(speaker(), 200, steps=4, reward=reward)
    assert len(given) == 1
    assert len(given[0]) == len(set(given[0])) == len(set(result.samples)) < 20
    assert result.cost.reward_calls == len(given[0])
    assert result.rewards.tolist() == [float(s[1:]) + 0.5 for s in result.samples]
    assert result.samples == words(result.x)


def test_strings_of_a_steered_run_are_scored_once():
    given: list[list[str]] = []

    def reward(samples):
        given.append(list(samples))
        return [float(s[1:]) for s in samples]

    guides = [gk.FKSteering(reward, 2.0)]
    result = gk.sample(speaker(), 64, steps=4, guides=guides)
    all_given = [s for call in given for s in call]
    assert len(all_given) == len(set(all_given)) == result.cost.reward_calls < 20
    assert result.rewards.tolist() == [float(s[1:]) for s in result.samples]


def test_micro_batches_score_no_string_twice_in_a_step():
    guides = [gk.FKSteering(scored, 2.0)]
    whole, parts = (gk.sample(speaker(), 64, steps=4, guides=guides, batch_size=size) for size in (None, 16))
    assert torch.allclose(whole.x, parts.x, rtol=1e-12)
    assert parts.cost.reward_calls == whole.cost.reward_calls


def test_samples_that_are_not_strings_are_scored_one_by_one():
    model = gk.GaussianModel(lambda x, t, c: x / 2, (1,), predicts="clean", decode=lambda x: [(1, 2)] * len(x))
    result = gk.sample(model, 6, steps=2, reward=lambda samples: [a + b for a, b in samples])
    assert result.rewards.tolist() == [3.0] * 6
    assert result.cost.reward_calls == 6


def test_of_very_many_samples_the_newest_scores_are_remembered(monkeypatch):
    monkeypatch.setattr("guidekit.engine.scoring._MOST", 3)
    score, given = Scorer(Cost(), torch.device("cpu")), []

    def reward(samples):
        given.append(list(samples))
        return [float(len(s)) for s in samples]

    for step in (["a", "bb", "a"], ["bb", "ccc", "dddd"], ["a", "bb"], ["a"]):
        assert score(reward, step).tolist() == [len(s) for s in step]
        score.forget()
    assert given == [["a", "bb"], ["ccc", "dddd"], ["a"]]  # "a" was let go after the second step
