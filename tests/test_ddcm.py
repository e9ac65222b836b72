"""Codebooks of noise: codes decode to the same bits, and the entry that is taken is the one that the formula names."""

from __future__ import annotations

import math
import struct
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

import guidekit as gk

from .problems import PROBLEMS, STEPS

GAUSSIAN = ["vp-1d", "flow-2d", "edm-1d"]
pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")


def images(schedule=None) -> gk.GaussianModel:
    """N(0, 1) in (2, 3) with the exact denoiser in float32."""
    schedule = gk.schedules.Flow() if schedule is None else schedule

    def net(x, t, cond):
        alpha, sigma = (v.view(-1, 1, 1) for v in schedule(t))
        return alpha * x / (alpha**2 + sigma**2)

    return gk.GaussianModel(net, (2, 3), schedule, "clean")


def targets(model: gk.Model, rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, *model.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def codes_of(result: gk.Result) -> Tensor:
    return result.memos[0][0]


# decoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 64])
@pytest.mark.parametrize(
    "solver", [None, gk.solvers.DDIM(eta=0.4), gk.solvers.SDEDPMpp(order=2)], ids=["ddpm", "ddim", "sde-2m"]
)
@pytest.mark.parametrize("name", [*GAUSSIAN, "images"])
def test_codes_decode_to_the_same_sample_bit_for_bit(name: str, solver, size: int):
    """From the tensor and from the bytes, in two groups, each row with its own target."""
    model, cond = (images(), [None, None]) if name == "images" else (PROBLEMS[name].model, [1, None])
    options = {"steps": STEPS, "cond": cond, "seed": [5, 6], "solver": solver}
    sent = gk.sample(model, 4, guides=[gk.DDCM(size, target=targets(model, 8), seed=9)], **options)
    codes = codes_of(sent)
    assert codes.shape == (8, STEPS - 1)  # the last move draws nothing
    assert size == 1 or len(codes.unique()) > 1
    data = gk.ddcm.pack(codes, size)
    assert len(data) == 12 + math.ceil(8 * (STEPS - 1) * math.ceil(math.log2(size)) / 8)
    for given_codes in (codes, data):
        received = gk.sample(model, 4, guides=[gk.DDCM(size, codes=given_codes, seed=9)], **options)
        assert torch.equal(received.x, sent.x)
        assert torch.equal(codes_of(received), codes)
    for wrong in ({"seed": 8}, {"codes": codes.flip(0)}):
        other = gk.sample(model, 4, guides=[gk.DDCM(size, **{"codes": codes, "seed": 9} | wrong)], **options)
        assert (size == 1 and "codes" in wrong) or not torch.equal(other.x, sent.x)


def test_codes_of_a_population_decode_with_the_noise_that_its_samples_started_from():
    """Codes follow their particle through resampling, and the result says where it began."""
    problem = PROBLEMS["edm-1d"]
    steering = gk.FKSteering(problem.reward, 0.2, ess=1.0)
    sent = gk.sample(
        problem.model, 8, steps=STEPS, cond=1, guides=[gk.DDCM(16, target=targets(problem.model, 8)), steering]
    )
    assert sent.trace["resampled"].any()
    assert len(codes_of(sent).unique(dim=0)) > 1
    received = gk.sample(
        problem.model, 8, steps=STEPS, cond=1, guides=[gk.DDCM(16, codes=codes_of(sent))], noise=sent.noise
    )
    assert torch.equal(received.x, sent.x)


def test_codes_follow_best_and_resample():
    problem = PROBLEMS["edm-1d"]
    result = gk.sample(
        problem.model, 9, steps=STEPS, cond=1, guides=[gk.DDCM(16, target=targets(problem.model, 9))],
        reward=problem.reward,
    )  # fmt: skip
    order = result.rewards.sort(descending=True).indices
    assert not torch.equal(codes_of(result)[order], codes_of(result))
    assert torch.equal(codes_of(result.best(9)), codes_of(result)[order])
    assert torch.equal(codes_of(result.best(2)), codes_of(result)[order[:2]])
    again = result.resample(seed=1)
    assert torch.equal(codes_of(again), codes_of(result)[again.row])


# the entry that is taken -------------------------------------------------------------------------------------------


def books(model: gk.Model, size: int, **options) -> list[Tensor]:
    """The noise of every entry, found from outside: by decoding each code and solving the move for z."""
    n, moves = 4, STEPS - 1
    zero = torch.zeros(n, moves, dtype=torch.long)
    entries = []
    for j in range(moves):
        book = []
        for k in range(size):
            codes = zero.clone()
            codes[:, j] = k
            run = gk.Run(model, n, steps=STEPS, cond=1, guides=[gk.DDCM(size, codes=codes, **options)])
            with torch.no_grad():
                pop = run.start()
                for index in range(j):
                    pop = run.advance(pop, index)
                move = run.moves[j]
                mean = move.a * pop.x + move.b[0] * pop.predictions[0]
                after = run.advance(pop, j)
            z = (after.x - mean) / move.c
            assert torch.allclose(z, z[:1].expand_as(z), atol=1e-9)  # one book for all rows
            book.append(z[0])
        entries.append(torch.stack(book))
    return entries


@pytest.mark.parametrize("name", GAUSSIAN)
def test_the_index_is_the_argmax_of_the_product_with_what_is_missing(name: str):
    """<z^k, target - E[x_0 | x_t]> at the state and time before the move; books differ from step to step."""
    problem, size = PROBLEMS[name], 5
    entries = books(problem.model, size, seed=3)
    flat = torch.stack(entries).flatten()
    assert len(flat.unique()) == len(flat)
    # 25 or 50 standard normal numbers: 4.5 standard errors of their mean and mean square
    assert abs(flat.mean()) < 4.5 / len(flat) ** 0.5
    assert abs(flat.square().mean() - 1) < 4.5 * (2 / len(flat)) ** 0.5
    goal = targets(problem.model, 4, seed=2)
    run = gk.Run(problem.model, 4, steps=STEPS, cond=1, guides=[gk.DDCM(size, target=goal, seed=3)])
    by_hand = []
    with torch.no_grad():
        pop = run.start()
        for index in range(STEPS - 1):
            missing = goal - problem.model(pop.x, run.moves[index].t, torch.ones(4, dtype=torch.long))
            by_hand.append((missing @ entries[index].T).argmax(1))
            pop = run.advance(pop, index)
    assert torch.equal(pop.memos[0][0], torch.stack(by_hand, 1))
    assert len(torch.stack(by_hand).unique()) > 2


@pytest.mark.parametrize("name", GAUSSIAN)
def test_the_reward_version_takes_the_argmax_of_the_product_with_the_gradient(name: str):
    """grad of r at the clean estimate, with respect to the estimate and not to x_t."""
    problem, size = PROBLEMS[name], 5
    entries = books(problem.model, size, seed=4)
    run = gk.Run(problem.model, 4, steps=STEPS, cond=1, guides=[gk.DDCM(size, reward=problem.reward, seed=4)])
    by_hand = []
    with torch.no_grad():
        pop = run.start()
        for index in range(STEPS - 1):
            clean = problem.model(pop.x, run.moves[index].t, torch.ones(4, dtype=torch.long))
            # r = x_1/2 - (x_d - 1/2)^2/5
            slope = torch.zeros_like(clean)
            slope[:, 0] += 0.5
            slope[:, -1] -= 0.4 * (clean[:, -1] - 0.5)
            by_hand.append((slope @ entries[index].T).argmax(1))
            pop = run.advance(pop, index)
    assert torch.equal(pop.memos[0][0], torch.stack(by_hand, 1))


def test_the_gradient_goes_through_the_decoder():
    """The mirror image of a decoder reverses the reward, and so takes the entry of the opposite direction."""
    flow = gk.schedules.Flow()

    def net(x, t, cond):
        return torch.zeros_like(x)

    plain = gk.GaussianModel(net, (1,), flow, "clean")
    mirrored = gk.GaussianModel(net, (1,), flow, "clean", decode=lambda x: -x)
    up, down, mirror = (
        gk.sample(model, 2, steps=STEPS, guides=[gk.DDCM(8, reward=reward)])
        for model, reward in (
            (plain, lambda x: x[:, 0]), (plain, lambda x: -x[:, 0]), (mirrored, lambda x: x[:, 0]),
        )
    )  # fmt: skip
    assert torch.equal(codes_of(mirror), codes_of(down))
    assert (codes_of(up) != codes_of(down)).all()


def test_one_target_serves_all_rows():
    problem = PROBLEMS["edm-1d"]
    goal = torch.tensor([0.7], dtype=torch.float64)
    one, many = (
        gk.sample(problem.model, 3, steps=STEPS, cond=[1, None], guides=[gk.DDCM(8, target=t)])
        for t in (goal, goal.expand(6, 1))
    )
    assert torch.equal(one.x, many.x)
    assert torch.equal(codes_of(one), codes_of(many))


# what it achieves --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def wide() -> gk.analytic.GaussianMixture:
    """Three components in 16 dimensions."""
    rng = np.random.default_rng(3)
    means = torch.tensor(rng.normal(size=(3, 16)) * 1.5)
    weights, stds = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3, 0.2], [0.5, 0.4, 0.6]))
    return gk.analytic.GaussianMixture(weights, means, stds, gk.schedules.Flow())


def test_the_error_falls_as_the_codebook_grows_and_is_below_that_of_random_codes():
    model, steps = wide(), 40
    goal = model.exact_sample(64, seed=5)

    def error(**options) -> float:
        return float((gk.sample(model, 64, steps=steps, guides=[gk.DDCM(**options)]).x - goal).square().mean())

    sizes = [1, 4, 16, 64, 256]
    found = [error(size=k, target=goal) for k in sizes]
    random = torch.randint(256, (64, steps - 1), generator=torch.Generator().manual_seed(0))
    # a mean over 64 samples of 16 numbers, of which every step is larger than a tenth
    assert (np.diff(found) < -0.1 * np.array(found[:-1])).all(), found
    assert found[-1] < 0.2 * error(size=256, codes=random)
    assert error(size=64, target=-goal) > 3 * found[3]  # it is the target that it comes to


def test_more_steps_describe_the_target_better():
    model = wide()
    goal = model.exact_sample(64, seed=6)
    errors = [
        float((gk.sample(model, 64, steps=steps, guides=[gk.DDCM(64, target=goal)]).x - goal).square().mean())
        for steps in (5, 20, 80)
    ]
    assert errors[2] < 0.7 * errors[1] < 0.5 * errors[0]


def test_the_reward_version_climbs():
    """Along (1, -1, ...) in 16 dimensions, and further with more entries to choose from."""
    model, steps = wide(), 30
    direction = torch.tensor([1.0, -1.0] * 8, dtype=torch.float64)

    def reward(x):
        return x @ direction

    plain = gk.sample(model, 64, steps=steps, reward=reward).rewards
    means = [
        float(gk.sample(model, 64, steps=steps, guides=[gk.DDCM(k, reward=reward, seed=2)]).rewards.mean())
        for k in (4, 64)
    ]
    # plain rewards have a standard deviation of about 9, 64 of them one of 1.1
    assert means[0] > plain.mean() + 5
    assert means[1] > means[0] + 1
    down = gk.sample(model, 64, steps=steps, guides=[gk.DDCM(64, reward=lambda x: -reward(x), seed=2)])
    assert reward(down.x).mean() < plain.mean() - 5


@pytest.mark.parametrize("name", ["flow-2d", "edm-1d"])
def test_random_codes_are_plain_sampling(name: str):
    """Over many codebooks, of which each is a sample of the noise."""
    problem, books, rows = PROBLEMS[name], 150, 20
    generator = torch.Generator().manual_seed(1)
    means = []
    for seed in range(books):
        codes = torch.randint(16, (rows, STEPS - 1), generator=generator)
        guides = [gk.DDCM(16, codes=codes, seed=seed)]
        result = gk.sample(problem.model, rows, steps=STEPS, cond=1, guides=guides, seed=seed)
        means.append(problem.features(result.x).mean(0).numpy())
    means = np.array(means)
    truth, error = problem.tilted(reward=False)
    se = np.sqrt(means.var(0, ddof=1) / books + error**2)
    # 3 features of 150 independent books: 4.5 standard errors
    assert (np.abs(means.mean(0) - truth)[1:] < 4.5 * se[1:]).all()
    assert (se[1:] < 0.05).all()


def test_rows_do_not_depend_on_their_micro_batch_or_on_other_groups():
    model = wide()
    goal = model.exact_sample(15, seed=7)
    options = {"steps": 8}
    whole = gk.sample(model, 5, cond=[None] * 3, seed=[1, 2, 3], guides=[gk.DDCM(16, target=goal)], **options)
    for batch_size in (1, 4, 7):
        parts = gk.sample(
            model, 5, cond=[None] * 3, seed=[1, 2, 3], guides=[gk.DDCM(16, target=goal)], batch_size=batch_size,
            **options,
        )  # fmt: skip
        assert torch.equal(codes_of(whole), codes_of(parts))
        assert torch.allclose(whole.x, parts.x, rtol=1e-12, atol=1e-12)
    for g in range(3):
        own = slice(5 * g, 5 * g + 5)
        alone = gk.sample(model, 5, seed=g + 1, guides=[gk.DDCM(16, target=goal[own])], **options)
        assert torch.equal(codes_of(whole)[own], codes_of(alone))
        assert torch.allclose(whole.x[own], alone.x, rtol=1e-12, atol=1e-12)
    assert whole.cost.network_rows == 15 * 8
    assert whole.cost.reward_calls == 0


# the bit stream ----------------------------------------------------------------------------------------------------

SIZES = [1, 2, 3, 64, 1000]


@settings(max_examples=60, deadline=None)
@given(size=st.sampled_from(SIZES), rows=st.integers(1, 7), moves=st.integers(1, 9), data=st.data())
def test_what_is_packed_is_unpacked(size: int, rows: int, moves: int, data):
    numbers = data.draw(st.lists(st.integers(0, size - 1), min_size=rows * moves, max_size=rows * moves))
    codes = torch.tensor(numbers).view(rows, moves)
    stream = gk.ddcm.pack(codes, size)
    bits = {1: 0, 2: 1, 3: 2, 64: 6, 1000: 10}[size]
    assert len(stream) == 12 + math.ceil(rows * moves * bits / 8)
    unpacked, found = gk.ddcm.unpack(stream)
    assert found == size
    assert torch.equal(unpacked, codes)
    assert gk.ddcm.pack(unpacked, found) == stream


def test_the_stream_is_written_out_in_bits():
    """12 bytes of size, rows and moves, then each code with its lowest bit first, filling bytes from the top."""
    stream = gk.ddcm.pack(torch.tensor([[1, 2, 3], [0, 4, 5]]), 6)
    assert stream[:12] == struct.pack("<3I", 6, 2, 3)
    bits = "100010110000001101"
    assert stream[12:] == int(bits.ljust(24, "0"), 2).to_bytes(3, "big")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_whole_or_refused(data: bytes):
    size, rows, moves = struct.unpack("<3I", data[:12]) if len(data) >= 12 else (0, 0, 0)
    if size == 1 or rows * moves == 0:  # a header alone may then be whole
        return
    try:
        codes, found = gk.ddcm.unpack(data)
    except ValueError:
        return
    assert codes.shape == (rows, moves)
    assert found == size
    assert codes.min() >= 0 and codes.max() < size


def test_hostile_bytes_are_refused():
    good = gk.ddcm.pack(torch.tensor([[1, 2, 3], [0, 4, 5]]), 6)
    head = struct.Struct("<3I").pack
    hostile = {
        "nothing": b"",
        "less than a head": good[:11],
        "a head alone": good[:12],
        "a byte too few": good[:-1],
        "a byte too many": good + b"\0",
        "a codebook of nothing": head(0, 2, 3) + good[12:],
        "more rows than there are": head(6, 3, 3) + good[12:],
        "four thousand million rows": head(6, 2**32 - 1, 2**32 - 1) + good[12:],
        "a larger codebook": head(2**32 - 1, 2, 3) + good[12:],
    }
    for name, data in hostile.items():
        with pytest.raises(ValueError, match="are no whole code"):
            gk.ddcm.unpack(data)
            pytest.fail(name)
    with pytest.raises(ValueError, match="holds the code 7 of a codebook of 6"):
        gk.ddcm.unpack(good[:12] + bytes([0xFF]) + good[13:])
    with pytest.raises(ValueError, match="the code is of a codebook of 6"):
        gk.DDCM(8, codes=good)


@pytest.mark.parametrize(
    "codes", [torch.tensor([[0, 6]]), torch.tensor([[-1, 2]]), torch.tensor([1, 2])], ids=["large", "negative", "flat"]
)
def test_only_codes_of_the_codebook_are_packed(codes: Tensor):
    with pytest.raises(ValueError, match="numbers below 6"):
        gk.ddcm.pack(codes, 6)


# bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_an_error_before_the_run():
    goal = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="has at least one entry"):
        gk.DDCM(0, target=goal)
    for options in ({}, {"target": goal, "reward": len}, {"target": goal, "codes": goal}):
        with pytest.raises(ValueError, match=r"one of target= \(compress\), reward= \(climb\) and codes="):
            gk.DDCM(4, **options)
    model = PROBLEMS["vp-1d"].model
    with pytest.raises(ValueError, match="samples have shape"):
        gk.Run(model, 4, cond=1, guides=[gk.DDCM(4, target=torch.zeros(4, 2))])
    with pytest.raises(ValueError, match="tokens have none"):
        gk.Run(PROBLEMS["masked"].model, 4, cond=0, guides=[gk.DDCM(4, target=torch.zeros(3))])
    with pytest.raises(ValueError, match="is deterministic"):
        gk.Run(model, 4, cond=1, guides=[gk.DDCM(4, target=goal)], solver=gk.solvers.DDIM())
    with pytest.raises(gk.RewardError, match="no gradient reaches"):
        gk.sample(model, 4, steps=4, cond=1, guides=[gk.DDCM(4, reward=lambda x: x.detach()[:, 0])])
