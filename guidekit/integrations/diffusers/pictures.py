"""Pictures as conditions, by the IP-Adapters of a U-Net: "image_embeds.0", "image_embeds.1"... of a condition."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_IMAGE, _EMBEDS, _ENTRY = "ip_adapter_image", "ip_adapter_image_embeds", "image_embeds."


def looked(
    net: Any, pipe: Any, rows: int, options: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """What the pipeline makes of the pictures among these options, what of none, and the other options."""
    rest = {k: v for k, v in options.items() if k not in (_IMAGE, _EMBEDS)}
    image, embeds = options.get(_IMAGE), options.get(_EMBEDS)
    adapted = getattr(net.config, "encoder_hid_dim_type", None) == "ip_image_proj"
    _check(adapted, image, embeds)
    if not adapted:
        return {}, {}, rest
    both = pipe.prepare_ip_adapter_image_embeds(image, embeds, pipe._execution_device, rows, True)
    null, cond = zip(*(v.chunk(2) for v in both), strict=True)
    return {f"{_ENTRY}{i}": v for i, v in enumerate(cond)}, {f"{_ENTRY}{i}": v for i, v in enumerate(null)}, rest


def pictured(cond: dict[str, Tensor]) -> dict[str, Any]:
    """What the U-Net takes: a list with the pictures for each adapter; nothing where there are none."""
    names = sorted((k for k in cond if k.startswith(_ENTRY)), key=lambda k: int(k.removeprefix(_ENTRY)))
    return {"image_embeds": [cond[k] for k in names]} if names else {}


def _check(adapted: bool, image: Any, embeds: Any) -> None:
    if adapted and image is None and embeds is None:
        raise ValueError(
            f"the pipeline has an IP-Adapter, which needs a picture: give cond={{'prompt': ..., '{_IMAGE}': ...}}, or "
            f"one for all prompts by encode={{'{_IMAGE}': ...}}, or call pipe.unload_ip_adapter()"
        )
    if not adapted and not (image is None and embeds is None):
        raise ValueError(f"{_IMAGE}: the pipeline has no IP-Adapter; load one with pipe.load_ip_adapter(...)")
    if image is not None and embeds is not None:
        raise ValueError(f"give {_IMAGE} or {_EMBEDS}, not both")
    if embeds is not None and (not isinstance(embeds, list) or any(v.dim() < 3 or len(v) != 2 for v in embeds)):
        raise ValueError(
            f"{_EMBEDS}: a list with one tensor for each IP-Adapter, (2, pictures, ...), that of no picture first"
        )
