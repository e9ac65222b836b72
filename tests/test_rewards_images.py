"""Rewards of images against formulas by hand, other packages and known answers."""

from __future__ import annotations

import colorsys
import io
import json
import math
import pickle
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from PIL import Image
from torch import nn
from torchmetrics.functional.image import total_variation

from rewards import RewardError, RewardWarning, images as ri
from rewards.images import adapters, clip

PIXEL = [ri.Brightness(), ri.Contrast(), ri.Color((0.2, 0.9, 0.4)), ri.Saturation(), ri.Sharpness()]
PIXEL += [ri.TotalVariation(), ri.Statistics("total_variation"), ri.Statistics("gradient")]
OFFLINE = [*PIXEL, ri.JPEGSize(80), ri.JPEGSize(sign=-1)]
ids = lambda r: r.name  # noqa: E731


def noise(rows=4, c=3, h=9, w=12, seed=0, dtype=torch.float32):
    return torch.rand(rows, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bytes_of(rows=4, h=9, w=12, seed=0):
    """8 bits, (rows, H, W, 3): numbers that every form of an image holds exactly."""
    return np.random.default_rng(seed).integers(0, 256, (rows, h, w, 3), dtype=np.uint8)


# forms of images


def test_pixels_are_the_same_from_every_form():
    raw = bytes_of()
    x = ri.image_batch(raw)
    assert x[1, 2, 3, 4] == np.float32(raw[1, 3, 4, 2]) / np.float32(255)
    for form in (torch.from_numpy(raw).movedim(-1, 1), raw / 255, [Image.fromarray(a) for a in raw], list(raw)):
        assert torch.allclose(ri.image_batch(form).float(), x, atol=1e-7)
    grey = ri.image_batch(raw[..., 0])
    assert grey.shape == (4, 1, 9, 12)
    assert torch.equal(grey[:, 0], x[:, 0])
    assert torch.equal(ri.image_batch([Image.fromarray(a) for a in raw[..., 0]]), grey)


def test_pil_images_are_the_bytes_that_went_in():
    raw = bytes_of()
    for form in (raw, ri.image_batch(raw), [Image.fromarray(a) for a in raw]):
        assert all(np.array_equal(np.array(p), a) for p, a in zip(ri.pil_images(form), raw, strict=True))
    assert [p.mode for p in ri.pil_images(raw[..., 1])] == ["L"] * 4
    assert np.array(ri.pil_images(torch.tensor([0.4999, 0.5, 1.7, -3]).view(1, 1, 2, 2))[0]).tolist() == [
        [127, 128],
        [255, 0],
    ]


def test_images_of_pil_in_other_modes():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (ri.image_batch([clear]) == 1).all()
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert torch.allclose(ri.image_batch([half]).flatten(), torch.tensor([1.0, 127 / 255, 127 / 255]), atol=0.003)
    palette = Image.fromarray(bytes_of(1)[0]).convert("P")
    assert torch.equal(ri.image_batch([palette]), ri.image_batch([palette.convert("RGB")]))
    assert torch.equal(ri.image_batch([Image.new("1", (2, 1), 1)]), torch.ones(1, 1, 1, 2))
    with pytest.raises(ValueError, match="mode F has no known range"):
        ri.image_batch([Image.new("F", (2, 2))])


def test_arrays_that_are_read_only_swapped_or_reversed_are_read():
    raw = bytes_of()
    frozen = raw / 255
    frozen.setflags(write=False)
    assert torch.equal(ri.image_batch(frozen), ri.image_batch(raw / 255))
    assert torch.equal(ri.image_batch((raw / 255).astype(">f8")), ri.image_batch(raw / 255))
    assert torch.equal(ri.image_batch(raw[::-1, :, ::-1]), ri.image_batch(raw).flip(0, 3))


def test_values_are_clamped_and_gradients_stop_there():
    x = torch.tensor([-0.5, 0.25, 1.5, 0.75]).view(1, 1, 2, 2).requires_grad_()
    value = ri.Brightness()(x)
    assert value.item() == pytest.approx(0.5)
    assert torch.autograd.grad(value.sum(), x)[0].flatten().tolist() == [0, 0.25, 0, 0.25]


def test_what_is_no_batch_of_images_says_what_is_needed():
    for bad in (torch.rand(2, 4, 5, 5), torch.rand(3, 5, 5), np.zeros((2, 5, 5, 2)), torch.rand(2, 3, 0, 5)):
        with pytest.raises(RewardError, match=r"C = 1 or 3"):
            ri.Brightness()(bad)
    for bad in (torch.zeros(2, 3, 4, 4, dtype=torch.long), np.zeros((2, 4, 4), dtype=np.int64)):
        with pytest.raises(RewardError, match="int64"):
            ri.Brightness()(bad)
    for bad in ("picture", {1: 2}, range(3)):
        with pytest.raises(RewardError, match="a tensor, an array or a list of PIL images"):
            ri.Brightness()(bad)


# scores


@pytest.mark.parametrize("reward", OFFLINE, ids=ids)
def test_every_form_has_the_same_score(reward):
    raw = bytes_of()
    scores = reward(ri.image_batch(raw))
    assert scores.std() > 0
    for form in (raw, raw / 255, [Image.fromarray(a) for a in raw], list(raw)):
        assert torch.allclose(reward(form).float(), scores.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reward", OFFLINE, ids=ids)
def test_order_is_kept_and_what_has_no_score_is_nan(reward):
    x = noise(5)
    alone = torch.cat([reward(x[i : i + 1]) for i in range(5)])
    assert torch.allclose(reward(x.flip(0)), alone.flip(0), atol=1e-6)
    x[1, 2, 3, 4], x[3, 0, 0, 0] = math.nan, math.inf
    scores = reward(x)
    assert scores.isnan().tolist() == [False, True, False, True, False]
    assert torch.allclose(scores[[0, 2, 4]], alone[[0, 2, 4]], atol=1e-6)


@pytest.mark.parametrize("reward", OFFLINE, ids=ids)
def test_a_list_of_all_sizes_and_things_costs_only_what_is_no_image(reward):
    small, large = Image.fromarray(bytes_of(1)[0]), Image.fromarray(bytes_of(1, 20, 30, 1)[0])
    grey = Image.fromarray(bytes_of(1)[0][..., 0])
    items = [large, None, small, "x" * 10**6, grey, np.zeros((3, 3, 7)), large, Image.new("F", (9, 9)), "", b"\0", 3]
    with pytest.warns(RewardWarning, match="7 of 11 samples are no images, first NoneType is no image"):
        scores = reward(items)
    assert scores.isnan().tolist() == [i not in (0, 2, 4, 6) for i in range(11)]
    for i in (0, 2, 4, 6):
        assert scores[i] == reward([items[i]])[0]


@pytest.mark.parametrize("reward", OFFLINE, ids=ids)
def test_nothing_has_no_scores(reward):
    assert reward([]).shape == reward(torch.rand(0, 3, 8, 8)).shape == (0,)


@pytest.mark.parametrize("reward", OFFLINE, ids=ids)
def test_rewards_survive_pickling(reward):
    again = pickle.loads(pickle.dumps(reward))
    assert torch.equal(again(noise()), reward(noise()))
    assert (again.name, again.unit, again.higher_is_better) == (reward.name, reward.unit, reward.higher_is_better)


@pytest.mark.parametrize("reward", PIXEL, ids=ids)
@pytest.mark.parametrize("c", [1, 3])
def test_gradients_are_those_of_finite_differences(reward, c):
    x = (0.1 + 0.8 * noise(2, c, 4, 5, seed=3, dtype=torch.float64)).requires_grad_()
    assert reward.differentiable
    assert torch.autograd.gradcheck(reward, (x,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("reward", PIXEL, ids=ids)
def test_gradients_are_finite_where_formulas_have_corners_and_nan_stays_in_its_row(reward):
    x = torch.stack([torch.zeros(3, 5, 5), torch.full((3, 5, 5), 0.5), noise(1, h=5, w=5)[0], torch.zeros(3, 5, 5)])
    x[3, 0, 0, 0] = math.nan
    x.requires_grad_()
    scores = reward(x)
    gradient = torch.autograd.grad(scores[:3].sum(), x)[0]
    assert gradient.isfinite().all()
    assert gradient[2].abs().max() > 0
    assert gradient[3].abs().max() == 0


@pytest.mark.parametrize("reward", PIXEL, ids=ids)
def test_half_precision_is_computed_in_single(reward):
    x = noise().half()
    assert torch.equal(reward(x), reward(x.float()))


def test_the_size_is_that_of_the_file_that_pil_writes():
    raw = bytes_of(3, 32, 40)
    raw[1] = 128
    sizes = []
    for a in raw:
        file = io.BytesIO()
        Image.fromarray(a).save(file, "JPEG", quality=70)
        sizes.append(len(file.getvalue()) / 1000)
    assert sizes[0] > 2 * sizes[1]
    x = torch.from_numpy(raw).movedim(-1, 1) / 255
    assert ri.JPEGSize(70)(x).tolist() == sizes
    assert ri.JPEGSize(70, sign=-1)(raw).tolist() == [-s for s in sizes]
    assert (ri.JPEGSize(95)(x) > ri.JPEGSize(70)(x))[[0, 2]].all()
    assert not ri.JPEGSize.differentiable
    assert ri.JPEGSize().unit == "kB"


def test_no_jpeg_is_larger_than_its_format_allows():
    assert ri.JPEGSize()([Image.new("L", (65501, 1)), Image.new("L", (65500, 1))]).isnan().tolist() == [True, False]


def test_brightness_and_contrast_by_hand():
    red, white = torch.zeros(3, 1, 2), torch.ones(3, 1, 2)
    red[0] = 1
    half = torch.cat([red[..., :1], white[..., :1]], -1)  # Y = 0.299, 1
    x = torch.stack([red, white, half])
    assert ri.Brightness()(x).tolist() == pytest.approx([0.299, 1, 0.6495])
    assert ri.Contrast()(x).tolist() == pytest.approx([0, 0, 0.3505], abs=1e-6)
    raw = bytes_of()
    luma = [np.asarray(Image.fromarray(a).convert("L")) / 255 for a in raw]
    assert ri.Brightness()(raw).tolist() == pytest.approx([y.mean() for y in luma], abs=2e-3)
    assert ri.Contrast()(raw).tolist() == pytest.approx([y.std() for y in luma], abs=2e-3)
    green = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert ri.Brightness()(green).item() == pytest.approx(0.587)


def test_color_by_hand():
    x = torch.tensor([0.5, 0.0, 1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4).clone()
    x[1, 0] = 0.2
    scores = ri.Color([0.5, 0.0, 0.4])(x)
    assert scores.tolist() == pytest.approx([-0.36 / 3, -(0.36 + 0.09) / 3])
    assert ri.Color((0.0, 0.5, 1.0))(torch.zeros(1, 1, 2, 2)).item() == pytest.approx(-1.25 / 3)


def test_saturation_is_that_of_hsv():
    x = noise(2, h=3, w=4)
    x[0, :, 0, 0] = 0
    by_hand = [np.mean([colorsys.rgb_to_hsv(*p)[1] for p in image.flatten(1).T.tolist()]) for image in x]
    assert ri.Saturation()(x).tolist() == pytest.approx(by_hand, rel=1e-5)
    assert ri.Saturation()(noise(2, 1)).tolist() == [0, 0]


def test_sharpness_is_the_variance_of_scipys_laplacian():
    x = noise(3, 1)
    inner = [scipy.ndimage.laplace(v[0].numpy().astype(float))[1:-1, 1:-1].var() for v in x]
    assert ri.Sharpness()(x).tolist() == pytest.approx(inner, rel=1e-4)
    blurred = torch.from_numpy(scipy.ndimage.gaussian_filter(x.numpy(), (0, 0, 1, 1)))
    assert (ri.Sharpness()(blurred) < 0.2 * ri.Sharpness()(x)).all()
    assert ri.Sharpness()(noise(2, h=2)).isnan().all()
    ramp = torch.linspace(0, 1, 6).expand(1, 1, 5, 6)
    assert ri.Sharpness()(ramp).item() == pytest.approx(0, abs=1e-12)


def test_total_variation_is_that_of_torchmetrics_for_each_value():
    x = noise()
    wanted = total_variation(x, reduction="none")
    assert torch.allclose(ri.TotalVariation()(x), wanted / (3 * 9 * 12))
    assert torch.allclose(ri.Statistics("total_variation")(x), wanted)
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(1, 1, 2, 2)
    assert ri.TotalVariation()(board).item() == 1  # 4 differences of 1, 4 values
    assert not ri.TotalVariation().higher_is_better
    assert not ri.Statistics("total_variation").higher_is_better


def test_the_mean_gradient_by_hand():
    x = torch.tensor([[0.0, 0.3], [0.4, 0.7]]).view(1, 1, 2, 2)
    # (0.4, 0.3) in the first pixel, (0.4, 0) right of it, (0, 0.3) under it, nothing in the last
    assert ri.Statistics("gradient")(x).item() == pytest.approx((0.5 + 0.4 + 0.3) / 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ri.JPEGSize(0),
        lambda: ri.JPEGSize(95.0),
        lambda: ri.JPEGSize(sign=2),
        lambda: ri.Color((0.1, 0.2)),
        lambda: ri.Color((0.1, 0.2, 200)),
        lambda: ri.Statistics("ssim"),
        lambda: ri.Classifier(3, 1),
        lambda: ri.Classifier(torch.sum, -1),
        lambda: ri.Classifier(torch.sum, [0, 1.5]),
        lambda: ri.Classifier(torch.sum, True),
        lambda: ri.Classifier(torch.sum, 0, batch=0),
        lambda: ri.Classifier(torch.sum, 0, mode="prob"),
        lambda: ri.ClipScore("a cat"),
        lambda: ri.ClipScore("a cat", checkpoint="laion2b_s34b_b79k"),
        lambda: ri.ClipScore(["a cat", None], checkpoint=__file__),
        lambda: ri.ClipScore([], checkpoint=__file__),
        lambda: ri.Clip(3, __file__),
        lambda: ri.Aesthetic("clip", head=__file__),
        lambda: ri.PickScore("a", model="/nowhere"),
        lambda: ri.HPS("a", checkpoint="/nowhere"),
        lambda: ri.ImageReward(7, checkpoint=__file__, config=__file__),
    ],
)
def test_wrong_arguments_are_refused_when_a_reward_is_made(make):
    with pytest.raises((ValueError, TypeError), match=r".{40}"):
        make()


# classifier


class Net(nn.Module):
    """Three classes; dropout and batch norm show the mode in which it runs."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop, self.last = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout(),
            nn.Linear(4, 3),
        )
        self.seen: list[tuple[bool, int]] = []

    def forward(self, x):
        self.seen.append((self.training, len(x)))
        return self.last(self.drop(self.norm(self.conv(x)).tanh()).mean((2, 3)))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def logits_of(net, x):
    net.eval()
    logits = net(x).detach().double().numpy()
    net.train()
    net.seen.clear()
    return logits


def test_a_classifier_says_log_probabilities_logits_and_margins(net):
    x, labels = noise(5), [2, 0, 1, 1, 2]
    z = logits_of(net, x)
    chosen = z[range(5), labels]
    others = [max(row[j] for j in range(3) if j != y) for row, y in zip(z, labels, strict=True)]
    wanted = {"log_prob": chosen - np.log(np.exp(z).sum(1)), "logit": chosen, "margin": chosen - others}
    for mode, value in wanted.items():
        found = ri.Classifier(net, labels, mode=mode, batch=2)(x)
        assert found.tolist() == pytest.approx(value.tolist(), abs=1e-6)
        one = ri.Classifier(net, np.int64(1), mode=mode)(x[2:4])
        assert one.tolist() == pytest.approx(value[2:4].tolist(), abs=1e-6)


def test_the_network_is_left_as_it_was_and_sees_batches(net):
    net.train()
    net.drop.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    ri.Classifier(net, 0, batch=2)(noise(5))
    assert net.seen == [(False, 2), (False, 2), (False, 1)]
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with pytest.raises(RewardError, match="3 classes"):
        ri.Classifier(net, 3)(noise(2))
    assert [m.training for m in net.modules()] == modes


def test_threads_that_share_a_network_leave_it_as_it_was():
    """The first to begin ends while the second is inside, and would switch its dropout on."""
    inside, over, seen = threading.Event(), threading.Event(), []

    class Slow(nn.Module):
        def forward(self, x):
            if len(x) == 2:  # the second
                inside.set()
                over.wait(10)
                seen.append(self.training)
            else:
                inside.wait(10)
            return x.mean((2, 3))

    network = Slow().train()
    reward = ri.Classifier(network, 0)
    second = threading.Thread(target=reward, args=(noise(2),))
    first = threading.Thread(target=reward, args=(noise(1),))
    first.start()
    second.start()
    first.join(10)
    assert not network.training
    over.set()
    second.join(10)
    assert seen == [False]
    assert network.training


def test_a_classifier_has_gradients_in_the_image_and_none_where_nobody_asks(net):
    net.double()
    x = noise(2, h=4, w=4, dtype=torch.float64).requires_grad_()
    for mode in ("log_prob", "logit", "margin"):
        assert torch.autograd.gradcheck(ri.Classifier(net, [0, 2], mode=mode, batch=1), (x,), atol=1e-6)
    assert not ri.Classifier(net, 0)(x.detach()).requires_grad


def test_labels_stay_with_their_samples_through_sizes_and_nan(net):
    big, small = noise(2, h=16), noise(2)
    small[1, 0, 0, 0] = math.nan
    scores = ri.Classifier(net, [0, 1, 2, 0], mode="logit")([big[0], small[0], big[1], small[1]])
    wanted = [logits_of(net, big)[0, 0], logits_of(net, small[:1])[0, 1], logits_of(net, big)[1, 2]]
    assert scores[:3].tolist() == pytest.approx(wanted, abs=1e-6)
    assert scores[3].isnan()


def test_preprocessing_comes_before_the_network(net):
    x = noise(3)
    found = ri.Classifier(net, 1, mode="logit", preprocess=lambda v: 2 * v - 1)(x)
    assert found.tolist() == pytest.approx(logits_of(net, 2 * x - 1)[:, 1].tolist(), abs=1e-6)


def test_a_classifier_survives_pickling_and_refuses_a_wrong_count(net):
    reward = pickle.loads(pickle.dumps(ri.Classifier(net, [0, 1])))
    assert torch.equal(reward(noise(2)), ri.Classifier(net, [0, 1])(noise(2)))
    with pytest.raises(RewardError, match="2 labels for 3 samples"):
        reward(noise(3))
    with pytest.raises(RewardError, match=r"the network returned \(2, 3, 9, 12\) for 2 images"):
        ri.Classifier(nn.Identity(), 0)(noise(2))


# CLIP

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of open_clip with random weights, and the file of them."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / "tiny.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = open_clip.create_model("tiny", output_dict=None).eval()
        torch.nn.init.normal_(network.text_projection, std=1.0)
    torch.save(network.state_dict(), folder / "tiny.pt")
    return network, folder


def cosines(network, pixels, prompts):
    with torch.no_grad():
        texts = network.encode_text(open_clip.tokenize(prompts, 16), normalize=True)
        return (network.encode_image(pixels, normalize=True) * texts).sum(-1)


def normal(x):
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@pytest.mark.parametrize("form", ["name", "dict", "json", "config"])
def test_the_clip_score_is_the_cosine_of_open_clips_towers(tiny, form):
    network, folder = tiny
    (folder / "config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}))
    model = {"name": "tiny", "dict": CONFIG, "json": folder / "tiny.json", "config": str(folder / "config.json")}[form]
    x, prompts = noise(3, h=32, w=32), ["a red fox", "", "naïve 雪\ud800"]
    pixels = normal(x)
    if form == "config":
        pixels = (x - 0.5) / torch.tensor(STD)[:, None, None]
    readable = [p.encode("utf-8", "replace").decode() for p in prompts]
    reward = ri.ClipScore(prompts, model=model, checkpoint=folder / "tiny.pt")
    assert torch.allclose(reward(x), cosines(network, pixels, readable), atol=1e-5)
    assert reward(x).std() > 1e-3
    fox = ri.ClipScore("a red fox", model=model, checkpoint=folder / "tiny.pt", scale=100.0)
    assert torch.allclose(fox(x), 100 * cosines(network, pixels, ["a red fox"] * 3), atol=1e-3)


def test_clip_takes_forms_orders_grey_and_nan(tiny):
    network, folder = tiny
    made = ri.Clip(CONFIG, folder / "tiny.pt", batch=2)
    reward = ri.ClipScore(["a", "b", "c", "d"], model=made)
    raw = bytes_of(4, 32, 32)
    wanted = cosines(network, normal(ri.image_batch(raw)), ["a", "b", "c", "d"])
    assert torch.allclose(reward(raw), wanted, atol=1e-5)
    assert torch.allclose(reward([Image.fromarray(a) for a in raw]), wanted, atol=1e-5)
    x = ri.image_batch(raw)
    x[2, 0, 0, 0] = math.nan
    scores = reward(x)
    assert scores.isnan().tolist() == [False, False, True, False]
    assert torch.allclose(scores[[0, 1, 3]], wanted[[0, 1, 3]], atol=1e-5)
    grey = noise(4, 1, 32, 32)
    assert torch.allclose(reward(grey), reward(grey.expand(-1, 3, -1, -1)), atol=1e-6)
    with pytest.raises(RewardError, match="4 prompts for 3 samples"):
        reward(x[:3])
    assert ri.ClipScore("a", model=made)(noise(0, 3, 32, 32)).shape == (0,)


@pytest.mark.parametrize(("height", "width", "mode"), [(50, 77, "shortest"), (90, 41, "squash"), (20, 24, "shortest")])
def test_pixels_are_prepared_as_open_clip_does_with_pil(height, width, mode):
    smooth = scipy.ndimage.gaussian_filter(bytes_of(2, height, width).astype(float), (0, 2, 2, 0))
    raw = np.clip((smooth - 127.5) * 4 + 127.5, 0, 255).astype(np.uint8)
    transform = open_clip.image_transform(32, is_train=False, mean=MEAN, std=STD, resize_mode=mode)
    wanted = torch.stack([transform(Image.fromarray(a)) for a in raw])
    settings = {"size": 32, "interpolation": "bicubic", "resize_mode": mode, "mean": MEAN, "std": STD}
    found = clip.prepared(ri.image_batch(raw), settings)
    assert wanted.std() > 0.5
    away = (found - wanted).abs()  # PIL rounds to 8 bits, twice: 2/255, which is 0.03 after the normalisation
    assert away.max() < 0.05
    assert away.mean() < 0.01


def test_clip_gradients_are_those_of_open_clip_and_weights_have_none(tiny):
    network, folder = tiny
    x = noise(2, h=32, w=32).requires_grad_()
    reward = ri.ClipScore("a red fox", model=CONFIG, checkpoint=folder / "tiny.pt")
    found = torch.autograd.grad(reward(x).sum(), x)[0]
    text = network.encode_text(open_clip.tokenize(["a red fox"], 16), normalize=True)
    direct = (network.encode_image(normal(x), normalize=True) * text.detach()).sum()
    assert torch.allclose(found, torch.autograd.grad(direct, x)[0], atol=1e-6)
    assert found.abs().max() > 1e-4
    with torch.no_grad():
        ahead = reward(x + 0.01 * found / found.norm()) - reward(x - 0.01 * found / found.norm())
    assert ahead.sum().item() == pytest.approx(0.02 * found.norm().item(), rel=0.02)
    assert not reward(x.detach()).requires_grad


def test_texts_are_encoded_once_and_a_long_one_is_cut(tiny):
    network, folder = tiny
    calls = []

    def tokenizer(texts):
        calls.append(texts)
        return open_clip.tokenize(texts, 16)

    made = ri.Clip(CONFIG, folder / "tiny.pt", tokenizer=tokenizer)
    x = noise(3, h=32, w=32)
    first = ri.ClipScore(["fox", "fox", "word " * 300_000], model=made)
    assert torch.equal(first(x), first(x))
    assert [t[0][:4] for t in calls] == ["fox", "word"]
    assert torch.allclose(first(x)[2], cosines(network, normal(x), ["word " * 30] * 3)[2], atol=1e-5)


def test_a_clip_score_survives_pickling(tiny):
    _, folder = tiny
    reward = ri.ClipScore("a red fox", model=CONFIG, checkpoint=folder / "tiny.pt")
    data = pickle.dumps(reward)
    assert len(data) < 5000
    assert torch.equal(pickle.loads(data)(noise(2, h=32, w=32)), reward(noise(2, h=32, w=32)))


def test_preprocessing_follows_the_tag_or_is_asked_for(tiny, tmp_path):
    settings = clip._settings(open_clip, "ViT-B-16-SigLIP", None)
    assert settings["mean"] == (0.5, 0.5, 0.5)
    assert settings["resize_mode"] == "squash"
    assert clip._settings(open_clip, "ViT-L-14", "openai")["mean"] == MEAN
    assert clip._settings(open_clip, "ViT-L-14", '{"mean": [0, 0, 0]}') == {"mean": [0, 0, 0]}
    with pytest.raises(ValueError, match="differ in their preprocessing"):
        clip._settings(open_clip, "ViT-L-14", None)
    with pytest.raises(ValueError, match="is no tag of ViT-B-32"):
        clip._settings(open_clip, "ViT-B-32", "nobody")


def test_given_preprocessing_is_used(tiny):
    network, folder = tiny
    x = noise(2, h=32, w=32)
    given = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 0.5]}
    reward = ri.ClipScore("a fox", model=CONFIG, checkpoint=folder / "tiny.pt", preprocess=given)
    pixels = (x - torch.tensor(given["mean"])[:, None, None]) / torch.tensor(given["std"])[:, None, None]
    assert torch.allclose(reward(x), cosines(network, pixels, ["a fox"] * 2), atol=1e-5)


def test_nothing_is_fetched(tiny):
    _, folder = tiny
    for model, match in [
        ("ViT-B-16-SigLIP", "would download the tokenizer"),
        ("roberta-ViT-B-32", "would download the text tower"),
        ("hf-hub:laion/CLIP", "is no model of open_clip"),
        ("local-dir:/tmp", "is no model of open_clip"),
        ({"embed_dim": 3}, "a configuration has embed_dim"),
    ]:
        with pytest.raises(RewardError, match=match):
            ri.ClipScore("a", model=model, checkpoint=folder / "tiny.pt")(noise(1, h=32, w=32))


class Bomb:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_weights_are_never_unpickled(tiny, tmp_path, capsys):
    _, folder = tiny
    torch.save({"weight": torch.ones(1, 16), "bias": torch.zeros(1), "x": Bomb()}, tmp_path / "bad.pt")
    x = noise(1, h=32, w=32)
    for reward in (
        ri.Aesthetic(ri.Clip(CONFIG, folder / "tiny.pt"), head=tmp_path / "bad.pt"),
        ri.ClipScore("a", model=CONFIG, checkpoint=tmp_path / "bad.pt"),
    ):
        with pytest.raises(RewardError, match=r"[Ww]eights.only"):
            reward(x)
    assert "unpickled" not in capsys.readouterr().out


def test_the_aesthetic_score_is_a_chain_of_linear_layers(tiny, tmp_path):
    from safetensors.torch import save_file

    network, folder = tiny
    made = ri.Clip(CONFIG, folder / "tiny.pt")
    layers = nn.Sequential(nn.Linear(16, 6), nn.Dropout(), nn.Linear(6, 4), nn.Linear(4, 1)).eval()
    deep = nn.Sequential(*[nn.Linear(16, 4), *[nn.Linear(4, 4) for _ in range(9)], nn.Linear(4, 1)])  # 10 after 9
    x = noise(3, h=32, w=32)
    with torch.no_grad():
        y = network.encode_image(normal(x), normalize=True)
    for number, head in enumerate([layers, deep, nn.Linear(16, 1)]):
        state = {k if number == 2 else f"layers.{k}": v for k, v in head.state_dict().items()}
        torch.save(state, tmp_path / "head.pt")
        save_file(state, tmp_path / "head.safetensors")
        for name in ("head.pt", "head.safetensors"):
            reward = pickle.loads(pickle.dumps(ri.Aesthetic(made, head=tmp_path / name)))
            assert torch.allclose(reward(x), head(y)[:, 0].detach(), atol=1e-5)
    assert reward(x.requires_grad_()).requires_grad
    torch.save(nn.Linear(8, 1).state_dict(), tmp_path / "narrow.pt")
    with pytest.raises(RewardError, match="do not lead from 16 features"):
        ri.Aesthetic(made, head=tmp_path / "narrow.pt")(x)


def test_a_checkpoint_that_changes_is_read_again(tiny, tmp_path):
    network, _ = tiny
    path = tmp_path / "moving.pt"
    state = network.state_dict()
    torch.save(state, path)
    reward, x = ri.ClipScore("a fox", model=CONFIG, checkpoint=path), noise(2, h=32, w=32)
    before = reward(x)
    torch.save({**state, "visual.proj": -state["visual.proj"]}, path)
    assert torch.allclose(reward(x), -before, atol=1e-6)


# other packages


def fake(monkeypatch, name, **members):
    module = ModuleType(name)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


MEANS = [0.0, 1.0, 51 / 255, 102 / 255]


def plain_images():
    return torch.tensor(MEANS)[:, None, None, None].expand(4, 3, 8, 8)


def level(image):
    assert image.mode == "RGB"
    return float(np.asarray(image).mean() / 255)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "transformers", None)
    adapters._pickscore.cache_clear()
    for reward, install in [
        (ri.HPS("a", checkpoint=file), "hpsv2"),
        (ri.ImageReward("a", checkpoint=file, config=file), "image-reward"),
        (ri.PickScore("a", model=tmp_path), "transformers"),
    ]:
        with pytest.raises(RewardError, match=f"pip install {install}"):
            reward(plain_images())
        assert not reward.differentiable


def test_hps_asks_once_for_each_prompt_and_keeps_the_order(tmp_path, monkeypatch):
    calls = []

    def score(images, prompt, cp=None, hps_version="v2.0"):
        calls.append((len(images), prompt, cp))
        return [np.float32(len(prompt) + level(image)) for image in images]

    fake(monkeypatch, "hpsv2")
    fake(monkeypatch, "hpsv2.img_score", score=score)
    (tmp_path / "hps.pt").write_bytes(b"")
    reward = pickle.loads(pickle.dumps(ri.HPS(["aa", "b", "aa", "b"], checkpoint=tmp_path / "hps.pt")))
    scores = reward(plain_images())
    assert scores.tolist() == pytest.approx([2 + MEANS[0], 1 + MEANS[1], 2 + MEANS[2], 1 + MEANS[3]])
    assert calls == [(2, "aa", str(tmp_path / "hps.pt")), (2, "b", str(tmp_path / "hps.pt"))]
    with pytest.raises(RewardError, match="4 prompts for 3 samples"):
        reward(plain_images()[:3])


def test_image_reward_is_loaded_once_and_may_return_a_number_for_one(tmp_path, monkeypatch):
    loads = []

    class Model:
        def score(self, prompt, images):
            found = [len(prompt) + level(image) for image in images]
            return found if len(found) > 1 else found[0]

    def load(name, device=None, download_root=None, med_config=None):
        loads.append((name, device, med_config))
        return Model()

    fake(monkeypatch, "ImageReward", load=load)
    adapters._image_reward.cache_clear()
    for name in ("w.pt", "c.json"):
        (tmp_path / name).write_bytes(b"")
    reward = ri.ImageReward(["aa", "b", "aa", "ccc"], checkpoint=tmp_path / "w.pt", config=tmp_path / "c.json")
    x = plain_images().clone()
    x[2, 0, 0, 0] = math.nan
    scores = reward(x)
    assert scores[[0, 1, 3]].tolist() == pytest.approx([2 + MEANS[0], 1 + MEANS[1], 3 + MEANS[3]])
    assert scores[2].isnan()
    reward(x)
    assert loads == [(str(tmp_path / "w.pt"), "cpu", str(tmp_path / "c.json"))]
    adapters._image_reward.cache_clear()


def test_pickscore_is_the_scaled_cosine_of_a_clip_of_transformers(tmp_path):
    """The real package, with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package at import
        import transformers as tf
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *[v + "</w>" for v in letters], "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = tf.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=16)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tf.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8})
        network = tf.CLIPModel(config).eval()
    processor = tf.CLIPProcessor(
        tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer
    )
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    adapters._pickscore.cache_clear()
    raw, prompts = bytes_of(3, 32, 32), ["fox", "owl on a hill", "fox"]
    scores = ri.PickScore(prompts, model=tmp_path, batch=1)(raw)
    adapters._pickscore.cache_clear()
    tokens = [[52, *[words.index(c + "</w>" * (c == w[-1])) for w in p.split() for c in w], 53] for p in prompts]
    tokens[1] = [52, *(words.index(t) for t in ["o", "w", "l</w>", "o", "n</w>", "a</w>", "h", "i", "l", "l</w>"]), 53]
    pixels = normal(ri.image_batch(raw))
    with torch.no_grad():
        images = network.visual_projection(network.vision_model(pixels).pooler_output)
        texts = [network.text_model(torch.tensor([t])).pooler_output for t in tokens]
        texts = network.text_projection(torch.cat(texts))
        wanted = network.logit_scale.exp() * torch.cosine_similarity(images, texts)
    assert torch.allclose(scores.float(), wanted, atol=1e-3)
    assert wanted.std() > 0.01


# measures


def cloud(rows, d, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, d)) @ rng.normal(size=(d, d)) + shift


def test_the_frechet_distance_is_that_of_scipys_matrix_root():
    a, b = cloud(60, 6, 0), cloud(80, 6, 1, 0.7)
    c_a, c_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(c_a @ c_b).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c_a + c_b - 2 * root)
    assert ri.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)
    assert ri.frechet_distance(b, a) == pytest.approx(wanted, rel=1e-9)


def with_moments(mean, variances, rows, seed):
    """Points whose sample mean and (diagonal) covariance are exactly these."""
    z = np.random.default_rng(seed).normal(size=(rows, len(mean)))
    z = np.linalg.qr(z - z.mean(0))[0] * np.sqrt(rows - 1)
    return z * np.sqrt(variances) + mean


def test_the_frechet_distance_of_gaussians_in_closed_form():
    a = with_moments(np.array([1.0, 2.0, 0.0]), np.array([4.0, 1.0, 9.0]), 50, 0)
    b = with_moments(np.array([0.0, 2.0, 2.0]), np.array([1.0, 1.0, 0.25]), 70, 1)
    # |m|^2 = 1 + 4; the differences of standard deviations are 1, 0 and 2.5
    assert ri.frechet_distance(a, b) == pytest.approx(5 + 1 + 6.25, rel=1e-12)


def test_the_frechet_distance_is_stable_where_covariances_are_singular():
    a = cloud(20, 64, 3)  # rank 19
    assert ri.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert ri.frechet_distance(a, a[::-1] + 0.5) == pytest.approx(16, rel=1e-9)
    assert ri.frechet_distance(a, 3 * a) == pytest.approx(4 * ((a.mean(0) ** 2).sum() + np.cov(a.T).trace()), rel=1e-9)
    low, wide = with_moments(np.zeros(2), np.array([1.0, 1e-12]), 30, 0), with_moments(np.zeros(2), np.ones(2), 30, 1)
    assert ri.frechet_distance(low, wide) == pytest.approx((1 - 1e-6) ** 2, rel=1e-9)


def test_precision_and_recall_of_points_with_known_answers():
    real = [[0.0], [1.0], [2.0], [10.0]]  # radii for k = 1: 1, 1, 1, 8
    fake = [[-1.0], [0.5], [3.5], [30.0], [-1.5]]  # inside, inside, inside the last ball, outside, outside
    assert ri.precision_recall(real, fake, k=1).precision == pytest.approx(3 / 5)
    # radii of the fake points 0.5, 1.5, 3, 26.5, 0.5: [-1.5,-0.5], [-1,2], [0.5,6.5], [3.5,56.5]
    assert ri.precision_recall(real, fake, k=1).recall == 1
    assert ri.precision_recall(fake, real, k=1) == (1, pytest.approx(3 / 5))
    far = [[100.0], [100.5], [101.0]]
    assert ri.precision_recall(real, far, k=1) == (0, 0)
    # with the second nearest, radii of the real points are 2, 1, 2, 9
    assert ri.precision_recall(real, [[-2.0], [-2.1], [19.0]], k=2).precision == pytest.approx(2 / 3)


def test_density_and_coverage_of_points_with_known_answers():
    real = [[0.0], [1.0], [2.0], [10.0]]  # balls for k = 1: [-1,1], [0,2], [1,3], [2,18]
    fake = [[0.5], [0.75], [2.5], [50.0]]  # in 2, 2, 2 and 0 of them
    assert ri.density_coverage(real, fake, k=1) == (pytest.approx(6 / 4), 1)
    assert ri.density_coverage(real, [[0.5], [0.6]], k=1) == (2, 0.5)
    # balls for k = 2: [-2,2], [0,2], [0,4], [1,19]
    assert ri.density_coverage(real, [[-1.0], [3.0]], k=2) == (pytest.approx(3 / 4), 0.75)
    assert ri.density_coverage(real, [[3.0]], k=1).coverage == 0.5


def test_sets_of_one_law_have_density_and_coverage_of_about_one():
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=(2, 1500, 4))
    found = ri.density_coverage(a, b)
    assert found.density == pytest.approx(1, abs=0.05)  # its mean is 1; each of 1500 rows has a spread below 1.5
    assert found.coverage == pytest.approx(1 - 0.5**5, abs=0.02)  # lemma 2 of the paper; spread below 0.005
    assert ri.precision_recall(a, a + 0.0) == (1, 1)


def test_the_vendi_score_counts_what_differs():
    assert ri.vendi_score(np.tile([[0.3, -2.0, 1.0]], (7, 1))) == pytest.approx(1)
    assert ri.vendi_score(np.diag([1.0, 5.0, 0.1, 2.0])) == pytest.approx(4)
    for q in (0, 0.5, 1, 2, math.inf):
        assert ri.vendi_score(np.eye(5), q) == pytest.approx(5)
        assert ri.vendi_score(kernel=np.eye(5), q=q) == pytest.approx(5)
        assert ri.vendi_score(kernel=np.ones((5, 5)), q=q) == pytest.approx(1)
    two = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])  # shares 3/4 and 1/4
    assert ri.vendi_score(two) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert ri.vendi_score(two, q=2) == pytest.approx(1 / (9 / 16 + 1 / 16))
    assert ri.vendi_score(two, q=0) == pytest.approx(2)
    assert ri.vendi_score(two, q=math.inf) == pytest.approx(4 / 3)
    pair = np.array([[1.0, 0.6], [0.6, 1.0]])  # eigenvalues of K/2: 0.8 and 0.2
    assert ri.vendi_score(kernel=pair) == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)))


def test_measures_of_features_that_are_not_finite_are_nan():
    good = cloud(8, 3, 0)
    bad = good.copy()
    bad[2, 1] = math.nan
    assert math.isnan(ri.frechet_distance(good, bad))
    assert math.isnan(ri.frechet_distance(good[:1], good))
    for found in (ri.precision_recall(bad, good), ri.density_coverage(good, bad)):
        assert all(math.isnan(v) for v in found)
    assert math.isnan(ri.vendi_score(bad))
    assert math.isnan(ri.vendi_score(np.zeros((2, 3))))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ri.frechet_distance(np.ones((3, 2)), np.ones((3, 4))), "2 and 4 columns"),
        (lambda: ri.frechet_distance(np.ones(3), np.ones((3, 4))), r"shape \(3,\): \(rows, D\)"),
        (lambda: ri.precision_recall(np.ones((3, 2)), np.ones((3, 2)), k=3), "k=3 with 3 rows"),
        (lambda: ri.density_coverage(np.ones((3, 2)), np.ones((3, 2)), k=0), "k=0"),
        (lambda: ri.vendi_score(), "features or kernel="),
        (lambda: ri.vendi_score(np.ones((3, 2)), q=-1), "from 0 to inf"),
        (lambda: ri.vendi_score(kernel=np.ones((3, 2))), "square matrix"),
        (lambda: ri.vendi_score(kernel=2 * np.eye(2)), "ones on its diagonal"),
        (lambda: ri.vendi_score(kernel=np.array([[1.0, 3.0], [3.0, 1.0]])), "must not be negative"),
        (lambda: ri.feature_distance(noise(2), noise(3), nn.Identity()), "pairs of images"),
    ],
)
def test_wrong_input_of_measures_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


class Layers(nn.Module):
    """Two layers of features."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3, stride=2)

    def forward(self, x):
        one = self.first(x).tanh()
        return [one, self.second(one)]


def test_the_feature_distance_is_the_sum_over_layers_of_means_over_places():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Layers().train()
    a, b = noise(3), noise(3, seed=1)
    wanted = np.zeros(3)
    for v, w in zip(network(a), network(b), strict=True):
        v, w = v.detach().numpy(), w.detach().numpy()
        v, w = v / np.linalg.norm(v, axis=1, keepdims=True), w / np.linalg.norm(w, axis=1, keepdims=True)
        wanted += ((v - w) ** 2).sum(1).mean((1, 2))
    assert ri.feature_distance(a, b, network).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    assert ri.feature_distance(a, a, network).abs().max() == 0
    assert network.training
    x = noise(2, h=6, w=6, dtype=torch.float64).requires_grad_()
    y = noise(2, h=6, w=6, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: ri.feature_distance(v, y, network.double()), (x,), atol=1e-6)


def test_features_are_those_of_the_network_in_batches_in_order(net):
    x = noise(5)
    wanted = logits_of(net, x)
    found = ri.features(x, net, batch=2)
    assert net.seen == [(False, 2), (False, 2), (False, 1)]
    assert net.training
    assert not found.requires_grad
    assert np.allclose(found.numpy(), wanted, atol=1e-6)
    x[1, 0, 0, 0] = math.nan
    with pytest.warns(RewardWarning, match="1 of 5 samples are no images"):
        mixed = ri.features([x[0], "no", x[1], noise(1, h=30)[0], x[4]], net)
    assert mixed.isnan().any(1).tolist() == [False, True, True, False, False]
    assert np.allclose(mixed[[0, 4]].numpy(), wanted[[0, 4]], atol=1e-6)
    assert ri.features(x, lambda v: v).shape == (5, 3 * 9 * 12)


def test_importing_the_rewards_of_images_loads_nothing_heavy():
    import subprocess

    heavy = "('PIL', 'open_clip', 'torchvision', 'transformers', 'torchmetrics', 'scipy')"
    code = f"import rewards.images, sys; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
