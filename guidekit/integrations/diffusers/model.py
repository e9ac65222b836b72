"""A diffusers pipeline as a base model, equal to the pipeline to the last bit where nothing but CFG guides it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.describe import describe
from ...models.base import Condition, Encoded, Mixed, Model
from .decoding import Decoder
from .families import Family, Plain
from .grids import Grids
from .process import Scheduled, Scheduler

_AWAY = "negative."  # of the entries of a condition that belong to its negative prompt


class DiffusersModel(Model):
    """What `from_diffusers` returns. A condition is encoded with its negative prompt, so that each row has its own."""

    process: Scheduled

    def __init__(
        self, family: Family, grids: Grids, pipe: Any, decode: Any, negative: Any, encoding: dict[str, Any], null: Any
    ):
        self.pipe, self.family, self.negative, self.encoding = pipe, family, negative, encoding
        device = getattr(pipe, "_execution_device", None)
        process = Scheduled(grids.table, grids=grids)
        super().__init__(family, process, family.shape, decode, device=device)
        self.net_dtype = getattr(family.net, "dtype", None) or self.net_dtype  # that of most, where some are kept finer
        grids.out = family.out or self.net_dtype or torch.float32
        grids.dtype = family.states or self.net_dtype or torch.float32
        self.solver, self._null = Scheduler(grids.name, grids.noisy, grids.spreads), null

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        return self.predicted(x, t, cond)[0]

    def predicted(self, x: Tensor, t: float, cond: Encoded) -> tuple[Tensor, Tensor | None]:
        seen, timestep = self.process.grids.seen(x, t)
        if not self.process.grids.spreads:
            return self.process.clean_of(self._forward(seen, timestep, cond, self.shape), x, t), None
        channels, *rest = self.shape
        out, spread = self._forward(seen, timestep, cond, (2 * channels, *rest)).chunk(2, 1)
        return self.process.clean_of(out, x, t), spread

    def mixed(self, x: Tensor, times: Mixed, cond: Encoded) -> Tensor:
        parts = list(times.parts())
        seen, steps = zip(*(self.process.grids.seen(x[rows], t) for t, rows in parts), strict=True)
        told = Mixed(tuple((step, len(own)) for step, own in zip(steps, seen, strict=True)))
        out = self._forward(torch.cat(seen), told, cond, self.shape)
        return torch.cat([self.process.clean_of(out[rows], x[rows], t) for t, rows in parts])

    def guided(self, x: Tensor, t: float, cond: Tensor, null: Tensor, scale: float | Tensor) -> Tensor:
        """The tilt of classifier-free guidance by the pipeline's formula of its network's outputs."""
        if isinstance(scale, float) and scale == 1:
            return super().guided(x, t, cond, null, scale)
        c, u = (self.process.output(d, x, t).to(self.process.grids.out) for d in (cond, null))
        return self.process.clean_of(self.family.guided(c, u, scale), x, t) - cond

    def noise(self, n: int, generator: Any = None, steps: int = 50, groups: int = 1) -> Tensor:
        """The noise of a whole run as the pipeline would draw it from this generator, for `gk.sample(noise=...)`.

        (groups*n, *shape) where the scheduler draws none on the way, else (moves + 1, groups*n, *shape).
        """
        from diffusers.utils.torch_utils import randn_tensor

        grids, rows = self.process.grids, groups * n
        draws = [p.draws for p in grids.stepper(steps).points]
        first = randn_tensor((rows, *self.family.drawn), generator, self.device, grids.dtype)
        chain = [self.family.pack(first).to(self.dtype)]
        for dtype in draws if any(draws) else ():
            kind = grids.dtype if dtype == torch.float64 else dtype  # float64 is what the grid was found with
            none = torch.zeros(rows, *self.shape, device=self.device)
            chain.append((none if dtype is None else randn_tensor(none.shape, generator, self.device, kind)).to(first))
        return torch.stack([c.to(self.dtype) for c in chain]) if len(chain) > 1 else chain[0]

    def level(self, strength: float, steps: int) -> float:
        """The time at which a pipeline of image to image begins:

        gk.sample(base, 4, steps=30, cond="a cat", guides=[gk.CFG(7.5), gk.StartFrom(picture, base.level(0.6, 30))])
        """
        if not 0 < strength <= 1 or (left := self.family.skipped(strength, steps)) >= steps:
            raise ValueError(f"strength={strength}: a share of {steps} steps, in (0, 1], of which one at least is left")
        grids = self.process.grids
        return grids.times(steps)[left * getattr(grids.scheduler, "order", 1)]

    def decoder(self, vae: Any, most: int | None = None) -> Decoder:
        """States -> pictures by another VAE of the same latents, like AutoencoderTiny; `most` at a time."""
        return Decoder(vae, self.family, self.process.grids.dtype, most)

    # conditions --------------------------------------------------------------------------------------------------

    @property
    def null(self) -> Encoded:  # type: ignore[override]
        """That of a denoiser alone; of a pipeline {}, as each condition brings its negative prompt along."""
        return {} if self.pipe is not None and not isinstance(self.family, Plain) else self._null

    @null.setter
    def null(self, value: Encoded) -> None:
        self._null = value

    def nulled(self, cond: Encoded) -> Encoded:
        """Every row at its own negative prompt."""
        away = {k: v for k, v in cond.items() if k.startswith(_AWAY)} if isinstance(cond, dict) else {}
        return {k.removeprefix(_AWAY): v for k, v in away.items()} | away or super().nulled(cond)

    def encode(self, cond: Condition) -> Encoded:
        encoded = self.encode_all([cond])
        return None if encoded is None else {k: v[0] for k, v in encoded.items()}

    def encode_all(self, conds: Sequence[Condition]) -> Encoded:
        """The prompts of all groups in one call of the text encoders, as pipelines do."""
        if self.pipe is None or isinstance(self.family, Plain):
            return self._given(conds)
        wanted = [self._wanted(c, n) for c, n in zip(conds, self._negatives(len(conds)), strict=True)]
        self._loaded(wanted)
        with torch.no_grad():
            if any(extra for *_, extra in wanted):
                parts = [self._encoded([prompt], [away], extra) for prompt, away, extra in wanted]
                return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
            return self._encoded([prompt for prompt, *_ in wanted], [away for _, away, _ in wanted], {})

    def _negatives(self, groups: int) -> list[Any]:
        if not isinstance(self.negative, list):
            return [self.negative] * groups
        if len(self.negative) != groups:
            raise ValueError(
                f"negative_prompt has {len(self.negative)} entries and cond {groups}; one for each is needed"
            )
        return self.negative

    def _wanted(self, cond: Condition, away: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Prompt, negative prompt and what else encode_prompt is to be told."""
        if isinstance(cond, dict):
            extra = {k: v for k, v in cond.items() if k not in ("prompt", "negative_prompt")}
            ready = "prompt_embeds" in extra
            if not ready and not isinstance(cond.get("prompt"), str):
                raise TypeError(
                    f"cond={{{', '.join(map(repr, cond))}}}: a condition has 'prompt', a text, or 'prompt_embeds'"
                )
            away = cond.get("negative_prompt", None if ready else away)
            return (None if ready else cond["prompt"]), away, extra
        if cond is None and not self.family.labels:
            return away or "", away, {}
        kind = (int, str) if self.family.labels else (str,)
        if not (cond is None or isinstance(cond, kind)):
            what = "a label" if self.family.labels else "a prompt"
            raise TypeError(f"cond={cond!r}: {what} is needed for each group, or a dict of arguments of encode_prompt")
        return cond, away, {}

    def _loaded(self, wanted: list[tuple]) -> None:
        """The text encoders are there if there is something to encode."""
        encoders = [n for n in ("text_encoder", "text_encoder_2", "text_encoder_3") if hasattr(self.pipe, n)]
        if encoders and all(getattr(self.pipe, n) is None for n in encoders):
            for _, _, extra in wanted:
                if not {"prompt_embeds", "negative_prompt_embeds"} <= extra.keys():
                    raise ValueError(
                        f"the pipeline's {encoders[0]} is not loaded, so prompts cannot be encoded: load it, or give "
                        "cond={'prompt_embeds': ..., 'negative_prompt_embeds': ...}"
                    )

    def _encoded(self, prompts: list, negatives: list, extra: dict[str, Any]) -> dict[str, Tensor]:
        ready = "prompt_embeds" in extra
        given = None if ready and prompts == [None] else prompts
        options = self.encoding | extra
        if not self.family.pictures and any(k.startswith("ip_adapter_image") for k in options):
            raise ValueError(
                f"ip_adapter_image: {type(self.family.net).__name__} takes none here; of IP-Adapters those of Stable "
                "Diffusion 1, 2 and XL are supported"
            )
        cond, null = self.family.encode(self.pipe, given, negatives, options)
        found = cond | {_AWAY + k: v for k, v in null.items()}
        for k, v in found.items():
            if len(v) != len(prompts):
                raise ValueError(f"{k} has {len(v)} rows for {len(prompts)} conditions; one group has one prompt")
        return {k: v.to(self.device) for k, v in found.items()}

    def _given(self, conds: Sequence[Condition]) -> Encoded:
        """Conditions of a denoiser without its pipeline: tensors as the network takes them, without a row axis."""
        if all(c is None for c in conds):
            return None if self._null is None else {k: v.expand(len(conds), *v.shape) for k, v in self.null.items()}
        named = [
            c if isinstance(c, dict) else {self.family.takes: c}
            for c in (self._null if c is None else c for c in conds)
        ]
        if not self.family.takes:
            raise ValueError(f"cond={conds!r}: {type(self.family.net).__name__} takes no condition")
        return {k: torch.stack([torch.as_tensor(c[k], device=self.device) for c in named]) for k in named[0]}

    # manners -----------------------------------------------------------------------------------------------------

    def modules(self) -> list[nn.Module]:
        """All that a run may call."""
        parts = [] if self.pipe is None else self.pipe.components.values()
        return list(dict.fromkeys([*super().modules(), *(m for m in parts if isinstance(m, nn.Module))]))

    @contextmanager
    def lent(self) -> Iterator[None]:
        """What was offloaded goes back when the run ends, as at the end of the pipeline's own call."""
        modules = [part for whole in self.modules() for part in whole.modules()]
        before = [(m, name, p) for m in modules for name, p in m._parameters.items() if p is not None]
        wanted = [p.requires_grad for _, _, p in before]
        try:
            yield
        finally:
            if self.pipe is not None:
                self.pipe.maybe_free_model_hooks()
            for (module, name, old), wants in zip(before, wanted, strict=True):
                now = module._parameters.get(name)
                if now is not None and now is not old:  # sequential offloading puts others there at every call
                    now.requires_grad_(wants)

    @property
    def bar(self) -> dict[str, Any]:
        """What the user told pipe.set_progress_bar_config."""
        return dict(getattr(self.pipe, "_progress_bar_config", {}))

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of a run, besides the weights."""
        family = self.family
        return {
            "family": type(family).__name__, "shape": list(self.shape), "guidance": family.guidance,
            "negative": repr(self.negative), "given": describe(getattr(family.net, "given", None)),
            "encoding": describe(self.encoding), **self.process.grids.identity(),
        }  # fmt: skip
