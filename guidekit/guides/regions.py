r"""A separate condition in every region of a sample: TweedieMix (Kwon and Ye, 2024), https://arxiv.org/abs/2410.05591,
the second of its two stages.

In the first stage the run's condition names all concepts. From `start` on, the clean estimates of single concepts are
combined by masks M_k, and the rest of the sample follows the run's condition:

    d <- (1 - sum_k M_k) d + sum_k M_k d_k,      each d with its guidance, n + scale (d - n).

The paper finds the masks by segmenting the clean estimate between the stages; here a function of the decoded estimates
does that. A concept may be another model, such as the paper's fine-tuned ones: At("a cat", model). Not included are the
paper's resampling of the first step, its renoising as in CFG++ (see gk.CFGpp), and its attention maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.tree import Tree
from ..engine.view import View
from ..models.base import Model
from ..models.evaluations import Cond, evaluation, listed
from ..process import Gaussian


@dataclass(frozen=True, eq=False)
class Regions(Guide):
    """Another condition in every region. One extra NFE for each condition, in one forward pass per network. For tokens
    the masks select positions, where log-probabilities are chosen (or averaged).

    conditions   one or a list, each as in gk.Compose
    masks        (conditions, *axes), where axes broadcast to a sample (for tokens: to positions), in [0, 1] and with
                 sums of at most 1; or a function of the decoded estimates at `start` that returns (rows, conditions,
                 *axes), which are then kept
    scale        that of the gk.CFG in the same list, a number or a function of t, so that all regions are guided alike
    """

    conditions: Any
    masks: Tensor | Callable[[Any], Tensor]
    scale: Scale = 1.0

    card = Card(
        "applies a separate condition in every region",
        section="Composition",
        rows="1 for each condition",
        changes="target",
        paper=Paper(
            "kwon2024tweediemix",
            "Kwon, Gihyun and Ye, Jong Chul",
            "TweedieMix: Improving Multi-Concept Fusion for Diffusion-based Image/Video Generation",
            2024,
            "2410.05591",
        ),
        example="gk.Regions(0, torch.tensor([[0.0, 1.0]]))",
    )

    @property
    def needs(self) -> tuple[Cond, ...]:
        return tuple(evaluation(c) for c in listed(self.conditions))

    def check(self, model: Model, steps: int) -> None:
        if not callable(self.masks):
            _in_range(self._spread(self.masks[None], model))

    def tilt(self, view: View) -> Tensor:
        masks = self._masks(view, view.memo)
        if not isinstance(view.model.process, Gaussian):
            masks = masks[..., None]
        own, scale = view.evals[Cond()], at(self.scale, view.t)
        return sum(scale * masks[:, k] * (view.evals[need] - own) for k, need in enumerate(self.needs))  # type: ignore

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        if memo is not None or not callable(self.masks) or view.step.last:
            return 0.0, memo
        return 0.0, self._masks(view, memo)

    def _masks(self, view: View, memo: Tree) -> Tensor:
        """(rows or 1, conditions, axes that broadcast to a sample)."""
        if not callable(self.masks):
            return self._spread(self.masks.to(view.evals[Cond()])[None], view.model)
        return view.once(("masks", id(self)), lambda: self._found(view)) if memo is None else memo

    def _found(self, view: View) -> Tensor:
        assert callable(self.masks)
        own = view.evals[Cond()].detach()
        given = self.masks(view.model.decode(view.model.process.clean(own, view.x.detach()))).to(own)
        if len(given) != len(own):
            raise ValueError(f"Regions(masks=function): it gave masks for {len(given)} of {len(own)} samples")
        return _in_range(self._spread(given, view.model))

    def _spread(self, masks: Tensor, model: Model) -> Tensor:
        """Masks (rows, conditions, *axes) with as many axes as samples have."""
        count, axes = len(self.needs), masks.shape[2:]
        whole = masks.view(*masks.shape[:2], *[1] * (len(model.shape) - len(axes)), *axes)
        if whole.dim() != len(model.shape) + 2 or masks.shape[1] != count or not _fits(whole.shape[2:], model.shape):
            raise ValueError(
                f"Regions: {masks.shape[1] if masks.dim() > 1 else 0} masks of shape {tuple(axes)}; needed is one for "
                f"each of the {count} conditions, of a shape that broadcasts to {model.shape}"
            )
        return whole


def _fits(axes: Sequence[int], shape: Sequence[int]) -> bool:
    return all(a in (1, b) for a, b in zip(axes, shape, strict=True))


def _in_range(masks: Tensor) -> Tensor:
    if float(masks.min()) < 0 or float(masks.sum(1).max()) > 1 + 1e-5:
        raise ValueError("Regions: masks lie in [0, 1] and add up to 1 at most; the rest is the run's own condition")
    return masks
