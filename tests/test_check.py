"""gk.check: every law fails on a model that breaks it, and none on models that keep them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import guidekit as gk
from rewards import as_reward

BASE = gk.analytic.GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [1.5, 0.0]], [0.4, 0.7], labels=[0, 1])
DATA = BASE.exact_sample(300, seed=3)
TABLE = torch.tensor([[[0.30, 0.02], [0.05, 0.13]], [[0.01, 0.20], [0.24, 0.05]]]).log()


class Net(nn.Module):
    """The exact denoiser of BASE behind a torch module, with room for what breaks it."""

    def __init__(self, predict=lambda d, x, a, s: d):
        super().__init__()
        self.predict, self.weight = predict, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        d = BASE(x, float(t[0]), None if cond is None else cond.long()) * self.weight
        return self.predict(d, x, *BASE.process.scales(float(t[0])))


def model(predict=lambda d, x, a, s: d, predicts: str = "clean", **options) -> gk.GaussianModel:
    return gk.GaussianModel(Net(predict), (2,), predicts=predicts, **options)


def noise(d: Tensor, x: Tensor, a: float, s: float) -> Tensor:
    return (x - a * d) / s


def failed(*args, **options) -> list[str]:
    return gk.check(*args, **options).failed


@pytest.mark.parametrize("predicts", ["clean", "noise"])
def test_a_right_model_keeps_all_laws_and_every_one_is_tested(predicts: str):
    """The data have the conditions in turn, a component each."""
    right = model(noise if predicts == "noise" else lambda d, x, a, s: d, predicts, null=torch.tensor(-1))
    z = gk.random.normal(gk.random.fold(gk.random.key(4), torch.arange(200)), (2,), torch.float32)
    label = torch.arange(200) % 2
    data = BASE.means[label] + BASE.stds[label, None] * z
    found = gk.check(right, gk.CFG(2.0), data=data, draws=8, cond=[0, 1], steps=8)
    laws = [
        "input",
        "repeats",
        "rows",
        "null",
        "schedule",
        "coverage",
        "gradient",
        "cost",
        "seed",
        "batch_size",
        "acts",
    ]
    assert [row["law"] for row in found.table if row["verdict"] == "holds"] == laws


def test_the_data_of_a_model_pass_and_those_of_another_do_not():
    assert failed(model(), data=DATA, draws=15, steps=12) == []
    assert failed(model(), data=DATA * torch.tensor([1.0, 4.0]), draws=15, steps=12) == ["schedule", "coverage"]


@pytest.mark.parametrize(
    ("predict", "predicts"),
    [
        (noise, "velocity"),  # a wrong name
        (lambda d, x, a, s: -noise(d, x, a, s), "noise"),  # a wrong sign
        (lambda d, x, a, s: 2 * d, "clean"),  # data of another scale
        (lambda d, x, a, s: x, "clean"),  # says nothing
    ],
)
def test_a_prediction_that_is_not_what_it_is_said_to_be_fails_the_denoising_test(predict, predicts: str):
    assert failed(model(predict, predicts), data=DATA) == ["schedule"]


def test_a_wrong_schedule_and_a_wrong_time_fail_the_denoising_test():
    exact = gk.schedules.Flow()
    other = gk.GaussianModel(lambda x, t, c: BASE(x, float(t[0]), None), (2,), exact, predicts="clean")
    late = gk.GaussianModel(lambda x, t, c: BASE(x, 1 - 0.999 * float(t[0]), None), (2,), predicts="clean")
    assert failed(other, data=DATA) == failed(late, data=DATA) == ["schedule"]


def test_a_sampler_that_is_too_narrow_fails_coverage_alone():
    """The predictions are right, but all draws from one state are one."""

    class Narrow(gk.GaussianModel):
        def moves(self, steps, solver):
            return super().moves(steps, gk.solvers.DDIM())

    assert failed(Narrow(Net(), (2,), predicts="clean"), data=DATA[:60], draws=15) == ["coverage"]
    assert failed(Narrow(Net(), (2,), predicts="clean"), draws=15) == ["coverage"]  # of 64 simulated samples


def test_samples_that_the_model_simulates_stand_for_data_of_each_condition():
    """A chain that undoes its own noise passes, and predictions of twice the size are found without any data."""
    for seed in range(3):
        assert failed(model(null=torch.tensor(-1)), cond=[0, 1], draws=15, steps=12, seed=seed) == []
    assert failed(model(lambda d, x, a, s: 2 * d), draws=15, steps=12) == ["coverage"]
    found = gk.check(BASE, cond=[0, 1], draws=4, steps=4).table
    assert "64 simulated samples" in next(row["found"] for row in found if row["law"] == "coverage")


def test_balls_find_samples_that_are_right_along_every_direction():
    """Data on the unit sphere of 40 dimensions, at a noise that hides them. Along a direction, samples at the radii
    0.6 and 1.28 are normal with nearly the same variance; their distances from another point are not."""
    z = gk.random.normal(gk.random.fold(gk.random.key(8), torch.arange(200)), (40,), torch.float64)

    def sphere(radius) -> gk.GaussianModel:
        def net(x: Tensor, t: Tensor, cond: None) -> Tensor:
            return 0 * x if float(t[0]) > 0.3 else radius(x) * x / x.norm(dim=1, keepdim=True)

        return gk.GaussianModel(net, (40,), gk.schedules.EDM(), predicts="clean")

    data = (z / z.norm(dim=1, keepdim=True)).float()
    wide = sphere(lambda x: torch.where(x[:, :1] > 0, 0.6, 1.28))
    assert "coverage" not in failed(sphere(lambda x: 1.0), data=data, draws=15, steps=2)
    assert "coverage" in failed(wide, data=data, draws=15, steps=2)


def inplace(d: Tensor, x: Tensor, a: float, s: float) -> Tensor:
    x.data.mul_(0.5)  # past the counter of versions
    return d


@pytest.mark.parametrize(
    ("law", "predict"),
    [
        ("input", inplace),
        ("input", lambda d, x, a, s: x.mul_(0.5)),
        ("input", lambda d, x, a, s: d / (0 if s > 0.9 else 1)),
        ("repeats", lambda d, x, a, s: d + 0.1 * torch.rand_like(d)),
        ("rows", lambda d, x, a, s: d - d.mean(0)),
        ("rows", lambda d, x, a, s: d + 0.1 * torch.arange(len(d))[:, None]),
        ("gradient", lambda d, x, a, s: d.detach() + 0.2 * d),
        ("gradient", lambda d, x, a, s: d.detach()),
    ],
)
def test_a_network_with_bad_manners_fails_the_law_of_its_name(law: str, predict):
    assert law in failed(model(predict))


def test_batch_norm_in_training_mode_is_found():
    """A module hidden from the search of networks stays in training mode; lent ones are put into evaluation mode."""
    norm = nn.BatchNorm1d(2)
    shown = gk.GaussianModel(lambda x, t, c: norm(x), (2,))
    hidden = gk.GaussianModel(lambda x, t, c: (x - x.mean(0)) / (1 + x.std(0, unbiased=False)), (2,))
    assert "rows" not in failed(shown) and "rows" in failed(hidden)


def test_a_condition_that_is_not_used_is_found():
    deaf = gk.GaussianModel(lambda x, t, c: 0.5 * x, (2,), null=torch.tensor(-1))
    assert failed(deaf, cond=1) == ["null"]
    same = model(null=torch.tensor(1))  # the null condition is one of the conditions
    assert failed(same, cond=[0, 1]) == ["null"]
    assert failed(model(null=torch.tensor(-1)), cond=[0, 1]) == []


def test_a_network_that_is_called_twice_costs_more_than_is_counted():
    net = Net()
    twice = gk.GaussianModel(lambda x, t, c: 0.5 * net(x, t, c) + 0.5 * net(x, t, c), (2,), predicts="clean")
    assert failed(twice) == ["cost"]
    assert "160 rows reach a network, and 80 are counted" in str(gk.check(twice))


def test_a_reward_without_the_gradient_that_it_declares_is_found():
    def score(x: Tensor) -> Tensor:
        return x.detach()[:, 0] ** 2 + 0.5 * x[:, 1]

    false, true = as_reward(score), as_reward(lambda x: x[:, 0] ** 2 + 0.5 * x[:, 1])
    false.differentiable = true.differentiable = True
    assert failed(BASE, gk.DPS(false, 0.1)) == ["reward"]
    assert failed(BASE, gk.DPS(true, 0.1)) == []


class Careless(gk.Guide):
    """A tilt that depends on the global state of torch, on its batch, or on nothing."""

    def __init__(self, kind: str):
        object.__setattr__(self, "kind", kind)

    def tilt(self, view):
        x = view.prediction
        return {
            "seed": lambda: torch.randn_like(x),
            "batch_size": lambda: x - x.mean(0),
            "acts": lambda: 0 * x,
        }[self.kind]()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "laws"), [("seed", {"seed", "batch_size"}), ("batch_size", {"batch_size"}),
                                            ("acts", {"acts"})])  # fmt: skip
def test_a_careless_guide_fails_the_law_of_its_name(kind: str, laws: set[str]):
    assert set(failed(BASE, Careless(kind))) == laws


@pytest.mark.parametrize("noise", ["masked", "uniform"])
def test_tokens_in_the_right_order_pass_and_a_permuted_vocabulary_does_not(noise: str):
    exact = gk.analytic.TokenTable(TABLE, noise)
    data = gk.sample(exact, 400, steps=30, seed=5).x
    found = gk.check(exact, data=data, draws=15)
    assert found.passed and {"schedule", "coverage"} <= {row["law"] for row in found.table if row["verdict"] == "holds"}
    kind = gk.MaskedModel if noise == "masked" else gk.UniformModel
    swapped = kind(lambda x, t, c: exact(x, float(t[0]), None).flip(-1), 2, 3)
    sharp = kind(lambda x, t, c: 8 * exact(x, float(t[0]), None), 2, 3)
    assert failed(swapped, data=data) == failed(sharp, data=data) == ["schedule"]


def test_the_table_is_printed_and_shown():
    found = gk.check(BASE)
    assert str(found).splitlines()[0].split() == ["law", "verdict", "found"]
    assert len(str(found).splitlines()) == 1 + len(found.table) and "<td>gradient</td>" in found._repr_html_()
    assert list(found.to_frame()["law"]) == [row["law"] for row in found.table]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion", "dna-weak", "molecules"])
def test_bundled_models_keep_the_laws(name: str):
    base = gk.zoo.load(name)
    data = gk.sample(base, 16, steps=20, seed=3).x
    assert gk.check(base, data=data).passed


def test_bad_arguments_are_told_before_the_first_call():
    with pytest.raises(TypeError, match="takes a base model"):
        gk.check(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="one by one"):
        gk.check(BASE, [gk.CFG(2.0)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 8"):
        gk.check(BASE, data=DATA[:3])
    with pytest.raises(ValueError, match="draws=-1"):
        gk.check(BASE, data=DATA, draws=-1)
