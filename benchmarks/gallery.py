"""What every guide does to a mixture in two dimensions: one picture, one panel each.

    python benchmarks/gallery.py --out docs/guides.png

Grey lines are the distribution of the model at its condition, dots the samples, the darker the larger their weight.
Which guides are drawn, with which arguments and on which model, is said by the cards of their classes (`example`,
`picture`): most on the exact denoiser of the mixture, those that perturb or compare networks on a small transformer
that is trained here, in about a minute, and those of tokens on the mixture over a grid.
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
GRID = 24  # tokens per coordinate, from -3.5 to 3.5


def reward(x: Tensor) -> Tensor:
    """High near a point between the modes."""
    return -0.5 * (x - torch.tensor([1.5, 1.4])).square().sum(1)


def component(x: Tensor, t: Tensor) -> Tensor:
    """log p(component | x_t), exact."""
    return BASE.responsibilities(x, float(t[0])).clamp(min=1e-30).log()


def label(x: Tensor, t: Tensor) -> Tensor:
    """log p(label | x_t), exact."""
    return (BASE.responsibilities(x, float(t[0])) @ nn.functional.one_hot(LABELS).float()).clamp(min=1e-30).log()


def right(x: Tensor, t: Tensor | None = None) -> Tensor:
    """log p(on the right | tokens), for tokens or one-hot states; masks carry no information."""
    hot = x if x.is_floating_point() else nn.functional.one_hot(x, GRID + 1).float()
    places = torch.cat([torch.linspace(-4, 4, GRID), torch.zeros(1)]).to(hot)
    return nn.functional.logsigmoid(2 * (hot[:, 0] @ places[: hot.shape[-1]]))


class Transformer(nn.Module):
    """Clean means of points: eight tokens of features, two blocks of attention."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.into, self.label, self.out = nn.Linear(4, 8 * width), nn.Embedding(3, width), nn.Linear(8 * width, 2)
        layer = {"d_model": width, "nhead": 4, "dim_feedforward": 2 * width, "dropout": 0.0, "batch_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(**layer) for _ in range(3))
        self.cross = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        angle = t[:, None] * torch.pi / 2
        h, told = (
            self.into(torch.cat([x, angle.cos(), angle.sin()], 1)).unflatten(1, (8, -1)),
            self.label(cond)[:, None],
        )
        h = h + told + self.cross(h, told, told, need_weights=False)[0]
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
    """The exact denoiser with vectors as conditions, which interpolate between no condition and label 1."""

    def net(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        own, null = (BASE(x, float(t[0]), torch.full((len(x),), c)) for c in (1, -1))
        return null + cond[:, :1] * (own - null)

    return gk.GaussianModel(
        net, (2,), gk.schedules.Cosine(), "clean", encode_cond=lambda c: torch.ones(2), null=[0.0, 0.0]
    )


def quantile(x: Tensor, t: Tensor) -> Tensor:
    """log p(common or rare | x_t): the smallest component is the rare one."""
    every = component(x, t)
    return torch.stack([every[:, :4].logsumexp(1), every[:, 4]], 1)


def models(train: int) -> dict[str, gk.Model]:
    """The models that guides are drawn on, by the names that their cards say."""
    return {
        "mixture": BASE,
        "trained": trained(train),
        "weak": trained(max(1, train // 6), 32, seed=1),
        "tokens": grid_model(),
        "embedded conditions": vector_conditions(),
    }


def panels(train: int) -> dict[str, tuple[gk.Model, list[gk.Guide]]]:
    """A model and a list of guides for every guide of the catalogue: the example of its card."""
    found = models(train)
    names = {
        "gk": gk, "torch": torch, "reward": reward, "component": component, "label": label, "right": right,
        "quantile": quantile, "point": torch.tensor([1.2, 1.2]), "other": OTHER, **found,
        "measured": gk.Measurement(torch.tensor([[1.0, 0.4]]), torch.tensor([1.5]), 0.2),
        "seen": gk.Measurement(lambda e: e[..., 0] @ torch.tensor([[1.0], [0.4]]), torch.tensor([1.5]), 0.2),
        "places": torch.linspace(-3.5, 3.5, GRID)[:, None],
        "exact": gk.Measurement(gk.measurements.Mask([True, False]), torch.tensor([1.2, 0.0]), 0.0),
    }  # fmt: skip
    plain = {"none" if name == "mixture" else f"none ({name})": (found[name], []) for name in list(found)[:4]}
    drawn = {}
    for name, card in GUIDES.items():
        guides = eval(card.example, names)
        drawn[name] = found[card.picture], list(guides) if isinstance(guides, tuple) else [guides]
    return plain | drawn


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
