"""guidekit: inference-time guidance and reward search for any pre-trained diffusion model.

import guidekit as gk
result = gk.sample(model, 64, guides=[gk.CFG(3.0), gk.FKSteering(reward, alpha=0.1)], cond="HepG2")
"""

import os.path
from importlib.util import find_spec

import lazy_loader

__version__ = "0.1.0"


def _check_rewards() -> None:
    """Raise where a file or folder of the user's hides the package `rewards`, which lies beside this one."""
    found = find_spec("rewards")
    if found is None:
        raise ImportError("guidekit needs its package 'rewards', which is missing: install guidekit anew")
    folder = next(iter(found.submodule_search_locations or []), None)
    own = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "rewards")
    if folder is None or not os.path.isdir(own) or not os.path.samefile(folder, own):
        raise ImportError(
            f"{folder or found.origin} hides the package 'rewards' that comes with guidekit. Give it another name, "
            "like my_rewards, and import it by that name"
        )


_check_rewards()

# Names, and where they come from, are in __init__.pyi. They are imported when they are first used, so that
# `guidekit --help` need not wait for torch. No module has the name of a function in it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
