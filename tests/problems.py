"""Small problems with known answers, one for every kind of process; all asymmetric, so that a sign or a swap shows.

A problem gives the exact answers for *the chain of the sampler itself*: E[f(x_0)] and E[f(x_0) exp(r(x_0)/alpha)] under
the unguided chain with its errors of discretisation, by enumeration for tokens and by a long independent simulation
(written out here, without the library) for mixtures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

import guidekit as gk

STEPS = 6


@dataclass(frozen=True)
class Problem:
    """A base model with a reward; `features` are the functions f whose means are compared, the first being 1."""

    name: str
    model: gk.Model
    reward: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    law: Callable[[], tuple[np.ndarray, np.ndarray]]  # states (S, ...) and their probabilities under the chain
    cond: int = 1
    alpha: float = 0.7

    def tilted(self, reward: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """E[f exp(r/alpha)] (or E[f]) under the unguided chain, and its standard error."""
        states, p = self.law()
        x = torch.as_tensor(states)
        f = self.features(x).double().numpy()
        w = np.exp(self.reward(x).double().numpy() / self.alpha)[:, None] if reward else 1.0
        mean = (p[:, None] * w * f).sum(0)
        exact = len(p) < 1000  # enumerated
        return mean, np.zeros_like(mean) if exact else np.std(w * f, axis=0) / np.sqrt(len(p))


# mixtures ----------------------------------------------------------------------------------------------------------


def chain_of_mixture(model: gk.analytic.GaussianMixture, steps: int, n: int, seed: int) -> np.ndarray:
    """Ancestral sampling with the exact denoiser of the components labelled 1, in numpy."""
    rng = np.random.default_rng(seed)
    own = model.labels.numpy() == 1
    pi = model.weights.double().numpy()[own]
    means, stds = model.means.double().numpy()[own], model.stds.double().numpy()[own]
    scale = {
        "Cosine": lambda t: (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)),
        "Flow": lambda t: (1 - t, t),
        "EDM": lambda t: (1.0, (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 * (t > 0)),
    }[type(model.schedule).__name__]
    times = 1 - np.arange(steps + 1) / steps
    d = means.shape[1]
    x = rng.standard_normal((n, d)) * scale(times[0])[1]
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = scale(t), scale(s)
        var = (a_t * stds) ** 2 + s_t**2
        square = ((x[:, None] - a_t * means) ** 2).sum(-1)
        log_rho = np.log(pi) - 0.5 * square / var - 0.5 * d * np.log(var)
        rho = np.exp(log_rho - log_rho.max(1, keepdims=True))
        rho /= rho.sum(1, keepdims=True)
        per = means + (a_t * stds**2 / var)[:, None] * (x[:, None] - a_t * means)
        clean = (rho[..., None] * per).sum(1)
        # the Gaussian posterior q(x_s | x_t, x_0 = clean)
        step = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        mean = (a_t / a_s) * s_s**2 / s_t**2 * x + a_s * step / s_t**2 * clean
        x = mean + np.sqrt(step * s_s**2 / s_t**2) * rng.standard_normal((n, d))
    return x


def mixture(name: str, d: int, schedule, n: int = 400_000) -> Problem:
    """Five components in d dimensions, three of them labelled 1."""
    generator = torch.Generator().manual_seed(d)
    means = torch.randn(5, d, generator=generator, dtype=torch.float64) * (1.3 / d**0.5)
    means[:, 0] += torch.tensor([-2.0, -0.5, 0.5, 1.4, 2.5])
    model = gk.analytic.GaussianMixture(
        torch.tensor([0.3, 0.2, 0.25, 0.15, 0.1], dtype=torch.float64),
        means,
        torch.tensor([0.5, 0.4, 0.6, 0.3, 0.5], dtype=torch.float64),
        schedule,
        labels=[1, 0, 1, 1, 0],
    )

    @lru_cache(maxsize=1)
    def law() -> tuple[np.ndarray, np.ndarray]:
        return chain_of_mixture(model, STEPS, n, seed=7), np.full(n, 1 / n)

    def features(x: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(x[:, 0]), x[:, 0], x[:, 0].tanh(), (x[:, 0] > 0.5).to(x)], 1)

    return Problem(name, model, lambda x: 0.5 * x[:, 0] - 0.2 * (x[:, -1] - 0.5) ** 2, features, law)


# tokens ------------------------------------------------------------------------------------------------------------

V, L = 3, 3


def chain_of_tokens(table: np.ndarray, uniform: bool, steps: int) -> np.ndarray:
    """The law of x_0 under the factorised sampler, by pushing the whole law over states through its kernels."""
    symbols = V if uniform else V + 1
    states = np.stack(np.meshgrid(*[np.arange(symbols)] * L, indexing="ij"), -1).reshape(-1, L)
    clean = np.stack(np.meshgrid(*[np.arange(V)] * L, indexing="ij"), -1).reshape(-1, L)
    law = np.full(len(states), 1 / len(states)) if uniform else (states == V).all(1).astype(float)
    times = 1 - np.arange(steps + 1) / steps
    for t, s in pairwise(times):
        nxt = np.zeros_like(law)
        for p_x, x in zip(law, states, strict=True):
            if p_x == 0:
                continue
            fits = np.ones(len(clean))
            for i in range(L):
                same = clean[:, i] == x[i]
                fits *= (same * (1 - t) + t / V) if uniform else (same | (x[i] == V))
            post = table * fits
            post /= post.sum()
            kernels = []
            for i in range(L):
                marginal = np.array([post[clean[:, i] == v].sum() for v in range(V)])
                k = np.zeros(symbols)
                if uniform:  # Bayes for each x_0, then the mean over x_0
                    for w in range(V):
                        for v in range(V):
                            up = (1 - t) / (1 - s) * (x[i] == v) + (1 - (1 - t) / (1 - s)) / V
                            down = (1 - s) * (v == w) + s / V
                            total = (1 - t) * (x[i] == w) + t / V
                            k[v] += marginal[w] * up * down / total
                elif x[i] == V:
                    k[:V], k[V] = (1 - s / t) * marginal, s / t
                else:
                    k[x[i]] = 1
                kernels.append(k)
            joint = kernels[0]
            for k in kernels[1:]:
                joint = np.multiply.outer(joint, k)
            nxt += p_x * joint.ravel()
        law = nxt
    keep = (states < V).all(1)
    assert abs(law[keep].sum() - 1) < 1e-9
    return law[keep]


Moved = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]


def posterior_of_tokens(table: np.ndarray, x: np.ndarray, t: float, uniform: bool) -> np.ndarray:
    """p(x_0 | x_t) over all clean sequences, for a table of p(x_0)."""
    clean = np.stack(np.meshgrid(*[np.arange(V)] * L, indexing="ij"), -1).reshape(-1, L)
    same = clean == x
    fits = (same * (1 - t) + t / V) if uniform else (same | (x == V))
    post = table * fits.prod(1)
    return post / post.sum()


def marginals_of_tokens(table: np.ndarray, x: np.ndarray, t: float, uniform: bool) -> np.ndarray:
    """p(x_0^i = v | x_t), (L, V)."""
    post = posterior_of_tokens(table, x, t, uniform).reshape((V,) * L)
    return np.stack([post.sum(tuple(j for j in range(L) if j != i)) for i in range(L)])


def chain_of_moves(uniform: bool, steps: int, moved: Moved) -> np.ndarray:
    """The law of x_0 under any chain of so many steps: moved(states, x, t, s) are the probabilities of all states after
    a move from x."""
    symbols = V if uniform else V + 1
    states = np.stack(np.meshgrid(*[np.arange(symbols)] * L, indexing="ij"), -1).reshape(-1, L)
    law = np.full(len(states), 1 / len(states)) if uniform else (states == V).all(1).astype(float)
    for t, s in pairwise(1 - np.arange(steps + 1) / steps):
        law = sum(p * moved(states, x, t, s) for p, x in zip(law, states, strict=True) if p > 0)
    assert abs(law[(states < V).all(1)].sum() - 1) < 1e-9
    return law[(states < V).all(1)]


def independently(states: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """The probabilities of states of which every position is drawn on its own, kernels (L, symbols)."""
    return np.prod([kernels[i][states[:, i]] for i in range(L)], axis=0)


def tokens(name: str, noising: str) -> Problem:
    generator = torch.Generator().manual_seed(3)
    null, own = (torch.randn((V,) * L, generator=generator, dtype=torch.float64) * 1.2 for _ in range(2))
    model = gk.analytic.TokenTable(null, noising, classes=own[None])

    @lru_cache(maxsize=1)
    def law() -> tuple[np.ndarray, np.ndarray]:
        table = own.flatten().softmax(0).numpy()
        return model.states.numpy(), chain_of_tokens(table, noising == "uniform", STEPS)

    def reward(x: Tensor) -> Tensor:
        if x.dim() == 3:  # one-hot rows, and mixtures of them
            first, second = ((x[:, i].double() * torch.arange(V, device=x.device)).sum(1) for i in (0, 1))
            return 0.5 * first + 0.3 * second * x[:, 2, 1] - 0.4 * x[:, 2, 0]
        return 0.5 * x[:, 0] + 0.3 * x[:, 1] * (x[:, 2] == 1) - 0.4 * (x[:, 2] == 0)

    def features(x: Tensor) -> Tensor:
        return torch.stack([torch.ones(len(x)), x[:, 0] == 2, x[:, 1] == x[:, 2], x[:, 2] == 1], 1).double()

    return Problem(name, model, reward, features, law, cond=0)


PROBLEMS = {
    p.name: p
    for p in (
        mixture("vp-1d", 1, gk.schedules.Cosine()),
        mixture("flow-2d", 2, gk.schedules.Flow()),
        mixture("edm-1d", 1, gk.schedules.EDM()),
        tokens("masked", "masked"),
        tokens("uniform", "uniform"),
    )
}


# attention -----------------------------------------------------------------------------------------------------------


class Attending(nn.Module):
    """A model with layers of attention beside it that add nothing to the prediction until somebody perturbs them: what
    they give is taken away again, computed by hand. `block` attends to itself, and so do `blocks`, one after the other;
    `cross` attends to four tokens of the condition."""

    def __init__(self, model: gk.Model):
        super().__init__()
        self.model, self.tokens = model, not isinstance(model.process, gk.process.Gaussian)
        states = getattr(model.process, "states", 1)
        size, out = states * int(np.prod(model.shape)), int(np.prod(model.shape)) * (V if self.tokens else 1)
        generator = torch.Generator().manual_seed(4)
        for name, shape in (("into", (size, 4 * 8)), ("back", (4 * 8, out))):
            self.register_buffer(name, torch.randn(shape, generator=generator, dtype=torch.float64).to(model.device))
        self.block = Block(generator).to(model.device)
        self.blocks = nn.ModuleList(Block(generator).to(model.device) for _ in range(2))
        self.cross = Crossing(generator).to(model.device)

    def forward(self, x: Tensor, t: Tensor, cond) -> Tensor:
        out = self.model(x, float(t[0]), cond)
        h = nn.functional.one_hot(x, self.model.process.states) if self.tokens else x
        h = (h.double().flatten(1) @ self.into).tanh().unflatten(1, (4, 8))
        more = self.block(h) - self.block.by_hand(h) + self.deeper(h, cond)
        return out + 0.1 * (more.flatten(1) @ self.back).view_as(out)

    def deeper(self, h: Tensor, cond) -> Tensor:
        """What the other layers give, less the same by hand."""
        pitch = 2 + cond.double().view(len(h), -1).sum(1, keepdim=True)
        text = (torch.arange(32.0, dtype=torch.float64, device=h.device) * pitch).sin()
        text, hand = text.unflatten(1, (4, 8)), h
        for block in self.blocks:
            h, hand = block(h), block.by_hand(hand)
        return self.cross(h, text) - self.cross.by_hand(hand, text)


class Block(nn.Module):
    """Self-attention of four tokens with two heads."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.register_buffer("qkv", torch.randn(8, 24, generator=generator, dtype=torch.float64))

    def forward(self, h: Tensor) -> Tensor:
        return h + nn.functional.scaled_dot_product_attention(*self.heads(h)).transpose(1, 2).flatten(2)

    def by_hand(self, h: Tensor) -> Tensor:
        q, k, v = self.heads(h)
        return h + ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def heads(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(v.unflatten(2, (2, 4)).transpose(1, 2) for v in (h @ self.qkv).chunk(3, -1))


class Crossing(Block):
    """Cross-attention of four tokens to others, with two heads."""

    is_cross_attention = True

    def forward(self, h: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        (q, *_), (_, k, v) = self.heads(h), self.heads(context)
        return h + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def by_hand(self, h: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        (q, *_), (_, k, v) = self.heads(h), self.heads(context)
        return h + ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)


class Embedded(nn.Module):
    """A model whose condition is a vector c: its prediction at the problem's condition for c = (1, .), without one for
    c = (0, .), and a line through both."""

    def __init__(self, model: gk.Model, own):
        super().__init__()
        self.model, self.conds = model, (model.encode(own), model.encode(None))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        own, null = (c.expand(len(x), *c.shape) for c in self.conds)
        share = cond[:, 0].view(-1, *[1] * (len(self.model.shape) + (not x.is_floating_point())))
        given = self.model(x, float(t[0]), null)
        return given + share * (self.model(x, float(t[0]), own) - given)


@lru_cache
def on(name: str, device: torch.device) -> gk.Model:
    """The model of a problem, on this device."""
    model = PROBLEMS[name].model
    if model.device == device:
        return model
    if isinstance(model, gk.analytic.TokenTable):
        table = model.table.view(-1, *[model.vocab_size] * model.length).to(device)
        noising = "masked" if isinstance(model.process, gk.process.Masked) else "uniform"
        return gk.analytic.TokenTable(table[0], noising, classes=table[1:])
    parts = (v.to(device) for v in (model.weights, model.means, model.stds))
    return gk.analytic.GaussianMixture(*parts, model.schedule, labels=model.labels)


def embedding(problem: Problem) -> Problem:
    """The same problem, with conditions that encode to real numbers."""
    base = problem.model
    code = torch.tensor([[0.0, 0.4], [1.0, -0.3]], dtype=torch.float64, device=base.device)
    options = {"encode_cond": lambda c: code[1], "null": code[0]}
    return replace(problem, model=wrapped(base, Embedded(base, problem.cond), **options))


def attending(problem: Problem) -> Problem:
    """The same problem, whose network has layers of attention: `block`, `blocks.0`, `blocks.1` and `cross`."""
    base = problem.model
    return replace(problem, model=wrapped(base, Attending(base), encode_cond=base.encode, null=base.null))


def wrapped(base: gk.Model, net: nn.Module, **options) -> gk.Model:
    """A network of clean means or log-probabilities as a model of the same kind."""
    options |= {"dtype": torch.float64, "device": base.device}
    if isinstance(base.process, gk.process.Gaussian):
        return gk.GaussianModel(net, base.shape, base.process.schedule, "clean", **options)
    kind = gk.MaskedModel if isinstance(base.process, gk.process.Masked) else gk.UniformModel
    return kind(net, V, L, **options)


def populations(problem: Problem, groups: int, n: int, guides, *, first: int = 0, **options) -> gk.Result:
    """Independent runs of n particles, side by side as groups with seeds of their own."""
    seeds = list(range(first, first + groups))
    options = {"steps": STEPS, "cond": [problem.cond] * groups, "seed": seeds} | options
    return gk.sample(problem.model, n, guides=guides, **options)


def estimates(problem: Problem, result: gk.Result) -> np.ndarray:
    """The unbiased estimate of E[f exp(r/alpha)] of every group, (groups, features): the mean of w f."""
    f = problem.features(result.x).double()
    w = result.log_weights.exp()[:, None]
    return (w * f).view(result.groups, -1, f.shape[1]).mean(1).numpy()


def deviations(found: np.ndarray, truth: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(mean - truth) in standard errors, both sides' taken together."""
    se = np.sqrt(found.var(0, ddof=1) / len(found) + error**2)
    return (found.mean(0) - truth) / np.maximum(se, 1e-12)
