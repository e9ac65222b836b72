"""Models of other libraries as base models: `guidekit.integrations.diffusers` and `guidekit.integrations.mdlm`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["diffusers", "mdlm"])
