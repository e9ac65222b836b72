r"""Metrics of sets of images, and distances of pairs, in the feature space of your own network.

Features are float tensors or arrays (rows, D); metrics are computed in double precision. A metric is NaN if a feature
is; distances of covariances also if a set has fewer than two rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import evaluating
from .basic import by_size, device_of, image_batch, without_nan


def features(images: Any, network: Callable[[Tensor], Tensor], batch: int = 256) -> Tensor:
    """Features (rows, D) of images, without gradients: network(images) in evaluation mode, flattened.

    They are on the device of the images. The network is left as it was. Images that cannot be read or have a NaN pixel
    become rows of NaN.
    """
    found: dict[int, Tensor] = {}
    with evaluating(network), torch.no_grad():
        for rows, x in by_size(images, "features"):
            good, clean = without_nan(x)
            device = device_of(network, x.device)
            own = torch.cat([network(part.to(device)).flatten(1).to(x.device) for part in clean.split(batch)])
            found.update(zip(rows, torch.where(good[:, None], own, math.nan), strict=True))
    if not found:
        raise ValueError("features of no image: at least one is needed")
    lost = torch.full_like(next(iter(found.values())), math.nan)
    return torch.stack([found.get(row, lost) for row in range(len(images))])


def frechet_distance(features_a: Any, features_b: Any) -> float:
    r"""Frechet distance of two Gaussians with the means and covariances of the features.

    Heusel et al. (2017), https://arxiv.org/abs/1706.08500:

        d^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)

    With C = R^T R, R from a QR factorisation of the centred features, the last trace is the sum of the singular values
    of R_a R_b^T, so no matrix root is taken. Covariances are normalised by n - 1.

    >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])
    9.0
    """
    a, b = _two_sets(features_a, features_b)
    if min(len(a), len(b)) < 2 or not _finite(a, b):
        return math.nan
    (m_a, r_a), (m_b, r_b) = _moments(a), _moments(b)
    spread = r_a.square().sum() + r_b.square().sum() - 2 * torch.linalg.svdvals(r_a @ r_b.T).sum()
    return float((m_a - m_b).square().sum() + spread.clamp(min=0))


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


def precision_recall(real: Any, fake: Any, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., 2019), https://arxiv.org/abs/1904.06991.

    The manifold of a set is the union of closed balls around its points, each reaching to the k-th nearest other point.
    Precision is the fraction of fake points in the manifold of the real ones, recall the reverse.

    >>> precision_recall([[0.0], [1.0], [2.0]], [[0.5], [9.0], [10.0]], k=1)
    PrecisionRecall(precision=0.3333333333333333, recall=1.0)
    """
    real, fake = _two_sets(real, fake)
    _check_k(k, real, fake)
    if not _finite(real, fake):
        return PrecisionRecall(math.nan, math.nan)
    precise = _inside(real, fake, k).any(0).double().mean()
    return PrecisionRecall(float(precise), float(_inside(fake, real, k).any(0).double().mean()))


def density_coverage(real: Any, fake: Any, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al., 2020), https://arxiv.org/abs/2002.09797.

        density  = sum_j |{i: fake_j in B_i}| / (k M)        for M fake points; may exceed 1
        coverage = |{i: some fake_j in B_i}| / N             for N real ones

    with B_i the closed ball around real_i that reaches to its k-th nearest other real point.
    """
    real, fake = _two_sets(real, fake)
    _check_k(k, real)
    if not len(fake) or not _finite(real, fake):
        return DensityCoverage(math.nan, math.nan)
    inside = _inside(real, fake, k)
    return DensityCoverage(int(inside.sum()) / (k * len(fake)), float(inside.any(1).double().mean()))


def feature_distance(a: Any, b: Any, network: Callable[[Tensor], Any]) -> Tensor:
    """Distance of two images per row, (rows,): LPIPS with all weights 1, with gradients.

    Zhang et al. (2018), https://arxiv.org/abs/1801.03924:

        sum over layers  mean over places  |a / |a| - b / |b||^2,        norms over the channels

    network   images -> features (rows, C, ...), or a list of them, one per layer; runs in evaluation mode and is left
              as it was
    """
    x, y = image_batch(a), image_batch(b)
    if x.shape != y.shape:
        raise ValueError(f"feature_distance takes pairs of images, not {tuple(x.shape)} and {tuple(y.shape)}")
    device = device_of(network, x.device)
    with evaluating(network):
        layers = zip(_layers(network(x.to(device))), _layers(network(y.to(device))), strict=True)
        return torch.stack([(v - w).square().sum(1).mean(1) for v, w in layers]).sum(0).to(x.device)


def vendi_score(features: Any = None, q: float = 1.0, *, kernel: Any = None) -> float:
    """Effective number of different items: the exponential of the entropy of the eigenvalues l of K/n.

    Friedman and Dieng (2022), https://arxiv.org/abs/2210.02410; of order q, Pasarkar and Dieng (2023),
    https://arxiv.org/abs/2310.12952:

        exp(-sum l log l) for q = 1,        (sum l^q)^(1/(1 - q)),        1/max l for q = inf

    K contains the cosines of the features, or is given as `kernel`: (n, n), symmetric, positive, with ones on the
    diagonal. Between 1 (all equal) and n (all different); a small q gives rare kinds more weight.

    >>> round(vendi_score([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], q=2), 6)
    1.8
    """
    if (features is None) == (kernel is None):
        raise ValueError("vendi_score takes features or kernel=, one of them")
    if not q >= 0:
        raise ValueError(f"vendi_score(q={q}): a number from 0 to inf is needed")
    values = _kernel_values(kernel) if features is None else _cosine_values(_rows(features))
    return _hill(values, q)


def _hill(values: Tensor, q: float) -> float:
    if values.isnan().any():
        return math.nan
    l = values[values > 1e-12]
    if q == 1:
        return float((-(l * l.log()).sum()).exp())
    return float(1 / l.max() if q == math.inf else (l**q).sum() ** (1 / (1 - q)))


def _cosine_values(x: Tensor) -> Tensor:
    """Eigenvalues of K/n, with K the cosines of the rows: squares of singular values."""
    norms = x.norm(dim=1, keepdim=True)
    if not len(x) or not _finite(x) or not (norms > 0).all():
        return torch.tensor([math.nan])
    return torch.linalg.svdvals(x / norms).square() / len(x)


def _kernel_values(kernel: Any) -> Tensor:
    k = torch.as_tensor(kernel, dtype=torch.float64).detach()
    if k.dim() != 2 or k.shape[0] != k.shape[1] or not len(k):
        raise ValueError(f"vendi_score(kernel of shape {tuple(k.shape)}): a square matrix is needed")
    if not _finite(k):
        return torch.tensor([math.nan])
    if not torch.allclose(k, k.T, atol=1e-6) or not torch.allclose(k.diagonal(), torch.ones(len(k)).to(k), atol=1e-6):
        raise ValueError("vendi_score(kernel): a symmetric matrix with ones on its diagonal is needed")
    values = torch.linalg.eigvalsh(k) / len(k)
    if values.min() < -1e-6:
        raise ValueError(
            f"vendi_score(kernel): its eigenvalues must not be negative; K/n has {float(values.min()):.3g}"
        )
    return values


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean m and root R of the covariance, C = R^T R."""
    mean = x.mean(0)
    return mean, torch.linalg.qr(x - mean, mode="r").R / math.sqrt(len(x) - 1)


def _inside(centres: Tensor, points: Tensor, k: int, block: int = 1024) -> Tensor:
    """Whether point j lies in the ball around centre i: (centres, points)."""
    found = []
    for part in centres.split(block):
        radius = _distances(part, centres).kthvalue(k + 1, dim=1, keepdim=True).values  # the first is the centre itself
        found.append(_distances(part, points) <= radius)
    return torch.cat(found)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _layers(output: Any) -> list[Tensor]:
    """Features of each layer with unit norm over the channels, (rows, C, places)."""
    layers = output if isinstance(output, Sequence) else [output]
    return [F.normalize(v.reshape(*v.shape[:2], -1), dim=1, eps=1e-10) for v in layers]


def _two_sets(real: Any, fake: Any) -> tuple[Tensor, Tensor]:
    real, fake = _rows(real), _rows(fake)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"features of {real.shape[1]} and {fake.shape[1]} columns: both must be of the same network")
    return real, fake


def _check_k(k: int, *sets: Tensor) -> None:
    fewest = min(len(v) for v in sets)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < fewest:
        raise ValueError(f"k={k!r} with {fewest} rows: a whole number from 1 to rows - 1 is needed")


def _rows(x: Any) -> Tensor:
    x = torch.as_tensor(x, dtype=torch.float64).detach()
    if x.dim() != 2:
        raise ValueError(f"features of shape {tuple(x.shape)}: (rows, D) is needed")
    return x


def _finite(*tensors: Tensor) -> bool:
    return all(bool(v.isfinite().all()) for v in tensors)
