"""What every guide does to a mixture in two dimensions: one picture, one panel each.

    python benchmarks/gallery.py --out docs/guides.png

Grey lines are the law of the model at the condition, dots the samples (as dark as they weigh). Guides of attention, of
weaker and of stronger models act on a small transformer that is trained here, in about a minute; guides of tokens on
the same mixture over a grid; the others on its exact denoiser.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import guidekit as gk
from guidekit.guides.catalog import GUIDES

MEANS = [[-2.0, 0.0], [-0.6, 1.6], [0.8, -1.4], [1.8, 0.6], [2.6, 2.2]]
STDS = [0.35, 0.45, 0.4, 0.3, 0.25]
LABELS = torch.tensor([1, 0, 1, 1, 0])
BASE = gk.analytic.GaussianMixture([0.3, 0.2, 0.25, 0.2, 0.05], MEANS, STDS, labels=LABELS)
OTHER = gk.analytic.GaussianMixture([0.5, 0.5], [[-1.5, 1.0], [1.5, 0.5]], [0.7, 0.7])
GRID = 24  # tokens of a coordinate, from -3.5 to 3.5
ALPHA = 0.5


def reward(x: Tensor) -> Tensor:
    """Near a place between the modes."""
    return -0.5 * (x - torch.tensor([1.5, 1.4])).square().sum(1)


def component(x: Tensor, t: Tensor) -> Tensor:
    """log p(component | x_t), exact."""
    return BASE.responsibilities(x, float(t[0])).clamp(min=1e-30).log()


def label(x: Tensor, t: Tensor) -> Tensor:
    """log p(label | x_t), exact."""
    return (BASE.responsibilities(x, float(t[0])) @ nn.functional.one_hot(LABELS).float()).clamp(min=1e-30).log()


def right(x: Tensor, t: Tensor) -> Tensor:
    """log p(on the right | tokens), of tokens or one-hot states; the mask says nothing."""
    hot = x if x.is_floating_point() else nn.functional.one_hot(x, GRID + 1).float()
    places = torch.cat([torch.linspace(-4, 4, GRID), torch.zeros(1)]).to(hot)
    return nn.functional.logsigmoid(2 * (hot[:, 0] @ places))


class Transformer(nn.Module):
    """Clean means of points: eight tokens of features, two blocks of attention."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.into, self.label, self.out = nn.Linear(4, 8 * width), nn.Embedding(3, width), nn.Linear(8 * width, 2)
        layer = {"d_model": width, "nhead": 4, "dim_feedforward": 2 * width, "dropout": 0.0, "batch_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(**layer) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        angle = t[:, None] * torch.pi / 2
        h = self.into(torch.cat([x, angle.cos(), angle.sin()], 1)).unflatten(1, (8, -1)) + self.label(cond)[:, None]
        for block in self.blocks:
            h = block(h)
        return self.out(h.flatten(1))


def trained(steps: int, width: int = 64, seed: int = 0) -> gk.GaussianModel:
    """The transformer as a model, after so many steps of training on the mixture; label 2 is no condition."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Transformer(width)
        optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
        means, stds = torch.tensor(MEANS), torch.tensor(STDS)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
            k = torch.multinomial(BASE.weights, 512, replacement=True)
            clean = means[k] + stds[k, None] * torch.randn(512, 2)
            cond = torch.where(torch.rand(512) < 0.2, 2, LABELS[k])
            t = torch.rand(512)
            angle = t[:, None] * torch.pi / 2
            noisy = angle.cos() * clean + angle.sin() * torch.randn(512, 2)
            loss = (net(noisy, t, cond) - clean).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return gk.GaussianModel(net, (2,), gk.schedules.Cosine(), "clean", null=2)


def grid_model() -> gk.analytic.TokenTable:
    """The mixture over a grid, as two tokens."""
    at = torch.linspace(-3.5, 3.5, GRID)
    points = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).view(-1, 2)
    own = gk.analytic.GaussianMixture([0.4, 0.33, 0.27], [MEANS[0], MEANS[2], MEANS[3]], [STDS[0], STDS[2], STDS[3]])
    laws = [m.log_prob(points).view(GRID, GRID) for m in (BASE, own)]
    return gk.analytic.TokenTable(laws[0], classes=torch.stack([laws[0], laws[1]]))


def vector_conditions() -> gk.GaussianModel:
    """The exact denoiser with conditions that are vectors, between no condition and label 1."""

    def net(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        own, null = (BASE(x, float(t[0]), torch.full((len(x),), c)) for c in (1, -1))
        return null + cond[:, :1] * (own - null)

    return gk.GaussianModel(
        net, (2,), gk.schedules.Cosine(), "clean", encode_cond=lambda c: torch.ones(2), null=[0.0, 0.0]
    )


def panels(train: int) -> dict[str, tuple[gk.Model, list[gk.Guide]]]:
    """A model and a list of guides for every guide of the catalogue."""
    net, weak, tokens = trained(train), trained(max(1, train // 6), 32, seed=1), grid_model()
    quantile = lambda x, t: torch.stack([component(x, t)[:, :4].logsumexp(1), component(x, t)[:, 4]], 1)  # noqa: E731
    fk = lambda **options: gk.FKSteering(reward, ALPHA, **options)  # noqa: E731
    point = torch.tensor([1.2, 1.2])
    exact: dict[str, list[gk.Guide]] = {
        "SVDD": [gk.SVDD(reward, ALPHA, 4)],
        "FKSteering": [fk()],
        "TDS": [gk.TDS(reward, ALPHA)],
        "DAS": [gk.DAS(reward, ALPHA)],
        "FKC": [gk.FKC.cfg(2.0)],
        "BeamSearch": [gk.BeamSearch(reward, 64, 2)],
        "DSearch": [gk.DSearch(reward, (128, 32), 2)],
        "BestOfN": [gk.BestOfN(reward, 4)],
        "Resample": [fk(ess=0.0), gk.Resample()],
        "DDCM": [gk.DDCM(64, target=point)],
        "StartFrom": [gk.StartFrom(point)],
        "CFG": [gk.CFG(2.5)],
        "APG": [gk.APG(2.5)],
        "CFGZero": [gk.CFGZero(2.5)],
        "TCFG": [gk.TCFG(2.5)],
        "MagnitudeAware": [gk.MagnitudeAware(2.5)],
        "CFGpp": [gk.CFGpp(0.8)],
        "MinorityGuidance": [gk.MinorityGuidance(quantile, 1.0)],
        "SelfGuidedMinority": [gk.SelfGuidedMinority(1.5, interval=1)],
        "BoostAndSkip": [gk.BoostAndSkip(2.5, 6)],
        "TFG": [gk.TFG(reward, 0.05, 0.02, 0.3, recur=2)],
        "DPS": [gk.DPS(reward, 1 / ALPHA)],
        "LGD": [gk.LGD(reward, 1 / ALPHA)],
        "MPGD": [gk.MPGD(reward, 0.05)],
        "FreeDoM": [gk.FreeDoM(reward, 1 / ALPHA)],
        "UGD": [gk.UGD(reward, 0.05, 0.02, recur=2)],
        "ClassifierGuidance": [gk.ClassifierGuidance(component, 1.0, 3)],
        "GFCG": [gk.GFCG(label, 2.0, 1, [0, 1])],
        "AdvDiff": [gk.AdvDiff(component, 1.0, 1)],
        "Compose": [gk.Compose(OTHER, 1.0)],
        "Mixture": [gk.Mixture(OTHER)],
        "Views": [gk.Views(gk.views.Negate())],
        "Switch": [gk.Switch(0, 0.5)],
        "MagicMix": [gk.MagicMix(point, 0.5, stop=0.7)],
        "Regions": [gk.Regions(0, torch.tensor([[0.0, 1.0]]))],
        "Hallucination": [gk.Hallucination(5, alpha=0.02)],
    }
    learned: dict[str, list[gk.Guide]] = {
        "PAG": [gk.PAG(0.4, "blocks.1")],
        "SEG": [gk.SEG(0.4, "blocks.1")],
        "SLG": [gk.SLG(0.4, "blocks.1")],
        "AutoGuidance": [gk.AutoGuidance(weak, 1.5)],
        "HiGS": [gk.HiGS(1.75)],
    }
    rest: dict[str, tuple[gk.Model, list[gk.Guide]]] = {
        "CADS": (vector_conditions(), [gk.CADS(), gk.CFG(1.5)]),
        "Distillation": (weak, [gk.Distillation(net, 0.9, stop=1.0)]),
        "DCBG": (tokens, [gk.DCBG(right, 2.0)]),
        "TAG": (tokens, [gk.TAG(right, 2.0)]),
    }
    every = {k: (BASE, g) for k, g in exact.items()} | {k: (net, g) for k, g in learned.items()} | rest
    plain = {"none": (BASE, []), "none (trained)": (net, []), "none (weak)": (weak, []), "none (tokens)": (tokens, [])}
    return plain | {name: every[name] for name in GUIDES}


def spread(tokens: Tensor) -> Tensor:
    """Points of the grid, anywhere in their cells."""
    inside = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return (tokens + inside) * 7 / (GRID - 1) - 3.5


def drawn(axis: Axes, name: str, model: gk.Model, guides: list[gk.Guide], n: int, steps: int) -> None:
    """One panel."""
    times = [0.5 * (1 - i / steps) for i in range(steps)] + [0.0] if name == "StartFrom" else steps
    result = gk.sample(model, n, steps=times, guides=guides, cond=1)
    x = result.x if result.x.is_floating_point() else spread(result.x)
    weight = (result.weights * n).clamp(max=1.0).numpy()
    line = np.linspace(-4, 4, 80)
    at = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    own = gk.analytic.GaussianMixture([0.4, 0.33, 0.27], [MEANS[0], MEANS[2], MEANS[3]], [STDS[0], STDS[2], STDS[3]])
    density = own.log_prob(torch.tensor(at, dtype=torch.float32)).exp().view(80, 80)
    axis.contour(line, line, density, levels=4, colors="0.7", linewidths=0.6)
    axis.scatter(*x.numpy().T, s=3, c=[(0.12, 0.47, 0.71, a) for a in np.clip(weight, 0.02, 1) * 0.6], linewidths=0)
    axis.set(title=name, xlim=(-4, 4), ylim=(-4, 4), xticks=[], yticks=[])
    axis.title.set_fontsize(8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("guides.png"))
    parser.add_argument("--n", type=int, default=600, help="samples of each panel")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--train", type=int, default=3000, help="steps of training of the transformer")
    args = parser.parse_args()
    every = panels(args.train)
    columns = 7
    rows = -(-len(every) // columns)
    axes = (figure := Figure(figsize=(1.5 * columns, 1.65 * rows), layout="constrained")).subplots(rows, columns)
    for axis in axes.flat[len(every) :]:
        axis.set_axis_off()
    for axis, (name, (model, guides)) in zip(axes.flat, every.items(), strict=False):
        drawn(axis, name, model, guides, args.n, args.steps)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)
    print(f"{len(every)} panels in {args.out}")


if __name__ == "__main__":
    main()
