"""Averages over views: the paper's rule for noise, invariance under a group, and what is refused as a view."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

import guidekit as gk
from guidekit import Views, views
from guidekit.guides.views import Flip, Matrix, Negate, Patches, Permute, Rotate

from .problems import PROBLEMS

SHAPE = (2, 4, 4)


def convolution(predicts: str = "noise", schedule=None, dtype=torch.float64) -> gk.GaussianModel:
    """A network without any symmetry, which reads its condition and the time."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*s, generator=generator, dtype=dtype) for s in ((2, 2, 3, 3), (3, *SHAPE)))

    def net(x, t, cond):
        out = torch.nn.functional.conv2d(x, weight, padding=1) * 0.3
        return (out + bias[cond]).tanh() * (0.5 + t.view(-1, 1, 1, 1))

    return gk.GaussianModel(net, SHAPE, schedule, predicts, null=0, dtype=dtype)


def look(model, guides, index: int = 2, n: int = 5):
    """States after `index` unguided moves, the time there, and the guided prediction."""
    plain, run = (gk.Run(model, n, steps=6, cond=1, guides=g) for g in ((), guides))
    with torch.no_grad():
        pop = plain.start()
        for i in range(index):
            pop = plain.advance(pop, i)
        looked = run.look(gk.Population(**{**vars(pop), "memos": (None,) * len(guides), "predictions": ()}), index)
    return pop.x, plain.step(index).t, looked.predictions[0]


def labels(n: int, c: int) -> torch.Tensor:
    return torch.full((n,), c)


EVERY = [
    Flip(),
    Flip((-2,)),
    Rotate(1),
    Rotate(2),
    Rotate(-1),
    Negate(),
    Permute(torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()),
    Patches(2, seed=3),
    Matrix(torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]),
]


@pytest.mark.parametrize("view", EVERY, ids=lambda v: type(v).__name__)
def test_the_built_in_views_are_orthogonal_and_do_something(view):
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y = view(x)
    assert y.shape == x.shape and not torch.allclose(y, x)
    assert torch.allclose(view.inverse(y), x) and torch.allclose(view(view.inverse(x)), x)
    z = torch.randn_like(x)
    assert torch.allclose((view(z) * y).sum((1, 2, 3)), (z * x).sum((1, 2, 3)))  # inner products stay
    views.check_orthogonal(view, view.inverse, convolution(), "")


def test_pixels_and_pieces_go_where_they_are_said_to():
    x = torch.arange(16).view(1, 1, 4, 4)
    assert torch.equal(Rotate(1)(x)[0, 0, 0], torch.tensor([3, 7, 11, 15]))  # the right column comes to the top
    assert torch.equal(Flip()(x)[0, 0, 0], torch.tensor([3, 2, 1, 0]))
    order = list(range(16))[::-1]
    assert torch.equal(Permute(order)(x), x.flip((2, 3)))
    pieces = {tuple(x[0, 0, i : i + 2, j : j + 2].flatten().tolist()) for i in (0, 2) for j in (0, 2)}
    shuffled = Patches(2, seed=3)(x)
    assert {tuple(shuffled[0, 0, i : i + 2, j : j + 2].flatten().tolist()) for i in (0, 2) for j in (0, 2)} == pieces
    assert not torch.equal(shuffled, x) and torch.equal(shuffled, Patches(2, seed=3)(x))


@pytest.mark.parametrize("predicts", ["noise", "velocity", "score", "flow", "clean"])
def test_averaging_clean_means_is_averaging_noise(predicts):
    """The paper's loop on the noise of the views, written out; for whatever the network predicts."""
    schedule = gk.schedules.Flow() if predicts == "flow" else gk.schedules.Cosine()
    model = convolution(predicts, schedule)
    x, t, found = look(model, [Views([Rotate(1), Negate(), Patches(2)], [2, 1, None])])
    alpha, sigma = model.process.scales(t)
    noise = [(x - alpha * model(x, t, labels(5, 1))) / sigma]
    for view, c in ((Rotate(1), 2), (Negate(), 1), (Patches(2), 0)):
        seen = view(x)
        noise.append(view.inverse((seen - alpha * model(seen, t, labels(5, c))) / sigma))
    averaged = torch.stack(noise).mean(0)
    assert torch.allclose((x - alpha * found) / sigma, averaged, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(noise[0], averaged)


def test_guidance_is_inside_each_view():
    """Every view's own n + scale (d - n), with the null condition at the state that this view sees; with weights."""
    model = convolution()
    weights = [0.5, 0.2, 0.3]
    x, t, found = look(model, [Views([Flip(), Rotate(1)], [2, gk.Cond()], weights, scale=lambda t: 3 * t)])
    expected = 0.0
    for a, view, c in zip(weights, (Rotate(0), Flip(), Rotate(1)), (1, 2, 1), strict=True):
        seen = view(x)
        null, cond = model(seen, t, labels(5, 0)), model(seen, t, labels(5, c))
        expected = expected + a * view.inverse(null + 3 * t * (cond - null))
    assert torch.allclose(found, expected, rtol=1e-10)


def test_a_group_of_views_makes_the_chain_equivariant():
    """With all quarter turns at one condition, turned noise gives the turned sample: so the law is invariant."""
    model = convolution()
    run = gk.Run(model, 4, steps=5, cond=1)
    noise = run.chain_noise()
    turned = torch.stack([Rotate(1)(z) for z in noise])
    group = Views([Rotate(1), Rotate(2), Rotate(3)])
    options = {"n": 4, "steps": 5, "cond": 1}
    straight, other = (gk.sample(model, **options, guides=[group], noise=z) for z in (noise, turned))
    assert torch.allclose(other.x, Rotate(1)(straight.x), rtol=1e-9, atol=1e-9)
    straight, other = (gk.sample(model, **options, noise=z) for z in (noise, turned))
    assert not torch.allclose(other.x, Rotate(1)(straight.x), atol=0.1)
    part = Views([Rotate(1)])  # {1, r} is no group
    straight, other = (gk.sample(model, **options, guides=[part], noise=z) for z in (noise, turned))
    assert not torch.allclose(other.x, Rotate(1)(straight.x), atol=0.01)


def test_the_law_is_invariant_under_the_group_and_was_not():
    """An asymmetric mixture seen in all quarter turns of the plane, which as matrices are a group."""
    base = gk.analytic.GaussianMixture([0.6, 0.4], [[1.5, 0.3], [-0.4, 0.8]], [0.4, 0.5])
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    group = Views([Matrix(turn), Matrix(turn @ turn), Matrix(turn.mT)])
    n = 3000
    plain, free = (gk.sample(base, n, steps=25, guides=g).x.numpy() for g in ((), [group]))
    for axis in (0, 1):
        assert stats.kstest(plain[:, axis], -plain[:, axis]).pvalue < 1e-6
        assert stats.kstest(free[: n // 2, axis], -free[n // 2 :, axis]).pvalue > 1e-3
    assert stats.kstest(free[: n // 2, 0], free[n // 2 :, 1]).pvalue > 1e-3
    assert stats.kstest(free[: n // 2].sum(1) / 2**0.5, free[n // 2 :] @ [1, -1] / 2**0.5).pvalue > 1e-3


def test_views_at_other_conditions_make_an_anagram():
    """Condition 1 wants its left half bright, condition 2 its upper half; turned, a sample gives each what it wants."""
    left, upper = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:, :2], upper[:2] = 1.0, 1.0
    wanted = torch.stack([torch.zeros(4, 4), left, upper])
    model = gk.GaussianModel(lambda x, t, cond: wanted[cond] + 0 * x, (4, 4), predicts="clean", null=0)
    both = gk.sample(model, 3, steps=5, cond=1, guides=[Views(Rotate(-1), 2)]).x  # left comes up
    assert torch.equal(Rotate(-1)(left), upper)
    assert torch.allclose(both, left.expand(3, 4, 4))
    apart = gk.sample(model, 3, steps=5, cond=1, guides=[Views(Rotate(2), 2)]).x  # what both want elsewhere is halved
    assert torch.allclose(apart, ((left + upper.flip((0, 1))) / 2).expand(3, 4, 4))


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-1d"])
def test_idle_settings_give_the_unguided_sampler_bit_for_bit_and_cost_nothing(name):
    problem = PROBLEMS[name]
    options = {"n": 12, "steps": 6, "cond": 1}
    plain = gk.sample(problem.model, **options)
    idle = gk.sample(problem.model, **options, guides=[Views(Negate(), weights=[1, 0])])
    assert torch.equal(plain.x, idle.x)
    assert plain.cost.network_rows == idle.cost.network_rows
    off = gk.sample(problem.model, **options, guides=[Views(Negate(), start=0.5, stop=0.5)])
    assert torch.equal(plain.x, off.x)


def test_rows_and_forwards_are_as_declared_and_do_not_depend_on_the_batch():
    model = convolution()
    for scale, rows in ((1.0, 3), (2.0, 6)):
        guides = [Views([Flip(), Rotate(1)], [2, None], scale=scale)]
        whole = gk.sample(model, 7, steps=4, cond=[1, 2], guides=guides)
        assert whole.cost.network_rows == 14 * 4 * rows
        assert whole.cost.network_calls == 2 * 4
        widest: list[int] = []
        net = model.net
        model.net = lambda x, t, cond, net=net, widest=widest: widest.append(len(x)) or net(x, t, cond)
        for batch_size in (1, 5):
            parts = gk.sample(model, 7, steps=4, cond=[1, 2], guides=guides, batch_size=batch_size)
            assert torch.allclose(whole.x, parts.x, rtol=1e-9, atol=1e-11)
            assert parts.cost.network_rows == whole.cost.network_rows
            assert max(widest) <= max(batch_size, 1)
            widest.clear()
        model.net = net
        alone = gk.sample(model, 7, steps=4, cond=2, guides=guides)
        assert torch.allclose(whole.x[7:], alone.x, rtol=1e-9, atol=1e-11)


def test_gradients_of_other_guides_go_through_the_views():
    """A gradient guide beside it sees the averaged estimate as a function of x_t."""
    problem = PROBLEMS["flow-2d"]
    guides = [Views(Negate()), gk.TDS(lambda x: x[:, 0], 0.7, scale=1.0)]
    run = gk.Run(problem.model, 6, steps=6, cond=1, guides=guides)
    pop = run.advance(run.start(), 0)
    x, t = pop.x.clone().requires_grad_(), run.step(1).t
    c = labels(6, 1)
    mean = (problem.model(x, t, c) - problem.model(-x, t, c)) / 2
    (slope,) = torch.autograd.grad(mean[:, 0].sum(), x)
    alpha, sigma = problem.model.process.scales(t)
    expected = mean.detach() + sigma**2 / alpha * slope / 0.7
    assert torch.allclose(pop.proposals[0], expected, rtol=1e-9)


def test_pairs_of_functions_and_modules_are_views():
    class Turn(torch.nn.Module):
        def forward(self, x):
            return x.roll(1, -1)

        def inverse(self, x):
            return x.roll(-1, -1)

    pair = (lambda x: x.roll(1, -1), lambda x: x.roll(-1, -1))
    model = convolution()
    results = [gk.sample(model, 3, steps=3, cond=1, guides=[Views(v)]).x for v in (Turn(), pair, [pair], [Turn()])]
    assert all(torch.equal(results[0], x) for x in results[1:])
    assert not torch.equal(results[0], gk.sample(model, 3, steps=3, cond=1).x)


class Bad:
    """A view by a function, with an inverse that does nothing."""

    def __init__(self, f, inverse=lambda x: x):
        self.f, self.inverse = f, inverse

    def __call__(self, x):
        return self.f(x)


@pytest.mark.parametrize(
    "view, match",
    [
        (Bad(lambda x: 2 * x, lambda x: x / 2), r"views\[1\] .* changes the norm of x from \d"),
        (Bad(lambda x: x.abs()), "is not linear"),
        (Bad(lambda x: x.sort(-1).values), "is not linear"),
        (Bad(lambda x: x.flip(0)), "in another batch"),
        (Bad(lambda x: x[..., :2]), r"gives shape \(2, 2, 4, 2\)"),
        (Bad(lambda x: x.flip(-1)), "is not undone by its inverse"),
        (Bad(lambda x: torch.full_like(x, 1.0) + x), "is not linear"),
        (Matrix(torch.ones(32, 32)), "changes the norm"),
        (Matrix(torch.eye(5)), "fails"),
        (Patches(3), "fails"),
        (Permute([0] * 16), "changes the norm"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_what_is_not_orthogonal_is_refused_before_the_first_network_call(view, match):
    def never(x, t, cond):
        raise AssertionError("the network was called")

    model = gk.GaussianModel(never, SHAPE, null=0)
    with pytest.raises(ValueError, match=match):
        gk.Run(model, 2, cond=1, guides=[Views([Negate(), view])])


def test_float32_views_pass_the_check():
    model = convolution(dtype=torch.float32)
    for view in EVERY:
        assert gk.Run(model, 2, cond=1, guides=[Views(view)]).guides


def test_bad_input_is_an_error_before_the_run():
    with pytest.raises(ValueError, match="one is needed for each of the 2 views"):
        Views([Flip(), Negate()], [1])
    with pytest.raises(ValueError, match="sum to 1"):
        Views([Flip()], weights=[1.0, 1.0])
    with pytest.raises(ValueError, match="tokens have none"):
        gk.Run(PROBLEMS["masked"].model, 2, cond=0, guides=[Views(Flip())])
    model = convolution()
    with pytest.raises(ValueError, match="is of another model"):
        gk.Run(model, 2, cond=1, guides=[Views(Flip(), convolution())])
    with pytest.raises(ValueError, match="no null condition"):
        gk.Run(gk.GaussianModel(model.net, SHAPE), 2, cond=1, guides=[Views(Flip(), scale=2.0)])
    oblong = gk.GaussianModel(model.net, (2, 4, 6), null=0)
    with pytest.raises(ValueError, match="gives shape"):
        gk.Run(oblong, 2, cond=1, guides=[Views(Rotate(1))])
