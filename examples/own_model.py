"""Your own model: any network with its schedule. Here a small one is trained on two moons, then steered.

    python examples/own_model.py

What guidekit needs to know: the shape, the schedule, what the network predicts, and the label that means "none".
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import nn

import guidekit as gk


def moons(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    angle, label = math.pi * torch.rand(n, generator=generator), torch.randint(2, (n,), generator=generator)
    x = torch.stack([angle.cos() + label - 0.5, (1 - 2 * label) * angle.sin() + 0.25 * (2 * label - 1)], 1)
    return x + 0.05 * torch.randn(n, 2, generator=generator), label


class Net(nn.Module):
    """The velocity of a straight flow between data and noise."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.label = nn.Embedding(3, 8)
        self.layers = nn.Sequential(
            nn.Linear(2 + 2 + 8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        time = torch.stack([t, (math.pi * t).cos()], 1)
        return self.layers(torch.cat([x, time, self.label(cond)], 1))


def trained(steps: int) -> Net:
    torch.manual_seed(0)
    net, generator = Net(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        x, label = moons(512, generator)
        label = label.masked_fill(torch.rand(512, generator=generator) < 0.2, 2)
        t, noise = torch.rand(512, generator=generator), torch.randn(512, 2, generator=generator)
        x_t = (1 - t[:, None]) * x + t[:, None] * noise
        loss = (net(x_t, t, label) - (noise - x)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-steps", type=int, default=2000)
    parser.add_argument("--n", type=int, default=1000)
    args = parser.parse_args(arguments)
    model = gk.GaussianModel(trained(args.train_steps), (2,), gk.schedules.Flow(), predicts="flow", null=2)
    reward = lambda x: x[:, 0]  # noqa: E731
    for name, guides in (("unguided", []), ("CFG", [gk.CFG(2.0)]), ("steered", [gk.FKSteering(reward, 0.3)])):
        result = gk.sample(model, args.n, steps=50, guides=guides, cond=[0, 1])
        means = [(result.weights * reward(result.x))[result.group == g].sum() for g in (0, 1)]
        print(f"{name:10s} mean x of the two moons {means[0]:.2f} {means[1]:.2f}   log Z {result.log_z.tolist()}")


if __name__ == "__main__":
    main()
