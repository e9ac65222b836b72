"""What a pipeline's call tells the attention of its denoiser: the scale of a LoRA, masks of IP-Adapters."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ...models.networks import networks_in


class Attending:
    """A denoiser with further arguments of its attention. They are the same for all rows."""

    def __init__(self, net: Any, name: str, options: dict[str, Any]):
        self.net, self.name, self.options = net, name, options
        self.config, self.dtype = net.config, net.dtype
        self.channels = getattr(net, "channels", net.config.get("in_channels"))
        self.given = getattr(net, "given", None), options

    def __call__(self, *latents: Any, **inputs: Any) -> Any:
        return self.net(*latents, **inputs, **{self.name: dict(self.options)})


def attending(pipe: Any, net: Any, options: dict[str, Any] | None) -> Any:
    """The denoiser, with these arguments of its attention if there are any."""
    if options is None:
        return net
    if not isinstance(options, dict):
        raise TypeError(f"attention_kwargs={options!r}: a dict is needed, like {{'scale': 0.5}}")
    denoiser = networks_in(net)[0]
    name = next((k for k in _arguments(denoiser) if k.endswith("attention_kwargs")), None)
    if name is None:
        raise ValueError(f"attention_kwargs: {type(denoiser).__name__} takes none")
    if "ip_adapter_masks" in options and not getattr(denoiser.config, "encoder_hid_dim_type", None) == "ip_image_proj":
        raise ValueError("ip_adapter_masks: the pipeline has no IP-Adapter; load one with pipe.load_ip_adapter(...)")
    return Attending(net, name, options)


def scaled(pipe: Any, options: dict[str, Any] | None) -> dict[str, Any]:
    """The scale of a LoRA for text encoders, where the pipeline hands them one."""
    takes = hasattr(pipe, "encode_prompt") and "lora_scale" in inspect.signature(pipe.encode_prompt).parameters
    return {"lora_scale": options["scale"]} if takes and options and "scale" in options else {}


def _arguments(denoiser: nn.Module) -> list[str]:
    return list(inspect.signature(getattr(denoiser, "_orig_mod", denoiser).forward).parameters)
