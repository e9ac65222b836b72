"""Steer a lopsided mixture of four Gaussians in the plane, and compare with what is known in closed form.

The reward is r(x) = -|x - centre|^2 / 2 and the target p(x) exp(r(x)/alpha) / Z is again a mixture, so that mean reward
and log Z have exact values. Best-of-4 spends the same network rows on a quarter of the samples; its law is another one.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

import guidekit as gk

CENTRE, ALPHA = torch.tensor([1.5, 1.0]), 1.0
MEANS = [[-2.0, -1.0], [0.0, 2.0], [2.5, 0.5], [0.5, -2.0]]
BASE = gk.analytic.GaussianMixture([0.45, 0.3, 0.15, 0.1], MEANS, [0.6, 0.5, 0.4, 0.5])
TILT = {"quadratic": (CENTRE, 1.0), "alpha": ALPHA}
TARGET, LOG_Z = BASE.tilted(**TILT), BASE.log_z(**TILT)
COLUMNS = "method mean_reward exact_mean log_z exact_log_z ess network_rows reward_calls seconds".split()  # noqa: SIM905


def reward(x):
    return -(x - CENTRE).square().sum(-1) / 2


def exact_mean(law):
    return float(law.weights @ (reward(law.means) - law.stds**2))  # E|x - c|^2 = |m_k - c|^2 + 2 s_k^2 in component k


def line(method, result, *values):
    """A line of the table; what a method does not have stays empty."""
    values = (*values, result.cost.network_rows, result.cost.reward_calls, round(result.cost.seconds, 2))
    return [method, *("" if v is None else str(v) if isinstance(v, int) else f"{float(v):.4g}" for v in values)]


def picture(plain, steered, path):
    """Samples with the exact densities, and what happened to the population."""
    axes = (figure := Figure(figsize=(12.5, 4), layout="constrained")).subplots(1, 3)
    x = torch.linspace(-4.2, 4.2, 200)
    shown = ((plain, BASE, "unguided", "0.4"), (steered.resample(), TARGET, "steered", "tab:blue"))
    for axis, (result, law, title, colour) in zip(axes, shown, strict=False):
        axis.scatter(*result.x.T, s=5, alpha=0.4, color=colour, linewidths=0, label="samples")
        density = law.log_prob(torch.cartesian_prod(x, x)).exp().view(200, 200).T
        axis.contour(x, x, density, levels=6, colors="k", linewidths=0.8)
        axis.plot(*CENTRE, "*", color="tab:red", markeredgecolor="w", markersize=12, label="highest reward")
        axis.set(title=f"{title}; lines: exact density", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
        axis.legend(loc="upper left", fontsize=8)
    for name, label in (("ess", "effective sample size"), ("distinct", "distinct ancestors")):
        axes[2].plot(range(1, len(steered.trace) + 1), steered.trace[name] / len(steered), label=label)
    axes[2].set(title="population, steered", xlabel="step", ylabel="share of particles", ylim=(0, 1.05))
    axes[2].legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=150)


def main(args=None):
    parser = argparse.ArgumentParser(description="FK steering of an analytic mixture")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--n", type=int, default=2000, help="particles, a multiple of 4")
    parser.add_argument("--steps", type=int, default=100)
    out, n, steps = vars(parser.parse_args(args)).values()
    steering = gk.FKSteering(reward, ALPHA, start=0.5)  # earlier, the clean estimate says little of where a path ends
    run = partial(gk.sample, BASE, n, steps=steps, reward=reward, progress=True)
    plain, steered = run(), run(guides=[steering])
    steered.save(out / "steered")
    r, r_steered = reward(plain.x), steered.weights @ reward(steered.x).double()
    rows = [
        line("unguided", plain, r.mean(), exact_mean(BASE), None, None, plain.ess),
        line("best of 4", plain, r.view(-1, 4).amax(1).mean(), None, None, None, None),
        line("steered", steered, r_steered, exact_mean(TARGET), steered.log_z, LOG_Z, steered.ess),
    ]
    (out / "table.csv").write_text("\n".join(",".join(row) for row in [COLUMNS, *rows]) + "\n")
    print((out / "table.csv").read_text().replace(",", "\t").expandtabs(14))
    picture(plain, steered, out / "mixture.png")


if __name__ == "__main__":
    main()
