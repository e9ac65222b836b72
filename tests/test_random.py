"""Laws of the addressed random numbers: their distributions, and that a number depends on its address alone."""

import hashlib
import itertools
import math
import random as python_random

import numpy as np
import pytest
import torch
from scipy import stats

from guidekit import random

KS_LIMIT = 1.95  # P(sqrt(n) D > 1.95) = 2 exp(-2 * 1.95^2) = 1e-3, and the seeds are fixed
Z_LIMIT = 4.5  # two-sided normal tail of 7e-6 for each of at most some hundred comparisons
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SEED, FOLD, DRAW = 0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7, 0xAEF17502108EF2D9
WORD = 1 << 64


def rows(seed, n):
    return random.fold(random.key(seed), torch.arange(n))


def signed(z):
    """The int64 that has the last 64 bits of a Python integer."""
    return (z + WORD // 2) % WORD - WORD // 2


def mix(z):
    """SplitMix64's finaliser with arithmetic shifts, on Python integers."""
    for shift, factor in ((30, FIRST), (27, SECOND), (31, 1)):
        z = signed(z)
        z = (z ^ (z >> shift)) * factor
    return signed(z)


@pytest.mark.parametrize("seed", [0, 1, 12345, -7, 2**63 + 5])
@pytest.mark.parametrize(
    ("draw", "law"),
    [
        (random.uniform, stats.uniform),
        (random.gumbel, stats.gumbel_r),
        (lambda k, shape: random.normal(k, shape, torch.float32), stats.norm),
        (lambda k, shape: random.normal(k, shape, torch.float64), stats.norm),
    ],
    ids=["uniform", "gumbel", "normal32", "normal64"],
)
def test_numbers_have_the_law_of_their_name_over_rows_and_over_elements(draw, law, seed):
    over_both = draw(rows(seed, 20_000), (5,)).double().numpy()
    over_rows = draw(rows(seed, 50_000), ()).double().numpy()
    over_elements = draw(random.key([seed]), (50_001,)).double().numpy()
    for sample in (over_both.ravel(), over_rows, over_elements.ravel()):
        assert stats.kstest(sample, law.cdf).statistic * math.sqrt(sample.size) < KS_LIMIT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_have_unit_variance_and_the_kurtosis_and_tails_of_a_normal(dtype):
    z = random.normal(rows(3, 1 << 18), (8,), dtype).double().numpy().ravel()
    n = z.size  # 2^21
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # E z^k, E z^2k - (E z^k)^2
        assert abs((z**power).mean() - mean) < Z_LIMIT * math.sqrt(variance / n)
    for level in (3.0, 4.0, 4.5):  # counts are binomial; 14 are expected beyond 4.5
        expected = n * 2 * stats.norm.sf(level)
        assert abs((np.abs(z) > level).sum() - expected) < Z_LIMIT * math.sqrt(expected)


@pytest.mark.parametrize("data", [0, 1, 2**40 + 17, -3])
def test_an_address_means_the_same_numbers_for_good_by_a_formula_in_python_integers(data):
    start = mix(5 * GOLDEN + SEED)
    folded = mix(start ^ mix(data * GOLDEN + FOLD))
    words = [mix(folded ^ mix(j * GOLDEN + DRAW)) for j in range(7)]
    key = random.fold(random.key(5), torch.tensor([data]))
    assert key.item() == folded
    assert random.fold(random.key(5), data).item() == folded  # a number and a tensor are the same address
    assert all(0 <= w < 2**63 for w in words)
    expected = [((w >> 10) + 0.5) * 2.0**-53 for w in words]
    assert random.uniform(key, (7,))[0].tolist() == pytest.approx(expected, rel=1e-15)
    halves = [half for w in words for half in ((w + 2**31) % 2**32 - 2**31, w >> 32)]  # low as int32, high
    radius = [math.sqrt(-2 * math.log(abs(v + 0.5) * 2.0**-31)) for v in halves[:7]]
    angle = [2 * math.pi * v * 2.0**-31 for v in halves[7:]]
    pairs = [r * f(a) for f in (math.cos, math.sin) for r, a in zip(radius, angle, strict=True)]
    assert random.normal(key, (13,), torch.float64)[0].tolist() == pytest.approx(pairs[:13], rel=1e-6, abs=1e-6)


def test_a_name_is_the_number_of_its_hash_and_so_the_same_in_every_process():
    number = int.from_bytes(hashlib.blake2b(b"noise", digest_size=8).digest(), "little")
    assert random.fold(random.key(0), "noise").item() == mix(mix(SEED) ^ mix(number * GOLDEN + FOLD))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 17, 33, 101])
@pytest.mark.parametrize("n", [1, 5, 37, 1031])
@pytest.mark.parametrize(
    "draw",
    [
        random.uniform,
        random.gumbel,
        lambda k, shape: random.normal(k, shape, torch.float32),
        lambda k, shape: random.normal(k, shape, torch.float64),
    ],
    ids=["uniform", "gumbel", "normal32", "normal64"],
)
def test_a_row_is_bit_for_bit_the_same_whichever_other_rows_are_asked(draw, n, size):
    keys = rows(11, n)
    everything = draw(keys, (size,))
    chosen = torch.arange(n - 1, -1, -3)  # every third, backwards
    assert torch.equal(draw(keys[chosen], (size,)), everything[chosen])
    assert torch.equal(torch.cat([draw(part, (size,)) for part in keys.split(13)]), everything)
    assert torch.equal(draw(keys[n // 2 : n // 2 + 1], (size,)), everything[n // 2 : n // 2 + 1])


@pytest.mark.parametrize("draw", [random.uniform, random.gumbel], ids=["uniform", "gumbel"])
def test_an_element_of_a_row_does_not_depend_on_how_many_are_asked(draw):
    keys = rows(2, 19)
    assert torch.equal(draw(keys, (64,))[:, :5], draw(keys, (5,)))
    assert torch.equal(draw(keys, (4, 3, 5)).flatten(1), draw(keys, (60,)))


def test_float32_and_float64_normals_come_from_the_same_bits():
    keys = rows(4, 50_000)
    single, double = (random.normal(keys, (4,), d) for d in (torch.float32, torch.float64))
    gap = (single.double() - double).abs()
    # float32 rounds u by up to 2^-25, so radius^2 = -2 log u by up to 2^-24: the radius by up to 2.5e-4, where it is
    # near 0; elsewhere the numbers agree to a few units of 2^-24
    assert gap.max() < 5e-4
    assert gap.median() < 2e-7
    assert gap.max() > 0  # they are not one and the same tensor


LANES = {
    "neighbouring rows": lambda n: (rows(0, n + 1)[:-1], rows(0, n + 1)[1:]),
    "neighbouring steps": lambda n: tuple(random.fold(random.fold(random.key(0), i), torch.arange(n)) for i in (3, 4)),
    "row and step exchanged": lambda n: (
        random.fold(random.fold(random.key(0), 1), torch.arange(2, n + 2)),
        random.fold(random.fold(random.key(0), torch.arange(2, n + 2)), 1),
    ),
    "named streams": lambda n: tuple(random.fold(random.fold(random.key(0), s), torch.arange(n)) for s in "ab"),
    "neighbouring seeds": lambda n: (rows(8, n), rows(9, n)),
    "opposite seeds": lambda n: (rows(8, n), rows(-8, n)),
    "a row and its own child": lambda n: (rows(0, n), random.fold(rows(0, n), 0)),
}


@pytest.mark.parametrize("lane", LANES)
def test_numbers_at_different_addresses_are_uncorrelated(lane):
    n, size = 20_000, 3
    first, second = (random.normal(k, (size,), torch.float64).numpy() for k in LANES[lane](n))
    for f in (np.asarray, np.square, np.abs):
        a, b = stats.zscore(f(first)), stats.zscore(f(second))
        for i, j in itertools.product(range(size), repeat=2):
            assert abs((a[:, i] * b[:, j]).mean()) < Z_LIMIT / math.sqrt(n)  # sd of a correlation of n pairs


@pytest.mark.parametrize("draw", [random.normal, random.uniform, random.gumbel], ids=["normal", "uniform", "gumbel"])
@pytest.mark.parametrize("size", [6, 7])
def test_elements_of_a_row_are_uncorrelated_also_the_two_that_share_a_word(draw, size):
    n = 40_000
    z = draw(rows(21, n), (size,)).double().numpy()
    for f in (np.asarray, np.square, np.abs):
        correlation = np.corrcoef(f(z), rowvar=False) - np.eye(size)
        assert np.abs(correlation).max() < Z_LIMIT / math.sqrt(n)


def test_no_two_addresses_of_a_run_share_a_key():
    key = random.fold(random.key([0, 1, 2]), "noise")
    keys = [random.fold(random.fold(key, step)[:, None], torch.arange(2000)) for step in range(50)]
    keys += [random.fold(random.fold(random.key([0, 1, 2]), step), "CFG.0")[:, None] for step in range(50)]
    flat = torch.cat([k.flatten() for k in keys])
    assert len(flat.unique()) == len(flat)  # 3e5 of 2^64 words: a chance collision has probability 2e-9


def test_fold_is_not_symmetric_in_its_addresses_and_not_the_sum_of_them():
    key = random.key(0)
    one, two = random.fold(random.fold(key, 1), 2), random.fold(random.fold(key, 2), 1)
    folds = [key, one, two, random.fold(key, 3), random.fold(random.fold(key, 3), 0), random.fold(key, 0)]
    folds += [random.fold(key, "1"), random.fold(key, 1), random.fold(key, -1), random.fold(random.fold(key, 1), 1)]
    assert len({int(k) for k in folds}) == len(folds)


def test_keys_of_several_seeds_are_the_keys_of_each():
    seeds = [3, -1, 2**70]
    assert random.key(seeds).tolist() == [int(random.key(s)) for s in seeds]


def test_nobodys_global_random_state_is_read_or_moved():
    def draw():
        keys = random.fold(random.fold(random.key([0, 1]), "stream")[:, None], torch.arange(5))
        return [random.uniform(keys, (3,)), random.gumbel(keys, (3,)), random.normal(keys, (3,))]

    def state():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), python_random.getstate()

    before, first = state(), draw()
    assert state() == before
    with torch.random.fork_rng():
        torch.manual_seed(999)
        second = draw()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_keys_are_not_overwritten_by_drawing_from_them_or_folding_them():
    keys = rows(0, 10)
    copy = keys.clone()
    random.fold(keys, 1), random.fold(keys, torch.arange(10)), random.normal(keys, (3,)), random.gumbel(keys, (3,))
    assert torch.equal(keys, copy)


EXTREME_WORDS = [0, 1, 2**63 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 2**32, 2**63 - 2**31, 2**62 + 2**31 + 1]


@pytest.fixture
def all_words(monkeypatch):
    """Have every word of bits be this one: chance would show an extreme one only after 2^32 draws."""
    return lambda word: monkeypatch.setattr(
        random, "_bits", lambda key, count, *spare: torch.full((*key.shape, count), word)
    )


def test_gumbel_numbers_reach_the_far_upper_tail_that_float32_would_cut(all_words):
    high = random.gumbel(rows(6, 1 << 18), (8,)).flatten()
    high = high[high > 8]
    expected = 2**21 * -math.expm1(-math.exp(-8.0))  # 703; float32 has 5625 steps of 2^-24 there: 44 pairs would tie
    assert abs(len(high) - expected) < Z_LIMIT * math.sqrt(expected)
    assert len(high.unique()) == len(high)
    all_words(2**63 - 1)
    assert random.gumbel(rows(0, 1)).item() == pytest.approx(53 * math.log(2), abs=0.7)  # float32: 24 log 2 = 16.6
    all_words(0)
    assert random.gumbel(rows(0, 1)).item() == pytest.approx(-math.log(54 * math.log(2)), abs=1e-12)  # u = 2^-54


@pytest.mark.parametrize("word", EXTREME_WORDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_most_extreme_words_still_give_finite_numbers(all_words, word, dtype):
    all_words(word)
    keys = rows(0, 3)
    u, z = random.uniform(keys, (4,)), random.normal(keys, (4,), dtype)
    assert ((u > 0) & (u < 1)).all()
    assert random.gumbel(keys, (4,)).isfinite().all()
    assert z.isfinite().all()
    assert z.abs().max() <= math.sqrt(64 * math.log(2)) * (1 + 1e-6)  # u >= 2^-32


@pytest.mark.parametrize("temperature", [1.0, 0.3, 3.0])
def test_gumbel_argmax_of_log_probabilities_reproduces_the_probabilities(temperature):
    n = 400_000
    log_p = torch.tensor([0.0, -0.5, -2.0, -5.0, -8.0], dtype=torch.float64) / temperature
    drawn = (log_p + random.gumbel(rows(5, n), (5,))).argmax(-1)
    p = np.exp(log_p.numpy()) / np.exp(log_p.numpy()).sum()
    counts = np.bincount(drawn.numpy(), minlength=5)
    common = n * p > 5  # chi-square needs counts; the rarest share one cell
    f, e = (np.append(v[common], v[~common].sum()) for v in (counts, n * p))
    keep = e > 0
    assert stats.chisquare(f[keep], e[keep]).pvalue > 1e-3


def test_gumbel_argmax_draws_rare_tokens_as_often_as_it_should():
    n, size = 1 << 17, 65
    rare = 1e-5 / size  # 64 tokens of this and one of nearly 1: together 2^17 * 64 * 1.5e-7 = 1.3 draws; so many rows
    log_p = torch.full((size,), math.log(rare * 200), dtype=torch.float64)
    log_p[0] = math.log1p(-rare * 200 * (size - 1))
    drawn = (log_p + random.gumbel(rows(17, n), (size,))).argmax(-1)
    expected = n * rare * 200 * (size - 1)
    assert abs((drawn > 0).sum().item() - expected) < Z_LIMIT * math.sqrt(expected)
