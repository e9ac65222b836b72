"""guidekit: inference-time guidance and reward search for any pre-trained diffusion model.

import guidekit as gk
result = gk.sample(model, 64, guides=[gk.CFG(3.0), gk.FKSteering(reward, alpha=0.1)], cond="HepG2")
"""

import lazy_loader

__version__ = "0.1.0"

# Names, and where they come from, are in __init__.pyi. They are imported when they are first used, so that
# `guidekit --help` need not wait for torch. No module has the name of a function in it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
