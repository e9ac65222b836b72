"""Inverse problems: inpainting and deblurring, y = A x + noise, against the exact posterior.

    python examples/inverse.py

The base model is a mixture of Gaussians in eight dimensions, so the posterior is a mixture in closed form. DPS and TFG
bend the samples towards the measurement, TFG with strengths to be tuned (`gk.tune`); PiGDM knows the operator and the
noise; TDS weighs the samples too, which makes them samples of the posterior itself.
"""

from __future__ import annotations

import argparse

import torch

import guidekit as gk

D, NOISE = 8, 0.5


def base() -> gk.analytic.GaussianMixture:
    g = torch.Generator().manual_seed(0)
    return gk.analytic.GaussianMixture([0.5, 0.3, 0.2], torch.randn(3, D, generator=g), [0.4, 0.5, 0.6])


def operators() -> dict[str, torch.Tensor]:
    blur = sum(torch.diag(torch.full((D - abs(k),), 1 / 3), k) for k in (-1, 0, 1))
    return {"inpainting": torch.eye(D)[: D // 2], "deblurring": torch.as_tensor(blur)}


def posterior_mean(model, A: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """sum_k p(k | y) E[x | y, k]."""
    total, weights = [], []
    for w, m, s in zip(model.weights, model.means, model.stds, strict=True):
        A_, C = A.double(), NOISE**2 * torch.eye(len(A), dtype=torch.float64) + s**2 * (A @ A.T).double()
        rest = y.double() - A_ @ m.double()
        total.append(m.double() + s**2 * A_.T @ torch.linalg.solve(C, rest))
        weights.append(w.log() - 0.5 * (torch.logdet(C) + rest @ torch.linalg.solve(C, rest)))
    return torch.stack(weights).softmax(0) @ torch.stack(total)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args(arguments)
    model, g = base(), torch.Generator().manual_seed(1)
    x = model.exact_sample(1, seed=3)[0].float()
    for name, A in operators().items():
        y = A @ x + NOISE * torch.randn(len(A), generator=g)
        measured = gk.Measurement(A, y, NOISE)
        exact = posterior_mean(model, A, y)
        runs = {
            "unguided": [],
            "DPS": [gk.DPS(measured, 1.0)],
            "TFG": [gk.TFG(measured, rho=0.02, mu=0.02)],
            "PiGDM": [gk.PiGDM(measured)],
            "TDS": [gk.TDS(measured, alpha=1.0, value=gk.values.Likelihood(measured))],
        }
        for method, guides in runs.items():
            result = gk.sample(model, args.n, steps=args.steps, guides=guides)
            mean = (result.weights[:, None] * result.x.double()).sum(0)
            error = (mean - exact).norm() / exact.norm()
            print(f"{name:11s} {method:9s} distance from the posterior mean {error:.3f}   ESS {result.ess.item():.0f}")


if __name__ == "__main__":
    main()
