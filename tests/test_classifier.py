"""Classifier guidance, against the exact classifier of a labelled mixture: the conditional law, with and without
gradients; and adversarial guidance, which changes what a classifier says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import guidekit as gk
from guidekit import GFCG, AdvDiff, ClassifierGuidance
from guidekit.errors import NetworkError, RewardError

from .problems import PROBLEMS

STEPS = [0.98 * (1 - i / 12) for i in range(12)] + [0.0]  # with a trace of the data at the start
SCHEDULES = {"vp": gk.schedules.Cosine(), "flow": gk.schedules.Flow(), "edm": gk.schedules.EDM()}


def mixture(kind: str = "vp", labels=(0, 1, 2, 1, 0)) -> gk.analytic.GaussianMixture:
    weights, stds = torch.tensor([[0.3, 0.2, 0.25, 0.15, 0.1], [0.5, 0.4, 0.6, 0.3, 0.5]], dtype=torch.float64)
    means = torch.tensor([[-2.0, 0.3], [-0.5, -0.8], [0.5, 1.0], [1.4, 0.0], [2.5, 0.7]], dtype=torch.float64)
    return gk.analytic.GaussianMixture(weights, means, stds, SCHEDULES[kind], list(labels))


def exact(model: gk.analytic.GaussianMixture):
    """log p(label | x_t), written out here."""
    count = int(model.labels.max()) + 1

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v.to(x)[:, None] for v in model.schedule(t.double()))
        var = (alpha * model.stds) ** 2 + sigma**2
        square = (x[:, None] - alpha[..., None] * model.means).square().sum(-1)
        log_p = model.weights.log() - 0.5 * square / var - 0.5 * x.shape[1] * var.log()
        hot = torch.where(torch.arange(count)[:, None] == model.labels, 0.0, -torch.inf)
        return (log_p[:, None] + hot).logsumexp(-1)  # not normalised: logits

    return classifier


def looks(model, guides, cond=None, steps=STEPS, n: int = 6):
    """Predictions at every look of a run, with the states and times."""
    run = gk.Run(model, n, steps=steps, guides=guides, cond=cond)
    with torch.no_grad():
        pop = run.start()
        for index in range(len(run.moves)):
            yield pop, run.step(index).t
            pop = run.advance(pop, index)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_exact_classifier_at_scale_one_gives_the_conditional_law(kind: str, label: int):
    """Look by look the conditional clean mean, so from the same noise the samples of the conditional sampler."""
    model = mixture(kind)
    guide = ClassifierGuidance(exact(model), label=label)
    guided = gk.sample(model, 400, steps=STEPS, guides=[guide])
    conditional = gk.sample(model, 400, steps=STEPS, cond=label)
    assert torch.allclose(guided.x, conditional.x, rtol=1e-7, atol=1e-7)
    plain = gk.sample(model, 400, steps=STEPS)
    assert (guided.x - plain.x).abs().max() > 0.5


def test_other_scales_are_powers_of_the_classifier():
    """d + w (d_y - d), with E[x_0 | x_t, y] for d_y; and zero in pure noise and at scale zero."""
    model = mixture()
    for pop, t in looks(model, [ClassifierGuidance(exact(model), lambda t: 2.5 - t, label=1)]):
        d, own = (model(pop.x, t, c) for c in (None, torch.ones(6, dtype=torch.long)))
        assert torch.allclose(pop.predictions[0], d + (2.5 - t) * (own - d), rtol=1e-8, atol=1e-9)
    for guide, steps in (
        (ClassifierGuidance(exact(model), 3.0, label=1), 1),
        (ClassifierGuidance(exact(model), 0.0), 9),
    ):
        assert torch.equal(gk.sample(model, 5, steps=steps, guides=[guide]).x, gk.sample(model, 5, steps=steps).x)


def test_labels_are_one_for_all_or_one_for_each_condition():
    model = mixture()
    classifier = exact(model)
    for label in (2, [0, 2]):
        together = gk.sample(
            model,
            40,
            steps=STEPS,
            cond=[None, None],
            batch_size=30,
            guides=[ClassifierGuidance(classifier, 1.0, label)],
        )
        for g in (0, 1):
            own = label if isinstance(label, int) else label[g]
            alone = gk.sample(model, 40, steps=STEPS, guides=[ClassifierGuidance(classifier, 1.0, own)])
            assert torch.allclose(together.x[together.group == g], alone.x, rtol=1e-10)
            share = (classifier(alone.x, torch.zeros(40)).argmax(1) == own).double().mean()
            assert share > 0.7


def test_a_classifier_may_return_the_log_probability_itself():
    model = mixture()
    classifier = exact(model)
    one, two = (
        gk.sample(model, 7, steps=STEPS, guides=[g])
        for g in (
            ClassifierGuidance(classifier, 1.5, 2),
            ClassifierGuidance(lambda x, t: classifier(x, t).log_softmax(1)[:, 2], 1.5),
        )
    )
    assert torch.allclose(one.x, two.x, rtol=1e-12)


def test_a_module_is_left_as_it_was_and_sees_its_own_precision():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 3)
            self.seen = []

        def forward(self, x, t):
            self.seen.append((x.dtype, t.dtype, self.training))
            return self.linear(x * (1 - t[:, None]))

    net = Net().train()
    gk.sample(mixture(), 3, steps=4, guides=[ClassifierGuidance(net, 1.0, 0)])
    assert set(net.seen) == {(torch.float32, torch.float32, False)}
    assert net.training and all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", SCHEDULES)
def test_without_gradients_two_classes_are_the_same_as_with_them(kind: str):
    model = mixture(kind, labels=(0, 1, 0, 1, 1))
    free, graded = (
        gk.sample(model, 30, steps=STEPS, cond=[0, 1], guides=[g])
        for g in (GFCG(exact(model), 1.5, [0, 1]), ClassifierGuidance(exact(model), 1.5, [0, 1]))
    )
    assert torch.allclose(free.x, graded.x, rtol=1e-7, atol=1e-7)
    assert free.cost.network_rows == 2 * graded.cost.network_rows
    assert (free.x - gk.sample(model, 30, steps=STEPS, cond=[0, 1]).x).abs().max() > 0.05


def test_without_gradients_all_wrong_classes_are_the_same_as_with_them():
    model = mixture()
    free, graded = (
        gk.sample(model, 30, steps=STEPS, cond=1, guides=[g])
        for g in (GFCG(exact(model), 2.0, 1, references=2), ClassifierGuidance(exact(model), 2.0, 1))
    )
    assert torch.allclose(free.x, graded.x, rtol=1e-7, atol=1e-7)


def test_gfcg_leaves_the_class_that_is_most_confused_by_how_unsure_the_classifier_is():
    model = mixture()
    for pop, t in looks(model, [GFCG(exact(model), 3.0, 1)], cond=1):
        p = exact(model)(pop.x, torch.full((6,), t, dtype=torch.float64)).softmax(1)
        rival = torch.where(p[:, 0] > p[:, 2], 0, 2)
        own, other = (model(pop.x, t, c) for c in (torch.ones(6, dtype=torch.long), rival))
        assert torch.allclose(pop.predictions[0], own + 3.0 * (1 - p[:, 1:2]) * (own - other), rtol=1e-9, atol=1e-10)


def test_gfcg_makes_samples_that_the_classifier_is_surer_of():
    """Mean log p(c | x_0) of the samples; interleaved classes."""
    model = mixture(labels=(0, 1, 0, 1, 0))

    def sure(scale):
        x = gk.sample(model, 1000, steps=20, cond=1, guides=[GFCG(exact(model), scale, 1)]).x
        return exact(model)(x, torch.zeros(1000).double()).log_softmax(1)[:, 1]

    values = [sure(scale) for scale in (0.0, 0.5, 2.0)]
    for less, more in pairwise(values):
        assert more.mean() - less.mean() > 4 * (less.var() / 1000 + more.var() / 1000).sqrt()


def test_gfcg_with_a_classifier_of_clean_samples_and_named_conditions():
    model = mixture()
    named = gk.GaussianModel(
        lambda x, t, c: model(x, float(t[0]), c), (2,), predicts="clean", dtype=torch.float64,
        decode=lambda x: [tuple(v.tolist()) for v in x], encode_cond=lambda c: torch.tensor("abc".index(c)),
    )  # fmt: skip
    seen = []

    def clean(samples, t):
        seen.append(samples)
        return exact(model)(torch.tensor(samples).double(), torch.zeros(len(samples)).double())

    guide = GFCG(clean, 2.0, 1, conditions="abc", clean=True)
    run = gk.Run(named, 3, steps=STEPS, cond="b", guides=[guide])
    with torch.no_grad():
        pop = run.start()
    own = model(pop.x, STEPS[0], torch.ones(3, dtype=torch.long))
    assert torch.allclose(torch.tensor(seen[0]).double(), own)
    p = exact(model)(own, torch.zeros(3).double()).softmax(1)
    other = model(pop.x, STEPS[0], torch.where(p[:, 0] > p[:, 2], 0, 2))
    assert torch.allclose(pop.predictions[0], own + 2.0 * (1 - p[:, 1:2]) * (own - other), rtol=1e-6)


def test_gfcg_serves_tokens():
    tables = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = gk.analytic.TokenTable(tables.exp().mean(0).log(), classes=tables)

    def classifier(x, t):
        return torch.stack([(x == k).sum(1) for k in (0, 1)], 1).double()

    for pop, t in looks(model, [GFCG(classifier, 1.3, 0)], cond=0, steps=5):
        p = classifier(pop.x, t).softmax(1)[:, 0]
        own, other = (model(pop.x, t, torch.full((6,), k)) for k in (1, 2))
        assert torch.allclose(pop.predictions[0], own + 1.3 * (1 - p)[:, None, None] * (own - other))


def victim(x: Tensor, t: Tensor | None = None) -> Tensor:
    """Splits the plane where the mixture does not quite."""
    return torch.stack([-2 * x[:, 0], 2 * x[:, 0], 0 * x[:, 0] - 3], 1)


def test_adversarial_guidance_acts_late_and_follows_the_gradient_of_the_wrong_class():
    model = mixture(labels=(0, 0, 1, 1, 1))
    plain, guided = (gk.Run(model, 6, steps=10, cond=0, guides=g) for g in ([], [AdvDiff(victim, 1.5, label=0)]))
    with torch.no_grad():
        pop = plain.start()
        for index in range(9):
            pop = plain.advance(pop, index)
            looked = guided.look(replace(pop, memos=(None,)), index + 1)
            tilt, (alpha, sigma) = (
                looked.predictions[0] - pop.predictions[0],
                model.process.scales(plain.step(index + 1).t),
            )
            if index + 1 < 8:
                assert (tilt == 0).all()
                continue
            p = victim(pop.x).softmax(1)  # the label is 0, and 1 is more probable than 2, or not
            worst = torch.where(p[:, 1] > p[:, 2], 1, 2)
            slope = torch.tensor([-2.0, 2.0, 0.0])[worst] - (p * torch.tensor([-2.0, 2.0, 0.0])).sum(1)
            assert torch.allclose(tilt[:, 0], 1.5 * sigma**2 / alpha * slope, rtol=1e-9)
            assert (tilt[:, 1] == 0).all()


def test_adversarial_samples_fool_the_classifier_and_restarts_more_of_them():
    model = mixture(labels=(0, 0, 1, 1, 1))
    guide = AdvDiff(victim, 4.0, target=1)

    def fooled(result):
        return float((victim(result.x).argmax(1) == 1).double().mean())

    options = {"steps": 40, "cond": 0, "solver": gk.solvers.DDIM()}  # as in the paper: noise decides the sample
    plain = gk.sample(model, 500, **options)
    attacked = gk.sample(model, 500, guides=[guide], **options)
    again = gk.sample(model, 500, guides=[guide], noise=guide.restart(model, attacked, 0.5), **options)
    error = 0.5 / 500**0.5
    assert fooled(attacked) > fooled(plain) + 4 * error
    assert fooled(again) > fooled(attacked) + 4 * error
    slope = 2 * (1 - victim(attacked.x).softmax(1)[:, 1]) + 2 * victim(attacked.x).softmax(1)[:, 0]
    expected = attacked.noise[:, 0] + 0.5 * slope
    assert torch.allclose(guide.restart(model, attacked, 0.5)[:, 0], expected, rtol=1e-9)


def test_what_cannot_work_says_so():
    model, classifier = mixture(), exact(mixture())

    def attempt(guide, **options):
        gk.sample(model, 3, steps=3, guides=[guide], **options)

    with pytest.raises(ValueError, match=r"tokens have none: use gk\.DCBG"):
        gk.Run(PROBLEMS["masked"].model, 2, steps=3, cond=0, guides=[ClassifierGuidance(classifier, label=0)])
    with pytest.raises(TypeError, match="function of"):
        attempt(ClassifierGuidance("resnet"))
    with pytest.raises(ValueError, match="counted from 0"):
        attempt(ClassifierGuidance(classifier, label=-1))
    with pytest.raises(ValueError, match="2 labels for 3 conditions"):
        attempt(ClassifierGuidance(classifier, label=[0, 1]), cond=[0, 1, 2])
    for label in (5, [0, 3], None):
        with pytest.raises(ValueError, match="the classifier has 3 classes, counted from 0; give one"):
            attempt(ClassifierGuidance(classifier, 1.0, label), cond=[None] * (2 if isinstance(label, list) else 1))
    with pytest.raises(ValueError, match="one number for a row"):
        attempt(ClassifierGuidance(lambda x, t: classifier(x, t)[:, 0], label=1))
    with pytest.raises(NetworkError, match=r"returned \(\) for 3 rows"):
        attempt(ClassifierGuidance(lambda x, t: classifier(x, t).sum()))
    with pytest.raises(RewardError, match="the classifier cuts it"):
        attempt(ClassifierGuidance(lambda x, t: classifier(x.detach(), t), label=1))
    with pytest.raises(ValueError, match="3 classes, one of them right"):
        attempt(GFCG(classifier, label=1, references=3), cond=1)
    with pytest.raises(ValueError, match="at least one wrong class"):
        attempt(GFCG(classifier, references=0), cond=1)
    with pytest.raises(ValueError, match="2 conditions for 3 classes"):
        attempt(GFCG(classifier, label=1, conditions=[0, 1]), cond=1)
    with pytest.raises(ValueError, match=r"target=3\): the classifier has 3"):
        attempt(AdvDiff(classifier, target=3, start=0.0))
    with pytest.raises(ValueError, match=r"AdvDiff\(label=None\)"):
        attempt(AdvDiff(classifier, start=0.0))
    with pytest.raises(ValueError, match=r"AdvDiff\(target=1\): the classifier has 1 classes"):
        attempt(AdvDiff(lambda x, t: classifier(x, t)[:, 0], target=1, start=0.0))
    result = gk.sample(model, 2, steps=2)
    with pytest.raises(ValueError, match="this one has none"):
        AdvDiff(classifier, target=1).restart(model, replace(result, noise=None))
