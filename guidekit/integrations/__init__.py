"""Models of other libraries as base models: `guidekit.integrations.diffusers`, `.mdlm`, `.causal`, `.sedd`; and
samplers for others: `.comfyui`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["causal", "comfyui", "diffusers", "mdlm", "sedd"]
)
